"""Random sequences of operations on a paged cache against lists of tokens."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving import paged_cache, quantization

L, B, PAGE, MOST, N, C, T = 2, 4, 4, 5, 14, 3, 7
reserve, truncate = jax.jit(paged_cache.reserve), jax.jit(paged_cache.truncate)
share, write = jax.jit(paged_cache.share), jax.jit(paged_cache.write, static_argnums=1)
gather = jax.jit(paged_cache.gather, static_argnums=1)


def poisoned(**options):
    cache = paged_cache.init_cache(
        L, N, batch=B, max_pages=MOST, head_dim=C, page=PAGE, dtype=jnp.float32, **options
    )
    pages = {"k_pages": cache.k_pages * jnp.nan}
    if cache.v_pages is not None:
        pages["v_pages"] = cache.v_pages * jnp.nan
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
@hypothesis.given(operations)
def test_random_operations(steps):
    rng = np.random.default_rng(0)
    cache, model = poisoned(), [[] for _ in range(B)]
    for name, argument in steps:
        if name == "append":
            values = rng.normal(size=(L, B, T, C)).astype(np.float32)
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
        poisoned(key_reuse=True), [0] * B, [3, 0, 0, 0],
        np.random.default_rng(0).normal(size=(L, B, T, C)).astype(np.float32),
    )  # fmt: skip
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
