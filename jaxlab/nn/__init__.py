"""Networks that several systems share, as `flax.linen` modules."""

from jaxlab.nn.mlp import Mlp, fan_in_normal, mish
from jaxlab.nn.time_embedding import TimeEmbedding, sinusoidal

__all__ = ["Mlp", "TimeEmbedding", "fan_in_normal", "mish", "sinusoidal"]
