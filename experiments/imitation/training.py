"""Features and methods trained on demonstrations, seeds in one program, and judged in the task."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.imitation import Config, data, methods
from experiments.imitation.data import Source
from jaxlab import imitation, learning
from jaxlab.core import logging, loop
from jaxlab.imitation import Demonstrations, Pretrained

EVALUATION_KEY = 2**31 - 1
"""Seed of evaluations, apart from those of training."""
CONTRASTIVE: tuple[imitation.Loss, ...] = ("binary_nce", "ranking_nce")
"""Losses besides the spectral one, each a kind of features."""
LAST = 10
"""Evaluations at the end that are averaged besides."""


class Outcome(NamedTuple):
    """One method with one number of trajectories.

    Attributes:
        final: `[seeds]` normalized score at the last checkpoint, NaN for a seed that blew up.
        late: `[seeds]` mean of the last ten evaluations, or of all if there are fewer.
        curve: Steps `[chunks]` and scores `[chunks, seeds]`.
    """

    final: np.ndarray
    late: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]


def settings(config: Config, **others: Any) -> dict[str, Any]:
    """All that a result depends on."""
    fields = dataclasses.asdict(config)
    for name in ("parts", "methods", "trajectories"):
        del fields[name]
    return {**fields, **others}


def pretrain(
    kind: str, demos: Demonstrations, config: Config, folder: pathlib.Path | None = None
) -> Pretrained:
    """Learns features: of all data, the expert's alone, by another loss, or none ("random")."""
    representation = methods.make_representation(config, demos)
    key = jax.random.key(config.seed)
    if kind == "random":
        params = representation.init(key)
    else:
        rows = demos.expert if kind == "expert" else imitation.union(demos)
        losses: dict[str, imitation.Loss] = {name: name for name in CONTRASTIVE}
        algorithm = imitation.make_pretraining(
            rows,
            representation,
            loss=losses.get(kind, "spectral"),
            batch_size=max(config.batch, -(-config.features // 4)),
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
    act: Callable[..., jax.Array],
    config: Config,
    folder: pathlib.Path,
) -> Outcome:
    """Trains all seeds, or goes on with what `folder` holds; `act` is compiled once for all."""
    learner = learning.over_seeds(
        methods.make_method(name, config, demos, pretrained), config.num_seeds
    )

    def look(state: Any) -> dict[str, jax.Array]:
        key, params = jax.random.key(EVALUATION_KEY), state.policy_params
        each = [
            jnp.mean(learning.evaluate(key, act, source.env, _one(params, i)))
            for i in range(config.num_seeds)
        ]
        return {"eval/return": jnp.stack(each)}

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
        return Outcome(gone, gone, (np.zeros(0), np.zeros((0, config.num_seeds))))
    records = logging.read_jsonl(folder / "metrics.jsonl")
    steps, returns = logging.series(records, "eval/return_seeds")
    scores = data.normalized(source, returns)
    scores[:, list(ended.frozen)] = np.nan
    return Outcome(scores[-1], scores[-LAST:].mean(axis=0), (steps, scores))


def _one(params: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], params)
