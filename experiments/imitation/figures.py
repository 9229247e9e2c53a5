"""Pictures of the comparison: scores by trajectories, and in training."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.result import Figure
from experiments.imitation import methods, rows
from experiments.imitation.rows import Found


def draw(found: Found, task: str, title: str, what: str, out: pathlib.Path) -> tuple[Figure, ...]:
    """Draws the methods of which a seed is left, in one task; `what` is "Score" or "Return"."""
    left = {k: one for k, one in found.items() if np.isfinite(one.final).any()}
    names = [n for n in (methods.OURS, *methods.RIVALS) if any(n == name for _, name in left)]
    if not names:
        return ()
    colors = {n: drawing.COLORS[i % len(drawing.COLORS)] for i, n in enumerate(names)}
    nums = rows.counts(left)
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(nums))
        for axis, num in zip(axes.flat, nums, strict=True):
            for i, name in enumerate(names):
                if (num, name) not in left:
                    continue
                steps, scores = left[num, name].curve
                label = name if num == nums[0] else ""
                style = "-" if i < len(drawing.COLORS) else "--"
                axis.plot(steps / 1000, scores.mean(axis=1), style, color=colors[name], label=label)
            axis.set_title(f"{num} of the expert's episodes")
            axis.set_xlabel("Updates (thousands)")
            axis.set_ylabel("Normalized score" if what == "Score" else what)
            if what == "Score":
                axis.axhline(100.0, color=drawing.MUTED, ls=":")
        drawing.legend(figure)
        drawing.save(figure, out / f"scores_{task}.png")
    return (
        Figure(
            f"scores_{task}.png",
            f"{title}: {what.lower()} in training, means over seeds"
            + ("; 100 is the expert, 0 random actions." if what == "Score" else "."),
            f"{what} of every method in {title} against its updates",
        ),
    )
