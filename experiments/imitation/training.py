"""Features and methods trained on demonstrations, seeds in one program, and judged in the task."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments.imitation import Config, data, methods
from experiments.imitation.data import Source
from experiments.imitation.methods import Features
from jaxlab import imitation, learning
from jaxlab.core import logging, loop
from jaxlab.imitation import Demonstrations, Normalizer, Pretrained, Transitions

EVALUATION_KEY = 2**31 - 1
"""Seed of evaluations, apart from those of training."""
LAST = 10
"""Evaluations at the end that are averaged besides."""


class Outcome(NamedTuple):
    """One method with one number of trajectories.

    Attributes:
        final: `[seeds]` normalized score at the last checkpoint, NaN for a seed that blew up.
        late: `[seeds]` mean of the last ten evaluations, or of all if there are fewer.
        curve: Steps `[chunks]` and scores `[chunks, seeds]`.
        error: `[seeds]` mean squared difference of the last actions and the expert's, in [-1, 1],
            on those of its episodes that were not given; NaN without any.
        largest: `[2]`, the largest |nu - its mean| and the largest penalty on gradients of a seed,
            both means over the updates between evaluations; 0 where there is no dual variable.
        policy: Parameters of the last policies, `[seeds, ...]`; None if all blew up.
        normalizer: What their observations go through.
    """

    final: np.ndarray
    late: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]
    error: np.ndarray
    largest: np.ndarray
    policy: Any
    normalizer: Normalizer


def settings(config: Config, **others: Any) -> dict[str, Any]:
    """All that a result depends on."""
    fields = dataclasses.asdict(config)
    listed = ("parts", "tasks", "also", "methods", "trajectories", "recorded", "expert_steps")
    for name in listed:
        del fields[name]
    return {**fields, **others}


def pretrain(
    features: Features, demos: Demonstrations, config: Config, folder: pathlib.Path | None = None
) -> Pretrained:
    """Learns features of the dynamics, or draws those that are not learned."""
    representation = methods.make_representation(config, demos, features)
    key = jax.random.key(config.seed)
    if features.kind == "random":
        params = representation.init(key)
    else:
        rows = demos.expert if features.kind == "expert" else imitation.union(demos)
        losses: dict[str, imitation.Loss] = {x: x for x in get_args(imitation.Loss)}
        algorithm = imitation.make_pretraining(
            rows,
            representation,
            loss=losses.get(features.kind, "spectral"),
            batch_size=max(config.batch, -(-representation.feature_size // 4)),
        )
        params = loop.run(
            algorithm,
            key,
            num_steps=config.pretraining,
            chunk_size=max(config.pretraining // 5, 1),
            directory=folder,
        ).state.params
    return Pretrained(params, demos.normalizer, demos.fingerprint)


def train(
    name: str,
    source: Source,
    demos: Demonstrations,
    pretrained: Pretrained | None,
    left: Transitions | None,
    act: Callable[..., jax.Array],
    config: Config,
    folder: pathlib.Path,
) -> Outcome:
    """Trains all seeds, or goes on with what `folder` holds.

    `act` is what `acting` made, one for all methods, so that it is compiled once; `left` are the
    expert's transitions that were not given.
    """
    learner = learning.over_seeds(
        methods.make_method(name, config, demos, pretrained), config.num_seeds
    )

    def look(state: Any) -> dict[str, jax.Array]:
        key = jax.random.key(EVALUATION_KEY)
        each = learning.evaluate(key, act, source.env, state.policy_params)
        return {"eval/return": jnp.mean(each.reshape(config.num_seeds, -1), axis=1)}

    chunk = max(config.updates // config.evaluations, 1)
    try:
        ended = loop.run(
            learner,
            jax.random.key(config.seed),
            num_steps=config.updates,
            chunk_size=chunk,
            directory=folder,
            evaluate=look,
            config=settings(config, method=name, demos=demos.fingerprint),
        )
    except loop.NonFiniteError:
        gone = np.full(config.num_seeds, np.nan)
        curve = (np.zeros(0), np.zeros((0, config.num_seeds)))
        return Outcome(gone, gone, curve, gone, np.zeros(2), None, demos.normalizer)
    records = logging.read_jsonl(folder / "metrics.jsonl")
    steps, returns = logging.series(records, "eval/return_seeds")
    scores = data.normalized(source, returns)
    scores[:, list(ended.frozen)] = np.nan
    params = ended.state.policy_params
    error = _error(params, left, methods.make_policy(config, demos).mode, config.num_seeds)
    error[list(ended.frozen)] = np.nan
    late = scores[-LAST:].mean(axis=0)
    kept = jax.tree.map(np.asarray, params)
    largest = np.array([_largest(records, f"dual/{x}_seeds") for x in ("largest", "penalty")])
    return Outcome(scores[-1], late, (steps, scores), error, largest, kept, demos.normalizer)


def _largest(records: Any, name: str) -> float:
    """The largest of what was logged under a name, 0 if nothing was."""
    values = logging.series(records, name)[1]
    return float(np.nanmax(values)) if np.isfinite(values).any() else 0.0


def acting(
    mode: Callable[[Any, jax.Array], jax.Array], normalizer: Normalizer, num_seeds: int
) -> Callable[[jax.Array, Any, jax.Array], jax.Array]:
    """Makes `act(key, params [seeds, ...], obs)`; each seed has an equal share of the episodes."""
    one = imitation.acting(mode, normalizer)

    def act(key: jax.Array, params: Any, obs: jax.Array) -> jax.Array:
        each = obs.reshape(num_seeds, -1, obs.shape[-1])
        action = jax.vmap(one, in_axes=(None, 0, 0))(key, params, each)
        return action.reshape(*obs.shape[:-1], -1)

    return act


def _error(
    params: Any, left: Transitions | None, mode: Callable[..., jax.Array], num_seeds: int
) -> np.ndarray:
    if left is None:
        return np.full(num_seeds, np.nan)

    def of_one(params: Any) -> jax.Array:
        return jnp.mean((mode(params, left.obs) - left.action) ** 2)

    return np.array(jax.jit(jax.vmap(of_one))(params))
