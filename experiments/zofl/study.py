"""The comparison, every method tuned and measured on every problem, and the studies beside it."""

import functools
import os
import pathlib
import types
from typing import NamedTuple

import numpy as np

from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from experiments.rivals import solvers
from experiments.zofl import Config, external, figures, methods, rows, runs, tables, tasks
from experiments.zofl.analysis import Comparison
from experiments.zofl.parts import (
    fair_logistic,
    leakage,
    portraits,
    power_flow,
    random_problems,
    scale,
    sensitivity,
    theory,
    violation,
)
from experiments.zofl.runs import Outcome
from experiments.zofl.tasks import Task

PAPER = (
    "Zhang, Zardini, Ozdaglar, Shamma, Li: Zeroth-Order Constrained Optimization from a Control "
    "Perspective via Feedback Linearization, arXiv:2509.24056"
)
LIMITS = (
    "The paper's own problems, constants and figures are not known to this study: it compares on "
    "the problems of the predecessor paper (arXiv:2503.12665), of Hock and Schittkowski, of safe "
    "learning, and on two power systems.",
    "The budget is 1000 (n + 1) queries and at least 50,000, as the suite has it, but cut to what "
    "the preset allows (20,000 on a CPU), and to a quarter or a tenth of that where queries are "
    "dear.",
    "One instance of each random problem: the seeds draw directions and noise, not problems.",
    "The 39- and 118-bus systems of the predecessor paper are left out, for want of their data.",
    "Two settings of each method are tuned, over fifteen pairs; who tunes more may find better.",
    "Under noise most methods are given at least the difference radius that ZOFL takes by default, "
    "which is more than they publish; LB-SGD, whose margin of safety is its radius, keeps 0.01.",
    "LB-SGD measures its center as often without noise as with it, which costs it up to half of "
    "its queries there.",
    "SafeOpt makes 64 queries on a grid of at most 300 points, not the budget of the others: its "
    "cost grows with the cube of the queries.",
    "The answer of a run is its best measured point; under noise that is a lucky measurement, the "
    "more so the more points a method measures.",
    "External solvers run on smaller budgets and fewer seeds, untuned.",
)
PARTS = (fair_logistic, theory, scale, portraits)
"""Studies beside the comparison; what a thorough run measures besides is in `THOROUGH`."""
THOROUGH = (random_problems, power_flow, violation, leakage, sensitivity)
SETTINGS = ("seed", "num_seeds", "thorough")
"""What they depend on, but for `scale`."""
WORKERS = 2
"""Units at a time: one compiles on a core while another runs."""
QUICK = 5000
"""Queries up to which compiling takes longer than running."""


def run(config: Config, out: pathlib.Path) -> Result:
    """Runs the comparison, then the studies beside it; finished units of `out` are read."""
    names = config.problems or tuple(tasks.TABLE)
    compared = config.methods or tuple(methods.TABLE)
    tasks.check_names(names)
    methods.check_names(compared)
    if methods.HEADLINE not in compared or set(compared) <= set(methods.OURS):
        raise ValueError(
            f"methods must include {methods.HEADLINE} and a rival to compare it with, "
            f"got {', '.join(compared)}"
        )
    made = {name: tasks.make_task(name, config.max_queries) for name in names}
    comparison = compare(config, made, compared, out)
    parts = [
        Part(rows.rows(comparison), figures.draw(comparison, out), tables.draw_up(comparison)),
        *_beside(config, out),
    ]
    return Result(
        experiment="zofl",
        title="ZOFL: constrained optimization from function values",
        summary=rows.summary(comparison),
        paper=PAPER,
        interval_label=verdicts.LABEL,
        rows=sum((part.rows for part in parts), ()),
        figures=sum((part.figures for part in parts), ()),
        tables=sum((part.tables for part in parts), ()),
        limits=LIMITS,
    )


class Told(NamedTuple):
    """What a study beside the comparison says, and the bytes of its pictures, uint8, by file."""

    part: Part
    pictures: dict[str, np.ndarray]


