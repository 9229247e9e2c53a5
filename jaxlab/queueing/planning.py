"""A planning study of one hospital's stays: bed counts, the census beside them, and intervals.

The pipeline in float64, on the host's arrays: what a notebook wants of it in two calls. Paper:
Akbari-Moghaddam et al. 2025, arXiv:2510.02852; the intervals are a bootstrap (Efron 1979).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.queueing import calibration, pipeline, scenario, settings
from jaxlab.queueing.arrivals import glm, rates
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.data import daily, records
from jaxlab.queueing.data.records import Patients, Stays
from jaxlab.queueing.pipeline import Beds, Plan
from jaxlab.queueing.scenario import BedModel
from jaxlab.queueing.settings import BedRules, QueueModel
from jaxlab.queueing.stays import conditional

OWN_DATA = QueueModel(variant="fisk_mean", warmup="drop")
"""What a study of one's own data should take: laws that keep the mean stay, no empty unit."""
MIN_DAYS = 28
"""Least days of admissions: a weekly pattern needs four weeks."""
LEVEL = 0.95
"""Share of the bootstrap draws between the two ends of an interval."""


class Truncation(NamedTuple):
    """What the laws have beyond S_max: warn of it, or take `plan_study(..., tail="keep")`.

    Attributes:
        stays: `[I]` mean over patients of S(S_max), the share of the stays that last longer.
        mean: `[I]` share of the mean stay, and so of the mean occupancy, that a cut there loses.
        kept: `[I]` True where the plan's mean stays make up for it.
    """

    stays: np.ndarray
    mean: np.ndarray
    kept: np.ndarray


class Study(NamedTuple):
    """All that a planning study computed, on the host.

    Attributes:
        stays: the patients.
        plan: `pipeline.Plan` of NumPy arrays, float64.
        patients: padded patients that the plan was computed from, `[I, N]`.
        census: `[I, T]` observed census under the plan's convention, patients; `[I, 24 T]` by
            hour. NaN outside a site's own window.
        u_max: static bound of the lags, days.
        queue: how the data were read.
        rules: how much overflow is accepted.
        ages: `[I, P]` patients in bed when the window opened, see `data.initial_ages`, or None.
        truncation: what the laws have beyond S_max.
        bin: step of occupancy and census.
        tail: what became of the mean stay beyond S_max.
    """

    stays: Stays
    plan: Plan
    patients: Patients
    census: np.ndarray
    u_max: int
    queue: QueueModel
    rules: BedRules
    ages: np.ndarray | None
    truncation: Truncation
    bin: daily.Bin = "1d"
    tail: settings.Tail = "cut"


class Interval(NamedTuple):
    """Ends of the interval of every bed count; NaN where too few draws have one.

    Attributes:
        low: `[S, I]` beds, rules as `rule_names`.
        high: `[S, I]` beds.
    """

    low: np.ndarray
    high: np.ndarray


