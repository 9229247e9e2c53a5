"""Rotary position embedding in both layouts of pairs, and the permutation between them.

Two numbers of a head turn together. In the layout "half" they are i and i + C/2 (GPT-NeoX, Llama as
published on the Hugging Face hub); in the layout "interleaved" they are 2i and 2i + 1 (the paper,
Meta's Llama, GGUF files of Llama-like models). Weights that were trained in one layout are wrong in
the other, although the text they write still looks fluent.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.nn.transformer.norm import wide_dtype

Layout = Literal["half", "interleaved"]
"""Which two numbers of a head turn together: (i, i + C/2), or (2i, 2i + 1)."""


def rotate(
    x: Float[Array, "... C"],
    position: Int[Array, "..."],
    *,
    theta: float | Array = 5e5,
    layout: Layout = "half",
) -> Float[Array, "... C"]:
    """Rotates pair i of x by the angle position * theta^(-2i/C), in float32 or wider.

    The product of two rotated vectors depends on the difference of their positions alone.

    Args:
        x: `[..., C]`, C even.
        position: int, broadcasts against the leading axes of x.
        theta: base of the wavelengths, which reach from 2 pi to 2 pi theta^(1 - 2/C) tokens.
        layout: which numbers are a pair, see `Layout`.

    Returns:
        `[..., C]` in the dtype of x.

    Raises:
        ValueError: if C is odd, or there is no such layout.

    Source: Su et al. 2021 (RoFormer), eq. 34; "half" is the same up to a permutation of C.
    """
    size = x.shape[-1]
    if size % 2:
        raise ValueError(f"rotary embedding turns pairs: the last axis must be even, got {size}")
    check_layout(layout)
    dtype = wide_dtype(x.dtype)
    cos, sin = angles(position, size, theta=theta, dtype=dtype)
    if layout == "half":
        first, second = jnp.split(x.astype(dtype), 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    else:
        pairs = x.astype(dtype).reshape(*x.shape[:-1], size // 2, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        turned = turned.reshape(*turned.shape[:-2], size)
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


def half_from_interleaved(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Reorders the last axis from the layout "interleaved" to "half".

    Rotating what it returns in halves is rotating x interleaved, reordered. Applied to the columns
    of every head of the query and key projections, `[D, H, C]`, it changes no score.

    Raises:
        ValueError: if C is odd.
    """
    return _reorder(x, (-1, 2))


def interleaved_from_half(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Reorders the last axis from the layout "half" to "interleaved".

    The inverse of `half_from_interleaved`.

    Raises:
        ValueError: if C is odd.
    """
    return _reorder(x, (2, -1))


def check_layout(layout: str) -> None:
    """Checks that a layout of pairs exists.

    Raises:
        ValueError: if not.
    """
    if layout not in ("half", "interleaved"):
        raise ValueError(f'layout must be "half" or "interleaved", got {layout!r}')


def _reorder(x: Array, pairs: tuple[int, int]) -> Array:
    if x.shape[-1] % 2:
        raise ValueError(f"pairs need an even last axis, got {x.shape[-1]}")
    return x.reshape(*x.shape[:-1], *pairs).swapaxes(-1, -2).reshape(x.shape)
