"""gymnax environments (Lange 2022), version 1 and later."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.types import PyTree
from jaxlab.envs.adapters import pure
from jaxlab.envs.task import Task


def from_gymnax(env: Any, params: Any = None, *, time_limit: int | None = None) -> Task:
    """Makes a task of a gymnax environment.

    Its own step without automatic reset is used, so that the last observation is kept; its clock
    (`is_truncated`) truncates, and its terminations terminate. Observations are flattened to one
    axis: a 10 x 10 x 4 image has 400 numbers.

    Args:
        env: The environment, the first of what `gymnax.make(name)` returns.
        params: Its parameters, the second; by default `env.default_params`.
        time_limit: Steps of an episode; by default `params.max_steps_in_episode`.

    Returns:
        A `Task`, to be run by `make_env`.

    Raises:
        ValueError: If this is the protocol of gymnax below 1.0, which does not tell the clock from
            the end, or if a space has no counterpart here.

    Example:
        >>> import gymnax
        >>> task = envs.from_gymnax(*gymnax.make("Breakout-MinAtar"))
        >>> env = envs.make_env(task, num_envs=16)
    """
    name = str(env.name)
    if not hasattr(env, "is_truncated"):
        raise ValueError(
            f"{name}: gymnax below 1.0 does not tell truncation from termination; "
            "pip install 'jaxlab[games]', or gymnax>=1.0 with gymnasium<1.4"
        )
    params = env.default_params if params is None else params
    theirs = env.action_space(params)
    space = pure.action_space(name, theirs)

    def start(key: jax.Array) -> tuple[PyTree, jax.Array]:
        key_reset, key_steps = jax.random.split(key)
        obs, state = env.reset_env(key_reset, params)
        return (state, key_steps), pure.flat(obs)

    def step(physics: tuple, action: jax.Array) -> tuple:
        state, key = physics
        key, key_step = jax.random.split(key)
        action = action.reshape(theirs.shape).astype(theirs.dtype)
        obs, state, reward, terminated, _ = env.step_env(key_step, state, action, params)
        truncated = env.is_truncated(state, params)
        reward = jnp.asarray(reward).reshape(())
        return (state, key), pure.flat(obs), reward, terminated, truncated

    reset = pure.carried(start, step, pure.action_struct(space))
    _, obs = jax.eval_shape(reset, jax.random.key(0))
    limit = int(params.max_steps_in_episode) if time_limit is None else time_limit
    return Task(name, pure.size(obs), space, limit, reset, step)
