"""Each site's own window of days inside the days of all sites.

A unit that opened later has no days before it existed. Its series are moved to the front, so that
day 0 is the first of its own, and back to the calendar when they are done; one program serves all
windows. arXiv:2510.02852 analyzes each unit from its first to its last admission.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

Windows = Int[Array, "I 2"]
"""First and last day of each site's window, both included."""


def sizes(windows: Windows) -> Int[Array, " I"]:
    """Returns the number of days of each window."""
    return windows[:, 1] - windows[:, 0] + 1


def inside(windows: Windows, num_days: int) -> Bool[Array, "I T"]:
    """Returns which days of the calendar are in each site's window."""
    day = jnp.arange(num_days, dtype=jnp.int32)[None]
    return (day >= windows[:, :1]) & (day <= windows[:, 1:])


def to_own_days(x: Shaped[Array, "I T *D"], windows: Windows) -> Shaped[Array, "I T *D"]:
    """Moves each row so that the first day of its window comes first; days go round."""
    return _roll(x, windows[:, 0])


def to_calendar(x: Shaped[Array, "I T *D"], windows: Windows) -> Shaped[Array, "I T *D"]:
    """Undoes `to_own_days`."""
    return _roll(x, -windows[:, 0])


def fill(x: Float[Array, "I T"], counted: Bool[Array, "I T"], *, days: int) -> Float[Array, "I T"]:
    """Puts the mean of a row's first `days` days in place of days that do not count.

    Args:
        x: `[I, T]` series on own days.  counted: `[I, T]` days in the window.
        days: how many days the mean is taken over, at most.
    """
    first = counted & (jnp.arange(x.shape[1], dtype=jnp.int32) < days)[None]
    total = jnp.sum(jnp.where(first, x, 0.0), axis=1)
    mean = total / jnp.maximum(jnp.sum(first, axis=1).astype(x.dtype), 1.0)
    return jnp.where(counted, x, mean[:, None])


def _roll(x, days):
    num_days = x.shape[1]
    source = (jnp.arange(num_days, dtype=jnp.int32)[None] + days[:, None]) % num_days
    source = source.reshape(source.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, source, axis=1)
