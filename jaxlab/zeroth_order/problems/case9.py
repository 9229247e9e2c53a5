"""The WSCC 9-bus system: its data, its admittances and branch flows, and its optimal power flow.

Quantities are per unit on a base of 100 MVA, angles in radians; bus k of the literature has index
k - 1. Plain real arithmetic, differentiable in angles and voltages. In float32 powers are good to
about 1e-5 per unit and the cost to about 1e-3 $/h.

Source: Chow 1982 (Time-Scale Modeling of Dynamic Networks with Applications to Power Systems,
p. 70), with the limits and costs of MATPOWER's case9 (Zimmerman, Murillo-Sanchez and Thomas 2011).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxlab.zeroth_order.problem import Problem, make_problem

BASE_MVA = 100.0
"""Power of one per unit, MVA."""


class Network(NamedTuple):
    """A transmission network without transformer taps and shunts; N buses, L branches.

    Attributes:
        sending: `[L]` int, bus at which a branch starts.  receiving: `[L]`, where it ends.
        r, x: `[L]`, series resistance and reactance.  b: `[L]`, total charging susceptance.
        rate: `[L]`, limit on the apparent power at either end.
        load_p, load_q: `[N]`, active and reactive demand.
        gen: `[G]` int, buses with a generator; the first is the slack bus, its angle is 0.
    """

    sending: Int[np.ndarray, " L"]
    receiving: Int[np.ndarray, " L"]
    r: Float[np.ndarray, " L"]
    x: Float[np.ndarray, " L"]
    b: Float[np.ndarray, " L"]
    rate: Float[np.ndarray, " L"]
    load_p: Float[np.ndarray, " N"]
    load_q: Float[np.ndarray, " N"]
    gen: Int[np.ndarray, " G"]


# from, to, r, x, b, rate in MVA
_BRANCHES = np.array(
    [
        [1, 4, 0.0, 0.0576, 0.0, 250.0],
        [4, 5, 0.017, 0.092, 0.158, 250.0],
        [5, 6, 0.039, 0.17, 0.358, 150.0],
        [3, 6, 0.0, 0.0586, 0.0, 300.0],
        [6, 7, 0.0119, 0.1008, 0.209, 150.0],
        [7, 8, 0.0085, 0.072, 0.149, 250.0],
        [8, 2, 0.0, 0.0625, 0.0, 250.0],
        [8, 9, 0.032, 0.161, 0.306, 250.0],
        [9, 4, 0.01, 0.085, 0.176, 250.0],
    ]
)
NETWORK = Network(
    sending=_BRANCHES[:, 0].astype(np.int32) - 1,
    receiving=_BRANCHES[:, 1].astype(np.int32) - 1,
    r=_BRANCHES[:, 2],
    x=_BRANCHES[:, 3],
    b=_BRANCHES[:, 4],
    rate=_BRANCHES[:, 5] / BASE_MVA,
    load_p=np.array([0.0, 0.0, 0.0, 0.0, 90.0, 0.0, 100.0, 0.0, 125.0]) / BASE_MVA,
    load_q=np.array([0.0, 0.0, 0.0, 0.0, 30.0, 0.0, 35.0, 0.0, 50.0]) / BASE_MVA,
    gen=np.array([0, 1, 2], np.int32),
)
"""The 9-bus system; generators at buses 1 (slack), 2 and 3."""
P_MIN, P_MAX = np.array([0.1, 0.1, 0.1]), np.array([2.5, 3.0, 2.7])
"""Limits on the active power of the generators, per unit."""
Q_MAX = 3.0
"""Limit on the magnitude of their reactive power, per unit."""
DISPATCH = np.array([0.723, 1.63, 0.85])
"""Scheduled active power of the generators, per unit; MATPOWER's starting point."""
_OPF_COST = 5296.686204
_COST = np.array([[0.11, 5.0, 150.0], [0.085, 1.2, 600.0], [0.1225, 1.0, 335.0]])


class Operation(NamedTuple):
    """Variables of the optimal power flow; flat, in this order, n = 23.

    Attributes:
        theta: `[8]`, voltage angles of buses 2 to 9, rad.  V: `[9]`, voltage magnitudes.
        P, Q: `[3]`, active and reactive power of the generators.
    """

    theta: Float[Array, "8"]
    V: Float[Array, "9"]
    P: Float[Array, "3"]
    Q: Float[Array, "3"]


def admittance(network: Network) -> tuple[Float[np.ndarray, "N N"], Float[np.ndarray, "N N"]]:
    """Returns conductance and susceptance of the bus admittance matrix, Y = G + jB."""
    series = 1.0 / (network.r + 1j * network.x)
    own = series + 0.5j * network.b
    f, t = network.sending, network.receiving
    Y = np.zeros((network.load_p.size,) * 2, np.complex128)
    np.add.at(Y, (f, f), own)
    np.add.at(Y, (t, t), own)
    np.add.at(Y, (f, t), -series)
    np.add.at(Y, (t, f), -series)
    return np.real(Y), np.imag(Y)


