"""Paged decode attention on Hopper: one warpgroup feeds pages, two multiply them.

Every processor runs one part of the staircase of `plan`. The memory warpgroup copies the part's
pages into a ring of buffers by TMA; a compute warpgroup holds 64 rows of queries, and keeps their
running maximum, sum and average in registers. With 64 rows or less the two compute warpgroups take
pages in turn, and join their averages at the end of a request; with more, each has its own rows.

Keys and values in eight bits are multiplied in sixteen after a cast in shared memory ("upcast"), or
as they are ("direct"), for which values are stored by columns: tensor cores read operands of eight
bits along the summed dimension alone.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from .. import compat, hopper
from ..compat import plgpu
from ..hopper import ROWS
from ..scaling import power_of_two
from .plan import Plan, merge_partials
from .ref import FP8_MAX, LOG2_E, MASKED

NUM_COMPUTE = 2
"""Compute warpgroups of a program."""
CHUNK = 32
"""Columns of the output that pass through shared memory at a time."""
WEIGHT_SCALE = 256.0
"""Of softmax weights in eight bits: they are at most one."""


class Shape(NamedTuple):
    """Static numbers of a launch.

    Attributes:
        page: tokens of a page.  columns: C.  num_heads: H.  num_tokens: S_q.
        num_tiles: tiles of 64 rows in a block.  stages: buffers of the ring.
        variant: "plain", "upcast" or "direct".
    """

    page: int
    columns: int
    num_heads: int
    num_tokens: int
    num_tiles: int
    stages: int
    variant: str

    @property
    def num_lanes(self) -> int:
        """Warpgroups that share the pages of one tile."""
        return NUM_COMPUTE // self.num_tiles


def mqa_decode(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    lens: jax.Array,
    plan: Plan,
    *,
    scale: float | jax.Array,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    direct: bool = False,
    stages: int = 2,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `ref.mqa_decode`.

    Args:
        plan: result of `plan.decode_plan`, with a part for each processor.
        v_scale: `[N, page]`; with `direct` one number for all values.
        direct: multiply in eight bits; `v_pages` is `[N, C, page]`.
        stages: pages in flight.
    """
    B, S_q, H, C = q.shape
    rows = S_q * H
    page = k_pages.shape[1]
    num_tiles = 1 if rows <= ROWS else 2
    block = num_tiles * ROWS
    num_blocks = -(-rows // block)
    eight_bits = k_pages.dtype.itemsize == 1
    variant = ("direct" if direct else "upcast") if eight_bits else "plain"
    shape = Shape(page, C, H, S_q, num_tiles, stages, variant)
    if stages % shape.num_lanes:
        raise ValueError(f"stages must be a multiple of {shape.num_lanes}, got {stages}")

    # The scale of a row is applied to its scores, in float32.
    q = q.reshape(B, rows, C)
    row_scale = jnp.ones((B, rows), jnp.float32)
    if eight_bits:
        wide = q.astype(jnp.float32)
        largest = jnp.max(jnp.abs(wide), axis=-1)
        row_scale = jnp.maximum(largest, 1e-30) / FP8_MAX if direct else power_of_two(largest)
        q = jnp.clip(wide / row_scale[..., None], -FP8_MAX, FP8_MAX)
    q = q.astype(jnp.float16 if variant == "upcast" else k_pages.dtype)
    row_scale = row_scale * (scale * LOG2_E)
    extra = num_blocks * block - rows
    q, row_scale = (
        jnp.pad(q, ((0, 0), (0, extra), (0, 0))),
        jnp.pad(row_scale, ((0, 0), (0, extra))),
    )

    num_parts = plan.begin.shape[0]
    num_slots = num_parts + B
    tile = functools.partial(hopper.tiled, interpret=interpret)
    v_page = (C, page) if variant == "direct" else (page, C)
    scratch = {
        "q": tile((NUM_COMPUTE, ROWS, C), q.dtype),
        "row_scale": plgpu.SMEM((NUM_COMPUTE, ROWS), jnp.float32),
        "k": tile((stages, page, C), k_pages.dtype),
        "v": tile((stages, *v_page), v_pages.dtype),
        "out": tile((NUM_COMPUTE, ROWS, CHUNK), jnp.float32),
        "rows": plgpu.SMEM((NUM_COMPUTE, 2, ROWS), jnp.float32),
        "lse": plgpu.SMEM((NUM_COMPUTE, ROWS), jnp.float32),
        "q_full": plgpu.Barrier(num_arrivals=2, num_barriers=NUM_COMPUTE),
        "k_full": plgpu.Barrier(num_arrivals=2 if eight_bits else 1, num_barriers=stages),
        "v_full": plgpu.Barrier(num_arrivals=2 if variant == "upcast" else 1, num_barriers=stages),
        "k_used": plgpu.Barrier(num_arrivals=num_tiles, num_barriers=stages),
        "v_used": plgpu.Barrier(num_arrivals=num_tiles, num_barriers=stages),
        "met": plgpu.Barrier(num_arrivals=NUM_COMPUTE),
        "ready": plgpu.Barrier(),
        "taken": plgpu.Barrier(),
    }
    inputs: dict[str, Any] = {
        "q": q,
        "row_scale": row_scale,
        "k": k_pages,
        "v": v_pages,
        "lens": lens,
        "flat_page": plan.flat_page,
        "first": plan.first,
        "begin": plan.begin,
        "end": plan.end,
        "first_request": plan.first_request,
        "last_request": plan.last_request,
    }
    if variant == "upcast":
        scratch["staged"] = tile((NUM_COMPUTE, page, C), jnp.float16)
        scratch["v_scale"] = plgpu.SMEM((stages, page), jnp.float32)
        inputs["v_scale"] = v_scale
    if variant == "direct":
        scratch["weight"] = tile((NUM_COMPUTE, ROWS, page), k_pages.dtype)
    if eight_bits:
        scratch["k_scale"] = plgpu.SMEM((stages, page), jnp.float32)
        inputs["k_scale"] = k_scale

    def body(*refs):
        gmem = dict(zip((*inputs, "out", "lse"), refs, strict=False))
        smem = dict(zip(scratch, refs[len(gmem) :], strict=True))
        _body(gmem, smem, shape, hopper.Warpgroup(interpret=interpret))

    out, lse2 = plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((num_slots, num_blocks * block, C), jnp.float32),
            jax.ShapeDtypeStruct((num_slots, num_blocks * block), jnp.float32),
        ),
        grid=(num_parts, num_blocks),
        grid_names=("part", "block"),
        num_threads=NUM_COMPUTE + 1,
        thread_name="wg",
        scratch_types=list(scratch.values()),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **compat.interpreted(interpret),
    )(*inputs.values())
    if direct and v_scale is not None:
        out = out * (v_scale / WEIGHT_SCALE)
    lse2 = jnp.where(lse2 > 0.5 * MASKED, lse2, -jnp.inf)  # rows that see nothing
    out, lse2 = merge_partials(out[:, :rows], lse2[:, :rows], plan.slot_request, B)
    return out.reshape(B, S_q, H, C), lse2.reshape(B, S_q, H)


