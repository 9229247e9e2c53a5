"""ZOFL against its oracles: decay of linear constraints, exact twin, order of the schemes."""

import inspect
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import zeroth_order as zo
from jaxlab.zeroth_order import method, settings, zofl
from jaxlab.zeroth_order.problem import make_problem
from jaxlab.zeroth_order.problems import case9, hock_schittkowski
from jaxlab.zeroth_order.settings import ZOFLConfig
from tests.zeroth_order.quadratics import matrices, quadratic


def _steps(problem, config, key, num_steps=1):
    """The iterates x_0 .. x_num_steps, with the step of the theory."""
    algorithm = zofl.make_zofl(problem, config._replace(control=False))
    run = jax.jit(
        lambda k: method.run(
            algorithm, k, num_steps=num_steps, observe=lambda s: (s.next_x, s.queries)
        )
    )
    state, (x, queries) = run(key)
    return np.concatenate([np.asarray(problem.x0)[None], x]), np.asarray(queries), state


def _paths(problem, configure, values, key, num_steps=1):
    """The iterates for each value, `[values, num_steps + 1, n]`, by one program."""

    @jax.jit
    @jax.vmap
    def run(value):
        algorithm = zofl.make_zofl(problem, configure(value)._replace(control=False))
        return method.run(algorithm, key, num_steps=num_steps, observe=lambda s: s.next_x)[1]

    x = np.asarray(run(jnp.asarray(values)))
    start = np.broadcast_to(problem.x0, (len(values), 1, problem.n))
    return np.concatenate([start, x], axis=1)


def _values(problem, x):
    f, h = jax.vmap(problem.exact)(jnp.asarray(x))
    return np.asarray(f), np.asarray(h)


@pytest.mark.parametrize("kind", ["sphere", "gaussian", "orthonormal", "block", "rademacher"])
@pytest.mark.parametrize(("scheme", "gains"), [("euler", (0.3, 1.0)), ("midpoint", (0.4,))])
def test_affine_equalities_contract_exactly_whatever_the_directions(key, x64, kind, scheme, gains):
    """Oracles 2 and 3: subspace form, h+ = (1 - a) h, midpoint (1 - a + a^2/2) h, B = 3 < n."""
    problem = quadratic(0, n=6, m_eq=2)
    config = ZOFLConfig(eta=0.05, kind=kind, B=3, scheme=scheme)
    paths = _paths(problem, lambda a: config._replace(gain=a), gains, key, 8)
    for a, x in zip(gains, paths, strict=True):
        _, h = _values(problem, x)
        factor = 1 - a if scheme == "euler" else 1 - a + a**2 / 2
        # The differences of affine functions have a rounding error of about eps |h| / u = 1e-12.
        np.testing.assert_allclose(h[1:], factor * h[:-1], atol=1e-9)


def test_plug_in_leaks_into_the_constraints_and_the_subspace_form_does_not(key, x64):
    """J F + K h is of the order of |grad f| with random directions."""
    problem = quadratic(1, n=6, m_eq=2)
    leak = {}
    for form in ("plugin", "subspace"):
        x, _, _ = _steps(
            problem, ZOFLConfig(eta=0.02, gain=0.5, kind="sphere", B=4, form=form), key, 20
        )
        _, h = _values(problem, x)
        leak[form] = np.abs(h[1:] - 0.5 * h[:-1]).max()
    assert leak["subspace"] < 1e-9 < 1e-3 < leak["plugin"]


@pytest.fixture(scope="module")
def first_order_path():
    """Three steps on HS40 from exact derivatives."""
    with jax.enable_x64(True):
        problem = hock_schittkowski.hs("HS40")
        config = ZOFLConfig(eta=0.1, gain=0.5, kind="exact")
        return _steps(problem, config, jax.random.key(0), 3)[0]


