"""Utilization of a number of beds, per site and for a system of sites.

Paper: Akbari-Moghaddam et al. 2025, arXiv:2510.02852, Table 4.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing.stays import conditional

Tree = TypeVar("Tree")


class UtilMetrics(NamedTuple):
    """Utilization 100 occupancy / beds over days, percent.

    Attributes:
        mean: mean over days.
        sd: sample standard deviation over days.
        pct_over: percent of days above `high`.
        mean_excess: mean distance above `high` on those days, 0 if there is none.
        pct_under: percent of days below `low`.
        mean_shortfall: mean distance below `low` on those days, 0 if there is none.
    """

    mean: Float[Array, "..."]
    sd: Float[Array, "..."]
    pct_over: Float[Array, "..."]
    mean_excess: Float[Array, "..."]
    pct_under: Float[Array, "..."]
    mean_shortfall: Float[Array, "..."]


def utilization_metrics(
    occ: Float[Array, " T"] | Int[Array, " T"],
    beds: Int[Array, ""] | Float[Array, ""] | float,
    *,
    low: float = 70.0,
    high: float = 100.0,
    mask: Bool[Array, " T"] | None = None,
) -> UtilMetrics:
    """Computes the utilization metrics of one site.

    Args:
        occ: `[T]` daily occupancy, patients.
        beds: capacity, > 0.
        low: under-use threshold, percent.  high: overflow threshold, percent.
        mask: `[T]` days that count, all by default.

    Returns:
        Scalars. NaN everywhere if beds is traced and <= 0, or no day counts; `sd` is NaN if fewer
        than two do.

    Raises:
        ValueError: if beds is concrete and <= 0, or the mask has another shape.

    Source: arXiv:2510.02852, utilization tables.
    """
    if not isinstance(beds, Tracer) and np.any(np.asarray(beds) <= 0):
        raise ValueError(f"beds must be positive, got {beds}")
    (occ,) = conditional.as_floats(occ)
    mask = jnp.ones(occ.shape, bool) if mask is None else mask
    if occ.ndim != 1 or mask.shape != occ.shape:
        raise ValueError(
            f"occ and mask must be [T], got {occ.shape} and {mask.shape}; vmap over sites"
        )
    beds = jnp.asarray(beds).astype(occ.dtype)
    beds = jnp.where(beds > 0.0, beds, jnp.nan)
    percent = jnp.where(mask, 100.0 * occ / beds, 0.0)
    # Compared without a division: 100 B / B may round to more than 100.
    over = mask & (100.0 * occ > high * beds)
    under = mask & (100.0 * occ < low * beds)
    num_days = _count(mask, occ.dtype)
    mean = jnp.sum(percent) / num_days
    square = jnp.sum(jnp.where(mask, (percent - mean) ** 2, 0.0))
    blank = 0.0 * mean  # NaN if the mean is
    return UtilMetrics(
        mean=mean,
        sd=jnp.sqrt(square / jnp.where(num_days > 1.0, num_days - 1.0, jnp.nan)),
        pct_over=100.0 * _count(over, occ.dtype) / num_days + blank,
        mean_excess=_mean_on(over, percent - high) + blank,
        pct_under=100.0 * _count(under, occ.dtype) / num_days + blank,
        mean_shortfall=_mean_on(under, low - percent) + blank,
    )


def system_weighted(metrics: Tree, weights: Float[Array, " I"]) -> tuple[Tree, Tree]:
    """Computes weighted mean and weighted standard deviation between sites of site metrics.

    The deviation, sqrt(sum w (x - mean)^2) with weights that sum to one, is that of the site
    means: it is not a pooled deviation over days.

    Args:
        metrics: any pytree of `[I, ...]` arrays, such as a vmapped `UtilMetrics`.
        weights: `[I]` >= 0, for example admissions per site; normalized here.

    Returns:
        `(mean, sd)`, each like `metrics` without the site axis.

    Source: arXiv:2510.02852, Table 4, "weighted system" row.
    """

    metrics = jax.tree.map(lambda x: conditional.as_floats(x)[0], metrics)
    weights = jnp.asarray(weights)

    def mean(x):
        w = weights.astype(x.dtype).reshape(weights.shape + (1,) * (x.ndim - 1))
        return jnp.sum(jnp.broadcast_to(w, x.shape) * x, axis=0) / jnp.sum(w)

    def sd(x):
        return jnp.sqrt(mean((x - jnp.broadcast_to(mean(x)[None], x.shape)) ** 2))

    return jax.tree.map(mean, metrics), jax.tree.map(sd, metrics)


def _count(mask, dtype):
    return jnp.sum(mask).astype(dtype)


def _mean_on(mask, x):
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(_count(mask, x.dtype), 1.0)
