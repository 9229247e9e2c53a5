"""Replay on the device: a ring of transitions, written in place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxlab.core.types import PyTree


class Replay(NamedTuple):
    """A ring buffer.

    Attributes:
        data: transitions, each leaf `[capacity, ...]`.
        position: int32, where the next batch is written.
        size: int32, how many transitions there are.
    """

    data: PyTree
    position: Int[Array, ""]
    size: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """Most transitions it holds."""
        return jax.tree.leaves(self.data)[0].shape[0]


def init(capacity: int, example: PyTree, *, batch: int = 1) -> Replay:
    """Makes an empty buffer.

    Args:
        capacity: most transitions, a multiple of `batch`.
        example: one transition, arrays or shapes; its values are not used.
        batch: transitions that are added at a time.

    Raises:
        ValueError: if the capacity is not a positive multiple of the batch: a write would wrap.
    """
    if capacity < 1 or batch < 1 or capacity % batch:
        raise ValueError(
            f"capacity must be a positive multiple of the {batch} transitions added at a time, got "
            f"{capacity}"
        )
    data = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return Replay(data, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def add(replay: Replay, transitions: PyTree) -> Replay:
    """Adds a batch over the oldest transitions; donate the buffer, or it is copied.

    Args:
        transitions: leaves `[batch, ...]`, as many as `init` was told.

    Raises:
        ValueError: if the capacity is no multiple of them, so that a write would wrap.
    """
    count = jax.tree.leaves(transitions)[0].shape[0]
    if replay.capacity % count:
        raise ValueError(
            f"capacity {replay.capacity} must be a multiple of the {count} transitions added"
        )
    data = jax.tree.map(
        lambda ring, x: jax.lax.dynamic_update_slice_in_dim(
            ring, x.astype(ring.dtype), replay.position, 0
        ),
        replay.data,
        transitions,
    )
    position = (replay.position + count) % replay.capacity
    size = jnp.minimum(replay.size + count, replay.capacity)
    return Replay(data, position, size)


def sample(key: jax.Array, replay: Replay, batch_size: int) -> tuple[PyTree, Int[Array, " B"]]:
    """Draws transitions with replacement, uniformly up to a share of size / 2^32.

    Returns:
        `(transitions [B, ...], index [B])`; of an empty buffer the zeros it was made of.
    """
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)
    index = (bits % jnp.maximum(replay.size, 1).astype(jnp.uint32)).astype(jnp.int32)
    return jax.tree.map(lambda ring: ring[index], replay.data), index


def write(replay: Replay, index: Int[Array, " B"], transitions: PyTree) -> Replay:
    """Puts transitions back where `sample` found them; of equal indices one wins."""
    data = jax.tree.map(lambda ring, x: ring.at[index].set(x), replay.data, transitions)
    return replay._replace(data=data)