@pytest.mark.parametrize("form", ["plugin", "subspace"])
@pytest.mark.parametrize("kind", ["orthonormal", "coordinate", "hadamard"])
def test_full_directions_are_the_first_order_twin_up_to_the_square_of_the_radius(
    key, x64, form, kind, first_order_path
):
    """Oracle 4: slope 2 in u against jax.grad and jacfwd; four variables, so Hadamard is square."""
    problem = hock_schittkowski.hs("HS40")
    config = ZOFLConfig(eta=0.1, gain=0.5, kind=kind, B=4, form=form)
    found = _paths(problem, lambda u: config._replace(u=u), (0.1, 0.01), key, 3)
    errors = np.abs(found - first_order_path[None]).max(axis=(1, 2))
    slope = np.log10(errors[0] / errors[1])
    assert abs(slope - 2.0) < 0.05
    assert errors[1] < 1e-2


@pytest.mark.parametrize(("scheme", "order"), [("euler", 2), ("midpoint", 3)])
def test_order_of_the_local_violation(key, x64, scheme, order):
    """Oracle 6: from a feasible point on a curved constraint one step violates it by eta^order."""
    problem = make_problem(
        lambda x: (x[0] + 2.0 * x[1], jnp.stack([x[0] ** 2 + 3.0 * x[1] ** 2 + x[1] ** 3 - 1.0])),
        jnp.array([1.0, 0.0]),
        m_eq=1,
    )
    # At a fixed K; with K = a / eta the feedback at the half step itself is of order eta^2.
    config = ZOFLConfig(K=2.0, kind="exact", scheme=scheme)
    paths = _paths(problem, lambda eta: config._replace(eta=eta), (0.02, 0.01), key)
    violations = [np.abs(_values(problem, x[1:])[1]).max() for x in paths]
    assert abs(np.log2(violations[0] / violations[1]) - order) < 0.15


@pytest.mark.parametrize(("scheme", "ratio"), [("euler", 2.0), ("midpoint", 4.0)])
def test_halving_the_step_divides_the_violation_on_a_curved_constraint(key, x64, scheme, ratio):
    """Peak violation while sliding along a circle at fixed K: O(eta) Euler, O(eta^2) midpoint."""
    problem = make_problem(
        lambda x: (x[1], jnp.stack([x @ x - 1.0])), jnp.array([0.6, 0.8]), m_eq=1
    )
    config = ZOFLConfig(K=10.0, kind="exact", scheme=scheme)
    paths = _paths(problem, lambda eta: config._replace(eta=eta), (0.02, 0.01), key, 400)
    # Both up to the time 4, which the larger step reaches after 200 updates.
    peaks = [np.abs(_values(problem, x)[1]).max() for x in (paths[0, :201], paths[1])]
    assert abs(peaks[0] / peaks[1] - ratio) < 0.1 * ratio


def test_without_constraints_it_is_gradient_descent(key, x64):
    """Oracle 8, with the exact minimizer of a quadratic as a second check."""
    Q, c, _, _ = matrices(2, m_eq=0)
    problem = quadratic(2, m_eq=0)
    x, queries, _ = _steps(problem, ZOFLConfig(eta=0.1), key, 400)
    expected = [np.asarray(problem.x0)]
    for _ in range(400):
        expected.append(expected[-1] - 0.1 * (Q @ expected[-1] + c))
    np.testing.assert_allclose(x, expected, atol=1e-8)
    np.testing.assert_allclose(x[-1], -np.linalg.solve(Q, c), atol=1e-6)
    assert queries[0] == 11


def test_affine_constraints_at_gain_one_are_projected_gradient_descent(key, x64):
    """Oracle 9: from a feasible start, x+ = x - eta P grad with P onto the null space of J."""
    Q, c, J, d = matrices(3)
    x0 = -np.linalg.pinv(J) @ d + (np.eye(5) - np.linalg.pinv(J) @ J) @ np.arange(5.0)
    problem = quadratic(3)._replace(x0=jnp.asarray(x0))
    x, _, _ = _steps(problem, ZOFLConfig(eta=0.1, gain=1.0, kind="coordinate"), key, 20)
    P = np.eye(5) - np.linalg.pinv(J) @ J
    expected = [x0]
    for _ in range(20):
        expected.append(expected[-1] - 0.1 * P @ (Q @ expected[-1] + c))
    np.testing.assert_allclose(x, expected, atol=1e-8)


