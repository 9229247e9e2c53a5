"""From stays to beds: the whole planning pipeline of arXiv:2510.02852 as one pure function.

stays -> daily series -> STL search -> rates, mean and variance of the stay -> laws by survival
distance -> mean occupancy -> bed counts. Everything is traced, so a whole study can be jitted,
mapped over bootstrap samples, and differentiated up to the integer choices.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.queueing import capacity, daily, fit, occupancy, stl, survival
from jaxlab.queueing.data import Patients
from jaxlab.queueing.occupancy import QueueInputs

MIN_MEAN_LOS = 0.01
"""Least mean length of stay that the trend may fall to, days."""
ALPHAS = (0.05, 0.01)
"""The paper's two overflow risks."""


class Estimates(NamedTuple):
    """What the data say about each of `I` sites.

    Attributes:
        inputs: rates, means, variances and laws that drive the queue.
        series: daily admissions and mean stays they were estimated from.
        arrivals: STL choice for the daily admissions, fields `[I, ...]`.
        stays: STL choice for the daily mean stays, fields `[I, ...]`.
        window: `[I]` chosen window of the rolling variance, days (0 with pooled individual stays).
        fits: fitted laws, fields `[I, F]`.
        choice: `[I]` index into the families; -1 if none could be fitted.
        rate: `[I]` mean admissions per day.
        mean_los: `[I]` mean stay over patients, days.
    """

    inputs: QueueInputs
    series: daily.DailySeries
    arrivals: stl.GridSelection
    stays: stl.GridSelection
    window: Int[Array, " I"]
    fits: fit.LOSFit
    choice: Int[Array, " I"]
    rate: Float[Array, " I"]
    mean_los: Float[Array, " I"]


class Beds(NamedTuple):
    """Bed counts of each site by every rule, int32; -1 where `bed_cap` was too small.

    Attributes:
        average: `[I]` mean occupancy plus its square root.
        risk: `[A, I]` smallest count whose overflow risk is at most each alpha.
        peak: `[I]` highest mean occupancy plus its square root (the paper's B_max).
        naive_peak: `[I]` highest product of rate and mean stay.
        rule85: `[I]` mean occupancy at 85 % utilization.
    """

    average: Int[Array, " I"]
    risk: Int[Array, "A I"]
    peak: Int[Array, " I"]
    naive_peak: Int[Array, " I"]
    rule85: Int[Array, " I"]


class Plan(NamedTuple):
    """Estimates, the occupancy they imply, and the beds that follow.

    Attributes:
        estimates: see `Estimates`.
        rho: `[I, T]` mean occupancy, beds.
        mask: `[I, T]` days that averages take in (all, unless the warm-up is dropped).
        beds: see `Beds`.
    """

    estimates: Estimates
    rho: Float[Array, "I T"]
    mask: Array
    beds: Beds


def estimate(
    patients: Patients,
    num_days: int,
    *,
    u_max: int,
    grid: tuple[stl.STLConfig, ...] = stl.GRID,
    degree2: stl.Degree2 = "linear",
    families: Sequence[str] = fit.FAMILIES_DEFAULT,
    criterion: fit.Criterion = "rmse",
    keep_seasonal: bool = False,
    spread: Literal["daily_mean", "individual"] = "daily_mean",
) -> Estimates:
    """Estimates rates, stays and laws of every site.

    Args:
        patients: `[I, N]` patients.
        num_days: length T of the daily series; patients admitted outside are left out of it.
        u_max: static bound of S_max, days; the longest stay is always enough.
        grid: configurations of the STL search.
        degree2: what degree 2 means in the search.
        families: candidate laws.
        criterion: how the law is chosen.
        keep_seasonal: keep the day-of-week pattern in rates and mean stays (the paper drops it).
        spread: variance of the stay from the residual of the daily means (the paper's reading,
            which understates the variance of single stays) or pooled over individual stays.

    Returns:
        The estimates; a site whose law cannot be fitted has family code -1, and from there on NaN.

    Raises:
        ValueError: from the parts, for shapes or names that do not fit.

    Source: arXiv:2510.02852, estimation of arrivals and length of stay.
    """
    if spread not in ("daily_mean", "individual"):
        raise ValueError(f"spread must be 'daily_mean' or 'individual', got {spread!r}")
    num_sites = patients.los.shape[0]
    site = jnp.broadcast_to(jnp.arange(num_sites, dtype=jnp.int32)[:, None], patients.los.shape)
    day, flat_site, los = patients.day.reshape(-1), site.reshape(-1), patients.los.reshape(-1)
    weight = patients.weight.reshape(-1)
    series = daily.stays_to_daily(day, flat_site, los, num_sites, num_days, weight=weight)

    chosen = stl.stl_grid_select(
        jnp.concatenate([series.counts, series.mean_los]), grid, degree2=degree2
    )
    arrivals = jax.tree.map(lambda x: x[:num_sites], chosen)
    stays = jax.tree.map(lambda x: x[num_sites:], chosen)
    lam, mu = (
        part.result.trend + part.result.seasonal if keep_seasonal else part.result.trend
        for part in (arrivals, stays)
    )
    lam, mu = jnp.maximum(lam, 0.0), jnp.maximum(mu, MIN_MEAN_LOS)
    if spread == "daily_mean":
        sig2, window = stl.rolling_variance_select(stays.result.resid)
    else:
        sig2 = daily.individual_variance(day, flat_site, los, mu, weight=weight)
        window = jnp.zeros(num_sites, jnp.int32)

    fits = jax.vmap(
        lambda x, event, w: fit.fit_families(x, event, families, weight=w, u_max=u_max)
    )(patients.los, patients.event, patients.weight)
    choice = fit.select_los(fits, criterion)
    best = jnp.maximum(choice, 0)[:, None]
    kappa, smax = (
        jnp.take_along_axis(value, best, axis=1)[:, 0] for value in (fits.kappa, fits.smax)
    )
    codes = jnp.asarray([survival.FAMILIES.index(name) for name in families], jnp.int32)
    family = jnp.where(choice >= 0, codes[best[:, 0]], -1)
    total = jnp.sum(patients.weight, axis=1)
    mean_los = jnp.sum(patients.weight * patients.los, axis=1) / jnp.maximum(total, 1.0)
    return Estimates(
        inputs=QueueInputs(lam, mu, sig2, kappa, family, smax),
        series=series,
        arrivals=arrivals,
        stays=stays,
        window=window,
        fits=fits,
        choice=choice,
        rate=jnp.mean(series.counts, axis=1),
        mean_los=mean_los,
    )


