"""Networks that several systems share, as `flax.linen` modules."""

from jaxlab.nn.mlp import Mlp, fan_in_normal, mish
from jaxlab.nn.pixels import PixelEncoder, Trunk, random_shift
from jaxlab.nn.time_embedding import TimeEmbedding, sinusoidal

__all__ = [
    "Mlp",
    "PixelEncoder",
    "TimeEmbedding",
    "Trunk",
    "fan_in_normal",
    "mish",
    "random_shift",
    "sinusoidal",
]
