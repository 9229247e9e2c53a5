"""Transformers over tokens: one that denoises, and one that writes from left to right.

Both have the trunk of `nn.transformer` with learned embeddings of places and the same number of
weights. The second has a causal mask, a start token and rotations besides.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.core.types import PyTree
from jaxlab.diffusion.discrete.masked import Denoise
from jaxlab.nn import transformer
from jaxlab.nn.transformer import BlockConfig
from jaxlab.rl.discrete.policies import TokenPolicy, check_sizes


class TrunkParams(NamedTuple):
    """Weights of either transformer.

    Attributes:
        tokens: `[V + 1, D]`, the last row of a hidden token, or of the start.
        places: `[K, D]`.
        blocks: every leaf has a leading axis of layers.
        norm: `[D]`.
        head: `[D, V]`, zero at first: all tokens are equally likely.
    """

    tokens: Float[Array, "V+1 D"]
    places: Float[Array, "K D"]
    blocks: Any
    norm: Float[Array, " D"]
    head: Float[Array, "D V"]


class WritingPolicy(NamedTuple):
    """A policy that writes tokens one after another, each given those before it.

    Attributes:
        vocab: V.
        length: K.
        init: `init(key) -> params`.
        sample: `sample(key, params, batch) -> (tokens [*batch, K], logp [*batch])`, K passes with a
            cache.
        log_prob: `log_prob(params, tokens [*B, K]) -> [*B]`, exact, in one pass.
        conditionals: `conditionals(params, tokens [*B, K]) -> [*B, K, V]` log-probabilities of each
            token given those before it; summed over the tokens that stand there it is `log_prob`.
    """

    vocab: int
    length: int
    init: Callable[[jax.Array], PyTree]
    sample: Callable[..., tuple[jax.Array, jax.Array]]
    log_prob: Callable[[PyTree, jax.Array], jax.Array]
    conditionals: Callable[[PyTree, jax.Array], jax.Array]


def make_transformer_policy(
    vocab: int, length: int, *, width: int = 128, num_layers: int = 3, num_heads: int = 4
) -> TokenPolicy:
    """Makes a denoiser in which every token sees all others.

    Raises:
        ValueError: if a size is below 1, or heads do not divide the width evenly.
    """
    config = _config(vocab, length, width, num_layers, num_heads)

    def denoise(params: TrunkParams) -> Denoise:
        def logits(tokens: Array, level: Array) -> Array:
            still = jnp.zeros((length,), jnp.int32)  # rotates nothing
            return _logits(params, tokens, still, jnp.ones((length, length), bool), config)

        return logits

    return TokenPolicy(
        vocab, length, lambda key: _init(key, vocab, length, num_layers, config), denoise
    )


def make_writing_policy(
    vocab: int, length: int, *, width: int = 128, num_layers: int = 3, num_heads: int = 4
) -> WritingPolicy:
    """Makes the autoregressive policy of the same trunk: a causal mask and a start token.

    Raises:
        ValueError: if a size is below 1, or heads do not divide the width evenly.
    """
    config = _config(vocab, length, width, num_layers, num_heads)

    def shifted(tokens: Array) -> Array:
        start = jnp.full((*tokens.shape[:-1], 1), vocab, jnp.int32)
        return jnp.concatenate([start, tokens[..., :-1].astype(jnp.int32)], axis=-1)

    def conditionals(params: TrunkParams, tokens: Int[Array, "*B K"]) -> Float[Array, "*B K V"]:
        pos, causal = jnp.arange(length, dtype=jnp.int32), jnp.tril(jnp.ones((length,) * 2, bool))
        return jax.nn.log_softmax(_logits(params, shifted(tokens), pos, causal, config))

    def log_prob(params: TrunkParams, tokens: Int[Array, "*B K"]) -> Float[Array, "*B"]:
        logp = conditionals(params, tokens)
        return jnp.sum(jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0], axis=-1)

    def sample(
        key: Array, params: TrunkParams, batch: tuple[int, ...]
    ) -> tuple[Int[Array, "*B K"], Float[Array, "*B"]]:
        size = math.prod(batch)
        shape = (num_layers, size, length, config.num_kv_heads, config.head_dim)
        cache = (jnp.zeros(shape), jnp.zeros(shape))
        slots = jnp.arange(length, dtype=jnp.int32)

        def write(carry: tuple, place: Array) -> tuple[tuple, tuple[Array, Array]]:
            cache, before = carry
            x = (params.tokens[before] + params.places[place][None])[:, None]
            pos = jnp.full((size, 1), place, jnp.int32)
            mask = jnp.broadcast_to(slots <= place, (size, 1, length))
            x, cache = transformer.apply_blocks(params.blocks, x, pos, mask, config, cache=cache)
            logp = jax.nn.log_softmax(_readout(params, x, config))[:, 0]
            drawn = jax.random.categorical(jax.random.fold_in(key, place), logp).astype(jnp.int32)
            at_drawn = jnp.take_along_axis(logp, drawn[:, None], axis=-1)[:, 0]
            return (cache, drawn), (drawn, at_drawn)

        start = jnp.full((size,), vocab, jnp.int32)
        _, (tokens, logp) = jax.lax.scan(write, (cache, start), slots)
        return tokens.T.reshape(*batch, length), jnp.sum(logp, axis=0).reshape(batch)

    return WritingPolicy(
        vocab,
        length,
        lambda key: _init(key, vocab, length, num_layers, config),
        sample,
        log_prob,
        conditionals,
    )


def _config(vocab: int, length: int, width: int, num_layers: int, num_heads: int) -> BlockConfig:
    check_sizes(vocab, length, width, num_layers, num_heads)
    if width % (2 * num_heads):
        raise ValueError(
            f"width must be an even number times num_heads, got {width} and {num_heads}"
        )
    return BlockConfig(width, num_heads, num_heads, width // num_heads, 2 * width)


def _init(key: Array, vocab: int, length: int, num_layers: int, config: BlockConfig) -> TrunkParams:
    key_tokens, key_places, key_blocks = jax.random.split(key, 3)
    width = config.d_model
    return TrunkParams(
        jax.random.normal(key_tokens, (vocab + 1, width)),
        jax.random.normal(key_places, (length, width)),
        transformer.init_blocks(key_blocks, num_layers, config),
        jnp.ones((width,)),
        jnp.zeros((width, vocab)),
    )


def _logits(
    params: TrunkParams, tokens: Array, pos: Array, mask: Array, config: BlockConfig
) -> Array:
    """Runs the trunk over whole sequences; positions `[K]` and mask `[K, K]` are common to all."""
    soft = jnp.issubdtype(tokens.dtype, jnp.floating)
    shape = tokens.shape[:-1] if soft else tokens.shape
    x = tokens @ params.tokens if soft else params.tokens[tokens]
    x = x + jnp.broadcast_to(params.places, x.shape)
    pos, mask = jnp.broadcast_to(pos, shape), jnp.broadcast_to(mask, (*shape, shape[-1]))
    x, _ = transformer.apply_blocks(params.blocks, x, pos, mask, config)
    return _readout(params, x, config)


def _readout(params: TrunkParams, x: Array, config: BlockConfig) -> Array:
    return transformer.readout(x, params.norm, params.head, eps=config.eps)
