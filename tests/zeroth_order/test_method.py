"""What every method shares: accounts, the best point, rejection, freezing, the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import loop
from jaxlab.zeroth_order import kkt, method, noise, zofl
from jaxlab.zeroth_order.method import Proposal
from jaxlab.zeroth_order.problem import make_problem
from jaxlab.zeroth_order.problems import hock_schittkowski
from jaxlab.zeroth_order.settings import ZOFLConfig
from tests.zeroth_order.quadratics import quadratic

PATH = np.array([[3.0, 0.5], [2.0, -0.1], [1.0, 0.2], [4.0, -0.2], [0.5, 0.3], [1.5, -0.3]])


def _replay(path, tol=1e-4):
    """A method that visits given points; f is the first coordinate, h the second."""
    points = jnp.asarray(path, jnp.float32)
    problem = make_problem(lambda x: (x[0], x[1:]), points[0], feasibility_tol=tol)

    def update(key, x, inner, t, step_scale):
        f, h = problem.exact(x)
        return Proposal(points[jnp.minimum(t + 1, len(path) - 1)], inner, x, f, h, 7)

    return problem, method.make_algorithm(problem, init_inner=lambda k, x: ((), 2), update=update)


def test_best_point_average_and_queries(key):
    _, algorithm = _replay(PATH)
    state, history = jax.jit(lambda k: method.run(algorithm, k, num_steps=6))(key)
    # Feasible before infeasible, then the smaller objective: 3 (infeasible), 2, 2, 2, 2, 1.5.
    np.testing.assert_allclose(history["zo/best_f"], [3.0, 2.0, 2.0, 2.0, 2.0, 1.5])
    np.testing.assert_allclose(history["zo/best_violation"], [0.5, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(state.best_x, PATH[5])
    np.testing.assert_allclose(state.average, np.vstack([PATH[1:], PATH[-1:]]).mean(0), rtol=1e-6)
    np.testing.assert_array_equal(history["zo/queries"], 2 + 7 * np.arange(1, 7))
    np.testing.assert_allclose(history["zo/violation_ineq"], np.maximum(PATH[:, 1], 0), rtol=1e-6)


def test_the_tolerance_of_a_problem_decides_which_point_is_best(key):
    """Up to 0.35 only the first point is infeasible; one trace serves every tolerance."""
    solve = jax.jit(lambda tol: method.run(_replay(PATH, tol)[1], key, num_steps=6)[0].best_x)
    np.testing.assert_allclose(solve(0.35), PATH[4], rtol=1e-6)
    np.testing.assert_allclose(solve(0.25), PATH[2], rtol=1e-6)


def test_a_tolerance_of_another_precision_orders_the_same(key, x64):
    """The problem is float32 here, the traced tolerance float64."""
    solve = jax.jit(lambda tol: method.run(_replay(PATH, tol)[1], key, num_steps=6)[0].best_x)
    np.testing.assert_allclose(solve(jnp.asarray(0.25)), PATH[2], rtol=1e-6)


def test_without_a_feasible_point_the_least_violation_is_best(key):
    _, algorithm = _replay(np.array([[1.0, 0.5], [2.0, 0.1], [0.0, 0.4]]))
    state, _ = jax.jit(lambda k: method.run(algorithm, k, num_steps=3))(key)
    np.testing.assert_allclose([state.best_f, state.best_violation], [2.0, 0.1])


def test_history_every_few_steps_is_the_thinned_history(key):
    problem = quadratic(0)
    algorithm = zofl.make_zofl(problem, ZOFLConfig(eta=0.05, kind="sphere", B=3))
    _, every = jax.jit(lambda k: method.run(algorithm, k, num_steps=12))(key)
    last, third = jax.jit(lambda k: method.run(algorithm, k, num_steps=12, log_every=3))(key)
    for name, values in every.items():
        np.testing.assert_allclose(third[name], values[2::3], rtol=2e-3, atol=1e-4)
    assert int(last.t) == 12
    with pytest.raises(ValueError, match="multiple of log_every"):
        method.run(algorithm, key, num_steps=10, log_every=3)


def _walled(x0, wall=1.0):
    """min |x - 2|^2 with an oracle that crashes (NaN) beyond a wall in the first variable."""

    def fun(x):
        f = jnp.sum((x - 2.0) ** 2)
        return jnp.where(x[0] < wall, f, jnp.nan), jnp.zeros((0,))

    return make_problem(fun, jnp.asarray(x0, jnp.float32))


def test_a_crashing_oracle_is_backed_away_from_with_half_the_step(key):
    """The run keeps its last good point, shortens the step, and never returns NaN."""
    algorithm = zofl.make_zofl(_walled([0.0, 0.0]), ZOFLConfig(eta=0.3, B=2))
    state, x = jax.jit(lambda k: method.run(algorithm, k, num_steps=60, observe=lambda s: s.x))(key)
    assert bool(jnp.isfinite(state.best_f)) and bool(jnp.isfinite(x).all())
    assert int(state.rejected) > 0
    assert float(state.best_x[0]) > 0.7  # close to the wall, which hides the optimum
    assert float(state.best_f) < 1.0 + 1.7


def test_hopeless_instances_freeze_and_spare_their_neighbours(key):
    """One start in the crash region, one that diverges, two healthy ones, in one batch."""

    def solve(k, x0, eta):
        problem = make_problem(
            lambda x: (jnp.where(x[0] > 50.0, jnp.nan, jnp.sum(x**2)), jnp.zeros((0,))), jnp.ones(2)
        )._replace(x0=x0)
        algorithm = zofl.make_zofl(problem, ZOFLConfig(eta=eta, B=2))
        return method.run(algorithm, k, num_steps=60)

    keys = jax.random.split(key, 4)
    starts = jnp.array([[1.0, 2.0], [100.0, 0.0], [1.0, -1.0], [0.5, 0.5]])
    etas = jnp.array([0.1, 0.1, 0.1, 1e30])
    state, history = jax.jit(jax.vmap(solve))(keys, starts, etas)
    np.testing.assert_array_equal(
        state.status[:3], [method.CONVERGED, method.BAD_START, method.CONVERGED]
    )
    assert int(state.status[3]) == method.DIVERGED
    assert bool(jnp.isfinite(state.x).all())
    np.testing.assert_array_equal(state.x[1], starts[1])
    # A frozen instance makes no more queries: ten rejected updates of five queries.
    assert int(state.queries[1]) == method.MAX_REJECTIONS * 5
    healthy, _ = jax.jit(jax.vmap(solve))(keys[:1], starts[:1], etas[:1])
    np.testing.assert_allclose(state.x[0], healthy.x[0], atol=1e-5)
    assert float(history["zo/f"][0, -1]) < 1e-3


def test_rare_crashes_do_not_stop_a_run(key):
    """5 % of all queries fail, so 43 % of the updates miss something: directions are left out."""
    problem = noise.with_failures(quadratic(1), 0.05)
    algorithm = zofl.make_zofl(problem)
    state, _ = jax.jit(jax.vmap(lambda k: method.run(algorithm, k, num_steps=800, log_every=800)))(
        jax.random.split(key, 16)
    )
    quiet = zofl.make_zofl(quadratic(1), ZOFLConfig(eta=0.1))
    expected, _ = jax.jit(lambda k: method.run(quiet, k, num_steps=800, log_every=800))(key)
    assert (state.status < method.BUDGET_SPENT).all()
    # Only a failure at the iterate itself rejects an update: 5 % of them, within five sigma.
    spread = 5.0 * np.sqrt(0.05 * 0.95 / (16 * 800))
    assert abs(np.asarray(state.rejected).mean() / 800 - 0.05) < spread
    np.testing.assert_allclose(state.x, np.tile(expected.x, (16, 1)), atol=2e-3)


def test_directions_that_failed_are_left_out_and_the_constraints_still_decay(key, x64):
    base = quadratic(3)

    def crash_to_the_right(x, k):
        f, h = base.exact(x)
        return jnp.where(x[0] > base.x0[0] + 1e-6, jnp.nan, f), h

    problem = base._replace(q=crash_to_the_right)
    config = ZOFLConfig(eta=0.05, gain=0.4, kind="block", B=4, control=False)
    algorithm = zofl.make_zofl(problem, config)
    keys = jax.random.split(key, 20)
    state = jax.jit(jax.vmap(lambda k: algorithm.step(algorithm.init(k))[0]))(keys)
    h = jax.vmap(lambda x: base.exact(x)[1])(state.next_x)
    np.testing.assert_array_equal(state.next_x[:, 0], base.x0[0])  # the failed coordinate stays
    np.testing.assert_allclose(h, np.tile(0.6 * base.exact(base.x0)[1], (20, 1)), atol=1e-9)


def test_the_loop_resumes_it_exactly(key, tmp_path):
    """Six steps at once equal three, a stop, and three more, bit for bit."""
    algorithm = zofl.make_zofl(quadratic(2), ZOFLConfig(scheme="momentum", kind="sphere", B=3))
    whole = loop.run(algorithm, key, num_steps=6, chunk_size=3)
    loop.run(algorithm, key, num_steps=3, chunk_size=3, directory=tmp_path)
    resumed = loop.run(algorithm, key, num_steps=6, chunk_size=3, directory=tmp_path)
    assert resumed.step == 6
    other = algorithm._replace(name="make_other.<locals>.update")  # and the same state
    with pytest.raises(
        ValueError, match=r"of the algorithm 'make_zofl.<locals>.update', now it is"
    ):
        loop.run(other, key, num_steps=9, chunk_size=3, directory=tmp_path)
    data = lambda tree: [  # noqa: E731
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    for one, other in zip(data(whole.state), data(resumed.state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_order_of_points():
    feasible, worse, infeasible = (1.0, 0.0), (2.0, 1e-5), (0.0, 0.3)
    order = [
        (feasible, worse, True),
        (worse, feasible, False),
        (worse, infeasible, True),
        (infeasible, feasible, False),
        ((5.0, 0.2), infeasible, True),
        ((-1.0, 0.3), infeasible, True),  # a violation that nothing changes: the lower f
        (infeasible, (-1.0, 0.3), False),
        (infeasible, infeasible, False),
        (feasible, feasible, False),
    ]
    for a, b, expected in order:
        pair = tuple(tuple(map(jnp.asarray, point)) for point in (a, b))
        assert bool(kkt.better(*pair, 1e-4)) == expected


def test_kkt_gap_by_hand(x64):
    grad, J = jnp.array([1.0, -2.0]), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    lam, h = jnp.array([-1.0, 2.0, 0.5]), jnp.array([0.1, -0.2, 0.3])
    # grad + J'lam = (0.5, 0.5); complementarity |2 * -0.2 + 0.5 * 0.3| = 0.25; violation 0.3.
    assert float(kkt.kkt_gap(grad, J, h, lam, 1)) == pytest.approx(np.sqrt(0.5))
    assert float(kkt.kkt_gap(jnp.array([0.5, -2.5]), J, h, lam, 1)) == pytest.approx(0.3)
    h = jnp.array([0.1, -0.2, -0.3])
    assert float(kkt.kkt_gap(jnp.array([0.5, -2.5]), J, h, lam, 1)) == pytest.approx(0.55)
    assert float(kkt.kkt_gap(grad, J[:0], h[:0], lam[:0], 0)) == pytest.approx(np.sqrt(5))


@pytest.mark.parametrize(
    ("tol", "match"),
    [(-1.0, "at least 0 and finite"), (np.inf, "at least 0"), (np.zeros(2), "must be one number")],
)
def test_a_tolerance_that_orders_nothing_is_refused(tol, match):
    """Where a problem is made, and where a method takes one that was changed."""
    with pytest.raises(ValueError, match=f"feasibility_tol.*{match}"):
        make_problem(lambda x: jnp.sum(x), jnp.ones(2), feasibility_tol=tol)
    with pytest.raises(ValueError, match=f"feasibility_tol.*{match}"):
        zofl.make_zofl(quadratic(0)._replace(feasibility_tol=tol), ZOFLConfig())


def test_a_donated_state_leaves_the_problem_alone(key):
    p = hock_schittkowski.hs("HS43")
    algorithm = zofl.make_zofl(p, ZOFLConfig(eta=0.02))
    start = np.asarray(p.x0).copy()
    state = jax.jit(algorithm.step, donate_argnums=0)(algorithm.init(key))
    np.testing.assert_array_equal(p.x0, start)
    assert jnp.isfinite(jax.block_until_ready(state)[0].f)
