"""Macro-actions: K choices made at once and carried out one after another, without a look between.

The options of Sutton et al. 1999 (Artificial Intelligence 112) in their simplest form: a policy
that was fixed K steps ago. What is learned on them is a semi-Markov process, in which an action
takes time: the value of what follows counts gamma^k after k steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxlab.core.types import PyTree
from jaxlab.envs import episodes, spaces
from jaxlab.envs.task import Task


class MacroPhysics(NamedTuple):
    """State of a task that is played by macro-actions.

    Attributes:
        physics: State of the task itself.
        time: int32, its own steps since the episode began.
        duration: int32, its own steps that the last macro-action took; 0 at the start.
    """

    physics: PyTree
    time: Int[Array, ""]
    duration: Int[Array, ""]


def macro(task: Task, length: int, *, gamma: float) -> Task:
    """Makes a task of which one action is K choices of another, carried out in turn.

    An episode that ends inside a macro-action ends there: nothing moves any more, the rewards of
    the tokens that are left are 0, and a new episode begins with the next macro-action. The reward
    is the sum of gamma^i r_i over the steps that were carried out. How many they were is
    `State.duration`, so that the value of `final_obs` counts gamma^duration (1 - terminated) in the
    learner, whose gamma must be this one; `executed` says which tokens they were. The clock is the
    task's own: it may strike inside a macro-action, too.

    Macro-actions that fail (see `make_env`) fail as a whole. What a task's `action_mask` forbids is
    known of the first token alone.

    Args:
        task: What is played, of one choice (of each agent).
        length: K, tokens of a macro-action. With 1 it is the task itself, its actions `[N, 1]`.
        gamma: Discount of one step of the task, in [0, 1]. With 1 rewards are plain sums, which is
            what an evaluation should measure.

    Returns:
        A `Task` of `MultiDiscrete` actions `[K]`, `[A, K]` with agents.

    Raises:
        ValueError: If this is no task of one choice whose steps take one step, the length is below
            1, or gamma lies outside [0, 1].

    Example:
        >>> task = envs.macro(envs.deep_sea(8), 4, gamma=0.99)
        >>> env = envs.make_env(task, num_envs=16)
        >>> state = env.step(env.reset(key), jnp.zeros((16, 4), jnp.int32))
        >>> discount = jnp.where(state.terminated, 0.0, 0.99**state.duration)
    """
    if not isinstance(task, Task):
        raise ValueError(
            f"macro takes an envs.Task, got {type(task).__name__}; wrap the task first, then run "
            "it by make_env"
        )
    if not isinstance(task.action_space, spaces.Discrete) or task.duration is not None:
        raise ValueError(
            f"{task.name}: macro-actions are made of single choices that take one step, got "
            f"{task.action_space}" + (" and a duration" if task.duration is not None else "")
        )
    if not spaces.is_count(length):
        raise ValueError(f"length must be an integer of at least 1, got {length!r}")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")

    def reset(key: jax.Array) -> tuple[MacroPhysics, PyTree]:
        physics, obs = task.reset(key)
        zero = jnp.zeros((), jnp.int32)
        return MacroPhysics(physics, zero, zero), obs

    def one(carry: tuple, token: Array) -> tuple[tuple, None]:
        """One step of the task, unless its episode has ended."""
        before, _, total, factor, terminated, truncated = carry
        physics, obs, reward, *ends = task.step(before.physics, token)
        reward = jnp.asarray(reward).astype(total.dtype)
        # NaN that the next step would hide makes the whole fail, as it makes a step.
        reward = jnp.where(_is_wrong(physics, obs), jnp.nan, reward)
        ended, cut = (jnp.asarray(x).astype(bool) for x in (*ends, False)[:2])
        now = MacroPhysics(physics, before.time + 1, before.duration + 1)
        cut = (cut | (now.time >= task.time_limit)) & ~ended
        after = (now, obs, total + factor * reward, factor * gamma, ended, cut)
        return episodes.select(terminated | truncated, carry, after), None

    def step(state: MacroPhysics, tokens: Int[Array, "... K"]) -> tuple:
        _, obs, reward, *_ = jax.eval_shape(task.step, state.physics, tokens[..., 0])
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), obs)
        total = jnp.zeros(reward.shape, jnp.result_type(float))
        start = (
            state._replace(duration=jnp.zeros((), jnp.int32)),
            nothing,
            total,
            jnp.ones((), total.dtype),
            jnp.zeros((), bool),
            jnp.zeros((), bool),
        )
        carry, _ = jax.lax.scan(one, start, jnp.moveaxis(tokens, -1, 0))
        physics, obs, total, _, terminated, truncated = carry
        return physics, obs, total, terminated, truncated

    def action_mask(state: MacroPhysics) -> Bool[Array, "... KV"]:
        first: Any = task.action_mask
        mask = first(state.physics)
        later = jnp.ones((*mask.shape[:-1], (length - 1) * mask.shape[-1]), bool)
        return jnp.concatenate([mask, later], axis=-1)

    return task._replace(
        name=f"{task.name} x{length}",
        action_space=spaces.MultiDiscrete((task.action_space.num,) * length),
        time_limit=-(-task.time_limit // length),
        reset=reset,
        step=step,
        action_mask=None if task.action_mask is None else action_mask,
        duration=lambda state: state.duration,
    )


def executed(duration: Int[Array, "*B"], length: int) -> Bool[Array, "*B K"]:
    """Returns which of K tokens were carried out: the first `duration`, True.

    It is the `token_mask` of losses: what was not carried out has no part in what followed.
    """
    place = jax.lax.broadcasted_iota(duration.dtype, (*duration.shape, length), duration.ndim)
    return place < duration[..., None]


def _is_wrong(physics: PyTree, obs: PyTree) -> Bool[Array, ""]:
    """What makes a step fail, see `State.failed`."""
    found = [jnp.any(jnp.isnan(x)) for x in _floats(physics)]
    found += [jnp.any(~jnp.isfinite(x)) for x in _floats(obs)]
    return jnp.any(jnp.stack(found)) if found else jnp.zeros((), bool)


def _floats(tree: PyTree) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
