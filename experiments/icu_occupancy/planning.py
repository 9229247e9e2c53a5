"""A planning study of one hospital's stays: from the CSV to bed counts with intervals."""

import functools
import hashlib
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.harness.result import Figure
from experiments.icu_occupancy import figures
from jaxlab import queueing as q
from jaxlab.core import logging, loop, sharding
from jaxlab.queueing.data import reading

RULES = ("average", "5 % risk", "1 % risk", "peak", "85 % rule")
"""Bed rules in the order of `stack_rules`."""
REPLICATIONS_PER_STEP = 1024
NUM_BLOCKS = 4
"""Parts of a step: up to four devices share them, and their number does not change the draws."""


class Options(NamedTuple):
    """How the study reads the data; the names are those of `jaxlab.queueing.plan`."""

    variant: str
    convention: str
    warmup: str
    gamma: float


class Study(NamedTuple):
    """Everything the study computed, on the host.

    Attributes:
        stays: the patients.
        plan: `jaxlab.queueing.Plan` of numpy arrays, float64.
        patients: padded patients the plan was computed from.
        census: `[I, T]` observed census under the plan's convention.
        u_max: static bound of the lags.
        options: how the data were read.
    """

    stays: q.Stays
    plan: q.Plan
    patients: q.Patients
    census: np.ndarray
    u_max: int
    options: Options


def plan_study(stays: q.Stays, options: Options) -> Study:
    """Runs the pipeline in float64, where no bed is decided by rounding."""
    if stays.num_sites == 0:
        raise ValueError("no usable stays: every row was rejected")
    if stays.num_days < 28:
        raise ValueError(
            f"the admissions span {stays.num_days} days; a weekly pattern needs 28 at least"
        )
    expected = np.bincount(stays.site, minlength=stays.num_sites).max()
    # Room for resampled patients too, so that the bootstrap runs the same program.
    room = q.patient_room(np.asarray([[expected]]))
    patients = q.pooled_by_site(stays, multiple=room)
    u_max = _round_up(int(np.ceil(stays.los.max())), 64)
    with jax.enable_x64(True):
        census = np.asarray(
            q.observed_census(
                stays.day,
                stays.site,
                stays.los,
                stays.num_sites,
                stays.num_days,
                discharge_day=stays.discharge_day,
                convention=options.convention,
            )
        )
        plan = jax.device_get(
            planner(patients.los.shape, stays.num_days, u_max, options)(_on_device(patients))
        )
    if (plan.laws.choice < 0).any():
        failed = [stays.site_names[i] for i in np.flatnonzero(plan.laws.choice < 0)]
        raise ValueError(f"no length-of-stay law could be fitted at {', '.join(failed)}")
    if np.isnan(plan.rho).any():
        failed = [stays.site_names[i] for i in np.flatnonzero(np.isnan(plan.rho).any(axis=1))]
        raise ValueError(
            f"the log-logistic law fitted at {', '.join(failed)} has no mean (kappa <= 1), so it "
            "cannot follow the daily mean stay; use --variant fisk_paper"
        )
    return Study(stays, plan, patients, census, u_max, options)


@functools.cache
def planner(
    shape: tuple[int, int], num_days: int, u_max: int, options: Options
) -> Callable[[q.Patients], q.Plan]:
    """The compiled pipeline for `[sites, patients]` of one shape, float64."""
    day = jax.ShapeDtypeStruct(shape, jnp.int32)
    value = jax.ShapeDtypeStruct(shape, jnp.float64)
    return q.compile_plan(
        q.Patients(day, value, value, value), num_days, u_max=u_max, bed_options=options._asdict()
    )


