"""Length-of-stay laws: density, survival, quantiles and moments of six scale families.

Source: Akbari-Moghaddam et al. (arXiv:2510.02852), candidate length-of-stay laws and their
truncation at the 99th percentile; the incomplete gamma function follows Abramowitz & Stegun 6.5.29
and 6.5.31.

Every law is a scale family: if X has `LOSParams(shape, scale)`, then c X has
`LOSParams(shape, c * scale)`.

| family        | shape               | scale              | P(X > x)                             |
|---------------|---------------------|--------------------|--------------------------------------|
| `exponential` | ignored             | theta, the mean    | exp(-x/theta)                        |
| `weibull`     | k                   | theta              | exp(-(x/theta)^k)                    |
| `lognormal`   | tau, the sd of ln x | exp(m), the median | 1 - Phi((ln x - m)/tau)              |
| `gamma`       | k                   | theta              | Q(k, x/theta), regularized upper     |
| `fisk`        | k                   | theta, the median  | 1/(1 + (x/theta)^k), log-logistic    |
| `burr`        | k                   | theta              | (theta/(x + theta))^k, Burr XII, c=1 |

`family` is a static string. `x` and the parameters may be scalars or arrays of one shape; go
through `jax.vmap` for a batch of laws on a common grid. Results have the dtype of the
floating-point arguments.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import special
from jaxtyping import Array, ArrayLike, Float

from jaxlab.queueing.stays import conditional

# Terms kept of the power series and of the continued fraction of the incomplete gamma function: its
# logarithm is then right to 1e-12 for every argument as long as the shape is at most 500.
_GAMMA_TERMS = 128
_GAMMA_QUANTILE_STEPS = 16


class LOSParams(NamedTuple):
    """Natural parameters of one law, or of a batch of laws; see the table of this module."""

    shape: Float[Array, "..."]
    scale: Float[Array, "..."]


@functools.partial(jax.jit, static_argnames="family")
def log_pdf(family: str, x: ArrayLike, params: LOSParams) -> Float[Array, "..."]:
    """Evaluates the log density of a stay of `x` days.

    Args:
        family: one of `conditional.FAMILIES`.
        x: `[...]` stay, days. The limit from the right is returned at 0, `-inf` below.
        params: natural parameters.

    Returns:
        `[...]` log density, per day. Its gradients are zero, not NaN, at x <= 0.

    Raises:
        ValueError: for an unknown family.
    """
    check_family(family)
    x, k, theta = _as_floats(x, *params)
    positive = (x > 0) & (x < jnp.inf)
    x_safe = jnp.where(positive, x, 1.0)
    log_x = jnp.log(x_safe)
    z = log_x - jnp.log(theta)
    match family:
        case "exponential":
            value, at_zero = -jnp.log(theta) - x_safe / theta, -jnp.log(theta)
        case "weibull":
            value = jnp.log(k) - log_x + k * z - jnp.exp(k * z)
            at_zero = _power_at_zero(k, theta)
        case "lognormal":
            value = -0.5 * (z / k) ** 2 - jnp.log(k) - log_x - 0.5 * math.log(2 * math.pi)
            at_zero = jnp.full_like(value, -jnp.inf)
        case "gamma":
            value = k * z - jnp.exp(z) - special.gammaln(k) - log_x
            at_zero = _power_at_zero(k, theta)
        case "fisk":
            value = jnp.log(k) - log_x + k * z - 2 * jax.nn.softplus(k * z)
            at_zero = _power_at_zero(k, theta)
        case _:
            value = jnp.log(k) - jnp.log(theta) - (k + 1) * jnp.log1p(x_safe / theta)
            at_zero = jnp.log(k) - jnp.log(theta)
    at_zero = lax.stop_gradient(jnp.where(x == 0, at_zero, -jnp.inf))
    return jnp.where(positive, value, at_zero)


@functools.partial(jax.jit, static_argnames="family")
def log_survival(family: str, x: ArrayLike, params: LOSParams) -> Float[Array, "..."]:
    """Evaluates ln P(X > x), accurate where the probability itself underflows.

    Args:
        family: one of `conditional.FAMILIES`.
        x: `[...]` time since admission, days; 0 is returned at and below 0, with zero gradients.
        params: natural parameters.

    Returns:
        `[...]` log survival probability.

    Raises:
        ValueError: for an unknown family.
    """
    check_family(family)
    x, k, theta = _as_floats(x, *params)
    positive = (x > 0) & (x < jnp.inf)
    ratio = jnp.where(positive, x, 1.0) / theta
    match family:
        case "exponential":
            value = -ratio
        case "weibull":
            value = -jnp.exp(k * jnp.log(ratio))
        case "lognormal":
            value = special.log_ndtr(-jnp.log(ratio) / k)
        case "gamma":
            value = _log_gamma_tails(k, jnp.log(ratio))[1]
        case "fisk":
            value = -jax.nn.softplus(k * jnp.log(ratio))
        case _:
            value = -k * jnp.log1p(ratio)
    return jnp.where(positive, value, jnp.where(x > 0, -jnp.inf, 0.0))


def sf(family: str, x: ArrayLike, params: LOSParams) -> Float[Array, "..."]:
    """Evaluates the survival function P(X > x); 1 at x = 0. Arguments as in `log_survival`."""
    return jnp.exp(log_survival(family, x, params))


@functools.partial(jax.jit, static_argnames="family")
def quantile(family: str, p: ArrayLike, params: LOSParams) -> Float[Array, "..."]:
    """Inverts the distribution function: the stay x with P(X <= x) = p.

    Args:
        family: one of `conditional.FAMILIES`.
        p: `[...]` probability; 0 gives 0, 1 gives infinity, values outside [0, 1] give NaN.
        params: natural parameters.

    Returns:
        `[...]` quantile, days; differentiable in `p` and in the parameters for 0 < p < 1.

    Raises:
        ValueError: for an unknown family.
    """
    check_family(family)
    p, k, theta = _as_floats(p, *params)
    inside = (p > 0) & (p < 1)
    p_safe = jnp.where(inside, p, 0.5)
    value = _quantile(family, jnp.log(p_safe), jnp.log1p(-p_safe), k, theta)
    at_end = jnp.where(p == 0, 0.0, jnp.where(p == 1, jnp.inf, jnp.nan)).astype(p.dtype)
    return jnp.where(inside, value, at_end)


@functools.partial(jax.jit, static_argnames="family")
def q99(family: str, params: LOSParams) -> Float[Array, "..."]:
    """Evaluates the 99th percentile, days, the default truncation point of a law.

    Closed forms: theta ln 100 (exponential), theta (ln 100)^(1/k) (Weibull),
    exp(m + 2.326348 tau) (lognormal), theta 99^(1/k) (Fisk), theta (100^(1/k) - 1) (Burr); the
    gamma law is inverted numerically.
    """
    check_family(family)
    k, theta = _as_floats(*params)
    # The logarithms are constants, so that float32 does not lose the digits of 1 - 0.99.
    return _quantile(
        family, jnp.full_like(theta, math.log(0.99)), jnp.full_like(theta, math.log(0.01)), k, theta
    )


def mean(family: str, params: LOSParams) -> Float[Array, "..."]:
    """Evaluates the mean stay, days; infinite for Fisk and Burr laws with shape <= 1."""
    check_family(family)
    k, theta = _as_floats(*params)
    match family:
        case "exponential":
            return theta
        case "weibull":
            return theta * jnp.exp(special.gammaln(1 + 1 / k))
        case "lognormal":
            return theta * jnp.exp(0.5 * k**2)
        case "gamma":
            return k * theta
        case "fisk":
            b = math.pi / jnp.where(k > 1, k, 2.0)
            return jnp.where(k > 1, theta * b / jnp.sin(b), jnp.inf)
        case _:
            return jnp.where(k > 1, theta / (jnp.where(k > 1, k, 2.0) - 1), jnp.inf)


def variance(family: str, params: LOSParams) -> Float[Array, "..."]:
    """Evaluates the variance, days^2; infinite for Fisk and Burr laws with shape <= 2."""
    check_family(family)
    k, theta = _as_floats(*params)
    match family:
        case "exponential":
            return theta**2
        case "weibull":
            log_m1, log_m2 = special.gammaln(1 + 1 / k), special.gammaln(1 + 2 / k)
            # exp(log_m2) - exp(2 log_m1), without cancellation for a steep law.
            return theta**2 * jnp.exp(2 * log_m1) * jnp.expm1(log_m2 - 2 * log_m1)
        case "lognormal":
            return theta**2 * jnp.exp(k**2) * jnp.expm1(k**2)
        case "gamma":
            return k * theta**2
        case "fisk":
            b = math.pi / jnp.where(k > 2, k, 4.0)
            value = 2 * b / jnp.sin(2 * b) - (b / jnp.sin(b)) ** 2
            return jnp.where(k > 2, theta**2 * value, jnp.inf)
        case _:
            k_safe = jnp.where(k > 2, k, 4.0)
            value = k_safe / ((k_safe - 1) ** 2 * (k_safe - 2))
            return jnp.where(k > 2, theta**2 * value, jnp.inf)


def lognormal_from_quantiles(median: ArrayLike, q95: ArrayLike) -> LOSParams:
    """Builds the lognormal law with the given median and 95 % quantile, days (q95 > median)."""
    median, q95 = _as_floats(median, q95)
    return LOSParams(jnp.log(q95 / median) / 1.6448536269514722, median)


def lognormal_from_moments(mean: ArrayLike, sd: ArrayLike) -> LOSParams:
    """Builds the lognormal law with the given mean and standard deviation, days."""
    mean, sd = _as_floats(mean, sd)
    log_var = jnp.log1p((sd / mean) ** 2)
    return LOSParams(jnp.sqrt(log_var), mean * jnp.exp(-0.5 * log_var))


def check_family(family: str) -> None:
    """Raises a ValueError that names the families if `family` is none of them."""
    if family not in conditional.FAMILIES:
        raise ValueError(f"unknown family {family!r}: choose one of {conditional.FAMILIES}")


def _as_floats(*args: ArrayLike) -> list[Array]:
    """Casts to the dtype of the floating-point arrays among the arguments, else to the default."""
    dtypes = [a for a in args if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]
    dtype = jnp.result_type(*dtypes) if dtypes else jnp.result_type(float)
    return [jnp.asarray(a, dtype) for a in args]


def _power_at_zero(k: Array, theta: Array) -> Array:
    """Returns the log density at 0+ of a law whose density behaves as k x^(k-1) / theta^k there."""
    return jnp.where(k > 1, -jnp.inf, jnp.where(k < 1, jnp.inf, -jnp.log(theta)))


def _quantile(family: str, log_p: Array, log_q: Array, k: Array, theta: Array) -> Array:
    """Inverts the law given ln p and ln(1 - p), 0 < p < 1."""
    match family:
        case "exponential":
            return -theta * log_q
        case "weibull":
            return theta * (-log_q) ** (1 / k)
        case "lognormal":
            lower = log_p < log_q
            z = special.ndtri(jnp.exp(jnp.minimum(log_p, log_q)))
            return theta * jnp.exp(k * jnp.where(lower, z, -z))
        case "gamma":
            k, log_p, log_q = jnp.broadcast_arrays(k, log_p, log_q)
            return theta * jnp.exp(_log_gamma_quantile(k, log_p, log_q))
        case "fisk":
            return theta * jnp.exp((log_p - log_q) / k)
        case _:
            return theta * jnp.expm1(-log_q / k)


def _log_gamma_tails_sum(a: Array, y: Array) -> tuple[Array, Array]:
    """Evaluates ln P(a, e^y) and ln Q(a, e^y).

    The power series of P below e^y = a + 1, the continued fraction of Q above, both summed
    backwards with a fixed number of terms.
    """
    x = jnp.exp(y)
    low = x < a + 1
    x_low, x_high = jnp.where(low, x, a), jnp.where(low, a + 1, x)

    def term(i, sums):
        series, fraction = sums
        n = (_GAMMA_TERMS - i).astype(x.dtype)
        return 1 + x_low / (a + n) * series, n * (a - n) / (x_high + 2 * n + 1 - a + fraction)

    start = (jnp.ones_like(x_low), jnp.zeros_like(x_low))
    series, fraction = lax.fori_loop(0, _GAMMA_TERMS, term, start)
    log_density = _log_gamma_density(a, y)
    # In the branch not taken a probability may round to one; -1 keeps its logarithm finite.
    log_p = jnp.where(low, log_density - jnp.log(a) + jnp.log(series), -1.0)
    log_q = jnp.where(low, -1.0, log_density - jnp.log(x_high + 1 - a + fraction))
    # Past the cap the complement is one to rounding, and the second derivative would be inf / inf.
    cap = -0.5 * math.log(float(jnp.finfo(x.dtype).tiny))
    rest_p, rest_q = (jax.nn.log1mexp(jnp.minimum(-tail, cap)) for tail in (log_q, log_p))
    return jnp.where(low, log_p, rest_p), jnp.where(low, rest_q, log_q)


def _log_gamma_density(a: Array, y: Array) -> Array:
    """Computes the log density of ln X at y for X ~ Gamma(a, 1)."""
    return a * y - jnp.exp(y) - special.gammaln(a)


# The derivatives in y have closed forms; those in a are carried through the sums, forwards, so that
# reverse mode stores nothing per term.  Two orders, because a Newton step needs the second.


@jax.custom_jvp
def _log_gamma_tails(a: Array, y: Array) -> tuple[Array, Array]:
    return _log_gamma_tails_sum(a, y)


@jax.custom_jvp
def _log_gamma_slopes(a: Array, y: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Returns `_log_gamma_tails` and its derivative in a."""
    return jax.jvp(lambda a: _log_gamma_tails_sum(a, y), (a,), (jnp.ones_like(a),))


