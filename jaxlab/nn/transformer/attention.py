"""Grouped-query attention under any mask, and the cache that tokens leave behind.

Source: Ainslie et al. 2023 (GQA); Shazeer 2019 (MQA).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int

from jaxlab.nn.transformer import rotary
from jaxlab.nn.transformer.norm import wide_dtype

MASKED = -1e30
"""Score of what must not be seen: finite, so that a row without anything visible is no NaN."""


class GqaParams(NamedTuple):
    """Projections of H heads and G groups of C dimensions; a head reads group h // (H / G).

    Attributes:
        query: `[D, H C]`.
        key: `[D, G C]`.
        value: `[D, G C]`.
        out: `[H C, D]`.
    """

    query: Float[Array, "D HC"]
    key: Float[Array, "D GC"]
    value: Float[Array, "D GC"]
    out: Float[Array, "HC D"]


def init_gqa(
    key: Array,
    d_model: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    depth: float | Array = 1,
) -> GqaParams:
    """Draws weights of variance 1 / fan-in, those of `out` divided by sqrt(2 depth) more.

    Args:
        key: PRNG key for the four matrices.
        d_model: width D of the model.
        num_heads: H.
        num_kv_heads: groups G, H for MHA and 1 for MQA.
        head_dim: C.
        depth: index of the layer from 1, which keeps the residual stream from growing.
    """
    keys = jax.random.split(key, 4)
    return GqaParams(
        query=dense(keys[0], d_model, num_heads * head_dim),
        key=dense(keys[1], d_model, num_kv_heads * head_dim),
        value=dense(keys[2], d_model, num_kv_heads * head_dim),
        out=dense(keys[3], num_heads * head_dim, d_model, depth=depth),
    )


def dense(key: Array, fan_in: int, fan_out: int, *, depth: float | Array | None = None) -> Array:
    """Draws `[fan_in, fan_out]` of variance 1 / fan_in, over 2 depth where a depth is given."""
    shrink = 1.0 if depth is None else (2.0 * depth) ** -0.5
    return jax.random.normal(key, (fan_in, fan_out)) * (shrink * fan_in**-0.5)


def project_qkv(
    params: GqaParams,
    x: Float[Array, "... T D"],
    pos: Int[Array, "... T"],
    *,
    head_dim: int,
    theta: float | Array = 5e5,
    layout: rotary.Layout = "half",
) -> tuple[Float[Array, "... T H C"], Float[Array, "... T G C"], Float[Array, "... T G C"]]:
    """Returns rotated queries, rotated keys, and values of all tokens.

    Args:
        params: projections; their widths over `head_dim` are H and G.
        x: `[..., T, D]`, normalized.
        pos: `[..., T]` integers; position 0 everywhere rotates nothing.
        head_dim: C.
        theta: base of the rotary embedding's wavelengths.
        layout: which numbers of a head the rotary embedding turns together.
    """
    heads = (*x.shape[:-1], -1, head_dim)
    q, k, v = ((x @ w).reshape(heads) for w in (params.query, params.key, params.value))
    q, k = (rotary.rotate(y, pos[..., None], theta=theta, layout=layout) for y in (q, k))
    return q, k, v


def attend(
    q: Float[Array, "... T H C"],
    k: Float[Array, "... S G C"],
    v: Float[Array, "... S G E"],
    mask: Bool[Array, "... T S"],
    *,
    scale: float | Array,
) -> Float[Array, "... T H E"]:
    """Returns softmax(scale q k') v over what the mask lets through, summed in float32 or wider.

    Scores are products in the dtype of q, averages in that of the sums, both at JAX's default
    precision, as all products of a block are: `jax.default_matmul_precision("highest")` makes those
    of float32 exact on accelerators too.

    Args:
        q: `[..., T, H, C]`.
        k: `[..., S, G, C]`; head h reads group h // (H / G).
        v: `[..., S, G, E]`.
        mask: `[..., T, S]` bool, True where query t sees key s; leading axes broadcast. All True is
            a bidirectional layer, `causal_mask` a causal one; masks are joined by `&`.
        scale: factor of the scores, usually C^-0.5.

    Returns:
        `[..., T, H, E]` in the dtype of q; zero where a query sees nothing. A key or value that is
        not finite makes NaN of the queries that see it, and of no other.

    Raises:
        ValueError: if there is nothing to attend, the groups do not divide the heads, shapes do not
            fit each other, or the mask is not bool.

    Source: Vaswani et al. 2017, eq. 1.
    """
    *lead, T, H, C = q.shape
    S, G = k.shape[-3:-1]
    if not T or not S:
        raise ValueError(f"there must be a query and a key at least, got {T} and {S}")
    if not G or H % G:
        raise ValueError(f"the number of groups must divide the heads, got {G} and {H}")
    if k.shape != (*lead, S, G, C) or v.shape[:-1] != (*lead, S, G):
        raise ValueError(
            f"with q {q.shape}, k must be [..., S, G, {C}] and v [..., S, G, E] with the leading "
            f"axes of q, got {k.shape} and {v.shape}"
        )
    if mask.dtype != jnp.bool_ or mask.shape[-2:] != (T, S):
        raise ValueError(f"mask must be bool [..., {T}, {S}], got {mask.dtype} {mask.shape}")
    product = functools.partial(jnp.einsum, preferred_element_type=wide_dtype(q.dtype))
    mask = jnp.broadcast_to(mask, (*lead, T, S))
    k, v = (x.astype(q.dtype).swapaxes(-3, -2) for x in (k, v))  # [..., G, S, C], [..., G, S, E]
    # 0 * NaN is NaN: zeroed, not weighted by zero, for those who do not see it.
    finite = (jnp.isfinite(k).all(axis=-1) & jnp.isfinite(v).all(axis=-1))[..., None]
    k, v = (jnp.where(finite, x, 0.0) for x in (k, v))
    # The heads of a group are rows that share its keys: [..., G, (H / G) T, C].
    rows = q.swapaxes(-3, -2).reshape(*lead, G, -1, C)
    scores = product("...rc,...sc->...rs", rows, k) * scale
    scores = scores.reshape(*lead, H, T, S)
    scores = jnp.where(mask[..., None, :, :], scores, MASKED)
    # The maximum cancels, so that its derivative need not be taken.
    weight = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weight, axis=-1)
    weight = weight.reshape(*lead, G, -1, S)
    out = product("...rs,...se->...re", weight, v.astype(weight.dtype))
    out = out.reshape(*lead, H, T, -1) / total[..., None]
    out = jnp.where(mask.any(axis=-1)[..., None, :, None], out, 0.0)
    spoiled = (mask[..., None, :, :] & ~finite.swapaxes(-1, -2)).any(axis=-1)  # [..., G, T]
    out = jnp.where(jnp.repeat(spoiled, H // G, axis=-2)[..., None], jnp.nan, out)
    return out.swapaxes(-3, -2).astype(q.dtype)


def causal_mask(q_pos: Int[Array, "... T"], k_pos: Int[Array, "... S"]) -> Bool[Array, "... T S"]:
    """Returns which keys lie at 0 to the query's own position; negative positions are padding.

    Args:
        q_pos: `[..., T]` integers; a query at a negative position sees nothing.
        k_pos: `[..., S]` integers; a key at a negative position is seen by none.
    """
    q_pos, k_pos = q_pos[..., :, None], k_pos[..., None, :]
    return (0 <= k_pos) & (k_pos <= q_pos)


def positions(mask: Bool[Array, "... T"]) -> Int[Array, "... T"]:
    """Returns the positions of tokens that are no padding, counted from 0; -1 for those that are.

    Rows of unequal lengths, padded on any side, become one batch: what is at -1 is neither seen nor
    cached.

    Args:
        mask: `[..., T]` bool, True for tokens, False for padding.

    Returns:
        `[..., T]` int32.
    """
    return jnp.where(mask, jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, -1)


def empty_cache(*shapes: tuple[int, ...], dtype: Any) -> tuple[Array, ...]:
    """Makes arrays of zeros for a cache.

    Raises:
        ValueError: if the dtype is not a float of 16 bits or more.
    """
    if jnp.dtype(dtype) not in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        raise ValueError(
            "a dense cache keeps no scales and must be in float16, bfloat16, float32 or float64, "
            f"got {jnp.dtype(dtype).name}; the paged cache of jaxlab.serving has float8_e4m3fn"
        )
    return tuple(jnp.zeros(shape, dtype) for shape in shapes)


def write_cache(
    cache: tuple[Array, ...],
    new: tuple[Array, ...],
    pos: Int[Array, "B T"],
    *,
    layer: Int[Array, ""] | None = None,
) -> tuple[Array, ...]:
    """Writes what tokens leave behind at their positions; outside the cache they leave nothing.

    Args:
        cache: arrays `[B, S, ...]`, or `[L, B, S, ...]` of all layers if one is named.
        new: an array `[B, T, ...]` for each of them, cast to its dtype.
        pos: `[B, T]` integers; two tokens of a row at one position leave one of the two.
        layer: index of the layer to write to, or None where the cache is of one layer.

    Raises:
        ValueError: if the cache is of another layer or batch.
    """
    lead = 0 if layer is None else 1
    length = cache[0].shape[lead + 1] if cache and cache[0].ndim > lead + 1 else 0
    want = [(pos.shape[0], length, *x.shape[2:]) for x in new]
    if [x.shape[lead:] for x in cache] != want:
        raise ValueError(
            f"the cache must hold {want} for these tokens, got {[x.shape[lead:] for x in cache]}: "
            "make it with this layer's init_cache, for this batch"
        )
    slot = jnp.where(pos < 0, length, pos.astype(jnp.int32))  # not from the end
    at = (jnp.arange(pos.shape[0])[:, None], slot)
    if layer is not None:
        at = (layer, *at)
    return tuple(
        old.at[at].set(x.astype(old.dtype), mode="drop") for old, x in zip(cache, new, strict=True)
    )


def check_positions(pos: Int[Array, "B T"], length: int, *, least: int = 0) -> None:
    """Checks that concrete positions lie in `least` to `length - 1`; traced under `checkify`.

    Raises:
        ValueError: if not.
    """
    if isinstance(pos, Tracer):
        inside = jnp.all((pos >= least) & (pos < length))
        message = f"pos must be in {least} to {{last}}"
        checkify.debug_check(inside, message, last=jnp.int32(length - 1))
    elif pos.size:
        first, last = np.asarray(pos).min(), np.asarray(pos).max()
        if first < least or last >= length:
            raise ValueError(
                f"pos must be in {least} to {length - 1}, the positions of the cache; got {first} "
                f"to {last}"
            )
