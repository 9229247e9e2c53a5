"""LB-SGD: safe descent on a logarithmic barrier, feasible at every query with high probability.

The method descends on f - eta sum_i ln(-c_i) from noisy values alone. It never steps farther than
the smoothness of the constraints allows from the slack that it is sure of. Source: Usmanova, As,
Kamgarpour and Krause, "Log barriers for safe black-box optimization with application to safe
reinforcement learning" (arXiv:2207.10415), with the constants of its authors' code. With
`problem.sigma = 0` the confidence terms of the noise vanish and it is the safe barrier method for
exact values, the special case of its predecessor s0-LBM (arXiv:1912.09478).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import direction_sets, estimators, method, settings
from jaxlab.zeroth_order.baselines import lagrangian
from jaxlab.zeroth_order.method import Proposal
from jaxlab.zeroth_order.problem import Problem


class Inner(NamedTuple):
    """Barrier weight eta, and the number of steps taken with it, int32."""

    eta: Float[Array, ""]
    steps: Int[Array, ""]


def make_lb_sgd(
    problem: Problem,
    *,
    M0: float | Array,
    M: float | Array,
    eta: float | Array = 0.05,
    omega: float | Array = 0.85,
    T_in: int = 3,
    B: int | None = None,
    u: float | Array = 0.01,
    delta: float | Array = 0.01,
    reg: float | Array = 1e-4,
) -> Algorithm:
    """Makes safe log-barrier descent, 2B queries a step (1 + B if `problem.sigma` is 0).

    With g_f, g_i the forward differences along B directions on the sphere, c_i the mean of B
    queries of x, and q = sqrt(ln(1/delta) / B),

        alpha_i = -c_i - sigma q - u                              (slack that is certain)
        a_i     = max(reg, alpha_i)
        s       = g_f + eta sum_i g_i / a_i
        L_i     = |g_i's| / ||s|| + n (sigma / u + u) q
        M_2     = M0 + 2 eta sum_i M_i / a_i + 4 eta sum_i L_i^2 / a_i^2
        gamma   = min( min_i alpha_i / (2 L_i + sqrt(alpha_i M_i)) / ||s||, 1 / M_2 )
        x+      = clip(x - gamma s, lb, ub),    eta+ = omega eta after every T_in steps.

    Where no slack is certain (alpha_i <= 0) the iterate stays where it is and is measured again.
    The margin u in alpha_i keeps the query at x + u s feasible only if ||grad c_i|| <= 1: divide a
    steeper constraint, and its M_i, by its slope. Each certificate fails with probability up to
    delta; as eta goes to 0 the iterate rests on it, so run no longer than eta takes to become
    small against the wanted accuracy, m eta.

    Args:
        problem: the problem, without equalities and with a strictly feasible start.
        M0: smoothness of f, the largest absolute eigenvalue of its Hessian in the feasible set.
        M: smoothness of the constraints, one number or `[m]`; 0 for a linear one. Too small a
            value voids the safety; where nothing is known try `estimate_smoothness`.
        eta: weight of the barrier at first; its authors use 0.02 to 0.1.
        omega: factor on eta; its authors use 0.7 to 0.95.
        T_in: steps between two reductions of eta; its authors use 3 to 10.
        B: directions, and queries of the iterate; None is max(1, n // 2), as in their QP study.
        u: radius of the differences.
        delta: probability that a certificate fails.
        reg: least slack by which the barrier's terms are divided.

    Raises:
        ValueError: if the problem has equalities, its start is known not to be strictly feasible,
            or a setting is out of range.
    """
    check_strict_start(problem, "LB-SGD")
    lagrangian.check_positive({"M0": M0, "eta": eta, "omega": omega, "delta": delta, "reg": reg})
    estimators.check_radius(u)
    for name, value in {"omega": omega, "delta": delta}.items():
        if isinstance(value, (int, float)) and value > 1.0:
            raise ValueError(f"{name} must be at most 1, got {value}")
    if T_in < 1:
        raise ValueError(f"T_in must be at least 1, got {T_in}")
    n, dtype = problem.n, problem.x0.dtype
    B = max(1, n // 2) if B is None else B
    direction_sets.check_directions(n, B, "sphere")
    # The mean of repeated queries is only better than one query if they are noisy.
    noiseless = isinstance(problem.sigma, (int, float)) and problem.sigma == 0.0
    center_repeats = 1 if noiseless else B
    smoothness = check_smoothness(M, problem)
    sigma = jnp.asarray(problem.sigma, dtype)
    confidence = jnp.sqrt(jnp.log(1.0 / jnp.asarray(delta, dtype)) / B)
    tiny = float(jnp.finfo(dtype).tiny)

    def init_inner(key: Array, x0: Array) -> tuple[Inner, int]:
        return Inner(jnp.asarray(eta, dtype), jnp.asarray(0, jnp.int32)), 0

    def update(key: Array, x: Array, inner: Inner, t: Array, step_scale: Array) -> Proposal:
        key_directions, key_query = jax.random.split(key)
        S, c = direction_sets.directions(key_directions, n, B, "sphere", dtype)
        S, _ = estimators.within_box(x, S, u, problem.lb, problem.ub, central=False)
        q0, D, queries = estimators.two_point(
            problem.q, x, S, u, key_query, central=False, center_repeats=center_repeats
        )
        G = estimators.gradient(S, c, D)
        slack = -q0[1:] - sigma * confidence - u
        floored = jnp.maximum(slack, reg)
        s = G[0] + inner.eta * (1.0 / floored) @ G[1:]
        norm = jnp.maximum(jnp.linalg.norm(s), tiny)
        slope = jnp.abs(G[1:] @ s) / norm + n * (sigma / u + u) * confidence
        curvature = M0 + inner.eta * jnp.sum(
            2.0 * smoothness / floored + 4.0 * (slope / floored) ** 2
        )
        certain = jnp.maximum(slack, 0.0)  # no step at all where the slack may be gone
        reach = certain / jnp.maximum(2.0 * slope + jnp.sqrt(certain * smoothness), tiny)
        gamma = jnp.minimum(jnp.min(reach, initial=jnp.inf) / norm, 1.0 / curvature)
        x_next = jnp.clip(x - gamma * step_scale * s, problem.lb, problem.ub)

        last = inner.steps + 1 >= T_in
        following = Inner(
            jnp.where(last, omega * inner.eta, inner.eta), jnp.where(last, 0, inner.steps + 1)
        )
        metrics = {
            "zo/eta": inner.eta,
            "zo/slack": jnp.min(slack, initial=jnp.inf),
            "zo/step": gamma * step_scale * norm,
        }
        return Proposal(x_next, following, x, q0[0], q0[1:], queries, metrics)

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def estimate_smoothness(
    key: Array, problem: Problem, *, u: float | Array | None = None, headroom: float | Array = 2.0
) -> tuple[Float[Array, ""], Float[Array, " m"], int]:
    """Estimates M0 and M_i from second differences around the start.

    It measures the Hessian of every function at x0 (moved u inside the box) and takes `headroom`
    times its largest absolute eigenvalue. This is a local guess, not a bound, and noise adds about
    sigma / u^2 to every entry; what is known of the functions is always better. The queries lie
    within sqrt(2) u of x0, which therefore needs that much room to be safe.

    Args:
        key: source of the oracle's noise.
        problem: the problem, of few variables: 1 + 2n + n(n-1)/2 queries.
        u: radius of the differences; None is `settings.default_radius`.
        headroom: factor for curvature that is larger elsewhere.

    Returns:
        `(M0, M, queries)`: `()`, `[m]`, and the joint queries made.
    """
    n, dtype = problem.n, problem.x0.dtype
    u = settings.default_radius(problem.sigma, dtype) if u is None else u
    estimators.check_radius(u)
    x = jnp.clip(problem.x0, problem.lb + u, problem.ub - u)
    rows, columns = np.triu_indices(n, 1)
    unit = jnp.eye(n, dtype=dtype)
    moves = jnp.concatenate([jnp.zeros((1, n), dtype), unit, -unit, unit[rows] + unit[columns]])
    keys = jax.random.split(key, moves.shape[0])
    q = estimators.evaluate(problem.q, x[None] + u * moves, keys)
    center, plus, minus, corner = q[0], q[1 : n + 1], q[n + 1 : 2 * n + 1], q[2 * n + 1 :]
    diagonal = plus - 2.0 * center[None] + minus
    mixed = corner - plus[rows] - plus[columns] + center[None]
    hessian = jnp.zeros((q.shape[1], n, n), dtype)
    hessian = hessian.at[:, np.arange(n), np.arange(n)].set(diagonal.T / u**2)
    hessian = hessian.at[:, rows, columns].set(mixed.T / u**2)
    hessian = hessian.at[:, columns, rows].set(mixed.T / u**2)
    largest = headroom * jnp.max(jnp.abs(jnp.linalg.eigvalsh(hessian)), axis=1)
    return largest[0], largest[1:], moves.shape[0]


def check_strict_start(problem: Problem, name: str) -> None:
    """Checks that a safe method can start: no equalities, and the start strictly feasible.

    The start is judged by `problem.exact` where there is one and the start is concrete; a query is
    never spent on it.

    Raises:
        ValueError: if there are equalities, or a constraint at the start is known not to be < 0.
    """
    if problem.m_eq:
        raise ValueError(
            f"{name} needs a strictly feasible interior, which equalities do not leave; the "
            f"problem has m_eq = {problem.m_eq}"
        )
    if problem.exact is None or isinstance(problem.x0, Tracer):
        return
    h = problem.exact(problem.x0)[1]
    if not isinstance(h, Tracer) and not (np.asarray(h) < 0.0).all():
        raise ValueError(
            f"{name} needs a strictly feasible start, h < 0, got a largest constraint of "
            f"{float(np.max(np.asarray(h)))} at x0"
        )


def check_smoothness(M: float | Array, problem: Problem) -> Float[Array, " m"]:
    """Returns the smoothness constants as `[m]`.

    Raises:
        ValueError: if their shape is neither `()` nor `[m]`, or a concrete one is negative.
    """
    if jnp.shape(M) not in ((), (problem.m,)):
        raise ValueError(f"M must be one number or [m = {problem.m}], got shape {jnp.shape(M)}")
    if not isinstance(M, Tracer) and not (np.asarray(M) >= 0.0).all():
        raise ValueError(f"M must not be negative, got {M}")
    return jnp.broadcast_to(jnp.asarray(M, problem.x0.dtype), (problem.m,))
