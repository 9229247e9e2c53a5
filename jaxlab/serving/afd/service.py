"""Continuous batching on the paged cache: requests come, wait, decode side by side, and go.

The scheduler is a host record that pure functions take from one step to the next; the model is any
function with the signature of `step3_decode_step`, on one device or on many. Requests are admitted
in the order in which they came. When pages run out the youngest is evicted: it waits again, and
what it had is written to the cache anew when there is room.

A token is drawn with a key of its request's seed and its position alone, so that neighbors,
evictions and restarts do not change it. Logits, however, are those of another batch or chunk, and
may differ in their last bits: tokens are equal unless two of them are within that rounding. The
bits are equal too if a request is cut into the same chunks among the same number of slots, and the
step computes each row by itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxlab.serving.cache import paged_cache
from jaxlab.serving.cache.paged_cache import PagedCache
from jaxlab.serving.model import sampling

MAX_SEED = 2**32 - 1
"""The largest seed of a request."""


class Request(NamedTuple):
    """What a user asks for.

    Attributes:
        prompt: tokens to go on from, at least one.
        max_new: largest number of tokens to generate.
        stop: token that ends the answer, of which it is the last; None for none.
        temperature: what logits are divided by; 0 takes the most probable token.
        top_p: tokens are drawn from the fewest most probable ones that have this probability.
        seed: 0 to `MAX_SEED`; with equal seeds equal requests draw equal tokens.
    """

    prompt: Sequence[int]
    max_new: int
    stop: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Progress(NamedTuple):
    """How far a request is.

    Attributes:
        request: what was asked for.
        tokens: what was generated so far.
        status: "waiting", "running", "finished", "cancelled" or "failed".
        reason: why it failed.
    """

    request: Request
    tokens: tuple[int, ...] = ()
    status: str = "waiting"
    reason: str = ""

    @property
    def known(self) -> tuple[int, ...]:
        """Prompt and generated tokens."""
        return (*self.request.prompt, *self.tokens)


class ServiceState(NamedTuple):
    """Everything between two steps.

    Attributes:
        cache: keys and values. Rows may be longer than `lens`; the next step cuts them off.
        slots: for each row of the cache the number of its request, or None.
        lens: number of tokens of each row that count.
        waiting: numbers of requests that have no slot, the oldest first.
        progress: by number, all requests that have not been taken away.
        next_number: number of the next request.
        is_open: whether requests are accepted.
    """

    cache: PagedCache
    slots: tuple[int | None, ...]
    lens: tuple[int, ...]
    waiting: tuple[int, ...] = ()
    progress: dict[int, Progress] = {}  # noqa: RUF012 - never changed, always replaced
    next_number: int = 0
    is_open: bool = True


class Pool(NamedTuple):
    """What slots share their pages: those of one attention instance, which follow each other.

    Attributes:
        num_instances: attention instances, 1 for a cache without an axis of them.
        num_slots: requests that run at a time in one of them.
        num_pages: pages of one, without page 0.
        page: tokens of a page.
        table_size: most pages of a request.
    """

    num_instances: int
    num_slots: int
    num_pages: int
    page: int
    table_size: int

    def pages(self, length: int) -> int:
        """Pages that a length takes."""
        return math.ceil(length / self.page)

    def instance(self, slot: int) -> int:
        """The instance of a slot."""
        return slot // self.num_slots


class Service(NamedTuple):
    """Functions that need to know the model; the others are functions of this module.

    Attributes:
        init: `init() -> state` with an empty cache.
        submit: `submit(state, request, tokens=()) -> (state, number)`; with tokens that another
            service generated it goes on behind them. A ValueError refuses what cannot be served.
        advance: `advance(state) -> state` admits, prefills a chunk and decodes a token of every
            request that is running. An error of the step goes through; `restart` the state then.
        restart: `restart(state) -> state` with an empty cache; what was running waits.
    """

    init: Callable[[], ServiceState]
    submit: Callable[..., tuple[ServiceState, int]]
    advance: Callable[[ServiceState], ServiceState]
    restart: Callable[[ServiceState], ServiceState]


def make_service(
    step: Callable[..., tuple[Array, PagedCache, Array]],
    params: Any,
    config: Any,
    init_cache: Callable[[], PagedCache],
    *,
    chunk: int = 64,
    num_instances: int | None = None,
) -> Service:
    """Makes a service on top of a decode step.

    The step is called with `[B, chunk]` and `[B, 1]` tokens only: two programs if it is jitted, and
    no others whatever comes.

    Args:
        step: `step(params, cache, tokens, config, active=...) -> (logits, cache, done)`, like
            `step3_decode_step`; jit it, and donate the cache, where it can be. Of a
            `DisaggregatedDecoder` it is
            `lambda params, cache, tokens, config, active: decoder.decode(cache, tokens, active)`.
        params: weights that the step gets.
        config: sizes of the model, with `vocab`; the step gets it.
        init_cache: makes the empty cache; B requests run at a time. The cache may have a leading
            axis of attention instances, see `DisaggregatedDecoder`, each with pages and requests of
            its own; the step then gets the tokens of all, in order.
        chunk: number of tokens of a prompt that are written at a time.
        num_instances: attention instances, where the leading axis is longer: that of one program
            has room for feed-forward devices too. None for all of the axis.

    Raises:
        ValueError: if chunk is below 1, or there are fewer instances than asked for.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    pool, num_caches = _pool(jax.eval_shape(init_cache), num_instances)
    B = pool.num_instances * pool.num_slots
    room = min(pool.table_size, pool.num_pages) * pool.page

    def init() -> ServiceState:
        return ServiceState(init_cache(), slots=(None,) * B, lens=(0,) * B)

    def submit(
        state: ServiceState, request: Request, tokens: Sequence[int] = ()
    ) -> tuple[ServiceState, int]:
        if not state.is_open:
            raise ValueError("the service is closed, submit the request to another one")
        request = _checked(request, config.vocab, room)
        tokens = tuple(int(token) for token in tokens)
        if len(tokens) >= request.max_new or request.stop in tokens:
            raise ValueError(
                f"tokens must be those of an unfinished request, got {len(tokens)} of "
                f"{request.max_new} with stop {request.stop}"
            )
        _check_vocabulary("tokens", tokens, config.vocab)
        number = state.next_number
        progress = state.progress | {number: Progress(request, tokens)}
        waiting = (*state.waiting, number)
        return state._replace(progress=progress, waiting=waiting, next_number=number + 1), number

    def advance(state: ServiceState) -> ServiceState:
        state = _admit(state, pool)
        state = _run(state, _chunked(state, chunk, pool), chunk)
        return _run(*_single(state, pool), 1)

    def restart(state: ServiceState) -> ServiceState:
        for slot in _oldest_first(state):
            state = _evict(state, slot)
        return state._replace(cache=init_cache())

    def _run(state: ServiceState, taking: tuple[int, ...], size: int) -> ServiceState:
        """Writes up to `size` known tokens of slots, and draws the next where none is left."""
        if not taking:
            return state
        tokens = np.zeros((B, size), np.int32)
        count = np.ones((B,), np.int32)
        active = np.zeros((B,), bool)
        settings = np.zeros((B,), _SETTINGS)
        for slot in taking:
            entry, at = _entry(state, slot), state.lens[slot]
            new = entry.known[at : at + size]
            tokens[slot, : len(new)], count[slot], active[slot] = new, len(new), True
            request = entry.request
            settings[slot] = (request.seed, at + len(new), request.temperature, request.top_p)
        lens = np.zeros((num_caches, pool.num_slots), np.int32)
        lens[: pool.num_instances] = np.reshape(state.lens, (-1, pool.num_slots))
        cache = _cut(state.cache, lens)
        logits, cache, done = step(params, cache, jnp.asarray(tokens), config, active=active)
        assert _SETTINGS.names is not None
        drawn = sampling.draw(logits, count, *(settings[name] for name in _SETTINGS.names))
        token, is_finite, done = jax.device_get((*drawn, done))
        state = state._replace(cache=cache)
        for slot in taking:
            if not done[slot]:
                state = _no_room(state, slot, pool)
            elif not is_finite[slot]:
                state = _leave(state, slot, "failed", "the model's logits are not finite")
            else:
                state = _written(state, slot, int(count[slot]), int(token[slot]))
        return state

    return Service(init, submit, advance, restart)


