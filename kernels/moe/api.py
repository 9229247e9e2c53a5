"""Grouped SwiGLU, the feed-forward of a mixture of experts: checks, and dispatch.

Three implementations compute the same function: `tokamax` (its grouped products on GPU and TPU,
where the package is installed), `ragged_dot` (`jax.lax.ragged_dot`, on every backend), and
`blocked`, a loop over blocks of rows, several times faster on a CPU. All are differentiable.
"""

import importlib
import importlib.util
import os
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from .. import tuning
from ..compat import precision
from . import blocked

Impl = Literal["tokamax", "ragged_dot", "blocked"]
IMPLS: tuple[Impl, ...] = get_args(Impl)
FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


class Config(NamedTuple):
    """How an implementation is launched; `autotune` finds the fastest for a shape.

    Attributes:
        impl: implementation.  block: rows that "blocked" multiplies at a time.
    """

    impl: Impl
    block: int = 64


def grouped_swiglu(
    x: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    sizes: jax.Array,
    *,
    impl: Impl | None = None,
    config: Config | None = None,
) -> jax.Array:
    """Returns (silu(x gate_e) * (x up_e)) down_e with the group e of each row.

    Args:
        x: `[M, D]`, rows of group 0 first, then those of group 1, and so on.
        gate, up: `[E, D, F]`.  down: `[E, F, D]`.
        sizes: `[E]` int32, rows of each group, M together at most; rows behind them give 0.
        impl: implementation; None takes the fastest that can run, see `choose`.
        config: how it is launched, in place of `impl`; `heuristic` by default.

    Returns:
        `[M, D]` in the dtype of x.

    Raises:
        ValueError: if shapes or dtypes do not fit, concrete sizes exceed the rows, or both `impl`
            and `config` are given.
        NotImplementedError: if `impl` is given and cannot run; it says why.

    Source: Step-3, arXiv:2507.19427 (SwiGLU experts); Shazeer 2020 (SwiGLU).
    """
    _check(x, gate, up, down, sizes)
    if config is not None and impl is not None:
        raise ValueError(f"give impl or config, not both; got {impl!r} and {config}")
    config = config or heuristic(x.shape[0], sizes.size, x.dtype, impl)
    if reason := why_not(config.impl, x.dtype):
        raise NotImplementedError(f"grouped_swiglu with impl={config.impl!r} cannot run: {reason}")
    sizes = jnp.maximum(sizes, 0)  # a traced one that is negative takes no rows from other groups
    if config.impl == "blocked":
        if config.block < 1:
            raise ValueError(f"block must be at least 1 row, got {config.block}")
        return _blocked(x, gate, up, down, sizes, config.block)
    dot = _ragged_dot(config.impl)
    hidden = jax.nn.silu(dot(x, gate, sizes)) * dot(x, up, sizes)
    out = dot(hidden, down, sizes)
    row = jnp.arange(x.shape[0], dtype=jnp.int32)
    return jnp.where((row < jnp.sum(sizes, dtype=jnp.int32))[:, None], out, 0).astype(x.dtype)


def choose(dtype: Any = jnp.float32) -> Impl:
    """Returns the implementation that `impl=None` takes on the default backend."""
    preferred = IMPLS if jax.default_backend() in ("gpu", "tpu") else ("blocked",)
    return next(impl for impl in preferred if not why_not(impl, dtype))


