"""Timings of prefill attention, forward and backward, against cuDNN and JAX's kernels."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import ceilings, timing
from jaxlab.kernels.mqa_prefill import api, ref, specs  # pyright: ignore[reportMissingImports]
from jaxlab.kernels.mqa_prefill.specs import Spec  # pyright: ignore[reportMissingImports]

SUMMARY = "Prefill attention with one key head: share of the product's FLOPs, against cuDNN"


FORWARD, BOTH = MODES = ("forward", "forward and backward")


def run(out: pathlib.Path) -> list[timing.Measurement]:
    """Times what this machine can: a small grid on a CPU, all named shapes on an accelerator."""
    del out
    if jax.default_backend() == "cpu":
        return cells(specs.ON_CPU)
    return [*ceilings.measured(), *cells((*specs.GRID, *specs.CHUNKED))]


def cells(grid: Sequence[Spec]) -> list[timing.Measurement]:
    """Times ours beside every rival that runs, forward, then forward and backward."""
    return [item for spec in grid for mode in MODES for item in _cell(mode, spec)]


def cell(mode: str, **sizes: Any) -> list[timing.Measurement]:
    """Times one mode at the sizes of a `Spec`."""
    return _cell(mode, Spec(**sizes))


def check(**sizes: Any) -> dict[str, float]:
    """Compares every implementation that runs here, forward and backward, with the reference.

    Raises:
        AssertionError: if one is off.
    """
    spec = Spec(**sizes)
    q, k, v, *rest = specs.make(spec)

    def with_derivatives(f: Callable) -> Callable:
        def both(q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array) -> tuple:
            out, pull = jax.vjp(lambda *x: f(*x, *rest).astype(q.dtype), q, k, v)
            return out, *pull(out)

        return jax.jit(both)

    want = with_derivatives(_exact(spec))(q, k, v, *rest)
    found = {}
    for impl in api.IMPLS:
        if api.why_not(impl, q):
            continue
        f = with_derivatives(functools.partial(api.mqa_prefill, impl=impl))
        errors = map(timing.deviation, f(q, k, v, *rest), want)
        for what, error in zip(("average", "dq", "dk", "dv"), errors, strict=True):
            most = 2e-2 if what == "average" else 5e-2
            name = f"{what} of {impl}"
            found[name] = timing.require_small(error, f"{name} on {spec.name}", most)
    return found


def _cell(mode: str, spec: Spec) -> list[timing.Measurement]:
    q, *rest = specs.make(spec)
    wrap, times = (_identity, 1.0) if mode == FORWARD else (_and_backward, 3.5)
    calls, error = _calls(spec), None
    program = timing.chain(wrap(_ours))
    if mode == FORWARD:
        error = timing.deviation(timing.once(program, q, *rest), _exact(spec)(q, *rest))
        timing.require_small(error, spec.name)
    ours = timing.measure_program(program, q, *rest, calls=calls, repeats=5)
    rivals, silent = [], []
    for name, rival in _rivals(spec):
        try:
            timed = timing.measure_chain(wrap(rival), q, *rest, calls=calls, repeats=5)
            rivals.append((name, timed))
        except Exception as why:  # a rival's own limits, of which there are many kinds
            silent.append(f"{name} does not run: {str(why).partition(chr(10))[0][:150]}")
    common = {
        "name": f"mqa_prefill, {api.choose(q)}, {mode}",
        "shape": spec.name,
        "ours": ours,
        "work": times * spec.num_flops,  # backward: five products more, of two
        "work_unit": "FLOP",
        "ceiling": ceilings.matmul_flops(spec.dtype),
        "error": error,
        "note": " ".join(silent),
    }
    return [
        timing.Measurement(**common, rival_name=name, rival=timed) for name, timed in rivals
    ] or [timing.Measurement(**common)]


def _exact(spec: Spec) -> Callable[..., jax.Array]:
    return jax.jit(lambda *x: ref.forward(*x, scale=spec.C**-0.5)[0])


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
