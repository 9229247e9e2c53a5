"""Oracles for SafeOpt: the textbook posterior, a brute-force NumPy search, safety over seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import method, problem
from jaxlab.zeroth_order.baselines import safeopt

SIGMA = 1e-3


def kernel(A, C, lengthscale, amplitude):
    distance = np.sum(((A[:, None] - C[None]) / lengthscale) ** 2, axis=-1)
    return amplitude**2 * np.exp(-0.5 * distance)


def posterior(X, y, Z, lengthscale, amplitude, noise):
    """Mean, and what the measurements explain of the covariance, by the normal equations."""
    K = kernel(X, X, lengthscale, amplitude) + noise**2 * np.eye(len(X))
    across = kernel(X, Z, lengthscale, amplitude)
    weights = np.linalg.solve(K, across)
    return y @ weights, across, weights


def test_posterior_equals_the_normal_equations(x64):
    """Rows that are not known hold garbage. Conditioning 1e4 and float64: error below 1e-10."""
    rng = np.random.default_rng(1)
    X, y, Z = rng.uniform(size=(9, 2)), rng.normal(size=9), rng.uniform(size=(6, 2))
    known = np.array([1, 1, 0, 1, 1, 0, 1, 1, 0], bool)
    lengthscale, amplitude, noise = np.array([0.3, 0.5]), 1.7, 0.02
    y_buffer = np.where(known, y, np.nan)
    got = jax.jit(safeopt.gp_posterior)(
        X, y_buffer, known, Z, lengthscale=lengthscale, amplitude=amplitude, noise=noise
    )
    mean, across, weights = posterior(X[known], y[known], Z, lengthscale, amplitude, noise)
    prior = kernel(Z, Z, lengthscale, amplitude)
    cov = prior - across.T @ weights
    np.testing.assert_allclose(got.mean, mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(got.variance, np.diag(cov), rtol=0, atol=1e-10)
    np.testing.assert_allclose(prior - got.white.T @ got.white, cov, rtol=0, atol=1e-10)


def lopsided(x):
    """n = 2 on [0, 2] x [-1, 1], not symmetric, so that no two candidates tie."""
    f = (x[0] - 1.7) ** 2 + 0.5 * (x[1] + 0.4) ** 2
    h = jnp.stack([x[0] + 0.37 * x[1] - 1.31, 0.3 - x[0] - 0.2 * x[1] ** 2])
    return f, h


def lopsided_numpy(x):
    f = (x[0] - 1.7) ** 2 + 0.5 * (x[1] + 0.4) ** 2
    return np.array([f, x[0] + 0.37 * x[1] - 1.31, 0.3 - x[0] - 0.2 * x[1] ** 2])


def choose_numpy(X, Y, candidates, lengthscale, amplitude, noise, beta):
    """One decision by refitting every model for every candidate's lucky measurement."""
    offsets = np.array([Y[0, 0], 0.0, 0.0])

    def bounds(X, Y):
        lower, upper = [], []
        for i in range(3):
            mean, across, weights = posterior(
                X, Y[:, i] - offsets[i], candidates, lengthscale, amplitude[i], noise[i]
            )
            spread = beta * np.sqrt(amplitude[i] ** 2 - np.sum(across * weights, axis=0))
            lower.append(offsets[i] + mean - spread)
            upper.append(offsets[i] + mean + spread)
        return np.array(lower), np.array(upper)

    lower, upper = bounds(X, Y)
    safe = np.all(upper[1:] <= 0.0, axis=0)
    safe[0] = True
    maximizers = safe & (lower[0] <= np.min(upper[0][safe]))
    expanders = np.zeros_like(safe)
    for a in np.flatnonzero(safe):
        lucky = bounds(np.vstack([X, candidates[a]]), np.vstack([Y, lower[:, a]]))[1]
        expanders[a] = np.any(np.all(lucky[1:] <= 0.0, axis=0) & ~safe)
    width = np.max((upper - lower) / amplitude[:, None], axis=0)
    eligible = maximizers | expanders
    return int(np.argmax(np.where(eligible, width, -np.inf))), safe, maximizers, expanders