_SETTINGS = np.dtype(
    [("seed", np.uint32), ("pos", np.int32), ("temperature", np.float32), ("top_p", np.float32)]
)


def cancel(state: ServiceState, number: int) -> ServiceState:
    """Ends a request that waits or runs; what it had generated stays in its progress.

    Raises:
        ValueError: if there is no such request; one that has ended already stays as it is.
    """
    if number not in state.progress:
        raise ValueError(f"number must be that of a request that was not taken away, got {number}")
    if number in state.waiting:
        waiting = tuple(other for other in state.waiting if other != number)
        return _set(state._replace(waiting=waiting), number, status="cancelled")
    if number in state.slots:
        return _leave(state, state.slots.index(number), "cancelled")
    return state


def take(state: ServiceState) -> tuple[ServiceState, dict[int, Progress]]:
    """Takes away the requests that have ended, and returns them by number."""
    live = {*state.waiting, *state.slots}
    ended = {number: entry for number, entry in state.progress.items() if number not in live}
    kept = {number: entry for number, entry in state.progress.items() if number in live}
    return state._replace(progress=kept), ended


def close(state: ServiceState, *, finish: bool = True) -> tuple[ServiceState, dict[int, Progress]]:
    """Accepts no more requests and hands back those that wait, to be submitted elsewhere.

    Args:
        state: of the service.
        finish: whether what runs may finish, by further steps; else it is handed back too.
    """
    if not finish:
        for slot in _oldest_first(state):
            state = _evict(state, slot)
    back = {number: state.progress[number] for number in state.waiting}
    kept = {number: entry for number, entry in state.progress.items() if number not in back}
    return state._replace(progress=kept, waiting=(), is_open=False), back


