"""Poisson regression of daily counts, with the diagnostics of over-dispersion.

Literature: McCullagh & Nelder 1989 (generalized linear models, IRLS); Wood 2017 (penalized
regression, effective degrees of freedom); Cameron & Trivedi 2013 (over-dispersed counts).
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import gammaln
from jaxtyping import Array, Bool, Float, Num

# Step lengths tried in this order; the last one, no step at all, is always acceptable.
STEP_FACTORS = (*(0.5**k for k in range(12)), 0.0)


class GLMFit(NamedTuple):
    """A fitted Poisson regression with log link.

    Attributes:
        coef: `[P]` coefficients.
        cov: `[P, P]` inverse (penalized) information; multiply by `dispersion` for quasi-Poisson.
        mean: `[T]` fitted rate, offset included, also on days of weight zero.
        deviance: Poisson deviance of the weighted days.
        dispersion: Pearson chi2 / (sum of weights - edf); 1 for Poisson counts.
        loglik: Poisson log-likelihood, penalty excluded.
        edf: effective number of parameters, P without a penalty.
        converged: bool, the Newton decrement fell below the rounding level.
    """

    coef: Float[Array, " P"]
    cov: Float[Array, "P P"]
    mean: Float[Array, " T"]
    deviance: Float[Array, ""]
    dispersion: Float[Array, ""]
    loglik: Float[Array, ""]
    edf: Float[Array, ""]
    converged: Bool[Array, ""]


class NegativeBinomial(NamedTuple):
    """Over-dispersion of counts: the parameter (negative if under-dispersed) and the variance."""

    alpha: Float[Array, ""]
    variance: Float[Array, " T"]


def poisson_glm(
    counts: Num[Array, " T"],
    design: Float[Array, "T P"] | np.ndarray,
    *,
    penalty: Float[Array, " P"] | Float[Array, "P P"] | np.ndarray | None = None,
    exposure: Float[Array, " T"] | None = None,
    offset: Float[Array, " T"] | None = None,
    weight: Num[Array, " T"] | None = None,
    iterations: int = 25,
) -> GLMFit:
    """Fits counts ~ Poisson(exposure exp(design @ coef + offset)) by damped IRLS.

    Each step solves (X'WX + P) d = X'(n - w) - P b, w the fitted mean, and takes the longest of
    `STEP_FACTORS` that does not lower the penalized likelihood, so the iteration cannot diverge.
    If the likelihood has no maximum (all counts zero, a weekday without admissions) the rate goes
    to zero by a factor e per step; coefficients and covariance are then large and finite.

    The result is differentiable in counts, design, penalty and offset (first order; the last
    Newton step carries the implicit derivative).  `vmap` over sites with `in_axes=(0, None)`.

    Args:
        counts: `[T]` events per day, >= 0; NaN is allowed where `weight` is zero.
        design: `[T, P]`, see `rate_design`.
        penalty: `[P]` diagonal or `[P, P]` matrix; half of b' P b is taken off the likelihood.
        exposure: `[T]` positive multiplier of the rate.
        offset: `[T]` known part of the log rate; adds to the logarithm of `exposure`.
        weight: `[T]` number of times each day counts; zero holds a day out, and still predicts it.
        iterations: at most so many steps, static.

    Returns:
        `GLMFit`.

    Raises:
        ValueError: on shapes that do not fit, or known counts, weights or exposures out of range.

    Source: McCullagh & Nelder 1989, section 2.5, in score form.
    """
    if design.ndim != 2 or counts.shape != design.shape[:1]:
        raise ValueError(
            f"design must be [T, P] and counts [T], got {design.shape} and {counts.shape}"
        )
    num_params = design.shape[1]
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    counts, weight, offset = prepare_counts(counts, weight, offset, exposure)
    x = jnp.asarray(design, counts.dtype)
    penalty_matrix = _penalty_matrix(penalty, num_params, counts.dtype)
    return _fit((counts, x, penalty_matrix, offset, weight), iterations)


@functools.partial(jax.jit, static_argnums=1)
def _fit(data, iterations: int) -> GLMFit:
    counts, x, penalty_matrix, offset, weight = data
    num_params = x.shape[1]

    def unfinished(carry):
        _, size, step = carry
        return (step < iterations) & ~size

    def advance(carry):
        coef, _, step = carry
        coef, small = _newton_step(coef, *frozen)
        return coef, small, step + 1

    frozen = jax.lax.stop_gradient(data)
    start = (_start(*frozen), jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    coef, _, _ = jax.lax.while_loop(unfinished, advance, start)
    coef, converged = _newton_step(jax.lax.stop_gradient(coef), *data)

    mean = jnp.exp(dot(x, coef) + offset)
    information = dot(x.T, (weight * mean)[:, None] * x)
    cov = solve_spd(information + penalty_matrix, jnp.eye(num_params, dtype=x.dtype))
    edf = num_params - jnp.sum(cov * penalty_matrix)
    loglik = weight * (counts * (dot(x, coef) + offset) - mean - gammaln(counts + 1.0))
    return GLMFit(
        coef=coef,
        cov=cov,
        mean=mean,
        deviance=poisson_deviance(counts, mean, weight=weight),
        dispersion=dispersion(counts, mean, edf, weight=weight),
        loglik=jnp.sum(loglik),
        edf=edf,
        converged=converged & jnp.all(jnp.isfinite(coef)),
    )


def poisson_deviance(
    counts: Num[Array, " T"], rate: Float[Array, " T"], *, weight: Num[Array, " T"] | None = None
) -> Float[Array, ""]:
    """Returns 2 sum weight (n ln(n / rate) - (n - rate)), with 0 ln 0 = 0.

    Args:
        counts: `[T]` counts n >= 0.
        rate: `[T]` positive means.
        weight: `[T]` weights, or None for ones.

    Returns:
        Scalar deviance, zero at `rate == counts`.
    """
    counts, weight, _ = prepare_counts(counts, weight, None, None, like=rate)
    some = counts > 0
    log_ratio = jnp.log(jnp.where(some, counts, 1.0) / jnp.where(some, rate, 1.0))
    return 2.0 * jnp.sum(weight * (counts * log_ratio - (counts - rate)))


def dispersion(
    counts: Num[Array, " T"],
    rate: Float[Array, " T"],
    num_params: Float[Array, ""] | float,
    *,
    weight: Num[Array, " T"] | None = None,
) -> Float[Array, ""]:
    """Returns Pearson's chi2 over its degrees of freedom: 1 Poisson, above 1 over-dispersed.

    Args:
        counts: `[T]` counts.
        rate: `[T]` fitted positive means.
        num_params: (effective) number of fitted parameters.
        weight: `[T]` weights, or None for ones.

    Returns:
        Scalar; infinite or NaN when no degree of freedom is left.
    """
    counts, weight, _ = prepare_counts(counts, weight, None, None, like=rate)
    chi2 = jnp.sum(weight * jnp.square(counts - rate) / rate)
    return chi2 / (jnp.sum(weight) - num_params)


def negative_binomial_variance(
    counts: Num[Array, " T"],
    rate: Float[Array, " T"],
    num_params: Float[Array, ""] | float = 0.0,
    *,
    form: Literal["nb2", "nb1"] = "nb2",
    weight: Num[Array, " T"] | None = None,
) -> NegativeBinomial:
    """Estimates the over-dispersion of counts by moments.

    "nb2": variance = rate + alpha rate^2, alpha = sum(c (n - rate)^2 - rate) / sum(rate^2) with
    c = T / (T - num_params); "nb1": variance = (1 + alpha) rate with 1 + alpha the Pearson
    dispersion.  A negative alpha says under-dispersion and is returned as it is; use the negative
    binomial only for alpha > 0.  A gamma-distributed rate of mean m and variance v gives a negative
    binomial count of variance m + v.

    Args:
        counts: `[T]` counts.
        rate: `[T]` fitted positive means.
        num_params: (effective) number of fitted parameters.
        form: how the variance grows with the rate.
        weight: `[T]` weights, or None for ones.

    Returns:
        `NegativeBinomial(alpha, variance [T])`.

    Raises:
        ValueError: on an unknown form.

    Source: Cameron & Trivedi 2013, section 3.3.
    """
    if form not in ("nb1", "nb2"):
        raise ValueError(f"form must be 'nb2' or 'nb1', got {form!r}")
    if form == "nb1":
        alpha = dispersion(counts, rate, num_params, weight=weight) - 1.0
        return NegativeBinomial(alpha, (1.0 + alpha) * rate)
    counts, weight, _ = prepare_counts(counts, weight, None, None, like=rate)
    total = jnp.sum(weight)
    excess = total / (total - num_params) * jnp.square(counts - rate) - rate
    alpha = jnp.sum(weight * excess) / jnp.sum(weight * jnp.square(rate))
    return NegativeBinomial(alpha, rate + alpha * jnp.square(rate))


def prepare_counts(counts, weight, offset, exposure, *, like=None):
    """Checks and casts the daily series of a count model; fills in weight 1 and offset 0.

    All take the float dtype of `like`, else of the counts, else the default one.  Counts are zero
    where the weight is, so that a missing day may hold NaN.
    """
    shape = counts.shape
    for name, value in (("weight", weight), ("offset", offset), ("exposure", exposure)):
        if value is not None and jnp.shape(value) != shape:
            raise ValueError(
                f"{name} must have the shape of counts, {shape}, got {jnp.shape(value)}"
            )
    dtype = _float_dtype(counts if like is None else like)
    kept = np.ones(shape, bool) if weight is None else weight
    if is_concrete(counts) and is_concrete(kept):
        if np.any(np.asarray(kept) < 0) or np.any(np.asarray(counts)[np.asarray(kept) > 0] < 0):
            raise ValueError("counts and weights must not be negative")
    if exposure is not None and is_concrete(exposure) and not np.all(np.asarray(exposure) > 0):
        raise ValueError("exposure must be positive; give days without exposure weight 0")
    weight = jnp.ones(shape, dtype) if weight is None else jnp.asarray(weight, dtype)
    counts = jnp.where(weight > 0, jnp.asarray(counts, dtype), 0.0)
    offset = jnp.zeros(shape, dtype) if offset is None else jnp.asarray(offset, dtype)
    if exposure is not None:
        offset = offset + jnp.log(jnp.asarray(exposure, dtype))
    return counts, weight, offset


def is_concrete(value) -> bool:
    """Returns whether the numbers are known now, so that they can be checked."""
    return not isinstance(value, Tracer)


def solve_spd(matrix: Float[Array, "P P"], rhs: Float[Array, "P ..."]) -> Float[Array, "P ..."]:
    """Solves a positive semi-definite system after scaling its diagonal to 1 + P epsilon."""
    diagonal = jnp.diagonal(matrix)
    scale = jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    size = matrix.shape[0]
    ridge = size * float(jnp.finfo(matrix.dtype).eps)
    scaled = matrix * scale[:, None] * scale[None, :] + ridge * jnp.eye(size, dtype=matrix.dtype)
    columns = scale.reshape(scale.shape + (1,) * (rhs.ndim - 1))
    factor, rhs = (jnp.linalg.cholesky(scaled), True), columns * rhs
    rough = jax.scipy.linalg.cho_solve(factor, rhs)
    # One refinement squares the relative error, that of the ridge included.
    wrong = rhs - dot(matrix * scale[:, None] * scale[None, :], rough)
    return columns * (rough + jax.scipy.linalg.cho_solve(factor, wrong))


def longest_uphill(gain, slack: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the first of `STEP_FACTORS` whose `gain(factor)` is no loss beyond rounding."""
    factors = jnp.asarray(STEP_FACTORS, slack.dtype)
    gains = jax.vmap(gain)(factors).at[-1].set(0.0)
    return jax.lax.stop_gradient(factors[jnp.argmax(gains >= -slack)])


def is_small(
    decrement: Float[Array, ""], total: Float[Array, ""], *, noise: Float[Array, ""] | float = 0.0
) -> Bool[Array, ""]:
    """Returns whether a squared Newton decrement (likelihood units) is at the rounding level.

    A log rate of rounding error r moves the decrement by total r^2, total the sum of the means;
    `noise` is what the rounding of the score itself may add.
    """
    eps = float(jnp.finfo(decrement.dtype).eps)
    return jnp.abs(decrement) <= 0.01 * eps**0.5 + (64.0 * eps) ** 2 * total + noise


def _newton_step(coef, counts, x, penalty, offset, weight):
    mean = weight * jnp.exp(dot(x, coef) + offset)
    residual = weight * counts - mean
    score = dot(x.T, residual) - dot(penalty, coef)
    delta = solve_spd(dot(x.T, mean[:, None] * x) + penalty, score)
    decrement = jnp.sum(score * delta)
    delta = jnp.where(jnp.all(jnp.isfinite(delta)), delta, 0.0)
    move = dot(x, delta)
    # What rounding may do to the score: of sums that cancel, where one day outweighs the others.
    blur = dot(jnp.abs(x).T, weight * counts + mean) + dot(jnp.abs(penalty), jnp.abs(coef))
    curve = jnp.sum(delta * dot(penalty, delta))

    def gain(factor):  # of the penalized likelihood, written without cancellation
        bend = jnp.sum(residual * factor * move - mean * (jnp.expm1(factor * move) - factor * move))
        bend = bend - factor * jnp.sum(coef * dot(penalty, delta))
        return bend - 0.5 * jnp.square(factor) * curve

    eps = float(jnp.finfo(coef.dtype).eps)
    slack = jnp.sum((weight * counts + mean) * jnp.abs(move))
    slack = 8.0 * eps * (slack + jnp.sum(jnp.abs(coef * dot(penalty, delta))))
    small = is_small(decrement, jnp.sum(mean), noise=4.0 * eps * jnp.sum(jnp.abs(delta) * blur))
    # At the solution rounding must not shorten the step: it carries the derivative.
    factor = jnp.where(small, 1.0, longest_uphill(gain, slack))
    return coef + factor * delta, small


def _start(counts, x, penalty, offset, weight):
    """Returns the better of a regression of log(n + 1/2) and of the constant mean rate."""
    level = (jnp.sum(weight * counts) + 0.5) / (jnp.sum(weight * jnp.exp(offset)) + 0.5)
    half = counts + 0.5

    def regress(target, inverse_variance):
        hessian = dot(x.T, inverse_variance[:, None] * x) + penalty
        return solve_spd(hessian, dot(x.T, inverse_variance * target))

    trials = jnp.stack(
        [
            regress(jnp.log(half) - offset, weight * half),
            regress(jnp.full_like(counts, 1.0) * jnp.log(level), weight),
        ]
    )

    def objective(coef):
        eta = dot(x, coef) + offset
        value = jnp.sum(weight * (counts * eta - jnp.exp(eta)))
        return value - 0.5 * jnp.sum(coef * dot(penalty, coef))

    values = jax.vmap(objective)(trials)
    return trials[jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))]


def _penalty_matrix(penalty, num_params: int, dtype) -> Float[Array, "P P"]:
    if penalty is None:
        return jnp.zeros((num_params, num_params), dtype)
    penalty = jnp.asarray(penalty, dtype)
    if penalty.shape == (num_params,):
        return jnp.diag(penalty)
    if penalty.shape != (num_params, num_params):
        raise ValueError(
            f"penalty must be [{num_params}] or [{num_params}, {num_params}], got {penalty.shape}"
        )
    return penalty


def _float_dtype(value):
    dtype = jnp.asarray(value).dtype
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.zeros(()).dtype


def dot(a, b):
    """Multiplies in full float32 where the device would round to less."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
