"""Pictures of the comparison: scores by trajectories, and in training."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing, verdicts
from experiments.harness.result import Figure
from experiments.imitation import methods, rows
from experiments.imitation.rows import Found


def draw(found: Found, task: str, title: str, what: str, out: pathlib.Path) -> tuple[Figure, ...]:
    """Draws the methods of which a seed is left, in one task; `what` is "Score" or "Return"."""
    left = {k: one for k, one in found.items() if np.isfinite(one.final).any()}
    names = [n for n in methods.BASELINES if any(n == name for _, name in left)]
    if not names:
        return ()
    made = [_training(left, names, task, title, what, out)]
    if len(rows.counts(left)) > 1:
        made.insert(0, _trajectories(left, names, task, title, what, out))
    return tuple(made)


def _style(i: int) -> dict:
    style = "-" if i < len(drawing.COLORS) else "--"
    color = drawing.COLORS[i % len(drawing.COLORS)]
    return {"ls": style, "color": color, "lw": 2.6 if i == 0 else 1.4}


def _label(what: str) -> str:
    return "Normalized score" if what == "Score" else what


def _trajectories(
    found: Found, names: list[str], task: str, title: str, what: str, out: pathlib.Path
) -> Figure:
    nums = rows.counts(found)
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 2, height=3.8)
        for axis in axes.flat:
            axis.set_xticks(np.arange(len(nums)), [str(num) for num in nums])
            axis.set_xlabel("The expert's episodes")
        scores, spread = axes.flat
        for i, name in enumerate(names):
            each = [found[num, name].final if (num, name) in found else None for num in nums]
            x = [k for k, one in enumerate(each) if one is not None]
            kept = [one for one in each if one is not None]
            means = [verdicts.average(one) for one in kept]
            scores.plot(x, means, marker="o", ms=4, label=name, **_style(i))
            spread.plot(x, [np.nanstd(one, ddof=1) for one in kept], marker="o", ms=4, **_style(i))
        scores.set(title="Mean over seeds", ylabel=_label(what))
        spread.set(title="Standard deviation over seeds", ylabel=_label(what))
        if what == "Score":
            scores.axhline(100.0, color=drawing.MUTED, ls=":")
        drawing.legend(figure)
        drawing.save(figure, out / f"trajectories_{task}.png")
    return Figure(
        f"trajectories_{task}.png",
        f"{title}: {what.lower()} at the last checkpoint by the number of demonstrations"
        + ("; 100 is the expert, 0 random actions." if what == "Score" else "."),
        f"{what} of every method in {title} by the number of the expert's episodes",
    )


def _training(
    found: Found, names: list[str], task: str, title: str, what: str, out: pathlib.Path
) -> Figure:
    nums = rows.counts(found)
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(nums))
        for axis, num in zip(axes.flat, nums, strict=True):
            for i, name in enumerate(names):
                if (num, name) not in found:
                    continue
                steps, scores = found[num, name].curve
                mean = scores[:, np.isfinite(found[num, name].final)].mean(axis=1)
                axis.plot(steps / 1000, mean, label=name, **_style(i))
            axis.set_title(f"{num} of the expert's episodes")
            axis.set_xlabel("Updates (thousands)")
            axis.set_ylabel(_label(what))
            if what == "Score":
                axis.axhline(100.0, color=drawing.MUTED, ls=":")
        drawing.legend(figure)
        drawing.save(figure, out / f"scores_{task}.png")
    return Figure(
        f"scores_{task}.png",
        f"{title}: {what.lower()} in training, means over seeds"
        + ("; 100 is the expert, 0 random actions." if what == "Score" else "."),
        f"{what} of every method in {title} against its updates",
    )
