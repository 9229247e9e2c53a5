"""Environments: a task is a decision process, an environment runs many of it and starts them anew.

A task knows nothing of batches, and of time only what it says itself: `reset` and `step` are pure
functions of one state. An environment holds a batch of them. When an episode ends, by the task
(`terminated`) or by time (`truncated`), its next state is drawn afresh; the observation it ended
with is kept in `final_obs`, which is what a value function is asked about after a truncation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.core.types import PyTree
from jaxlab.envs import spaces
from jaxlab.envs.task import Task, agents, check_task


class State(NamedTuple):
    """A batch of episodes after a step; with agents an axis A follows N where it says so.

    Attributes:
        physics: State of the task, with a leading axis N.
        obs: `[N, (A,) O]`, or a dict of arrays, to act on: the first of a new episode where one
            has ended.
        reward: `[N]` of the step, `[N, A]` where agents have rewards of their own. Always float32
            (float64 under x64), whatever the observations are.
        terminated, truncated: `[N]` bool, how the episode ended at this step, if it did; never
            both.
        final_obs: What the step led to, before any new episode; the tree of `obs`.
        failed: `[N]` bool. NaN came up anywhere in the physics, or NaN or an infinity in
            observation or reward, or the action was no choice of the space. The step counts as a
            truncation without reward that led nowhere: `final_obs` is the observation before it.
        time: `[N]` int32, steps of the running episode.
        key: `[N]` PRNG keys of the episodes to come.
        action_mask: `[N, (A,) num_logits]` bool, the choices that are allowed at `obs`, or `()`
            where the task has no mask.
        final_action_mask: The same at `final_obs`, for values of the best allowed choice after a
            truncation.
        duration: `[N]` int32, steps of the clock that the action took, or `()` where each takes
            one, see `Task.duration`: `final_obs` is that much later. 0 at the start.
    """

    physics: PyTree
    obs: PyTree
    reward: Float[Array, "N ..."]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    final_obs: PyTree
    failed: Bool[Array, " N"]
    time: Int[Array, " N"]
    key: Key[Array, " N"]
    action_mask: PyTree = ()
    final_action_mask: PyTree = ()
    duration: PyTree = ()


class Env(NamedTuple):
    """A batch of episodes of one task.

    Attributes:
        name: Name of the task.
        num_envs: N, episodes side by side.
        obs_size: O, numbers that the actor observes.
        action_space: Space of one action in the task's own bounds, of each agent's with agents.
        time_limit: Steps after which an episode is truncated.
        reset: `reset(key) -> State`.
        step: `step(state, action) -> State`. The action of a box is `[N, D]` floats in [-1, 1],
            mapped to the task's bounds and not clipped; of one choice `[N]` integers, of several
            `[N, K]`; with agents an axis A follows N. A choice out of range makes its step fail.
        num_agents: A, or None for an environment without agents.
        actor_part: The part of the observation that the actor sees, or None where it is one array.
    """

    name: str
    num_envs: int
    obs_size: int
    action_space: spaces.Space
    time_limit: int
    reset: Callable[[jax.Array], State]
    step: Callable[[State, jax.Array], State]
    num_agents: int | None = None
    actor_part: str | None = None

    @property
    def action_size(self) -> int:
        """How many numbers one action is, of each agent's with agents."""
        return spaces.size(self.action_space)


def actor_obs(env: Env, obs: PyTree) -> Float[Array, "*B O"]:
    """Returns what the actor sees of an observation: all of it, or its own part of a dict."""
    return obs if env.actor_part is None else obs[env.actor_part]


