"""SMODICE: the expert's occupancy of states (or of states and actions) among logged transitions.

Ma et al. 2022, arXiv:2202.02433.
"""

from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.envs import spaces
from jaxlab.imitation import learner as learner_lib
from jaxlab.imitation import value_dice
from jaxlab.imitation.data import preparing
from jaxlab.imitation.data.preparing import Demonstrations, Transitions
from jaxlab.imitation.learner import Method, TrainState
from jaxlab.imitation.policy import Policy
from jaxlab.learning import settings as settings_lib
from jaxlab.learning import temperature

Match = Literal["state", "state_action"]
Divergence = Literal["kl", "chi2"]


def make_smodice(
    demos: Demonstrations,
    policy: Policy | None = None,
    *,
    match: Match = "state",
    divergence: Divergence = "kl",
    gamma: float = 0.99,
    batch_size: int = 512,
    hidden: tuple[int, ...] = (256, 256),
    learning_rate: float = 3e-4,
    value_decay: float = 1e-4,
    discriminator_steps: int = 4000,
    discriminator_penalty: float = 10.0,
    target_entropy: float | None = None,
) -> Algorithm:
    """Makes SMODICE; the discriminator is trained at the start, and then held.

    Args:
        demos: what `prepare` made, with logs.
        policy: the actor; the usual one by default.
        match: what is matched; by states alone the expert's actions are never looked at.
        divergence: of the occupancies.
        gamma: discount in (0, 1).
        batch_size: transitions, and starts, of a step.
        hidden: of the discriminator, tanh, and of the value, ReLU.
        learning_rate: of Adam, for all.
        value_decay: of the value's squared weights, half of it times their sum.
        discriminator_steps: batches that the discriminator is trained on, at least 1. The released
            code makes 1000 passes over the expert's transitions, four batches of 256 each for a
            trajectory of a thousand steps.
        discriminator_penalty: of (|grad c| - 1)^2 between expert and all data.
        target_entropy: least entropy of the policy, -A by default.

    Raises:
        ValueError: if a choice is unknown, a number out of range, or there are no logs.
    """
    if match not in get_args(Match):
        raise ValueError(f"match must be state or state_action, got {match!r}")
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence must be kl or chi2, got {divergence!r}")
    if not spaces.is_count(discriminator_steps):
        raise ValueError(f"discriminator_steps must be at least 1, got {discriminator_steps}")
    learner_lib.check_gamma(gamma)
    learner_lib.check_rates(
        batch_size,
        learning_rate=learning_rate,
        value_decay=value_decay,
        discriminator_penalty=discriminator_penalty,
    )
    least = -float(demos.action_size) if target_entropy is None else target_entropy
    settings_lib.check({"target_entropy": least}, {})
    learner_lib.logs_of(demos, "SMODICE")
    union = preparing.union(demos)
    firsts = union.obs[learner_lib.first_rows(union)]
    actor = learner_lib.policy_for(demos, policy)
    judge = learner_lib.scalar_network(hidden, nn.tanh)
    critic = learner_lib.scalar_network(hidden)

    def seen(data: Transitions) -> tuple[jax.Array, ...]:
        return (data.obs,) if match == "state" else (data.obs, data.action)

    def init(key: jax.Array) -> dict[str, PyTree]:
        key_value, key_policy = jax.random.split(key)
        return {
            "value": critic.init(key_value, demos.obs_size),
            "policy": actor.init(key_policy),
            "log_temperature": jnp.zeros(()),
        }

    def discriminator_loss(key: jax.Array, params: PyTree) -> jax.Array:
        keys = jax.random.split(key, 3)
        mine, others = (
            seen(learner_lib.rows_of(k, data, batch_size))
            for k, data in zip(keys[:2], (demos.expert, union), strict=True)
        )
        share = jax.random.uniform(keys[2], (batch_size, 1))
        middle = [share * a + (1.0 - share) * b for a, b in zip(mine, others, strict=True)]
        told = jnp.mean(jax.nn.softplus(-judge.apply(params, *mine)))
        told = told + jnp.mean(jax.nn.softplus(judge.apply(params, *others)))
        penalty = value_dice.gradient_penalty(lambda *x: judge.apply(params, *x), *middle)
        return told + discriminator_penalty * penalty

    def begin(key: jax.Array, params: dict[str, PyTree]) -> tuple[dict[str, PyTree], PyTree]:
        key_init, key_fit = jax.random.split(key)
        sizes = (demos.obs_size, demos.action_size)[: 1 if match == "state" else 2]
        first = judge.init(key_init, *sizes)
        optimizer = optax.adam(learning_rate)
        held = learner_lib.fit(key_fit, first, discriminator_loss, optimizer, discriminator_steps)
        return params, held

    def gradients(key: jax.Array, state: TrainState) -> tuple[dict[str, PyTree], Metrics]:
        key_rows, key_start, key_act = jax.random.split(key, 3)
        data = learner_lib.rows_of(key_rows, union, batch_size)
        start = firsts[jax.random.randint(key_start, (batch_size,), 0, firsts.shape[0])]
        # log p - log(1 - p) of a probability is the logit itself.
        reward = judge.apply(state.fixed, *seen(data))
        discount = gamma * (1.0 - data.terminated.astype(reward.dtype))

        def value_loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
            now, then = (critic.apply(params, x) for x in (data.obs, data.next_obs))
            error = reward + discount * then - now
            at_start = critic.apply(params, start)
            return dual_loss(error, at_start, gamma=gamma, divergence=divergence), error

        (value, error), of_value = jax.value_and_grad(value_loss, has_aux=True)(
            state.params["value"]
        )
        weight = weights_of(error, divergence=divergence)
        log_temperature = state.params["log_temperature"]

        def policy_loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
            cloned = -jnp.mean(weight * actor.log_prob(params, data.obs, data.action))
            entropy = -jnp.mean(actor.draw(key_act, params, data.obs)[1])
            return cloned - jnp.exp(log_temperature) * entropy, entropy

        (loss, entropy), of_policy = jax.value_and_grad(policy_loss, has_aux=True)(
            state.params["policy"]
        )
        of_temperature = jax.grad(temperature.entropy_dual_loss)(log_temperature, entropy, least)
        found = {"value": of_value, "policy": of_policy, "log_temperature": of_temperature}
        return found, {
            "value/loss": value,
            "policy/loss": loss,
            "policy/entropy": entropy,
            "weights/share": jnp.mean(weight) ** 2 / jnp.maximum(jnp.mean(weight**2), 1e-12),
        }

    optimizers = {
        "value": learner_lib.adam_with_decay(learning_rate, value_decay),
        "policy": optax.adam(learning_rate),
        "log_temperature": optax.adam(learning_rate),
    }
    name = f"smodice_{match}_{divergence}"
    return learner_lib.make_learner(Method(name, init, gradients, optimizers, begin))


def dual_loss(
    error: Float[Array, " B"],
    start: Float[Array, " B"],
    *,
    gamma: float,
    divergence: Divergence = "kl",
) -> Float[Array, ""]:
    """Returns (1 - gamma) mean V(s0) + log mean exp(e), or + mean(e + e^2 / 2) for chi2.

    Args:
        error: `[B]`, e = r + gamma V(s') - V(s).
        start: `[B]`, V(s0).
        gamma: discount.
        divergence: which.
    """
    if divergence == "kl":
        spread = jax.nn.logsumexp(error) - jnp.log(float(error.shape[0]))
    else:
        spread = jnp.mean(error + 0.5 * error**2)
    return (1.0 - gamma) * jnp.mean(start) + spread


def weights_of(error: Float[Array, " B"], *, divergence: Divergence = "kl") -> Float[Array, " B"]:
    """Returns the weights of cloning, no gradient: exp(e) over its mean, or max(1 + e, 0)."""
    error = jax.lax.stop_gradient(error)
    if divergence == "kl":
        return jax.nn.softmax(error) * float(error.shape[0])
    return jnp.maximum(1.0 + error, 0.0)
