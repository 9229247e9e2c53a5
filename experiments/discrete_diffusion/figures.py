"""Pictures of the comparison: rewards and diversity in training, rewards by steps of sampling."""

import pathlib
from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.discrete_diffusion import methods, tasks
from experiments.discrete_diffusion.training import Outcome
from experiments.harness import drawing
from experiments.harness.result import Figure

COLORS = {
    "FKL": drawing.BLUE,
    "RKL": drawing.RED,
    "autoregressive": drawing.GREEN,
    "factored": drawing.VIOLET,
    "diffu-GRPO": drawing.ORANGE,
    "genetic": drawing.SKY,
}
Found = Mapping[tuple[str, str], Outcome]


def draw(found: Found, out: pathlib.Path) -> tuple[Figure, ...]:
    """Draws the methods of which a seed is left."""
    left = {k: one for k, one in found.items() if np.isfinite(one.final).any() and k[1] in COLORS}
    if not left:
        return ()
    return _curves(left, out), _diversity(left, out), *_course(left, out), *_steps(left, out)


def _curves(found: Found, out: pathlib.Path) -> Figure:
    def one(axis: Axes, name: str, outcome: Outcome) -> None:
        calls, rewards = outcome.curve
        drawing.band(axis, calls / 1000, rewards, COLORS[name], name)
        axis.set_xlabel("Calls of the reward (thousands)")
        axis.set_ylabel("Mean reward")

    _panels(found, one, out / "curves.png")
    return Figure(
        "curves.png",
        "Mean reward of what is drawn; lines are means over seeds, bands their range.",
        "Learning curves of every method on every task",
    )


def _diversity(found: Found, out: pathlib.Path) -> Figure:
    def one(axis: Axes, name: str, outcome: Outcome) -> None:
        unique, reward = 100 * np.nanmean(outcome.unique), np.nanmean(outcome.final)
        axis.scatter(100 * outcome.unique, outcome.final, s=14, color=COLORS[name], alpha=0.5)
        axis.scatter(unique, reward, s=60, color=COLORS[name], label=name)
        axis.set_xlabel("Different sequences, %")
        axis.set_ylabel("Mean reward")

    _panels(found, one, out / "diversity.png")
    return Figure(
        "diversity.png",
        "Reward against diversity at the end: small points are seeds, large ones their means.",
        "Mean reward against the share of different sequences, for every method and task",
    )


def _course(found: Found, out: pathlib.Path) -> tuple[Figure, ...]:
    logged = {k: one for k, one in found.items() if "policy/entropy" in one.course}
    if not logged:
        return ()

    def one(axis: Axes, name: str, outcome: Outcome) -> None:
        calls, entropy = outcome.curve[0], outcome.course["policy/entropy"]
        axis.plot(calls / 1000, entropy, color=COLORS[name], lw=1.8, label=name)
        axis.set_xlabel("Calls of the reward (thousands)")
        axis.set_ylabel("Entropy of what is drawn, nats")

    _panels(logged, one, out / "course.png")
    return (
        Figure(
            "course.png",
            "Entropy of the tokens along the path, means over seeds: a policy that has none left "
            "draws the same sequence again and again.",
            "Entropy of every policy in training, for every task",
        ),
    )


def _steps(found: Found, out: pathlib.Path) -> tuple[Figure, ...]:
    stepped = {k: one for k, one in found.items() if k[1] in methods.OURS and one.by_steps}
    if not stepped:
        return ()

    def one(axis: Axes, name: str, outcome: Outcome) -> None:
        steps = np.array(list(outcome.by_steps))
        drawing.band(axis, steps, np.array(list(outcome.by_steps.values())), COLORS[name], name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(n) for n in steps])
        axis.set_xlabel("Steps of sampling")
        axis.set_ylabel("Mean reward")

    _panels(stepped, one, out / "evaluations.png")
    return (
        Figure(
            "evaluations.png",
            "What the trained policies draw, by the number of calls of the network.",
            "Mean reward against the steps of sampling, for every task",
        ),
    )


def _panels(found: Found, one: Callable[[Axes, str, Outcome], None], path: pathlib.Path) -> None:
    """A panel for each task, with `one` for every method in it."""
    names = list(dict.fromkeys(task for task, _ in found))
    columns = min(len(names), 2)
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(-(-len(names) // columns), columns)
        for axis, task in zip(axes.flat, names, strict=False):
            for (which, name), outcome in found.items():
                if which == task:
                    one(axis, name, outcome)
            axis.set_title(tasks.TITLES[task])
        for axis in axes.flat[len(names) :]:
            axis.set_axis_off()
        drawing.legend(figure)
        drawing.save(figure, path)
