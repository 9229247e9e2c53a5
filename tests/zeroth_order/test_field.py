"""The velocity: equal to the SQP step, decay of the constraints, invariances, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxlab.zeroth_order import field
from jaxlab.zeroth_order.estimators import Stencil
from jaxlab.zeroth_order.problems import hock_schittkowski


def _derivatives(problem, x):
    f = lambda x: problem.exact(x)[0]  # noqa: E731
    h = lambda x: problem.exact(x)[1]  # noqa: E731
    return jax.grad(f)(x), jax.jacfwd(h)(x), h(x)


def _qp_step(grad, J, h, m_eq, eta, metric):
    """min grad'd + |d|^2_{T^-1} / 2 eta subject to h + J d = 0 or <= 0, by SLSQP on the QP."""
    inverse = np.linalg.inv(metric)
    equal = {"type": "eq", "fun": lambda d: h[:m_eq] + J[:m_eq] @ d, "jac": lambda d: J[:m_eq]}
    below = {"type": "ineq", "fun": lambda d: -h[m_eq:] - J[m_eq:] @ d, "jac": lambda d: -J[m_eq:]}
    constraints = [equal] * bool(m_eq) + [below] * bool(len(h) - m_eq)
    found = scipy.optimize.minimize(
        lambda d: grad @ d + d @ inverse @ d / (2 * eta),
        np.zeros(len(grad)),
        jac=lambda d: grad + inverse @ d / eta,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize("name", ["HS77", "HS78", "HS43", "HS71", "HS113"])
@pytest.mark.parametrize("curved_metric", [False, True])
def test_euler_with_gain_one_is_the_sqp_step(x64, name, curved_metric):
    """Oracle 1; the reference solves the quadratic program itself."""
    problem = hock_schittkowski.hs(name)
    rng = np.random.default_rng(1)
    x = problem.x0 + 0.1 * rng.normal(size=problem.n)
    grad, J, h = _derivatives(problem, x)
    root = rng.normal(size=(problem.n, problem.n))
    T = root @ root.T / problem.n + np.eye(problem.n) if curved_metric else np.eye(problem.n)
    eta = 0.05
    F, lam = field.fl_field(grad, J, h, 1.0 / eta, problem.m_eq, jnp.asarray(T))
    step = _qp_step(*(np.asarray(v) for v in (grad, J, h)), problem.m_eq, eta, T)
    np.testing.assert_allclose(eta * F, step, atol=2e-7 * (1 + np.abs(step).max()))  # SLSQP's own
    # The conditions of the quadratic program to 1e-10, which SLSQP does not reach.
    d = np.asarray(eta * F)
    scale = 1 + np.abs(grad).max()
    np.testing.assert_allclose(
        grad + np.linalg.solve(T, d) / eta + J.T @ lam, 0.0, atol=1e-10 * scale
    )
    linearized = h + J @ d
    scale = 1 + np.abs(h).max()
    np.testing.assert_allclose(linearized[: problem.m_eq], 0.0, atol=1e-10 * scale)
    assert (linearized[problem.m_eq :] < 1e-10 * scale).all()
    assert (lam[problem.m_eq :] >= 0.0).all()
    np.testing.assert_allclose(
        (lam * linearized)[problem.m_eq :], 0.0, atol=1e-9 * scale * (1 + np.abs(lam).max())
    )


def test_equalities_decay_at_their_own_rates(x64):
    """J F = -K h, each constraint with its own K."""
    problem = hock_schittkowski.hs("HS78")
    grad, J, h = _derivatives(problem, problem.x0)
    K = jnp.array([1.0, 5.0, 20.0])
    F, _ = field.fl_field(grad, J, h, K, 3)
    np.testing.assert_allclose(J @ F, -K * h, rtol=1e-11, atol=1e-11)


def test_inequalities_decay_at_least_as_fast(x64):
    problem = hock_schittkowski.hs("HS100")
    x = problem.x0 + 1.0
    grad, J, h = _derivatives(problem, x)
    F, lam = field.fl_field(grad, J, h, 3.0, 0)
    assert (J @ F <= -3.0 * h + 1e-8 * jnp.abs(h).max()).all()
    assert float(lam.max()) > 0.0  # the test has something to hold


def test_the_closed_form_of_the_multiplier(x64):
    rng = np.random.default_rng(2)
    grad, J, h = rng.normal(size=6), rng.normal(size=(3, 6)), rng.normal(size=3)
    K = np.array([1.0, 2.0, 0.5])
    root = rng.normal(size=(6, 6))
    T = root @ root.T + np.eye(6)
    F, lam = field.fl_field(*(jnp.asarray(v) for v in (grad, J, h, K)), 3, jnp.asarray(T))
    expected = -np.linalg.solve(J @ T @ J.T, J @ T @ grad - K * h)
    np.testing.assert_allclose(lam, expected, rtol=1e-9)
    np.testing.assert_allclose(F, -T @ (grad + J.T @ expected), rtol=1e-9)
    # The same along directions: their derivatives and a metric on them.
    S = rng.normal(size=(6, 4))
    D_f, D_h, metric = jnp.asarray(S.T @ grad), jnp.asarray(J @ S), field.scalar_metric(0.3)
    v, lam, residual = field.feedback(D_f, D_h, jnp.asarray(h), jnp.asarray(K), 3, metric=metric)
    expected = -np.linalg.solve(0.3 * J @ S @ S.T @ J.T, 0.3 * J @ S @ S.T @ grad - K * h)
    np.testing.assert_allclose(lam, expected, rtol=1e-9)
    np.testing.assert_allclose(J @ S @ v, -K * h, rtol=1e-9)
    np.testing.assert_allclose(v, -0.3 * S.T @ (grad + J.T @ expected), rtol=1e-9)
    assert residual < 1e-9


def test_newton_metric_is_the_inverse_hessian_and_fills_what_is_not_positive(x64):
    rng = np.random.default_rng(3)
    V, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    H = V @ np.diag([4.0, 0.5, 0.0, -2.0]) @ V.T
    T = field.newton_metric(jnp.asarray(H), 0.3, scale=2.0)(jnp.eye(4))
    np.testing.assert_allclose(
        T, 2.0 * V @ np.diag([0.25, 2.0, 1 / 0.3, 1 / 0.3]) @ V.T, atol=1e-12
    )
    T = field.diagonal_metric(jnp.array([4.0, 1e-4, -1.0]), 1.0, noise=1e-3)(jnp.eye(3))
    np.testing.assert_allclose(T, np.diag([0.25, 1.0, 1.0]))


def test_zero_decay_of_nothing_is_the_gradient(x64):
    F, lam = field.fl_field(jnp.arange(3.0), jnp.zeros((0, 3)), jnp.zeros(0), 1.0, 0)
    np.testing.assert_array_equal(F, [0.0, -1.0, -2.0])
    assert lam.shape == (0,)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="J must be"):
        field.fl_field(jnp.zeros(3), jnp.zeros((2, 4)), jnp.zeros(2), 1.0, 1)


