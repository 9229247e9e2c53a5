"""Benchmark tasks: five synthetic neonatal units with the published bed table as their target.

`calgary_like` is a constant-parameter stand-in for the patient data of arXiv:2510.02852, which are
not public. Arrival rates are derived from its Tables 3 and 4 (the admissions-weighted system row
fixes the shares, the bed table the total); length-of-stay laws are the published fits.
"""

import datetime
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxlab.queueing.census import occupancy
from jaxlab.queueing.data import records
from jaxlab.queueing.stays import conditional


class Site(NamedTuple):
    """One unit: its beds, its true length-of-stay law and its published fit.

    Attributes:
        name: label.
        beds: actual beds.
        lam: admissions per day.
        family: true law, "exponential", "weibull" or "fisk" (log-logistic).
        shape: its shape k (1 for exponential).
        scale: its scale theta, days.
        los_cap: the law is conditioned on stays up to this many days.
        kappa: published shape of the fitted law of the same family.
        smax: published truncation lag S_max, days.
        rmse: published survival error of that fit.
    """

    name: str
    beds: int
    lam: float
    family: str
    shape: float
    scale: float
    los_cap: float
    kappa: float
    smax: int
    rmse: float


CALGARY_SITES = (
    Site("Site 1", 14, 0.710, "fisk", 1.34, 10.534, 325.0, 1.34, 325, 0.01),
    Site("Site 2", 39, 2.651, "fisk", 1.54, 6.25, 350.0, 1.54, 116, 0.03),
    Site("Site 3", 30, 1.748, "exponential", 1.0, 12.5, math.inf, 1.0, 57, 0.02),
    Site("Site 4", 27, 1.687, "exponential", 1.0, 13.35, math.inf, 1.0, 61, 0.01),
    Site("Site 5", 16, 1.103, "weibull", 0.97, 10.95, math.inf, 0.97, 52, 0.02),
)
"""The five units. Beds, kappa, S_max and RMSE are published (arXiv:2510.02852 and its companion
planner); rates, scales and caps are derived."""

PUBLISHED_BEDS = {
    "actual": (14, 39, 30, 27, 16),
    "B_average": (20, 39, 27, 28, 16),
    "B_0.05": (26, 46, 34, 34, 21),
    "B_0.01": (31, 53, 39, 39, 24),
    "B_max": (32, 58, 40, 39, 26),
}
"""Beds per site and capacity rule. Source: arXiv:2510.02852, Table 3."""

PUBLISHED_UTILIZATION = {
    "actual": ((117.79, 20.55), (87.86, 10.69), (76.59, 15.16), (87.19, 13.83), (83.90, 20.29)),
    "B_average": ((82.45, 14.38), (87.86, 10.69), (85.10, 16.84), (84.08, 13.34), (83.90, 20.29)),
    "B_0.05": ((63.43, 11.06), (74.49, 9.07), (67.58, 13.38), (69.24, 10.98), (63.92, 15.46)),
    "B_0.01": ((53.20, 9.28), (64.65, 7.87), (58.91, 11.66), (60.36, 9.57), (55.93, 13.52)),
    "B_max": ((51.53, 8.99), (59.08, 7.19), (57.44, 11.37), (60.36, 9.57), (51.63, 12.48)),
}
"""Utilization per site and capacity rule, percent: (mean, SD over days).
Source: arXiv:2510.02852, Table 4."""

PUBLISHED_SYSTEM_UTILIZATION = {
    "actual": (87.36, 10.52),
    "B_average": (85.40, 1.87),
    "B_0.05": (69.37, 4.10),
    "B_0.01": (60.22, 3.74),
    "B_max": (57.27, 3.25),
}
"""Admissions-weighted mean and SD of the site means, percent. Source: arXiv:2510.02852, Table 4."""

PUBLISHED_BEDS_2030 = {
    "B_average": (21, 42, 29, 32, 19),
    "B_0.05": (26, 46, 35, 38, 24),
    "B_0.01": (31, 52, 41, 44, 29),
    "B_max": (30, 54, 40, 43, 28),
}
"""Projected beds in 2030, median of runs. Source: arXiv:2510.02852, Table 6."""

ORIGIN = datetime.date(2016, 1, 1)
"""First day of the study."""
NUM_DAYS = 2922
"""Days from 2016-01-01 to 2023-12-31."""

WEEKDAY_FACTORS = (1.05, 1.12, 1.12, 1.10, 1.05, 0.80, 0.76)
"""A weekday pattern of arrivals, Monday to Sunday, of the size seen in births (illustrative)."""
GESTATION_STRATA = ((0.15, 3.0), (0.30, 1.3), (0.55, 0.3))
"""(share, relative mean stay) of three gestational-age groups, youngest first (illustrative)."""

SCENARIOS = {
    "constant": {},
    "annual": {"annual": 0.2},
    "growth": {"growth": 0.03},
    "weekday": {"weekday": WEEKDAY_FACTORS},
    "los_drift": {"los_drift": 0.02},
    "twins": {"twins": 0.15},
    "strata": {"strata": GESTATION_STRATA},
    "all": {
        "annual": 0.2,
        "growth": 0.03,
        "weekday": WEEKDAY_FACTORS,
        "los_drift": 0.02,
        "twins": 0.15,
        "strata": GESTATION_STRATA,
    },
}
"""Named settings of `calgary_like`: `calgary_like(seed, **SCENARIOS["annual"])`."""


