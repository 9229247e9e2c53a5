"""DemoDICE: occupancies near the expert's that stay near the data's, then weighted cloning.

Kim et al. 2022, OpenReview BrPdX1bDZkQ.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.imitation import learner as learner_lib
from jaxlab.imitation import value_dice
from jaxlab.imitation.data import preparing
from jaxlab.imitation.data.preparing import Demonstrations
from jaxlab.imitation.learner import Method, TrainState
from jaxlab.imitation.policy import Policy

_SMALL = 1e-3


def make_demodice(
    demos: Demonstrations,
    policy: Policy | None = None,
    *,
    gamma: float = 0.99,
    alpha: float = 0.0,
    batch_size: int = 512,
    hidden: tuple[int, ...] = (256, 256),
    learning_rate: float = 3e-4,
    discriminator_penalty: float = 0.1,
    value_penalty: float = 1e-4,
) -> Algorithm:
    """Makes DemoDICE; one step updates discriminator, dual variable and policy. A million is usual.

    Args:
        demos: what `prepare` made, with logs.
        policy: the actor; the usual one by default.
        gamma: discount in (0, 1).
        alpha: weight of the divergence from all data's occupancy, not negative.
        batch_size: transitions of the expert, of all data, and starts.
        hidden: of discriminator and dual variable, ReLU with He's normal weights.
        learning_rate: of Adam, for all three.
        discriminator_penalty: of (|grad r| - 1)^2 between expert and all data; the released code
            takes it between rows of all data, too.
        value_penalty: of |grad nu|^2 on all data; the released code takes it between expert and all
            data, too.

    Raises:
        ValueError: if a number is out of range or there are no logs.
    """
    learner_lib.check_gamma(gamma)
    learner_lib.check_rates(
        batch_size,
        learning_rate=learning_rate,
        alpha=alpha,
        discriminator_penalty=discriminator_penalty,
        value_penalty=value_penalty,
    )
    learner_lib.logs_of(demos, "DemoDICE")
    union = preparing.union(demos)
    firsts = union.obs[learner_lib.first_rows(union)]
    actor = learner_lib.policy_for(demos, policy)
    network = learner_lib.scalar_network(hidden, kernel_init=nn.initializers.he_normal())

    def init(key: jax.Array) -> dict[str, PyTree]:
        keys = jax.random.split(key, 3)
        sizes = (demos.obs_size, demos.action_size)
        return {
            "discriminator": network.init(keys[0], *sizes),
            "value": network.init(keys[1], demos.obs_size),
            "policy": actor.init(keys[2]),
        }

    def gradients(key: jax.Array, state: TrainState) -> tuple[dict[str, PyTree], Metrics]:
        keys = jax.random.split(key, 4)
        expert = learner_lib.rows_of(keys[0], demos.expert, batch_size)
        data = learner_lib.rows_of(keys[1], union, batch_size)
        start = firsts[jax.random.randint(keys[2], (batch_size,), 0, firsts.shape[0])]
        share = jax.random.uniform(keys[3], (batch_size, 1))
        middle = [
            share * getattr(expert, field) + (1.0 - share) * getattr(data, field)
            for field in ("obs", "action")
        ]

        def discriminator_loss(params: PyTree) -> jax.Array:
            mine = network.apply(params, expert.obs, expert.action)
            others = network.apply(params, data.obs, data.action)
            told = jnp.mean(jax.nn.softplus(-mine)) + jnp.mean(jax.nn.softplus(others))
            penalty = value_dice.gradient_penalty(
                lambda *x: reward_of(network.apply(params, *x)), middle[0], middle[1]
            )
            return told + discriminator_penalty * penalty

        reward = reward_of(network.apply(state.params["discriminator"], data.obs, data.action))
        discount = gamma * (1.0 - data.terminated.astype(reward.dtype))

        def advantage_of(params: PyTree) -> jax.Array:
            now, then = (network.apply(params, x) for x in (data.obs, data.next_obs))
            return reward + discount * then - now

        def value_loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
            advantage = advantage_of(params)
            slope = jax.grad(lambda x: jnp.sum(network.apply(params, x)))(data.obs)
            steep = jnp.mean(jnp.sum(slope**2, axis=-1))
            fitted = dual_loss(advantage, network.apply(params, start), gamma=gamma, alpha=alpha)
            return fitted + value_penalty * steep, advantage

        def policy_loss(params: PyTree) -> jax.Array:
            logp = actor.log_prob(params, data.obs, data.action)
            return -jnp.mean(weights_of(advantage, alpha=alpha) * logp)

        told, of_discriminator = jax.value_and_grad(discriminator_loss)(
            state.params["discriminator"]
        )
        (value, advantage), of_value = jax.value_and_grad(value_loss, has_aux=True)(
            state.params["value"]
        )
        loss, of_policy = jax.value_and_grad(policy_loss)(state.params["policy"])
        metrics = {"discriminator/loss": told, "value/loss": value, "policy/loss": loss}
        found = {"discriminator": of_discriminator, "value": of_value, "policy": of_policy}
        return found, metrics

    names = ("discriminator", "value", "policy")
    optimizers = {name: optax.adam(learning_rate) for name in names}
    return learner_lib.make_learner(Method("demodice", init, gradients, optimizers))


def reward_of(logit: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns -log(1 / (p + 1e-3) - 1 + 1e-3) with p the discriminator's probability of expert."""
    return -jnp.log(1.0 / (jax.nn.sigmoid(logit) + _SMALL) - 1.0 + _SMALL)


def dual_loss(
    advantage: Float[Array, " B"], start: Float[Array, " B"], *, gamma: float, alpha: float = 0.0
) -> Float[Array, ""]:
    """Returns (1 + alpha) log mean exp(A / (1 + alpha)) + (1 - gamma) mean nu(s0).

    Args:
        advantage: `[B]`, A = r + gamma nu(s') - nu(s) over all data.
        start: `[B]`, nu(s0).
        gamma: discount.
        alpha: see `make_demodice`.
    """
    spread = jax.nn.logsumexp(advantage / (1.0 + alpha)) - jnp.log(float(advantage.shape[0]))
    return (1.0 + alpha) * spread + (1.0 - gamma) * jnp.mean(start)


def weights_of(advantage: Float[Array, " B"], *, alpha: float = 0.0) -> Float[Array, " B"]:
    """Returns exp(A / (1 + alpha)) over its mean, the weights of cloning; no gradient."""
    scaled = jax.lax.stop_gradient(advantage) / (1.0 + alpha)
    return jax.nn.softmax(scaled) * float(advantage.shape[0])
