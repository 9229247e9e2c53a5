"""Oracles for paged decode attention: a NumPy loop in float64, closed forms, poison, lowering."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxlab.kernels import compat
from jaxlab.kernels.mqa_decode import api, mosaic_gpu, mosaic_tpu, plan, ref, triton

FP8 = jnp.float8_e4m3fn


def draw(rng, *, lens, S_q=1, H=8, C=32, page=16, P=3, dtype=np.float32, fp8=False, slack=0):
    """Random operands whose unused slots and pages are NaN, and dense keys and values."""
    lens = np.asarray(lens, np.int32)
    B, N = len(lens), len(lens) * P + 1 + slack
    table = (rng.permutation(N - 1)[: B * P].reshape(B, P) + 1).astype(np.int32)
    used = np.zeros((N, page), bool)
    for b, j in itertools.product(range(B), range(P * page)):
        if j < lens[b]:
            used[table[b, j // page], j % page] = True
    k, v = (rng.normal(size=(N, page, C)) for _ in range(2))
    scales = [np.ones((N, page), np.float32)] * 2
    if fp8:
        scales = [rng.uniform(0.5, 2.0, (N, page)).astype(np.float32) for _ in range(2)]
    store = FP8 if fp8 else dtype
    k, v = (jnp.asarray(np.where(used[..., None], x, np.nan), store) for x in (k, v))
    q = jnp.asarray(rng.normal(size=(B, S_q, H, C)), dtype)
    operands = (q, k, v, jnp.asarray(table), jnp.asarray(lens))
    if not fp8:
        return operands, {}
    return operands, {
        name: jnp.asarray(np.where(used, x, np.nan), jnp.float32)
        for name, x in zip(("k_scale", "v_scale"), scales, strict=True)
    }


def oracle(operands, scales, scale):
    """Average and base-2 log-sum-exp, request by request in float64."""
    q, k, v, table, lens = (np.asarray(jnp.asarray(x, jnp.float32)) for x in operands)
    table, lens = table.astype(int), lens.astype(int)
    for name, x in scales.items():
        if name == "k_scale":
            k = k * np.asarray(x)[..., None]
        else:
            v = v * np.asarray(x)[..., None]
    B, S_q, _H, C = q.shape
    out, lse2 = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    for b, t in itertools.product(range(B), range(S_q)):
        seen = lens[b] - S_q + 1 + t
        if seen > 0:
            keys = k[table[b]].reshape(-1, C)[:seen].astype(float)
            values = v[table[b]].reshape(-1, C)[:seen].astype(float)
            scores = scale * q[b, t].astype(float) @ keys.T
            top = scores.max(-1, keepdims=True)
            weight = np.exp(scores - top)
            out[b, t] = weight @ values / weight.sum(-1, keepdims=True)
            lse2[b, t] = (top[:, 0] + np.log(weight.sum(-1))) / np.log(2.0)
    return out, lse2


def agrees(got, want, tol):
    out, lse2 = (np.asarray(jnp.asarray(x, jnp.float32)) for x in got)
    np.testing.assert_allclose(out, want[0], atol=tol)
    np.testing.assert_array_equal(np.isfinite(lse2), np.isfinite(want[1]))
    seen = np.isfinite(want[1])
    # Of a row that sees one token it is a score itself, as large as rounding can make it err.
    np.testing.assert_allclose(lse2[seen], want[1][seen], atol=tol, rtol=tol)


CASES = {
    "ragged": {"lens": [0, 1, 17, 48]},
    "verify": {"lens": [2, 3, 35, 47], "S_q": 3},
    "empty verify": {"lens": [0, 1, 2, 4], "S_q": 3},
    "bf16": {"lens": [5, 16], "dtype": jnp.bfloat16},
    "fp8": {"lens": [0, 33], "fp8": True},
    "one head": {"lens": [40], "H": 1},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reference_is_attention(case):
    operands, scales = draw(np.random.default_rng(0), **case)
    got = jax.jit(lambda *x: api.mqa_decode(*x, scale=0.3, return_lse=True, impl="xla", **scales))(
        *operands
    )
    # Probabilities are rounded to the dtype of the values, 8 bits of bfloat16.
    tol = 2e-2 if case.get("dtype") == jnp.bfloat16 else 2e-5
    agrees(got, oracle(operands, scales, 0.3), tol)


def test_closed_forms():
    """No keys: the mean; equal values: that value; a dominant key: its value; one token: it."""
    rng = np.random.default_rng(1)
    (q, k, v, table, lens), _ = draw(rng, lens=[37, 37, 37, 1])
    v = jnp.nan_to_num(v)
    k0 = jnp.zeros_like(k)
    mean, equal, dominant = jax.jit(
        lambda q, k, v: (
            api.mqa_decode(q, k0, v, table, lens),
            api.mqa_decode(q, jnp.nan_to_num(k), jnp.ones_like(v) * 3.0, table, lens),
            api.mqa_decode(jnp.ones_like(q), k0.at[table[0, 1], 4].set(1e3), v, table, lens),
        )
    )(q, k, v)
    dense = np.asarray(v)[np.asarray(table)].reshape(4, -1, 32)
    np.testing.assert_allclose(mean[0, 0, 0], dense[0, :37].mean(0), atol=1e-6)
    np.testing.assert_allclose(equal, 3.0, rtol=1e-6)
    np.testing.assert_allclose(dominant[0, 0], np.tile(dense[0, 20], (8, 1)), atol=1e-6)
    np.testing.assert_allclose(mean[3, 0], np.tile(dense[3, 0], (8, 1)), atol=1e-6)


def test_page_numbers_do_not_matter():
    """Pages moved together with the table: the same bits."""
    rng = np.random.default_rng(2)
    (q, k, v, table, lens), _ = draw(rng, lens=[3, 16, 45], slack=4)
    order = rng.permutation(k.shape[0])
    where = np.argsort(order).astype(np.int32)
    decode = jax.jit(lambda k, v, t: api.mqa_decode(q, k, v, t, lens))
    np.testing.assert_array_equal(
        decode(k, v, table), decode(k[order], v[order], jnp.asarray(where)[table])
    )


def test_staircase_gives_every_page_to_one_part():
    """Random lengths, zeros included: shares are even, slots unique, nothing is lost."""
    rng = np.random.default_rng(3)
    make = jax.jit(lambda lens, table: plan.decode_plan(lens, table, page=8, num_parts=7))
    for _ in range(50):
        lens = rng.integers(0, 40, 6) * rng.integers(0, 2, 6)
        table = rng.permutation(30).reshape(6, 5).astype(np.int32)
        p = jax.tree.map(np.asarray, make(jnp.asarray(lens, jnp.int32), jnp.asarray(table)))
        pages = -(-lens // 8)
        want = [(b, table[b, i]) for b in range(6) for i in range(pages[b])]
        got, slots = [], {}
        for part in range(7):
            count = 0
            for b in range(p.first_request[part], p.last_request[part]):
                for i in range(max(p.begin[part], p.first[b]), min(p.end[part], p.first[b + 1])):
                    got.append((b, p.flat_page[i]))
                    assert slots.setdefault(part + b, (part, b)) == (part, b)
                    count += 1
            assert count <= -(-pages.sum() // 7) + (pages.sum() == 0)
        assert got == want
        for slot, request in enumerate(p.slot_request):
            assert request == (slots[slot][1] if slot in slots else 6)


def test_a_traced_length_out_of_range_spoils_its_own_request_alone():
    table = jnp.asarray([[1, 2], [3, 4]], jnp.int32)
    make = jax.jit(lambda lens: plan.decode_plan(lens, table, page=16, num_parts=4))
    for bad, taken, status in (
        ([-40, 20], [0, 20], plan.NEGATIVE),
        ([40, 20], [32, 20], plan.TOO_LONG),
        ([2**31 - 1, 20], [32, 20], plan.TOO_LONG),
    ):
        got, want = (
            jax.tree.map(np.asarray, make(jnp.asarray(x, jnp.int32))) for x in (bad, taken)
        )
        assert got.status.tolist() == [status, plan.FINE] and not want.status.any()
        for name in set(plan.Plan._fields) - {"status"}:
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
        assert got.end.max() <= got.flat_page.size
        with pytest.raises(ValueError, match="lens must be in 0 to 32"):
            plan.decode_plan(jnp.asarray(bad, jnp.int32), table, page=16, num_parts=4)
    (q, k, v, table, _), _ = draw(np.random.default_rng(3), lens=[48, 20])
    decode = jax.jit(lambda lens: api.mqa_decode(q, k, v, table, lens, return_lse=True))
    for bad, taken in ((-40, 0), (1000, 48)):
        got, want = (decode(jnp.asarray([n, 20], jnp.int32)) for n in (bad, taken))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_plan_is_of_its_requests():
    (q, k, v, table, lens), _ = draw(np.random.default_rng(3), lens=[48, 20])
    fine = plan.decode_plan(lens, table, page=16, num_parts=4)
    np.testing.assert_array_equal(
        api.mqa_decode(q, k, v, table, lens, plan=fine), api.mqa_decode(q, k, v, table, lens)
    )
    with pytest.raises(ValueError, match="for 1 requests of 3 pages, got one of 2 requests"):
        api.mqa_decode(q[:1], k, v, table[:1], lens[:1], plan=fine)
    spoiled = jax.jit(lambda x: plan.decode_plan(x, table, page=16, num_parts=4))(lens - 30)
    with pytest.raises(ValueError, match="negative, that of request 1"):
        api.mqa_decode(q, k, v, table, lens, plan=spoiled)
    # That of an earlier step: the kernel would leave out the page that the last token began.
    within = plan.decode_plan(lens - jnp.array([0, 3]), table, page=16, num_parts=4)
    api.mqa_decode(q, k, v, table, lens, plan=within)  # the same pages, which a plan is of
    stale = plan.decode_plan(lens - jnp.array([0, 4]), table, page=16, num_parts=4)
    with pytest.raises(ValueError, match="gives request 1 1 pages of 16 tokens, it has 20 tokens"):
        api.mqa_decode(q, k, v, table, lens, plan=stale)
    decode = checkify.checkify(jax.jit(lambda *x: api.mqa_decode(*x[:5], plan=x[5])))
    assert decode(q, k, v, table, lens, fine)[0].get() is None
    assert "make one for each step" in decode(q, k, v, table, lens, stale)[0].get()
    for message, bad in (
        ("must be int32", {"lens": lens.astype(jnp.int16)}),
        ("lens must be .B. and page_table .B, P.", {"lens": lens[:1]}),
        ("page and num_parts must be at least 1", {"page": 0}),
    ):
        options = {"lens": lens, "page_table": table, "page": 16, "num_parts": 4} | bad
        with pytest.raises(ValueError, match=message):
            plan.decode_plan(**options)


def test_merge_is_the_whole():
    """Pieces of random size, empty ones and slots of NaN between them, equal one softmax."""
    rng = np.random.default_rng(4)
    scores, values = 4.0 * rng.normal(size=(2, 3, 50)), rng.normal(size=(2, 50, 5))
    cuts = [[0, 7, 7, 30, 50], [0, 1, 20, 49, 50]]
    out, lse2, owner = [np.full((3, 5), np.nan)], [np.full(3, np.nan)], [3]
    for b in range(2):
        for lo, hi in itertools.pairwise(cuts[b]):
            weight = np.exp2(scores[b, :, lo:hi])
            total = weight.sum(-1)
            with np.errstate(invalid="ignore", divide="ignore"):
                out.append(np.nan_to_num(weight @ values[b, lo:hi] / total[:, None]))
                lse2.append(np.log2(total))
            owner.append(b)
    got, got_lse = jax.jit(plan.merge_partials, static_argnums=3)(
        jnp.asarray(np.array(out), jnp.float32),
        jnp.asarray(np.array(lse2), jnp.float32),
        jnp.asarray(owner),
        3,
    )
    weight = np.exp2(scores)
    want = weight @ values / weight.sum(-1, keepdims=True)
    np.testing.assert_allclose(got[:2], want, atol=2e-6)
    np.testing.assert_allclose(got_lse[:2], np.log2(weight.sum(-1)), atol=2e-6)
    assert np.all(got[2] == 0.0) and np.all(got_lse[2] == -np.inf)


@pytest.mark.parametrize("kernel", [mosaic_tpu, triton], ids=["tpu", "triton"])
@pytest.mark.parametrize("name", ["ragged", "verify", "empty verify", "bf16", "fp8"])
def test_kernels_in_the_interpreter(kernel, name):
    operands, scales = draw(np.random.default_rng(5), **CASES[name])
    run = jax.jit(lambda *x: kernel.mqa_decode(*x, scale=0.3, interpret=True, **scales))
    tol = 2e-2 if name == "bf16" else 2e-5
    agrees(run(*operands), oracle(operands, scales, 0.3), tol)


SIZES = np.array([1e-6, 1e-4, 1.0, 1e3])
"""Of the values of four requests."""


def of_all_sizes(rng, dtype, sizes=SIZES, **shape):
    """A request of each size; one value of each is a billion times larger and weighs nothing."""
    lens = [17, 48, 40, 33][: len(sizes)]
    (q, k, v, table, lens), scales = draw(rng, lens=lens, fp8=True, **shape)
    q = 2.0 + 0.1 * q  # all point one way, and the second token of each request the other
    k, v_scale = np.array(k.astype(jnp.float32)), np.array(scales["v_scale"])
    for pages, size in zip(np.asarray(table), sizes, strict=True):
        v_scale[pages] *= size
        k[pages[0], 1] = -100.0
        v_scale[pages[0], 1] = 1e9 * size
    scales["v_scale"] = jnp.asarray(v_scale)
    return (q.astype(dtype), jnp.asarray(k, FP8), v, table, lens), scales


def require_each(got, want, tol):
    """Errors of a request are shares of its largest value."""
    got, want = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (got, want))
    error = np.abs(got - want).max(1) / np.abs(want).max(1)
    assert (error < tol).all(), error


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("kernel", [ref, mosaic_tpu, triton], ids=["ref", "tpu", "triton"])
def test_values_in_eight_bits_may_be_of_any_size(request, kernel, dtype):
    """No scale is folded into an operand of sixteen bits: 1e-6 is below what float16 holds."""
    if dtype == jnp.float16:
        request.getfixturevalue("float16")
    operands, scales = of_all_sizes(np.random.default_rng(9), dtype)
    options = {} if kernel is ref else {"interpret": True}
    run = jax.jit(lambda *x: kernel.mqa_decode(*x, scale=0.3, **scales, **options))
    want = oracle(operands, scales, 0.3)[0]
    require_each(run(*operands)[0], want, 2e-3 if dtype == jnp.float16 else 2e-2)


@pytest.mark.parametrize(
    "dtype",
    [jnp.float16, *(pytest.param(d, marks=pytest.mark.slow) for d in (jnp.bfloat16, jnp.float32))],
    ids=["f16", "bf16", "f32"],
)
@pytest.mark.usefixtures("float16")
def test_hopper_multiplies_values_of_any_size(dtype):
    """Upcast to float16 whatever the queries are, which meet keys of the inverse size here."""
    operands, scales = of_all_sizes(
        np.random.default_rng(10), dtype, SIZES[[0, 3]], H=4, C=64, page=64, P=1
    )
    q, k, v, table, lens = operands
    if dtype == jnp.float32:  # float16 holds no query of 1e-9, nor one of 1e6
        far = np.array([1e-9, 1e6])
        q = q * jnp.asarray(far, jnp.float32)[:, None, None, None]
        inverse = np.ones(k.shape[0])
        inverse[np.asarray(table)[:, 0]] = 1.0 / far
        scales["k_scale"] = scales["k_scale"] * jnp.asarray(inverse[:, None], jnp.float32)
    shares = plan.decode_plan(lens, table, page=64, num_parts=1)
    got = mosaic_gpu.mqa_decode(q, k, v, lens, shares, scale=0.3, interpret=True, **scales)[0]
    require_each(got, oracle((q, k, v, table, lens), scales, 0.3)[0], 3e-3)


def hopper_case(name, rng):
    shape = {
        # Runs of more pages than buffers, in pieces that begin at odd places: b0 b0 b0 b2 | b2 b3.
        "lanes": {"lens": [130, 0, 70, 190], "H": 64, "P": 3},
        "empty verify": {"lens": [1, 0, 130], "H": 32, "S_q": 2, "P": 3},
        "verify": {"lens": [100, 1, 190], "H": 64, "S_q": 2, "P": 3},
        "few heads": {"lens": [190, 2, 100], "H": 16, "P": 3, "fp8": True},
        "direct": {"lens": [190, 2, 100], "H": 16, "P": 3, "C": 64, "fp8": True},
    }[name]
    dtype = np.float32 if shape.get("fp8") else jnp.bfloat16
    return draw(rng, page=64, dtype=dtype, **shape)


@pytest.mark.parametrize(
    "name",
    [
        "lanes",
        "direct",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("empty verify", "verify", "few heads")),
    ],
)
def test_hopper_kernel_in_the_interpreter(name):
    """Barriers, copies, paging, the join of the lanes, and no NaN of an unused slot."""
    operands, scales = hopper_case(name, np.random.default_rng(6))
    q, k, v, table, lens = operands
    shares = plan.decode_plan(lens, table, page=64, num_parts=2)
    tol = 2e-2
    if name == "direct":
        v, scales["v_scale"] = v.swapaxes(1, 2), jnp.float32(0.7)
        tol = 0.2  # queries and probabilities of 3 bits
    got = mosaic_gpu.mqa_decode(
        q, k, v, lens, shares, scale=0.3, direct=name == "direct", interpret=True, **scales
    )
    agrees(got, oracle(operands, scales, 0.3), tol)


def lowered(fn, specs, platform):
    with compat.target():
        return jax.jit(fn).trace(*specs).lower(lowering_platforms=(platform,)).as_text()


def specs(dtype, *, S_q=1, H=64, C=256, page=64, v_transposed=False):
    B, P, N = 4, 8, 40
    v_page = (N, C, page) if v_transposed else (N, page, C)
    shapes = [
        ((B, S_q, H, C), jnp.bfloat16),
        ((N, page, C), dtype),
        (v_page, dtype),
        ((B, P), jnp.int32),
        ((B,), jnp.int32),
    ]
    if jnp.dtype(dtype).itemsize == 1:
        shapes += [((N, page), jnp.float32), (() if v_transposed else (N, page), jnp.float32)]
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]


def call(kernel, **options):
    def fn(q, k, v, table, lens, k_scale=None, v_scale=None):
        shared = {"scale": 0.1, "k_scale": k_scale, "v_scale": v_scale, **options}
        if kernel is mosaic_gpu:
            shares = plan.decode_plan(lens, table, page=k.shape[1], num_parts=132)
            return kernel.mqa_decode(q, k, v, lens, shares, **shared)
        return kernel.mqa_decode(q, k, v, table, lens, **shared)

    return fn


@pytest.mark.parametrize("S_q", [1, 2, 4])
@pytest.mark.parametrize("variant", ["plain", "upcast", "direct"])
def test_hopper_kernel_lowers(variant, S_q):
    dtype = jnp.bfloat16 if variant == "plain" else FP8
    direct = variant == "direct"
    text = lowered(
        call(mosaic_gpu, direct=direct), specs(dtype, S_q=S_q, v_transposed=direct), "cuda"
    )
    assert "mosaic_gpu" in text


def test_hopper_kernel_says_when_pages_are_too_large():
    """The estimate that `why_not` goes by agrees with the compiler."""
    with pytest.raises(ValueError, match="shared memory"):
        lowered(call(mosaic_gpu), specs(jnp.bfloat16, page=128), "cuda")
    need = mosaic_gpu.shared_memory(256, 128, jnp.dtype(jnp.bfloat16), False)
    assert need > api.hopper.SHARED_MEMORY
    assert mosaic_gpu.shared_memory(256, 64, jnp.dtype(jnp.bfloat16), False) < need


def test_buffers_are_shared_evenly_by_the_lanes():
    operands, _ = hopper_case("lanes", np.random.default_rng(6))
    q, k, v, table, lens = operands
    shares = plan.decode_plan(lens, table, page=64, num_parts=2)
    with pytest.raises(ValueError, match="stages must be a multiple of 2"):
        mosaic_gpu.mqa_decode(q, k, v, lens, shares, scale=0.3, stages=3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "upcast", "direct"])
@pytest.mark.parametrize("C", [64, 128, 192, 256])
@pytest.mark.parametrize("page", [64, 128])
def test_what_the_hopper_kernel_promises_lowers(variant, C, page, monkeypatch):
    """Every shape that `why_not` lets through compiles."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compat, "compute_capability", lambda: 9.0)
    dtype = jnp.dtype(jnp.bfloat16 if variant == "plain" else FP8)
    direct = variant == "direct"
    asked = api.Call(1, 64, C, page, jnp.dtype(jnp.bfloat16), dtype, direct)
    reason = api.why_not("mosaic_gpu", asked)
    monkeypatch.undo()
    operands = specs(dtype, C=C, page=page, v_transposed=direct)
    if not reason:
        assert "mosaic_gpu" in lowered(call(mosaic_gpu, direct=direct), operands, "cuda")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, FP8], ids=["bf16", "fp8"])
