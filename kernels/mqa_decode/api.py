"""Attention of new tokens over paged keys and values that all heads share: checks, and dispatch.

Four implementations compute the same function: `mosaic_gpu` (Hopper: TMA, tensor cores, an equal
share of pages for every processor), `triton` (NVIDIA GPUs from Ampere on), `mosaic_tpu`, and `xla`,
which is the specification in `ref`.
"""

import functools
import os
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from .. import compat, hopper, paged, tuning
from . import mosaic_gpu, mosaic_tpu, ref, triton
from .plan import Plan, check_plan, decode_plan

Impl = Literal["mosaic_gpu", "triton", "mosaic_tpu", "xla"]
IMPLS: tuple[Impl, ...] = get_args(Impl)
"""Implementations, the one that is preferred where it runs first."""
FP8 = jnp.float8_e4m3fn
MOST_ROWS = {"mosaic_gpu": 256, "triton": 128, "mosaic_tpu": 1024}
"""Rows S_q H that the kernels are made for; chunks of a prompt are `mqa_prefill_paged`'s."""


class Call(NamedTuple):
    """What decides which implementation can run.

    Attributes:
        S_q, H, C, page: sizes.
        q_dtype, kv_dtype: dtypes of queries and pages.
        v_transposed: value pages are `[N, C, page]`.
        num_slots: tokens that all pages can hold.
    """

    S_q: int
    H: int
    C: int
    page: int
    q_dtype: Any
    kv_dtype: Any
    v_transposed: bool
    num_slots: int = 0


class Config(NamedTuple):
    """How an implementation is launched; `autotune` finds the fastest for a shape.

    Attributes:
        impl: implementation.
        stages: pages in flight, of "mosaic_gpu" (a multiple of 2 up to 64 rows S_q H).
        num_splits, num_warps: parts of a request and warps of a program, of "triton".
    """

    impl: Impl
    stages: int = 2
    num_splits: int = 8
    num_warps: int = 8


def mqa_decode(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lens: jax.Array,
    *,
    scale: float | jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    v_transposed: bool = False,
    impl: Impl | None = None,
    config: Config | None = None,
    plan: Plan | None = None,
    return_lse: bool = False,
) -> Any:
    """Returns softmax(scale q k') v over the tokens of each request, causal among the asking ones.

    Args:
        q: `[B, S_q, H, C]` or `[B, H, C]`: the last S_q tokens of each request ask; several are a
            verification of drafted tokens. For a chunk of a prompt take
            `mqa_prefill.mqa_prefill_paged`.
        k_pages, v_pages: `[N, page, C]`. Slots that hold no token may hold anything, NaN included.
        page_table: `[B, P]` int32, the pages of each request in order.
        lens: `[B]` int32, tokens of each request, the asking ones included; 0 allowed.
        scale: factor of the scores, C^-1/2 by default.
        k_scale, v_scale: `[N, page]` float32, one a token, of pages in float8_e4m3fn. `v_scale` is
            one number `[]` if `v_transposed`.
        v_transposed: value pages are `[N, C, page]`: on Hopper both products then run in eight
            bits.
        impl: implementation; None takes the first of `IMPLS` that can run, see `choose`.
        config: how it is launched, in place of `impl`; `heuristic` by default.
        plan: what `decode_plan` made of these lengths and this table, once for all layers of a
            step; made here by default. "mosaic_gpu" alone reads it, and page numbers from it.
        return_lse: return `(out, lse2)` with the base-2 log-sum-exp of the scores.

    Returns:
        Averages of the shape and dtype of q; 0 where nothing is visible. `lse2` is float32, of that
        shape without C, and -inf there.

    Raises:
        ValueError: if shapes or dtypes do not fit; if concrete lengths or page numbers lie outside
            the table or the pages (traced ones are checked under `checkify`, and spoil their own
            request alone); if both `impl` and `config` are given; if `plan` is of other sizes, or
            of lengths that take other numbers of pages.
        NotImplementedError: if `impl` is given and cannot run; it says why.

    Source: Step-3, arXiv:2507.19427, section 4; split-KV decoding, Dao et al. 2023.
    """
    squeezed = q.ndim == 3
    q = q[:, None] if squeezed else q
    call = _check(q, k_pages, v_pages, page_table, lens, scale, k_scale, v_scale, v_transposed)
    if config is not None and impl is not None:
        raise ValueError(f"give impl or config, not both; got {impl!r} and {config}")
    B, P = page_table.shape
    if plan is not None:
        check_plan(plan, lens, P, call.page)
    config = config or heuristic(call, B, P, impl)
    _check_config(config, call)
    if reason := why_not(config.impl, call):
        raise NotImplementedError(f"mqa_decode with impl={config.impl!r} cannot run: {reason}")
    # What is traced may be anything: no kernel reads behind its table or its pages.
    lens = jnp.clip(lens, 0, P * call.page)
    page_table = jnp.clip(page_table, 0, k_pages.shape[0] - 1)
    if config.impl == "mosaic_gpu" and plan is None:
        plan = decode_plan(lens, page_table, page=call.page)
    scale = call.C**-0.5 if scale is None else scale
    operands = (q, k_pages, v_pages, page_table, lens, scale, k_scale, v_scale, plan)
    out, lse2 = _attend(*operands, config=config, direct=v_transposed)
    out, lse2 = (out[:, 0], lse2[:, 0]) if squeezed else (out, lse2)
    return (out, lse2) if return_lse else out