def simulate(study: Study, out: pathlib.Path, *, seed: int, replications: int) -> q.SimSummary:
    """Simulates patient by patient through the training loop, so that a killed run goes on."""
    inputs = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if np.issubdtype(x.dtype, np.floating) else jnp.int32),
        study.plan.inputs,
    )
    num_devices = math.gcd(NUM_BLOCKS, jax.device_count())
    mesh = sharding.make_mesh({"data": num_devices}) if num_devices > 1 else None
    algorithm = q.make_monte_carlo(
        inputs,
        beds=jnp.asarray(threshold(stack_rules(study.plan.beds), study.options.gamma).T),
        replications_per_step=REPLICATIONS_PER_STEP,
        num_blocks=NUM_BLOCKS,
        mesh=mesh,
        num_lags=_round_up(int(inputs.smax.max()), 64),
        convention=study.options.convention,
        variant=study.options.variant,
        warmup=study.options.warmup,
        hist_size=max(128, _round_up(int(3 * study.plan.rho.max()) + 32, 64)),
    )
    num_steps = -(-replications // REPLICATIONS_PER_STEP)
    result = loop.run(
        algorithm,
        jax.random.key(seed),
        num_steps=num_steps,
        chunk_size=1,
        directory=out,
        config={"seed": seed, "inputs": _digest(study.plan.inputs)},
        log=[logging.console(num_steps, title="Monte Carlo")],
        state_sharding=None if mesh is None else sharding.replicated(mesh),
    )
    summary = jax.device_get(jax.jit(q.summarize)(result.state))
    if summary.invalid or summary.hist_overflow.any():
        raise RuntimeError(
            f"simulation incomplete: {summary.invalid} invalid cells, share beyond the histogram "
            f"{summary.hist_overflow}"
        )
    return summary


def bootstrap(study: Study, *, seed: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap of every bed count: `(low, high)`, each `[rule, site]`, 95 %.

    Arrivals are drawn from a Poisson regression of the admissions (trend, annual harmonics, day of
    week), stays from the site's own patients; the whole pipeline is run on each draw. NaN for a
    site where half of the draws or more allow no law to be fitted.
    """
    stays = study.stays
    years = stays.num_days / 365.25
    design = q.rate_design(
        stays.num_days,
        start_weekday=stays.origin.weekday(),
        trend="linear" if years >= 1 else "none",
        harmonics=2 if years >= 2 else 1 if years >= 1 else 0,
        weekday=stays.num_days >= 28,
    )
    with jax.enable_x64(True):
        lam = jax.vmap(lambda n: q.poisson_glm(n, jnp.asarray(design.matrix)).mean)(
            jnp.asarray(study.plan.series.daily.counts)
        )
        patients = _on_device(study.patients)
        shape = patients.los.shape
        run = planner(shape, stays.num_days, study.u_max, study.options)
        resample = jax.jit(functools.partial(q.resample_stays, room=shape[1]))
        counts = []
        for key in jax.random.split(jax.random.key(seed), repeats):
            drawn, overflow = resample(key, lam, patients)
            if np.any(overflow):
                raise RuntimeError(f"a bootstrap draw exceeded the room for {shape[1]} patients")
            counts.append(stack_rules(run(drawn).beds))
    counts = np.where(np.min(counts, axis=1, keepdims=True) < 0, np.nan, np.asarray(counts, float))
    usable = np.isfinite(counts).mean(axis=0) > 0.5
    low, high = np.nanquantile(np.where(usable, counts, 0.0), [0.025, 0.975], axis=0)
    return np.where(usable, low, np.nan), np.where(usable, high, np.nan)


def threshold(beds: np.ndarray, gamma: float) -> np.ndarray:
    """The census above which a day counts as overflow: floor(gamma beds), int32."""
    return (np.asarray(beds, np.int64) * round(gamma * 10**6) // 10**6).astype(np.int32)


def stack_rules(beds: q.Beds) -> np.ndarray:
    """Bed counts as `[rule, site]`, in the order of `RULES`."""
    return np.stack([beds.average, beds.risk[0], beds.risk[1], beds.peak, beds.rule85])


def draw_figures(
    study: Study,
    summary: q.SimSummary,
    interval: tuple[np.ndarray, np.ndarray],
    out: pathlib.Path,
    *,
    actual: tuple[int, ...] = (),
    prefix: str = "",
) -> tuple[Figure, ...]:
    """Draws the six pictures of a planning study into `out`."""
    stays, plan, series = study.stays, study.plan, study.plan.series
    dates = reading.dates(stays.origin, stays.num_days)
    busiest = int(np.argmax(series.rate))
    parts = series.arrivals.result
    names = stays.site_names
    files = {
        key: f"{prefix}{key}.png"
        for key in ("decomposition", "survival", "occupancy", "risk", "beds")
    }
    figures.decomposition(
        out / files["decomposition"],
        dates,
        series.daily.counts[busiest],
        np.maximum(parts.trend[busiest], 0),
        parts.seasonal[busiest],
        parts.resid[busiest],
        title=f"{names[busiest]}: daily admissions",
    )
    observed, fitted = _survival_curves(study)
    chosen = [q.FAMILIES[code] for code in plan.laws.family]
    figures.survival_fits(out / files["survival"], names, observed, fitted, chosen)
    low, high = scipy.stats.poisson.ppf(np.array([0.05, 0.95])[:, None, None], plan.rho)
    lines = [
        {"beds for 5 % risk": int(plan.beds.risk[0, i])}
        | ({"beds today": actual[i]} if actual else {})
        for i in range(stays.num_sites)
    ]
    figures.occupancy(
        out / files["occupancy"], dates, names, plan.rho, low, high, study.census, lines
    )
    curves = [_risk_curve(study, i) for i in range(stays.num_sites)]
    counts = stack_rules(plan.beds)
    figures.overflow_risk(
        out / files["risk"],
        names,
        [beds for beds, _ in curves],
        [risk for _, risk in curves],
        [(counts[:, i], summary.exceed[i], summary.exceed_se[i]) for i in range(stays.num_sites)],
        q.ALPHAS,
    )
    figures.bed_counts(
        out / files["beds"],
        names,
        RULES,
        counts,
        *interval,
        marks=np.asarray(actual, float)[None] if actual else (),
        mark_label="beds today",
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


def _digest(inputs: q.QueueInputs) -> str:
    """Identifies the simulated queue, so that a resumed run cannot mix two data sets."""
    parts = b"".join(np.ascontiguousarray(np.round(x, 6)).tobytes() for x in inputs)
    return hashlib.sha256(parts).hexdigest()


def _on_device(patients: q.Patients) -> q.Patients:
    return q.Patients(
        jnp.asarray(patients.day), *(jnp.asarray(x, jnp.float64) for x in patients[1:])
    )


def _survival_curves(study: Study) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]]]:
    """Kaplan-Meier and every fitted law of each site, up to where a few patients are left."""
    days = jnp.arange(study.u_max + 1, dtype=jnp.float32)

    def site(patients, params):
        km = q.kaplan_meier(patients.los, patients.event, days, weight=patients.weight)
        laws = [
            q.los.sf(family, days, q.LOSParams(params.shape[f], params.scale[f]))
            for f, family in enumerate(q.FAMILIES_DEFAULT)
        ]
        return km, jnp.stack(laws)

    as_float32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    km, laws = jax.device_get(
        jax.jit(jax.vmap(site))(
            jax.tree.map(as_float32, study.patients),
            jax.tree.map(as_float32, study.plan.laws.fits.params),
        )
    )
    last = np.maximum(2 * study.plan.laws.smax // 3, 10) + 1
    observed = [curve[:end] for curve, end in zip(km, last, strict=True)]
    fitted = [
        dict(zip(q.FAMILIES_DEFAULT, curves[:, :end], strict=True))
        for curves, end in zip(laws, last, strict=True)
    ]
    return observed, fitted


def _risk_curve(study: Study, site: int) -> tuple[np.ndarray, np.ndarray]:
    """Average daily overflow risk against beds."""
    rho = study.plan.rho[site][study.plan.mask[site]]
    beds = np.arange(int(0.5 * rho.mean()), int(3 * rho.max()) + 16)
    full = threshold(beds, study.options.gamma)
    risk = scipy.stats.poisson.sf(full[:, None], rho[None]).mean(axis=1)
    return beds[risk > 5e-5], risk[risk > 5e-5]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
