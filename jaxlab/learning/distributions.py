"""Distributions of actions: records of pure functions over arrays of parameters.

A policy's network puts out one array `[..., num_params]`, and a record says what it means. Leading
axes are a batch that every function keeps. A logit of -inf forbids its action: probability 0, no
gradient, nothing added to entropy or divergence; `mask_logits` puts it there.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlab.envs import spaces

LOG_2PI = math.log(2.0 * math.pi)
# Points and weights of the normal distribution for the entropy of a squashed Gaussian. The sum
# converges exponentially in the spacing: the integrand is analytic in a strip around the real line.
_POINTS = np.linspace(-8.0, 8.0, 129)
_WEIGHTS = np.exp(-0.5 * _POINTS**2) / np.sum(np.exp(-0.5 * _POINTS**2))


class Distribution(NamedTuple):
    """A family of distributions over actions.

    Attributes:
        num_params: P, how many numbers set one distribution.
        sample: `sample(key, params [..., P]) -> action`, independent in every place of the batch.
        log_prob: `log_prob(params, action) -> [...]`, logarithm of the density or probability.
        entropy: `entropy(params) -> [...]`, in nats; differential where actions are floats.
        kl: `kl(params, other) -> [...]`, KL(params || other) in nats.
        mode: `mode(params) -> action`, the action of an actor that does not explore.
    """

    num_params: int
    sample: Callable[[jax.Array, jax.Array], jax.Array]
    log_prob: Callable[[jax.Array, jax.Array], jax.Array]
    entropy: Callable[[jax.Array], jax.Array]
    kl: Callable[[jax.Array, jax.Array], jax.Array]
    mode: Callable[[jax.Array], jax.Array]


def distribution_of(space: spaces.Space) -> Distribution:
    """Makes the usual distribution of a space: Gaussian, categorical, or several categoricals.

    Raises:
        ValueError: if it is no space.

    Example:
        >>> law = distribution_of(spaces.MultiDiscrete((3, 2)))
        >>> law.num_params, law.mode(jnp.asarray([0.0, 2.0, 1.0, 5.0, 4.0]))
        (5, Array([1, 0], dtype=int32))
    """
    if isinstance(space, spaces.Box):
        return gaussian(spaces.size(space))
    nums = spaces.choices(space)
    return categorical(nums[0]) if isinstance(space, spaces.Discrete) else multi_categorical(nums)


def gaussian(size: int) -> Distribution:
    """Makes the Gaussian with independent dimensions.

    Parameters are `[..., 2 D]`, D means and then D logarithms of standard deviations; actions are
    `[..., D]` floats without bounds.

    Raises:
        ValueError: if `size` is below 1; when called, if shapes do not fit.
    """
    _at_least_one("size", size)

    def sample(key: jax.Array, params: jax.Array) -> jax.Array:
        mean, log_std = _mean_and_log_std(params, size)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)

    def log_prob(params: jax.Array, action: jax.Array) -> jax.Array:
        mean, log_std = _mean_and_log_std(params, size)
        _check_action(action, mean.shape, jnp.floating)
        noise = (action - mean) * jnp.exp(-log_std)
        return jnp.sum(_normal_logp(noise, log_std), axis=-1)

    def entropy(params: jax.Array) -> jax.Array:
        _, log_std = _mean_and_log_std(params, size)
        return jnp.sum(log_std + 0.5 * (LOG_2PI + 1.0), axis=-1)

    def kl(params: jax.Array, other: jax.Array) -> jax.Array:
        (mean, log_std), (center, log_scale) = (_mean_and_log_std(x, size) for x in (params, other))
        wider = log_std - log_scale
        away = (mean - center) * jnp.exp(-log_scale)
        # expm1, so that nearly equal distributions keep their small divergence.
        return jnp.sum(0.5 * (jnp.expm1(2.0 * wider) + away**2) - wider, axis=-1)

    def mode(params: jax.Array) -> jax.Array:
        return _mean_and_log_std(params, size)[0]

    return Distribution(2 * size, sample, log_prob, entropy, kl, mode)


def squashed_gaussian(size: int) -> Distribution:
    """Makes the law of tanh(x) with x Gaussian: actions `[..., D]` in [-1, 1].

    Parameters are those of `gaussian`, of x. The entropy has no closed form; it is a sum over 129
    points of each dimension, which differs from the integral by less than 1e-8 for standard
    deviations up to 4 and 1e-5 up to 7.4, the bound of soft actor-critic; rounding comes on top.
    The divergence is that of the Gaussians, since tanh is invertible. `mode` is tanh(mean), the
    median: a wide density has its peaks at the bounds. An action of exactly 1 or -1, to which
    floats round, counts as the last float within.

    Raises:
        ValueError: if `size` is below 1; when called, if shapes do not fit.
    """
    normal = gaussian(size)

    def sample(key: jax.Array, params: jax.Array) -> jax.Array:
        return jnp.tanh(normal.sample(key, params))

    def log_prob(params: jax.Array, action: jax.Array) -> jax.Array:
        mean, log_std = _mean_and_log_std(params, size)
        _check_action(action, mean.shape, jnp.floating)
        bound = 1.0 - float(jnp.finfo(action.dtype).epsneg)
        x = jnp.arctanh(jnp.clip(action, -bound, bound))
        return squashed_logp(x, (x - mean) * jnp.exp(-log_std), log_std)

    def entropy(params: jax.Array) -> jax.Array:
        mean, log_std = _mean_and_log_std(params, size)
        shape = (1,) * mean.ndim + _POINTS.shape
        points, weights = (jnp.asarray(x, mean.dtype).reshape(shape) for x in (_POINTS, _WEIGHTS))
        x = mean[..., None] + jnp.exp(log_std)[..., None] * points
        stretch = jnp.sum(weights * _log_slope_of_tanh(x), axis=-1)
        return normal.entropy(params) + jnp.sum(stretch, axis=-1)

    def mode(params: jax.Array) -> jax.Array:
        return jnp.tanh(normal.mode(params))

    return Distribution(2 * size, sample, log_prob, entropy, normal.kl, mode)


def squashed_logp(
    x: Float[Array, "... D"], noise: Float[Array, "... D"], log_std: Float[Array, "... D"]
) -> Float[Array, "..."]:
    """Returns the log-density of tanh(x) with x = mean + exp(log_std) noise.

    Whoever has drawn x calls this rather than `log_prob`: the inverse of tanh loses digits where it
    saturates.

    Source: Haarnoja et al. 2018, arXiv:1812.05905, appendix C.
    """
    return jnp.sum(_normal_logp(noise, log_std) - _log_slope_of_tanh(x), axis=-1)


def categorical(num: int) -> Distribution:
    """Makes the distribution over 0 to num - 1 with probabilities softmax(params).

    Parameters are `[..., num]` logits, -inf where an action is forbidden; actions are `[...]`
    int32. Where all are forbidden there is no distribution: log-probability, entropy and divergence
    are NaN.

    Raises:
        ValueError: if `num` is below 1; when called, if shapes do not fit.
    """
    _at_least_one("num", num)

    def rows(params: jax.Array) -> jax.Array:
        return _check_params(params, num)[..., None, :]

    several = _several(num, rows)
    return several._replace(
        sample=lambda key, params: several.sample(key, params)[..., 0],
        log_prob=lambda params, action: several.log_prob(params, action[..., None]),
        mode=lambda params: several.mode(params)[..., 0],
    )


def multi_categorical(nums: Sequence[int]) -> Distribution:
    """Makes K independent categoricals, of nums[0] to nums[K - 1] actions.

    Parameters are `[..., sum(nums)]`, the logits of all, one after the other, -inf where an action
    is forbidden; actions are `[..., K]` int32. Log-probability, entropy and divergence are sums
    over the K; they are NaN if one of them has all its actions forbidden.

    Raises:
        ValueError: if there is no number, or one is below 1; when called, if shapes do not fit.
    """
    nums = tuple(nums)
    _at_least_one("nums", *nums)
    starts = np.cumsum((0, *nums[:-1]))
    place = np.arange(max(nums))
    within = place < np.array(nums)[:, None]
    index = starts[:, None] + np.where(within, place, 0)

    def rows(params: jax.Array) -> jax.Array:
        logits = _check_params(params, sum(nums))
        if within.all():
            return logits.reshape(*logits.shape[:-1], *within.shape)
        shape = (1,) * (logits.ndim - 1) + within.shape
        return jnp.where(within.reshape(shape), logits[..., index], -jnp.inf)

    return _several(sum(nums), rows)


def mask_logits(logits: Float[Array, "... P"], mask: Bool[Array, "... P"]) -> Float[Array, "... P"]:
    """Returns the logits, -inf where the mask is False: the parameters with actions forbidden."""
    return jnp.where(mask, logits, -jnp.inf)


def _several(num_params: int, rows: Callable[[jax.Array], jax.Array]) -> Distribution:
    """Makes independent categoricals; `rows(params) -> [..., K, V]` are their logits."""

    def sample(key: jax.Array, params: jax.Array) -> jax.Array:
        return jax.random.categorical(key, rows(params)).astype(jnp.int32)

    def log_prob(params: jax.Array, action: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(rows(params))
        _check_action(action, logp.shape[:-1], jnp.integer)
        return jnp.sum(jnp.take_along_axis(logp, action[..., None], axis=-1)[..., 0], axis=-1)

    def entropy(params: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(rows(params))
        return -jnp.sum(_expected(logp, logp), axis=-1)

    def kl(params: jax.Array, other: jax.Array) -> jax.Array:
        logp, logq = (jax.nn.log_softmax(rows(x)) for x in (params, other))
        # Where both forbid, their difference is no number; see `_expected`.
        difference = _allowed(logp, logp) - _allowed(logp, logq)
        return jnp.sum(_expected(logp, difference), axis=-1)

    def mode(params: jax.Array) -> jax.Array:
        return jnp.argmax(rows(params), axis=-1).astype(jnp.int32)

    return Distribution(num_params, sample, log_prob, entropy, kl, mode)


def _expected(logp: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the sum of exp(logp) x over the last axis, without what is forbidden."""
    return jnp.sum(jnp.exp(logp) * _allowed(logp, x), axis=-1)