def is_idle(state: ServiceState) -> bool:
    """Whether no request waits or runs."""
    return not state.waiting and all(number is None for number in state.slots)


def _entry(state: ServiceState, slot: int) -> Progress:
    number = state.slots[slot]
    assert number is not None
    return state.progress[number]


def _set(state: ServiceState, number: int, **changes: Any) -> ServiceState:
    entry = state.progress[number]._replace(**changes)
    return state._replace(progress=state.progress | {number: entry})


def _put(values: tuple, index: int, value: Any) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def _oldest_first(state: ServiceState) -> tuple[int, ...]:
    """Slots that are taken, by the age of their requests."""
    taken = [(number, slot) for slot, number in enumerate(state.slots) if number is not None]
    return tuple(slot for _, slot in sorted(taken))


def _leave(state: ServiceState, slot: int, status: str, reason: str = "") -> ServiceState:
    number = state.slots[slot]
    assert number is not None
    state = _set(state, number, status=status, reason=reason)
    return state._replace(slots=_put(state.slots, slot, None), lens=_put(state.lens, slot, 0))


def _evict(state: ServiceState, slot: int) -> ServiceState:
    number = state.slots[slot]
    assert number is not None
    state = _leave(state, slot, "waiting")
    return state._replace(waiting=tuple(sorted((*state.waiting, number))))


def _no_room(state: ServiceState, slot: int, pool: Pool) -> ServiceState:
    """The step found no page where the scheduler saw one: its pages are not all for all."""
    if sum(pool.instance(s) == pool.instance(slot) for s in _oldest_first(state)) > 1:
        return _evict(state, slot)
    return _leave(state, slot, "failed", "the step has no page for it, with no other running")


def _written(state: ServiceState, slot: int, count: int, token: int) -> ServiceState:
    number, length = state.slots[slot], state.lens[slot] + count
    assert number is not None
    entry = state.progress[number]
    state = state._replace(lens=_put(state.lens, slot, length))
    if length < len(entry.known):
        return state
    tokens = (*entry.tokens, token)
    state = _set(state, number, tokens=tokens)
    if len(tokens) == entry.request.max_new or token == entry.request.stop:
        return _leave(state, slot, "finished")
    return state


def _free(state: ServiceState, pool: Pool) -> list[int]:
    """Pages of each instance that nobody uses."""
    free = [pool.num_pages] * pool.num_instances
    for slot, length in enumerate(state.lens):
        free[pool.instance(slot)] -= pool.pages(length)
    return free


def _admit(state: ServiceState, pool: Pool) -> ServiceState:
    """Gives slots to the oldest that wait while an instance has pages for all that is known."""

    def need(number: int) -> int:
        return pool.pages(len(state.progress[number].known))

    while state.waiting:
        number, *rest = state.waiting
        free = [pool.num_pages] * pool.num_instances
        for slot, other in enumerate(state.slots):
            free[pool.instance(slot)] -= 0 if other is None else need(other)
        found = [
            slot
            for slot, other in enumerate(state.slots)
            if other is None and need(number) <= free[pool.instance(slot)]
        ]
        if not found:
            break
        slot = max(found, key=lambda slot: (free[pool.instance(slot)], -slot))
        slots = _put(state.slots, slot, number)
        state = _set(state._replace(slots=slots, waiting=tuple(rest)), number, status="running")
    return state