def make_env(task: Task, num_envs: int) -> Env:
    """Runs `num_envs` episodes of a task side by side, starting ended ones anew.

    New episodes are computed only in steps in which one has ended; under an outer `vmap`, over
    seeds say, in every step. `reset` and `step` are compiled, once for all values. The task is
    checked here, before anything is trained: see `Task`, and `task.check_task` for what is run.

    Raises:
        ValueError: If `num_envs` is below 1, if this is no task (the message names the adapter that
            makes one), if sizes, bounds, trees, shapes or dtypes are not as `Task` says, or if
            `reset` gives numbers that are not finite.

    Example:
        >>> env = envs.make_env(envs.pendulum(), num_envs=4)
        >>> state = env.reset(jax.random.key(0))
        >>> state = env.step(state, jnp.zeros((4, env.action_size)))
    """
    reward_shape = check_task(task)
    if not spaces.is_count(num_envs):
        raise ValueError(f"num_envs must be an integer of at least 1, got {num_envs!r}")

    def mask_of(physics: PyTree) -> PyTree:
        return () if task.action_mask is None else jax.vmap(task.action_mask)(physics)

    def duration_of(physics: PyTree) -> PyTree:
        return () if task.duration is None else jax.vmap(task.duration)(physics)

    @jax.jit
    def reset(key: jax.Array) -> State:
        key_state, key_reset = jax.random.split(key)
        physics, obs = _strong(jax.vmap(task.reset)(jax.random.split(key_reset, num_envs)))
        mask = mask_of(physics)
        return State(
            physics=physics,
            obs=obs,
            reward=jnp.zeros((num_envs, *reward_shape)),
            terminated=jnp.zeros((num_envs,), bool),
            truncated=jnp.zeros((num_envs,), bool),
            final_obs=obs,
            failed=jnp.zeros((num_envs,), bool),
            time=jnp.zeros((num_envs,), jnp.int32),
            key=jax.random.split(key_state, num_envs),
            action_mask=mask,
            final_action_mask=mask,
            duration=duration_of(physics),
        )

    def task_step(physics: PyTree, action: jax.Array) -> tuple:
        action, valid = spaces.to_task(task.action_space, action)
        physics, obs, reward, *ends = task.step(physics, action)
        reward = jnp.asarray(reward).astype(jnp.result_type(float))
        terminated, cut = (jnp.asarray(x).astype(bool) for x in (*ends, False)[:2])
        return physics, obs, reward, terminated, cut, valid

    @jax.jit
    def advance(state: State, action: jax.Array) -> State:
        physics, obs, reward, terminated, cut, valid = _strong(
            jax.vmap(task_step)(state.physics, action)
        )
        failed = ~valid | _any(jnp.isnan, physics, num_envs)
        failed |= _any(lambda x: ~jnp.isfinite(x), (obs, reward), num_envs)
        final_obs, final_mask = select_rows(
            failed, (state.obs, state.action_mask), (obs, mask_of(physics))
        )
        reward = select_rows(failed, jnp.zeros_like(reward), reward)
        terminated = terminated & ~failed
        time = state.time + 1
        truncated = (cut | (time >= task.time_limit)) & ~terminated | failed
        done, duration = terminated | truncated, duration_of(physics)
        like = physics, final_obs, final_mask, state.key
        going_on = _bare(like)

        def renew() -> tuple:
            keys = jax.vmap(jax.random.split)(_typed(going_on, like)[3])
            physics, obs = _strong(jax.vmap(task.reset)(keys[:, 1]))
            return select_rows(done, _bare((physics, obs, mask_of(physics), keys[:, 0])), going_on)

        chosen = jax.lax.cond(jnp.any(done), renew, lambda: going_on)
        physics, obs, mask, key = _typed(chosen, like)
        time = jnp.where(done, 0, time)
        return State(
            physics,
            obs,
            reward,
            terminated,
            truncated,
            final_obs,
            failed,
            time,
            key,
            mask,
            final_mask,
            duration,
        )

    def step(state: State, action: jax.Array) -> State:
        check_action(task.action_space, (num_envs, *agents(task.num_agents)), action)
        return advance(state, action)

    return Env(
        task.name,
        num_envs,
        task.obs_size,
        task.action_space,
        task.time_limit,
        reset,
        step,
        task.num_agents,
        task.actor_part,
    )


def check_action(space: spaces.Space, lead: tuple[int, ...], action: jax.Array) -> None:
    """Refuses actions of another shape or kind than the space takes, while tracing.

    Raises:
        ValueError: If the shape is not `lead` and that of one action, or a box is not given floats
            or choices are not integers.
    """
    shape = lead + spaces.shape(space)
    if action.shape != shape:
        raise ValueError(f"action must be {shape}, got {action.shape}")
    if isinstance(space, spaces.Box):
        if not jnp.issubdtype(action.dtype, jnp.floating):
            raise ValueError(f"action must be floats in [-1, 1], got {action.dtype}")
    elif not jnp.issubdtype(action.dtype, jnp.integer):
        raise ValueError(
            f"action must be integers for {space}, got {action.dtype}; draw a choice of the logits"
        )


def _strong(tree: PyTree) -> PyTree:
    """Without weak types, which would compile a carried state twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), tree)


def _bare(tree: PyTree) -> PyTree:
    """PRNG keys as the numbers that they are.

    JAX's check of reused keys (`jax_debug_key_reuse`) takes a choice between keys for a use of
    both. It is none: of a row that goes on, what its split key gave is thrown away.
    """
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _typed(bare: PyTree, like: PyTree) -> PyTree:
    """Keys again, where `like` has them."""
    return jax.tree.map(
        lambda y, x: jax.random.wrap_key_data(x, impl=jax.random.key_impl(y)) if _is_key(y) else x,
        like,
        bare,
    )


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _any(wrong: Callable, tree: PyTree, num_envs: int) -> Bool[Array, " N"]:
    """Rows of a batch in which a float of the tree is wrong anywhere."""
    found = jnp.zeros((num_envs,), bool)
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            found |= jnp.any(wrong(x), axis=tuple(range(1, x.ndim)))
    return found


def select(mask: Bool[Array, ""], a: Any, b: Any) -> Any:
    """a, keys and all, if the mask is true, b otherwise."""
    chosen = jax.tree.map(lambda x, y: jnp.where(mask, x, y), _bare(a), _bare(b))
    return _typed(chosen, b)


def select_rows(mask: Bool[Array, " N"], a: Any, b: Any) -> Any:
    """Rows of a where the mask is true, of b elsewhere."""
    return jax.tree.map(
        lambda x, y: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y), a, b
    )
