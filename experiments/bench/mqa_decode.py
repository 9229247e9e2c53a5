"""Timings of paged decode attention against cuDNN, JAX's paged attention, and a gather in XLA."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import ceilings, timing
from jaxlab.kernels.mqa_decode import api, plan, ref, specs  # pyright: ignore[reportMissingImports]
from jaxlab.kernels.mqa_decode.specs import Spec, Workload  # pyright: ignore[reportMissingImports]

SUMMARY = "Paged decode attention: share of the copy bandwidth, against cuDNN and JAX's kernels"


def run(out: pathlib.Path) -> list[timing.Measurement]:
    """Times what this machine can: a small grid on a CPU, all named shapes on an accelerator."""
    del out
    if jax.default_backend() == "cpu":
        return cells(specs.ON_CPU)
    named = (*specs.GRID, *specs.RAGGED, *specs.EIGHT_BITS, *specs.VERIFY)
    return [*ceilings.measured(), *cells(named)]


def cell(*, cold_bytes: int | None = None, **sizes: Any) -> list[timing.Measurement]:
    """Times ours beside every rival at the sizes of a `Spec`; for `cold_bytes` see `specs.make`."""
    return _cell(Spec(**sizes), 10, cold_bytes)


def parts(*, cold_bytes: int | None = None, **sizes: Any) -> list[timing.Measurement]:
    """Times a call whole, with its plan given, its plan alone, and the merge alone."""
    spec = Spec(**sizes)
    work = specs.make(spec, cold_bytes=cold_bytes)
    calls, rest = _calls(work), _rest(work)
    plan_of = functools.partial(plan.decode_plan, page=spec.page)
    plans = jax.jit(jax.vmap(plan_of, in_axes=(None, 0)))(work.lens, work.tables)
    first = jax.tree.map(lambda x: x[0], plans)
    rows, num_slots = spec.S_q * spec.H, first.slot_request.shape[0]

    @jax.jit
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_out, key_lse = jax.random.split(key)
        shape = (num_slots, rows, spec.C)
        return jax.random.normal(key_out, shape), jax.random.normal(key_lse, shape[:2])

    out, lse2 = draw(jax.random.key(1))

    def given(i, q, k_pages, v_pages, tables, lens, plans):
        mine = jax.tree.map(lambda x: _turn(i, x), plans)
        return _ours(work, spec, None, mine)(i, q, k_pages, v_pages, tables, lens)

    # What a chain hands on must need all that a call returns.
    def planned(i, lens, tables):
        found = jax.tree.leaves(plan_of(lens, _turn(i, tables)))
        return lens + functools.reduce(jnp.minimum, [jnp.min(x) for x in found], jnp.int32(0))

    def merged(i, lse2, out, request):
        averages, sums = plan.merge_partials(out, lse2, request, spec.B)
        return lse2 + jnp.minimum(jnp.max(averages), 0.0) + jnp.minimum(jnp.max(sums), 0.0)

    name = f"mqa_decode, {api.choose(_call(work, spec))}"
    timed = {
        f"{name}, whole": (_ours(work, spec, None), work.q, *rest),
        f"{name}, plan given": (given, work.q, *rest, plans),
        "mqa_decode, plan alone": (planned, work.lens, work.tables),
        "mqa_decode, merge alone": (merged, lse2, out, first.slot_request),
    }
    return [
        timing.Measurement(
            name,
            spec.name,
            timing.measure_chain(*operands, calls=calls),
            note="Plan and merge alone: with a reduction of all that they return.",
        )
        for name, operands in timed.items()
    ]


def check(impl: api.Impl, *, cold_bytes: int | None = None, **sizes: Any) -> dict[str, float]:
    """Compares an implementation with the reference at the sizes of a `Spec`.

    Raises:
        NotImplementedError: if the implementation cannot run here.
        AssertionError: if it is off.
    """
    spec = Spec(**sizes)
    work = specs.make(spec, cold_bytes=cold_bytes)
    got = timing.once(timing.chain(_ours(work, spec, impl)), work.q, *_rest(work))
    error = timing.deviation(got, _exact(work, spec))
    timing.require_small(error, f"{impl} on {spec.name}", _most(spec))
    return {"largest error": error}


def cells(grid: Sequence[Spec], *, repeats: int = 10) -> list[timing.Measurement]:
    """Times ours beside every rival that runs, a record for each pair.

    A cell that fails is named in the note of the last record, and costs no other its figures.

    Raises:
        RuntimeError: if every cell fails.
    """
    records, failures = [], []
    for spec in grid:
        try:
            records += _cell(spec, repeats)
        except Exception as error:  # memory, compiler, a wrong result: of many kinds
            failures.append(f"{spec.name}: {_first_line(error)}")
    if not records:
        raise RuntimeError("; ".join(failures))
    if failures:
        note = f"{records[-1].note} Not measured: {'; '.join(failures)}."
        records[-1] = dataclasses.replace(records[-1], note=note)
    return records


def _cell(spec: Spec, repeats: int, cold_bytes: int | None = None) -> list[timing.Measurement]:
    work = specs.make(spec, cold_bytes=cold_bytes)
    calls = _calls(work)
    rest = _rest(work)
    program = timing.chain(_ours(work, spec, None))
    error = timing.deviation(timing.once(program, work.q, *rest), _exact(work, spec))
    timing.require_small(error, spec.name, _most(spec))
    ours = timing.measure_program(program, work.q, *rest, calls=calls, repeats=repeats)
    rivals, silent = [], []
    for name, rival, operands in (*_dense(work, spec), *_paged(work, spec)):
        try:
            timed = timing.measure_chain(rival, work.q, *operands, calls=calls, repeats=repeats)
            rivals.append((name, timed))
        except Exception as failure:  # a rival's own limits, of which there are many kinds
            silent.append(f"{name} does not run: {_first_line(failure)}")
    flops = work.num_flops / ours.median_s / 1e12
    common = {
        "name": f"mqa_decode, {api.choose(_call(work, spec))}",
        "shape": spec.name,
        "ours": ours,
        "work": float(work.num_bytes),
        "work_unit": "B",
        "ceiling": ceilings.copy_bandwidth(),
        "error": error,
        "note": f"{flops:.3g} TFLOP/s on {spec.name}. " + " ".join(silent),
    }
    return [
        timing.Measurement(**common, rival_name=name, rival=timed) for name, timed in rivals
    ] or [timing.Measurement(**common)]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:150]


def _rest(work: Workload) -> tuple:
    return work.k_pages, work.v_pages, work.tables, work.lens


def _call(work: Workload, spec: Spec) -> api.Call:
    return api.Call(
        spec.S_q,
        spec.H,
        spec.C,
        spec.page,
        work.q.dtype,
        work.k_pages.dtype,
        spec.kv == "direct",
        num_slots=work.k_pages.shape[0] * spec.page,
    )


def _ours(
    work: Workload, spec: Spec, impl: api.Impl | None, shares: plan.Plan | None = None
) -> Callable:
    """Returns `f(i, q, k_pages, v_pages, tables, lens)`; calls take the tables in turn."""

    def f(i, q, k_pages, v_pages, tables, lens):
        table = _turn(i, tables)
        return api.mqa_decode(
            q,
            k_pages,
            v_pages,
            table,
            lens,
            impl=impl,
            plan=shares,
            v_transposed=spec.kv == "direct",
            **work.scales,
        )

    return f


def _exact(work: Workload, spec: Spec) -> jax.Array:
    f = functools.partial(
        ref.mqa_decode, scale=spec.C**-0.5, v_transposed=spec.kv == "direct", **work.scales
    )
    return jax.jit(f)(work.q, work.k_pages, work.v_pages, work.tables[0], work.lens)[0]


def _most(spec: Spec) -> float:
    """The error that is allowed: products of eight bits err by some percent of a value."""
    return 0.1 if spec.kv == "direct" else 2e-2


def _dense(work: Workload, spec: Spec) -> Iterator[tuple[str, Callable, tuple]]:
    """Attention on a cache that was gathered before: cuDNN on a GPU, XLA on a CPU."""
    if spec.S_q > 1 or spec.kv not in ("bf16", "f32"):
        return
    S = work.tables.shape[2] * spec.page
    # One dense cache, which the device's own caches may hold where it is small, while ours are
    # always cold: a copy per call, or a choice among several, would be charged to the rival.
    caches = [
        jax.jit(lambda x, t: x[t].reshape(spec.B, S, 1, spec.C))(x, work.tables[0])
        for x in (work.k_pages, work.v_pages)
    ]
    on_gpu = jax.default_backend() == "gpu"

    def dense(i, q, k, v, lens):
        return jax.nn.dot_product_attention(
            q, k, v, key_value_seq_lengths=lens, implementation="cudnn" if on_gpu else "xla"
        )

    yield "cuDNN, dense cache" if on_gpu else "jax.nn, dense cache", dense, (*caches, work.lens)

    def gathered(i, q, k_pages, v_pages, tables, lens):
        table = _turn(i, tables)
        k, v = (x[table].reshape(spec.B, S, 1, spec.C) for x in (k_pages, v_pages))
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lens)

    yield "jax.nn on gathered pages", gathered, _rest(work)


def _paged(work: Workload, spec: Spec) -> Iterator[tuple[str, Callable, tuple]]:
    """JAX's own paged attention in Triton."""
    if jax.default_backend() != "gpu" or spec.S_q > 1 or spec.kv != "bf16":
        return
    try:
        from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention
    except ImportError:
        return

    def paged(i, q, k_pages, v_pages, tables, lens):
        scaled = q[:, 0] * jnp.asarray(spec.C**-0.5, q.dtype)
        table = _turn(i, tables)
        return paged_attention(scaled, k_pages[None], v_pages[None], table, lens)[:, None]

    yield "JAX's paged_attention (Triton)", paged, _rest(work)


def _calls(work: Workload) -> int:
    """Calls in one program: about 20 ms of them and all tables; one on a CPU.

    There XLA would prepare a cache that does not change once for all calls.
    """
    if jax.default_backend() == "cpu":
        return 1
    return max(work.tables.shape[0], min(200, math.ceil(0.02 * 2e12 / work.num_bytes)))


def _turn(i: jax.Array, tables: jax.Array) -> jax.Array:
    """The table of call i; what it leads to depends on i, so that it is not done once for all."""
    return tables[i % tables.shape[0]] + jnp.minimum(i, 0).astype(tables.dtype)
