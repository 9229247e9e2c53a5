"""Pictures of the comparison, and the curves of the studies beside it.

Every picture is small enough to be read on a phone.
"""

import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.result import Figure
from experiments.zofl import analysis, methods, runs
from experiments.zofl.analysis import Comparison
from experiments.zofl.runs import TUNED
from experiments.zofl.tasks import tolerance
from jaxlab.zeroth_order import profiles

REPRESENTATIVE = ("fair-logistic", "qcqp", "HS43", "HS78", "opf9", "opf9-blackbox")
"""A problem of each kind: convex, large, inequalities, equalities, both with bounds, simulator."""
SHOWN = ("zofl", "zofl-midpoint", "zofl-plugin")
NUM_RIVALS = 3
LEAST, MOST = 1e-9, 1e3
"""Where the logarithmic axes end."""
NUM_BUDGETS = 80

Line = tuple[np.ndarray, np.ndarray]
"""x and y, `[T]`."""
Band = tuple[np.ndarray, np.ndarray, np.ndarray]
"""x `[T]`, gap and violation `[seeds, T]`."""


def draw(comparison: Comparison, out: pathlib.Path) -> tuple[Figure, ...]:
    """Draws everything into `out`."""
    chosen = [name for name in REPRESENTATIVE if name in comparison.tasks]
    found = [_draw_progress(comparison, name, out) for name in chosen or list(comparison.tasks)[:4]]
    sigmas = comparison.config.sigmas
    for level in sorted({0, len(sigmas) - 1}):
        found.append(_draw_profiles(comparison, level, out))
    return tuple(found)


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
                color=drawing.COLORS[order[name] % len(drawing.COLORS)],
                lw=1.7,
                label=name,
                ls=(0, (4, 1.5)) if name in dashed else "-",
                marker="o" if markers else None,
                ms=4,
            )
        if "x" in log:
            axis.set_xscale("log")
        if "y" in log:
            axis.set_yscale("log")
        if xticks:
            axis.set_xticks(xticks, [f"{value:g}" for value in xticks])
            axis.minorticks_off()
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.set_title(title)
        drawing.legend(figure)
        drawing.save(figure, path)


def progress(
    path: pathlib.Path, bands: Mapping[str, Band], *, ours: Sequence[str], tol: float, title: str
) -> None:
    """Draws gap and violation of the iterates against queries: median and middle half of seeds.

    Each axis shows the decades in which there is something to see. What is smaller than `LEAST`, or
    nothing, runs along the bottom of one that reaches so far.
    """
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(2, 1, figsize=(5.4, 5.8), sharex=True, layout="constrained")
        shown: list[list[np.ndarray]] = [[], []]
        for name, (x, *values), style in _styled(bands, ours):
            for axis, value, seen in zip(axes, values, shown, strict=True):
                value = np.clip(np.nan_to_num(value, nan=MOST), LEAST, MOST)
                low, middle, high = np.quantile(value, [0.25, 0.5, 0.75], axis=0)
                axis.fill_between(x, low, high, color=style["color"], alpha=0.16, lw=0)
                axis.plot(x, middle, label=name, **style)
                seen += [low, high]
        for axis, seen, label in zip(
            axes, shown, ("|f − f*|, relative", "largest violation"), strict=True
        ):
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_ylim(*limits(np.concatenate(seen)))
            axis.set_ylabel(label)
        if max(np.max(values) for values in shown[1]) <= LEAST:
            axes[1].set_ylim(0.5 * LEAST, 1.0)
            axes[1].tick_params(axis="y", which="both", left=False, labelleft=False)
            axes[1].text(0.5, 0.5, "no violation", transform=axes[1].transAxes, ha="center")
        elif limits(np.concatenate(shown[1]))[0] < tol < limits(np.concatenate(shown[1]))[1]:
            axes[1].axhline(tol, color=drawing.INK, lw=0.9, ls=":")
            # Beside the axes, where no curve runs through it.
            axes[1].text(
                1.01,
                tol,
                "feasible\nbelow",
                transform=axes[1].get_yaxis_transform(),
                va="top",
                fontsize=8,
                color=drawing.MUTED,
            )
        axes[0].set_title(title)
        axes[1].set_xlabel("queries")
        drawing.legend(figure)
        drawing.save(figure, path)


def limits(values: np.ndarray) -> tuple[float, float]:
    """Returns the ends of a logarithmic axis: two decades or more, and a third of one to spare."""
    low, high = np.log10(np.min(values)), np.log10(np.max(values))
    spare = max(1.0 / 3.0, 1.0 - 0.5 * (high - low))
    return 10.0 ** (low - spare), 10.0 ** (high + spare)


