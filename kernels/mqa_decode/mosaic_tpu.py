"""Paged decode attention on TPU: pages stream through fast memory in the order of the table.

The grid is (request, page). Lengths and tables are prefetched scalars, so that the pipeline fetches
the next page while this one is computed; behind a request's last page the index stays where it is,
and nothing is fetched. Rows are (token, head) pairs: several tokens of a request are one product.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..compat import precision
from .ref import LOG2_E, MASKED

LANES = 128


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `ref.mqa_decode`."""
    B, S_q, H, C = q.shape
    rows, page, P = S_q * H, k_pages.shape[1], page_table.shape[1]
    factor = jnp.full((1,), scale * LOG2_E, jnp.float32)
    quantized = k_scale is not None

    def page_of(b: jax.Array, i: jax.Array, lens: jax.Array, table: jax.Array, _: Any) -> tuple:
        last = jax.lax.div(jnp.maximum(lens[b] - 1, 0), jnp.int32(page))
        return table[b, jnp.minimum(i, last)], 0, 0

    def request(b: jax.Array, i: jax.Array, *_: jax.Array) -> tuple:
        return b, 0, 0

    in_specs = [
        pl.BlockSpec((1, rows, C), request),
        pl.BlockSpec((1, page, C), page_of),
        pl.BlockSpec((1, page, C), page_of),
    ]
    operands = [q.reshape(B, rows, C), k_pages, v_pages]
    if k_scale is not None and v_scale is not None:
        in_specs += [pl.BlockSpec((1, 1, page), page_of)] * 2
        operands += [k_scale[:, None], v_scale[:, None]]
    out, lse2 = pl.pallas_call(
        functools.partial(_body, num_heads=H, num_tokens=S_q, page=page, quantized=quantized),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, P),
            in_specs=in_specs,
            out_specs=[
                pl.BlockSpec((1, rows, C), request),
                pl.BlockSpec((1, rows, LANES), request),
            ],
            scratch_shapes=[
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, C), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, rows, C), jnp.float32),
            jax.ShapeDtypeStruct((B, rows, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(lens, page_table, factor, *operands)
    return out.reshape(B, S_q, H, C), lse2[..., 0].reshape(B, S_q, H)


def _body(
    lens, table, factor, q, k, v, *refs, num_heads: int, num_tokens: int, page: int, quantized: bool
):
    scales, (out, lse2, top, total, acc) = refs[:-5], refs[-5:]
    b, i = pl.program_id(0), pl.program_id(1)
    length = lens[b]

    @pl.when(i == 0)
    def _start():
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(i * page < length)
    def _page():
        rows = q.shape[1]
        keys, values = k[0].astype(q.dtype), v[0].astype(q.dtype)
        scores = jax.lax.dot_general(
            q[0],
            keys,
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
            precision=precision(q.dtype),
        )
        scores = scores * factor[0]
        if quantized:
            scores = scores * scales[0][0]
        position = i * page + jax.lax.broadcasted_iota(jnp.int32, (rows, page), 1)
        # lax.div: // of signed integers rounds down, which asks for the generation of the TPU.
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, page), 0)
        token = jax.lax.div(row, jnp.full_like(row, num_heads))
        scores = jnp.where(position < length - num_tokens + 1 + token, scores, MASKED)
        before = top[:, :1]
        now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        fade = jnp.exp2(before - now)
        weight = jnp.where(scores > 0.5 * MASKED, jnp.exp2(scores - now), 0.0)
        total[...] = total[...] * fade + jnp.sum(weight, axis=1, keepdims=True)
        if quantized:
            weight = weight * scales[1][0]
        # Slots behind the last token hold anything: 0 * NaN is NaN.
        present = i * page + jax.lax.broadcasted_iota(jnp.int32, (page, 1), 0) < length
        values = jnp.where(present, values, jnp.zeros((), values.dtype))
        unit = jnp.ones_like(now)
        if quantized:
            # Scales are of any size: what is multiplied in the precision of q is at most one.
            weight = jnp.where(position < length, weight, 0.0)
            unit = jnp.max(weight, axis=1, keepdims=True)
            weight = weight / jnp.where(unit > 0.0, unit, 1.0)
        acc[...] = acc[...] * fade + unit * jnp.dot(
            weight.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
            precision=precision(values.dtype),
        )
        top[...] = jnp.broadcast_to(now, top.shape)

    @pl.when(i == pl.num_programs(1) - 1)
    def _finish():
        sum_of = total[:, :1]
        out[0] = acc[...] / jnp.where(sum_of > 0.0, sum_of, 1.0)
        log = top[...] + jnp.log2(jnp.maximum(total[...], 1e-37))
        lse2[0] = jnp.where(total[...] > 0.0, log, -jnp.inf)
