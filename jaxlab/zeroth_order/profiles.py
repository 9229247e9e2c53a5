"""Comparison of solvers on equal budgets of joint queries, and of violations with their theory.

A solver's record on a problem is three traces over its log entries: the best objective so far, the
violation at that point, and the queries made. `queries_to_solve` reduces it to one number, inf if
the problem was never solved; tables of these, `[P, S]` for P problems and S solvers, make profiles.
A problem that no solver solves counts against all of them.

Source: More and Wild 2009, SIAM J. Optim. 20(1) (data profiles); Dolan and More 2002, Math.
Program. 91 (performance profiles); arXiv:2509.24056 (violation under feedback linearization).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def optimality_gap(
    best_f: Float[Array, "..."], f_ref: float | Float[Array, ""], f_start: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """Returns (best_f - f_ref)_+ / max(1, |f_start - f_ref|), of any shape.

    Args:
        best_f: objective values.
        f_ref: optimal or best known value.  f_start: value at the start.
    """
    best_f = jnp.asarray(best_f)
    f_ref, f_start = (jnp.asarray(value, best_f.dtype) for value in (f_ref, f_start))
    scale = jnp.maximum(1.0, jnp.abs(f_start - f_ref))
    return jnp.maximum(best_f - f_ref, 0.0) / scale


def queries_to_solve(
    best_f: Float[Array, " T"],
    best_violation: Float[Array, " T"],
    queries: Float[Array, " T"],
    f_ref: float | Float[Array, ""],
    f_start: float | Float[Array, ""],
    *,
    tau: float | Array,
    feasibility_tol: float | Array = 1e-4,
) -> Float[Array, ""]:
    """Returns the queries after which a problem is solved, inf if it never is.

    Solved: `optimality_gap` at most tau, at a violation of at most `feasibility_tol`.

    Args:
        best_f: `[T]`, best objective so far; values that are not finite are not solved.
        best_violation: `[T]`, largest violation at that point.
        queries: `[T]`, joint queries so far, integers or floats.
        f_ref: optimal or best known value.  f_start: value at the start.
        tau: relative accuracy, e.g. 1e-1 or 1e-3.
        feasibility_tol: largest violation of a feasible point.

    Raises:
        ValueError: if the traces differ in shape.
    """
    if not jnp.shape(best_f) == jnp.shape(best_violation) == jnp.shape(queries):
        raise ValueError(
            "best_f, best_violation and queries must have one entry per log entry, got shapes "
            f"{jnp.shape(best_f)}, {jnp.shape(best_violation)} and {jnp.shape(queries)}"
        )
    gap = optimality_gap(best_f, f_ref, f_start)
    solved = (gap <= tau) & (jnp.asarray(best_violation) <= feasibility_tol)
    return jnp.min(jnp.where(solved, jnp.asarray(queries, gap.dtype), jnp.inf), initial=jnp.inf)


def data_profile(
    queries_to_solve: Float[Array, "P S"], n: Float[Array, " P"], budgets: Float[Array, " K"]
) -> Float[Array, "K S"]:
    """Returns the fraction of problems that each solver solves within each budget.

    Budgets are in simplex gradients, n + 1 queries of a problem in n variables, which makes
    problems of different size comparable: d_s(k) = |{p : t_ps / (n_p + 1) <= k}| / P.

    Args:
        queries_to_solve: `[P, S]`, inf where a problem is never solved.
        n: `[P]`, number of variables of each problem.
        budgets: `[K]`, in simplex gradients; an infinite one counts solved problems only.

    Raises:
        ValueError: if the shapes do not fit.

    Source: More and Wild 2009, eq. 2.8.
    """
    t = jnp.asarray(queries_to_solve)
    if t.ndim != 2 or jnp.shape(n) != t.shape[:1]:
        raise ValueError(
            f"queries_to_solve must be [P, S] and n [P], got shapes {t.shape} and {jnp.shape(n)}"
        )
    return _fraction_within(t, jnp.asarray(n, t.dtype) + 1.0, jnp.asarray(budgets, t.dtype))


def performance_ratios(queries_to_solve: Float[Array, "P S"]) -> Float[Array, "P S"]:
    """Returns each solver's queries over those of the best solver of that problem, at least 1.

    Solvers that tie for the best all have ratio 1; inf where a solver, or every solver, fails.
    """
    t, best = _times_and_best(queries_to_solve)
    # XLA divides by a broadcast value as a product with its inverse, whose t / t need not be 1.
    ratio = jnp.maximum(t / jnp.where(jnp.isfinite(best), best, 1.0)[:, None], 1.0)
    return jnp.where(jnp.isfinite(t), jnp.where(t == best[:, None], 1.0, ratio), jnp.inf)


def performance_profile(
    queries_to_solve: Float[Array, "P S"], ratios: Float[Array, " K"]
) -> Float[Array, "K S"]:
    """Returns the fraction of problems on which a solver is within a ratio of the best one.

    Args:
        queries_to_solve: `[P, S]`, inf where a problem is never solved.
        ratios: `[K]`, at least 1: at 1 the fraction of wins (ties count for all), at a large ratio
            the fraction of problems solved.

    Source: Dolan and More 2002, eq. 2.1.
    """
    t, best = _times_and_best(queries_to_solve)
    return _fraction_within(t, best, jnp.asarray(ratios, t.dtype))


def log_query_auc(
    queries_to_solve: Float[Array, "P S"], *, low: float | Array, high: float | Array
) -> Float[Array, " S"]:
    """Returns the area under each solver's curve of problems solved over log queries, in [0, 1].

    1: all problems solved within `low` queries; 0: none within `high`. It equals the mean over
    problems of log(high / t) / log(high / low), cut to [0, 1]. In simplex gradients it is the area
    under the data profile: divide the queries by n + 1 first.

    Args:
        queries_to_solve: `[P, S]`, inf where a problem is never solved.
        low: where the axis begins, positive.  high: where it ends, the budget.

    Raises:
        ValueError: if concrete limits are not 0 < low < high.
    """
    concrete = all(isinstance(value, (int, float)) for value in (low, high))
    if concrete and not 0.0 < low < high < math.inf:
        raise ValueError(f"low and high must satisfy 0 < low < high, got {low} and {high}")
    t = jnp.asarray(queries_to_solve)
    low, high = jnp.asarray(low, t.dtype), jnp.asarray(high, t.dtype)
    area = jnp.log(high / jnp.clip(t, low, high)) / jnp.log(high / low)
    return jnp.mean(area, axis=0)


def violation_envelope(
    h0: Float[Array, " m"], a: float | Array, num_steps: int
) -> Float[Array, "T m"]:
    """Returns the geometric transient |1 - a|^t |h0| for t = 0..num_steps.

    Linear equalities with exact Jacobians follow it exactly under the Euler scheme; the midpoint
    scheme contracts by 1 - a + a^2/2, which is a' = a - a^2/2 here.

    Args:
        h0: `[m]`, constraint values at the start; pass violations for inequalities.
        a: contraction eta K per step, in (0, 2), a scalar or `[m]`.
        num_steps: number of steps.

    Returns:
        `[num_steps + 1, m]`.

    Raises:
        ValueError: if `num_steps` is negative or a concrete a is outside (0, 2).
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}")
    _check_gain(a)
    h0 = jnp.abs(jnp.asarray(h0))
    factor = jnp.abs(1.0 - jnp.broadcast_to(jnp.asarray(a, h0.dtype), h0.shape))
    t = jnp.arange(num_steps + 1, dtype=h0.dtype)
    return factor[None] ** t[:, None] * h0[None]


