"""Tasks by name, on the back-end of choice: MJX, MuJoCo's C engine, brax, or plain JAX."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array

from jaxlab.envs import extras, mujoco_physics, mujoco_tasks, small_tasks
from jaxlab.envs.adapters.brax import from_brax
from jaxlab.envs.spaces import Box
from jaxlab.envs.task import Task

Backend = Literal["mjx", "c", "brax", "jax"]
SMALL = {
    "pendulum": small_tasks.pendulum,
    "multi_goal": small_tasks.multi_goal,
    "linear_quadratic": small_tasks.linear_quadratic,
    "deep_sea": small_tasks.deep_sea,
}
"""Tasks of the back-end "jax"."""


def make_task(name: str, backend: Backend = "mjx", **options: Any) -> Task:
    """Makes a task.

    Args:
        name: Name of the task: one of `envs.TASKS` for "mjx" and "c", one of `envs.SMALL` for
            "jax", one of brax's own for "brax".
        backend: "mjx" computes on the device; "c" is the engine that Gymnasium uses, on the host;
            "brax" takes brax's own tasks, which differ in observations and rewards.
        options: Options of the back-end. "mjx": `solver_iterations`, `line_search_iterations` and
            `impl`, see `mujoco_physics.mjx_physics`, and `randomize(key, model) -> fields`, which
            is drawn at every reset and replaces fields of the model for one episode. "c":
            `num_threads`, 1 by default. "brax": `physics`, "generalized" by default, or "spring",
            "positional", "mjx". "jax": those of the task.

    Raises:
        ValueError: If there is no such back-end or task, or an option is not the back-end's.
        ImportError: If the back-end is not installed; names the extra.

    Example:
        >>> env = envs.make_env(envs.make_task("hopper", "c", num_threads=2), num_envs=4)
    """
    makers = {"mjx": _mjx_task, "c": _c_task, "brax": _brax_task}
    if backend != "jax" and backend not in makers:
        raise ValueError(f"backend must be mjx, c, brax or jax, got {backend!r}")
    maker: Callable[..., Task] = (
        _known(SMALL, name, backend)
        if backend == "jax"
        else functools.partial(makers[backend], name)
    )
    allowed = inspect.signature(maker).parameters
    for option in options:
        if option not in allowed:
            raise ValueError(f"{name} by {backend} takes {', '.join(allowed)}, got {option}")
    return maker(**options)


def _mjx_task(
    name: str,
    *,
    solver_iterations: int = 4,
    line_search_iterations: int = 8,
    impl: str = "jax",
    randomize: Callable[[jax.Array, Any], dict[str, Array]] | None = None,
) -> Task:
    spec = _known(mujoco_tasks.TASKS, name, "mjx")
    model = mujoco_physics.load_model(spec.xml)
    engine = mujoco_physics.mjx_physics(
        model,
        frame_skip=spec.frame_skip,
        derived=spec.derived,
        impl=impl,
        solver_iterations=solver_iterations,
        line_search_iterations=line_search_iterations,
    )
    return mujoco_task(name, spec, model, engine, randomize)


def _c_task(name: str, *, num_threads: int = 1) -> Task:
    spec = _known(mujoco_tasks.TASKS, name, "c")
    model = mujoco_physics.load_model(spec.xml)
    engine = mujoco_physics.c_physics(
        model, frame_skip=spec.frame_skip, derived=spec.derived, num_threads=num_threads
    )
    return mujoco_task(name, spec, model, engine)


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
    ctrl = Box(tuple(map(float, bounds[:, 0])), tuple(map(float, bounds[:, 1])))
    return Task(name, spec.obs_size, ctrl, spec.time_limit, reset, step)


def _brax_task(name: str, *, physics: str = "generalized") -> Task:
    known = ("generalized", "spring", "positional", "mjx")
    if physics not in known:
        raise ValueError(f"physics must be one of {', '.join(known)}, got {physics!r}")
    envs = extras.optional("brax.envs", "envs")
    if name not in envs._envs:
        raise ValueError(f"brax has no task {name!r}; it has {', '.join(sorted(envs._envs))}")
    return from_brax(envs.get_environment(name, backend=physics))._replace(name=name)


def _known(table: dict, name: str, backend: str) -> Any:
    if name not in table:
        raise ValueError(f"backend {backend} has no task {name!r}; it has {', '.join(table)}")
    return table[name]
