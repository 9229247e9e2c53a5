"""Estimates over seeds with bootstrap intervals, and paired comparison of two methods.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Interval(NamedTuple):
    """A point estimate with a confidence interval."""

    estimate: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]


class Comparison(NamedTuple):
    """Method `a` against method `b` on the same seeds.

    Attributes:
        difference: mean of `a - b` over seeds, with its bootstrap interval.
        probability_of_improvement: share of seeds with `a > b`, ties counted half.
        p_value: two-sided sign-flip permutation test of "no difference".
    """

    difference: Interval
    probability_of_improvement: Float[Array, ""]
    p_value: Float[Array, ""]


def iqm(x: Float[Array, " N"]) -> Float[Array, ""]:
    """Computes the interquartile mean: the mean without the lowest and highest `floor(N / 4)`."""
    cut = x.shape[0] // 4
    return jnp.mean(jnp.sort(x)[cut : x.shape[0] - cut])


def bootstrap_interval(
    key: jax.Array,
    x: Float[Array, "..."],
    *,
    statistic: Callable = jnp.mean,
    level: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """Estimates `statistic` with a percentile bootstrap interval over seeds.

    Args:
        key: typed PRNG key.
        x: `[N]` one value per seed, or `[K, N]` for `K` tasks: then seeds are resampled within each
            task (stratified) and the statistic is taken over all `K * N` values.
        statistic: maps a flat array to a scalar, e.g. `jnp.mean`, `iqm`.
        level: coverage in (0, 1).
        num_resamples: bootstrap resamples.

    Raises:
        ValueError: if there are fewer than 2 seeds, or `level` lies outside (0, 1).

    Source: Efron 1979; stratified over tasks as in Agarwal et al. 2021, section 4.
    """
    if x.ndim not in (1, 2) or x.shape[-1] < 2:
        raise ValueError(
            f"x must be [seeds] or [tasks, seeds] with 2 seeds or more, got {x.shape}."
        )
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    tasks = x.reshape(-1, x.shape[-1])

    def resampled(key: jax.Array) -> jax.Array:
        idx = jax.random.randint(key, tasks.shape, 0, tasks.shape[1])
        return statistic(jnp.take_along_axis(tasks, idx, axis=1).reshape(-1))

    draws = jax.lax.map(resampled, jax.random.split(key, num_resamples))
    tail = (1.0 - level) / 2.0
    low, high = jnp.quantile(draws, jnp.asarray([tail, 1.0 - tail], x.dtype))
    return Interval(statistic(tasks.reshape(-1)), low, high)


def compare_paired(
    key: jax.Array,
    a: Float[Array, " N"],
    b: Float[Array, " N"],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
) -> Comparison:
    """Compares two methods run on the same seeds.

    Args:
        key: typed PRNG key.
        a: `[N]` one value per seed.
        b: `[N]` the other method on the same seeds.
        level: coverage of the interval of the mean difference, in (0, 1).
        num_resamples: bootstrap resamples, and random sign flips of the permutation test.

    Raises:
        ValueError: if the shapes differ or there are fewer than 2 seeds.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a and b must be one value per seed, got {a.shape} and {b.shape}.")
    difference = a - b
    key_bootstrap, key_flip = jax.random.split(key)
    interval = bootstrap_interval(
        key_bootstrap, difference, level=level, num_resamples=num_resamples
    )
    signs = jax.random.rademacher(key_flip, (num_resamples, *a.shape), a.dtype)
    flipped = jnp.abs(jnp.mean(signs * difference[None], axis=1))
    # A flip that equals the observation up to rounding counts as being as extreme.
    threshold = jnp.abs(interval.estimate) * (1.0 - 16.0 * jnp.finfo(a.dtype).eps)
    extreme = jnp.sum(flipped >= threshold).astype(a.dtype)
    better = jnp.mean((difference > 0).astype(a.dtype) + 0.5 * (difference == 0).astype(a.dtype))
    return Comparison(interval, better, (extreme + 1.0) / (num_resamples + 1.0))