def heuristic(
    num_rows: int, num_groups: int, dtype: Any = jnp.float32, impl: Impl | None = None
) -> Config:
    """Returns the launch that is taken without a `config`.

    A block has about the rows of a group, a power of two from 16 to 128.
    """
    mean = max(1, -(-num_rows // num_groups))
    return Config(impl or choose(dtype), min(128, max(16, 1 << (mean - 1).bit_length())))


def candidates(num_rows: int, num_groups: int, dtype: Any = jnp.float32) -> tuple[Config, ...]:
    """Returns the launches that `autotune` compares: `heuristic`, and all that can run here."""
    first = heuristic(num_rows, num_groups, dtype)
    blocks = [n for n in (8, 16, 32, 64, 128, 256) if n <= max(8, num_rows)]
    found = [first, *(Config("blocked", n) for n in blocks)]
    found += [first._replace(impl=impl) for impl in IMPLS if not why_not(impl, dtype)]
    return tuple(dict.fromkeys(found))


def autotune(
    x: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    sizes: jax.Array,
    *,
    path: str | os.PathLike | None = None,
) -> Config:
    """Returns the fastest launch for operands like these, see `grouped_swiglu`.

    Args:
        path: file that keeps what was found, see `tuning.autotune`.
    """
    _check(x, gate, up, down, sizes)

    def build(config: Config) -> Any:
        return lambda *operands: grouped_swiglu(*operands, config=config)

    return tuning.autotune(
        "grouped_swiglu",
        build,
        candidates(x.shape[0], sizes.size, x.dtype),
        (x, gate, up, down, sizes),
        reference=build(Config("ragged_dot")),
        path=path,
    )


def why_not(impl: str, dtype: Any = jnp.float32) -> str:
    """Says why an implementation cannot run here, "" if it can.

    Raises:
        ValueError: if there is no such implementation.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)} or None, got {impl!r}")
    if impl != "tokamax":
        return ""
    if jax.default_backend() not in ("gpu", "tpu"):
        return f"the backend is {jax.default_backend()}, not gpu or tpu"
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"its kernels take bfloat16 and float16, got {jnp.dtype(dtype)}"
    if importlib.util.find_spec("tokamax") is None:
        return "the package tokamax is not installed: pip install tokamax"
    return ""


_blocked = jax.jit(blocked.grouped_swiglu, static_argnums=5)
"""Compiled once for all values, also where it is called eagerly."""


def _ragged_dot(impl: Impl) -> Any:
    if impl == "ragged_dot":
        return lambda a, b, sizes: jax.lax.ragged_dot(a, b, sizes, precision=precision(a.dtype))
    return importlib.import_module("tokamax").ragged_dot


def _check(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, sizes: jax.Array) -> None:
    if x.ndim != 2 or gate.ndim != 3 or up.shape != gate.shape:
        raise ValueError(
            f"x must be [M, D], gate and up [E, D, F], got {x.shape}, {gate.shape}, {up.shape}"
        )
    E, D, F = gate.shape
    if x.shape[1] != D or down.shape != (E, F, D):
        raise ValueError(
            f"with gate {gate.shape}, x must be [M, {D}] and down {(E, F, D)}, got {x.shape} and "
            f"{down.shape}"
        )
    if min(E, D, F) < 1:
        raise ValueError(f"no size of the weights may be zero, got {gate.shape}")
    if sizes.shape != (E,) or sizes.dtype != jnp.int32:
        raise ValueError(f"sizes must be int32 [{E}], got {sizes.dtype} {sizes.shape}")
    if x.dtype not in FLOATS or any(w.dtype != x.dtype for w in (gate, up, down)):
        names = ", ".join(jnp.dtype(d).name for d in FLOATS)
        raise ValueError(
            f"x and weights must share one dtype of {names}, got {x.dtype}, {gate.dtype}, "
            f"{up.dtype}, {down.dtype}"
        )
    if not isinstance(sizes, Tracer):
        counts = np.asarray(sizes)
        if counts.min() < 0 or counts.sum() > x.shape[0]:
            raise ValueError(
                f"sizes must be 0 or more and at most {x.shape[0]} together, the rows of x; got "
                f"{counts.min()} at least and {counts.sum()} together"
            )
    checkify.debug_check(
        jnp.all(sizes >= 0) & (jnp.sum(sizes, dtype=jnp.int32) <= x.shape[0]),
        "sizes must be 0 or more and at most {rows} together",
        rows=jnp.int32(x.shape[0]),
    )
