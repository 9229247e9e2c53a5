"""From patient stays to daily admissions, mean lengths of stay and observed census.

The daily series of arXiv:2510.02852: admissions n[t], mean length of stay m[t] of the patients
admitted on day t, and the number of patients in bed on each calendar day.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing import settings

ROUNDING_DAYS = 1e-6
"""A stay longer than a whole number of days by less than this (0.09 s) counts as whole."""


Bin = Literal["1d", "1h"]
"""Length of the steps of a series: a day or an hour."""
BINS = {"1d": 1, "1h": 24}
"""Steps of a day."""


class DailySeries(NamedTuple):
    """Daily series of `I` sites over `T` days; hourly ones have 24 times as many steps.

    Attributes:
        counts: `[I, T]` admissions per day n[t] (sum of weights).
        mean_los: `[I, T]` mean length of stay of the patients admitted on that day, days;
            interpolated on days without admission, zero for a site without any.
        has: `[I, T]` True where the day has an admission.
    """

    counts: Float[Array, "I T"]
    mean_los: Float[Array, "I T"]
    has: Bool[Array, "I T"]


def stays_to_daily(
    day: Int[ArrayLike, " N"],
    site: Int[ArrayLike, " N"],
    los: Float[ArrayLike, " N"],
    num_sites: int,
    num_days: int,
    *,
    offset: Float[ArrayLike, " N"] | None = None,
    weight: Float[ArrayLike, " N"] | None = None,
    bin: Bin = "1d",
) -> DailySeries:
    """Counts admissions and averages their lengths of stay, per site and day (or hour).

    Days without admission take the mean length of stay by linear interpolation between the days
    that have one, constant before the first and after the last.

    Args:
        day: `[N]` admission day; patients outside 0..num_days-1 are not counted, so that
            `counts.sum()` is the weight of those inside.
        site: `[N]` site index, same rule.
        los: `[N]` length of stay, days; sets the dtype of the result.
        num_sites: I.
        num_days: T.
        offset: `[N]` time of admission within its day, in [0, 1); needed by the hour.
        weight: `[N]` patient weights, 0 for padding; default 1. Padding needs a finite `los`.
        bin: "1d", or "1h" for a series by the hour, NaN where a patient without a time may be.

    Returns:
        The series; lengths of stay are days in any case.

    Raises:
        ValueError: if shapes or dtypes do not fit, or `offset` is missing (at trace time).

    Source: arXiv:2510.02852, data preparation.
    """
    day, site, los, weight = _patients(day, site, los, weight)
    shape = _shape(num_sites, num_days, bin)
    if BINS[bin] > 1:
        day, _, weight = _by_hour(day, offset, weight, BINS[bin])
    counts = _sum_by_day(day, site, weight, shape)
    total = _sum_by_day(day, site, weight * los, shape)
    has = counts > 0
    mean = jnp.where(has, total / jnp.where(has, counts, 1.0), 0.0)
    return DailySeries(counts, fill_days(mean, has), has)


def fill_days(value: Float[Array, "*I T"], known: Bool[Array, "*I T"]) -> Float[Array, "*I T"]:
    """Interpolates linearly between known days, constant at both ends; zero if none is known.

    Args:
        value: `[..., T]` values, read where `known`.
        known: `[..., T]` bool.
    """
    axis, num_days = value.ndim - 1, value.shape[-1]
    day = jnp.broadcast_to(jnp.arange(num_days, dtype=jnp.int32), value.shape)
    before = lax.cummax(jnp.where(known, day, -1), axis=axis)
    after = lax.cummin(jnp.where(known, day, num_days), axis=axis, reverse=True)
    left = jnp.where(before < 0, after, before)
    right = jnp.where(after == num_days, before, after)
    left, right = jnp.minimum(left, num_days - 1), jnp.maximum(right, 0)  # no known day at all
    span = jnp.maximum(right - left, 1).astype(value.dtype)
    share = jnp.maximum(day - left, 0).astype(value.dtype) / span
    safe = jnp.where(known, value, 0.0)
    start = jnp.take_along_axis(safe, left, axis=axis)
    end = jnp.take_along_axis(safe, right, axis=axis)
    return start + jnp.where(right > left, share, 0.0) * (end - start)


def whole_days(los: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """Rounds lengths of stay up to whole days, forgiving `ROUNDING_DAYS` of rounding error.

    A stay of 3.0000001 days, the trace of a division or of float32, is 3 days and not 4.
    """
    slack = jnp.maximum(ROUNDING_DAYS, 2 * jnp.finfo(los.dtype).eps * los)
    return jnp.where(los > 0, jnp.maximum(jnp.ceil(los - slack), 1.0), 0.0)


def observed_census(
    day: Int[ArrayLike, " N"],
    site: Int[ArrayLike, " N"],
    los: Float[ArrayLike, " N"],
    num_sites: int,
    num_days: int,
    *,
    discharge_day: Int[ArrayLike, " N"] | None = None,
    convention: settings.Convention = "ceil",
    offset: Float[ArrayLike, " N"] | None = None,
    weight: Float[ArrayLike, " N"] | None = None,
    bin: Bin = "1d",
) -> Float[Array, "I T"]:
    """Counts the patients in bed on each calendar day, or in each hour.

    A patient admitted at `a = day + offset` leaves at `a + los`. The conventions:

    * "ceil": days `day` .. `day + ceil(los) - 1`, whatever the offset.
    * "midnight": in bed at the end of the day.
    * "touch": in bed at any time of the day.
    * "bed_days": share of the day spent in bed.

    If the time of admission is unknown (`offset=None`, or NaN for a patient) the last three give
    the expected census for an admission uniform in the day, fractions included, which is what the
    model's kernels of the same names assume. Discharge dates, where given, replace the length of
    stay: "ceil" and "midnight" count the days up to, not including, that date and "touch" includes
    it; "bed_days" always uses `los`.

    By the hour the conventions are read with "hour" for "day", discharge dates are not looked at,
    and the census is NaN from the day on which a patient without a time is admitted.

    Args:
        day: `[N]` admission day; before day 0 is allowed (already in bed when the window opens).
        site: `[N]` site index; patients outside 0..num_sites-1 are not counted.
        los: `[N]` length of stay, days, finite; sets the dtype of the result.
        num_sites: I.
        num_days: T.
        discharge_day: `[N]` day of discharge, negative where unknown.
        convention: one of `settings.Convention`.
        offset: `[N]` time of admission within the day, in [0, 1).
        weight: `[N]` patient weights, 0 for padding; default 1.
        bin: "1d", or "1h" for a census by the hour.

    Returns:
        `[I, T]` beds occupied, `[I, 24 T]` by the hour. In a long window each patient adds up to
        `ceil(los)`, `los`, `los + 1` and `los` bed-days under the four conventions (unknown offset,
        no discharge date).

    Raises:
        ValueError: if the convention is unknown or shapes or dtypes do not fit (at trace time).
    """
    settings.check_name("convention", convention, settings.Convention)
    day, site, los, weight = _patients(day, site, los, weight)
    shape = _shape(num_sites, num_days, bin)
    if BINS[bin] > 1:
        day, offset, weight = _by_hour(day, offset, weight, BINS[bin])
        los, discharge_day = los * BINS[bin], None
    offset = jnp.full_like(los, jnp.nan) if offset is None else jnp.asarray(offset)
    offset = _like("offset", offset, day).astype(los.dtype)
    timed = ~jnp.isnan(offset)
    offset = jnp.where(timed, offset, 0.0)
    one = jnp.ones_like(los)
    # Each patient is a sum of steps (lag in days after admission, mass): up on entry, down on exit.
    up, last = [(0 * day, one)], 0
    if convention == "ceil":
        down = [(_lag(whole_days(los)), one)]
    elif convention == "bed_days":
        up, down = _bed_day_steps(day, los, offset, timed)
    else:
        last = 1 if convention == "touch" else 0
        lag, rest = _split(los)  # a uniform time of admission: the exit falls on two days
        rest = jnp.where(timed, 0.0, rest)
        lag = jnp.where(timed, _lag(whole_days(offset + los)) - 1, lag)
        down = [(lag + last, 1 - rest), (lag + last + 1, rest)]
    if discharge_day is not None and convention != "bed_days":
        discharge = _like("discharge_day", jnp.asarray(discharge_day), day).astype(jnp.int32)
        known = discharge >= 0
        (lag, mass), *rest = down
        down = [(jnp.where(known, discharge - day + last, lag), jnp.where(known, one, mass))]
        down += [(lag, jnp.where(known, 0.0, mass)) for lag, mass in rest]
    steps = up + [(lag, -mass) for lag, mass in down]
    change = jnp.zeros(shape, los.dtype)
    for lag, mass in steps:
        # What happened before the window is already true on its first day.
        change = change + _sum_by_day(jnp.maximum(day + lag, 0), site, weight * mass, shape)
    return jnp.cumsum(change, axis=1)


def individual_variance(
    day: Int[ArrayLike, " N"],
    site: Int[ArrayLike, " N"],
    los: Float[ArrayLike, " N"],
    mu: Float[ArrayLike, "I T"],
    *,
    window: int = 31,
    weight: Float[ArrayLike, " N"] | None = None,
    floor: float = 1e-6,
) -> Float[Array, "I T"]:
    """Estimates the variance of individual stays around their time-varying mean.

    Sample variance (divisor n - 1) of `los[p] - mu[site[p], day[p]]`, pooled over the patients
    admitted in a centered window that shrinks at both ends. Windows with one patient or none are
    interpolated. In contrast to the rolling variance of the daily mean, which is about the
    individual variance over n[t], this does not understate the spread of single stays.

    Args:
        day: `[N]` admission day; patients outside the days or sites of `mu` are not used.
        site: `[N]` site index.
        los: `[N]` length of stay, days.
        mu: `[I, T]` mean length of stay by admission day, days.
        window: odd number of days.
        weight: `[N]` patient weights (frequencies), 0 for padding; default 1.
        floor: smallest variance returned, days squared.

    Returns:
        `[I, T]` variance, days squared, at least `floor`.

    Raises:
        ValueError: if the window is not a positive odd number or shapes do not fit.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be a positive odd number of days, got {window}")
    day, site, los, weight = _patients(day, site, los, weight)
    mu = jnp.asarray(mu)
    if mu.ndim != 2 or mu.dtype != los.dtype:
        raise ValueError(f"mu must be [I, T] {los.dtype} like los, got {mu.shape} {mu.dtype}")
    resid = los - mu.at[site, day].get(mode="clip")
    shape = mu.shape
    moments = [_sum_by_day(day, site, weight * x, shape) for x in (1 + 0 * resid, resid, resid**2)]
    n, first, second = (_window_sum(m, window) for m in moments)
    known = n > 1
    safe = jnp.where(known, n, 2.0)
    variance = (second - first**2 / safe) / (safe - 1)
    return jnp.maximum(fill_days(variance, known), floor)


