"""Returns of whole episodes, deterministic in the key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.envs import Env


def evaluate(
    key: jax.Array, act: Callable[[jax.Array, jax.Array], jax.Array], env: Env
) -> Float[Array, " N"]:
    """Plays one episode in each environment of a batch.

    Args:
        act: `act(key, obs [N, O]) -> [N, A]`, clipped to [-1, 1] here.
        env: what is played; N episodes of `time_limit` steps at most.
        key: of starts and actions, apart from those of training.

    Returns:
        `[N]`, the undiscounted return of the first episode of each environment.
    """
    key_reset, key_steps = jax.random.split(key)

    def one(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        state, total, running = carry
        state = env.step(state, jnp.clip(act(key, state.obs), -1.0, 1.0))
        total = total + jnp.where(running, state.reward, 0.0)
        return (state, total, running & ~(state.terminated | state.truncated)), None

    zeros = jnp.zeros((env.num_envs,))
    start = (env.reset(key_reset), zeros, jnp.ones((env.num_envs,), bool))
    keys = jax.random.split(key_steps, env.time_limit)
    return jax.lax.scan(one, start, keys)[0][1]