def test_scaling_and_permuting_constraints_leaves_the_path(key, x64):
    """Oracle 11 for the exact twin: h -> D h at the same K."""
    problem = hock_schittkowski.hs("HS78")
    config = ZOFLConfig(eta=0.02, gain=0.4, kind="exact")
    x, _, _ = _steps(problem, config, key, 30)
    D, order = jnp.array([1e3, 1e-2, 7.0]), jnp.array([2, 0, 1])
    exact = lambda x: (problem.exact(x)[0], (D * problem.exact(x)[1])[order])  # noqa: E731
    other, _, _ = _steps(problem._replace(exact=exact), config, key, 30)
    np.testing.assert_allclose(other, x, atol=1e-8)


def test_lyapunov_function_decreases(key, x64):
    """Oracle 12: f + mu sum |h| with mu above the multipliers, at a small step."""
    problem = hock_schittkowski.hs("HS77")
    algorithm = zofl.make_zofl(problem, ZOFLConfig(eta=2e-3, K=2.0, kind="exact", control=False))
    _, (x, lam) = jax.jit(
        lambda k: method.run(
            algorithm, k, num_steps=1500, observe=lambda s: (s.x, s.extras["zo/multiplier_max"])
        )
    )(key)
    f, h = _values(problem, x)
    merit = f + 1.01 * float(lam.max()) * np.abs(h).sum(1)
    assert np.diff(merit).max() < 1e-6  # the discretization error is of the order of eta^2
    assert merit[0] - merit[-1] > 1.0


@pytest.mark.parametrize(
    ("changes", "queries"),
    [
        ({}, 1 + 2 * 5),
        ({"scheme": "midpoint"}, 2 * (1 + 2 * 5)),
        ({"scheme": "mid_reuse"}, 12),
        ({"B": 3}, 1 + 2 * 3),
        ({"central": False}, 1 + 5),
        ({"center_repeats": 4}, 4 + 10),
        ({"armijo": 3}, 1 + 10 + 3),
        ({"metric": "newton"}, 1 + 10 + 20),
        ({"kind": "exact"}, 1),
    ],
)
def test_queries_are_counted_and_made(key, changes, queries):
    """Oracle 13: the counter equals the evaluations that the oracle has really seen."""
    made = []

    def count(x):
        made.append(1)
        return np.zeros((), np.float32)

    def fun(x):
        seen = jax.pure_callback(
            count, jax.ShapeDtypeStruct((), x.dtype), x, vmap_method="sequential"
        )
        return jnp.sum(x**2) + seen, jnp.stack([x[0] - 1.0, x[1] ** 2 - 1.0]) + seen

    quiet = make_problem(
        lambda x: (jnp.sum(x**2), jnp.stack([x[0] - 1.0, x[1] ** 2 - 1.0])),
        jnp.full(5, 0.7),
        m_eq=1,
    )
    problem = make_problem(fun, jnp.full(5, 0.7), m_eq=1)._replace(exact=quiet.exact)
    algorithm = zofl.make_zofl(problem, ZOFLConfig(eta=0.05, **changes))
    state, _ = jax.jit(algorithm.step)(jax.jit(algorithm.init)(key))
    jax.block_until_ready(state)
    assert int(state.queries) == queries
    if changes.get("kind") != "exact":
        assert len(made) == queries


