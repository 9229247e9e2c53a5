"""Risk measures of a random number with finitely many values: optimistic, neutral, pessimistic.

A measure is a mean under tilted probabilities, less what the tilt costs,

    value(x, probs) = max over p of  sum_a p_a x_a - penalty(p, probs),

and the p that attains it is the tilt. Optimism or pessimism is a sign: `entropic(-beta)`,
`chi2(-kappa)` and `cvar(-alpha)` are the minima that turn each measure around, value(x) into
-value(-x), with a penalty below zero; so is `expectile(1 - tau)`. A value lies between the least
and the largest x that has a probability, is monotone in x, and moves along when x is shifted.

The tilt is the derivative of the value by x, the weight that by the probabilities (the factor of
the score in a policy gradient), and parameters may be differentiated and traced like everything
else, 0 included. Values of minus infinity (masked actions) and probabilities of zero are exact.

Zhang et al. 2025, arXiv:2509.24047 (risk seeking as the dual of a divergence); Follmer and Schied
2002 (convex risk measures); Rockafellar and Uryasev 2000 (CVaR); Newey and Powell 1987 (expectile).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Function = Callable[..., jax.Array]


class Risk(NamedTuple):
    """A risk measure as pure functions of values `x` and their probabilities.

    Of the first three, `x` is `[..., A]`, `probs` is `[..., A]` or `[A]`, at least 0 and of any
    sum, since they are normalized; None stands for equal ones. `axis` is that of `A` in `x`.

    Attributes:
        value: `value(x, probs=None, *, axis=-1) -> [...]`.
        tilt: `tilt(x, probs=None, *, axis=-1) -> [..., A]`, probabilities of which the value is the
            mean less the penalty; the derivative of the value by `x`.
        weight: `weight(x, probs=None, *, axis=-1) -> [..., A]`, the derivative of the value by the
            probabilities, in units of `x`; its mean under them is 0, as that of an advantage.
        penalty: `penalty(p, probs) -> [...]` of two distributions along the last axis: what the
            measure charges for p instead of probs; infinite where it forbids p.

    Example:
        `risk.entropic(0.5).value(jnp.array([1.0, 3.0]), jnp.array([0.9, 0.1]))`
    """

    value: Function
    tilt: Function
    weight: Function
    penalty: Function


class _Parts(NamedTuple):
    """Derivatives of a value: by `x`, by the probabilities, and by the measure's parameter."""

    tilt: Float[Array, "... A"]
    weight: Float[Array, "... A"]
    slope: Float[Array, "..."]


class _Measure(NamedTuple):
    """`value(x, probs, parameter)` and `parts(x, probs, parameter, value)`, along the last axis."""

    value: Callable[..., jax.Array]
    parts: Callable[..., _Parts]


def neutral() -> Risk:
    """Makes the mean."""
    return _risk(_NEUTRAL, 0.0, _only_itself)


def entropic(beta: float | jax.Array) -> Risk:
    """Makes (1 / beta) log sum_a probs_a exp(beta x_a), of which `log_mean_exp` is the value.

    The tilt is probs exp(beta (x - value)), the weight (exp(beta (x - value)) - 1) / beta, the
    penalty KL(p, probs) / beta.

    Args:
        beta: In units of 1 / x, of either sign: the mean at 0, the largest x at infinity and the
            least at minus infinity. With a temperature lambda it is 1 / lambda.

    Source: Zhang et al. 2025, arXiv:2509.24047.
    """
    return _risk(_ENTROPIC, beta, lambda p, probs: _over(_kl(p, probs), beta))


def log_mean_exp(
    x: Float[Array, "..."],
    beta: float | jax.Array,
    probs: Float[Array, "..."] | None = None,
    *,
    axis: int = -1,
) -> Float[Array, "..."]:
    """Computes (1 / beta) log sum_a probs_a exp(beta x_a), the soft value of `entropic(beta)`.

    Args:
        x: `[..., A]` values; minus infinity counts for nothing in the sum.
        beta: Of either sign; the mean at 0.
        probs: `[..., A]` or `[A]`, normalized here; equal when None.
        axis: That of `A` in `x`.

    Example:
        `risk.log_mean_exp(q, 1.0 / temperature)`, the soft value of samples of a policy
    """
    return entropic(beta).value(x, probs, axis=axis)


