"""Timings of the fused query up-projection and of grouped SwiGLU against plain XLA."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import ceilings, timing
from jaxlab.kernels.moe import api as moe  # pyright: ignore[reportMissingImports]
from jaxlab.kernels.moe import ref as moe_ref  # pyright: ignore[reportMissingImports]
from jaxlab.kernels.moe import specs as moe_specs  # pyright: ignore[reportMissingImports]
from jaxlab.kernels.rms_up_rope import api as rms_up_rope  # pyright: ignore[reportMissingImports]
from jaxlab.kernels.rms_up_rope import specs as rms_specs  # pyright: ignore[reportMissingImports]

SUMMARY = "Query up-projection and experts: fused against unfused, grouped against ragged_dot"


def run(out: pathlib.Path) -> list[timing.Measurement]:
    """Times what this machine can: small shapes on a CPU, all on an accelerator."""
    del out
    on_cpu = jax.default_backend() == "cpu"
    of_queries = rms_specs.ON_CPU if on_cpu else rms_specs.GRID
    of_experts = moe_specs.ON_CPU if on_cpu else moe_specs.GRID
    return [
        *(item for spec in of_queries for item in queries(**spec._asdict())),
        *(item for spec in of_experts for item in experts(**spec._asdict())),
    ]


def queries(**sizes: Any) -> list[timing.Measurement]:
    """Times norm, product and rotation in one kernel and in XLA, at the sizes of a `Spec`."""
    spec = rms_specs.Spec(**sizes)
    low, up, position = rms_specs.make(spec)
    calls = _calls(spec.num_flops, spec.num_bytes)
    fused, plain = (jax.jit(f)(low, up, position) for f in (rms_up_rope.rms_up_rope, _unfused))
    error = timing.require_small(timing.deviation(fused, plain), f"rms_up_rope on {spec.name}")
    ours, unfused = (
        timing.measure_chain(_chained(f), low, up, position, calls=calls)
        for f in (rms_up_rope.rms_up_rope, _unfused)
    )
    item = timing.Measurement(
        f"rms_up_rope, {rms_up_rope.choose(low, up)}",
        spec.name,
        ours,
        "norm, product, rotation in XLA",
        unfused,
        work=float(spec.num_bytes),
        work_unit="B",
        ceiling=ceilings.copy_bandwidth(),
        error=error,
    )
    return [item]


def experts(**sizes: Any) -> list[timing.Measurement]:
    """Times the chosen implementation against every other that runs, at the sizes of a `Spec`."""
    spec = moe_specs.Spec(**sizes)
    x, *rest = moe_specs.make(spec)
    calls = _calls(spec.num_flops, 6 * spec.E * spec.D * spec.F)
    chosen = moe.choose(x.dtype)
    error = timing.require_small(_error_of_experts(x, *rest), f"{chosen} on {spec.name}")

    def grouped(i: jax.Array, x: jax.Array, *rest: jax.Array, impl: moe.Impl) -> jax.Array:
        return moe.grouped_swiglu(x, *rest, impl=impl)

    def timed(impl: moe.Impl) -> timing.Timing:
        return timing.measure_chain(functools.partial(grouped, impl=impl), x, *rest, calls=calls)

    common = {
        "name": f"grouped_swiglu, {chosen}",
        "shape": spec.name,
        "ours": timed(chosen),
        "work": float(spec.num_flops),
        "work_unit": "FLOP",
        "ceiling": ceilings.matmul_flops(spec.dtype),
        "error": error,
    }
    others = [impl for impl in moe.IMPLS if impl != chosen and not moe.why_not(impl, x.dtype)]
    return [
        timing.Measurement(**common, rival_name=impl, rival=timed(impl)) for impl in others
    ] or [timing.Measurement(**common)]


def _error_of_experts(x: jax.Array, *rest: jax.Array) -> float:
    """Of the first rows: the reference multiplies every row with every expert."""
    few = min(x.shape[0], 256)
    *weights, sizes = rest

    @jax.jit
    def both(x: jax.Array, weights: list[jax.Array], sizes: jax.Array) -> tuple:
        begin = jnp.minimum(jnp.cumsum(sizes), few)
        sizes = jnp.diff(begin, prepend=jnp.zeros(1, begin.dtype)).astype(jnp.int32)
        operands = (x[:few], *weights, sizes)
        return moe.grouped_swiglu(*operands), moe_ref.grouped_swiglu(*operands)

    return timing.deviation(*both(x, weights, sizes))


def _unfused(low: jax.Array, up: jax.Array, position: jax.Array) -> jax.Array:
    """The same with the norm before the product, each step as it is usually written."""
    R, H, C = up.shape
    wide = low.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-5)
    x = (normed.astype(low.dtype) @ up.reshape(R, H * C)).reshape(-1, H, C).astype(jnp.float32)
    half = jnp.arange(C // 2, dtype=jnp.float32) / (C // 2)
    angle = position.astype(jnp.float32)[:, None, None] * (5e5**-half)[None, None]
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(low.dtype)


def _chained(f: Callable) -> Callable:
    """Brings the queries back to the width of their space, by a sum that reads all of them."""

    def one(i, low, up, position):
        q = f(low, up, position)
        folded = q.reshape(low.shape[0], -1, low.shape[1]).sum(axis=1)
        return low + folded * jnp.asarray(1e-6, low.dtype)

    return one


def _calls(flops: float, num_bytes: float) -> int:
    """Calls in one program: about 20 ms of them; one on a CPU."""
    if jax.default_backend() == "cpu":
        return 1
    return max(1, min(200, round(0.02 / max(flops / 4e14, num_bytes / 2.5e12))))
