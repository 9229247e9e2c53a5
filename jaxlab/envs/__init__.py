"""Environments: tasks as pure functions, batches that start anew, four back-ends of physics."""

from jaxlab.envs.backends import SMALL, make_task, mujoco_task
from jaxlab.envs.episodes import Env, State, Task, make_env
from jaxlab.envs.mujoco_tasks import TASKS
from jaxlab.envs.small_tasks import (
    DOUBLE_INTEGRATOR,
    GOALS,
    LinearQuadratic,
    bandit,
    linear_quadratic,
    multi_goal,
    pendulum,
    riccati,
)

__all__ = [
    "DOUBLE_INTEGRATOR",
    "GOALS",
    "SMALL",
    "TASKS",
    "Env",
    "LinearQuadratic",
    "State",
    "Task",
    "bandit",
    "linear_quadratic",
    "make_env",
    "make_task",
    "mujoco_task",
    "multi_goal",
    "pendulum",
    "riccati",
]
