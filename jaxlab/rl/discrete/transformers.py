"""Transformers over tokens: one that denoises, one that revises, one that writes left to right.

All have the trunk of `nn.transformer` with learned embeddings of places and the same number of
weights in it. The second sees the level of noise as one more token, whose embedding it learns; the
last has a causal mask, a start token and rotations besides.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import PyTree
from jaxlab.diffusion.discrete import sampling
from jaxlab.diffusion.discrete.masked import Denoise
from jaxlab.nn import TimeEmbedding, transformer
from jaxlab.nn.transformer import BlockConfig
from jaxlab.rl.discrete.policies import RevisingPolicy, TokenPolicy, check_sizes

LEVEL_SCALE = 1000.0
"""Factor of the level of noise before its embedding, as of steps of a diffusion."""


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


class LeveledParams(NamedTuple):
    """Weights of a transformer that sees the level of noise: of its embedding, and of the trunk."""

    level: Any
    trunk: TrunkParams


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
    vocab: int,
    length: int,
    *,
    width: int = 128,
    num_layers: int = 3,
    num_heads: int = 4,
    sees_level: bool = False,
) -> TokenPolicy:
    """Makes a denoiser in which every token sees all others.

    Args:
        vocab: V.
        length: K.
        width: of the transformer.
        num_layers: of the transformer.
        num_heads: of the transformer.
        sees_level: whether it is told the level of noise, as one more token. The best denoiser of
            hidden tokens does not depend on it.

    Raises:
        ValueError: if a size is below 1, or heads do not divide the width evenly.
    """
    config = block_config(vocab, length, width, num_layers, num_heads)
    if sees_level:
        return TokenPolicy(vocab, length, *_leveled(vocab, length, num_layers, config))

    def init(key: Array) -> TrunkParams:
        return init_trunk(key, vocab, length, num_layers, config)

    return TokenPolicy(vocab, length, init, lambda params: denoiser(params, config))


def make_revising_policy(
    vocab: int, length: int, *, width: int = 128, num_layers: int = 3, num_heads: int = 4
) -> RevisingPolicy:
    """Makes the denoiser of uniform diffusion of the same trunk, which is told the level of noise.

    Raises:
        ValueError: if a size is below 1, or heads do not divide the width evenly.
    """
    config = block_config(vocab, length, width, num_layers, num_heads)
    return RevisingPolicy(vocab, length, *_leveled(vocab, length, num_layers, config))


def make_writing_policy(
    vocab: int, length: int, *, width: int = 128, num_layers: int = 3, num_heads: int = 4
) -> WritingPolicy:
    """Makes the autoregressive policy of the same trunk: a causal mask and a start token.

    Raises:
        ValueError: if a size is below 1, or heads do not divide the width evenly.
    """
    config = block_config(vocab, length, width, num_layers, num_heads)

    def init(key: Array) -> TrunkParams:
        return init_trunk(key, vocab, length, num_layers, config)

    return writer(vocab, length, init, lambda params: (params, None), config)


def denoiser(
    params: TrunkParams, config: BlockConfig, prefix: Float[Array, "*S P D"] | None = None
) -> Denoise:
    """Returns the denoiser of a trunk in which every token sees all others, and the prefix.

    Args:
        params: weights.
        config: of the blocks.
        prefix: `[*S, P, D]` embeddings of what else is known; tokens are `[..., *S, K]` then.
    """

    def logits(tokens: Array, level: Array) -> Array:
        size = params.places.shape[0] + _size(prefix)
        still = jnp.zeros((size,), jnp.int32)  # rotates nothing
        return _logits(params, tokens, still, jnp.ones((size, size), bool), config, prefix)

    return logits


def writer(
    vocab: int,
    length: int,
    init: Callable[[jax.Array], PyTree],
    split: Callable[[PyTree], tuple[TrunkParams, Float[Array, "*S P D"] | None]],
    config: BlockConfig,
    valid: Bool[Array, "*S K V"] | None = None,
) -> WritingPolicy:
    """Makes a writing policy of a causal trunk; all tokens see the prefix.

    Args:
        vocab: V.
        length: K.
        init: `init(key) -> params`.
        split: `split(params) -> (trunk, prefix)`; the prefix is `[*S, P, D]` or None, as in
            `denoiser`.
        config: of the blocks.
        valid: True where a token may stand at a place; all may if None.
    """

    def conditionals(params: PyTree, tokens: Int[Array, "*B K"]) -> Float[Array, "*B K V"]:
        trunk, prefix = split(params)
        start = jnp.full((*tokens.shape[:-1], 1), vocab, jnp.int32)
        before = jnp.concatenate([start, tokens[..., :-1].astype(jnp.int32)], axis=-1)
        pos = jnp.arange(_size(prefix) + length, dtype=jnp.int32)
        sees = (pos[None] <= pos[:, None]) | (pos < _size(prefix))[None]
        logits = _logits(trunk, before, pos, sees, config, prefix)
        if valid is not None:
            logits = jnp.where(jnp.broadcast_to(valid, logits.shape), logits, sampling.NEVER)
        return jax.nn.log_softmax(logits)

    def log_prob(params: PyTree, tokens: Int[Array, "*B K"]) -> Float[Array, "*B"]:
        logp = conditionals(params, tokens)
        return jnp.sum(jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0], axis=-1)

    def sample(
        key: Array, params: PyTree, batch: tuple[int, ...]
    ) -> tuple[Int[Array, "*B K"], Float[Array, "*B"]]:
        trunk, prefix = split(params)
        size, before = math.prod(batch), _size(prefix)
        num_layers = trunk.blocks.attention_norm.shape[0]
        slots = jnp.arange(before + length, dtype=jnp.int32)
        shape = (num_layers, size, before + length, config.num_kv_heads, config.head_dim)
        cache: Any = (jnp.zeros(shape), jnp.zeros(shape))
        if prefix is not None:
            x = jnp.broadcast_to(prefix, (*batch, *prefix.shape[-2:]))
            x = x.reshape(size, *prefix.shape[-2:])
            pos = jnp.broadcast_to(slots[:before], (size, before))
            sees = jnp.broadcast_to(slots < before, (size, before, before + length))
            _, cache = transformer.apply_blocks(trunk.blocks, x, pos, sees, config, cache=cache)
        open_places = None
        if valid is not None:
            open_places = jnp.broadcast_to(valid, (*batch, length, vocab))
            open_places = open_places.reshape(size, length, vocab)

        def write(carry: tuple, place: Array) -> tuple[tuple, tuple[Array, Array]]:
            cache, last = carry
            x = (trunk.tokens[last] + trunk.places[place][None])[:, None]
            pos = jnp.full((size, 1), before + place, jnp.int32)
            mask = jnp.broadcast_to(slots <= before + place, (size, 1, before + length))
            x, cache = transformer.apply_blocks(trunk.blocks, x, pos, mask, config, cache=cache)
            logits = _readout(trunk, x, config)[:, 0]
            if open_places is not None:
                logits = jnp.where(open_places[:, place], logits, sampling.NEVER)
            logp = jax.nn.log_softmax(logits)
            drawn = jax.random.categorical(jax.random.fold_in(key, place), logp).astype(jnp.int32)
            at_drawn = jnp.take_along_axis(logp, drawn[:, None], axis=-1)[:, 0]
            return (cache, drawn), (drawn, at_drawn)

        start = jnp.full((size,), vocab, jnp.int32)
        places = jnp.arange(length, dtype=jnp.int32)
        _, (tokens, logp) = jax.lax.scan(write, (cache, start), places)
        return tokens.T.reshape(*batch, length), jnp.sum(logp, axis=0).reshape(batch)

    return WritingPolicy(vocab, length, init, sample, log_prob, conditionals)


def _leveled(
    vocab: int, length: int, num_layers: int, config: BlockConfig
) -> tuple[Callable[[jax.Array], LeveledParams], Callable[[LeveledParams], Denoise]]:
    """Returns `init` and `denoise` of a trunk before whose tokens the level of noise stands."""
    embedding: Any = TimeEmbedding(config.d_model, LEVEL_SCALE)

    def init(key: Array) -> LeveledParams:
        key_level, key_trunk = jax.random.split(key)
        trunk = init_trunk(key_trunk, vocab, length, num_layers, config)
        return LeveledParams(embedding.init(key_level, jnp.zeros((1,))), trunk)

    def denoise(params: LeveledParams) -> Denoise:
        def logits(tokens: Array, level: Array) -> Array:
            seen = embedding.apply(params.level, level.astype(jnp.float32))[..., None, :]
            return denoiser(params.trunk, config, seen)(tokens, level)

        return logits

    return init, denoise


def block_config(
    vocab: int, length: int, width: int, num_layers: int, num_heads: int
) -> BlockConfig:
    """Returns the sizes of blocks over tokens.

    Raises:
        ValueError: if a size is below 1, or heads do not divide the width evenly.
    """
    check_sizes(vocab, length, width, num_layers, num_heads)
    if width % (2 * num_heads):
        raise ValueError(
            f"width must be an even number times num_heads, got {width} and {num_heads}"
        )
    return BlockConfig(width, num_heads, num_heads, width // num_heads, 2 * width)


def init_trunk(
    key: Array, vocab: int, length: int, num_layers: int, config: BlockConfig
) -> TrunkParams:
    """Draws weights of a transformer over tokens; its head is zero.

    Mapped over seeds it draws one after another, which compiles in half the time.
    """

    @sequential_vmap
    def draw(key: Array) -> TrunkParams:
        key_tokens, key_places, key_blocks = jax.random.split(key, 3)
        width = config.d_model
        return TrunkParams(
            jax.random.normal(key_tokens, (vocab + 1, width)),
            jax.random.normal(key_places, (length, width)),
            transformer.init_blocks(key_blocks, num_layers, config),
            jnp.ones((width,)),
            jnp.zeros((width, vocab)),
        )

    return draw(key)


def _logits(
    params: TrunkParams,
    tokens: Array,
    pos: Array,
    mask: Array,
    config: BlockConfig,
    prefix: Array | None,
) -> Array:
    """Runs the trunk over whole sequences, P + K positions `[T]` and mask `[T, T]` for all."""
    soft = jnp.issubdtype(tokens.dtype, jnp.floating)
    x = tokens @ params.tokens if soft else params.tokens[tokens]
    x = x + jnp.broadcast_to(params.places, x.shape)
    if prefix is not None:
        first = jnp.broadcast_to(prefix, (*x.shape[:-2], *prefix.shape[-2:]))
        x = jnp.concatenate([first, x], axis=-2)
    shape = x.shape[:-1]
    pos, mask = jnp.broadcast_to(pos, shape), jnp.broadcast_to(mask, (*shape, shape[-1]))
    x, _ = transformer.apply_blocks(params.blocks, x, pos, mask, config)
    return _readout(params, x[..., _size(prefix) :, :], config)


def _size(prefix: Array | None) -> int:
    return 0 if prefix is None else prefix.shape[-2]


def _readout(params: TrunkParams, x: Array, config: BlockConfig) -> Array:
    return transformer.readout(x, params.norm, params.head, eps=config.eps)