@functools.partial(jax.jit, static_argnames=("config", "direct"))
def _attend(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lens: jax.Array,
    scale: float | jax.Array,
    k_scale: jax.Array | None,
    v_scale: jax.Array | None,
    shares: Plan | None,
    *,
    config: Config,
    direct: bool,
) -> tuple[jax.Array, jax.Array]:
    """Compiled once for all values, also where it is called eagerly."""
    operands = (q, k_pages, v_pages, page_table, lens)
    options: dict[str, Any] = {"scale": scale, "k_scale": k_scale, "v_scale": v_scale}
    if config.impl == "mosaic_gpu":
        assert shares is not None
        out, lse2 = mosaic_gpu.mqa_decode(
            q, k_pages, v_pages, lens, shares, direct=direct, stages=config.stages, **options
        )
    elif config.impl == "triton":
        out, lse2 = triton.mqa_decode(
            *operands, num_splits=config.num_splits, num_warps=config.num_warps, **options
        )
    elif config.impl == "mosaic_tpu":
        out, lse2 = mosaic_tpu.mqa_decode(*operands, **options)
    else:
        out, lse2 = ref.mqa_decode(*operands, v_transposed=direct, **options)
    return out.astype(q.dtype), lse2


def choose(call: Call) -> Impl:
    """Returns the implementation that `impl=None` takes on the default backend."""
    return next(impl for impl in IMPLS if not why_not(impl, call))


