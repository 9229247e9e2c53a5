"""Environments: tasks as pure functions, batches that start anew, four back-ends of physics."""

from jaxlab.envs.adapters.brax import from_brax
from jaxlab.envs.adapters.gymnasium import from_gymnasium
from jaxlab.envs.adapters.gymnax import from_gymnax
from jaxlab.envs.adapters.jaxmarl import from_jaxmarl
from jaxlab.envs.adapters.playground import from_playground
from jaxlab.envs.backends import SMALL, make_task, mujoco_task
from jaxlab.envs.ball import balance, ball_balancing, ball_index
from jaxlab.envs.episodes import Env, State, actor_obs, make_env
from jaxlab.envs.football_lite import football, run_and_shoot
from jaxlab.envs.games import (
    Game,
    asymmetric,
    climbing,
    game_task,
    gold_mine,
    matrix_game,
    penalty,
    random_game,
    stag_grid,
    state_of,
)
from jaxlab.envs.macro_actions import executed, macro
from jaxlab.envs.mujoco_tasks import TASKS
from jaxlab.envs.particles import predator_prey, simple_spread
from jaxlab.envs.small_tasks import (
    DOUBLE_INTEGRATOR,
    GOALS,
    LinearQuadratic,
    bandit,
    deep_sea,
    deep_sea_optimum,
    deep_sea_rights,
    linear_quadratic,
    multi_goal,
    pendulum,
    riccati,
)
from jaxlab.envs.spaces import Box, Discrete, MultiDiscrete, Space
from jaxlab.envs.task import Task
from jaxlab.envs.teams import joint

__all__ = [
    "DOUBLE_INTEGRATOR",
    "GOALS",
    "SMALL",
    "TASKS",
    "Box",
    "Discrete",
    "Env",
    "Game",
    "LinearQuadratic",
    "MultiDiscrete",
    "Space",
    "State",
    "Task",
    "actor_obs",
    "asymmetric",
    "balance",
    "ball_balancing",
    "ball_index",
    "bandit",
    "climbing",
    "deep_sea",
    "deep_sea_optimum",
    "deep_sea_rights",
    "executed",
    "football",
    "from_brax",
    "from_gymnasium",
    "from_gymnax",
    "from_jaxmarl",
    "from_playground",
    "game_task",
    "gold_mine",
    "joint",
    "linear_quadratic",
    "macro",
    "make_env",
    "make_task",
    "matrix_game",
    "mujoco_task",
    "multi_goal",
    "pendulum",
    "penalty",
    "predator_prey",
    "random_game",
    "riccati",
    "run_and_shoot",
    "simple_spread",
    "stag_grid",
    "state_of",
]
