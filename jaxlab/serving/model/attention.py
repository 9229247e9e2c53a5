"""Attention layers under one interface, and the plain softmax attention that they share.

A layer is a pair of pure functions: `init(key) -> params` and `apply(params, x, pos, cache) ->
(y, cache)`. Without a cache a call attends among its own tokens; with one it writes what the tokens
leave behind at their positions first, then attends to every position up to its own. A prefill and
steps of one token are the same call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.nn import transformer
from jaxlab.nn.transformer import GqaParams


class Layer(NamedTuple):
    """An attention layer.

    Attributes:
        init: `init(key) -> params` draws the weights.
        apply: `apply(params, x, pos, cache=None) -> (y, cache)`; x and y `[B, T, D]`, pos `[B, T]`
            integers, the cache that of `init_cache`, or None. With a cache, positions are in 0 to
            length - 1: concrete ones elsewhere are refused, traced ones leave nothing behind.
        init_cache: `init_cache(batch, length, dtype) -> cache`, arrays `[batch, length, ...]`.
        cached: number of elements that a token leaves in the cache.
    """

    init: Callable[[Array], Any]
    apply: Callable[..., tuple[Array, Any]]
    init_cache: Callable[..., Any]
    cached: int


def attend(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B S G C"],
    v: Float[Array, "B S G E"],
    q_pos: Int[Array, "B T"],
    k_pos: Int[Array, "B S"],
    *,
    scale: float | Array,
) -> Float[Array, "B T H E"]:
    """Returns softmax(scale q k') v over positions up to each query's own, in float32 or wider.

    `nn.transformer.attend` under the mask that these positions make.

    Args:
        q: `[B, T, H, C]`.
        k: `[B, S, G, C]`; head h reads group h // (H / G).
        v: `[B, S, G, E]`.
        q_pos: `[B, T]` integers, positions of the queries.
        k_pos: `[B, S]` integers, positions of keys and values.
        scale: factor of the scores, usually C^-0.5.

    Returns:
        `[B, T, H, E]` in the dtype of q; zero where nothing is visible. A key or value that is not
        finite makes NaN of the queries that see it, and of no other.

    Raises:
        ValueError: if the groups do not divide the heads, or shapes do not fit each other.
    """
    return transformer.attend(q, k, v, k_pos[:, None, :] <= q_pos[:, :, None], scale=scale)


def remember(
    cache: tuple[Array, ...] | None, new: tuple[Array, ...], pos: Int[Array, "B T"]
) -> tuple[tuple[Array, ...], Int[Array, "B S"], tuple[Array, ...] | None]:
    """Writes what tokens leave behind at their positions; outside the cache they leave nothing.

    Returns:
        `(arrays, positions, cache)`: what to attend to, `[B, S, ...]`, where each entry is, `[B,
        S]`, and the cache, None if there was none.

    Raises:
        ValueError: if the cache is of another layer or batch, or concrete positions lie outside;
            traced ones are checked under `checkify`.
    """
    if cache is None:
        return new, pos, None
    written = transformer.write_cache(cache, new, pos)
    length = written[0].shape[1]
    transformer.check_positions(pos, length)
    everywhere = jnp.arange(length, dtype=pos.dtype)
    return written, jnp.broadcast_to(everywhere, (pos.shape[0], length)), written


def check_tokens(x: Float[Array, "B T D"], pos: Int[Array, "B T"]) -> None:
    """Checks that every token has one integer position.

    Raises:
        ValueError: if not.
    """
    if x.ndim != 3 or pos.shape != x.shape[:2] or not jnp.issubdtype(pos.dtype, jnp.integer):
        raise ValueError(
            f"x must be [B, T, D] and pos integers [B, T], got {x.shape} and {pos.dtype} "
            f"{pos.shape}"
        )


def make_gqa(
    d_model: int,
    num_heads: int,
    *,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    theta: float = 5e5,
    depth: int = 1,
) -> Layer:
    """Makes grouped-query attention: MHA with as many groups as heads, MQA with one.

    Args:
        d_model: width D of the model.
        num_heads: number of query heads H.
        num_kv_heads: number of groups G that share a key and a value, H if None (MHA).
        head_dim: dimensions C of a head, D / H if None.
        theta: base of the rotary embedding's wavelengths.
        depth: index of the layer from 1, by which its initial output is shrunk.

    Raises:
        ValueError: if sizes, theta or depth are not positive, or sizes do not divide each other.

    Source: Ainslie et al. 2023 (GQA); Shazeer 2019 (MQA).
    """
    G = num_heads if num_kv_heads is None else num_kv_heads
    if head_dim is None:
        if d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model, got {num_heads} and {d_model}")
        head_dim = d_model // num_heads
    if min(d_model, num_heads, G, head_dim) < 1 or num_heads % G or head_dim % 2:
        raise ValueError(
            "sizes must be positive, num_kv_heads must divide num_heads and head_dim be even, got "
            f"{num_heads} heads, {G} groups, {head_dim} dimensions"
        )
    check_builder(theta, depth)
    H, C = num_heads, head_dim

    def init(key: Array) -> GqaParams:
        return transformer.init_gqa(key, d_model, H, G, C, depth=depth)

    def apply(params: GqaParams, x: Array, pos: Array, cache: Any = None) -> tuple[Array, Any]:
        check_tokens(x, pos)
        q, k, v = transformer.project_qkv(params, x, pos, head_dim=C, theta=theta)
        (k, v), k_pos, cache = remember(cache, (k, v), pos)
        out = attend(q, k, v, pos, k_pos, scale=C**-0.5)
        return out.reshape(*x.shape[:2], -1) @ params.out, cache

    def init_cache(batch: int, length: int, dtype: Any = jnp.float32) -> tuple[Array, ...]:
        return transformer.empty_cache(*[(batch, length, G, C)] * 2, dtype=dtype)

    return Layer(init, apply, init_cache, 2 * G * C)


def check_builder(theta: float | Array, depth: int) -> None:
    """Checks what all builders of layers share.

    Raises:
        ValueError: if the base of the wavelengths or the depth is not positive.
    """
    if isinstance(theta, (int, float)) and not 0.0 < theta < float("inf"):
        raise ValueError(f"theta, base of the wavelengths, must be positive, got {theta}")
    if depth < 1:
        raise ValueError(f"depth counts layers from 1, got {depth}")
