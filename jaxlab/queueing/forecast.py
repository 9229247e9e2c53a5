"""Bed projections driven by births, with past years drawn at random for shape and stay.

Paper: Akbari-Moghaddam et al. 2025, arXiv:2510.02852 (projection to 2030).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlab.queueing import scenario
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.scenario import BedModel

YEAR_DAYS = 365
BASELINE_YEARS = (2021, 2022, 2023)
BIRTHS = {2024 + k: 19_337.0 + (21_049.0 - 19_337.0) * k / 6 for k in range(7)}
"""Births in the region, 2024 to 2030: both ends are published, the years between interpolated."""


class YearlyHistory(NamedTuple):
    """The past cut into H complete calendar years of 365 days.

    Attributes:
        years: the H calendar years (host integers).
        lam: `[H, I, 365]` arrival rate, per day; only its shape within the year is used.
        mu: `[H, I, 365]` mean stay, days.
        sig2: `[H, I, 365]` variance of the stay, days^2.
        admissions: `[H, I]` admissions per year, 29 February included.
        kappa, family, smax: `[I]` law of the stay, as in `QueueInputs`.
    """

    years: tuple[int, ...]
    lam: Float[Array, "H I D"]
    mu: Float[Array, "H I D"]
    sig2: Float[Array, "H I D"]
    admissions: Float[Array, "H I"]
    kappa: Float[Array, " I"]
    family: Int[Array, " I"]
    smax: Int[Array, " I"]


class YearDraws(NamedTuple):
    """Which past year (index into the history) each run, year and site takes its pattern from.

    Attributes:
        arrival: `[R, Y, I]` int32, for the shape of the arrivals.
        stay: `[R, Y, I]` int32, for the mean and variance of the stay.
    """

    arrival: Int[Array, "R Y I"]
    stay: Int[Array, "R Y I"]


class ProjectedBeds(NamedTuple):
    """One value for each of R runs, Y years and I sites.

    Attributes:
        beds: `[R, Y, I, S]` int32, rules as in `BedModel.strategies`; -1 where there is none.
        rho_mean: `[R, Y, I]` mean over the year of the mean occupancy, beds.
        rho_peak: `[R, Y, I]` its maximum.
    """

    beds: Int[Array, "R Y I S"]
    rho_mean: Float[Array, "R Y I"]
    rho_peak: Float[Array, "R Y I"]


class Summary(NamedTuple):
    """Distribution over runs; `[Y, I, S]` each, NaN where a run has no count."""

    median: Float[Array, "Y I S"]
    q25: Float[Array, "Y I S"]
    q75: Float[Array, "Y I S"]
    mean: Float[Array, "Y I S"]
    sd: Float[Array, "Y I S"]


class Projection(NamedTuple):
    """A projection.

    Attributes:
        years: the Y projected years (host integers).
        admissions: `[Y, I]` expected admissions per year.
        draws: the past years that were drawn.
        runs: beds and occupancy of every run.
        summary: median, quartiles, mean and sample SD of the beds over runs.
    """

    years: tuple[int, ...]
    admissions: Float[Array, "Y I"]
    draws: YearDraws
    runs: ProjectedBeds
    summary: Summary


def yearly_history(
    inputs: QueueInputs,
    start_date: str | np.datetime64,
    *,
    admissions: Float[Array, "I T"] | Int[Array, "I T"] | None = None,
) -> YearlyHistory:
    """Cuts daily inputs into complete calendar years of 365 days.

    29 February is left out of the daily patterns, so that a day keeps its date; its admissions
    still count in the annual total.  Incomplete years at both ends are left out.

    Args:
        inputs: `[I, T]` daily inputs.
        start_date: date of day 0, for example "2016-01-01".
        admissions: `[I, T]` observed daily admissions; `inputs.lam` by default.

    Returns:
        `YearlyHistory`.

    Raises:
        ValueError: if there is no complete year, or the admissions have another shape.
    """
    daily = inputs.lam if admissions is None else jnp.asarray(admissions).astype(inputs.lam.dtype)
    if daily.shape != inputs.lam.shape:
        raise ValueError(f"admissions must be {inputs.lam.shape}, as lam, got {daily.shape}")
    date = np.datetime64(str(start_date), "D") + np.arange(inputs.lam.shape[1])
    year = date.astype("datetime64[Y]")
    length = {
        y: ((y + np.timedelta64(1, "Y")).astype(date.dtype) - y.astype(date.dtype)).astype(int)
        for y in set(year)
    }
    years = [y for y in sorted(length) if np.sum(year == y) == length[y]]
    if not years:
        raise ValueError(f"no complete calendar year between {date[0]} and {date[-1]}")
    leap_day = np.char.endswith(date.astype(str), "-02-29")
    days = np.stack([np.flatnonzero((year == y) & ~leap_day) for y in years])

    def cut(series):
        return jnp.moveaxis(series[:, days], 1, 0)

    totals = jnp.stack([jnp.sum(daily[:, np.flatnonzero(year == y)], axis=1) for y in years])
    return YearlyHistory(
        years=tuple(int(str(y)) for y in years),
        lam=cut(inputs.lam),
        mu=cut(inputs.mu),
        sig2=cut(inputs.sig2),
        admissions=totals,
        kappa=inputs.kappa,
        family=inputs.family,
        smax=inputs.smax,
    )


def annual_admissions(
    admissions: Float[Array, "H I"],
    years: Sequence[int],
    births: Mapping[int, float],
    *,
    eta: float | Float[Array, ""] = 1.0,
    psi: float | Float[Array, ""] = 1.0,
    baseline_years: Sequence[int] = BASELINE_YEARS,
    base_year: int | None = None,
) -> Float[Array, "Y I"]:
    """Projects the admissions of every year of `births` and every site.

    A_y = A_base (K_y / K_y0)^eta psi^(y - y0), A_base the mean over the baseline years of the total
    admissions; a site's share is the mean over the baseline years of site / total.

    Args:
        admissions: `[H, I]` admissions per past year and site.
        years: the H past years.
        births: births K_y for each projected year; must hold `base_year`.
        eta: elasticity of admissions to births.
        psi: structural drift per year.
        baseline_years: past years that set the base.
        base_year: y0; the first year of `births` by default.

    Returns:
        `[Y, I]`, years of `births` in increasing order.

    Raises:
        ValueError: if a baseline year is not in `years`, `base_year` is not in `births`, or births
            are not positive.

    Source: arXiv:2510.02852, projection.
    """
    missing = sorted(set(baseline_years) - set(years))
    if missing or not baseline_years:
        raise ValueError(
            f"baseline_years must be among the complete past years {tuple(years)}, got "
            f"{tuple(baseline_years)}"
        )
    if not births or any(not value > 0 for value in births.values()):
        raise ValueError(f"births must map years to positive numbers, got {dict(births)}")
    target = sorted(births)
    base_year = target[0] if base_year is None else base_year
    if base_year not in births:
        raise ValueError(f"base_year {base_year} has no births, got years {target}")
    base = admissions[np.array([list(years).index(y) for y in baseline_years])]
    total = jnp.sum(base, axis=1)
    share = jnp.mean(base / total[:, None], axis=0)
    dtype = admissions.dtype
    ratio = jnp.asarray([births[y] / births[base_year] for y in target], dtype)
    ahead = jnp.asarray([y - base_year for y in target], dtype)
    eta, psi = (jnp.asarray(x).astype(dtype) for x in (eta, psi))
    annual = jnp.mean(total) * jnp.power(ratio, eta) * jnp.power(psi, ahead)
    return annual[:, None] * share[None, :]


def draw_years(
    key: PRNGKeyArray, *, num_runs: int, num_years: int, num_sites: int, num_history: int
) -> YearDraws:
    """Draws a past year, uniformly and independently, for every run, year, site and purpose.

    Run r draws from `fold_in(key, r)`: more runs leave the first ones as they were.
    """

    def run(r):
        shape = (2, num_years, num_sites)
        return jax.random.randint(jax.random.fold_in(key, r), shape, 0, num_history, jnp.int32)

    both = jax.vmap(run)(jnp.arange(num_runs, dtype=jnp.int32))
    return YearDraws(both[:, 0], both[:, 1])


def project_beds(
    history: YearlyHistory,
    admissions: Float[Array, "Y I"],
    draws: YearDraws,
    *,
    model: BedModel = scenario.PAPER,
    chunk: int = 10,
) -> ProjectedBeds:
    """Computes the occupancy and the beds of every drawn year.

    The arrivals of a site are its shape in the drawn year, normalized to sum 1 over 365 days, times
    its projected admissions.  Each year is a queue of its own: the paper's warmup "zero" starts it
    with an empty unit, which biases every average down by up to S_max days of filling; "backfill"
    with "calendar" lets the same year precede it; "drop" leaves the first S_max days out.

    Args:
        history: past years.
        admissions: `[Y, I]` projected admissions per year.
        draws: past years to use.
        model: how to count beds; static.
        chunk: runs computed at a time; bounds the memory.

    Returns:
        `ProjectedBeds`.
    """
    if draws.arrival.ndim != 3 or draws.arrival.shape[1:] != admissions.shape:
        raise ValueError(
            f"draws must be [R, Y, I] for admissions [Y, I], got {draws.arrival.shape} and "
            f"{admissions.shape}"
        )
    if not isinstance(history.smax, Tracer) and model.num_lags is None:
        model = model._replace(num_lags=int(np.asarray(history.smax).max()))
    known = scenario.known_family(history.family)
    return _project(history._replace(years=()), admissions, draws, model, chunk, known)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _project(history, admissions, draws, model: BedModel, chunk: int, known) -> ProjectedBeds:
    if known is not None:
        history = history._replace(family=np.array(known, np.int32))
    site = jnp.arange(admissions.shape[1], dtype=jnp.int32)
    shape = history.lam / jnp.sum(history.lam, axis=-1, keepdims=True)

    def one_year(args):
        total, arrival, stay = args
        inputs = QueueInputs(
            lam=shape[arrival, site] * total[:, None],
            mu=history.mu[stay, site],
            sig2=history.sig2[stay, site],
            kappa=history.kappa,
            family=history.family,
            smax=history.smax,
        )
        beds, rho = scenario.bed_counts(inputs, model)
        return beds, jnp.mean(rho, axis=1), jnp.max(rho, axis=1)

    def one_run(draws):
        return jax.vmap(one_year)((admissions, draws.arrival, draws.stay))

    num_runs = draws.arrival.shape[0]
    return ProjectedBeds(*jax.lax.map(one_run, draws, batch_size=min(chunk, num_runs)))


def summarize_runs(beds: Int[Array, "R Y I S"]) -> Summary:
    """Computes median, quartiles (linear interpolation), mean and sample SD over runs."""
    number = jnp.where(beds < 0, jnp.nan, beds.astype(jnp.result_type(float)))
    levels = jnp.asarray([0.5, 0.25, 0.75], number.dtype)
    median, q25, q75 = jnp.quantile(number, levels, axis=0)
    return Summary(median, q25, q75, jnp.mean(number, axis=0), jnp.std(number, axis=0, ddof=1))


def projection(
    key: PRNGKeyArray,
    history: YearlyHistory,
    births: Mapping[int, float] | None = None,
    *,
    eta: float | Float[Array, ""] = 1.0,
    psi: float | Float[Array, ""] = 1.0,
    num_runs: int = 100,
    baseline_years: Sequence[int] = BASELINE_YEARS,
    base_year: int | None = None,
    model: BedModel = scenario.PAPER,
    chunk: int = 10,
) -> Projection:
    """Projects the beds of every site for every year of `births`.

    The law of the stay is that of `history`.  Host values (years, births, model) are static: to
    jit, close over them.

    Args:
        key: PRNG key of the drawn years.
        history: past years, see `yearly_history`.
        births: births of each projected year, `BIRTHS` by default.
        eta, psi, baseline_years, base_year: see `annual_admissions`.
        num_runs: R.
        model, chunk: see `project_beds`.

    Returns:
        `Projection`.

    Raises:
        ValueError: as `annual_admissions`, or if `num_runs` is below 1.

    Source: arXiv:2510.02852, projection.
    """
    if num_runs < 1:
        raise ValueError(f"num_runs must be at least 1, got {num_runs}")
    births = BIRTHS if births is None else births
    admissions = annual_admissions(
        history.admissions,
        history.years,
        births,
        eta=eta,
        psi=psi,
        baseline_years=baseline_years,
        base_year=base_year,
    )
    draws = draw_years(
        key,
        num_runs=num_runs,
        num_years=admissions.shape[0],
        num_sites=admissions.shape[1],
        num_history=len(history.years),
    )
    runs = project_beds(history, admissions, draws, model=model, chunk=chunk)
    return Projection(tuple(sorted(births)), admissions, draws, runs, summarize_runs(runs.beds))
