"""Returns of whole episodes, deterministic in the key."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import PyTree
from jaxlab.envs import Env, spaces

_PROGRAMS: weakref.WeakKeyDictionary[Callable, dict[Env, Any]] = weakref.WeakKeyDictionary()
"""Compiled programs by `act` and environment; they go with the `act`, which may hold a replay."""


def evaluate(
    key: jax.Array, act: Callable[..., jax.Array], env: Env, params: PyTree = None
) -> Float[Array, "N ..."]:
    """Plays one episode in each environment of a batch; compiled once for each `act` and `env`.

    Args:
        key: PRNG key of starts and actions, apart from those of training.
        act: `act(key, obs [N, O]) -> [N, A]`, clipped to [-1, 1] here, or integers for choices.
            With `params` it is `act(key, params, obs)`. Where the environment has masks they are
            one more argument, the last.
        env: what is played; N episodes of `time_limit` steps at most.
        params: what changes from one evaluation to the next, a state of a learner say; a function
            that closes over it instead is a new one each time, and is compiled each time.

    Returns:
        `[N]`, the undiscounted return of the first episode of each environment; `[N, A]` where
        agents have rewards of their own. An episode that a failed step cut off counts with what it
        had by then.

    Example:
        >>> env = envs.make_env(envs.pendulum(), 4)
        >>> learning.evaluate(key, lambda key, obs: jnp.zeros((4, 1)), env).shape
        (4,)
    """
    programs = _PROGRAMS.setdefault(act, {})
    if env not in programs:
        alive: Any = weakref.ref(act)
        programs[env] = jax.jit(lambda key, params: _play(key, params, alive(), env))
    return programs[env](key, params)


def _play(key: jax.Array, params: PyTree, act: Callable[..., jax.Array], env: Env) -> jax.Array:
    given = () if params is None else (params,)
    key_reset, key_steps = jax.random.split(key)

    def one(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        state, total, running = carry
        mask = () if isinstance(state.action_mask, tuple) else (state.action_mask,)
        action = act(key, *given, state.obs, *mask)
        if isinstance(env.action_space, spaces.Box):
            action = jnp.clip(action, -1.0, 1.0)
        state = env.step(state, action)
        counts = running.reshape(running.shape + (1,) * (total.ndim - 1))
        total = total + jnp.where(counts, state.reward, 0.0)
        return (state, total, running & ~(state.terminated | state.truncated)), None

    first = env.reset(key_reset)
    start = (first, jnp.zeros_like(first.reward), jnp.ones((env.num_envs,), bool))
    keys = jax.random.split(key_steps, env.time_limit)
    return jax.lax.scan(one, start, keys)[0][1]
