"""What kernels that read paged keys and values ask of their operands."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
FP8 = jnp.float8_e4m3fn


def check(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lens: jax.Array,
    k_scale: jax.Array | None,
    v_scale: jax.Array | None,
    *,
    v_transposed: bool = False,
) -> None:
    """Checks shapes and dtypes, and concrete lengths and page numbers; traced under `checkify`.

    Args:
        q: `[B, S_q, H, C]`.  k_pages, v_pages: `[N, page, C]`.  page_table: `[B, P]`.  lens: `[B]`.
        k_scale, v_scale: `[N, page]`, of pages in float8_e4m3fn alone.
        v_transposed: value pages are `[N, C, page]`, and `v_scale` is one number.

    Raises:
        ValueError: if something does not fit.
    """
    if q.ndim != 4 or k_pages.ndim != 3 or page_table.ndim != 2 or lens.ndim != 1:
        raise ValueError(
            "q must be [B, S_q, H, C] or [B, H, C], pages [N, page, C], page_table [B, P] and lens "
            f"[B], got {q.shape}, {k_pages.shape}, {page_table.shape}, {lens.shape}"
        )
    (B, S_q, H, C), (N, page, _) = q.shape, k_pages.shape
    want = (N, C, page) if v_transposed else (N, page, C)
    if k_pages.shape != (N, page, C) or v_pages.shape != want:
        raise ValueError(
            f"with head dimension {C}, k_pages must be [N, page, {C}] and v_pages {want}, got "
            f"{k_pages.shape} and {v_pages.shape}"
        )
    if C % 16:
        raise ValueError(f"the head dimension must be a multiple of 16, got {C}")
    if page_table.shape[0] != B or lens.shape[0] != B:
        raise ValueError(
            f"q asks for {B} requests, page_table has {page_table.shape[0]}, lens {lens.shape[0]}"
        )
    if min(B, S_q, H, N, page, page_table.shape[1]) < 1:
        raise ValueError(f"no size may be zero: q {q.shape}, pages {k_pages.shape}")
    check_integers(page_table=page_table, lens=lens)
    _check_dtypes(q, k_pages, v_pages)
    _check_scales(k_pages, k_scale, v_scale, () if v_transposed else (N, page))
    _check_values(page_table, lens, N, page)


def _check_dtypes(q: jax.Array, k_pages: jax.Array, v_pages: jax.Array) -> None:
    if q.dtype not in FLOATS:
        names = ", ".join(jnp.dtype(d).name for d in FLOATS)
        raise ValueError(f"q must be in {names}, got {q.dtype}")
    if k_pages.dtype != v_pages.dtype or k_pages.dtype not in (q.dtype, FP8):
        raise ValueError(
            f"pages must both be in the dtype of q, {q.dtype}, or in float8_e4m3fn, got "
            f"{k_pages.dtype} and {v_pages.dtype}"
        )


def _check_scales(
    k_pages: jax.Array, k_scale: jax.Array | None, v_scale: jax.Array | None, v_shape: tuple
) -> None:
    eight_bits = k_pages.dtype == FP8
    for name, scale, shape in (
        ("k_scale", k_scale, k_pages.shape[:2]),
        ("v_scale", v_scale, v_shape),
    ):
        if eight_bits != (scale is not None):
            need = "need" if eight_bits else "take no"
            raise ValueError(f"pages in {k_pages.dtype} {need} {name}")
        if scale is not None and (scale.shape != shape or scale.dtype != jnp.float32):
            raise ValueError(f"{name} must be float32 {shape}, got {scale.dtype} {scale.shape}")


def check_integers(**arrays: jax.Array) -> None:
    """Refuses what is not int32, by its name."""
    for name, x in arrays.items():
        if x.dtype != jnp.int32:
            raise ValueError(f"{name} must be int32, got {x.dtype}")


def check_lengths(lens: jax.Array, most: int) -> None:
    """Refuses concrete lengths out of 0 to `most`; traced ones under `checkify`."""
    wrong = first_where(lens, lambda lens: (lens < 0) | (lens > most))
    if wrong is not None:
        raise ValueError(
            f"lens must be in 0 to {most}, the tokens a row of page_table can name; request "
            f"{wrong} has {int(lens[wrong])}"
        )
    checkify.debug_check(
        jnp.all((lens >= 0) & (lens <= most)), "lens must be in 0 to {most}", most=jnp.int32(most)
    )


def first_where(x: jax.Array, wrong: Callable[[np.ndarray], np.ndarray]) -> int | None:
    """Returns the first index of a concrete `[B]` where something is wrong, None if nothing is."""
    if isinstance(x, Tracer):
        return None
    found = np.flatnonzero(wrong(np.asarray(x)))
    return int(found[0]) if found.size else None


def _check_values(page_table: jax.Array, lens: jax.Array, N: int, page: int) -> None:
    check_lengths(lens, page_table.shape[1] * page)
    if not isinstance(page_table, Tracer):
        table = np.asarray(page_table)
        if table.min() < 0 or table.max() >= N:
            raise ValueError(
                f"page_table must hold page numbers in 0 to {N - 1}, got {table.min()} to "
                f"{table.max()}"
            )
    checkify.debug_check(
        jnp.all((page_table >= 0) & (page_table < N)),
        "page_table must hold page numbers in 0 to {last}",
        last=jnp.int32(N - 1),
    )
