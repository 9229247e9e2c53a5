"""Episodes of an environment, recorded as a dataset."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import envs
from jaxlab.core.types import PyTree
from jaxlab.imitation.data.dataset import Dataset


def record(
    key: jax.Array,
    act: Callable[..., jax.Array],
    env: envs.Env,
    *,
    params: PyTree = None,
    about: Mapping[str, Any] | None = None,
) -> Dataset:
    """Plays one episode in each environment of a batch, and keeps every transition.

    Args:
        key: PRNG key of starts and actions.
        act: `act(key, obs [N, O]) -> [N, A]` in [-1, 1], or `act(key, params, obs)`; actions are
            clipped to that range.
        env: what is played, with a box of actions.
        params: see `act`.
        about: what the header shall say besides the environment and its time limit: `backend`,
            `policy`, `return`, `seed`.

    Returns:
        N episodes of `time_limit` transitions at most; actions in the environment's units.

    Raises:
        ValueError: if actions are no box, or a step failed.
    """
    space = env.action_space
    if not isinstance(space, envs.Box):
        raise ValueError(f"{env.name}: record takes an environment with a box, got {space}")
    given = () if params is None else (params,)

    def one(state: envs.State, key: jax.Array) -> tuple[envs.State, tuple]:
        obs = envs.actor_obs(env, state.obs)
        action = jnp.clip(act(key, *given, obs), -1.0, 1.0)
        after = env.step(state, action)
        reached = envs.actor_obs(env, after.final_obs)
        ends = (after.terminated, after.truncated, after.failed)
        return after, (obs, action, reached, after.reward, *ends)

    key_reset, key_steps = jax.random.split(key)
    keys = jax.random.split(key_steps, env.time_limit)
    _, rows = jax.jit(lambda first, keys: jax.lax.scan(one, first, keys))(
        env.reset(key_reset), keys
    )
    obs, action, next_obs, reward, terminated, truncated, failed = map(np.asarray, rows)
    done = np.cumsum(terminated | truncated, axis=0)
    keep = (done - (terminated | truncated)) == 0  # up to the first end
    if np.any(failed & keep):
        raise ValueError(f"{env.name}: {np.sum(failed & keep)} recorded steps failed")

    def flat(x: np.ndarray) -> np.ndarray:
        return np.swapaxes(x, 0, 1)[keep.T]

    low, high = (np.asarray(x, np.float32) for x in (space.low, space.high))
    scaled = low + 0.5 * (flat(action).astype(np.float32) + 1.0) * (high - low)
    ids = np.broadcast_to(np.arange(env.num_envs, dtype=np.int32), keep.shape)
    return Dataset(
        obs=flat(obs).astype(np.float32),
        action=np.clip(scaled, low, high),
        next_obs=flat(next_obs).astype(np.float32),
        reward=flat(reward).astype(np.float32),
        terminated=flat(terminated),
        truncated=flat(truncated),
        episode_id=flat(ids),
        action_low=low,
        action_high=high,
        about={"env": env.name, "time_limit": env.time_limit, **(about or {})},
    )
