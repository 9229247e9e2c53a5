"""The same study end to end on a real intensive care cohort, patients who died included."""

import pathlib

from experiments.harness.result import Part, Row
from experiments.icu_occupancy import Config, figures, hospital, rows
from jaxlab import queueing as q

CLAIM = "The infinite-server queue describes a real unit"
METRIC = "Mean occupancy of the SIR-3 cohort, model"


def run(config: Config, out: pathlib.Path) -> Part:
    """Plans for the cohort, and compares the model with its census; says where to get the data."""
    path = q.find_sir3()
    if path is None:
        note = (
            "Needs the data of the R package kmi; jaxlab.queueing.read_sir3 says where to get it."
        )
        row = Row(CLAIM, METRIC, None, verdict="not measured", unit="beds", note=note)
        return Part(rows=(row,))
    stays = q.load_sir3(path, deaths="uniform", seed=config.seed)
    queue, rules = hospital.settings_of(config)
    queue = queue._replace(convention="ceil", warmup="drop")
    study = q.plan_study(stays, queue=queue, rules=rules)
    measured = hospital.measure(study, config, out, seed=config.seed + 3, prefix="sir3/")
    rho = study.plan.rho[0][study.plan.mask[0]]
    census = study.census[0][study.plan.mask[0]]
    row = Row(
        CLAIM,
        METRIC,
        float(rho.mean()),
        baseline=("observed census", float(census.mean())),
        unit="beds",
        note="1,280 real intensive care patients; deaths have no admission date in the data and "
        "are placed uniformly.",
    )
    shown = (
        rows.risk_table(measured, "Beds and risk: SIR-3 intensive care cohort"),
        rows.fit_table(study, "SIR-3: the model against the observed census"),
    )
    return Part((row,), figures.draw(measured, out, prefix="sir3_"), shown)
