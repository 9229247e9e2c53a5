"""Drawing functions of the studies of theory, portraits and scale: from arrays to a PNG.

Every picture is small enough to be read on a phone.
"""

import pathlib
from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.drawing import COLORS, GRID, INK, MUTED

Line = tuple[np.ndarray, np.ndarray]


def lines(
    path: pathlib.Path,
    curves: Mapping[str, Line],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    log: str = "",
    dashed: Collection[str] = (),
    markers: bool = False,
    xticks: Sequence[float] = (),
) -> None:
    """Draws curves by name; those `dashed` repeat the colors of the solid ones, in order.

    Args:
        log: axes with a logarithmic scale: "", "x", "y" or "xy".
        markers: draw the points.
        xticks: where to put ticks, instead of the usual places.
    """
    with plt.rc_context(drawing.STYLE):
        figure, axis = plt.subplots(figsize=(5.4, 3.9), layout="constrained")
        solid = [name for name in curves if name not in dashed]
        order = {name: k for names in (solid, list(dashed)) for k, name in enumerate(names)}
        for name, (x, y) in curves.items():
            axis.plot(
                x,
                y,
                color=COLORS[order[name] % len(COLORS)],
                lw=1.7,
                label=name,
                ls=(0, (4, 1.5)) if name in dashed else "-",
                marker="o" if markers else None,
                ms=4,
            )
        _scale(axis, log)
        if xticks:
            axis.set_xticks(xticks, [f"{value:g}" for value in xticks])
            axis.minorticks_off()
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.set_title(title)
        figure.legend(loc="outside lower center", ncols=2)
        drawing.save(figure, path)


def envelopes(
    path: pathlib.Path,
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """Draws violation against time, one panel each: median, range over seeds, and the bound.

    Args:
        panels: by title, `(violation [seeds, T], bound [T], transient [T])`.
    """
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(2.7 * len(panels) + 0.6, 3.9),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, (violation, bound, transient)) in zip(
            axes[0], panels.items(), strict=True
        ):
            t = np.arange(violation.shape[1])
            low, middle, high = np.quantile(violation, [0.0, 0.5, 1.0], axis=0)
            axis.fill_between(
                t, low, high, color=COLORS[0], alpha=0.22, lw=0, label="range over seeds"
            )
            axis.plot(t, middle, color=COLORS[0], lw=1.5, label="median")
            axis.plot(t, bound, color=COLORS[1], lw=1.6, label="bound: transient + floor")
            axis.plot(t, transient, color=INK, lw=1.2, ls=(0, (4, 1.5)), label="(1 − a)ᵗ |h(x₀)|")
            axis.set_yscale("log")
            axis.set_title(name)
            axis.set_xlabel(xlabel)
        axes[0, 0].set_ylabel(ylabel)
        axes[0, 0].set_ylim(bottom=1e-6)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        drawing.save(figure, path)


def heat_maps(
    path: pathlib.Path,
    panels: Mapping[str, np.ndarray],
    *,
    x: Sequence[float],
    y: Sequence[float],
    xlabel: str,
    ylabel: str,
    title: str,
    label: str,
) -> None:
    """Draws maps of log10 values `[len(y), len(x)]` side by side; NaN is hatched ("diverged")."""
    with plt.rc_context(drawing.STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(3.4 * len(panels) + 0.4, 3.6),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, values) in zip(axes[0], panels.items(), strict=True):
            axis.set_facecolor("white")
            axis.patch.set(hatch="xxx", edgecolor=MUTED)
            image = axis.imshow(values, origin="lower", aspect="auto", cmap="cividis")
            for numbers, put in ((x, axis.set_xticks), (y, axis.set_yticks)):
                every = 1 + (len(numbers) - 1) // 5
                put(range(0, len(numbers), every), [f"{value:.2g}" for value in numbers[::every]])
            axis.set_xlabel(xlabel)
            axis.set_title(name)
            figure.colorbar(image, ax=axis, label=label, location="bottom", shrink=0.9)
        axes[0, 0].set_ylabel(ylabel)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        drawing.save(figure, path)


def portrait(
    path: pathlib.Path,
    grid: tuple[np.ndarray, np.ndarray],
    field: tuple[np.ndarray, np.ndarray],
    constraint: np.ndarray,
    objective: np.ndarray,
    panels: Mapping[str, np.ndarray],
    *,
    optimum: np.ndarray,
    title: str,
) -> None:
    """Draws paths in the plane over the direction of the FL field, one panel a method.

    Args:
        grid: `(x1, x2)`, the axes `[G1]` and `[G2]`.
        field: both components of the velocity, `[G2, G1]`.
        constraint: h `[G2, G1]`, whose zero line is the feasible set.
        objective: f `[G2, G1]`.
        panels: paths by method, `[starts, T, 2]`; NaN after a path has left.
        optimum: `[2]`.
    """
    x1, x2 = grid
    with plt.rc_context(
        drawing.STYLE | {"axes.grid": False, "xtick.labelsize": 8, "ytick.labelsize": 8}
    ):
        columns = 2
        rows = -(-len(panels) // columns)
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(6.4, 3.2 * rows + 0.5),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (name, paths) in zip(axes.flat, panels.items(), strict=False):
            axis.contour(x1, x2, objective, levels=12, colors=GRID, linewidths=0.8, zorder=0)
            axis.streamplot(
                x1, x2, *field, color="#c3cad3", linewidth=0.6, arrowsize=0.6, density=0.9, zorder=1
            )
            axis.contour(x1, x2, constraint, levels=[0.0], colors=INK, linewidths=1.8, zorder=2)
            for path_, color in zip(paths, COLORS, strict=False):
                axis.plot(*path_.T, color=color, lw=1.5, marker=".", ms=3, zorder=3)
                axis.plot(*path_[0], "o", color=color, ms=6, mec="white", zorder=4)
            axis.plot(*optimum, "*", color=INK, ms=13, mec="white", zorder=5)
            axis.set_xlim(x1[0], x1[-1])
            axis.set_ylim(x2[0], x2[-1])
            axis.set_aspect("equal")
            axis.set_title(name)
        for axis in axes[-1]:
            axis.set_xlabel("x₁")
        for axis in axes[:, 0]:
            axis.set_ylabel("x₂")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        drawing.save(figure, path)


def _scale(axis, log: str) -> None:
    if "x" in log:
        axis.set_xscale("log")
    if "y" in log:
        axis.set_yscale("log")
