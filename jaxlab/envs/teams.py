"""Teams as one actor: an action is a choice of each agent, one token for each."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxlab.core.types import PyTree
from jaxlab.envs import spaces
from jaxlab.envs.task import Task


def joint(task: Task) -> Task:
    """Makes the task of one actor who sees what all agents see and chooses for all of them.

    Observations are the agents' own, one after another; a reward of each agent becomes the mean
    over agents; masks are the agents', one after another. Of observations with parts, that of the
    actors is left.

    Args:
        task: What is played, with A agents of single choices.

    Returns:
        A `Task` without agents, of `MultiDiscrete` actions `[A]`.

    Raises:
        ValueError: If this is no task with agents of one choice each.

    Example:
        >>> env = envs.make_env(envs.joint(envs.football(3, 1)), num_envs=16)
        >>> env.action_space
        MultiDiscrete(nums=(19, 19, 19))
    """
    if not isinstance(task, Task):
        raise ValueError(f"joint takes an envs.Task, got {type(task).__name__}")
    agents = task.num_agents
    if agents is None or not isinstance(task.action_space, spaces.Discrete):
        raise ValueError(
            f"{task.name}: joint is for agents of one choice each, got {agents} agents and "
            f"{task.action_space}"
        )

    def flat(obs: Any) -> Array:
        own = obs if task.actor_part is None else obs[task.actor_part]
        return own.reshape(-1)

    def reset(key: jax.Array) -> tuple[PyTree, Array]:
        physics, obs = task.reset(key)
        return physics, flat(obs)

    def step(physics: PyTree, tokens: Int[Array, " A"]) -> tuple:
        physics, obs, reward, *ends = task.step(physics, tokens)
        return physics, flat(obs), jnp.mean(reward), *ends

    def action_mask(physics: PyTree) -> Bool[Array, " AV"]:
        each: Any = task.action_mask
        return each(physics).reshape(-1)

    return task._replace(
        name=f"{task.name}, joint",
        obs_size=agents * task.obs_size,
        action_space=spaces.MultiDiscrete((task.action_space.num,) * agents),
        reset=reset,
        step=step,
        num_agents=None,
        action_mask=None if task.action_mask is None else action_mask,
        actor_part=None,
    )
