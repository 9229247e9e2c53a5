"""Networks that systems share: `flax.linen` modules, and transformers as plain functions."""

from jaxlab.nn import transformer
from jaxlab.nn.mlp import Mlp, fan_in_normal, mish, orthogonal
from jaxlab.nn.pixels import PixelEncoder, Trunk, random_shift
from jaxlab.nn.time_embedding import TimeEmbedding, sinusoidal
from jaxlab.nn.unet import Unet

__all__ = [
    "Mlp",
    "PixelEncoder",
    "TimeEmbedding",
    "Trunk",
    "Unet",
    "fan_in_normal",
    "mish",
    "orthogonal",
    "random_shift",
    "sinusoidal",
    "transformer",
]
