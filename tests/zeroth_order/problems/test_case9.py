"""Oracles for the 9-bus system: complex arithmetic in NumPy, and SLSQP for the optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxlab.zeroth_order.problems import case9

# Impedances and charging of the branches between two buses, typed again from the literature.
BRANCHES = {
    (1, 4): (0.0576j, 0.0),
    (4, 5): (0.017 + 0.092j, 0.158),
    (5, 6): (0.039 + 0.17j, 0.358),
    (3, 6): (0.0586j, 0.0),
    (6, 7): (0.0119 + 0.1008j, 0.209),
    (7, 8): (0.0085 + 0.072j, 0.149),
    (8, 2): (0.0625j, 0.0),
    (8, 9): (0.032 + 0.161j, 0.306),
    (9, 4): (0.01 + 0.085j, 0.176),
}
LOAD = np.array([0, 0, 0, 0, 0.9 + 0.3j, 0, 1 + 0.35j, 0, 1.25 + 0.5j])
RATE = np.array([2.5, 2.5, 1.5, 3.0, 1.5, 2.5, 2.5, 2.5, 2.5])


def complex_flows(v):
    """Complex power into both ends of every branch and from every bus, by Ohm's law."""
    sent, received, bus = [], [], np.zeros(9, complex)
    for (i, j), (z, b) in BRANCHES.items():
        vi, vj = v[i - 1], v[j - 1]
        current = (vi - vj) / z
        sent.append(vi * np.conj(current + 0.5j * b * vi))
        received.append(vj * np.conj(-current + 0.5j * b * vj))
        bus[i - 1] += sent[-1]
        bus[j - 1] += received[-1]
    return np.array(sent), np.array(received), bus


@pytest.fixture
def states():
    rng = np.random.default_rng(3)
    return rng.uniform(-0.5, 0.5, (6, 9)), rng.uniform(0.85, 1.15, (6, 9))


def test_flows_and_injections_equal_complex_arithmetic(x64, states):
    def both(theta, V):
        flows = case9.branch_flows(case9.NETWORK, theta, V)
        return flows, case9.injections(case9.NETWORK, theta, V)

    flows, injected = jax.jit(jax.vmap(both))(*map(jnp.asarray, states))
    for k, (theta, V) in enumerate(zip(*states, strict=True)):
        sent, received, bus = complex_flows(V * np.exp(1j * theta))
        want = [sent.real, sent.imag, received.real, received.imag]
        # Powers of order 10 in float64.
        np.testing.assert_allclose([part[k] for part in flows], want, atol=1e-13)
        np.testing.assert_allclose([part[k] for part in injected], [bus.real, bus.imag], atol=1e-13)


