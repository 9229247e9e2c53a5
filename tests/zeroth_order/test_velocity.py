"""The velocity where it is hard to find: contradictions, corners of the box, flat objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import zeroth_order as zo

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
