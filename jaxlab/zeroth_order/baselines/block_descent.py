"""ZOB-GDA and ZOB-SGDA: primal-dual descent on random blocks of coordinates.

Each iteration measures b coordinates by forward differences and moves only those, so that it costs
b + 1 queries instead of n + 1. The differences turn backward where a forward step would leave the
box. Source: Jin, Zhou, Tang, Song and Gao, "Query-efficient zeroth-order algorithms for nonconvex
constrained optimization" (arXiv:2510.19165); the defaults are those of its authors' benchmark of
30 problems, for f and h scaled to about one (`problem.scaled`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import estimators, method
from jaxlab.zeroth_order.baselines import lagrangian
from jaxlab.zeroth_order.method import Proposal
from jaxlab.zeroth_order.problem import Problem


class SmoothedInner(NamedTuple):
    """What ZOB-SGDA carries: y `[2 m_eq + m_ineq]`, the duals, and z `[n]`, the proximal center."""

    y: Float[Array, " c"]
    z: Float[Array, " n"]


def make_zob_gda(
    problem: Problem,
    *,
    alpha: float | Array = 0.08,
    beta: float | Array = 0.05,
    u: float | Array = 0.003,
    block_size: int | None = None,
    y_max: float | Array = 100.0,
) -> Algorithm:
    """Makes zeroth-order block gradient descent ascent, b + 1 queries an iteration.

    x+ = clip(x - alpha grad_B L(x, y), lb, ub) on a random block B; y+ = clip(y + beta c(x), 0,
    y_max). In iteration k = 0, 1, ... coordinate i is moved by u max(1, |x_i|) / sqrt(k + 1). A
    step that float32 cannot resolve any more gives noise: run long in float64. The block gradient
    is used as it is, without the factor n/b that would make it unbiased for the full one.

    Args:
        problem: the problem.
        alpha: primal step.  beta: dual step.
        u: relative difference step of the first iteration.
        block_size: b, coordinates a block; ceil(sqrt(n)) when None.
        y_max: cap of the duals.

    Raises:
        ValueError: if a setting is not positive or the block does not fit n.
    """
    block_size = _block_size(problem.n, block_size, 1.0)
    lagrangian.check_positive({"alpha": alpha, "beta": beta, "y_max": y_max})
    estimators.check_radius(u)

    def init_inner(key: Array, x0: Array) -> tuple[Array, int]:
        return lagrangian.init_duals(problem), 0

    def update(key: Array, x: Array, y: Array, t: Array, step_scale: Array) -> Proposal:
        idx, grad, q0 = _block_gradient(problem, key, x, y, t, u, block_size)
        x_next = jnp.clip(x.at[idx].add(-alpha * step_scale * grad), problem.lb, problem.ub)
        y_next = lagrangian.ascend(y, q0[1:], problem.m_eq, beta * step_scale, y_max)
        metrics = {"zo/dual_max": jnp.max(y_next, initial=0.0)}
        return Proposal(x_next, y_next, x, q0[0], q0[1:], block_size + 1, metrics)

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def make_zob_sgda(
    problem: Problem,
    *,
    num_steps: int,
    alpha: float | Array = 0.1,
    beta: float | Array = 0.05,
    u: float | Array = 0.003,
    block_size: int | None = None,
    y_max: float | Array = 100.0,
) -> Algorithm:
    """Makes smoothed zeroth-order block gradient descent ascent, b + 1 queries an iteration.

    As `make_zob_gda` on L(x, y) + (p/2) ||x - z||^2, whose center follows x slowly, z+ =
    (1 - gamma) z + gamma x+, with N = n/b, p = N gamma / alpha and gamma the least of 1/40,
    1/sqrt(num_steps N) and sqrt(alpha / (768 N beta)).

    Args:
        problem: the problem.
        num_steps: iterations of the whole run, which set the speed of the center.
        alpha: primal step.  beta: dual step.
        u: relative difference step of the first iteration.
        block_size: b, coordinates a block; ceil(0.75 sqrt(n)) when None.
        y_max: cap of the duals.

    Raises:
        ValueError: if a setting is not positive or the block does not fit n.
    """
    block_size = _block_size(problem.n, block_size, 0.75)
    lagrangian.check_positive(
        {"num_steps": num_steps, "alpha": alpha, "beta": beta, "y_max": y_max}
    )
    estimators.check_radius(u)
    num_blocks = problem.n / block_size
    dtype = problem.x0.dtype
    slow = min(1.0 / 40.0, (num_steps * num_blocks) ** -0.5)
    stable = jnp.sqrt(jnp.asarray(alpha / (768.0 * num_blocks * beta), dtype))
    gamma = jnp.minimum(slow, stable)
    p = num_blocks * gamma / alpha

    def init_inner(key: Array, x0: Array) -> tuple[SmoothedInner, int]:
        return SmoothedInner(lagrangian.init_duals(problem), x0), 0

    def update(key: Array, x: Array, inner: SmoothedInner, t: Array, step_scale: Array) -> Proposal:
        y, z = inner
        idx, grad, q0 = _block_gradient(problem, key, x, y, t, u, block_size)
        grad = grad + p * (x - z)[idx]
        x_next = jnp.clip(x.at[idx].add(-alpha * step_scale * grad), problem.lb, problem.ub)
        y_next = lagrangian.ascend(y, q0[1:], problem.m_eq, beta * step_scale, y_max)
        z_next = (1.0 - gamma) * z + gamma * x_next
        metrics = {"zo/dual_max": jnp.max(y_next, initial=0.0)}
        inner = SmoothedInner(y_next, z_next)
        return Proposal(x_next, inner, x, q0[0], q0[1:], block_size + 1, metrics)

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def moved_points(
    x: Float[Array, " n"],
    idx: Int[Array, " b"],
    size: Float[Array, " n"],
    lb: Float[Array, " n"],
    ub: Float[Array, " n"],
) -> tuple[Float[Array, "b n"], Float[Array, " b"]]:
    """Moves one coordinate at a time, inside the box.

    Coordinate i moves to x_i + size_i, to x_i - size_i if the former exceeds ub_i, and to the
    farther bound if neither fits.

    Args:
        x: `[n]`, inside the box.  idx: `[b]`, coordinates to move.  size: `[n]`, positive steps.
        lb, ub: `[n]`, the box.

    Returns:
        `(points, steps)`: x with coordinate `idx[j]` moved, and the signed difference of the
        coordinate as the dtype represents it; 0 where the box has no room at all.
    """
    lb, ub = jnp.asarray(lb)[idx], jnp.asarray(ub)[idx]
    x_i, size = x[idx], size[idx]
    farther = jnp.where(ub - x_i >= x_i - lb, ub, lb)
    backward = jnp.where(x_i - size >= lb, x_i - size, farther)
    target = jnp.where(x_i + size <= ub, x_i + size, backward)
    rows = jnp.arange(idx.shape[0])
    points = jnp.broadcast_to(x, (idx.shape[0], x.shape[0])).at[rows, idx].set(target)
    return points, target - x_i


def slopes(
    values: Float[Array, "b d"], q0: Float[Array, " d"], steps: Float[Array, " b"]
) -> Float[Array, "b d"]:
    """Returns the difference quotients of `moved_points`, 0 where the step is 0."""
    still = steps == 0.0
    quotient = (values - q0[None]) / jnp.where(still, 1.0, steps)[:, None]
    return jnp.where(still[:, None], 0.0, quotient)


def _block_gradient(
    problem: Problem, key: Array, x: Array, y: Array, t: Array, u: float | Array, block_size: int
) -> tuple[Array, Array, Array]:
    """Returns a random block `[b]`, the gradient of L there `[b]`, and q(x) `[1 + m]`."""
    key_block, key_query = jax.random.split(key)
    idx = jax.random.permutation(key_block, problem.n)[:block_size]
    size = u / jnp.sqrt((t + 1).astype(x.dtype)) * jnp.maximum(1.0, jnp.abs(x))
    points, steps = moved_points(x, idx, size, problem.lb, problem.ub)
    points = jnp.concatenate([x[None], points])
    values = estimators.evaluate(problem.q, points, jax.random.split(key_query, block_size + 1))
    quotients = slopes(values[1:], values[0], steps)
    return idx, quotients @ lagrangian.weights(y, problem.m_eq), values[0]


def _block_size(n: int, block_size: int | None, factor: float) -> int:
    if block_size is None:
        return math.ceil(factor * math.sqrt(n))
    if not 1 <= block_size <= n:
        raise ValueError(f"block_size must be between 1 and n = {n}, got {block_size}")
    return block_size
