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

from experiments.icu_occupancy import figures
from experiments.result import Figure, Row, Table
from jaxlab import queueing as q
from jaxlab.core import logging, loop, sharding

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
                stays.day, stays.site, stays.los, stays.num_sites, stays.num_days,
                discharge_day=stays.discharge_day, convention=options.convention,
            )
        )  # fmt: skip
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
        q.Patients(day, value, value, value),
        num_days,
        u_max=u_max,
        bed_options=options._asdict(),
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
    dates = q.data.dates(stays.origin, stays.num_days)
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
        out / files["beds"], names, RULES, counts, *interval,
        marks=np.asarray(actual, float)[None] if actual else (), mark_label="beds today",
    )  # fmt: skip
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


def bed_table(
    study: Study,
    interval: tuple[np.ndarray, np.ndarray],
    repeats: int,
    actual: tuple[int, ...],
    title: str,
) -> Table:
    """Beds by site and rule with intervals."""
    low, high = interval
    counts = stack_rules(study.plan.beds)
    rate, stay = study.plan.series.rate, study.plan.laws.mean_los

    def with_interval(r: int, i: int) -> str:
        if np.isnan(low[r, i]):
            return f"{counts[r, i]} (no interval)"
        return f"{counts[r, i]} ({low[r, i]:.0f}–{high[r, i]:.0f})"

    rows = [
        (
            name,
            *((actual[i],) if actual else ()),
            *(with_interval(r, i) for r in range(len(RULES))),
            round(float(rate[i]), 2),
            round(float(stay[i]), 1),
        )
        for i, name in enumerate(study.stays.site_names)
    ]
    total = (
        "All sites",
        *((sum(actual),) if actual else ()),
        *map(str, counts.sum(axis=1)),
        round(float(rate.sum()), 2),
        round(float(np.average(stay, weights=rate)), 1),
    )
    gamma = study.options.gamma
    full = "their beds" if gamma == 1 else f"{gamma:.0%} of their beds"
    return Table(
        title,
        (
            "Site",
            *(("Beds today",) if actual else ()),
            *(rule[0].upper() + rule[1:] for rule in RULES),
            "Admissions / day",
            "Mean stay, days",
        ),
        (*rows, total),
        f"In brackets the middle 95 % of {repeats} runs of the whole pipeline on resampled "
        "patients. Average: mean occupancy plus its square root. Risk: the share of days on which "
        f"more patients want a bed than {full}. Peak: highest mean occupancy plus its square root. "
        "85 % rule: mean occupancy / 0.85.",
    )


def law_table(study: Study, title: str) -> Table:
    """Goodness of fit of every law at every site, the chosen one marked."""
    fits = study.plan.laws.fits
    rows = []
    for i, name in enumerate(study.stays.site_names):
        for f, family in enumerate(q.FAMILIES_DEFAULT):
            mark = " ✓" if f == study.plan.laws.choice[i] else ""
            rows.append(
                (
                    name,
                    family + mark,
                    *(float(f"{getattr(fits, key)[i, f]:.4g}") for key in ("rmse", "aic", "ks")),
                    int(fits.smax[i, f]),
                )
            )
    return Table(
        title,
        ("Site", "Law", "RMSE of survival", "AIC", "KS distance", "S_max, days"),
        tuple(rows),
        "✓: smallest root-mean-square distance to the Kaplan–Meier curve, the paper's criterion.",
    )


