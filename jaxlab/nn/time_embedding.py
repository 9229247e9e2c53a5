"""Embeddings of the time of a flow or a diffusion."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.nn.mlp import fan_in_normal, mish


def sinusoidal(
    t: Float[Array, "..."], size: int = 16, *, scale: float = 1.0
) -> Float[Array, "... size"]:
    """Returns sines and cosines of t at falling frequencies, over sqrt(size).

    Frequencies are 10000^(-j / (size / 2)), j = 0 to size / 2 - 1: at t in [0, 1] the highest is
    one radian. With 16 dimensions the factor is 1/4.

    Args:
        t: `[...]`, times.
        size: number of dimensions, even.
        scale: factor that t is multiplied by first.

    Raises:
        ValueError: if `size` is odd.
    """
    if size % 2:
        raise ValueError(f"size must be even, got {size}")
    half = size // 2
    frequency = jnp.asarray(10_000.0 ** (-np.arange(half) / half), t.dtype)
    angle = scale * t[..., None] * frequency.reshape((1,) * t.ndim + (half,))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1) * size**-0.5


class TimeEmbedding(nn.Module):
    """A sinusoidal embedding, then two layers: `size` dimensions, twice that, `size` again.

    Attributes:
        size: number of dimensions of the result, even.
        scale: factor that the time is multiplied by first.
    """

    size: int = 16
    scale: float = 1.0

    @nn.compact
    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "... size"]:
        x = sinusoidal(t, self.size, scale=self.scale)
        x = mish(nn.Dense(2 * self.size, kernel_init=fan_in_normal)(x))
        return nn.Dense(self.size, kernel_init=fan_in_normal)(x)