@pytest.mark.parametrize("central", [True, False])
@pytest.mark.parametrize("kind", ["sphere", "rademacher", "hadamard", "block", "gaussian"])
def test_streamed_probe_is_the_dense_one(key, x64, kind, central):
    """The same key gives the same directions, noise and velocity, with 2 of 6 in memory."""
    noisy = lambda x, k: (  # noqa: E731
        jnp.sum(x**3) + 1e-3 * jax.random.normal(k),
        jnp.stack([x @ x - 1.0]),
    )
    x = jnp.linspace(-1.0, 1.0, 8)
    stencil = Stencil(6, 1e-2, central, center_repeats=2)
    dense = field.probe(key, noisy, x, stencil, kind=kind)
    streamed = field.streamed_probe(key, noisy, x, stencil, kind=kind, chunk=2)
    np.testing.assert_allclose(streamed.q0, dense.q0, rtol=1e-12)
    np.testing.assert_allclose(streamed.D, dense.D, rtol=1e-9, atol=1e-11)
    v = jnp.arange(6.0)
    np.testing.assert_allclose(streamed.lift(v), dense.lift(v), rtol=1e-12, atol=1e-12)


def test_pairs_of_directions_give_the_hessian(key, x64):
    problem = hock_schittkowski.hs("HS77")
    found = field.probe(key, problem.q, problem.x0, Stencil(5, 1e-3), kind="coordinate", pairs=True)
    H = jax.hessian(lambda x: problem.exact(x)[0])(problem.x0)
    # Fourth derivatives of f are up to 360: the bias is about 360 u^2 / 12.
    np.testing.assert_allclose(found.hessian, H, atol=1e-3)


@pytest.mark.parametrize(
    ("stencil", "message"),
    [
        (Stencil(2, -0.1), "radius u must be positive"),
        (Stencil(2, 0.0), "radius u must be positive"),
        (Stencil(2, 0.1, center_repeats=0), "center_repeats must be at least 1"),
        (2, "stencil must be a Stencil, got int"),
    ],
)
def test_stencils_out_of_range_are_refused(key, stencil, message):
    q, x = (lambda x, k: (x[0], x)), jnp.ones(3)
    with pytest.raises(ValueError, match=message):
        field.probe(key, q, x, stencil, kind="sphere")
    with pytest.raises(ValueError, match=message):
        field.streamed_probe(key, q, x, stencil, kind="sphere", chunk=1)


@pytest.mark.parametrize(
    ("central", "options", "message"),
    [
        (True, {"lb": jnp.zeros(3)}, "lb and ub must be given together"),
        (True, {"lb": jnp.zeros(3), "ub": jnp.ones(3), "pairs": True}, "no box"),
        (False, {"pairs": True}, "central differences"),
    ],
)
def test_probes_of_half_a_box_and_unfit_pairs_are_refused(key, central, options, message):
    stencil = Stencil(2, 0.1, central=central)
    with pytest.raises(ValueError, match=message):
        field.probe(key, lambda x, k: (x[0], x), jnp.ones(3), stencil, kind="sphere", **options)


def test_chunks_must_divide_the_directions(key):
    with pytest.raises(ValueError, match="chunk must divide"):
        field.streamed_probe(
            key, lambda x, k: (x[0], x), jnp.ones(3), Stencil(3, 0.1), kind="sphere", chunk=2
        )