def utilization_table(study: Study, summary: q.SimSummary, title: str) -> Table:
    """What each rule would have meant: utilization by the census, overflow by simulation."""
    counts = stack_rules(study.plan.beds)
    rows = []
    for i, name in enumerate(study.stays.site_names):
        for r, rule in enumerate(RULES):
            metrics = q.utilization_metrics(
                jnp.asarray(study.census[i]),
                int(counts[r, i]),
                mask=jnp.asarray(study.plan.mask[i]),
            )
            rows.append(
                (
                    name,
                    rule,
                    int(counts[r, i]),
                    f"{metrics.mean:.1f} ({metrics.sd:.1f})",
                    round(float(metrics.pct_over), 1),
                    round(float(metrics.pct_under), 1),
                    round(100 * float(summary.exceed[i, r]), 1),
                    round(float(summary.episode_days[i, r]), 1),
                )
            )
    return Table(
        title,
        (
            "Site", "Rule", "Beds", "Utilization %, mean (SD)", "Days over 100 %, % observed",
            "Days under 70 %, % observed", "Days over 100 %, % simulated", "Days an overflow lasts",
        ),
        tuple(rows),
        "Observed: the census of the data. Simulated: patient-level Monte Carlo of unconstrained "
        f"demand, {int(summary.replications):,} replications.",
    )  # fmt: skip


def fit_table(study: Study, title: str) -> Table:
    """How well the model describes the observed census."""
    rows = []
    for i, name in enumerate(study.stays.site_names):
        mask = study.plan.mask[i]
        rho, census = study.plan.rho[i][mask], study.census[i][mask]
        low, high = scipy.stats.poisson.ppf(np.array([0.05, 0.95])[:, None], rho)
        rows.append(
            (
                name,
                round(float(census.mean()), 2),
                round(float(rho.mean()), 2),
                round(float(np.sqrt(np.mean((census - rho) ** 2))), 2),
                round(100 * float(np.mean((census >= low) & (census <= high))), 1),
                round(float(census.var() / census.mean()), 2),
            )
        )
    return Table(
        title,
        ("Site", "Mean census", "Mean of the model", "RMSE, beds", "Days inside the 90 % band, %",
         "Census variance / mean"),
        tuple(rows),
        "The rates follow the data's own trend, so the band holds more of the days they were "
        "estimated from than it promises for days to come. A unit that turns patients away has a "
        "ratio well below 1; Poisson demand has 1, give or take 0.1 or so over a few years.",
    )  # fmt: skip


def headline_rows(
    study: Study,
    summary: q.SimSummary,
    interval: tuple[np.ndarray, np.ndarray],
    where: str,
    *,
    compare: bool,
) -> tuple[Row, ...]:
    """The figures of this study that the paper makes claims about; verdicts only if `compare`."""
    counts = stack_rules(study.plan.beds)
    weights = study.plan.series.rate
    limit = threshold(counts, study.options.gamma)
    observed = np.array(
        [
            [np.mean(study.census[i][study.plan.mask[i]] > limit[r, i]) for r in range(len(RULES))]
            for i in range(study.stays.num_sites)
        ]
    )
    low, high = (end[1].sum() for end in interval)
    share, seen = (100 * np.average(x, weights=weights, axis=0) for x in (summary.exceed, observed))
    spread = 100 * summary.exceed[:, 0]
    return (
        Row(
            "Beds follow from an explicit risk of overflow, not from an average",
            f"Beds by the rule for a 5 % overflow risk, all sites ({where})",
            float(counts[1].sum()),
            interval=None if np.isnan(low + high) else (float(low), float(high)),
            baseline=("85 % rule", float(counts[4].sum())),
            unit="beds",
            note="The interval adds the sites' own bootstrap intervals, as if all erred the same "
            f"way. With these beds the observed census was above them on {seen[1]:.1f} % of days, "
            f"the simulated demand on {share[1]:.1f} %.",
        ),
        Row(
            "Units that meet an average target still overflow on many days",
            f"Days over 100 % with beds for the average ({where})",
            float(share[0]),
            interval=(float(spread.min()), float(spread.max())),
            paper="15 to 20" if compare else None,
            verdict=("reproduced" if 15 <= share[0] <= 20 else "not reproduced")
            if compare
            else "measured",
            unit="%",
            note=f"Simulated demand; the observed census: {seen[0]:.1f} %. The interval is the "
            "range over sites.",
        ),
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