def injections(
    network: Network, theta: Float[Array, " N"], V: Float[Array, " N"]
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Returns the active and reactive power that flows from each bus into the network.

    P + jQ = v conj(Y v) with v = V exp(j theta).
    """
    G, B = (jnp.asarray(part, V.dtype) for part in admittance(network))
    re, im = V * jnp.cos(theta), V * jnp.sin(theta)
    # Accelerators otherwise round the factors of a float32 product to 10 bits.
    product = jax.lax.Precision.HIGHEST
    current_re = jnp.matmul(G, re, precision=product) - jnp.matmul(B, im, precision=product)
    current_im = jnp.matmul(G, im, precision=product) + jnp.matmul(B, re, precision=product)
    return re * current_re + im * current_im, im * current_re - re * current_im


def branch_flows(
    network: Network, theta: Float[Array, " N"], V: Float[Array, " N"]
) -> tuple[Float[Array, " L"], Float[Array, " L"], Float[Array, " L"], Float[Array, " L"]]:
    """Returns `(P_from, Q_from, P_to, Q_to)`, what enters each branch at its two ends."""
    series = 1.0 / (network.r + 1j * network.x)
    g, s, half = (
        jnp.asarray(part, V.dtype) for part in (series.real, series.imag, 0.5 * network.b)
    )
    re, im = V * jnp.cos(theta), V * jnp.sin(theta)

    def entering(near: np.ndarray, far: np.ndarray) -> tuple[Array, Array]:
        re_n, im_n = re[near], im[near]
        drop_re, drop_im = re_n - re[far], im_n - im[far]
        current_re = g * drop_re - s * drop_im - half * im_n
        current_im = g * drop_im + s * drop_re + half * re_n
        return re_n * current_re + im_n * current_im, im_n * current_re - re_n * current_im

    return (
        *entering(network.sending, network.receiving),
        *entering(network.receiving, network.sending),
    )


def generation_cost(P: Float[Array, "3"]) -> Float[Array, ""]:
    """Returns the cost of active power P per unit, $/h: a quadratic per generator, in MW."""
    quadratic, linear, constant = (jnp.asarray(column, P.dtype) for column in _COST.T)
    megawatt = BASE_MVA * P
    return jnp.sum((quadratic * megawatt + linear) * megawatt + constant)


def opf9() -> Problem:
    """Makes the AC optimal power flow of the 9-bus system: n = 23, 18 equalities, 18 inequalities.

    min cost of generation, $/h, over an `Operation`; equalities are the active, then the reactive
    power balance of the buses (network plus load minus generation), inequalities |S|^2 / rate^2 - 1
    at the sending, then the receiving ends. Voltages 0.9 to 1.1 and the generators' limits are
    bounds. Values span three orders of magnitude; `scaled` evens them out.

    The start is flat (angles 0, voltages 1) at the scheduled dispatch: it satisfies every
    inequality and bound, and misses the balance by up to 1.63 per unit, as a flat start does.
    The optimum is 5296.69 $/h at P = 89.80, 134.32 and 94.19 MW.
    """
    buses, network = NETWORK.load_p.size, NETWORK

    def flat(theta: float, V: float, P: np.ndarray, Q: float) -> np.ndarray:
        # In the order of `Operation`, and in NumPy: bounds stay concrete under a trace.
        return np.concatenate([np.full(buses - 1, theta), np.full(buses, V), P, np.full(3, Q)])

    parts = jnp.split(jnp.asarray(flat(0.0, 1.0, DISPATCH, 0.0)), [8, 17, 20])
    start, unravel = ravel_pytree(Operation(*parts))
    lower, upper = flat(-np.inf, 0.9, P_MIN, -Q_MAX), flat(np.inf, 1.1, P_MAX, Q_MAX)

    def fun(flat_x: Array) -> tuple[Array, Array]:
        x = unravel(flat_x)
        theta = jnp.concatenate([jnp.zeros_like(x.theta, shape=(1,)), x.theta])
        P, Q = injections(network, theta, x.V)
        balance_p = (P + jnp.asarray(network.load_p, P.dtype)).at[network.gen].add(-x.P)
        balance_q = (Q + jnp.asarray(network.load_q, Q.dtype)).at[network.gen].add(-x.Q)
        P_from, Q_from, P_to, Q_to = branch_flows(network, theta, x.V)
        limit = jnp.asarray(network.rate**2, P.dtype)
        overload_from = (P_from**2 + Q_from**2) / limit - 1.0
        overload_to = (P_to**2 + Q_to**2) / limit - 1.0
        h = jnp.concatenate([balance_p, balance_q, overload_from, overload_to])
        return generation_cost(x.P), h

    problem = make_problem(
        fun, start, m_eq=2 * buses, lower=lower, upper=upper, f_star=_OPF_COST, name="opf9"
    )
    return problem._replace(unravel=unravel)
