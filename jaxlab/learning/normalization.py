"""Running mean and variance of observations, for inputs of very different sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class ObsStats(NamedTuple):
    """Moments of all observations so far.

    Attributes:
        count: how many.  mean, square: `[O]`, mean and mean squared deviation.
    """

    count: Float[Array, ""]
    mean: Float[Array, " O"]
    square: Float[Array, " O"]


def init_obs_stats(obs_size: int) -> ObsStats:
    """No observation yet: mean 0, variance 1."""
    return ObsStats(jnp.zeros(()), jnp.zeros((obs_size,)), jnp.ones((obs_size,)))


def update_obs_stats(stats: ObsStats, obs: Float[Array, "B O"]) -> ObsStats:
    """Joins the moments of a batch to those before it.

    Source: Chan, Golub and LeVeque 1983, the pairwise update.
    """
    batch = obs.shape[0]
    total = stats.count + batch
    mean = jnp.mean(obs, axis=0)
    away = mean - stats.mean
    old, new = stats.count / total, batch / total
    square = old * stats.square + new * jnp.var(obs, axis=0) + old * new * away**2
    return ObsStats(total, stats.mean + new * away, square)


def normalize_obs(
    stats: ObsStats | tuple[()], obs: Float[Array, "... O"], *, bound: float = 10.0
) -> Float[Array, "... O"]:
    """Returns (obs - mean) / std within [-bound, bound]; `obs` itself without statistics."""
    if not isinstance(stats, ObsStats):
        return obs
    shape = (1,) * (obs.ndim - 1) + (-1,)
    scale = jax.lax.rsqrt(stats.square + 1e-8)
    scaled = (obs - stats.mean.reshape(shape)) * scale.reshape(shape)
    return jnp.clip(scaled, -bound, bound)
