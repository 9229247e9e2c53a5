"""Random sequences of operations on a paged cache against lists of tokens."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxlab.serving.cache import paged_cache, quantization

L, B, PAGE, MOST, N, C, T = 2, 4, 4, 5, 14, 3, 7
reserve, truncate = jax.jit(paged_cache.reserve), jax.jit(paged_cache.truncate)
share, write = jax.jit(paged_cache.share), jax.jit(paged_cache.write, static_argnums=1)
gather = jax.jit(paged_cache.gather, static_argnums=1)


def poisoned(dtype=jnp.float32, **options):
    cache = paged_cache.init_cache(
        L, N, batch=B, max_pages=MOST, head_dim=C, page=PAGE, dtype=dtype, **options
    )
    pages = {"k_pages": jnp.full_like(cache.k_pages, jnp.nan)}
    if cache.v_pages is not None:
        pages["v_pages"] = jnp.full_like(cache.v_pages, jnp.nan)
    return cache._replace(**pages)


def append(cache, lens, count, values):
    """Reserves and writes `values` `[L, B, T, C]`, and their negatives as values."""
    cache, done = reserve(cache, jnp.asarray(count, jnp.int32))
    pos = np.array(lens)[:, None] + np.arange(T)
    keep = (np.arange(T) < np.asarray(count)[:, None]) & np.asarray(done)[:, None]
    for layer in range(L):
        x = jnp.asarray(values[layer])
        v = None if cache.v_pages is None else -x
        cache = write(cache, layer, x, v, jnp.asarray(pos, jnp.int32), jnp.asarray(keep))
    return cache, np.asarray(done)


def check(cache, model):
    """What is stored, who owns which page, and which pages are free."""
    assert np.asarray(cache.lens).tolist() == [len(m) for m in model]
    for layer in range(L):
        k, v = gather(cache, layer)
        for b, m in enumerate(model):
            want = np.array([x[layer] for x in m]).reshape(-1, C)
            np.testing.assert_array_equal(k[b, : len(m)], want)
            if v is not None:
                np.testing.assert_array_equal(v[b, : len(m)], -want)
    owners = np.zeros(N, int)
    for b, m in enumerate(model):
        used = -(-len(m) // PAGE)
        np.add.at(owners, np.asarray(cache.page_table)[b, :used], 1)
        assert np.all(np.asarray(cache.page_table)[b, used:] == 0)
    np.testing.assert_array_equal(cache.num_owners, owners)
    free = np.asarray(cache.free)[: int(cache.num_free)].tolist()
    assert sorted(free) == [page for page in range(1, N) if owners[page] == 0]


counts = st.lists(st.integers(0, T), min_size=B, max_size=B)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), counts),
        st.tuples(st.just("truncate"), st.lists(st.integers(0, 20), min_size=B, max_size=B)),
        st.tuples(st.just("share"), st.tuples(st.integers(0, B - 1), st.integers(0, B - 1))),
    ),
    min_size=1,
    max_size=12,
)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(operations, st.sampled_from([jnp.float32, jnp.bfloat16, quantization.FP8]))
def test_random_operations(steps, dtype):
    """Values that eight bits hold exactly: what is stored is bitwise what was written."""
    rng = np.random.default_rng(0)
    cache, model = poisoned(dtype), [[] for _ in range(B)]
    for name, argument in steps:
        if name == "append":
            values = rng.integers(-7, 8, size=(L, B, T, C)).astype(np.float32)
            values[..., 0] = 7.0 * 2.0 ** rng.integers(-3, 4, size=(L, B, T))
            values[..., 1:] *= values[..., :1] / 7.0
            cache, done = append(cache, [len(m) for m in model], argument, values)
            for b in np.flatnonzero(done):
                model[b] = model[b] + [values[:, b, t] for t in range(argument[b])]
        elif name == "truncate":
            cache = truncate(cache, jnp.asarray(argument, jnp.int32))
            model = [m[:n] for m, n in zip(model, argument, strict=True)]
        else:
            source, target = argument
            cache = share(cache, jnp.int32(source), jnp.int32(target))
            model[target] = list(model[source])
        check(cache, model)


def test_a_request_that_does_not_fit_spares_the_others():
    """13 pages: a row longer than its table, then more pages than there are."""
    values = np.zeros((L, B, T, C), np.float32)
    cache, done = append(poisoned(), [0] * B, [21, 7, 7, 7], values)
    assert done.tolist() == [False, True, True, True]
    for _ in range(2):
        cache, done = append(cache, np.asarray(cache.lens), [0, 7, 0, 0], values)
    assert not done[1] and np.asarray(cache.lens).tolist() == [0, 14, 7, 7]
    cache, done = reserve(cache, jnp.asarray([20, 2, 1, 1], jnp.int32))
    assert done.tolist() == [True, True, True, True] and int(cache.num_free) == 0
    cache, done = reserve(cache, jnp.asarray([0, 1, 1, 1], jnp.int32))
    assert done.tolist() == [True, False, False, False]


def test_eight_bits_keep_a_scale_per_token(key):
    cache = paged_cache.init_cache(
        1, 5, batch=1, max_pages=4, head_dim=64, page=4, dtype=quantization.FP8
    )
    scale = jnp.exp2(jnp.arange(10.0))[None, :, None]
    x = jax.random.normal(key, (1, 10, 64)) * scale
    cache, _ = paged_cache.reserve(cache, jnp.asarray([10], jnp.int32))
    pos = jnp.arange(10, dtype=jnp.int32)[None]
    cache = paged_cache.write(cache, 0, x, -x, pos, jnp.ones((1, 10), bool))
    k, v = paged_cache.gather(cache, 0)
    error = np.asarray((k[0, :10] - x[0]) / scale[0])
    assert 0.015 < np.sqrt((error**2).mean()) < 0.04  # 2.6 % rms, at any magnitude
    np.testing.assert_array_equal(k[0, :10], -v[0, :10])
    assert paged_cache.bytes_per_token(cache) == 2 * (64 + 4)


def test_key_reuse_stores_one_vector():
    cache, done = append(
        poisoned(key_reuse=True),
        [0] * B,
        [3, 0, 0, 0],
        np.random.default_rng(0).normal(size=(L, B, T, C)).astype(np.float32),
    )
    assert cache.v_pages is None and gather(cache, 0)[1] is None and done.all()
    assert paged_cache.bytes_per_token(cache) == L * C * 4


@pytest.mark.parametrize("name", ["batch", "max_pages", "head_dim", "page"])
def test_sizes_are_checked(name):
    make = functools.partial(paged_cache.init_cache, 1, 3)
    sizes = {"batch": 1, "max_pages": 1, "head_dim": 8, "page": 4}
    with pytest.raises(ValueError, match=name):
        make(**{**sizes, name: 0})
    with pytest.raises(ValueError, match="page 0 is reserved"):
        paged_cache.init_cache(1, 1, **sizes)


def test_absurd_counts_are_refused_not_wrapped():
    values = np.zeros((L, B, T, C), np.float32)
    cache, _ = append(poisoned(), [0] * B, [5, 0, 3, 0], values)
    after, done = reserve(cache, jnp.asarray([2**31 - 1, 2**31 - 1, -1, 0], jnp.int32))
    assert done.tolist() == [False, False, False, True]
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(a, b)
    for count in (jnp.ones(B), jnp.ones(B - 1, jnp.int32)):
        with pytest.raises(ValueError, match="count must be integers"):
            paged_cache.reserve(cache, count)


def test_sharing_with_nobody_changes_nothing():
    """Concrete numbers are refused; traced ones leave pages and owners as they were."""
    values = np.zeros((L, B, T, C), np.float32)
    cache, _ = append(poisoned(), [0] * B, [5, 3, 0, 0], values)
    for source, target in ((0, -1), (0, B), (B, 1), (-1, 0)):
        with pytest.raises(ValueError, match="must name a request, 0 to 3"):
            paged_cache.share(cache, source, target)
        after = share(cache, jnp.int32(source), jnp.int32(target))
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(cache), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_same_under_64_bits(x64):
    """Types stay what they are, and scales are those that the kernel takes."""
    cache = paged_cache.init_cache(
        1, 6, batch=2, max_pages=2, head_dim=8, page=4, dtype=quantization.FP8
    )
    before = jax.tree.map(lambda x: x.dtype, cache)
    cache, done = paged_cache.reserve(cache, jnp.asarray([5, 2]))
    pos = jnp.broadcast_to(jnp.arange(5, dtype=jnp.int32), (2, 5))
    x = jnp.ones((2, 5, 8))
    cache = paged_cache.write(cache, 0, x, x, pos, jnp.ones((2, 5), bool))
    cache = paged_cache.truncate(paged_cache.share(cache, 0, 1), jnp.asarray([4, 5]))
    assert done.all() and cache.lens.tolist() == [4, 5]
    assert jax.tree.map(lambda x: x.dtype, cache) == before
    assert cache.k_scale.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, quantization.FP8], ids=["bfloat16", "float8"])
def test_narrow_pages_are_written_in_place(dtype):
    """By what XLA compiles for a CPU, not by a clock: all pages are not converted, not copied."""
    cache = paged_cache.init_cache(1, 64, batch=2, max_pages=4, head_dim=16, page=8, dtype=dtype)

    def step(cache):
        x, pos = jnp.ones((2, 1, 16)), jnp.ones((2, 1), jnp.int32)
        return paged_cache.write(cache, 0, x, x, pos, jnp.ones((2, 1), bool))

    hlo = jax.jit(step, donate_argnums=0).lower(cache).compile().as_text()
    for line in hlo.splitlines():
        if "[1,64,8,16]" in line:
            assert " convert(" not in line and " copy(" not in line, line


def test_pages_are_copied_only_where_they_are_shared():
    """Nothing reads or writes pages outside the branch for shared ones."""
    cache = jax.eval_shape(poisoned)
    jaxpr = jax.make_jaxpr(paged_cache.reserve)(cache, jnp.ones(B, jnp.int32))

    def touching(jaxpr):
        return [
            eqn
            for eqn in jaxpr.eqns
            if any(getattr(x.aval, "shape", ()) == cache.k_pages.shape for x in eqn.outvars)
        ]

    (program,) = touching(jaxpr)  # reserve carries its own jit
    assert [eqn.primitive.name for eqn in touching(program.params["jaxpr"])] == ["cond"]


def test_a_vmapped_cache_is_a_loop_over_caches():
    caches = jax.tree.map(lambda *x: jnp.stack(x), *[poisoned(jnp.bfloat16)] * 2)
    values = np.random.default_rng(0).normal(size=(2, B, T, C)).astype(np.float32)
    count = jnp.asarray([[1, 2, 0, 3], [5, 0, 7, 1]], jnp.int32)

    def step(cache, count, x):
        cache, _ = paged_cache.reserve(cache, count)
        pos = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
        cache = paged_cache.write(cache, 1, x, -x, pos, pos < count[:, None])
        cache = paged_cache.share(cache, 0, 1)
        return paged_cache.reserve(cache, jnp.ones(B, jnp.int32))[0]

    step = jax.jit(step)
    many = jax.jit(jax.vmap(step))(caches, count, values)
    for i in range(2):
        one = step(jax.tree.map(lambda x, i=i: x[i], caches), count[i], values[i])
        for got, want in zip(many, one, strict=True):
            if got is not None:  # page 0 takes what is not kept, in any order
                keep = ... if got[i].ndim < 3 else (slice(None), slice(1, None))
                got, want = (np.asarray(x[keep], np.float32) for x in (got[i], want))
                np.testing.assert_array_equal(got, want)


def test_writing_without_reserving_writes_into_the_shared_page():
    """As documented: only `reserve` copies."""
    values = np.ones((L, B, T, C), np.float32)
    cache, _ = append(poisoned(), [0] * B, [3, 0, 0, 0], values)
    cache = share(cache, 0, 1)
    x = jnp.full((B, T, C), 5.0)
    keep = jnp.zeros((B, T), bool).at[1, 0].set(True)
    cache = write(cache, 0, x, x, jnp.ones((B, T), jnp.int32), keep)
    assert gather(cache, 0)[0][0, 1, 0] == 5.0
    cache, _ = reserve(cache, jnp.asarray([0, 1, 0, 0], jnp.int32))
    cache = write(cache, 0, -x, x, jnp.full((B, T), 3, jnp.int32), keep)
    assert gather(cache, 0)[0][0, 1, 0] == 5.0 and gather(cache, 0)[0][1, 3, 0] == -5.0
    assert np.isnan(gather(cache, 0)[0][0, 3, 0])


GOOD = {
    "layer": 0,
    "k": jnp.zeros((B, 1, C)),
    "v": jnp.zeros((B, 1, C)),
    "pos": jnp.zeros((B, 1), jnp.int32),
    "keep": jnp.ones((B, 1), bool),
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"v": None}, "v must be None for a cache with key reuse"),
        ({"layer": L}, "layer must name a layer, 0 to 1, got 2"),
        ({"layer": -1}, "layer must name a layer"),
        ({"layer": 0.0}, "layer must be an integer"),
        ({"k": jnp.zeros((1, 1, C))}, "k must be floats"),
        ({"v": jnp.zeros((B, 1, 1))}, "v must be floats"),
        ({"k": jnp.zeros((B, 1, C), jnp.int32)}, "k must be floats"),
        ({"pos": jnp.zeros((1, 1), jnp.int32)}, "pos and keep must be"),
        ({"pos": jnp.zeros((B, 1))}, "pos must be integers"),
        ({"keep": jnp.ones((B, 1), jnp.int32)}, "keep bool"),
    ],
)
def test_writes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        paged_cache.write(poisoned(), **{**GOOD, **change})
    with pytest.raises(ValueError, match="no values"):
        paged_cache.write(poisoned(key_reuse=True), **GOOD)


def test_other_numbers_that_do_not_fit_are_refused():
    cache = poisoned()
    for layer in (L, -1):
        with pytest.raises(ValueError, match="layer must name"):
            paged_cache.gather(cache, layer)
    for lens, message in (
        (jnp.full(B, -1, jnp.int32), "0 or more"),
        (jnp.ones(B), "lens must be integers"),
        (jnp.ones(B - 1, jnp.int32), "lens must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            paged_cache.truncate(cache, lens)
    with pytest.raises(ValueError, match="source must be an integer"):
        paged_cache.share(cache, 0.5, 1)
    for dtype in (jnp.int8, jnp.float8_e5m2):
        with pytest.raises(ValueError, match="dtype must be one of float16"):
            poisoned(dtype)


def test_traced_numbers_are_checked_under_checkify():
    cache = poisoned()
    checks = checkify.user_checks
    for run, argument, message in (
        (paged_cache.truncate, jnp.full(B, -1, jnp.int32), "lens must be 0 or more"),
        (lambda c, i: paged_cache.share(c, i, 0), jnp.int32(B), "source must be in 0 to 3"),
        (lambda c, i: paged_cache.write(c, **{**GOOD, "layer": i}), jnp.int32(-1), "layer must be"),
    ):
        error, _ = jax.jit(checkify.checkify(run, errors=checks))(cache, argument)
        assert message in error.get()
    after = jax.jit(lambda c, i: paged_cache.write(c, **{**GOOD, "layer": i}))(cache, -1)
    np.testing.assert_array_equal(after.k_pages[:, 1:], cache.k_pages[:, 1:])
