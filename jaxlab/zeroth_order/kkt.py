"""Violation, order of points, and the KKT gap.

Source: arXiv:2503.12665 (KKT gap); stacked constraints have equalities first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def violation(h: Float[Array, " m"], m_eq: int) -> Float[Array, " m"]:
    """Returns |h_i| of equalities and max(h_i, 0) of inequalities, `[m]`."""
    return jnp.concatenate([jnp.abs(h[:m_eq]), jnp.maximum(h[m_eq:], 0.0)])


def max_violation(h: Float[Array, " m"], m_eq: int) -> Float[Array, ""]:
    """Returns the largest violation, 0 without constraints."""
    return jnp.max(violation(h, m_eq), initial=0.0)


def better(
    a: tuple[Array, Array], b: tuple[Array, Array], feasibility_tol: float | Array
) -> Bool[Array, ""]:
    """Says whether point a precedes point b, each given as `(f, violation)`.

    A feasible point (violation at most `feasibility_tol`) precedes an infeasible one; feasible
    points are ordered by f, infeasible ones by violation, and by f where none can change it.
    """
    (f_a, viol_a), (f_b, viol_b) = a, b
    feasible_a, feasible_b = viol_a <= feasibility_tol, viol_b <= feasibility_tol
    both = feasible_a & feasible_b
    neither = ~feasible_a & ~feasible_b
    less = (viol_a < viol_b) | ((viol_a == viol_b) & (f_a < f_b))
    return (feasible_a & ~feasible_b) | (both & (f_a < f_b)) | (neither & less)


def kkt_gap(
    grad: Float[Array, " n"],
    J: Float[Array, "m n"],
    h: Float[Array, " m"],
    lam: Float[Array, " m"],
    m_eq: int,
) -> Float[Array, ""]:
    """Returns the largest violation of the KKT conditions.

    max(||grad + J' lam||_2, ||h_E||_inf, |lam_I' h_I|, max_i [h_I,i]_+). Without inequalities, or
    without equalities, it is the gap of arXiv:2503.12665 for that case. The sign of lam_I is not
    looked at: the multipliers of this room are non-negative, but those of the slack form only in
    the limit.

    Args:
        grad: gradient of f.  J: Jacobian of h.  h: constraint values, equalities first.
        lam: multipliers.  m_eq: number of equalities.
    """
    stationarity = jnp.linalg.norm(grad + lam @ J)
    complementarity = jnp.abs(jnp.sum(lam[m_eq:] * h[m_eq:]))
    return jnp.maximum(jnp.maximum(stationarity, complementarity), max_violation(h, m_eq))
