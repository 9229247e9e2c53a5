"""What travels between the roles: tokens and their experts out, one weighted sum a token back.

Source: Step-3, arXiv:2507.19427, section 4: eight bits out and bfloat16 back, 3 D bytes a token and
layer. That scales are of groups of 128 is a choice of ours.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.serving.afd.topology import GROUP, Wire
from jaxlab.serving.cache import quantization
from jaxlab.serving.cache.quantization import Quantized
from jaxlab.serving.model.experts import Routing
from jaxlab.serving.model.step3 import Step3Config


class Packed(NamedTuple):
    """Tokens on their way from attention to feed-forward.

    Attributes:
        payload: `[N, D]`, normalized tokens, in eight bits or as they were.
        scale: `[N, D / 128]` float32, or None where the payload is exact.
        expert: `[N, k]` int32, the experts of each token; None in dense layers, and where the
            feed-forward side chooses them.
        weight: `[N, k]`, the factors of these experts, or None.
    """

    payload: Array
    scale: Float[Array, "N G"] | None
    expert: Int[Array, "N k"] | None
    weight: Float[Array, "N k"] | None


def pack(x: Float[Array, "N D"], routing: Routing | None, wire: Wire) -> Packed:
    """Returns tokens as they are sent out."""
    expert = weight = None
    if routing is not None:
        expert, weight = routing.expert.astype(jnp.int32), routing.weight
    if wire == "exact":
        return Packed(x, None, expert, weight)
    values, scale = quantization.quantize_groups(x, group=GROUP)
    return Packed(values, scale, expert, weight)


def unpack(message: Packed, dtype: Any) -> Float[Array, "N D"]:
    """Returns the tokens of a message in the dtype of the model."""
    if message.scale is None:
        return message.payload
    return quantization.dequantize_groups(Quantized(message.payload, message.scale), dtype)


def pack_back(partial: Float[Array, "N D"], wire: Wire) -> Array:
    """Returns a partial result as it is sent back."""
    return partial if wire == "exact" else partial.astype(jnp.bfloat16)


def wire_bytes(
    config: Step3Config, wire: Wire, *, routed: bool = True, dtype: Any = jnp.float32
) -> tuple[int, int]:
    """Returns the bytes of a token out to, and back from, one feed-forward instance and layer.

    Args:
        config: sizes of the model.
        wire: how tokens are sent.
        routed: whether experts and their weights travel: not in dense layers, nor where the
            feed-forward side chooses them.
        dtype: dtype of the model, in which an exact wire sends.
    """
    size = jnp.dtype(dtype).itemsize
    chosen = config.num_active * (4 + max(4, size)) if routed else 0
    if wire == "exact":
        return config.d_model * size + chosen, config.d_model * size
    return config.d_model + 4 * (config.d_model // GROUP) + chosen, 2 * config.d_model