def heuristic(call: Call, B: int, P: int, impl: Impl | None = None) -> Config:
    """Returns the launch that is taken without a `config`, for B requests of P pages at most.

    Triton gets two programs a processor, and each of them two pages or more.
    """
    splits = min(-(-2 * compat.num_processors() // max(B, 1)), max(P // 2, 1))
    return Config(impl or choose(call), num_splits=splits)


def candidates(call: Call, B: int, P: int) -> tuple[Config, ...]:
    """Returns the launches that `autotune` compares: `heuristic`, and all that can run here."""
    first = heuristic(call, B, P)
    found = [first]
    for impl in IMPLS:
        if why_not(impl, call):
            continue
        if impl == "mosaic_gpu":
            step = 2 if call.S_q * call.H <= hopper.ROWS else 1
            found += [
                first._replace(impl=impl, stages=n)
                for n in range(step, 9, step)
                if _shared_memory(call, n) <= hopper.SHARED_MEMORY
            ]
        elif impl == "triton":
            splits = sorted({max(1, first.num_splits * n // 4) for n in (1, 2, 4, 8, 16)})
            found += [
                first._replace(impl=impl, num_splits=n, num_warps=warps)
                for n in splits
                for warps in (4, 8)
            ]
        else:
            found.append(first._replace(impl=impl))
    return tuple(dict.fromkeys(found))


def autotune(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lens: jax.Array,
    *,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    v_transposed: bool = False,
    path: str | os.PathLike | None = None,
) -> Config:
    """Returns the fastest launch for operands like these, see `mqa_decode`.

    Args:
        path: file that keeps what was found, see `tuning.autotune`.
    """
    asked = q if q.ndim == 4 else q[:, None]
    call = _check(asked, k_pages, v_pages, page_table, lens, None, k_scale, v_scale, v_transposed)
    operands = [q, k_pages, v_pages, page_table, lens]
    names = [name for name, x in (("k_scale", k_scale), ("v_scale", v_scale)) if x is not None]
    operands += [x for x in (k_scale, v_scale) if x is not None]

    def build(config: Config) -> Any:
        def f(*operands: jax.Array) -> jax.Array:
            scales = dict(zip(names, operands[5:], strict=True))
            return mqa_decode(*operands[:5], v_transposed=v_transposed, config=config, **scales)

        return f

    return tuning.autotune(
        "mqa_decode, direct" if v_transposed else "mqa_decode",
        build,
        candidates(call, page_table.shape[0], page_table.shape[1]),
        operands,
        reference=build(Config("xla")),
        path=path,
        tolerance=0.1 if v_transposed else 2e-2,
    )


def why_not(impl: str, call: Call) -> str:
    """Says why an implementation cannot run here, "" if it can.

    Raises:
        ValueError: if there is no such implementation.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)} or None, got {impl!r}")
    if impl == "xla":
        return ""
    if (rows := call.S_q * call.H) > MOST_ROWS[impl]:
        return f"it takes {MOST_ROWS[impl]} rows S_q H at most, got {rows}"
    if call.q_dtype == jnp.dtype(jnp.float64):
        return "it does not compute in float64"
    platform, capability = jax.default_backend(), compat.compute_capability()
    if impl == "mosaic_tpu":
        return f"the backend is {platform}, not tpu" if platform != "tpu" else _tpu_limits(call)
    if impl == "mosaic_gpu":
        return compat.why_not_hopper() or _hopper_limits(call)
    if platform != "gpu":
        return f"the backend is {platform}, not gpu"
    return f"compute capability {capability} < 8.0" if capability < 8.0 else _triton_limits(call)


def _hopper_limits(call: Call) -> str:
    if call.C % 64 or call.C > 256:
        return f"the head dimension must be 64, 128, 192 or 256, got {call.C}"
    if call.page not in (64, 128):
        return f"a page must hold 64 or 128 tokens, got {call.page}"
    if call.kv_dtype == jnp.dtype(FP8):
        if call.C == 192:
            return "with float8_e4m3fn the head dimension must be 64, 128 or 256, got 192"
        return _memory_limit(call)
    if call.kv_dtype not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"pages must be in bfloat16, float16 or float8_e4m3fn, got {call.kv_dtype}"
    return _memory_limit(call)


def _memory_limit(call: Call) -> str:
    if (need := _shared_memory(call)) > hopper.SHARED_MEMORY:
        return (
            f"pages of {call.page} tokens need {need:,} bytes of shared memory, there are "
            f"{hopper.SHARED_MEMORY:,}; take smaller pages"
        )
    return ""


def _shared_memory(call: Call, stages: int = 2) -> int:
    return mosaic_gpu.shared_memory(call.C, call.page, call.kv_dtype, call.v_transposed, stages)


def _triton_limits(call: Call) -> str:
    if compat.pltriton is None:
        return "this version of JAX has no Triton backend"
    if call.kv_dtype == jnp.dtype(FP8) and compat.compute_capability() < 8.9:
        return "it takes float8_e4m3fn from compute capability 8.9 on"
    if call.num_slots * call.C >= 2**31:
        return f"it counts elements in 32 bits, and the pages have {call.num_slots * call.C:,}"
    if call.v_transposed:
        return "it takes value pages [N, page, C] only"
    for name, size in (("page", call.page), ("head dimension", call.C)):
        if size < 16 or size & (size - 1):
            return f"the {name} must be a power of two, 16 at least, got {size}"
    return ""


def _tpu_limits(call: Call) -> str:
    if call.v_transposed:
        return "it takes value pages [N, page, C] only"
    if call.C % 128 or call.page % 32:
        return (
            "the head dimension must be a multiple of 128 and the page of 32, got "
            f"{call.C} and {call.page}"
        )
    return ""


def _check_config(config: Config, call: Call) -> None:
    warps = config.num_warps
    if config.stages < 1 or config.num_splits < 1 or warps not in (1, 2, 4, 8, 16, 32):
        raise ValueError(
            "stages and num_splits must be at least 1 and num_warps a power of two up to 32, got "
            f"{config}"
        )
    if config.impl == "mosaic_gpu" and not why_not(config.impl, call):
        lanes = 2 if call.S_q * call.H <= hopper.ROWS else 1
        need = _shared_memory(call, config.stages)
        if config.stages % lanes or need > hopper.SHARED_MEMORY:
            raise ValueError(
                f"stages must be a multiple of {lanes} that shared memory holds, "
                f"{hopper.SHARED_MEMORY:,} bytes; {config.stages} need {need:,}"
            )


def _check(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lens: jax.Array,
    scale: Any,
    k_scale: jax.Array | None,
    v_scale: jax.Array | None,
    v_transposed: bool,
) -> Call:
    paged.check(q, k_pages, v_pages, page_table, lens, k_scale, v_scale, v_transposed=v_transposed)
    if scale is not None and (isinstance(scale, (str, bool)) or jnp.ndim(scale) > 0):
        raise ValueError(f"scale must be one number, got {scale!r}")
    _, S_q, H, C = q.shape
    N, page, _ = k_pages.shape
    return Call(
        S_q, H, C, page, jnp.dtype(q.dtype), jnp.dtype(k_pages.dtype), v_transposed, N * page
    )
