"""One controller over two meshes: attention on some devices, feed-forward on the others.

Every stage is one compiled program for all layers of a kind. On accelerators, which compute while
the controller goes on, stages are issued layer by layer and micro-batch by micro-batch. A CPU
computes in the thread that asks: there each role has a thread, and queues between them.

Without meshes the same stages run one after another on one device: that is the monolith, which adds
the same shards in the same order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxlab.serving.afd import stages
from jaxlab.serving.afd import topology as topologies
from jaxlab.serving.afd import wire as wires
from jaxlab.serving.afd.attention_side import (
    DisaggregatedDecoder,
    FeedForward,
    Record,
    make_disaggregated_decoder,
    place,
    spread,
    timed,
)
from jaxlab.serving.afd.topology import FfnShard, Topology
from jaxlab.serving.afd.wire import Packed
from jaxlab.serving.model import step3
from jaxlab.serving.model.step3 import Step3Config, Step3Params


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
    check_devices("of attention", devices[:split])
    check_devices("of feed-forward", devices[split : topology.num_devices])
    attention = Mesh(np.array(devices[:split]), ("attention",))
    ffn = np.array(devices[split : topology.num_devices])
    mesh_ffn = Mesh(ffn.reshape(topology.num_ffn, -1), ("ffn", "device"))
    if threads is None:
        threads = devices[0].platform == "cpu"
    return make_disaggregated_decoder(
        params,
        config,
        topology,
        _feed_forward(params, config, topology, mesh_ffn, bool(threads), record),
        mesh=attention,
        threads=bool(threads),
        record=record,
    )


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
    return make_disaggregated_decoder(
        params, config, topology, _feed_forward(params, config, topology, None, False, None)
    )


def make_ffn_program(
    config: Step3Config, topology: Topology, dtype: Any, mesh: Mesh | None
) -> Callable[[FfnShard, Packed], Float[Array, "A F N D"]]:
    """Returns what feed-forward instances do with a message: `run(shards, message)`, jitted.

    Args:
        config: sizes of the model.
        topology: of these instances.
        dtype: of the model.
        mesh: with axes "ffn", the instance, and "device", over which the shards lie; or None for
            one shard after another on one device.
    """

    @jax.jit
    def run(shards: FfnShard, message: Packed) -> Array:
        count = message.payload.shape[0]
        heard = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), message)

        def one(message: Packed, shard: FfnShard) -> Array:
            return stages.ffn_stage(shard, message, config, dtype)

        partials = spread(one, mesh, ("ffn", "device"))(heard, shards)
        partials = partials.reshape(topology.num_ffn, -1, *partials.shape[1:])
        if mesh is not None:  # gathered within the instance: sums of a mesh have no order
            partials = jax.lax.with_sharding_constraint(partials, NamedSharding(mesh, P("ffn")))
        partials = jax.lax.optimization_barrier(jnp.moveaxis(partials, 1, 0))
        back = wires.pack_back(stages.sum_in_order(partials), topology.wire)
        back = back.reshape(topology.num_ffn, count, -1, back.shape[-1])
        return jnp.moveaxis(back, 1, 0)  # a leading axis of attention instances

    return run


def check_devices(what: str, devices: Sequence[Any]) -> None:
    """Refuses a device that is there twice.

    Raises:
        ValueError: that names it.
    """
    twice = [device for i, device in enumerate(devices) if device in devices[:i]]
    if twice:
        raise ValueError(f"devices {what} must differ, got {twice[0]} twice")


def _feed_forward(
    params: Step3Params,
    config: Step3Config,
    topology: Topology,
    mesh: Mesh | None,
    threads: bool,
    record: Record | None,
) -> FeedForward:
    """Returns feed-forward over a mesh, or shard after shard on one device."""
    dtype = params.embedding.dtype
    layers = [
        place(mesh, topologies.ffn_shards(block, topology), P(("ffn", "device")))
        for block in params.blocks
    ]
    run = make_ffn_program(config, topology, dtype, mesh)

    def answer(layer: int, micro_batch: int, message: Packed) -> Array:
        heard = place(mesh, message, P())
        stage = functools.partial(run, layers[layer], heard)
        return timed(record, ("experts", 0, layer, micro_batch), stage, wait=threads)

    return FeedForward(lambda layer, m, message: message, answer, lambda: None)
