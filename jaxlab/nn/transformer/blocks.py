"""Equal pre-norm blocks of attention and SwiGLU, scanned over stacked parameters.

Thirty blocks trace and compile like one. They know neither tokens nor order: the mask says who sees
whom, and the positions turn queries and keys. A causal mask makes a language model of them
(`decoder`), a mask of True a bidirectional denoiser.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.nn.transformer import attention, feed_forward, rotary
from jaxlab.nn.transformer.norm import rms_norm


class BlockConfig(NamedTuple):
    """Sizes and constants of a block; the four sizes have no default.

    Attributes:
        d_model: width D of the model.
        num_heads: query heads H.
        num_kv_heads: heads G of keys and values, a divisor of H.
        head_dim: dimensions C of a head, even.
        hidden: width F of the feed-forward layer.
        theta: base of the rotary embedding's wavelengths.
        layout: which numbers of a head the rotary embedding turns together, see `rotary.Layout`.
        eps: constant of the norms.
    """

    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    theta: float = 1e4
    layout: rotary.Layout = "half"
    eps: float = 1e-5


class Block(NamedTuple):
    """Weights of one block, or of L of them with a leading axis.

    Attributes:
        attention_norm: `[(L,) D]`, of the norm before the attention.
        attention: weights of the attention, here `GqaParams`.
        ffn_norm: `[(L,) D]`, of the norm before the feed-forward layer.
        ffn: weights of the feed-forward layer, here `Swiglu`.
    """

    attention_norm: Float[Array, "... D"]
    attention: Any
    ffn_norm: Float[Array, "... D"]
    ffn: Any


def init_blocks(key: Array, num_layers: int, config: BlockConfig) -> Block:
    """Draws L blocks, stacked: every leaf has the leading axis L.

    Weights have variance 1 / fan-in; what block l adds to the residual stream is shrunk by
    sqrt(2 l), which keeps the stream from growing.

    Raises:
        ValueError: if a size or constant is not positive, sizes do not fit each other, or there is
            no such layout.
    """
    check_config(config)
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")

    def init(key: Array, depth: Array) -> Block:
        key_attention, key_ffn = jax.random.split(key)
        sizes = (config.d_model, config.num_heads, config.num_kv_heads, config.head_dim)
        return Block(
            attention_norm=jnp.ones((config.d_model,)),
            attention=attention.init_gqa(key_attention, *sizes, depth=depth),
            ffn_norm=jnp.ones((config.d_model,)),
            ffn=feed_forward.init_swiglu(key_ffn, config.d_model, config.hidden, depth=depth),
        )

    depth = jnp.arange(1, num_layers + 1, dtype=float)
    return jax.vmap(init)(jax.random.split(key, num_layers), depth)


def apply_blocks(
    blocks: Block,
    x: Float[Array, "... T D"],
    pos: Int[Array, "... T"],
    mask: Bool[Array, "... T S"],
    config: BlockConfig,
    *,
    cache: tuple[Array, ...] | None = None,
    remat: bool = False,
) -> tuple[Float[Array, "... T D"], tuple[Array, ...] | None]:
    """Returns what stacked blocks make of x, one after another, and the cache they leave.

    x + attention(norm(x)), then x + swiglu(norm(x)), L times. The residual stream has the dtype of
    x; norms and softmax are in float32 or wider.

    Args:
        blocks: weights, every leaf with the leading axis L, all but the norms in the dtype of x.
        x: `[..., T, D]`.
        pos: `[..., T]` integers, the positions of the rotary embedding and the slots of the cache;
            -1 leaves nothing in it. Zeros rotate nothing, which suits embeddings that know their
            place already.
        mask: `[..., T, S]` bool, True where token t sees token s; with a cache s is a slot of it.
            See `attention.attend`.
        config: sizes and constants of a block.
        cache: keys and values `[L, B, S, G, C]`, see `decoder.init_cache`; then x is `[B, T, D]`.
            It is written in place if the caller donates it.
        remat: compute activations again in the backward pass instead of keeping those of all
            blocks: less memory for about a third more time in training.

    Returns:
        `(x, cache)`; the cache is None if none was given.

    Raises:
        ValueError: if weights are not of this configuration, x is of another width or dtype, or
            positions and cache do not fit x.
    """
    _check_operands(blocks, x, pos, cache, config)
    return _scan(blocks, x, pos, mask, cache, config=config, remat=remat)


@functools.partial(jax.jit, static_argnames=("config", "remat"))
def _scan(
    blocks: Block,
    x: Array,
    pos: Array,
    mask: Array,
    cache: tuple[Array, ...] | None,
    *,
    config: BlockConfig,
    remat: bool,
) -> tuple[Array, tuple[Array, ...] | None]:
    """Compiled once for all values, also where it is called eagerly."""

    def body(carry: tuple, scanned: tuple[Block, Array]) -> tuple[tuple, None]:
        x, cache = carry
        block, layer = scanned
        normed = rms_norm(x, block.attention_norm, eps=config.eps)
        q, k, v = attention.project_qkv(
            block.attention,
            normed,
            pos,
            head_dim=config.head_dim,
            theta=config.theta,
            layout=config.layout,
        )
        if cache is not None:
            cache = attention.write_cache(cache, (k, v), pos, layer=layer)
            k, v = (jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) for c in cache)
        out = attention.attend(q, k, v, mask, scale=config.head_dim**-0.5)
        x = x + out.reshape(*x.shape[:-1], -1) @ block.attention.out
        normed = rms_norm(x, block.ffn_norm, eps=config.eps)
        return (x + feed_forward.swiglu(block.ffn, normed), cache), None

    if remat:
        body = jax.checkpoint(body, prevent_cse=False)  # a scan needs no barrier against it
    layers = jnp.arange(blocks.attention_norm.shape[0], dtype=jnp.int32)
    return jax.lax.scan(body, (x, cache), (blocks, layers))[0]


def check_config(config: BlockConfig) -> None:
    """Checks sizes and constants of a block.

    Raises:
        ValueError: if a size or constant is not positive, sizes do not fit each other, or there is
            no such layout.
    """
    for name in ("d_model", "num_heads", "num_kv_heads", "head_dim", "hidden"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("theta", "eps"):
        if not 0.0 < getattr(config, name) < float("inf"):
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(
            f"num_kv_heads must divide num_heads, got {config.num_kv_heads} and {config.num_heads}"
        )
    if config.head_dim % 2:
        raise ValueError(f"head_dim must be even, got {config.head_dim}")
    rotary.check_layout(config.layout)


def _check_operands(
    blocks: Block, x: Array, pos: Array, cache: tuple[Array, ...] | None, config: BlockConfig
) -> None:
    """Checks what `apply_blocks` is given."""
    if pos.shape != x.shape[:-1] or not jnp.issubdtype(pos.dtype, jnp.integer):
        raise ValueError(
            f"x must be [..., T, D] and pos integers [..., T], got {x.shape} and {pos.dtype} "
            f"{pos.shape}"
        )
    if x.shape[-1] != config.d_model:
        raise ValueError(f"x must be [..., T, {config.d_model}] for {config}, got {x.shape}")
    num_layers = jnp.shape(blocks.attention_norm)[0]
    want = jax.eval_shape(lambda: init_blocks(jax.random.key(0), num_layers, config))
    if jax.tree.structure(want) != jax.tree.structure(blocks):
        raise ValueError(
            f"blocks must be {jax.tree.structure(want)}, got {jax.tree.structure(blocks)}"
        )
    found = jax.tree.leaves(blocks)
    for (path, w), weight in zip(jax.tree_util.tree_leaves_with_path(want), found, strict=True):
        name = f"blocks{jax.tree_util.keystr(path)}"
        if weight.shape != w.shape:
            raise ValueError(f"{name} must be {w.shape} for {config}, got {weight.shape}")
        if weight.ndim > 2 and weight.dtype != x.dtype:
            raise ValueError(
                f"x and the matrices must share one dtype, got {x.dtype} and {weight.dtype} for "
                f"{name}: cast the weights"
            )
    if cache is not None:
        if x.ndim != 3 or any(c.ndim < 3 or c.shape[0] != num_layers for c in cache):
            raise ValueError(
                f"with a cache, x must be [B, T, D] and the cache of {num_layers} layers, got "
                f"{x.shape} and {[c.shape for c in cache]}: make it with init_cache"
            )
        attention.check_positions(pos, cache[0].shape[2], least=-1)