@pytest.mark.parametrize("name", hock_schittkowski.HS_NAMES)
def test_defaults_reach_the_published_optimum(key, x64, name):
    """Oracle 10 on all Hock-Schittkowski problems, step and radius chosen by the method."""
    problem = hock_schittkowski.hs(name)
    num_steps = 5000
    algorithm = zofl.make_zofl(problem)
    state, _ = jax.jit(
        lambda k: method.run(algorithm, k, num_steps=num_steps, log_every=num_steps)
    )(key)
    f, h = problem.exact(state.x)
    violation = max(np.abs(h[: problem.m_eq]).max(initial=0), np.max(h[problem.m_eq :], initial=0))
    # HS26 is flat (f grows with the fourth power) and HS71 has one-sided differences at a bound.
    tolerance = {"HS26": 1e-4}.get(name, 1e-5)
    assert violation < 1e-6 * (1 + abs(problem.f_star))
    assert abs(f - problem.f_star) < tolerance * (1 + abs(problem.f_star))


@pytest.mark.parametrize("name", ["HS43", "HS71", "HS100"])
def test_slack_form_reaches_the_optimum_and_clip_does_not(key, x64, name):
    problem = hock_schittkowski.hs(name)
    num_steps = 20_000
    gaps = {}
    for ineq in ("slack", "clip"):
        algorithm = zofl.make_zofl(problem, ZOFLConfig(ineq=ineq, kind="exact"))
        state, _ = jax.jit(
            lambda k, a=algorithm: method.run(a, k, num_steps=num_steps, log_every=num_steps)
        )(key)
        gaps[ineq] = abs(float(problem.exact(state.x)[0]) - problem.f_star)
    assert gaps["slack"] < 1e-5 * abs(problem.f_star)
    if name == "HS43":
        assert abs(gaps["clip"] - 6.9) < 0.05  # a wrong fixed point, 6.9 above


def test_bounds_hold_at_every_iterate_and_query(key):
    """HS71 starts at a corner of its box."""
    problem = hock_schittkowski.hs("HS71")
    seen = []

    def remember(x):
        seen.append(np.array(x))
        return np.zeros((), np.float32)

    def q(x, k):
        mark = jax.pure_callback(
            remember, jax.ShapeDtypeStruct((), x.dtype), x, vmap_method="sequential"
        )
        f, h = problem.q(x, k)
        return f + mark, h

    algorithm = zofl.make_zofl(problem._replace(q=q), ZOFLConfig(scheme="midpoint"))
    state, x = jax.jit(lambda k: method.run(algorithm, k, num_steps=100, observe=lambda s: s.x))(
        key
    )
    jax.block_until_ready(x)
    points = np.concatenate([np.stack(seen), x])
    assert points.min() >= 1.0 and points.max() <= 5.0
    assert len(seen) == int(state.queries)


def test_clipped_bounds_stop_short_of_the_optimum(key, x64):
    """Why bounds enter the multiplier: a projected step ends elsewhere."""
    problem = hock_schittkowski.hs("HS71")
    ends = {}
    for bounds in ("constraints", "clip"):
        algorithm = zofl.make_zofl(problem, ZOFLConfig(bounds=bounds, kind="exact", eta=0.1))
        state, _ = jax.jit(lambda k, a=algorithm: method.run(a, k, num_steps=3000, log_every=3000))(
            key
        )
        f, h = problem.exact(state.x)
        ends[bounds] = max(abs(float(f) - problem.f_star), float(jnp.abs(h[0])), float(h[1]))
    assert ends["constraints"] < 1e-6
    assert ends["clip"] > 0.1


@pytest.mark.parametrize("scheme", ["euler", "midpoint", "mid_reuse", "momentum", "adam"])
@pytest.mark.parametrize("metric", ["identity", "newton", "diagonal"])
def test_every_scheme_and_metric_finds_the_constrained_minimum(key, x64, scheme, metric):
    """A quadratic with affine equalities: the minimum is a linear system."""
    Q, c, J, d = matrices(4)
    solution = np.linalg.solve(np.block([[Q, J.T], [J, np.zeros((2, 2))]]), -np.append(c, d))[:5]
    eta = 0.01 if scheme == "adam" else 0.2 if scheme != "momentum" else 0.1
    config = ZOFLConfig(eta=eta, gain=0.5, scheme=scheme, metric=metric, beta=0.5)
    x, _, _ = _steps(quadratic(4), config, key, 2000)
    np.testing.assert_allclose(x[-1], solution, atol=2e-3 if scheme == "adam" else 1e-6)


