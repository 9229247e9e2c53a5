"""IQ-Learn, offline: one soft value function whose implied reward is high on the expert's pairs.

Garg et al. 2021, arXiv:2106.12142, its two-line loss.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.imitation import learner as learner_lib
from jaxlab.imitation.data.preparing import Demonstrations
from jaxlab.imitation.learner import Method, TrainState
from jaxlab.imitation.policy import Policy
from jaxlab.learning import settings as settings_lib


def make_iq_learn(
    demos: Demonstrations,
    policy: Policy | None = None,
    *,
    gamma: float = 0.99,
    alpha: float = 0.5,
    temperature: float = 1e-2,
    batch_size: int = 256,
    hidden: tuple[int, ...] = (256, 256),
    critic_learning_rate: float = 3e-4,
    policy_learning_rate: float = 3e-5,
) -> Algorithm:
    """Makes IQ-Learn on the expert's transitions alone, with a soft actor.

    Args:
        demos: what `prepare` made; logs are not looked at.
        policy: the actor; the usual one by default.
        gamma: discount in (0, 1).
        alpha: of the chi-square regularizer E[r^2] / (4 alpha), positive.
        temperature: weight of the policy's entropy.
        batch_size: transitions of a step.
        hidden: of the critic, ReLU.
        critic_learning_rate, policy_learning_rate: of Adam.

    Raises:
        ValueError: if a number is out of range.
    """
    learner_lib.check_gamma(gamma)
    settings_lib.check({"alpha": alpha}, {"alpha": settings_lib.POSITIVE})
    learner_lib.check_rates(
        batch_size,
        critic_learning_rate=critic_learning_rate,
        policy_learning_rate=policy_learning_rate,
        temperature=temperature,
    )
    actor = learner_lib.policy_for(demos, policy)
    critic = learner_lib.scalar_network(hidden)

    def init(key: jax.Array) -> dict[str, PyTree]:
        key_critic, key_policy = jax.random.split(key)
        sizes = (demos.obs_size, demos.action_size)
        return {"critic": critic.init(key_critic, *sizes), "policy": actor.init(key_policy)}

    def gradients(key: jax.Array, state: TrainState) -> tuple[dict[str, PyTree], Metrics]:
        key_rows, key_now, key_next, key_actor = jax.random.split(key, 4)
        batch = learner_lib.rows_of(key_rows, demos.expert, batch_size)
        discount = gamma * (1.0 - batch.terminated.astype(batch.obs.dtype))

        def critic_loss(params: PyTree) -> jax.Array:
            def value(key: jax.Array, obs: jax.Array) -> jax.Array:
                action, logp = actor.draw(key, state.params["policy"], obs)
                return critic.apply(params, obs, action) - temperature * logp

            q = critic.apply(params, batch.obs, batch.action)
            now, then = value(key_now, batch.obs), value(key_next, batch.next_obs)
            return iq_loss(q, now, discount * then, alpha=alpha)

        def policy_loss(params: PyTree) -> jax.Array:
            action, logp = actor.draw(key_actor, params, batch.obs)
            q = critic.apply(state.params["critic"], batch.obs, action)
            return jnp.mean(temperature * logp - q)

        fitted, of_critic = jax.value_and_grad(critic_loss)(state.params["critic"])
        loss, of_policy = jax.value_and_grad(policy_loss)(state.params["policy"])
        metrics = {"critic/loss": fitted, "policy/loss": loss}
        return {"critic": of_critic, "policy": of_policy}, metrics

    optimizers = {
        "critic": optax.adam(critic_learning_rate),
        "policy": optax.adam(policy_learning_rate),
    }
    return learner_lib.make_learner(Method("iq_learn", init, gradients, optimizers))


def iq_loss(
    q: Float[Array, " B"],
    value: Float[Array, " B"],
    discounted_next: Float[Array, " B"],
    *,
    alpha: float,
) -> Float[Array, ""]:
    """Returns -E[r] + E[V(s) - gamma V(s')] + E[r^2] / (4 alpha) with r = Q(s, a) - gamma V(s').

    Args:
        q: `[B]`, Q of the expert's pairs.
        value: `[B]`, V(s).
        discounted_next: `[B]`, gamma V(s'), 0 after a termination.
        alpha: weight of the divergence.
    """
    reward = q - discounted_next
    flow = jnp.mean(value - discounted_next)
    return flow - jnp.mean(reward) + jnp.mean(reward**2) / (4.0 * alpha)
