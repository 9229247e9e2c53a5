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
A NaN that has a probability, and probabilities that are none, make NaN of the whole result. What
has no probability has a weight all the same, for a step towards it; but its weight is finite, and 0
where its value is not, so that gradients through a softmax stay finite.

Zhang et al. 2025, arXiv:2509.24047 (risk seeking as the dual of a divergence); Follmer and Schied
2002 (convex risk measures); Rockafellar and Uryasev 2000 (CVaR); Newey and Powell 1987 (expectile).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxlab.core import risk_divergence, risk_measures
from jaxlab.core.risk_measures import Measure, Parts

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


def neutral() -> Risk:
    """Makes the mean."""
    return _risk(risk_measures.NEUTRAL, 0.0, _only_itself)


def entropic(beta: float | jax.Array) -> Risk:
    """Makes (1 / beta) log sum_a probs_a exp(beta x_a), of which `log_mean_exp` is the value.

    The tilt is probs exp(beta (x - value)), the weight (exp(beta (x - value)) - 1) / beta, the
    penalty KL(p, probs) / beta.

    Args:
        beta: In units of 1 / x, of either sign: the mean at 0, the largest x at infinity and the
            least at minus infinity. With a temperature lambda it is 1 / lambda.

    Raises:
        ValueError: if beta is not a scalar.

    Source: Zhang et al. 2025, arXiv:2509.24047.
    """
    _check("beta", beta)
    return _risk(risk_measures.ENTROPIC, beta, lambda p, probs: _over(_kl(p, probs), beta))


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
        kappa: In units of 1 / x, of either sign: the mean at 0, the ends at infinity.

    Raises:
        ValueError: if kappa is not a scalar.

    Source: the divergence of Pearson in the dual of Zhang et al. 2025, arXiv:2509.24047.
    """

    _check("kappa", kappa)

    def penalty(p: jax.Array, probs: jax.Array) -> jax.Array:
        share = jnp.where(probs > 0.0, (p - probs) ** 2 / jnp.where(probs > 0.0, probs, 1.0), 0.0)
        outside = jnp.any((p > 0.0) & (probs <= 0.0), axis=-1)
        total = 0.5 * jnp.sum(share, axis=-1)
        return _over(jnp.where(outside, jnp.inf, total), kappa)

    return _risk(risk_measures.CHI2, kappa, penalty)


def cvar(alpha: float | jax.Array) -> Risk:
    """Makes the mean of the best share alpha: min over nu of nu + E max(x - nu, 0) / alpha.

    The tilt is probs / alpha above the quantile nu; what is left of it is shared out by the values
    that equal nu. The penalty is 0 while p is at most probs / alpha, and infinite beyond.

    Args:
        alpha: Share in [-1, 1] without 0: the best values for alpha > 0, the worst for alpha < 0;
            both are the mean at 1 and -1, the largest and the least x near 0.

    Raises:
        ValueError: if alpha is not a scalar, or is outside; a traced one makes NaN instead.

    Source: Rockafellar and Uryasev 2000.
    """
    alpha = _check(
        "alpha", alpha, lambda a: (abs(a) > 0.0) & (abs(a) <= 1.0), "lie in [-1, 1] and not be 0"
    )

    def penalty(p: jax.Array, probs: jax.Array) -> jax.Array:
        cap = probs / jnp.abs(jnp.asarray(alpha, p.dtype))
        return _unless(jnp.all(p <= cap * (1.0 + _slack(p)), axis=-1), p.dtype, alpha)

    return _risk(risk_measures.CVAR, alpha, penalty)


def expectile(tau: float | jax.Array) -> Risk:
    """Makes the v at which tau E max(x - v, 0) = (1 - tau) E max(v - x, 0).

    The tilt is proportional to tau probs above v and to (1 - tau) probs below; the penalty is 0
    while p / probs varies by no more than the ratio of the two, and infinite beyond.

    Args:
        tau: In (0, 1): optimistic above 1 / 2, the mean there, pessimistic below.

    Raises:
        ValueError: if tau is not a scalar, or is outside; a traced one makes NaN instead.

    Source: Newey and Powell 1987; the set of tilts as in Bellini et al. 2014.
    """
    tau = _check("tau", tau, lambda t: (t > 0.0) & (t < 1.0), "lie in (0, 1)")

    def penalty(p: jax.Array, probs: jax.Array) -> jax.Array:
        on = probs > 0.0
        ratio = jnp.where(on, p / jnp.where(on, probs, 1.0), 1.0)
        largest = jnp.max(jnp.where(on, ratio, 0.0), axis=-1)
        least = jnp.min(jnp.where(on, ratio, jnp.inf), axis=-1)
        t = jnp.asarray(tau, p.dtype)
        odds = jnp.maximum(t, 1.0 - t) / jnp.minimum(t, 1.0 - t)
        inside = (largest <= odds * least * (1.0 + _slack(p))) & jnp.all(on | (p <= 0.0), axis=-1)
        return _unless(inside, p.dtype, 2.0 * t - 1.0)

    return _risk(risk_measures.EXPECTILE, tau, penalty)


def penalized(
    divergence: Callable[[jax.Array, jax.Array], jax.Array], *, size: int = 4
) -> Callable[[Any], Risk]:
    """Makes the measure of a divergence of one's own, whose penalty is D(p, probs) / beta.

    Values are exact up to rounding for every convex D, smooth or with kinks; each takes up to
    hundreds of evaluations of its gradient, where those above have closed forms. Values must be
    finite where they have a probability. Its tilt cannot be differentiated in reverse, and the
    value's derivative by beta is given as 0 at beta = 0.

    Args:
        divergence: `divergence(p, probs) -> []` of two distributions `[A]`, a pure function that is
            convex in p, and 0 where both are equal.
        size: A of the distributions that it is checked with.

    Returns:
        A maker like `entropic`: `measure(beta)`, beta of either sign, the mean at 0.

    Raises:
        ValueError: if D is seen to be no divergence.

    Example:
        >>> def variation(p, probs):
        ...     return 0.5 * jnp.sum(jnp.abs(p - probs))
        >>> measure = risk.penalized(variation)
        >>> measure(0.5).value(jnp.array([1.0, 3.0]), jnp.array([0.9, 0.1]))

    Source: Zhang et al. 2025, arXiv:2509.24047, the value of a general D.
    """
    risk_divergence.check(divergence, size)
    found = risk_divergence.measure_of(divergence)
    each = jnp.vectorize(divergence, signature="(a),(a)->()")

    def measure(beta: float | jax.Array) -> Risk:
        _check("beta", beta)
        return _risk(found, beta, lambda p, probs: _over(each(p, probs), beta))

    return measure


def _risk(measure: Measure, parameter: float | jax.Array, penalty: Function) -> Risk:
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
        return x, probs, _finite(parameter, x.dtype)

    def value(x: Any, probs: Any = None, *, axis: int = -1) -> jax.Array:
        return _value(measure, *prepared(x, probs, axis))

    def tilt(x: Any, probs: Any = None, *, axis: int = -1) -> jax.Array:
        return jnp.moveaxis(_parts(measure, *prepared(x, probs, axis)).tilt, -1, axis)

    def weight(x: Any, probs: Any = None, *, axis: int = -1) -> jax.Array:
        return jnp.moveaxis(_parts(measure, *prepared(x, probs, axis)).weight, -1, axis)

    return Risk(value, tilt, weight, penalty)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(measure: Measure, x: jax.Array, probs: jax.Array, parameter: jax.Array) -> jax.Array:
    seen = _seen(x, probs)
    value = measure.value(seen.x, probs, parameter)
    return jnp.where(seen.spoiled, jnp.nan, jnp.where(seen.masked, -jnp.inf, value))


@_value.defjvp
def _value_jvp(measure: Measure, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """By the envelope theorem: what the maximum is attained at need not be differentiated."""
    tilt, weight, slope = _parts(measure, *primals)
    dx, dprobs, dparameter = tangents
    change = jnp.sum(tilt * dx + weight * dprobs, axis=-1) + slope * dparameter
    return _value(measure, *primals), change


def _parts(measure: Measure, x: jax.Array, probs: jax.Array, parameter: jax.Array) -> Parts:
    seen = _seen(x, probs)
    value = _value(measure, seen.x, probs, parameter)
    tilt, weight, slope = measure.parts(seen.x, probs, parameter, value)
    most = float(jnp.finfo(x.dtype).max) ** 0.5
    hidden = jnp.where(jnp.isfinite(x), jnp.clip(weight, -most, most), 0.0)
    weight = jnp.where(probs > 0.0, weight, hidden)
    spoiled = seen.spoiled[..., None]
    tilt, weight = (jnp.where(spoiled, jnp.nan, part) for part in (tilt, weight))
    return Parts(tilt, weight, jnp.where(seen.spoiled, jnp.nan, slope))


class _Seen(NamedTuple):
    """Values without what nobody sees, and two cases in which there is nothing to compute."""

    x: Float[Array, "... A"]
    spoiled: Bool[Array, "..."]
    masked: Bool[Array, "..."]


def _seen(x: jax.Array, probs: jax.Array) -> _Seen:
    visible = probs > 0.0
    spoiled = jnp.any(~(probs >= 0.0) | (visible & jnp.isnan(x)), axis=-1)
    masked = jnp.all(~visible | (x == -jnp.inf), axis=-1)
    drop = masked[..., None] | (~visible & ~jnp.isfinite(x))
    return _Seen(jnp.where(drop, 0.0, x), spoiled, masked)


# Penalties and arguments


def _kl(p: jax.Array, probs: jax.Array) -> jax.Array:
    on = (p > 0.0) & (probs > 0.0)
    log_ratio = jnp.log(jnp.where(on, p, 1.0)) - jnp.log(jnp.where(on, probs, 1.0))
    outside = jnp.any((p > 0.0) & (probs <= 0.0), axis=-1)
    return jnp.where(outside, jnp.inf, jnp.sum(jnp.where(on, p * log_ratio, 0.0), axis=-1))


def _only_itself(p: jax.Array, probs: jax.Array) -> jax.Array:
    return _unless(jnp.all(jnp.abs(p - probs) <= _slack(p) * probs, axis=-1), p.dtype, 1.0)


def _over(divergence: jax.Array, parameter: float | jax.Array) -> jax.Array:
    """A divergence over a parameter of which 0 forbids every p but probs."""
    parameter = _finite(parameter, divergence.dtype)
    safe = jnp.where(parameter == 0.0, 1.0, parameter)
    itself = divergence <= _slack(divergence)
    return jnp.where(parameter == 0.0, jnp.where(itself, 0.0, jnp.inf), divergence / safe)


def _unless(allowed: jax.Array, dtype: Any, sign: float | jax.Array) -> jax.Array:
    """0 where allowed; else infinite, below zero for a pessimist."""
    infinite = jnp.where(jnp.asarray(sign, dtype) >= 0.0, jnp.inf, -jnp.inf).astype(dtype)
    return jnp.where(allowed, jnp.zeros((), dtype), infinite)


def _slack(x: jax.Array) -> float:
    """Relative rounding that a tilt may have."""
    return 64.0 * float(jnp.finfo(x.dtype).eps)


def _floats(x: Any) -> jax.Array:
    """In double precision if it came so, in single precision otherwise."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _finite(parameter: float | jax.Array, dtype: Any) -> jax.Array:
    """The parameter, infinite ones as the largest there is: a product with 0 is then 0."""
    most = float(jnp.finfo(dtype).max)
    return jnp.clip(jnp.asarray(parameter, dtype), -most, most)


def _check(
    name: str, parameter: Any, fits: Callable[[Any], Any] | None = None, where: str = ""
) -> Any:
    """Returns a parameter, NaN in place of a traced one that does not fit."""
    if jnp.ndim(parameter):
        raise ValueError(
            f"{name} must be a scalar, got shape {jnp.shape(parameter)}; map over it by jax.vmap"
        )
    if fits is None:
        return parameter
    if isinstance(parameter, Tracer):
        parameter = _floats(parameter)
        return jnp.where(fits(parameter), parameter, jnp.nan)
    if not fits(float(parameter)):
        raise ValueError(f"{name} must {where}, got {parameter}")
    return parameter
