"""Brax environments, and whatever keeps its protocol: `reset(key)` and `step(state, action)`.

Source: the State of brax 0.14 (Freeman et al. 2021, arXiv:2106.13281).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.types import PyTree
from jaxlab.envs import spaces
from jaxlab.envs.adapters import pure
from jaxlab.envs.task import Task


def from_brax(env: Any, *, time_limit: int = 1000, actor_part: str | None = None) -> Task:
    """Makes a task of a brax environment.

    Brax's actions lie in [-1, 1]; it scales them itself. An end that brax marks as a truncation
    (`info["truncation"]`, by its EpisodeWrapper) is one here.

    Args:
        env: A brax environment without its wrappers for training, as
            `brax.envs.get_environment(name)` gives it: batches and new starts are `make_env`'s.
        time_limit: Steps of an episode; brax's own environments have no clock, and 1000 is what
            its training uses.
        actor_part: The part that the actor sees, where observations are a dict.

    Returns:
        A `Task`, to be run by `make_env`.

    Raises:
        ValueError: If the environment resets or batches itself.

    Example:
        >>> from brax import envs as brax_envs
        >>> task = envs.from_brax(brax_envs.get_environment("ant"))
        >>> env = envs.make_env(task, num_envs=16)
    """
    return carried_task(env, time_limit, actor_part)


def carried_task(env: Any, time_limit: int, actor_part: str | None) -> Task:
    """Makes a task of an environment whose state carries observation, reward and done."""
    inner, wrappers = env, []
    while inner is not None:
        wrappers.append(type(inner).__name__)
        inner = vars(inner).get("env")
    for wrapper in wrappers:
        if "AutoReset" in wrapper or "Vmap" in wrapper:
            raise ValueError(
                f"{wrappers[-1]}: make_env batches and starts anew by itself, got {wrapper}; give "
                "the environment without its wrappers for training"
            )

    def read(state: Any) -> PyTree:
        if isinstance(state.obs, jax.Array):
            return pure.flat(state.obs)
        return {name: pure.flat(part) for name, part in state.obs.items()}

    def start(key: jax.Array) -> tuple[PyTree, PyTree]:
        state = env.reset(key)
        return state, read(state)

    def step(state: Any, action: jax.Array) -> tuple:
        state = env.step(state, action)
        done = state.done.astype(bool)
        if "truncation" not in state.info:
            return state, read(state), state.reward, done
        truncated = jnp.asarray(state.info["truncation"]).astype(bool)
        return state, read(state), state.reward, done & ~truncated, done & truncated

    unit = spaces.Box((-1.0,) * env.action_size, (1.0,) * env.action_size)
    reset = pure.carried(start, step, pure.action_struct(unit))
    _, obs = jax.eval_shape(reset, jax.random.key(0))
    if isinstance(obs, dict) and actor_part not in obs:
        raise ValueError(
            f"{wrappers[-1]}: actor_part must be one of {', '.join(sorted(obs))}, got {actor_part}"
        )
    seen = obs[actor_part] if isinstance(obs, dict) else obs
    return Task(
        wrappers[-1],
        pure.size(seen),
        unit,
        time_limit,
        reset,
        step,
        actor_part=actor_part if isinstance(obs, dict) else None,
    )
