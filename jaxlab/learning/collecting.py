"""Collecting experience: environments are stepped, and what happened goes into a replay.

What an actor's numbers become on their way into the environment, and how the replay is filled
before anything is learned, follows the space of actions: a box is clipped to [-1, 1] and explored
uniformly, choices are drawn uniformly among those that are allowed and never clipped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Mean, PyTree, Transition
from jaxlab.envs import Env, State, spaces
from jaxlab.learning import normalization
from jaxlab.learning import replay as replay_lib

LOOKS = 8
"""Random steps after a reset whose observations must fit into the replay's own dtype."""


class Experience(NamedTuple):
    """What acting leaves behind.

    Attributes:
        env: State of the environments.
        replay: Ring of `Transition`, the oldest written over.
        obs_stats: Moments of the observations that were acted on, see `normalization`; `()` where
            observations are taken as they are.
        returns: `[E]` undiscounted sum of rewards of the running episodes.
        failures: int32, steps of environments that were not finite, since the start.
    """

    env: State
    replay: replay_lib.Replay
    obs_stats: PyTree
    returns: Float[Array, " E"]
    failures: Int[Array, ""]


class Collector(NamedTuple):
    """Functions that fill a replay.

    Attributes:
        init: `init(key) -> Experience`, environments at their start and an empty replay.
        collect: `collect(experience, action) -> (experience, ended)`: steps all environments once,
            stores what happened, and returns the `Mean` return of the episodes that ended, without
            those that a failed step cut off.
        warm_up: `warm_up(key, experience, num_transitions) -> Experience`, by uniform actions; the
            number is rounded up to whole steps of all environments.
    """

    init: Callable[[jax.Array], Experience]
    collect: Callable[[Experience, jax.Array], tuple[Experience, Mean]]
    warm_up: Callable[[jax.Array, Experience, int], Experience]


