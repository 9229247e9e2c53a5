"""The attention side of a decoder: one loop over layers and micro-batches, whoever feeds forward.

It asks a `FeedForward`, two functions, and knows nothing of meshes or processes behind them. With
`threads` they run in a thread of their own, and queues carry what is asked and answered.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxlab.serving.afd import stages
from jaxlab.serving.afd import topology as topologies
from jaxlab.serving.afd.pipeline import StageEvent
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.afd.wire import Packed
from jaxlab.serving.cache.paged_cache import PagedCache
from jaxlab.serving.model import step3
from jaxlab.serving.model.step3 import Step3Config, Step3Params

Record = Callable[[StageEvent], Any]


class DisaggregatedDecoder(NamedTuple):
    """A decoder whose two kinds of layers are apart.

    Attributes:
        init_cache: `init_cache(num_pages, batch=..., max_pages=..., page=..., dtype=...)` makes the
            caches: every array of a `PagedCache` with a leading axis of attention instances, of
            which each has `num_pages` pages and batch / num_attention requests, in order.
        decode: `decode(cache, tokens[B, S], active[B] or None)` returns `(logits[B, S, V], cache,
            done[B])` as `step3_decode_step` does. The cache that goes in is used up.
    """

    init_cache: Callable[..., PagedCache]
    decode: Callable[..., tuple[Float[Array, "B S V"], PagedCache, Bool[Array, " B"]]]


class FeedForward(NamedTuple):
    """Who answers the attention side.

    Attributes:
        ask: `ask(layer, micro_batch, message) -> question` sends a message, every leaf
            `[A, N, ...]` by attention instance, and does not wait; attention goes on meanwhile.
        answer: `answer(layer, micro_batch, question) -> [A, F, N, D]`, a sum for each token from
            each of F feed-forward instances, as `wire.pack_back` sends it. Questions are answered
            in the order in which they were asked, with threads in one of their own.
        close: `close()` is called when a question or an answer fails; it ends what is under way.
    """

    ask: Callable[[int, int, Packed], Any]
    answer: Callable[[int, int, Any], Float[Array, "A F N D"]]
    close: Callable[[], None]


def make_disaggregated_decoder(
    params: Step3Params,
    config: Step3Config,
    topology: Topology,
    feed_forward: FeedForward,
    *,
    mesh: Mesh | None = None,
    threads: bool = False,
    record: Record | None = None,
) -> DisaggregatedDecoder:
    """Makes the decoder of a topology around whoever feeds forward.

    Args:
        params: weights of the model.
        config: sizes of the model.
        topology: who computes what, see `topology.check_topology`.
        feed_forward: what answers.
        mesh: with an axis "attention" of one device an instance; None for one device.
        threads: whether answers are waited for in a thread of their own.
        record: called with every stage of attention as it ends; the stages wait for their results
            then.
    """
    dtype = params.embedding.dtype
    put = functools.partial(place, mesh)
    embedding, norm, head = put((params.embedding, params.norm, params.head), P())
    attention_weights = [put(w, P()) for w in topologies.attention_layers(params, topology)]
    num_layers, M = config.num_layers, topology.micro_batches
    numbers = [put(jnp.asarray(layer, jnp.int32), P()) for layer in range(num_layers)]

    @functools.partial(jax.jit, donate_argnums=1)
    def start(embedding: Array, cache: PagedCache, tokens: Array, active: Array) -> tuple:
        def one(embedding: Array, own: tuple[PagedCache, Array, Array]) -> tuple:
            return stages.start_stage(embedding, *own, config, M)

        return spread(one, mesh, "attention")(embedding, (cache, tokens, active))

    @functools.partial(jax.jit, donate_argnums=3)
    def attend(
        weights: Any, x: Array, inbox: Array, cache: PagedCache, layer: Array, requests: Any
    ) -> tuple:
        def one(shared: tuple, own: tuple) -> tuple:
            (weights, layer), (x, inbox, cache, requests) = shared, own
            return stages.attention_stage(
                weights, x, inbox, cache, layer, requests, config, topology
            )

        mapped = spread(one, mesh, "attention")
        return mapped((weights, layer), (x, inbox, cache, requests))

    @jax.jit
    def finish(norm: Array, head: Array, x: Array, inbox: Array) -> Array:
        def one(shared: tuple[Array, Array], own: tuple[Array, Array]) -> Array:
            return stages.finish_stage(*shared, *own, config)

        return spread(one, mesh, "attention")((norm, head), (x, inbox))

    @functools.partial(jax.jit, static_argnums=1)
    def collect(logits: list[Array], count: int) -> Array:
        joined = jnp.concatenate(logits, axis=1)[:, :count]
        return joined.reshape(-1, *joined.shape[2:])

    def answer(layer: int, m: int, question: Any) -> Array:
        return put(feed_forward.answer(layer, m, question), P("attention"))

    def attend_all(cache: PagedCache, parts: Any, send: Callable, receive: Callable) -> tuple:
        xs = [x for x, _ in parts]
        for layer in range(num_layers):
            for m, (_, requests) in enumerate(parts):
                if layer:
                    inbox = receive(m)
                else:
                    N, D = xs[m].shape[1] * xs[m].shape[2], xs[m].shape[3]
                    kind = dtype if topology.wire == "exact" else jnp.bfloat16
                    shape = (topology.num_attention, topology.num_ffn, N, D)
                    inbox = put(jnp.zeros(shape, kind), P("attention"))
                weights, number = attention_weights[layer], numbers[layer]
                xs[m], cache, message = timed(
                    record,
                    ("attention", 0, layer, m),
                    functools.partial(attend, weights, xs[m], inbox, cache, number, requests),
                    wait=threads,
                )
                send(layer, m, message)
        logits = [finish(norm, head, x, receive(m)) for m, x in enumerate(xs)]
        return logits, cache

    def in_turn(cache: PagedCache, parts: Any) -> tuple:
        boxes: dict[int, Array] = {}

        def send(layer: int, m: int, message: Packed) -> None:
            boxes[m] = answer(layer, m, feed_forward.ask(layer, m, message))

        return attend_all(cache, parts, send, lambda m: boxes.pop(m))

    def in_threads(cache: PagedCache, parts: Any) -> tuple:
        asked, back = queue.SimpleQueue(), queue.SimpleQueue()
        errors: list[BaseException] = []

        def end(error: BaseException) -> None:
            errors.append(error)  # before connections close, of which both threads hear
            feed_forward.close()

        def run_answers() -> None:
            try:
                while (item := asked.get()) is not None:
                    back.put(answer(*item))
            except BaseException as error:
                end(error)
                back.put(None)  # attention is not to wait

        def send(layer: int, m: int, message: Packed) -> None:
            asked.put((layer, m, feed_forward.ask(layer, m, message)))

        def receive(m: int) -> Array:
            inbox = back.get()
            if inbox is None:
                raise errors[0]
            return inbox

        worker = threading.Thread(target=run_answers, name="ffn", daemon=True)
        worker.start()
        try:
            return attend_all(cache, parts, send, receive)
        except BaseException as error:
            end(error)
            raise errors[0] from None
        finally:
            asked.put(None)
            worker.join()

    def decode(
        cache: PagedCache, tokens: Int[Array, "B S"], active: Bool[Array, " B"] | None = None
    ) -> tuple[Array, PagedCache, Array]:
        instances, count = topology.num_attention, cache.lens.shape[-1]
        active = check_step(cache, tokens, active, config, instances, instances)
        tokens = put(tokens.reshape(instances, count, -1), P("attention"))
        active = put(active.reshape(instances, count), P("attention"))
        cache, done, parts = start(embedding, cache, tokens, active)
        logits, cache = (in_threads if threads else in_turn)(cache, parts)
        return collect(logits, count), cache, done.reshape(-1)

    def init_cache(num_pages: int, *, batch: int, **options: Any) -> PagedCache:
        """Makes the caches; options as in `step3.init_step3_cache`."""
        one = init_one_cache(config, topology, num_pages, batch, options)
        stacked = jax.tree.map(lambda x: jnp.stack([x] * topology.num_attention), one)
        return put(stacked, P("attention"))

    return DisaggregatedDecoder(init_cache, decode)


def check_step(
    cache: PagedCache,
    tokens: Int[Array, "B S"],
    active: Bool[Array, " B"] | None,
    config: Step3Config,
    instances: int,
    caches: int,
) -> Bool[Array, " B"]:
    """Returns who is active, by default all.

    Args:
        cache: of the attention instances.
        tokens: of their requests. On the host they are checked; a request with a token of a device
            that is not in the vocabulary rests, and its `done` is False.
        active: who takes part, or None.
        config: sizes of the model.
        instances: attention instances.
        caches: leading axis of the cache.

    Raises:
        ValueError: if cache, tokens and `active` do not fit each other.
    """
    if isinstance(tokens, jax.Array):  # waiting for them would hold up the devices
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers [B, S], got {tokens.dtype} {tokens.shape}")
    else:
        step3.check_tokens(tokens, config.vocab)
    if cache.lens.ndim != 2 or cache.lens.shape[0] != caches:
        raise ValueError(
            f"the cache must be of {caches} attention instances, got lengths "
            f"{cache.lens.shape}: make it with init_cache"
        )
    step3.check_cache_sizes(jax.tree.map(_row, cache), config)
    B = instances * cache.lens.shape[1]
    if tokens.shape[0] != B:
        raise ValueError(
            f"tokens must be of the {instances} instances' requests, got {tokens.shape[0]} "
            f"tokens for {instances} caches of {cache.lens.shape[1]}"
        )
    active = jnp.ones((B,), bool) if active is None else active
    if active.shape != (B,) or active.dtype != jnp.bool_:
        raise ValueError(f"active must be bool [{B}], got {active.dtype} {active.shape}")
    return active


def init_one_cache(
    config: Step3Config, topology: Topology, num_pages: int, batch: int, options: dict[str, Any]
) -> PagedCache:
    """Returns the cache of one attention instance of a topology.

    Raises:
        ValueError: if the batch does not divide over the instances.
    """
    if batch % topology.num_attention:
        raise ValueError(
            f"batch must be a multiple of num_attention={topology.num_attention}, got {batch}"
        )
    each = batch // topology.num_attention
    return step3.init_step3_cache(config, num_pages, batch=each, **options)


def timed(
    record: Record | None, where: tuple[str, int, int, int], run: Callable[[], Any], *, wait: bool
) -> Any:
    """Runs a stage, and records it with its role, instance, layer and micro-batch.

    To record it, or if it is told to, it waits for the result.
    """
    begin = time.perf_counter()
    out = run()
    if wait or record is not None:
        jax.block_until_ready(out)
    if record is not None:
        record(StageEvent(*where, begin, time.perf_counter()))
    return out


def _row(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)


def place(mesh: Mesh | None, tree: Any, spec: P) -> Any:
    """Puts arrays on a mesh; without one they stay."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, spec))


def spread(fn: Callable, mesh: Mesh | None, axis: Any) -> Callable:
    """Maps `fn(shared, own)` over the leading axis of own, over a mesh or in turn.

    In turn too `fn` sees the shapes of one device, and gives the same results.
    """

    def block(shared: Any, own: Any) -> Any:
        return jax.lax.map(lambda x: fn(shared, x), own)

    if mesh is None:
        return block
    return jax.shard_map(
        block, mesh=mesh, in_specs=(P(), P(axis)), out_specs=P(axis), check_vma=False
    )