def _allowed(logp: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(logp == -jnp.inf, 0.0, x)


def _normal_logp(noise: jax.Array, log_std: jax.Array) -> jax.Array:
    return -0.5 * noise**2 - log_std - 0.5 * LOG_2PI


def _log_slope_of_tanh(x: jax.Array) -> jax.Array:
    """Returns log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), which does not cancel."""
    return 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))


def _mean_and_log_std(params: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    mean, log_std = jnp.split(_check_params(params, 2 * size), 2, axis=-1)
    return mean, log_std


def _check_params(params: jax.Array, num_params: int) -> jax.Array:
    """Returns the parameters in single precision at least."""
    floats = jnp.issubdtype(params.dtype, jnp.floating)
    if params.ndim < 1 or params.shape[-1] != num_params or not floats:
        raise ValueError(
            f"params must be [..., {num_params}] floats, got {params.dtype} {params.shape}"
        )
    return params.astype(jnp.float32) if jnp.finfo(params.dtype).bits < 32 else params


def _check_action(action: jax.Array, shape: tuple[int, ...], kind: type) -> None:
    if action.shape != shape or not jnp.issubdtype(action.dtype, kind):
        raise ValueError(
            f"action must be {shape} of {kind.__name__} numbers, got {action.dtype} {action.shape}"
        )


def _at_least_one(name: str, *numbers: int) -> None:
    if not numbers or not all(map(spaces.is_count, numbers)):
        came = ", ".join(map(str, numbers)) or "none"
        raise ValueError(f"{name} must be at least 1, got {came}; give integers")
