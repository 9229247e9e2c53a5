"""One controller over two meshes: attention on some devices, feed-forward on the others.

Every stage is one compiled program for all layers of a kind. On accelerators, which compute while
the controller goes on, stages are issued layer by layer and micro-batch by micro-batch. A CPU
computes in the thread that asks: there each role has a thread, and queues between them.

Without meshes the same stages run one after another on one device: that is the monolith, which adds
the same shards in the same order.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxlab.serving.afd import stages
from jaxlab.serving.afd import topology as topologies
from jaxlab.serving.afd import wire as wires
from jaxlab.serving.afd.pipeline import StageEvent
from jaxlab.serving.afd.topology import Topology
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


def make_two_mesh_decode(
    params: Step3Params,
    config: Step3Config,
    topology: Topology,
    *,
    devices: Sequence[Any] | None = None,
    threads: bool | None = None,
    record: Record | None = None,
) -> DisaggregatedDecoder:
    """Places the weights on two meshes and returns the decoder.

    Args:
        params: weights of the model.
        config: sizes of the model.
        topology: who computes what.
        devices: those of attention first, then those of feed-forward by instance, group and place
            in the group; `jax.devices()` by default.
        threads: whether each role has a thread; by default on a CPU.
        record: called with every stage as it ends, from the threads of both roles; without threads
            it makes every stage wait for its result. Their clock is `time.perf_counter`.

    Raises:
        ValueError: if topology, parameters and devices do not fit each other.
    """
    devices = list(jax.devices() if devices is None else devices)
    step3.check_params(params, config)
    topologies.check_topology(topology, config, params.embedding.dtype)
    if topology.num_devices > len(devices):
        raise ValueError(
            f"{topology} needs {topology.num_devices} devices, there are {len(devices)}"
        )
    split = topology.num_attention
    attention = Mesh(np.array(devices[:split]), ("attention",))
    ffn = np.array(devices[split : topology.num_devices])
    mesh_ffn = Mesh(ffn.reshape(topology.num_ffn, -1), ("ffn", "device"))
    if threads is None:
        threads = devices[0].platform == "cpu"
    return _make(params, config, topology, attention, mesh_ffn, bool(threads), record)


def make_monolith_decode(
    params: Step3Params, config: Step3Config, topology: Topology
) -> DisaggregatedDecoder:
    """Returns the decoder on one device, which adds the shards of a topology in the same order.

    In float32 with an exact wire its logits are those of every realisation bit for bit.

    Raises:
        ValueError: if topology and parameters do not fit each other.
    """
    step3.check_params(params, config)
    topologies.check_topology(topology, config, params.embedding.dtype)
    return _make(params, config, topology, None, None, False, None)


def _make(
    params: Step3Params,
    config: Step3Config,
    topology: Topology,
    mesh_attention: Mesh | None,
    mesh_ffn: Mesh | None,
    threads: bool,
    record: Record | None,
) -> DisaggregatedDecoder:
    dtype = params.embedding.dtype
    place = functools.partial(_place, mesh_attention)
    embedding, norm, head = place((params.embedding, params.norm, params.head), P())
    attention_weights = [place(w, P()) for w in topologies.attention_weights(params, topology)]
    shards = [
        _place(mesh_ffn, topologies.ffn_shards(block, topology), P(("ffn", "device")))
        for block in params.blocks
    ]
    num_layers, M = config.num_layers, topology.micro_batches

    @functools.partial(jax.jit, donate_argnums=1)
    def start(embedding: Array, cache: PagedCache, tokens: Array, active: Array) -> tuple:
        def one(embedding: Array, own: tuple[PagedCache, Array, Array]) -> tuple:
            return stages.start_stage(embedding, *own, config, M)

        return _spread(one, mesh_attention, "attention")(embedding, (cache, tokens, active))

    @functools.partial(jax.jit, donate_argnums=3)
    def attend(
        weights: Any, x: Array, inbox: Array, cache: PagedCache, layer: Array, requests: Any
    ) -> tuple:
        def one(shared: tuple, own: tuple) -> tuple:
            (weights, layer), (x, inbox, cache, requests) = shared, own
            return stages.attention_stage(
                weights, x, inbox, cache, layer, requests, config, topology
            )

        mapped = _spread(one, mesh_attention, "attention")
        return mapped((weights, layer), (x, inbox, cache, requests))

    @jax.jit
    def feed_forward(shards: Any, message: Any) -> Array:
        count = message.payload.shape[0]
        heard = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), message)

        def one(message: Any, shard: Any) -> Array:
            return stages.ffn_stage(shard, message, config, dtype)

        partials = _spread(one, mesh_ffn, ("ffn", "device"))(heard, shards)
        partials = partials.reshape(topology.num_ffn, -1, *partials.shape[1:])
        if mesh_ffn is not None:  # gathered within the instance: sums of a mesh have no order
            partials = jax.lax.with_sharding_constraint(partials, NamedSharding(mesh_ffn, P("ffn")))
        partials = jax.lax.optimization_barrier(jnp.moveaxis(partials, 1, 0))
        back = wires.pack_back(stages.sum_in_order(partials), topology.wire)
        back = back.reshape(topology.num_ffn, count, -1, back.shape[-1])
        return jnp.moveaxis(back, 1, 0)  # a leading axis of attention instances

    @jax.jit
    def finish(norm: Array, head: Array, x: Array, inbox: Array) -> Array:
        def one(shared: tuple[Array, Array], own: tuple[Array, Array]) -> Array:
            return stages.finish_stage(*shared, *own, config)

        return _spread(one, mesh_attention, "attention")((norm, head), (x, inbox))

    @functools.partial(jax.jit, static_argnums=1)
    def collect(logits: list[Array], count: int) -> Array:
        joined = jnp.concatenate(logits, axis=1)[:, :count]
        return joined.reshape(-1, *joined.shape[2:])

    def timed(role: str, layer: int, m: int, run: Callable, *arguments: Any) -> Any:
        begin = time.perf_counter()
        out = run(*arguments)
        if threads or record is not None:
            jax.block_until_ready(out)
        if record is not None:
            record(StageEvent(role, 0, layer, m, begin, time.perf_counter()))
        return out

    def serve(layer: int, m: int, message: Any) -> Array:
        message = _place(mesh_ffn, message, P())
        back = timed("experts", layer, m, feed_forward, shards[layer], message)
        return place(back, P("attention"))

    def attend_all(cache: PagedCache, parts: Any, send: Callable, receive: Callable) -> tuple:
        xs = [x for x, _ in parts]
        for layer in range(num_layers):
            number = place(jnp.asarray(layer, jnp.int32), P())
            for m, (_, requests) in enumerate(parts):
                if layer:
                    inbox = receive(m)
                else:
                    N, D = xs[m].shape[1] * xs[m].shape[2], xs[m].shape[3]
                    kind = dtype if topology.wire == "exact" else jnp.bfloat16
                    shape = (topology.num_attention, topology.num_ffn, N, D)
                    inbox = place(jnp.zeros(shape, kind), P("attention"))
                weights = attention_weights[layer]
                xs[m], cache, message = timed(
                    "attention", layer, m, attend, weights, xs[m], inbox, cache, number, requests
                )
                send(layer, m, message)
        logits = [finish(norm, head, x, receive(m)) for m, x in enumerate(xs)]
        return logits, cache

    def in_turn(cache: PagedCache, parts: Any) -> tuple:
        boxes: dict[int, Array] = {}

        def send(layer: int, m: int, message: Any) -> None:
            boxes[m] = serve(layer, m, message)

        return attend_all(cache, parts, send, lambda m: boxes.pop(m))

    def in_threads(cache: PagedCache, parts: Any) -> tuple:
        out, back = queue.SimpleQueue(), queue.SimpleQueue()

        def run_ffn() -> None:
            try:
                while (item := out.get()) is not None:
                    back.put((serve(*item), None))
            except BaseException as error:  # attention raises it, instead of waiting
                back.put((None, error))

        def receive(m: int) -> Array:
            inbox, error = back.get()
            if error is not None:
                raise error
            return inbox

        worker = threading.Thread(target=run_ffn, name="ffn", daemon=True)
        worker.start()
        try:
            return attend_all(cache, parts, lambda *item: out.put(item), receive)
        finally:
            out.put(None)
            worker.join()

    def decode(
        cache: PagedCache, tokens: Int[Array, "B S"], active: Bool[Array, " B"] | None = None
    ) -> tuple[Array, PagedCache, Array]:
        step3.check_tokens(tokens, config.vocab)
        instances, count = cache.lens.shape
        B = instances * count
        if instances != topology.num_attention or tokens.shape[0] != B:
            raise ValueError(
                f"tokens must be of the {topology.num_attention} instances' requests, got "
                f"{tokens.shape[0]} tokens for {instances} caches of {count}: make them with "
                "init_cache"
            )
        active = jnp.ones((B,), bool) if active is None else active
        if active.shape != (B,) or active.dtype != jnp.bool_:
            raise ValueError(f"active must be bool [{B}], got {active.dtype} {active.shape}")
        tokens = place(tokens.reshape(instances, count, -1), P("attention"))
        active = place(active.reshape(instances, count), P("attention"))
        cache, done, parts = start(embedding, cache, tokens, active)
        logits, cache = (in_threads if threads else in_turn)(cache, parts)
        return collect(logits, count), cache, done.reshape(-1)

    def init_cache(num_pages: int, *, batch: int, **options: Any) -> PagedCache:
        """Makes the caches; options as in `step3.init_step3_cache`."""
        if batch % topology.num_attention:
            raise ValueError(
                f"batch must be a multiple of num_attention={topology.num_attention}, got {batch}"
            )
        each = batch // topology.num_attention
        one = step3.init_step3_cache(config, num_pages, batch=each, **options)
        stacked = jax.tree.map(lambda x: jnp.stack([x] * topology.num_attention), one)
        return place(stacked, P("attention"))

    return DisaggregatedDecoder(init_cache, decode)


def _place(mesh: Mesh | None, tree: Any, spec: P) -> Any:
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, spec))


def _spread(fn: Callable, mesh: Mesh | None, axis: Any) -> Callable:
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
