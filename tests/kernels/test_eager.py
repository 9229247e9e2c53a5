"""Called eagerly, as a notebook does: what loops is compiled once, not at every call."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from jaxlab.kernels.moe import grouped_swiglu
from jaxlab.kernels.mqa_decode import decode_plan, mqa_decode
from jaxlab.kernels.mqa_prefill import mqa_prefill, mqa_prefill_paged
from jaxlab.kernels.rms_up_rope import rms_up_rope
from jaxlab.nn import transformer
from jaxlab.serving.cache import paged_cache

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@contextlib.contextmanager
def counted():
    """Yields a list that grows by one for every program that is lowered."""
    found = []

    def listen(event, seconds, **_):
        if event == LOWERED:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


LENS, TABLE = jnp.asarray([3, 16], jnp.int32), jnp.asarray([[0, 1], [2, 3]], jnp.int32)


def decode(x):
    q, pages = jnp.full((2, 4, 16), x), jnp.full((4, 16, 16), x)
    return mqa_decode(q, pages, pages, TABLE, LENS)


def plan(x):
    return decode_plan(LENS + int(x), TABLE, page=16, num_parts=3)


def prefill(x):
    q, k = jnp.full((2, 5, 4, 16), x), jnp.full((2, 5, 16), x)
    return mqa_prefill(q, k, k), jax.grad(lambda q: jnp.sum(mqa_prefill(q, k, k)))(q)


def chunk(x):
    q, pages = jnp.full((2, 3, 4, 16), x), jnp.full((4, 16, 16), x)
    return mqa_prefill_paged(q, pages, pages, TABLE, LENS)


def experts(x):
    w = jnp.full((2, 4, 4), x)
    return grouped_swiglu(jnp.full((5, 4), x), w, w, w, jnp.asarray([2, 3], jnp.int32))


def queries(x):
    return rms_up_rope(jnp.full((3, 8), x), jnp.full((8, 2, 4), x), jnp.arange(3))


def cache(x):
    made = paged_cache.init_cache(1, 5, batch=2, max_pages=2, head_dim=16, page=4)
    made, _ = paged_cache.reserve(made, jnp.asarray([int(x), 2]))
    k = jnp.full((2, 2, 16), x)
    pos = jnp.asarray([[0, 1], [0, 1]])
    return paged_cache.write(made, 0, k, k, pos, jnp.ones((2, 2), bool))


CONFIG = transformer.DecoderConfig(8, 2, transformer.BlockConfig(8, 2, 1, 4, 8))


def decoder(x):
    params = transformer.init(jax.random.key(int(x)), CONFIG)
    tokens = jnp.asarray([[1, 2, int(x)]])
    caches = transformer.init_cache(CONFIG, 1, 4)
    pos = jnp.arange(3)[None]
    whole = transformer.forward(params, tokens, CONFIG)
    return whole, transformer.decode(params, caches, tokens, pos, CONFIG)


@pytest.mark.parametrize(
    "call",
    [decode, plan, prefill, chunk, experts, queries, cache, decoder],
    ids=lambda f: f.__name__,
)
def test_a_second_eager_call_compiles_nothing(call):
    with counted() as programs:
        jax.block_until_ready(call(1.0))
        first = len(programs)
        jax.block_until_ready(call(2.0))
    assert first and len(programs) == first