def shared_memory(C: int, page: int, dtype: jnp.dtype, direct: bool, stages: int = 2) -> int:
    """Returns how many bytes of shared memory a program takes at most."""
    size = jnp.dtype(dtype).itemsize
    pages = stages * page * 2 * (C * size + (4 if size == 1 else 0))
    queries = NUM_COMPUTE * ROWS * C * (1 if direct else 2)
    staged = NUM_COMPUTE * page * (0 if size > 1 else ROWS if direct else 2 * C)
    barriers = 2048  # and the padding between buffers
    return pages + queries + staged + NUM_COMPUTE * ROWS * (CHUNK + 5) * 4 + barriers


def _body(gmem: dict, smem: dict, shape: Shape, wg: hopper.Warpgroup) -> None:
    part, index = jax.lax.axis_index("part"), jax.lax.axis_index("wg")

    @pl.when(index == NUM_COMPUTE)
    def _memory():
        wg.limit_registers(40, more=False)
        _feed(gmem, smem, shape, part)

    @pl.when(index < NUM_COMPUTE)
    def _compute():
        wg.limit_registers(232, more=True)

        def request(b, _):
            first = gmem["first"]
            start = jnp.maximum(gmem["begin"][part], first[b])
            stop = jnp.minimum(gmem["end"][part], first[b + 1])

            @pl.when(start < stop)
            def _piece():
                _attend(gmem, smem, shape, wg, part, index, b, start, stop)

            return ()

        jax.lax.fori_loop(gmem["first_request"][part], gmem["last_request"][part], request, ())


