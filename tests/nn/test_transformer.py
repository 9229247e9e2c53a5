"""Layers of a transformer against complex numbers, loops in float64 and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

from jaxlab.nn import transformer

LAYOUTS = ("half", "interleaved")


def turned(x, pos, theta, layout):
    """The embedding as complex numbers: pair i times exp(i pos theta^(-2i/C)), in float64."""
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    one, two = (slice(half), slice(half, None)) if layout == "half" else (slice(0, None, 2),) * 2
    if layout == "interleaved":
        two = slice(1, None, 2)
    z = x[..., one] + 1j * x[..., two]
    z = z * np.exp(1j * np.asarray(pos)[..., None] * theta ** (-np.arange(half) / half))
    out = np.empty_like(x)
    out[..., one], out[..., two] = z.real, z.imag
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_is_a_complex_product(layout, x64, key):
    x = jax.random.normal(key, (2, 5, 3, 8))
    pos = jnp.asarray([[0, 1, 2, 3, 4], [7, 900, 3, 65_536, -2]], jnp.int32)
    for theta in (1e4, 500_000):
        got = transformer.rotate(x, pos[..., None], theta=theta, layout=layout)
        np.testing.assert_allclose(got, turned(x, pos[..., None], theta, layout), atol=1e-10)
    narrow = transformer.rotate(x.astype(jnp.bfloat16), pos[..., None], layout=layout)
    want = turned(x.astype(jnp.bfloat16), pos[..., None], 5e5, layout)
    # Half a unit in the last of eight digits, and float32's angle at position 65,536.
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(narrow, float), want, rtol=2**-8, atol=0.02)


def test_one_permutation_maps_the_layouts(x64, key):
    """Of vectors, and of the columns of projections as a GGUF file stores them."""
    x = jax.random.normal(key, (4, 3, 8))
    pos = jnp.arange(4, dtype=jnp.int32)[:, None]
    halves = transformer.half_from_interleaved(x)
    np.testing.assert_array_equal(transformer.interleaved_from_half(halves), x)
    np.testing.assert_array_equal(halves[..., :4], x[..., ::2])
    want = transformer.half_from_interleaved(transformer.rotate(x, pos, layout="interleaved"))
    np.testing.assert_allclose(transformer.rotate(halves, pos), want, atol=1e-14)
    rows = np.asarray(jax.random.normal(key, (3 * 8, 5)))  # stored (out, in): three heads of 8
    theirs = rows.reshape(3, 4, 2, 5).swapaxes(1, 2).reshape(3 * 8, 5)
    ours = transformer.half_from_interleaved(jnp.asarray(rows).T.reshape(5, 3, 8))
    np.testing.assert_array_equal(ours.reshape(5, 24).T, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_depend_on_distances_alone(layout, x64, key):
    q, k = jax.random.normal(key, (2, 6))
    pos = jnp.arange(40, dtype=jnp.int32)

    def score(i, j):
        a, b = (
            transformer.rotate(jnp.broadcast_to(x, (40, 6)), p, layout=layout)
            for x, p in ((q, i), (k, j))
        )
        return jnp.sum(a * b, axis=-1)

    np.testing.assert_allclose(score(pos + 3, pos), score(pos + 103, pos + 100), atol=1e-12)
    assert np.ptp(score(pos + 3, pos)) < 1e-12 < np.ptp(score(pos, jnp.zeros_like(pos)))
    np.testing.assert_array_equal(
        transformer.rotate(q[None], jnp.zeros(1, jnp.int32), layout=layout)[0], q
    )


def test_norm_by_hand(x64, key):
    x, weight = jax.random.normal(key, (7, 12)) * 30, jax.random.normal(key, (12,))
    mean = np.mean(np.asarray(x) ** 2, axis=-1, keepdims=True)
    want = np.asarray(weight) * np.asarray(x) / np.sqrt(mean + 0.5)
    np.testing.assert_allclose(transformer.rms_norm(x, weight, eps=0.5), want, rtol=1e-14)
    narrow = x.astype(jnp.bfloat16)
    wide = np.asarray(narrow, np.float64)
    want = np.asarray(weight) * wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-5)
    got = transformer.rms_norm(narrow, weight.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16
    # The mean is in float32, so that one rounding to eight digits is all there is.
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=2**-8 * 1.01)
    assert np.all(transformer.rms_norm(jnp.zeros((2, 12)), weight) == 0.0)


def test_swiglu_by_hand(x64, key):
    params = transformer.init_swiglu(key, 5, 7)
    x = jax.random.normal(key, (3, 2, 5))
    gate, up, down = (np.asarray(w) for w in params)
    a = np.asarray(x) @ gate
    want = (a / (1.0 + np.exp(-a)) * (np.asarray(x) @ up)) @ down
    np.testing.assert_allclose(transformer.swiglu(params, x), want, atol=1e-13)


def loops(q, k, v, mask, scale):
    """Attention one query and head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (T, H, _), (G, E) = q.shape, v.shape[1:]
    out = np.zeros((T, H, E))
    for t in range(T):
        for h in range(H):
            seen = [s for s in range(len(k)) if mask[t, s]]
            if seen:
                g = h // (H // G)
                score = np.array([scale * q[t, h] @ k[s, g] for s in seen])
                weight = np.exp(score - score.max())
                out[t, h] = sum(
                    w * v[s, g] for w, s in zip(weight / weight.sum(), seen, strict=True)
                )
    return out


