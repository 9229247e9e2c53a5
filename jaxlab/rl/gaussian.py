"""Soft actor-critic: a Gaussian squashed by tanh, with an entropy bonus.

Haarnoja et al. 2018, arXiv:1812.05905.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxlab.learning import distributions, temperature
from jaxlab.nn import Mlp
from jaxlab.rl import critics, generators
from jaxlab.rl.policy import Context, Improvement, Policy, see

LOG_STD = (-20.0, 2.0)
"""Bounds of the logarithm of the standard deviation."""


def sac(
    obs_size: int,
    action_size: int,
    *,
    hidden: tuple[int, ...] = generators.HIDDEN,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
    target_entropy: float | None = None,
    alpha_init: float = 1.0,
    learning_rate: float = 3e-4,
    alpha_learning_rate: float = 3e-4,
    num_particles: int = 1,
) -> Policy:
    """Makes SAC.

    Args:
        target_entropy: -A by default.
        alpha_init: learned temperature at the start.
        num_particles: K samples, of which the critics choose the best, as generative policies do;
            1 is SAC itself.

    Raises:
        ValueError: if `num_particles` is below 1.
    """
    critics.check_particles(num_particles)
    target_entropy = -float(action_size) if target_entropy is None else target_entropy
    network: Any = Mlp(hidden, 2 * action_size, activation)

    def choose(
        key: jax.Array, params: Any, obs: jax.Array, q: critics.Q
    ) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, num_particles)
        actions, logp = jax.vmap(lambda k: draw(k, network, params, see(obs, obs_size)))(keys)
        if num_particles == 1:
            return actions[0], logp[0]
        values = q(obs[None], actions)
        best = jnp.argmax(values, axis=0)[None]
        # The best has another density; that of any one sample is unbiased for the entropy.
        return jnp.take_along_axis(actions, best[..., None], axis=0)[0], logp[0]

    def act(
        key: jax.Array,
        params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
        *,
        explore: bool,
    ) -> jax.Array:
        if not explore and num_particles == 1:
            return jnp.tanh(jnp.split(network.apply(params, see(obs, obs_size)), 2, axis=-1)[0])
        return choose(key, params, obs, q)[0]

    def propose(
        key: jax.Array,
        params: Any,
        target_params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        action, logp = choose(key, params, obs, q)
        return action, -alpha * logp, {}

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        action, logp = draw(key, network, params, see(context.obs, obs_size))
        values = context.q(context.obs, action)
        alpha = jax.lax.stop_gradient(context.alpha)
        entropy = -jnp.mean(jax.lax.stop_gradient(logp))
        slope = jax.grad(temperature.entropy_dual_loss)
        gap = slope(jnp.log(alpha), entropy, target_entropy)
        found = Improvement(values, gap, {"policy/entropy": entropy})
        return jnp.mean(alpha * logp - values), found

    return Policy(
        action_size=action_size,
        obs_size=obs_size,
        init=lambda key: network.init(key, jnp.zeros((obs_size,))),
        act=act,
        propose=propose,
        loss=loss,
        optimizer=optax.adam(learning_rate),
        act_with_average=False,
        policy_every=1,
        alpha_init=alpha_init,
        alpha_every=1,
        alpha_learning_rate=alpha_learning_rate,
    )


def draw(
    key: jax.Array, network: Any, params: Any, obs: Float[Array, "... O"]
) -> tuple[Float[Array, "... A"], Float[Array, "..."]]:
    """Returns a = tanh(mean + std n) and its log-density."""
    mean, log_std = jnp.split(network.apply(params, obs), 2, axis=-1)
    log_std = jnp.clip(log_std, *LOG_STD)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    x = mean + jnp.exp(log_std) * noise
    return jnp.tanh(x), distributions.squashed_logp(x, noise, log_std)