def chi2(kappa: float | jax.Array) -> Risk:
    """Makes the measure whose penalty is sum_a (p_a - probs_a)^2 / (2 kappa probs_a).

    The value is mean + (kappa / 2) variance as long as no tilted probability has reached zero:
    the tilt is probs (1 + kappa (x - nu)) where that is positive, with nu such that it sums to 1.

    Args:
        kappa: In units of 1 / x, of either sign; the mean at 0.

    Source: the divergence of Pearson in the dual of Zhang et al. 2025, arXiv:2509.24047.
    """

    def penalty(p: jax.Array, probs: jax.Array) -> jax.Array:
        share = jnp.where(probs > 0.0, (p - probs) ** 2 / jnp.where(probs > 0.0, probs, 1.0), 0.0)
        outside = jnp.any((p > 0.0) & (probs <= 0.0), axis=-1)
        total = 0.5 * jnp.sum(share, axis=-1)
        return _over(jnp.where(outside, jnp.inf, total), kappa)

    return _risk(_CHI2, kappa, penalty)


def cvar(alpha: float | jax.Array) -> Risk:
    """Makes the mean of the best share alpha: min over nu of nu + E max(x - nu, 0) / alpha.

    The tilt is probs / alpha above the quantile nu; what is left of it is shared out by the values
    that equal nu. The penalty is 0 while p is at most probs / alpha, and infinite beyond.

    Args:
        alpha: Share in [-1, 1] without 0: the best values for alpha > 0, the worst for alpha < 0;
            both are the mean at 1 and -1, the largest and the least x near 0.

    Raises:
        ValueError: if alpha is a number outside.

    Source: Rockafellar and Uryasev 2000.
    """
    _check("alpha", alpha, lambda a: 0.0 < abs(a) <= 1.0, "lie in [-1, 1] and not be 0")

    def penalty(p: jax.Array, probs: jax.Array) -> jax.Array:
        cap = probs / jnp.abs(jnp.asarray(alpha, p.dtype))
        return _unless(jnp.all(p <= cap * (1.0 + _slack(p)), axis=-1), p.dtype, alpha)

    return _risk(_CVAR, alpha, penalty)


def expectile(tau: float | jax.Array) -> Risk:
    """Makes the v at which tau E max(x - v, 0) = (1 - tau) E max(v - x, 0).

    The tilt is proportional to tau probs above v and to (1 - tau) probs below; the penalty is 0
    while p / probs varies by no more than the ratio of the two, and infinite beyond.

    Args:
        tau: In (0, 1): optimistic above 1 / 2, the mean there, pessimistic below.

    Raises:
        ValueError: if tau is a number outside.

    Source: Newey and Powell 1987; the set of tilts as in Bellini et al. 2014.
    """
    _check("tau", tau, lambda t: 0.0 < t < 1.0, "lie in (0, 1)")

    def penalty(p: jax.Array, probs: jax.Array) -> jax.Array:
        on = probs > 0.0
        ratio = jnp.where(on, p / jnp.where(on, probs, 1.0), 1.0)
        largest = jnp.max(jnp.where(on, ratio, 0.0), axis=-1)
        least = jnp.min(jnp.where(on, ratio, jnp.inf), axis=-1)
        t = jnp.asarray(tau, p.dtype)
        odds = jnp.maximum(t, 1.0 - t) / jnp.minimum(t, 1.0 - t)
        inside = (largest <= odds * least * (1.0 + _slack(p))) & jnp.all(on | (p <= 0.0), axis=-1)
        return _unless(inside, p.dtype, 2.0 * t - 1.0)

    return _risk(_EXPECTILE, tau, penalty)


