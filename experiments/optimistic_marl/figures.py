"""Pictures: joint policies, success against beta, curves and traces of the ball, strangers."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.result import Figure
from experiments.optimistic_marl.networks import Deep
from experiments.optimistic_marl.training import Ball, Ends, Strangers


def joint(found: dict[str, Ends], out: pathlib.Path) -> Figure:
    """Draws where the mass of the joint policy ends, without optimism and with the most of it."""
    with plt.rc_context({**drawing.STYLE, "axes.grid": False}):
        figure, axes = drawing.panels(len(found), 2, height=3.2)
        for row, (name, ends) in zip(axes, found.items(), strict=True):
            for axis, which in zip(row, (int(np.argmin(np.abs(ends.betas))), -1), strict=True):
                mass = ends.joint[which]
                axis.imshow(mass, cmap="Blues", vmin=0.0, vmax=1.0)
                for (i, j), x in np.ndenumerate(mass):
                    color = "white" if x > 0.6 else drawing.INK
                    axis.text(j, i, f"{x:.2f}", ha="center", va="center", color=color)
                axis.set_title(f"{name}, beta = {ends.betas[which]:g}")
                axis.set_xlabel("Action of agent 2")
                axis.set_ylabel("Action of agent 1")
                axis.set_xticks(range(mass.shape[1]))
                axis.set_yticks(range(mass.shape[0]))
        drawing.save(figure, out / "joint.png")
    return Figure(
        "joint.png",
        "Joint policy at the start after exact play, mean over random starts.",
        "Heat maps of joint actions without and with optimism",
    )


def success(
    exact: dict[str, Ends], sampled: dict[tuple[str, str], Ends], out: pathlib.Path
) -> Figure:
    """Draws success against beta: exact, and sampled with own and joint critics."""
    panels = [bool(exact), bool(sampled)]
    curves = [name for name, _ in sampled if name != "gold mine"]  # it is judged by its value
    color = dict(zip(dict.fromkeys([*exact, *curves]), drawing.COLORS, strict=False))
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, sum(panels), height=3.6)
        rest = list(axes[0])
        if exact:
            axis = rest.pop(0)
            axis.set_title("Exact play")
            for name, ends in exact.items():
                axis.plot(ends.betas, 100.0 * ends.success.mean(axis=1), "o-", c=color[name])
        if sampled:
            axis = rest.pop(0)
            axis.set_title("Sampled play")
            for (name, critic), ends in sampled.items():
                if name != "gold mine":
                    line = {"values": "--", "joint": "-"}[critic]
                    found = 100.0 * ends.found.mean(axis=1)
                    axis.plot(ends.betas, found, line, marker="o", c=color[name])
            axis.plot([], [], "--", c=drawing.INK, label="sampled, own critics")
            axis.plot([], [], "-", c=drawing.INK, label="sampled, joint critic")
        for name, ink in color.items():
            axes[0][0].plot([], [], "o", c=ink, label=name)
        for axis in axes[0]:
            axis.set_xscale("symlog", linthresh=0.05)
            ticks = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
            axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axis.minorticks_off()
            axis.set_xlabel("beta")
            axis.set_ylabel("Success, %")
            axis.set_ylim(-4, 104)
        drawing.legend(figure)
        drawing.save(figure, out / "success.png")
    return Figure(
        "success.png",
        "Share of starts or seeds that end at the best joint action; beta is linear below 0.05.",
        "Success against the parameter of optimism",
    )


def ball(found: dict[str, Ball], out: pathlib.Path) -> Figure:
    """Draws returns over training, and the ball under the greedy policies of the first seed."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 2, height=3.6)
        for color, (name, one) in zip(drawing.COLORS, found.items(), strict=False):
            drawing.band(axes[0][0], one.steps / 1000, one.returns, color, name)
            seconds = 0.03 * np.arange(len(one.trace))
            axes[0][1].plot(seconds, one.trace[:, 0], c=color, lw=1.4, label=name)
        axes[0][0].set(xlabel="Steps (thousands)", ylabel="Return", title="While exploring")
        axes[0][1].set(xlabel="Seconds", ylabel="Position, m", title="Greedy, first seed")
        drawing.legend(figure)
        drawing.save(figure, out / "ball.png")
    return Figure(
        "ball.png",
        "Left: returns during training, mean and range of the seeds. Right: the ball.",
        "Learning curves and a trace of the ball by rule",
    )


def strangers(found: dict[str, Strangers], out: pathlib.Path) -> Figure:
    """Draws who pays what with whom."""
    ranges = []
    with plt.rc_context({**drawing.STYLE, "axes.grid": False}):
        columns = max(len(one.betas) for one in found.values())
        figure, axes = drawing.panels(len(found), columns, height=3.2)
        for row, (name, one) in zip(axes, found.items(), strict=True):
            low, high = one.payoff.min(), one.payoff.max()
            ranges.append(f"{low:.3g} to {high:.3g} in {name}")
            for axis, beta, payoff in zip(row, one.betas, one.payoff, strict=True):
                axis.imshow(payoff, cmap="viridis", vmin=low, vmax=high)
                axis.set_title(f"{name}, beta = {beta:g}")
                axis.set_xlabel("Agent 2 of run")
                axis.set_ylabel("Agent 1 of run")
        drawing.save(figure, out / "strangers.png")
    return Figure(
        "strangers.png",
        "Expected payoff when the first agent of one run meets the second of another; the diagonal "
        f"is training's own pair. From purple to yellow: {', '.join(ranges)}.",
        "Cross-play matrices of averse, neutral and optimistic pairs",
    )


def deep(found: dict[str, Deep], task: str, out: pathlib.Path) -> Figure:
    """Draws the returns of the networks."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 1, height=3.6)
        for color, (name, one) in zip(drawing.COLORS, found.items(), strict=False):
            drawing.band(axes[0][0], one.steps / 1e6, one.returns, color, name)
        axes[0][0].set(
            xlabel="Environment steps (millions)", ylabel="Return", title=task.capitalize()
        )
        drawing.legend(figure)
        drawing.save(figure, out / f"deep_{task}.png")
    return Figure(
        f"deep_{task}.png",
        f"Returns of {task} with sampled actions, mean and range of the seeds.",
        "Learning curves of IPPO, Op-IPPO and OptiMAPPO",
    )
