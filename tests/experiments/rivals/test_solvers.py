"""External solvers on HS14, whose optimum is known, and the accounts that their adapter keeps."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from experiments.rivals import black_box, solvers
from jaxlab.zeroth_order import noise, problem

ROOT7 = 7.0**0.5
X_STAR = np.array([(ROOT7 - 1) / 2, (ROOT7 + 1) / 4])
F_STAR = 9.0 - 23.0 * ROOT7 / 8.0
EXTERNAL = [("cma", "cma"), ("nevergrad", "nevergrad"), ("NOMAD", "PyNomad")]


def hs14(x):
    f = (x[0] - 2.0) ** 2 + (x[1] - 1.0) ** 2
    return f, jnp.stack([x[0] - 2.0 * x[1] + 1.0, x[0] ** 2 / 4.0 + x[1] ** 2 - 1.0])


def sphere(x):
    return jnp.sum((x - jnp.array([0.5, -0.25], x.dtype)) ** 2)


def walls(x):
    return x[0] ** 2 + x[1] ** 2, jnp.stack([x[0] + 1.0, 1.0 - x[0]])


@pytest.fixture(scope="module")
def p():
    """HS14 in float64; its query is compiled once for all tests."""
    with jax.enable_x64(True):
        return problem.make_problem(hs14, jnp.array([2.0, 2.0]), m_eq=1, f_star=F_STAR)


@pytest.fixture(scope="module")
def noisy(p):
    with jax.enable_x64(True):
        return noise.with_noise(p, 1e-2)


def constraint_values(method, constraints, x):
    """Values of what a solver is handed, in our convention: h = 0 first, then g <= 0."""
    if method == "SLSQP":  # an inequality is >= 0 there
        equal, larger = constraints
        assert (equal["type"], larger["type"]) == ("eq", "ineq")
        return np.concatenate([equal["fun"](x), -larger["fun"](x)])
    values = constraints.fun(x)
    np.testing.assert_array_equal(constraints.ub, 0.0)
    if method == "COBYLA":  # an equality is two inequalities there
        assert constraints.lb == -np.inf
        np.testing.assert_array_equal(values[1], -values[0])
        return values[[0, 2]]
    np.testing.assert_array_equal(constraints.lb, [0.0, -np.inf])
    return values


@pytest.mark.parametrize("method", solvers.SCIPY)
def test_what_a_scipy_solver_is_handed_and_what_is_read_back(x64, p, method, monkeypatch):
    """A stand-in for the solver queries three points and answers: SciPy's own path is its luck."""
    boxed = p._replace(lb=jnp.array([-1.0, 0.0]), ub=jnp.array([2.0, np.inf]))
    points = np.array([[1.0, 0.5], [2.0, 2.0], [0.9, 0.95]])
    answer = np.array([0.8, 0.9])
    derivatives = jax.jit(jax.jacfwd(lambda x: jnp.hstack(hs14(x))))

    def stand_in(f, x0, *, method, jac, bounds, constraints, options, hess=None):
        np.testing.assert_array_equal(x0, [2.0, 2.0])
        np.testing.assert_array_equal(bounds.lb, boxed.lb)
        np.testing.assert_array_equal(bounds.ub, boxed.ub)
        assert 400 in options.values()  # the budget
        for x in points:
            value, h = hs14(x)
            assert f(x) == pytest.approx(float(value), rel=1e-12)
            np.testing.assert_allclose(constraint_values(method, constraints, x), h, atol=1e-12)
            if method not in ("SLSQP", "trust-constr"):
                assert jac is None
                continue
            # Forward differences of curvature 2 and step 1e-8; x_0 = 2 is at its upper bound.
            slopes = np.asarray(derivatives(x))
            np.testing.assert_allclose(jac(x), slopes[0], atol=1e-6)
            if method == "SLSQP":
                rows = constraints[0]["jac"](x), -constraints[1]["jac"](x)
            else:
                rows = constraints.jac(x)
            np.testing.assert_allclose(np.vstack(rows), slopes[1:], atol=1e-6)
        return scipy.optimize.OptimizeResult(x=answer)

    monkeypatch.setattr(scipy.optimize, "minimize", stand_in)
    trace = solvers.solve(boxed, method, budget=400)
    num_differences = 2 if method in ("SLSQP", "trust-constr") else 0
    assert len(trace.f) == 3 * (1 + num_differences)  # a point asked for twice is one query
    np.testing.assert_array_equal(trace.x[:: 1 + num_differences], points)
    assert trace.outside == trace.failed == 0 and trace.stop == "solver"
    # No point is feasible: the least violation is best, |0.9 - 1.9 + 1| and 0.8^2 / 4 + ... - 1.
    assert trace.best[-1] == trace.violation.argmin()
    np.testing.assert_array_equal(trace.returned_x, answer)
    assert trace.returned_f == pytest.approx(1.2**2 + 0.1**2)
    assert trace.returned_violation == pytest.approx(max(abs(0.8 - 1.8 + 1.0), 0.16 + 0.81 - 1.0))
    assert not trace.infeasible


