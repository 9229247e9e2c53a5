"""From stays to beds: the whole planning pipeline of arXiv:2510.02852 as one pure function.

stays -> rates, moments and laws (`estimates`) -> mean occupancy -> bed counts. All is traced, so
that a whole study can be jitted, mapped over bootstrap samples, and differentiated up to the
integer choices.
"""

import functools
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing import estimates, settings
from jaxlab.queueing.census import capacity, initial, occupancy
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.data import daily, windows
from jaxlab.queueing.data.records import Patients
from jaxlab.queueing.data.windows import Windows
from jaxlab.queueing.estimates import (
    PAPER_LAWS,
    PAPER_SERIES,
    LawEstimates,
    LawOptions,
    SeriesEstimates,
    SeriesOptions,
)
from jaxlab.queueing.settings import BedRules, QueueModel
from jaxlab.queueing.stays import conditional

ALPHAS = settings.PAPER_RULES.alphas
"""The paper's two overflow risks."""
_TAIL_STEPS = 24


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
        inputs: what drives the queue, by day or by hour: the estimates, with the mean stays of
            `queue_inputs`.
        rho: `[I, T]` mean occupancy, beds (`[I, 24 T]` by hour); NaN at a site without a law, and
            on days outside the site's own window.
        mask: likewise, days (or hours) that averages take in: the window, without the warm-up if
            that is dropped.
        beds: see `Beds`.
    """

    series: SeriesEstimates
    laws: LawEstimates
    inputs: QueueInputs
    rho: Float[Array, "I T"]
    mask: Bool[Array, "I T"]
    beds: Beds


def queue_inputs(
    series: SeriesEstimates,
    laws: LawEstimates,
    *,
    num_lags: int,
    queue: QueueModel = settings.PAPER_QUEUE,
    tail: settings.Tail = "cut",
) -> QueueInputs:
    """Puts the estimates together, with mean stays that the queue's law gives back.

    The queue sums S_max + 1 daily weights of a continuous law. With `tail="keep"`, and where
    stays are whole days, they sum to the mean stay over patients, so that the mean occupancy is
    admissions times mean stay (Little's law), for which three things are put right. A count of
    days begun ("ceil") is longer than the stay by delta = sum_u (S(u) - int_0^1 S(u + v) dv), about
    half a day, and whole-day stays give it back. What the law has beyond S_max is lost, so the mean
    is raised by a factor. And a mean of daily means is not the mean over patients.

    Args:
        series: rates and moments of the stay.
        laws: chosen laws.
        num_lags: static bound of S_max, days.
        queue: how the laws are read, static.
        tail: whether what S_max cuts off the mean is made up for, static.

    Returns:
        The inputs. A log-logistic law in a reading without the given mean is left as it is
        published.
    """
    settings.check(queue, QueueModel)
    inputs = QueueInputs(series.lam, series.mu, series.sig2, laws.kappa, laws.family, laws.smax)
    settings.check_name("tail", tail, settings.Tail)
    if laws.by_date is None and tail == "cut":
        return inputs
    return inputs._replace(mu=_matched_mean(series, laws, num_lags, queue, tail))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _matched_mean(
    series: SeriesEstimates,
    laws: LawEstimates,
    num_lags: int,
    queue: QueueModel,
    tail: settings.Tail,
) -> Float[Array, "I T"]:
    """Computes the mean stays of `queue_inputs` by a fixed point of factor and delta.

    What is cut off grows faster than the mean stay, so that it is averaged over two points that
    have the mean and the variance of the days' mean stays.
    """
    share = laws.by_date
    share = jnp.zeros_like(laws.mean_los) if share is None else share
    days = jnp.sum(series.inside, axis=1).astype(series.sig2.dtype)
    sig2 = jnp.sum(jnp.where(series.inside, series.sig2, 0.0), axis=1) / days
    total = jnp.sum(series.lam, axis=1)
    weight = series.lam / jnp.where(total > 0, total, 1.0)[:, None]
    by_day = jnp.sum(weight * series.mu, axis=1)
    by_day = jnp.where(by_day > 0, by_day, laws.mean_los)  # no admission at all
    spread = jnp.sqrt(jnp.sum(weight * (series.mu - by_day[:, None]) ** 2, axis=1)) / by_day
    begun = share if queue.convention == "ceil" else jnp.zeros_like(share)
    raised = jnp.ones_like(share, bool) if tail == "keep" else share > 0
    if queue.variant != "fisk_mean":
        raised &= laws.family != conditional.FAMILIES.index("fisk")

    def site(args):
        mean, spread, sig2, kappa, family, smax, begun, raised = args
        family, lags = jnp.maximum(family, 0), jnp.arange(num_lags + 1, dtype=jnp.int32)
        around = 1 + jnp.minimum(spread, 0.9) * jnp.asarray([-1.0, 1.0], mean.dtype)

        def counted(convention, means):
            def days(mean):
                surv_fn = conditional.law(
                    family, mean, sig2, kappa, variant=queue.variant, moments=queue.moments
                )
                weights = occupancy.census_weight(lags, surv_fn, convention)
                return jnp.sum(jnp.where(lags <= smax, weights, 0.0))

            return jnp.mean(jax.vmap(days)(means))

        def step(carry, _):
            scale, delta = carry
            stay = mean - begun * delta
            means = scale * jnp.maximum(mean * around - begun * delta, estimates.MIN_MEAN_LOS)
            if queue.convention == "ceil":
                lasts = counted("midnight", means)
                delta = counted("ceil", means) - lasts
            else:  # a stay touches a day more than it lasts
                lasts = counted(queue.convention, means) - float(queue.convention == "touch")
            scale = jnp.where(raised, jnp.minimum(scale * stay / lasts, 1e3), 1.0)
            return (scale, delta), None

        start = (jnp.ones_like(mean), jnp.full_like(mean, 0.5))
        (scale, delta), _ = jax.lax.scan(step, start, None, length=_TAIL_STEPS)
        return scale, begun * delta

    known = (laws.mean_los, spread, sig2, laws.kappa, laws.family, laws.smax, begun, raised)
    scale, delta = jax.lax.map(site, known)
    level = jnp.where(raised, laws.mean_los / by_day, 1.0)
    mu = series.mu * level[:, None] - delta[:, None]
    return jnp.maximum(mu, estimates.MIN_MEAN_LOS) * scale[:, None]


def size_beds(
    series: SeriesEstimates,
    laws: LawEstimates,
    *,
    num_lags: int,
    queue: QueueModel = settings.PAPER_QUEUE,
    rules: BedRules = settings.PAPER_RULES,
    tail: settings.Tail = "cut",
    own: Windows | None = None,
    ages: Int[Array, "I P"] | None = None,
) -> Plan:
    """Computes the mean occupancy of the estimated queue and sizes every site by every rule.

    Args:
        series: rates and moments of the stay.
        laws: chosen laws.
        num_lags: static bound of S_max, days.
        queue: how the laws are read and the census is taken, static.
        rules: how much overflow is accepted, static.
        tail: as in `queue_inputs`, static.
        own: `[I, 2]` int32 first and last day of each site's own window, as in `estimate_series`.
        ages: `[I, P]` int32 patients who were in bed when the window opened, see
            `data.initial_ages`; they add `initial.initial_mean`. With the warm-up "backfill" the
            made-up days stand for them.

    Raises:
        ValueError: on a setting that is unknown or out of range.

    Source: arXiv:2510.02852, mean occupancy and capacity rules.
    """
    daily_inputs = queue_inputs(series, laws, num_lags=num_lags, queue=queue, tail=tail)
    inputs, inside, num_lags = _in_bins(daily_inputs, series, num_lags, queue)
    num_steps, driven = inputs.lam.shape[1], inputs
    if own is not None:
        # On own days, so that the warm-up comes before the site's first; later days do not count.
        own = jnp.asarray(own, jnp.int32) * (num_steps // series.lam.shape[1])
        inside = windows.to_own_days(inside, own)
        lam, mu, sig2 = (
            windows.fill(windows.to_own_days(x, own), inside, days=occupancy.YEAR_DAYS)
            for x in inputs[:3]
        )
        driven = inputs._replace(lam=lam, mu=mu, sig2=sig2)
    rho = occupancy.occupancy_mean(*driven, num_lags=num_lags, queue=queue)
    if ages is not None and queue.warmup != "backfill":
        rho = rho + _initial_mean(ages, driven, queue)
    mask = inside & occupancy.warm_mask(num_steps, inputs.smax, queue.warmup)
    if own is not None:
        rho = jnp.where(inside, rho, jnp.nan)
        rho, mask = windows.to_calendar(rho, own), windows.to_calendar(mask, own)

    def site(rho, mask, lam, mu, inside):
        peak, naive_peak = capacity.beds_max(rho, mask), capacity.beds_naive_peak(lam, mu, inside)
        risk = capacity.beds_risk(rho, rules, mask)
        return risk, peak, naive_peak, capacity.beds_rule85(rho, mask=mask)

    found = jax.vmap(site)(rho, mask, series.lam, series.mu, series.inside)
    risk, peak, naive_peak, rule85 = found
    average = capacity.beds_average(series.rate, laws.mean_los)
    beds = Beds(average, risk.T, peak, naive_peak, rule85)
    return Plan(series, laws, inputs, rho, mask, beds)


def plan(
    patients: Patients,
    num_days: int,
    *,
    u_max: int,
    queue: QueueModel = settings.PAPER_QUEUE,
    rules: BedRules = settings.PAPER_RULES,
    series_options: SeriesOptions = PAPER_SERIES,
    law_options: LawOptions = PAPER_LAWS,
    bin: daily.Bin = "1d",
    tail: settings.Tail = "cut",
    own: Windows | None = None,
    ages: Int[Array, "I P"] | None = None,
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
        bin: step of the occupancy: "1h" spreads the day's arrivals over its hours as the patients'
            times of admission do, and shows the peaks within the day.
        tail: what becomes of the mean stay beyond S_max, see `queue_inputs`.
        own: `[I, 2]` int32 first and last day of each site's own window, at least 14 days; None is
            all days for all sites. Values, not static: one program for all windows.
        ages: `[I, P]` int32 patients in bed when the window opened, see `data.initial_ages`.

    Returns:
        The plan. Take it in float64 (`with jax.enable_x64(True)`) when single beds matter. A site
        whose law cannot be fitted has choice -1, occupancy NaN and beds -1 for every risk.

    Raises:
        ValueError: from the parts, for shapes or names that do not fit.

    Source: arXiv:2510.02852.
    """
    convention = queue.convention
    series = estimates.estimate_series(
        patients, num_days, series_options, own=own, bin=bin, convention=convention
    )
    laws = estimates.estimate_laws(patients, law_options, u_max=u_max, convention=convention)
    return size_beds(
        series, laws, num_lags=u_max, queue=queue, rules=rules, tail=tail, own=own, ages=ages
    )


def compile_plan(
    patients: Patients,
    num_days: int,
    *,
    u_max: int,
    queue: QueueModel = settings.PAPER_QUEUE,
    rules: BedRules = settings.PAPER_RULES,
    series_options: SeriesOptions = PAPER_SERIES,
    law_options: LawOptions = PAPER_LAWS,
    bin: daily.Bin = "1d",
    tail: settings.Tail = "cut",
    own: Windows | None = None,
    ages: Int[Array, "I P"] | None = None,
) -> Callable[..., Plan]:
    """Compiles `plan` for patients of one shape as three programs, side by side.

    On two cores this starts in about half the time of one program, and further calls with the same
    shape run without compiling.

    Args:
        patients: `[I, N]` patients, or their `jax.ShapeDtypeStruct`; only shapes and dtypes count.
        num_days: length T of the daily series.
        u_max: static bound of S_max and of the lags of the queue, days.
        queue, rules, series_options, law_options, bin, tail: as in `plan`.
        own, ages: as in `plan`; here too only shapes and dtypes count.

    Returns:
        `fn(patients, own=None, ages=None) -> Plan`, with `own` and `ages` where they were given
        here; call it under the same `jax.enable_x64` setting.
    """
    counted = {"convention": queue.convention}
    first = functools.partial(
        estimates.estimate_series, num_days=num_days, options=series_options, bin=bin, **counted
    )
    second = functools.partial(estimates.estimate_laws, options=law_options, u_max=u_max, **counted)
    third = functools.partial(size_beds, num_lags=u_max, queue=queue, rules=rules, tail=tail)
    first, second, third = (jax.jit(stage) for stage in (first, second, third))
    series, laws = first.eval_shape(patients, own=own), second.eval_shape(patients)
    lowered = [
        second.lower(patients),
        first.lower(patients, own=own),
        third.lower(series, laws, own=own, ages=ages),
    ]
    with futures.ThreadPoolExecutor() as pool:  # XLA compiles one program on one core
        laws_of, series_of, beds_of = pool.map(lambda program: program.compile(), lowered)

    def planner(patients: Patients, own: Windows | None = None, ages: Array | None = None) -> Plan:
        series, laws = series_of(patients, own=own), laws_of(patients)
        return beds_of(series, laws, own=own, ages=ages)

    return planner


def _in_bins(inputs: QueueInputs, series: SeriesEstimates, num_lags: int, queue: QueueModel):
    """Returns inputs, days of the windows and bound of the lags in steps of a day or of an hour."""
    if series.profile is None:
        return inputs, series.inside, num_lags
    if queue.warmup == "backfill":
        raise ValueError(
            "bin='1h' has no days before day 0 to make up, got the warm-up 'backfill'; take 'drop' "
            "or 'zero'"
        )
    num_sites, num_days = inputs.lam.shape
    lam = (inputs.lam[:, :, None] * series.profile[:, None]).reshape(num_sites, 24 * num_days)
    mu, sig2, inside = (jnp.repeat(x, 24, axis=1) for x in (inputs.mu, inputs.sig2, series.inside))
    hourly = QueueInputs(lam, 24 * mu, 576 * sig2, *inputs[3:5], 24 * inputs.smax + 23)
    return hourly, inside, 24 * num_lags + 23


@functools.partial(jax.jit, static_argnums=2)
def _initial_mean(ages, inputs: QueueInputs, queue: QueueModel) -> Float[Array, "I T"]:
    """Computes the mean occupancy by patients of before day 0, under the law of day 0."""
    days = jnp.arange(inputs.lam.shape[1], dtype=jnp.int32)

    def site(args):
        ages, mu, sig2, kappa, family = args
        surv_fn = conditional.law(
            jnp.maximum(family, 0),
            mu[0],
            sig2[0],
            kappa,
            variant=queue.variant,
            moments=queue.moments,
        )
        return initial.initial_mean(ages, days, surv_fn, convention=queue.convention)

    return jax.lax.map(site, (jnp.asarray(ages), inputs.mu, inputs.sig2, *inputs[3:5]))