def plan_study(
    stays: Stays,
    *,
    queue: QueueModel = OWN_DATA,
    rules: BedRules = settings.PAPER_RULES,
    bin: daily.Bin = "1d",
    tail: settings.Tail = "cut",
) -> Study:
    """Runs the pipeline on a hospital's stays in float64, where no bed is decided by rounding.

    Each site is planned over its own window, `stays.windows`. Stays `by_date` are fitted as what
    they are, counts of days, and patients who were in bed when the window opened stay on by the
    law of the stay, given how long they had been there.

    Example: `stays, rejects = read_stays("stays.csv")`, `study = plan_study(stays)`, then
    `study.plan.beds.risk[0]` are each site's beds for a 5 % overflow risk.

    Args:
        stays: the patients, see `read_stays`.
        queue: how the laws are read, when the census is taken, what comes before day 0.
        rules: how much overflow is accepted.
        bin: "1h" computes occupancy, census and risks by the hour, from times of admission.
        tail: "keep" makes up for what S_max cuts off the mean stay (`Study.truncation`); stays of
            whole days are always made up for, see `pipeline.queue_inputs`.

    Returns:
        The study.

    Raises:
        ValueError: if there are no stays, the window of a site has fewer than `MIN_DAYS` days, a
            site allows no law to be fitted, its law has no mean to follow, or the warm-up "drop"
            leaves it no day; if hours are asked for without times of admission; or on a setting
            that is unknown or out of range.

    Source: arXiv:2510.02852.
    """
    settings.check(queue, QueueModel)
    settings.check(rules, BedRules)
    settings.check_name("bin", bin, daily.Bin)
    settings.check_name("tail", tail, settings.Tail)
    if not 0.0 < rules.gamma <= 1.0:
        raise ValueError(
            f"gamma must be a share of the beds in (0, 1], got {rules.gamma}; 0.85 counts a day as "
            "overflow when 85 % of the beds are taken"
        )
    rules = rules._replace(alphas=tuple(rules.alphas))  # a list has no hash
    if stays.num_sites == 0:
        raise ValueError("stays must hold at least one patient, got none; see the rejected rows")
    if stays.num_days < MIN_DAYS:
        raise ValueError(
            f"the admissions must span at least {MIN_DAYS} days, for a weekly pattern, got "
            f"{stays.num_days}"
        )
    days = stays.windows[:, 1] - stays.windows[:, 0] + 1
    if failed := _sites(stays, days < MIN_DAYS):
        raise ValueError(
            f"the window of each site must have at least {MIN_DAYS} days, for a weekly pattern, "
            f"got {days.min()} at {failed}; leave out the site or give all sites one window"
        )
    most = np.bincount(stays.site, minlength=stays.num_sites).max()
    # Room for resampled patients too, so that the bootstrap runs the same program.
    patients = records.pooled_by_site(
        stays, multiple=calibration.patient_room(np.asarray([[most]])), times=bin == "1h"
    )
    u_max = 64 * -(-max(int(np.ceil(stays.los.max())), 1) // 64)
    ages = records.initial_ages(stays, hourly=bin == "1h")
    with jax.enable_x64(True):
        planner = _planner(patients, stays, u_max, ages, bin, tail, queue, rules)
        plan = jax.device_get(planner(_on_device(patients)))
    if failed := _sites(stays, plan.laws.choice < 0):
        raise ValueError(f"no length-of-stay law could be fitted at {failed}; leave out the site")
    inside = _steps(plan.series.inside, bin)
    if failed := _sites(stays, (np.isnan(plan.rho) & inside).any(axis=1)):
        raise ValueError(
            f"the log-logistic law fitted at {failed} has no mean (kappa <= 1), so it cannot "
            "follow the daily mean stay; take the variant fisk_paper"
        )
    if failed := _sites(stays, all_warm_up := ~plan.mask.any(axis=1)):
        raise ValueError(
            f"the {days[all_warm_up].max()} days of admissions must outlast the stays, got stays "
            f"of up to {plan.laws.smax.max()} days at {failed}: the warm-up 'drop' leaves no day "
            "to count beds on; take more days, or queue=QueueModel(warmup='backfill')"
        )
    census = np.where(inside, observed(stays, queue.convention, bin=bin), np.nan)
    truncation = _truncation(plan, queue, tail)
    return Study(
        stays, plan, patients, census, u_max, queue, rules, ages, truncation, bin=bin, tail=tail
    )


def observed(
    stays: Stays, convention: settings.Convention = "ceil", *, bin: daily.Bin = "1d"
) -> np.ndarray:
    """Counts the patients in bed on each day, or in each hour, as the model of `plan_study` does.

    Known times of admission are used where the convention asks for them. Under "ceil" a stay whose
    length is known counts its days begun, one known by its dates those from admission up to, not
    including, discharge, and one at least.

    Args:
        stays: the patients.
        convention: when the census is taken.
        bin: "1h" needs times of admission of all stays.

    Returns:
        `[I, T]` float64 patients, `[I, 24 T]` by hour.
    """
    los, discharge = stays.los, stays.discharge_day
    if convention == "ceil":
        los = np.where(stays.by_date, np.maximum(los, 1.0), los)
        later = np.maximum(discharge, stays.day + 1)
        discharge = np.where(stays.by_date & (discharge >= 0), later, -1)
    discharge = np.where(np.isnan(stays.offset), discharge, -1).astype(np.int32)
    with jax.enable_x64(True):
        census = _census(
            stays.day,
            stays.site,
            los,
            stays.num_sites,
            stays.num_days,
            discharge_day=discharge,
            convention=convention,
            offset=stays.offset,
            bin=bin,
        )
    return np.asarray(census)


def bootstrap(key: Array, study: Study, *, num_repeats: int) -> Interval:
    """Draws the unit again, plans for every draw, and returns the interval of every bed count.

    Example: `interval = bootstrap(jax.random.key(1), study, num_repeats=100)`.

    Args:
        key: PRNG key of all draws.
        study: the study.
        num_repeats: draws, at least 2; a run of the whole pipeline each.

    Raises:
        ValueError: if `num_repeats` is below 2.
    """
    if num_repeats < 2:
        raise ValueError(f"num_repeats must be at least 2, got {num_repeats}")
    return interval_of(bootstrap_beds(jax.random.split(key, num_repeats), study))


def bootstrap_beds(keys: Array, study: Study) -> np.ndarray:
    """Returns the beds `[R, S, I]` of R draws of the unit, one for each key: int32.

    Arrivals are drawn from a Poisson regression of the admissions (trend, annual harmonics, day of
    week), stays from the site's own patients, each with its censoring; the whole pipeline runs on
    each draw. A long bootstrap may be computed in blocks of keys.

    Args:
        keys: `[R]` PRNG keys.
        study: the study.

    Raises:
        RuntimeError: if a draw has more patients than there is room for, which the seven standard
            deviations of `calibration.patient_room` rule out.
    """
    stays = study.stays
    years = stays.num_days / 365.25
    design = rates.rate_design(
        stays.num_days,
        start_weekday=stays.origin.weekday(),
        trend="linear" if years >= 1 else "none",
        harmonics=2 if years >= 2 else 1 if years >= 1 else 0,
    )
    inside = study.plan.series.inside
    # A site with less than a year, or two, of its own has no trend or harmonics to be told apart.
    needed = np.array([_years_needed(name) for name in design.names])
    too_short = inside.sum(axis=1)[:, None] < 365.25 * needed
    with jax.enable_x64(True):
        matrix = jnp.asarray(design.matrix)

        def regress(counts, inside, held):
            fitted = glm.poisson_glm(
                counts,
                jnp.where(held[None], 0.0, matrix),
                penalty=held.astype(matrix.dtype),
                weight=inside.astype(matrix.dtype),
            )
            return jnp.where(inside, fitted.mean, 0.0)

        known = (jnp.asarray(x) for x in (study.plan.series.daily.counts, inside, too_short))
        lam = jax.jit(jax.vmap(regress))(*known)
        patients = _on_device(study.patients)
        shape = patients.los.shape
        settled = (study.ages, study.bin, study.tail, study.queue, study.rules)
        planner = _planner(study.patients, stays, study.u_max, *settled)
        resample = jax.jit(functools.partial(calibration.resample_stays, room=shape[1]))
        beds = []
        for key in keys:
            drawn, overflow = resample(key, lam, patients)
            if np.any(overflow):
                raise RuntimeError(f"a bootstrap draw exceeded the room for {shape[1]} patients")
            beds.append(stack_rules(jax.device_get(planner(drawn).beds)))
    return np.stack(beds)


def interval_of(beds: np.ndarray) -> Interval:
    """Returns the middle 95 % of bed counts over draws.

    A draw whose law could not be fitted at a site counts for no rule there; NaN where half of the
    draws or more are such.

    Args:
        beds: `[R, S, I]` of `bootstrap_beds`; -1 where there is no count.
    """
    counts = np.where(beds.min(axis=1, keepdims=True) < 0, np.nan, beds.astype(float))
    usable = np.isfinite(counts).mean(axis=0) > 0.5
    ends = [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]
    low, high = np.nanquantile(np.where(usable, counts, 0.0), ends, axis=0)
    return Interval(np.where(usable, low, np.nan), np.where(usable, high, np.nan))


def stack_rules(beds: Beds) -> np.ndarray:
    """Returns the bed counts as `[S, I]`, rules in the order of `rule_names`."""
    return np.stack([beds.average, *beds.risk, beds.peak, beds.rule85])


def rule_names(rules: BedRules = settings.PAPER_RULES) -> tuple[str, ...]:
    """Returns the names of the S bed rules: "average", "5 % risk", ..., "peak", "85 % rule"."""
    return ("average", *(f"{100 * alpha:g} % risk" for alpha in rules.alphas), "peak", "85 % rule")


_census = jax.jit(
    daily.observed_census, static_argnames=("num_sites", "num_days", "convention", "bin")
)


def _planner(
    patients: Patients,
    stays: Stays,
    u_max: int,
    ages: np.ndarray | None,
    bin: daily.Bin,
    tail: settings.Tail,
    queue: QueueModel,
    rules: BedRules,
) -> Callable[[Patients], Plan]:
    """Returns the compiled pipeline, with the windows of the sites and their initial patients."""
    shared = np.array_equal(stays.windows, records.one_window(stays.num_sites, stays.num_days))
    given = {"own": None if shared else stays.windows, "ages": ages}
    given = {name: jnp.asarray(x, jnp.int32) for name, x in given.items() if x is not None}
    planner = _compiled(
        jax.tree.structure(patients),
        patients.los.shape,
        stays.num_days,
        u_max,
        tuple((name, x.shape) for name, x in given.items()),
        bin,
        tail,
        queue,
        rules,
    )
    return functools.partial(planner, **given)


@functools.lru_cache(maxsize=8)
def _compiled(
    structure: Any,
    shape: tuple[int, int],
    num_days: int,
    u_max: int,
    given: tuple[tuple[str, tuple[int, ...]], ...],
    bin: daily.Bin,
    tail: settings.Tail,
    queue: QueueModel,
    rules: BedRules,
) -> Callable[..., Plan]:
    """Compiles the float64 pipeline for `[I, N]` patients; the plan and its draws share it."""
    patients = jax.tree.unflatten(structure, [np.zeros(shape)] * structure.num_leaves)
    patients = jax.eval_shape(_on_device, patients)
    values: dict[str, Any] = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in given}
    return pipeline.compile_plan(
        patients, num_days, u_max=u_max, queue=queue, rules=rules, bin=bin, tail=tail, **values
    )