def _feed(gmem: dict, smem: dict, shape: Shape, part) -> None:
    """Keeps the ring of pages full, and waits until the last of them are used."""
    lo, hi, stages = gmem["begin"][part], gmem["end"][part], shape.stages

    def load(i, _):
        slot = jax.lax.rem(i - lo, jnp.int32(stages))
        number = gmem["flat_page"][i]
        for name in ("k", "v"):

            @pl.when(i - lo >= stages)
            def _wait(name=name):
                plgpu.barrier_wait(smem[f"{name}_used"].at[slot])

            full = smem[f"{name}_full"].at[slot]
            plgpu.copy_gmem_to_smem(gmem[name].at[number], smem[name].at[slot], full)
            if (scale := f"{name}_scale") in smem:
                plgpu.copy_gmem_to_smem(gmem[scale].at[number], smem[scale].at[slot], full)
        return ()

    def drain(i, _):
        slot = jax.lax.rem(i - lo, jnp.int32(stages))
        plgpu.barrier_wait(smem["k_used"].at[slot])
        plgpu.barrier_wait(smem["v_used"].at[slot])
        return ()

    jax.lax.fori_loop(lo, hi, load, ())
    jax.lax.fori_loop(jnp.maximum(lo, hi - stages), hi, drain, ())


def _attend(
    gmem: dict, smem: dict, shape: Shape, wg: hopper.Warpgroup, part, index, b, start, stop
) -> None:
    """One piece: a part's pages [start, stop) of request b."""
    page, C, num_lanes = shape.page, shape.columns, shape.num_lanes
    num_tiles, lanes = jnp.int32(shape.num_tiles), jnp.int32(num_lanes)
    tile, lane = jax.lax.rem(index, num_tiles), jax.lax.div(index, num_tiles)
    first_row = (jax.lax.axis_index("block") * shape.num_tiles + tile) * ROWS
    mine = pl.ds(first_row, ROWS)
    full = smem["q_full"].at[index]
    plgpu.copy_gmem_to_smem(gmem["q"].at[b, mine], smem["q"].at[index], full)
    plgpu.copy_gmem_to_smem(gmem["row_scale"].at[b, mine], smem["row_scale"].at[index], full)
    plgpu.barrier_wait(full)

    token = jax.lax.div(wg.iota(page, 0) + first_row, jnp.int32(shape.num_heads))
    seen = gmem["lens"][b] - shape.num_tokens + 1 + token
    column = wg.iota(page, 1)
    lo, first = gmem["begin"][part], gmem["first"][b]
    # Lanes take turns through the whole run of the part, not through each piece: a lane meets
    # every filling of its own buffers, and of no others.
    behind = jax.lax.rem(start - lo, lanes)
    mine_from = start + jax.lax.rem(lane + lanes - behind, lanes)

    def one(j, carry):
        top, total, unit, acc = carry
        i = mine_from + j * num_lanes
        slot = jax.lax.rem(i - lo, jnp.int32(shape.stages))
        scores = _scores(smem, shape, wg, index, slot)
        scores = scores * wg.by_row(wg.load(smem["row_scale"].at[index], wg.rows), page)
        position = (i - first) * page + column
        scores = jnp.where(position < seen, scores, MASKED)
        now = jnp.maximum(top, jnp.max(scores, axis=1))
        fade = jnp.exp2(top - now)
        weight = jnp.where(position < seen, jnp.exp2(scores - wg.by_row(now, page)), 0.0)
        total = total * fade + jnp.sum(weight, axis=1)
        valid = gmem["lens"][b] - (i - first) * page
        unit, acc = _add_values(smem, shape, wg, index, slot, unit, acc, fade, weight, valid)
        return now, total, unit, acc

    count = jax.lax.div(stop - mine_from + lanes - 1, lanes)
    start_unit = 0.0 if shape.variant == "upcast" else 1.0
    carry = (wg.full(None, MASKED), wg.full(None, 0.0), wg.full(None, start_unit), wg.full(C, 0.0))
    top, total, unit, acc = jax.lax.fori_loop(0, count, one, carry)
    _write(gmem, smem, shape, wg, index, lane, part + b, mine, top, total, unit, acc)


def _scores(smem: dict, shape: Shape, wg: hopper.Warpgroup, index, slot) -> jax.Array:
    plgpu.barrier_wait(smem["k_full"].at[slot])
    keys = smem["k"].at[slot]
    if shape.variant == "plain":
        scores = wg.scores(smem["q"].at[index], keys)
        plgpu.barrier_arrive(smem["k_used"].at[slot])
        return scores
    scale = wg.load(smem["k_scale"].at[slot], wg.columns)
    if shape.variant == "upcast":
        staged = smem["staged"].at[index]
        staged[...] = wg.load(keys, wg.tile).astype(jnp.float16)
        plgpu.commit_smem()
        plgpu.barrier_arrive(smem["k_used"].at[slot])
        return wg.scores(smem["q"].at[index], staged) * wg.by_column(scale)
    scores = wg.scores(smem["q"].at[index], keys) * wg.by_column(scale)
    plgpu.barrier_arrive(smem["k_used"].at[slot])
    return scores


