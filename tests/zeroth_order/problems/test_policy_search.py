"""Oracles for the gain search: a NumPy loop, the Riccati equation, SLSQP on the epigraph form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_discrete_are
from scipy.optimize import minimize, nnls

from jaxlab.zeroth_order.problems import policy_search

Q = 0.1 * np.diag([1.0, 1.0, 0.1, 0.1])
R = 0.1 * np.diag([0.1, 0.1])
LIMIT = np.array([0.45, 0.35])


@pytest.fixture(scope="module")
def regulator():
    """The infinite-horizon gain and the value matrix, by SciPy."""
    A, B = policy_search.system()
    P = solve_discrete_are(A, B, Q, R)
    return np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A), P


def simulate(gain, kicks):
    """Newton's law for the two carts, one state and one step at a time."""
    cost, speed = 0.0, np.zeros(2)
    for e, (p1, p2, v1, v2) in enumerate(policy_search.INITIAL):
        for kick in [*kicks[:, e], None]:
            x = np.array([p1, p2, v1, v2])
            speed = np.maximum(speed, np.abs(x[2:]))
            if kick is None:
                break
            u = -gain @ x
            cost += (x @ Q @ x + u @ R @ u) / len(policy_search.INITIAL)
            pull = 0.5 * (p2 - p1)
            p1, p2 = p1 + 0.1 * v1, p2 + 0.1 * v2
            v1, v2 = v1 + 0.1 * (pull + u[0]) / 1.0, v2 + 0.1 * (-pull + u[1]) / 2.0
            v1, v2 = v1 + kick[0], v2 + kick[1]
    return cost, speed / LIMIT - 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_rollouts_equal_a_loop(dtype):
    """Values with and without kicks of a batch of gains, and the float32 accuracy of the docs."""
    rng = np.random.default_rng(0)
    gains = (policy_search.START + 0.3 * rng.standard_normal((4, 2, 4))).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        problem = policy_search.policy_search_problem(horizon=25, process_noise=0.02)
        keys = jax.random.split(jax.random.key(1), 4)

        def drawn(gain, key):
            kicks = 0.02 * jax.random.normal(key, (25, 4, 2), gain.dtype)
            flat = gain.ravel()
            states, inputs = policy_search.rollout(gain, kicks)
            return kicks, problem.q(flat, key), problem.exact(flat), (states, inputs)

        out = jax.jit(jax.vmap(drawn))(jnp.asarray(gains), keys)
        kicks, noisy, exact, (states, inputs) = jax.tree.map(np.asarray, out)
    assert noisy[0].dtype == noisy[1].dtype == dtype
    tol = 1e-12 if dtype == np.float64 else 2e-6
    for k, gain in enumerate(gains.astype(float)):
        for got, kick in ((noisy, kicks[k].astype(float)), (exact, np.zeros((25, 4, 2)))):
            cost, h = simulate(gain, kick)
            np.testing.assert_allclose(got[0][k], cost, rtol=tol)
            np.testing.assert_allclose(got[1][k], h, atol=tol)
        np.testing.assert_allclose(inputs[k], -states[k, :-1] @ gain.T, atol=10 * tol)


def test_long_horizon_is_the_linear_quadratic_regulator(x64, regulator):
    """f = mean x0' P x0 and its gradient 0 at the Riccati gain, whatever the initial states."""
    gain, P = regulator
    problem = policy_search.policy_search_problem(horizon=400)
    f, grad = jax.jit(jax.value_and_grad(lambda x: problem.exact(x)[0]))(jnp.asarray(gain.ravel()))
    want = np.mean([x @ P @ x for x in policy_search.INITIAL])
    # The closed loop contracts by 0.915 a step: 0.915^800 is far below round-off.
    np.testing.assert_allclose(f, want, rtol=1e-12)
    np.testing.assert_allclose(grad, 0.0, atol=1e-12)


