"""Oracles for SZO-QQ: SLSQP on the subproblem, a NumPy loop, feasible queries, known optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxlab.zeroth_order import method, problem
from jaxlab.zeroth_order.baselines import safe_qcqp


def slsqp(g, mu, c, J, M):
    """The subproblem by sequential least squares, which has no dual to get wrong."""
    rows = [
        {
            "type": "ineq",
            "fun": lambda d, i=i: -(c[i] + J[i] @ d + 2 * M[i] * d @ d),
            "jac": lambda d, i=i: -(J[i] + 4 * M[i] * d),
        }
        for i in range(c.size)
    ]
    found = optimize.minimize(
        lambda d: g @ d + mu * d @ d,
        np.zeros(g.size),
        jac=lambda d: g + 2 * mu * d,
        constraints=rows,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    assert found.status in (0, 8)  # 8: the line search has met rounding
    return found.x


def test_subproblem_equals_slsqp(x64):
    """24 random programs, a third of the constraints linear; SLSQP is good to 1e-7 or so."""
    rng = np.random.default_rng(0)
    n, k, number = 4, 6, 24
    g = rng.normal(size=(number, n)) * 3.0
    mu = rng.uniform(0.1, 3.0, size=number)
    c = -rng.exponential(0.3, size=(number, k))
    J = rng.normal(size=(number, k, n))
    M = rng.uniform(0.0, 2.0, size=(number, k)) * (np.arange(k) % 3 > 0)
    solve = jax.jit(jax.vmap(lambda *args: safe_qcqp.solve_qcqp(*args, num_sweeps=300)))
    d, lam, residual = solve(g, mu, c, J, M)
    want = np.stack([slsqp(*args) for args in zip(g, mu, c, J, M, strict=True)])
    np.testing.assert_allclose(d, want, rtol=0, atol=2e-6)
    np.testing.assert_array_less(residual, 1e-9)
    assert np.all(np.asarray(lam) >= 0.0)
    # Stationarity, by hand: g + J'lam + 2 (mu + 2 M'lam) d = 0.
    weight = mu + 2.0 * np.sum(M * lam, axis=1)
    slope = g + np.einsum("bk,bkn->bn", lam, J) + 2.0 * weight[:, None] * d
    np.testing.assert_allclose(slope, 0.0, atol=1e-10)
    assert np.mean(np.sum(np.asarray(lam) > 1e-6, axis=1)) > 1.2  # several active at once


def test_subproblem_without_room_or_curvature():
    """No slack and no descent direction: d = 0; a constant constraint: no effect, no NaN."""
    g = jnp.array([1.0, 0.0])
    d, _, _ = jax.jit(safe_qcqp.solve_qcqp)(
        g, 1.0, jnp.array([0.5, -1.0]), jnp.array([[-1.0, 0.0], [0.0, 0.0]]), jnp.array([1.0, 0.0])
    )
    np.testing.assert_allclose(d, 0.0, atol=1e-6)


def ring(x):
    """In the unit disc, outside a smaller one, slopes up to 1.6; M = 1 for both."""
    p = jnp.array([0.3, 0.0], x.dtype)
    h = 0.5 * jnp.stack([jnp.sum(x**2) - 1.0, 0.16 - jnp.sum((x - p) ** 2)])
    return jnp.sum((x - jnp.array([1.0, -0.2], x.dtype)) ** 2), h


def ring_numpy(x):
    h = 0.5 * np.array([x @ x - 1.0, 0.16 - np.sum((x - np.array([0.3, 0.0])) ** 2)])
    return np.concatenate([[np.sum((x - np.array([1.0, -0.2])) ** 2)], h])


def test_trajectory_equals_a_numpy_loop(x64, key):
    """Every subproblem by SLSQP: float64, 8 steps, to the accuracy of SLSQP."""
    mu, u, M, eps = 1.5, 1e-3, np.array([1.0, 1.3]), np.finfo(float).eps
    start, low, high = np.array([-0.5, 0.3]), -0.6, 0.9
    p = problem.make_problem(ring, jnp.asarray(start), lower=low, upper=high)

    def run(key, M, mu):
        algorithm = safe_qcqp.make_szo_qq(p, M=M, mu=mu, u=u)
        return method.run(algorithm, key, num_steps=8, observe=lambda s: s.next_x)

    state, path = jax.jit(run)(key, jnp.asarray(M), jnp.asarray(mu))

    def longest(slack, slope, curvature):
        """The positive root of curvature t^2 + slope t = slack, by bisection."""
        a, b = 0.0, 10.0
        for _ in range(100):
            middle = 0.5 * (a + b)
            a, b = (middle, b) if slope * middle + curvature * middle**2 <= slack else (a, middle)
        return a

    x, slope, xs = start, np.zeros(2), []
    for _ in range(8):
        q0 = ring_numpy(x)
        radius = min(u, *[longest(-q0[1 + i] - 4 * eps, slope[i], 0.5 * M[i]) for i in range(2)])
        G = np.zeros((3, 2))
        for i in range(2):
            step = radius if x[i] + radius <= high else -radius
            moved = x.copy()
            moved[i] += step
            G[:, i] = (ring_numpy(moved) - q0) / (moved[i] - x[i])
        error = np.sqrt(2) * (0.5 * M * radius + 2 * 4 * eps / radius)
        c = np.concatenate([q0[1:], low - x, x - high])
        J = np.concatenate([G[1:], -np.eye(2), np.eye(2)])
        d = slsqp(G[0], mu, c, J, np.concatenate([M, np.zeros(4)]))
        size = np.linalg.norm(d)
        cut = [
            longest(-q0[1 + i] - 4 * eps, G[1 + i] @ d + 2 * error[i] * size, 0.5 * M[i] * size**2)
            for i in range(2)
        ]
        d = min(1.0, *cut) * d
        slope = np.linalg.norm(G[1:], axis=1) + error + M * np.linalg.norm(d)
        x = x + d
        xs.append(x)
    np.testing.assert_allclose(path, xs, rtol=0, atol=1e-5)
    assert int(state.queries) == 8 * 3


@pytest.mark.parametrize(
    ("dtype", "sigma", "near", "share"),
    [(np.float32, 0.0, 2e-2, 0.9), (np.float64, 0.0, 1e-3, 0.9), (np.float64, 1e-3, 2e-2, 0.6)],
    ids=["f32", "f64", "noisy"],
)
def test_every_query_is_feasible(x64, key, dtype, sigma, near, share):
    """24 starts around the hole, valid M: an infeasible query would be rejected as not finite.

    All but the start on the axis of symmetry come round the hole, to the solution on the rim of the
    disc; with noise some stay behind the hole, where the slack is uncertain.
    """

    def poisoned(x, key):
        f, h = ring(x)
        key_f, key_h = jax.random.split(key)
        noisy = h + sigma * jax.random.normal(key_h, h.shape, h.dtype)
        f = f + sigma * jax.random.normal(key_f, (), h.dtype)
        return f, jnp.where(jnp.any(h > 0.0), jnp.nan, noisy)

    angle = np.linspace(0.3, 2.0 * np.pi - 0.3, 24)
    starts = 0.75 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    starts = starts[np.all(np.stack([ring_numpy(x)[1:] for x in starts]) < -0.01, axis=1)]
    assert len(starts) >= 20

    def run(key, x0):
        p = problem.make_problem(poisoned, x0, takes_key=True, sigma=sigma)
        algorithm = safe_qcqp.make_szo_qq(p, M=1.0, u=1e-2 if sigma else None)
        return method.run(algorithm, key, num_steps=80, observe=lambda s: s.next_x)

    keys = jax.random.split(key, len(starts))
    state, path = jax.jit(jax.vmap(run))(keys, jnp.asarray(starts, dtype))
    np.testing.assert_array_equal(state.rejected, 0)
    h = np.stack([ring_numpy(x)[1:] for x in np.asarray(path, np.float64).reshape(-1, 2)])
    assert h.max() <= 0.0
    target = np.array([1.0, -0.2])
    best = (np.linalg.norm(target) - 1.0) ** 2
    reached = np.sum((np.asarray(state.next_x) - target) ** 2, axis=1)
    assert np.mean(reached < best + near) > share


def test_optimum_of_hs43(x64, key):
    """Hock-Schittkowski 43, f* = -44 at (0, 1, 2, -1), from 0; curvatures of h are 2, 4, 4.

    The documented accuracy, with a margin: rounding limits it where the slack has become small.
    """

    def fun(x):
        a, b, c, d = x
        f = a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d
        h = [
            a**2 + b**2 + c**2 + d**2 + a - b + c - d - 8.0,
            a**2 + 2 * b**2 + c**2 + 2 * d**2 - a - d - 10.0,
            2 * a**2 + b**2 + c**2 + 2 * a - b - d - 5.0,
        ]
        return f, jnp.stack(h)

    p = problem.make_problem(fun, jnp.zeros(4))
    algorithm = safe_qcqp.make_szo_qq(p, M=jnp.array([2.0, 4.0, 4.0]), mu=2.0)
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=100))(key)
    np.testing.assert_allclose(state.best_f, -44.0, atol=1e-6)
    np.testing.assert_allclose(state.best_x, [0.0, 1.0, 2.0, -1.0], atol=1e-4)
    assert float(history["zo/violation_ineq"].max()) == 0.0
    assert float(state.best_f) >= -44.0  # feasible, so not below


def test_bound_and_constraint_active_together(x64, key):
    """min ||x - (3, 1)||^2, x <= 0.8, ||x|| <= 1: x* = (0.8, 0.6)."""

    def fun(x):
        target = jnp.array([3.0, 1.0])
        return jnp.sum((x - target) ** 2), 0.5 * (jnp.sum(x**2, keepdims=True) - 1.0)

    p = problem.make_problem(fun, jnp.array([0.1, -0.5]), upper=0.8)
    algorithm = safe_qcqp.make_szo_qq(p, M=1.0, mu=1.0)
    state, path = jax.jit(
        lambda key: method.run(algorithm, key, num_steps=200, observe=lambda s: s.next_x)
    )(key)
    assert np.max(path) <= 0.8
    assert np.max(np.sum(np.asarray(path) ** 2, axis=1)) <= 1.0
    np.testing.assert_allclose(state.next_x, [0.8, 0.6], atol=1e-2)


def test_without_constraints_it_is_gradient_descent(key):
    """Steps of 1 / (2 mu); on ||x - 1||^2 with mu = 2 the distance halves."""
    p = problem.make_problem(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(3))
    algorithm = safe_qcqp.make_szo_qq(p, M=1.0, mu=2.0, u=1e-2)
    state, _ = jax.jit(lambda key: method.run(algorithm, key, num_steps=4))(key)
    # Forward differences of ||x - 1||^2 shift the minimizer by u / 2.
    np.testing.assert_allclose(state.next_x, (1.0 - 0.5**4) * (1.0 - 0.005), rtol=1e-4)


def test_bad_settings():
    p = problem.make_problem(ring, jnp.array([-0.5, 0.3]))
    cases = [
        (p._replace(m_eq=1, m_ineq=1), {"M": 1.0}, "equalities do not leave"),
        (p._replace(x0=jnp.array([2.0, 0.0])), {"M": 1.0}, "strictly feasible start"),
        (p, {"M": jnp.array([1.0, 0.0])}, "M must be positive"),
        (p, {"M": 1.0, "mu": 0.0}, "mu must be positive"),
    ]
    for bad, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            safe_qcqp.make_szo_qq(bad, **settings)
