"""The comparison: the base, then every method from the same weights."""

import dataclasses
import functools
import pathlib

import numpy as np

from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result, Row, Table
from experiments.harness.units import Unit
from experiments.pirf import Config, base, methods, training
from experiments.pirf.training import Outcome

PAPER = (
    "Yuan, Jin, Li, Li: PIRF: Physics-Informed Reward Fine-Tuning for Diffusion Models, "
    "arXiv:2509.20570"
)
BASE = "base"
Found = dict[str, list[Outcome]]
"""Outcomes of each method, by seed; the base has one."""


def run(config: Config, out: pathlib.Path) -> Result:
    """Computes what the folder does not hold yet, and says what it means."""
    for name in config.methods:
        if name not in methods.METHODS:
            raise ValueError(f"methods must be among {'; '.join(methods.METHODS)}, got {name!r}")
    names = config.methods or tuple(methods.METHODS)
    settings = dataclasses.replace(config, num_seeds=1, methods=())
    todo = [Unit(BASE, settings, lambda _: training.judge(base.load(), config), Outcome)]
    todo += [
        Unit(
            f"{name}/{seed}",
            settings,
            functools.partial(training.tune, name, seed, config),
            Outcome,
        )
        for name in names
        for seed in range(config.num_seeds)
    ]
    kept = units.run(todo, out, title="pirf")
    found = {n: [kept[f"{n}/{seed}"] for seed in range(config.num_seeds)] for n in names}
    found[BASE] = [kept[BASE]]
    part = Part(rows(found, config), (), (table(found, config),), LIMITS)
    return result.assemble(
        [part],
        experiment="pirf",
        title="Physics as a reward",
        summary=summary(found, config),
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


LIMITS = (
    "One small base model, of Poisson's equation on 16 x 16 nodes; the seeds share it, and the "
    "noise that they are judged by: their spread is that of the fine-tuning.",
    "The paper's tables were not at hand: no figure here is compared with one of its own.",
)


def at(found: Found, name: str, field: str, config: Config) -> np.ndarray:
    """Returns figures by seed at the number of steps that is nearest to the one of training."""
    index = int(np.argmin(np.abs(np.asarray(config.judged_steps) - config.num_steps)))
    return np.stack([getattr(one, field)[index] for one in found[name]])


def rows(found: Found, config: Config) -> tuple[Row, ...]:
    """Each method beside the base: residual and solution error; what the detector says of it."""
    made = []
    for name in found:
        if name == BASE:
            continue
        for field, words in (
            ("interior", "Mean square of the residual, interior"),
            ("solution_error", "Solution error"),
        ):
            ours = at(found, name, field, config)
            theirs = np.repeat(at(found, BASE, field, config), len(ours))
            made.append(
                verdicts.row(
                    "The residual falls, and the solution does not suffer",
                    f"{words}, {name}",
                    ours,
                    (BASE, theirs),
                    larger_is_better=False,
                )
            )
        flagged = np.any(at(found, name, "flags", config), axis=1)
        std = at(found, name, "std", config)[:, 0].mean()
        made.append(
            Row(
                "A hacked reward is told from a physical one",
                f"Share of runs that the detector flags, {name}",
                float(np.mean(flagged)),
                note=f"The source's standard deviation is {std:.3g} times the data's.",
            )
        )
    return tuple(made)


def table(found: Found, config: Config) -> Table:
    """All figures, means over seeds."""
    lines = []
    for name in (BASE, *(n for n in found if n != BASE)):
        flags = np.any(at(found, name, "flags", config), axis=0)
        named = ", ".join(n for n, f in zip(training.SIGNS, flags, strict=True) if f)
        figures = [
            *(np.mean(at(found, name, field, config)) for field in ("interior", "every")),
            *np.mean(at(found, name, "std", config), axis=0),
            np.mean(at(found, name, "solution_error", config)),
            np.max(np.mean(at(found, name, "spectrum", config), axis=0)),
        ]
        shown = [float(f"{x:.3g}") if np.isfinite(x) else None for x in figures]
        lines.append((name, *shown, named or "none"))
    return Table(
        "What was tuned, and what it became",
        ("Method", "Interior", "Published", "Std f", "Std u", "Solution", "Spectrum", "Flags"),
        tuple(lines),
        f"Judged on {config.fields} fields from the same noise. Mean squares of the residual in "
        "the interior and of the published one; standard deviations over the data's; median error "
        "of the solution; distance of log spectra; what the detector says of any seed.",
    )


def summary(found: Found, config: Config) -> str:
    """One sentence for the first screen."""
    told = [
        f"{name} {np.mean(at(found, name, 'interior', config)):.2g}"
        for name in (BASE, methods.OURS, methods.PUBLISHED)
        if name in found
    ]
    return f"Mean square of the residual in the interior: {', '.join(told)}."