def _bed_day_steps(day, los, offset, timed):
    """Returns the steps of the share of each day spent in bed."""
    begin = jnp.where(timed, offset, 0.5)  # uniform entry: half of day 0 on average
    up = [(0 * day, 1 - begin), (0 * day + 1, begin)]
    lag, f = _split(jnp.where(timed, offset + los, los))
    # The exit of a uniform entry, k + f + U, spreads over three days.
    first = jnp.where(timed, 1 - f, (1 - f) ** 2 / 2)
    third = jnp.where(timed, 0.0, f**2 / 2)
    return up, [(lag, first), (lag + 1, 1 - first - third), (lag + 2, third)]


def _by_hour(day, offset, weight, steps):
    """Returns the step of each admission, its time within the step, and weights.

    A patient without a time weighs NaN: better no series than one that is made up.
    """
    if offset is None:
        raise ValueError("bin='1h' needs offset=, the time of each admission within its day")
    offset = _like("offset", jnp.asarray(offset), day).astype(weight.dtype)
    timed = ~jnp.isnan(offset)
    time = steps * jnp.where(timed, offset, 0.0)
    step = jnp.floor(time + steps * ROUNDING_DAYS)
    weight = jnp.where(timed | (weight == 0), weight, jnp.nan)
    return steps * day + step.astype(jnp.int32), jnp.maximum(time - step, 0.0), weight


