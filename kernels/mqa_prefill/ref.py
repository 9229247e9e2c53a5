"""Prefill attention with one key and value head, blockwise in plain jax.numpy, and its derivative.

Token t of request b stands at position q_start[b] + t, and sees the keys at positions up to its own
that exist, those before lens[b]. Scores are never held for more than one block of keys: memory is
O(T block), forward and backward.
"""

import jax
import jax.numpy as jnp

from ..compat import precision

MASKED = -1e30
LOG2_E = 1.4426950408889634
BLOCK = 256
"""Keys at a time."""


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_start: jax.Array,
    lens: jax.Array,
    *,
    scale: float | jax.Array,
    causal: bool = True,
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """Returns softmax averages and their base-2 log-sum-exp.

    Args:
        q: `[B, T, H, C]`.  k, v: `[B, S, C]`; what lies behind `lens` may be anything.
        q_start, lens: `[B]` int32.
        scale: factor of the scores, one number or `[B]`.
        causal: see only positions up to one's own.

    Returns:
        `([B, T, H, C], [B, T, H])`, float32 or wider; 0 and -inf where nothing is visible.
    """
    B, T, H, C = q.shape
    wide = wide_dtype(q.dtype)
    rows = q.reshape(B, T * H, C)  # all heads of all tokens read the same keys
    lens = jnp.minimum(lens, k.shape[1])  # what pads the last block is no key
    blocks = _blocks(k, v, lens, block)
    seen = _seen(q_start, lens, T, H, causal)
    factor = _by_request(scale, B, wide) * LOG2_E

    def one(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        top, total, acc = carry
        keys, values, position = inputs
        visible = position[None, None] < seen[..., None]
        scores = jnp.where(visible, _product("brc,bsc->brs", rows, keys) * factor, MASKED)
        now = jnp.maximum(top, jnp.max(scores, axis=-1))
        fade = jnp.exp2(top - now)
        weight = jnp.where(visible, jnp.exp2(scores - now[..., None]), 0.0)
        total = total * fade + jnp.sum(weight, axis=-1)
        added = _product("brs,bsc->brc", weight.astype(values.dtype), values)
        return (now, total, acc * fade[..., None] + added), None

    start = (
        jnp.full((B, T * H), MASKED, wide),
        jnp.zeros((B, T * H), wide),
        jnp.zeros((B, T * H, C), wide),
    )
    (top, total, acc), _ = jax.lax.scan(one, start, blocks)
    some = total > 0.0
    out = acc / jnp.where(some, total, 1.0)[..., None]
    lse2 = jnp.where(some, top + jnp.log2(jnp.where(some, total, 1.0)), -jnp.inf)
    return out.reshape(B, T, H, C), lse2.reshape(B, T, H)


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_start: jax.Array,
    lens: jax.Array,
    out: jax.Array,
    lse2: jax.Array,
    grad: jax.Array,
    *,
    scale: float | jax.Array,
    causal: bool = True,
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the derivatives with respect to q, k and v, from the results of `forward`.

    With probabilities p_j = 2^(s_j - lse2): dv_j = p_j' grad, ds_j = p_j (grad v_j' - grad out'),
    dq = scale sum_j ds_j k_j, dk_j = scale ds_j' q.

    Source: Dao 2023 (FlashAttention-2), algorithm 2.
    """
    B, T, H, C = q.shape
    wide = wide_dtype(q.dtype)
    lens = jnp.minimum(lens, k.shape[1])
    rows, grad, out = (x.reshape(B, T * H, C) for x in (q, grad.astype(q.dtype), out))
    delta = jnp.sum(grad.astype(wide) * out.astype(wide), axis=-1)
    safe = jnp.where(jnp.isfinite(lse2), lse2, 0.0).reshape(B, T * H)
    seen = _seen(q_start, lens, T, H, causal)
    factor = _by_request(scale, B, wide)

    def one(dq: jax.Array, inputs: tuple) -> tuple[jax.Array, tuple]:
        keys, values, position = inputs
        visible = position[None, None] < seen[..., None]
        scores = _product("brc,bsc->brs", rows, keys) * (factor * LOG2_E)
        weight = jnp.where(
            visible, jnp.exp2(jnp.where(visible, scores - safe[..., None], 0.0)), 0.0
        )
        dv = _product("brs,brc->bsc", weight.astype(q.dtype), grad)
        inner = _product("brc,bsc->brs", grad, values) - delta[..., None]
        ds = (weight * inner).astype(q.dtype)  # the scale comes after the products, in float32
        return dq + _product("brs,bsc->brc", ds, keys), (_product("brs,brc->bsc", ds, rows), dv)

    blocks = _blocks(k, v, lens, block)
    dq, (dk, dv) = jax.lax.scan(one, jnp.zeros(rows.shape, wide), blocks)
    dk, dv = (jnp.moveaxis(x, 0, 1).reshape(B, -1, C)[:, : k.shape[1]] for x in (dk, dv))
    dq, dk = dq * factor, dk * factor
    return dq.reshape(q.shape).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype of sums: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _by_request(scale: float | jax.Array, B: int, dtype: jnp.dtype) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(scale, dtype), (B,))[:, None, None]


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(
        spec, a, b, preferred_element_type=wide_dtype(a.dtype), precision=precision(a.dtype)
    )


def _blocks(k: jax.Array, v: jax.Array, lens: jax.Array, block: int) -> tuple:
    """Keys and values `[blocks, B, block, C]` and positions; zero where there is no token."""
    B, S, C = k.shape
    block = min(block, S)
    count = -(-S // block)
    exists = (jnp.arange(S, dtype=jnp.int32)[None] < lens[:, None])[..., None]

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.where(exists, x, jnp.zeros((), x.dtype))  # 0 * NaN is NaN
        x = jnp.pad(x, ((0, 0), (0, count * block - S), (0, 0)))
        return jnp.moveaxis(x.reshape(B, count, block, C), 1, 0)

    return cut(k), cut(v), jnp.arange(count * block, dtype=jnp.int32).reshape(count, block)


def _seen(q_start: jax.Array, lens: jax.Array, T: int, H: int, causal: bool) -> jax.Array:
    """`[B, T H]` int32, how many keys a row sees: the first of them."""
    seen = jnp.broadcast_to(lens[:, None], (lens.shape[0], T))
    if causal:
        own = q_start[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
        seen = jnp.minimum(seen, own + 1)
    return jnp.repeat(seen, H, axis=1)