def _add_values(
    smem: dict, shape: Shape, wg: hopper.Warpgroup, index, slot, unit, acc, fade, weight, valid
) -> tuple[jax.Array, jax.Array]:
    """Returns unit and acc, which is fade acc + weight values in units of a number a row.

    With scales a unit is the largest weight so far, scale included: what is multiplied in half
    precision is at most one, however small or large the scales are. Without them it stays one.

    Args:
        valid: Tokens of the page that exist; the rest is anything.
    """
    columns, page = shape.columns, shape.page
    if shape.variant != "upcast":
        acc = acc * wg.by_row(fade, columns)
    plgpu.barrier_wait(smem["v_full"].at[slot])
    values = smem["v"].at[slot]
    if shape.variant == "upcast":
        scale = wg.load(smem["v_scale"].at[slot], wg.columns)
        weight = jnp.where(weight > 0.0, weight * wg.by_column(scale), 0.0)
        before = unit * fade
        unit = jnp.maximum(before, jnp.max(weight, axis=1))
        inverse = jnp.where(unit > 0.0, 1.0 / jnp.where(unit > 0.0, unit, 1.0), 0.0)
        acc = acc * wg.by_row(before * inverse, columns)
        weight = weight * wg.by_row(inverse, page)
        staged = smem["staged"].at[index]
        staged[...] = wg.load(values, wg.tile).astype(jnp.float16)
        wg.clear(staged, 0, valid)
        plgpu.commit_smem()
        plgpu.barrier_arrive(smem["v_used"].at[slot])
        return unit, wg.add_product(acc, weight.astype(jnp.float16), staged)
    direct = shape.variant == "direct"
    wg.clear(values, 1 if direct else 0, valid)
    if direct:
        mine = smem["weight"].at[index]
        mine[...] = (weight * WEIGHT_SCALE).astype(mine.dtype)
        plgpu.commit_smem()
        acc = wg.add_product(acc, mine, values, transposed=True)
    else:
        acc = wg.add_product(acc, weight.astype(values.dtype), values)
    plgpu.barrier_arrive(smem["v_used"].at[slot])
    return unit, acc


def _write(
    gmem: dict,
    smem: dict,
    shape: Shape,
    wg: hopper.Warpgroup,
    index,
    lane,
    slot,
    mine,
    top,
    total,
    unit,
    acc,
) -> None:
    """Joins what the lanes found and writes the average and its log-sum-exp into a slot."""
    C, numbers = shape.columns, smem["rows"]
    if shape.num_lanes == 2:
        numbers[index, 0] = top
        numbers[index, 1] = total
        plgpu.barrier_arrive(smem["met"])
        plgpu.barrier_wait(smem["met"])
        other_top = wg.load(numbers.at[1 - index, 0], wg.rows)
        other_total = wg.load(numbers.at[1 - index, 1], wg.rows)
        both = jnp.maximum(top, other_top)
        fade = jnp.exp2(top - both)
        total = total * fade + other_total * jnp.exp2(other_top - both)
        top = both
    else:
        fade = wg.full(None, 1.0)
    # A row that sees nothing has no weight, and an average of zero.
    share = jnp.where(total > 0.0, unit * fade / jnp.where(total > 0.0, total, 1.0), 0.0)
    acc = acc * wg.by_row(share, C)
    lse2 = jnp.where(total > 0.0, top + jnp.log2(jnp.maximum(total, 1e-37)), MASKED)
    out = smem["out"]

    def helper():
        for c in range(0, C, CHUNK):
            out[index] = acc[:, c : c + CHUNK]
            plgpu.barrier_arrive(smem["ready"])
            plgpu.barrier_wait(smem["taken"])

    def leader():
        smem["lse"][index] = lse2
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem["lse"].at[index], gmem["lse"].at[slot, mine])
        for c in range(0, C, CHUNK):
            found = acc[:, c : c + CHUNK]
            if shape.num_lanes == 2:
                plgpu.barrier_wait(smem["ready"])
                found = found + wg.load(out.at[1 - index], wg.tile)
                plgpu.barrier_arrive(smem["taken"])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            out[index] = found
            plgpu.commit_smem()
            there = gmem["out"].at[slot, mine, pl.ds(c, CHUNK)]
            plgpu.copy_smem_to_gmem(out.at[index], there)
        plgpu.wait_smem_to_gmem(0)

    pl.when(lane == 0)(leader)
    if shape.num_lanes == 2:
        pl.when(lane == 1)(helper)