def test_decisions_equal_a_brute_force_search(x64, key):
    """26 queries on a 9 x 9 grid, the models refitted from nothing each time; settings traced."""
    amplitude, beta, capacity, sigma = np.array([1.5, 1.0, 0.8]), 1.5, 32, 1e-2
    start = np.array([0.9, 0.1])
    # The oracle is exact but declared noisy, so that points may be measured again.
    p = problem.make_problem(lopsided, jnp.asarray(start), sigma=sigma)
    p = p._replace(lb=jnp.array([0.0, -1.0]), ub=jnp.array([2.0, 1.0]))

    def run(key, lengthscale, amplitude, beta):
        algorithm = safeopt.make_safeopt(
            p,
            lengthscale=lengthscale,
            amplitude=amplitude,
            beta=beta,
            capacity=capacity,
            resolution=9,
        )
        return method.run(
            algorithm, key, num_steps=26, observe=lambda s: (s.next_x, s.extras["zo/safe_share"])
        )

    lengthscale = np.array([0.35, 0.5])
    _state, (path, share) = jax.jit(run)(key, lengthscale, amplitude, jnp.asarray(beta))

    axes = np.linspace(0.0, 2.0, 9), np.linspace(-1.0, 1.0, 9)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    candidates = np.vstack([start, grid])
    noise = np.sqrt(sigma**2 + 2 * capacity * np.finfo(float).eps * amplitude**2)
    X, kinds = [start], []
    for _ in range(26):
        Y = np.array([lopsided_numpy(x) for x in X])
        chosen, safe, maximizers, expanders = choose_numpy(
            np.array(X), Y, candidates, lengthscale * 2.0, amplitude, noise, beta
        )
        X.append(candidates[chosen])
        kinds.append((maximizers[chosen], expanders[chosen]))
    np.testing.assert_allclose(path, X[1:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(share[-1], np.mean(safe))
    # Both reasons to measure a point occurred, each without the other.
    assert (True, False) in kinds
    assert (False, True) in kinds


def safe_qp():
    """The QP of the safe-learning set, n = 2; an infeasible query poisons the run."""
    bound = 1.0 / np.sqrt(2.0)

    def fun(x, key):
        key_f, key_h = jax.random.split(key)
        f = jnp.sum((x - 2.0) ** 2) / 8.0
        h = jnp.concatenate([x - bound, -x - bound])
        noisy = h + SIGMA * jax.random.normal(key_h, h.shape, h.dtype)
        noisy = jnp.where(jnp.any(h > 0.0), jnp.nan, noisy)
        return f + SIGMA * jax.random.normal(key_f, (), f.dtype), noisy

    return problem.make_problem(
        fun, jnp.zeros(2), takes_key=True, sigma=SIGMA, lower=-1.0, upper=1.0
    )


def test_every_query_is_feasible_under_noise(key):
    """20 seeds; linear constraints are well inside the prior, so the bounds hold throughout.

    The grid's spacing is 0.2, and (0.6, 0.6) its best point in |x_i| <= 0.707. When the capacity is
    used up the iterate stays there, no query is made, and the last measurement is reported.
    """
    algorithm = safeopt.make_safeopt(safe_qp(), lengthscale=0.5, capacity=20, resolution=11)
    keys = jax.random.split(key, 20)
    state, (path, queries) = jax.jit(
        jax.vmap(
            lambda key: method.run(
                algorithm, key, num_steps=22, observe=lambda s: (s.next_x, s.queries)
            )
        )
    )(keys)
    np.testing.assert_array_equal(state.rejected, 0)
    assert np.abs(path).max() <= 1.0 / np.sqrt(2.0)
    np.testing.assert_array_equal(queries, np.minimum(np.arange(1, 23), 20)[None].repeat(20, 0))
    np.testing.assert_allclose(state.next_x, 0.6, rtol=1e-6)
    np.testing.assert_array_equal(path[:, 19:], path[:, -1:].repeat(3, 1))
    np.testing.assert_allclose(state.f, (2.0 - 0.6) ** 2 / 4.0, atol=5 * SIGMA)


def test_without_noise_no_point_is_measured_twice(x64, key):
    """The search ends by itself, at the best grid point that is safe, with queries to spare."""
    p = problem.make_problem(
        lambda x: ((x[0] - 0.83) ** 2, jnp.stack([x[0] - 0.71])),
        jnp.zeros(1),
        lower=-1.0,
        upper=1.0,
    )
    algorithm = safeopt.make_safeopt(p, capacity=48, resolution=21)
    state, (path, queries) = jax.jit(
        lambda key: method.run(
            algorithm, key, num_steps=48, observe=lambda s: (s.next_x, s.queries)
        )
    )(key)
    used = int(state.queries)
    assert 3 < used < 40
    measured = np.asarray(state.inner.X)[:used, 0]
    assert len(np.unique(measured)) == used
    np.testing.assert_array_equal(queries[used - 1 :], used)
    np.testing.assert_allclose(path[used:], 0.7, rtol=1e-12)
    np.testing.assert_allclose(state.f, (0.7 - 0.83) ** 2, rtol=1e-12)
    np.testing.assert_allclose(state.h, [-0.01], rtol=1e-9)


def test_grid_includes_the_bounds():
    lb, ub = jnp.array([0.0, -1.0]), jnp.array([1.0, 3.0])
    grid = np.asarray(safeopt.make_grid(lb, ub, 3))
    want = [[a, b] for a in (0.0, 0.5, 1.0) for b in (-1.0, 1.0, 3.0)]
    np.testing.assert_allclose(grid, want)


def test_bad_settings():
    p = problem.make_problem(lopsided, jnp.array([0.9, 0.1]), lower=0.0, upper=2.0)
    many = problem.make_problem(lambda x: jnp.sum(x), jnp.zeros(5), lower=-1.0, upper=1.0)
    cases = [
        (p._replace(m_eq=1, m_ineq=1), {}, "equalities do not leave"),
        (p._replace(x0=jnp.array([1.9, 0.1])), {}, "strictly feasible start"),
        (p._replace(ub=jnp.array([2.0, jnp.inf])), {}, "needs a finite box"),
        (many, {}, "at most 4 variables"),
        (p, {"lengthscale": 0.0}, "lengthscale must be positive"),
        (p, {"capacity": 1}, "must be 2 or more"),
    ]
    for bad, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            safeopt.make_safeopt(bad, **settings)
