"""Oracles for the sphere and Stiefel projections: closed forms, scipy's polar factor, SLSQP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, optimize

from jaxlab.zeroth_order.problems import high_dimensional


def values_with_derivatives(problem):
    """One compiled function x -> (f, h, gradient, Jacobian)."""

    def stacked(x):
        f, h = problem.exact(x)
        return jnp.concatenate([f[None], h])

    @jax.jit
    def all_of(x):
        values, jacobian = stacked(x), jax.jacrev(stacked)(x)
        return values[0], values[1:], jacobian[0], jacobian[1:]

    return lambda x: tuple(np.asarray(part) for part in all_of(jnp.asarray(x)))


def test_sphere(x64, key):
    """z is read off the gradient at 0; the optimum is z/|z|, (|z| - 1)^2/2, multiplier 1/2."""
    problem = high_dimensional.sphere(50, key)
    value = values_with_derivatives(problem)
    z = -value(np.zeros(50))[2]
    np.testing.assert_allclose(np.linalg.norm(z), 2.0, rtol=1e-14)
    np.testing.assert_allclose(problem.x_star, z / np.linalg.norm(z), rtol=1e-14)
    np.testing.assert_allclose(problem.f_star, 0.5 * (np.linalg.norm(z) - 1) ** 2, rtol=1e-14)
    f, h, grad, J = value(problem.x_star)
    np.testing.assert_allclose(f, problem.f_star, rtol=1e-14)
    assert abs(h[0]) < 1e-14
    np.testing.assert_allclose(grad + 0.5 * J[0], 0.0, atol=1e-14)

    random = np.random.default_rng(0)
    x = random.normal(size=50)
    np.testing.assert_allclose(value(x)[0], 0.5 * np.linalg.norm(x - z) ** 2, rtol=1e-13)
    np.testing.assert_allclose(value(x)[1], [x @ x - 1], rtol=1e-13)
    for point in (np.asarray(problem.x0), x / np.linalg.norm(x)):
        f, h, _, _ = value(point)
        assert abs(h[0]) < 1e-14
        gap = np.linalg.norm(point - problem.x_star) ** 2
        np.testing.assert_allclose(f - problem.f_star, gap, rtol=1e-12)
    assert value(problem.x0)[0] - problem.f_star > 0.5  # the start is not the optimum


def test_sphere_of_a_million(key):
    """Values in float32, and no array beyond a few vectors: O(n) memory."""
    n = 1_000_000
    problem = high_dimensional.sphere(n, key)
    compiled = jax.jit(problem.exact).lower(problem.x0).compile()
    f, h = compiled(problem.x_star)
    # Sums of 10^6 terms in float32, each rounded to 6e-8, in partial sums.
    np.testing.assert_allclose(f, problem.f_star, rtol=1e-4)
    assert abs(float(h[0])) < 1e-4
    f0, h0 = compiled(problem.x0)
    # x0 . x_star is normal with standard deviation 1e-3: the gap is 2 within 5 deviations of 2e-3.
    np.testing.assert_allclose(f0 - problem.f_star, 2.0, atol=0.01)
    assert abs(float(h0[0])) < 1e-4
    memory = compiled.memory_analysis()
    if memory is not None:
        assert memory.temp_size_in_bytes <= 4 * 4 * n


def test_stiefel(x64, key):
    """Z is read off the gradient at 0; polar factor by scipy, constraints by a loop, SLSQP."""
    p, q = 6, 3
    problem = high_dimensional.stiefel(p, q, key)
    value = values_with_derivatives(problem)
    Z = -value(np.zeros(p * q))[2].reshape(p, q)
    U, _ = linalg.polar(Z)
    np.testing.assert_allclose(problem.unravel(problem.x_star), U, atol=1e-13)
    np.testing.assert_allclose(problem.f_star, 0.5 * np.sum((U - Z) ** 2), rtol=1e-12)

    X = np.random.default_rng(0).normal(size=(p, q))
    f, h, _, _ = value(X.ravel())
    np.testing.assert_allclose(f, 0.5 * np.sum((X - Z) ** 2), rtol=1e-13)
    want = [X[:, i] @ X[:, j] - (i == j) for i in range(q) for j in range(i, q)]
    np.testing.assert_allclose(h, want, rtol=1e-12, atol=1e-14)
    assert problem.m_eq == len(want) == q * (q + 1) // 2

    f0, h0, _, _ = value(problem.x0)
    assert np.abs(h0).max() < 1e-14
    assert f0 > problem.f_star + 0.5
    found = optimize.minimize(
        lambda x: float(value(x)[0]),
        np.asarray(problem.x0),
        jac=lambda x: value(x)[2],
        constraints={"type": "eq", "fun": lambda x: value(x)[1], "jac": lambda x: value(x)[3]},
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 200},
    )
    np.testing.assert_allclose(found.fun, problem.f_star, rtol=1e-9)
    np.testing.assert_allclose(found.x, problem.x_star, atol=1e-5)


def test_scale_and_laws_over_keys(key):
    """Built inside vmap: z and the start are independent and uniform, Z has variance 4/p."""
    keys = jax.random.split(key, 500)
    n, p, q = 16, 12, 2

    def draw(key_):
        ball = high_dimensional.sphere(n, key_)
        frame = high_dimensional.stiefel(p, q, key_)
        Z = -jax.grad(lambda x: frame.exact(x)[0])(jnp.zeros_like(frame.x0))
        return ball.x_star, ball.x0, Z, frame.x0, frame.f_star, frame.exact(frame.x_star)[0]

    x_star, x0, Z, X0, f_star, f = (np.asarray(part) for part in jax.jit(jax.vmap(draw))(keys))
    # Mean of 500 vectors with covariance I/n: squared norm 1/500 with a spread of sqrt(2/16)/500.
    for points in (x_star, x0, X0.reshape(-1, p, q)[:, :, 0]):
        assert np.sum(points.mean(axis=0) ** 2) < 2.5 / 500
    # Cosine of z and start: mean 0, variance 1/n.
    cosine = np.sum(x_star * x0, axis=1)
    assert abs(cosine.mean()) < 4 * (1 / n / 500) ** 0.5
    np.testing.assert_allclose(cosine.var(), 1 / n, rtol=0.25)
    # 12000 squares: relative standard deviation of their mean 0.013.
    np.testing.assert_allclose(np.mean(Z**2), 4 / p, rtol=0.05)
    np.testing.assert_allclose(f, f_star, rtol=1e-4)
    assert np.ptp(f_star) > 0.1  # another key, another problem


def test_errors(key):
    with pytest.raises(ValueError, match="n must be at least 2"):
        high_dimensional.sphere(1, key)
    with pytest.raises(ValueError, match="less than p, got p = 3 and q = 3"):
        high_dimensional.stiefel(3, 3, key)