def size_beds(
    rho: Float[Array, "I T"],
    lam: Float[Array, "I T"],
    mu: Float[Array, "I T"],
    rate: Float[Array, " I"],
    mean_los: Float[Array, " I"],
    *,
    bed_cap: int = 4096,
    alphas: Sequence[float] = ALPHAS,
    gamma: float = 1.0,
    rule: Literal["average", "max"] = "average",
    mask: Array | None = None,
) -> Beds:
    """Sizes every site by every rule; arguments as in `capacity`.

    Args:
        rho: `[I, T]` mean occupancy, beds.
        lam: `[I, T]` arrival rate, per day.
        mu: `[I, T]` mean stay, days.
        rate: `[I]` mean admissions per day.
        mean_los: `[I]` mean stay over patients, days.
        bed_cap: largest count the risk rules may return; static.
        alphas: overflow risks.
        gamma: share of the beds that may be filled before a day counts as overflow; static.
        rule: whether the average or the highest daily risk is held to alpha.
        mask: `[I, T]` days that count; all when None.
    """
    mask = jnp.ones_like(rho, bool) if mask is None else mask

    def site(rho, lam, mu, mask):
        risk = [
            capacity.beds_alpha(rho, alpha, gamma=gamma, rule=rule, bed_cap=bed_cap, mask=mask)
            for alpha in alphas
        ]
        return (
            jnp.stack(risk),
            capacity.beds_max(rho, mask=mask),
            capacity.beds_naive_peak(lam, mu),
            capacity.beds_rule85(rho, mask=mask),
        )

    risk, peak, naive_peak, rule85 = jax.vmap(site)(rho, lam, mu, mask)
    average = jax.vmap(capacity.beds_average)(rate, mean_los)
    return Beds(average, risk.T, peak, naive_peak, rule85)


def plan(
    patients: Patients,
    num_days: int,
    *,
    u_max: int,
    bed_cap: int = 4096,
    grid: tuple[stl.STLConfig, ...] = stl.GRID,
    degree2: stl.Degree2 = "linear",
    families: Sequence[str] = fit.FAMILIES_DEFAULT,
    criterion: fit.Criterion = "rmse",
    keep_seasonal: bool = False,
    spread: Literal["daily_mean", "individual"] = "daily_mean",
    variant: str = "fisk_paper",
    moments: str = "one",
    convention: str = "ceil",
    warmup: str = "zero",
    alphas: Sequence[float] = ALPHAS,
    gamma: float = 1.0,
    rule: Literal["average", "max"] = "average",
) -> Plan:
    """Runs the whole pipeline; the defaults are the paper's.

    Args:
        patients: `[I, N]` patients; see `data.pooled_by_site`.
        num_days: length T of the daily series.
        u_max: static bound of S_max and of the lags of the queue, days.
        bed_cap: largest count the risk rules may return.
        grid, degree2, families, criterion, keep_seasonal, spread: see `estimate`.
        variant, moments: reading of the laws, see `survival.survival`.
        convention, warmup: of the census, see `occupancy.occupancy_mean`.
        alphas, gamma, rule: see `size_beds`.

    Returns:
        The plan. Take it in float64 (`with jax.enable_x64(True)`) when single beds matter.

    Source: arXiv:2510.02852.
    """
    estimates = estimate(
        patients,
        num_days,
        u_max=u_max,
        grid=grid,
        degree2=degree2,
        families=families,
        criterion=criterion,
        keep_seasonal=keep_seasonal,
        spread=spread,
    )
    inputs = estimates.inputs
    rho = occupancy.occupancy_mean(
        *inputs,
        convention=convention,
        warmup=warmup,
        num_lags=u_max,
        variant=variant,
        moments=moments,
    )
    mask = occupancy.warm_mask(num_days, inputs.smax, warmup)
    beds = size_beds(
        rho,
        inputs.lam,
        inputs.mu,
        estimates.rate,
        estimates.mean_los,
        bed_cap=bed_cap,
        alphas=alphas,
        gamma=gamma,
        rule=rule,
        mask=mask,
    )
    return Plan(estimates, rho, mask, beds)
