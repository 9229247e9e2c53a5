"""First-order references: primal-dual gradient descent and the augmented Lagrangian method.

They differentiate `problem.exact`, so they show what exact gradients reach; a black box has none.
One evaluation of (f, h) with all its derivatives counts as one query: do not set these counts
beside those of zeroth-order methods, whose queries are values only.

Source: the baselines of Zhang et al. (arXiv:2503.12665) and their published settings for the
client-fair logistic regression.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import kkt, method
from jaxlab.zeroth_order.baselines import lagrangian
from jaxlab.zeroth_order.method import Proposal
from jaxlab.zeroth_order.problem import Problem

Exact = Callable[[Array], tuple[Array, Array]]
"""`exact(x) -> (f, h)` without noise."""


class AugmentedInner(NamedTuple):
    """What ALM carries: y `[2 m_eq + m_ineq]`, the duals, and rho `()`, the penalty."""

    y: Float[Array, " c"]
    rho: Float[Array, ""]


def make_pdgd(
    problem: Problem, *, alpha: float | Array = 0.2, beta: float | Array = 0.1
) -> Algorithm:
    """Makes primal-dual gradient descent, one first-order evaluation an iteration.

    x+ = clip(x - alpha grad_x L(x, y), lb, ub) and y+ = [y + beta c(x)]_+, both from the old x. The
    metric `zo/kkt_gap` is that of (x, y) before the step.

    Args:
        problem: a problem with `exact`.
        alpha: primal step.  beta: dual step.

    Raises:
        ValueError: if the problem has no `exact`, or a step is not positive.
    """
    lagrangian.check_positive({"alpha": alpha, "beta": beta})
    exact, m_eq = _exact(problem), problem.m_eq

    def init_inner(key: Array, x0: Array) -> tuple[Array, int]:
        return lagrangian.init_duals(problem), 0

    def update(key: Array, x: Array, y: Array, t: Array, step_scale: Array) -> Proposal:
        f, h, grad, J = linearize(exact, x)
        lam = lagrangian.multipliers(y, m_eq)
        x_next = jnp.clip(x - alpha * step_scale * (grad + lam @ J), problem.lb, problem.ub)
        y_next = lagrangian.ascend(y, h, m_eq, beta * step_scale)
        metrics = {
            "zo/kkt_gap": kkt.kkt_gap(grad, J, h, lam, m_eq),
            "zo/dual_max": jnp.max(y_next, initial=0.0),
        }
        return Proposal(x_next, y_next, x, f, h, 1, metrics)

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def make_alm(
    problem: Problem,
    *,
    alpha: float | Array = 0.2,
    rho: float | Array = 1.0,
    growth: float | Array = 1.1,
    rho_max: float | Array = 1e15,
) -> Algorithm:
    """Makes the augmented Lagrangian method, one first-order evaluation an iteration.

    x+ = clip(x - alpha (grad f + J'(y + rho [c]_+)), lb, ub), y+ = [y + rho c(x)]_+, rho+ = growth
    rho, all from the old x. One gradient step does not minimize an augmented Lagrangian whose
    penalty keeps growing: where a constraint is active, x diverges once alpha rho ||J||^2 exceeds
    2, and growth must be 1. The metric `zo/kkt_gap` is that of (x, y) before the step.

    Args:
        problem: a problem with `exact`.
        alpha: primal step.
        rho: first penalty.  growth: its factor an iteration.
        rho_max: cap of the penalty, which would overflow float32 after 930 iterations; the default
            is above what the published 300 reach.

    Raises:
        ValueError: if the problem has no `exact`, or a setting is not positive.
    """
    lagrangian.check_positive({"alpha": alpha, "rho": rho, "growth": growth, "rho_max": rho_max})
    exact, m_eq, dtype = _exact(problem), problem.m_eq, problem.x0.dtype

    def init_inner(key: Array, x0: Array) -> tuple[AugmentedInner, int]:
        return AugmentedInner(lagrangian.init_duals(problem), jnp.asarray(rho, dtype)), 0

    def update(
        key: Array, x: Array, inner: AugmentedInner, t: Array, step_scale: Array
    ) -> Proposal:
        y, penalty = inner
        f, h, grad, J = linearize(exact, x)
        pushed = y + penalty * jnp.maximum(lagrangian.inequalities(h, m_eq), 0.0)
        slope = grad + lagrangian.multipliers(pushed, m_eq) @ J
        x_next = jnp.clip(x - alpha * step_scale * slope, problem.lb, problem.ub)
        y_next = lagrangian.ascend(y, h, m_eq, penalty)
        metrics = {
            "zo/kkt_gap": kkt.kkt_gap(grad, J, h, lagrangian.multipliers(y, m_eq), m_eq),
            "zo/dual_max": jnp.max(y_next, initial=0.0),
        }
        inner = AugmentedInner(y_next, jnp.minimum(growth * penalty, rho_max))
        return Proposal(x_next, inner, x, f, h, 1, metrics)

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def linearize(
    exact: Exact, x: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, " m"], Float[Array, " n"], Float[Array, "m n"]]:
    """Returns f, h, the gradient of f and the Jacobian of h at x."""

    def stacked(x: Array) -> Array:
        f, h = exact(x)
        return jnp.concatenate([f[None], h])

    q0, pullback = jax.vjp(stacked, x)
    (rows,) = jax.vmap(pullback)(jnp.eye(q0.shape[0], dtype=q0.dtype))
    return q0[0], q0[1:], rows[0], rows[1:]


def _exact(problem: Problem) -> Exact:
    if problem.exact is None:
        raise ValueError(
            "a first-order method differentiates problem.exact, got None; give the noise-free "
            "function, or use a zeroth-order method"
        )
    return problem.exact