def _beside(config: Config, out: pathlib.Path) -> list[Part]:
    """Runs the studies beside the comparison, a unit each; `scale` has units of its own."""
    chosen = PARTS + (THOROUGH if config.thorough else ())
    settings = {name: getattr(config, name) for name in SETTINGS}

    def name(part: types.ModuleType) -> str:
        return f"beside/{part.__name__.rpartition('.')[2]}"

    todo = [
        Unit(name(part), settings, functools.partial(_told, part, config), Told)
        for part in chosen
        if part is not scale
    ]
    found = units.run(todo, out, title="zofl, beside")
    parts = []
    for part in chosen:
        if part is scale:
            parts.append(scale.run(config, out))
            continue
        told = found[name(part)]
        for path, content in told.pictures.items():
            (out / path).write_bytes(content.tobytes())
        parts.append(told.part)
    return parts


def _told(part: types.ModuleType, config: Config, folder: pathlib.Path) -> Told:
    said = part.run(config, folder)
    paths = [folder / figure.path for figure in said.figures]
    drawn = [*paths, *filter(pathlib.Path.exists, map(result.phone, paths))]
    return Told(said, {p.name: np.frombuffer(p.read_bytes(), np.uint8) for p in drawn})


def compare(
    config: Config, made: dict[str, Task], compared: tuple[str, ...], out: pathlib.Path
) -> Comparison:
    """Measures every method on every problem that it is made for, and puts the outcomes together.

    `metrics.jsonl` has a line per unit: the median final gap and violation of the tuned runs.
    """
    waiting = {
        "/".join(pair): (pair, unit) for pair, unit in _units(config, made, compared).items()
    }
    found = units.run(
        [unit for _, unit in waiting.values()],
        out,
        title="zofl",
        workers=min(WORKERS, os.cpu_count() or 1),
        metrics=lambda name, outcome: _final_metrics(outcome, config.sigmas),
    )
    outcomes = {waiting[name][0]: outcome for name, outcome in found.items()}
    return Comparison(config, made, compared, outcomes)


def _units(
    config: Config, made: dict[str, Task], compared: tuple[str, ...]
) -> dict[tuple[str, str], Unit]:
    """Makes the units by problem and method, in the order of the tables."""
    found: dict[tuple[str, str], Unit] = {}
    common = {"sigmas": config.sigmas, "num_seeds": config.num_seeds, "seed": config.seed}
    tuned = {"tuning_seeds": config.tuning_seeds, "quick": config.max_queries <= QUICK}

    def add(task: Task, name: str, measure, **settings) -> None:
        def compute(folder: pathlib.Path) -> Outcome:
            del folder  # a run is one compiled call: there is nothing to go on from
            return measure(task, **settings)

        found[task.name, name] = Unit(
            f"{task.name}/{name}", settings | {"budget": task.budget}, compute, Outcome
        )

    for task in made.values():
        for name in compared:
            method = methods.TABLE[name]
            exact_only_at_noise = method.only_exact and 0.0 not in config.sigmas
            if not method.missing(task) and not exact_only_at_noise:
                measure = functools.partial(runs.measure, chosen_method=method)
                add(task, name, measure, **common, **tuned)
        for solver in solvers.installed() if config.external else ():
            if not external.missing(task, solver):
                add(task, solver, functools.partial(external.measure, solver=solver), **common)
    return found


def _final_metrics(outcome: Outcome, sigmas: tuple[float, ...]) -> dict[str, float]:
    metrics = {}
    for index, sigma in enumerate(sigmas):
        for value in ("best_gap", "best_violation"):
            last = getattr(outcome.record, value)[index, runs.TUNED, :, -1]
            metrics[f"sigma={sigma:g}/{value}"] = runs.median(last)
    compiling, running = outcome.seconds
    return metrics | {"perf/compile_seconds": compiling, "perf/run_seconds": running}
