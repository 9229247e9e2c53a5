"""Tasks by name, on the back-end of choice: MJX, MuJoCo's C engine, brax, or plain JAX."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.envs import mujoco_physics, mujoco_tasks, small_tasks
from jaxlab.envs.episodes import Task

Backend = Literal["mjx", "c", "brax", "jax"]
SMALL = {
    "pendulum": small_tasks.pendulum,
    "multi_goal": small_tasks.multi_goal,
    "linear_quadratic": small_tasks.linear_quadratic,
}
"""Tasks of the back-end "jax"."""


def make_task(
    name: str,
    backend: Backend = "mjx",
    *,
    solver_iterations: int = 4,
    line_search_iterations: int = 8,
    impl: str = "jax",
    num_threads: int = 1,
    randomize: Callable[[jax.Array, Any], dict[str, Array]] | None = None,
    physics: str = "generalized",
) -> Task:
    """Makes a task.

    Args:
        name: of `mujoco_tasks.TASKS` for "mjx" and "c", of `SMALL` for "jax", of brax for "brax".
        backend: "mjx" computes on the device; "c" is the engine Gymnasium uses, on the host; "brax"
            takes brax's own tasks, which differ in observations and rewards.
        solver_iterations, line_search_iterations, impl: of "mjx", see `mujoco_physics`.
        num_threads: of "c".
        randomize: `randomize(key, model) -> fields`, drawn at every reset, replaces fields of MJX's
            model for one episode; of "mjx".
        physics: of "brax": "generalized", "spring", "positional" or "mjx".

    Raises:
        ValueError: if there is no such back-end or task, or an option is not the back-end's.
        ImportError: if the back-end is not installed; names the extra.
    """
    if backend not in ("mjx", "c", "brax", "jax"):
        raise ValueError(f"backend must be mjx, c, brax or jax, got {backend!r}")
    if randomize is not None and backend != "mjx":
        raise ValueError(f"randomize needs the backend mjx, got {backend!r}")
    if backend == "jax":
        return _known(SMALL, name, backend)()
    if backend == "brax":
        return _brax_task(name, physics)
    spec = _known(mujoco_tasks.TASKS, name, backend)
    model = mujoco_physics.load_model(spec.xml)
    if backend == "mjx":
        engine = mujoco_physics.mjx_physics(
            model, frame_skip=spec.frame_skip, derived=spec.derived, impl=impl,
            solver_iterations=solver_iterations, line_search_iterations=line_search_iterations,
        )  # fmt: skip
    else:
        engine = mujoco_physics.c_physics(
            model, frame_skip=spec.frame_skip, derived=spec.derived, num_threads=num_threads
        )
    return mujoco_task(name, spec, model, engine, randomize)


def mujoco_task(
    name: str,
    spec: mujoco_tasks.MujocoTask,
    model: Any,
    engine: mujoco_physics.Physics,
    randomize: Callable[[jax.Array, Any], dict[str, Array]] | None = None,
) -> Task:
    """Joins what a task is, in `mujoco_tasks`, with what moves it, in `mujoco_physics`."""
    constants = mujoco_tasks.Constants(
        qpos0=np.array(model.qpos0),
        num_qvel=model.nv,
        dt=model.opt.timestep * spec.frame_skip,
        mass=np.array(model.body_mass),
        body={model.body(i).name: i for i in range(model.nbody)},
    )

    def reset(key: jax.Array) -> tuple[mujoco_tasks.MujocoState, Array]:
        key_start, key_model = jax.random.split(key)
        qpos, qvel = spec.start(constants, key_start)
        fields = {} if randomize is None else randomize(key_model, model)
        state = engine.forward(qpos, qvel, fields)
        return state, spec.observe(constants, state)

    def step(state: mujoco_tasks.MujocoState, ctrl: Array) -> tuple[Any, Array, Array, Array]:
        after = engine.advance(state, ctrl)
        reward, terminated = spec.outcome(constants, state, after, ctrl)
        return after, spec.observe(constants, after), reward, terminated

    bounds = model.actuator_ctrlrange
    return Task(
        name, spec.obs_size, model.nu, tuple(map(float, bounds[:, 0])),
        tuple(map(float, bounds[:, 1])), spec.time_limit, reset, step,
    )  # fmt: skip


def _brax_task(name: str, physics: str) -> Task:
    envs = mujoco_physics.optional("brax.envs")
    if name not in envs._envs:
        raise ValueError(f"brax has no task {name!r}; it has {', '.join(sorted(envs._envs))}")
    env = envs.get_environment(name, backend=physics)

    def reset(key: jax.Array) -> tuple[Any, Array]:
        state = env.reset(key)
        # What `step` returns has the types that last: those of `reset` are cast to them.
        after = jax.eval_shape(env.step, state, jnp.zeros((env.action_size,)))
        state = jax.tree.map(lambda x, like: jnp.asarray(x).astype(like.dtype), state, after)
        return state, state.obs

    def step(state: Any, action: Array) -> tuple[Any, Array, Array, Array]:
        state = env.step(state, action)
        return state, state.obs, state.reward, state.done > 0.5

    # Brax's tasks take actions in [-1, 1] and scale them themselves.
    ones = (1.0,) * env.action_size
    return Task(
        name, env.observation_size, env.action_size, tuple(-x for x in ones), ones, 1000, reset,
        step,
    )  # fmt: skip


def _known(table: dict, name: str, backend: str) -> Any:
    if name not in table:
        raise ValueError(f"backend {backend} has no task {name!r}; it has {', '.join(table)}")
    return table[name]
