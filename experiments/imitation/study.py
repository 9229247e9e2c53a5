"""The comparison: theorem, ratios, every method in every task, logs of any quality, experts."""

import pathlib

import numpy as np

from experiments.harness import result, verdicts
from experiments.harness.result import Part, Result
from experiments.imitation import (
    Config,
    comparing,
    data,
    diagnostics,
    experts,
    figures,
    identity,
    imperfect,
    methods,
    ratios,
    rows,
)
from experiments.imitation.comparing import Case
from experiments.imitation.data import Source

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
    also = config.also if set(config.methods or methods.NAMES) & set(methods.HEADLINE) else ()
    tasks = (data.OWN,) if config.expert is not None else (*config.tasks, *also)
    judged = bool({"scores", "logs"} & set(config.pieces))
    sources = {name: data.make_source(config, name) for name in tasks if judged}
    if "experts" in config.pieces:
        parts.append(experts.run(config, out))
    if "identity" in config.pieces:
        parts.append(identity.run(config, out))
    if "ratios" in config.pieces:
        parts.append(ratios.run(config, out))
    for name, source in sources.items():
        if "scores" in config.pieces:
            part, summary = scores(config, name, source, out)
            parts.append(part)
            said.append(summary)
        if "logs" in config.pieces and name not in also:
            parts.append(imperfect.run(config, name, source, out))
    return result.assemble(
        parts,
        experiment="imitation",
        title="Offline imitation with features of the dynamics",
        summary=" ".join(said),
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


def scores(config: Config, task: str, source: Source, out: pathlib.Path) -> tuple[Part, str]:
    """Compares the methods in one task, tells, draws, and sums up.

    Variants are trained with the fewest of the expert's episodes alone, and so is all in a task of
    `Config.also`.
    """
    numbers = data.counts(config, source)
    fewest = min(numbers)
    usual = methods.BASELINES if task == data.OWN else methods.NAMES
    names = config.methods or usual
    if task in config.also:
        numbers, names = (fewest,), [n for n in methods.HEADLINE if n in names]
    compared = comparing.compare(
        config,
        task,
        source,
        [
            *((Case(num), n) for num in numbers for n in methods.BASELINES if n in names),
            *((Case(fewest), n) for n in methods.ABLATIONS if n in names),
        ],
        out,
    )
    found = {(case.num, name): one for (case, name), one in compared.outcomes.items()}
    what = "Score" if data.has_rewards(source) else "Return"
    base = Case(fewest)
    kinds = {kind: one for (case, kind), one in compared.features.items() if case == base}
    looked = diagnostics.run(config, kinds, compared.demos[base], task, source.title, out)
    part = Part(
        rows.rows(found, source.title, what),
        (*figures.draw(found, task, source.title, what, out), *looked.figures),
        (rows.table(found, source.title, what), *looked.tables),
        (*_limits(config, source), *_diverged(found)),
    )
    return part, _summary(found, source)


def _limits(config: Config, source: Source) -> tuple[str, ...]:
    limits = [
        "Every method has the same updates, batches and policy, whose rate is "
        f"{config.policy_rate:g}, or the published one where that is larger; other rates are the "
        "published ones. The saddle points' penalty on gradients has the weight "
        f"{config.penalty_weight:g}.",
        "There are no more features than transitions to learn them from, and a batch of theirs has "
        "at least one transition for each four of them, also where methods' batches are smaller.",
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


def _diverged(found: rows.Found) -> list[str]:
    """Says which dual variables grew beyond what an occupancy's logarithm can be."""
    bounds = np.array([1e3, 10.0])
    return [
        f"With {num} of the expert's episodes the dual variable of {name} came to "
        f"{one.largest[0]:.3g}, its penalty on gradients to {one.largest[1]:.3g}: it diverged."
        for (num, name), one in found.items()
        if np.any(one.largest > bounds)
    ]


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
            for n in methods.HEADLINE
            if (num, n) in found
        )
        parts.append(f"{num}: {listed}")
    what = "Normalized scores" if data.has_rewards(source) else "Returns"
    return f"{what} on {source.title} by trajectories, {'; '.join(parts)}."
