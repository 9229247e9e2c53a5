"""Attention of whole prompts with one key and value head for all heads: checks, dispatch, gradient.

The derivative recomputes scores block by block; training and prefill use the same function. A
chunk of a prompt over paged keys gathers them first.
"""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from .. import compat, paged
from ..scaling import power_of_two
from . import mosaic_gpu, mosaic_tpu, ref

Impl = Literal["mosaic_gpu", "mosaic_tpu", "xla"]
IMPLS: tuple[Impl, ...] = get_args(Impl)
"""Implementations, the one that is preferred where it runs first."""
FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def mqa_prefill(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_start: jax.Array | None = None,
    lens: jax.Array | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    impl: Impl | None = None,
) -> jax.Array:
    """Returns softmax(scale q k') v; differentiable in q, k and v.

    Args:
        q: `[B, T, H, C]`, tokens at positions q_start to q_start + T - 1.
        k, v: `[B, S, C]`, keys and values at positions 0 to S - 1.
        q_start: `[B]` int32, 0 by default.
        lens: `[B]` int32, keys that exist, S by default; behind them may be anything, NaN included.
        scale: factor of the scores, C^-1/2 by default.
        causal: each token sees positions up to its own.
        impl: implementation; None takes the first of `IMPLS` that can run, see `choose`.

    Returns:
        `[B, T, H, C]` in the dtype of q; 0 where nothing is visible.

    Raises:
        ValueError: if shapes or dtypes do not fit, or concrete numbers are out of range.
        NotImplementedError: if `impl` is given and cannot run; it says why.

    Source: Step-3, arXiv:2507.19427; FlashAttention-2, Dao 2023.
    """
    B = _check(q, k, v)
    S = k.shape[1]
    q_start = jnp.zeros((B,), jnp.int32) if q_start is None else q_start
    lens = jnp.full((B,), S, jnp.int32) if lens is None else lens
    _check_numbers("q_start", q_start, B, 2**31 - 1 - q.shape[1])
    _check_numbers("lens", lens, B, S)
    lens = jnp.clip(lens, 0, S)  # what is traced may be anything
    return _dispatch(q, k, v, q_start, lens, jnp.ones((B,), jnp.float32), scale, causal, impl)


def mqa_prefill_paged(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lens: jax.Array,
    *,
    scale: float | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    impl: Impl | None = None,
) -> jax.Array:
    """Returns causal attention of a chunk, the last T tokens of each request, over a paged cache.

    The pages of a request are gathered once, which costs 1 / (H T) of the arithmetic.

    Args:
        q: `[B, T, H, C]`.
        k_pages, v_pages: `[N, page, C]` in the dtype of q, or in float8_e4m3fn with scales.
        page_table: `[B, P]` int32.  lens: `[B]` int32, the T tokens of the chunk included.
        scale: factor of the scores, C^-1/2 by default.
        k_scale, v_scale: `[N, page]` float32, one a token.
        impl: see `mqa_prefill`.

    Returns:
        `[B, T, H, C]` in the dtype of q; 0 where nothing is visible.

    Raises:
        ValueError: if shapes or dtypes do not fit, or concrete lengths or page numbers are out of
            range; traced ones are checked under `checkify`.
        NotImplementedError: if `impl` is given and cannot run; it says why.
    """
    if q.ndim != 4:
        raise ValueError(f"q must be [B, T, H, C], got {q.shape}")
    paged.check(q, k_pages, v_pages, page_table, lens, k_scale, v_scale)
    most = page_table.shape[1] * k_pages.shape[1]
    shape = (page_table.shape[0], most, k_pages.shape[-1])
    # What is traced may be anything: nothing is read behind the table or the pages.
    page_table, lens = jnp.clip(page_table, 0, k_pages.shape[0] - 1), jnp.clip(lens, 0, most)
    present = jnp.arange(most, dtype=jnp.int32)[None] < lens[:, None]

    def gathered(pages: jax.Array, scales: jax.Array | None) -> tuple[jax.Array, Any]:
        """In the dtype of q and units of a number a request: scales are of any size."""
        x = pages[page_table].reshape(shape)
        if scales is None:
            return x, None
        scales = jnp.where(present, scales[page_table].reshape(shape[:2]), 0.0)
        unit = power_of_two(jnp.max(scales, axis=1))
        scaled = x.astype(jnp.float32) * (scales / unit[:, None])[..., None]
        return scaled.astype(q.dtype), unit

    (k, k_unit), (v, v_unit) = gathered(k_pages, k_scale), gathered(v_pages, v_scale)
    # A request shorter than the chunk starts before position 0: its first rows see nothing.
    units = jnp.ones(lens.shape, jnp.float32) if k_unit is None else k_unit
    out = _dispatch(q, k, v, lens - q.shape[1], lens, units, scale, True, impl)
    if v_unit is None:
        return out
    wide = ref.wide_dtype(q.dtype)
    return (out.astype(wide) * v_unit.astype(wide)[:, None, None, None]).astype(q.dtype)


