"""A paged cache of keys and values: fixed-size pages, tables of page numbers, shared prefixes.

Requests own rows of a table; a row names the pages that hold the request's tokens, in order. Pages
come from a stack of free ones and are counted, so that requests can share a prefix; a shared page
is copied before it is written. Everything is a pytree of fixed shapes, and every function is pure
and jittable. Page 0 is never given away: unused entries of tables point to it, and tokens that are
not kept are written there.

A request that would not fit is left as it was and named in the returned mask; the others go on.
Concrete numbers that are out of range are refused; traced ones are checked under `checkify`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxlab.serving.cache import quantization

DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, quantization.FP8)
"""Of pages."""


class PagedCache(NamedTuple):
    """Keys and values of all layers, and who owns them.

    Attributes:
        k_pages: `[L, N, page, C]`, keys.
        v_pages: `[L, N, page, C]`, values; None with key reuse.
        k_scale: `[L, N, page]` float32, scales of the keys where pages are in eight bits, else
            None.
        v_scale: `[L, N, page]` float32, scales of the values, or None.
        page_table: `[B, P]` int32, numbers of each request's pages; 0 where there is none.
        lens: `[B]` int32, number of tokens of each request.
        num_owners: `[N]` int32, number of requests that name a page.
        free: `[N]` int32, a stack of the numbers of free pages.
        num_free: int32, the height of that stack.
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
        batch: number of requests at a time.
        max_pages: largest number of pages of a request.
        dtype: dtype of the pages; `quantization.FP8` adds scales, one per token.

    Raises:
        ValueError: if a size is not positive, there is no page but page 0, or pages cannot have
            the dtype.
    """
    if jnp.dtype(dtype) not in DTYPES:
        names = ", ".join(jnp.dtype(d).name for d in DTYPES)
        raise ValueError(f"dtype must be one of {names}, got {jnp.dtype(dtype).name}")
    sizes = {
        "num_layers": num_layers,
        "batch": batch,
        "max_pages": max_pages,
        "head_dim": head_dim,
        "page": page,
    }
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
        k_pages=pages[0],
        v_pages=None if key_reuse else pages[1],
        k_scale=scales[0],
        v_scale=None if key_reuse else scales[1],
        page_table=jnp.zeros((batch, max_pages), jnp.int32),
        lens=jnp.zeros((batch,), jnp.int32),
        num_owners=jnp.zeros((num_pages,), jnp.int32),
        free=jnp.arange(num_pages, dtype=jnp.int32)[::-1],  # page 1 on top, page 0 at the bottom
        num_free=jnp.asarray(num_pages - 1, jnp.int32),
    )


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
    return _reserve(cache, count)


@jax.jit
def _reserve(cache: PagedCache, count: Array) -> tuple[PagedCache, Array]:
    """Compiled once for all values, also where it is called eagerly."""
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
    cache = cache._replace(page_table=table, lens=lens, num_owners=num_owners, num_free=num_free)

    def copy(pages: dict) -> dict:  # where nothing is to be copied, page 0 to itself
        def one(x: Array) -> Array:
            start = jnp.zeros((target.size, x.ndim), jnp.int32).at[:, 1].set(target)
            pages = _bits(x)[:, source]  # not every CPU can convert eight bits, which XLA would
            return _write_blocks(x, start, jnp.moveaxis(pages, 1, 0)[:, :, None])

        return jax.tree.map(one, pages)

    pages = {name: getattr(cache, name) for name in ("k_pages", "v_pages", "k_scale", "v_scale")}
    pages = jax.lax.cond(jnp.any(target > 0), copy, lambda pages: pages, pages)
    return cache._replace(**pages), done


def truncate(cache: PagedCache, lens: Int[Array, " B"]) -> PagedCache:
    """Shortens requests to at most these lengths, 0 to release one, and frees unowned pages.

    Drafted tokens that verification rejects go this way. A request that is shorter stays as it is.

    Raises:
        ValueError: if `lens` is not one integer a request, or a concrete one is negative.
    """
    lens = jnp.asarray(lens)
    if lens.shape != cache.lens.shape or not jnp.issubdtype(lens.dtype, jnp.integer):
        raise ValueError(f"lens must be integers {cache.lens.shape}, got {lens.dtype} {lens.shape}")
    if isinstance(lens, Tracer):
        checkify.debug_check(jnp.all(lens >= 0), "lens must be 0 or more")
    elif (least := np.asarray(lens).min()) < 0:
        raise ValueError(f"lens must be 0 or more, 0 releases a request; got {least}")
    lens = jnp.clip(lens, 0, cache.lens.astype(lens.dtype)).astype(jnp.int32)
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

    What `target` held is released. No page is copied before one of the two reserves room behind it.
    Traced numbers that name no request change nothing.

    Raises:
        ValueError: if numbers are not integers, or concrete ones name no request.
    """
    size = cache.lens.size
    _check_index("source", "request", source, size)
    _check_index("target", "request", target, size)
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

    `reserve` counts the tokens in first and copies a shared page that they go to. A position that
    it did not just reserve may lie in a page that others share: writing there changes it for all.

    Args:
        layer: index of the layer, below L; a traced one that is not writes nothing.
        k: `[B, T, C]` of any float dtype, cast to that of the pages.
        v: `[B, T, C]` likewise, or None with key reuse.
        pos: `[B, T]` integers, below the reserved lengths.
        keep: `[B, T]` bool, True for tokens that are written.

    Raises:
        ValueError: if shapes or dtypes do not fit the cache, or a concrete layer does not exist.
    """
    _check_tokens(cache, k, v, pos, keep)
    _check_index("layer", "layer", layer, cache.k_pages.shape[0])
    layer = jnp.asarray(layer, jnp.int32)
    pos = pos.astype(jnp.int32)
    inside = keep & (pos >= 0) & (pos < cache.lens[:, None])
    inside = inside & (layer >= 0) & (layer < cache.k_pages.shape[0])
    entry = jnp.clip(pos // cache.page, 0, cache.page_table.shape[1] - 1)
    number = jnp.take_along_axis(cache.page_table, entry, axis=1)
    number = jnp.where(inside, number, 0)  # page 0 takes what is not kept: nobody reads it
    slots = (jnp.broadcast_to(layer, pos.shape), number, pos % cache.page)

    def put(pages: Array, scale: Array | None, new: Array) -> tuple[Array, Array | None]:
        if scale is None:
            return _write_slots(pages, slots, new.astype(pages.dtype)), None
        values, scales = quantization.quantize_groups(new)
        return _write_slots(pages, slots, values), _write_slots(scale, slots, scales[..., 0])

    k_pages, k_scale = put(cache.k_pages, cache.k_scale, k)
    cache = cache._replace(k_pages=k_pages, k_scale=k_scale)
    if v is None or cache.v_pages is None:
        return cache
    v_pages, v_scale = put(cache.v_pages, cache.v_scale, v)
    return cache._replace(v_pages=v_pages, v_scale=v_scale)


def gather(
    cache: PagedCache, layer: int | Array, dtype: Any = jnp.float32
) -> tuple[Array, Array | None]:
    """Returns keys and values of all requests, `[B, P page, C]`; garbage beyond a length.

    Raises:
        ValueError: if a concrete layer does not exist.
    """
    _check_index("layer", "layer", layer, cache.k_pages.shape[0])

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


@jax.jit
def _write_slots(pages: Array, slots: tuple[Array, Array, Array], new: Array) -> Array:
    """Writes `new` at layers, pages and offsets, in place if `pages` is donated.

    Around a scatter of narrow floats XLA converts all pages on a CPU: there, one after another.
    """

    def at_once(pages: Array, slots: tuple, new: Array) -> Array:
        return pages.at[slots].set(new)

    def in_turn(pages: Array, slots: tuple, new: Array) -> Array:
        start = jnp.stack([*slots, jnp.zeros_like(slots[0])], axis=-1).reshape(-1, 4)
        return _write_blocks(pages, start, new.reshape(-1, 1, 1, 1, new.shape[-1]))

    if pages.dtype.itemsize > 2:
        return at_once(pages, slots, new)
    return jax.lax.platform_dependent(pages, slots, new, cpu=in_turn, default=at_once)


def _write_blocks(pages: Array, start: Int[Array, "n d"], blocks: Shaped[Array, "n ..."]) -> Array:
    """Writes blocks, or their bits, one after another."""

    def one(pages: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        written = jax.lax.dynamic_update_slice(_bits(pages), block[1], tuple(block[0]))
        return jax.lax.bitcast_convert_type(written, pages.dtype), None

    return jax.lax.scan(one, pages, (start, _bits(blocks)))[0]


def _bits(x: Array) -> Array:
    """Returns narrow floats as integers of their width, and others as they are."""
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, x.dtype)
    return jax.lax.bitcast_convert_type(x, bits)


def _check_index(name: str, what: str, number: int | Array, size: int) -> None:
    if jnp.ndim(number) or not jnp.issubdtype(jnp.result_type(number), jnp.integer):
        raise ValueError(f"{name} must be an integer that names a {what}, got {number}")
    if isinstance(number, Tracer):
        named = (number >= 0) & (number < size)
        checkify.debug_check(named, name + " must be in 0 to {last}", last=jnp.int32(size - 1))
    elif not 0 <= int(number) < size:
        raise ValueError(f"{name} must name a {what}, 0 to {size - 1}, got {int(number)}")


def _check_tokens(cache: PagedCache, k: Array, v: Array | None, pos: Array, keep: Array) -> None:
    if (v is None) != (cache.v_pages is None):
        raise ValueError(
            "v must be None for a cache with key reuse, and for no other: this cache has "
            f"{'no values' if cache.v_pages is None else 'values'}"
        )
    want = (*pos.shape, cache.k_pages.shape[-1])
    if pos.ndim != 2 or pos.shape[0] != cache.lens.size or pos.shape != keep.shape:
        raise ValueError(
            f"pos and keep must be [B, T] with B = {cache.lens.size}, got {pos.shape} and "
            f"{keep.shape}"
        )
    for name, x in (("k", k), ("v", v)):
        if x is not None and (x.shape != want or not jnp.issubdtype(x.dtype, jnp.floating)):
            raise ValueError(f"{name} must be floats {want}, got {x.dtype} {x.shape}")
    if not jnp.issubdtype(pos.dtype, jnp.integer) or keep.dtype != jnp.bool_:
        raise ValueError(f"pos must be integers and keep bool, got {pos.dtype} and {keep.dtype}")
