"""Tasks: decision processes as pure functions of one state, and the check of their word."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.types import PyTree
from jaxlab.envs import spaces

ADAPTERS = {
    "gymnasium": "envs.from_gymnasium(id, num_envs)",
    "gym": "envs.from_gymnasium(id, num_envs) with the gymnasium package",
    "gymnax": "envs.make_env(envs.from_gymnax(env, params), num_envs)",
    "brax": "envs.make_env(envs.from_brax(env), num_envs)",
    "mujoco_playground": "envs.make_env(envs.from_playground(env), num_envs)",
    "jaxmarl": "envs.make_env(envs.from_jaxmarl(env), num_envs)",
}
"""What to call for an environment of another library, by the library's name."""

STARTS = 4
"""Starts that are drawn to see whether they are finite."""

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of the compiler for what is run a few times only: little time, little optimization."""


class Task(NamedTuple):
    """A decision process, unbatched and without a clock.

    Attributes:
        name: Name of the task, for messages.
        obs_size: O, numbers that the actor observes.
        action_space: Space of the action, of each agent's where there are several.
        time_limit: Steps after which an episode is truncated.
        reset: `reset(key) -> (physics, obs)`; finite for every key. Physics is any tree of arrays.
        step: `step(physics, action) -> (physics, obs, reward, terminated)`, or the same with a
            fifth, `truncated`, for an end that is not of the decision process. The action is float
            `[D]` in the bounds of a box, int32 `[]` of one choice, int32 `[K]` of several. Reward
            and ends are scalars.
        num_agents: A, or None for a task without agents. With agents observations are `[A, O]`,
            actions have a leading axis A, the reward is `[]` (common) or `[A]` (each agent's); the
            ends stay scalars.
        action_mask: `action_mask(physics) -> [num_logits]` bool, `[A, num_logits]` with agents:
            True where a choice is allowed; components of several are concatenated. At least one
            choice of each component must be allowed wherever an episode goes on. What a forbidden
            choice does is the task's to say. None: all are allowed always.
        actor_part: The part that the actor sees where observations are a dict of arrays; its size
            is `obs_size`. Other parts are floats of any shape, for critics.
        duration: `duration(physics) -> []` int32, steps of the clock that the action before this
            state took, where they are not one each: learners discount by gamma to this power.

    Example:
        >>> def reset(key):
        ...     x = jax.random.uniform(key, (1,))
        ...     return x, x
        >>> def step(x, action):  # action 0 goes down, 1 goes up
        ...     x = x + 0.1 * (2.0 * action.astype(x.dtype) - 1.0)
        ...     return x, x, -jnp.abs(x[0]), jnp.abs(x[0]) > 2.0
        >>> walk = envs.Task("walk", 1, envs.Discrete(2), 50, reset, step)
        >>> env = envs.make_env(walk, num_envs=8)
    """

    name: str
    obs_size: int
    action_space: spaces.Space
    time_limit: int
    reset: Callable[[jax.Array], tuple[PyTree, PyTree]]
    step: Callable[[PyTree, jax.Array], tuple]
    num_agents: int | None = None
    action_mask: Callable[[PyTree], jax.Array] | None = None
    actor_part: str | None = None
    duration: Callable[[PyTree], jax.Array] | None = None

    @property
    def action_size(self) -> int:
        """How many numbers one action is, of each agent's with agents."""
        return spaces.size(self.action_space)


def agents(num_agents: int | None) -> tuple[int, ...]:
    """Returns the axis of agents as a shape: `(A,)`, or `()` without agents."""
    return () if num_agents is None else (num_agents,)


def check_task(task: Any) -> tuple[int, ...]:
    """Checks a task before anything is traced by a learner.

    `reset` and `step` are traced, not run; `reset` is then compiled without optimization and run on
    a few fixed keys, to see whether it is finite. Where it depends on numbers that are themselves
    traced, under an outer `vmap` over tasks say, they are not known yet, and this is left out.

    Returns:
        The shape of the reward, `()` or `(num_agents,)`.

    Raises:
        ValueError: If it is no task (the message says which adapter makes one of it), or if the
            task does not keep to what `Task` says.
    """
    if not isinstance(task, Task):
        raise ValueError(_no_task(task))
    for field in ("obs_size", "time_limit", "num_agents"):
        number = getattr(task, field)
        if not spaces.is_count(number) and (field, number) != ("num_agents", None):
            raise ValueError(
                f"{task.name}: {field} must be an integer of at least 1, got {number!r}"
            )
    spaces.check(task.action_space, task.name)
    reset = jax.jit(task.reset)
    reward_shape = _check_shapes(task, reset)
    _check_start(task, reset)
    return reward_shape


def _no_task(thing: Any) -> str:
    came = f"{type(thing).__module__}.{type(thing).__qualname__}"
    libraries = [base.__module__.partition(".")[0] for base in type(thing).__mro__]
    advice = next((ADAPTERS[x] for x in libraries if x in ADAPTERS), None)
    if isinstance(thing, str):
        came, advice = repr(thing), f"envs.make_env(envs.make_task({thing!r}), num_envs)"
    if hasattr(thing, "num_envs"):
        came += ", a batch already"
    return f"make_env takes an envs.Task, got {came}; " + (
        f"use {advice}"
        if advice
        else "write one (see envs.Task), or use an adapter: envs.from_gymnasium, envs.from_gymnax, "
        "envs.from_brax, envs.from_playground, envs.from_jaxmarl"
    )


def _check_shapes(task: Task, reset: Callable) -> tuple[int, ...]:
    """Compares what `reset`, `step` and `action_mask` return without running them."""
    lead = agents(task.num_agents)
    started = jax.eval_shape(reset, jax.random.key(0))
    if not isinstance(started, tuple) or len(started) != 2:
        raise ValueError(f"{task.name}: reset must return (physics, obs), got {started}")
    physics, obs = started
    _check_obs(task, "reset", obs)
    is_box = isinstance(task.action_space, spaces.Box)
    action = jax.ShapeDtypeStruct(
        lead + spaces.shape(task.action_space), jnp.float32 if is_box else jnp.int32
    )
    stepped = jax.eval_shape(task.step, physics, action)
    if not isinstance(stepped, tuple) or len(stepped) not in (4, 5):
        raise ValueError(
            f"{task.name}: step must return (physics, obs, reward, terminated) or the same and "
            f"truncated, got {stepped}"
        )
    after, next_obs, reward, *ends = stepped
    _check_obs(task, "step", next_obs)
    shapes = [getattr(x, "shape", None) for x in (reward, *ends)]
    if shapes[0] not in ((), lead) or any(x != () for x in shapes[1:]):
        raise ValueError(
            f"{task.name}: reward and terminated must be scalars, and truncated where it is given"
            + (f", the reward of each agent its own {lead}" if lead else "")
            + f"; got {', '.join(map(str, shapes))}"
        )
    if not jnp.issubdtype(reward.dtype, jnp.number):
        raise ValueError(f"{task.name}: reward must be a number, got {reward.dtype}")
    _check_same_tree(task.name, (physics, obs), (after, next_obs))
    _check_mask(task, physics)
    if task.duration is not None:
        took = jax.eval_shape(task.duration, physics)
        if getattr(took, "shape", None) != () or took.dtype != jnp.int32:
            raise ValueError(f"{task.name}: duration must give an int32 scalar, got {took}")
    return reward.shape


def _check_obs(task: Task, by: str, obs: Any) -> None:
    if task.actor_part is not None:
        if not isinstance(obs, dict) or task.actor_part not in obs:
            came = sorted(obs) if isinstance(obs, dict) else obs
            raise ValueError(
                f"{task.name}: {by} must give a dict with the part {task.actor_part!r} that the "
                f"actor sees, got {came}"
            )
    elif not hasattr(obs, "shape"):
        raise ValueError(
            f"{task.name}: {by} must give one array to observe, or name the actor_part of a dict, "
            f"got {obs}"
        )
    parts = obs if isinstance(obs, dict) else {None: obs}
    shape = (*agents(task.num_agents), task.obs_size)
    for name, part in parts.items():
        if not hasattr(part, "shape"):
            raise ValueError(
                f"{task.name}: parts of an observation must be arrays, got {part} of {by} for "
                f"{name!r}"
            )
        if name == task.actor_part and part.shape != shape:
            raise ValueError(
                f"{task.name}: {by} must give an observation of {task.obs_size} floats, shape "
                f"{shape}, got {part.dtype} {part.shape}; flatten, or mend obs_size"
            )
        if not jnp.issubdtype(part.dtype, jnp.floating):
            raise ValueError(
                f"{task.name}: {by} must give an observation of floats, got {part.dtype} "
                f"{part.shape}" + (f" for {name!r}" if name else "") + "; cast integers"
            )


def _check_mask(task: Task, physics: PyTree) -> None:
    if task.action_mask is None:
        return
    if isinstance(task.action_space, spaces.Box):
        raise ValueError(f"{task.name}: a box has no action_mask, got {task.action_space}")
    shape = (*agents(task.num_agents), spaces.num_logits(task.action_space))
    mask = jax.eval_shape(task.action_mask, physics)
    if getattr(mask, "shape", None) != shape or mask.dtype != jnp.bool_:
        raise ValueError(f"{task.name}: action_mask must give a bool {shape}, got {mask}")


def _check_same_tree(name: str, first: PyTree, then: PyTree) -> None:
    before, now = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (first, then)
    )
    for place in sorted(before.keys() | now.keys()):
        a, b = before.get(place), now.get(place)
        if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"{name}: reset and step must give the same tree; {place} is {a} after reset and "
                f"{b} after step"
            )
    if jax.tree.structure(first) != jax.tree.structure(then):
        raise ValueError(
            f"{name}: reset and step must give the same tree, got {jax.tree.structure(first)} "
            f"after reset and {jax.tree.structure(then)} after step"
        )


