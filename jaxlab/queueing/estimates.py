"""What a hospital's stays say of its queue: rates and moments by day, and the law of the stay.

stays -> daily series -> STL search -> rates, mean and variance of the stay; stays -> laws by
survival distance. The first half of the pipeline of arXiv:2510.02852, traced like the second.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing import settings
from jaxlab.queueing.arrivals import decomposition, rolling
from jaxlab.queueing.data import daily, windows
from jaxlab.queueing.data.records import Patients
from jaxlab.queueing.data.windows import Windows
from jaxlab.queueing.stays import censoring, conditional, counts, fit

MIN_MEAN_LOS = 0.01
"""Least mean length of stay that the trend may fall to, days."""


class SeriesOptions(NamedTuple):
    """How rates and moments of the stay are estimated, static; the defaults are the paper's.

    Attributes:
        grid: configurations of the STL search.
        degree2: what degree 2 means in the search.
        keep_seasonal: keep the day-of-week pattern in rates and mean stays (the paper drops it).
        spread: variance of the stay from the residual of the daily means (the paper's reading,
            which understates the variance of single stays) or pooled over individual stays.
    """

    grid: tuple[decomposition.STLConfig, ...] = decomposition.GRID
    degree2: decomposition.Degree2 = "linear"
    keep_seasonal: bool = False
    spread: Literal["daily_mean", "individual"] = "daily_mean"


class LawOptions(NamedTuple):
    """How the law of the stay is chosen, static; the defaults are the paper's.

    Attributes:
        families: candidate laws, of `conditional.FAMILIES`.
        criterion: figure by which one is chosen.
    """

    families: tuple[str, ...] = fit.FAMILIES_DEFAULT
    criterion: fit.Criterion = "rmse"


PAPER_SERIES = SeriesOptions()
"""The paper's way of estimating rates."""


PAPER_LAWS = LawOptions()
"""The paper's way of choosing a law."""


class SeriesEstimates(NamedTuple):
    """What the daily series of `I` sites over `T` days say.

    Attributes:
        daily: admissions and mean stays by day.
        arrivals: STL choice for the daily admissions, fields `[I, ...]`.
        stays: STL choice for the daily mean stays, fields `[I, ...]`.
        lam: `[I, T]` arrival rate, per day.
        mu: `[I, T]` mean stay by day of admission, days.
        sig2: `[I, T]` variance of the stay, days squared.
        window: `[I]` chosen window of the rolling variance, days (0 with pooled individual stays).
        inside: `[I, T]` days of each site's own window; on others lam is 0, mu and sig2 are means.
        profile: `[I, 24]` share of the admissions in each hour of the day; None with bins of a day.
    """

    daily: daily.DailySeries
    arrivals: decomposition.GridSelection
    stays: decomposition.GridSelection
    lam: Float[Array, "I T"]
    mu: Float[Array, "I T"]
    sig2: Float[Array, "I T"]
    window: Int[Array, " I"]
    inside: Bool[Array, "I T"]
    profile: Float[Array, "I H"] | None = None

    @property
    def rate(self) -> Float[Array, " I"]:
        """Mean admissions per day of the site's own window."""
        days = self.inside.sum(axis=1).astype(self.daily.counts.dtype)
        return self.daily.counts.sum(axis=1) / days


class LawEstimates(NamedTuple):
    """What the stays of `I` sites say.

    Attributes:
        fits: fitted laws, fields `[I, F]`.
        choice: `[I]` index into the families; -1 if none could be fitted.
        kappa: `[I]` shape of the chosen law.
        family: `[I]` its code in `conditional.FAMILIES`; -1 if there is none.
        smax: `[I]` its truncation lag, days.
        mean_los: `[I]` mean stay over patients, days.
        by_date: `[I]` share of the patients whose stay is a count of whole days; None if no
            patient's is.
    """

    fits: fit.LOSFit
    choice: Int[Array, " I"]
    kappa: Float[Array, " I"]
    family: Int[Array, " I"]
    smax: Int[Array, " I"]
    mean_los: Float[Array, " I"]
    by_date: Float[Array, " I"] | None = None


