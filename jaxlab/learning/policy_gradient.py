"""The clipped surrogate of PPO and its companions, as functions of log-probabilities.

Nothing here knows a distribution: log-probabilities may be of single actions, of macro-actions or
of one step of a diffusion. All is by sample, `[...]`; `masked_mean` makes numbers of it.

Schulman et al. 2017, arXiv:1707.06347.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.learning.settings import Settings

Scalars = Mapping[str, Float[Array, ""]]
"""Metrics of a loss by name."""
Scalar = float | Float[Array, ""]
MAX_LOG_RATIO = 20.0
"""Beyond it a ratio grows no more: exp would overflow, and give NaN for the gradient of a sample
that the clip holds back."""


class Outputs(NamedTuple):
    """What the networks say now of samples of the rollout, with gradient.

    Attributes:
        logp: log-probability of the action, `[...]`, or `[..., A]` with one for each agent.
        entropy: of the policy at the observation, of the same shape.
        value: `[...]`, or `[..., A]` with a value for each agent.
    """

    logp: Float[Array, "..."]
    entropy: Float[Array, "..."]
    value: Float[Array, "..."]


class Samples(NamedTuple):
    """What the rollout says of them.

    Attributes:
        logp_old: log-probability when the action was drawn, of the shape of `Outputs.logp`.
        value_old: value when the rollout was made, of the shape of `Outputs.value`.
        target: what the value should be, of the same shape.
        advantage: of the action, not normalized, of the shape of `logp_old`.
        choice_mask: whether there was more than one action to choose from, of the same shape; None
            if there always is.
    """

    logp_old: Float[Array, "..."]
    value_old: Float[Array, "..."]
    target: Float[Array, "..."]
    advantage: Float[Array, "..."]
    choice_mask: Bool[Array, "..."] | None


Loss = Callable[[Outputs, Samples, Settings], tuple[jax.Array, Scalars]]
"""`loss(outputs, samples, settings) -> (loss, metrics)` of a minibatch, such as `ppo_loss`."""


def clipped_surrogate(
    logp: Float[Array, "..."],
    logp_old: Float[Array, "..."],
    advantage: Float[Array, "..."],
    *,
    clip_eps: Scalar,
) -> Float[Array, "..."]:
    """Returns min(r A, clip(r, 1 - eps, 1 + eps) A) with r = exp(logp - logp_old), to be maximized.

    With `clip_eps` infinite it is the importance-weighted advantage, whose gradient at r = 1 is the
    policy gradient A grad logp.

    Args:
        logp: `[...]` now, with gradient.
        logp_old: when the action was drawn.
        advantage: of the action; no gradient is taken in it.
        clip_eps: positive, how far the ratio may be driven from 1.

    Raises:
        ValueError: if shapes differ, or `clip_eps` is a number that is not positive.

    Source: Schulman et al. 2017, eq. 7.
    """
    _check_shapes(logp=logp, logp_old=logp_old, advantage=advantage)
    _check_positive(clip_eps)
    ratio, advantage = _ratio(logp, logp_old), jax.lax.stop_gradient(advantage)
    return jnp.minimum(
        ratio * advantage, jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps) * advantage
    )


def outside_clip(
    logp: Float[Array, "..."], logp_old: Float[Array, "..."], *, clip_eps: Scalar
) -> Bool[Array, "..."]:
    """Returns |r - 1| > eps; the mean is the clipped fraction that implementations log."""
    _check_shapes(logp=logp, logp_old=logp_old)
    _check_positive(clip_eps)
    return jnp.abs(_ratio(logp, logp_old) - 1.0) > clip_eps


def approx_kl(logp: Float[Array, "..."], logp_old: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns r - 1 - log r, whose mean over actions of the old policy is KL(old || new).

    It is never negative, and has less variance than -log r.

    Source: Schulman 2020, "Approximating KL divergence", the estimator k3.
    """
    _check_shapes(logp=logp, logp_old=logp_old)
    log_ratio = jnp.minimum(logp - logp_old, MAX_LOG_RATIO)
    return jnp.expm1(log_ratio) - log_ratio


