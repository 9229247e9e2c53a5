"""The law of the stay as the stays themselves show it, and how far a fitted law is from it.

Source: Kaplan and Meier 1958, product-limit estimator; Anderson and Darling 1954; distances as in
arXiv:2510.02852.

All functions take one site as `[N]` arrays; `jax.vmap` them over sites padded with weight 0.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float


def kaplan_meier(
    los: Float[ArrayLike, " N"],
    event: ArrayLike,
    grid: Float[ArrayLike, " G"],
    *,
    weight: ArrayLike | None = None,
) -> Float[Array, " G"]:
    """Estimates P(X > u) by the product-limit estimator, right-continuous, ties allowed.

    Args:
        los: `[N]` stays, days.
        event: `[N]` True (or 1) if the stay ended, False (or 0) if it is right-censored; a stay
            censored at u is still at risk at u.
        grid: `[G]` times u, days, in any order.
        weight: `[N]` non-negative case weights, 0 for padding; ones by default.

    Returns:
        `[G]` probabilities: constant beyond the longest stay, 1 if no weight is positive, NaN if a
        stay of positive weight is NaN.

    Raises:
        ValueError: if the arrays are empty, not one-dimensional or differ in length.
    """
    los, event, weight = check_stays(los, event, weight)
    bad = jnp.any(jnp.isnan(los) & (weight > 0))
    time, event, weight = sort_stays(los, event, weight)
    km = product_limit(event, weight)
    return jnp.where(bad, jnp.nan, step_function(time, km, jnp.asarray(grid, time.dtype)))


def empirical_law(
    los: Float[ArrayLike, " N"], event: ArrayLike, u_max: int, *, weight: ArrayLike | None = None
) -> Float[Array, " U1"]:
    """Takes the Kaplan-Meier curve as the law: `[u_max + 1]` values P(X > u), u = 0..u_max.

    Choose `u_max` at or above the longest stay, or the curve is cut before its end.
    """
    los, event, weight = check_stays(los, event, weight)
    return kaplan_meier(los, event, day_grid(u_max, los.dtype), weight=weight)


def scaled_law(
    surv: Float[Array, " U1"], mu: Float[ArrayLike, "..."], *, mean: ArrayLike | None = None
) -> Float[Array, "... U1"]:
    """Stretches an empirical law in time to the mean mu: S(u | mu) = S(u mean / mu).

    Takes `surv` at u = 0..U, linear between days and constant beyond U, and the wanted means `mu`,
    days; `mean` is by default that of the linear curve, its area. Returns `[..., U + 1]`.
    """
    days = jnp.arange(surv.shape[0], dtype=surv.dtype)
    mean = jnp.trapezoid(surv) if mean is None else jnp.asarray(mean, surv.dtype)
    times = jnp.multiply.outer(mean / jnp.asarray(mu, surv.dtype), days)
    return jnp.interp(times, days, surv)


def check_stays(los, event, weight) -> tuple[Array, Array, Array]:
    """Casts stays, event indicators and weights to one float dtype and checks their shapes."""
    los = jnp.asarray(los)
    if not jnp.issubdtype(los.dtype, jnp.floating):
        los = los.astype(jnp.result_type(float))
    event = jnp.asarray(event).astype(bool).astype(los.dtype)
    weight = jnp.ones_like(los) if weight is None else jnp.asarray(weight).astype(los.dtype)
    if los.ndim != 1 or los.size == 0 or not los.shape == event.shape == weight.shape:
        raise ValueError(
            "los, event and weight must be non-empty arrays of one shape [N], got "
            f"{los.shape}, {event.shape} and {weight.shape}; vmap over sites"
        )
    return los, event, weight


def day_grid(u_max: int, dtype) -> Array:
    if u_max < 1:
        raise ValueError(f"u_max must be at least 1 day, got {u_max}")
    return jnp.arange(u_max + 1, dtype=dtype)


def sort_stays(time: Array, event: Array, weight: Array, *more: Array) -> tuple[Array, ...]:
    """Sorts by stay, discharges before censored stays of equal length, weightless stays last."""
    time = jnp.where(weight > 0, time, jnp.inf)
    time, censored, weight, *rest = lax.sort((time, 1 - event, weight, *more), num_keys=2)
    return time, 1 - censored, jnp.where(weight > 0, weight, 0.0), *rest


def product_limit(event: Array, weight: Array) -> Array:
    """Computes survival just after each of the sorted stays.

    Tied discharges need no grouping: their factors (n - 1)/n, (n - 2)/(n - 1), ... telescope.
    """
    at_risk = lax.cumsum(weight, reverse=True)
    return lax.cumprod(1 - event * weight / jnp.where(at_risk > 0, at_risk, 1.0))


def step_function(time: Array, km: Array, grid: Array) -> Array:
    km = jnp.concatenate([jnp.ones_like(km[:1]), km])
    return km[jnp.searchsorted(time, grid, side="right")]


def rmse(squared: Array, grid: Array, last: Array) -> Array:
    mask = grid[None] <= last.astype(grid.dtype)[:, None]
    return jnp.sqrt(jnp.mean(squared, axis=1, where=mask))


def kolmogorov_smirnov(after: Array, before: Array, km: Array) -> Array:
    """Computes sup |S - KM|, attained just before or just after an observed stay."""
    km_before = jnp.concatenate([jnp.ones_like(km[:1]), km[:-1]])
    return jnp.max(jnp.maximum(jnp.abs(after - km), jnp.abs(before - km_before)))


def anderson_darling(log_sf: Array, km: Array) -> Array:
    """Computes int (S - KM)^2 / (S (1 - S)) dF over the intervals on which KM is constant.

    By its antiderivative, or by three-point Gauss-Legendre where that would cancel (narrow ones).
    """
    right = jnp.clip(log_sf, -1e9, -float(jnp.finfo(log_sf.dtype).tiny))
    left = jnp.concatenate([jnp.zeros_like(right[:1]), right[:-1]])
    before = jnp.concatenate([jnp.ones_like(km[:1]), km[:-1]])
    surv_left, surv_right, cdf_left = jnp.exp(left), jnp.exp(right), -jnp.expm1(left)
    width = surv_left - surv_right

    narrow = width < 0.1 * jnp.minimum(cdf_left, surv_right)
    gauss = jnp.zeros_like(width)
    for node, weight in ((-math.sqrt(0.6), 5), (0.0, 8), (math.sqrt(0.6), 5)):
        shift = 0.5 * (1 + node) * width
        surv, cdf = surv_left - shift, cdf_left + shift
        gauss += weight / 18 * width * (surv - before) ** 2 / jnp.where(narrow, surv * cdf, 1.0)

    log_cdf = jax.nn.log1mexp(-right)
    log_cdf_left = jnp.concatenate([jnp.zeros_like(log_cdf[:1]), log_cdf[:-1]])  # 1 - KM = 0 there
    exact = (1 - before) ** 2 * (log_cdf - log_cdf_left) + before**2 * (left - right) - width
    # Beyond the longest stay KM = 0, unless that stay is censored: then the integral ends there.
    tail = jnp.where(km[-1] <= 0, -log_cdf[-1] - surv_right[-1], 0.0)
    return jnp.sum(jnp.where(narrow, gauss, exact)) + tail
