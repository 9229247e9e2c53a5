"""The pictures a planner wants first, each a function from arrays to a PNG."""

import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from experiments.harness import drawing
from experiments.harness.drawing import BLUE, COLORS, GREEN, INK, MUTED, ORANGE, RED
from experiments.harness.result import Figure
from experiments.icu_occupancy.hospital import TODAY, Measured
from jaxlab import queueing as q
from jaxlab.queueing.data import records


def draw(measured: Measured, out: pathlib.Path, *, prefix: str = "") -> tuple[Figure, ...]:
    """Draws the five pictures of a planning study into `out`.

    Args:
        measured: the study and what was computed beside it.
        out: folder to draw into.
        prefix: put before the names of the files.
    """
    study, summary = measured.study, measured.summary
    rules = q.rule_names(study.rules)
    actual = measured.beds[: -len(rules)]  # [1, site], or nothing where they are not known
    stays, plan, series = study.stays, study.plan, study.plan.series
    dates = records.dates(stays.origin, stays.num_days)
    busiest = int(np.argmax(series.rate))
    parts = series.arrivals.result
    names = [_literal(name) for name in stays.site_names]
    files = {
        key: f"{prefix}{key}.png"
        for key in ("decomposition", "survival", "occupancy", "risk", "beds")
    }
    decomposition(
        out / files["decomposition"],
        dates,
        np.asarray(series.daily.counts[busiest]),
        np.maximum(parts.trend[busiest], 0),
        np.asarray(parts.seasonal[busiest]),
        np.asarray(parts.resid[busiest]),
        title=f"{names[busiest]}: daily admissions",
    )
    observed, fitted = _survival_curves(study)
    chosen = [q.FAMILIES[code] for code in plan.laws.family]
    survival_fits(out / files["survival"], names, observed, fitted, chosen)
    low, high = scipy.stats.poisson.ppf(np.array([0.05, 0.95])[:, None, None], plan.rho)
    lines = {"beds for 5 % risk": np.asarray(plan.beds.risk[0])}
    if len(actual):
        lines[TODAY] = actual[0]
    occupancy(
        out / files["occupancy"], dates, names, np.asarray(plan.rho), low, high, study.census, lines
    )
    curves = [_risk_curve(study, i) for i in range(stays.num_sites)]
    # The shares of days that count as overflow follow those of days over the beds.
    exceed, exceed_se = (
        np.asarray(x)[:, len(measured.rules) :] for x in (summary.exceed, summary.exceed_se)
    )
    overflow_risk(
        out / files["risk"],
        names,
        [beds for beds, _ in curves],
        [risk for _, risk in curves],
        [(measured.beds[:, i], exceed[i], exceed_se[i]) for i in range(stays.num_sites)],
        study.rules.alphas,
    )
    bed_counts(
        out / files["beds"],
        names,
        rules,
        *(x[-len(rules) :] for x in (measured.beds, *measured.interval)),
        marks=actual,
        mark_label=TODAY,
    )
    captions = {
        "beds": "Beds by rule, with 95 % intervals from re-running the whole pipeline on "
        "resampled patients.",
        "occupancy": "Mean occupancy with the band that holds 90 % of days if nobody is turned "
        "away, and the observed census.",
        "risk": "Risk of a full unit against its beds: the Poisson law (lines) and patient-level "
        "simulation (points, two standard errors).",
        "survival": "Length of stay: observed, and the candidate laws fitted by maximum "
        "likelihood; the heavy line is the law in use.",
        "decomposition": "Daily admissions of the busiest site split into trend, day of week and "
        "residual (STL).",
    }
    return tuple(
        Figure(files[key], caption, f"{caption} ({key})") for key, caption in captions.items()
    )


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
    """Draws the STL panels of one daily series: data with trend, weekly pattern, residual."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(
            3, 1, figsize=(8, 5.4), sharex=True, height_ratios=(2, 1, 1), layout="constrained"
        )
        axes[0].plot(dates, counts, ".", color=MUTED, ms=1.8, alpha=0.6, label="daily admissions")
        axes[0].plot(dates, trend, color=BLUE, lw=1.3, label="trend, the arrival rate")
        axes[0].set_ylabel("admissions / day")
        axes[0].set_title(title)
        axes[1].plot(dates, seasonal, color=GREEN, lw=0.6)
        axes[1].set_ylabel("day of week")
        axes[2].plot(dates, resid, color=MUTED, lw=0.5)
        axes[2].set_ylabel("residual")
        _date_axis(axes[2])
        drawing.legend(figure)
        drawing.save(figure, path)


def survival_fits(
    path: pathlib.Path,
    names: Sequence[str],
    observed: Sequence[np.ndarray],
    fitted: Sequence[Mapping[str, np.ndarray]],
    chosen: Sequence[str],
) -> None:
    """Draws each site's Kaplan-Meier curve with every fitted law, the chosen one heavier."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = _panels(len(names))
        families = list(fitted[0])
        for axis, name, km, laws, best in zip(axes, names, observed, fitted, chosen, strict=False):
            days = np.arange(km.size)
            axis.plot(days, km, "o", color=INK, ms=2.2, label="observed (Kaplan–Meier)", zorder=3)
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
        drawing.legend(figure)
        drawing.save(figure, path)


