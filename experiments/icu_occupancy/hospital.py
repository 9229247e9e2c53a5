"""What is computed for one hospital beyond its plan: intervals and a simulation, unit by unit."""

import datetime
import functools
import hashlib
import math
import pathlib
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import flags, result, units
from experiments.harness.result import Part, Table
from experiments.harness.units import Unit
from experiments.icu_occupancy import Config
from jaxlab import queueing as q
from jaxlab.core import logging, loop, sharding
from jaxlab.queueing.data import windows

REPLICATIONS_PER_STEP = 1024
NUM_BLOCKS = 4
"""Parts of a step: up to four devices share them, and their number does not change the draws."""
DRAWS_PER_UNIT = 20
"""Draws of the bootstrap that one unit plans for."""
TODAY = "beds today"
"""What the beds that a hospital has are called among the rules."""


class Measured(NamedTuple):
    """A planning study with what was computed beside it.

    Attributes:
        study: plan, patients and observed census.
        rules: names of the S ways to count beds; the first is `TODAY` where the beds are known.
        beds: `[S, I]` beds of each rule at each site.
        interval: `[S, I]` 95 % intervals of `beds`; NaN where there is none.
        num_draws: draws behind the intervals.
        summary: the simulated demand; its thresholds are `beds`, and then the census from which a
            day counts as overflow.
    """

    study: q.Study
    rules: tuple[str, ...]
    beds: np.ndarray
    interval: q.Interval
    num_draws: int
    summary: q.SimSummary


def settings_of(config: Config) -> tuple[q.QueueModel, q.BedRules]:
    """Returns how the configuration reads the data and counts beds."""
    queue = q.QueueModel(variant=config.variant, convention=config.convention, warmup=config.warmup)
    return queue, q.BedRules(gamma=config.gamma)


def countable(queue: q.QueueModel) -> q.QueueModel:
    """Returns how the demand is simulated: by counts of patients, not by an average over the day.

    At midnight, which instead of "bed_days" is taken, as many are in bed on average.
    """
    return queue._replace(convention="midnight") if queue.convention == "bed_days" else queue


def read(config: Config) -> tuple[q.Stays, q.Rejects]:
    """Reads the CSV as the flags say.

    Raises:
        ValueError: if it cannot be read so, or hours are asked for and it has dates alone.
    """
    start, end = (
        None if day is None else datetime.date.fromisoformat(day)
        for day in (config.start, config.end)
    )
    stays, rejects = q.read_stays(
        str(config.data),
        strict=config.strict,
        start=start,
        end=end,
        duplicates=config.duplicates,
        id_column=config.id_column,
        date_format=config.date_format,
        separator=config.separator,
        encoding=config.encoding,
        max_stay=config.max_stay,
        max_gap=config.max_gap,
    )
    unknown = int(np.isnan(stays.offset).sum())
    if config.bin == "1h" and unknown:
        raise ValueError(
            f"bin 1h needs times of admission, such as 2023-05-31 08:00; {unknown} of "
            f"{stays.offset.size} stays have a date alone"
        )
    return stays, rejects


def refuse(rejects: q.Rejects, config: Config, out: pathlib.Path) -> NoReturn:
    """Ends a run on a file of which no row can be used: its rejects are kept, and counted."""
    q.write_rejects(out / "rejects.csv", rejects)
    counts = "; ".join(
        f"{count} {reason} ({q.REASONS[reason]})" for reason, count in rejects.counts().items()
    )
    raise flags.Mistake(
        f"no row of {config.data} can be used: {counts}. {out / 'rejects.csv'} holds them"
    )


def about_file(stays: q.Stays, rejects: q.Rejects, out: pathlib.Path) -> Part:
    """Says what a file holds, how it was read and which of its rows were not used."""

    def lines(reason: str) -> str:
        pairs = zip(rejects.rows, rejects.reasons, strict=True)
        return ", ".join(str(row) for row, why in pairs if why == reason)[:60]

    shown = [_about_sites(stays)]
    if rejects.notices:
        notices = tuple((notice,) for notice in rejects.notices)
        shown.append(Table("How the file was read", ("Notice",), notices))
    if rejects.rows.size:
        q.write_rejects(out / "rejects.csv", rejects)
        found = tuple((why, count, lines(why)) for why, count in rejects.counts().items())
        shown.append(
            Table(
                "Rows set aside",
                ("Reason", "Rows", "First rows"),
                found,
                "These rows were not used; rejects.csv in the run folder holds them with their "
                "reasons.",
            )
        )
    return Part(tables=tuple(shown))


