"""What a state says of itself: status, values that belong to its point, keys, compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import zeroth_order as zo
from jaxlab.zeroth_order import method
from jaxlab.zeroth_order.problems import policy_search
from tests.zeroth_order.quadratics import quadratic

PRECISIONS = pytest.mark.parametrize("precision", ["float32", "float64"])


def _solve(problem, key, num_steps, log_every=None, **settings):
    algorithm = zo.make_zofl(problem, zo.ZOFLConfig(**settings))
    log_every = num_steps if log_every is None else log_every
    return zo.run(algorithm, key, num_steps=num_steps, log_every=log_every)


@PRECISIONS
def test_a_blow_up_is_no_convergence(key, precision):
    """f = 6e26 after 400 steps, so that differences are lost in rounding and look like zero."""
    with jax.enable_x64(precision == "float64"):
        bowl = zo.make_problem(lambda x: 0.5 * jnp.sum(x**2), jnp.ones(200))
        algorithm = zo.make_zofl(bowl, zo.ZOFLConfig(eta=1.0, control=False))
        state, history = zo.run(algorithm, key, num_steps=400)
        assert int(state.status) == zo.DIVERGED
        assert float(state.best_f) == pytest.approx(100.0)  # the start
        frozen = np.argmax(history["zo/status"] == zo.DIVERGED)
        assert 0 < frozen < 399 and int(state.queries) == (frozen + 1) * 33
        # A million times the best is enough; the gap there is the rounding of such values.
        assert 1e8 < float(state.f) < 1e12
        rounding = float(jnp.finfo(state.f.dtype).eps) * float(state.f) / 1e-2
        assert history["zo/kkt_gap"][-1] >= rounding


@PRECISIONS
def test_the_gap_is_at_least_its_rounding(key, precision):
    """Where f is 1e6 whatever x, no difference says more than eps |f| / u, times sqrt(n)."""
    with jax.enable_x64(precision == "float64"):
        level = zo.make_problem(lambda x: 1e6 + 0.0 * x[0], jnp.ones(4))
        _, history = _solve(level, key, 1, u=1e-2)
        eps = float(jnp.finfo(level.x0.dtype).eps)
        np.testing.assert_allclose(history["zo/kkt_gap"], [2.0 * eps * 1e6 / 1e-2], rtol=1e-5)


@PRECISIONS
def test_statuses(key, precision):
    with jax.enable_x64(precision == "float64"):
        hs43 = zo.make_zofl(zo.hs("HS43"))
        state, history = zo.run(hs43, key, num_steps=600)
        assert int(state.status) == zo.CONVERGED
        assert abs(float(state.f) + 44.0) < 5e-3
        assert history["zo/status"][4] == zo.FEASIBLE and history["zo/best_violation"][4] <= 1e-4

        # x >= 1 and x <= 0 in one variable: between them each is violated by a half.
        both = zo.make_problem(
            lambda x: (jnp.sum(x**2), jnp.stack([1.0 - x[0], x[0]])), jnp.asarray([3.0, 1.0])
        )
        state, _ = _solve(both, key, 300)
        assert int(state.status) == zo.INFEASIBLE
        assert 0.47 < float(state.best_violation) < 0.53
        assert float(state.best_violation) <= float(jnp.max(state.h)) + 1e-6

        nowhere = zo.make_problem(lambda x: jnp.sum(x**2) + jnp.nan, jnp.ones(2))
        state, _ = _solve(nowhere, key, 20)
        assert int(state.status) == zo.BAD_START


def test_a_scale_of_the_problem_changes_no_status(key, x64):
    """f times 1e-6 or 1e6, h times 1e5 or 1e-5 and its tolerance with it."""
    hs43 = zo.hs("HS43")

    def solve(a, b):
        def fun(x):
            f, h = hs43.exact(x)
            return a * f, b * h

        scaled = zo.make_problem(fun, hs43.x0, feasibility_tol=1e-4 * b)
        return zo.run(zo.make_zofl(scaled), key, num_steps=1500, observe=lambda s: s.status)

    a = jnp.asarray([1e-6, 1e6])
    state, status = jax.jit(jax.vmap(solve))(a, jnp.asarray([1e5, 1e-5]))
    np.testing.assert_array_equal(status[:, 4], zo.FEASIBLE)
    np.testing.assert_array_equal(state.status, zo.CONVERGED)
    np.testing.assert_allclose(state.f / a, -44.0, atol=1e-3)


def test_noise_is_never_called_converged(key, x64):
    """A start so steep that a ten-thousandth of its slope is what noise leaves of one: luck."""
    bowl = zo.make_problem(lambda x: 50.0 * jnp.sum(x**2), jnp.ones(1))

    def statuses(sigma):
        algorithm = zo.make_zofl(zo.noise.with_noise(bowl, sigma))
        return zo.run(algorithm, key, num_steps=100, observe=lambda s: s.status)[1]

    status = jax.jit(jax.vmap(statuses))(jnp.asarray([0.0, 1e-4, 1e-2]))
    assert status[0, -1] == zo.CONVERGED
    np.testing.assert_array_equal(status[1:], zo.FEASIBLE)


@PRECISIONS
def test_a_steep_start_is_no_excuse(key, precision):
    """exp(5x) - 20x from 4, where its slope is 2e9: a ten-thousandth of it is no minimum."""
    with jax.enable_x64(precision == "float64"):
        cliff = zo.make_problem(lambda x: jnp.exp(5.0 * x[0]) - 20.0 * x[0], jnp.asarray([4.0]))
        _, history = _solve(cliff, key, 200, log_every=1)
        converged = history["zo/status"] == zo.CONVERGED
        assert converged[-1] and not converged[0]
        f_star = 4.0 - 4.0 * np.log(4.0)
        assert np.max(history["zo/f"][converged]) < f_star + 1e-3


@PRECISIONS
def test_large_units_are_no_divergence(key, precision):
    """A disk in units of 1e-7: the first step breaks it by 2.5e6, a quarter of what it measures."""
    with jax.enable_x64(precision == "float64"):

        def fun(x, unit):
            return -unit * x[0], jnp.stack([1e7 * (x @ x - 1.0)])

        def solve(unit):
            disk = zo.make_problem(
                lambda x: fun(x, unit), jnp.asarray([0.0, 0.5]), feasibility_tol=1e4
            )
            return zo.run(zo.make_zofl(disk), key, num_steps=300, log_every=300)[0]

        state = jax.jit(jax.vmap(solve))(jnp.asarray([1.0, 1e9]))
        np.testing.assert_array_equal(state.status, zo.CONVERGED)
        np.testing.assert_allclose(state.x, [[1.0, 0.0]] * 2, atol=2e-2)


def test_as_many_active_constraints_as_directions_say_nothing(key):
    """Two directions whose every move the two equalities forbid: no gradient can be seen."""
    problem = quadratic(0, n=6, m_eq=2)
    state, _ = _solve(problem, key, 200, B=2, eta=0.01)
    assert float(zo.max_violation(state.h, 2)) < 1e-3
    assert int(state.status) == zo.FEASIBLE


def test_a_budget_of_queries_is_kept(key):
    """11 queries an update and 11 at the start: 100 are enough for eight updates."""
    problem = quadratic(0)._replace(max_queries=100)
    state, history = zo.run(zo.make_zofl(problem), key, num_steps=20)
    assert int(state.status) == zo.BUDGET_SPENT
    assert int(state.queries) == 99 and int(state.t) == 8
    np.testing.assert_array_equal(history["zo/queries"][7:], 99)
    # Baselines keep it too, and one that has converged says so.
    state, _ = zo.run(zo.make_exact_penalty(problem), key, num_steps=20)
    assert int(state.status) == zo.BUDGET_SPENT and int(state.queries) == 99
    long = problem._replace(max_queries=11_000)
    state, _ = zo.run(zo.make_zofl(long), key, num_steps=1100, log_every=1100)
    assert int(state.status) == zo.CONVERGED and int(state.queries) == 11_000
    with pytest.raises(ValueError, match="max_queries must be an integer between 1"):
        zo.make_problem(lambda x: jnp.sum(x), jnp.ones(2), max_queries=0)


SCHEMES = ("euler", "midpoint", "mid_reuse", "momentum", "adam")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_belong_to_the_iterate(key, x64, scheme):
    """Of the end and of every entry of the history, points turned down included."""
    problem = zo.hs("HS100")
    eta = 0.2 if scheme == "euler" else 0.02
    algorithm = zo.make_zofl(problem, zo.ZOFLConfig(scheme=scheme, eta=eta))
    state, seen = zo.run(algorithm, key, num_steps=30, observe=lambda s: (s.x, s.f, s.h))
    f, h = jax.jit(jax.vmap(problem.exact))(seen[0])
    np.testing.assert_allclose(seen[1], f, rtol=1e-12)
    np.testing.assert_allclose(seen[2], h, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(state.x, seen[0][-1])
    if scheme == "euler":
        assert int(state.rejected) > 0  # its step is too long for HS100
        np.testing.assert_array_equal(seen[0][0], problem.x0)


def test_an_armijo_search_that_fails_says_so(key, x64):
    """One trial step of 1 on x^2 leads to -x, two of them to 0."""
    bowl = zo.make_problem(lambda x: jnp.sum(x**2), jnp.ones(2))
    for trials, found in ((1, 0.0), (2, 1.0)):
        _, history = _solve(bowl, key, 1, eta=1.0, armijo=trials)
        assert history["zo/line_search"].tolist() == [found]
        assert history["zo/step"].tolist() == [1.0 if trials == 1 else 0.5]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"scheme": "midpoint", "common_noise": True}, marks=pytest.mark.slow),
        pytest.param({"armijo": 2, "metric": "newton"}, marks=pytest.mark.slow),
        pytest.param({"form": "plugin", "kind": "sphere", "ema": 0.5}, marks=pytest.mark.slow),
        pytest.param({"kind": "hadamard", "B": 4, "chunk": 2}, marks=pytest.mark.slow),
    ],
    ids=["defaults", "midpoint", "armijo", "plug-in", "chunks"],
)
def test_no_key_is_used_twice(key, settings):
    """A frozen instance, whose old state is selected, included."""
    problem = zo.noise.with_noise(quadratic(0), 1e-2)._replace(max_queries=60)
    algorithm = zo.make_zofl(problem, zo.ZOFLConfig(**settings))
    with jax.debug_key_reuse(True):
        state = jax.jit(algorithm.init)(jax.random.clone(key))
        step = jax.jit(algorithm.step)
        for _ in range(2):
            state, _ = step(state)
        states, _ = jax.jit(jax.vmap(lambda k: method.run(algorithm, k, num_steps=8, log_every=4)))(
            jax.random.split(jax.random.clone(key), 2)
        )
    assert jnp.isfinite(states.f).all() and jnp.isfinite(state.f)


@pytest.fixture
def compilations():
    """A list that grows by one with every program that is compiled."""
    found, on = [], [True]

    def listen(event, seconds, **_):
        if on[0] and event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    on[0] = False


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_plain_calls_with_new_values_compile_nothing(key, compilations, all_of_them):
    """Each public function that loops, called without jit as a notebook does, twice."""
    problem = quadratic(0, m_ineq=2)
    noisy = zo.policy_search_problem(process_noise=1e-3 if all_of_them else 0.0)
    algorithm = zo.make_zofl(problem)
    rng = np.random.default_rng(0)
    grid = np.linspace(0.0, 0.1, 40, dtype=np.float32).reshape(5, 8)  # sliced before it is JAX's
    kicks = jnp.zeros((7, policy_search.INITIAL.shape[0], 2))
    power, search = zo.opf9_blackbox(), zo.policy_search_problem()

    def system(i):
        J = rng.normal(size=(3, 5)).astype(np.float32)
        return jnp.asarray(J @ J.T), jnp.asarray(J[:, i])

    def streamed(i):
        stencil = zo.Stencil(4, 1e-2 * (i + 1))
        found = zo.streamed_probe(
            jax.random.key(i), problem.q, problem.x0 + i, stencil, kind="sphere", chunk=2
        )
        return found.lift(found.D[0])

    def fields(i):
        config = zo.resolve(problem, zo.ZOFLConfig(eta=0.1))
        return zo.zofl_field(jax.random.key(i), problem, problem.x0 + i, config, t=jnp.asarray(i)).F

    loops = {
        "fl_multiplier": lambda i: zo.fl_multiplier(*system(i), 1),
        "clip": lambda i: zo.fl_multiplier(*system(i), 1, "clip"),
        "nnqp": lambda i: [zo.nnqp(*system(i), 0, solver=s) for s in ("hildreth", "fista", "admm")],
        "fl_field": lambda i: zo.fl_field(
            *map(jnp.asarray, (grid[i, :5], grid[:2, :5], grid[i, :2])), jnp.asarray(2.0), 1
        ),
        "directions": lambda i: zo.directions(jax.random.key(i), 6, 3),
        "streamed_probe": streamed,
        "probe": lambda i: (
            zo.probe(
                jax.random.key(i),
                problem.q,
                problem.x0 + i,
                zo.Stencil(3, 1e-2),
                kind="orthonormal",
            ).D
        ),
        "zofl_field": fields,
        "run": lambda i: zo.run(algorithm, jax.random.key(i), num_steps=4, log_every=2),
        "rollout": lambda i: policy_search.rollout(jnp.asarray(grid[i].reshape(2, 4)), kicks + i),
        "policy search": lambda i: search.exact(search.x0 + grid[i]),
        "noisy policy search": lambda i: noisy.q(noisy.x0 + grid[i], jax.random.key(i)),
        "power flow": lambda i: power.exact(power.x0 + grid[i, :5]),
    }
    quick = ("fl_multiplier", "clip", "directions", "run")
    for name, call in loops.items():
        if not all_of_them and name not in quick:
            continue
        jax.block_until_ready(call(0))
        before = len(compilations)
        jax.block_until_ready(call(1))
        assert len(compilations) == before, name
    assert compilations
