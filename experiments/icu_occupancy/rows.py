"""What is said of a planning study: its tables and headline figures."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from experiments.harness.result import Row, Table
from experiments.icu_occupancy import published
from experiments.icu_occupancy.hospital import TODAY, Measured, countable
from jaxlab import queueing as q


def risk_table(measured: Measured, title: str) -> Table:
    """Shows at every site the beds there are and those of each rule, and the risk they bear."""
    study, summary = measured.study, measured.summary
    over_rules = jax.vmap(lambda n, b, m: q.utilization_metrics(n, b, mask=m), (None, 0, None))
    used = jax.device_get(
        jax.jit(jax.vmap(over_rules, (0, 1, 0)))(
            jnp.asarray(np.nan_to_num(study.census), jnp.float32),
            jnp.asarray(measured.beds),
            jnp.asarray(study.plan.mask),
        )
    )  # [site, rule]
    gamma = study.rules.gamma
    full = np.asarray(q.overflow_threshold(measured.beds, gamma))
    rows = []
    for i, site in enumerate(study.stays.site_names):
        rho = study.plan.rho[i][study.plan.mask[i]]
        for r, rule in enumerate(measured.rules):
            metrics = jax.tree.map(lambda x, i=i, r=r: x[i, r], used)
            risk = [_risk(measured.beds[r, i], rho)]
            if gamma < 1:
                risk.append(_risk(full[r, i], rho))
            rows.append(
                (
                    site,
                    _capital(rule),
                    int(measured.beds[r, i]),
                    _interval(measured, r, i),
                    *(round(x, 1) for x in risk),
                    round(100 * float(summary.exceed[i, r]), 1),
                    round(float(metrics.pct_over), 1),
                    round(float(summary.episode_days[i, r]), 1),
                    f"{metrics.mean:.1f} ({metrics.sd:.1f})",
                    round(float(metrics.pct_under), 1),
                )
            )
    at = "" if countable(study.queue) == study.queue else ", at midnight"
    return Table(
        title,
        (
            "Site",
            "Rule",
            "Beds",
            "95 % interval",
            "Risk, % of days",
            *((f"Days over {gamma:.0%}, %",) if gamma < 1 else ()),
            "Risk simulated, %",
            "Observed, % of days",
            "Days an overflow lasts",
            "Utilization, mean (SD), %",
            "Days under 70 %, %",
        ),
        tuple(rows),
        "Risk: days on which more patients want a bed than there are, by the Poisson law of "
        f"demand; simulated: the same patient by patient{at}, {int(summary.replications):,} "
        "replications; observed, as are utilization and days under 70 %: the census of the data. "
        + ("" if study.stays.num_sites > 1 else _about_rules(measured)),
    )


def bed_table(measured: Measured, title: str) -> Table:
    """Shows beds by site and rule with intervals, the sites below each other.

    After the beds there are comes the risk that they bear.
    """
    today = _risks_today(measured)

    def cell(r: int, i: int) -> str:
        interval = _interval(measured, r, i)
        return str(measured.beds[r, i]) + (f" ({interval})" if interval != NONE else "")

    names = measured.study.stays.site_names
    rows = [
        [name, *(cell(r, i) for r in range(len(measured.rules)))] for i, name in enumerate(names)
    ]
    rows.append(["All sites", *map(str, measured.beds.sum(axis=1))])
    header = ["Site", *map(_capital, measured.rules)]
    if today:
        header.insert(2, "Risk, %")
        for row, risk in zip(rows, [*(f"{risk:.1f}" for risk in today), NONE], strict=True):
            row.insert(2, risk)
    return Table(title, tuple(header), tuple(map(tuple, rows)), _about_rules(measured))


NONE = "–"
"""An interval that there is not."""


def _interval(measured: Measured, rule: int, site: int) -> str:
    low, high = (end[rule, site] for end in measured.interval)
    return NONE if np.isnan(low) else f"{low:.0f}–{high:.0f}"


def _risk(beds: float, rho: ArrayLike) -> float:
    """The percentage of days with more patients than beds by the Poisson law."""
    return 100 * float(np.mean(scipy.stats.poisson.sf(beds, rho)))


def _risks_today(measured: Measured) -> list[float]:
    """The risk at each site with the beds there are; empty where they are not known."""
    if measured.rules[0] != TODAY:
        return []
    plan = measured.study.plan
    sites = zip(measured.beds[0], plan.rho, plan.mask, strict=True)
    return [_risk(beds, rho[mask]) for beds, rho, mask in sites]


def _capital(rule: str) -> str:
    return rule[0].upper() + rule[1:]


def _about_rules(measured: Measured) -> str:
    gamma = measured.study.rules.gamma
    full = "" if gamma == 1 else f", of those with more than {gamma:.0%} of the beds in use"
    return (
        f"Intervals: the middle 95 % of {measured.num_draws} runs of the whole pipeline on "
        "resampled patients, in whole beds, widened to the count itself where it lies outside. "
        "Rules: average, mean occupancy plus its square root; 5 % and 1 %, the least beds with no "
        f"larger share of overflow days{full}; peak, the highest mean occupancy plus its square "
        "root; 85 % rule, mean occupancy / 0.85."
    )


def in_short(measured: Measured) -> str:
    """Says what the beds there are mean today; nothing where they are not known."""
    risks = _risks_today(measured)
    if not risks:
        return ""
    most, least = np.argmax(risks), np.argmin(risks)
    said = f"{risks[most]:.1f} %"
    if len(risks) > 1:
        names = measured.study.stays.site_names
        said = f"{risks[least]:.1f} % ({names[least]}) to {said} ({names[most]})"
    return f" Today's {measured.beds[0].sum():,} beds are too few on {said} of days."


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
                round(float(study.plan.series.rate[i]), 2),
                round(float(study.plan.laws.mean_los[i]), 1),
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
            "Admissions / day",
            "Mean stay, days",
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
    study = measured.study
    several = study.stays.num_sites > 1
    everywhere = ", all sites" if several else ""
    average, safe, usual = map(measured.rules.index, ("average", "5 % risk", "85 % rule"))
    over = [
        (census[mask] > beds[:, None]).mean(axis=1)
        for census, mask, beds in zip(study.census, study.plan.mask, measured.beds.T, strict=True)
    ]
    observed = 100 * np.stack(over)  # [site, rule]
    simulated = 100 * np.asarray(measured.summary.exceed)[:, : len(measured.rules)]

    def days(rule: int) -> tuple[float, tuple[float, float] | None, float]:
        """Days over the beds in percent: simulated, their range over sites, and observed."""
        weights = study.plan.series.rate
        share, seen = (np.average(x[:, rule], weights=weights) for x in (simulated, observed))
        ends = [
            round(float(end), 1) for end in (simulated[:, rule].min(), simulated[:, rule].max())
        ]
        return round(float(share), 1), (ends[0], ends[1]) if several else None, float(seen)

    rows = []
    if measured.rules[0] == TODAY:
        share, ends, seen = days(0)
        rows.append(
            Row(
                "What the beds there are mean",
                f"Days over 100 % with today's {measured.beds[0].sum():,} beds ({where})",
                share,
                interval=ends,
                unit="%",
                note=f"Simulated demand; the observed census: {seen:.1f} %.",
                interval_label="range over sites",
            )
        )
    low, high = (end[safe].sum() for end in measured.interval)
    share, _, seen = days(safe)
    added = "The interval adds the sites' own, as if all erred the same way. " if several else ""
    rows.append(
        Row(
            "Beds follow from an explicit risk of overflow, not from an average",
            f"Beds by the rule for a 5 % overflow risk{everywhere} ({where})",
            float(measured.beds[safe].sum()),
            interval=None if np.isnan(low + high) else (float(low), float(high)),
            baseline=("85 % rule", float(measured.beds[usual].sum())),
            unit="beds",
            note=f"{added}With these beds the observed census was above them on {seen:.1f} % of "
            f"days, the simulated demand on {share:.1f} %.",
            interval_label="95 % bootstrap interval",
        )
    )
    share, ends, seen = days(average)
    low_days, high_days = published.OVERFLOW_DAYS
    rows.append(
        Row(
            "Units that meet an average target still overflow on many days",
            f"Days over 100 % with beds for the average ({where})",
            share,
            interval=ends,
            paper="15 to 20" if compare else None,
            verdict=reproduced(low_days <= share <= high_days) if compare else "measured",
            unit="%",
            note=f"Simulated demand; the observed census: {seen:.1f} %.",
            interval_label="range over sites",
        )
    )
    return tuple(rows)


def reproduced(is_so: bool) -> str:
    """Returns the verdict on a published figure."""
    return "reproduced" if is_so else "not reproduced"
