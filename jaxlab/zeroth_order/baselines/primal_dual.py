"""Primal-dual zeroth-order methods on full vectors: ZO-GDA, ZO-AGP and extra-gradient.

All of them descend on the Lagrangian L(x, y) = f + y'c in x, by differences of joint queries, and
ascend in the duals y >= 0 by the measured constraints. Differences are forward, so that the value
at x serves the gradient, the duals and the report. No query leaves the box: random directions are
cut off at it, coordinate steps turn round. Scale f and h to about one first (`problem.scaled`);
without constraints every method is plain zeroth-order gradient descent.

Sources: ZO-Min-Max, Liu et al. (arXiv:1909.13806); ZO-AGP, Xu, Wang, Shen and Dai
(arXiv:2108.00473); ZOEG and ZOCEG, Zhou, Jin, Gao, Wang and Song (arXiv:2506.20546). The settings
of the first two are those of the benchmark of arXiv:2510.19165's authors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import direction_sets, estimators, method
from jaxlab.zeroth_order.baselines import block_descent, lagrangian
from jaxlab.zeroth_order.method import Proposal
from jaxlab.zeroth_order.problem import Problem

Gradient = Callable[[Array, Array, Array, Array, float | Array], Array]
"""`gradient(key, x, q0, w, u)`: estimates the gradient of w'q at x, `[n]`, from q0 = q(x)."""


class Inner(NamedTuple):
    """What the alternating methods carry.

    Attributes:
        y: `[2 m_eq + m_ineq]`, duals.
        q0: `[1 + m]`, the values at the iterate, measured by the previous update.
    """

    y: Float[Array, " c"]
    q0: Float[Array, " d"]


class Iteration(NamedTuple):
    """Settings of one iteration: `alpha` primal step, `u` difference step, `decay` of the duals."""

    alpha: float | Array
    u: float | Array
    decay: float | Array


def make_zo_minmax(
    problem: Problem,
    *,
    alpha: float | Array = 0.1,
    beta: float | Array = 0.003,
    u: float | Array = 1e-3,
    B: int = 1,
    y_max: float | Array = 100.0,
) -> Algorithm:
    """Makes zeroth-order gradient descent ascent on the sphere, B + 1 queries an iteration.

    x+ = clip(x - alpha g, lb, ub), g the forward-difference estimate of grad_x L(x, y); then y+ =
    clip(y + beta c(x+), 0, y_max). The value at x+ is kept as the base of the next difference; the
    start costs one query more.

    Args:
        problem: the problem.
        alpha: primal step.  beta: dual step.  u: difference radius.
        B: directions, the columns of a sphere set with scale n/B.
        y_max: cap of the duals.

    Raises:
        ValueError: if a setting is not positive.
    """
    lagrangian.check_positive({"alpha": alpha, "beta": beta, "y_max": y_max})
    estimators.check_radius(u)
    gradient = _sphere_gradient(problem, B)

    def schedule(t: Array) -> Iteration:
        return Iteration(alpha, u, 0.0)

    return _make_alternating(problem, gradient, B, schedule, beta, y_max)


def make_zoagp(
    problem: Problem,
    *,
    alpha: float | Array = 0.3,
    beta: float | Array = 0.09,
    u: float | Array = 0.003,
    decay: float | Array = 0.1,
    y_max: float | Array = 100.0,
) -> Algorithm:
    """Makes zeroth-order alternating gradient projection, n + 1 queries an iteration.

    x+ = clip(x - alpha_t g, lb, ub), g the gradient of L(., y) by coordinate differences of step
    u / sqrt(t); then y+ = clip(y + beta (c(x+) - lambda_t y), 0, y_max). In iteration t = 1, 2, ...
    alpha_t = alpha 101 / (100 + sqrt(t)) and lambda_t = decay / t^(1/4). The value at x+ is kept;
    the start costs one query more. Run long in float64: u / sqrt(t) meets the rounding of q.

    Args:
        problem: the problem.
        alpha: primal step of the first iteration.  beta: dual step.
        u: difference step of the first iteration.
        decay: regularization of the duals in the first iteration.
        y_max: cap of the duals.

    Raises:
        ValueError: if a setting is not positive.
    """
    lagrangian.check_positive({"alpha": alpha, "beta": beta, "decay": decay, "y_max": y_max})
    estimators.check_radius(u)

    gradient = _coordinate_gradient(problem)

    def schedule(t: Array) -> Iteration:
        root = jnp.sqrt((t + 1).astype(problem.x0.dtype))
        return Iteration(alpha * (101.0 / (100.0 + root)), u / root, decay / jnp.sqrt(root))

    return _make_alternating(problem, gradient, problem.n, schedule, beta, y_max)


def make_zoeg(
    problem: Problem,
    *,
    alpha: float | Array = 0.03,
    beta: float | Array | None = None,
    u: float | Array = 1e-3,
    B: int = 1,
) -> Algorithm:
    """Makes the zeroth-order extra-gradient method on the sphere, 2 (B + 1) queries an iteration.

    A trial step xh = clip(x - alpha g(x, y), lb, ub), yh = [y + beta c(x)]_+, then the step from x
    with what was measured there, x+ = clip(x - alpha g(xh, yh), lb, ub), y+ = [y + beta c(xh)]_+.
    At x and at xh it makes one query of the point and B around it; no value serves twice, since
    the next iteration starts at a point not measured yet.

    Args:
        problem: the problem.
        alpha: step of x, usually 0.01 to 0.1. The default is no published setting.
        beta: step of y; alpha by default, as the method has it.
        u: difference radius.
        B: directions, the columns of a sphere set with scale n/B; new ones at xh.

    Raises:
        ValueError: if a setting is not positive.
    """
    gradient = _sphere_gradient(problem, B)
    return _make_extra_gradient(problem, gradient, B, alpha, beta, u)