@pytest.mark.parametrize(
    "kernel, platform, target",
    [(triton, "cuda", "triton"), (mosaic_tpu, "tpu", "tpu_custom_call")],
    ids=["triton", "tpu"],
)
@pytest.mark.filterwarnings("ignore:.*Triton:DeprecationWarning")
def test_other_kernels_lower(kernel, platform, target, dtype):
    assert target in lowered(call(kernel), specs(dtype, S_q=2), platform)


def test_bad_input_is_named():
    (q, k, v, table, lens), _ = draw(np.random.default_rng(7), lens=[3, 16])
    for message, arguments, options in (
        ("lens must be in 0 to 48", (q, k, v, table, lens + 40), {}),
        ("page numbers in 0 to 6", (q, k, v, table + 3, lens), {}),
        ("multiple of 16", (q[..., :8], k[..., :8], v[..., :8], table, lens), {}),
        ("pages must both be", (q, k.astype(jnp.bfloat16), v, table, lens), {}),
        ("need k_scale", (q, k.astype(FP8), v.astype(FP8), table, lens), {}),
        ("take no v_scale", (q, k, v, table, lens), {"v_scale": jnp.ones((7, 16))}),
        ("q asks for 1 requests", (q[:1], k, v, table, lens), {}),
        ("must be int32", (q, k, v, table.astype(jnp.int16), lens), {}),
        ("k_pages must be", (q, k[..., :16], v, table, lens), {}),
        ("impl must be one of", (q, k, v, table, lens), {"impl": "cuda"}),
        ("scale must be one number", (q, k, v, table, lens), {"scale": jnp.ones(32)}),
    ):
        with pytest.raises(ValueError, match=message):
            api.mqa_decode(*arguments, **options)
    with pytest.raises(NotImplementedError, match="backend is cpu"):
        api.mqa_decode(q, k, v, table, lens, impl="mosaic_gpu")
    checked = jax.jit(checkify.checkify(api.mqa_decode))
    checked(q, k, v, table, lens)[0].throw()
    for bad in ((table, lens + 40), (table + 3, lens)):
        with pytest.raises(checkify.JaxRuntimeError, match="must"):
            checked(q, k, v, *bad)[0].throw()


