"""Oracles for prefill attention: jax.nn's attention, a NumPy loop, autodiff, the decode kernel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxlab.kernels import compat
from jaxlab.kernels.mqa_decode import api as decode
from jaxlab.kernels.mqa_prefill import api, mosaic_gpu, mosaic_tpu, ref


def draw(rng, *, B=3, T=5, S=21, H=4, C=32, starts=(0, 7, 16), lens=(5, 12, 21), dtype=np.float32):
    """Random operands, NaN behind the lengths."""
    starts, lens = (np.asarray(x, np.int32) for x in (starts, lens))
    k, v = rng.normal(size=(2, B, S, C))
    for b in range(B):
        k[b, lens[b] :] = v[b, lens[b] :] = np.nan
    arrays = (jnp.asarray(x, dtype) for x in (rng.normal(size=(B, T, H, C)), k, v))
    return (*arrays, jnp.asarray(starts), jnp.asarray(lens))


def oracle(q, k, v, starts, lens, scale, causal=True):
    q, k, v = (np.asarray(jnp.asarray(x, jnp.float32), float) for x in (q, k, v))
    out, lse2 = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    for b, t in itertools.product(range(q.shape[0]), range(q.shape[1])):
        seen = int(min(lens[b], starts[b] + t + 1)) if causal else int(lens[b])
        if seen > 0:
            scores = scale * q[b, t] @ k[b, :seen].T
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, t] = weight @ v[b, :seen] / weight.sum(-1, keepdims=True)
            lse2[b, t] = (scores.max(-1) + np.log(weight.sum(-1))) / np.log(2.0)
    return out, lse2


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("block", [4, 21, 64])
def test_reference_is_attention(causal, block):
    operands = draw(np.random.default_rng(0), lens=(5, 0, 21))
    out, lse2 = jax.jit(lambda *x: ref.forward(*x, scale=0.3, causal=causal, block=block))(
        *operands
    )
    want, want_lse = oracle(*operands, 0.3, causal)
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_array_equal(np.isfinite(lse2), np.isfinite(want_lse))
    seen = np.isfinite(want_lse)
    np.testing.assert_allclose(np.asarray(lse2)[seen], want_lse[seen], atol=5e-6)


def test_equals_the_attention_of_jax():
    rng = np.random.default_rng(1)
    q, k, v = (
        jnp.asarray(rng.normal(size=s), jnp.float32)
        for s in ((2, 16, 8, 32), (2, 16, 32), (2, 16, 32))
    )
    ours, theirs = jax.jit(
        lambda q, k, v: (
            api.mqa_prefill(q, k, v),
            jax.nn.dot_product_attention(q, k[:, :, None], v[:, :, None], is_causal=True),
        )
    )(q, k, v)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_gradient_is_that_of_plain_attention(causal, x64):
    """Against autodiff of dense softmax in float64; NaN behind a length stays without effect."""
    q, k, v, starts, lens = draw(np.random.default_rng(2), dtype=np.float64, lens=(0, 12, 21))
    t = jnp.asarray(np.random.default_rng(3).normal(size=q.shape))

    def plain(q, k, v):
        position = jnp.arange(k.shape[1], dtype=jnp.int32)
        exists = position[None] < lens[:, None]
        visible = jnp.broadcast_to(exists[:, None], (3, 5, 21))
        if causal:
            own = starts[:, None] + jnp.arange(5, dtype=jnp.int32)[None]
            visible = visible & (position[None, None] <= own[..., None])
        k, v = (jnp.where(exists[..., None], x, 0.0) for x in (k, v))
        scores = jnp.where(visible[:, :, None], 0.3 * jnp.einsum("bthc,bsc->bths", q, k), -1e30)
        p = jnp.where(visible[:, :, None], jax.nn.softmax(scores, axis=-1), 0.0)
        return jnp.einsum("bths,bsc->bthc", p, v)

    def ours(q, k, v):
        return api.mqa_prefill(q, k, v, starts, lens, scale=0.3, causal=causal)

    def loss(fn):
        return lambda *x: jnp.sum(t * jnp.sin(fn(*x)))

    got, want = jax.jit(
        lambda *x: tuple(jax.value_and_grad(loss(f), argnums=(0, 1, 2))(*x) for f in (ours, plain))
    )(q, k, v)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("block", [4, 512])
def test_backward_in_blocks(block, x64):
    """Blocks of keys do not change the derivative."""
    operands = draw(np.random.default_rng(4), dtype=np.float64)
    grad = jnp.asarray(np.random.default_rng(5).normal(size=operands[0].shape))

    def run(block):
        out, lse2 = ref.forward(*operands, scale=0.3, block=block)
        return ref.backward(*operands, out, lse2, grad, scale=0.3, block=block)

    for a, b in zip(run(block), run(21), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


def test_token_by_token_is_prefill():
    """The last tokens through the paged decode kernel, one and several at a time."""
    rng = np.random.default_rng(6)
    q, k, v = (
        jnp.asarray(rng.normal(size=s), jnp.float32)
        for s in ((2, 32, 4, 32), (2, 32, 32), (2, 32, 32))
    )
    whole = jax.jit(api.mqa_prefill)(q, k, v)
    pages = [x.reshape(4, 16, 32) for x in (k, v)]
    table = jnp.asarray([[0, 1], [2, 3]], jnp.int32)
    for start, chunk in ((31, 1), (20, 5), (0, 32)):
        lens = jnp.full((2,), start + chunk, jnp.int32)
        part = jax.jit(decode.mqa_decode)(q[:, start : start + chunk], *pages, table, lens)
        np.testing.assert_allclose(part, whole[:, start : start + chunk], atol=2e-6)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_tpu_kernel_in_the_interpreter(causal):
    operands = draw(np.random.default_rng(7), S=300, starts=(0, 200, 295), lens=(5, 0, 300))
    run = jax.jit(
        lambda *x: mosaic_tpu.forward(
            *x, scale=0.3, causal=causal, rows_block=16, keys_block=128, interpret=True
        )
    )
    out, lse2 = run(*operands)
    want, want_lse = oracle(*operands, 0.3, causal)
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_array_equal(np.isfinite(lse2), np.isfinite(want_lse))


@pytest.mark.parametrize(
    "H, causal", [(64, True), pytest.param(16, False, marks=pytest.mark.slow)], ids=["64", "16"]
)
def test_hopper_kernel_in_the_interpreter(H, causal):
    """Blocks with and without mask, a length inside a block, an empty request."""
    operands = draw(
        np.random.default_rng(8),
        B=2,
        T=3,
        S=150,
        H=H,
        starts=(0, 140),
        lens=(0, 143),
        dtype=jnp.bfloat16,
    )
    out, lse2 = mosaic_gpu.forward(*operands, scale=0.3, causal=causal, interpret=True)
    want, want_lse = oracle(*operands, 0.3, causal)
    np.testing.assert_allclose(jnp.asarray(out, jnp.float32), want, atol=1e-2)
    seen = np.isfinite(want_lse)
    np.testing.assert_allclose(np.asarray(lse2)[seen], want_lse[seen], atol=1e-2)


@pytest.mark.parametrize(
    "kernel, platform, target",
    [(mosaic_gpu, "cuda", "mosaic_gpu"), (mosaic_tpu, "tpu", "tpu_custom_call")],
    ids=["hopper", "tpu"],
)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_kernels_lower(kernel, platform, target, causal):
    shapes = [((2, 512, 64, 256), jnp.bfloat16)] + [((2, 1000, 256), jnp.bfloat16)] * 2
    specs = [jax.ShapeDtypeStruct(*s) for s in (*shapes, ((2,), jnp.int32), ((2,), jnp.int32))]
    fn = jax.jit(lambda *x: kernel.forward(*x, scale=0.1, causal=causal))
    with compat.target():
        assert target in fn.trace(*specs).lower(lowering_platforms=(platform,)).as_text()


def test_bad_input_is_named():
    q, k, v, starts, lens = draw(np.random.default_rng(9))
    for message, arguments, options in (
        ("lens must be in 0 to 21", (q, k, v, starts, lens + 1), {}),
        ("q_start must be in 0 to", (q, k, v, starts - 1, lens), {}),
        ("q_start must be in 0 to", (q, k, v, starts + (2**31 - 18), lens), {}),
        ("scale must be a Python number", (q, k, v), {"scale": True}),
        ("must be int32", (q, k, v, starts.astype(jnp.int16), lens), {}),
        ("multiple of 16", (q[..., :8], k[..., :8], v[..., :8]), {}),
        ("agree in B and C", (q[:2], k, v), {}),
        ("k and v", (q, k, v[:, :3]), {}),
        ("share one dtype", (q.astype(jnp.bfloat16), k, v), {}),
        ("no size may be zero", (q[:, :0], k, v), {}),
        ("impl must be one of", (q, k, v), {"impl": "triton"}),
    ):
        with pytest.raises(ValueError, match=message):
            api.mqa_prefill(*arguments, **options)
    with pytest.raises(NotImplementedError, match="backend is cpu"):
        api.mqa_prefill(q, k, v, impl="mosaic_gpu")
    assert api.choose(q) == "xla"


def test_a_chunk_over_pages_is_the_decode_kernel():
    """Gathered pages against paged decoding: ragged, empty, shorter than the chunk."""
    rng = np.random.default_rng(9)
    lens = jnp.asarray([0, 3, 20, 31], jnp.int32)
    table = jnp.asarray(rng.permutation(16).reshape(4, 4), jnp.int32)
    k, v = (jnp.asarray(rng.normal(size=(16, 8, 16)), jnp.float32) for _ in range(2))
    q = jnp.asarray(rng.normal(size=(4, 5, 3, 16)), jnp.float32)
    got = jax.jit(api.mqa_prefill_paged)(q, k, v, table, lens)
    want = jax.jit(decode.mqa_decode)(q, k, v, table, lens)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.all(got[0] == 0.0) and np.all(got[1, :2] == 0.0)
    scales = {
        name: jnp.asarray(rng.uniform(0.5, 2.0, (16, 8)), jnp.float32)
        for name in ("k_scale", "v_scale")
    }
    k8, v8 = (x.astype(jnp.float8_e4m3fn) for x in (k, v))
    got = jax.jit(lambda *x: api.mqa_prefill_paged(*x, **scales))(q, k8, v8, table, lens)
    want = jax.jit(lambda *x: decode.mqa_decode(*x, **scales))(q, k8, v8, table, lens)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.usefixtures("float16")
def test_a_chunk_of_half_precision_meets_scales_of_any_size():
    """Keys and values that float16 does not hold, each request of another size."""
    rng = np.random.default_rng(10)
    size = np.array([1e-3, 1.0, 1e3, 3e4])
    table = jnp.arange(8, dtype=jnp.int32).reshape(4, 2)
    lens = jnp.full((4,), 16, jnp.int32)
    k, v = (jnp.asarray(rng.normal(size=(8, 8, 16)) * 100.0, jnp.float8_e4m3fn) for _ in range(2))
    q = jnp.asarray(rng.normal(size=(4, 5, 3, 16)) * 1e-2 / size[:, None, None, None], jnp.float16)
    scales = jnp.asarray(np.repeat(size, 2)[:, None] * np.ones((1, 8)), jnp.float32)
    options = {"scale": 0.3, "k_scale": scales, "v_scale": jnp.ones((8, 8))}
    got = jax.jit(lambda *x: api.mqa_prefill_paged(*x, **options))(q, k, v, table, lens)
    keys, values = (np.asarray(x.astype(jnp.float32)).reshape(4, 16, 16) for x in (k, v))
    starts = np.full(4, 11)
    want, _ = oracle(q, keys * size[:, None, None], values, starts, np.asarray(lens), 0.3)
    np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())


def test_bad_pages_are_named():
    rng = np.random.default_rng(9)
    lens, table = jnp.asarray([3, 20], jnp.int32), jnp.arange(8, dtype=jnp.int32).reshape(2, 4)
    k, v = (jnp.asarray(rng.normal(size=(8, 8, 16)), jnp.float32) for _ in range(2))
    q = jnp.asarray(rng.normal(size=(2, 5, 3, 16)), jnp.float32)
    ones = jnp.ones((8, 8))
    for message, arguments, options in (
        ("page numbers in 0 to 7", (q, k, v, table + 100, lens), {}),
        ("lens must be in 0 to 32", (q, k, v, table, lens + 30), {}),
        ("v_pages", (q, k, v[:2], table, lens), {}),
        ("need k_scale", (q, *(x.astype(jnp.float8_e4m3fn) for x in (k, v)), table, lens), {}),
        ("take no k_scale", (q, k, v, table, lens), {"k_scale": ones, "v_scale": ones}),
        ("pages must both be", (q, *(x.astype(jnp.bfloat16) for x in (k, v)), table, lens), {}),
        ("page_table must be int32", (q, k, v, table.astype(jnp.uint8), lens), {}),
        (r"q must be \[B, T, H, C\]", (q[0], k, v, table, lens), {}),
    ):
        with pytest.raises(ValueError, match=message):
            api.mqa_prefill_paged(*arguments, **options)
    checked = jax.jit(checkify.checkify(api.mqa_prefill_paged))
    checked(q, k, v, table, lens)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="page numbers"):
        checked(q, k, v, table + 1, lens)[0].throw()


def test_keys_that_do_not_exist_are_not_counted():
    """A traced length beyond the keys: those there are, and an error under checkify."""
    q, k = jnp.ones((1, 2, 1, 16)), jnp.ones((1, 600, 16))
    far = jnp.asarray([3000], jnp.int32)
    run = jax.jit(lambda lens: api.mqa_prefill(q, k, k, lens=lens, causal=False))
    np.testing.assert_allclose(run(far), 1.0, rtol=1e-6)
    checked = jax.jit(checkify.checkify(lambda lens: api.mqa_prefill(q, k, k, lens=lens)))
    with pytest.raises(checkify.JaxRuntimeError, match="lens must be in 0 to"):
        checked(far)[0].throw()
