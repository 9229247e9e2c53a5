"""Rotary position embedding and root-mean-square normalization."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "... C"], position: Int[Array, "..."], *, theta: float | Array = 5e5
) -> Float[Array, "... C"]:
    """Rotates the pairs (i, i + C/2) by position * theta^(-2i/C), in float32 or wider.

    The product of two rotated vectors depends on the difference of their positions alone.

    Args:
        x: `[..., C]`, C even.
        position: int, broadcasts against the leading axes of x.
        theta: base of the wavelengths.

    Raises:
        ValueError: if C is odd.

    Source: Su et al. 2021 (RoFormer), half-split form.
    """
    size = x.shape[-1]
    if size % 2:
        raise ValueError(f"rotary embedding turns pairs: the last axis must be even, got {size}")
    dtype = wide_dtype(x.dtype)
    cos, sin = angles(position, size, theta=theta, dtype=dtype)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def angles(
    position: Int[Array, "..."],
    size: int,
    *,
    theta: float | Array = 5e5,
    dtype: jnp.dtype | type = jnp.float32,
) -> tuple[Float[Array, "... half"], Float[Array, "... half"]]:
    """Returns cosine and sine of the angles of every position, `[..., size / 2]`.

    Angles in float32 are as fine as its digits: at position 65,536 to 0.004 radians.
    """
    half = size // 2
    if isinstance(theta, (int, float)):
        frequency = jnp.asarray(float(theta) ** (-np.arange(half) / half), dtype)
    else:
        frequency = jnp.asarray(theta, dtype) ** (-jnp.arange(half, dtype=dtype) / half)
    angle = position[..., None].astype(dtype) * frequency.reshape((1,) * position.ndim + (half,))
    return jnp.cos(angle), jnp.sin(angle)


def rms_norm(
    x: Float[Array, "... D"], weight: Float[Array, " D"], *, eps: float = 1e-5
) -> Float[Array, "... D"]:
    """Returns weight * x / sqrt(mean(x^2) + eps), the mean in float32 or wider.

    Source: Zhang and Sennrich 2019.
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