def _chunked(state: ServiceState, chunk: int, pool: Pool) -> tuple[int, ...]:
    """Slots with several tokens to write that have room for a whole chunk, padding included."""
    free, found = _free(state, pool), []
    for slot in _oldest_first(state) if chunk > 1 else ():
        length, instance = state.lens[slot], pool.instance(slot)
        need = pool.pages(length + chunk)
        more = need - pool.pages(length)
        several = len(_entry(state, slot).known) - length > 1
        if several and need <= pool.table_size and more <= free[instance]:
            found.append(slot)
            free[instance] -= more
    return tuple(found)


def _single(state: ServiceState, pool: Pool) -> tuple[ServiceState, tuple[int, ...]]:
    """All slots, after as many evictions of the youngest as the next token of each needs."""
    found = []
    for instance, free in enumerate(_free(state, pool)):
        slots = [slot for slot in _oldest_first(state) if pool.instance(slot) == instance]
        while slots:
            slot = slots.pop(0)
            need = int(state.lens[slot] % pool.page == 0)
            while need > free:
                youngest = slots.pop() if slots else slot
                free += pool.pages(state.lens[youngest])
                state = _evict(state, youngest)
                if youngest == slot:
                    break
            else:
                free -= need
                found.append(slot)
    return state, tuple(found)


def _pool(cache: PagedCache, num_instances: int | None) -> tuple[Pool, int]:
    """Returns what slots share, and how many caches there are."""
    *leading, num_slots, table_size = cache.page_table.shape
    num_caches = leading[0] if leading else 1
    num_instances = num_caches if num_instances is None else num_instances
    if not 1 <= num_instances <= num_caches:
        raise ValueError(
            f"num_instances must be in 1 to the {num_caches} caches of init_cache, got "
            f"{num_instances}"
        )
    *_, num_pages, page, _ = cache.k_pages.shape
    return Pool(num_instances, num_slots, num_pages - 1, page, table_size), num_caches


@jax.jit
def _cut(cache: PagedCache, lens: Int[Array, "I B"]) -> PagedCache:
    if cache.lens.ndim == 1:
        return paged_cache.truncate(cache, lens[0])
    return jax.vmap(paged_cache.truncate)(cache, lens)


def _checked(request: Request, vocab: int, room: int) -> Request:
    """Returns the request with plain numbers.

    Raises:
        ValueError: if it cannot be served.
    """
    prompt = tuple(int(token) for token in request.prompt)
    if not prompt:
        raise ValueError("prompt must have at least one token, got none")
    if any(token != given for token, given in zip(prompt, request.prompt, strict=True)):
        raise ValueError("prompt must be integers, got fractions")
    _check_vocabulary("prompt", prompt, vocab)
    if request.stop is not None:
        _check_vocabulary("stop", (request.stop,), vocab)
    if request.max_new != int(request.max_new) or request.max_new < 1:
        raise ValueError(f"max_new must be an integer of at least 1, got {request.max_new}")
    longest = len(prompt) + request.max_new - 1  # the last token is not written
    if longest > room:
        raise ValueError(
            f"prompt and max_new must fit {room} tokens of the cache, got {len(prompt)} + "
            f"{request.max_new} - 1: shorten them, or make a larger cache"
        )
    if not 0.0 <= request.temperature < math.inf:
        raise ValueError(f"temperature must be 0 or more and finite, got {request.temperature}")
    if not 0.0 < request.top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {request.top_p}")
    if request.seed != int(request.seed) or not 0 <= request.seed <= MAX_SEED:
        raise ValueError(f"seed must be an integer in 0 to {MAX_SEED}, got {request.seed}")
    return request._replace(prompt=prompt, max_new=int(request.max_new))


def _check_vocabulary(name: str, tokens: Sequence[int], vocab: int) -> None:
    wrong = [token for token in tokens if not 0 <= token < vocab]
    if wrong:
        raise ValueError(f"{name} must be tokens in 0 to {vocab - 1}, got {wrong[0]}")
