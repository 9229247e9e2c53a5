"""What tabular learners share: where a batch of transitions meets its tables."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab import envs
from jaxlab.envs import spaces

Index = Callable[[Float[Array, "E N O"]], Int[Array, " E"]]
"""`index(obs) -> state`, such as `functools.partial(envs.state_of, game)` or `envs.ball_index`."""
FEW = 64
"""Entries of a table up to which a batch is added to it by a product."""


def check(env: envs.Env, index: Index, num_states: int) -> tuple[int, int]:
    """Returns the numbers of agents and actions; refuses what tables cannot hold.

    Raises:
        ValueError: if the environment has no agents, its action is not one choice, or `index` does
            not give a state for each of its episodes.
    """
    if env.num_agents is None or not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(
            f"{env.name}: tables need agents with one choice each, got num_agents "
            f"{env.num_agents} and {env.action_space}"
        )
    if not spaces.is_count(num_states):
        raise ValueError(f"num_states must be at least 1, got {num_states!r}")
    start = jax.eval_shape(env.reset, jax.random.key(0))
    state = jax.eval_shape(index, start.obs)
    if getattr(state, "shape", None) != (env.num_envs,) or state.dtype != jnp.int32:
        raise ValueError(
            f"{env.name}: index must give int32 ({env.num_envs},) for observations of "
            f"{start.obs.shape}, got {state}"
        )
    return env.num_agents, env.action_space.num


def allowed(env: envs.Env, mask: Bool[Array, "E N A"] | tuple, num: int) -> Bool[Array, "E N A"]:
    """Returns which actions are there: all where there is no mask, or a mask allows none at all."""
    assert env.num_agents is not None
    if isinstance(mask, tuple):
        return jnp.ones((env.num_envs, env.num_agents, num), bool)
    return mask | ~jnp.any(mask, axis=-1, keepdims=True)


def rows(table: Float[Array, "N S ..."], state: Int[Array, " E"]) -> Float[Array, "E N ..."]:
    """Returns every agent's row of each state."""
    if table.shape[1] == 1:
        return jnp.broadcast_to(table[None, :, 0], (*state.shape, table.shape[0], *table.shape[2:]))
    return jnp.swapaxes(table[:, state], 0, 1)


def draw(key: jax.Array, probs: Float[Array, "... A"]) -> Int[Array, "..."]:
    """Draws an index for each row, with one random number; never one without a probability."""
    total = jnp.cumsum(probs, axis=-1)
    u = jax.random.uniform(key, probs.shape[:-1], probs.dtype) * total[..., -1]
    found = jnp.sum(u[..., None] >= total, axis=-1, dtype=jnp.int32)
    return jnp.minimum(found, jnp.argmax(total, axis=-1).astype(jnp.int32))


def add_means(
    table: Float[Array, "..."], where: tuple[Int[Array, "..."], ...], change: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Adds to every entry that was visited the mean of its changes.

    Args:
        table: any table.
        where: indices of its first axes, broadcast to one shape; entries may occur repeatedly.
        change: one for each index, with the table's remaining axes.
    """
    if change.shape[0] == 1:
        return table.at[where].add(change)
    lead, rest = table.shape[: len(where)], table.shape[len(where) :]
    num = math.prod(lead)
    flat = jnp.zeros((), jnp.int32)
    for size, index in zip(lead, where, strict=True):
        flat = flat * size + index
    flat, change = flat.reshape(-1), change.reshape(-1, *rest)
    if num <= FEW:  # a product is faster than a scatter then
        visits = jax.nn.one_hot(flat, num, dtype=table.dtype)
        count, total = jnp.sum(visits, axis=0), jnp.tensordot(visits, change, axes=(0, 0))
    else:
        count = jnp.zeros((num,), table.dtype).at[flat].add(1.0)
        total = jnp.zeros((num, *rest), table.dtype).at[flat].add(change)
    mean = total / jnp.maximum(count, 1.0).reshape((num,) + (1,) * len(rest))
    return table + mean.reshape(table.shape)
