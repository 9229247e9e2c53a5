"""How much of the ideal overlap is reached, and what micro-batches gain."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.afd import Config, child, figures
from experiments.harness import units, verdicts
from experiments.harness.result import Part, Row, Table
from experiments.harness.units import Unit
from jaxlab.serving.afd import trace
from jaxlab.serving.afd.pipeline import StageEvent, pipeline_time

SLEEPING, PRODUCTS = "sleeping stages", "matrix products"
GOALS = {SLEEPING: 0.95, PRODUCTS: 0.85}
"""Shares of the ideal overlap that we set ourselves."""
POSSIBLE = 1.02
"""Shares above it tell of a machine whose speed changed, and of nothing else."""
CLAIM = "While attention computes, so do the experts"
GAIN = "A second micro-batch nearly doubles throughput, a third adds what the network hides"
LIMITS = (
    "Stages that sleep share no core and show the schedule; matrix products run on two processes "
    "of one core each, one device a role.",
    "Overlap is the time saved, of what the exact formula for these stage times could save; stage "
    "times are those of the stages alone, one after another.",
    "The paper gives no overlap; 0.95 of it while stages sleep and 0.85 while they compute are our "
    "goals.",
)


class Cell(NamedTuple):
    """Who was measured: how it is run, what its stages do, and with how many micro-batches."""

    realisation: str
    work: str
    micro_batches: int


class Measured(NamedTuple):
    """Seconds of every step, and the traces of those realisations that keep one."""

    seconds: list[float]
    traces: list[list[StageEvent]]


def run(config: Config, out: pathlib.Path) -> Part:
    """Decodes in other processes, a unit each, and sets the steps beside the formula."""
    limits = LIMITS
    if config.width and len(child.cores()) < 2:
        config = dataclasses.replace(config, width=0)
        limits += ("Matrix products were left out: processes cannot be kept to two cores here.",)
    cells = grid(config)
    answers = units.run([_unit(cell, config) for cell in cells], out, title="afd, overlap")
    found = {
        cell: Measured(
            list(answers[_name(cell)]["seconds"]),
            [list(trace.read_trace(t)) for t in answers[_name(cell)]["traces"] if t],
        )
        for cell in cells
    }
    alone = {work: _alone(found[Cell("alone", work, 1)]) for work in works(config)}
    rows: list[Row] = []
    table = []
    for cell, measured in found.items():
        if cell.realisation == "alone" or cell.micro_batches == 1:
            continue
        efficiency = _efficiency(measured.seconds, alone[cell.work], cell, config.num_layers)
        if cell.micro_batches <= 3:
            goal = GOALS[cell.work]
            verdict, note = _judge(efficiency.mean(), goal)
            rows.append(
                verdicts.row_alone(
                    CLAIM,
                    f"Share of the ideal overlap, {cell.work}, {_run_as(cell)}, "
                    f"{cell.micro_batches} micro-batches",
                    efficiency,
                    verdict=verdict,
                    paper=f"{goal} or more (our goal)",
                    note=f"Attention {1e3 * alone[cell.work][0]:.1f} ms, experts "
                    f"{1e3 * alone[cell.work][1]:.1f} ms, {config.num_layers} layers.{note}",
                )
            )
        table.append(
            (
                cell.work,
                _run_as(cell),
                cell.micro_batches,
                1e3 * float(np.median(measured.seconds)),
                1e3 * _ideal(alone[cell.work], cell.micro_batches, config.num_layers),
                float(np.median(efficiency)),
            )
        )
    rows += _gains(found)
    pictures = []
    sleeping = {c.micro_batches: m for c, m in found.items() if c[:2] == ("two meshes", SLEEPING)}
    pictures.append(figures.gantt({M: m.traces[-1] for M, m in sleeping.items()}, out))
    shown = "server process" if config.width else "two meshes"
    served = Cell(shown, SLEEPING, config.micro_batches[1])
    pictures.append(figures.token(found[served].traces[-1], out))
    told = Table(
        "Steps of a decoder",
        ("Work", "Realisation", "Micro-batches", "Step, ms", "Ideal, ms", "Overlap"),
        tuple(table),
        "Medians over steps. Ideal: the formula for a pipeline of these stage times without a "
        "network. Overlap: share of the time that overlap could save.",
    )
    return Part(rows=tuple(rows), figures=tuple(pictures), tables=(told,), limits=limits)


def grid(config: Config) -> list[Cell]:
    """What is measured; one program has at least two micro-batches."""
    cells = [Cell("alone", work, 1) for work in works(config)]
    cells += [Cell("two meshes", SLEEPING, M) for M in config.micro_batches]
    if config.width:
        cells.append(Cell("server process", SLEEPING, config.micro_batches[1]))
        cells += [Cell("server process", PRODUCTS, M) for M in config.micro_batches]
    cells += [
        Cell("one program", work, M)
        for work in works(config)
        for M in config.micro_batches
        if M > 1
    ]
    return cells


def works(config: Config) -> tuple[str, ...]:
    """What stages do."""
    return (SLEEPING, PRODUCTS) if config.width else (SLEEPING,)


def _gains(found: dict[Cell, Measured]) -> list[Row]:
    """Throughput of M micro-batches over that of fewer, step by step in order."""
    rows = []
    for realisation, work in (("two meshes", SLEEPING), ("server process", PRODUCTS)):
        for more, fewer, paper in ((2, 1, 1.9), (3, 2, "1.1 to 1.38")):
            a, b = (found.get(Cell(realisation, work, M)) for M in (more, fewer))
            if a is None or b is None:
                continue
            rate = more / np.array(a.seconds) / (fewer / np.median(b.seconds))
            rows.append(
                verdicts.row_alone(
                    GAIN,
                    f"Tokens a second of {more} micro-batches over {fewer}, {work}",
                    rate,
                    paper=paper,
                    note="Micro-batches of equal size. The figure is MegaScale-Infer's, "
                    "arXiv:2504.02263, whose network takes time; ours is the loopback or none.",
                )
            )
    return rows


def _alone(measured: Measured) -> tuple[float, float]:
    """Median seconds of attention and experts, where one runs after the other."""
    events = [event for one in measured.traces for event in one]
    took = {
        role: float(np.median([e.end - e.start for e in events if e.role == role]))
        for role in ("attention", "experts")
    }
    return took["attention"], took["experts"]


def _ideal(alone: tuple[float, float], M: int, L: int) -> float:
    return pipeline_time((alone[0], 0.0, alone[1], 0.0), M, L)


def _efficiency(
    seconds: Sequence[float], alone: tuple[float, float], cell: Cell, L: int
) -> np.ndarray:
    serial = L * cell.micro_batches * sum(alone)
    ideal = _ideal(alone, cell.micro_batches, L)
    return (serial - np.array(seconds)) / (serial - ideal)


def _judge(efficiency: float, goal: float) -> tuple[str, str]:
    """Returns the verdict, and what there is to say about a share that cannot be."""
    if efficiency > POSSIBLE:
        note = " More than there was to save: stages were slower alone. Measure when idle."
        return "measured", note
    return ("reproduced" if efficiency >= goal else "not reproduced"), ""


def _run_as(cell: Cell) -> str:
    if cell.realisation == "one program" and cell.work == PRODUCTS:
        return "one program of two processes"
    return cell.realisation


def _name(cell: Cell) -> str:
    return f"overlap/{cell.realisation}, {cell.work}, {cell.micro_batches}"


def _unit(cell: Cell, config: Config) -> Unit:
    settings: dict[str, Any] = {
        "realisation": cell.realisation,
        "micro_batches": cell.micro_batches,
        "num_layers": config.num_layers,
        "width": config.width,
        "requests": config.requests,
        "repeats": config.repeats,
        "sleep_ms": config.sleep_ms if cell.work == SLEEPING else None,
    }
    place: dict[str, Any] = {"num_devices": 2}
    if cell.work == PRODUCTS:
        place = {"pinned": True, "num_processes": 2 if cell.realisation == "one program" else 1}
    compute = functools.partial(child.ask, "overlap", **place, **settings)
    return Unit(_name(cell), settings, lambda folder: compute())
