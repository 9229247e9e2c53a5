"""TD3: a deterministic policy improved along the critic's gradient.

Fujimoto et al. 2018, arXiv:1802.09477.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.nn import Mlp
from jaxlab.rl import critics, generators
from jaxlab.rl.policy import Context, Improvement, Policy, see


def td3(
    obs_size: int,
    action_size: int,
    *,
    hidden: tuple[int, ...] = generators.HIDDEN,
    exploration: float = 0.1,
    smoothing: float = 0.2,
    smoothing_clip: float = 0.5,
    learning_rate: float = 3e-4,
    num_particles: int = 1,
) -> Policy:
    """Makes TD3.

    Args:
        exploration: std of the noise in acting.
        smoothing, smoothing_clip: std and bound of the noise in the critics' target.
        num_particles: K exploring actions, of which the critics choose the best, as generative
            policies do; 1 is TD3 itself.

    Raises:
        ValueError: if `num_particles` is below 1.
    """
    critics.check_particles(num_particles)
    network: Any = Mlp(hidden, action_size)

    def noisy(
        action: jax.Array, key: jax.Array, obs: jax.Array, q: critics.Q, std: float, bound: float
    ) -> jax.Array:
        shape = (num_particles, *action.shape)
        noise = jnp.clip(std * jax.random.normal(key, shape, action.dtype), -bound, bound)
        tried = jnp.clip(action[None] + noise, -1.0, 1.0)
        return critics.choose(q, obs, tried)

    def act(
        key: jax.Array,
        params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
        *,
        explore: bool,
    ) -> jax.Array:
        action = jnp.tanh(network.apply(params, see(obs, obs_size)))
        if not explore and num_particles == 1:
            return action
        return noisy(action, key, obs, q, exploration, jnp.inf)

    def propose(
        key: jax.Array,
        params: Any,
        target_params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        action = jnp.tanh(network.apply(target_params, see(obs, obs_size)))
        action = noisy(action, key, obs, q, smoothing, smoothing_clip)
        return action, jnp.zeros(obs.shape[:1]), {}

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        action = jnp.tanh(network.apply(params, see(context.obs, obs_size)))
        values = context.q_first(context.obs, action)
        return -jnp.mean(values), Improvement(values, jnp.zeros(()), {})

    return Policy(
        action_size=action_size,
        obs_size=obs_size,
        init=lambda key: network.init(key, jnp.zeros((obs_size,))),
        act=act,
        propose=propose,
        loss=loss,
        optimizer=optax.adam(learning_rate),
        act_with_average=False,
        alpha_init=1.0,
        alpha_every=0,
    )
