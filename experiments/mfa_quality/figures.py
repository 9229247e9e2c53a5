"""Pictures of the comparison: loss against cache, and learning curves."""

import pathlib
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.result import Figure
from experiments.mfa_quality.rows import Found, Outcome

COLORS = {
    "MHA": drawing.INK,
    "GQA": drawing.GREEN,
    "MQA": drawing.ORANGE,
    "MLA": drawing.VIOLET,
    "MFA": drawing.BLUE,
    "MFA-KR": drawing.SKY,
}
UNITS = {"recall": "Loss (bits a recalled value)", "bytes": "Loss (bits per byte)"}


def draw(found: Found, titles: dict[str, str], out: pathlib.Path) -> tuple[Figure, ...]:
    """Draws both pictures, a panel a task."""
    return (_quality(found, titles, out), _curves(found, titles, out))


def _quality(found: Found, titles: dict[str, str], out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(1, len(titles), figsize=(4.6 * len(titles), 3.4), squeeze=False)
        for axis, (task, title) in zip(axes[0], titles.items(), strict=True):
            outcomes = {name: one for (which, name), one in found.items() if which == task}
            for name, one in outcomes.items():
                x = np.full(one.runs.loss.size, one.model.cached)
                axis.plot(x, one.runs.loss, ".", color=COLORS[name], alpha=0.35, markersize=5)
                axis.plot(x[0], one.runs.loss.mean(), "_", color=COLORS[name], markersize=15, mew=2)
            for (x, y), names in _together(outcomes).items():
                axis.annotate(
                    ", ".join(names),
                    (x, y),
                    xytext=(9, 0),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=COLORS[names[0]],
                    va="center",
                )
            axis.set_xscale("log", base=2)
            ticks = sorted({one.model.cached for one in outcomes.values()})
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.7)
            axis.set_title(title)
            axis.set_xlabel("Cache (elements a token and layer)")
            axis.set_ylabel(UNITS[task])
        drawing.save(figure, out / "quality.png")
    return Figure(
        "quality.png",
        "Held-out loss against the size of the cache, at equal parameters; points are seeds, bars "
        "their means.",
        "Loss against cache elements for six attention layers on two tasks",
    )


def _together(outcomes: Mapping[str, Outcome]) -> dict[tuple[float, float], list[str]]:
    """Names by position; those that would overprint each other share a label."""
    losses = [one.runs.loss.mean() for one in outcomes.values()]
    near = 0.04 * max(max(losses) - min(losses), 1e-9)
    groups: dict[tuple[float, float], list[str]] = {}
    for name, one in sorted(outcomes.items(), key=lambda item: item[1].runs.loss.mean()):
        x, y = float(one.model.cached), float(one.runs.loss.mean())
        for (other_x, other_y), names in groups.items():
            if other_x == x and abs(other_y - y) < near:
                names.append(name)
                break
        else:
            groups[x, y] = [name]
    return groups


def _curves(found: Found, titles: dict[str, str], out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(1, len(titles), figsize=(4.6 * len(titles), 3.4), squeeze=False)
        for axis, (task, title) in zip(axes[0], titles.items(), strict=True):
            for (which, name), one in found.items():
                if which != task:
                    continue
                steps, losses = one.runs.steps, one.runs.curve
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
        axes[0, -1].legend(ncols=2)
        drawing.save(figure, out / "curves.png")
    return Figure(
        "curves.png",
        "Held-out loss during training; lines are means over seeds, bands their range.",
        "Learning curves of six attention layers on two tasks",
    )
