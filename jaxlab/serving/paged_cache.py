"""A paged cache of keys and values: fixed-size pages, tables of page numbers, shared prefixes.

Requests own rows of a table; a row names the pages that hold the request's tokens, in order. Pages
come from a stack of free ones and are counted, so that requests can share a prefix; a shared page
is copied before it is written. Everything is a pytree of fixed shapes, and every function is pure
and jittable. Page 0 is never given away: unused entries of tables point to it.

A request that would not fit is left as it was and named in the returned mask; the others go on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxlab.serving import quantization


class PagedCache(NamedTuple):
    """Keys and values of all layers, and who owns them.

    Attributes:
        k_pages, v_pages: `[L, N, page, C]`; with key reuse v_pages is None.
        k_scale, v_scale: `[L, N, page]` float32 where pages are in eight bits, else None.
        page_table: `[B, P]` int32, page numbers; 0 where there is none.
        lens: `[B]` int32, tokens of each request.
        num_owners: `[N]` int32, requests that name a page.
        free: `[N]` int32, a stack of free pages.  num_free: int32, its height.
    """

    k_pages: Array
    v_pages: Array | None
    k_scale: Float[Array, "L N page"] | None
    v_scale: Float[Array, "L N page"] | None
    page_table: Int[Array, "B P"]
    lens: Int[Array, " B"]
    num_owners: Int[Array, " N"]
    free: Int[Array, " N"]
    num_free: Int[Array, ""]

    @property
    def page(self) -> int:
        """Tokens of a page."""
        return self.k_pages.shape[2]


def init_cache(
    num_layers: int,
    num_pages: int,
    *,
    batch: int,
    max_pages: int,
    head_dim: int,
    page: int = 64,
    dtype: Any = jnp.bfloat16,
    key_reuse: bool = False,
) -> PagedCache:
    """Makes an empty cache; `num_pages` includes page 0, which holds nothing.

    Args:
        batch: requests at a time.  max_pages: most pages of a request.
        dtype: of the pages; `quantization.FP8` adds scales, one per token.

    Raises:
        ValueError: if a size is not positive, or there is no page but page 0.
    """
    sizes = {
        "num_layers": num_layers, "batch": batch, "max_pages": max_pages, "head_dim": head_dim,
        "page": page,
    }  # fmt: skip
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if num_pages < 2:
        raise ValueError(f"num_pages must be at least 2, page 0 is reserved; got {num_pages}")
    shape = (num_layers, num_pages, page, head_dim)
    eight_bits = jnp.dtype(dtype) == jnp.dtype(quantization.FP8)
    vectors = 1 if key_reuse else 2
    pages = [jnp.zeros(shape, dtype) for _ in range(vectors)]
    scales = (
        [jnp.ones(shape[:3], jnp.float32) for _ in range(vectors)]
        if eight_bits
        else [None] * vectors
    )
    return PagedCache(
        k_pages=pages[0], v_pages=None if key_reuse else pages[1],
        k_scale=scales[0], v_scale=None if key_reuse else scales[1],
        page_table=jnp.zeros((batch, max_pages), jnp.int32),
        lens=jnp.zeros((batch,), jnp.int32),
        num_owners=jnp.zeros((num_pages,), jnp.int32),
        free=jnp.arange(num_pages, dtype=jnp.int32)[::-1],  # page 1 on top, page 0 at the bottom
        num_free=jnp.asarray(num_pages - 1, jnp.int32),
    )  # fmt: skip


def reserve(cache: PagedCache, count: Int[Array, " B"]) -> tuple[PagedCache, Bool[Array, " B"]]:
    """Makes room for `count` more tokens of each request, and counts them in.

    New pages come from the stack. A partial last page that others share is copied first, so that
    writing to it is the request's own affair. Write the tokens afterwards, at the positions from
    the old length on.

    Returns:
        `(cache, done)`: requests for which pages or table entries are missing are left unchanged.

    Raises:
        ValueError: if `count` is not one integer a request.
    """
    count = jnp.asarray(count)
    if count.shape != cache.lens.shape or not jnp.issubdtype(count.dtype, jnp.integer):
        raise ValueError(
            f"count must be integers {cache.lens.shape}, got {count.dtype} {count.shape}"
        )
    num_entries = cache.page_table.shape[1]
    entry = jnp.arange(num_entries, dtype=jnp.int32)
    page = cache.page

    def one(carry: tuple, request: tuple) -> tuple[tuple, tuple]:
        num_owners, num_free = carry
        row, length, more = request
        fits = (more >= 0) & (more <= num_entries * page - length)
        more = jnp.where(fits, more, 0)
        have, need = _num_pages(length, page), _num_pages(length + more, page)
        last = row[jnp.maximum(have - 1, 0)]
        copied = (more > 0) & (length % page != 0) & (num_owners[last] > 1)
        taken = need - have + copied.astype(jnp.int32)
        done = fits & (taken <= num_free)

        fresh = done & (entry >= have) & (entry < need)
        order = entry - have + copied.astype(jnp.int32)
        row = jnp.where(fresh, cache.free[num_free - 1 - order], row)
        copied = copied & done
        target = jnp.where(copied, cache.free[num_free - 1], 0)
        row = jnp.where(copied & (entry == have - 1), target, row)
        owned = fresh | (copied & (entry == have - 1))
        num_owners = num_owners.at[jnp.where(owned, row, 0)].add(owned.astype(jnp.int32))
        num_owners = num_owners.at[last].add(-copied.astype(jnp.int32))
        num_free = num_free - jnp.where(done, taken, 0)
        length = jnp.where(done, length + more, length)
        return (num_owners, num_free), (row, length, done, jnp.where(copied, last, 0), target)

    start = (cache.num_owners, cache.num_free)
    (num_owners, num_free), (table, lens, done, source, target) = jax.lax.scan(
        one, start, (cache.page_table, cache.lens, count.astype(jnp.int32))
    )
    cache = cache._replace(
        page_table=table, lens=lens, num_owners=num_owners, num_free=num_free
    )  # fmt: skip
    target = jnp.where(target > 0, target, cache.k_pages.shape[1])  # nowhere: dropped
    copy = lambda x: x.at[:, target].set(x[:, source], mode="drop")  # noqa: E731
    return _map_pages(copy, cache), done


def truncate(cache: PagedCache, lens: Int[Array, " B"]) -> PagedCache:
    """Shortens requests to at most these lengths, 0 to release one, and frees unowned pages.

    Drafted tokens that verification rejects go this way.
    """
    lens = jnp.clip(jnp.asarray(lens, jnp.int32), 0, cache.lens)
    entry = jnp.arange(cache.page_table.shape[1], dtype=jnp.int32)[None]
    kept, had = (_num_pages(n, cache.page)[:, None] for n in (lens, cache.lens))
    given_up = (entry >= kept) & (entry < had)
    lost = jnp.zeros_like(cache.num_owners).at[cache.page_table].add(given_up.astype(jnp.int32))
    num_owners = cache.num_owners - lost
    idle = (lost > 0) & (num_owners == 0)
    place = jnp.where(idle, cache.num_free + jnp.cumsum(idle, dtype=jnp.int32) - 1, idle.size)
    number = jnp.arange(idle.size, dtype=jnp.int32)
    return cache._replace(
        page_table=jnp.where(given_up, 0, cache.page_table),
        lens=lens,
        num_owners=num_owners,
        free=cache.free.at[place].set(number, mode="drop"),
        num_free=cache.num_free + jnp.sum(idle, dtype=jnp.int32),
    )


def share(cache: PagedCache, source: int | Array, target: int | Array) -> PagedCache:
    """Lets request `target` start as a copy of `source` that shares its pages.

    What `target` held is released. No page is copied before one of the two writes to it. Traced
    numbers that name no request change nothing.

    Raises:
        ValueError: if concrete numbers name no request.
    """
    size = cache.lens.size
    for name, number in (("source", source), ("target", target)):
        if not isinstance(number, Tracer) and not 0 <= int(number) < size:
            raise ValueError(f"{name} must name a request, 0 to {size - 1}, got {int(number)}")
    source, target = (jnp.asarray(number, jnp.int32) for number in (source, target))
    named = (source >= 0) & (source < size) & (target >= 0) & (target < size)
    same = (source == target) | ~named
    source, target = (jnp.where(named, number, 0) for number in (source, target))
    is_target = jnp.arange(size, dtype=jnp.int32) == target
    cache = truncate(cache, jnp.where(is_target & ~same, 0, cache.lens))
    row, length = cache.page_table[source], cache.lens[source]
    entry = jnp.arange(row.size, dtype=jnp.int32)
    owned = (entry < _num_pages(length, cache.page)) & ~same
    return cache._replace(
        page_table=cache.page_table.at[target].set(jnp.where(same, cache.page_table[target], row)),
        lens=cache.lens.at[target].set(jnp.where(same, cache.lens[target], length)),
        num_owners=cache.num_owners.at[row].add(owned.astype(jnp.int32)),
    )


def write(
    cache: PagedCache,
    layer: int | Array,
    k: Float[Array, "B T C"],
    v: Float[Array, "B T C"] | None,
    pos: Int[Array, "B T"],
    keep: Bool[Array, "B T"],
) -> PagedCache:
    """Writes tokens of one layer at their positions; those not kept, or beyond a request, are not.

    Args:
        k, v: `[B, T, C]`; v is None with key reuse.
        pos: `[B, T]`, below the reserved lengths.  keep: `[B, T]`.
    """
    inside = keep & (pos >= 0) & (pos < cache.lens[:, None])
    entry = jnp.clip(pos // cache.page, 0, cache.page_table.shape[1] - 1)
    number = jnp.take_along_axis(cache.page_table, entry, axis=1)
    number = jnp.where(inside, number, cache.k_pages.shape[1])  # beyond the last page: dropped
    offset = pos % cache.page

    def put(pages: Array, scale: Array | None, new: Array) -> tuple[Array, Array | None]:
        if scale is None:
            return pages.at[layer, number, offset].set(new.astype(pages.dtype), mode="drop"), None
        values, scales = quantization.quantize_groups(new)
        pages = pages.at[layer, number, offset].set(values, mode="drop")
        return pages, scale.at[layer, number, offset].set(scales[..., 0], mode="drop")

    k_pages, k_scale = put(cache.k_pages, cache.k_scale, k)
    cache = cache._replace(k_pages=k_pages, k_scale=k_scale)
    if v is None or cache.v_pages is None:
        return cache
    v_pages, v_scale = put(cache.v_pages, cache.v_scale, v)
    return cache._replace(v_pages=v_pages, v_scale=v_scale)


def gather(
    cache: PagedCache, layer: int | Array, dtype: Any = jnp.float32
) -> tuple[Array, Array | None]:
    """Returns keys and values of all requests, `[B, P page, C]`; garbage beyond a length."""

    def dense(pages: Array | None, scale: Array | None) -> Array | None:
        if pages is None:
            return None
        x = pages[layer, cache.page_table].astype(jnp.float32)
        if scale is not None:
            x = x * scale[layer, cache.page_table][..., None]
        return x.reshape(x.shape[0], -1, x.shape[-1]).astype(dtype)

    k = dense(cache.k_pages, cache.k_scale)
    assert k is not None
    return k, dense(cache.v_pages, cache.v_scale)


def bytes_per_token(cache: PagedCache) -> int:
    """Returns the bytes that one token takes in all layers, scales included."""
    arrays = (cache.k_pages, cache.v_pages, cache.k_scale, cache.v_scale)
    slots = cache.k_pages.shape[1] * cache.page
    return sum(x.size * x.dtype.itemsize for x in arrays if x is not None) // slots


def _num_pages(length: Array, page: int) -> Array:
    return (length + page - 1) // page


def _map_pages(fn, cache: PagedCache) -> PagedCache:
    pages = {name: getattr(cache, name) for name in ("k_pages", "v_pages", "k_scale", "v_scale")}
    return cache._replace(**{name: None if x is None else fn(x) for name, x in pages.items()})
