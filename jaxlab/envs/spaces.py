"""Action spaces: intervals, one choice, several choices; plain static records.

Example:
    >>> space = spaces.MultiDiscrete((3, 2))
    >>> spaces.size(space), spaces.num_logits(space)
    (2, 5)
"""

import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool


class Box(NamedTuple):
    """Real numbers within bounds.

    Attributes:
        low: The least value of each dimension, finite.
        high: The greatest value of each dimension, above `low`.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]


class Discrete(NamedTuple):
    """One choice among 0, ..., num - 1.

    Attributes:
        num: The number of choices, at least 1.
    """

    num: int


class MultiDiscrete(NamedTuple):
    """Several choices at once, each among 0, ..., n - 1 of its own.

    Attributes:
        nums: The number of choices of each component, at least 1.
    """

    nums: tuple[int, ...]


Space = Box | Discrete | MultiDiscrete


def size(space: Space) -> int:
    """Returns how many numbers one action is: dimensions, 1, or components."""
    match space:
        case Box():
            return len(space.low)
        case Discrete():
            return 1
        case MultiDiscrete():
            return len(space.nums)
    raise ValueError(_unknown(space))


def num_logits(space: Space) -> int:
    """Returns how many logits a categorical policy needs; components of several are concatenated.

    Raises:
        ValueError: If the space is a box, which has no logits.
    """
    return sum(choices(space))


def choices(space: Space) -> tuple[int, ...]:
    """Returns the number of choices of each component; a single choice is one component.

    Raises:
        ValueError: If the space is a box.
    """
    match space:
        case Discrete():
            return (space.num,)
        case MultiDiscrete():
            return space.nums
        case Box():
            raise ValueError(f"a box has no discrete choices, got {space}; give a policy of floats")
    raise ValueError(_unknown(space))


def shape(space: Space) -> tuple[int, ...]:
    """Returns the shape of one action: `[D]`, `[]` or `[K]`."""
    return () if isinstance(space, Discrete) else (size(space),)


def check(space: Any, name: str) -> None:
    """Refuses what is no space, or a space without actions.

    Args:
        space: What should be a Box, Discrete or MultiDiscrete.
        name: Of the task, for the message.

    Raises:
        ValueError: If a bound is infinite, reversed or missing, a number of choices is below 1, or
            a field is not static (tuples of Python numbers).
    """
    match space:
        case Box(low=low, high=high):
            if not (isinstance(low, tuple) and isinstance(high, tuple)):
                raise ValueError(
                    f"{name}: low and high must be tuples of floats, got {type(low).__name__} and "
                    f"{type(high).__name__}; write tuple(map(float, low))"
                )
            if not high:
                raise ValueError(f"{name}: a box must have at least one dimension, got {space}")
            if len(low) != len(high):
                raise ValueError(
                    f"{name}: bounds must be {len(high)} numbers each, got {low} and {high}"
                )
            if not all(map(math.isfinite, (*low, *high))):
                raise ValueError(
                    f"{name}: actions in [-1, 1] cannot be mapped to infinite bounds, got {low} to "
                    f"{high}; give the task finite ones"
                )
            if not all(map(operator.lt, low, high)):
                raise ValueError(f"{name}: low must be below high, got {low} and {high}")
        case Discrete(num=num):
            if not is_count(num):
                raise ValueError(
                    f"{name}: num must be an integer of at least 1, got {num!r} in {space}"
                )
        case MultiDiscrete(nums=nums):
            if not (isinstance(nums, tuple) and nums and all(map(is_count, nums))):
                raise ValueError(
                    f"{name}: nums must be a tuple of integers of at least 1, got {nums!r}"
                )
        case _:
            raise ValueError(f"{name}: {_unknown(space)}")


def to_task(space: Space, action: jax.Array) -> tuple[jax.Array, Bool[Array, ""]]:
    """Maps an action of an environment to the task's own, and says whether it is one.

    Args:
        space: The space of each agent's action.
        action: `[..., D]` floats in [-1, 1] of a box, else integers `[...]` or `[..., K]`.

    Returns:
        The action that a task takes, and a bool `[]`. Floats are mapped to the bounds and not
        clipped; all of them are valid. A choice out of range is not valid: what is returned in its
        place is the nearest choice, so that the task may be run and its result thrown away.
    """
    if isinstance(space, Box):
        low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
        middle, reach = (
            jnp.broadcast_to(jnp.asarray(x, action.dtype), action.shape)
            for x in ((low + high) / 2, (high - low) / 2)
        )
        return middle + reach * action, jnp.ones((), bool)
    narrow = action.astype(jnp.int32)
    nums = jnp.asarray(space.num if isinstance(space, Discrete) else space.nums, jnp.int32)
    last = jnp.broadcast_to(nums - 1, action.shape)
    nearest = jnp.clip(narrow, 0, last)
    # The way back catches what does not fit into 32 bits.
    return nearest, jnp.all((nearest == narrow) & (narrow.astype(action.dtype) == action))


def sample(key: jax.Array, space: Space, lead: tuple[int, ...] = (), mask: Any = ()) -> jax.Array:
    """Draws actions of an environment uniformly, of those that are allowed.

    Args:
        key: PRNG key of all draws.
        space: The space of one action.
        lead: The axes before those of one action, such as `(num_envs,)` or `(num_envs, agents)`.
        mask: `[*lead, num_logits]` bool, True where a choice is allowed; `()` allows all.

    Returns:
        `[*lead, D]` float32 in [-1, 1] of a box; `[*lead]` or `[*lead, K]` int32 of choices.
    """
    if isinstance(space, Box):
        return jax.random.uniform(key, (*lead, size(space)), minval=-1.0, maxval=1.0)
    counts = choices(space)
    logits = jnp.zeros((*lead, sum(counts)))
    if not isinstance(mask, tuple):
        logits = jnp.where(mask, logits, -jnp.inf)
    parts = jnp.split(logits, np.cumsum(counts)[:-1].tolist(), axis=-1)
    keys = jax.random.split(key, len(counts))
    drawn = [jax.random.categorical(k, x) for k, x in zip(keys, parts, strict=True)]
    drawn = [x.astype(jnp.int32) for x in drawn]
    return drawn[0] if isinstance(space, Discrete) else jnp.stack(drawn, axis=-1)


def is_count(number: Any) -> bool:
    """Says whether this is an integer of at least 1."""
    is_integer = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return is_integer and int(number) >= 1


def _unknown(space: Any) -> str:
    return f"an action space must be Box, Discrete or MultiDiscrete, got {space!r}"
