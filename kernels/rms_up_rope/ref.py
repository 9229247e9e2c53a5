"""Queries from their low-rank space in plain jax.numpy: normalize, project up, rotate.

The norm commutes with the projection: 1 / rms is one number a row, applied to the product, and the
norm's weight belongs into the rows of the matrix.
"""

import jax
import jax.numpy as jnp

from ..compat import precision


def rms_up_rope(
    low: jax.Array, up: jax.Array, factor: jax.Array, cos: jax.Array, sin: jax.Array
) -> jax.Array:
    """Returns rotate(factor * low up).

    Args:
        low: `[N, R]`.  up: `[R, H, C]`.
        factor: `[N]`, 1 / rms of each row, times the scale of the scores.
        cos, sin: `[N, C / 2]`, of the angles of each row's position.

    Returns:
        `[N, H, C]`, float32 or wider.
    """
    wide = jnp.float64 if low.dtype == jnp.float64 else jnp.float32
    x = jnp.einsum(
        "nr,rhc->nhc", low, up, preferred_element_type=wide, precision=precision(low.dtype)
    )
    first, second = jnp.split(x * factor[:, None, None], 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
