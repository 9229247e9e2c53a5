"""Running mean and variance of observations, for inputs of very different sizes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import PyTree

LEAST_STD = 1e-4
"""Floor of the standard deviation that observations are divided by."""


class ObsStats(NamedTuple):
    """Moments of all observations so far, in float32 or wider.

    Attributes:
        count: int32, observations counted; beyond 2^31 - 1 it stays there, and the moments become
            running averages over about so many.
        mean: `[*O]`, their mean.
        rest: `[*O]`, what rounding leaves out of `mean`: observations of 1e6 +- 1 keep their
            spread in float32.
        square: `[*O]`, their mean squared deviation from the mean; 1 before the first.
    """

    count: Int[Array, ""]
    mean: Float[Array, "*O"]
    rest: Float[Array, "*O"]
    square: Float[Array, "*O"]


def init_obs_stats(shape: int | tuple[int, ...], dtype: Any = jnp.float32) -> ObsStats:
    """Returns the moments of no observation yet: mean 0, variance 1.

    Args:
        shape: of one observation; a number for a flat one.
        dtype: of the observations; moments of narrow ones are float32.
    """
    dtype = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
    zeros = jnp.zeros(shape, dtype)
    return ObsStats(jnp.zeros((), jnp.int32), zeros, zeros, jnp.ones(shape, dtype))


def update_obs_stats(stats: PyTree, obs: PyTree, keep: Bool[Array, " B"] | None = None) -> PyTree:
    """Joins the moments of a batch to those before it.

    Args:
        stats: an `ObsStats`, or a dict of them for a dict of observations.
        obs: `[B, *O]`, or a dict of such.
        keep: `[B]` bool, the rows to count; all by default. Rows with a NaN, an infinity, or a
            number whose square overflows are never counted.

    Source: Chan, Golub and LeVeque 1983, the pairwise update, with a compensated mean.
    """
    return jax.tree.map(lambda s, x: _update(s, x, keep), stats, obs, is_leaf=_is_stats)


def _update(stats: ObsStats, obs: Float[Array, "B ..."], keep: Any) -> ObsStats:
    obs = obs.astype(stats.mean.dtype)
    features = tuple(range(1, obs.ndim))
    sound = jnp.all(jnp.isfinite(obs * obs), axis=features)
    keep = sound if keep is None else keep & sound
    kept = jnp.sum(keep, dtype=jnp.int32)
    before = jnp.minimum(stats.count, jnp.iinfo(jnp.int32).max - obs.shape[0])
    total = before + kept
    share = kept.astype(obs.dtype) / jnp.maximum(total, 1).astype(obs.dtype)

    # Differences from the mean so far, or from the first row, keep the digits that large offsets
    # have in common out of all sums.
    pivot = jnp.where(stats.count > 0, stats.mean, obs[jnp.argmax(keep)])
    pivot = jnp.where(total > 0, pivot, stats.mean)
    counted = keep.reshape((-1,) + (1,) * len(features))
    away = jnp.where(counted, obs - pivot[None], 0.0)
    some = jnp.maximum(kept, 1).astype(obs.dtype)
    batch_mean = jnp.sum(away, axis=0) / some
    batch_square = jnp.sum(jnp.where(counted, (away - batch_mean[None]) ** 2, 0.0), axis=0) / some

    moved = batch_mean - stats.rest
    mean, rest = _two_sum(pivot, stats.rest + share * moved)
    between = ((1.0 - share) * moved) * moved
    # The 1 before the first row would leave its rounding in small variances.
    square = jnp.where((before == 0) & (kept > 0), batch_square, stats.square)
    square = square + share * ((batch_square - square) + between)
    return ObsStats(total, mean, rest, square)


def normalize_obs(stats: PyTree, obs: PyTree, *, bound: float = 10.0) -> PyTree:
    """Returns (obs - mean) / std within [-bound, bound]; `obs` itself without statistics.

    The standard deviation is at least `LEAST_STD`, and at least what rounding alone makes of
    numbers as large as the mean: a feature that never moves is 0, and its noise stays small.

    Args:
        stats: see `update_obs_stats`; `()` for none.
        obs: `[..., *O]`, or a dict of such. What comes out has its dtype, float32 for integers.
        bound: the largest number that comes out.
    """
    if isinstance(stats, tuple) and not _is_stats(stats):
        return obs
    return jax.tree.map(lambda s, x: _normalize(s, x, bound), stats, obs, is_leaf=_is_stats)


def _normalize(stats: ObsStats, obs: jax.Array, bound: float) -> jax.Array:
    floats = jnp.issubdtype(obs.dtype, jnp.floating)
    dtype = obs.dtype if floats else stats.mean.dtype
    rounding = float(jnp.finfo(dtype).eps) * jnp.abs(stats.mean)
    std = jnp.maximum(jnp.sqrt(stats.square), jnp.maximum(rounding, LEAST_STD))
    lead = (1,) * (obs.ndim - stats.mean.ndim)
    mean, rest, std = (x.reshape(lead + x.shape) for x in (stats.mean, stats.rest, std))
    scaled = ((obs.astype(mean.dtype) - mean) - rest) / std
    return jnp.clip(scaled, -bound, bound).astype(dtype)


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a + b rounded, and what the rounding left out (Knuth 1969, exactly)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _is_stats(x: Any) -> bool:
    return isinstance(x, ObsStats)
