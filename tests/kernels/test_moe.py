"""Oracles for grouped SwiGLU: every implementation against NumPy, expert by expert."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.moe import api, ref

M, D, F, E = 40, 12, 10, 5
SIZES = {
    "even": [8, 8, 8, 8, 8],
    "ragged, some empty": [0, 23, 0, 16, 1],
    "one takes all": [0, 0, 40, 0, 0],
    "rows left over": [3, 0, 7, 2, 0],
    "nothing": [0, 0, 0, 0, 0],
}


def draw(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = ((M, D), (E, D, F), (E, D, F), (E, F, D))
    return [jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, dtype) for shape in shapes]


def oracle(x, gate, up, down, sizes):
    x, gate, up, down = (np.asarray(a, np.float64) for a in (x, gate, up, down))
    out, begin = np.zeros_like(x), 0
    for e, size in enumerate(sizes):
        rows = x[begin : begin + size]
        g = rows @ gate[e]
        out[begin : begin + size] = (g / (1.0 + np.exp(-g)) * (rows @ up[e])) @ down[e]
        begin += size
    return out


@pytest.mark.parametrize("impl", ["ragged_dot", "blocked", "ref"])
def test_every_expert_multiplies_its_rows(impl):
    operands = draw()
    f = ref.grouped_swiglu if impl == "ref" else functools.partial(api.grouped_swiglu, impl=impl)
    f = jax.jit(f)
    for sizes in SIZES.values():
        got = f(*operands, jnp.asarray(sizes, jnp.int32))
        np.testing.assert_allclose(got, oracle(*operands, sizes), atol=2e-5)
    if impl == "ref":
        return
    # A traced size below 0 is none, and takes no rows from the groups before it.
    got = f(*operands, jnp.array([9, 11, 7, 8, -6], jnp.int32))
    np.testing.assert_allclose(got, oracle(*operands, [9, 11, 7, 8, 0]), atol=2e-5)


def test_a_block_larger_than_a_group_spoils_no_neighbor():
    """Groups of one row each: every block reaches into the next groups."""
    rng = np.random.default_rng(1)
    count = 30
    x = jnp.asarray(rng.normal(size=(count, D)), jnp.float32)
    gate, up, down = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((count, D, F), (count, D, F), (count, F, D))
    )
    got = jax.jit(functools.partial(api.grouped_swiglu, impl="blocked"))(
        x, gate, up, down, jnp.ones(count, jnp.int32)
    )
    np.testing.assert_allclose(got, oracle(x, gate, up, down, [1] * count), rtol=2e-4, atol=2e-4)


def test_derivative_of_blocks_is_that_of_the_reference(x64):
    operands = draw(np.float64)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(M, D)))

    def loss(f, sizes, *operands):
        return jnp.sum(weight * f(*operands, sizes) ** 2)

    both = [
        jax.jit(jax.grad(functools.partial(loss, f), argnums=(1, 2, 3, 4)))
        for f in (functools.partial(api.grouped_swiglu, impl="blocked"), ref.grouped_swiglu)
    ]
    for sizes in SIZES.values():
        got, want = (g(jnp.asarray(sizes, jnp.int32), *operands) for g in both)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_batches_of_problems_and_new_sizes_need_no_recompilation():
    operands = draw()
    sizes = jnp.asarray(list(SIZES.values()), jnp.int32)
    traces = []

    @jax.jit
    def many(sizes):
        traces.append(1)
        return jax.vmap(lambda s: api.grouped_swiglu(*operands, s, impl="blocked"))(sizes)

    for order in (sizes, sizes[::-1]):
        want = np.stack([oracle(*operands, s) for s in np.asarray(order)])
        np.testing.assert_allclose(many(order), want, atol=2e-5)
    assert len(traces) == 1


def test_rows_of_no_group_may_be_anything():
    x, *weights = draw()
    sizes = jnp.asarray(SIZES["rows left over"], jnp.int32)
    spoiled = x.at[12:].set(jnp.nan)
    for impl in ("ragged_dot", "blocked"):
        f = jax.jit(functools.partial(api.grouped_swiglu, impl=impl))
        np.testing.assert_array_equal(f(x, *weights, sizes), f(spoiled, *weights, sizes))


def test_it_says_what_it_takes_and_what_it_wants():
    assert api.choose() == "blocked"  # on a CPU
    assert "not gpu or tpu" in api.why_not("tokamax")
    x, gate, up, down = draw()
    sizes = jnp.asarray(SIZES["even"], jnp.int32)
    wrong = {
        r"x must be \[M, D\]": (x[0], gate, up, down, sizes),
        r"x must be \[M, 12\]": (x[:, 1:], gate, up, down, sizes),
        "down": (x, gate, up, up, sizes),
        r"sizes must be int32 \[5\]": (x, gate, up, down, sizes[:4]),
        "share one dtype": (x.astype(jnp.bfloat16), gate, up, down, sizes),
        "at most 40 together": (x, gate, up, down, sizes + 1),
        "0 or more": (x, gate, up, down, sizes.at[0].set(-1)),
    }
    for message, operands in wrong.items():
        with pytest.raises(ValueError, match=message):
            api.grouped_swiglu(*operands)
    with pytest.raises(ValueError, match="impl must be one of"):
        api.grouped_swiglu(x, gate, up, down, sizes, impl="fast")
    with pytest.raises(NotImplementedError, match="not gpu or tpu"):
        api.grouped_swiglu(x, gate, up, down, sizes, impl="tokamax")


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("wide", [False, True], ids=["x32", "x64"])
def test_every_form_lowers_for_accelerators(platform, wide):
    """With 64 bits switched on too, forward and backward."""
    dtype = jnp.bfloat16
    shapes = [(M, 128), (E, 128, 256), (E, 128, 256), (E, 256, 128)]
    with jax.enable_x64(wide):
        specs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        specs.append(jax.ShapeDtypeStruct((E,), jnp.int32))
        for impl in ("ragged_dot", "blocked"):
            f = functools.partial(api.grouped_swiglu, impl=impl)
            gradient = jax.grad(lambda *x, f=f: jnp.sum(f(*x).astype(jnp.float32)), argnums=1)
            jax.jit(gradient).trace(*specs).lower(lowering_platforms=(platform,))


def test_the_sum_of_products_does_not_depend_on_wide_integers(x64):
    operands = draw(np.float64)
    sizes = SIZES["rows left over"]
    got = api.grouped_swiglu(*operands, jnp.asarray(sizes, jnp.int32), impl="ragged_dot")
    np.testing.assert_allclose(got, oracle(*operands, sizes), atol=1e-12)


def test_tokamax_is_asked_for_three_products(monkeypatch):
    """The branch for GPUs and TPUs, with a stand-in for the package."""
    import types

    calls = []

    def ragged_dot(a, b, sizes):
        calls.append(b.shape)
        return jax.lax.ragged_dot(a, b, sizes)

    monkeypatch.setattr(api, "why_not", lambda impl, dtype=None: "")
    monkeypatch.setattr(
        api.importlib, "import_module", lambda name: types.SimpleNamespace(ragged_dot=ragged_dot)
    )
    operands, sizes = draw(), SIZES["ragged, some empty"]
    got = api.grouped_swiglu(*operands, jnp.asarray(sizes, jnp.int32), impl="tokamax")
    np.testing.assert_allclose(got, oracle(*operands, sizes), atol=2e-5)
    assert calls == [(E, D, F), (E, D, F), (E, F, D)]