def _on_device(patients: Patients) -> Patients:
    rest = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), patients[1:])
    return Patients(jnp.asarray(patients.day, jnp.int32), *rest)


def _truncation(plan: Plan, queue: QueueModel, tail: settings.Tail) -> Truncation:
    """Says what a cut at S_max loses of the mean stays that the data have."""
    inputs = QueueInputs(*plan.series[3:6], *plan.laws[2:5])
    model = BedModel(queue=queue)
    with jax.enable_x64(True):
        stays = np.asarray(scenario.truncated_share(inputs, model))
        mean = np.asarray(scenario.truncated_mean(inputs, model))
    published = queue.variant != "fisk_mean"
    reading = published & (plan.laws.family == conditional.FAMILIES.index("fisk"))
    by_date = 0.0 if plan.laws.by_date is None else plan.laws.by_date
    kept = ((tail == "keep") | (by_date > 0)) & ~reading
    return Truncation(stays, mean, np.broadcast_to(kept, mean.shape))


def _steps(days: np.ndarray, bin: daily.Bin) -> np.ndarray:
    return np.repeat(days, daily.BINS[bin], axis=1)


def _years_needed(column: str) -> int:
    """Returns how many years of its own a site needs for a column of `rates.rate_design`."""
    return 2 if column in ("cos2", "sin2") else 1 if column in ("year", "cos1", "sin1") else 0


def _sites(stays: Stays, chosen: np.ndarray) -> str:
    return ", ".join(stays.site_names[i] for i in np.flatnonzero(chosen))
