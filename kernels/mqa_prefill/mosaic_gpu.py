"""Prefill attention on Hopper: one warpgroup feeds blocks of keys, two multiply them.

Rows are (token, head) pairs, so that all heads of a token read the same keys, once. A program owns
128 rows, 64 for each compute warpgroup, and streams the keys that its last row sees; programs with
the most keys start first. While one warpgroup exponentiates, the other keeps the tensor cores busy.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from .. import compat, hopper
from ..compat import plgpu
from ..hopper import ROWS
from .ref import LOG2_E, MASKED

NUM_COMPUTE = 2
"""Compute warpgroups of a program."""
KEYS = 64
"""Keys of a block."""


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_start: jax.Array,
    lens: jax.Array,
    *,
    scale: float | jax.Array,
    causal: bool = True,
    stages: int = 2,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `ref.forward`; bfloat16 or float16, and the average in that dtype."""
    B, T, H, C = q.shape
    rows, dtype = T * H, k.dtype
    block = NUM_COMPUTE * ROWS
    num_blocks = -(-rows // block)
    queries = jnp.pad(q.reshape(B, rows, C), ((0, 0), (0, num_blocks * block - rows), (0, 0)))
    factor = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), (B,)) * LOG2_E
    if extra := -k.shape[1] % KEYS:
        k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0))) for x in (k, v))
    tile = functools.partial(hopper.tiled, interpret=interpret)
    scratch = {
        "q": tile((NUM_COMPUTE, ROWS, C), dtype),  # and the average, at the end
        "k": tile((stages, KEYS, C), dtype),
        "v": tile((stages, KEYS, C), dtype),
        "lse": plgpu.SMEM((NUM_COMPUTE, ROWS), jnp.float32),
        "q_full": plgpu.Barrier(num_barriers=NUM_COMPUTE),
        "k_full": plgpu.Barrier(num_barriers=stages),
        "v_full": plgpu.Barrier(num_barriers=stages),
        "k_used": plgpu.Barrier(num_arrivals=NUM_COMPUTE, num_barriers=stages),
        "v_used": plgpu.Barrier(num_arrivals=NUM_COMPUTE, num_barriers=stages),
    }
    inputs = {"q": queries, "k": k, "v": v, "q_start": q_start, "lens": lens, "factor": factor}

    def body(*refs):
        gmem = dict(zip((*inputs, "out", "lse"), refs, strict=False))
        smem = dict(zip(scratch, refs[len(gmem) :], strict=True))
        wg = hopper.Warpgroup(interpret=interpret)
        b, index = jax.lax.axis_index("request"), jax.lax.axis_index("wg")
        # The last rows see the most keys: they start first.
        first_row = (num_blocks - 1 - jax.lax.axis_index("block")) * block
        last_token = jnp.minimum(jax.lax.div(first_row + block - 1, jnp.int32(H)), T - 1)
        seen = gmem["lens"][b]
        if causal:
            seen = jnp.minimum(seen, gmem["q_start"][b] + last_token + 1)
        seen = jnp.maximum(seen, 0)
        count = jax.lax.div(seen + KEYS - 1, jnp.int32(KEYS))

        @pl.when(index == NUM_COMPUTE)
        def _memory():
            wg.limit_registers(40, more=False)
            _feed(gmem, smem, b, count, stages)

        @pl.when(index < NUM_COMPUTE)
        def _compute():
            wg.limit_registers(232, more=True)
            mine = first_row + index * ROWS
            _attend(gmem, smem, wg, b, index, mine, count, H, causal, stages)

    out, lse2 = plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((B, num_blocks * block, C), dtype),
            jax.ShapeDtypeStruct((B, num_blocks * block), jnp.float32),
        ),
        grid=(num_blocks, B),
        grid_names=("block", "request"),
        num_threads=NUM_COMPUTE + 1,
        thread_name="wg",
        scratch_types=list(scratch.values()),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **compat.interpreted(interpret),
    )(*inputs.values())
    lse2 = jnp.where(lse2 > 0.5 * MASKED, lse2, -jnp.inf)
    return out[:, :rows].reshape(q.shape), lse2[:, :rows].reshape(B, T, H)