def test_choice_can_be_asked(monkeypatch):
    """What `impl=None` takes on each machine, and why not the others."""
    like = api.Call(1, 64, 256, 64, jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.bfloat16), False)
    assert api.choose(like) == "xla"
    for backend, capability, change, want in (
        ("gpu", 9.0, {}, "mosaic_gpu"),
        ("gpu", 8.0, {}, "triton"),
        ("gpu", 7.5, {}, "xla"),
        ("gpu", 9.0, {"page": 16}, "triton"),
        ("gpu", 9.0, {"page": 128}, "triton"),
        ("gpu", 9.0, {"C": 48}, "xla"),
        ("gpu", 8.0, {"kv_dtype": jnp.dtype(FP8)}, "xla"),
        ("gpu", 8.9, {"kv_dtype": jnp.dtype(FP8)}, "triton"),
        ("gpu", 8.0, {"num_slots": 2**23}, "xla"),
        ("gpu", 9.0, {"S_q": 8}, "xla"),
        ("gpu", 9.0, {"C": 192, "kv_dtype": jnp.dtype(FP8)}, "xla"),
        ("gpu", 9.0, {"q_dtype": jnp.dtype(jnp.float64)}, "xla"),
        ("tpu", 0.0, {}, "mosaic_tpu"),
        ("tpu", 0.0, {"page": 16}, "xla"),
    ):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        monkeypatch.setattr(compat, "compute_capability", lambda c=capability: c)
        assert api.choose(like._replace(**change)) == want, (backend, change)
    assert "7.5" not in api.why_not("mosaic_tpu", like._replace(page=16))


