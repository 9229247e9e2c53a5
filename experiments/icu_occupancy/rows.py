"""What is said of a planning study: its tables and headline figures."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.harness.result import Row, Table
from experiments.icu_occupancy import published
from experiments.icu_occupancy.hospital import Measured, countable
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


def utilization_table(measured: Measured, title: str, *, actual: tuple[int, ...] = ()) -> Table:
    """Shows what the beds there are and those of each rule would mean.

    Utilization and full days by the census, the risk of a full day by the model and by simulation.
    """
    study, summary = measured.study, measured.summary
    counts = q.stack_rules(study.plan.beds)
    names, gamma = q.rule_names(study.rules), study.rules.gamma
    if actual:
        counts, names = np.vstack([np.asarray(actual)[None], counts]), ("beds today", *names)
    over_rules = jax.vmap(lambda n, b, m: q.utilization_metrics(n, b, mask=m), (None, 0, None))
    found = jax.device_get(
        jax.jit(jax.vmap(over_rules, (0, 1, 0)))(
            jnp.asarray(np.nan_to_num(study.census), jnp.float32),
            jnp.asarray(counts),
            jnp.asarray(study.plan.mask),
        )
    )  # [site, rule]
    full = np.asarray(q.overflow_threshold(counts, gamma))
    at = "" if countable(study.queue) == study.queue else ", at midnight"
    rows = []
    for i, site in enumerate(study.stays.site_names):
        rho = study.plan.rho[i][study.plan.mask[i]]
        for r, rule in enumerate(names):
            metrics = jax.tree.map(lambda x, i=i, r=r: x[i, r], found)
            simulated = r - bool(actual)  # the beds there are were not simulated
            risk = [100 * scipy.stats.poisson.sf(counts[r, i], rho).mean()]
            if gamma < 1:
                risk.append(100 * scipy.stats.poisson.sf(full[r, i], rho).mean())
            rows.append(
                (
                    site,
                    rule,
                    int(counts[r, i]),
                    f"{metrics.mean:.1f} ({metrics.sd:.1f})",
                    round(float(metrics.pct_over), 1),
                    round(float(metrics.pct_under), 1),
                    *(round(float(x), 1) for x in risk),
                    round(100 * float(summary.exceed[i, simulated]), 1) if simulated >= 0 else "–",
                    round(float(summary.episode_days[i, simulated]), 1) if simulated >= 0 else "–",
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
            "Days over 100 %, % by the model",
            *((f"Days over {gamma:.0%}, % by the model",) if gamma < 1 else ()),
            "Days over 100 %, % simulated",
            "Days an overflow lasts",
        ),
        tuple(rows),
        "Over 100 %: more patients than beds. Observed: the census of the data. By the model: the "
        f"Poisson law of unconstrained demand. Simulated: the same patient by patient{at}, "
        f"{int(summary.replications):,} replications.",
    )


def truncation_table(study: q.Study, title: str) -> Table:
    """Shows what each law has beyond S_max, the longest stay that counts."""
    rows = []
    for i, name in enumerate(study.stays.site_names):
        share, mean, kept = (x[i] for x in study.truncation)
        made_up = "made up for" if kept else "lost"
        rows.append(
            (
                name,
                q.FAMILIES[study.plan.laws.family[i]],
                int(study.plan.laws.smax[i]),
                round(100 * float(share), 2),
                round(100 * float(mean), 2),
                made_up,
            )
        )
    return Table(
        title,
        (
            "Site",
            "Law",
            "S_max, days",
            "Stays beyond it, %",
            "Their share of the mean stay, %",
            "In the mean occupancy",
        ),
        tuple(rows),
        "A stay counts for S_max days and a day at most. What is lost of the mean stay is lost of "
        "the mean occupancy, and so of the beds; --tail keep makes up for it. Stays known in whole "
        "days are always made up for.",
    )


def cut_in_short(study: q.Study) -> str:
    """Says at which sites a cut at S_max loses more than 2 % of the mean occupancy."""
    lost = np.flatnonzero((study.truncation.mean > 0.02) & ~study.truncation.kept)
    if not lost.size:
        return ""
    said = ", ".join(
        f"{100 * study.truncation.mean[i]:.0f} % at {study.stays.site_names[i]}" for i in lost
    )
    return (
        f" Stays beyond S_max are cut off, and with them of the mean occupancy {said}: --tail keep."
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
                _expected_dispersion(study, i, census.size),
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
            "The same of Poisson demand, mean (SD)",
        ),
        tuple(rows),
        "The rates follow the data's own trend, so the band holds more of the days they were "
        "estimated from than it promises for days to come. A unit that turns patients away has a "
        "ratio more than two SD below what Poisson demand at a constant rate has over as many days "
        "of this unit: days are alike, so that a few years hold few independent ones.",
    )


def _expected_dispersion(study: q.Study, site: int, num_days: int) -> str:
    """Returns variance / mean that a Poisson census of this site's stays has over so many days."""
    laws = study.plan.laws
    best, family = laws.choice[site], q.FAMILIES[laws.family[site]]
    params = q.LOSParams(*(jnp.asarray(x[site, best], jnp.float32) for x in laws.fits.params))
    days = jnp.arange(int(laws.smax[site]) + 1, dtype=jnp.float32)
    mean, sd = q.dispersion_spread(q.los.sf(family, days, params), num_days)
    return f"{float(mean):.2f} ({float(sd):.2f})"


def headline_rows(measured: Measured, where: str, *, compare: bool) -> tuple[Row, ...]:
    """States the figures that the paper makes claims about; verdicts only if `compare`."""
    study, summary = measured.study, measured.summary
    counts = q.stack_rules(study.plan.beds)
    weights = study.plan.series.rate
    observed = np.array(
        [
            [np.mean(study.census[i][study.plan.mask[i]] > beds) for beds in counts[:, i]]
            for i in range(study.stays.num_sites)
        ]
    )
    low, high = (end[1].sum() for end in measured.interval)
    low_days, high_days = published.OVERFLOW_DAYS
    over = summary.exceed[:, : len(counts)]  # of the beds; then come those that count as overflow
    share, seen = (100 * np.average(x, weights=weights, axis=0) for x in (over, observed))
    spread = 100 * over[:, 0]
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
