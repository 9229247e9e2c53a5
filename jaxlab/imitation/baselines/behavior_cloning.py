"""Behavior cloning: the expert's actions by likelihood or least squares, with regularizers."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.imitation import learner as learner_lib
from jaxlab.imitation import policy as policy_lib
from jaxlab.imitation.data import preparing
from jaxlab.imitation.data.preparing import Demonstrations
from jaxlab.imitation.learner import Method, TrainState
from jaxlab.imitation.policy import Policy

Fit = Literal["log_prob", "mse"]
Source = Literal["expert", "union"]


def make_bc(
    demos: Demonstrations,
    policy: Policy | None = None,
    *,
    data: Source = "expert",
    loss: Fit = "log_prob",
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    orthogonality_weight: float = 0.0,
    weight_decay: float = 0.0,
    noise_std: float = 0.0,
) -> Algorithm:
    """Makes behavior cloning; 100,000 steps are usual.

    Args:
        demos: what `prepare` made.
        policy: the actor; the usual one by default.
        data: the expert's transitions, or those of the logs besides.
        loss: "log_prob", minus the mean log-likelihood, or "mse", of tanh of the mean.
        batch_size: transitions of a step.
        learning_rate: of Adam.
        orthogonality_weight: of `orthogonality`; ValueDICE's regularizer is 1e-4.
        weight_decay: of the squared weights, half of it times their sum.
        noise_std: standard deviation of noise on observations, in normalized units; their flag has
            none.

    Raises:
        ValueError: if a choice is unknown, a number out of range, or there are no logs for "union".
    """
    if data not in get_args(Source):
        raise ValueError(f"data must be expert or union, got {data!r}")
    if loss not in get_args(Fit):
        raise ValueError(f"loss must be log_prob or mse, got {loss!r}")
    learner_lib.check_rates(
        batch_size,
        learning_rate=learning_rate,
        orthogonality_weight=orthogonality_weight,
        weight_decay=weight_decay,
        noise_std=noise_std,
    )
    if data == "union":
        learner_lib.logs_of(demos, "data='union'")
    rows = preparing.union(demos) if data == "union" else demos.expert
    actor = learner_lib.policy_for(demos, policy)

    def gradients(key: jax.Array, state: TrainState) -> tuple[dict[str, PyTree], Metrics]:
        key_rows, key_noise = jax.random.split(key)
        batch = learner_lib.rows_of(key_rows, rows, batch_size)
        noise = noise_std * jax.random.normal(key_noise, batch.obs.shape, batch.obs.dtype)
        obs = batch.obs + noise.at[:, -1].set(0.0)

        def loss_of(params: PyTree) -> tuple[jax.Array, jax.Array]:
            if loss == "mse":
                away = actor.mode(params, obs) - batch.action
                fitted = jnp.mean(jnp.sum(away**2, axis=-1))
            else:
                fitted = -jnp.mean(actor.log_prob(params, obs, batch.action))
            return fitted + orthogonality_weight * policy_lib.orthogonality(params), fitted

        (_, fitted), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params["policy"])
        return {"policy": grads}, {"policy/loss": fitted}

    return learner_lib.make_learner(
        Method(
            f"bc_{data}_{loss}",
            lambda key: {"policy": actor.init(key)},
            gradients,
            {"policy": learner_lib.adam_with_decay(learning_rate, weight_decay)},
        )
    )