def test_newton_solves_a_quadratic_in_one_step(key, x64):
    Q, c, J, d = matrices(5)
    solution = np.linalg.solve(np.block([[Q, J.T], [J, np.zeros((2, 2))]]), -np.append(c, d))[:5]
    for kind in ("exact", "orthonormal"):
        x, _, _ = _steps(
            quadratic(5), ZOFLConfig(eta=1.0, gain=1.0, metric="newton", kind=kind), key
        )
        np.testing.assert_allclose(x[1], solution, atol=1e-6)


def test_integral_action_removes_the_steady_violation_of_diagonal_feedback(key, x64):
    problem = quadratic(6)
    ends = []
    for integral_gain in (0.0, -1.0):
        config = ZOFLConfig(eta=0.02, K=10.0, feedback="diagonal", integral_gain=integral_gain)
        x, _, _ = _steps(problem, config, key, 4000)
        ends.append(np.abs(_values(problem, x[-1:])[1]).max())
    assert ends[1] < 1e-6 < 1e-3 < ends[0]


def test_momentum_is_the_heavy_ball_with_look_ahead(key, x64):
    problem = quadratic(7, m_eq=0)
    Q, c, _, _ = matrices(7, m_eq=0)
    x, _, _ = _steps(problem, ZOFLConfig(eta=0.1, scheme="momentum", beta=0.7), key, 30)
    path = [np.asarray(problem.x0)] * 2
    for _ in range(30):
        w = path[-1] + 0.7 * (path[-1] - path[-2])
        path.append(w - 0.1 * (Q @ w + c))
    np.testing.assert_allclose(x, path[1:], atol=1e-8)


def test_average_of_the_estimates(key, x64):
    """ema on the exact twin: the averaged gradient replaces the gradient."""
    problem = quadratic(8, m_eq=0)
    Q, c, _, _ = matrices(8, m_eq=0)
    x, _, _ = _steps(problem, ZOFLConfig(eta=0.1, ema=0.6, kind="exact"), key, 10)
    at, mean = np.asarray(problem.x0), None
    for t in range(10):
        grad = Q @ at + c
        mean = grad if mean is None else 0.6 * mean + 0.4 * grad
        at = at - 0.1 * mean
        np.testing.assert_allclose(x[t + 1], at, atol=1e-10)


def test_violation_floor_under_noise(key):
    """Section 3.8: std of h is sigma sqrt(a / (2 - a)) when only the centre is noisy.

    The differences of h are made exact by common random numbers on an affine constraint.
    """
    sigma = 1e-2

    def fun(x, k):
        noise = sigma * jax.random.normal(k, (1,))
        return 0.5 * x @ x, jnp.stack([x[0] + x[1] - 1.0]) + noise

    problem = make_problem(fun, jnp.array([0.5, 0.5]), m_eq=1, takes_key=True, sigma=sigma)

    @jax.jit
    def floor(keys, a):
        config = ZOFLConfig(
            eta=0.1, gain=a, kind="coordinate", common_noise=True, u=0.1, control=False
        )
        algorithm = zofl.make_zofl(problem, config)
        _, h = jax.vmap(
            lambda k: method.run(
                algorithm, k, num_steps=400, observe=lambda s: s.x[0] + s.x[1] - 1.0
            )
        )(keys)
        return h[:, 100:].std()

    for a in (0.1, 0.5):
        found = float(floor(jax.random.split(key, 200), a))
        # 60,000 values, correlated over 1 / a steps: a relative error of 2 % is five sigma.
        assert abs(found / (sigma * np.sqrt(a / (2 - a))) - 1.0) < 0.03


