"""Importance weights of actions: how a value becomes the weight of a sample in the policy's loss.

The exact policy mirror descent target is pi_old exp(Q / temperature) / Z; what divides values, and
where they are clipped, differs between the paper's theory, its released code, and what the code
evidently meant. All are here, by name.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Weighting = Literal["clip_std", "clip_release", "raw", "scale_std", "uniform", "softmax"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
CLIP = 3.0
"""Of normalized values."""
LEAST, LARGEST = -10.0, 40.0
"""Logarithms between which the largest weight of a batch stays: above, its squared gradient is no
float any more; below, Adam takes the gradient for zero."""
LEAST_STD = 1e-6
"""Of values, so that equal ones have a weight."""


class Stats(NamedTuple):
    """Running mean and standard deviation of values."""

    mean: Float[Array, ""]
    std: Float[Array, ""]


def init_stats() -> Stats:
    """Mean 0 and standard deviation 1."""
    return Stats(jnp.zeros(()), jnp.ones(()))


def update_stats(
    stats: Stats, q: Float[Array, "..."], *, rate: float = 1e-3, count: int = 1
) -> Stats:
    """Moves both towards those of a batch, as far as `count` moves at `rate` would.

    The released code of arXiv:2507.23675 moves them at every gradient step of the critics; values
    are at hand at those of the policy alone, so that one move stands for several.
    """
    moved = 1.0 - (1.0 - rate) ** count
    return Stats(
        stats.mean + moved * (jnp.mean(q) - stats.mean),
        stats.std + moved * (jnp.std(q) - stats.std),
    )


def importance_weights(
    q: Float[Array, " B"],
    stats: Stats,
    temperature: Float[Array, ""] | float,
    kind: Weighting = "clip_std",
) -> tuple[Float[Array, " B"], dict[str, Float[Array, ""]]]:
    """Returns one weight an action, without gradient, and what to log of them.

    Args:
        q: `[B]` values of the actions.
        stats: running statistics of values.
        temperature: the learned alpha with the clipped kinds; lambda with "raw" and "scale_std"
            (1 in the released visual code, 3 in its later branch).
        kind: "clip_std": exp(clip((q - mean) / std, -3, 3) / alpha), what the code meant.
            "clip_release": exp(clip(q - mean / std, -3, 3) / alpha), what it does: where values are
            large all weights saturate alike, and only the choice among particles improves.
            "raw": exp(q / lambda), the theory. "scale_std": exp(q / std / lambda). "uniform": 1.
            Where the largest exponent of the batch passes 40, or none reaches -10, all its weights
            are divided by the same number, which Adam does not see; it would see an overflow, and
            gradients as small as its epsilon.

    Returns:
        Weights, and `ess` (sum w)^2 / (B sum w^2) with the share `saturated` by the clip.

    Raises:
        ValueError: if there is no such kind; "softmax" is of several actions a state, see
            `softmax_weights`.
    """
    q = jax.lax.stop_gradient(q)
    std = jnp.maximum(stats.std, LEAST_STD)
    if kind == "clip_std":
        z = (q - stats.mean) / std
    elif kind == "clip_release":
        z = q - stats.mean / std
    elif kind == "raw":
        z = q
    elif kind == "scale_std":
        z = q / std
    elif kind == "uniform":
        z = jnp.zeros_like(q)
    else:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {kind!r}")
    saturated = jnp.zeros(())
    if kind.startswith("clip"):
        saturated = jnp.mean((jnp.abs(z) >= CLIP).astype(q.dtype))
        z = jnp.clip(z, -CLIP, CLIP)
    log_weight = z / jax.lax.stop_gradient(temperature)
    ess = effective_share(log_weight)
    largest = jnp.max(log_weight)
    log_weight = log_weight - (largest - jnp.clip(largest, LEAST, LARGEST))
    return jnp.exp(log_weight), {"ess": ess, "saturated": saturated}


def softmax_weights(
    q: Float[Array, "M B"], temperature: Float[Array, ""] | float
) -> Float[Array, "M B"]:
    """Returns M softmax over the actions of a state of q / temperature.

    Without the factor Z(s) that the other kinds give to a state's loss; q + f(s) changes nothing.
    """
    q = jax.lax.stop_gradient(q)
    return q.shape[0] * jax.nn.softmax(q / jax.lax.stop_gradient(temperature), axis=0)


def effective_share(log_weight: Float[Array, " B"]) -> Float[Array, ""]:
    """Returns (sum w)^2 / (B sum w^2), the share of samples that count, in (0, 1]."""
    weight = jnp.exp(log_weight - jnp.max(log_weight))
    return jnp.sum(weight) ** 2 / (weight.size * jnp.sum(weight**2))
