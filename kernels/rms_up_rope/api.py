"""Queries of all heads from one low-rank vector a token: checks, dispatch, gradient.

Inner norm, up-projection and rotary embedding are one matrix product with an epilogue: products are
never written before they are normalized and turned.
"""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from .. import compat
from . import mosaic_gpu, mosaic_tpu, ref

Impl = Literal["mosaic_gpu", "mosaic_tpu", "xla"]
IMPLS: tuple[Impl, ...] = get_args(Impl)
FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
"""Implementations, the one that is preferred where it runs first."""


def rms_up_rope(
    low: jax.Array,
    up: jax.Array,
    position: jax.Array,
    *,
    theta: float = 5e5,
    eps: float | None = 1e-5,
    scale: float = 1.0,
    impl: Impl | None = None,
) -> jax.Array:
    """Returns scale * rotate(rms_norm(low) up); differentiable in `low` and `up`.

    Args:
        low: `[N, R]`, queries in the shared space.
        up: `[R, H, C]`; the norm's weight is multiplied into its rows beforehand.
        position: `[N]` int32.
        theta: base of the wavelengths.
        eps: constant of the norm, or None for no norm.
        scale: factor of the result; softmax scale and log2(e) may go here.
        impl: implementation; None takes the first of `IMPLS` that can run, see `choose`.

    Returns:
        `[N, H, C]` in the dtype of `low`.

    Raises:
        ValueError: if shapes or dtypes do not fit.
        NotImplementedError: if `impl` is given and cannot run; it says why.

    Source: Step-3, arXiv:2507.19427 (inner norm, shared query space); Su et al. 2021.
    """
    if low.ndim != 2 or up.ndim != 3 or up.shape[0] != low.shape[1] or up.shape[2] % 2:
        raise ValueError(
            f"low must be [N, R] and up [R, H, C] with C even, got {low.shape} and {up.shape}"
        )
    if position.shape != low.shape[:1] or not jnp.issubdtype(position.dtype, jnp.integer):
        raise ValueError(f"position must be integers [{low.shape[0]}], got {position.shape}")
    if low.dtype not in FLOATS:
        names = ", ".join(jnp.dtype(d).name for d in FLOATS)
        raise ValueError(f"low and up must be in {names}, got {low.dtype}")
    known = isinstance(theta, (int, float))
    if (known and not theta > 0.0) or (eps is not None and not eps >= 0.0):
        raise ValueError(f"theta must be positive and eps not negative, got {theta} and {eps}")
    if low.dtype != up.dtype:
        raise ValueError(f"low and up must share a dtype, got {low.dtype} and {up.dtype}")
    if not low.shape[0]:
        return jnp.zeros((0, *up.shape[1:]), low.dtype)
    if impl is None:
        impl = choose(low, up)
    elif reason := why_not(impl, low, up):
        raise NotImplementedError(f"rms_up_rope with impl={impl!r} cannot run: {reason}")
    wide = jnp.float64 if low.dtype == jnp.float64 else jnp.float32
    factor = jnp.full(low.shape[:1], scale, wide)
    if eps is not None:
        factor = factor * jax.lax.rsqrt(jnp.mean(low.astype(wide) ** 2, axis=-1) + eps)
    half = up.shape[2] // 2
    frequency = jnp.asarray(theta, wide) ** (-jnp.arange(half, dtype=wide) / half)
    angle = position.astype(wide)[:, None] * frequency[None]
    return _compiled(impl, low, up, factor, jnp.cos(angle), jnp.sin(angle))


def choose(low: Any, up: Any) -> Impl:
    """Returns the implementation that `impl=None` takes on the default backend."""
    return next(impl for impl in IMPLS if not why_not(impl, low, up))


def why_not(impl: str, low: Any, up: Any) -> str:
    """Says why an implementation cannot run here for these operands, "" if it can.

    Raises:
        ValueError: if there is no such implementation.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)} or None, got {impl!r}")
    if impl == "xla":
        return ""
    platform = jax.default_backend()
    R, C = low.shape[1], up.shape[2]
    if impl == "mosaic_tpu":
        if platform != "tpu":
            return f"the backend is {platform}, not tpu"
        if C % 256 or R % 128 or low.dtype == jnp.float64:
            return f"it takes C in multiples of 256, R of 128, no float64; got {C}, {R}"
        return ""
    if reason := compat.why_not_hopper():
        return reason
    if C % (2 * mosaic_gpu.WIDTH) or R % mosaic_gpu.DEPTH:
        return f"it takes C in multiples of 128 and R of 64, got {C} and {R}"
    if low.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, got {low.dtype}"
    return ""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(impl: Impl, *operands: jax.Array) -> jax.Array:
    kernels = {"mosaic_gpu": mosaic_gpu, "mosaic_tpu": mosaic_tpu, "xla": ref}
    return kernels[impl].rms_up_rope(*operands).astype(operands[0].dtype)


def _forward(impl: Impl, *operands: jax.Array) -> tuple[jax.Array, tuple]:
    return _apply(impl, *operands), operands


def _backward(impl: Impl, operands: tuple, grad: jax.Array) -> tuple:
    del impl
    out, pull = jax.vjp(ref.rms_up_rope, *operands)
    return pull(grad.astype(out.dtype))


_apply.defvjp(_forward, _backward)
_compiled = jax.jit(_apply, static_argnums=0)
"""Once for all values, also where it is called eagerly."""
