"""Environments: a task is a decision process, an environment runs many of it and starts them anew.

A task knows nothing of time or batches: `reset` and `step` are pure functions of one state. An
environment holds a batch of them. When an episode ends, by the task (`terminated`) or by time
(`truncated`), its next state is drawn afresh; the observation it ended with is kept in `final_obs`,
which is what a value function is asked about after a truncation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.core.types import PyTree


class Task(NamedTuple):
    """A decision process, unbatched and without a clock.

    Attributes:
        name: of the task.
        obs_size, action_size: O and A.
        low, high: bounds of the action that `step` takes, a number for each dimension.
        time_limit: steps after which an episode is truncated.
        reset: `reset(key) -> (physics, obs [O])`.
        step: `step(physics, action [A]) -> (physics, obs [O], reward [], terminated [])`.
    """

    name: str
    obs_size: int
    action_size: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    time_limit: int
    reset: Callable[[jax.Array], tuple[PyTree, jax.Array]]
    step: Callable[[PyTree, jax.Array], tuple[PyTree, jax.Array, jax.Array, jax.Array]]


class State(NamedTuple):
    """A batch of episodes after a step.

    Attributes:
        physics: of the task, with a leading axis.
        obs: `[N, O]`, the one to act on: the first of a new episode where one has ended.
        reward: `[N]` of the step.
        terminated, truncated: `[N]` bool, how the episode ended at this step, if it did.
        final_obs: `[N, O]`, what the step led to, before any new episode.
        failed: `[N]` bool, physics or observation were not finite. The step counts as a truncation
            without reward that led nowhere: `final_obs` is the observation before it.
        time: `[N]` int32, steps of the running episode.
        key: `[N]`, of the episodes to come.
    """

    physics: PyTree
    obs: Float[Array, "N O"]
    reward: Float[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    final_obs: Float[Array, "N O"]
    failed: Bool[Array, " N"]
    time: Int[Array, " N"]
    key: Key[Array, " N"]


class Env(NamedTuple):
    """A batch of episodes of one task, with actions in [-1, 1].

    Attributes:
        name: of the task.
        num_envs: N.  obs_size, action_size: O and A.  time_limit: steps of an episode.
        reset: `reset(key) -> State`.
        step: `step(state, action [N, A]) -> State`; actions are floats, mapped to the task's
            bounds, and not clipped.
    """

    name: str
    num_envs: int
    obs_size: int
    action_size: int
    time_limit: int
    reset: Callable[[jax.Array], State]
    step: Callable[[State, jax.Array], State]


def make_env(task: Task, num_envs: int) -> Env:
    """Runs `num_envs` episodes of a task side by side, starting ended ones anew.

    New episodes are computed only in steps in which one has ended; under an outer `vmap`, over
    seeds say, in every step.

    Raises:
        ValueError: if `num_envs` or the time limit is below 1; if a bound of the action is infinite
            or reversed; if `reset` and `step` give different trees, or observations that are not
            `[obs_size]` floats.
    """
    if num_envs < 1 or task.time_limit < 1:
        raise ValueError(
            f"num_envs and time_limit must be at least 1, got {num_envs} and {task.time_limit}"
        )
    low, high = _check_bounds(task)
    _check_trees(task)
    center, half = (low + high) / 2, (high - low) / 2

    def reset(key: jax.Array) -> State:
        key_state, key_reset = jax.random.split(key)
        physics, obs = _strong(jax.vmap(task.reset)(jax.random.split(key_reset, num_envs)))
        return State(
            physics=physics,
            obs=obs,
            reward=jnp.zeros((num_envs,), obs.dtype),
            terminated=jnp.zeros((num_envs,), bool),
            truncated=jnp.zeros((num_envs,), bool),
            final_obs=obs,
            failed=jnp.zeros((num_envs,), bool),
            time=jnp.zeros((num_envs,), jnp.int32),
            key=jax.random.split(key_state, num_envs),
        )

    def scaled_step(physics: PyTree, action: jax.Array) -> tuple:
        middle, reach = (jnp.asarray(x, action.dtype) for x in (center, half))
        return task.step(physics, middle + reach * action)

    def step(state: State, action: jax.Array) -> State:
        if action.shape != (num_envs, task.action_size):
            raise ValueError(f"action must be {(num_envs, task.action_size)}, got {action.shape}")
        if not jnp.issubdtype(action.dtype, jnp.floating):
            raise ValueError(f"action must be floats in [-1, 1], got {action.dtype}")
        physics, obs, reward, terminated = _strong(jax.vmap(scaled_step)(state.physics, action))
        reward = reward.astype(obs.dtype)
        failed = ~_finite((physics, obs, reward))
        final_obs = _select(failed, state.obs, obs)
        reward = jnp.where(failed, jnp.zeros_like(reward), reward)
        terminated = terminated.astype(bool) & ~failed
        time = state.time + 1
        truncated = (time >= task.time_limit) & ~terminated | failed
        done = terminated | truncated

        def renew() -> tuple:
            keys = jax.vmap(jax.random.split)(state.key)
            fresh = _strong(jax.vmap(task.reset)(keys[:, 1]))
            return _select(done, (*fresh, keys[:, 0]), (physics, final_obs, state.key))

        physics, obs, key = jax.lax.cond(
            jnp.any(done), renew, lambda: (physics, final_obs, state.key)
        )
        time = jnp.where(done, 0, time)
        return State(physics, obs, reward, terminated, truncated, final_obs, failed, time, key)

    return Env(task.name, num_envs, task.obs_size, task.action_size, task.time_limit, reset, step)


def _check_bounds(task: Task) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.asarray(task.low, np.float64), np.asarray(task.high, np.float64)
    if low.shape != (task.action_size,) or high.shape != low.shape:
        raise ValueError(
            f"{task.name}: bounds must be {task.action_size} numbers each, got {low} and {high}"
        )
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
        raise ValueError(
            f"{task.name}: actions in [-1, 1] cannot be mapped to infinite bounds, got {low} to "
            f"{high}; give the task finite ones"
        )
    if not np.all(low < high):
        raise ValueError(f"{task.name}: low must be below high, got {low} and {high}")
    return low, high


def _check_trees(task: Task) -> None:
    """Compares what `reset` and `step` return without running them."""
    physics, obs = jax.eval_shape(task.reset, jax.random.key(0))
    action = jax.ShapeDtypeStruct((task.action_size,), jnp.float32)
    stepped = jax.eval_shape(task.step, physics, action)
    if not isinstance(stepped, tuple) or len(stepped) != 4:
        raise ValueError(
            f"{task.name}: step must return (physics, obs, reward, terminated), got {stepped}"
        )
    after, next_obs, reward, terminated = stepped
    for name, x in (("reset", obs), ("step", next_obs)):
        if not hasattr(x, "shape"):
            raise ValueError(f"{task.name}: {name} must give one array to observe, got {x}")
        if x.shape != (task.obs_size,) or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{task.name}: {name} must give an observation of {task.obs_size} floats, got "
                f"{x.dtype} {x.shape}; cast integers and flatten"
            )
    if reward.shape or terminated.shape:
        raise ValueError(
            f"{task.name}: reward and terminated must be scalars, got {reward.shape} and "
            f"{terminated.shape}"
        )
    if not jnp.issubdtype(reward.dtype, jnp.number):
        raise ValueError(f"{task.name}: reward must be a number, got {reward.dtype}")
    before, now = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in ((physics, obs), (after, next_obs))
    )
    for name in sorted(before.keys() | now.keys()):
        first, then = before.get(name), now.get(name)
        if first is None or then is None or (first.shape, first.dtype) != (then.shape, then.dtype):
            raise ValueError(
                f"{task.name}: reset and step must give the same tree; {name} is {first} after "
                f"reset and {then} after step"
            )
    if jax.tree.structure(physics) != jax.tree.structure(after):
        raise ValueError(
            f"{task.name}: reset and step must give the same tree, got "
            f"{jax.tree.structure(physics)} after reset and {jax.tree.structure(after)} after step"
        )


def _strong(tree: PyTree) -> PyTree:
    """Without weak types, which would compile a carried state twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), tree)


def _finite(tree: PyTree) -> Bool[Array, " N"]:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    sound = [
        jnp.all(jnp.isfinite(x).reshape(x.shape[0], math.prod(x.shape[1:])), axis=1) for x in leaves
    ]
    return jnp.all(jnp.stack(sound), axis=0)


def _select(mask: Bool[Array, " N"], a: Any, b: Any) -> Any:
    """Rows of a where the mask is true, of b elsewhere."""
    return jax.tree.map(
        lambda x, y: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y), a, b
    )
