"""Pictures: learning curves, return against evaluations, the theory of one step."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.fpmd import methods
from experiments.fpmd.training import Outcome
from experiments.harness import drawing
from experiments.harness.result import Figure

COLORS = {
    "FPMD-R": drawing.BLUE,
    "FPMD-M": drawing.RED,
    "DPMD": drawing.GREEN,
    "SDAC": drawing.VIOLET,
    "SAC": drawing.ORANGE,
    "TD3": drawing.SKY,
}


def draw(found: dict[tuple[str, str], Outcome], out: pathlib.Path) -> tuple[Figure, ...]:
    """Draws the methods of which a seed is left."""
    left = {key: one for key, one in found.items() if np.isfinite(one.final).any()}
    if not left:
        return ()
    return (
        _curves(left, out),
        *_evaluations(left, out),
        *_mechanism(left, out),
        *_weights(left, out),
    )


def _curves(found: dict[tuple[str, str], Outcome], out: pathlib.Path) -> Figure:
    tasks = list(dict.fromkeys(task for task, _ in found))
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(tasks), height=3.9)
        for axis, task in zip(axes[0], tasks, strict=True):
            for (which, name), one in found.items():
                if which != task or "," in name:
                    continue
                steps, returns = one.curve
                color = COLORS.get(name, drawing.MUTED)
                known = name in COLORS
                axis.plot(
                    steps / 1000,
                    np.nanmean(returns, axis=1),
                    color=color,
                    lw=1.8 if known else 0.9,
                    label=name if known else None,
                    zorder=3 if known else 2,
                )
                if name in methods.OURS:
                    low, high = np.nanmin(returns, axis=1), np.nanmax(returns, axis=1)
                    axis.fill_between(steps / 1000, low, high, color=color, alpha=0.12, lw=0)
            drawn = [
                np.nanmean(o.final) for (t, n), o in found.items() if t == task and n in COLORS
            ]
            reach = max(drawn, default=0.0) - min(drawn, default=0.0)
            if reach > 0.0:  # the ends tell the methods apart, not the starts
                axis.set_ylim(min(drawn) - 2.0 * reach, max(drawn) + 0.3 * reach)
            axis.set_title(task.replace("_", " "))
            axis.set_xlabel("Transitions (thousands)")
            axis.set_ylabel("Return")
        drawing.legend(figure)
        drawing.save(figure, out / "curves.png")
    return Figure(
        "curves.png",
        "Returns during training, cut below; lines are means over seeds, bands the range of ours. "
        "Gray: the other baselines.",
        "Learning curves of flow, diffusion and Gaussian policies",
    )


def _evaluations(found: dict[tuple[str, str], Outcome], out: pathlib.Path) -> tuple[Figure, ...]:
    curves = {k: v for k, v in found.items() if k[1] in methods.OURS and v.by_steps}
    if not curves:
        return ()
    tasks = list(dict.fromkeys(task for task, _ in curves))
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(tasks))
        for axis, task in zip(axes[0], tasks, strict=True):
            for (which, name), one in curves.items():
                if which == task:
                    steps = list(one.by_steps)
                    means = [np.nanmean(x) for x in one.by_steps.values()]
                    axis.plot(steps, means, "o-", color=COLORS[name], label=name)
            axis.set_xscale("log", base=2)
            axis.set_xticks(steps, [str(n) for n in steps])
            axis.minorticks_off()
            axis.set_title(task.replace("_", " "))
            axis.set_xlabel("Network evaluations of an action")
            axis.set_ylabel("Return")
        drawing.legend(figure)
        drawing.save(figure, out / "evaluations.png")
    return (
        Figure(
            "evaluations.png",
            "Return of one sample against the steps it takes, after training.",
            "Return against network evaluations for FPMD-R and FPMD-M",
        ),
    )


def _mechanism(found: dict[tuple[str, str], Outcome], out: pathlib.Path) -> tuple[Figure, ...]:
    ones = {
        task: one
        for (task, name), one in found.items()
        if name == "FPMD-R" and "eval/gap" in one.course
    }
    if not ones:
        return ()
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(ones))
        for axis, (task, one) in zip(axes[0], ones.items(), strict=True):
            steps = one.curve[0] / 1000
            axis.plot(steps, one.course["eval/spread"], color=drawing.BLUE, label="spread")
            axis.plot(steps, one.course["eval/gap"], color=drawing.RED, label="gap of one step")
            axis.set_ylim(0.0)
            axis.set_title(task.replace("_", " "))
            axis.set_xlabel("Transitions (thousands)")
            axis.set_ylabel("Action")
        drawing.legend(figure)
        drawing.save(figure, out / "mechanism.png")
    return (
        Figure(
            "mechanism.png",
            "FPMD-R in training: root mean variance of its samples in a state, and the distance of "
            "one step from all steps out of the same noise.",
            "Spread of a flow policy's samples and the gap of one step over training",
        ),
    )


def _weights(found: dict[tuple[str, str], Outcome], out: pathlib.Path) -> tuple[Figure, ...]:
    ones = {key: one for key, one in found.items() if one.weights.size}
    if not ones:
        return ()
    tasks = list(dict.fromkeys(task for task, _ in ones))
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(len(tasks), 2)
        for (left, right), task in zip(axes, tasks, strict=True):
            of_task = {name: one for (which, name), one in ones.items() if which == task}
            for color, (name, one) in zip(drawing.COLORS, of_task.items(), strict=False):
                steps = one.curve[0] / 1000
                left.plot(steps, one.course["policy/ess"], color=color, label=name)
                logs = one.weights[np.isfinite(one.weights)]
                right.hist(logs, 40, color=color, histtype="step", density=True)
            left.set_title(f"{task.replace('_', ' ')}: effective share of samples")
            left.set_ylim(0.0, 1.0)
            left.set_xlabel("Transitions (thousands)")
            right.set_title("Logarithm of the weights at the end")
            right.set_ylabel("Density")
        drawing.legend(figure)
        drawing.save(figure, out / "weights.png")
    return (
        Figure(
            "weights.png",
            "Left: (sum w)^2 / (B sum w^2) in training. Right: weights of proposals at the end.",
            "Effective sample size over training and histograms of the weights",
        ),
    )