def make_collector(
    env: Env,
    *,
    capacity: int,
    extras: Callable[[jax.Array], PyTree] | None = None,
    normalize_obs: bool = False,
    obs_dtype: Any = None,
    store_clipped: bool = True,
) -> Collector:
    """Makes the functions that step environments and store transitions.

    A step that failed is counted and not stored: the transition of another environment takes its
    place. Where all failed at once, rows that end their episode without reward do.

    Args:
        env: a batch of E environments without an agent axis.
        capacity: transitions that the replay holds, a multiple of E.
        extras: `extras(action [E, ...]) -> pytree [E, ...]`, stored with the transitions.
        normalize_obs: keep moments of the observations that are acted on, those of failed steps
            left out.
        obs_dtype: that the replay holds observations in, such as uint8 for images; theirs by
            default. A dict of dtypes for a dict of observations, parts that it leaves out as they
            are.
        store_clipped: the replay holds the action of a box clipped to [-1, 1], which is what the
            environment gets in any case; else the one before the clip.

    Raises:
        ValueError: if the capacity is no multiple of E, the environment has agents, or numbers of
            the observations do not fit into `obs_dtype`: an integer dtype must hold them exactly,
            images in [0, 1] are no uint8. It is checked on a reset and a few random steps.
    """
    if env.num_agents is not None:
        raise ValueError(
            f"{env.name} has {env.num_agents} agents; a learner of one actor takes environments "
            "without an agent axis"
        )
    if not spaces.is_count(capacity) or capacity % env.num_envs:
        raise ValueError(
            f"capacity must be a multiple of the {env.num_envs} environments, which are stored "
            f"together, got {capacity}"
        )
    E, space = env.num_envs, env.action_space
    if obs_dtype is not None:
        _check_dtype(env, obs_dtype)

    def init(key: jax.Array) -> Experience:
        state = env.reset(key)
        dtype = jnp.result_type(float) if isinstance(space, spaces.Box) else jnp.int32
        action = jnp.zeros((E, *spaces.shape(space)), dtype)  # an example, never stored
        first = jax.tree.map(lambda x: x[0], _transition(state, action, state))
        return Experience(
            env=state,
            replay=replay_lib.init(capacity, first, batch=E),
            obs_stats=_init_stats(state.obs) if normalize_obs else (),
            returns=jnp.zeros_like(state.reward),
            failures=jnp.zeros((), jnp.int32),
        )

    def _transition(before: State, action: jax.Array, after: State) -> Transition:
        return Transition(
            obs=_narrow(before.obs, obs_dtype),
            action=action,
            reward=after.reward,
            terminated=after.terminated,
            truncated=after.truncated,
            next_obs=_narrow(after.final_obs, obs_dtype),
            extras=() if extras is None else extras(action),
            action_mask=before.action_mask,
            next_action_mask=after.final_action_mask,
            duration=after.duration,
        )

    def collect(experience: Experience, action: jax.Array) -> tuple[Experience, Mean]:
        before = experience.env
        acted = jnp.clip(action, -1.0, 1.0) if isinstance(space, spaces.Box) else action
        after = env.step(before, acted)
        transition = _transition(before, acted if store_clipped else action, after)
        stats = experience.obs_stats
        if normalize_obs:
            stats = normalization.update_obs_stats(stats, before.obs, ~after.failed)
        returns, ended = add_rewards(experience.returns, after)
        experience = Experience(
            env=after,
            replay=replay_lib.add(experience.replay, _without_failed(transition, after.failed)),
            obs_stats=stats,
            returns=returns,
            failures=experience.failures + jnp.sum(after.failed, dtype=jnp.int32),
        )
        return experience, ended

    def at_random(experience: Experience, key: jax.Array) -> tuple[Experience, None]:
        action = spaces.sample(key, space, (E,), experience.env.action_mask)
        return collect(experience, action)[0], None

    def warm_up(key: jax.Array, experience: Experience, num_transitions: int) -> Experience:
        keys = jax.random.split(key, -(-num_transitions // E))
        return jax.lax.scan(at_random, experience, keys)[0]

    return Collector(init, collect, warm_up)


def add_rewards(returns: Float[Array, " E"], after: State) -> tuple[Float[Array, " E"], Mean]:
    """Adds the rewards of a step to the returns of the running episodes.

    Args:
        returns: `[E]` undiscounted sums of rewards so far.
        after: the environments after the step; of agents' own rewards the mean counts.

    Returns:
        `(returns, ended)`: the sums, 0 where an episode ended; and the `Mean` return of those that
        did, without those that a failed step cut off.
    """
    reward = after.reward.astype(returns.dtype)
    total = returns + jnp.mean(reward.reshape(reward.shape[0], -1), axis=1)
    done = after.terminated | after.truncated
    whole = done & ~after.failed
    ended = Mean(jnp.sum(jnp.where(whole, total, 0.0)), jnp.sum(whole, dtype=total.dtype))
    return jnp.where(done, 0.0, total), ended


def widen(obs: PyTree, like: PyTree) -> PyTree:
    """Returns stored observations in the dtypes of the environment's own, `like`."""
    return jax.tree.map(lambda x, own: x.astype(own.dtype), obs, like)


def _narrow(obs: PyTree, dtype: Any) -> PyTree:
    if isinstance(obs, dict):
        dtypes = dtype if isinstance(dtype, dict) else dict.fromkeys(obs, dtype)
        return {name: _narrow(x, dtypes.get(name)) for name, x in obs.items()}
    return obs if dtype is None else obs.astype(dtype)


def _init_stats(obs: PyTree) -> PyTree:
    return jax.tree.map(lambda x: normalization.init_obs_stats(x.shape[1:], x.dtype), obs)


def _without_failed(transition: Transition, failed: jax.Array) -> Transition:
    """Puts another environment's transition where a step failed; where all did, an end."""
    rows = jnp.where(failed, jnp.argmin(failed), jnp.arange(failed.size))
    kept = jax.tree.map(lambda x: x[rows], transition)
    return kept._replace(terminated=kept.terminated | jnp.all(failed))


def _check_dtype(env: Env, dtype: Any) -> None:
    """Runs the environments a little, and looks at what their observations become."""

    @jax.jit
    def look(key: jax.Array) -> PyTree:
        def one(state: State, key: jax.Array) -> tuple[State, PyTree]:
            action = spaces.sample(key, env.action_space, (env.num_envs,), state.action_mask)
            return env.step(state, action), state.obs

        return jax.lax.scan(one, env.reset(key), jax.random.split(key, LOOKS))[1]

    seen = look(jax.random.key(0))
    if isinstance(dtype, dict) and not (isinstance(seen, dict) and dtype.keys() <= seen.keys()):
        parts = sorted(seen) if isinstance(seen, dict) else "one array"
        raise ValueError(
            f"obs_dtype names {sorted(dtype)}, the observations of {env.name} are {parts}"
        )
    stored = jax.tree.leaves(_narrow(seen, dtype))
    for (path, x), y in zip(jax.tree.leaves_with_path(seen), stored, strict=True):
        back = y.astype(x.dtype)
        exact = not jnp.issubdtype(y.dtype, jnp.floating)
        if not jnp.all(x == back if exact else jnp.isfinite(back)):
            raise ValueError(
                f"obs_dtype {y.dtype} does not hold the observations of {env.name}"
                f"{jax.tree_util.keystr(path)}, between {jnp.min(x):g} and {jnp.max(x):g}; "
                "scale and round them in the task, or leave obs_dtype out"
            )