def test_admittance_row_sums_are_the_charging_of_the_bus():
    """Y 1 = j b/2 summed over a bus's lines, since series currents vanish at equal voltages."""
    G, B = case9.admittance(case9.NETWORK)
    half = np.zeros(9)
    for (i, j), (_, b) in BRANCHES.items():
        half[[i - 1, j - 1]] += 0.5 * b
    np.testing.assert_allclose(G.sum(1), 0.0, atol=1e-13)
    np.testing.assert_allclose(B.sum(1), half, atol=1e-13)
    np.testing.assert_array_equal(G, G.T)
    np.testing.assert_array_equal(B, B.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_optimal_power_flow_values(states, dtype):
    """Cost, balance and branch limits at random points, vmapped, against complex arithmetic."""
    rng = np.random.default_rng(4)
    theta, V = states
    P, Q = rng.uniform(0.1, 2.5, (6, 3)), rng.uniform(-1, 1, (6, 3))
    x = np.concatenate([theta[:, 1:], V, P, Q], axis=1).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        problem = case9.opf9()
        f, h = (np.asarray(value) for value in jax.jit(jax.vmap(problem.exact))(jnp.asarray(x)))
    assert (problem.n, problem.m_eq, problem.m_ineq) == (23, 18, 18)
    assert f.dtype == h.dtype == dtype
    x = x.astype(np.float64)
    # The documented float32 accuracy; overloads are squares of up to 40 here, hence rtol too.
    rtol, atol = (1e-12, 1e-12) if dtype == np.float64 else (2e-6, 1e-5)
    for k in range(6):
        angle, (magnitude, p, q) = x[k, :8], np.split(x[k, 8:], [9, 12])
        v = magnitude * np.exp(1j * np.concatenate([[0.0], angle]))
        sent, received, bus = complex_flows(v)
        balance = bus + LOAD
        balance[:3] -= p + 1j * q
        over = [np.abs(sent) ** 2 / RATE**2 - 1, np.abs(received) ** 2 / RATE**2 - 1]
        want = np.concatenate([balance.real, balance.imag, *over])
        np.testing.assert_allclose(h[k], want, rtol=rtol, atol=atol)
        cost = (0.11, 5, 150), (0.085, 1.2, 600), (0.1225, 1, 335)
        total = sum(
            a * (100 * s) ** 2 + b * 100 * s + c for (a, b, c), s in zip(cost, p, strict=True)
        )
        np.testing.assert_allclose(f[k], total, rtol=rtol)


def test_optimum_is_the_published_one(x64):
    """MATPOWER's 5296.69 $/h, by SLSQP with exact derivatives from the problem's own start."""
    problem = case9.opf9()

    @jax.jit
    def everything(x):
        def cost(x):
            return problem.exact(x)[0] / 1000.0

        def constraints(x):
            return problem.exact(x)[1]

        return cost(x), jax.grad(cost)(x), constraints(x), jax.jacfwd(constraints)(x)

    def part(index, rows=slice(None), sign=1.0):
        return lambda x: sign * np.asarray(everything(x)[index])[rows]

    result = minimize(
        lambda x: [np.asarray(value) for value in everything(x)[:2]],
        np.asarray(problem.x0),
        jac=True,
        method="SLSQP",
        bounds=np.stack([problem.lb, problem.ub], axis=1),
        constraints=[
            {"type": "eq", "fun": part(2, slice(18)), "jac": part(3, slice(18))},
            {"type": "ineq", "fun": part(2, slice(18, 36), -1), "jac": part(3, slice(18, 36), -1)},
        ],
        options={"ftol": 1e-13, "maxiter": 300},
    )
    f, _, h, _ = everything(result.x)
    f = 1000.0 * f
    assert np.max(np.abs(h[:18])) < 1e-9
    assert np.max(h[18:]) < 0.0
    assert round(float(f), 2) == 5296.69
    np.testing.assert_allclose(f, problem.f_star, rtol=1e-10)
    best = problem.unravel(jnp.asarray(result.x))
    np.testing.assert_allclose(100 * best.P, [89.80, 134.32, 94.19], atol=0.005)
    np.testing.assert_array_less(best.V, 1.1 + 1e-12)


def test_bounds_are_the_published_limits():
    problem = case9.opf9()
    lower, upper = problem.unravel(problem.lb), problem.unravel(problem.ub)
    assert np.all(np.isneginf(lower.theta)) and np.all(np.isposinf(upper.theta))
    np.testing.assert_allclose([lower.V, upper.V], np.outer([0.9, 1.1], np.ones(9)), rtol=1e-6)
    np.testing.assert_allclose(100 * lower.P, [10, 10, 10], rtol=1e-6)
    np.testing.assert_allclose(100 * upper.P, [250, 300, 270], rtol=1e-6)
    np.testing.assert_allclose(100 * np.stack([-lower.Q, upper.Q]), np.full((2, 3), 300), rtol=1e-6)


def test_start_keeps_limits_and_misses_the_balance_by_the_dispatch():
    problem = case9.opf9()
    start = problem.unravel(problem.x0)
    np.testing.assert_allclose(start.P, [0.723, 1.63, 0.85], rtol=1e-7)
    np.testing.assert_array_equal(start.V, np.ones(9))
    _, h = jax.jit(problem.exact)(problem.x0)
    np.testing.assert_allclose(np.abs(h[:18]).max(), 1.63, rtol=1e-6)
    assert np.max(h[18:]) < -0.9