def test_five_lines_solve_hs71_with_noise(key, x64):
    from jaxlab.zeroth_order import noise

    problem = noise.with_noise(hock_schittkowski.hs("HS71"), 1e-2)
    algorithm = zofl.make_zofl(problem)
    state, _ = jax.jit(
        jax.vmap(lambda k: method.run(algorithm, k, num_steps=2000, log_every=2000))
    )(jax.random.split(key, 10))
    f, h = jax.vmap(problem.exact)(state.average)
    assert float(jnp.abs(f - problem.f_star).max()) < 0.2
    assert float(jnp.abs(h[:, 0]).max()) < 0.2 and float(h[:, 1].max()) < 0.2


def test_one_trace_serves_every_value(key):
    """New steps, gains, radii, starts and noise levels do not recompile."""
    base = quadratic(9)

    @jax.jit
    @chex.assert_max_traces(1)
    def solve(key, x0, eta, gain, u, sigma):
        from jaxlab.zeroth_order import noise

        problem = noise.with_noise(base._replace(x0=x0), sigma)
        algorithm = zofl.make_zofl(problem, ZOFLConfig(eta=eta, gain=gain, u=u))
        return method.run(algorithm, key, num_steps=5)[0].x

    first = solve(key, base.x0, 0.1, 0.5, 1e-2, 0.0)
    second = solve(key, base.x0 + 1.0, 0.05, 0.3, 2e-2, 1e-3)
    assert not np.allclose(first, second)


def test_a_batch_of_instances_equals_the_instances(key, x64):
    keys = jax.random.split(key, 3)
    starts = quadratic(10).x0[None] + jnp.arange(3.0)[:, None]

    def solve(key, x0):
        algorithm = zofl.make_zofl(quadratic(10)._replace(x0=x0), ZOFLConfig(kind="sphere", B=3))
        return method.run(algorithm, key, num_steps=20)[0].x

    together = jax.jit(jax.vmap(solve))(keys, starts)
    alone = [jax.jit(solve)(k, x) for k, x in zip(keys, starts, strict=True)]
    # Rounding of the differences, eps / u = 1e-13, over 20 steps of a method that amplifies it.
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_run_can_be_differentiated_backwards(key, x64):
    """d f / d eta after five steps on HS43, through its inequalities, by central differences."""

    @jax.jit
    @jax.value_and_grad
    def last(eta):
        algorithm = zofl.make_zofl(hock_schittkowski.hs("HS43"), ZOFLConfig(eta=eta))
        return method.run(algorithm, key, num_steps=5)[0].f

    want = (last(0.02 + 1e-5)[0] - last(0.02 - 1e-5)[0]) / 2e-5
    np.testing.assert_allclose(last(0.02)[1], want, rtol=1e-6)