def test_limits_matter(x64, regulator):
    """Unstable without feedback; the start keeps both limits; the regulator breaks both."""
    problem = policy_search.policy_search_problem()
    A, _ = policy_search.system()
    assert np.max(np.abs(np.linalg.eigvals(A))) > 1.001
    x = jnp.stack([problem.x0, jnp.asarray(regulator[0].ravel())])
    f, h = jax.jit(jax.vmap(problem.exact))(x)
    assert np.max(h[0]) < -0.2 and np.min(h[1]) > 0.2
    assert f[1] < problem.f_star < f[0]
    assert problem.unravel(problem.x0).shape == (2, 4)


def test_optimum_is_that_of_the_epigraph_form(x64, regulator):
    """SLSQP with exact derivatives on |v| <= limit at every step and state, smooth and equivalent.

    From the start, from the regulator and from a random gain; multipliers confirm optimality.
    """
    problem = policy_search.policy_search_problem()
    still = jnp.zeros((policy_search.HORIZON, 4, 2))

    @jax.jit
    def everything(x):
        def stacked(x):
            states, _ = policy_search.rollout(x.reshape(2, 4), still)
            ratio = (states[..., 2:] / jnp.asarray(LIMIT)[None, None]) ** 2
            return jnp.concatenate([problem.exact(x)[0][None], ratio.ravel() - 1.0])

        return stacked(x), jax.jacfwd(stacked)(x)

    start = np.asarray(problem.x0)
    random = start + np.random.default_rng(2).standard_normal(8)
    for x in (start, regulator[0].ravel(), random):
        result = minimize(
            lambda x: [np.asarray(part[0]) for part in everything(x)],
            x,
            jac=True,
            method="SLSQP",
            constraints={
                "type": "ineq",
                "fun": lambda x: -np.asarray(everything(x)[0][1:]),
                "jac": lambda x: -np.asarray(everything(x)[1][1:]),
            },
            options={"ftol": 1e-13, "maxiter": 200},
        )
        np.testing.assert_allclose(result.fun, problem.f_star, rtol=1e-10)
        np.testing.assert_allclose(result.x, problem.x_star, atol=1e-6)
    f, h = jax.jit(problem.exact)(problem.x_star)
    np.testing.assert_allclose(f, problem.f_star, rtol=1e-13)
    np.testing.assert_allclose(h, 0.0, atol=1e-13)  # both limits active

    values, slopes = (np.asarray(part) for part in everything(problem.x_star))
    active = values[1:] > -1e-9
    assert active.sum() > 2  # peaks are shared: a kink
    multipliers, _ = nnls(slopes[1:][active].T, -slopes[0])
    np.testing.assert_allclose(multipliers @ slopes[1:][active], -slopes[0], atol=1e-9)


def test_noise_level_is_the_first_order_one(x64, key):
    """`sigma` is the largest deviation of a value at the start, linear in the process noise."""
    problem = policy_search.policy_search_problem()

    @jax.jit
    @jax.vmap
    def sample(process_noise):
        noisy = policy_search.policy_search_problem(process_noise=process_noise)
        f, h = jax.vmap(noisy.q, (None, 0))(noisy.x0, jax.random.split(key, 2000))
        return jnp.concatenate([f[:, None], h], axis=1), noisy.sigma

    values, sigma = sample(jnp.array([0.0, 1e-4, 1e-3]))
    f, h = jax.jit(problem.exact)(problem.x0)
    np.testing.assert_allclose(values[0], np.broadcast_to([f, *h], (2000, 3)), rtol=1e-12)
    # 2000 draws: 5 standard errors of a deviation are 8 %.
    np.testing.assert_allclose(np.max(np.std(values, axis=1), axis=1)[1:], sigma[1:], rtol=0.08)
    np.testing.assert_allclose(sigma, sigma[1] * np.array([0.0, 1.0, 10.0]), rtol=1e-12)
    assert problem.sigma == 0.0


def test_optimum_is_stated_for_the_default_horizon_alone():
    assert policy_search.policy_search_problem(horizon=61).f_star is None
    assert policy_search.policy_search_problem(process_noise=0.1).f_star is not None


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="horizon"):
        policy_search.policy_search_problem(horizon=0)
    with pytest.raises(ValueError, match="process_noise"):
        policy_search.policy_search_problem(process_noise=-0.1)
    with pytest.raises(ValueError, match="process_noise"):
        policy_search.policy_search_problem(process_noise=jnp.asarray(-0.1))
