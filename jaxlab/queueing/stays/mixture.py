"""Mixtures of length-of-stay laws by expectation-maximization, with right-censored stays.

Extends the single laws of Akbari-Moghaddam et al. (arXiv:2510.02852); Dempster, Laird & Rubin
(1977). A mixture of exponentials is the hyperexponential law, which is the phase-type law offered
here: stays more variable than exponential, as in intensive care, need no other.

All functions take one site as `[N]` arrays; `jax.vmap` them over sites padded with weight 0.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from jaxlab.queueing.stays import empirical, fit
from jaxlab.queueing.stays import los as laws

MIXTURE_FAMILIES = ("exponential", "weibull", "lognormal", "gamma")

_WEIGHT_FLOOR = 1e-3
_SHORT_RUN = 50
# Two Newton steps from the last estimate climb the M step almost to its maximum.
_M_STEPS = 3
# No component is narrower than a coefficient of variation of about 5 %: the likelihood of one that
# collapses on a single value (a tie of whole days) has no maximum.
_SHAPE_LIMITS = {"weibull": (1e-3, 25.0), "lognormal": (0.05, 1e3), "gamma": (1e-3, 400.0)}


class MixtureFit(NamedTuple):
    """A fitted mixture; components in ascending order of their mean."""

    weights: Float[Array, " K"]
    params: laws.LOSParams  # [K]
    loglik: Float[Array, ""]
    bic: Float[Array, ""]  # its sample size is the sum of the case weights
    converged: Bool[Array, ""]
    num_iters: Int[Array, ""]


class Scored(Protocol):
    """What `select_components` compares: a `MixtureFit`, or a `fit.LOSFit` for one component."""

    @property
    def bic(self) -> Array: ...
    @property
    def converged(self) -> Array: ...


class _State(NamedTuple):
    weights: Array
    phi: Array  # [K, 2] log parameters
    loglik: Array  # before the last step
    change: Array
    num_iters: Array


def fit_mixture(
    key: PRNGKeyArray,
    los: Float[ArrayLike, " N"],
    event: ArrayLike,
    family: str,
    *,
    num_components: int = 2,
    weight: ArrayLike | None = None,
    num_starts: int = 8,
    max_iters: int = 2000,
    tol: float = 1e-8,
) -> MixtureFit:
    """Fits a mixture of laws of one family: short runs from random starts, the best one continued.

    Args:
        key: random key for the starts.
        los: `[N]` stays, days, > 0.
        event: `[N]` True (or 1) if the stay ended; else S replaces f in the likelihood.
        family: one of `MIXTURE_FAMILIES`.
        num_components: K >= 1.
        weight: `[N]` non-negative case weights, 0 for padding (of any stay); ones by default.
        num_starts: random starts, each of 50 iterations.
        max_iters: iterations of the run that is continued.
        tol: stops when the log likelihood changes by less, or by less than its rounding error.

    Returns:
        The mixture. Component weights are at least 0.001. `converged` is False if `max_iters` was
        reached, no discharge has positive weight, or a stay or weight is out of range (as for
        `fit.BAD_DATA`).

    Raises:
        ValueError: for an unknown family, counts below 1, or arrays of different shapes.
    """
    if family not in MIXTURE_FAMILIES:
        raise ValueError(f"unknown mixture family {family!r}: choose one of {MIXTURE_FAMILIES}")
    if min(num_components, num_starts, max_iters) < 1:
        raise ValueError(
            "num_components, num_starts and max_iters must be at least 1, got "
            f"{num_components}, {num_starts} and {max_iters}"
        )
    data = empirical.check_stays(los, event, weight)
    return _fit_mixture(key, data, family, num_components, num_starts, max_iters, float(tol))


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _fit_mixture(
    key: PRNGKeyArray,
    data: tuple[Array, Array, Array],
    family: str,
    num_components: int,
    num_starts: int,
    max_iters: int,
    tol: float,
) -> MixtureFit:
    los, event, weight = data
    valid = jnp.isfinite(los) & (los > 0) & jnp.isfinite(weight) & (weight >= 0)
    bad = jnp.any(~valid & (weight != 0))
    weight = jnp.where(valid, weight, 0.0)
    log_time = jnp.log(jnp.where(valid, los, 1.0))
    total, num_events = jnp.sum(weight), jnp.sum(weight * event)
    log_unit = jnp.sum(weight * log_time) / jnp.where(total > 0, total, 1.0)
    log_time = log_time - log_unit

    em = functools.partial(_expectation_maximization, family, jnp.exp(log_time), event, weight, tol)
    starts = _random_starts(key, family, log_time, weight, num_starts, num_components)
    short = jax.vmap(functools.partial(em, max_iters=min(_SHORT_RUN, max_iters)))(starts)
    best = jnp.argmax(jnp.where(jnp.isnan(short.loglik), -jnp.inf, short.loglik))
    state = em(jax.tree.map(lambda leaf: leaf[best], short), max_iters=max_iters)

    log_terms, _ = _log_terms(family, jnp.exp(log_time), event, state.weights, state.phi)
    loglik = jnp.sum(weight * jax.nn.logsumexp(log_terms, axis=0)) - num_events * log_unit
    params = jax.vmap(functools.partial(fit.natural_params, family))(state.phi)
    params = params._replace(scale=params.scale * jnp.exp(log_unit))
    order = jnp.argsort(laws.mean(family, params))
    num_params = num_components * (1 if family == "exponential" else 2) + num_components - 1
    return MixtureFit(
        weights=state.weights[order],
        params=jax.tree.map(lambda leaf: leaf[order], params),
        loglik=loglik,
        bic=num_params * jnp.log(jnp.maximum(total, 1.0)) - 2 * loglik,
        converged=_settled(state, tol) & jnp.isfinite(loglik) & (num_events > 0) & ~bad,
        num_iters=state.num_iters,
    )


def mixture_survival(
    family: str, u: Float[ArrayLike, "..."], mixture: MixtureFit
) -> Float[Array, "..."]:
    """Evaluates P(X > u) = sum_k w_k S_k(u), `[...]` days in and probabilities out; 1 at u = 0."""
    u = jnp.asarray(u)
    terms = jax.vmap(lambda w, params: w * laws.sf(family, u, params))
    return jnp.sum(terms(mixture.weights, mixture.params), axis=0)


def mixture_mean(family: str, mixture: MixtureFit) -> Float[Array, ""]:
    """Evaluates the mean stay, days."""
    return jnp.sum(mixture.weights * laws.mean(family, mixture.params))


@functools.partial(jax.jit, static_argnums=0)
def mixture_quantile(
    family: str, p: Float[ArrayLike, "..."], mixture: MixtureFit
) -> Float[Array, "..."]:
    """Inverts the distribution function by bisection between the quantiles of the components.

    Args:
        family: family of the components.
        p: `[...]` probabilities in (0, 1); 0 gives 0 and 1 gives infinity.
        mixture: the mixture.

    Returns:
        `[...]` quantiles, days; not differentiable.
    """
    p = jnp.asarray(p, mixture.weights.dtype)
    ends = jax.vmap(lambda params: laws.quantile(family, p, params))(mixture.params)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        beyond = mixture_survival(family, middle, mixture) > 1 - p
        return jnp.where(beyond, middle, low), jnp.where(beyond, high, middle)

    low, high = lax.fori_loop(0, 60, halve, (jnp.min(ends, axis=0), jnp.max(ends, axis=0)))
    return lax.stop_gradient(0.5 * (low + high))


def select_components(fits: Sequence[Scored]) -> Int[Array, ""]:
    """Chooses the number of components: index of the lowest BIC among converged fits, or -1."""
    bic = jnp.stack([scored.bic for scored in fits])
    usable = jnp.stack([scored.converged for scored in fits]) & jnp.isfinite(bic)
    best = jnp.argmin(jnp.where(usable, bic, jnp.inf)).astype(jnp.int32)
    return jnp.where(jnp.any(usable), best, -1)


def _random_starts(
    key: PRNGKeyArray, family: str, log_time: Array, weight: Array, num_starts: int, k: int
) -> _State:
    """Draws starts: equal weights, scales near random patients' stays, shapes narrower than all."""
    key_patient, key_jitter = jax.random.split(key)
    total = jnp.sum(weight)
    prob = jnp.where(total > 0, weight, 1.0)
    idx = jax.random.categorical(key_patient, jnp.log(prob), shape=(num_starts, k))
    jitter = jax.random.normal(key_jitter, (num_starts, k), log_time.dtype)
    variance = jnp.sum(weight * log_time**2) / jnp.where(total > 0, total, 1.0)
    spread = 0.7 * jnp.maximum(jnp.sqrt(variance), 1e-2)
    log_scale = log_time[idx] + 0.5 * spread * jitter
    match family:
        case "weibull":
            log_shape = jnp.log(1.28 / spread)
        case "lognormal":
            log_shape = jnp.log(spread)
        case "gamma":  # sd of ln x about k^(-1/2), mean k theta
            log_shape = -2 * jnp.log(spread)
            log_scale = log_scale - log_shape
        case _:
            log_shape = jnp.zeros_like(spread)
    phi = jnp.stack([jnp.broadcast_to(log_shape, log_scale.shape), log_scale], axis=-1)
    infinity = jnp.full((num_starts,), jnp.inf, log_time.dtype)
    return _State(
        weights=jnp.full((num_starts, k), 1 / k, log_time.dtype),
        phi=jax.vmap(jax.vmap(functools.partial(_limit, family)))(phi),
        loglik=-infinity,
        change=infinity,
        num_iters=jnp.zeros((num_starts,), jnp.int32),
    )


