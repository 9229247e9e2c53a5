"""Queries from their low-rank space on Hopper: a matrix product with norm and rotation at its end.

In decoding the matrix is read once for few rows, so that programs must be many: each computes 64
columns of the first half of one head and their partners in the second half, for 128 rows. One
warpgroup feeds tiles by TMA, two multiply.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from .. import compat, hopper
from ..compat import plgpu
from ..hopper import ROWS

NUM_COMPUTE = 2
"""Compute warpgroups of a program."""
DEPTH = 64
"""Of the low-rank space, that one step multiplies."""
WIDTH = 64
"""Columns of each half."""


def rms_up_rope(
    low: jax.Array,
    up: jax.Array,
    factor: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    *,
    stages: int = 4,
    interpret: bool = False,
) -> jax.Array:
    """See `ref.rms_up_rope`; bfloat16 or float16, and the result in that dtype."""
    (N, R), (_, H, C) = low.shape, up.shape
    block, dtype = NUM_COMPUTE * ROWS, low.dtype
    count, half = -(-N // block), C // 2
    extra = count * block - N
    low, cos, sin = (jnp.pad(x, ((0, extra), (0, 0))) for x in (low, cos, sin))
    factor = jnp.pad(factor, (0, extra))
    tile = functools.partial(hopper.tiled, interpret=interpret)
    scratch = {
        "low": tile((NUM_COMPUTE, stages, ROWS, DEPTH), dtype),
        "first": tile((stages, DEPTH, WIDTH), dtype),
        "second": tile((stages, DEPTH, WIDTH), dtype),
        "cos": tile((NUM_COMPUTE, ROWS, WIDTH), jnp.float32),
        "sin": tile((NUM_COMPUTE, ROWS, WIDTH), jnp.float32),
        "factor": plgpu.SMEM((NUM_COMPUTE, ROWS), jnp.float32),
        "out": tile((NUM_COMPUTE, 2, ROWS, WIDTH), dtype),
        "full": plgpu.Barrier(num_arrivals=2 + NUM_COMPUTE, num_barriers=stages),
        "used": plgpu.Barrier(num_arrivals=NUM_COMPUTE, num_barriers=stages),
        "angles": plgpu.Barrier(num_arrivals=3, num_barriers=NUM_COMPUTE),
    }
    inputs = {"low": low, "up": up.reshape(R, H * C), "factor": factor, "cos": cos, "sin": sin}

    def body(*refs):
        gmem = dict(zip((*inputs, "out"), refs, strict=False))
        smem = dict(zip(scratch, refs[len(gmem) :], strict=True))
        wg = hopper.Warpgroup(interpret=interpret)
        index = jax.lax.axis_index("wg")
        first_row = jax.lax.axis_index("rows") * block
        # Columns of this program: `begin` within each half of head `h`.
        begin = jax.lax.axis_index("part") * WIDTH
        column = jax.lax.axis_index("head") * C + begin

        @pl.when(index == NUM_COMPUTE)
        def _memory():
            _feed(gmem, smem, first_row, column, half, R // DEPTH, stages)

        @pl.when(index < NUM_COMPUTE)
        def _compute():
            mine = pl.ds(first_row + index * ROWS, ROWS)
            ready = smem["angles"].at[index]
            for name in ("cos", "sin"):
                there = gmem[name].at[mine, pl.ds(begin, WIDTH)]
                plgpu.copy_gmem_to_smem(there, smem[name].at[index], ready)
            plgpu.copy_gmem_to_smem(gmem["factor"].at[mine], smem["factor"].at[index], ready)
            _multiply(gmem, smem, wg, index, mine, column, half, R // DEPTH, stages)

    out = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((count * block, H * C), dtype),
        grid=(H, half // WIDTH, count),
        grid_names=("head", "part", "rows"),
        num_threads=NUM_COMPUTE + 1,
        thread_name="wg",
        scratch_types=list(scratch.values()),
        **compat.interpreted(interpret),
    )(*inputs.values())
    return out[:N].reshape(N, H, C)


def _feed(gmem: dict, smem: dict, first_row, column, half: int, count: int, stages: int) -> None:
    def load(i, _):
        slot = jax.lax.rem(i, stages)

        @pl.when(i >= stages)
        def _wait():
            plgpu.barrier_wait(smem["used"].at[slot])

        full, depth = smem["full"].at[slot], pl.ds(i * DEPTH, DEPTH)
        for wg in range(NUM_COMPUTE):
            rows = pl.ds(first_row + wg * ROWS, ROWS)
            plgpu.copy_gmem_to_smem(gmem["low"].at[rows, depth], smem["low"].at[wg, slot], full)
        for name, shift in (("first", 0), ("second", half)):
            there = gmem["up"].at[depth, pl.ds(column + shift, WIDTH)]
            plgpu.copy_gmem_to_smem(there, smem[name].at[slot], full)
        return ()

    def drain(i, _):
        plgpu.barrier_wait(smem["used"].at[jax.lax.rem(i, stages)])
        return ()

    jax.lax.fori_loop(0, count, load, ())
    jax.lax.fori_loop(max(0, count - stages), count, drain, ())


def _multiply(
    gmem: dict,
    smem: dict,
    wg: hopper.Warpgroup,
    index,
    mine,
    column,
    half: int,
    count: int,
    stages: int,
) -> None:
    def one(i, carry):
        first, second = carry
        slot = jax.lax.rem(i, stages)
        plgpu.barrier_wait(smem["full"].at[slot])
        low = smem["low"].at[index, slot]
        first = wg.add_product(first, low, smem["first"].at[slot])
        second = wg.add_product(second, low, smem["second"].at[slot])
        plgpu.barrier_arrive(smem["used"].at[slot])
        return first, second

    start = (wg.full(WIDTH, 0.0), wg.full(WIDTH, 0.0))
    first, second = jax.lax.fori_loop(0, count, one, start)
    plgpu.barrier_wait(smem["angles"].at[index])
    factor = wg.by_row(wg.load(smem["factor"].at[index], wg.rows), WIDTH)
    cos, sin = (wg.load(smem[name].at[index], wg.tile) * factor for name in ("cos", "sin"))
    out = smem["out"]
    out[index, 0] = (first * cos - second * sin).astype(out.dtype)
    out[index, 1] = (second * cos + first * sin).astype(out.dtype)
    plgpu.commit_smem()
    for part, shift in ((0, 0), (1, half)):
        there = gmem["out"].at[mine, pl.ds(column + shift, WIDTH)]
        plgpu.copy_smem_to_gmem(out.at[index, part], there)
    plgpu.wait_smem_to_gmem(0)
