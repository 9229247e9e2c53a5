"""What the Mosaic GPU kernels do on tensor cores, each operation with what the interpreter runs.

A warpgroup is 128 threads. Its tiles of 64 rows live in registers in the layout of the tensor
cores; one number a row lives in the layout that is left when columns are reduced away. The
interpreter of Pallas knows neither layouts nor swizzled memory nor tensor cores, so that there the
same kernel body runs on plain arrays: barriers, copies and paging are exercised as they are.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from . import compat
from .compat import plgpu

ACC: Any = getattr(plgpu, "ACC", None)
"""Accumulator of the tensor cores, in registers."""
ROWS = 64
"""Rows of a tile of the tensor cores."""
SHARED_MEMORY = 232_448
"""Bytes that one program may use on Hopper."""


def tiled(shape: tuple[int, ...], dtype: jnp.dtype, *, interpret: bool):
    """Shared memory in the layout that tensor cores read: swizzled tiles of 8 rows."""
    if interpret:
        return plgpu.SMEM(shape, dtype)
    size = jnp.dtype(dtype).itemsize
    swizzle = min(128, shape[-1] * size)
    transforms = (plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


class Warpgroup:
    """Operations of one warpgroup on tiles `[ROWS, columns]`; no state but the mode."""

    def __init__(self, *, interpret: bool):
        self.interpret = interpret
        self.tile = None if interpret else plgpu.Layout.WGMMA
        self.rows = None if interpret else plgpu.Layout.WGMMA.reduce(1)
        self.columns = None if interpret else plgpu.Layout.WGMMA.reduce(0)

    def full(self, columns: int | None, value: float) -> jax.Array:
        """A float32 tile of `columns`, or a number a row if None, filled with a value."""
        if columns is None:
            return self._cast(jnp.full((ROWS,), value, jnp.float32), self.rows)
        return self._cast(jnp.full((ROWS, columns), value, jnp.float32), self.tile)

    def iota(self, columns: int, dimension: int) -> jax.Array:
        """Row or column numbers of a tile, int32."""
        shape = (ROWS, columns)
        if self.interpret:
            return jax.lax.broadcasted_iota(jnp.int32, shape, dimension)
        return plgpu.broadcasted_iota(jnp.int32, shape, dimension, layout=self.tile)

    def by_row(self, x: jax.Array, columns: int) -> jax.Array:
        """Repeats a number a row along the columns of a tile."""
        return jax.lax.broadcast_in_dim(x, (ROWS, columns), [0])

    def by_column(self, x: jax.Array) -> jax.Array:
        """Repeats a number a column along the rows of a tile."""
        return jax.lax.broadcast_in_dim(x, (ROWS, x.shape[0]), [1])

    def load(self, ref, layout) -> jax.Array:
        """Reads shared memory into registers."""
        return ref[...] if self.interpret else compat.load(ref, layout)

    def scores(self, q_ref, k_ref) -> jax.Array:
        """Returns the products of rows of q `[ROWS, C]` and k `[S, C]`, `[ROWS, S]` float32."""
        if self.interpret:
            return _product(q_ref[...], k_ref[...].T)

        def product(acc_ref):
            plgpu.wgmma(acc_ref, q_ref, k_ref.T)
            return acc_ref[...]

        return pl.run_scoped(product, ACC((ROWS, k_ref.shape[0]), jnp.float32))

    def add_product(self, acc: jax.Array, p, v_ref, *, transposed: bool = False) -> jax.Array:
        """Returns acc + p v, v `[S, C]`, or `[C, S]` if transposed; p in registers or memory."""
        if self.interpret:
            v = v_ref[...].T if transposed else v_ref[...]
            return acc + _product(p[...], v)
        v_ref = v_ref.T if transposed else v_ref
        return pl.run_state(lambda acc_ref: plgpu.wgmma(acc_ref, p, v_ref))(ACC.init(acc))

    def clear(self, ref, axis: int, valid) -> None:
        """Zeroes shared memory from index `valid` of an axis on: 0 * NaN is NaN."""

        # A tile of the memory's layout at a time: registers also hold the averages.
        width = min(ref.shape[1], 128 // jnp.dtype(ref.dtype).itemsize)

        @pl.when(valid < ref.shape[axis])
        def _tail():
            for row, column in itertools.product(
                range(0, ref.shape[0], ROWS), range(0, ref.shape[1], width)
            ):
                part = ref.at[pl.ds(row, ROWS), pl.ds(column, width)]
                index = self.iota(width, axis) + (row if axis == 0 else column)
                kept = jnp.where(index < valid, self.load(part, self.tile).astype(jnp.float32), 0.0)
                part[...] = kept.astype(ref.dtype)
            plgpu.commit_smem()

    def limit_registers(self, count: int, *, more: bool) -> None:
        """Takes registers, or gives some to the other warpgroups."""
        if not self.interpret:
            plgpu.set_max_registers(count, action="increase" if more else "decrease")

    def _cast(self, x: jax.Array, layout) -> jax.Array:
        return x if self.interpret else plgpu.layout_cast(x, layout)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    wide = functools.partial(jnp.asarray, dtype=jnp.float32)
    return jnp.dot(wide(a), wide(b), precision=jax.lax.Precision.HIGHEST)