@_log_gamma_tails.defjvp
def _log_gamma_tails_jvp(primals, tangents):
    (a, y), (da, dy) = primals, tangents
    (log_p, log_q), (slope_p, slope_q) = _log_gamma_slopes(a, y)
    log_density = _log_gamma_density(a, y)
    dlog_p = slope_p * da + jnp.exp(log_density - log_p) * dy
    dlog_q = slope_q * da - jnp.exp(log_density - log_q) * dy
    return (log_p, log_q), (dlog_p, dlog_q)


@_log_gamma_slopes.defjvp
def _log_gamma_slopes_jvp(primals, tangents):
    (a, y), (da, dy) = primals, tangents
    one = jnp.ones_like(a)

    def slopes_sum(a):
        return jax.jvp(lambda a: _log_gamma_tails_sum(a, y), (a,), (one,))

    (tails, slopes), (_, curves) = jax.jvp(slopes_sum, (a,), (one,))
    log_density = _log_gamma_density(a, y)
    score = y - special.digamma(a)  # d log_density / da
    dtails, dslopes = [], []
    for sign, log_tail, slope, curve in zip((1, -1), tails, slopes, curves, strict=True):
        dlog_tail_dy = sign * jnp.exp(log_density - log_tail)
        dtails.append(slope * da + dlog_tail_dy * dy)
        dslopes.append(curve * da + dlog_tail_dy * (score - slope) * dy)
    return (tails, slopes), (tuple(dtails), tuple(dslopes))


