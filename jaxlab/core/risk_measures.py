"""Values and derivatives of the risk measures of `jaxlab.core.risk`, one way for each of them.

All work along the last axis, on normalized probabilities, and on values of which none that has a
probability is NaN. What is infinite is exact; sums are of terms that do not cancel.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Parts(NamedTuple):
    """Derivatives of a value: by `x`, by the probabilities, and by the measure's parameter."""

    tilt: Float[Array, "... A"]
    weight: Float[Array, "... A"]
    slope: Float[Array, "..."]


class Measure(NamedTuple):
    """`value(x, probs, parameter)` and `parts(x, probs, parameter, value)`, along the last axis."""

    value: Callable[..., jax.Array]
    parts: Callable[..., Parts]


# The mean


def _mean(x: jax.Array, probs: jax.Array, _: Any = None) -> jax.Array:
    return jnp.sum(jnp.where(probs == 0.0, 0.0, probs * x), axis=-1)


def _mean_parts(x: jax.Array, probs: jax.Array, _: jax.Array, value: jax.Array) -> Parts:
    return Parts(probs, x - value[..., None], jnp.zeros_like(value))


NEUTRAL = Measure(_mean, _mean_parts)


# Log-mean-exp


class _Exponents(NamedTuple):
    """beta (x - shift), at most 0 where x has a probability, and the logarithm of its mean exp."""

    shift: Float[Array, "... 1"]
    exponent: Float[Array, "... A"]
    log_mean: Float[Array, "... 1"]


def _exponents(x: jax.Array, probs: jax.Array, beta: jax.Array) -> _Exponents:
    visible, sign = probs > 0.0, _sign(beta)
    finite = jnp.isfinite(x)
    top = jnp.max(jnp.where(visible & finite, sign * x, -jnp.inf), axis=-1, keepdims=True)
    shift = jax.lax.stop_gradient(sign * jnp.where(jnp.isfinite(top), top, 0.0))
    exponent = beta * jnp.where(finite, x - shift, 0.0)
    most = math.log(float(jnp.finfo(x.dtype).max))  # reached where there is no probability alone
    exponent = jnp.where(finite, jnp.minimum(exponent, most), -jnp.inf)
    inside = jnp.where(visible, exponent, -jnp.inf)
    mean = jnp.sum(probs * jnp.exp(inside), axis=-1, keepdims=True)
    less = jnp.sum(probs * jnp.expm1(inside), axis=-1, keepdims=True)
    # Near 1 the logarithm would cancel what a small beta makes of it.
    far = mean < 0.5
    log_mean = jnp.where(
        far, jnp.log(jnp.where(far, mean, 1.0)), jnp.log1p(jnp.where(far, 0.0, less))
    )
    return _Exponents(shift, exponent, log_mean)


def _entropic(x: jax.Array, probs: jax.Array, beta: jax.Array) -> jax.Array:
    shift, _, log_mean = _exponents(x, probs, beta)
    soft = (shift + log_mean / jnp.where(beta == 0.0, 1.0, beta))[..., 0]
    return _with_ends(soft, x, probs, beta)


def _entropic_parts(x: jax.Array, probs: jax.Array, beta: jax.Array, value: jax.Array) -> Parts:
    _, exponent, log_mean = _exponents(x, probs, beta)
    log_ratio = exponent - log_mean
    visible = probs > 0.0
    tilt = jnp.where(visible, probs * jnp.exp(jnp.where(visible, log_ratio, 0.0)), 0.0)
    tilt = _tilt_with_ends(tilt, x, probs, beta)

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
    return Parts(tilt, weight, jnp.sum(jnp.where(visible, terms, 0.0), axis=-1))


ENTROPIC = Measure(_entropic, _entropic_parts)


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
    below = jnp.where(jnp.isfinite(x), x - top, 0.0)
    mass = jnp.sum(jnp.where(on, probs, 0.0), axis=-1, keepdims=True)
    lost = jnp.sum(jnp.where(on, 0.0, probs), axis=-1, keepdims=True) / mass
    mean = jnp.sum(jnp.where(on, probs * below, 0.0), axis=-1, keepdims=True) / mass
    safe = jnp.where(kappa == 0.0, 1.0, kappa)
    ratio = 1.0 + lost + kappa * (below - mean)
    on = on | ((probs <= 0.0) & (ratio > 0.0))  # would be wet if it had a probability
    ratio = jnp.where(on, ratio, 0.0)
    excess = jnp.where(on, below - mean + lost / safe, -1.0 / safe)
    return _Water(ratio, excess, top + mean)