def choose(q: jax.Array | jax.ShapeDtypeStruct) -> Impl:
    """Returns the implementation that `impl=None` takes on the default backend."""
    return next(impl for impl in IMPLS if not why_not(impl, q))


def why_not(impl: str, q: jax.Array | jax.ShapeDtypeStruct) -> str:
    """Says why an implementation cannot run here for these queries, "" if it can.

    Raises:
        ValueError: if there is no such implementation.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)} or None, got {impl!r}")
    if impl == "xla":
        return ""
    platform, C = jax.default_backend(), q.shape[-1]
    if impl == "mosaic_tpu":
        if platform != "tpu":
            return f"the backend is {platform}, not tpu"
        if C % 128 or q.dtype == jnp.float64:
            return f"it takes head dimensions in multiples of 128, no float64; got {C}, {q.dtype}"
        return ""
    if reason := compat.why_not_hopper():
        return reason
    if C % 64 or C > 256:
        return f"the head dimension must be 64, 128, 192 or 256, got {C}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, got {q.dtype}"
    return ""


def _dispatch(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_start: jax.Array,
    lens: jax.Array,
    unit: jax.Array,
    scale: float | None,
    causal: bool,
    impl: Impl | None,
) -> jax.Array:
    """Attends to keys in units `[B]`."""
    if impl is None:
        impl = choose(q)
    elif reason := why_not(impl, q):
        raise NotImplementedError(f"mqa_prefill with impl={impl!r} cannot run: {reason}")
    if isinstance(scale, bool) or not isinstance(scale, (int, float, np.number, type(None))):
        raise ValueError(f"scale must be a Python number or None, got {type(scale).__name__}")
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    scales = unit.astype(ref.wide_dtype(q.dtype)) * factor
    return _compiled(impl, causal, q, k, v, q_start, lens, scales)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(impl: Impl, causal: bool, *operands: Any) -> jax.Array:
    return _forward(impl, causal, *operands)[0]


def _forward(impl: Impl, causal: bool, *operands: Any) -> tuple:
    kernels: dict[str, Any] = {"mosaic_gpu": mosaic_gpu, "mosaic_tpu": mosaic_tpu, "xla": ref}
    *arrays, scale = operands
    out, lse2 = kernels[impl].forward(*arrays, scale=scale, causal=causal)
    out = out.astype(arrays[0].dtype)
    return out, (*operands, out, lse2)


def _backward(impl: Impl, causal: bool, saved: tuple, grad: jax.Array) -> tuple:
    q, k, v, q_start, lens, scale, out, lse2 = saved
    dq, dk, dv = ref.backward(q, k, v, q_start, lens, out, lse2, grad, scale=scale, causal=causal)
    return dq, dk, dv, None, None, None


_attend.defvjp(_forward, _backward)
_compiled = jax.jit(_attend, static_argnums=(0, 1))
"""Once for all values, also where it is called eagerly."""


def _check(q: jax.Array, k: jax.Array, v: jax.Array) -> int:
    if q.ndim != 4 or k.ndim != 3 or k.shape != v.shape:
        raise ValueError(
            f"q must be [B, T, H, C], k and v [B, S, C], got {q.shape}, {k.shape} and {v.shape}"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[2]:
        raise ValueError(f"q {q.shape} and k {k.shape} must agree in B and C")
    if q.shape[3] % 16:
        raise ValueError(f"the head dimension must be a multiple of 16, got {q.shape[3]}")
    if min(*q.shape, *k.shape) < 1:
        raise ValueError(f"no size may be zero, got q {q.shape} and k {k.shape}")
    if q.dtype not in FLOATS or not q.dtype == k.dtype == v.dtype:
        names = ", ".join(jnp.dtype(d).name for d in FLOATS)
        raise ValueError(
            f"q, k and v must share one dtype of {names}, got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    return q.shape[0]


def _check_numbers(name: str, x: jax.Array, B: int, most: int) -> None:
    if x.shape != (B,) or x.dtype != jnp.int32:
        raise ValueError(f"{name} must be int32 [{B}], got {x.dtype} {x.shape}")
    if not isinstance(x, Tracer):
        values = np.asarray(x)
        if values.min() < 0 or values.max() > most:
            raise ValueError(f"{name} must be in 0 to {most}, got {values.min()} to {values.max()}")
    checkify.debug_check(
        jnp.all((x >= 0) & (x <= most)), name + " must be in 0 to {most}", most=jnp.int32(most)
    )
