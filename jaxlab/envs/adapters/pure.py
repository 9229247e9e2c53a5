"""What the adapters of other JAX libraries share: flat observations, carried types, spaces."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.core.types import PyTree
from jaxlab.envs import spaces


def flat(obs: Any) -> Float[Array, " O"]:
    """Returns an array of any shape and kind as one axis of floats; integers become float32."""
    obs = jnp.asarray(obs)
    return obs.reshape(-1).astype(
        obs.dtype if jnp.issubdtype(obs.dtype, jnp.floating) else jnp.float32
    )


def carried(reset: Callable, step: Callable, action: jax.ShapeDtypeStruct) -> Callable:
    """Returns `reset` with its results in the types that `step` gives, which are those that last.

    Libraries begin with Python numbers, or with a float where a bool follows. Trees and shapes are
    left alone: where they differ, `make_env` says so.
    """

    def settled(key: jax.Array) -> PyTree:
        start = reset(key)
        after = jax.eval_shape(step, start[0], action)[:2]
        if jax.tree.structure(start) != jax.tree.structure(after):
            return start
        return jax.tree.map(_cast, start, after)

    return settled


def action_space(name: str, space: Any) -> spaces.Space:
    """Returns the counterpart of a space of gymnax or JaxMARL, told by its fields.

    Raises:
        ValueError: If there is none, or a bound is infinite.
    """
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    if hasattr(space, "num_categories"):
        return spaces.MultiDiscrete(tuple(int(n) for n in np.asarray(space.num_categories)))
    if hasattr(space, "low") and hasattr(space, "high"):
        low, high = (
            tuple(map(float, np.broadcast_to(np.asarray(x), space.shape).reshape(-1)))
            for x in (space.low, space.high)
        )
        ours = spaces.Box(low, high)
        spaces.check(ours, name)
        return ours
    raise ValueError(
        f"{name}: an action must be Box, Discrete or MultiDiscrete, got {space}; wrap the "
        "environment"
    )


def action_struct(space: spaces.Space, lead: tuple[int, ...] = ()) -> jax.ShapeDtypeStruct:
    """Returns the shape and type of a task's action, before any is there."""
    dtype = jnp.float32 if isinstance(space, spaces.Box) else jnp.int32
    return jax.ShapeDtypeStruct(lead + spaces.shape(space), dtype)


def size(struct: Any) -> int:
    """Returns the numbers of an array of this shape."""
    return math.prod(struct.shape)


def _cast(x: Any, like: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if x.dtype == like.dtype else x.astype(like.dtype)
