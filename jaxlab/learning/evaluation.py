"""Returns of whole episodes, deterministic in the key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.envs import Env, spaces


def evaluate(key: jax.Array, act: Callable[..., jax.Array], env: Env) -> Float[Array, "N ..."]:
    """Plays one episode in each environment of a batch.

    Args:
        key: PRNG key of starts and actions, apart from those of training.
        act: `act(key, obs [N, O]) -> [N, A]`, clipped to [-1, 1] here, or integers for choices.
            Where the environment has masks, `act(key, obs, mask)`.
        env: what is played; N episodes of `time_limit` steps at most.

    Returns:
        `[N]`, the undiscounted return of the first episode of each environment; `[N, A]` where
        agents have rewards of their own. An episode that a failed step cut off counts with what it
        had by then.

    Example:
        >>> env = envs.make_env(envs.pendulum(), 4)
        >>> learning.evaluate(key, lambda key, obs: jnp.zeros((4, 1)), env).shape
        (4,)
    """
    key_reset, key_steps = jax.random.split(key)

    def one(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        state, total, running = carry
        mask = () if isinstance(state.action_mask, tuple) else (state.action_mask,)
        action = act(key, state.obs, *mask)
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
