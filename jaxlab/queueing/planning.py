"""A planning study of one hospital's stays: bed counts, the census beside them, and intervals.

The pipeline in float64, on the host's arrays: what a notebook wants of it in two calls. Paper:
Akbari-Moghaddam et al. 2025, arXiv:2510.02852; the intervals are a bootstrap (Efron 1979).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.queueing import calibration, pipeline, settings
from jaxlab.queueing.arrivals import glm, rates
from jaxlab.queueing.data import daily, records
from jaxlab.queueing.data.records import Patients, Stays
from jaxlab.queueing.pipeline import Beds, Plan
from jaxlab.queueing.settings import BedRules, QueueModel

OWN_DATA = QueueModel(variant="fisk_mean", warmup="drop")
"""What a study of one's own data should take: laws that keep the mean stay, no empty unit."""
MIN_DAYS = 28
"""Least days of admissions: a weekly pattern needs four weeks."""
LEVEL = 0.95
"""Share of the bootstrap draws between the two ends of an interval."""


class Study(NamedTuple):
    """All that a planning study computed, on the host.

    Attributes:
        stays: the patients.
        plan: `pipeline.Plan` of NumPy arrays, float64.
        patients: padded patients that the plan was computed from, `[I, N]`.
        census: `[I, T]` observed census under the plan's convention, patients.
        u_max: static bound of the lags, days.
        queue: how the data were read.
        rules: how much overflow is accepted.
    """

    stays: Stays
    plan: Plan
    patients: Patients
    census: np.ndarray
    u_max: int
    queue: QueueModel
    rules: BedRules


class Interval(NamedTuple):
    """Ends of the interval of every bed count; NaN where too few draws have one.

    Attributes:
        low: `[S, I]` beds, rules as `rule_names`.
        high: `[S, I]` beds.
    """

    low: np.ndarray
    high: np.ndarray


def plan_study(
    stays: Stays, *, queue: QueueModel = OWN_DATA, rules: BedRules = settings.PAPER_RULES
) -> Study:
    """Runs the pipeline on a hospital's stays in float64, where no bed is decided by rounding.

    Example: `stays, rejects = read_stays("stays.csv")`, `study = plan_study(stays)`, then
    `study.plan.beds.risk[0]` are each site's beds for a 5 % overflow risk.

    Args:
        stays: the patients, see `read_stays`.
        queue: how the laws are read, when the census is taken, what comes before day 0.
        rules: how much overflow is accepted.

    Returns:
        The study.

    Raises:
        ValueError: if there are no stays, their admissions span fewer than `MIN_DAYS` days, a site
            allows no law to be fitted, its law has no mean to follow, or the warm-up "drop" leaves
            it no day; or on a setting that is unknown or out of range.

    Source: arXiv:2510.02852.
    """
    settings.check(queue, QueueModel)
    settings.check(rules, BedRules)
    rules = rules._replace(alphas=tuple(rules.alphas))  # a list has no hash
    if stays.num_sites == 0:
        raise ValueError("stays must hold at least one patient, got none; see the rejected rows")
    if stays.num_days < MIN_DAYS:
        raise ValueError(
            f"the admissions must span at least {MIN_DAYS} days, for a weekly pattern, got "
            f"{stays.num_days}"
        )
    most = np.bincount(stays.site, minlength=stays.num_sites).max()
    # Room for resampled patients too, so that the bootstrap runs the same program.
    patients = records.pooled_by_site(
        stays, multiple=calibration.patient_room(np.asarray([[most]]))
    )
    u_max = 64 * -(-int(np.ceil(stays.los.max())) // 64)
    with jax.enable_x64(True):
        census = np.asarray(
            _census(
                stays.day,
                stays.site,
                stays.los,
                stays.num_sites,
                stays.num_days,
                discharge_day=stays.discharge_day,
                convention=queue.convention,
            )
        )
        planner = _compiled(patients.los.shape, stays.num_days, u_max, queue, rules)
        plan = jax.device_get(planner(_on_device(patients)))
    if failed := _sites(stays, plan.laws.choice < 0):
        raise ValueError(f"no length-of-stay law could be fitted at {failed}; leave out the site")
    if failed := _sites(stays, np.isnan(plan.rho).any(axis=1)):
        raise ValueError(
            f"the log-logistic law fitted at {failed} has no mean (kappa <= 1), so it cannot "
            "follow the daily mean stay; take the variant fisk_paper"
        )
    if failed := _sites(stays, ~plan.mask.any(axis=1)):
        raise ValueError(
            f"the {stays.num_days} days of admissions must outlast the stays, got stays of up to "
            f"{plan.laws.smax.max()} days at {failed}: the warm-up 'drop' leaves no day to count "
            "beds on; take more days, or queue=QueueModel(warmup='backfill')"
        )
    return Study(stays, plan, patients, census, u_max, queue, rules)


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
    with jax.enable_x64(True):
        matrix = jnp.asarray(design.matrix)
        regress = jax.jit(jax.vmap(lambda counts: glm.poisson_glm(counts, matrix).mean))
        lam = regress(jnp.asarray(study.plan.series.daily.counts))
        patients = _on_device(study.patients)
        shape = patients.los.shape
        planner = _compiled(shape, stays.num_days, study.u_max, study.queue, study.rules)
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


_census = jax.jit(daily.observed_census, static_argnames=("num_sites", "num_days", "convention"))


@functools.lru_cache(maxsize=8)
def _compiled(
    shape: tuple[int, int], num_days: int, u_max: int, queue: QueueModel, rules: BedRules
) -> Callable[[Patients], Plan]:
    """Compiles the float64 pipeline for `[I, N]` patients; the plan and its draws share it."""
    day = jax.ShapeDtypeStruct(shape, jnp.int32)
    value = jax.ShapeDtypeStruct(shape, jnp.float64)
    patients = Patients(day, value, value, value)  # pyright: ignore[reportArgumentType]
    return pipeline.compile_plan(patients, num_days, u_max=u_max, queue=queue, rules=rules)


def _on_device(patients: Patients) -> Patients:
    return Patients(jnp.asarray(patients.day), *(jnp.asarray(x, jnp.float64) for x in patients[1:]))


def _sites(stays: Stays, chosen: np.ndarray) -> str:
    return ", ".join(stays.site_names[i] for i in np.flatnonzero(chosen))
