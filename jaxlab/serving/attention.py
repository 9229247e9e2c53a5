"""Attention layers under one interface, and the plain softmax attention that they share.

A layer is a pair of pure functions: `init(key) -> params` and `apply(params, x, pos, cache) ->
(y, cache)`. Without a cache a call attends among its own tokens; with one it writes what the tokens
leave behind at their positions first, then attends to every position up to its own. A prefill and
steps of one token are the same call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jaxtyping import Array, Float, Int

from jaxlab.serving import rotary

MASKED = -1e30
"""Score of what must not be seen: finite, so that a row without anything visible is no NaN."""


class Layer(NamedTuple):
    """An attention layer.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, x, pos, cache=None) -> (y, cache)`; x and y `[B, T, D]`, pos `[B, T]`
            integers, the cache that of `init_cache`, or None. With a cache, positions are in 0 to
            length - 1: concrete ones elsewhere are refused, traced ones leave nothing behind.
        init_cache: `init_cache(batch, length, dtype) -> cache`, arrays `[batch, length, ...]`.
        cached: elements that a token leaves in the cache.
    """

    init: Callable[[Array], Any]
    apply: Callable[..., tuple[Array, Any]]
    init_cache: Callable[..., Any]
    cached: int


class GqaParams(NamedTuple):
    """Projections `[D, H C]`, `[D, G C]` twice, and `[H C, D]`."""

    query: Float[Array, "D HC"]
    key: Float[Array, "D GC"]
    value: Float[Array, "D GC"]
    out: Float[Array, "HC D"]


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

    Args:
        q: `[B, T, H, C]`.  k: `[B, S, G, C]`, head h reads group h // (H / G).  v: `[B, S, G, E]`.
        q_pos: `[B, T]`.  k_pos: `[B, S]`.
        scale: of the scores, usually C^-0.5.

    Returns:
        `[B, T, H, E]` in the dtype of q; zero where nothing is visible. A key or value that is not
        finite makes NaN of the queries that see it, and of no other.

    Raises:
        ValueError: if the groups do not divide the heads.
    """
    H, G = q.shape[2], k.shape[2]
    if H % G:
        raise ValueError(f"the number of groups must divide the heads, got {G} and {H}")
    wide = rotary.wide_dtype(q.dtype)
    exact = jax.lax.Precision.HIGHEST
    (B, T, _, C), S = q.shape, k.shape[1]
    visible = k_pos[:, None, :] <= q_pos[:, :, None]  # [B, T, S]
    k, v = (x.astype(wide).swapaxes(1, 2) for x in (k, v))  # [B, G, S, C], [B, G, S, E]
    # 0 * NaN is NaN: zeroed, not weighted by zero, for those who do not see it.
    finite = (jnp.isfinite(k).all(axis=-1) & jnp.isfinite(v).all(axis=-1))[..., None]
    spoiled = jnp.where(finite[..., 0], jnp.iinfo(k_pos.dtype).max, k_pos[:, None]).min(axis=-1)
    k, v = (jnp.where(finite, x, 0.0) for x in (k, v))
    # The heads of a group are rows that share its keys: [B, G, (H / G) T, C].
    rows = q.astype(wide).swapaxes(1, 2).reshape(B, G, -1, C) * scale
    scores = jnp.einsum("bgrc,bgsc->bgrs", rows, k, precision=exact)
    scores = scores.reshape(B, H, T, S)
    scores = jnp.where(visible[:, None], scores, MASKED)
    # The maximum cancels, so that its derivative need not be taken.
    weight = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weight, axis=-1)
    out = jnp.einsum("bgrs,bgse->bgre", weight.reshape(B, G, -1, S), v, precision=exact)
    out = out.reshape(B, H, T, -1) / total[..., None]
    out = jnp.where(visible.any(axis=-1)[:, None, :, None], out, 0.0)
    spoiled = jnp.repeat(spoiled, H // G, axis=1)[:, :, None, None]  # from this position on
    out = jnp.where(q_pos[:, None, :, None] >= spoiled, jnp.nan, out)
    return out.swapaxes(1, 2).astype(q.dtype)


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
    _check_cache(cache, new, pos)
    length = cache[0].shape[1]
    batch = jnp.arange(pos.shape[0])[:, None]
    slot = jnp.where(pos < 0, length, pos)  # not from the end
    cache = tuple(
        old.at[batch, slot].set(x.astype(old.dtype), mode="drop")
        for old, x in zip(cache, new, strict=True)
    )
    return (
        cache,
        jnp.broadcast_to(jnp.arange(length, dtype=pos.dtype), (pos.shape[0], length)),
        cache,
    )


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


def empty_cache(*shapes: tuple[int, ...], dtype: Any) -> tuple[Array, ...]:
    """Makes arrays for a cache.

    Raises:
        ValueError: if the dtype is not a float of 16 bits or more.
    """
    if jnp.dtype(dtype) not in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        raise ValueError(
            "a dense cache keeps no scales and must be in float16, bfloat16, float32 or float64, "
            f"got {jnp.dtype(dtype).name}; `paged_cache` has float8_e4m3fn"
        )
    return tuple(jnp.zeros(shape, dtype) for shape in shapes)


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
        num_kv_heads: groups G; `num_heads` by default (MHA).
        head_dim: C; D / H by default.
        theta: of the rotary embedding.  depth: index of the layer from 1, for the initialization.

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
        keys = jax.random.split(key, 4)
        return GqaParams(
            query=dense(keys[0], d_model, H * C),
            key=dense(keys[1], d_model, G * C),
            value=dense(keys[2], d_model, G * C),
            out=dense(keys[3], H * C, d_model, depth=depth),
        )

    def apply(params: GqaParams, x: Array, pos: Array, cache: Any = None) -> tuple[Array, Any]:
        check_tokens(x, pos)
        heads = (*x.shape[:2], -1, C)
        q, k, v = ((x @ w).reshape(heads) for w in (params.query, params.key, params.value))
        q, k = (rotary.rotate(y, pos[..., None], theta=theta) for y in (q, k))
        (k, v), k_pos, cache = remember(cache, (k, v), pos)
        out = attend(q, k, v, pos, k_pos, scale=C**-0.5)
        return out.reshape(*x.shape[:2], -1) @ params.out, cache

    def init_cache(batch: int, length: int, dtype: Any = jnp.float32) -> tuple[Array, ...]:
        return empty_cache(*[(batch, length, G, C)] * 2, dtype=dtype)

    return Layer(init, apply, init_cache, 2 * G * C)


def dense(key: Array, fan_in: int, fan_out: int, *, depth: int | None = None) -> Array:
    """Draws `[fan_in, fan_out]` of variance 1 / fan_in, over 2 depth where a depth is given."""
    shrink = 1.0 if depth is None else (2.0 * depth) ** -0.5
    return jax.random.normal(key, (fan_in, fan_out)) * (shrink * fan_in**-0.5)


def check_builder(theta: float | Array, depth: int) -> None:
    """Checks what all builders of layers share.

    Raises:
        ValueError: if the base of the wavelengths or the depth is not positive.
    """
    if isinstance(theta, (int, float)) and not 0.0 < theta < float("inf"):
        raise ValueError(f"theta, base of the wavelengths, must be positive, got {theta}")
    if depth < 1:
        raise ValueError(f"depth counts layers from 1, got {depth}")


def _check_cache(cache: tuple[Array, ...], new: tuple[Array, ...], pos: Array) -> None:
    length = cache[0].shape[1] if cache and cache[0].ndim > 1 else 0
    want = [(pos.shape[0], length, *x.shape[2:]) for x in new]
    if [x.shape for x in cache] != want:
        raise ValueError(
            f"the cache must hold {want} for these tokens, got {[x.shape for x in cache]}: make it "
            "with this layer's init_cache, for this batch"
        )
    if isinstance(pos, Tracer):
        inside = jnp.all((pos >= 0) & (pos < length))
        checkify.debug_check(inside, "pos must be in 0 to {last}", last=jnp.int32(length - 1))
    elif pos.size:
        first, last = np.asarray(pos).min(), np.asarray(pos).max()
        if first < 0 or last >= length:
            raise ValueError(
                f"pos must be in 0 to {length - 1}, the positions of the cache; got {first} to "
                f"{last}"
            )
