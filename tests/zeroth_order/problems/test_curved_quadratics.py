"""Oracles for the family of curved quadratics: NumPy sums, the KKT system, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import zeroth_order as zo


def test_values_are_those_of_the_formula(x64):
    data = zo.draw_curved_quadratics(3, n=5, m=2, seed=4)
    x = np.random.default_rng(0).normal(size=(3, 5))
    f, h = jax.jit(jax.vmap(lambda one, x: zo.curved_quadratic(one).exact(x)))(
        jax.tree.map(jnp.asarray, data), jnp.asarray(x)
    )
    for k in range(3):
        quadratic = sum(
            0.5 * data.Q[k, i, j] * x[k, i] * x[k, j] for i in range(5) for j in range(5)
        )
        np.testing.assert_allclose(f[k], quadratic + data.c[k] @ x[k], rtol=1e-12)
        for i in range(2):
            want = 0.5 * data.r[k, i] * x[k] @ x[k] + data.A[k, i] @ x[k] + data.b[k, i]
            np.testing.assert_allclose(h[k, i], want, rtol=1e-12, atol=1e-12)


def test_a_batch_is_solved_to_its_kkt_points(x64, key):
    """Stationarity and feasibility in NumPy, at the ends of one vmapped run over the data."""
    data = zo.draw_curved_quadratics(4)
    assert np.linalg.eigvalsh(data.Q).min() >= 1.0

    @jax.jit
    @jax.vmap
    def solve(key, one):
        problem = zo.curved_quadratic(one)
        config = zo.ZOFLConfig(eta=0.15, kind="coordinate")
        return zo.run(zo.make_zofl(problem, config), key, num_steps=400, log_every=400)[0].x

    ends = np.asarray(solve(jax.random.split(key, 4), jax.tree.map(jnp.asarray, data)))
    for k, x in enumerate(ends):
        grad, J = data.Q[k] @ x + data.c[k], data.r[k][:, None] * x + data.A[k]
        lam = np.linalg.lstsq(J.T, -grad, rcond=None)[0]
        # Central differences of quadratics err by rounding over the radius, 1e-15 / 1e-3.
        assert np.abs(grad + J.T @ lam).max() < 1e-8
        h = 0.5 * data.r[k] * (x @ x) + data.A[k] @ x + data.b[k]
        assert np.abs(h).max() < 1e-10


def test_the_first_constraints_may_be_equalities_alone():
    one = jax.tree.map(lambda field: field[0], zo.draw_curved_quadratics(1, n=4, m=3))
    problem = zo.curved_quadratic(one, m_eq=1, f_star=-2.0)
    assert (problem.m_eq, problem.m_ineq, problem.f_star) == (1, 2, -2.0)
    assert problem.x0.dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: zo.draw_curved_quadratics(0), "num_instances must be at least 1"),
        (lambda: zo.draw_curved_quadratics(2, n=2, m=3), "m between 1 and n"),
        (lambda: zo.curved_quadratic(zo.draw_curved_quadratics(2)), "under jax.vmap"),
    ],
    ids=["no instance", "more constraints than variables", "a whole batch"],
)
def test_mistakes_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
