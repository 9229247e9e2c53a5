"""Timings of the fused query up-projection and of grouped SwiGLU against plain XLA."""

import pathlib
from collections.abc import Callable, Sequence

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
    if jax.default_backend() == "cpu":
        return [*queries(rms_specs.ON_CPU), *experts(moe_specs.ON_CPU)]
    return [*queries(), *experts()]


def queries(grid: Sequence[rms_specs.Spec] = rms_specs.GRID) -> list[timing.Measurement]:
    """Norm, product and rotation in one kernel against the same in XLA, an entry of the suite."""
    records = []
    for spec in grid:
        low, up, position = rms_specs.make(spec)
        calls = _calls(spec.num_flops, spec.num_bytes)
        ours = timing.measure_chain(
            _chained(rms_up_rope.rms_up_rope), low, up, position, calls=calls
        )
        unfused = timing.measure_chain(_chained(_unfused), low, up, position, calls=calls)
        fused, plain = (
            jax.jit(f)(low, up, position).astype(jnp.float32)
            for f in (rms_up_rope.rms_up_rope, _unfused)
        )
        records.append(
            timing.Measurement(
                f"rms_up_rope, {rms_up_rope.choose(low, up)}",
                spec.name,
                ours,
                "norm, product, rotation in XLA",
                unfused,
                work=float(spec.num_bytes),
                work_unit="B",
                ceiling=ceilings.copy_bandwidth(),
                error=float(jnp.max(jnp.abs(fused - plain)) / jnp.max(jnp.abs(plain))),
            )
        )
    return records


def experts(grid: Sequence[moe_specs.Spec] = moe_specs.GRID) -> list[timing.Measurement]:
    """The implementation that is chosen against every other that runs, an entry of the suite."""
    records = []
    for spec in grid:
        x, *rest = moe_specs.make(spec)
        calls = _calls(spec.num_flops, 6 * spec.E * spec.D * spec.F)
        chosen = moe.choose(x.dtype)

        def timed(impl: moe.Impl, x=x, rest=rest, calls=calls) -> timing.Timing:
            return timing.measure_chain(
                lambda i, x, *rest: moe.grouped_swiglu(x, *rest, impl=impl), x, *rest, calls=calls
            )

        few = min(x.shape[0], 256)
        begin = jnp.minimum(jnp.cumsum(rest[3]), few)
        sizes = jnp.diff(begin, prepend=jnp.zeros(1, begin.dtype)).astype(jnp.int32)
        got = moe.grouped_swiglu(x[:few], *rest[:3], sizes)
        want = moe_ref.grouped_swiglu(x[:few], *rest[:3], sizes)
        error = float(
            jnp.max(jnp.abs(got.astype(jnp.float32) - want.astype(jnp.float32)))
            / jnp.max(jnp.abs(want.astype(jnp.float32)))
        )
        ours = timed(chosen)
        for impl in moe.IMPLS:
            if impl != chosen and not moe.why_not(impl, x.dtype):
                records.append(
                    timing.Measurement(
                        f"grouped_swiglu, {chosen}",
                        spec.name,
                        ours,
                        impl,
                        timed(impl),
                        work=float(spec.num_flops),
                        work_unit="FLOP",
                        ceiling=ceilings.matmul_flops(spec.dtype),
                        error=error,
                    )
                )
    return records


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
