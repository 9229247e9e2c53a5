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
    assert state.status == zo.INFEASIBLE and state.best_violation > 0.1
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


@pytest.mark.parametrize("m", [2, 5])  # derivatives by rows, or by columns
def test_exact_probe_and_first_step_of_a_curved_quadratic(key, x64, m):
    data = zo.CurvedQuadratic(*(field[0] for field in zo.draw_curved_quadratics(1, n=5, m=m)))
    Q, c, r, A, b, x = data
    p = zo.curved_quadratic(data)
    found = zo.exact_probe(p.exact, p.x0)
    grad, J = Q @ x + c, r[:, None] * x + A
    np.testing.assert_allclose(found.q0[0], x @ Q @ x / 2 + c @ x, rtol=1e-12)
    np.testing.assert_allclose(found.q0[1:], r * (x @ x) / 2 + A @ x + b, atol=1e-12)
    np.testing.assert_allclose(found.D, np.vstack([grad, J]), rtol=1e-12)
    np.testing.assert_array_equal(found.lift(found.D[0]), found.D[0])

    measured = zo.probe(key, p.q, p.x0, zo.Stencil(5, 1e-2), kind="coordinate")
    lam = -np.linalg.solve(J @ J.T, J @ grad)
    curvature = np.abs(np.diag(Q) + lam @ r).max()
    speed = np.linalg.norm(grad + lam @ J)
    reach = max(1.0, np.linalg.norm(x)) / max(speed, 1e-3 * max(1.0, np.linalg.norm(grad)))
    step = min(0.25 / max(curvature, 0.25 / reach), reach)
    assert m == 5 or 0.25 / curvature < reach  # the curvature decides, unless nothing is free
    for config, share in [
        (zo.ZOFLConfig(), 1.0),
        (zo.ZOFLConfig(scheme="momentum", beta=0.75), 0.25),
    ]:
        found_step = zo.initial_step(measured, p.x0, m, config)
        np.testing.assert_allclose(found_step, share * step, rtol=1e-6)
    with pytest.raises(ValueError, match="needs curvatures"):
        zo.initial_step(found, p.x0, m, zo.ZOFLConfig())