def _chi2(x: jax.Array, probs: jax.Array, kappa: jax.Array) -> jax.Array:
    sign = _sign(kappa)
    ratio, excess, level = _water(sign * x, probs, jnp.abs(kappa))
    ratio, excess = (jnp.where(probs > 0.0, part, 0.0) for part in (ratio, excess))
    above = jnp.where(ratio > 0.0, sign * x - level, 0.0)
    gain = jnp.sum(probs * (ratio * above - 0.5 * (ratio - 1.0) * excess), axis=-1)
    return _with_ends(sign * (level[..., 0] + gain), x, probs, kappa)


def _chi2_parts(x: jax.Array, probs: jax.Array, kappa: jax.Array, value: jax.Array) -> Parts:
    sign = _sign(kappa)
    ratio, excess, _ = _water(sign * x, probs, jnp.abs(kappa))
    weight = sign * excess * (1.0 + 0.5 * (ratio - 1.0))
    weight = weight - _mean(weight, probs)[..., None]
    tilt = _tilt_with_ends(jnp.where(probs > 0.0, probs * ratio, 0.0), x, probs, kappa)
    return Parts(tilt, weight, 0.5 * _mean(excess**2, probs))


CHI2 = Measure(_chi2, _chi2_parts)


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


def _cvar_parts(x: jax.Array, probs: jax.Array, alpha: jax.Array, value: jax.Array) -> Parts:
    sign, size = _sign(alpha), jnp.abs(alpha)
    tilt, nu = _tail(sign * x, probs, size)
    # The mean has all values above its quantile, those below what has a probability included.
    above = jnp.where((sign * x > nu) | (size >= 1.0), sign * x - nu, 0.0)
    mean = _mean(above, probs)
    weight = sign * (above - mean[..., None]) / size
    return Parts(tilt, weight, -mean / size / size)


CVAR = Measure(_cvar, _cvar_parts)


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


def _expectile_parts(x: jax.Array, probs: jax.Array, tau: jax.Array, value: jax.Array) -> Parts:
    away = x - value[..., None]
    factor = _asymmetry(x, probs, tau)
    total = jnp.sum(probs * factor, axis=-1, keepdims=True)
    factor = jnp.where((probs <= 0.0) & (away > 0.0), tau, factor)
    slope = _mean(jnp.abs(away), probs) / total[..., 0]
    return Parts(probs * factor / total, factor * away / total, slope)


EXPECTILE = Measure(_expectile, _expectile_parts)


# What they share


def _ends(x: jax.Array, probs: jax.Array, parameter: jax.Array) -> jax.Array:
    """Which values are infinite on the side that the measure seeks, `[..., A]`."""
    return (probs > 0.0) & (_sign(parameter) * x == jnp.inf)


def _with_ends(value: jax.Array, x: jax.Array, probs: jax.Array, parameter: jax.Array) -> jax.Array:
    """Replaces a value by the mean at 0, and where what the measure seeks is infinite."""
    found = jnp.any(_ends(x, probs, parameter), axis=-1)
    value = jnp.where(found, _sign(parameter) * jnp.inf, value)
    return jnp.where(parameter == 0.0, _mean(x, probs), value)


def _tilt_with_ends(
    tilt: jax.Array, x: jax.Array, probs: jax.Array, parameter: jax.Array
) -> jax.Array:
    """Replaces a tilt likewise, where a value is infinite."""
    share = jnp.where(_ends(x, probs, parameter), probs, 0.0)
    total = jnp.sum(share, axis=-1, keepdims=True)
    found = total > 0.0
    tilt = jnp.where(found, share / jnp.where(found, total, 1.0), tilt)
    infinite = jnp.any((probs > 0.0) & jnp.isinf(x), axis=-1, keepdims=True)
    return jnp.where(infinite & (parameter == 0.0), probs, tilt)


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


def _sign(parameter: jax.Array) -> jax.Array:
    return jnp.where(parameter < 0.0, -1.0, 1.0).astype(parameter.dtype)
