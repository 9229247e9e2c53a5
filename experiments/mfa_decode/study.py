"""The kernel study: every cell timed beside its rivals and set against the memory's speed."""

import itertools
import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.bench import ceilings, mqa_decode, timing
from experiments.bench.timing import Measurement
from experiments.harness import drawing, result
from experiments.harness.result import Figure, Result, Row
from experiments.mfa_decode import Config
from jaxlab.core import logging
from jaxlab.kernels.mqa_decode.specs import Spec

PAPER = "StepFun: Step-3 is Large yet Affordable, arXiv:2507.19427"
LIMITS = (
    "One layer, one device; a timing is of one call within a chain of calls (on a CPU, alone).",
    "The ceiling is a copy measured in the same process, not the data sheet.",
    "The paper's figure is the incremental rate of its layer from 8K to 32K on an H800, in "
    "bfloat16, over the peak of the data sheet.",
)
MANY = 524_288
"""Tokens from which launch and schedule should not matter any more."""
PAPER_SHARE = 94.0


def run(config: Config, out: pathlib.Path, *, resume: bool = True) -> Result:
    """Times what is missing, a file a cell; a killed run loses the cell it was at."""
    specs = grid(config)
    copied = ceilings.copy_bandwidth()
    log = logging.console(len(specs), title="mfa_decode")
    metrics = logging.jsonl(out / "metrics.jsonl")
    found: dict[Spec, list[Measurement]] = {}
    failures: list[str] = []
    for index, spec in enumerate(specs):
        path = out / "cells" / f"{index:03d}.json"
        if resume and path.exists():
            found[spec] = list(result.read(path, tuple[Measurement, ...]))
        else:
            try:
                found[spec] = mqa_decode.cells([spec], repeats=config.repeats)
            except RuntimeError as error:  # one cell's memory or compiler; the next may do
                failures.append(str(error))
                continue
            result.write(path, found[spec])
        ours = found[spec][0]
        values = {f"{spec.name}/share": share(ours), f"{spec.name}/error": ours.error or 0.0}
        for logger in (log, metrics):
            logger(index + 1, values)
    getattr(log, "close", lambda: None)()
    if not found:
        raise RuntimeError("; ".join(failures))
    cells = [item for items in found.values() for item in items]
    return Result(
        experiment="mfa_decode",
        title="Decode attention beside the memory's speed",
        summary=_summary(found),
        paper=PAPER,
        interval_label="the least and the most over cells",
        rows=(*_share_rows(found, config), *_rival_rows(cells), _error_row(cells)),
        figures=(_figure(found, out),),
        tables=(timing.as_table(cells, "Every cell"),),
        limits=(
            *LIMITS,
            f"Copy bandwidth measured: {copied / 1e9:,.0f} GB/s.",
            *(f"Not measured: {failure}." for failure in failures),
        ),
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


def share(item: Measurement) -> float:
    """Percent of the copy bandwidth."""
    assert item.rate is not None and item.ceiling is not None
    return 100.0 * item.rate / item.ceiling


def _share_rows(found: dict[Spec, list[Measurement]], config: Config) -> list[Row]:
    rows = []
    for kv, lengths in itertools.product(config.kv, config.lengths):
        cells = {s: i[0] for s, i in found.items() if (s.kv, s.lengths) == (kv, lengths)}
        large = [share(item) for spec, item in cells.items() if spec.B * spec.S >= MANY]
        metric = f"Share of the copy bandwidth, {kv}, {lengths}, 512K tokens or more"
        claim = "Decode attention runs at the memory's speed"
        if large:
            rows.append(
                Row(
                    claim,
                    metric,
                    float(np.median(large)),
                    interval=(min(large), max(large)),
                    unit="%",
                    paper=PAPER_SHARE if (kv, lengths) == ("bf16", "uniform") else None,
                    note=f"Median of {len(large)} cells; in brackets the least and the most.",
                )
            )
        else:
            rows.append(
                Row(
                    claim,
                    metric,
                    None,
                    verdict="not measured",
                    unit="%",
                    note="No cell of this run is so large.",
                )
            )
    return rows


def _rival_rows(cells: list[Measurement]) -> list[Row]:
    rows = []
    for name in dict.fromkeys(item.rival_name for item in cells if item.rival):
        ratios = np.array([item.ratio for item in cells if item.rival_name == name])
        low, high = float(ratios.min()), float(ratios.max())
        verdict = "better" if low > 1.0 else "worse" if high < 1.0 else "no clear difference"
        rows.append(
            Row(
                "Not slower than any rival on the same device",
                f"Time of {name} over ours",
                float(np.median(ratios)),
                interval=(low, high),
                baseline=("parity", 1.0),
                verdict=verdict,
                note=f"Median of {ratios.size} cells, and the least and the most.",
            )
        )
    return rows


def _error_row(cells: list[Measurement]) -> Row:
    worst = max((item for item in cells if item.error is not None), key=lambda item: item.error)
    return Row(
        "Every cell is checked",
        "Largest deviation from the reference, over the largest value",
        worst.error,
        note=f"On {worst.shape}; float32 below 1e-5, bfloat16 below 2e-2 expected.",
    )


def _figure(found: dict[Spec, list[Measurement]], out: pathlib.Path) -> Figure:
    kinds = list(dict.fromkeys((spec.kv, spec.lengths) for spec in found))
    with plt.rc_context(drawing.STYLE):
        figure, axis = plt.subplots(figsize=(6.6, 3.8))
        for index, (kv, lengths) in enumerate(kinds):
            cells = {s: i[0] for s, i in found.items() if (s.kv, s.lengths) == (kv, lengths)}
            axis.plot(
                [spec.B * spec.S for spec in cells],
                [share(item) for item in cells.values()],
                "o",
                color=drawing.COLORS[index % 7],
                markersize=4 + 2 * (lengths == "uniform"),
                label=f"{kv}, {lengths}",
            )
        axis.axhline(100.0, color=drawing.MUTED, linewidth=1, linestyle="--")
        axis.set_xscale("log", base=2)
        axis.set_ylim(0.0)
        axis.set_xlabel("Tokens of cache, all requests")
        axis.set_ylabel("Share of the copy bandwidth (%)")
        axis.set_title("Bytes a second of decode attention")
        axis.legend()
        drawing.save(figure, out / "share.png")
    return Figure(
        "share.png",
        "Bytes that a call must move, a second, over the measured bandwidth of a copy.",
        "Share of the copy bandwidth against tokens of cache",
    )


def _summary(found: dict[Spec, list[Measurement]]) -> str:
    best = max((items[0] for items in found.values()), key=share)
    return f"At most {share(best):.0f} % of the copy bandwidth, by {best.name} on {best.shape}."
