"""Where optimizers break: contradictory constraints, flat objectives, bounds, traced data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import zeroth_order as zo
from jaxlab.zeroth_order import multiplier

CONTRADICTIONS = {
    # name: (constraints of x, m_eq, n, the least-squares answer of the constrained coordinates)
    "parallel equalities": (lambda x: jnp.stack([x[0] - 1.0, 2.0 * x[0] - 3.0]), 2, 2, None),
    "the same row twice": (lambda x: jnp.stack([x[0] - 1.0, x[0] - 3.0]), 2, 2, [2.0]),
    "inequalities": (lambda x: jnp.stack([x[0] - 1.0, 3.0 - x[0]]), 0, 2, [2.0]),
    "three rows of rank two": (
        lambda x: jnp.stack([x[0] - 1.0, x[1] - 1.0, x[0] + 3.0 * x[1] - 2.0]),
        3,
        3,
        None,
    ),
}


@pytest.mark.parametrize("form", ["subspace", "plugin"])
@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictory_constraints_are_met_halfway(key, x64, name, form):
    """No step runs away; the rest of the objective is still minimized, and the residual tells."""
    constraints, m_eq, n, halfway = CONTRADICTIONS[name]
    p = zo.make_problem(
        lambda x: (jnp.sum(x**2), constraints(x)), jnp.arange(n, dtype=float), m_eq=m_eq
    )
    algorithm = zo.make_zofl(p, zo.ZOFLConfig(eta=0.1, form=form))
    state, history = jax.jit(lambda k: zo.run(algorithm, k, num_steps=300))(key)
    assert state.status == 0
    assert np.abs(history["zo/violation_eq"]).max() + history["zo/violation_ineq"].max() < 6.0
    assert abs(state.x[-1]) < 1e-6  # the coordinate that no constraint holds
    assert history["zo/multiplier_residual"][-1] > 0.1
    if halfway is not None:
        np.testing.assert_allclose(state.x[: len(halfway)], halfway, atol=1e-6)


def test_derivative_of_the_multiplier_in_both_modes(x64):
    """Against central differences of the solution, inside the faces of its active sets."""
    rng = np.random.default_rng(3)
    for m_eq in (0, 2):
        J = rng.normal(size=(6, 8))
        A, b = jnp.asarray(J @ J.T), jnp.asarray(3.0 * rng.normal(size=6))

        @jax.jit
        def solve(t, A=A, b=b, m_eq=m_eq):
            lam, _ = multiplier.nnqp(A * (1.0 + t * jnp.cos(A)), b * (1.0 + jnp.sin(t * b)), m_eq)
            return lam

        assert 0 < int((solve(0.0)[m_eq:] == 0.0).sum()) < 6 - m_eq  # some are active, some not
        want = (solve(1e-6) - solve(-1e-6)) / 2e-6
        np.testing.assert_allclose(jax.jacfwd(solve)(0.0), want, atol=1e-6)
        np.testing.assert_allclose(jax.jacrev(solve)(0.0), want, atol=1e-6)


def test_a_run_can_be_differentiated_backwards(key, x64):
    """d f / d eta after five steps on HS43, through its inequalities, by central differences."""

    @jax.jit
    def last(eta):
        algorithm = zo.make_zofl(zo.hs("HS43"), zo.ZOFLConfig(eta=eta))
        return zo.run(algorithm, key, num_steps=5)[0].f

    want = (last(0.02 + 1e-5) - last(0.02 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(last))(0.02), want, rtol=1e-6)


@pytest.mark.parametrize("form", ["plugin", "subspace"])
def test_gradient_is_whole_at_bounds_that_hold_the_point(key, x64, form):
    """A linear objective in a corner of its box: every form finds its gradient exactly."""
    p = zo.make_problem(
        lambda x: (x[0] + 2.0 * x[1] + 3.0 * x[2], jnp.zeros(0)),
        jnp.array([1.0, 5.0, 3.0]),
        lower=1.0,
        upper=5.0,
    )
    config = zo.resolve(p, zo.ZOFLConfig(form=form, eta=1.0, bounds="clip"))
    field = zo.zofl_field(key, p, p.x0, config, t=jnp.asarray(0))
    np.testing.assert_allclose(field.F, [-1.0, -2.0, -3.0], atol=1e-9)


@pytest.mark.parametrize(
    "fun, m_eq",
    [
        (lambda x: (0.0 * x[0], jnp.stack([x[0] + x[1] - 1.0])), 1),  # nothing to minimize
        (
            lambda x: (x[0] + x[1], jnp.stack([x[0] + x[1] - 1.0])),
            1,
        ),  # nothing along the constraint
        (lambda x: (0.0 * x[0] + 3.0, jnp.zeros(0)), 0),
    ],  # nothing at all
    ids=["feasibility", "linear", "constant"],
)
def test_default_step_without_curvature(key, x64, fun, m_eq):
    p = zo.make_problem(fun, jnp.array([3.0, 4.0]), m_eq=m_eq)
    state, _ = jax.jit(lambda k: zo.run(zo.make_zofl(p), k, num_steps=60))(key)
    want = [0.0, 1.0] if m_eq else [3.0, 4.0]  # the nearest feasible point
    np.testing.assert_allclose(state.x, want, atol=1e-9)


def test_problems_with_bounds_can_be_made_under_jit(key, x64):
    """Bounds of the 9-bus system, and of a problem whose data are traced, stay concrete."""
    config = zo.ZOFLConfig(eta=1e-4)

    def five_steps(make, x0):
        return zo.run(zo.make_zofl(make(x0), config), key, num_steps=5)[0].x

    opf = zo.opf9()
    inside = jax.jit(lambda x0: five_steps(lambda x: zo.opf9()._replace(x0=x), x0))(opf.x0)
    outside = five_steps(lambda x: opf._replace(x0=x), opf.x0)
    np.testing.assert_allclose(inside, outside, atol=1e-9)
    assert (inside >= opf.lb).all() and (inside <= opf.ub).all()


def test_a_donated_state_leaves_the_problem_alone(key):
    p = zo.hs("HS43")
    algorithm = zo.make_zofl(p)
    start = np.asarray(p.x0).copy()
    state = jax.jit(algorithm.step, donate_argnums=0)(algorithm.init(key))
    np.testing.assert_array_equal(p.x0, start)
    assert jnp.isfinite(jax.block_until_ready(state)[0].f)


@pytest.mark.parametrize(
    "make, match",
    [
        (
            lambda p: zo.make_zofl(p, zo.ZOFLConfig(u=jnp.asarray(-1.0))),
            "radius u must be positive",
        ),
        (lambda p: zo.make_zofl(p, zo.ZOFLConfig(eta=np.float32(0.0))), "eta must be in"),
        (lambda p: zo.make_zofl(p, zo.ZOFLConfig(K=1.0, gain=0.5)), "two names for one choice"),
        (lambda p: zo.make_zo_minmax(p, alpha=jnp.asarray(-1.0)), "alpha must be positive"),
        (lambda p: zo.noise.with_noise(p, jnp.asarray(-1e-3)), "at least 0"),
        (lambda p: zo.make_problem(p.q, p.x0, sigma=-1.0), "sigma must be at least 0"),
    ],
)
def test_bad_numbers_in_arrays_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make(zo.hs("HS43"))