def occupancy(
    path: pathlib.Path,
    dates: np.ndarray,
    names: Sequence[str],
    rho: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    census: np.ndarray,
    beds: Mapping[str, np.ndarray],
) -> None:
    """Draws mean occupancy and band, observed census, and lines of beds, one panel a site."""
    with plt.rc_context(drawing.STYLE):
        figure, axes = _panels(len(names), height=2.5)
        for i, axis in enumerate(axes[: len(names)]):
            axis.fill_between(
                dates, low[i], high[i], color=BLUE, alpha=0.18, lw=0, label="90 % of days expected"
            )
            axis.plot(dates, census[i], color=MUTED, lw=0.6, label="observed census")
            axis.plot(dates, rho[i], color=BLUE, lw=1.3, label="mean occupancy, model")
            for (label, counts), color in zip(beds.items(), (ORANGE, RED, GREEN), strict=False):
                axis.axhline(counts[i], color=color, lw=1.2, ls="--", label=label)
            axis.set_title(names[i])
            axis.set_ylabel("beds")
            axis.set_ylim(bottom=0)
            _date_axis(axis)
        drawing.legend(figure)
        drawing.save(figure, path)


def overflow_risk(
    path: pathlib.Path,
    names: Sequence[str],
    beds: Sequence[np.ndarray],
    risk: Sequence[np.ndarray],
    simulated: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    alphas: Sequence[float],
) -> None:
    """Draws the share of days above B beds, by the Poisson law and by simulated paths."""
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
                f"{100 * alpha:g} %",
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
        drawing.legend(figure)
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
    """Draws beds `[rule, site]` with intervals, one panel a site, and `marks` beside them."""
    with plt.rc_context(drawing.STYLE):
        columns = min(len(names), 5)
        lines = -(-len(names) // columns)
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(max(2.0 * columns, 5), 2.6 * lines + 0.6),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat[len(names) :]:
            axis.set_axis_off()
        position = np.arange(len(rules))[::-1]
        shown = np.broadcast_to(np.asarray(marks, float), counts.shape) if len(marks) else None
        for i, axis in enumerate(axes.flat[: len(names)]):
            axis.hlines(position, low[:, i], high[:, i], color=BLUE, lw=5, alpha=0.3)
            axis.plot(counts[:, i], position, "o", color=BLUE, ms=5, label="our count")
            if shown is not None:
                axis.plot(
                    shown[:, i], position, "D", color=ORANGE, ms=5, mfc="none", label=mark_label
                )
            axis.set_title(names[i])
            axis.set_yticks(position, rules)
            axis.set_ylim(-0.6, len(rules) - 0.4)
            axis.set_xlabel(xlabel)
        if shown is not None:
            drawing.legend(figure)
        drawing.save(figure, path)


def _literal(name: str) -> str:
    """Returns the name of a site as a picture shows it: no mathematics, and not too long."""
    return (name if len(name) <= 40 else f"{name[:38]}…").replace("$", r"\$")


def _survival_curves(
    study: q.Study,
) -> tuple[Sequence[np.ndarray], Sequence[Mapping[str, np.ndarray]]]:
    """Returns Kaplan-Meier curve and fitted laws of each site, while some patients are left."""
    days = jnp.arange(study.u_max + 1, dtype=jnp.float32)

    def site(patients, params):
        km = q.kaplan_meier(patients.los, patients.event, days, weight=patients.weight)
        laws = [
            q.los.sf(family, days, q.LOSParams(params.shape[f], params.scale[f]))
            for f, family in enumerate(q.FAMILIES_DEFAULT)
        ]
        return km, jnp.stack(laws)

    given = (study.patients, study.plan.laws.fits.params)
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), given)
    km, laws = jax.device_get(jax.jit(jax.vmap(site))(*given))
    last = np.maximum(2 * study.plan.laws.smax // 3, 10) + 1
    observed = [curve[:end] for curve, end in zip(km, last, strict=True)]
    fitted: list[Mapping[str, np.ndarray]] = [
        dict(zip(q.FAMILIES_DEFAULT, curves[:, :end], strict=True))
        for curves, end in zip(laws, last, strict=True)
    ]
    return observed, fitted


def _risk_curve(study: q.Study, site: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns bed counts and the average daily overflow risk of each."""
    rho = study.plan.rho[site][study.plan.mask[site]]
    beds = np.arange(int(0.5 * rho.mean()), int(3 * rho.max()) + 16)
    full = np.asarray(q.overflow_threshold(beds, study.rules.gamma))
    risk = scipy.stats.poisson.sf(full[:, None], rho[None]).mean(axis=1)
    return beds[risk > 5e-5], risk[risk > 5e-5]


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