def make_zoceg(
    problem: Problem,
    *,
    alpha: float | Array = 0.03,
    beta: float | Array | None = None,
    u: float | Array = 1e-3,
) -> Algorithm:
    """Makes the coordinate extra-gradient method, 2 (n + 1) queries an iteration.

    As `make_zoeg` with forward differences along all coordinates: deterministic without noise.

    Args:
        problem: the problem.
        alpha: step of x.  beta: step of y; alpha by default.  u: difference step.

    Raises:
        ValueError: if a setting is not positive.
    """
    gradient = _coordinate_gradient(problem)
    return _make_extra_gradient(problem, gradient, problem.n, alpha, beta, u)


def _make_alternating(
    problem: Problem,
    gradient: Gradient,
    num_differences: int,
    schedule: Callable[[Array], Iteration],
    beta: float | Array,
    y_max: float | Array,
) -> Algorithm:
    """Makes a method of a primal step, a query at its end, and a dual step with its values."""
    m_eq = problem.m_eq

    def init_inner(key: Array, x0: Array) -> tuple[Inner, int]:
        return Inner(lagrangian.init_duals(problem), _query(problem, key, x0)), 1

    def update(key: Array, x: Array, inner: Inner, t: Array, step_scale: Array) -> Proposal:
        key_gradient, key_next = jax.random.split(key)
        y, q0 = inner
        alpha, u, decay = schedule(t)
        grad = gradient(key_gradient, x, q0, lagrangian.weights(y, m_eq), u)
        x_next = jnp.clip(x - alpha * step_scale * grad, problem.lb, problem.ub)
        q_next = _query(problem, key_next, x_next)
        dual_step = beta * step_scale
        y_next = lagrangian.ascend(
            (1.0 - dual_step * decay) * y, q_next[1:], m_eq, dual_step, y_max
        )
        inner = Inner(y_next, q_next)
        metrics = {"zo/dual_max": jnp.max(y_next, initial=0.0)}
        return Proposal(x_next, inner, x_next, q_next[0], q_next[1:], num_differences + 1, metrics)

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def _make_extra_gradient(
    problem: Problem,
    gradient: Gradient,
    num_differences: int,
    alpha: float | Array,
    beta: float | Array | None,
    u: float | Array,
) -> Algorithm:
    beta = alpha if beta is None else beta
    lagrangian.check_positive({"alpha": alpha, "beta": beta})
    estimators.check_radius(u)
    m_eq = problem.m_eq

    def init_inner(key: Array, x0: Array) -> tuple[Array, int]:
        return lagrangian.init_duals(problem), 0

    def update(key: Array, x: Array, y: Array, t: Array, step_scale: Array) -> Proposal:
        step, dual_step = alpha * step_scale, beta * step_scale

        def half(key: Array, at: Array, duals: Array) -> tuple[Array, Array, Array]:
            """Takes the step from (x, y) with the field at (at, duals), and the values there."""
            key_point, key_gradient = jax.random.split(key)
            q0 = _query(problem, key_point, at)
            grad = gradient(key_gradient, at, q0, lagrangian.weights(duals, m_eq), u)
            x_next = jnp.clip(x - step * grad, problem.lb, problem.ub)
            return x_next, lagrangian.ascend(y, q0[1:], m_eq, dual_step), q0

        key_trial, key_step = jax.random.split(key)
        x_trial, y_trial, q0 = half(key_trial, x, y)
        x_next, y_next, _ = half(key_step, x_trial, y_trial)
        metrics = {"zo/dual_max": jnp.max(y_next, initial=0.0)}
        return Proposal(x_next, y_next, x, q0[0], q0[1:], 2 * (num_differences + 1), metrics)

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def _query(problem: Problem, key: Array, x: Array) -> Array:
    """Queries q(x) = (f, h), `[1 + m]`."""
    return estimators.evaluate(problem.q, x[None], key[None])[0]


def _sphere_gradient(problem: Problem, B: int) -> Gradient:
    direction_sets.check_directions(problem.n, B, "sphere")

    def gradient(key: Array, x: Array, q0: Array, w: Array, u: float | Array) -> Array:
        key_directions, key_query = jax.random.split(key)
        S, c = direction_sets.directions(key_directions, problem.n, B, "sphere", x.dtype)
        # A query that the box cuts off is still paired with its whole direction. Over the sphere
        # that only shrinks the gradient's components, to no less than half at a bound, and mixes
        # none of them, because the components of s are uncorrelated whatever is cut off one.
        points = jnp.clip(x[None] + u * S.T, problem.lb[None], problem.ub[None])
        values = estimators.evaluate(problem.q, points, jax.random.split(key_query, B))
        return c * S @ ((values - q0[None]) @ w / u)

    return gradient


def _coordinate_gradient(problem: Problem) -> Gradient:
    def gradient(key: Array, x: Array, q0: Array, w: Array, u: float | Array) -> Array:
        idx, size = jnp.arange(problem.n), jnp.full_like(x, u)
        points, steps = block_descent.moved_points(x, idx, size, problem.lb, problem.ub)
        values = estimators.evaluate(problem.q, points, jax.random.split(key, problem.n))
        return block_descent.slopes(values, q0, steps) @ w

    return gradient
