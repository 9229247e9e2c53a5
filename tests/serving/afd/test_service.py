"""The service: every request gets the tokens that it would get alone, without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving.afd import service, two_meshes
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import sampling, step3

CONFIG = step3.TINY._replace(num_layers=2, dense_layers=(0,))
LONGEST = 40


def init_cache(num_pages=11, batch=4):
    return step3.init_step3_cache(
        CONFIG, num_pages, batch=batch, max_pages=10, page=4, dtype=jnp.float32
    )


@pytest.fixture(scope="module")
def params():
    return step3.init_step3(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def decode():
    return jax.jit(step3.step3_decode_step, static_argnames="config", donate_argnames="cache")


@pytest.fixture(scope="module")
def alone(params):
    forward = jax.jit(functools.partial(step3.step3_forward, config=CONFIG))

    def tokens(request):
        """Full recomputation, and the draw written out in NumPy but for the noise."""
        known, new = list(request.prompt), []
        while len(new) < request.max_new and (not new or new[-1] != request.stop):
            padded = np.zeros((1, LONGEST), np.int32)
            padded[0, : len(known)] = known
            logits = np.asarray(forward(params, padded))[0, len(known) - 1].astype(np.float64)
            if request.temperature == 0.0:
                token = int(logits.argmax())
            else:
                scaled = logits / request.temperature
                prob = np.exp(scaled - scaled.max())
                prob /= prob.sum()
                order = np.argsort(-prob)
                size = 1 + np.searchsorted(np.cumsum(prob[order]), request.top_p)
                key = jax.random.fold_in(jax.random.key(request.seed), len(known))
                noise = np.asarray(jax.random.gumbel(key, (CONFIG.vocab,), jnp.float32))
                kept = order[:size]
                token = int(kept[np.argmax((scaled + noise)[kept])])
            known.append(token)
            new.append(token)
        return tuple(new)

    return tokens


def make_requests(rng, count):
    def one(index):
        length = int(rng.integers(1, 24))
        return service.Request(
            prompt=rng.integers(0, CONFIG.vocab, length),
            max_new=int(rng.integers(1, 40 - length)),
            temperature=float(rng.choice([0.0, 0.4, 1.0])),
            top_p=float(rng.choice([0.3, 0.9, 1.0])),
            seed=int(rng.integers(2**32)),
        )

    return [one(index) for index in range(count)]


def finish(served, state):
    for _ in range(2000):
        if service.is_idle(state):
            return state
        state = served.advance(state)
    raise AssertionError("the service does not come to an end")


@pytest.mark.parametrize("chunk", [8, 1], ids=["chunks", "tokens"])
def test_every_request_gets_the_tokens_that_it_gets_alone(chunk, params, decode, alone):
    """Under random arrivals, in ten pages for four slots, with one cancelled."""
    rng = np.random.default_rng(chunk)
    served = service.make_service(decode, params, CONFIG, init_cache, chunk=chunk)
    state, requests, evicted = served.init(), make_requests(rng, 7), set()
    left, cancelled = list(requests), None
    while left or not service.is_idle(state):
        if left and rng.random() < 0.4:
            state, _ = served.submit(state, left.pop(0))
        before = {number for number in state.slots if number is not None}
        state = served.advance(state)
        evicted |= before & set(state.waiting)
        if cancelled is None and state.slots[1] is not None:
            cancelled = state.slots[1]
            state = service.cancel(state, cancelled)
    state, ended = service.take(state)
    assert evicted and not state.progress and cancelled is not None
    for number, request in enumerate(requests):
        want = alone(request)
        if number == cancelled:
            assert ended[number].status == "cancelled"
            want = want[: len(ended[number].tokens)]
        else:
            assert ended[number].status == "finished"
        assert ended[number].tokens == want
    cache = jax.tree.map(np.asarray, service._cut(state.cache, np.zeros((1, 4), np.int32)))
    assert cache.num_free == 10 and not cache.num_owners.any()  # no page is lost
    if chunk == 8:
        assert decode._cache_size() == 2  # one program a width, whatever came


def test_requests_of_several_attention_instances(params, alone):
    """Each has its pages: two slots and nine pages; evictions stay within an instance."""
    decoder = two_meshes.make_monolith_decode(params, CONFIG, Topology(2, 1, micro_batches=2))
    init = functools.partial(
        decoder.init_cache, 10, batch=4, max_pages=10, page=4, dtype=jnp.float32
    )
    served = service.make_service(
        lambda params, cache, tokens, config, active: decoder.decode(cache, tokens, active),
        None,
        CONFIG,
        init,
        chunk=8,
    )
    requests = make_requests(np.random.default_rng(3), 6)
    state, evicted, together = served.init(), set(), 0
    for request in requests:
        state, _ = served.submit(state, request)
    while not service.is_idle(state):
        before = {number for number in state.slots if number is not None}
        state = served.advance(state)
        evicted |= before & set(state.waiting)
        together = max(together, sum(number is not None for number in state.slots))
        held = np.asarray(state.cache.lens)
        assert np.all(np.sum(-(-held // 4), axis=1) <= 9)
    assert evicted and together >= 3
    _, ended = service.take(state)
    for number, request in enumerate(requests):
        assert ended[number].status == "finished"
        assert ended[number].tokens == alone(request)
    with pytest.raises(ValueError, match="num_instances must be in 1 to the 2 caches"):
        service.make_service(lambda: None, None, CONFIG, init, num_instances=3)


def test_stop_token_restart_and_closing(params, decode, alone):
    rng = np.random.default_rng(7)
    served = service.make_service(decode, params, CONFIG, init_cache, chunk=8)
    requests = [request._replace(max_new=12) for request in make_requests(rng, 6)]
    want = [alone(request) for request in requests]
    stop = want[0][5]
    requests[0] = requests[0]._replace(stop=stop)
    want[0] = want[0][: want[0].index(stop) + 1]

    state = served.init()
    for request in requests:
        state, _ = served.submit(state, request)
    state = served.advance(served.advance(state))

    def lost(*args, **kwargs):
        raise ConnectionError("the peer is gone")

    broken = service.make_service(lost, params, CONFIG, init_cache, chunk=8)
    with pytest.raises(ConnectionError, match="gone"):
        broken.advance(state)
    state = served.advance(served.restart(state))
    running = {number for number in state.slots if number is not None}
    state, back = service.close(state)
    assert set(back) == set(range(6)) - running and back
    with pytest.raises(ValueError, match="closed"):
        served.submit(state, requests[0])
    _, ended = service.take(finish(served, state))
    assert {n: e.tokens for n, e in ended.items()} == {n: want[n] for n in running}

    other = served.init()
    for entry in back.values():
        other, _ = served.submit(other, entry.request, entry.tokens)
    other, back_again = service.close(served.advance(other), finish=False)
    assert service.is_idle(other) and len(back_again) == len(back)
    other = served.init()
    for entry in back_again.values():
        other, _ = served.submit(other, entry.request, entry.tokens)
    _, ended = service.take(finish(served, other))
    assert [e.tokens for e in ended.values()] == [want[n] for n in back]


def test_a_request_that_fails_spares_the_others(params, decode, alone):
    requests = [service.Request((5, 6, 7), 6), service.Request((9, 8), 6)]
    poisoned = params._replace(embedding=params.embedding.at[9].set(jnp.nan))
    served = service.make_service(decode, poisoned, CONFIG, init_cache, chunk=8)
    state = served.init()
    for request in requests:
        state, _ = served.submit(state, request)
    _, ended = service.take(finish(served, state))
    assert ended[1].status == "failed" and "not finite" in ended[1].reason
    assert ended[0].status == "finished" and ended[0].tokens == alone(requests[0])


def test_sampled_tokens_have_their_probabilities():
    """Frequencies over 4000 seeds against softmax, cut at top-p: 4.5 sigma of a binomial."""
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
    n = 4000
    token, _ = sampling.draw(
        jnp.tile(jnp.asarray(logits, jnp.float32), (n, 1, 1)),
        jnp.ones(n, jnp.int32),
        jnp.arange(n, dtype=jnp.uint32),
        jnp.full(n, 3, jnp.int32),
        jnp.where(jnp.arange(n) < n // 2, 1.0, 0.5),
        jnp.full(n, 0.85),
    )
    for half, power in ((token[: n // 2], 1.0), (token[n // 2 :], 2.0)):
        prob = np.array([0.1, 0.4, 0.2, 0.3]) ** power
        kept = np.array([0.0, 1.0, 1.0, 1.0])  # .4 + .3 and 16/30 + 9/30 are below .85
        prob = prob * kept / (prob * kept).sum()
        share = np.bincount(half, minlength=4) / (n // 2)
        np.testing.assert_array_less(
            np.abs(share - prob), 4.5 * np.sqrt(prob * (1 - prob) / (n // 2)) + 1e-9
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ()}, "at least one token"),
        ({"prompt": (1, 512)}, "in 0 to 511, got 512"),
        ({"prompt": (-1,)}, "got -1"),
        ({"prompt": (1.5,)}, "integers"),
        ({"stop": 512}, "stop"),
        ({"max_new": 0}, "max_new"),
        ({"max_new": 41}, r"fit 40 tokens .* 1 \+ 41 - 1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_requests_are_refused_before_they_take_a_slot(change, message):
    served = service.make_service(None, None, CONFIG, init_cache)
    with pytest.raises(ValueError, match=message):
        served.submit(served.init(), service.Request((1,), 4)._replace(**change))
