"""Oracles for the first-order methods: numpy loops, closed forms and published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import kkt, method, problem
from jaxlab.zeroth_order.baselines import first_order, lagrangian
from jaxlab.zeroth_order.problems import client_fairness

Z = np.array([1.4, 2.0, -1.0, 0.4])
X_STAR = np.array([0.5, *(np.sqrt(0.75) * Z[1:] / np.linalg.norm(Z[1:]))])
Y_BALL = (np.linalg.norm(Z[1:]) / np.sqrt(0.75) - 1.0) / 2.0
LAMBDA_STAR = np.array([Z[0] - 0.5 - Y_BALL, Y_BALL])


def ball_and_line(**bounds):
    """min ||x - z||^2/2 with x_0 = 1/2 and ||x||^2 <= 1: minimizer and multipliers known."""

    def fun(x):
        return 0.5 * jnp.sum((x - Z) ** 2), jnp.stack([x[0] - 0.5, jnp.sum(x**2) - 1.0])

    return problem.make_problem(fun, jnp.zeros(4), m_eq=1, **bounds)


def derivatives(x):
    """f, c and their derivatives with the equality as two inequalities, by hand."""
    line, ball = np.eye(4)[0], 2.0 * x
    c = np.array([x[0] - 0.5, 0.5 - x[0], x @ x - 1.0])
    return 0.5 * np.sum((x - Z) ** 2), c, x - Z, np.stack([line, -line, ball])


def gap_by_hand(x, y):
    """Stationarity, equality, complementarity and feasibility, each on its own."""
    _, c, grad, J = derivatives(x)
    return max(np.linalg.norm(grad + J.T @ y), abs(c[0]), abs(y[2] * c[2]), c[2], 0.0)


def test_pdgd_equals_a_loop(x64, key):
    alpha, beta, num_steps, lower, upper = 0.15, 0.4, 12, -0.3, 0.6
    algorithm = first_order.make_pdgd(
        ball_and_line(lower=lower, upper=upper), alpha=alpha, beta=beta
    )
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)
    x, y, touched = np.zeros(4), np.zeros(3), False
    for t in range(num_steps):
        f, c, grad, J = derivatives(x)
        np.testing.assert_allclose(history["zo/f"][t], f, rtol=1e-12)
        np.testing.assert_allclose(history["zo/kkt_gap"][t], gap_by_hand(x, y), rtol=1e-12)
        x, y = (np.clip(x - alpha * (grad + J.T @ y), lower, upper), np.maximum(y + beta * c, 0.0))
        touched |= bool(np.any(x == upper))
        np.testing.assert_allclose(history["zo/dual_max"][t], y.max(), rtol=1e-12)
    assert touched
    np.testing.assert_allclose(state.next_x, x, rtol=1e-12)
    np.testing.assert_allclose(state.inner, y, rtol=1e-12)
    assert int(state.queries) == num_steps


def test_alm_equals_a_loop(x64, key):
    alpha, rho, growth, rho_max, num_steps = 0.05, 0.5, 1.2, 2.0, 12
    algorithm = first_order.make_alm(
        ball_and_line(), alpha=alpha, rho=rho, growth=growth, rho_max=rho_max
    )
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)
    x, y = np.zeros(4), np.zeros(3)
    for t in range(num_steps):
        f, c, grad, J = derivatives(x)
        np.testing.assert_allclose(history["zo/f"][t], f, rtol=1e-12)
        np.testing.assert_allclose(history["zo/kkt_gap"][t], gap_by_hand(x, y), rtol=1e-12)
        penalty = min(rho * growth**t, rho_max)
        x = x - alpha * (grad + J.T @ (y + penalty * np.maximum(c, 0.0)))
        y = np.maximum(y + penalty * c, 0.0)
    np.testing.assert_allclose(state.next_x, x, rtol=1e-12)
    np.testing.assert_allclose(state.inner.y, y, rtol=1e-12)
    np.testing.assert_allclose(state.inner.rho, rho_max, rtol=1e-15)
    assert int(state.queries) == num_steps


@pytest.mark.parametrize("name", ["pdgd", "alm"])
def test_reaches_the_saddle_point(x64, key, name):
    prob = ball_and_line()
    if name == "pdgd":
        algorithm = first_order.make_pdgd(prob)
    else:
        algorithm = first_order.make_alm(prob, alpha=0.1, growth=1.0)
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=2000))(key)
    y = state.inner if name == "pdgd" else state.inner.y
    # Linear convergence to a saddle point with strict complementarity, down to round-off.
    np.testing.assert_allclose(state.next_x, X_STAR, atol=1e-10)
    np.testing.assert_allclose(lagrangian.multipliers(y, 1), LAMBDA_STAR, atol=1e-10)
    assert float(history["zo/kkt_gap"][-1]) < 1e-10


def test_linearize_by_hand(x64):
    x = jnp.array([0.3, -0.2, 0.7, 1.1])
    f, h, grad, J = jax.jit(lambda x: first_order.linearize(ball_and_line().exact, x))(x)
    want_f, c, want_grad, want_J = derivatives(np.asarray(x))
    np.testing.assert_allclose(f, want_f, rtol=1e-14)
    np.testing.assert_allclose(h, c[[0, 2]], rtol=1e-14)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-14)
    np.testing.assert_allclose(J, want_J[[0, 2]], rtol=1e-14)


@pytest.mark.parametrize("name", ["pdgd", "alm"])
def test_without_constraints_it_is_gradient_descent(x64, key, name):
    """x_t - z = (1 - alpha)^t (x_0 - z) on a round quadratic."""
    prob = problem.make_problem(lambda x: 0.5 * jnp.sum((x - Z) ** 2), jnp.zeros(4))
    algorithm = getattr(first_order, f"make_{name}")(prob, alpha=0.2)
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=30))(key)
    np.testing.assert_allclose(state.next_x, Z - 0.8**30 * Z, rtol=1e-13)
    gap = 0.8**29 * np.linalg.norm(Z)  # of the last measured point
    np.testing.assert_allclose(history["zo/kkt_gap"][-1], gap, rtol=1e-11)


def test_published_figures_of_fair_logistic_regression(x64, key):
    """KKT gap at iteration 300: 1e-6 (PDGD) and 2.8e-7 (ALM), printed with one and two digits."""
    prob = client_fairness.fair_logistic()

    def both(key):
        algorithms = first_order.make_pdgd(prob), first_order.make_alm(prob)
        return [method.run(algorithm, key, num_steps=300) for algorithm in algorithms]

    (_, pdgd), (_, alm) = jax.jit(both)(key)
    np.testing.assert_allclose(pdgd["zo/f"][0], 2.8906, atol=5e-5)
    np.testing.assert_allclose(pdgd["zo/kkt_gap"][-1], 1e-6, rtol=0.05)
    np.testing.assert_allclose(alm["zo/kkt_gap"][-1], 2.8e-7, rtol=0.02)
    np.testing.assert_allclose([pdgd["zo/f"][-1], alm["zo/f"][-1]], [0.6901, 0.6901], atol=5e-5)


def test_settings_can_be_traced(x64, key):
    """A vmap over settings gives what a builder with those numbers gives."""
    prob = ball_and_line()

    def final(alpha, beta):
        algorithms = (
            first_order.make_pdgd(prob, alpha=alpha, beta=beta),
            first_order.make_alm(prob, alpha=alpha, rho=beta, growth=1 + beta, rho_max=9 * beta),
        )
        return [method.run(algorithm, key, num_steps=20)[0].next_x for algorithm in algorithms]

    together = jax.jit(jax.vmap(final))(jnp.array([0.02, 0.1]), jnp.array([0.01, 0.2]))
    alone = jax.jit(lambda: final(0.1, 0.2))()
    for mapped, numbers in zip(together, alone, strict=True):
        np.testing.assert_allclose(mapped[1], numbers, rtol=1e-12)
        assert np.abs(mapped[0] - mapped[1]).max() > 1e-2


def test_long_float32_runs_of_alm_stay_finite(key):
    """The penalty grows past the float32 range after 930 iterations, were it not capped."""
    prob = problem.make_problem(
        lambda x: (jnp.sum((x - 1.0) ** 2), jnp.sum(x)[None] - 9.0), jnp.zeros(2)
    )
    algorithm = first_order.make_alm(prob)
    state, _ = jax.jit(lambda key: method.run(algorithm, key, num_steps=1000))(key)
    assert int(state.status) < method.BUDGET_SPENT and int(state.rejected) == 0
    np.testing.assert_allclose(state.next_x, np.ones(2), rtol=1e-6)
    assert float(kkt.max_violation(state.h, 0)) == 0.0


@pytest.mark.parametrize("build", [first_order.make_pdgd, first_order.make_alm])
def test_bad_input_is_named(build):
    black_box = problem.make_problem(
        lambda x, key: jnp.sum(x) + jax.random.normal(key), jnp.zeros(2), takes_key=True
    )
    with pytest.raises(ValueError, match=r"problem\.exact, got None"):
        build(black_box)
    with pytest.raises(ValueError, match="alpha must be positive"):
        build(ball_and_line(), alpha=-0.1)
