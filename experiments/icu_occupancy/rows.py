"""What is said of a planning study: its tables and headline figures."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.harness.result import Row, Table
from experiments.icu_occupancy import published
from experiments.icu_occupancy.hospital import Measured
from jaxlab import queueing as q


def bed_table(measured: Measured, title: str, *, actual: tuple[int, ...] = ()) -> Table:
    """Shows beds by site and rule with intervals, beside the beds there are (`actual`)."""
    study, (low, high) = measured.study, measured.interval
    counts, rules = q.stack_rules(study.plan.beds), q.rule_names(study.rules)
    rate, stay = study.plan.series.rate, study.plan.laws.mean_los

    def with_interval(r: int, i: int) -> str:
        if np.isnan(low[r, i]):
            return f"{counts[r, i]} (no interval)"
        return f"{counts[r, i]} ({low[r, i]:.0f}–{high[r, i]:.0f})"

    rows = [
        (
            name,
            *((actual[i],) if actual else ()),
            *(with_interval(r, i) for r in range(len(rules))),
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
    gamma = study.rules.gamma
    full = "their beds" if gamma == 1 else f"{gamma:.0%} of their beds"
    return Table(
        title,
        (
            "Site",
            *(("Beds today",) if actual else ()),
            *(rule[0].upper() + rule[1:] for rule in rules),
            "Admissions / day",
            "Mean stay, days",
        ),
        (*rows, total),
        f"In brackets the middle 95 % of {measured.num_draws} runs of the whole pipeline on "
        "resampled patients. Average: mean occupancy plus its square root. Risk: the share of days "
        f"on which more patients want a bed than {full}. Peak: highest mean occupancy plus its "
        "square root. 85 % rule: mean occupancy / 0.85.",
    )


def law_table(study: q.Study, title: str) -> Table:
    """Shows how well every law fits at every site, the chosen one marked."""
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


def utilization_table(measured: Measured, title: str) -> Table:
    """Shows what each rule would have meant: utilization by the census, overflow by simulation."""
    study, summary = measured.study, measured.summary
    counts = q.stack_rules(study.plan.beds)
    over_rules = jax.vmap(lambda n, b, m: q.utilization_metrics(n, b, mask=m), (None, 0, None))
    found = jax.device_get(
        jax.jit(jax.vmap(over_rules, (0, 1, 0)))(
            jnp.asarray(study.census, jnp.float32),
            jnp.asarray(counts),
            jnp.asarray(study.plan.mask),
        )
    )  # [site, rule]
    rows = []
    for i, name in enumerate(study.stays.site_names):
        for r, rule in enumerate(q.rule_names(study.rules)):
            metrics = jax.tree.map(lambda x, i=i, r=r: x[i, r], found)
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
            "Site",
            "Rule",
            "Beds",
            "Utilization %, mean (SD)",
            "Days over 100 %, % observed",
            "Days under 70 %, % observed",
            "Days over 100 %, % simulated",
            "Days an overflow lasts",
        ),
        tuple(rows),
        "Observed: the census of the data. Simulated: patient-level Monte Carlo of unconstrained "
        f"demand, {int(summary.replications):,} replications.",
    )


def fit_table(study: q.Study, title: str) -> Table:
    """Shows how well the model describes the observed census."""
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
        (
            "Site",
            "Mean census",
            "Mean of the model",
            "RMSE, beds",
            "Days inside the 90 % band, %",
            "Census variance / mean",
        ),
        tuple(rows),
        "The rates follow the data's own trend, so the band holds more of the days they were "
        "estimated from than it promises for days to come. A unit that turns patients away has a "
        "ratio well below 1; Poisson demand has 1, give or take 0.1 or so over a few years.",
    )


def headline_rows(measured: Measured, where: str, *, compare: bool) -> tuple[Row, ...]:
    """States the figures that the paper makes claims about; verdicts only if `compare`."""
    study, summary = measured.study, measured.summary
    counts = q.stack_rules(study.plan.beds)
    weights = study.plan.series.rate
    limit = np.asarray(q.overflow_threshold(counts, study.rules.gamma))
    observed = np.array(
        [
            [np.mean(study.census[i][study.plan.mask[i]] > limit[r, i]) for r in range(len(counts))]
            for i in range(study.stays.num_sites)
        ]
    )
    low, high = (end[1].sum() for end in measured.interval)
    low_days, high_days = published.OVERFLOW_DAYS
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
            verdict=reproduced(low_days <= share[0] <= high_days) if compare else "measured",
            unit="%",
            note=f"Simulated demand; the observed census: {seen[0]:.1f} %. The interval is the "
            "range over sites.",
        ),
    )


def reproduced(is_so: bool) -> str:
    """Returns the verdict on a published figure."""
    return "reproduced" if is_so else "not reproduced"