def estimate_series(
    patients: Patients,
    num_days: int,
    options: SeriesOptions = PAPER_SERIES,
    *,
    own: Windows | None = None,
    bin: daily.Bin = "1d",
    convention: settings.Convention = "ceil",
) -> SeriesEstimates:
    """Estimates arrival rates, and mean and variance of the stay by day of admission.

    Censored stays enter the means as `censoring.complete_stays`.

    Args:
        patients: `[I, N]` patients.
        num_days: length T of the daily series; patients admitted outside are left out of it.
        options: how to estimate, static.
        own: `[I, 2]` int32 first and last day of each site's own window, of 14 days at least: each
            is estimated as it would be alone. None: all days of all sites.
        bin: step of the occupancy to come, static. "1h" adds the share of the admissions in each
            hour, from `Patients.offset`; rates and mean stays are still those of days.
        convention: how whole-day stays were counted, see `counts.counted_survival`; static.

    Raises:
        ValueError: on an option that is unknown, hours without times of admission, or as
            `decomposition.stl_grid_select`.

    Source: arXiv:2510.02852, estimation of arrivals and of the moments of the stay.
    """
    settings.check(options, SeriesOptions)
    settings.check_name("bin", bin, daily.Bin)
    profile = _hour_profile(patients) if bin == "1h" else None
    num_sites = patients.los.shape[0]
    site = jnp.broadcast_to(jnp.arange(num_sites, dtype=jnp.int32)[:, None], patients.los.shape)
    day, weight, size = jnp.asarray(patients.day), jnp.asarray(patients.weight), None
    inside = jnp.ones((num_sites, num_days), bool)
    if own is not None:
        own = jnp.asarray(own, jnp.int32)
        size = windows.sizes(own)
        day = day - own[:, :1]
        weight = jnp.where((day >= 0) & (day < size[:, None]), weight, 0.0)
        inside = windows.to_own_days(windows.inside(own, num_days), own)
    stays = _completed(patients, convention)
    day, site, los, weight = (x.reshape(-1) for x in (day, site, stays, weight))
    series = daily.stays_to_daily(day, site, los, num_sites, num_days, weight=weight)
    both = jnp.concatenate([series.counts, series.mean_los])
    chosen = decomposition.stl_grid_select(
        both,
        options.grid,
        degree2=options.degree2,
        size=None if size is None else jnp.concatenate([size, size]),
    )
    arrivals = jax.tree.map(lambda x: x[:num_sites], chosen)
    stays = jax.tree.map(lambda x: x[num_sites:], chosen)
    lam, mu = (
        part.trend + part.seasonal if options.keep_seasonal else part.trend
        for part in (arrivals.result, stays.result)
    )
    lam, mu = jnp.maximum(lam, 0.0), jnp.maximum(mu, MIN_MEAN_LOS)
    if options.spread == "daily_mean":
        sig2, window = rolling.rolling_variance_select(stays.result.resid, size=size)
    else:
        sig2 = daily.individual_variance(day, site, los, mu, weight=weight)
        window = jnp.zeros(num_sites, jnp.int32)
    if own is None:
        return SeriesEstimates(series, arrivals, stays, lam, mu, sig2, window, inside, profile)
    first_last = own
    lam = jnp.where(inside, lam, 0.0)
    mu, sig2 = (windows.fill(x, inside, days=num_days) for x in (mu, sig2))
    arrivals, stays = (
        part._replace(
            result=jax.tree.map(lambda x: windows.to_calendar(x, first_last), part.result)
        )
        for part in (arrivals, stays)
    )
    series, lam, mu, sig2, inside = jax.tree.map(
        lambda x: windows.to_calendar(x, first_last), (series, lam, mu, sig2, inside)
    )
    return SeriesEstimates(series, arrivals, stays, lam, mu, sig2, window, inside, profile)


def estimate_laws(
    patients: Patients,
    options: LawOptions = PAPER_LAWS,
    *,
    u_max: int,
    convention: settings.Convention = "ceil",
) -> LawEstimates:
    """Fits every family at every site and chooses one.

    Args:
        patients: `[I, N]` patients.
        options: candidate laws and how one is chosen, static.
        u_max: static bound of S_max, days; the longest stay is always enough.
        convention: how whole-day stays were counted, see `counts.counted_survival`; static.

    Raises:
        ValueError: on an unknown family or criterion, or as `fit.fit_los`.

    Source: arXiv:2510.02852, choice of the length-of-stay law.
    """
    settings.check(options, LawOptions)

    def site(los, event, weight, by_date):
        return fit.fit_families(
            los,
            event,
            options.families,
            weight=weight,
            by_date=by_date,
            convention=convention,
            u_max=u_max,
        )

    fits = jax.vmap(site)(patients.los, patients.event, patients.weight, patients.by_date)
    choice = fit.select_los(fits, options.criterion)
    best = jnp.maximum(choice, 0)[:, None]
    kappa, smax = (jnp.take_along_axis(x, best, axis=1)[:, 0] for x in (fits.kappa, fits.smax))
    codes = jnp.asarray([conditional.FAMILIES.index(name) for name in options.families], jnp.int32)
    family = jnp.where(choice >= 0, codes[best[:, 0]], -1)
    stays = _completed(patients, convention)

    def mean(x):
        total = jnp.maximum(jnp.sum(patients.weight, axis=1), 1.0)
        return jnp.sum(patients.weight * x, axis=1) / total

    share = None if patients.by_date is None else mean(patients.by_date.astype(stays.dtype))
    return LawEstimates(fits, choice, kappa, family, smax, mean(stays), share)


def _hour_profile(patients: Patients) -> Float[Array, "I H"]:
    """Returns the share of the admissions in each hour of the day; even where there is none."""
    if patients.offset is None:
        raise ValueError(
            "bin='1h' needs the times of admission, Patients.offset is None; read a file with "
            "times, or take bin='1d'"
        )
    weight = jnp.asarray(patients.weight)
    hour = jnp.clip(jnp.floor(24 * jnp.asarray(patients.offset)), 0, 23).astype(jnp.int32)
    counts = jax.vmap(lambda h, w: jnp.zeros((24,), w.dtype).at[h].add(w))(hour, weight)
    total = jnp.sum(counts, axis=1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), 1 / 24)


def _completed(patients: Patients, convention: settings.Convention) -> Float[Array, "I N"]:
    """Returns the stays as the census counts them, open ones completed."""
    los, event, weight = (jnp.asarray(x) for x in patients[1:4])
    if patients.by_date is not None:
        los = counts.counted_days(los, event, jnp.asarray(patients.by_date), convention)
    return jax.vmap(lambda x, e, w: censoring.complete_stays(x, e, weight=w))(los, event, weight)
