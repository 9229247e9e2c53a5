"""SZO-ConEx: zeroth-order constraint extrapolation for stochastic convex problems.

A primal-dual method whose dual step looks one step ahead through a linear model of the constraints
c(x) <= 0 (an equality h = 0 is the pair h <= 0, -h <= 0). Source: Nguyen and Balasubramanian,
"Stochastic zeroth-order functional constrained optimization: oracle complexity and applications"
(arXiv:2210.04273), the zeroth-order form of constraint extrapolation (Boob, Deng and Lan,
doi:10.1007/s10107-021-01742-y); settings of the benchmark of arXiv:2510.19165's authors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import direction_sets, estimators, method
from jaxlab.zeroth_order.baselines import lagrangian
from jaxlab.zeroth_order.method import Proposal
from jaxlab.zeroth_order.problem import Problem


class Inner(NamedTuple):
    """What the method carries; c counts inequalities, 2 m_eq + m_ineq.

    Attributes:
        y: `[c]`, duals.
        x: `[n]`, the previous iterate.  values: `[c]`, slopes: `[c, n]`, the model made there.
        modeled: `[c]`, the model before it, at the previous iterate.
        started: a model has been made, bool.
    """

    y: Float[Array, " c"]
    x: Float[Array, " n"]
    values: Float[Array, " c"]
    slopes: Float[Array, "c n"]
    modeled: Float[Array, " c"]
    started: Bool[Array, ""]


def make_szo_conex(
    problem: Problem,
    *,
    alpha: float | Array = 0.03,
    beta: float | Array = 0.009,
    u: float | Array = 0.01,
    theta: float | Array = 1.0,
) -> Algorithm:
    """Makes zeroth-order constraint extrapolation; its answer is `State.average`.

    At x_t each scalar function phi (f and every c_i) has its own Gaussian direction s and the
    forward difference g = [phi(x_t + u s) - phi(x_t)] s / u. With l_t = c(x_{t-1} + u s) +
    J_{t-1} (x_t - x_{t-1}), the model of the last step,

        y_{t+1} = [y_t + beta ((1 + theta) l_t - theta l_{t-1})]_+
        x_{t+1} = clip(x_t - alpha (g_f + sum_i y_{t+1,i} g_i), lb, ub).

    In the first step l_t and l_{t-1} are c(x_0 + u s). Convergence is that of the average iterate.

    Queries: 2 (1 + 2 m_eq + m_ineq) a step, the published 2m + 2. Every scalar function is
    measured at its own pair of points with noise of its own, and each measurement counts as one
    joint query, although the method reads one component of it. Values at the iterate, which the
    pairs share, are reported as their mean; without noise they are the same number.

    Args:
        problem: the problem, best scaled to about one (`problem.scaled`).
        alpha: primal step.  beta: dual step.
        u: difference radius; a query is about u sqrt(n) away, cut off at the bounds.
        theta: extrapolation.

    Raises:
        ValueError: if a step or the radius is not positive.
    """
    lagrangian.check_positive({"alpha": alpha, "beta": beta})
    estimators.check_radius(u)
    n, m_eq, dtype = problem.n, problem.m_eq, problem.x0.dtype
    num_ineq = 2 * m_eq + problem.m_ineq
    num_functions = 1 + num_ineq

    def measure(key: Array, x: Array) -> tuple[Array, Array, Array]:
        """Returns the value of every function at its forward point, its slope, and q at x."""
        key_directions, key_query = jax.random.split(key)
        S, _ = direction_sets.directions(key_directions, n, num_functions, "gaussian", dtype)
        S, _ = estimators.within_box(x, S, u, problem.lb, problem.ub, central=False)
        points = jnp.concatenate([x[None] + u * S.T, jnp.broadcast_to(x, (num_functions, n))])
        keys = jax.random.split(key_query, 2 * num_functions)
        q = estimators.evaluate(problem.q, points, keys)  # [2 functions, 1 + m]
        all_functions = jnp.concatenate([q[:, :1].T, lagrangian.inequalities(q[:, 1:].T, m_eq)])
        ahead = jnp.diagonal(all_functions[:, :num_functions])
        here = jnp.diagonal(all_functions[:, num_functions:])
        return ahead, ((ahead - here) / u)[:, None] * S.T, jnp.mean(q[num_functions:], axis=0)

    def init_inner(key: Array, x0: Array) -> tuple[Inner, int]:
        y = lagrangian.init_duals(problem)
        slopes = jnp.zeros((num_ineq, n), dtype)
        return Inner(y, x0, jnp.zeros_like(y), slopes, jnp.zeros_like(y), jnp.asarray(False)), 0

    def update(key: Array, x: Array, inner: Inner, t: Array, step_scale: Array) -> Proposal:
        ahead, G, q0 = measure(key, x)
        model = inner.values + inner.slopes @ (x - inner.x)
        model = jnp.where(inner.started, model, ahead[1:])
        modeled = jnp.where(inner.started, inner.modeled, ahead[1:])
        extrapolated = (1.0 + theta) * model - theta * modeled
        y = jnp.maximum(inner.y + beta * step_scale * extrapolated, 0.0)
        x_next = x - alpha * step_scale * (G[0] + y @ G[1:])
        x_next = jnp.clip(x_next, problem.lb, problem.ub)
        following = Inner(y, x, ahead[1:], G[1:], model, jnp.asarray(True))
        metrics = {"zo/dual_max": jnp.max(y, initial=0.0)}
        return Proposal(x_next, following, x, q0[0], q0[1:], 2 * num_functions, metrics)

    return method.make_algorithm(problem, init_inner=init_inner, update=update)
