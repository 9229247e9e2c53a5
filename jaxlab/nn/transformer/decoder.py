"""A causal language model: embedding, scanned blocks, and a head that may be the embedding.

The whole of a sequence, a prompt, a chunk and a single token are one call; a position says where
each token belongs, and -1 says that it is padding:

    config = DecoderConfig(vocab=256, num_layers=4, block=BlockConfig(64, 4, 2, 16, 128))
    params = init(jax.random.key(0), config)
    logits = forward(params, tokens, config)  # [B, T, V], without a cache
    cache = init_cache(config, batch=2, length=128)
    logits, cache = decode(params, cache, prompt, positions(is_token), config)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jaxtyping import Array, Float, Int

from jaxlab.nn.transformer import attention, blocks
from jaxlab.nn.transformer.attention import dense
from jaxlab.nn.transformer.blocks import Block, BlockConfig
from jaxlab.nn.transformer.norm import rms_norm, wide_dtype


class DecoderConfig(NamedTuple):
    """Sizes of a language model.

    Attributes:
        vocab: number of tokens V.
        num_layers: number of blocks L.
        block: sizes and constants of each of them, and of the last norm.
        tied: whether the head is the embedding, transposed.
    """

    vocab: int
    num_layers: int
    block: BlockConfig
    tied: bool = True


class DecoderParams(NamedTuple):
    """Weights of a language model.

    Attributes:
        embedding: `[V, D]`.
        blocks: every leaf has a leading axis L.
        norm: `[D]`, of the last norm.
        head: `[D, V]`, or None where the embedding is the head.
    """

    embedding: Float[Array, "V D"]
    blocks: Block
    norm: Float[Array, " D"]
    head: Float[Array, "D V"] | None


def init(key: Array, config: DecoderConfig, *, dtype: Any = None) -> DecoderParams:
    """Draws the weights of a language model whose logits start with variance 1.

    An embedding of its own has variance 1, a head 1 / D, and blocks are drawn by `init_blocks`. A
    tied embedding must serve as the head and has variance 1 / D; what blocks add to the residual
    stream is drawn smaller by the same factor. The norms undo the factor, so that a tied model
    starts as the same function of its embedding.

    Args:
        key: PRNG key for all weights.
        config: sizes of the model.
        dtype: dtype that the drawn weights are rounded to; JAX's default float if None.

    Raises:
        ValueError: if a size or constant is not positive, sizes do not fit each other, or there is
            no such layout.
    """
    if config.vocab < 1:
        raise ValueError(f"vocab must be at least 1, got {config.vocab}")
    key_embedding, key_head, key_blocks = jax.random.split(key, 3)
    D, V = config.block.d_model, config.vocab
    drawn = blocks.init_blocks(key_blocks, config.num_layers, config.block)
    embedding = jax.random.normal(key_embedding, (V, D))
    if config.tied:
        embedding = embedding * D**-0.5
        drawn = drawn._replace(
            attention=drawn.attention._replace(out=drawn.attention.out * D**-0.5),
            ffn=drawn.ffn._replace(down=drawn.ffn.down * D**-0.5),
        )
    head = None if config.tied else dense(key_head, D, V)
    params = DecoderParams(embedding, drawn, jnp.ones((D,)), head)
    return params if dtype is None else jax.tree.map(lambda w: w.astype(dtype), params)


def forward(
    params: DecoderParams,
    tokens: Int[Array, "... T"],
    config: DecoderConfig,
    *,
    pos: Int[Array, "... T"] | None = None,
    remat: bool = False,
) -> Float[Array, "... T V"]:
    """Returns the logits of every next token of whole sequences, without a cache.

    Where the vocabulary is large, `hidden` and `logits` of the positions that are needed spare the
    memory of all others.

    Args:
        params: weights.
        tokens: `[..., T]` integers in 0 to V - 1, padding included.
        config: sizes of the model.
        pos: `[..., T]` integers, see `positions`; 0 to T - 1 if None. Tokens at -1 are padding.
        remat: see `apply_blocks`.

    Returns:
        `[..., T, V]`, in float32 or wider.

    Raises:
        ValueError: as `hidden`.
    """
    if pos is None:
        pos = jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.shape)
    x, _ = hidden(params, tokens, pos, config, remat=remat)
    return logits(params, x, config)


def decode(
    params: DecoderParams,
    cache: tuple[Array, ...],
    tokens: Int[Array, "B T"],
    pos: Int[Array, "B T"],
    config: DecoderConfig,
) -> tuple[Float[Array, "B T V"], tuple[Array, ...]]:
    """Appends tokens to rows of a cache and returns the logits of what follows each.

    A prompt, a chunk of one, or one token a row: each sees what its row holds up to its own
    position. A row is filled from position 0 on without gaps; its length may be another than that
    of its neighbors. To begin a row anew, write it from 0 again.

    Args:
        params: weights.
        cache: keys and values, see `init_cache`; written in place if the caller donates it.
        tokens: `[B, T]` integers in 0 to V - 1, padding included.
        pos: `[B, T]` integers below the length of the cache; padding is at -1 and leaves nothing.
        config: sizes of the model.

    Returns:
        `(logits, cache)`; logits `[B, T, V]` in float32 or wider, of no meaning at padding.

    Raises:
        ValueError: as `hidden`.
    """
    x, new = hidden(params, tokens, pos, config, cache=cache)
    assert new is not None
    return logits(params, x, config), new


def hidden(
    params: DecoderParams,
    tokens: Int[Array, "... T"],
    pos: Int[Array, "... T"],
    config: DecoderConfig,
    *,
    cache: tuple[Array, ...] | None = None,
    remat: bool = False,
) -> tuple[Float[Array, "... T D"], tuple[Array, ...] | None]:
    """Returns what the blocks make of tokens, before the last norm and the head, and the cache.

    Args:
        params: weights, all but the norms of one dtype.
        tokens: `[..., T]` integers in 0 to V - 1, padding included.
        pos: `[..., T]` integers; a token sees those at 0 to its own position, and -1 is padding.
        config: sizes of the model.
        cache: keys and values, see `decode`; None attends among the tokens alone.
        remat: see `apply_blocks`.

    Returns:
        `(x, cache)`, x `[..., T, D]`; the cache is None if none was given.

    Raises:
        ValueError: if the parameters are not of this configuration, or tokens, positions and cache
            do not fit each other; traced values are checked under `checkify`.
    """
    _check_params(params, config)
    check_vocabulary(tokens, config.vocab)
    if pos.shape != tokens.shape or not jnp.issubdtype(pos.dtype, jnp.integer):
        raise ValueError(f"pos must be integers {tokens.shape}, got {pos.dtype} {pos.shape}")
    pos = pos.astype(jnp.int32)  # eight bits would not reach the end of a cache
    k_pos = pos if cache is None else jnp.arange(cache[0].shape[2], dtype=jnp.int32)
    k_pos = jnp.broadcast_to(k_pos, (*pos.shape[:-1], k_pos.shape[-1]))
    mask = attention.causal_mask(pos, k_pos)
    x = params.embedding[tokens]
    return blocks.apply_blocks(params.blocks, x, pos, mask, config.block, cache=cache, remat=remat)


def logits(
    params: DecoderParams, x: Float[Array, "... D"], config: DecoderConfig
) -> Float[Array, "... V"]:
    """Returns the logits of the tokens that follow, in float32 or wider; x is that of `hidden`."""
    head = params.embedding.T if params.head is None else params.head
    return readout(x, params.norm, head, eps=config.block.eps)


def readout(
    x: Float[Array, "... D"],
    norm: Float[Array, " D"],
    head: Float[Array, "D V"],
    *,
    eps: float = 1e-5,
) -> Float[Array, "... V"]:
    """Returns rms_norm(x) head, in float32 or wider."""
    x = rms_norm(x, norm, eps=eps)
    return jnp.matmul(x, head, preferred_element_type=wide_dtype(x.dtype))


def init_cache(
    config: DecoderConfig, batch: int, length: int, *, dtype: Any = jnp.float32
) -> tuple[Array, ...]:
    """Makes empty keys and values of all layers, `[L, B, S, G, C]` each.

    Args:
        config: sizes of the model.
        batch: number of rows B.
        length: positions S of a row.
        dtype: a float of 16 bits or more; keys and values are rounded to it. On a CPU float32 is
            the fastest: XLA converts the whole of a narrower cache to write to it.

    Raises:
        ValueError: if a size is not positive, or the dtype is none of these.
    """
    if min(batch, length) < 1:
        raise ValueError(f"batch and length must be at least 1, got {batch} and {length}")
    shape = (config.num_layers, batch, length, config.block.num_kv_heads, config.block.head_dim)
    return attention.empty_cache(shape, shape, dtype=dtype)


def check_vocabulary(tokens: Int[Array, "..."], vocab: int) -> None:
    """Checks that tokens are integers and concrete ones in 0 to V - 1; traced under `checkify`.

    Raises:
        ValueError: if not.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype} {tokens.shape}")
    if isinstance(tokens, Tracer):
        inside = jnp.all((tokens >= 0) & (tokens < vocab))
        checkify.debug_check(inside, "tokens must be in 0 to {last}", last=jnp.int32(vocab - 1))
    elif tokens.size:
        first, last = np.asarray(tokens).min(), np.asarray(tokens).max()
        if first < 0 or last >= vocab:
            raise ValueError(
                f"tokens must be in 0 to {vocab - 1}, the vocabulary; got {first} to {last}"
            )


def _check_params(params: DecoderParams, config: DecoderConfig) -> None:
    D, V = config.block.d_model, config.vocab
    head = None if config.tied else (D, V)
    for name, shape in {"embedding": (V, D), "norm": (D,), "head": head}.items():
        leaf = getattr(params, name)
        found = None if leaf is None else leaf.shape
        if found != shape:
            raise ValueError(f"params.{name} must be {shape} for {config}, got {found}")
    num_layers = params.blocks.attention_norm.shape[0]
    if num_layers != config.num_layers:
        raise ValueError(f"params have {num_layers} layers, the configuration {config.num_layers}")
