"""Newton power flow, and the optimal power flow of the 9-bus system behind it as a black box.

A simulator of the grid: generators hold their active power and voltage, the slack bus balances,
and the rest follows. It is differentiable, so that what a zeroth-order method finds without
gradients can be checked with them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.zeroth_order import noise
from jaxlab.zeroth_order.problem import Problem, make_problem
from jaxlab.zeroth_order.problems import case9
from jaxlab.zeroth_order.problems.case9 import Network

_COST = 2.65278107745
_ACTION = (0.32402652, 0.60835118, 1.0, 1.0, 0.89993360)


class PowerFlow(NamedTuple):
    """State of a network, per unit and radians.

    Attributes:
        theta, V: `[N]`, voltage angles and magnitudes.
        P, Q: `[N]`, power that each bus sends into the network (generation minus load).
        residual: `()`, largest mismatch of the scheduled powers; large or NaN where the iteration
            found no solution, which a stressed network may not have.
    """

    theta: Float[Array, " N"]
    V: Float[Array, " N"]
    P: Float[Array, " N"]
    Q: Float[Array, " N"]
    residual: Float[Array, ""]


def solve(
    network: Network,
    P_gen: Float[Array, " G-1"],
    V_gen: Float[Array, " G"],
    *,
    num_iterations: int = 10,
) -> PowerFlow:
    """Solves the power flow equations by Newton's method from a flat start.

    Unknown are the angles of all buses but the slack bus, and the magnitudes of the buses without
    a generator. The number of iterations is fixed: convergence is quadratic, and both modes of
    differentiation pass through. The residual is about 1e-14 per unit in float64 and up to
    1e-5 in float32.

    Args:
        network: the network; its first generator stands at the slack bus.
        P_gen: `[G - 1]`, active power of the other generators, per unit.
        V_gen: `[G]`, voltage magnitudes of all generators, per unit.
        num_iterations: Newton steps.

    Raises:
        ValueError: if a shape does not match the network or `num_iterations` is below 1.
    """
    num_gen, num_buses = network.gen.size, network.load_p.size
    if P_gen.shape != (num_gen - 1,) or V_gen.shape != (num_gen,):
        raise ValueError(
            f"P_gen and V_gen must have shapes ({num_gen - 1},) and ({num_gen},) for {num_gen} "
            f"generators, got {P_gen.shape} and {V_gen.shape}"
        )
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    dtype = V_gen.dtype
    buses, gen = np.arange(num_buses, dtype=np.int32), network.gen.astype(np.int32)
    turning = np.delete(buses, gen[0])  # buses of unknown angle
    floating = np.setdiff1d(buses, gen)  # buses of unknown magnitude
    P_set = (-jnp.asarray(network.load_p, dtype)).at[gen[1:]].add(P_gen)[turning]
    Q_set = -jnp.asarray(network.load_q, dtype)[floating]

    def voltages(unknown: Array) -> tuple[Array, Array]:
        theta = jnp.zeros(num_buses, dtype).at[turning].set(unknown[: turning.size])
        V = jnp.ones(num_buses, dtype).at[gen].set(V_gen)
        return theta, V.at[floating].set(unknown[turning.size :])

    def mismatch(unknown: Array) -> Array:
        P, Q = case9.injections(network, *voltages(unknown))
        return jnp.concatenate([P[turning] - P_set, Q[floating] - Q_set])

    def newton(_: int, unknown: Array) -> Array:
        return unknown - jnp.linalg.solve(jax.jacfwd(mismatch)(unknown), mismatch(unknown))

    flat = jnp.concatenate([jnp.zeros(turning.size, dtype), jnp.ones(floating.size, dtype)])
    unknown = jax.lax.fori_loop(0, num_iterations, newton, flat)
    theta, V = voltages(unknown)
    P, Q = case9.injections(network, theta, V)
    return PowerFlow(theta, V, P, Q, jnp.max(jnp.abs(mismatch(unknown))))


def dispatch(action: Float[Array, "5"]) -> tuple[PowerFlow, Float[Array, "3"]]:
    """Runs the 9-bus system under an action.

    Args:
        action: `[5]`, nominally in [0, 1]: P_2 = 163 (0.5 + a_1) MW, P_3 = 85 (0.5 + a_2) MW, and
            voltages 0.95 + 0.1 a_3, a_4, a_5 at buses 1, 2 and 3.

    Returns:
        `(flow, P)`: the state of the network and the active power `[3]` of the generators.
    """
    scheduled = jnp.asarray(case9.DISPATCH[1:], action.dtype)
    P_gen = scheduled * (0.5 + action[:2])
    flow = solve(case9.NETWORK, P_gen, 0.95 + 0.1 * action[2:])
    slack = flow.P[:1] + jnp.asarray(case9.NETWORK.load_p[:1], action.dtype)
    return flow, jnp.concatenate([slack, P_gen])


def opf9_blackbox(*, sigma: float | Array = 0.0) -> Problem:
    """Makes the 9-bus optimal power flow as a black box of 5 actions and 47 inequalities.

    min cost / 2000 ($/h) over the action of `dispatch`. Inequalities, in this order: V <= 1.05
    and V >= 0.95 at the 9 buses; |P| <= rate / 1.5 at the sending, then the receiving end of the 9
    branches, relative; slack power at most 1.5 times its schedule, relative; -a <= 0 and
    a - 1 <= 0. The action's limits are among the 47 constraints and not bounds: a method may query
    outside. More constraints than actions: a plug-in Gram matrix is singular, ridge it.

    The start, a = 0.5, is strictly feasible (largest value -0.0076), f = 2.719162 there; the
    optimum is 2.652781 at about (0.3240, 0.6084, 1, 1, 0.8999). In float32 f is good to 4e-6 and
    the constraints to 2e-6.

    Args:
        sigma: standard deviation of normal noise, independent on f and each constraint.

    Raises:
        ValueError: if a concrete sigma is negative or not finite.

    Source: formulation of the code of arXiv:2503.12665, on the 9-bus system.
    """
    network = case9.NETWORK
    rate = network.rate / 1.5

    def fun(action: Array) -> tuple[Array, Array]:
        flow, P = dispatch(action)
        P_from, _, P_to, _ = case9.branch_flows(network, flow.theta, flow.V)
        limit = jnp.asarray(rate, action.dtype)
        most = 1.5 * float(case9.DISPATCH[0])
        h = [
            flow.V - 1.05,
            0.95 - flow.V,
            (jnp.abs(P_from) - limit) / limit,
            (jnp.abs(P_to) - limit) / limit,
            (P[:1] - most) / most,
            -action,
            action - 1.0,
        ]
        return case9.generation_cost(P) / 2000.0, jnp.concatenate(h)

    problem = make_problem(
        fun, jnp.full(5, 0.5), f_star=_COST, x_star=jnp.array(_ACTION), name="opf9_blackbox"
    )
    silent = isinstance(sigma, (int, float)) and sigma == 0.0
    return problem if silent else noise.with_noise(problem, sigma)
