"""The Lagrangian of a problem whose equalities count as two inequalities.

The primal-dual methods keep one non-negative dual per inequality c(x) <= 0 of L(x, y) = f + y'c,
and an equality h = 0 is the pair h <= 0, -h <= 0: with m_eq equalities and m_ineq inequalities
c and y are `[2 m_eq + m_ineq]`, in the order (h_E, -h_E, h_I) of `problem.as_inequalities`. Since
y'c = lam'h with lam = (y_+ - y_-, y_I), only the duals are kept in this layout; values, gradients
and queries stay those of the original problem.
"""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxlab.zeroth_order.problem import Problem


def inequalities(h: Float[Array, "m ..."], m_eq: int) -> Float[Array, "c ..."]:
    """Returns (h_E, -h_E, h_I), `[2 m_eq + m_ineq]`; the rows of a Jacobian `[m, n]` likewise."""
    return jnp.concatenate([h[:m_eq], -h[:m_eq], h[m_eq:]])


def init_duals(problem: Problem) -> Float[Array, " c"]:
    """Returns zero duals, `[2 m_eq + m_ineq]`, in the problem's dtype."""
    return jnp.zeros((2 * problem.m_eq + problem.m_ineq,), problem.x0.dtype)


def ascend(
    y: Float[Array, " c"],
    h: Float[Array, " m"],
    m_eq: int,
    step: float | Array,
    y_max: float | Array = jnp.inf,
) -> Float[Array, " c"]:
    """Returns the duals after one step of projected ascent, clip(y + step c, 0, y_max)."""
    return jnp.clip(y + step * inequalities(h, m_eq), 0.0, y_max)


def multipliers(y: Float[Array, " c"], m_eq: int) -> Float[Array, " m"]:
    """Returns the multipliers lam `[m]` of h with lam'h = y'c, signed for equalities."""
    return jnp.concatenate([y[:m_eq] - y[m_eq : 2 * m_eq], y[2 * m_eq :]])


def weights(y: Float[Array, " c"], m_eq: int) -> Float[Array, " d"]:
    """Returns w = (1, lam), `[1 + m]`: L = w'q for stacked values q = (f, h), `[1 + m]`."""
    return jnp.concatenate([jnp.ones((1,), y.dtype), multipliers(y, m_eq)])


def check_positive(settings: dict[str, float | Array]) -> None:
    """Checks the settings that are concrete numbers; traced ones pass.

    Raises:
        ValueError: if one is not positive.
    """
    for name, value in settings.items():
        if not isinstance(value, Tracer) and not np.all(np.asarray(value) > 0.0):
            raise ValueError(f"{name} must be positive, got {value}")