def test_a_gpu_that_is_not_nvidias_falls_back(monkeypatch):
    class Device:
        compute_capability, platform = "gfx942", "gpu"

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    bf16 = jnp.dtype(jnp.bfloat16)
    assert api.choose(api.Call(1, 64, 256, 64, bf16, bf16, False)) == "xla"


def test_splits_of_triton_are_the_card_s(monkeypatch):
    """Two programs a processor, each with two pages or more."""
    monkeypatch.setattr(compat, "num_processors", lambda: 132)
    bf16 = jnp.dtype(jnp.bfloat16)
    like = api.Call(1, 64, 256, 64, bf16, bf16, False)
    for B, P, want in ((1, 2048, 264), (2, 2048, 132), (64, 128, 5), (1, 100, 50), (300, 9, 1)):
        assert api.heuristic(like, B, P, "triton").num_splits == want
    for bad in ({"stages": 0}, {"num_splits": 0}, {"num_warps": 5}):
        with pytest.raises(ValueError, match="power of two up to 32"):
            api._check_config(api.Config("triton")._replace(**bad), like)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compat, "compute_capability", lambda: 9.0)
    for stages in (3, 8):  # an odd share of the lanes; more than memory holds
        with pytest.raises(ValueError, match="a multiple of 2 that shared memory holds"):
            api._check_config(api.Config("mosaic_gpu", stages), like)


