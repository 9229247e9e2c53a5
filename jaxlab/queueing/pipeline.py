"""From stays to beds: the whole planning pipeline of arXiv:2510.02852 as one pure function.

stays -> daily series -> STL search -> rates, mean and variance of the stay -> laws by survival
distance -> mean occupancy -> bed counts. Everything is traced, so a whole study can be jitted,
mapped over bootstrap samples, and differentiated up to the integer choices.
"""

import functools
from collections.abc import Callable
from concurrent import futures
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing import settings
from jaxlab.queueing.arrivals import decomposition
from jaxlab.queueing.census import capacity, occupancy
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.data import daily
from jaxlab.queueing.data.records import Patients
from jaxlab.queueing.settings import BedRules, QueueModel
from jaxlab.queueing.stays import censoring, conditional, fit

MIN_MEAN_LOS = 0.01
"""Least mean length of stay that the trend may fall to, days."""
ALPHAS = settings.PAPER_RULES.alphas
"""The paper's two overflow risks."""


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
    """

    daily: daily.DailySeries
    arrivals: decomposition.GridSelection
    stays: decomposition.GridSelection
    lam: Float[Array, "I T"]
    mu: Float[Array, "I T"]
    sig2: Float[Array, "I T"]
    window: Int[Array, " I"]

    @property
    def rate(self) -> Float[Array, " I"]:
        """Mean admissions per day."""
        return self.daily.counts.mean(axis=1)


class LawEstimates(NamedTuple):
    """What the stays of `I` sites say.

    Attributes:
        fits: fitted laws, fields `[I, F]`.
        choice: `[I]` index into the families; -1 if none could be fitted.
        kappa: `[I]` shape of the chosen law.
        family: `[I]` its code in `conditional.FAMILIES`; -1 if there is none.
        smax: `[I]` its truncation lag, days.
        mean_los: `[I]` mean stay over patients, days.
    """

    fits: fit.LOSFit
    choice: Int[Array, " I"]
    kappa: Float[Array, " I"]
    family: Int[Array, " I"]
    smax: Int[Array, " I"]
    mean_los: Float[Array, " I"]


class Beds(NamedTuple):
    """Bed counts of each site by every rule, int32; -1 where `bed_cap` was too small.

    Attributes:
        average: `[I]` mean occupancy plus its square root.
        risk: `[A, I]` smallest count whose overflow risk is at most each alpha.
        peak: `[I]` highest mean occupancy plus its square root (the paper's B_max).
        naive_peak: `[I]` highest product of rate and mean stay.
        rule85: `[I]` mean occupancy at 85 % utilization.
    """

    average: Int[Array, " I"]
    risk: Int[Array, "A I"]
    peak: Int[Array, " I"]
    naive_peak: Int[Array, " I"]
    rule85: Int[Array, " I"]


class Plan(NamedTuple):
    """Estimates, the occupancy they imply, and the beds that follow.

    Attributes:
        series: see `SeriesEstimates`.
        laws: see `LawEstimates`.
        rho: `[I, T]` mean occupancy, beds; NaN at a site without a law.
        mask: `[I, T]` days that averages take in (all, unless the warm-up is dropped).
        beds: see `Beds`.
    """

    series: SeriesEstimates
    laws: LawEstimates
    rho: Float[Array, "I T"]
    mask: Bool[Array, "I T"]
    beds: Beds

    @property
    def inputs(self) -> QueueInputs:
        """What drives the queue."""
        lam, mu, sig2 = self.series.lam, self.series.mu, self.series.sig2
        return QueueInputs(lam, mu, sig2, self.laws.kappa, self.laws.family, self.laws.smax)


@settings.accepts_fields(options=PAPER_SERIES)
def estimate_series(
    patients: Patients, num_days: int, options: SeriesOptions = PAPER_SERIES
) -> SeriesEstimates:
    """Estimates arrival rates, and mean and variance of the stay by day of admission.

    Censored stays enter the means as `censoring.complete_stays`. All sites share one window of
    days: give a site that opened later its own (`data.take_site`).

    Args:
        patients: `[I, N]` patients.
        num_days: length T of the daily series; patients admitted outside are left out of it.
        options: how to estimate, static.

    Raises:
        ValueError: on an option that is unknown, or as `decomposition.stl_grid_select`.

    Source: arXiv:2510.02852, estimation of arrivals and of the moments of the stay.
    """
    settings.check(options, SeriesOptions)
    num_sites = patients.los.shape[0]
    site = jnp.broadcast_to(jnp.arange(num_sites, dtype=jnp.int32)[:, None], patients.los.shape)
    day, site, los, weight = (
        x.reshape(-1) for x in (patients.day, site, _completed(patients), patients.weight)
    )
    series = daily.stays_to_daily(day, site, los, num_sites, num_days, weight=weight)
    both = jnp.concatenate([series.counts, series.mean_los])
    chosen = decomposition.stl_grid_select(both, options.grid, degree2=options.degree2)
    arrivals = jax.tree.map(lambda x: x[:num_sites], chosen)
    stays = jax.tree.map(lambda x: x[num_sites:], chosen)
    lam, mu = (
        part.trend + part.seasonal if options.keep_seasonal else part.trend
        for part in (arrivals.result, stays.result)
    )
    lam, mu = jnp.maximum(lam, 0.0), jnp.maximum(mu, MIN_MEAN_LOS)
    if options.spread == "daily_mean":
        sig2, window = decomposition.rolling_variance_select(stays.result.resid)
    else:
        sig2 = daily.individual_variance(day, site, los, mu, weight=weight)
        window = jnp.zeros(num_sites, jnp.int32)
    return SeriesEstimates(series, arrivals, stays, lam, mu, sig2, window)


@settings.accepts_fields(options=PAPER_LAWS)
def estimate_laws(
    patients: Patients, options: LawOptions = PAPER_LAWS, *, u_max: int
) -> LawEstimates:
    """Fits every family at every site and chooses one.

    Args:
        patients: `[I, N]` patients.
        options: candidate laws and how one is chosen, static.
        u_max: static bound of S_max, days; the longest stay is always enough.

    Raises:
        ValueError: on an unknown family or criterion, or as `fit.fit_los`.

    Source: arXiv:2510.02852, choice of the length-of-stay law.
    """
    settings.check(options, LawOptions)
    fits = jax.vmap(
        lambda x, event, w: fit.fit_families(x, event, options.families, weight=w, u_max=u_max)
    )(patients.los, patients.event, patients.weight)
    choice = fit.select_los(fits, options.criterion)
    best = jnp.maximum(choice, 0)[:, None]
    kappa, smax = (jnp.take_along_axis(x, best, axis=1)[:, 0] for x in (fits.kappa, fits.smax))
    codes = jnp.asarray([conditional.FAMILIES.index(name) for name in options.families], jnp.int32)
    family = jnp.where(choice >= 0, codes[best[:, 0]], -1)
    total = jnp.sum(patients.weight, axis=1)
    mean_los = jnp.sum(patients.weight * _completed(patients), axis=1) / jnp.maximum(total, 1.0)
    return LawEstimates(fits, choice, kappa, family, smax, mean_los)


@settings.accepts_fields(queue=settings.PAPER_QUEUE, rules=settings.PAPER_RULES)
def size_beds(
    series: SeriesEstimates,
    laws: LawEstimates,
    *,
    num_lags: int,
    queue: QueueModel = settings.PAPER_QUEUE,
    rules: BedRules = settings.PAPER_RULES,
) -> Plan:
    """Computes the mean occupancy of the estimated queue and sizes every site by every rule.

    Args:
        series: rates and moments of the stay.
        laws: chosen laws.
        num_lags: static bound of S_max, days.
        queue: how the laws are read and the census is taken, static.
        rules: how much overflow is accepted, static.

    Raises:
        ValueError: on a setting that is unknown or out of range.

    Source: arXiv:2510.02852, mean occupancy and capacity rules.
    """
    inputs = QueueInputs(series.lam, series.mu, series.sig2, laws.kappa, laws.family, laws.smax)
    rho = occupancy.occupancy_mean(*inputs, num_lags=num_lags, queue=queue)
    mask = occupancy.warm_mask(rho.shape[1], laws.smax, queue.warmup)

    def site(rho, lam, mu, mask):
        peak, naive_peak = capacity.beds_max(rho, mask), capacity.beds_naive_peak(lam, mu)
        risk = capacity.beds_risk(rho, rules, mask)
        return risk, peak, naive_peak, capacity.beds_rule85(rho, mask=mask)

    risk, peak, naive_peak, rule85 = jax.vmap(site)(rho, series.lam, series.mu, mask)
    average = capacity.beds_average(series.rate, laws.mean_los)
    return Plan(series, laws, rho, mask, Beds(average, risk.T, peak, naive_peak, rule85))


@settings.accepts_fields(
    queue=settings.PAPER_QUEUE,
    rules=settings.PAPER_RULES,
    series_options=PAPER_SERIES,
    law_options=PAPER_LAWS,
)
def plan(
    patients: Patients,
    num_days: int,
    *,
    u_max: int,
    queue: QueueModel = settings.PAPER_QUEUE,
    rules: BedRules = settings.PAPER_RULES,
    series_options: SeriesOptions = PAPER_SERIES,
    law_options: LawOptions = PAPER_LAWS,
) -> Plan:
    """Runs the whole pipeline; the defaults are the paper's.

    Example: `plan(patients, 730, u_max=384, queue=QueueModel(variant="fisk_mean", warmup="drop"))`.

    Args:
        patients: `[I, N]` patients; see `data.pooled_by_site`.
        num_days: length T of the daily series.
        u_max: static bound of S_max and of the lags of the queue, days.
        queue: how the laws are read and the census is taken, static like the others.
        rules: how much overflow is accepted.
        series_options: how rates and moments of the stay are estimated.
        law_options: candidate laws and how one is chosen.

    Returns:
        The plan. Take it in float64 (`with jax.enable_x64(True)`) when single beds matter. A site
        whose law cannot be fitted has choice -1, occupancy NaN and beds -1 for every risk.

    Raises:
        ValueError: from the parts, for shapes or names that do not fit.

    Source: arXiv:2510.02852.
    """
    series = estimate_series(patients, num_days, series_options)
    laws = estimate_laws(patients, law_options, u_max=u_max)
    return size_beds(series, laws, num_lags=u_max, queue=queue, rules=rules)


def compile_plan(
    patients: Patients,
    num_days: int,
    *,
    u_max: int,
    queue: QueueModel = settings.PAPER_QUEUE,
    rules: BedRules = settings.PAPER_RULES,
    series_options: SeriesOptions = PAPER_SERIES,
    law_options: LawOptions = PAPER_LAWS,
) -> Callable[[Patients], Plan]:
    """Compiles `plan` for patients of one shape as three programs, side by side.

    On two cores this starts in about half the time of one program, and further calls with the same
    shape run without compiling.

    Args:
        patients: `[I, N]` patients, or their `jax.ShapeDtypeStruct`; only shapes and dtypes count.
        num_days: length T of the daily series.
        u_max: static bound of S_max and of the lags of the queue, days.
        queue, rules, series_options, law_options: as in `plan`.

    Returns:
        `fn(patients) -> Plan`; call it under the same `jax.enable_x64` setting.
    """
    first = jax.jit(functools.partial(estimate_series, num_days=num_days, options=series_options))
    second = jax.jit(functools.partial(estimate_laws, options=law_options, u_max=u_max))
    third = jax.jit(functools.partial(size_beds, num_lags=u_max, queue=queue, rules=rules))
    series, laws = first.eval_shape(patients), second.eval_shape(patients)
    lowered = [second.lower(patients), first.lower(patients), third.lower(series, laws)]
    with futures.ThreadPoolExecutor() as pool:  # XLA compiles one program on one core
        laws_of, series_of, beds_of = pool.map(lambda program: program.compile(), lowered)
    return lambda patients: beds_of(series_of(patients), laws_of(patients))


def _completed(patients: Patients) -> Float[Array, "I N"]:
    return jax.vmap(lambda x, event, w: censoring.complete_stays(x, event, weight=w))(
        patients.los, patients.event, patients.weight
    )
