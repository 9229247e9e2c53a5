"""Grouped SwiGLU in plain jax.numpy: the specification, every row with its group's weights."""

import jax
import jax.numpy as jnp


def grouped_swiglu(
    x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, sizes: jax.Array
) -> jax.Array:
    """Returns (silu(x gate_e) * (x up_e)) down_e with the group e of each row; 0 behind the groups.

    Every row is multiplied with every expert's weights, E times the work.

    Args:
        x: `[M, D]`, rows of group 0 first, then those of group 1, and so on.
        gate, up: `[E, D, F]`.  down: `[E, F, D]`.
        sizes: `[E]` int32, rows of each group.
    """
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    last = jnp.cumsum(sizes)
    row = jnp.arange(x.shape[0], dtype=sizes.dtype)
    mine = (row[:, None] < last[None]) & (row[:, None] >= (last - sizes)[None])  # [M, E]

    def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum(spec, a.astype(wide), b.astype(wide), precision=exact)

    hidden = jax.nn.silu(product("md,edf->mef", x, gate)) * product("md,edf->mef", x, up)
    out = product("mef,efd->med", hidden, down)
    return jnp.sum(jnp.where(mine[:, :, None], out, 0.0), axis=1).astype(x.dtype)
