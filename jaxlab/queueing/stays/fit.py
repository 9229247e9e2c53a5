"""Fitting a length-of-stay law to censored stays, and choosing the family.

Stays that are known in whole days only are interval-censored: see `counts`.

Source: Akbari-Moghaddam et al. (arXiv:2510.02852): maximum likelihood per site, the family whose
survival function is nearest to the Kaplan-Meier curve at whole days (`empirical`), truncation at
S_max = floor(min(longest stay, fitted 99th percentile)).

All functions take one site as `[N]` arrays; `jax.vmap` them over sites padded with weight 0.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import special
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlab.queueing import settings
from jaxlab.queueing.stays import counts, empirical
from jaxlab.queueing.stays import los as laws

FAMILIES_DEFAULT = ("exponential", "weibull", "lognormal", "gamma", "fisk")  # of the paper

Criterion = Literal["rmse", "rmse_common", "aic", "bic", "ks", "ad", "loglik"]

OK, NOT_CONVERGED, GRID_TOO_SHORT, NO_EVENTS, BAD_DATA = range(5)
"""Status of a fit: usable; no interior maximum (too few distinct stays, or a likelihood without
one); good parameters but S_max > u_max (fit again with a larger u_max); no discharge of positive
weight; a stay of positive weight not in (0, inf), or a weight not in [0, inf)."""

_NEWTON_STEPS = 30
_MAX_LOG_PARAMS = (math.log(1e3), 20.0)  # the scale relative to the geometric mean of the stays
_GAMMA_NODES = 512


class LOSFit(NamedTuple):
    """A fitted law and its goodness of fit; scalars, or `[F]` for several families."""

    params: laws.LOSParams  # natural parameters; finite placeholders where not converged
    kappa: Float[Array, "..."]  # params.shape, held fixed when the scale follows the daily mean
    loglik: Float[Array, "..."]
    aic: Float[Array, "..."]
    bic: Float[Array, "..."]  # its sample size is the sum of the weights
    ks: Float[Array, "..."]  # sup |S - KM| over [0, longest stay]
    ad: Float[Array, "..."]  # n int (S-KM)^2/(S(1-S)) dF, to the longest stay if it is censored
    rmse: Float[Array, "..."]  # of S - KM at u = 0, 1, ..., smax; infinite if smax > u_max
    rmse_common: Float[Array, "..."]  # on the longest grid 0..smax of the usable fits in the call
    q99: Float[Array, "..."]  # days
    smax: Int[Array, "..."]  # max(1, floor(min(longest stay, q99))); a censored stay counts
    converged: Bool[Array, "..."]
    status: Int[Array, "..."]  # OK, NOT_CONVERGED, GRID_TOO_SHORT, NO_EVENTS or BAD_DATA


class _Sample(NamedTuple):
    """Stays in ascending order, discharges before censored stays of equal length, padding last."""

    time: Array  # padding repeats the longest stay
    event: Array
    weight: Array
    km: Array  # Kaplan-Meier just after each stay
    longest: Array
    bad: Array
    whole: Array | None = None  # True where the stay is a number of days that were counted


def fit_los(
    los: Float[ArrayLike, " N"],
    event: ArrayLike,
    family: str,
    *,
    weight: ArrayLike | None = None,
    by_date: ArrayLike | None = None,
    convention: settings.Convention = "ceil",
    u_max: int,
) -> LOSFit:
    """Fits one family by maximum likelihood with right-censored stays.

    `params`, and what is computed from them, are differentiable in `los` and `weight`: a last
    Newton step at the maximum carries the implicit derivatives of the iterations before it.

    Args:
        los: `[N]` stays, days, > 0.
        event: `[N]` True (or 1) if the stay ended; else ln S replaces ln f in the likelihood.
        family: one of `conditional.FAMILIES`.
        weight: `[N]` non-negative case weights, 0 for padding (of any stay); ones by default.
        by_date: `[N]` True where the stay is a whole number of days that were counted, 0 allowed:
            the likelihood takes the probability of that count, and of that count or more if the
            stay is censored. None: all stays are exact.
        convention: how the days were counted, see `counts.counted_survival`; static.
        u_max: last day of the grid on which S is compared with the Kaplan-Meier curve.

    Returns:
        The fit; parameters right to about 1e-9 in float64, 1e-5 in float32 with 10,000 stays.

    Raises:
        ValueError: for an unknown family or convention, empty arrays or different shapes, or
            u_max < 1.
    """
    fits = fit_families(
        los, event, (family,), weight=weight, by_date=by_date, convention=convention, u_max=u_max
    )
    return jax.tree.map(lambda leaf: leaf[0], fits)


def fit_families(
    los: Float[ArrayLike, " N"],
    event: ArrayLike,
    families: Sequence[str] = FAMILIES_DEFAULT,
    *,
    weight: ArrayLike | None = None,
    by_date: ArrayLike | None = None,
    convention: settings.Convention = "ceil",
    u_max: int,
) -> LOSFit:
    """Fits several families to the same stays; arguments as in `fit_los`.

    Returns:
        A `LOSFit` with a leading axis `[F]` in the order of `families`.

    Raises:
        ValueError: without a family, or as `fit_los`.
    """
    if not families:
        raise ValueError(f"families must hold at least one of {FAMILIES_DEFAULT}, got none")
    settings.check_name("convention", convention, settings.Convention)
    los, event, weight = empirical.check_stays(los, event, weight)
    empirical.day_grid(u_max, los.dtype)
    for family in families:
        laws.check_family(family)
    whole = None
    if by_date is not None:
        whole = jnp.asarray(by_date).astype(bool)
        if whole.shape != los.shape:
            raise ValueError(f"by_date must be {los.shape} like los, got {whole.shape}")
        los = counts.counted_days(los, event, whole, convention)
    return _fit_families(los, event, weight, whole, u_max, tuple(families), convention)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _fit_families(
    los: Array,
    event: Array,
    weight: Array,
    whole: Array | None,
    u_max: int,
    families: tuple[str, ...],
    convention: settings.Convention,
) -> LOSFit:
    grid = empirical.day_grid(u_max, los.dtype)
    sample = _prepare(los, event, weight, whole)
    counted = None
    if sample.whole is not None:
        mass = jnp.where(sample.whole, sample.weight, 0.0)
        counted = counts.gather(sample.time, sample.event, mass, grid, convention)
    fitted = [_fit_one(family, sample, grid, counted) for family in families]
    fitted = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fitted)
    params, converged, loglik, q99, log_after, log_before, surv = fitted

    no_events = jnp.sum(sample.weight * sample.event) <= 0
    # Whole days, also where rounding leaves 57 days at 56.999...
    tolerance = 16 * float(jnp.finfo(grid.dtype).eps)
    smax = jnp.floor(jnp.minimum(sample.longest, q99) * (1 + tolerance))
    smax = jnp.maximum(smax, 1.0).astype(jnp.int32)
    long_enough = smax <= u_max
    if sample.whole is not None:
        beyond = sample.whole & (sample.weight > 0) & (sample.time > u_max)
        long_enough &= ~jnp.any(beyond)  # the likelihood took them for u_max
    status = jnp.where(long_enough, OK, GRID_TOO_SHORT)
    status = jnp.where(converged, status, NOT_CONVERGED)
    status = jnp.where(no_events, NO_EVENTS, status)
    status = jnp.where(sample.bad, BAD_DATA, status).astype(jnp.int32)

    total = jnp.sum(sample.weight)
    num_params = jnp.asarray(
        [1 if family == "exponential" else 2 for family in families], los.dtype
    )
    squared = (surv - empirical.step_function(sample.time, sample.km, grid)[None]) ** 2
    common = jnp.where(status == OK, jnp.max(jnp.where(status == OK, smax, 0)), u_max + 1)
    rmse, rmse_common = (
        jnp.where(last <= u_max, empirical.rmse(squared, grid, last), jnp.inf)
        for last in (smax, common)
    )
    distance = jax.vmap(empirical.kolmogorov_smirnov, (0, 0, None))
    return LOSFit(
        params=params,
        kappa=params.shape,
        loglik=loglik,
        aic=2 * num_params - 2 * loglik,
        bic=num_params * jnp.log(jnp.maximum(total, 1.0)) - 2 * loglik,
        ks=distance(jnp.exp(log_after), jnp.exp(log_before), sample.km),
        ad=total * jax.vmap(empirical.anderson_darling, (0, None))(log_after, sample.km),
        rmse=rmse,
        rmse_common=rmse_common,
        q99=q99,
        smax=smax,
        converged=converged & ~no_events & ~sample.bad,
        status=status,
    )


def select_los(fits: LOSFit, criterion: Criterion = "rmse") -> Int[Array, "..."]:
    """Chooses the family: the lowest criterion (highest for "loglik") among the usable fits.

    Returns:
        Index into the last axis of `fits`, the first of equals, int32; -1 if no status is OK.

    Raises:
        ValueError: for an unknown criterion.
    """
    if criterion not in get_args(Criterion):
        raise ValueError(f"unknown criterion {criterion!r}: choose one of {get_args(Criterion)}")
    score = getattr(fits, criterion)
    score = -score if criterion == "loglik" else score
    usable = (fits.status == OK) & jnp.isfinite(score)
    best = jnp.argmin(jnp.where(usable, score, jnp.inf), axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(usable, axis=-1), best, -1)


def maximize_likelihood(
    family: str,
    time: Float[Array, " N"],
    event: Float[Array, " N"],
    weight: Float[Array, " N"],
    start: Float[Array, "2"],
    num_steps: int = _NEWTON_STEPS,
) -> tuple[Float[Array, "2"], Float[Array, "2 2"]]:
    """Climbs the mean censored log likelihood by damped Newton steps that never descend.

    Takes a family of two parameters, stays in units of about their geometric mean, events and
    weights `[N]` as floats, and log parameters: (ln shape, ln scale), or (ln k, ln(theta/k)) for
    Burr. Returns the log parameters and the Hessian there; `num_steps` counts evaluations.
    """
    sample = lax.stop_gradient((time, event, weight))
    objective = _gamma_objective(*sample) if family == "gamma" else _objective(family, *sample)
    return _climb(objective, lax.stop_gradient(start), num_steps)


def natural_params(family: str, phi: Float[Array, "2"]) -> laws.LOSParams:
    """Converts the log parameters of `maximize_likelihood`.

    Burr tends to the exponential law of mean theta/k as k grows, hence its second coordinate.
    """
    return laws.LOSParams(jnp.exp(phi[0]), jnp.exp(phi[1] + phi[0] if family == "burr" else phi[1]))


def initial_phi(
    family: str, time: Float[Array, " N"], event: Float[Array, " N"], weight: Float[Array, " N"]
) -> Float[Array, "2"]:
    """Starts `maximize_likelihood` from the spread of ln x, whose mean is about 0."""
    spread = jnp.maximum(jnp.sqrt(_weighted_mean(jnp.log(time) ** 2, weight)), 1e-3)
    mean = _weighted_mean(time, weight)
    match family:
        case "weibull":  # ln x is Gumbel: sd pi/(k sqrt 6), mean ln theta - 0.577/k
            shape = math.pi / (math.sqrt(6) * spread)
            start = jnp.log(shape), 0.5772156649 / shape
        case "lognormal":
            start = jnp.log(spread), jnp.zeros_like(spread)
        case "fisk":  # ln x is logistic: sd pi/(k sqrt 3)
            start = jnp.log(math.pi / (math.sqrt(3) * spread)), jnp.zeros_like(spread)
        case "gamma":
            s = jnp.maximum(jnp.log(mean), 1e-6)
            shape = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
            start = jnp.log(shape), jnp.log(mean / shape)
        case _:
            start = jnp.ones_like(spread), jnp.log(mean)
    return jnp.stack(start)


def _prepare(los: Array, event: Array, weight: Array, whole: Array | None) -> _Sample:
    good_los = jnp.isfinite(los) & (los > 0)
    if whole is not None:
        good_los |= whole & (los == 0)
    good_weight = jnp.isfinite(weight) & (weight >= 0)
    bad = jnp.any(~good_weight | ((weight > 0) & ~good_los))
    weight = jnp.where(good_los & good_weight, weight, 0.0)
    longest = jnp.max(jnp.where(weight > 0, los, 0.0))
    longest = jnp.where(longest > 0, longest, 1.0)
    more = () if whole is None else (whole,)
    time, event, weight, *more = empirical.sort_stays(los, event, weight, *more)
    time = jnp.where(weight > 0, time, longest)
    return _Sample(time, event, weight, empirical.product_limit(event, weight), longest, bad, *more)


def _fit_one(family: str, sample: _Sample, grid: Array, counted: counts.Counted | None):
    """Returns the fit and what its goodness is read from.

    Parameters, convergence, log likelihood, q99, ln P(stay > t) and ln P(stay >= t) at the stays
    and P(stay > u) on the grid, the last three of stays as they are recorded.
    """
    params, converged = _fit_params(family, sample, counted)
    log_pdf = laws.log_pdf(family, sample.time, params)
    log_sf = laws.log_survival(family, jnp.concatenate([sample.time, grid]), params)
    log_sf, surv = log_sf[: -grid.size], jnp.exp(log_sf[-grid.size :])
    loglik = sample.weight * jnp.where(sample.event > 0, log_pdf, log_sf)
    if counted is None or sample.whole is None:
        return params, converged, jnp.sum(loglik), laws.q99(family, params), log_sf, log_sf, surv
    log_reached = counts.log_reached(family, counted, params)
    loglik = jnp.sum(jnp.where(sample.whole, 0.0, loglik))
    loglik += counts.log_likelihood(log_reached, counted)
    share = _weighted_mean(sample.whole.astype(grid.dtype), sample.weight)
    surv = (1 - share) * surv + share * jnp.exp(log_reached[1:])
    day = counts.day_index(sample.time, grid)
    before = jnp.where(sample.whole, log_reached[day], log_sf)
    after = jnp.where(sample.whole, log_reached[day + 1], log_sf)
    return params, converged, loglik, laws.q99(family, params), after, before, surv


def _fit_params(
    family: str, sample: _Sample, counted: counts.Counted | None
) -> tuple[laws.LOSParams, Array]:
    """Returns the maximum likelihood estimate and whether it is an interior maximum."""
    time, event, weight = sample.time, sample.event, sample.weight
    if counted is not None and sample.whole is not None:
        return _fit_counted(family, sample, sample.whole, counted)
    if family == "exponential":
        num_events = jnp.sum(weight * event)
        theta = jnp.sum(weight * time) / jnp.where(num_events > 0, num_events, 1.0)
        theta = jnp.where(num_events > 0, theta, sample.longest)
        return laws.LOSParams(jnp.ones_like(theta), theta), num_events > 0
    unit = jnp.exp(lax.stop_gradient(_weighted_mean(jnp.log(time), weight)))
    time = time / unit
    start = initial_phi(family, time, event, weight)
    phi, hess = maximize_likelihood(family, time, event, weight, start)
    return _polish(family, _objective(family, time, event, weight), phi, hess, unit)


def _fit_counted(
    family: str, sample: _Sample, whole: Array, counted: counts.Counted
) -> tuple[laws.LOSParams, Array]:
    """Does what `_fit_params` does where some stays are counts of whole days."""
    event, weight = sample.event, sample.weight
    # A place in the middle of its interval is near enough for a start.
    near = jnp.where(whole, jnp.maximum(sample.time - 0.5, 0.5), sample.time)
    unit = jnp.exp(lax.stop_gradient(_weighted_mean(jnp.log(near), weight)))
    total = jnp.maximum(jnp.sum(weight), float(jnp.finfo(weight.dtype).tiny))
    stays = (jnp.where(whole, 1.0, sample.time / unit), event, jnp.where(whole, 0.0, weight))
    share = jnp.sum(stays[2]) / total

    def with_counts(exact):
        def objective(phi):
            log_reached = counts.log_reached(family, counted, natural_params(family, phi), unit)
            value = share * exact(phi) + counts.log_likelihood(log_reached, counted) / total
            # The exponential law has no shape: hold it at 1.
            return value - 0.5 * phi[0] ** 2 if family == "exponential" else value

        return objective

    start = initial_phi(family, near / unit, event, weight)
    if family == "exponential":
        start = start.at[0].set(0.0)
    fast = _gamma_objective(*stays) if family == "gamma" else _objective(family, *stays)
    start, unit_ = lax.stop_gradient((start, unit))
    phi, hess = _climb(with_counts(fast), start, _NEWTON_STEPS)
    return _polish(family, with_counts(_objective(family, *stays)), phi, hess, unit_)


def _polish(family: str, objective, phi: Array, hess: Array, unit: Array):
    """Takes one Newton step of the exact likelihood with a fixed Hessian.

    By the implicit function theorem it carries the derivatives of the maximum. Returns parameters
    in days, and whether the maximum is an interior one.
    """
    step, definite = _newton_step(jax.jacfwd(objective)(phi), hess)
    small = jnp.max(jnp.abs(step)) < jnp.finfo(step.dtype).eps ** (1 / 3)
    interior = jnp.all(jnp.abs(phi) < 0.999 * jnp.asarray(_MAX_LOG_PARAMS, phi.dtype))
    converged = definite & small & interior
    shape, scale = natural_params(family, phi + jnp.where(converged, step, 0.0))
    return laws.LOSParams(shape, unit * scale), converged


def _weighted_mean(values: Array, weight: Array) -> Array:
    total = jnp.sum(weight)
    return jnp.sum(weight * values) / jnp.where(total > 0, total, 1.0)


def _objective(family: str, time: Array, event: Array, weight: Array) -> Callable[[Array], Array]:
    """Returns the mean censored log likelihood as a function of the log parameters."""

    def objective(phi):
        params = natural_params(family, phi)
        log_pdf = laws.log_pdf(family, time, params)
        log_sf = laws.log_survival(family, time, params)
        return _weighted_mean(jnp.where(event > 0, log_pdf, log_sf), weight)

    return objective


def _gamma_objective(time: Array, event: Array, weight: Array) -> Callable[[Array], Array]:
    """Does the same for gamma, to about 1e-8, at the cost of 512 incomplete gamma functions.

    The discharges enter through three sums, the censored stays through four-point (cubic Lagrange)
    weights on a uniform grid of ln x.
    """
    y = jnp.log(time)
    total = jnp.sum(weight)
    weight = weight / jnp.where(total > 0, total, 1.0)
    ended = weight * event
    share, mean_y, mean_x = jnp.sum(ended), jnp.sum(ended * y), jnp.sum(ended * time)

    low = jnp.min(y)
    spacing = jnp.maximum(jnp.max(y) - low, 1e-3) / (_GAMMA_NODES - 1)
    nodes = jnp.exp(low + spacing * jnp.arange(_GAMMA_NODES, dtype=y.dtype))
    position = (y - low) / spacing
    left = jnp.clip(jnp.floor(position), 1, _GAMMA_NODES - 3)
    f = position - left
    lagrange = (
        -f * (f - 1) * (f - 2) / 6,
        (f + 1) * (f - 1) * (f - 2) / 2,
        -(f + 1) * f * (f - 2) / 2,
        (f + 1) * f * (f - 1) / 6,
    )
    idx = left.astype(jnp.int32)[None] + jnp.arange(-1, 3, dtype=jnp.int32)[:, None]
    mass = jnp.zeros_like(nodes).at[idx].add((weight - ended)[None] * jnp.stack(lagrange))

    def objective(phi):
        k = jnp.exp(phi[0])
        normalizer = special.gammaln(k) + k * phi[1]
        log_pdf = (k - 1) * mean_y - jnp.exp(-phi[1]) * mean_x - share * normalizer
        return log_pdf + jnp.sum(
            mass * laws.log_survival("gamma", nodes, natural_params("gamma", phi))
        )

    return objective


def _derivatives(objective, phi: Array) -> tuple[Array, Array, Array]:
    """Returns value, gradient and Hessian, by forward mode (two inputs)."""

    def grad_and_value(phi):
        grad, value = jax.jacfwd(lambda phi: (objective(phi),) * 2, has_aux=True)(phi)
        return grad, (value, grad)

    hess, (value, grad) = jax.jacfwd(grad_and_value, has_aux=True)(phi)
    return value, grad, hess


def _newton_step(grad: Array, hess: Array) -> tuple[Array, Array]:
    """Returns the ascent step, and whether the Hessian is negative definite (or is shifted)."""
    (a, b), (_, d) = -hess
    radius = jnp.hypot(0.5 * (a - d), b)
    smallest, largest = 0.5 * (a + d) - radius, 0.5 * (a + d) + radius
    definite = smallest > 100 * jnp.finfo(grad.dtype).eps * jnp.abs(largest)
    shift = jnp.where(definite, 0.0, 0.1 * jnp.abs(largest) + 1.1 * jnp.abs(smallest) + 1e-6)
    a, d = a + shift, d + shift
    det = a * d - b * b
    step = jnp.stack([d * grad[0] - b * grad[1], a * grad[1] - b * grad[0]])
    return step / jnp.where(det > 0, det, 1.0), definite


def _climb(objective, start: Array, num_steps: int) -> tuple[Array, Array]:
    """Climbs by Newton steps; the longest step allowed shrinks when the objective falls."""
    slack = 4 * float(jnp.finfo(start.dtype).eps)  # rounding error of the mean
    bounds = jnp.asarray(_MAX_LOG_PARAMS, start.dtype)

    def body(carry, _):
        best, radius = carry
        phi, value, step, _ = best
        length = jnp.sqrt(jnp.sum(step**2))
        trial = phi + step * jnp.minimum(1.0, radius / jnp.maximum(length, 1e-30))
        trial = jnp.clip(trial, -bounds, bounds)
        trial_value, grad, hess = _derivatives(objective, trial)
        better = trial_value >= value - slack * (1 + jnp.abs(value))  # False for NaN
        new = trial, trial_value, _newton_step(grad, hess)[0], hess
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), new, best)
        wider, narrower = jnp.minimum(2 * radius, 2.0), 0.25 * jnp.minimum(length, radius)
        return (best, jnp.where(better, wider, narrower)), None

    # The first step is of length zero and evaluates the start.
    zero = jnp.zeros_like(start)
    best = start, jnp.full_like(start[0], -jnp.inf), zero, jnp.multiply.outer(zero, zero)
    (best, _), _ = lax.scan(body, (best, jnp.ones_like(start[0])), None, length=num_steps)
    return best[0], best[3]