def demo5(
    *, family: str = "exponential", kappa: float = 1.5, smax: int = 60, num_days: int = 365
) -> occupancy.QueueInputs:
    """Returns the deterministic five-site demonstration inputs.

    `lam = base (1 + amp sin(2 pi (t + ph) / 365))`,
    `mu = L (1 + 0.1 sin(2 pi (t + 60 + ph) / 365))` and `sig2 = mu**2`, for one law at all sites.

    Args:
        family: length-of-stay family, one of `conditional.FAMILIES`.
        kappa: shape of the law.
        smax: truncation lag, days.
        num_days: T.

    Raises:
        ValueError: if the family is unknown.

    Source: companion planner of arXiv:2510.02852.
    """
    if family not in conditional.FAMILIES:
        raise ValueError(f"family must be one of {conditional.FAMILIES}, got {family!r}")
    sites = np.array(
        [
            (1.6, 0.25, 8.0, 0.0),
            (3.2, 0.20, 9.5, 20.0),
            (2.4, 0.18, 8.4, 55.0),
            (2.6, 0.22, 8.6, 80.0),
            (1.5, 0.20, 7.8, 120.0),
        ]
    )
    base, amp, stay, phase = (column[:, None] for column in sites.T)
    day = np.arange(num_days)[None, :]
    lam = base * (1 + amp * np.sin(2 * np.pi * (day + phase) / 365))
    mu = stay * (1 + 0.1 * np.sin(2 * np.pi * (day + 60 + phase) / 365))
    return occupancy.QueueInputs(
        lam=jnp.asarray(lam),
        mu=jnp.asarray(mu),
        sig2=jnp.asarray(mu**2),
        kappa=jnp.full(5, float(kappa)),
        family=jnp.full(5, conditional.FAMILIES.index(family), jnp.int32),
        smax=jnp.full(5, smax, jnp.int32),
    )


def calgary_like(
    seed: int | jax.Array,
    *,
    num_days: int = NUM_DAYS,
    sites: Sequence[Site] = CALGARY_SITES,
    origin: datetime.date = ORIGIN,
    annual: float = 0.0,
    annual_phase: float = 0.0,
    growth: float = 0.0,
    weekday: Sequence[float] | None = None,
    los_drift: float = 0.0,
    twins: float = 0.0,
    strata: Sequence[tuple[float, float]] | None = None,
) -> records.Stays:
    """Draws the stays of every patient admitted to the five units.

    With the defaults arrivals are Poisson with constant rates and stays are independent draws from
    the true laws by inverse CDF, the capped laws conditioned on the cap. Stays are continuous,
    admission days whole; nobody is in bed before day 0, every stay is seen to its end. The options
    change the rate and the mean stay as in `calgary_rates` and do not change either otherwise:

    Args:
        seed: integer or typed `jax.random` key; the draws are made on the host.
        num_days: T.
        sites: the units.
        origin: calendar date of day 0 (matters for `weekday`).
        annual: relative amplitude of a yearly sinusoid in the rate, in [0, 1].
        annual_phase: days by which the sinusoid is ahead of `sin` on day 0.
        growth: relative change of the rate per year, linear, from day 0.
        weekday: seven relative rates, Monday to Sunday, brought to mean 1.
        los_drift: relative change of every stay per year of admission, linear, from day 0.
        twins: probability that an arrival brings two patients, same day and site, independent
            stays; the rate of patients is kept.
        strata: (share, relative mean stay) of patient groups, brought to shares that add up to 1
            and mean 1; a patient's stay is multiplied by that of its group.

    Returns:
        The stays, sorted by day and site.

    Raises:
        ValueError: if an option is out of range or a rate or stay turns negative.
    """
    if not 0 <= twins < 1:
        raise ValueError(f"twins must be a probability below 1, got {twins}")
    lam, mu = calgary_rates(
        num_days,
        sites=sites,
        origin=origin,
        annual=annual,
        annual_phase=annual_phase,
        growth=growth,
        weekday=weekday,
        los_drift=los_drift,
    )
    groups = np.array([(1.0, 1.0)] if strata is None else strata, float)
    if groups.ndim != 2 or groups.shape[1] != 2 or (groups < 0).any() or not groups.prod(1).any():
        raise ValueError(f"strata must be (share, relative stay) pairs >= 0, got {strata}")
    share = groups[:, 0] / groups[:, 0].sum()
    multiplier = groups[:, 1] / (share @ groups[:, 1])

    rng = generator(seed)
    arrivals = rng.poisson(lam / (1 + twins))
    counts = arrivals + rng.binomial(arrivals, twins)
    day, site = (a.ravel() for a in np.meshgrid(np.arange(num_days), np.arange(len(sites))))
    order = np.lexsort((site, day))
    repeats = counts.ravel()[order]
    day, site = np.repeat(day[order], repeats), np.repeat(site[order], repeats)
    los = np.empty(day.size)
    for i, unit in enumerate(sites):
        mask = site == i
        los[mask] = los_quantile(unit, rng.random(mask.sum())) / mean_los(unit)
    los *= mu[site, day] * multiplier[rng.choice(len(share), day.size, p=share)]
    return records.Stays(
        site=site.astype(np.int32),
        day=day.astype(np.int32),
        los=np.maximum(los, 1e-9),
        event=np.ones(day.size, bool),
        discharge_day=np.full(day.size, -1, np.int32),
        offset=np.full(day.size, np.nan),
        by_date=np.zeros(day.size, bool),
        num_sites=len(sites),
        num_days=num_days,
        site_names=tuple(unit.name for unit in sites),
        origin=origin,
        windows=records.one_window(len(sites), num_days),
    )


