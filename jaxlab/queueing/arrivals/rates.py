"""Designs of the daily arrival rate: level, trend, annual cycle and day of the week.

The bed planning pipeline of arXiv:2510.02852 takes its rates from an STL trend, which follows the
sampling noise of the counts; a bed rule that adds Poisson noise then counts that noise twice.  A
Poisson regression (`glm.poisson_glm`) on one of these designs has few parameters instead.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from jaxlab.queueing.arrivals import glm

Trend = Literal["none", "linear", "piecewise", "random_walk", "spline"]
TRENDS = ("none", "linear", "piecewise", "random_walk", "spline")
YEAR = 365.25
"""Days of the annual period."""
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class RateDesign(NamedTuple):
    """A design matrix made on the host (hold it outside `jit`; it carries names).

    Attributes:
        matrix: `[T, P]` float64 numpy.
        names: `P` column names.
        penalty: `[P, P]` unit roughness penalty: sum over days of the squared first difference
            ("random_walk") or second difference (else) of the log trend.  Scale it by a factor.
        weekday_columns: positions of the six weekday contrasts, or empty.
    """

    matrix: np.ndarray
    names: tuple[str, ...]
    penalty: np.ndarray
    weekday_columns: tuple[int, ...]


class WeekdayEffect(NamedTuple):
    """Multiplicative effect of each weekday, Monday first; the geometric mean is 1."""

    effect: Float[Array, "7"]
    lower: Float[Array, "7"]
    upper: Float[Array, "7"]


def rate_design(
    num_days: int,
    *,
    start_weekday: int = 0,
    trend: Trend = "none",
    num_knots: int = 8,
    harmonics: int = 1,
    period: float = YEAR,
    weekday: bool = True,
) -> RateDesign:
    """Builds the design of a daily rate: level, trend, annual cycle, day of the week.

    Trends: "linear" in years (its coefficient is the log growth per year, centered); "piecewise"
    adds a change of slope at each of `num_knots` equally spaced days; "random_walk" is a step at
    each knot (penalize it); "spline" is a natural cubic spline with these interior knots.
    To forecast, build the design over past and future and give the future weight zero in the fit.

    Args:
        num_days: T.
        start_weekday: weekday of day 0, Monday = 0 (as `datetime.date.weekday`).
        trend: one of `TRENDS`.
        num_knots: interior knots of the last three trends.
        harmonics: cosine and sine pairs of period `period` days.
        period: days.
        weekday: whether to add six sum-to-zero weekday contrasts (Sunday = minus their sum).

    Returns:
        `RateDesign`, of full column rank.

    Raises:
        ValueError: on an unknown trend, numbers out of range, or columns that `num_days` days
            cannot tell apart.
    """
    if trend not in TRENDS:
        raise ValueError(f"trend must be one of {TRENDS}, got {trend!r}")
    if num_days < 1 or harmonics < 0 or not 0 <= start_weekday <= 6 or not period > 0:
        raise ValueError(
            "need num_days >= 1, harmonics >= 0, start_weekday in 0..6 and period > 0, got "
            f"{num_days}, {harmonics}, {start_weekday} and {period}"
        )
    day = np.arange(num_days)
    trend_names, trend_basis = _trend_basis(num_days, trend, num_knots)
    columns, names = [np.ones((num_days, 1)), trend_basis], ["intercept", *trend_names]
    for k in range(1, harmonics + 1):
        angle = 2.0 * np.pi * k * day / period
        columns.append(np.stack([np.cos(angle), np.sin(angle)], axis=1))
        names += [f"cos{k}", f"sin{k}"]
    first = len(names)
    if weekday:
        contrast = np.concatenate([np.eye(6), -np.ones((1, 6))])
        columns.append(contrast[(start_weekday + day) % 7])
        names += WEEKDAYS[:6]
    matrix = np.concatenate(columns, axis=1)
    norm = np.linalg.norm(matrix, axis=0)
    if np.any(norm == 0) or np.linalg.matrix_rank(matrix / norm) < matrix.shape[1]:
        raise ValueError(
            f"{num_days} days cannot identify the {matrix.shape[1]} columns {tuple(names)}; "
            "use fewer knots or harmonics, or weekday=False"
        )
    rough = np.diff(trend_basis, n=1 if trend == "random_walk" else 2, axis=0)
    penalty = np.zeros((matrix.shape[1],) * 2)
    block = slice(1, 1 + trend_basis.shape[1])
    penalty[block, block] = rough.T @ rough
    return RateDesign(matrix, tuple(names), penalty, tuple(range(first, len(names))))


def weekday_effect(
    fit: glm.GLMFit, design: RateDesign, *, level: float = 0.95, quasi: bool = False
) -> WeekdayEffect:
    """Returns the rate of each weekday relative to their geometric mean, with Wald intervals.

    Args:
        fit: result of `glm.poisson_glm` with `design.matrix`.
        design: made with `weekday=True`.
        level: coverage of the intervals.
        quasi: whether to widen them by the square root of the dispersion.

    Returns:
        `WeekdayEffect`, Monday first.

    Raises:
        ValueError: if the design has no weekday columns or `level` is not in (0, 1).
    """
    if not design.weekday_columns:
        raise ValueError("the design has no weekday columns; build it with weekday=True")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")
    dtype = fit.coef.dtype
    columns = np.array(design.weekday_columns)
    contrast = jnp.asarray(np.concatenate([np.eye(6), -np.ones((1, 6))]), dtype)
    log_effect = glm.dot(contrast, fit.coef[columns])
    cov = fit.cov[columns[:, None], columns[None, :]]
    se = jnp.sqrt(jnp.sum(glm.dot(contrast, cov) * contrast, axis=1))
    se = se * jnp.sqrt(fit.dispersion) if quasi else se
    half = norm.ppf(jnp.asarray(0.5 + level / 2.0, dtype)) * se
    return WeekdayEffect(
        jnp.exp(log_effect), jnp.exp(log_effect - half), jnp.exp(log_effect + half)
    )


def _trend_basis(num_days: int, trend: Trend, num_knots: int) -> tuple[list[str], np.ndarray]:
    day = np.arange(num_days)
    years = (day - (num_days - 1) / 2.0)[:, None] / YEAR
    if trend == "none":
        return [], np.zeros((num_days, 0))
    if trend == "linear":
        return ["year"], years
    knots = np.round(np.linspace(0, num_days - 1, num_knots + 2)).astype(int)
    if num_knots < 1 or np.any(np.diff(knots) < 1):
        raise ValueError(f"num_knots must be in 1..num_days - 2, got {num_knots} ({num_days} days)")
    inner = knots[1:-1]
    if trend == "random_walk":
        return [f"step@{k}" for k in inner], 1.0 * (day[:, None] >= inner)
    if trend == "piecewise":
        hinges = np.maximum(day[:, None] - inner, 0) / YEAR
        return ["year", *(f"hinge@{k}" for k in inner)], np.concatenate([years, hinges], axis=1)
    # Natural cubic spline in truncated powers, time scaled to [0, 1] (Hastie et al. 2009, 5.4).
    at, ends = day[:, None] / (num_days - 1), knots / (num_days - 1)
    cube = np.maximum(at - ends, 0.0) ** 3
    chord = (cube[:, :-1] - cube[:, -1:]) / (1.0 - ends[:-1])
    # Orthonormal beside the line, for float32; the single coefficients have no meaning anyway.
    basis = np.concatenate([np.ones_like(years), years, chord[:, :-1] - chord[:, -1:]], axis=1)
    curves = np.sqrt(num_days) * np.linalg.qr(basis)[0][:, 2:]
    names = ["year", *(f"spline{k}" for k in range(curves.shape[1]))]
    return names, np.concatenate([years, curves], axis=1)
