"""Grouped SwiGLU as a loop over blocks of rows, each with one expert's weights.

Groups are cut into blocks of a fixed number of rows; the last block of a group may reach into the
next group, whose own block writes those rows after it. Weights are read in place, never gathered,
and the loop ends with the last block that has rows. On a CPU, where XLA multiplies a ragged product
with every expert, this is the fast form.
"""

import functools

import jax
import jax.numpy as jnp

from ..compat import precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def grouped_swiglu(
    x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, sizes: jax.Array, block: int
) -> jax.Array:
    """See `ref.grouped_swiglu`; `block` is the number of rows that are multiplied at a time."""
    M = x.shape[0]
    blocks = _Blocks(sizes, M, block)
    padded = jnp.pad(x, ((0, block), (0, 0)))

    def one(i: jax.Array, out: jax.Array) -> jax.Array:
        rows, weights = blocks.rows(padded, i), blocks.weights(i, gate, up, down)
        return blocks.write(out, i, _swiglu(rows, *weights))

    return jax.lax.fori_loop(0, blocks.count, one, jnp.zeros_like(padded))[:M]


def _forward(x, gate, up, down, sizes, block):
    return grouped_swiglu(x, gate, up, down, sizes, block), (x, gate, up, down, sizes)


def _backward(block: int, saved: tuple, grad: jax.Array) -> tuple:
    """Goes through the blocks again; the weights' derivatives are summed in place."""
    x, gate, up, down, sizes = saved
    M = x.shape[0]
    blocks = _Blocks(sizes, M, block)
    padded, grad = (jnp.pad(a, ((0, block), (0, 0))) for a in (x, grad.astype(x.dtype)))

    def one(i: jax.Array, carry: tuple) -> tuple:
        dx, *sums = carry
        mine = blocks.present(i)[:, None]
        rows, of_out = (jnp.where(mine, blocks.rows(a, i), 0) for a in (padded, grad))
        _, pull = jax.vjp(_swiglu, rows, *blocks.weights(i, gate, up, down))
        of_rows, *of_weights = pull(of_out)
        sums = [
            total.at[blocks.expert[i]].add(part.astype(total.dtype))
            for total, part in zip(sums, of_weights, strict=True)
        ]
        return (blocks.write(dx, i, of_rows), *sums)

    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    start = (jnp.zeros_like(padded), *(jnp.zeros(w.shape, wide) for w in (gate, up, down)))
    dx, *of_weights = jax.lax.fori_loop(0, blocks.count, one, start)
    return (dx[:M], *(w.astype(x.dtype) for w in of_weights), None)


grouped_swiglu.defvjp(_forward, _backward)


class _Blocks:
    """Where the blocks of all groups begin; `count` of them have rows."""

    def __init__(self, sizes: jax.Array, num_rows: int, block: int):
        E = sizes.shape[0]
        most = -(-num_rows // block) + E
        zero = jnp.zeros((1,), jnp.int32)
        first = jnp.concatenate([zero, jnp.cumsum((sizes + block - 1) // block, dtype=jnp.int32)])
        begin = jnp.concatenate([zero, jnp.cumsum(sizes, dtype=jnp.int32)])
        index = jnp.arange(most, dtype=jnp.int32)
        group = jnp.searchsorted(first, index, side="right").astype(jnp.int32) - 1
        self.expert = jnp.clip(group, 0, E - 1)
        self.row = begin[self.expert] + (index - first[self.expert]) * block
        self.length = jnp.minimum(begin[self.expert + 1] - self.row, block)
        self.count, self.block = first[-1], block

    def rows(self, x: jax.Array, i: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, self.row[i], self.block)

    def weights(self, i: jax.Array, *weights: jax.Array) -> list[jax.Array]:
        e = self.expert[i]
        return [jax.lax.dynamic_index_in_dim(w, e, keepdims=False) for w in weights]

    def present(self, i: jax.Array) -> jax.Array:
        return jnp.arange(self.block, dtype=jnp.int32) < self.length[i]

    def write(self, out: jax.Array, i: jax.Array, rows: jax.Array) -> jax.Array:
        kept = jnp.where(self.present(i)[:, None], rows, self.rows(out, i))
        return jax.lax.dynamic_update_slice_in_dim(out, kept, self.row[i], 0)


def _swiglu(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    dot = functools.partial(jnp.dot, precision=precision(x.dtype))
    return dot(jax.nn.silu(dot(x, gate)) * dot(x, up), down)
