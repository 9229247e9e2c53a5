"""The stages of a decoding step as pure functions, which every realisation runs unchanged.

`start_stage` embeds the tokens of an attention instance and divides them into micro-batches;
`finish_stage` returns the logits of a micro-batch.

A token of one layer: `attention_stage` adds what came back for it, attends, and packs it;
`ffn_stage` unpacks it on every shard and returns what the shard's experts make of it.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.nn import transformer
from jaxlab.serving.afd import wire as wires
from jaxlab.serving.afd.topology import AttentionWeights, FfnShard, Topology
from jaxlab.serving.afd.wire import Packed
from jaxlab.serving.cache import paged_cache
from jaxlab.serving.cache.paged_cache import PagedCache
from jaxlab.serving.model import experts, step3
from jaxlab.serving.model.experts import Routing
from jaxlab.serving.model.step3 import Step, Step3Config


class MicroBatch(NamedTuple):
    """Requests of an attention instance for one step; dummy ones own and keep nothing.

    Attributes:
        page_table: `[b, P]`, their pages.
        lens: `[b]`, their lengths with the new tokens.
        step: their positions and what they attend over.
    """

    page_table: Int[Array, "b P"]
    lens: Int[Array, " b"]
    step: Step


def start_stage(
    embedding: Float[Array, "V D"],
    cache: PagedCache,
    tokens: Int[Array, "B S"],
    active: Bool[Array, " B"],
    config: Step3Config,
    num_micro_batches: int,
) -> tuple[PagedCache, Bool[Array, " B"], tuple[tuple[Array, MicroBatch], ...]]:
    """Reserves room, embeds, and divides the requests of an instance into micro-batches.

    All are of one size: dummy requests fill the last ones up. A request with a token outside of the
    vocabulary rests. Returns cache, who is done, and residual stream `[b, S, D]` and requests of
    each micro-batch.
    """
    known = jnp.all((tokens >= 0) & (tokens < embedding.shape[0]), axis=1)
    active = active & known
    cache, done, step = step3.begin_step(cache, tokens, active, config)
    count = tokens.shape[0]
    size = -(-count // num_micro_batches)
    rows = (step.pos, step.keep, step.lens, cache.page_table, cache.lens)

    def part(x: Array, m: int) -> Array:
        dummies = size * num_micro_batches - count
        return jnp.pad(x, ((0, dummies), *((0, 0),) * (x.ndim - 1)))[m * size : (m + 1) * size]

    def one(m: int) -> tuple[Array, MicroBatch]:
        pos, keep, lens, table, held = (part(x, m) for x in rows)
        here = cache._replace(page_table=table, lens=held)
        plan = step3.step_plan(here, lens, tokens.shape[1], config)
        return embedding[part(tokens, m)], MicroBatch(table, held, Step(pos, keep, lens, plan))

    return cache, done, tuple(one(m) for m in range(num_micro_batches))


def attention_stage(
    weights: AttentionWeights,
    x: Float[Array, "b S D"],
    inbox: Float[Array, "F N D"],
    cache: PagedCache,
    layer: Array,
    requests: MicroBatch,
    config: Step3Config,
    topology: Topology,
) -> tuple[Float[Array, "b S D"], PagedCache, Packed]:
    """Adds the inbox to a micro-batch, attends, and returns stream, cache and message.

    Args:
        weights: of the layer.
        x: `[b, S, D]`, the residual stream of the micro-batch's requests.
        inbox: `[F, N, D]`, a partial result of the layer before from each feed-forward instance,
            N = b S; zeros before the first layer.
        cache: of all requests of the instance.
        layer: index of the layer, int32.
        requests: those of the micro-batch.
        config: sizes of the model.
        topology: wire, and who routes.
    """
    x, (q, k, v) = project_stage(weights, x, inbox, requests, config)
    cache = write_stage(cache, layer, k, v, requests)
    x, message = read_stage(weights, x, q, cache, layer, requests, config, topology)
    return x, cache, message


def project_stage(
    weights: AttentionWeights,
    x: Float[Array, "b S D"],
    inbox: Float[Array, "F N D"],
    requests: MicroBatch,
    config: Step3Config,
) -> tuple[Float[Array, "b S D"], tuple[Array, Array, Array]]:
    """The part of `attention_stage` before the cache: stream; queries, keys and values."""
    x = add_inbox(x, inbox)
    return x, step3.project(weights.block, x, requests.step, config)


def write_stage(
    cache: PagedCache, layer: Array, k: Array, v: Array, requests: MicroBatch
) -> PagedCache:
    """The part of `attention_stage` that changes the cache."""
    here = cache._replace(page_table=requests.page_table, lens=requests.lens)
    here = paged_cache.write(here, layer, k, v, requests.step.pos, requests.step.keep)
    return here._replace(page_table=cache.page_table, lens=cache.lens)


def read_stage(
    weights: AttentionWeights,
    x: Float[Array, "b S D"],
    q: Float[Array, "b S H C"],
    cache: PagedCache,
    layer: Array,
    requests: MicroBatch,
    config: Step3Config,
    topology: Topology,
) -> tuple[Float[Array, "b S D"], Packed]:
    """The part of `attention_stage` that reads the cache: stream and message."""
    here = cache._replace(page_table=requests.page_table, lens=requests.lens)
    x = step3.read_pages(weights.block, x, q, here, layer, requests.step, config)
    tokens = transformer.rms_norm(x, weights.block.ffn_norm, eps=config.eps)
    tokens = tokens.reshape(-1, x.shape[-1])
    routing = None
    if weights.router is not None:
        routing = experts.route(weights.router, tokens, config.num_active)
    return x, wires.pack(tokens, routing, topology.wire)


def ffn_stage(
    shard: FfnShard, message: Packed, config: Step3Config, dtype: Any
) -> Float[Array, "N D"]:
    """Returns the sum of what one shard adds to each token: of its experts, weighted.

    Args:
        shard: weights of one device and layer.
        message: tokens of all attention instances.
        config: sizes of the model.
        dtype: dtype of the model.
    """
    x = wires.unpack(message, dtype)
    out = transformer.swiglu(shard.always, x)
    if shard.routed is None:
        return out
    expert, weight = message.expert, message.weight
    if shard.router is not None:
        weight, expert, _ = experts.route(shard.router, x, config.num_active)
    assert expert is not None and weight is not None
    # An expert beyond the last is of another shard: its rows go behind all groups and give 0.
    count = shard.routed.gate.shape[0]
    local = expert - shard.first
    local = jnp.where((local >= 0) & (local < count), local, count)
    return experts.apply_experts(shard.routed, x, Routing(weight, local, weight)) + out


def sum_in_order(partials: Float[Array, "n ..."]) -> Array:
    """Adds along the first axis, first to last, whatever the devices."""
    return functools.reduce(operator.add, list(partials))


def add_inbox(x: Float[Array, "b S D"], inbox: Float[Array, "F N D"]) -> Float[Array, "b S D"]:
    """Adds the partial results of all feed-forward instances to the residual stream."""
    # The barrier keeps these sums apart from what is around them: equal bits in every program.
    partials = jax.lax.optimization_barrier(inbox.astype(x.dtype))
    return jax.lax.optimization_barrier(x + sum_in_order(partials).reshape(x.shape))


def finish_stage(
    norm: Float[Array, " D"],
    head: Float[Array, "D V"],
    x: Float[Array, "b S D"],
    inbox: Float[Array, "F N D"],
    config: Step3Config,
) -> Float[Array, "b S V"]:
    """Adds what the last layer sent back, and returns the logits of a micro-batch."""
    return transformer.readout(add_inbox(x, inbox), norm, head, eps=config.eps)
