"""Timings of prefill attention, forward and backward, against cuDNN and JAX's kernels."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from experiments.bench import ceilings, timing
from jaxlab.kernels.mqa_prefill import api, ref, specs  # pyright: ignore[reportMissingImports]
from jaxlab.kernels.mqa_prefill.specs import Spec  # pyright: ignore[reportMissingImports]

SUMMARY = "Prefill attention with one key head: share of the product's FLOPs, against cuDNN"


def run(out: pathlib.Path) -> list[timing.Measurement]:
    """Times what this machine can: a small grid on a CPU, all slices on an accelerator."""
    del out
    if jax.default_backend() == "cpu":
        return cells(specs.ON_CPU)
    return [*ceilings.measured(), *whole(), *chunked()]


def whole() -> list[timing.Measurement]:
    """Whole prompts, an entry of the accelerator suite."""
    return cells(specs.GRID)


def chunked() -> list[timing.Measurement]:
    """The last chunk of a long prompt."""
    return cells(specs.CHUNKED)


def check() -> dict[str, float]:
    """Every implementation that runs here against the reference, and the derivative."""
    found = {}
    for spec in (Spec(2, 300), Spec(1, 257, 700), Spec(2, 200, H=16, C=128)):
        q, *rest = specs.make(spec)
        exact = functools.partial(ref.forward, scale=spec.C**-0.5)
        want = jax.jit(exact)(q, *rest)[0]
        for impl in api.IMPLS:
            if not api.why_not(impl, q):
                f = jax.jit(functools.partial(api.mqa_prefill, impl=impl))
                error = timing.deviation(f(q, *rest), want)
                found[f"{impl}: {spec.name}"] = error
                if not error <= 2e-2:
                    raise AssertionError(f"{impl} on {spec.name} is off by {error:.3g}")
    return found


def cells(grid: Sequence[Spec]) -> list[timing.Measurement]:
    """Times ours beside every rival that runs, forward, then forward and backward."""
    records = []
    for spec in grid:
        q, *rest = specs.make(spec)
        rivals = dict(_rivals(spec))
        for mode in ("forward", "forward and backward"):
            times = 1.0 if mode == "forward" else 3.5  # five products more, of two
            wrap = _identity if mode == "forward" else _and_backward
            calls = _calls(spec)
            ours = timing.measure_chain(wrap(_ours), q, *rest, calls=calls, repeats=5)
            error = None
            if mode == "forward" and spec.T + spec.start <= 2048:
                want = jax.jit(functools.partial(ref.forward, scale=spec.C**-0.5))(q, *rest)[0]
                error = timing.deviation(jax.jit(_ours)(0, q, *rest), want)
            common = {
                "name": f"mqa_prefill, {api.choose(q)}, {mode}",
                "shape": spec.name,
                "ours": ours,
                "work": times * spec.num_flops,
                "work_unit": "FLOP",
                "ceiling": ceilings.matmul_flops(spec.dtype),
                "error": error,
            }
            measured = []
            for name, rival in rivals.items():
                try:
                    timed = timing.measure_chain(wrap(rival), q, *rest, calls=calls, repeats=5)
                except Exception as why:  # a rival's own limits, of which there are many kinds
                    print(f"{name}, {mode}: not on {spec.name}: {str(why).splitlines()[0][:150]}")
                    continue
                measured.append(timing.Measurement(**common, rival_name=name, rival=timed))
            records += measured or [timing.Measurement(**common)]
    return records


def _ours(i, q, k, v, q_start, lens):
    return api.mqa_prefill(q, k, v, q_start, lens)


def _identity(f: Callable) -> Callable:
    return f


def _and_backward(f: Callable) -> Callable:
    """Chains the derivative with respect to q; those of k and v are added, so that they are due."""

    def both(i, q, k, v, q_start, lens):
        out, pull = jax.vjp(lambda q, k, v: f(i, q, k, v, q_start, lens), q, k, v)
        dq, dk, dv = pull(out)
        return dq + (jnp.sum(dk) + jnp.sum(dv)) * jnp.asarray(1e-6, dq.dtype)

    return both


def _rivals(spec: Spec) -> Iterator[tuple[str, Callable]]:
    """`jax.nn.dot_product_attention`, and tokamax where it is installed; whole prompts only."""
    if spec.start:
        return
    on_gpu = jax.default_backend() == "gpu"

    def dense(i, q, k, v, q_start, lens):
        return jax.nn.dot_product_attention(
            q,
            k[:, :, None],
            v[:, :, None],
            is_causal=True,
            implementation="cudnn" if on_gpu else "xla",
        )

    yield "cuDNN" if on_gpu else "jax.nn", dense
    try:
        import tokamax  # pyright: ignore[reportMissingImports]
    except ImportError:
        return

    def other(i, q, k, v, q_start, lens):
        return tokamax.dot_product_attention(q, k[:, :, None], v[:, :, None], is_causal=True)

    yield "tokamax", other


def _calls(spec: Spec) -> int:
    """Calls in one program: about 20 ms of them; one on a CPU."""
    if jax.default_backend() == "cpu":
        return 1
    return max(1, min(50, round(0.02 * 3e14 / spec.num_flops)))
