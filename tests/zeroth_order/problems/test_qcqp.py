"""Oracles for the random QCQP: NumPy sums, the gradient by elements, the laws of its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.zeroth_order.problems.qcqp import draw_coefficients, random_qcqp


@pytest.mark.parametrize("inequality", [False, True], ids=["equality", "inequality"])
def test_values_and_derivatives(x64, key, inequality):
    """f, h, gradient and Jacobian in NumPy from Q = GG' and R_i = 0.01 G_i G_i'."""
    n, m = 7, 3
    problem = random_qcqp(key, n=n, m=m, inequality=inequality)
    G, c, G_R, A, b = (np.asarray(part) for part in draw_coefficients(key, n=n, m=m))
    Q = G @ G.T
    R = [0.01 * G_R[i] @ G_R[i].T for i in range(m)]
    x = np.random.default_rng(0).normal(size=n)
    f = sum(x[j] ** 3 for j in range(n)) / 3 + x @ Q @ x / 2 + c @ x
    f += x.sum() if inequality else 0.0
    h = [x @ R[i] @ x / 2 + A[i] @ x + b[i] for i in range(m)]
    grad = x**2 + Q @ x + c + (1.0 if inequality else 0.0)
    J = [R[i] @ x + A[i] for i in range(m)]

    @jax.jit
    def all_of(x_):
        def stacked(y):
            f_, h_ = problem.exact(y)
            return jnp.concatenate([f_[None], h_])

        return stacked(x_), jax.jacrev(stacked)(x_)

    got, got_J = all_of(jnp.asarray(x))
    np.testing.assert_allclose(got, [f, *h], rtol=1e-12)
    np.testing.assert_allclose(got_J, [grad, *J], rtol=1e-12, atol=1e-13)
    at_start = all_of(problem.x0)[0]
    np.testing.assert_allclose(at_start, [0.0, *b], atol=0.0)
    assert (problem.m_eq, problem.m_ineq) == ((0, m) if inequality else (m, 0))


def test_laws_of_the_coefficients(x64, key):
    """Kolmogorov-Smirnov over 200 keys at once; a fixed key, so that 1e-3 is not a flaky level."""
    keys = jax.random.split(key, 200)
    drawn = jax.jit(jax.vmap(lambda key_: draw_coefficients(key_, n=8, m=3)))(keys)
    for name in ("Q_root", "c", "R_root", "A"):
        values = np.asarray(getattr(drawn, name)).ravel()
        assert stats.kstest(values, "norm").pvalue > 1e-3, name
    assert stats.kstest(np.asarray(drawn.b).ravel(), "halfnorm").pvalue > 1e-3
    # Each part draws for itself: no two share a value.
    everything = np.concatenate([np.abs(np.asarray(part)).ravel() for part in drawn])
    assert np.unique(everything).size == everything.size


def test_builds_inside_vmap(key):
    """A vmap over keys equals a loop; the keys give different problems."""
    keys = jax.random.split(key, 3)
    x = jnp.linspace(-1.0, 1.0, 10)

    def values(key_):
        return random_qcqp(key_, n=10, m=2, inequality=True).exact(x)

    f, h = jax.jit(jax.vmap(values))(keys)
    one = jax.jit(values)
    for i in range(3):
        # float32 sums of terms up to 50, in another order
        np.testing.assert_allclose(f[i], one(keys[i])[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(h[i], one(keys[i])[1], rtol=1e-5, atol=1e-4)
    assert f.dtype == h.dtype == jnp.float32
    assert np.ptp(f) > 1.0


@pytest.mark.parametrize(("n", "m"), [(0, 0), (3, 4), (3, -1)], ids=str)
def test_rejects_sizes(key, n, m):
    with pytest.raises(ValueError, match="n must be at least 1 and m between 0 and n"):
        random_qcqp(key, n=n, m=m)
