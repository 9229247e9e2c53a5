"""The public functions on machines that this one is not: what they choose lowers there."""

import jax
import jax.numpy as jnp
import pytest

from jaxlab.kernels import compat
from jaxlab.kernels.mqa_decode import mqa_decode
from jaxlab.kernels.mqa_prefill import mqa_prefill, mqa_prefill_paged
from jaxlab.kernels.rms_up_rope import rms_up_rope

FP8 = jnp.float8_e4m3fn
MACHINES = {
    "hopper": ("gpu", "cuda", 9.0, "mosaic_gpu"),
    "ampere": ("gpu", "cuda", 8.0, "triton"),
    "tpu": ("tpu", "tpu", 0.0, "tpu_custom_call"),
}


@pytest.fixture(params=MACHINES)
def machine(request, monkeypatch):
    """Pretends that the default backend is another; returns a function that lowers for it."""
    backend, platform, capability, target = MACHINES[request.param]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(compat, "compute_capability", lambda: capability)
    monkeypatch.setattr(compat, "num_processors", lambda: 132)

    def lower(f, *shapes):
        specs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        with compat.target():
            fresh = jax.jit(lambda *x: f(*x))  # a trace of f may be of another machine
            return fresh.trace(*specs).lower(lowering_platforms=(platform,)).as_text()

    return request.param, target, lower


def paged(dtype, *, S_q=1, H=64, C=256, page=64, q_dtype=jnp.bfloat16):
    B, N, P = 4, 40, 8
    shapes = [((B, S_q, H, C), q_dtype), *[((N, page, C), dtype)] * 2]
    shapes += [((B, P), jnp.int32), ((B,), jnp.int32)]
    scales = [((N, page), jnp.float32)] * 2 if jnp.dtype(dtype).itemsize == 1 else []
    return [*shapes, *scales]


def scaled(f, **options):
    def call(q, k, v, table, lens, k_scale=None, v_scale=None):
        return f(q, k, v, table, lens, k_scale=k_scale, v_scale=v_scale, **options)

    return call


@pytest.mark.parametrize("wide", [False, True], ids=["x32", "x64"])
@pytest.mark.filterwarnings("ignore:.*Triton:DeprecationWarning")
def test_decoding(machine, wide):
    """In bfloat16 and in eight bits; 64-bit integers, where switched on, change nothing."""
    name, target, lower = machine
    with jax.enable_x64(wide):
        assert target in lower(scaled(mqa_decode), *paged(jnp.bfloat16))
        eight_bits = lower(scaled(mqa_decode), *paged(FP8, S_q=2))
        assert (target in eight_bits) == (name != "ampere")  # Triton has no FP8 there
        alone = lower(scaled(mqa_decode), *paged(jnp.float32, H=16, C=128, q_dtype=jnp.float32))
        assert ("triton" in alone) == (name != "tpu")


@pytest.mark.parametrize("wide", [False, True], ids=["x32", "x64"])
def test_prefill_and_projection(machine, wide):
    """Forward, backward, and a chunk over pages in eight bits; on Ampere XLA computes them."""
    name, target, lower = machine
    whole = [((2, 300, 64, 256), jnp.bfloat16), *[((2, 1000, 256), jnp.bfloat16)] * 2]
    whole += [((2,), jnp.int32)] * 2
    query = [((100, 2048), jnp.bfloat16), ((2048, 64, 256), jnp.bfloat16), ((100,), jnp.int32)]

    def total(f, x, *rest):
        return jnp.sum(f(x, *rest).astype(jnp.float32))

    with jax.enable_x64(wide):
        for f, shapes in ((mqa_prefill, whole), (rms_up_rope, query)):
            assert (target in lower(f, *shapes)) == (name != "ampere")
            # The projection is linear in its weights: its derivative needs no forward pass.
            gradient = lower(lambda *x, f=f: jax.grad(total, argnums=1)(f, *x), *shapes)
            assert (target in gradient) == (f is mqa_prefill and name != "ampere")
        chunk = lower(scaled(mqa_prefill_paged), *paged(FP8, S_q=32))
        assert (target in chunk) == (name != "ampere")
