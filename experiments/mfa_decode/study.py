"""The kernel study: every cell timed beside its rivals and set against the memory's speed."""

import functools
import itertools
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from experiments.bench import mqa_decode, timing
from experiments.bench.timing import Measurement
from experiments.harness import result, units, words
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from experiments.mfa_decode import Config, figures, rows
from jaxlab.kernels.mqa_decode.specs import Spec  # pyright: ignore[reportMissingImports]

PAPER = "StepFun: Step-3 is Large yet Affordable, arXiv:2507.19427"
LIMITS = (
    "One layer, one device; a timing is of one call within a chain of calls (on a CPU, alone).",
    "The ceiling is a copy measured in the same process, not the data sheet.",
    "The paper's figure is the incremental rate of its layer from 8K to 32K on an H800, in "
    "bfloat16, over the peak of the data sheet.",
)


class Cell(NamedTuple):
    """What was measured in one cell.

    Attributes:
        items: Ours beside every rival that runs; none if the cell failed.
        failure: Why it did: its memory, or a limit of the compiler.
    """

    items: tuple[Measurement, ...]
    failure: str = ""


def run(config: Config, out: pathlib.Path) -> Result:
    """Times the cells that are missing, a unit each, then compares."""
    specs = grid(config)
    cells = units.run(
        [_unit(spec, config.repeats) for spec in specs], out, title="mfa_decode", metrics=_metrics
    )
    found = {spec: cells[_name(spec)].items for spec in specs if cells[_name(spec)].items}
    failures = [cell.failure for cell in cells.values() if cell.failure]
    if not found:
        raise RuntimeError("; ".join(failures))
    items = [item for items in found.values() for item in items]
    part = Part(
        rows=rows.rows(found, config),
        figures=(figures.draw(found, out),),
        tables=(timing.as_table(items, "Every cell"),),
        limits=(
            *LIMITS,
            f"Copy bandwidth measured: {_ceilings(items)} GB/s.",
            *(f"Not measured: {failure}." for failure in failures),
        ),
    )
    return result.assemble(
        [part],
        experiment="mfa_decode",
        title="Decode attention beside the memory's speed",
        summary=_summary(items[0] for items in found.values()),
        paper=PAPER,
        interval_label="the least and the most over cells",
    )


def grid(config: Config) -> list[Spec]:
    """The cells, the cheap ones first."""
    specs = [
        Spec(B, S, lengths, kv, H=config.num_heads, C=config.head_dim)
        for kv, lengths, B, S in itertools.product(
            config.kv, config.lengths, config.batches, config.contexts
        )
        if B * S <= config.max_tokens and not (B == 1 and lengths != "uniform")
    ]
    return sorted(specs, key=lambda spec: spec.B * spec.S)


def _unit(spec: Spec, repeats: int) -> Unit:
    settings = {**spec._asdict(), "repeats": repeats}
    return Unit(_name(spec), settings, functools.partial(_time, spec, repeats), Cell)


def _name(spec: Spec) -> str:
    return f"{spec.kv}/{spec.lengths}/B={spec.B}, S={spec.S}"


def _time(spec: Spec, repeats: int, _: pathlib.Path) -> Cell:
    try:
        return Cell(tuple(mqa_decode.cells([spec], repeats=repeats)))
    except RuntimeError as error:  # of this cell alone; the next may do
        return Cell((), str(error))


def _metrics(name: str, cell: Cell) -> dict[str, float]:
    if not cell.items:
        return {}
    ours = cell.items[0]
    return {"share": rows.share(ours), "error": ours.error or 0.0}


def _ceilings(items: Iterable[Measurement]) -> str:
    """The copies measured, one a process."""
    found = sorted({item.ceiling / 1e9 for item in items if item.ceiling})
    return " to ".join(dict.fromkeys(words.number(round(x)) for x in (found[0], found[-1])))


def _summary(ours: Iterable[Measurement]) -> str:
    best = max(ours, key=rows.share)
    return (
        f"At most {rows.share(best):.0f} % of the copy bandwidth, by {best.name} on {best.shape}."
    )
