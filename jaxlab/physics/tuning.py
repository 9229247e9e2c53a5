"""Fine-tuning of a base model by any objective: the step that PIRF and its rivals share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.learning import settings as settings_lib
from jaxlab.physics import layers as layers_lib
from jaxlab.physics.base import averaged
from jaxlab.physics.layers import Layers, Regularizer

Objective = Callable[[jax.Array, PyTree, PyTree], tuple[tuple[jax.Array, ...], Metrics]]
"""`objective(key, params, anchor_params) -> (losses, metrics)`, of the whole network's weights and
of those it was loaded with."""
LARGEST = 1e5
"""What an infinite entry of a gradient becomes; one that is NaN becomes 0, as in the released
code."""


class TuningState(NamedTuple):
    """All that evolves, and what it is held by.

    Attributes:
        train: Weights that are tuned; None stands for the others.
        average: Their running average.
        frozen: Weights that are not tuned.
        anchor: What `train` was loaded as.
        opt_state: State of the optimizer.
        updates: int32, updates so far.
        key: PRNG key of all draws to come.
    """

    train: PyTree
    average: PyTree
    frozen: PyTree
    anchor: PyTree
    opt_state: PyTree
    updates: Int[Array, ""]
    key: Array


def tuned_params(state: TuningState, *, average: bool = False) -> PyTree:
    """Returns the whole network's weights, the last ones or their running average."""
    return layers_lib.join(state.average if average else state.train, state.frozen)


def make_tuning(
    params: PyTree,
    objective: Objective,
    *,
    layers: Layers | Callable[[str], bool] = "mask",
    regularizer: Regularizer = "l2",
    reg_weight: float = 5e-2,
    learning_rate: float = 1e-4,
    batch_size: int = 16,
    half_life: float = 50_000.0,
    clip_norm: float | None = None,
    combine: Callable[[Sequence[PyTree]], PyTree] | None = None,
    name: str = "tuning",
) -> Algorithm:
    """Makes the learner that tunes weights by an objective, held to what they were loaded as.

    Args:
        params: weights as they were loaded: what "l2", "l2sq" and "l2sp" hold to.
        objective: see `Objective`; "distillation" is up to it.
        layers: which weights are tuned, see `layers.trainable_mask`.
        regularizer, reg_weight: what holds the weights, and how strongly. The unit is that of the
            objective, so it is tuned with the objective's scale.
        learning_rate: of Adam, constant.
        batch_size: fields of an update, which the running average counts.
        half_life: of the average, in fields.
        clip_norm: largest norm of a gradient; None leaves it.
        combine: makes one gradient of those of several losses; None takes that of their sum.
        name: of the algorithm, in checkpoints.

    Returns:
        The algorithm; its state is a `TuningState`.

    Raises:
        ValueError: if a number is out of range, or nothing is tuned.
    """
    if regularizer not in get_args(Regularizer):
        kinds = ", ".join(get_args(Regularizer))
        raise ValueError(f"regularizer must be one of {kinds}, got {regularizer!r}")
    numbers = {"learning_rate": learning_rate, "half_life": half_life}
    if clip_norm is not None:
        numbers["clip_norm"] = clip_norm
    rules = dict.fromkeys(numbers, settings_lib.POSITIVE)
    settings_lib.check(
        numbers | {"reg_weight": reg_weight}, rules | {"reg_weight": settings_lib.NOT_NEGATIVE}
    )
    settings_lib.check_count(batch_size, "batch_size")
    mask = layers_lib.trainable_mask(params, layers)
    optimizer = optax.adam(learning_rate)
    if clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    inside = regularizer in ("l2", "l2sq") and reg_weight > 0.0

    def init(key: jax.Array) -> TuningState:
        train, frozen = layers_lib.split(jax.tree.map(jnp.asarray, params), mask)
        opt_state, zero = optimizer.init(train), jnp.zeros((), jnp.int32)
        return TuningState(train, train, frozen, train, opt_state, zero, key)

    def gradient(key: jax.Array, state: TuningState) -> tuple[PyTree, Metrics]:
        whole = layers_lib.join(state.anchor, state.frozen)

        def losses(train: PyTree) -> tuple[tuple[jax.Array, ...], Metrics]:
            return objective(key, layers_lib.join(train, state.frozen), whole)

        if combine is None:

            def total(train: PyTree) -> tuple[jax.Array, Metrics]:
                found, metrics = losses(train)
                value = jnp.sum(jnp.stack(found))
                return value, {"tune/loss": value, **metrics}

            return jax.grad(total, has_aux=True)(state.train)
        found, back, metrics = jax.vjp(losses, state.train, has_aux=True)
        units = [
            tuple(jnp.asarray(float(i == j), loss.dtype) for j, loss in enumerate(found))
            for i in range(len(found))
        ]
        grads = combine([back(unit)[0] for unit in units])
        return grads, {"tune/loss": jnp.sum(jnp.stack(found)), **metrics}

    def step(state: TuningState) -> tuple[TuningState, Metrics]:
        key, key_objective = jax.random.split(state.key)
        grads, metrics = gradient(key_objective, state)
        norm = optax.tree.norm(grads)
        grads = jax.tree.map(lambda g: jnp.nan_to_num(g, False, 0.0, LARGEST, -LARGEST), grads)
        if inside:
            kind: Any = regularizer
            far, held = jax.value_and_grad(layers_lib.distance)(state.train, state.anchor, kind)
            grads = jax.tree.map(lambda g, h: g + reg_weight * h, grads, held)
            metrics = {**metrics, "tune/loss": metrics["tune/loss"] + reg_weight * far}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.train)
        train = optax.apply_updates(state.train, updates)
        if regularizer == "l2sp":
            train = layers_lib.pull_back(train, state.anchor, learning_rate * reg_weight)
        seen = (state.updates + 1).astype(jnp.float32) * batch_size
        new = state._replace(
            train=train,
            average=averaged(state.average, train, batch_size, seen, half_life),
            opt_state=opt_state,
            updates=state.updates + 1,
            key=key,
        )
        return new, {
            **metrics,
            "tune/grad_norm": norm,
            "tune/distance": layers_lib.distance(train, state.anchor),
        }

    return Algorithm(init, step, name=name)
