"""Table 6 of the paper: beds in 2030."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import units
from experiments.harness.result import Part, Row, Table
from experiments.harness.units import Unit
from experiments.icu_occupancy import Config
from experiments.icu_occupancy.parts.published_tables import PAPER_QUEUE
from experiments.icu_occupancy.published import CAPACITIES
from experiments.icu_occupancy.rows import reproduced
from jaxlab import queueing as q


def run(config: Config, out: pathlib.Path) -> Part:
    """Compares Table 6 with one draw of the units whose admissions follow the projected births."""
    unit = Unit("projection", {"seed": config.seed}, functools.partial(_project, config.seed))
    outcome = units.run([unit], out, title="projection")[unit.name]
    last = outcome[:, -1]  # runs, sites, rules in the year 2030
    median = np.median(last, axis=0)
    printed = np.array([q.tasks.PUBLISHED_BEDS_2030[name] for name in CAPACITIES]).T
    rows = []
    for r, name in enumerate(CAPACITIES):
        total = last[:, :, r].sum(axis=1)
        low, high = np.quantile(total, [0.025, 0.975])
        close = abs(median[:, r].sum() - printed[:, r].sum()) <= len(q.CALGARY_SITES)
        rows.append(
            Row(
                "Projected beds in 2030 (Table 6)",
                f"{name} in 2030, sum of the sites' medians",
                float(median[:, r].sum()),
                interval=(float(low), float(high)),
                paper=float(printed[:, r].sum()),
                verdict=reproduced(bool(close)),
                unit="beds",
                note=f"{last.shape[0]} runs; reproduced means within one bed a site.",
                interval_label="95 % of the runs' totals",
            )
        )
    table = Table(
        "Table 6: beds in 2030, median of runs",
        ("Site", *CAPACITIES),
        tuple(
            (site.name, *(f"{median[i, r]:.0f} / {printed[i, r]}" for r in range(len(CAPACITIES))))
            for i, site in enumerate(q.CALGARY_SITES)
        ),
        "Ours / published. Every projected year starts with an empty unit, as in the planner.",
    )
    return Part(rows=tuple(rows), tables=(table,))


def _project(seed: int, folder: pathlib.Path) -> np.ndarray:
    """Projects the beds `[run, year, site, rule]` of one draw of the units."""
    study = q.plan_study(q.calgary_like(seed), queue=PAPER_QUEUE)
    inputs = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if np.issubdtype(x.dtype, np.floating) else jnp.int32),
        study.plan.inputs,
    )
    counts = jnp.asarray(study.plan.series.daily.counts, jnp.int32)
    history = q.yearly_history(inputs, q.tasks.ORIGIN.isoformat(), admissions=counts)
    model = q.BedModel(num_lags=study.u_max)
    project = jax.jit(lambda key: q.projection(key, history, model=model).runs.beds)
    return jax.device_get(project(jax.random.key(seed)))