def calgary_rates(
    num_days: int = NUM_DAYS,
    *,
    sites: Sequence[Site] = CALGARY_SITES,
    origin: datetime.date = ORIGIN,
    annual: float = 0.0,
    annual_phase: float = 0.0,
    growth: float = 0.0,
    weekday: Sequence[float] | None = None,
    los_drift: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the true rate and mean stay that `calgary_like` draws from.

    `lam[i, t] = lam_i (1 + annual sin(2 pi (t + annual_phase) / 365.25)) (1 + growth t / 365.25)`
    times the weekday factor, `mu[i, t] = E[S_i] (1 + los_drift t / 365.25)`.

    Args:
        num_days: T.
        sites: the units.
        origin: calendar date of day 0.
        annual: as in `calgary_like`, like the other options.
        annual_phase: days.
        growth: per year.
        weekday: Monday to Sunday.
        los_drift: per year.

    Returns:
        `(lam, mu)`, both `[I, T]` float64, patients per day and days.

    Raises:
        ValueError: if a rate turns negative or a mean stay is not positive on some day.
    """
    day = np.arange(num_days)
    rate = 1 + annual * np.sin(2 * np.pi * (day + annual_phase) / 365.25)
    rate = rate * (1 + growth * day / 365.25)
    if weekday is not None:
        factors = np.asarray(weekday, float)
        if factors.shape != (7,) or not factors.sum() > 0:
            raise ValueError(f"weekday needs seven factors, Monday to Sunday, got {weekday}")
        rate = rate * (factors / factors.mean())[(origin.weekday() + day) % 7]
    stay = 1 + los_drift * day / 365.25
    if (rate < 0).any() or (stay <= 0).any():
        raise ValueError(
            f"annual={annual}, growth={growth}, weekday={weekday} or los_drift={los_drift} give a "
            f"negative rate or no stay within {num_days} days"
        )
    lam = np.array([unit.lam for unit in sites])[:, None] * rate
    return lam, np.array([mean_los(unit) for unit in sites])[:, None] * stay


def los_cdf(site: Site, u: np.ndarray | float) -> np.ndarray:
    """Returns P(S <= u) of the site's true, conditioned law at `u` days (any shape)."""
    u = np.minimum(np.asarray(u, float), site.los_cap)
    return _plain_cdf(site, u) / _plain_cdf(site, site.los_cap)


def los_quantile(site: Site, prob: np.ndarray | float) -> np.ndarray:
    """Returns the quantile of the site's true law, days; the cap conditions, it does not clip."""
    p = np.asarray(prob, float) * _plain_cdf(site, site.los_cap)
    if site.family == "fisk":
        return site.scale * (p / (1 - p)) ** (1 / site.shape)
    return site.scale * (-np.log1p(-p)) ** (1 / site.shape)


def mean_los(site: Site) -> float:
    """Returns the exact mean of the site's true law, days.

    From the integral of the quantile function up to p = F(c), divided by p: for the log-logistic
    theta B(p; 1 + 1/k, 1 - 1/k) / p, for exponential and Weibull theta gamma(1 + 1/k, (c/theta)^k)
    / p, with the lower incomplete beta and gamma functions.
    """
    p = float(_plain_cdf(site, site.los_cap))
    a = 1 + 1 / site.shape
    if site.family == "fisk":
        b = 1 - 1 / site.shape
        return site.scale * float(special.betainc(a, b, p) * special.beta(a, b)) / p
    cut = (site.los_cap / site.scale) ** site.shape
    return site.scale * float(special.gammainc(a, cut) * special.gamma(a)) / p


def generator(seed: int | jax.Array) -> np.random.Generator:
    """Returns the host generator of an integer seed or of a typed `jax.random` key."""
    if isinstance(seed, jax.Array):
        return np.random.default_rng(np.asarray(jax.random.key_data(seed)).ravel())
    return np.random.default_rng(seed)


def _plain_cdf(site, u):
    """Computes the CDF of the law before it is conditioned on its cap."""
    scaled = np.asarray(u, float) / site.scale
    if site.family == "fisk":
        with np.errstate(divide="ignore"):
            return 1 / (1 + scaled**-site.shape)
    if site.family in ("exponential", "weibull"):
        return -np.expm1(-(scaled**site.shape))
    raise ValueError(f"family must be exponential, weibull or fisk, got {site.family!r}")