def _limit(family: str, phi: Array) -> Array:
    if family == "exponential":
        return phi
    low, high = (math.log(limit) for limit in _SHAPE_LIMITS[family])
    return phi.at[0].set(jnp.clip(phi[0], low, high))


def _log_terms(
    family: str, time: Array, event: Array, weights: Array, phi: Array
) -> tuple[Array, Array]:
    """Computes ln w_k f_k(x), `[K, N]` (S_k where censored), and the responsibilities."""

    def component(log_params):
        params = fit.natural_params(family, log_params)
        log_pdf = laws.log_pdf(family, time, params)
        return jnp.where(event > 0, log_pdf, laws.log_survival(family, time, params))

    log_terms = jnp.log(weights)[:, None] + jax.vmap(component)(phi)
    return log_terms, jax.nn.softmax(log_terms, axis=0)


def _expectation_maximization(
    family: str,
    time: Array,
    event: Array,
    weight: Array,
    tol: float,
    state: _State,
    *,
    max_iters: int,
) -> _State:
    """Alternates the two steps from `state` until the log likelihood settles."""

    def maximize(resp, phi):
        if family == "exponential":
            num_events = jnp.sum(resp * event)
            theta = jnp.sum(resp * time) / jnp.where(num_events > 0, num_events, 1.0)
            return phi.at[1].set(jnp.where(num_events > 0, jnp.log(theta), phi[1]))
        return _limit(family, fit.maximize_likelihood(family, time, event, resp, phi, _M_STEPS)[0])

    def body(state):
        log_terms, resp = _log_terms(family, time, event, state.weights, state.phi)
        loglik = jnp.sum(weight * jax.nn.logsumexp(log_terms, axis=0))
        resp = resp * weight[None]
        mass = jnp.sum(resp, axis=1)
        total = jnp.sum(mass)
        weights = jnp.maximum(mass / jnp.where(total > 0, total, 1.0), _WEIGHT_FLOOR)
        return _State(
            weights=weights / jnp.sum(weights),
            phi=jax.vmap(maximize)(resp, state.phi),
            loglik=loglik,
            change=loglik - state.loglik,
            num_iters=state.num_iters + 1,
        )

    def unsettled(state):
        return (state.num_iters < max_iters) & ~_settled(state, tol)

    return lax.while_loop(unsettled, body, state)


def _settled(state: _State, tol: float) -> Array:
    size = jnp.where(jnp.isfinite(state.loglik), jnp.abs(state.loglik), 0.0)
    rounding = 4 * float(jnp.finfo(size.dtype).eps) * size
    # A run that has become NaN ends too.
    return ~(jnp.abs(state.change) > jnp.maximum(tol, rounding))
