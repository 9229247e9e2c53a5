"""DWBC: cloning weighted by a discriminator that sees the policy's own log-density.

Xu et al. 2022, arXiv:2207.10050.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.envs import spaces
from jaxlab.imitation import learner as learner_lib
from jaxlab.imitation.data.preparing import Demonstrations
from jaxlab.imitation.learner import Method, TrainState
from jaxlab.imitation.policy import Policy
from jaxlab.learning import settings as settings_lib

PROBS = (0.1, 0.9)
"""Bounds of the discriminator's probability."""
LOG_PROBS = (-20.0, 10.0)
"""Log-densities that the discriminator sees as 0 and as 1."""


def make_dwbc(
    demos: Demonstrations,
    policy: Policy | None = None,
    *,
    alpha: float = 7.5,
    eta: float = 0.5,
    batch_size: int = 256,
    hidden: tuple[int, ...] = (256, 256),
    learning_rate: float = 1e-4,
    weight_decay: float = 5e-3,
    discriminator_every: int = 100,
) -> Algorithm:
    """Makes DWBC; half a million steps are usual.

    Args:
        demos: what `prepare` made, with logs.
        policy: the actor; the usual one by default.
        alpha: weight of cloning the expert.
        eta: share of the expert's kind among the logs that the discriminator assumes, positive.
        batch_size: transitions of the expert, and of the logs.
        hidden: of the discriminator, ReLU.
        learning_rate, weight_decay: of Adam, for both networks.
        discriminator_every: steps from one update of the discriminator to the next.

    Raises:
        ValueError: if a number is out of range or there are no logs.
    """
    learner_lib.check_rates(
        batch_size, learning_rate=learning_rate, weight_decay=weight_decay, alpha=alpha
    )
    settings_lib.check({"eta": eta}, {"eta": settings_lib.POSITIVE})
    if not spaces.is_count(discriminator_every):
        raise ValueError(f"discriminator_every must be at least 1, got {discriminator_every}")
    logs = learner_lib.logs_of(demos, "DWBC")
    actor = learner_lib.policy_for(demos, policy)
    network = learner_lib.scalar_network(hidden)

    def init(key: jax.Array) -> dict[str, PyTree]:
        key_judge, key_policy = jax.random.split(key)
        sizes = (demos.obs_size, demos.action_size, 1)
        return {"discriminator": network.init(key_judge, *sizes), "policy": actor.init(key_policy)}

    def gradients(key: jax.Array, state: TrainState) -> tuple[dict[str, PyTree], Metrics]:
        expert, other = (
            learner_lib.rows_of(k, data, batch_size)
            for k, data in zip(jax.random.split(key), (demos.expert, logs), strict=True)
        )

        def logs_of(params: PyTree) -> list[jax.Array]:
            return [actor.log_prob(params, x.obs, x.action) for x in (expert, other)]

        def probs(params: PyTree, logp: list[jax.Array]) -> list[jax.Array]:
            return [
                jnp.clip(
                    jax.nn.sigmoid(network.apply(params, x.obs, x.action, seen_of(y)[:, None])),
                    *PROBS,
                )
                for x, y in zip((expert, other), logp, strict=True)
            ]

        now = jax.lax.stop_gradient(logs_of(state.params["policy"]))
        told, of_judge = jax.value_and_grad(
            lambda params: discriminator_loss(*probs(params, now), eta=eta)
        )(state.params["discriminator"])
        held = probs(state.params["discriminator"], now)
        loss, of_policy = jax.value_and_grad(
            lambda params: policy_loss(*logs_of(params), *held, alpha=alpha, eta=eta)
        )(state.params["policy"])
        metrics = {"discriminator/loss": told, "policy/loss": loss}
        return {"discriminator": of_judge, "policy": of_policy}, metrics

    optimizers = {
        name: learner_lib.adam_with_decay(learning_rate, weight_decay)
        for name in ("discriminator", "policy")
    }
    every = {"discriminator": discriminator_every}
    return learner_lib.make_learner(Method("dwbc", init, gradients, optimizers, every=every))


def seen_of(logp: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns a log-density as the discriminator sees it: from -20 to 10 as 0 to 1."""
    low, high = LOG_PROBS
    return (jnp.clip(logp, low, high) - low) / (high - low)


def discriminator_loss(
    expert: Float[Array, " B"], other: Float[Array, " B"], *, eta: float
) -> Float[Array, ""]:
    """Returns the loss from positive and unlabeled data: the logs hold a share eta of the expert's.

    E[-log d_e] + E[-log(1 - d_o)] / eta - E[-log(1 - d_e)], with probabilities d of expert.
    """
    positive = jnp.mean(-jnp.log(expert) + jnp.log(1.0 - expert))
    return positive - jnp.mean(jnp.log(1.0 - other)) / eta


def policy_loss(
    expert_logp: Float[Array, " B"],
    other_logp: Float[Array, " B"],
    expert_prob: Float[Array, " B"],
    other_prob: Float[Array, " B"],
    *,
    alpha: float,
    eta: float,
) -> Float[Array, ""]:
    """Returns cloning of the expert, and of those logs that the discriminator takes for expert.

    alpha E_e[-log pi] - E_e[-log pi (eta / (d (1 - d)) + 1)] + E_o[-log pi (1 / (1 - d) - 1)], the
    last with d = 0 where it is below a half. No gradient flows through d.
    """
    held = jax.lax.stop_gradient((expert_prob, other_prob))
    of_expert = eta / (held[0] * (1.0 - held[0])) + 1.0
    kept = jnp.where(held[1] < 0.5, 0.0, held[1])
    of_other = 1.0 / (1.0 - kept) - 1.0
    cloned = jnp.mean(-expert_logp * (alpha - of_expert))
    return cloned + jnp.mean(-other_logp * of_other)
