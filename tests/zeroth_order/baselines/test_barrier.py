"""Oracles for LB-SGD: a NumPy loop, safety under noise over many seeds, known smoothness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import direction_sets, method, problem
from jaxlab.zeroth_order.baselines import barrier

SIGMA = 1e-3


def safe_qp(d):
    """The QP of the safe-learning set, whose queries poison the run where they are infeasible.

    min ||x - 2||^2 / (4d) with |x_i| <= 1/sqrt(d), M0 = 1/(2d), M = 0; x* = 1/sqrt(d).
    """
    bound = 1.0 / np.sqrt(d)

    def fun(x, key):
        key_f, key_h = jax.random.split(key)
        f = jnp.sum((x - 2.0) ** 2) / (4.0 * d)
        h = jnp.concatenate([x - bound, -x - bound])
        noisy = h + SIGMA * jax.random.normal(key_h, h.shape, h.dtype)
        # A value that is not finite makes the update count as rejected.
        noisy = jnp.where(jnp.any(h > 0.0), jnp.nan, noisy)
        return f + SIGMA * jax.random.normal(key_f, (), f.dtype), noisy

    return problem.make_problem(fun, jnp.zeros(d), takes_key=True, sigma=SIGMA)


def half_disc(sigma=0.0):
    """min -x_1 in the unit disc cut at x_2 <= 0.3, slopes of at most 1; M = (1, 0); x* = e_1."""

    def fun(x):
        return -x[0], jnp.stack([0.5 * (jnp.sum(x**2) - 1.0), x[1] - 0.3])

    return problem.make_problem(fun, jnp.array([-0.5, 0.1]), sigma=sigma)


def half_disc_numpy(x):
    return -x[0], np.array([0.5 * (np.sum(x**2) - 1.0), x[1] - 0.3])


def test_trajectory_equals_a_numpy_loop(x64, key):
    """The directions are drawn again from the same keys; the smoothness is traced.

    The oracle is exact but declared noisy, so that the confidence terms take part. Float64,
    40 steps; the differences lose 1e-16 / u = 1e-14 each.
    """
    M0, M, eta, omega, T_in, B, u, delta, reg = (
        1.0,
        np.array([1.0, 0.2]),
        0.1,
        0.7,
        4,
        3,
        0.01,
        0.05,
        1e-3,
    )
    p = half_disc(sigma=SIGMA)

    def run(key, M0, M, delta):
        algorithm = barrier.make_lb_sgd(
            p, M0=M0, M=M, eta=eta, omega=omega, T_in=T_in, B=B, u=u, delta=delta, reg=reg
        )
        return method.run(
            algorithm, key, num_steps=40, observe=lambda s: (s.next_x, s.extras["zo/eta"])
        )

    state, (path, etas) = jax.jit(run)(key, jnp.asarray(M0), jnp.asarray(M), jnp.asarray(delta))

    x, chain, xs = np.array([-0.5, 0.1]), jax.random.split(key)[0], []
    q = np.sqrt(np.log(1.0 / delta) / B)
    for t in range(40):
        chain, key_update = jax.random.split(chain)
        key_directions = jax.random.split(key_update)[0]
        S = np.asarray(direction_sets.directions(key_directions, 2, B, "sphere", jnp.float64)[0])
        f, c = half_disc_numpy(x)
        grad_f, grad_c = np.zeros(2), np.zeros((2, 2))
        for s in S.T:
            f_s, c_s = half_disc_numpy(x + u * s)
            grad_f += 2.0 / B * (f_s - f) / u * s
            grad_c += 2.0 / B * np.outer(c_s - c, s) / u
        weight = eta * omega ** (t // T_in)
        alpha = -c - SIGMA * q - u
        a = np.maximum(reg, alpha)
        step = grad_f + weight * grad_c.T @ (1.0 / a)
        norm = np.linalg.norm(step)
        L = np.abs(grad_c @ step) / norm + 2 * (SIGMA / u + u) * q
        M2 = M0 + 2 * weight * np.sum(M / a) + 4 * weight * np.sum(L**2 / a**2)
        certain = np.maximum(alpha, 0.0)
        gamma = min(np.min(certain / (2 * L + np.sqrt(certain * M))) / norm, 1.0 / M2)
        x = x - gamma * step
        xs.append(x)
    np.testing.assert_allclose(path, xs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(etas, eta * omega ** (np.arange(40) // T_in), rtol=1e-12)
    assert int(state.queries) == 40 * 2 * B


@pytest.mark.parametrize("d", [2, 4], ids=["n2", "n4"])
def test_every_query_is_feasible_under_noise(key, d):
    """32 seeds with the published settings: no infeasible query, and near the optimum.

    A certificate has to fail by more than the margin u, ten standard deviations of the noise, on
    top of what delta allows, before a query violates a constraint. The distance left is the
    margin u + 2 sigma and the barrier, eta / ||grad f|| in each variable, eta = 4e-4 at the end.
    """
    p = safe_qp(d)
    algorithm = barrier.make_lb_sgd(p, M0=0.5 / d, M=0.0)
    keys = jax.random.split(key, 32)
    state, path = jax.jit(
        jax.vmap(lambda key: method.run(algorithm, key, num_steps=90, observe=lambda s: s.next_x))
    )(keys)
    np.testing.assert_array_equal(state.rejected, 0)
    np.testing.assert_array_equal(state.queries, 90 * 2 * (d // 2))
    bound = 1.0 / np.sqrt(d)
    assert np.abs(path).max() <= bound  # the last iterate, not queried yet, included
    shortfall = bound - np.asarray(state.next_x)
    assert np.mean(shortfall) < 0.12 * bound


def test_exact_values_on_a_curved_constraint(key):
    """sigma = 0: one query of the iterate; feasible all along, and close to the solution e_1.

    The margin u and the barrier, which is 2e-3 at the end, keep it at a distance.
    """
    p = half_disc()
    algorithm = barrier.make_lb_sgd(p, M0=0.1, M=jnp.array([1.0, 0.0]), B=2, omega=0.9)
    keys = jax.random.split(key, 8)
    state, path = jax.jit(
        jax.vmap(lambda key: method.run(algorithm, key, num_steps=300, observe=lambda s: s.next_x))
    )(keys)
    np.testing.assert_array_equal(state.queries, 300 * 3)
    x = np.asarray(path, np.float64)
    assert np.max(np.sum(x**2, axis=-1)) < 1.0
    assert np.max(x[..., 1]) < 0.3
    assert np.mean(np.asarray(state.next_x)[:, 0]) > 0.95
    assert np.all(np.asarray(state.best_violation) == 0.0)


def test_it_stays_where_no_slack_is_certain(key):
    """A start inside the margin is measured again and again, and not left."""
    p = half_disc(sigma=0.1)._replace(exact=None, x0=jnp.array([0.0, 0.295]))
    algorithm = barrier.make_lb_sgd(p, M0=1.0, M=1.0)
    state, _ = jax.jit(lambda key: method.run(algorithm, key, num_steps=5))(key)
    np.testing.assert_array_equal(state.next_x, p.x0)
    assert int(state.status) < method.BUDGET_SPENT
    assert int(state.rejected) == 0


def test_smoothness_of_quadratics_is_exact(x64, key):
    """Second differences of a quadratic are exact: error 1e-16 / u^2 = 1e-12 at u = 1e-2."""
    rng = np.random.default_rng(3)
    H = rng.normal(size=(3, 4, 4))
    H = H + H.swapaxes(1, 2)
    slopes = rng.normal(size=(3, 4))

    def fun(x):
        values = 0.5 * jnp.einsum("dij,i,j->d", H, x, x) + slopes @ x
        return values[0], values[1:]

    # The start lies on a bound: the measurement moves inside.
    p = problem.make_problem(fun, jnp.zeros(4), lower=0.0)

    def estimate(key, headroom):
        M0, M, queries = barrier.estimate_smoothness(key, p, u=1e-2, headroom=headroom)
        return M0, M, jnp.asarray(queries)

    M0, M, queries = jax.jit(estimate)(key, jnp.asarray(1.5))
    want = 1.5 * np.abs(np.linalg.eigvalsh(H)).max(axis=1)
    np.testing.assert_allclose(np.concatenate([M0[None], M]), want, rtol=1e-9)
    assert int(queries) == 1 + 2 * 4 + 4 * 3 // 2


def test_bad_settings():
    p = half_disc()
    good = {"M0": 1.0, "M": 1.0}
    cases = [
        (p._replace(m_eq=1, m_ineq=1), good, "equalities do not leave"),
        (p._replace(x0=jnp.array([0.0, 0.3])), good, "strictly feasible start"),
        (p, {"M0": 0.0, "M": 1.0}, "M0 must be positive"),
        (p, {"M0": 1.0, "M": jnp.ones(3)}, "M must be one number"),
        (p, {"M0": 1.0, "M": -1.0}, "must not be negative"),
        (p, good | {"omega": 1.5}, "omega must be at most 1"),
        (p, good | {"T_in": 0}, "T_in must be at least 1"),
        (p, good | {"u": 0.0}, "radius u"),
    ]
    for bad, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            barrier.make_lb_sgd(bad, **settings)