@pytest.mark.parametrize("method", solvers.SCIPY)
def test_a_solver_of_scipy_runs_to_its_end(x64, p, method):
    """It gets nearer to feasible than the start, which violates by 4; how near is its own luck."""
    trace = solvers.solve(p, method, budget=400)
    assert trace.stop in ("solver", "budget") and len(trace.f) <= 400
    assert trace.best_violation[-1] < 0.1 * trace.violation[0]
    assert np.isfinite(trace.returned_x).all()


def test_slsqp_finds_the_optimum_with_our_differences(x64, p):
    trace = solvers.solve(p, "SLSQP", budget=400)
    # Differences err by 1e-8; the violation may be 1e-4, with multipliers of 1.6 and 1.8.
    np.testing.assert_allclose(trace.best_x, X_STAR, atol=1e-3)
    assert F_STAR - 5e-4 < trace.best_f[-1] < F_STAR + 1e-3


@pytest.mark.parametrize(("method", "budget"), [("cma", 600), ("NOMAD", 120)])
def test_samplers_approach_an_equality(x64, p, method, budget):
    pytest.importorskip(dict(EXTERNAL)[method])
    trace = solvers.solve(p, method, budget=budget, seed=3)
    assert trace.best_violation[-1] < 0.1 * trace.violation[0]
    assert len(trace.f) <= budget


