"""Pictures: schedules, a token's way, the ratio of workers, the network."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

from experiments.harness import drawing, result
from jaxlab.serving.afd import trace, wire
from jaxlab.serving.afd.pipeline import StageEvent
from jaxlab.serving.model.step3 import Step3Config

ROLES = {"attention": drawing.BLUE, "experts": drawing.RED}
SHADES = (1.0, 0.55, 0.3, 0.15)
"""Of the micro-batches."""


def gantt(traces: Mapping[int, Sequence[StageEvent]], out: pathlib.Path) -> result.Figure:
    """Draws who works when, the first three layers of a step, for each number of micro-batches."""
    shown = {M: [e for e in events if e.layer < 3] for M, events in traces.items()}
    shown = dict(list(shown.items())[:3])
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(len(shown), 1, height=2.2)
        for axis, (M, events) in zip(axes[:, 0], shown.items(), strict=True):
            axis.set_title(f"{M} micro-batch" + "es" * (M > 1))
            labels = {}
            for bar in trace.gantt_bars(events):
                role = bar.label.split()[0]
                labels[bar.row] = role
                _bar(axis, bar.row, 1e3 * bar.start, 1e3 * bar.seconds, role, bar.micro_batch)
            axis.set_yticks(list(labels), list(labels.values()))
            axis.invert_yaxis()
            axis.grid(visible=False, axis="y")
            axis.set_xlabel("Milliseconds")
        for role, color in ROLES.items():
            axes[0, 0].bar(0, 0, color=color, label=f"{role}; the lighter, the later micro-batch")
        drawing.legend(figure)
        drawing.save(figure, out / "gantt.png")
    return result.Figure(
        "gantt.png",
        "Stages of the first three layers as they ran, with stages that sleep. With one "
        "micro-batch a role waits for the other; with two or more both work all the time.",
        "Bars of attention and experts over time, for each number of micro-batches.",
    )


def token(events: Sequence[StageEvent], out: pathlib.Path) -> result.Figure:
    """Draws the way of one token through two layers: attention, out, experts, back."""
    there, back = wire.wire_bytes(Step3Config(), "fp8")
    begin = min(e.start for e in events)
    rows = {"attention": 0, "experts": 1}
    first = [e for e in events if e.layer < 2 and e.role in rows]
    first.sort(key=lambda e: e.start)
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 1, height=2.9)
        axis = axes[0, 0]
        for event in first:
            at, took = 1e3 * (event.start - begin), 1e3 * (event.end - event.start)
            _bar(axis, rows[event.role], at, took, event.role, 2 * (event.micro_batch != 0))
        mine = [e for e in first if e.micro_batch == 0]
        for a, b in itertools.pairwise(mine):
            start = (1e3 * (a.end - begin), rows[a.role] + (0.3 if a.role == "attention" else -0.3))
            end = (1e3 * (b.start - begin), rows[b.role] - (0.3 if b.role == "experts" else -0.3))
            axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": drawing.INK})
            size = there if a.role == "attention" else back
            axis.text(
                start[0], 0.5, f" {size / 1e3:.1f} kB", fontsize=8, va="center", color=drawing.MUTED
            )
        axis.set_yticks(list(rows.values()), list(rows))
        axis.set_ylim(1.6, -0.6)
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("Milliseconds")
        for role, color in ROLES.items():
            axis.bar(0, 0, color=color, label=f"{role}: this token's micro-batch")
        axis.bar(0, 0, color=drawing.GRID, label="the other micro-batch")
        drawing.legend(figure)
        drawing.save(figure, out / "token.png")
    return result.Figure(
        "token.png",
        "The way of a token through two layers as it was measured: attention normalizes it and "
        "chooses its experts, it goes over to them, and the weighted sum of what they make of it "
        "comes back and is added to it. Meanwhile the other micro-batch goes the same way. Stages "
        "sleep; kilobytes are Step-3's, in eight bits out and bfloat16 back.",
        "Two lanes over time with bars; arrows lead from attention to experts and back.",
    )


def sizing(found: Mapping[tuple[str, str], Sequence[Any]], out: pathlib.Path) -> result.Figure:
    """Draws throughput against the ratio: rule and simulation."""
    laws = list(dict.fromkeys(law for law, _ in found))
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(laws))
        for axis, law in zip(axes[0], laws, strict=True):
            axis.set_title(law.capitalize())
            links = [link for other, link in found if other == law]
            for link, color in zip(links, (drawing.BLUE, drawing.ORANGE), strict=False):
                one = found[law, link][0]
                axis.plot(one.ratios, one.told, color=color, lw=1.8, label=f"rule, {link}")
                axis.plot(one.ratios, one.rates, "o", color=color, ms=3, label=f"simulated, {link}")
                axis.axvline(one.best, color=color, lw=0.8, ls=":")
            axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
            axis.set_xlabel("Attention workers for an expert worker")
            axis.set_ylabel("Tokens a worker and unit of time")
        drawing.legend(figure)
        drawing.save(figure, out / "sizing.png")
    return result.Figure(
        "sizing.png",
        "Throughput of each worker against the number of attention workers: the rule's expression "
        "and the simulation of every slot. Dotted: the ratio that the rule says.",
        "Curves with a peak, and points on them, for three laws of lengths.",
    )


def network(networks: np.ndarray, curves: Mapping[str, Any], out: pathlib.Path) -> result.Figure:
    """Draws use of expert servers, and throughput apart and together, against the network."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 2)
        x = networks / 1e9
        for (name, of), color in zip(curves.items(), drawing.COLORS, strict=False):
            axes[0, 0].plot(x, 100 * of.bound, color=color, lw=0.9, ls="--")
            axes[0, 0].plot(x, 100 * of.used, "o-", color=color, ms=3, label=name)
            axes[0, 1].plot(x, of.apart / of.together, "o-", color=color, ms=3, label=name)
        axes[0, 0].set_ylabel("Use of expert servers (%)")
        axes[0, 1].set_ylabel("Tokens per GPU, apart over together")
        axes[0, 1].axhline(1.0, color=drawing.MUTED, lw=0.8)
        for axis in axes[0]:
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.minorticks_off()
            axis.set_xlabel("Network of a server (GB/s)")
        drawing.legend(figure)
        drawing.save(figure, out / "network.png")
    return result.Figure(
        "network.png",
        "How busy expert servers can be, and what separation brings against everything on all "
        "servers, by the network. Dashed: the bound for any number of servers. The sparser the "
        "experts, the faster the network has to be.",
        "Curves over network bandwidth for three models.",
    )


def _bar(axis: Any, row: int, start: float, length: float, role: str, shade: int) -> None:
    axis.set_axisbelow(True)
    axis.barh(
        row,
        length,
        left=start,
        height=0.6,
        color=ROLES[role],
        alpha=SHADES[shade % len(SHADES)],
        edgecolor="white",
        lw=0.5,
    )
