"""What keeps numbers within the range of sixteen bits: powers of two, which cost no rounding."""

import jax
import jax.numpy as jnp


def power_of_two(x: jax.Array) -> jax.Array:
    """Returns the largest power of two that is not above x; 1 where x is not positive and finite.

    Args:
        x: float32; what is below its normal range counts as 0.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7F800000
    power = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where((x > 0.0) & (power > 0.0) & jnp.isfinite(power), power, 1.0)
