"""The pictures a planner wants first, each a function from arrays to a PNG."""

import pathlib
from collections.abc import Sequence

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.drawing import BLUE, COLORS, GREEN, INK, MUTED, ORANGE, RED


def decomposition(
    path: pathlib.Path,
    dates: np.ndarray,
    counts: np.ndarray,
    trend: np.ndarray,
    seasonal: np.ndarray,
    resid: np.ndarray,
    *,
    title: str,
) -> None:
    """STL panels of one daily series: data with trend, weekly pattern, residual."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(3, 1, figsize=(8, 5.4), sharex=True, height_ratios=(2, 1, 1))
        axes[0].plot(dates, counts, ".", color=MUTED, ms=1.8, alpha=0.6, label="daily admissions")
        axes[0].plot(dates, trend, color=BLUE, lw=1.3, label="trend, the arrival rate")
        axes[0].set_ylabel("admissions / day")
        axes[0].legend(loc="upper right", ncols=2)
        axes[0].set_title(title)
        axes[1].plot(dates, seasonal, color=GREEN, lw=0.6)
        axes[1].set_ylabel("day of week")
        axes[2].plot(dates, resid, color=MUTED, lw=0.5)
        axes[2].set_ylabel("residual")
        _date_axis(axes[2])
        drawing.save(figure, path)


def survival_fits(
    path: pathlib.Path,
    names: Sequence[str],
    observed: Sequence[np.ndarray],
    fitted: Sequence[dict[str, np.ndarray]],
    chosen: Sequence[str],
) -> None:
    """Kaplan-Meier curve of each site with every fitted law, the chosen one drawn heavier."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = _panels(len(names))
        families = list(fitted[0])
        for axis, name, km, laws, best in zip(axes, names, observed, fitted, chosen, strict=False):
            days = np.arange(km.size)
            axis.step(days, km, where="post", color=INK, lw=1.4, label="observed (Kaplan–Meier)")
            for family, color in zip(families, COLORS, strict=False):
                heavy = family == best
                axis.plot(
                    days,
                    laws[family],
                    color=color,
                    lw=2.0 if heavy else 0.9,
                    alpha=1.0 if heavy else 0.75,
                    ls="-" if heavy else "--",
                    label=family,
                )
            axis.set_title(f"{name}: {best}")
            axis.set_xlabel("days since admission")
            axis.set_ylabel("share still in bed")
            axis.set_ylim(0, 1)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        drawing.save(figure, path)


def occupancy(
    path: pathlib.Path,
    dates: np.ndarray,
    names: Sequence[str],
    rho: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    census: np.ndarray,
    beds: Sequence[dict[str, int]],
) -> None:
    """Mean occupancy with its band, the observed census, and bed lines, one panel a site."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = _panels(len(names), height=2.5)
        for i, axis in enumerate(axes[: len(names)]):
            axis.fill_between(
                dates, low[i], high[i], color=BLUE, alpha=0.18, lw=0, label="90 % of days expected"
            )
            axis.plot(dates, census[i], color=MUTED, lw=0.6, label="observed census")
            axis.plot(dates, rho[i], color=BLUE, lw=1.3, label="mean occupancy, model")
            for (label, count), color in zip(beds[i].items(), (ORANGE, RED, GREEN), strict=False):
                axis.axhline(count, color=color, lw=1.2, ls="--", label=label)
            axis.set_title(names[i])
            axis.set_ylabel("beds")
            axis.set_ylim(bottom=0)
            _date_axis(axis)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        drawing.save(figure, path)


def overflow_risk(
    path: pathlib.Path,
    names: Sequence[str],
    beds: Sequence[np.ndarray],
    risk: Sequence[np.ndarray],
    simulated: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    alphas: Sequence[float],
) -> None:
    """Share of days above B beds, by the Poisson law and by simulated paths."""
    with plt.rc_context(drawing.STYLE):
        figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for name, b, r, (at, share, se), color in zip(
            names, beds, risk, simulated, COLORS * 4, strict=False
        ):
            axis.plot(b, r, color=color, lw=1.6, label=name)
            axis.errorbar(at, share, yerr=2 * se, fmt="o", ms=3.5, color=color, capsize=2)
        for alpha in alphas:
            axis.axhline(alpha, color=MUTED, lw=0.9, ls=":")
            axis.annotate(
                f"{alpha:.0%}",
                (1, alpha),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                color=MUTED,
            )
        axis.set_yscale("log")
        axis.set_ylim(1e-4, 1)
        axis.set_xlabel("beds")
        axis.set_ylabel("share of days with more patients than beds")
        axis.legend(title="line: Poisson law, points: simulation", title_fontsize=8)
        drawing.save(figure, path)


def bed_counts(
    path: pathlib.Path,
    names: Sequence[str],
    rules: Sequence[str],
    counts: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    marks: Sequence[float | None] | np.ndarray = (),
    mark_label: str = "",
    xlabel: str = "beds",
) -> None:
    """Beds `[rule, site]` with intervals, one panel a site, and `marks` to compare them with."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(
            1,
            len(names),
            figsize=(max(2.0 * len(names), 5), 3.2),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        position = np.arange(len(rules))[::-1]
        marks = np.broadcast_to(np.asarray(marks, float), counts.shape) if len(marks) else None
        for i, axis in enumerate(axes[0]):
            axis.hlines(position, low[:, i], high[:, i], color=BLUE, lw=5, alpha=0.3)
            axis.plot(counts[:, i], position, "o", color=BLUE, ms=5, label="our count")
            if marks is not None:
                axis.plot(
                    marks[:, i], position, "D", color=ORANGE, ms=5, mfc="none", label=mark_label
                )
            axis.set_title(names[i])
            axis.set_yticks(position, rules)
            axis.set_ylim(-0.6, len(rules) - 0.4)
            axis.set_xlabel(xlabel)
        if marks is not None:
            figure.legend(
                *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2
            )
        drawing.save(figure, path)


def _panels(count: int, *, height: float = 2.6):
    columns = 1 if count == 1 else 2
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.4 * columns, height * rows + 0.4),
        squeeze=False,
        layout="constrained",
    )
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, flat


def _date_axis(axis) -> None:
    locator = mdates.AutoDateLocator(minticks=3, maxticks=6)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))