def _about_sites(stays: q.Stays) -> Table:
    """Shows each site's window and patients."""

    def number(mask: np.ndarray) -> np.ndarray:
        return np.bincount(stays.site[mask], minlength=stays.num_sites)

    first, last = (np.datetime64(stays.origin, "D") + days for days in stays.windows.T)
    before = stays.day < stays.windows[stays.site, 0]
    counts = zip(
        number(~before), number(before), number(~stays.event), number(stays.by_date), strict=True
    )
    rows = [
        (name, str(first[i]), str(last[i]), *map(int, row))
        for i, (name, row) in enumerate(zip(stays.site_names, counts, strict=True))
    ]
    header = (
        "Site",
        "First day",
        "Last day",
        "Admissions",
        "In bed before",
        "End not seen",
        "Stays in whole days",
    )
    return Table(
        "What the file holds",
        header,
        tuple(rows),
        "A site counts from its first to its last admission, so that days before a unit opened and "
        "after it closed are in no average; or from --start to --end, whenever it was open.",
    )


def in_short(rejects: q.Rejects | None) -> str:
    """Says beside the bed number what of the file bears on it."""
    if rejects is None:
        return ""
    said = ""
    # Rows outside of a window that was asked for are no loss.
    if unused := sum(why != "outside_window" for why in rejects.reasons):
        said += f" Set aside: {unused:,} row{'' if unused == 1 else 's'} of the file."
    if alike := rejects.num_alike:
        rows = f"{alike:,} row{'' if alike == 1 else 's'}"
        said += f" Equal to an earlier one, and counted as other patients: {rows}."
    return said


def by_the_hour(study: q.Study, out: pathlib.Path) -> Part:
    """Plans the hospital by the hour, beside its plan by the day, and keeps the series."""
    hourly = q.plan_study(
        study.stays, queue=study.queue, rules=study.rules, bin="1h", tail=study.tail
    )
    part = hours(study.stays, hourly.census, np.asarray(hourly.plan.rho), out)
    by_day, by_hour = (q.stack_rules(plan.beds) for plan in (study.plan, hourly.plan))
    rows = [
        (name, *(f"{by_day[r, i]} / {by_hour[r, i]}" for r in range(len(by_day))))
        for i, name in enumerate(study.stays.site_names)
    ]
    names = [name[0].upper() + name[1:] for name in q.rule_names(study.rules)]
    note = "Risks are shares of days, and shares of hours; peaks are those of days, and of hours."
    beds = Table("Beds by the day / by the hour", ("Site", *names), tuple(rows), note)
    return Part(tables=(beds, *part.tables))


def hours(stays: q.Stays, census: np.ndarray, rho: np.ndarray, out: pathlib.Path) -> Part:
    """Shows how full each site was by the hour of the day, and keeps the series.

    Args:
        stays: the patients.
        census: `[I, 24 T]` observed census, NaN outside each site's own window.
        rho: `[I, 24 T]` mean occupancy of the model.
        out: the run folder.
    """
    site, hour = np.nonzero(~np.isnan(census))
    columns = {
        "site": np.asarray(stays.site_names)[site],
        "hour": (np.datetime64(stays.origin, "h") + hour).astype(str),
        "mean_occupancy": rho[site, hour],
        "observed_census": census[site, hour],
    }
    q.write_table(out / "occupancy_by_hour.csv", columns)
    rows = []
    for name, mean in zip(
        stays.site_names, np.nanmean(census.reshape(stays.num_sites, -1, 24), axis=1), strict=True
    ):
        rows.append((name, *(round(float(x), 1) for x in (*mean[::3], mean.max()))))
    header = ("Site", *(f"{h:02}:00" for h in range(0, 24, 3)), "Fullest hour")
    note = (
        "Means over the site's own window; occupancy_by_hour.csv in the run folder has every hour."
    )
    return Part(tables=(Table("Patients in bed by the hour, observed", header, tuple(rows), note),))


def measure(
    study: q.Study,
    config: Config,
    out: pathlib.Path,
    *,
    seed: int,
    actual: tuple[int, ...] = (),
    prefix: str = "",
) -> Measured:
    """Bootstraps the bed counts of a study and simulates its demand.

    Args:
        study: the planning study.
        config: numbers of draws and replications.
        out: the run folder, which keeps the units.
        seed: of the bootstrap; the simulation takes the next one.
        actual: beds each site has today; none by default.
        prefix: put before the names of the units, "sir3/" for example.
    """
    rules, beds = q.rule_names(study.rules), q.stack_rules(study.plan.beds)
    if actual:
        rules, beds = (TODAY, *rules), np.vstack([actual, beds])
    about = about_study(study)
    keys = jax.random.split(jax.random.key(seed), config.bootstrap)
    draws = [
        Unit(
            f"{prefix}bootstrap/{first}",
            about | {"seed": seed, "draws": config.bootstrap},
            functools.partial(_bootstrap, keys[first : first + DRAWS_PER_UNIT], study),
        )
        for first in range(0, config.bootstrap, DRAWS_PER_UNIT)
    ]
    demand = about | {"seed": seed + 1, "replications": config.replications, "beds": beds.tolist()}
    simulation = Unit(
        f"{prefix}simulation",
        demand,
        functools.partial(_simulate, study, demand),
        kind=q.SimSummary,
    )
    found = units.run([*draws, simulation], out, title=f"{prefix}hospital".replace("/", " "))
    drawn = q.interval_of(np.concatenate([found[unit.name] for unit in draws]))
    return Measured(
        study, rules, beds, _around(beds, drawn), config.bootstrap, found[simulation.name]
    )