def draw(key, dtype=float, lead=(3,), T=4, S=6, H=4, G=2, C=5, E=3):
    """Queries, keys, values and a random mask whose second query sees nothing."""
    keys = jax.random.split(key, 4)
    shapes = ((*lead, T, H, C), (*lead, S, G, C), (*lead, S, G, E))
    q, k, v = (jax.random.normal(k, s).astype(dtype) for k, s in zip(keys[:3], shapes, strict=True))
    mask = jax.random.bernoulli(keys[3], 0.6, (*lead, T, S)).at[..., 1, :].set(False)
    return q, k, v, mask


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_a_loop_over_what_is_seen(groups, x64, key):
    q, k, v, mask = draw(key, G=groups)
    got = jax.jit(transformer.attend)(q, k, v, mask, scale=0.7)
    for b in range(3):
        want = loops(q[b], k[b], v[b], np.asarray(mask[b]), 0.7)
        np.testing.assert_allclose(got[b], want, atol=1e-13)
    assert np.all(got[:, 1] == 0.0)


def test_leading_axes_are_loops(x64, key):
    """None, two, and one mask for all."""
    q, k, v, mask = draw(key, lead=(2, 3))
    attend = jax.jit(lambda q, k, v: transformer.attend(q, k, v, mask[0, 0], scale=1.0))
    got = attend(q, k, v)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(attend(q[i], k[i], v[i]), got[i], atol=1e-13)


@pytest.mark.parametrize("dtype, ours", [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_narrow_attention_accumulates_in_float32(dtype, ours, key):
    """Scores of up to 60: a softmax in 16 bits would be off by a fifth."""
    q, k, v, mask = draw(key, dtype, S=40, C=64)
    got = jax.jit(transformer.attend)(3 * q, k, v, mask, scale=1.0)
    assert got.dtype == dtype
    want = np.stack([loops(3 * q[b], k[b], v[b], np.asarray(mask[b]), 1.0) for b in range(3)])
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=ours, atol=1e-5)


def test_products_are_at_the_precision_that_the_caller_says(key):
    """As those of the projections around them; operands in 16 bits are not widened for scores."""

    def products(dtype):
        q, k, v, mask = draw(key, dtype)
        jaxpr = jax.make_jaxpr(lambda q, k, v: transformer.attend(q, k, v, mask, scale=1.0))(
            q, k, v
        )
        return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]

    scores, average = products(jnp.bfloat16)
    assert [x.aval.dtype for x in scores.invars] == [jnp.bfloat16] * 2
    assert scores.outvars[0].aval.dtype == average.outvars[0].aval.dtype == jnp.float32
    assert all(eqn.params["precision"] is None for eqn in products(jnp.float32))
    with jax.default_matmul_precision("highest"):
        exact = (jax.lax.Precision.HIGHEST,) * 2
        assert all(eqn.params["precision"] == exact for eqn in products(jnp.float32))


def test_gradients_by_differences(x64, key):
    q, k, v, mask = draw(key, lead=())
    f = jax.jit(lambda q, k, v: transformer.attend(q, k, v, mask, scale=0.7))
    check_grads(f, (q, k, v), order=1, modes=("rev",), atol=1e-6, rtol=1e-6)
    q_grad = jax.grad(lambda q: jnp.sum(f(q, k, v) ** 2))(q)
    assert np.all(q_grad[1] == 0.0) and np.all(np.isfinite(q_grad))


