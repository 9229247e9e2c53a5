"""Tables 3 and 4 of the paper: bed counts and utilization of five units."""

import functools
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.harness import units
from experiments.harness.result import Figure, Part, Row, Table
from experiments.harness.units import Unit
from experiments.icu_occupancy import Config, figures, published
from experiments.icu_occupancy.published import CAPACITIES
from experiments.icu_occupancy.rows import reproduced
from jaxlab import queueing as q

PAPER_QUEUE = q.QueueModel(variant="fisk_paper", warmup="drop")
"""The reading that reproduces the published tables; the first S_max days are left out."""


class Draw(NamedTuple):
    """One draw of the five units, planned for.

    Attributes:
        beds: `[rule, site]` of `CAPACITIES`.
        census: `[rule, site, 2]` mean and SD of the utilization by the observed census, percent.
        model: `[rule, site, 2]` the same of the mean occupancy.
        overflow: `[site]` risk of overflow with B_average.
    """

    beds: np.ndarray
    census: np.ndarray
    model: np.ndarray
    overflow: np.ndarray


def run(config: Config, out: pathlib.Path) -> Part:
    """Compares Tables 3 and 4 with stationary units of the published size, drawn several times."""
    todo = [
        Unit(
            f"published tables/seed {seed}",
            {"seed": seed},
            functools.partial(_plan, seed),
            kind=Draw,
        )
        for seed in range(config.seed, config.seed + config.num_seeds)
    ]
    draws = list(units.run(todo, out, title="published tables").values())
    counts, census, model, overflow = (np.stack(x) for x in zip(*draws, strict=True))
    printed = np.array([q.tasks.PUBLISHED_BEDS[name] for name in CAPACITIES])
    sites = [site.name for site in q.CALGARY_SITES]
    low, high = counts.min(axis=0), counts.max(axis=0)
    inside = (low <= printed) & (printed <= high)
    claim = "Published bed counts (Table 3) follow from five stationary units"
    rows = [
        Row(
            claim,
            "Published counts inside our range over draws",
            float(inside.sum()),
            paper=float(inside.size),
            verdict=reproduced(bool(inside.all())),
            unit="counts",
            note=f"{config.num_seeds} draws of the generator; 4 rules at 5 sites.",
        )
    ]
    for r, name in enumerate(CAPACITIES):
        totals = counts[:, r].sum(axis=1)
        within = totals.min() <= printed[r].sum() <= totals.max()
        rows.append(
            Row(
                claim,
                f"{name}, total of the five sites",
                float(totals.mean()),
                interval=(float(totals.min()), float(totals.max())),
                paper=float(printed[r].sum()),
                verdict=reproduced(within),
                unit="beds",
                interval_label="range over draws",
            )
        )
    overflow = 100 * np.mean(overflow, axis=0)
    low_days, high_days = published.OVERFLOW_DAYS
    claim = "Units that meet an average target still overflow on many days"
    rows.append(
        Row(
            claim,
            "Days over 100 % with B_average, mean of the five published units",
            float(overflow.mean()),
            interval=(float(overflow.min()), float(overflow.max())),
            paper="15 to 20",
            verdict=reproduced(low_days <= overflow.mean() <= high_days),
            unit="%",
            interval_label="range over sites",
        )
    )
    figures.bed_counts(
        out / "table3.png",
        sites,
        CAPACITIES,
        counts.mean(axis=0),
        low,
        high,
        marks=printed,
        mark_label="published",
    )
    picture = Figure(
        "table3.png",
        "Beds at five units of the published size: mean and range of "
        f"{config.num_seeds} draws, and the published counts.",
        "Bed counts by rule and site beside the published ones.",
    )
    beds_table = Table(
        "Table 3: beds",
        ("Site", *CAPACITIES),
        tuple(
            (
                sites[i],
                *(
                    f"{counts[:, r, i].mean():.1f} ({low[r, i]}–{high[r, i]}) / {printed[r, i]}"
                    for r in range(len(CAPACITIES))
                ),
            )
            for i in range(len(sites))
        ),
        f"Ours, mean (range) of {config.num_seeds} draws / published.",
    )
    shown = (beds_table, _utilization_table(census, model, sites))
    return Part(tuple(rows), (picture,), shown)


def _plan(seed: int, folder: pathlib.Path) -> Draw:
    study = q.plan_study(q.calgary_like(seed), queue=PAPER_QUEUE)
    plan = study.plan
    beds = np.stack([plan.beds.average, *plan.beds.risk, plan.beds.peak])
    overflow = [
        float(q.overflow_risk(jnp.asarray(rho[mask], jnp.float32), jnp.asarray([b]))[0])
        for rho, mask, b in zip(plan.rho, plan.mask, plan.beds.average, strict=True)
    ]
    mask = np.asarray(plan.mask)
    census, model = (_utilization(x, beds, mask) for x in (study.census, np.asarray(plan.rho)))
    return Draw(beds, census, model, np.array(overflow))


def _utilization(series: np.ndarray, beds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Computes mean and SD of 100 occupancy / beds, `[rule, site, 2]`."""
    found = np.empty((*beds.shape, 2))
    for r in range(beds.shape[0]):
        for i in range(beds.shape[1]):
            percent = 100 * series[i][mask[i]] / beds[r, i]
            found[r, i] = percent.mean(), percent.std(ddof=1)
    return found


def _utilization_table(census: np.ndarray, model: np.ndarray, sites: list[str]) -> Table:
    census, model = np.mean(census, axis=0), np.mean(model, axis=0)
    weights = jnp.asarray([unit.lam for unit in q.CALGARY_SITES])
    rows = []
    for r, rule in enumerate(CAPACITIES):
        for i, site in enumerate(sites):
            theirs = q.tasks.PUBLISHED_UTILIZATION[rule][i]
            rows.append(
                (
                    rule,
                    site,
                    *(f"{m:.1f} ({s:.1f})" for m, s in (census[r, i], model[r, i], theirs)),
                )
            )
        system = [_system(values[r, :, 0], weights) for values in (census, model)]
        system.append(q.tasks.PUBLISHED_SYSTEM_UTILIZATION[rule])
        rows.append((rule, "weighted system", *(f"{m:.1f} ({s:.1f})" for m, s in system)))
    return Table(
        "Table 4: utilization, % mean (SD)",
        ("Rule", "Site", "Census", "Mean occupancy", "Published"),
        tuple(rows),
        "Mean over draws. What series the paper's SD is of is not stated: a census of free demand "
        "has about Poisson spread, the mean occupancy less; the published SDs lie between.",
    )


def _system(means: np.ndarray, weights) -> tuple[float, float]:
    zero = jnp.zeros_like(weights)
    metrics = q.UtilMetrics(jnp.asarray(means, weights.dtype), zero, zero, zero, zero, zero)
    mean, sd = q.system_weighted(metrics, weights)
    return float(mean.mean), float(sd.mean)