def _feed(gmem: dict, smem: dict, b, count, stages: int) -> None:
    """Keeps the ring of blocks full, and waits until the last of them are used."""

    def load(i, _):
        slot = jax.lax.rem(i, jnp.int32(stages))
        for name in ("k", "v"):

            @pl.when(i >= stages)
            def _wait(name=name):
                plgpu.barrier_wait(smem[f"{name}_used"].at[slot])

            there = gmem[name].at[b, pl.ds(i * KEYS, KEYS)]
            plgpu.copy_gmem_to_smem(there, smem[name].at[slot], smem[f"{name}_full"].at[slot])
        return ()

    def drain(i, _):
        slot = jax.lax.rem(i, jnp.int32(stages))
        plgpu.barrier_wait(smem["k_used"].at[slot])
        plgpu.barrier_wait(smem["v_used"].at[slot])
        return ()

    jax.lax.fori_loop(0, count, load, ())
    jax.lax.fori_loop(jnp.maximum(0, count - stages), count, drain, ())


def _attend(
    gmem: dict,
    smem: dict,
    wg: hopper.Warpgroup,
    b,
    index,
    first_row,
    count,
    num_heads: int,
    causal: bool,
    stages: int,
) -> None:
    C = smem["q"].shape[-1]
    mine, q = pl.ds(first_row, ROWS), smem["q"].at[index]
    plgpu.copy_gmem_to_smem(gmem["q"].at[b, mine], q, smem["q_full"].at[index])
    plgpu.barrier_wait(smem["q_full"].at[index])
    length, start, factor = gmem["lens"][b], gmem["q_start"][b], gmem["factor"][b]
    token = jax.lax.div(wg.iota(KEYS, 0) + first_row, jnp.int32(num_heads))
    column = wg.iota(KEYS, 1)
    # Blocks that all rows see whole need no mask.
    first_token = jax.lax.div(first_row, jnp.int32(num_heads))
    everyone = jnp.minimum(length, start + first_token + 1) if causal else length
    unmasked = jnp.minimum(count, jax.lax.div(jnp.maximum(everyone, 0), jnp.int32(KEYS)))

    def one(masked: bool, i, carry):
        top, total, acc = carry
        slot = jax.lax.rem(i, jnp.int32(stages))
        plgpu.barrier_wait(smem["k_full"].at[slot])
        scores = wg.scores(q, smem["k"].at[slot]) * factor
        plgpu.barrier_arrive(smem["k_used"].at[slot])
        position = i * KEYS + column
        visible = position < length
        if causal:
            visible = visible & (position <= start + token)
        if masked:
            scores = jnp.where(visible, scores, MASKED)
        now = jnp.maximum(top, jnp.max(scores, axis=1))
        fade = jnp.exp2(top - now)
        weight = jnp.exp2(scores - wg.by_row(now, KEYS))
        if masked:
            weight = jnp.where(visible, weight, 0.0)
        total = total * fade + jnp.sum(weight, axis=1)
        acc = acc * wg.by_row(fade, C)
        plgpu.barrier_wait(smem["v_full"].at[slot])
        values = smem["v"].at[slot]
        if masked:
            wg.clear(values, 0, length - i * KEYS)
        acc = wg.add_product(acc, weight.astype(values.dtype), values)
        plgpu.barrier_arrive(smem["v_used"].at[slot])
        return now, total, acc

    carry = (wg.full(None, MASKED), wg.full(None, 0.0), wg.full(C, 0.0))
    carry = jax.lax.fori_loop(0, unmasked, functools.partial(one, False), carry)
    top, total, acc = jax.lax.fori_loop(unmasked, count, functools.partial(one, True), carry)
    some = total > 0.0
    out = acc * wg.by_row(jnp.where(some, 1.0 / jnp.where(some, total, 1.0), 0.0), C)
    smem["lse"][index] = jnp.where(some, top + jnp.log2(jnp.maximum(total, 1e-37)), MASKED)
    q[...] = out.astype(q.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(smem["lse"].at[index], gmem["lse"].at[b, mine])
    plgpu.copy_smem_to_gmem(q, gmem["out"].at[b, mine])
    plgpu.wait_smem_to_gmem(0)
