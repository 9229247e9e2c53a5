"""The comparison: features once for each set of demonstrations, then every method on it."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from experiments.imitation import (
    Config,
    data,
    experts,
    figures,
    identity,
    methods,
    ratios,
    rows,
    training,
)
from experiments.imitation.data import Source
from experiments.imitation.training import Outcome
from jaxlab import imitation
from jaxlab.imitation import Normalizer, Pretrained

PAPER = (
    "Ma et al.: Offline Imitation Learning upon Arbitrary Demonstrations by Pre-Training Dynamics "
    "Representations, arXiv:2508.14383"
)


def run(config: Config, out: pathlib.Path) -> Result:
    """Measures what `out` does not hold, then compares."""
    for name in config.methods:
        if name not in methods.NAMES:
            raise ValueError(f"methods must be among {'; '.join(methods.NAMES)}, got {name!r}")
    parts, said = [], []
    tasks = (data.OWN,) if config.expert is not None else config.tasks
    sources = {n: data.make_source(config, n) for n in tasks if "scores" in config.pieces}
    if "experts" in config.pieces:
        parts.append(experts.run(config, out))
    if "identity" in config.pieces:
        parts.append(identity.run(config, out))
    if "ratios" in config.pieces:
        parts.append(ratios.run(config, out))
    for name, source in sources.items():
        found = compare(config, name, source, out)
        what = "Score" if data.has_rewards(source) else "Return"
        told = rows.rows(found, source.title, what)
        pictures = figures.draw(found, name, source.title, what, out)
        parts.append(
            Part(told, pictures, (rows.table(found, source.title, what),), _limits(config, source))
        )
        said.append(_summary(found, source))
    return result.assemble(
        parts,
        experiment="imitation",
        title="Offline imitation with features of the dynamics",
        summary=" ".join(said),
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


def compare(config: Config, task: str, source: Source, out: pathlib.Path) -> rows.Found:
    """Learns the features that are missing, then trains the methods."""
    names = [n for n in methods.NAMES if not config.methods or n in config.methods]
    kinds = dict.fromkeys(kind for n in names if (kind := methods.features_of(n)) is not None)
    numbers = data.counts(config, source)
    demos = {n: data.demonstrations(source, n, config.seed) for n in numbers}
    left = {n: data.held_out(source, n, config.seed, demos[n]) for n in numbers}
    acts = {
        n: imitation.acting(methods.make_policy(config, d).mode, d.normalizer)
        for n, d in demos.items()
    }
    first = {
        (num, kind): Unit(
            f"{task}/{num}/features/{kind}",
            training.settings(config, demos=demos[num].fingerprint),
            functools.partial(training.pretrain, kind, demos[num], config),
            Pretrained,
        )
        for num in numbers
        for kind in kinds
    }
    kept = units.run(list(first.values()), out, title="imitation, features")
    features = {k: _as_arrays(kept[unit.name]) for k, unit in first.items()}
    todo = {
        (num, name): Unit(
            f"{task}/{num}/{name}",
            training.settings(config, demos=demos[num].fingerprint),
            functools.partial(
                training.train,
                name,
                source,
                demos[num],
                features.get((num, kind)),
                left[num],
                acts[num],
                config,
            ),
            Outcome,
        )
        for num in numbers
        for name in names
        for kind in (methods.features_of(name) or "",)
    }
    found = units.run(list(todo.values()), out, title="imitation", metrics=_metrics)
    return {pair: found[unit.name] for pair, unit in todo.items()}


def _as_arrays(pretrained: Pretrained) -> Pretrained:
    params = jax.tree.map(jnp.asarray, pretrained.params)
    normalizer = Normalizer(*(np.asarray(x) for x in pretrained.normalizer))
    return Pretrained(params, normalizer, pretrained.fingerprint)


def _metrics(_: str, outcome: Outcome) -> dict[str, float]:
    return {"score": verdicts.average(outcome.final)}


def _limits(config: Config, source: Source) -> tuple[str, ...]:
    limits = [
        "Every method has the same updates, batches and policy, and its own default rates; the "
        "saddle points' policies learn at "
        f"{config.policy_rate:g}, with a penalty on gradients of weight {config.penalty_weight:g}.",
        "ILID's and SMODICE's discriminators are trained before, for a tenth of the updates.",
        "Seeds share the expert's episodes and the features: their spread is that of training.",
    ]
    if config.expert is not None:
        limits += _limits_of_own(config, source)
    elif source.title == "Gaussian pendulum":
        limits.append(
            "The pendulum's expert is a formula, and its logs are the same formula in a share of "
            "the steps, among random torques."
        )
    else:
        limits.append(
            f"The expert of {source.title} is the best snapshot of one run of SAC, its logs are "
            f"drawn from six others of it, the first {experts.LOG_STEPS} steps of an episode."
        )
    return tuple(limits)


def _limits_of_own(config: Config, source: Source) -> list[str]:
    limits = []
    if dropped := set(config.trajectories) - set(data.counts(config, source)):
        told = ", ".join(map(str, sorted(dropped)))
        limits.append(f"The file has fewer of the expert's episodes than {told}.")
    if not data.has_rewards(source):
        limits.append(
            "The demonstrations have no rewards, so returns stand for scores; those of random "
            f"actions are {source.random:.4g}."
        )
    return limits


def _summary(found: rows.Found, source: Source) -> str:
    parts = []
    for num in rows.counts(found):
        listed = ", ".join(
            f"{n} {verdicts.average(found[num, n].final):.3g}"
            for n in (methods.OURS, "ValueDICE", "BC", "ILID")
            if (num, n) in found
        )
        parts.append(f"{num}: {listed}")
    what = "Normalized scores" if data.has_rewards(source) else "Returns"
    return f"{what} on {source.title} by trajectories, {'; '.join(parts)}."
