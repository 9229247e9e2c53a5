"""Images: a small convolutional encoder, its head, and random shifts."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.nn.mlp import fan_in_normal


class PixelEncoder(nn.Module):
    """Four convolutions of 3 x 3 with 32 channels, the first of stride 2, without padding; ReLU.

    Takes flat images `[..., H W C]` of values 0 to 255, shifts them to [-1/2, 1/2], and returns
    flat features; 84 x 84 gives 39,200.

    Attributes:
        shape: height, width and channels (H, W, C) of an image.
    """

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, obs: Float[Array, "... HWC"]) -> Float[Array, "... F"]:
        lead = obs.shape[:-1]
        x = obs.reshape(math.prod(lead), *self.shape) / 255.0 - 0.5
        for stride in (2, 1, 1, 1):
            x = nn.relu(nn.Conv(32, (3, 3), stride, "VALID")(x))
        return x.reshape(*lead, -1)


class Trunk(nn.Module):
    """What a head makes of features: a linear layer, layer normalization, tanh.

    Attributes:
        size: width of the result.
    """

    size: int = 50

    @nn.compact
    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... size"]:
        return jnp.tanh(nn.LayerNorm()(nn.Dense(self.size, kernel_init=fan_in_normal)(x)))


def random_shift(
    key: jax.Array, obs: Float[Array, "B HWC"], shape: tuple[int, int, int], *, pad: int = 4
) -> Float[Array, "B HWC"]:
    """Moves every image by up to `pad` pixels, its edge repeated.

    Source: Yarats et al. 2021, arXiv:2107.09645 (DrQ-v2), whole pixels.
    """
    images = obs.reshape(-1, *shape)
    wide = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    start = jax.random.randint(key, (images.shape[0], 2), 0, 2 * pad + 1)

    def crop(image: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (at[0], at[1], jnp.zeros_like(at[0])), shape)

    return jax.vmap(crop)(wide, start).reshape(obs.shape)