def two_profiles(
    path: pathlib.Path,
    budgets: np.ndarray,
    data: Mapping[str, np.ndarray],
    ratios: np.ndarray,
    performance: Mapping[str, np.ndarray],
    *,
    ours: Sequence[str],
    title: str,
) -> None:
    """Draws a data profile above a performance profile."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(2, 1, figsize=(5.4, 6.2), layout="constrained")
        labels = ("budget, simplex gradients (n + 1 queries)", "queries over those of the fastest")
        for axis, x, curves, label in zip(
            axes, (budgets, ratios), (data, performance), labels, strict=True
        ):
            for name, curve, style in _styled(curves, ours):
                axis.step(x, 100.0 * curve, where="post", label=name, **style)
            axis.set_xscale("log")
            axis.set_xlim(x[0], x[-1])
            axis.set_ylim(0, 100)
            axis.set_xlabel(label)
            axis.set_ylabel("solved, % of runs")
        axes[0].set_title(title)
        drawing.legend(figure)
        drawing.save(figure, path)


def _styled(
    curves: Mapping[str, Any], ours: Sequence[str]
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Curves with their styles: ours solid, rivals dashed, from one palette."""
    rivals = [name for name in curves if name not in ours]
    for name, curve in curves.items():
        group = rivals if name in rivals else [own for own in curves if own in ours]
        k = group.index(name)
        color = drawing.COLORS[k if name not in rivals else -1 - k]
        dashes = ((4, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5), (3, 3))[k % 4]
        style = {"color": color, "lw": 1.4, "ls": (0, dashes)}
        yield name, curve, style if name in rivals else {"color": color, "lw": 1.9, "ls": "-"}


def _draw_progress(comparison: Comparison, name: str, out: pathlib.Path) -> Figure:
    level = 0
    sigma, task = comparison.config.sigmas[level], comparison.tasks[name]
    rivals = {
        rival: runs.median(loss)
        for rival in comparison.rivals
        if (loss := analysis.losses(comparison, name, rival, level)) is not None
    }
    best = sorted(rivals, key=lambda rival: rivals[rival])[:NUM_RIVALS]
    bands = {}
    for key in (*(own for own in SHOWN if own in comparison.methods), *best):
        record = comparison.record(name, key)
        assert record is not None
        x = np.median(record.queries[level, TUNED], axis=0)
        gap, violation = (leaf[level, TUNED] for leaf in (record.gap, record.violation))
        bands[methods.TABLE[key].label] = (x, np.abs(gap), violation)
    problem = task.problem
    size = f"n = {problem.n}, {problem.m_eq} equalities, {problem.m_ineq} inequalities"
    path = f"progress_{name}.png"
    progress(
        out / path,
        bands,
        ours=[methods.TABLE[key].label for key in SHOWN],
        tol=tolerance(sigma),
        title=f"{name}: {size}",
    )
    return Figure(
        path,
        f"{name} ({size}, σ = {sigma:g}): distance of the objective from the optimum and violation "
        f"of the iterates, tuned, median and middle half of {comparison.config.num_seeds} seeds; "
        f"the {len(best)} rivals with the best ends on this problem.",
        f"Objective gap and violation against queries on {name}, ZOFL and rivals.",
    )


def _draw_profiles(comparison: Comparison, level: int, out: pathlib.Path) -> Figure:
    sigma = comparison.config.sigmas[level]
    tau = analysis.accuracies(sigma)[-1]
    applicable = [
        name
        for name in comparison.methods
        if all(
            analysis.final(comparison, task, name, level) is not None for task in comparison.tasks
        )
    ]
    # A row per run: problems times seeds.
    times = np.stack(
        [
            np.concatenate(
                [
                    np.asarray(analysis.queries_to_solve(comparison, task, name, level, tau))
                    for task in comparison.tasks
                ]
            )
            for name in applicable
        ],
        axis=1,
    )
    tasks = comparison.tasks.values()
    n = np.repeat([task.problem.n for task in tasks], comparison.config.num_seeds).astype(float)
    most = max(task.budget / (task.problem.n + 1) for task in tasks)
    budgets = np.geomspace(1.0, most, NUM_BUDGETS)
    ratios = np.geomspace(1.0, 1000.0, NUM_BUDGETS)
    area = np.asarray(
        profiles.log_query_auc(jnp.asarray(times / (n[:, None] + 1.0)), low=1.0, high=most)
    )
    mine = [k for k, name in enumerate(applicable) if name in methods.OURS]
    rivals = sorted(set(range(len(applicable))) - set(mine), key=lambda k: -area[k])
    kept = [*mine, *rivals[: NUM_RIVALS + 1]]
    data = np.asarray(
        profiles.data_profile(jnp.asarray(times), jnp.asarray(n), jnp.asarray(budgets))
    )
    performance = np.asarray(
        profiles.performance_profile(jnp.asarray(times[:, kept]), jnp.asarray(ratios))
    )
    labels = [f"{methods.TABLE[applicable[k]].label}, {area[k]:.2f}" for k in kept]
    path = f"profiles_{level}.png"
    two_profiles(
        out / path,
        budgets,
        {label: data[:, k] for label, k in zip(labels, kept, strict=True)},
        ratios,
        {label: performance[:, i] for i, label in enumerate(labels)},
        ours=labels[: len(mine)],
        title=f"All problems, σ = {sigma:g}, to accuracy {tau:g}",
    )
    return Figure(
        path,
        f"Data profile (above) and performance profile (below) over {len(comparison.tasks)} "
        f"problems times {comparison.config.num_seeds} seeds, σ = {sigma:g}, tuned: share of runs "
        f"that reach a feasible gap of {tau:g}. The rivals are those that apply to every problem "
        "and have the largest area under the data profile (the figure beside each name, on the "
        "logarithmic axis); the fastest is that of the methods shown.",
        f"Share of runs solved against the budget at noise {sigma:g}, ZOFL and rivals.",
    )