def clipped_value_loss(
    value: Float[Array, "..."],
    value_old: Float[Array, "..."],
    target: Float[Array, "..."],
    *,
    clip_eps: Scalar,
) -> Float[Array, "..."]:
    """Returns the larger of (V - target)^2 and (V_old + clip(V - V_old, -eps, eps) - target)^2.

    Args:
        value: `[...]` now, with gradient.
        value_old: when the rollout was made.
        target: what it should be; no gradient is taken in it.
        clip_eps: positive, in units of the value.

    Raises:
        ValueError: if shapes differ, or `clip_eps` is a number that is not positive.

    Source: implementations of PPO since OpenAI's baselines; not in the paper.
    """
    _check_shapes(value=value, value_old=value_old, target=target)
    _check_positive(clip_eps)
    value_old, target = jax.lax.stop_gradient((value_old, target))
    near = value_old + jnp.clip(value - value_old, -clip_eps, clip_eps)
    return jnp.maximum((value - target) ** 2, (near - target) ** 2)


def normalize_advantage(
    advantage: Float[Array, "..."], mask: Bool[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """Returns (A - mean) / (std + 1e-8) over the samples that the mask keeps, 0 for the others.

    Args:
        advantage: `[...]`, of a minibatch.
        mask: True where a sample counts; False of agents that were not there to act.

    Raises:
        ValueError: if shapes differ.
    """
    # From the largest the differences of equal advantages are 0; from a mean that has been rounded
    # they are not, and their own size would blow them up to 1.
    kept = jnp.ones_like(advantage, bool) if mask is None else mask
    largest = jnp.max(advantage, where=kept, initial=-jnp.inf)
    shifted = jnp.where(kept, advantage - largest, 0.0)
    centered = jnp.where(kept, shifted - masked_mean(shifted, mask), 0.0)
    return centered / (jnp.sqrt(masked_mean(centered**2, mask)) + 1e-8)


def masked_mean(x: Float[Array, "..."], mask: Bool[Array, "..."] | None = None) -> Float[Array, ""]:
    """Returns the mean over the samples that the mask keeps, 0 if it keeps none.

    What the mask leaves out may be NaN, and has no gradient.

    Raises:
        ValueError: if shapes differ.
    """
    if mask is None:
        return jnp.mean(x)
    _check_shapes(x=x, mask=mask)
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask.astype(x.dtype)), 1.0)


def ppo_loss(
    now: Outputs, then: Samples, settings: Settings
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns -surrogate + value_coef error - entropy_coef entropy of a minibatch, and metrics.

    Advantages are normalized over the minibatch. Where a mask left one action, nothing was chosen:
    such samples count for the value alone.

    Args:
        now: what the networks say.
        then: what the rollout says.
        settings: `clip_eps`, `value_coef`, `entropy_coef`, and `value_clip_eps` if the value is to
            be clipped.

    Source: Schulman et al. 2017, eq. 9.
    """
    clip_eps, mask = settings["clip_eps"], then.choice_mask
    advantage = normalize_advantage(then.advantage, mask)
    gain = clipped_surrogate(now.logp, then.logp_old, advantage, clip_eps=clip_eps)
    error = (now.value - then.target) ** 2
    if "value_clip_eps" in settings:
        error = clipped_value_loss(
            now.value, then.value_old, then.target, clip_eps=settings["value_clip_eps"]
        )
    outside = outside_clip(now.logp, then.logp_old, clip_eps=clip_eps)
    metrics = {
        "critic/loss": jnp.mean(error),
        "policy/entropy": masked_mean(now.entropy, mask),
        "policy/clipped": masked_mean(outside.astype(gain.dtype), mask),
        "policy/kl": masked_mean(approx_kl(now.logp, then.logp_old), mask),
    }
    loss = -masked_mean(gain, mask)
    loss += settings["value_coef"] * metrics["critic/loss"]
    return loss - settings["entropy_coef"] * metrics["policy/entropy"], metrics


def _ratio(logp: jax.Array, logp_old: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(logp - jax.lax.stop_gradient(logp_old), MAX_LOG_RATIO))


def _check_shapes(**arrays: jax.Array) -> None:
    if len({x.shape for x in arrays.values()}) > 1:
        raise ValueError(
            f"{', '.join(arrays)} must have one shape, got "
            + ", ".join(str(x.shape) for x in arrays.values())
        )


def _check_positive(clip_eps: Scalar) -> None:
    if isinstance(clip_eps, int | float) and not clip_eps > 0.0:
        raise ValueError(f"clip_eps must be positive, got {clip_eps}")
