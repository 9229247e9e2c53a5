"""What the cells of the kernels time: jitted programs without copies, checked before they count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import ceilings, mqa_decode, mqa_prefill, projections, timing
from jaxlab.kernels import compat
from jaxlab.kernels.mqa_decode import api, specs

DECODE = {"B": 2, "S": 100, "H": 2, "C": 16}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(specs, "COLD_BYTES", 100_000)
    monkeypatch.setattr(ceilings, "copy_bandwidth", lambda: 1e10)
    monkeypatch.setattr(ceilings, "matmul_flops", lambda dtype: 1e11)


def test_a_chain_copies_nothing():
    """Ten passes of x + 1 move ten arrays, read and written: x is taken over, not saved."""
    x = jnp.zeros(1000)
    program = timing.chain(lambda i, x: x + 1.0)
    compiled = program.lower(np.int32(10), x).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == x.nbytes
    assert "f32[1000]{0} copy(" not in compiled.as_text()
    np.testing.assert_array_equal(timing.once(program, x), 1.0)
    np.testing.assert_array_equal(x, 0.0)  # the caller's own stays
    timed = timing.measure_program(program, x, calls=10, repeats=2)
    assert timed.n == 2 and timed.median_s > 0.0
    np.testing.assert_array_equal(x, 0.0)


def test_ceilings_count_what_their_chains_do(monkeypatch):
    seen = []

    def measure(fn, x, *args, calls, repeats):
        seen.append((fn(0, x[:8], *(a[:, :8] for a in args)).shape, x.nbytes, calls))
        return timing.Timing(0.0, 0.5, 0.1, repeats)

    monkeypatch.setattr(timing, "measure_chain", measure)
    for made in (ceilings.copy, ceilings.product):
        made.cache_clear()
    copy, product = ceilings.measured()
    for made in (ceilings.copy, ceilings.product):
        made.cache_clear()
    assert copy.rate == 2 * seen[0][1] / 0.5 and copy.ours.iqr_s == 0.1
    assert product.rate == 2 * 1024**3 / 0.5 and seen[1][0] == (8, 8)


def test_every_timed_function_is_one_program(tmp_path):
    """A cell lowers its operands, ours, two rivals, the reference, copies: not every operation."""
    lowered = []

    def listen(event, seconds, **_):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            lowered.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        items = mqa_decode.cell(kv="f32", **DECODE)
        assert len(items) == 2 and all(item.error < 2e-2 for item in items)
        assert len(lowered) <= 20, len(lowered)  # 111 where plan, merge and errors are eager
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_parts_of_a_call_are_timed_apart():
    names = [item.name for item in mqa_decode.parts(lengths="lognormal", **DECODE)]
    assert names == [
        "mqa_decode, xla, whole",
        "mqa_decode, xla, plan given",
        "mqa_decode, plan alone",
        "mqa_decode, merge alone",
    ]


def test_checks_compare_with_the_reference_and_raise():
    assert mqa_decode.check("xla", kv="fp8", **DECODE)["largest error"] < 2e-2
    with pytest.raises(NotImplementedError, match="backend is cpu"):
        mqa_decode.check("mosaic_gpu", **DECODE)
    found = mqa_prefill.check(B=1, T=5, H=2, C=16, dtype="float32")
    assert list(found) == [f"{what} of xla" for what in ("average", "dq", "dk", "dv")]
    assert max(found.values()) < 1e-5


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    api = mqa_decode.api
    right = api.mqa_decode
    monkeypatch.setattr(api, "mqa_decode", lambda *x, **options: 1.1 * right(*x, **options))
    with pytest.raises(AssertionError, match="off by"):
        mqa_decode.cell(kv="f32", **DECODE)
    for kernel, name in (
        (projections.rms_up_rope, "rms_up_rope"),
        (projections.moe, "grouped_swiglu"),
    ):
        wrong = functools.partial(
            lambda f, *x, **options: 1.1 * f(*x, **options), getattr(kernel, name)
        )
        monkeypatch.setattr(kernel, name, wrong)
    with pytest.raises(AssertionError, match="rms_up_rope on .* is off by"):
        projections.queries(N=4, R=8, H=2, C=4, dtype="float32")
    with pytest.raises(AssertionError, match="blocked on .* is off by"):
        projections.experts(N=5, E=3, D=8, F=6, dtype="float32")


def test_the_implementation_that_is_named_is_the_one_that_is_timed(monkeypatch):
    """Triton cannot count the elements of so many pages, and XLA computes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compat, "compute_capability", lambda: 8.0)
    for num_pages, named in ((2**16, "triton"), (2**17, "xla")):
        pages = jax.ShapeDtypeStruct((num_pages, 64, 256), jnp.bfloat16)
        work = specs.Workload(pages, pages, pages, None, None, {}, 0, 0)
        spec = specs.Spec(B=64, S=131_072)
        assert api.choose(mqa_decode._call(work, spec)) == named


def test_experts_and_projections_agree_with_their_rivals():
    (item,) = projections.experts(N=5, E=3, D=8, F=6, dtype="float32")
    assert item.rival_name == "ragged_dot" and item.error < 1e-5 and item.work == 6 * 5 * 3 * 8 * 6
    (item,) = projections.queries(N=4, R=8, H=2, C=4, dtype="float32")
    assert item.error < 1e-5
