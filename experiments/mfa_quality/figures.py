"""Pictures of the comparison: loss against cache, and learning curves."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

from experiments.harness import drawing, verdicts
from experiments.harness.result import Figure
from experiments.mfa_quality.rows import Found

COLORS = {
    "MHA": drawing.INK,
    "GQA": drawing.GREEN,
    "MQA": drawing.ORANGE,
    "MLA": drawing.VIOLET,
    "MFA": drawing.BLUE,
    "MFA-KR": drawing.SKY,
}
UNITS = {"recall": "Loss (bits a recalled value)", "bytes": "Loss (bits per byte)"}


class Bar(NamedTuple):
    """One attention on one task: its cache, its mean loss, and half of the interval around it."""

    name: str
    cached: int
    loss: float
    half: float | None


def draw(found: Found, titles: dict[str, str], out: pathlib.Path) -> tuple[Figure, ...]:
    """Draws both pictures, a panel a task."""
    return (quality(_bars(found, titles), titles, out), _curves(found, titles, out))


def _bars(found: Found, titles: Mapping[str, str]) -> dict[str, list[Bar]]:
    bars: dict[str, list[Bar]] = {task: [] for task in titles}
    for (task, name), one in found.items():
        loss = verdicts.measure(one.runs.loss)
        if loss.value is not None:
            half = None if loss.interval is None else (loss.interval[1] - loss.interval[0]) / 2
            bars[task].append(Bar(name, one.model.cached, loss.value, half))
    return bars


def quality(
    bars: Mapping[str, Sequence[Bar]], titles: Mapping[str, str], out: pathlib.Path
) -> Figure:
    """Draws the loss of every attention against its cache, those of equal cache side by side."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(1, len(titles), figsize=(4.6 * len(titles), 3.6), squeeze=False)
        for axis, (task, title) in zip(axes[0], titles.items(), strict=True):
            # Losses of a task that some have learned and some not differ by powers of ten.
            losses = [bar.loss for bar in bars[task]]
            if min(losses, default=1.0) < 0.02 * max(losses, default=1.0):
                axis.set_yscale("log")
            sizes = sorted({bar.cached for bar in bars[task]})
            for size in sizes:
                beside = [bar for bar in bars[task] if bar.cached == size]
                for index, bar in enumerate(beside):
                    x = size * 2.0 ** (0.35 * (index - (len(beside) - 1) / 2))
                    axis.errorbar(x, bar.loss, bar.half, fmt="o", color=COLORS[bar.name], capsize=3)
                    axis.annotate(
                        bar.name,
                        (x, bar.loss + (bar.half or 0.0)),
                        xytext=(0, 5),
                        textcoords="offset points",
                        fontsize=7.5,
                        color=COLORS[bar.name],
                        ha="center",
                    )
            axis.set_xscale("log", base=2)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            axis.set_xlim(sizes[0] / 1.6, sizes[-1] * 2.0)
            axis.margins(y=0.15)
            axis.set_title(title)
            axis.set_xlabel("Cache (elements a token and layer)")
            axis.set_ylabel(UNITS[task])
        drawing.save(figure, out / "quality.png")
    return Figure(
        "quality.png",
        "Held-out loss against the size of the cache, at equal parameters: means over seeds and "
        "their 95 % intervals. Layers of equal cache stand side by side.",
        "Loss against cache elements for six attention layers on two tasks",
    )


def _curves(found: Found, titles: dict[str, str], out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        size = (4.6 * len(titles), 3.7)
        figure, axes = plt.subplots(
            1, len(titles), figsize=size, squeeze=False, layout="constrained"
        )
        for axis, (task, title) in zip(axes[0], titles.items(), strict=True):
            for (which, name), one in found.items():
                if which != task:
                    continue
                steps, losses = one.runs.steps, one.runs.curve
                losses = losses[:, np.isfinite(one.runs.loss)]
                if not losses.size:
                    continue
                axis.plot(steps, losses.mean(axis=1), color=COLORS[name], label=name)
                axis.fill_between(
                    steps,
                    losses.min(axis=1),
                    losses.max(axis=1),
                    color=COLORS[name],
                    alpha=0.1,
                    linewidth=0,
                )
            axis.set_title(title)
            axis.set_xlabel("Training steps")
            axis.set_ylabel(UNITS[task])
        drawing.legend(figure)
        drawing.save(figure, out / "curves.png")
    return Figure(
        "curves.png",
        "Held-out loss during training; lines are means over the seeds that stayed finite, bands "
        "their range.",
        "Learning curves of six attention layers on two tasks",
    )
