"""Oracles for the power flow: closed forms, complex arithmetic in NumPy, published solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxlab.zeroth_order.problems import case9, power_flow

ACTIONS = np.random.default_rng(5).uniform(0.0, 1.0, (8, 5))


def solve(network, P_gen, V_gen):
    return jax.jit(lambda P, V: power_flow.solve(network, P, V))(P_gen, V_gen)


def two_buses(gen, load_p, load_q, x):
    """A slack bus and a second one behind a lossless line."""
    return case9.Network(
        sending=np.array([0]),
        receiving=np.array([1]),
        r=np.zeros(1),
        x=np.array([x]),
        b=np.zeros(1),
        rate=np.ones(1),
        load_p=np.array([0.0, load_p]),
        load_q=np.array([0.0, load_q]),
        gen=np.array(gen),
    )


def test_two_buses_have_the_closed_form(x64):
    p, q, x, v1, v2 = 0.7, 0.2, 0.3, 1.02, 0.98
    network = two_buses([0, 1], 0.0, 0.0, x)  # a generator: P = V1 V2 sin(theta) / x
    flow = solve(network, jnp.array([p]), jnp.array([v1, v2]))
    np.testing.assert_allclose(flow.theta[1], np.arcsin(p * x / (v1 * v2)), rtol=1e-13)
    np.testing.assert_allclose(flow.V, [v1, v2], rtol=1e-15)
    network = two_buses([0], p, q, x)  # a load: V^4 + (2 Q x - V1^2) V^2 + x^2 (P^2 + Q^2) = 0
    flow = solve(network, jnp.zeros(0), jnp.array([v1]))
    high = np.max(np.roots([1.0, 2 * q * x - v1**2, x**2 * (p**2 + q**2)]))
    np.testing.assert_allclose(flow.V[1], np.sqrt(high), rtol=1e-13)
    np.testing.assert_allclose(flow.P, [p, -p], atol=1e-13)


def test_overload_is_reported():
    """Beyond V1^2 / 2x the line cannot carry the load: no residual near zero."""
    network = two_buses([0], 2.0, 0.0, 0.3)
    flow = solve(network, jnp.zeros(0), jnp.ones(1))
    assert not flow.residual < 1e-2


def test_scheduled_case_is_the_published_solution(x64):
    """Voltages of Sauer and Pai 1998, table 7.1, to its 3 decimals and 0.1 degrees."""
    flow = solve(case9.NETWORK, jnp.array([1.63, 0.85]), jnp.array([1.04, 1.025, 1.025]))
    V = [1.04, 1.025, 1.025, 1.026, 1.013, 1.032, 1.016, 1.026, 0.996]
    degrees = [0.0, 9.3, 4.7, -2.2, -3.7, 2.0, 0.7, 3.7, -4.0]
    np.testing.assert_allclose(flow.V, V, atol=5.1e-4)
    np.testing.assert_allclose(np.degrees(flow.theta), degrees, atol=0.051)
    np.testing.assert_allclose([flow.P[0], flow.Q[0]], [0.716, 0.27], atol=6e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_black_box_equals_complex_arithmetic(dtype):
    """Balance, cost and all 47 constraints of random actions from the complex voltages alone."""
    with jax.enable_x64(dtype == np.float64):
        problem = power_flow.opf9_blackbox()

        def both(action):
            return power_flow.dispatch(action), problem.exact(action)

        result = jax.jit(jax.vmap(both))(jnp.asarray(ACTIONS, dtype))
        (flow, P), (f, h) = jax.tree.map(np.asarray, result)
    assert f.dtype == h.dtype == dtype
    balance_tol, f_tol, h_tol = (1e-10, 1e-13, 1e-13) if dtype == np.float64 else (1e-5, 4e-6, 2e-6)
    branches = case9.NETWORK.sending, case9.NETWORK.receiving
    series = 1.0 / (case9.NETWORK.r + 1j * case9.NETWORK.x)
    limit = case9.NETWORK.rate / 1.5
    for k, a in enumerate(ACTIONS.astype(dtype).astype(float)):
        # The two generators and the voltages as the action says, exactly.
        np.testing.assert_allclose(flow.V[k, :3], 0.95 + 0.1 * a[2:], rtol=1e-6)
        scheduled = [1.63 * (0.5 + a[0]), 0.85 * (0.5 + a[1])]
        np.testing.assert_allclose(P[k, 1:], scheduled, rtol=1e-6)
        v = flow.V[k] * np.exp(1j * flow.theta[k].astype(float))
        ends = [v[b] for b in branches]
        power = [
            near * np.conj((near - far) * series + 0.5j * case9.NETWORK.b * near)
            for near, far in (ends, ends[::-1])
        ]
        bus = np.zeros(9, complex)
        for end, s in zip(branches, power, strict=True):
            np.add.at(bus, end, s)
        bus += case9.NETWORK.load_p + 1j * case9.NETWORK.load_q
        assert np.max(np.abs(bus[3:])) < balance_tol  # no generation at buses 4 to 9
        assert np.max(np.abs(bus[1:3].real - scheduled)) < balance_tol
        np.testing.assert_allclose(P[k, 0], bus[0].real, atol=balance_tol)

        megawatt = 100.0 * np.array([bus[0].real, *scheduled])
        cost = [0.11, 0.085, 0.1225] @ megawatt**2 + [5, 1.2, 1] @ megawatt + 1085.0
        np.testing.assert_allclose(f[k], cost / 2000.0, atol=f_tol)
        V = flow.V[k].astype(float)
        loading = [(np.abs(s.real) - limit) / limit for s in power]
        slack = bus[0].real / (1.5 * 0.723) - 1.0
        want = np.concatenate([V - 1.05, 0.95 - V, *loading, [slack], -a, a - 1.0])
        np.testing.assert_allclose(h[k], want, atol=h_tol)


def test_residual_after_ten_iterations(x64):
    """From the flat start everywhere in the action box; quadratic convergence leaves round-off."""
    flow, _ = jax.jit(jax.vmap(power_flow.dispatch))(jnp.asarray(ACTIONS))
    assert np.max(flow.residual) < 1e-13


def test_start_and_optimum_of_the_black_box(x64):
    """The figures of the specification, and SLSQP with exact derivatives from two starts."""
    problem = power_flow.opf9_blackbox()
    assert (problem.n, problem.m_eq, problem.m_ineq) == (5, 0, 47)

    @jax.jit
    def everything(a):
        def stacked(a):
            f, h = problem.exact(a)
            return jnp.concatenate([f[None], h])

        return stacked(a), jax.jacfwd(stacked)(a)

    values, _ = everything(problem.x0)
    np.testing.assert_allclose(values[0], 2.719162, atol=5e-7)
    np.testing.assert_allclose(np.max(values[1:]), -0.0076, atol=5e-5)
    for start in (np.asarray(problem.x0), ACTIONS[0]):
        result = minimize(
            lambda a: [np.asarray(part[0]) for part in everything(a)],
            start,
            jac=True,
            method="SLSQP",
            constraints={
                "type": "ineq",
                "fun": lambda a: -np.asarray(everything(a)[0][1:]),
                "jac": lambda a: -np.asarray(everything(a)[1][1:]),
            },
            options={"ftol": 1e-14, "maxiter": 100},
        )
        values, _ = everything(result.x)
        assert np.max(values[1:]) < 1e-10
        np.testing.assert_allclose(values[0], 2.652781, atol=5e-7)
        np.testing.assert_allclose(values[0], problem.f_star, atol=1e-10)
        np.testing.assert_allclose(result.x, [0.3240, 0.6084, 1, 1, 0.8999], atol=6e-5)
        np.testing.assert_allclose(result.x, problem.x_star, atol=1e-6)


def test_gradients_equal_finite_differences(x64):
    """Through the ten iterations, both modes."""

    def summary(action):
        flow, P = power_flow.dispatch(action)
        return P[0] + jnp.sum(flow.V**2) + jnp.sum(flow.theta)

    @jax.jit
    def slopes(action):
        steps = 1e-5 * jnp.eye(5)
        value = jax.vmap(summary)(action[None] + jnp.concatenate([steps, -steps]))
        numeric = (value[:5] - value[5:]) / 2e-5
        return numeric, jax.jacfwd(summary)(action), jax.grad(summary)(action)

    numeric, forward, reverse = slopes(jnp.asarray(ACTIONS[1]))
    # Round-off of 1e-14 over the step, and its square times the third derivative.
    np.testing.assert_allclose(forward, numeric, atol=1e-8)
    np.testing.assert_allclose(reverse, forward, atol=1e-12)


def test_noise_is_on_every_output(key):
    problem = power_flow.opf9_blackbox(sigma=1e-3)
    assert problem.sigma == 1e-3

    @jax.jit
    def sample(keys):
        f, h = jax.vmap(problem.q, (None, 0))(problem.x0, keys)
        f0, h0 = problem.exact(problem.x0)
        return jnp.concatenate([(f - f0)[:, None], h - h0[None]], axis=1)

    noise = sample(jax.random.split(key, 500))
    # 48 standard deviations and means of 500 draws, 5 standard errors: 16 % and 0.22 sigma.
    np.testing.assert_allclose(noise.std(0), 1e-3, rtol=0.16)
    assert np.max(np.abs(noise.mean(0))) < 0.22e-3


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        power_flow.solve(case9.NETWORK, jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match="num_iterations"):
        power_flow.solve(case9.NETWORK, jnp.zeros(2), jnp.ones(3), num_iterations=0)
    with pytest.raises(ValueError, match="sigma"):
        power_flow.opf9_blackbox(sigma=-1.0)