def test_problems_with_bounds_can_be_made_under_jit(key, x64):
    """Bounds of the 9-bus system, and of a problem whose data are traced, stay concrete."""
    config = ZOFLConfig(eta=1e-4)

    def five_steps(make, x0):
        return method.run(zofl.make_zofl(make(x0), config), key, num_steps=5)[0].x

    opf = case9.opf9()
    inside = jax.jit(lambda x0: five_steps(lambda x: case9.opf9()._replace(x0=x), x0))(opf.x0)
    outside = jax.jit(lambda x0: five_steps(lambda x: opf._replace(x0=x), x0))(opf.x0)
    np.testing.assert_allclose(inside, outside, atol=1e-9)
    assert (inside >= opf.lb).all() and (inside <= opf.ub).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"B": 1}, "at least as many directions as equalities"),
        ({"u": -1.0}, "radius u"),
        ({"u": jnp.asarray(-1.0)}, "radius u must be positive"),
        ({"eta": np.float32(0.0)}, "eta must be in"),
        ({"K": 1.0, "gain": 0.5}, "two names for one choice"),
        ({"gain": 2.0}, "gain must be"),
        ({"eta": 0.0}, "eta must be"),
        ({"beta": 1.0}, "beta must"),
        ({"kind": "spheres"}, "kind must be"),
        ({"gain": jnp.ones(3)}, "one number or"),
        ({"ema": 0.5}, "form='plugin'"),
        ({"metric": "newton", "form": "plugin"}, "subspace"),
        ({"integral_gain": -1.0}, "FL-PI"),
        ({"integral_gain": 1.0, "feedback": "diagonal"}, "integral"),
        ({"armijo": 2, "scheme": "midpoint"}, "line search"),
        ({"chunk": 5}, "cannot be drawn"),
        ({"center_repeats": 0}, "center_repeats"),
        ({"K": float("nan")}, "K must be"),
        ({"metric": "newton", "central": False}, "central"),
        ({"B": 9}, "at most 5"),
    ],
)
def test_settings_that_contradict_are_refused(key, changes, message):
    with pytest.raises(ValueError, match=message):
        algorithm = zofl.make_zofl(quadratic(0), ZOFLConfig(**changes))
        jax.eval_shape(algorithm.init, key)


def test_settings_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="config must be a ZOFLConfig, got dict; write"):
        zofl.make_zofl(quadratic(0), {"eta": 0.1})


def test_settings_of_the_readme_fit_a_problem():
    """Every line of its list of settings is accepted; what they do is tested elsewhere."""
    readme = pathlib.Path(zo.__file__).with_name("README.md").read_text(encoding="utf-8")
    block = next(part for part in readme.split("```") if "center_repeats" in part)
    lines = [line for line in block.splitlines() if line.startswith("zo.ZOFLConfig")]
    assert len(lines) > 8
    for line in lines:
        settings.resolve(quadratic(0, m_ineq=1), eval(line, {"zo": zo}))


def test_tables_of_the_readme_are_true():
    """Every function is named with a test file that exists, and every file of the room is named."""
    readme = pathlib.Path(zo.__file__).with_name("README.md").read_text(encoding="utf-8")
    tests = pathlib.Path(__file__).parent
    overview = readme.split("## What there is")[1].split("A problem says")[0]
    table = readme.split("## Equation, function, test")[1].split("## Defaults")[0]
    rows = re.findall(r"^\| .+ \| (.+) \| .+ \| (.*test_.*) \|$", table, re.MULTILINE)
    functions = {name for name in zo.__all__ if inspect.isfunction(getattr(zo, name))}
    assert functions <= set(re.findall(r"`(\w+)`", overview))
    named = {name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named <= set(zo.__all__) and {name for name in functions if "make_" in name} <= named
    files = {path for _, cell in rows for path in re.findall(r"`([\w/]+\.py)`", cell)}
    assert files == {str(path.relative_to(tests)) for path in tests.rglob("test_*.py")}
    for cell, paths in rows:  # a function's name stands in a test that its row names
        text = "".join((tests / path).read_text() for path in re.findall(r"`([\w/]+\.py)`", paths))
        assert all(name in text for name in re.findall(r"`(\w+)`", cell)), cell


def test_schedules():
    step = settings.polynomial_step(2.0, 10.0, 0.5)
    np.testing.assert_allclose(step(jnp.asarray(30.0)), 2.0 / np.sqrt(4.0), rtol=1e-6)
    radius = settings.shrinking_radius(0.1, 0.02)
    np.testing.assert_allclose([radius(jnp.asarray(3.0)), radius(jnp.asarray(99.0))], [0.05, 0.02])
    np.testing.assert_allclose(
        [settings.default_radius(s, jnp.float32) for s in (0.0, 1e-3, 1.0)],
        [1e-2, 0.1, 0.1],
        rtol=1e-6,
    )