def _check_start(task: Task, reset: Any) -> None:
    """Refuses starts that are not finite, or that leave an agent no choice."""
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), STARTS)
        constants = jax.make_jaxpr(reset)(keys[0]).consts
        if any(isinstance(x, Tracer) for x in constants):
            return
        compiled = reset.lower(keys[0]).compile(compiler_options=QUICK)
        for physics, obs in map(compiled, keys):
            for part, places in (
                ("NaN in physics", _where(jnp.isnan, physics)),
                ("a number that is not finite in obs", _where(lambda x: ~jnp.isfinite(x), obs)),
            ):
                if places:
                    raise ValueError(
                        f"{task.name}: reset must be finite for every key, got {part}{places[0]}"
                    )
            if task.action_mask is not None:
                _check_choices(task, task.action_mask(physics))


def _check_choices(task: Task, mask: jax.Array) -> None:
    ends = list(itertools.accumulate(spaces.choices(task.action_space)))
    for part in jnp.split(mask, ends[:-1], axis=-1):
        if not jnp.all(jnp.any(part, axis=-1)):
            raise ValueError(
                f"{task.name}: action_mask must allow a choice of each component at the start, got "
                f"{mask}"
            )


def _where(wrong: Callable, tree: PyTree) -> list[str]:
    """Names the leaves that are wrong anywhere."""
    return [
        jax.tree_util.keystr(path)
        for path, x in jax.tree.leaves_with_path(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact) and jnp.any(wrong(x))
    ]
