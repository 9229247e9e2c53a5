"""Prefill attention on TPU: blocks of (token, head) rows against blocks of keys.

The grid is (request, block of rows, block of keys); behind the last key that a block of rows sees
the index of the keys stays where it is, and nothing is fetched.
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


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_start: jax.Array,
    lens: jax.Array,
    *,
    scale: float | jax.Array,
    causal: bool = True,
    rows_block: int = 512,
    keys_block: int = 512,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `ref.forward`."""
    B, T, H, C = q.shape
    rows, S = T * H, k.shape[1]
    rows_block, keys_block = (
        min(rows_block, -(-rows // 16) * 16),
        min(keys_block, -(-S // 128) * 128),
    )
    num_rows, num_keys = -(-rows // rows_block), -(-S // keys_block)
    extra = num_rows * rows_block - rows
    queries = jnp.pad(q.reshape(B, rows, C), ((0, 0), (0, extra), (0, 0)))
    factor = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), (B,)) * LOG2_E
    k, v = (jnp.pad(x, ((0, 0), (0, num_keys * keys_block - S), (0, 0))) for x in (k, v))
    shape = {"num_heads": H, "num_tokens": T, "causal": causal}

    def rows_of(b: jax.Array, r: jax.Array, *_: jax.Array) -> tuple:
        return b, r, 0

    def keys_of(
        b: jax.Array, r: jax.Array, i: jax.Array, start: jax.Array, lens: jax.Array, _: Any
    ) -> tuple:
        seen = _seen(r, start[b], lens[b], rows_block, **shape)
        last = jax.lax.div(jnp.maximum(seen - 1, 0), jnp.int32(keys_block))
        return b, jnp.minimum(i, last), 0

    out, lse2 = pl.pallas_call(
        functools.partial(_body, **shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, num_rows, num_keys),
            in_specs=[
                pl.BlockSpec((1, rows_block, C), rows_of),
                pl.BlockSpec((1, keys_block, C), keys_of),
                pl.BlockSpec((1, keys_block, C), keys_of),
            ],
            out_specs=[
                pl.BlockSpec((1, rows_block, C), rows_of),
                pl.BlockSpec((1, rows_block, LANES), rows_of),
            ],
            scratch_shapes=[
                pltpu.VMEM((rows_block, LANES), jnp.float32),
                pltpu.VMEM((rows_block, LANES), jnp.float32),
                pltpu.VMEM((rows_block, C), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, q.dtype),
            jax.ShapeDtypeStruct((*queries.shape[:2], LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(q_start, lens, factor, queries, k, v)
    return out[:, :rows].reshape(q.shape), lse2[:, :rows, 0].reshape(B, T, H)


def _seen(
    r: jax.Array,
    start: jax.Array,
    length: jax.Array,
    block: int,
    *,
    num_heads: int,
    num_tokens: int,
    causal: bool,
) -> jax.Array:
    """Keys that the last token of a block of rows sees."""
    if not causal:
        return length
    last = jnp.minimum(jax.lax.div(r * block + block - 1, jnp.int32(num_heads)), num_tokens - 1)
    return jnp.minimum(length, start + last + 1)


def _body(
    q_start,
    lens,
    factor,
    q,
    k,
    v,
    out,
    lse2,
    top,
    total,
    acc,
    *,
    num_heads: int,
    num_tokens: int,
    causal: bool,
):
    b, r, i = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    rows, keys = q.shape[1], k.shape[1]
    length, start = lens[b], q_start[b]
    seen = _seen(r, start, length, rows, num_heads=num_heads, num_tokens=num_tokens, causal=causal)

    @pl.when(i == 0)
    def _start():
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(i * keys < seen)
    def _block():
        scores = jax.lax.dot_general(
            q[0],
            k[0],
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
            precision=precision(q.dtype),
        )
        scores = scores * factor[b]
        position = i * keys + jax.lax.broadcasted_iota(jnp.int32, (rows, keys), 1)
        visible = position < length
        if causal:
            # lax.div: // of signed integers rounds down, which asks for the generation of the TPU.
            row = r * rows + jax.lax.broadcasted_iota(jnp.int32, (rows, keys), 0)
            token = jax.lax.div(row, jnp.full_like(row, num_heads))
            visible = visible & (position <= start + token)
        scores = jnp.where(visible, scores, MASKED)
        before = top[:, :1]
        now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        fade = jnp.exp2(before - now)
        weight = jnp.where(visible, jnp.exp2(scores - now), 0.0)
        total[...] = total[...] * fade + jnp.sum(weight, axis=1, keepdims=True)
        exists = i * keys + jax.lax.broadcasted_iota(jnp.int32, (keys, 1), 0) < length
        values = jnp.where(exists, v[0], jnp.zeros((), v.dtype))  # 0 * NaN is NaN
        acc[...] = acc[...] * fade + jnp.dot(
            weight.astype(values.dtype),
            values,
            preferred_element_type=jnp.float32,
            precision=precision(values.dtype),
        )
        top[...] = jnp.broadcast_to(now, top.shape)

    @pl.when(i == pl.num_programs(2) - 1)
    def _finish():
        sum_of = total[:, :1]
        out[0] = (acc[...] / jnp.where(sum_of > 0.0, sum_of, 1.0)).astype(out.dtype)
        log = top[...] + jnp.log2(jnp.maximum(total[...], 1e-37))
        lse2[0] = jnp.where(total[...] > 0.0, log, -jnp.inf)