def _split(los):
    """Returns whole days (int32) and the fraction left."""
    whole = jnp.floor(los)
    return _lag(whole), los - whole


def _lag(days):
    """Casts whole days to int32, bounded so that adding a day index cannot overflow."""
    return jnp.minimum(days, 2.0**29).astype(jnp.int32)


def _window_sum(x, window):
    """Sums `[I, T]` over a centered window, zero outside."""
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, (1, window), (1, 1), "SAME")


def _sum_by_day(day, site, value, shape):
    """Sums `[N]` values into `[I, T]`, leaving out patients outside."""
    column = jnp.where((day >= 0) & (site >= 0), day, shape[1])  # negative indices would wrap
    return jnp.zeros(shape, value.dtype).at[site, column].add(value, mode="drop")


def _shape(num_sites, num_days, bin="1d"):
    settings.check_name("bin", bin, Bin)
    if num_sites < 1 or num_days < 1:
        raise ValueError(f"need num_sites and num_days of at least 1, got {num_sites}, {num_days}")
    return num_sites, BINS[bin] * num_days


def _patients(day, site, los, weight):
    """Checks the columns of the patient table and gives the floats one dtype."""
    day, site, los = jnp.asarray(day), jnp.asarray(site), jnp.asarray(los)
    if day.ndim != 1:
        raise ValueError(f"day must have shape [N], got {day.shape}; vmap over further axes")
    for name, x in (("day", day), ("site", site)):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{name} must be integer indices, got {x.dtype}")
    if not jnp.issubdtype(los.dtype, jnp.floating):
        los = los.astype(jnp.result_type(float))
    weight = jnp.ones_like(los) if weight is None else jnp.asarray(weight).astype(los.dtype)
    day, site = day.astype(jnp.int32), _like("site", site, day).astype(jnp.int32)
    return day, site, _like("los", los, day), _like("weight", weight, day)


def _like(name, x, day):
    if x.shape != day.shape:
        raise ValueError(f"{name} must have the shape of day {day.shape}, got {x.shape}")
    return x