def test_float32_is_exact_in_triton_too():
    """Not TensorFloat-32, which the interpreter would not show."""
    (q, k, v, table, lens), _ = draw(np.random.default_rng(7), lens=[3, 16], H=16)
    jaxpr = str(jax.make_jaxpr(lambda *x: triton.mqa_decode(*x, scale=0.3))(q, k, v, table, lens))
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2


def test_derivative_survives_what_unused_slots_hold():
    operands, _ = draw(np.random.default_rng(4), lens=[0, 1, 17, 48])
    q, k, v, table, lens = operands

    @jax.jit
    def gradient(q, k, v):
        return jax.grad(lambda *x: jnp.sum(api.mqa_decode(*x, table, lens)), argnums=(0, 1, 2))(
            q, k, v
        )

    for name, x in zip("qkv", gradient(q, k, v), strict=True):
        assert np.all(np.isfinite(x)), name


def test_fixed_splits_merge_as_pieces_do():
    rng = np.random.default_rng(2)
    out = jnp.asarray(rng.normal(size=(3, 5, 4, 8)), jnp.float32)
    lse2 = jnp.asarray(rng.normal(size=(3, 5, 4)) * 20, jnp.float32)
    lse2 = lse2.at[1].set(-jnp.inf).at[2, 1:].set(-jnp.inf)
    out = jnp.where(jnp.isfinite(lse2)[..., None], out, jnp.nan)
    got = plan.merge_splits(out, lse2)
    request = jnp.repeat(jnp.arange(3, dtype=jnp.int32), 5)
    want = plan.merge_partials(out.reshape(15, 4, 8), lse2.reshape(15, 4), request, 3)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[0][1], 0.0)
    np.testing.assert_allclose(got[0][2], out[2, 0], rtol=1e-6)


def test_one_compilation_for_all_values():
    operands, _ = draw(np.random.default_rng(8), lens=[3, 16])
    decode = jax.jit(api.mqa_decode)
    for lens in ([3, 16], [48, 0], [1, 1]):
        decode(*operands[:4], jnp.asarray(lens, jnp.int32))
    assert decode._cache_size() == 1
    ref_out = ref.mqa_decode(*operands, scale=operands[0].shape[-1] ** -0.5)[0]
    np.testing.assert_allclose(decode(*operands), ref_out, atol=1e-6)
