"""The tasks that are compared on, and what is particular to some of them."""

from experiments.fpmd import Config
from jaxlab import envs

OPTIONS: dict[str, dict[str, float]] = {"multi_goal": {"start_std": 2.5}}
"""Options of tasks: from the middle alone narrow policies never see the corners, and get lost."""
SHORTER = {"multi_goal": 3}
"""Tasks that take this share of the updates."""
TARGETS = {"pendulum": -200.0, "multi_goal": 8.0}
"""Returns to which time is measured."""


def make_tasks(config: Config) -> dict[str, envs.Task]:
    """Makes the tasks of a comparison by their names."""
    return {
        name: envs.make_task(name, config.backend, **OPTIONS.get(name, {})) for name in config.tasks
    }