@jax.custom_jvp
def _log_gamma_quantile(k: Array, log_p: Array, log_q: Array) -> Array:
    """Solves P(k, e^y) = p for y by Newton steps on the log odds, which are concave in y."""
    # Wilson-Hilferty for the body, the leading term of the series for the lower tail.
    z = special.ndtri(jnp.exp(jnp.minimum(log_p, log_q)))
    cube_root = 1 - 1 / (9 * k) + jnp.where(log_p < log_q, z, -z) / (3 * jnp.sqrt(k))
    body = jnp.log(k) + 3 * jnp.log(jnp.maximum(cube_root, 0.5))
    tail = (log_p + special.gammaln(k + 1)) / k

    def step(_, y):
        log_cdf, log_sf = _log_gamma_tails(k, y)
        odds_slope = jnp.exp(_log_gamma_density(k, y) - log_cdf - log_sf)
        return y + jnp.clip(((log_p - log_q) - (log_cdf - log_sf)) / odds_slope, -2.0, 2.0)

    return lax.fori_loop(0, _GAMMA_QUANTILE_STEPS, step, jnp.where(cube_root > 0.5, body, tail))


@_log_gamma_quantile.defjvp
def _log_gamma_quantile_jvp(primals, tangents):
    (k, log_p, log_q), (dk, dlog_p, dlog_q) = primals, tangents
    y = _log_gamma_quantile(k, log_p, log_q)
    (log_cdf, log_sf), (slope_cdf, slope_sf) = _log_gamma_slopes(k, y)
    odds_slope = jnp.exp(_log_gamma_density(k, y) - log_cdf - log_sf)
    return y, (dlog_p - dlog_q - (slope_cdf - slope_sf) * dk) / odds_slope
