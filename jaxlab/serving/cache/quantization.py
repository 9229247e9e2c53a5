"""Eight-bit floats: float8_e4m3fn with a float32 scale per group, saturated before the cast.

JAX casts what exceeds the range to NaN; a scale of max / 448 and a clamp keep everything inside.
On standard normal data the rounding error is 2.6 % rms. At most it is 1/16 of an element, or 2^-10
of the scale where that is more: small elements are rounded to a grid.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

FP8 = jnp.float8_e4m3fn
FP8_MAX = 448.0


class Quantized(NamedTuple):
    """An array in eight bits.

    Attributes:
        values: float8_e4m3fn.
        scale: float32, one per group; the array is values * scale, broadcast.
    """

    values: Array
    scale: Float[Array, "..."]


def to_fp8(x: Float[Array, "..."]) -> Array:
    """Casts with saturation at +-448; NaN stays NaN."""
    wide = x.astype(jnp.float32)
    return jnp.clip(wide, -FP8_MAX, FP8_MAX).astype(FP8)


def calibrate(
    samples: Float[Array, "..."], *, axis: int | tuple[int, ...] | None = None
) -> Float[Array, "..."]:
    """Returns the scale with which samples fill eight bits, float32: `to_fp8(x / scale)`.

    Args:
        samples: such as keys or values of a calibration text, `[tokens, C]`.
        axis: axes that share a scale: all by default, one number for a tensor; -1 for one a token,
            (-2, -1) for one a page of `[..., page, C]`.
    """
    return _scale(_saturated(samples), axis, keepdims=False)


def quantize_groups(x: Float[Array, "... D"], *, group: int | None = None) -> Quantized:
    """Quantizes groups of neighbors along the last axis.

    Args:
        x: `[..., D]`.
        group: elements that share a scale; D by default, one scale a vector.

    Returns:
        values `[..., D]`, scale `[..., D / group]`.

    Raises:
        ValueError: if the group does not divide D.
    """
    size = x.shape[-1]
    group = size if group is None else group
    if group < 1 or size % group:
        raise ValueError(f"group must divide the last axis, got {group} and {size}")
    parts = x.reshape(*x.shape[:-1], size // group, group)
    values, scale = _quantize(parts, axis=(-1,))
    return Quantized(values.reshape(x.shape), scale[..., 0])


def dequantize_groups(x: Quantized, dtype: jnp.dtype | type = jnp.float32) -> Float[Array, "... D"]:
    """Returns the array that `quantize_groups` rounded."""
    values, scale = x
    parts = values.reshape(*scale.shape, values.shape[-1] // scale.shape[-1])
    wide = parts.astype(jnp.float32) * scale[..., None]
    return wide.reshape(values.shape).astype(dtype)


def quantize_blocks(w: Float[Array, "K N"], *, block: int = 128) -> Quantized:
    """Quantizes square blocks of a matrix, whose last ones may be smaller.

    Returns:
        values `[K, N]`, scale `[ceil(K / block), ceil(N / block)]`.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    K, N = w.shape
    rows, columns = -(-K // block), -(-N // block)
    padded = jnp.pad(w, ((0, rows * block - K), (0, columns * block - N)))
    parts = padded.reshape(rows, block, columns, block)
    values, scale = _quantize(parts, axis=(1, 3))
    values = values.reshape(rows * block, columns * block)[:K, :N]
    return Quantized(values, scale[:, 0, :, 0])


def dequantize_blocks(
    w: Quantized, *, block: int = 128, dtype: jnp.dtype | type = jnp.float32
) -> Float[Array, "K N"]:
    """Returns the matrix that `quantize_blocks` rounded, with the same `block`.

    Raises:
        ValueError: if there is not one scale a block.
    """
    K, N = w.values.shape
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if w.scale.shape != (want := (-(-K // block), -(-N // block))):
        raise ValueError(
            f"a matrix [{K}, {N}] in blocks of {block} has scales {want}, got {w.scale.shape}; "
            "give the block that it was quantized with"
        )
    scale = jnp.repeat(jnp.repeat(w.scale, block, axis=0)[:K], block, axis=1)[:, :N]
    return (w.values.astype(jnp.float32) * scale).astype(dtype)


def _quantize(parts: Array, axis: tuple[int, ...]) -> tuple[Array, Array]:
    wide = _saturated(parts)
    scale = _scale(wide, axis, keepdims=True)
    return to_fp8(wide / scale), scale


def _saturated(x: Array) -> Array:
    """In float32, infinity as its largest number."""
    limits = jnp.finfo(jnp.float32)
    return jnp.clip(x.astype(jnp.float32), limits.min, limits.max)


def _scale(wide: Array, axis: int | tuple[int, ...] | None, *, keepdims: bool) -> Array:
    scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=keepdims) / FP8_MAX
    # Smaller numbers round to zero; NaN stays.
    return jnp.where(scale >= jnp.finfo(jnp.float32).tiny, scale, 1.0)
