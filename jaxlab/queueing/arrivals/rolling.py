"""Variances that change with time, from the spread of a residual in a rolling window.

Source: arXiv:2510.02852, variance of the length of stay.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.queueing.arrivals import series

MIN_VARIANCE = 1e-6
"""Least length-of-stay variance, days^2."""


def rolling_sd(
    resid: Float[Array, "*B T"], window: int, *, size: Int[Array, "*B"] | None = None
) -> Float[Array, "*B T"]:
    """Computes the centered rolling sample SD; near the ends the window keeps what lies inside.

    Args:
        resid: `[..., T]` float, T >= 2.
        window: odd number of steps, >= 3.
        size: `[...]` number of steps that count, 2..T, from the first on; all by default.

    Returns:
        `[..., T]` SD with divisor (number of points - 1); zero beyond `size`.

    Raises:
        ValueError: if the window is even or below 3, T < 2, or a known size is out of range.

    Source: arXiv:2510.02852, variance of the length of stay.
    """
    series.check_span("window", window)
    num_steps = resid.shape[-1]
    if num_steps < 2:
        raise ValueError(f"a standard deviation needs T >= 2 steps, got {num_steps}")
    series.check_size(size, resid, 2)
    steps = np.arange(num_steps, dtype=np.int32)
    position = steps[:, None] + np.arange(window, dtype=np.int32) - window // 2
    place = np.clip(position, 0, num_steps - 1)

    def one(x: Float[Array, " T"], last: Int[Array, ""] | int) -> Float[Array, " T"]:
        inside = (position >= 0) & (position < last) & (steps < last)[:, None]
        count = jnp.sum(inside, axis=-1).astype(x.dtype)
        mean = jnp.sum(jnp.where(inside, x[place], 0.0), axis=-1) / jnp.maximum(count, 1.0)
        deviation = jnp.where(inside, x[place] - mean[:, None], 0.0)
        variance = jnp.sum(deviation**2, axis=-1) / jnp.maximum(count - 1.0, 1.0)
        positive = variance > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)

    if size is None:
        return series.over_last_axis(lambda x: one(x, num_steps))(resid)
    found = jax.vmap(one)(resid.reshape(-1, num_steps), jnp.asarray(size, jnp.int32).reshape(-1))
    return found.reshape(resid.shape)


def rolling_variance_select(
    resid: Float[Array, "*B T"],
    *,
    windows: tuple[int, ...] = (7, 15, 31),
    size: Int[Array, "*B"] | None = None,
) -> tuple[Float[Array, "*B T"], Int[Array, "*B"]]:
    """Estimates a time-varying variance with the window whose rolling SD is most stable.

    Stability is the coefficient of variation (SD / mean over time) of the rolling SD: the least
    wins, and the longer window wins ties.

    Args:
        resid: `[..., T]` residual of daily mean length of stay, days.
        windows: odd candidate windows, days.
        size: `[...]` number of days that count, from the first on; all by default.

    Returns:
        `(sig2, window)`: variance `[..., T]`, days^2, at least `MIN_VARIANCE`; chosen window
        `[...]`, int32.

    Raises:
        ValueError: as `rolling_sd`, or if there is no window.

    Source: arXiv:2510.02852, variance of the length of stay.
    """
    if not windows:
        raise ValueError("windows must hold at least one odd number, got none")
    longest_first = sorted(windows, reverse=True)
    sd = jnp.stack([rolling_sd(resid, window, size=size) for window in longest_first])
    inside = None if size is None else jnp.broadcast_to(series.step_mask(resid, size), sd.shape)
    mean = jnp.mean(sd, axis=-1, where=inside)
    positive = mean > 0
    spread = jnp.std(sd, axis=-1, where=inside)
    score = jnp.where(positive, spread / jnp.where(positive, mean, 1.0), 0.0)
    chosen = jnp.argmin(score, axis=0)
    best_sd = jnp.take_along_axis(sd, chosen[None, ..., None], axis=0)[0]
    window = jnp.asarray(longest_first, jnp.int32)[chosen]
    return jnp.maximum(best_sd**2, MIN_VARIANCE), window
