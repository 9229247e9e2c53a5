"""The temperature of flow and diffusion policies: it sets the noise that is added to actions.

Added noise has standard deviation `noise_scale * alpha`; alpha is lowered until its entropy meets
a target, and divides the clipped values of `weights` besides.
"""

import math

import jax
from jaxtyping import Array, Float

from jaxlab.learning import temperature


def noise_entropy(
    log_alpha: Float[Array, ""], action_size: int, *, noise_scale: float = 0.1
) -> Float[Array, ""]:
    """Returns A/2 log(2 pi e (noise_scale alpha)^2), nats."""
    return action_size * (0.5 * math.log(2.0 * math.pi * math.e * noise_scale**2) + log_alpha)


def temperature_gradient(
    log_alpha: Float[Array, ""],
    action_size: int,
    *,
    entropy_per_dim: float = -1.5,
    noise_scale: float = 0.1,
) -> Float[Array, ""]:
    """Returns the gradient that Adam descends, H(alpha) - H_target with H_target a multiple of A.

    It is that of `learning.temperature.entropy_dual_loss` in the logarithm.

    Source: released code of arXiv:2507.23675 (-1.5 in its scripts, -0.9 its network's default).
    """
    entropy = noise_entropy(log_alpha, action_size, noise_scale=noise_scale)
    slope = jax.grad(temperature.entropy_dual_loss)
    return slope(log_alpha, entropy, entropy_per_dim * action_size, in_log=True)


def fixed_point(*, entropy_per_dim: float = -1.5, noise_scale: float = 0.1) -> float:
    """Returns the alpha at which the noise has the target's entropy."""
    return math.exp(entropy_per_dim) / math.sqrt(2.0 * math.pi * math.e) / noise_scale