def test_what_is_not_seen_may_be_anything(x64, key):
    """NaN and infinity in keys and values reach the queries that see them, of their group alone."""
    q, k, v, _ = draw(key, lead=())
    mask = jnp.ones((4, 6), bool).at[:2, 3].set(False)
    attend = jax.jit(lambda k, v: transformer.attend(q, k, v, mask, scale=1.0))
    want = attend(k, v)
    for bad in (
        attend(k.at[3, 0, 2].set(jnp.nan), v),
        attend(k.at[3, 0, 2].set(jnp.inf), v),
        attend(k, v.at[3, 0, 1].set(-jnp.inf)),
    ):
        np.testing.assert_array_equal(bad[:2], want[:2])
        np.testing.assert_array_equal(bad[:, 2:], want[:, 2:])
        assert np.isnan(bad[2:, :2]).all()
    grads = jax.grad(lambda k, v: jnp.sum(attend(k, v)[:2] ** 2), argnums=(0, 1))
    for g in grads(k.at[3].set(jnp.nan), v):
        assert np.isfinite(g).all() and np.all(g[3] == 0.0)


def test_positions_make_causal_and_padding_masks():
    tokens = jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0], [0] * 5], bool)
    pos = transformer.positions(tokens)
    assert pos.dtype == jnp.int32
    assert pos.tolist() == [[-1, -1, 0, 1, 2], [0, 1, -1, -1, -1], [0, -1, 1, 2, -1], [-1] * 5]
    mask = np.asarray(transformer.causal_mask(pos, pos))
    for b, t, s in np.ndindex(4, 5, 5):
        assert mask[b, t, s] == (tokens[b, t] and tokens[b, s] and s <= t)


def test_a_cache_keeps_what_lies_in_it(key):
    """Of one layer and of one in a stack; outside, tokens leave nothing."""
    pos = jnp.asarray([[2, 0, -1], [4, 5, 1]], jnp.int32)
    new = jax.random.normal(key, (2, 3, 2, 4))
    want = np.zeros((2, 5, 2, 4), np.float32)
    for b, t in np.ndindex(2, 3):
        if 0 <= pos[b, t] < 5:
            want[b, pos[b, t]] = new[b, t]
    empty = transformer.empty_cache((2, 5, 2, 4), (2, 5, 2, 4), dtype=jnp.float32)
    for got in transformer.write_cache(empty, (new, new), pos):
        np.testing.assert_array_equal(got, want)
    stack = tuple(jnp.stack([x] * 3) for x in empty)
    stack = jax.jit(transformer.write_cache)(stack, (new, new), pos, layer=jnp.int32(1))
    for got in stack:
        np.testing.assert_array_equal(got, np.stack([0 * want, want, 0 * want]))
    with pytest.raises(ValueError, match="init_cache"):
        transformer.write_cache(empty, (new[:1], new[:1]), pos[:1])
    with pytest.raises(ValueError, match=r"pos must be in 0 to 4.*got -1 to 5"):
        transformer.check_positions(pos, 5)
    check = checkify.checkify(lambda p: transformer.check_positions(p, 5, least=-1))
    error, _ = jax.jit(check)(pos)
    assert "pos must be in -1 to 4" in error.get()


def test_wrong_operands_are_refused(key):
    q, k, v, mask = draw(key)
    for operands, message in (
        ((q[:, :0], k, v, mask[:, :0]), "a query and a key at least, got 0 and 6"),
        ((q, k[..., :0, :], v[..., :0, :], mask), "groups must divide the heads, got 0 and 4"),
        ((q[..., :3, :], k, v, mask), "groups must divide the heads, got 2 and 3"),
        ((q, k[..., :3], v, mask), r"k must be \[..., S, G, 5\]"),
        ((q, k, v[:, :3], mask), r"v \[..., S, G, E\]"),
        ((q, k, v, mask[..., :3]), r"mask must be bool \[..., 4, 6\]"),
        ((q, k, v, mask.astype(jnp.float32)), "mask must be bool"),
    ):
        with pytest.raises(ValueError, match=message):
            transformer.attend(*operands, scale=1.0)
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        transformer.empty_cache((1, 2), dtype=jnp.float8_e4m3fn)
    with pytest.raises(ValueError, match='layout must be "half" or "interleaved"'):
        transformer.rotate(q[..., :4], jnp.zeros((3, 4, 1), jnp.int32), layout="neox")
    for odd in (transformer.half_from_interleaved, transformer.interleaved_from_half):
        with pytest.raises(ValueError, match="even last axis, got 5"):
            odd(q)
