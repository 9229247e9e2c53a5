"""Paged decode attention in plain jax.numpy: the specification, and the XLA path.

One key and one value head serve all query heads. A request of `lens` tokens is asked by its last
S_q tokens at once (S_q > 1 when drafted tokens are verified): token t of them sees the first
lens - S_q + 1 + t.
"""

import functools

import jax
import jax.numpy as jnp

from ..compat import precision
from ..scaling import power_of_two

MASKED = -1e30
LOG2_E = 1.4426950408889634
FP8_MAX = 448.0
"""Largest number of float8_e4m3fn."""


def mqa_decode(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lens: jax.Array,
    *,
    scale: float | jax.Array,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    v_transposed: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns softmax averages and their base-2 log-sum-exp.

    Args:
        q: `[B, S_q, H, C]`.
        k_pages, v_pages: `[N, page, C]`; pages that no request names may hold anything.
        page_table: `[B, P]` int32.  lens: `[B]` int32, the S_q asking tokens included.
        scale: factor of the scores.
        k_scale, v_scale: `[N, page]` float32, of keys and values in eight bits; `v_scale` may be
            one number.
        v_transposed: value pages are `[N, C, page]`.

    Returns:
        `([B, S_q, H, C], [B, S_q, H])`, float32 or wider; 0 and -inf where nothing is visible.
    """
    B, S_q, H, C = q.shape
    page = k_pages.shape[1]
    if v_transposed:
        v_pages = v_pages.swapaxes(1, 2)
    if v_scale is not None:
        v_scale = jnp.broadcast_to(v_scale, k_pages.shape[:2])
    S = page_table.shape[1] * page
    wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
    product = functools.partial(
        jnp.einsum, preferred_element_type=wide, precision=precision(q.dtype)
    )

    # All heads of all tokens are rows that read the same keys.
    rows = q.reshape(B, S_q * H, C)
    token = jnp.arange(S_q * H, dtype=jnp.int32) // H
    k, v = (x[page_table].reshape(B, S, C).astype(q.dtype) for x in (k_pages, v_pages))
    position = jnp.arange(S, dtype=jnp.int32)
    present = position[None] < lens[:, None]  # [B, S]
    # 0 * NaN is NaN: in values for the average, in keys for its derivative.
    k, v = (jnp.where(present[..., None], x, jnp.zeros((), x.dtype)) for x in (k, v))
    seen_by = lens[:, None] - S_q + 1 + token[None]  # [B, S_q H]
    visible = position[None, None] < seen_by[:, :, None]  # [B, S_q H, S]

    scores = product("brc,bsc->brs", rows, k)
    scores = scores * jnp.asarray(scale * LOG2_E, wide)
    if k_scale is not None:
        scores = scores * k_scale[page_table].reshape(B, 1, S).astype(wide)
    scores = jnp.where(visible, scores, MASKED)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weight = jnp.where(visible, jnp.exp2(scores - top), 0.0)
    total = jnp.sum(weight, axis=-1)
    unit = jnp.ones_like(total)
    if v_scale is not None:  # after the sum: the probabilities themselves are not scaled
        scales = jnp.where(present, v_scale[page_table].reshape(B, S), 0.0)
        weight = weight * scales.astype(wide)[:, None]
        # Scales are of any size, and half precision holds what is between 6e-8 and 65,504.
        unit = power_of_two(jnp.max(weight, axis=-1).astype(jnp.float32)).astype(wide)
        weight = weight / unit[..., None]
    out = product("brs,bsc->brc", weight.astype(v.dtype), v) * unit[..., None]
    some = total > 0.0
    out = out / jnp.where(some, total, 1.0)[..., None]
    lse2 = jnp.where(some, top[..., 0] + jnp.log2(jnp.where(some, total, 1.0)), -jnp.inf)
    return out.reshape(B, S_q, H, C), lse2.reshape(B, S_q, H)