def _around(beds: np.ndarray, drawn: q.Interval) -> q.Interval:
    """Widens intervals to whole beds, and to hold the count; NaN for the beds there are.

    Draws of the unit follow its slow changes alone, so that its own peak may lie outside of theirs.
    """
    known = beds[-len(drawn.low) :]
    ends = np.minimum(np.floor(drawn.low), known), np.maximum(np.ceil(drawn.high), known)
    none = np.full((len(beds) - len(known), beds.shape[1]), np.nan)
    return q.Interval(*(np.vstack([none, end]) for end in ends))


def about_study(study: q.Study) -> dict[str, Any]:
    """Returns all that the plan of a study depends on, the patients as a digest."""
    stays = study.stays
    columns = b"".join(np.ascontiguousarray(column).tobytes() for column in stays[:7])
    labels = (stays.num_days, stays.site_names, stays.origin, stays.windows.tolist())
    labels = repr(labels).encode()
    digest = hashlib.sha256(columns + labels).hexdigest()
    options = {"queue": study.queue._asdict(), "rules": study.rules._asdict(), "tail": study.tail}
    return result.encode({"stays": digest} | options)


def _bootstrap(keys: jax.Array, study: q.Study, folder: pathlib.Path) -> np.ndarray:
    return q.bootstrap_beds(keys, study)


def _simulate(study: q.Study, about: dict[str, Any], folder: pathlib.Path) -> q.SimSummary:
    """Simulates patient by patient through the training loop, so that a killed run goes on.

    Each site starts on the first day of its own window, with the patients who were in bed then.
    """
    own = jnp.asarray(study.stays.windows, jnp.int32)
    inside = windows.to_own_days(jnp.asarray(study.plan.series.inside), own)
    inputs = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if np.issubdtype(x.dtype, np.floating) else jnp.int32),
        study.plan.inputs,
    )
    series = [windows.to_own_days(x, own) for x in inputs[:3]]
    backfill = study.queue.warmup == "backfill"
    if backfill:  # the days made up are like those of the window
        series = [windows.fill(x, inside, days=365) for x in series]
    inputs = q.QueueInputs(*series, *inputs[3:])
    ages = None if backfill or study.ages is None else jnp.asarray(study.ages, jnp.float32)
    # Processes share units, not their devices.
    num_devices = math.gcd(NUM_BLOCKS, jax.device_count()) if jax.process_count() == 1 else 1
    mesh = sharding.make_mesh({"data": num_devices}) if num_devices > 1 else None
    beds = np.array(about["beds"]).T
    full = np.asarray(q.overflow_threshold(beds, study.rules.gamma))
    highest = int(3 * np.nanmax(study.plan.rho)) + (0 if ages is None else ages.shape[1])
    algorithm = q.make_monte_carlo(
        inputs,
        beds=jnp.asarray(np.concatenate([beds, full], axis=1)),
        replications_per_step=REPLICATIONS_PER_STEP,
        num_blocks=NUM_BLOCKS,
        mesh=mesh,
        num_lags=_round_up(int(inputs.smax.max()), 64),
        queue=countable(study.queue),
        initial_ages=ages,
        mask=windows.to_own_days(jnp.asarray(study.plan.mask), own),
        hist_size=max(128, _round_up(max(highest, int(beds.max())) + 32, 64)),
    )
    num_steps = -(-about["replications"] // REPLICATIONS_PER_STEP)
    done = loop.run(
        algorithm,
        jax.random.key(about["seed"]),
        num_steps=num_steps,
        chunk_size=1,
        directory=folder,
        config=about,
        log=[logging.console(num_steps, title="Monte Carlo")],
        state_sharding=None if mesh is None else sharding.replicated(mesh),
    )
    summary = jax.device_get(jax.jit(q.summarize)(done.state))
    if summary.invalid or summary.hist_overflow.any():
        raise RuntimeError(
            f"the simulation is incomplete: {summary.invalid} invalid cells, share beyond the "
            f"histogram {summary.hist_overflow}"
        )
    return _on_the_calendar(summary, study.stays.windows)


def _on_the_calendar(summary: q.SimSummary, own: np.ndarray) -> q.SimSummary:
    """Moves the series of a simulation from the days of each site's window to those of the data."""

    def move(x: np.ndarray, axis: int) -> np.ndarray:
        rows = [np.roll(row, first, axis - 1) for row, first in zip(x, own[:, 0], strict=True)]
        return np.stack(rows)

    by_day = ("mean", "var", "mean_se", "quantiles", "hist")
    moved = {name: move(np.asarray(getattr(summary, name)), 1) for name in by_day}
    return summary._replace(**moved, exceed_daily=move(np.asarray(summary.exceed_daily), 2))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
