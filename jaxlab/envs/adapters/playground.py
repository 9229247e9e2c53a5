"""Environments of MuJoCo Playground, whose State is brax's with MJX data in it.

Source: MuJoCo Playground (Zakka et al. 2025, arXiv:2502.08844).
"""

from typing import Any

from jaxlab.envs.adapters.brax import carried_task
from jaxlab.envs.task import Task


def from_playground(env: Any, *, time_limit: int | None = None, actor_part: str = "state") -> Task:
    """Makes a task of a MuJoCo Playground environment.

    Args:
        env: As `mujoco_playground.registry.load(name)` gives it, without wrappers for training.
        time_limit: Steps of an episode; by default `episode_length` of the environment's config.
        actor_part: The part that the actor sees where observations are a dict; Playground calls it
            "state" and the critic's "privileged_state". Without effect where they are one array.

    Returns:
        A `Task`, to be run by `make_env`.

    Raises:
        ValueError: If the config has no `episode_length` and none is given, or the environment
            resets or batches itself.

    Example:
        >>> from mujoco_playground import registry
        >>> task = envs.from_playground(registry.load("CartpoleBalance"))
        >>> env = envs.make_env(task, num_envs=16)
    """
    if time_limit is None:
        config = getattr(env.unwrapped, "_config", {})
        if "episode_length" not in config:
            raise ValueError(
                f"{type(env.unwrapped).__name__}: the config has no episode_length, got "
                f"{sorted(config)}; give time_limit"
            )
        time_limit = int(config["episode_length"])
    return carried_task(env, time_limit, actor_part)