@pytest.mark.parametrize(("method", "module"), EXTERNAL, ids=[row[0] for row in EXTERNAL])
def test_samplers_with_inequalities_box_and_seed(x64, method, module, tmp_path, monkeypatch):
    """min |x - (2, 1)|^2 over x_0 + x_1 <= 2 and x_1 >= 0.7 is 0.58 at (1.3, 0.7)."""
    pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)

    def halfplane(x):
        return (x[0] - 2.0) ** 2 + (x[1] - 1.0) ** 2, (x[0] + x[1] - 2.0)[None]

    start = jnp.array([0.5, 0.9])
    p = problem.make_problem(halfplane, start)._replace(lb=jnp.array([-jnp.inf, 0.7]))
    trace = solvers.solve(p, method, budget=250, seed=1)
    assert trace.best_violation[-1] <= 1e-4
    assert 0.58 - 1e-3 < trace.best_f[-1] < 1.5**2 + 0.1**2  # between the optimum and the start
    assert trace.outside == 0
    assert not list(tmp_path.iterdir())  # no logs left behind
    first, again, other = (solvers.solve(p, method, budget=30, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.x, again.x)
    assert first.x.shape != other.x.shape or (first.x != other.x).any()


@pytest.mark.parametrize(("method", "module"), EXTERNAL, ids=[row[0] for row in EXTERNAL])
def test_samplers_survive_failures_and_need_no_constraints(x64, p, method, module):
    pytest.importorskip(module)
    trace = solvers.solve(noise.with_failures(p, 0.2), method, budget=60, seed=3)
    assert trace.failed == np.isnan(trace.f).sum() > 0
    assert np.isfinite(trace.returned_x).all()
    free = problem.make_problem(sphere, jnp.array([0.1, 0.3]))
    trace = solvers.solve(free, method, budget=200)
    assert trace.best_f[-1] < trace.f[0]


@pytest.mark.parametrize("method", solvers.SCIPY)
def test_trace_is_what_was_measured(x64, p, method):
    """Values against direct evaluation, the best point against a loop over the definition."""
    trace = solvers.solve(p, method, budget=60)
    f, h = jax.vmap(hs14)(trace.x)
    np.testing.assert_allclose(trace.f, f, rtol=1e-12)
    np.testing.assert_allclose(trace.h, h, atol=1e-12)
    assert len({x.tobytes() for x in trace.x}) == len(trace.x) == len(trace.f)
    violation = np.maximum(np.abs(trace.h[:, 0]), trace.h[:, 1])
    violation = np.maximum(violation, 0.0)
    np.testing.assert_allclose(trace.violation, violation)
    for i in range(len(trace.f)):
        seen = slice(0, i + 1)
        feasible = violation[seen] <= 1e-4
        if feasible.any():
            want = np.where(feasible, trace.f[seen], np.inf).argmin()
        else:
            want = violation[seen].argmin()
        assert trace.best[i] == want
        assert trace.best_f[i] == trace.f[want]
        assert trace.best_violation[i] == violation[want]
    np.testing.assert_array_equal(trace.best_x, trace.x[want])


@pytest.mark.parametrize("method", solvers.SCIPY)
@pytest.mark.parametrize("budget", [1, 7])
def test_budget_ends_a_run_cleanly(x64, p, method, budget):
    trace = solvers.solve(p, method, budget=budget)
    assert len(trace.f) == len(trace.best_f) == budget
    # COBYLA needs n + 2 queries at least, and may stop at its own count of the budget.
    assert trace.stop in ("budget", "solver")
    if trace.stop == "budget":
        np.testing.assert_array_equal(trace.returned_x, trace.best_x)


def test_every_query_has_fresh_noise_that_the_seed_decides(x64, p, noisy):
    """Errors of 60 points: independent N(0, 0.01^2) for f and each h; the same for one seed."""
    first, again, other = (
        solvers.solve(noisy, "COBYLA", budget=60, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.f, again.f)
    assert first.f[0] != other.f[0]
    f, h = jax.vmap(hs14)(first.x)
    errors = np.column_stack([first.f - f, first.h - h])
    assert len(np.unique(errors)) == errors.size
    # 30 to 60 points: a deviation's relative error is below 0.13, and three of them 0.4.
    np.testing.assert_allclose(errors.std(axis=0), 1e-2, rtol=0.4)
    # Exact values at the returned point, though every measurement is noisy.
    assert first.returned_f == pytest.approx(float(hs14(first.returned_x)[0]), rel=1e-12)


def test_difference_step_follows_the_noise(x64, noisy):
    """Forward differences reach sqrt(sigma) = 0.1 from the start along each coordinate."""
    trace = solvers.solve(noisy, "SLSQP", budget=3)
    np.testing.assert_allclose(trace.x - trace.x[0], [[0, 0], [0.2, 0], [0, 0.2]], atol=1e-12)


@pytest.mark.parametrize("method", solvers.SCIPY)
def test_infeasible_answers_are_flagged(x64, method):
    """x <= -1 and x >= 1 contradict each other: no solver can help, and each must say so."""
    p = problem.make_problem(walls, jnp.array([0.2, 0.3]))
    trace = solvers.solve(p, method, budget=80)
    assert trace.infeasible
    assert trace.returned_violation >= 1.0
    assert (trace.best_violation >= 1.0).all()


@pytest.mark.parametrize("method", solvers.SCIPY)
def test_failed_queries_do_not_end_a_run(x64, p, method):
    crashing = noise.with_failures(p, 0.15)
    trace = solvers.solve(crashing, method, budget=60, seed=4)
    assert trace.failed == np.isnan(trace.f).sum() > 0
    assert np.isfinite(trace.best_f[-1])
    assert np.isfinite(trace.returned_x).all()
    dead = solvers.solve(noise.with_failures(p, 1.0), method, budget=20)
    assert dead.failed == len(dead.f)
    assert (dead.best_f == np.inf).all()
    np.testing.assert_array_equal(dead.best_x, p.x0)


@pytest.mark.parametrize("method", solvers.SCIPY)
def test_box_and_no_constraints(x64, method):
    """The minimizer (0.5, -0.25) without constraints, and (0.2, 0) in the box that excludes it.

    Each of these solvers ends there to 1e-7; what is asked is that it sees the problem and the box.
    """
    free = problem.make_problem(sphere, jnp.array([0.1, 0.3]))
    trace = solvers.solve(free, method, budget=200)
    np.testing.assert_allclose(trace.returned_x, [0.5, -0.25], atol=1e-2)
    assert trace.h.shape == (len(trace.f), 0)

    boxed = problem.make_problem(sphere, jnp.array([0.2, 0.3]), lower=0.0, upper=jnp.inf)
    boxed = boxed._replace(ub=jnp.array([0.2, 0.4]))
    trace = solvers.solve(boxed, method, budget=200)
    np.testing.assert_allclose(trace.returned_x, [0.2, 0.0], atol=1e-2)
    outside = np.maximum(trace.x - [0.2, 0.4], -trace.x).max(axis=1) > 1e-4
    assert trace.outside == outside.sum()
    assert (trace.violation[outside] > 1e-4).all()
    if method in ("SLSQP", "COBYQA"):  # the other two are known to leave it
        assert trace.outside == 0


def test_float32_differences_use_a_step_that_float32_resolves():
    """sqrt(1.2e-7) = 3.5e-4: rounding of values near 1 leaves errors of 4e-4 in the slopes."""
    p = problem.make_problem(hs14, jnp.array([2.0, 2.0]), m_eq=1)
    box = black_box.BlackBox(p, budget=100, seed=0, difference_step=None)
    for x in ([0.9, 0.8], [1.5, -0.4]):
        slopes = jax.jacfwd(lambda x: jnp.hstack(hs14(x)))(jnp.array(x))
        np.testing.assert_allclose(box.jacobian(np.array(x)), slopes, atol=3e-3)
    assert box.measure(np.array(x)).size == 3 and len(box.points) == 6
    trace = solvers.solve(p, "SLSQP", budget=100)
    assert trace.x.dtype == np.float32
    assert trace.best_violation[-1] < 0.1 * trace.violation[0]


def test_mistakes_are_named(p, monkeypatch):
    with pytest.raises(ValueError, match="method must be one of SLSQP"):
        solvers.solve(p, "slsqp", budget=10)
    with pytest.raises(ValueError, match="budget must be at least 1, got 0"):
        solvers.solve(p, "SLSQP", budget=0)
    for method, module in (("cma", "cma"), ("nevergrad", "nevergrad"), ("NOMAD", "PyNomad")):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        package = solvers.PACKAGES[method]
        with pytest.raises(ImportError, match=f"needs the package {package}.*{solvers.EXTRA}"):
            solvers.solve(p, method, budget=10)
