"""Paged decode attention through Pallas' Triton backend: fixed splits of every request.

The grid is (request, split); the splits of a request take equal runs of its pages, and
`plan.merge_splits` joins them in a fixed order, whatever else is in the batch. It is the second
choice on NVIDIA GPUs, for cards before Hopper and for JAX versions without a Mosaic backend.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..compat import pltriton, triton_dot
from .plan import merge_splits
from .ref import LOG2_E, MASKED


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
    num_splits: int = 8,
    num_warps: int = 8,
    num_stages: int = 2,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `ref.mqa_decode`; sizes of rows, pages and heads must be powers of two, 16 at least."""
    B, S_q, H, C = q.shape
    page = k_pages.shape[1]
    rows = max(16, pl.next_power_of_2(S_q * H))
    q = jnp.pad(q.reshape(B, S_q * H, C), ((0, 0), (0, rows - S_q * H), (0, 0)))
    quantized = k_scale is not None
    factor = jnp.full((B,), scale * LOG2_E, jnp.float32)
    operands = [q, factor, k_pages, v_pages, page_table, lens]
    operands += [k_scale, v_scale] if quantized else []
    whole = pl.BlockSpec(memory_space=pl.ANY)
    out, lse2 = pl.pallas_call(
        functools.partial(
            _body,
            num_heads=H,
            num_tokens=S_q,
            page=page,
            num_splits=num_splits,
            quantized=quantized,
        ),
        grid=(B, num_splits),
        in_specs=[pl.BlockSpec((None, rows, C), lambda b, i: (b, 0, 0))]
        + [whole] * (len(operands) - 1),
        out_specs=[
            pl.BlockSpec((None, None, rows, C), lambda b, i: (b, i, 0, 0)),
            pl.BlockSpec((None, None, rows), lambda b, i: (b, i, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((B, num_splits, rows, C), jnp.float32),
            jax.ShapeDtypeStruct((B, num_splits, rows), jnp.float32),
        ],
        compiler_params=pltriton.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        interpret=interpret,
    )(*operands)
    out, lse2 = merge_splits(out, lse2)
    shape = (B, S_q, H)
    return out[:, : S_q * H].reshape(*shape, C), lse2[:, : S_q * H].reshape(shape)


def _body(
    q_ref,
    factor_ref,
    k_ref,
    v_ref,
    table_ref,
    lens_ref,
    *refs,
    num_heads: int,
    num_tokens: int,
    page: int,
    num_splits: int,
    quantized: bool,
):
    scales, (out_ref, lse_ref) = refs[:-2], refs[-2:]
    b, split = pl.program_id(0), pl.program_id(1)
    q, factor = q_ref[...], pltriton.load(factor_ref.at[b])
    rows, C = q.shape
    length = pltriton.load(lens_ref.at[b])
    num_pages = jax.lax.div(length + (page - 1), jnp.int32(page))
    share = jax.lax.div(num_pages + (num_splits - 1), jnp.int32(num_splits))
    token = jax.lax.broadcasted_iota(jnp.int32, (rows, page), 0) // num_heads

    def one(i, carry):
        top, total, acc = carry
        number = pltriton.load(table_ref.at[b, i])
        position = i * page + jnp.arange(page, dtype=jnp.int32)
        keys = pltriton.load(k_ref.at[number]).astype(q.dtype)
        scores = triton_dot(q, keys.T) * factor
        if quantized:
            scores = scores * pltriton.load(scales[0].at[number])[None]
        visible = position[None] < length - num_tokens + 1 + token
        scores = jnp.where(visible, scores, MASKED)
        now = jnp.maximum(top, jnp.max(scores, axis=1))
        fade = jnp.exp2(top - now)
        weight = jnp.where(visible, jnp.exp2(scores - now[:, None]), 0.0)
        total = total * fade + jnp.sum(weight, axis=1)
        if quantized:
            present = (position < length)[None]
            weight = jnp.where(present, weight * pltriton.load(scales[1].at[number])[None], 0.0)
        values = pltriton.load(v_ref.at[number]).astype(q.dtype)
        values = jnp.where((position < length)[:, None], values, jnp.zeros((), values.dtype))
        unit = jnp.ones_like(now)
        if quantized:
            # Scales are of any size: what is multiplied in the precision of q is at most one.
            unit = jnp.max(weight, axis=1)
            weight = weight / jnp.where(unit > 0.0, unit, 1.0)[:, None]
        added = triton_dot(weight.astype(values.dtype), values) * unit[:, None]
        return now, total, acc * fade[:, None] + added

    start = (
        jnp.full((rows,), MASKED, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, C), jnp.float32),
    )
    first = split * share
    top, total, acc = jax.lax.fori_loop(first, jnp.minimum(first + share, num_pages), one, start)
    out_ref[...] = acc / jnp.where(total > 0.0, total, 1.0)[:, None]
    log = top + jnp.log2(jnp.maximum(total, 1e-37))
    lse_ref[...] = jnp.where(total > 0.0, log, -jnp.inf)
