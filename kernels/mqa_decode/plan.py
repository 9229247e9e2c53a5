"""The staircase: equal shares of ragged work for every processor, and the merge of what they find.

Requests are cut into pages, the pages of all requests are laid end to end, and each of `num_parts`
persistent programs takes an equal run of them. A run may end one request and begin others; each
piece, a part's pages of one request, leaves a partial result in slot part + request. Along the
staircase part and request never fall and one of them grows, so no slot is used twice.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from .. import compat, paged

EMPTY = -jnp.inf
"""Base-2 log-sum-exp of a piece without tokens."""
FINE, NEGATIVE, TOO_LONG = 0, 1, 2
"""Statuses of a request."""


class Plan(NamedTuple):
    """Who reads which page; B requests of at most P pages.

    Attributes:
        flat_page: `[B P]` int32, page numbers of all requests end to end.
        first: `[B + 1]` int32, where a request's pages begin in `flat_page`; the last is the end.
        begin, end: `[num_parts]` int32, the run of each part in `flat_page`.
        first_request, last_request: `[num_parts]` int32, requests [first, last) of each part.
        slot_request: `[num_parts + B]` int32, the request of each slot, B where it is unused.
        status: `[B]` int32, `FINE`; `NEGATIVE`: the length was below 0 and is taken for 0; or
            `TOO_LONG`: it was more than P pages hold and is taken for that.
    """

    flat_page: jax.Array
    first: jax.Array
    begin: jax.Array
    end: jax.Array
    first_request: jax.Array
    last_request: jax.Array
    slot_request: jax.Array
    status: jax.Array


def decode_plan(
    lens: jax.Array, page_table: jax.Array, *, page: int, num_parts: int | None = None
) -> Plan:
    """Divides the pages of all requests evenly; all shapes depend on B, P and `num_parts` alone.

    A plan serves all layers of a step: their lengths are the same, and where their pages are a
    fixed distance apart in one array, `flat_page` plus that distance is the next layer's.

    Args:
        lens: `[B]` int32, tokens of each request, 0 allowed. A traced one that is out of range
            spoils its own request alone, see `Plan.status`.
        page_table: `[B, P]` int32.
        page: tokens of a page.
        num_parts: persistent programs, those of the default device's processors by default.

    Raises:
        ValueError: if shapes or dtypes do not fit, or a concrete length is not in 0 to P page;
            traced ones are checked under `checkify`.
    """
    if page_table.ndim != 2 or lens.shape != page_table.shape[:1] or 0 in page_table.shape:
        raise ValueError(
            f"lens must be [B] and page_table [B, P], got {lens.shape} and {page_table.shape}"
        )
    paged.check_integers(page_table=page_table, lens=lens)
    num_parts = compat.num_processors() if num_parts is None else num_parts
    if page < 1 or num_parts < 1:
        raise ValueError(f"page and num_parts must be at least 1, got {page} and {num_parts}")
    paged.check_lengths(lens, page_table.shape[1] * page)
    return _divided(lens, page_table, page=page, num_parts=num_parts)


def check_plan(plan: Plan, lens: jax.Array, P: int, page: int) -> None:
    """Checks that a plan is of requests of P pages, of as many as these lengths take.

    Raises:
        ValueError: if it is of other sizes, a concrete status is not `FINE`, or concrete lengths
            take other numbers of pages, as those of a later step may; traced ones are checked under
            `checkify`.
    """
    B = lens.shape[0]
    num_parts = plan.begin.shape[0]
    sizes = plan.flat_page.shape[0], plan.first.shape[0], plan.slot_request.shape[0]
    if sizes != (B * P, B + 1, num_parts + B):
        raise ValueError(
            f"plan must be decode_plan's for {B} requests of {P} pages, got one of "
            f"{plan.first.shape[0] - 1} requests with {plan.flat_page.shape[0]} pages"
        )
    wrong = paged.first_where(plan.status, lambda status: status != FINE)
    if wrong is not None:
        why = "negative" if int(plan.status[wrong]) == NEGATIVE else "beyond its pages"
        raise ValueError(f"plan was made of a length that is {why}, that of request {wrong}")
    num_pages = plan.first[1:] - plan.first[:-1]
    amiss = num_pages != (jnp.clip(lens, 0, P * page) + page - 1) // page
    wrong = paged.first_where(amiss, lambda amiss: amiss)
    if wrong is not None:
        raise ValueError(
            f"plan gives request {wrong} {int(num_pages[wrong])} pages of {page} tokens, it has "
            f"{int(lens[wrong])} tokens; make a plan for each step"
        )
    checkify.debug_check(~jnp.any(amiss), "plan is of other lengths; make one for each step")


@functools.partial(jax.jit, static_argnames=("page", "num_parts"))
def _divided(lens: jax.Array, page_table: jax.Array, *, page: int, num_parts: int) -> Plan:
    B, P = page_table.shape
    status = jnp.where(lens < 0, NEGATIVE, jnp.where(lens > P * page, TOO_LONG, FINE))
    lens = jnp.clip(lens, 0, P * page)
    num_pages = (lens + page - 1) // page
    first = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(num_pages, dtype=jnp.int32)])
    total = first[-1]
    flat = jnp.arange(B * P, dtype=jnp.int32)
    # The request of a flat page is the number of requests that have ended before it.
    ended = jnp.zeros((B * P + 1,), jnp.int32).at[first[1:-1]].add(1)
    request = jnp.cumsum(ended, dtype=jnp.int32)[:-1]
    within = jnp.clip(flat - first[request], 0, P - 1)
    flat_page = jnp.where(flat < total, page_table[request, within], 0)

    share = jnp.maximum(1, (total + num_parts - 1) // num_parts)
    part = jnp.arange(num_parts, dtype=jnp.int32)
    begin, end = jnp.minimum(part * share, total), jnp.minimum((part + 1) * share, total)
    busy = begin < end
    first_request = jnp.where(busy, request[jnp.minimum(begin, B * P - 1)], 0)
    last_request = jnp.where(busy, request[jnp.maximum(end - 1, 0)] + 1, 0)

    # Slot s belongs to request b if some part p = s - b has pages of b. The parts of b are those
    # from first[b] // share to (first[b + 1] - 1) // share.
    b = jnp.arange(B, dtype=jnp.int32)
    low, high = first[:-1] // share + b, (first[1:] - 1) // share + b  # slots of b
    slot = jnp.arange(num_parts + B, dtype=jnp.int32)
    owner = jnp.sum(high[None] < slot[:, None], axis=1, dtype=jnp.int32)
    inside = low[jnp.minimum(owner, B - 1)] <= slot
    filled = num_pages[jnp.minimum(owner, B - 1)] > 0
    slot_request = jnp.where((owner < B) & inside & filled, owner, B)
    return Plan(
        flat_page.astype(jnp.int32),
        first,
        begin,
        end,
        first_request,
        last_request,
        slot_request,
        status.astype(jnp.int32),
    )


def merge_splits(out: jax.Array, lse2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Merges the softmax averages of fixed splits along axis 1, in float32 and in their order.

    Args:
        out: `[B, N, R, C]`.  lse2: `[B, N, R]`, base-2 log-sum-exp, -inf where a split is empty.

    Returns:
        `([B, R, C], [B, R])`; zeros and -inf where all are empty.
    """
    top = jnp.max(lse2, axis=1)
    safe = jnp.where(jnp.isfinite(top), top, 0.0)
    weight = jnp.exp2(lse2 - safe[:, None])  # exp2(-inf) = 0
    total = jnp.sum(weight, axis=1)
    kept = jnp.where(weight[..., None] > 0.0, out, 0.0)
    merged = (
        jnp.sum(kept * weight[..., None], axis=1) / jnp.where(total > 0.0, total, 1.0)[..., None]
    )
    return merged, jnp.where(total > 0.0, safe + jnp.log2(jnp.maximum(total, 1e-37)), EMPTY)


