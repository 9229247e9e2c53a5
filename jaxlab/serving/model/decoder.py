"""A small language model around any attention layer, to compare layers at equal parameters.

Pre-norm blocks of attention and SwiGLU, embedding and head of their own. The layers are those of
`attention`, `latent` and `factorized`, one after another.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.nn import transformer
from jaxlab.nn.transformer import Block
from jaxlab.serving.model.attention import Layer


class DecoderParams(NamedTuple):
    """Embedding `[V, D]`, blocks, final norm `[D]` and head `[D, V]`."""

    embedding: Float[Array, "V D"]
    blocks: tuple[Block, ...]
    norm: Float[Array, " D"]
    head: Float[Array, "D V"]


class Decoder(NamedTuple):
    """A language model.

    Attributes:
        init: `init(key) -> DecoderParams` draws the weights.
        apply: `apply(params, tokens, pos=None, caches=None) -> (logits, caches)`, tokens `[B, T]`
            int32, logits `[B, T, V]` in float32 or wider; positions count from 0 by default.
        init_caches: `init_caches(batch, length, dtype) -> caches`, one a layer.
        cached: number of elements that a token leaves in the caches of all layers.
    """

    init: Callable[[Array], DecoderParams]
    apply: Callable[..., tuple[Array, Any]]
    init_caches: Callable[..., tuple]
    cached: int


def make_decoder(
    layers: Sequence[Layer], *, vocab: int, d_model: int, hidden: int, eps: float = 1e-5
) -> Decoder:
    """Makes a language model with one attention layer after another.

    Args:
        layers: attention layers of the blocks, in order, of width `d_model`.
        vocab: number of tokens V.
        d_model: width D of the model.
        hidden: width of the feed-forward layers.
        eps: constant of the norms.

    Raises:
        ValueError: if a size is not positive or there is no layer.
    """
    if not layers or min(vocab, d_model, hidden) < 1:
        raise ValueError(
            f"layers must not be empty and sizes be positive, got {len(layers)} layers, "
            f"vocab {vocab}, d_model {d_model}, hidden {hidden}"
        )

    def init(key: Array) -> DecoderParams:
        key_embedding, key_head, *keys = jax.random.split(key, 2 + 2 * len(layers))
        blocks = tuple(
            Block(
                jnp.ones((d_model,)),
                layer.init(keys[2 * i]),
                jnp.ones((d_model,)),
                transformer.init_swiglu(keys[2 * i + 1], d_model, hidden, depth=i + 1),
            )
            for i, layer in enumerate(layers)
        )
        return DecoderParams(
            jax.random.normal(key_embedding, (vocab, d_model)),
            blocks,
            jnp.ones((d_model,)),
            transformer.dense(key_head, d_model, vocab),
        )

    def apply(
        params: DecoderParams,
        tokens: Int[Array, "B T"],
        pos: Array | None = None,
        caches: Any = None,
    ) -> tuple[Array, Any]:
        if pos is None:
            pos = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        x, kept = params.embedding[tokens], []
        for index, (layer, block) in enumerate(zip(layers, params.blocks, strict=True)):
            cache = None if caches is None else caches[index]
            normed = transformer.rms_norm(x, block.attention_norm, eps=eps)
            y, cache = layer.apply(block.attention, normed, pos, cache)
            x = x + y
            x = x + transformer.swiglu(block.ffn, transformer.rms_norm(x, block.ffn_norm, eps=eps))
            kept.append(cache)
        logits = transformer.readout(x, params.norm, params.head, eps=eps)
        return logits, None if caches is None else tuple(kept)

    def init_caches(batch: int, length: int, dtype: Any = jnp.float32) -> tuple:
        return tuple(layer.init_cache(batch, length, dtype) for layer in layers)

    return Decoder(init, apply, init_caches, sum(layer.cached for layer in layers))
