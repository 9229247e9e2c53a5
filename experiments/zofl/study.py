"""The comparison: every method tuned and measured on every problem, unit by unit, resumable."""

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Callable

from experiments.harness.result import Result
from experiments.rivals import solvers
from experiments.zofl import (
    Config,
    external,
    figures,
    methods,
    portraits,
    problems,
    scale,
    tables,
    theory,
    units,
)
from experiments.zofl.analysis import Comparison
from experiments.zofl.problems import Task
from experiments.zofl.units import Unit
from jaxlab.core import logging

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
WORKERS = 2
"""Units at a time: one compiles on a core while another runs."""
QUICK = 5000
"""Queries up to which compiling takes longer than running."""


def run(config: Config, out: pathlib.Path, *, resume: bool = True) -> Result:
    """Runs or resumes the comparison, then the studies beside it."""
    names = config.problems or tuple(problems.TABLE)
    compared = config.methods or tuple(methods.TABLE)
    problems.check_names(names)
    methods.check_names(compared)
    if methods.HEADLINE not in compared or set(compared) <= set(methods.OURS):
        raise ValueError(
            f"methods must include {methods.HEADLINE} and a rival to compare it with, "
            f"got {', '.join(compared)}"
        )
    tasks = {name: problems.make_task(name, config.max_queries) for name in names}
    comparison = compare(config, tasks, compared, out, resume=resume)
    rows, shown = tables.rows(comparison), tables.tables(comparison)
    pictures = figures.draw(comparison, out)
    for study in (theory.run, scale.run):
        more_rows, more_tables, more_pictures = study(config, out)
        rows, shown, pictures = (
            (*rows, *more_rows),
            (*shown, *more_tables),
            (*pictures, *more_pictures),
        )
    return Result(
        experiment="zofl",
        title="ZOFL: constrained optimization from function values",
        summary=tables.summary(comparison),
        paper=PAPER,
        interval_label="95 % bootstrap interval",
        rows=rows,
        figures=(*pictures, *portraits.run(config, out)),
        tables=shown,
        limits=LIMITS,
    )


def compare(
    config: Config,
    tasks: dict[str, Task],
    compared: tuple[str, ...],
    out: pathlib.Path,
    *,
    resume: bool,
) -> Comparison:
    """Runs what units are missing in `out/units`, and reads the others.

    `metrics.jsonl` has a line per unit: the median final gap and violation of the tuned runs.
    """
    jobs = _jobs(config, tasks, compared)
    metrics = out / "metrics.jsonl"
    metrics.unlink(missing_ok=True)  # a resumed run writes the lines of finished units again
    loggers = (logging.jsonl(metrics), logging.console(len(jobs), title="zofl"))
    done: dict[tuple[str, str], Unit] = {}

    def finish(name: tuple[str, str], unit: Unit, *, show: bool) -> None:
        done[name] = unit
        for log in loggers if show else loggers[:1]:
            log(len(done), _final_metrics(name, unit, config.sigmas))

    waiting = {}
    for name, job in jobs.items():
        path = _unit_path(out, name)
        if resume and path.exists():
            finish(name, units.load(path), show=False)
        else:
            waiting[name] = job
    pool = concurrent.futures.ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1))
    try:
        futures = {pool.submit(job): name for name, job in waiting.items()}
        for future in concurrent.futures.as_completed(futures):
            name = futures[future]
            try:
                unit = future.result()
            except Exception as error:
                error.add_note(f"in {name[1]} on {name[0]}")
                raise
            units.save(_unit_path(out, name), unit)
            finish(name, unit, show=True)
    finally:
        pool.shutdown(cancel_futures=True)
        for log in loggers:
            getattr(log, "close", lambda: None)()
    return Comparison(config, tasks, compared, {name: done[name] for name in jobs})


def _jobs(
    config: Config, tasks: dict[str, Task], compared: tuple[str, ...]
) -> dict[tuple[str, str], Callable[[], Unit]]:
    """The units to be measured, in the order of the tables."""
    jobs: dict[tuple[str, str], Callable[[], Unit]] = {}
    quick = config.max_queries <= QUICK
    common = {"sigmas": config.sigmas, "num_seeds": config.num_seeds, "seed": config.seed}
    for name, task in tasks.items():
        for key in compared:
            method = methods.TABLE[key]
            exact_only_at_noise = method.only_exact and 0.0 not in config.sigmas
            if not method.missing(task) and not exact_only_at_noise:
                jobs[name, key] = functools.partial(
                    units.run_unit,
                    task,
                    method,
                    tuning_seeds=config.tuning_seeds,
                    quick=quick,
                    **common,
                )
        for solver in solvers.installed() if config.external else ():
            if not external.missing(task, solver):
                jobs[name, solver] = functools.partial(external.run_unit, task, solver, **common)
    return jobs


def _unit_path(out: pathlib.Path, name: tuple[str, str]) -> pathlib.Path:
    return out / "units" / f"{name[0]}--{name[1]}.npz"


def _final_metrics(
    name: tuple[str, str], unit: Unit, sigmas: tuple[float, ...]
) -> dict[str, float]:
    where = "/".join(name)
    metrics = {}
    for index, sigma in enumerate(sigmas):
        for value in ("best_gap", "best_violation"):
            last = getattr(unit.record, value)[index, units.TUNED, :, -1]
            metrics[f"{where}/sigma={sigma:g}/{value}"] = units.median(last)
    return metrics | {"perf/compile_seconds": unit.seconds[0], "perf/run_seconds": unit.seconds[1]}
