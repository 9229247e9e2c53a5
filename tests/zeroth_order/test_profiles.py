"""Oracles for the profiles: brute-force loops over the definitions, and simulated violations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import profiles

INF = np.inf
# Three problems, three solvers: a win, a tie, one that nobody solves, one solver that never does.
T = np.array([[30.0, 60.0, INF], [55.0, 55.0, 110.0], [INF, INF, INF], [INF, 12.0, 480.0]])
N = np.array([2, 10, 4, 5])


@pytest.fixture(scope="module")
def table():
    """Random queries to solve `[40, 4]`, with ties and unsolved problems, and their dimensions."""
    rng = np.random.default_rng(7)
    t = np.floor(10.0 ** rng.uniform(0.5, 4.0, (40, 4)))
    t[rng.random(t.shape) < 0.3] = INF
    t[::5, 1] = t[::5, 0]
    return t, rng.integers(2, 50, 40)


def test_queries_to_solve_by_hand():
    """f_ref = 1 and f_start = 21: the gap is (f - 1)+ / 20."""
    best_f = jnp.array([jnp.inf, 0.5, 5.0, 2.5, 1.5, 0.9, jnp.nan])
    violation = jnp.array([jnp.inf, 0.2, 1e-4, 1e-5, 0.0, 0.0, 0.0])
    queries = jnp.array([1, 4, 7, 10, 13, 16, 19])

    @jax.jit
    @jax.vmap
    def solve(tau):
        return profiles.queries_to_solve(best_f, violation, queries, 1.0, 21.0, tau=tau)

    # 0.5 is below the reference but infeasible; 5.0 has gap 0.2, 2.5 0.075, 1.5 0.025, 0.9 none.
    got = solve(jnp.array([0.25, 0.19, 0.1, 0.05, 0.02, 0.0]))
    np.testing.assert_array_equal(got, [7, 10, 10, 13, 16, 16])
    strict = profiles.queries_to_solve(
        best_f, violation, queries, 1.0, 21.0, tau=0.25, feasibility_tol=1e-6
    )
    assert strict == 13  # the first point whose violation is 0
    # The scale is at least 1: from f_start = 1.2 the same gaps are absolute.
    near = profiles.queries_to_solve(best_f, violation, queries, 1.0, 1.2, tau=0.6)
    assert near == 13
    # A reference that was not reached.
    assert profiles.queries_to_solve(best_f, violation, queries, -10.0, 21.0, tau=0.1) == jnp.inf


def test_traces_of_different_length_are_named():
    with pytest.raises(ValueError, match="one entry per log entry"):
        profiles.queries_to_solve(jnp.ones(3), jnp.ones(3), jnp.ones(2), 0.0, 1.0, tau=0.1)


def test_data_profile_by_hand():
    """Problems in simplex gradients: 10, 20 | 5, 5, 10 | - | 2, 80."""
    budgets = np.array([1.0, 2.0, 5.0, 10.0, 20.0, 100.0, INF])
    got = jax.jit(profiles.data_profile)(T, N, budgets)
    want = np.array([[0, 0, 1, 2, 2, 2, 2], [0, 1, 2, 2, 3, 3, 3], [0, 0, 0, 1, 1, 2, 2]]).T / 4
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_data_profile_is_its_definition(table, x64):
    t, n = table[0].copy(), table[1]
    budgets = np.concatenate([np.logspace(-1, 4, 30), np.arange(1.0, 40.0), [INF]])
    t[::3] = (n[::3] * 7 + 7)[:, None]  # exactly 7 simplex gradients
    got = np.asarray(jax.jit(profiles.data_profile)(t, n, budgets))
    for k, budget in enumerate(budgets):
        for s in range(t.shape[1]):
            solved = sum(
                np.isfinite(t[p, s]) and t[p, s] <= budget * (n[p] + 1) for p in range(len(n))
            )
            assert got[k, s] == pytest.approx(solved / len(n))
    assert (np.diff(got[30:], axis=0) >= 0).all()


def test_performance_profile_by_hand():
    ratios = jax.jit(profiles.performance_ratios)(T)
    want = np.array([[1, 2, INF], [1, 1, 2], [INF, INF, INF], [INF, 1, 40]])
    np.testing.assert_allclose(ratios, want, rtol=1e-6)
    profile = profiles.performance_profile(T, np.array([1.0, 2.0, 39.0, 40.0, INF]))
    want = np.array([[2, 2, 2, 2, 2], [2, 3, 3, 3, 3], [0, 1, 1, 2, 2]]).T / 4
    np.testing.assert_allclose(profile, want, rtol=1e-6)
    # A start that is the solution: nobody beats anybody by dividing by zero.
    np.testing.assert_array_equal(
        profiles.performance_ratios(np.array([[0.0, 0.0, 3.0]])), [[1, 1, 3]]
    )


def test_performance_profile_is_its_definition(table, x64):
    t, _ = table
    limits = np.array([1.0, 1.5, 2.0, 10.0, 1e3, 1e9])
    got = np.asarray(jax.jit(profiles.performance_profile)(t, limits))
    for k, limit in enumerate(limits):
        for s in range(t.shape[1]):
            within = sum(
                np.isfinite(t[p, s]) and t[p, s] <= limit * t[p].min() for p in range(len(t))
            )
            assert got[k, s] == pytest.approx(within / len(t))
    np.testing.assert_allclose(got[-1], np.isfinite(t).mean(axis=0))
    # Every solved problem has a winner of ratio 1, and ties have several.
    ratios = np.asarray(jax.jit(profiles.performance_ratios)(t))
    solved = np.isfinite(t).any(axis=1)
    np.testing.assert_array_equal(ratios[solved].min(axis=1), 1.0)
    np.testing.assert_allclose((ratios == 1.0).mean(axis=0), got[0], rtol=1e-12)
    assert got[0].sum() > solved.mean()


def test_log_query_auc_is_the_area_under_the_data_profile(table, x64):
    """Midpoint sums over 20 001 cells of the log axis; the steps of 40 problems cost 1e-4."""
    t, n = table
    units = t / (n + 1)[:, None]
    low, high = 1.0, 1e3
    edges = np.linspace(np.log(low), np.log(high), 20_001)
    profile = profiles.data_profile(t, n, np.exp((edges[1:] + edges[:-1]) / 2))
    got = jax.jit(lambda t: profiles.log_query_auc(t, low=low, high=high))(units)
    np.testing.assert_allclose(got, np.asarray(profile).mean(axis=0), atol=1e-4)
    worse = profiles.log_query_auc(2.0 * units, low=low, high=high)
    assert (np.asarray(worse) < np.asarray(got)).all()


def test_log_query_auc_at_its_limits():
    t = np.array([[10.0, 1000.0, INF, 100.0, 3.0, 5000.0]])
    got = profiles.log_query_auc(t, low=10, high=1000)
    np.testing.assert_allclose(got, [1, 0, 0, 0.5, 1, 0], atol=1e-6)
    with pytest.raises(ValueError, match="0 < low < high"):
        profiles.log_query_auc(t, low=10, high=10)


@pytest.mark.parametrize("a", [0.1, 1.0, 1.7], ids=str)
def test_envelope_is_the_violation_of_a_linear_constraint(a, x64):
    """A numpy Euler loop of feedback linearization on random linear equalities follows it."""
    rng = np.random.default_rng(3)
    J, target, x, eta = rng.normal(size=(2, 5)), rng.normal(size=5), rng.normal(size=5), 0.05
    h = [J @ x - 1.0]
    for _ in range(20):
        grad = x - target
        lam = -np.linalg.solve(J @ J.T, J @ grad - a / eta * h[-1])
        x = x - eta * (grad + J.T @ lam)
        h.append(J @ x - 1.0)
    got = jax.jit(lambda h0: profiles.violation_envelope(h0, a, 20))(h[0])
    np.testing.assert_allclose(got, np.abs(h), atol=1e-12)  # values of order 1, 20 steps
    # A gain per constraint.
    both = profiles.violation_envelope(jnp.array([2.0, -3.0]), jnp.array([0.5, 1.0]), 2)
    np.testing.assert_allclose(both, [[2, 3], [1, 0], [0.5, 0]])


@pytest.mark.parametrize("a", [0.2, 0.7, 1.5], ids=str)
def test_bound_holds_on_a_curved_constraint_and_is_tight(a):
    """Around the circle (|x|^2 - 1)/2 = 0, whose Hessian is I (L = 1), at tangential speed 2.

    Each step adds exactly eta^2 |F|^2 / 2, so that for a <= 1 the limit attains the bound up to
    the change of |F|; for a > 1 errors alternate and the geometric series is not attained.
    """
    eta, x, h, speed = 0.02, np.array([1.3, 0.0]), [], 0.0
    for step in range(400):
        value = (x @ x - 1.0) / 2.0
        normal = -(a / eta) * value * x / (x @ x)
        field = 2.0 * np.array([-x[1], x[0]]) / np.linalg.norm(x) + normal
        if step >= 200:
            speed, h = max(speed, np.linalg.norm(field)), [*h, abs(value)]
        x = x + eta * field
    bound = profiles.violation_bound(a, eta=eta, curvature=1.0, speed=speed)
    assert max(h) <= bound * (1 + 1e-9)
    if a <= 1.0:
        assert max(h) > 0.99 * bound


def test_bound_is_the_sum_of_the_errors():
    """h <- (1 - a) h + error at its largest, with the sign that hurts most."""
    a, eta, error = np.array([0.3, 1.0, 1.6]), 0.1, np.array([0.0, 0.02, 0.5])
    h = np.zeros(3)
    for _ in range(300):
        h = np.abs(1.0 - a) * h + error + 0.5 * eta**2 * 4.0 * 3.0**2
    got = profiles.violation_bound(a, eta=eta, curvature=4.0, speed=3.0, jacobian_error=error)
    np.testing.assert_allclose(got, h, rtol=1e-6)


def test_noise_floor_is_the_deviation_of_noisy_feedback():
    """4000 chains of h <- h - a (h + sigma z), 60 steps; five standard errors of a deviation."""
    rng = np.random.default_rng(11)
    for a in (0.3, 0.5, 1.0, 1.5):
        h = np.zeros(4000)
        for _ in range(60):
            h = h - a * (h + 0.2 * rng.normal(size=h.size))
        floor = profiles.noise_floor(0.2, a)
        np.testing.assert_allclose(h.std(), floor, rtol=5 / (2 * h.size) ** 0.5)
    # The figure of the source for two gains.
    assert profiles.noise_floor(1.0, 0.5) / profiles.noise_floor(1.0, 0.1) == pytest.approx(
        2.5, 0.01
    )


def test_gains_that_do_not_contract_are_named():
    for call in (
        lambda: profiles.violation_envelope(jnp.ones(1), 2.0, 3),
        lambda: profiles.violation_bound(0.0, eta=0.1, curvature=1.0, speed=1.0),
        lambda: profiles.noise_floor(1.0, -0.5),
    ):
        with pytest.raises(ValueError, match=r"\(0, 2\)"):
            call()
    with pytest.raises(ValueError, match="num_steps must be at least 0, got -1"):
        profiles.violation_envelope(jnp.ones(1), 0.5, -1)