def _risk(measure: _Measure, parameter: float | jax.Array, penalty: Function) -> Risk:
    def prepared(x: Any, probs: Any, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = _floats(x)
        if not x.ndim or not x.shape[axis]:
            raise ValueError(f"x must have values along axis {axis}, got shape {x.shape}")
        if probs is None:
            probs = jnp.ones(x.shape[axis], x.dtype)
        probs = _floats(probs).astype(x.dtype)
        if probs.ndim == 1:
            x = jnp.moveaxis(x, axis, -1)
        elif probs.ndim == x.ndim:
            x, probs = (jnp.moveaxis(part, axis, -1) for part in (x, probs))
        if probs.shape not in (x.shape, x.shape[-1:]):
            raise ValueError(
                f"probs must have the shape of x, or one probability for each of its "
                f"{x.shape[-1]} values along axis {axis}, got {probs.shape}"
            )
        probs = jnp.broadcast_to(probs, x.shape)
        probs = probs / jnp.sum(probs, axis=-1, keepdims=True)
        return x, probs, jnp.asarray(parameter, x.dtype)

    def value(x: Any, probs: Any = None, *, axis: int = -1) -> jax.Array:
        return _value(measure, *prepared(x, probs, axis))

    def parts(x: Any, probs: Any, axis: int) -> _Parts:
        found = prepared(x, probs, axis)
        return measure.parts(*found, _value(measure, *found))

    def tilt(x: Any, probs: Any = None, *, axis: int = -1) -> jax.Array:
        return jnp.moveaxis(parts(x, probs, axis).tilt, -1, axis)

    def weight(x: Any, probs: Any = None, *, axis: int = -1) -> jax.Array:
        return jnp.moveaxis(parts(x, probs, axis).weight, -1, axis)

    return Risk(value, tilt, weight, penalty)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(measure: _Measure, x: jax.Array, probs: jax.Array, parameter: jax.Array) -> jax.Array:
    return measure.value(x, probs, parameter)


@_value.defjvp
def _value_jvp(measure: _Measure, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """By the envelope theorem: what the maximum is attained at need not be differentiated."""
    value = _value(measure, *primals)
    tilt, weight, slope = measure.parts(*primals, value)
    dx, dprobs, dparameter = tangents
    change = jnp.sum(tilt * dx + weight * dprobs, axis=-1) + slope * dparameter
    return value, change


# The mean


def _mean(x: jax.Array, probs: jax.Array, _: Any = None) -> jax.Array:
    return jnp.sum(jnp.where(probs > 0.0, probs * x, 0.0), axis=-1)


def _mean_parts(x: jax.Array, probs: jax.Array, _: jax.Array, value: jax.Array) -> _Parts:
    return _Parts(probs, x - value[..., None], jnp.zeros_like(value))


_NEUTRAL = _Measure(_mean, _mean_parts)


# Log-mean-exp


class _Exponents(NamedTuple):
    """beta (x - shift) <= 0, and the logarithm of the mean of its exponential."""

    shift: Float[Array, "... 1"]
    below: Float[Array, "... A"]
    exponent: Float[Array, "... A"]
    log_mean: Float[Array, "... 1"]


def _exponents(x: jax.Array, probs: jax.Array, beta: jax.Array) -> _Exponents:
    finite = (probs > 0.0) & jnp.isfinite(x)
    end = jnp.where(beta >= 0.0, -jnp.inf, jnp.inf).astype(x.dtype)
    ends = jnp.where(finite, x, end)
    shift = jnp.where(
        beta >= 0.0, jnp.max(ends, axis=-1, keepdims=True), jnp.min(ends, axis=-1, keepdims=True)
    )
    shift = jax.lax.stop_gradient(jnp.where(jnp.isfinite(shift), shift, 0.0))
    below = jnp.where(finite, x - shift, 0.0)
    # An infinite beta times zero is zero; minus infinity counts for nothing.
    exponent = jnp.where(jnp.isinf(beta) & (below == 0.0), 0.0, beta * below)
    exponent = jnp.where(finite, exponent, -jnp.inf)
    mean = jnp.sum(probs * jnp.exp(exponent), axis=-1, keepdims=True)
    less = jnp.sum(probs * jnp.expm1(exponent), axis=-1, keepdims=True)
    # Near 1 the logarithm would cancel what a small beta makes of it.
    far = mean < 0.5
    log_mean = jnp.where(
        far, jnp.log(jnp.where(far, mean, 1.0)), jnp.log1p(jnp.where(far, 0.0, less))
    )
    return _Exponents(shift, below, exponent, log_mean)


def _entropic(x: jax.Array, probs: jax.Array, beta: jax.Array) -> jax.Array:
    shift, _, _, log_mean = _exponents(x, probs, beta)
    soft = (shift + log_mean / jnp.where(beta == 0.0, 1.0, beta))[..., 0]
    sunk = jnp.any((probs > 0.0) & (x == -jnp.inf), axis=-1) & (beta < 0.0)
    return jnp.where(beta == 0.0, _mean(x, probs), jnp.where(sunk, -jnp.inf, soft))


def _entropic_parts(x: jax.Array, probs: jax.Array, beta: jax.Array, value: jax.Array) -> _Parts:
    _, _, exponent, log_mean = _exponents(x, probs, beta)
    log_ratio = exponent - log_mean
    tilt = probs * jnp.exp(log_ratio)
    sunk = (probs > 0.0) & (x == -jnp.inf)  # who gets all where the value is minus infinity
    least = jnp.where(sunk, probs, 0.0)
    least = least / jnp.maximum(jnp.sum(least, axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny)
    tilt = jnp.where((value == -jnp.inf)[..., None], least, tilt)

    safe = jnp.where(beta == 0.0, 1.0, beta)
    near = jnp.abs(log_ratio) < 1.0
    y = jnp.where(near, log_ratio, 0.0)
    advantage = jnp.where(near, x - value[..., None], 0.0)
    expm1_over_y = jnp.where(y == 0.0, 1.0 + 0.5 * y, jnp.expm1(y) / jnp.where(y == 0.0, 1.0, y))
    weight = jnp.where(near, advantage * expm1_over_y, jnp.expm1(log_ratio) / safe)
    # d value / d beta = KL(tilt, probs) / beta^2, as a sum of terms that are not negative.
    series = functools.reduce(
        lambda total, k: total * y + (k + 1) / math.factorial(k + 2), range(16, -1, -1), 0.0 * y
    )
    far = jnp.where(tilt > 0.0, tilt * (jnp.where(tilt > 0.0, log_ratio, 0.0) - 1.0), 0.0) + probs
    terms = jnp.where(near, probs * advantage**2 * series, far / safe / safe)
    return _Parts(tilt, weight, jnp.sum(terms, axis=-1))


_ENTROPIC = _Measure(_entropic, _entropic_parts)


# Chi-squared


class _Water(NamedTuple):
    """Of the optimistic chi-squared tilt: p / probs, and (p / probs - 1) / kappa."""

    ratio: Float[Array, "... A"]
    excess: Float[Array, "... A"]
    level: Float[Array, "... 1"]


def _water(x: jax.Array, probs: jax.Array, kappa: jax.Array) -> _Water:
    """Finds the values above water: a is one if kappa sum_b probs_b max(x_b - x_a, 0) < 1."""
    finite = (probs > 0.0) & jnp.isfinite(x)
    above, _, ordered = _gaps(x, probs, finite)
    wet = jnp.where(kappa * above < 1.0, ordered, jnp.inf)
    on = finite & (x >= jnp.min(wet, axis=-1, keepdims=True))
    top = jax.lax.stop_gradient(ordered[..., :1])
    below = jnp.where(on, x - top, 0.0)
    mass = jnp.sum(jnp.where(on, probs, 0.0), axis=-1, keepdims=True)
    lost = jnp.sum(jnp.where(on, 0.0, probs), axis=-1, keepdims=True) / mass
    mean = jnp.sum(jnp.where(on, probs * below, 0.0), axis=-1, keepdims=True) / mass
    safe = jnp.where(kappa == 0.0, 1.0, kappa)
    ratio = jnp.where(on, 1.0 + lost + kappa * (below - mean), 0.0)
    excess = jnp.where(on, below - mean + lost / safe, -1.0 / safe)
    return _Water(ratio, excess, top + mean)


def _chi2(x: jax.Array, probs: jax.Array, kappa: jax.Array) -> jax.Array:
    sign = _sign(kappa)
    ratio, excess, level = _water(sign * x, probs, jnp.abs(kappa))
    above = jnp.where(ratio > 0.0, sign * x - level, 0.0)
    gain = jnp.sum(probs * (ratio * above - 0.5 * (ratio - 1.0) * excess), axis=-1)
    low = jnp.any((probs > 0.0) & (x == -jnp.inf), axis=-1) & (kappa <= 0.0)
    return jnp.where(low, -jnp.inf, sign * (level[..., 0] + gain))


def _chi2_parts(x: jax.Array, probs: jax.Array, kappa: jax.Array, value: jax.Array) -> _Parts:
    sign = _sign(kappa)
    ratio, excess, _ = _water(sign * x, probs, jnp.abs(kappa))
    weight = sign * excess * (1.0 + 0.5 * (ratio - 1.0))
    weight = weight - _mean(weight, probs)[..., None]
    return _Parts(probs * ratio, weight, 0.5 * _mean(excess**2, probs))


_CHI2 = _Measure(_chi2, _chi2_parts)


# CVaR


def _tail(x: jax.Array, probs: jax.Array, alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the tilt to the largest values, `[..., A]`, and their quantile, `[..., 1]`."""
    ranked = jnp.where(probs > 0.0, x, -jnp.inf)
    order = jnp.argsort(-ranked, axis=-1)
    mass = jnp.cumsum(jnp.take_along_axis(probs, order, axis=-1), axis=-1)
    last = jnp.sum(probs > 0.0, axis=-1, keepdims=True) - 1
    rank = jnp.minimum(jnp.sum(mass < alpha, axis=-1, keepdims=True), last)
    nu = jnp.take_along_axis(jnp.take_along_axis(ranked, order, axis=-1), rank, axis=-1)
    over = jnp.sum(jnp.where(ranked > nu, probs, 0.0), axis=-1, keepdims=True)
    equal = jnp.sum(jnp.where(ranked == nu, probs, 0.0), axis=-1, keepdims=True)
    share = jnp.clip((alpha - over) / equal, 0.0, 1.0)
    tilt = probs * jnp.where(ranked > nu, 1.0, jnp.where(ranked == nu, share, 0.0))
    return tilt / jnp.sum(tilt, axis=-1, keepdims=True), nu


def _cvar(x: jax.Array, probs: jax.Array, alpha: jax.Array) -> jax.Array:
    return _mean(x, _tail(_sign(alpha) * x, probs, jnp.abs(alpha))[0])


def _cvar_parts(x: jax.Array, probs: jax.Array, alpha: jax.Array, value: jax.Array) -> _Parts:
    sign, size = _sign(alpha), jnp.abs(alpha)
    tilt, nu = _tail(sign * x, probs, size)
    above = jnp.where(sign * x > nu, sign * x - nu, 0.0)
    mean = _mean(above, probs)
    weight = sign * (above - mean[..., None]) / size
    return _Parts(tilt, weight, -mean / size / size)


_CVAR = _Measure(_cvar, _cvar_parts)


# Expectile


def _asymmetry(x: jax.Array, probs: jax.Array, tau: jax.Array) -> jax.Array:
    """tau for the values above the expectile, 1 - tau for the others, `[..., A]`."""
    finite = (probs > 0.0) & jnp.isfinite(x)
    above, below, ordered = _gaps(x, probs, finite)
    low = jnp.any((probs > 0.0) & (x == -jnp.inf), axis=-1, keepdims=True)
    upper = jnp.where(low | (tau * above < (1.0 - tau) * below), ordered, jnp.inf)
    return jnp.where(finite & (x >= jnp.min(upper, axis=-1, keepdims=True)), tau, 1.0 - tau)


def _expectile(x: jax.Array, probs: jax.Array, tau: jax.Array) -> jax.Array:
    share = probs * _asymmetry(x, probs, tau)
    share = share / jnp.sum(share, axis=-1, keepdims=True)
    top = jnp.max(jnp.where(probs > 0.0, x, -jnp.inf), axis=-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return top[..., 0] + _mean(x - top, share)


def _expectile_parts(x: jax.Array, probs: jax.Array, tau: jax.Array, value: jax.Array) -> _Parts:
    factor = _asymmetry(x, probs, tau)
    total = jnp.sum(probs * factor, axis=-1, keepdims=True)
    away = x - value[..., None]
    slope = _mean(jnp.abs(away), probs) / total[..., 0]
    return _Parts(probs * factor / total, factor * away / total, slope)


_EXPECTILE = _Measure(_expectile, _expectile_parts)


# What they share


def _gaps(
    x: jax.Array, probs: jax.Array, finite: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns E max(X - x, 0), E max(x - X, 0) and x over the finite values, in falling order.

    Sums of terms that are not negative, so that nothing cancels. Those that are not finite come
    last and repeat the least of the others.
    """
    least = jnp.min(jnp.where(finite, x, jnp.inf), axis=-1, keepdims=True)
    x = jnp.where(finite, x, least)
    order = jnp.argsort(jnp.where(finite, -x, jnp.inf), axis=-1)
    x = jnp.take_along_axis(x, order, axis=-1)
    probs = jnp.take_along_axis(jnp.where(finite, probs, 0.0), order, axis=-1)
    steps = x[..., :-1] - x[..., 1:]
    zero = jnp.zeros_like(x[..., :1])
    before = jnp.cumsum(probs, axis=-1)[..., :-1] * steps
    after = jnp.flip(jnp.cumsum(jnp.flip(probs, axis=-1), axis=-1), axis=-1)[..., 1:] * steps
    above = jnp.concatenate([zero, jnp.cumsum(before, axis=-1)], axis=-1)
    below = jnp.flip(jnp.cumsum(jnp.flip(after, axis=-1), axis=-1), axis=-1)
    return above, jnp.concatenate([below, zero], axis=-1), x


def _kl(p: jax.Array, probs: jax.Array) -> jax.Array:
    on = (p > 0.0) & (probs > 0.0)
    log_ratio = jnp.log(jnp.where(on, p, 1.0)) - jnp.log(jnp.where(on, probs, 1.0))
    outside = jnp.any((p > 0.0) & (probs <= 0.0), axis=-1)
    return jnp.where(outside, jnp.inf, jnp.sum(jnp.where(on, p * log_ratio, 0.0), axis=-1))


def _only_itself(p: jax.Array, probs: jax.Array) -> jax.Array:
    return _unless(jnp.all(jnp.abs(p - probs) <= _slack(p) * probs, axis=-1), p.dtype, 1.0)


def _over(divergence: jax.Array, parameter: float | jax.Array) -> jax.Array:
    """A divergence over a parameter of which 0 forbids every p but probs."""
    parameter = jnp.asarray(parameter, divergence.dtype)
    safe = jnp.where(parameter == 0.0, 1.0, parameter)
    itself = divergence <= _slack(divergence)
    return jnp.where(parameter == 0.0, jnp.where(itself, 0.0, jnp.inf), divergence / safe)


def _unless(allowed: jax.Array, dtype: Any, sign: float | jax.Array) -> jax.Array:
    """0 where allowed; else infinite, below zero for a pessimist."""
    infinite = jnp.where(jnp.asarray(sign, dtype) >= 0.0, jnp.inf, -jnp.inf).astype(dtype)
    return jnp.where(allowed, jnp.zeros((), dtype), infinite)


def _sign(parameter: jax.Array) -> jax.Array:
    return jnp.where(parameter < 0.0, -1.0, 1.0).astype(parameter.dtype)


def _slack(x: jax.Array) -> float:
    """Relative rounding that a tilt may have."""
    return 64.0 * float(jnp.finfo(x.dtype).eps)


def _floats(x: Any) -> jax.Array:
    """In double precision if it came so, in single precision otherwise."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _check(name: str, parameter: Any, fits: Callable[[float], bool], where: str) -> None:
    if isinstance(parameter, (int, float)) and not fits(parameter):
        raise ValueError(f"{name} must {where}, got {parameter}")
