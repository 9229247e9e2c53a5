"""Methods trained on sets of demonstrations: features once for each set, then every method."""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import units, verdicts
from experiments.harness.units import Unit
from experiments.imitation import Config, data, methods, training
from experiments.imitation.data import Source
from experiments.imitation.methods import Features
from experiments.imitation.training import Outcome
from jaxlab.imitation import Demonstrations, Normalizer, Pretrained


class Case(NamedTuple):
    """Demonstrations that methods are compared on.

    Attributes:
        num: Number of the expert's episodes.
        logs: Which part of the logs, a key of `data.some_logs`; all when empty.
    """

    num: int
    logs: str = ""

    def __str__(self) -> str:
        return f"{self.num}, {self.logs}" if self.logs else str(self.num)


class Compared(NamedTuple):
    """What came of it.

    Attributes:
        demos: By case.
        features: By case and kind.
        outcomes: By case and name of the method.
    """

    demos: dict[Case, Demonstrations]
    features: dict[tuple[Case, Features], Pretrained]
    outcomes: dict[tuple[Case, str], Outcome]


def compare(
    config: Config, task: str, source: Source, pairs: Sequence[tuple[Case, str]], out: pathlib.Path
) -> Compared:
    """Learns the features that are missing, then trains each method of `pairs` on its case."""
    parts = data.some_logs(source.logs) if any(case.logs for case, _ in pairs) else {}
    demos = {
        case: data.demonstrations(source, case.num, config.seed, parts.get(case.logs))
        for case, _ in pairs
    }
    needed = dict.fromkeys((c, f) for c, name in pairs if (f := methods.features_of(name)))
    first = {
        (case, kind): Unit(
            f"{task}/{case}/features/{kind}",
            training.settings(config, demos=demos[case].fingerprint),
            functools.partial(training.pretrain, kind, demos[case], config),
            Pretrained,
        )
        for case, kind in needed
    }
    kept = units.run(list(first.values()), out, title="imitation, features")
    features = {key: _as_arrays(kept[unit.name]) for key, unit in first.items()}
    left = {c: data.held_out(source, c.num, config.seed, d) for c, d in demos.items()}
    acts = {
        case: training.acting(methods.make_policy(config, d).mode, d.normalizer, config.num_seeds)
        for case, d in demos.items()
    }
    todo = {
        (case, name): Unit(
            f"{task}/{case}/{name}",
            training.settings(config, demos=demos[case].fingerprint),
            functools.partial(
                training.train,
                name,
                source,
                demos[case],
                None if kind is None else features[case, kind],
                left[case],
                acts[case],
                config,
            ),
            Outcome,
        )
        for case, name in pairs
        for kind in (methods.features_of(name),)
    }
    found = units.run(list(todo.values()), out, title="imitation", metrics=_metrics)
    return Compared(demos, features, {key: found[unit.name] for key, unit in todo.items()})


def _as_arrays(pretrained: Pretrained) -> Pretrained:
    params = jax.tree.map(jnp.asarray, pretrained.params)
    normalizer = Normalizer(*(np.asarray(x) for x in pretrained.normalizer))
    return Pretrained(params, normalizer, pretrained.fingerprint)


def _metrics(_: str, outcome: Outcome) -> dict[str, float]:
    return {"score": verdicts.average(outcome.final)}
