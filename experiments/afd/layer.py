"""One layer of a disaggregated decoder as one device of each role sees it, ready to be timed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.nn.transformer import Swiglu
from jaxlab.serving.afd import stages, wire
from jaxlab.serving.afd.topology import AttentionWeights, FfnShard, Topology
from jaxlab.serving.cache import paged_cache
from jaxlab.serving.model import experts as experts_lib
from jaxlab.serving.model import step3
from jaxlab.serving.model.step3 import Step3Config

SERVERS, PER_SERVER = 2, 8
"""Expert servers of which one accelerator's shard is timed, and accelerators of each."""


class Sizes(NamedTuple):
    """A layer, and what is measured of it.

    Attributes:
        config: of the model, one dense layer: the stage of attention does not compute it.
        attention: requests and tokens of cache of each.
        experts: tokens of a micro-batch.
        dtype: of weights, tokens and cache.
    """

    config: Step3Config
    attention: tuple[tuple[int, int], ...]
    experts: tuple[int, ...]
    dtype: Any


def sizes(layer: str) -> Sizes:
    """Step-3's layer, or one of a fourteenth of its width that a CPU computes."""
    if layer == "true":
        return Sizes(
            Step3Config(num_layers=1, dense_layers=(0,), vocab=64, dense_hidden=64),
            tuple((b, s) for b in (16, 64, 128) for s in (1024, 4096, 8192)),
            (256, 1024, 2048, 4096),
            jnp.bfloat16,
        )
    small = Step3Config(
        vocab=64,
        num_layers=1,
        d_model=512,
        num_heads=8,
        head_dim=64,
        q_rank=256,
        dense_layers=(0,),
        dense_hidden=64,
        num_experts=16,
        num_active=3,
        expert_hidden=512,
    )
    return Sizes(
        small,
        tuple((b, s) for b in (8, 16, 32) for s in (128, 512, 1024)),
        (64, 128, 256, 512),
        jnp.float32,
    )


def attention(given: Sizes, batch: int, context: int) -> Callable[[], Any]:
    """Returns a call of the attention stage with `batch` requests of `context` tokens."""
    config, dtype = given.config, given.dtype
    topology = Topology(1, 1, micro_batches=1)
    params = step3.init_step3(jax.random.key(0), config, dtype=dtype)
    D = config.d_model
    router = jax.random.normal(jax.random.key(1), (D, config.num_experts), dtype) / D**0.5
    weights = AttentionWeights(params.blocks[0]._replace(ffn=None), router)
    per_request = -(-(context + 1) // 64)
    cache = step3.init_step3_cache(
        config, batch * per_request + 1, batch=batch, max_pages=per_request, page=64, dtype=dtype
    )
    cache, _ = paged_cache.reserve(cache, jnp.full((batch,), context, jnp.int32))
    tokens, active = jnp.zeros((batch, 1), jnp.int32), jnp.ones((batch,), bool)
    cache, _, ((x, requests),) = jax.jit(
        functools.partial(stages.start_stage, config=config, num_micro_batches=1)
    )(params.embedding, cache, tokens, active)
    inbox = jnp.zeros((1, batch, D), dtype)

    @functools.partial(jax.jit, donate_argnums=3)
    def stage(weights: Any, x: Any, inbox: Any, cache: Any, requests: Any) -> Any:
        return stages.attention_stage(
            weights, x, inbox, cache, jnp.zeros((), jnp.int32), requests, config, topology
        )

    held = [cache]

    def call() -> Any:
        out, held[0], message = stage(weights, x, inbox, held[0], requests)
        return out, message

    return call


def experts(given: Sizes, batch: int, context: int) -> Callable[[], Any]:
    """Returns a call of one shard's stage with a micro-batch of `batch` tokens."""
    config, dtype = given.config, given.dtype
    D, f = config.d_model, config.expert_hidden // PER_SERVER
    held, always = config.num_experts // SERVERS, config.expert_hidden // (SERVERS * PER_SERVER)
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def draw(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, dtype) / D**0.5

    shard = FfnShard(
        Swiglu(draw(held, D, f), draw(held, D, f), draw(held, f, D)),
        Swiglu(draw(D, always), draw(D, always), draw(always, D)),
        None,
        jnp.zeros((), jnp.int32),
    )
    x = draw(batch, D) * D**0.5
    message = wire.pack(
        x, experts_lib.route(draw(D, config.num_experts), x, config.num_active), "exact"
    )
    stage = jax.jit(lambda shard, message: stages.ffn_stage(shard, message, config, dtype))
    return lambda: stage(shard, message)
