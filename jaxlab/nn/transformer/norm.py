"""Root-mean-square normalization, and the dtype in which all layers accumulate."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "... D"], weight: Float[Array, " D"], *, eps: float = 1e-5
) -> Float[Array, "... D"]:
    """Returns weight * x / sqrt(mean(x^2) + eps), the mean in float32 or wider.

    Args:
        x: `[..., D]`.
        weight: `[D]`, of any float dtype.
        eps: added to the mean square, so that a vector of zeros stays zero.

    Returns:
        `[..., D]` in the dtype of x.

    Source: Zhang and Sennrich 2019, eq. 4.
    """
    wide = x.astype(wide_dtype(x.dtype))
    scale = inverse_rms(wide, eps=eps)
    weight = weight.astype(wide.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * scale * weight).astype(x.dtype)


def inverse_rms(x: Float[Array, "... D"], *, eps: float = 1e-5) -> Float[Array, "... 1"]:
    """Returns 1 / sqrt(mean(x^2) + eps), which commutes with a linear map of x."""
    wide = x.astype(wide_dtype(x.dtype))
    return jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)


def wide_dtype(dtype: jnp.dtype | type) -> jnp.dtype:
    """Returns the dtype to accumulate in: float32, or the wider one that was given."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)