def merge_partials(
    out: jax.Array, lse2: jax.Array, request: jax.Array, num_requests: int
) -> tuple[jax.Array, jax.Array]:
    """Merges partial softmax averages of each request, in float32.

    o = sum_i w_i o_i / sum_i w_i with w_i = 2^(lse2_i - max lse2).

    Args:
        out: `[S, R, C]`, averages of S pieces with R rows.
        lse2: `[S, R]`, base-2 log-sum-exp, -inf where a piece is empty.
        request: `[S]` int32, `num_requests` for a slot that holds nothing.
        num_requests: B.

    Returns:
        `([B, R, C], [B, R])`; zeros and -inf for a request without pieces.
    """
    unused = (request >= num_requests)[:, None]
    lse2 = jnp.where(unused, EMPTY, lse2)
    top = jax.ops.segment_max(lse2, request, num_requests + 1)[:num_requests]
    safe = jnp.where(jnp.isfinite(top), top, 0.0)
    padded = jnp.concatenate([safe, jnp.zeros_like(safe[:1])])
    weight = jnp.exp2(lse2 - padded[request])  # exp2(-inf) = 0
    kept = jnp.where(weight[..., None] > 0.0, out.astype(jnp.float32), 0.0)  # slots may hold NaN
    total = jax.ops.segment_sum(weight, request, num_requests + 1)[:num_requests]
    summed = jax.ops.segment_sum(kept * weight[..., None], request, num_requests + 1)[:num_requests]
    merged = summed / jnp.where(total > 0.0, total, 1.0)[..., None]
    return merged, jnp.where(total > 0.0, safe + jnp.log2(jnp.maximum(total, 1e-37)), EMPTY)