def violation_bound(
    a: float | Array,
    *,
    eta: float | Array,
    curvature: float | Array,
    speed: float | Array,
    jacobian_error: float | Array = 0.0,
) -> float | Array:
    """Returns the bound on limsup |h_i| under noiseless values: (e + eta^2 L F^2 / 2) / a.

    One step has h(x + eta F) = (1 - a) h(x) + an error of at most e + eta^2 L F^2 / 2, so that the
    errors add up to at most their geometric series, 1 / (1 - |1 - a|): 1/a for a <= 1. Before the
    limit add `violation_envelope`. The arguments are scalars or `[m]`.

    Args:
        a: contraction eta K per step, in (0, 2).
        eta: step.
        curvature: L, Lipschitz constant of the gradient of h_i.
        speed: F, the largest norm of the field.
        jacobian_error: e, the largest |eta (J - J_hat) F| of a step.

    Raises:
        ValueError: if a concrete a is outside (0, 2).
    """
    _check_gain(a)
    return (jacobian_error + 0.5 * eta**2 * curvature * speed**2) / (1.0 - abs(1.0 - a))


def noise_floor(sigma: float | Array, a: float | Array) -> float | Array:
    """Returns sigma sqrt(a / (2 - a)), the limiting std of h_i when its values have noise sigma.

    It is that of h <- h - a (h + noise): an active linear constraint with exact Jacobian.

    Raises:
        ValueError: if a concrete a is outside (0, 2).
    """
    _check_gain(a)
    return sigma * (a / (2.0 - a)) ** 0.5


def _times_and_best(
    queries_to_solve: Float[Array, "P S"],
) -> tuple[Float[Array, "P S"], Float[Array, " P"]]:
    t = jnp.maximum(queries_to_solve, 1.0)  # solved at the start, without a query, counts as one
    return t, jnp.min(t, axis=1)


def _fraction_within(
    t: Float[Array, "P S"], unit: Float[Array, " P"], limits: Float[Array, " K"]
) -> Float[Array, "K S"]:
    """Returns the fraction with finite t <= limit * unit; a product, whose ties are exact."""
    within = t[None] <= (limits[:, None] * unit[None])[:, :, None]
    return jnp.mean((within & jnp.isfinite(t)[None]).astype(t.dtype), axis=1)


def _check_gain(a: float | Array) -> None:
    if isinstance(a, (int, float)) and not 0.0 < a < 2.0:
        raise ValueError(f"a = eta K must be in (0, 2), where the violation contracts, got {a}")
