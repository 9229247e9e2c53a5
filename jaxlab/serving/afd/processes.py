"""Feed-forward instances as processes of their own, asked over connectors.

A server holds the shards of one instance and no state of a request: one that is lost is started
again, and the service goes on from what it knows, see `Service.restart`. Both sides make the
connection with `server_identity`, so that a server of another model, topology or place is refused.

Source: Step-3, arXiv:2507.19427, section 4.
"""

import threading
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.serving.afd import connectors, stages
from jaxlab.serving.afd import topology as topologies
from jaxlab.serving.afd import wire as wires
from jaxlab.serving.afd.attention_side import (
    DisaggregatedDecoder,
    FeedForward,
    Record,
    make_disaggregated_decoder,
    spread,
)
from jaxlab.serving.afd.connectors import Connector, Message, PeerError
from jaxlab.serving.afd.topology import FfnShard, Topology
from jaxlab.serving.afd.wire import Packed
from jaxlab.serving.cache import quantization
from jaxlab.serving.model import step3
from jaxlab.serving.model.step3 import Step3Config, Step3Params


def server_identity(
    params: Step3Params, config: Step3Config, topology: Topology, index: int
) -> str:
    """Returns the identity of feed-forward instance `index`, for `connectors.connect`, `listen`."""
    return connectors.model_identity((config, topology, index), params)


def server_shards(
    params: Step3Params, config: Step3Config, topology: Topology, index: int
) -> tuple[FfnShard, ...]:
    """Returns what feed-forward instance `index` holds: its shards of every layer, stacked.

    Raises:
        ValueError: if there is no such instance, or topology and parameters do not fit each other.
    """
    step3.check_params(params, config)
    topologies.check_topology(topology, config, params.embedding.dtype)
    if not 0 <= index < topology.num_ffn:
        raise ValueError(f"index must be in 0 to {topology.num_ffn - 1}, got {index}")
    size = topology.num_shards // topology.num_ffn
    own = slice(index * size, (index + 1) * size)
    return tuple(
        jax.tree.map(lambda w: w[own], topologies.ffn_shards(block, topology))
        for block in params.blocks
    )


def serve_ffn(
    connector: Connector,
    layers: Sequence[FfnShard],
    config: Step3Config,
    topology: Topology,
    stop: threading.Event,
    *,
    timeout: float = 3600.0,
) -> None:
    """Answers the messages of the attention side, until it closes or `stop` is set.

    Args:
        connector: to the attention side.
        layers: the shards of this server, see `server_shards`.
        config: sizes of the model.
        topology: who computes what.
        stop: ends the service after the answer that is under way, or within a tenth of a second.
        timeout: seconds without a message after which the attention side counts as lost.

    Raises:
        PeerError: if the connection is lost or a message is none for a layer of this model.
    """
    dtype = layers[0].always.gate.dtype

    @jax.jit
    def answer(shards: FfnShard, heard: Packed) -> Array:
        def one(heard: Packed, shard: FfnShard) -> Array:
            return stages.ffn_stage(shard, heard, config, dtype)

        partials = jax.lax.optimization_barrier(spread(one, None, None)(heard, shards))
        return wires.pack_back(stages.sum_in_order(partials), topology.wire)

    until = time.monotonic() + timeout
    while not stop.is_set():
        if not connector.ready(min(0.1, timeout)):
            if time.monotonic() < until:
                continue
            connector.close()
            raise PeerError(f"{connector.peer} sent nothing within {timeout:g} seconds")
        message = connector.receive(timeout)
        until = time.monotonic() + timeout
        if not _is_question(message, layers, config, topology, dtype):
            connector.close()
            raise PeerError(f"{connector.peer} sent what is no message for a layer: {message[:4]}")
        heard = Packed(*map(message.arrays.get, Packed._fields))  # pyright: ignore[reportArgumentType]
        partial = answer(layers[message.layer], heard)
        connector.send(message._replace(stage="ffn", arrays={"partial": partial}))


def make_process_decode(
    params: Step3Params,
    config: Step3Config,
    topology: Topology,
    servers: Sequence[Connector],
    *,
    record: Record | None = None,
) -> DisaggregatedDecoder:
    """Makes the decoder whose feed-forward instances are servers, asked from a thread.

    An error of a server is raised by `decode`, whose cache is lost then: connect to all servers
    again, for answers may be under way, and go on with an empty cache, see `Service.restart`.

    Args:
        params: weights of the model, of which the feed-forward layers are not used here.
        config: sizes of the model.
        topology: who computes what.
        servers: a connector to each feed-forward instance, in their order; a list whose entries
            may be replaced.
        record: called with every stage as it ends, see `make_two_mesh_decode`; what the servers
            take includes the way there and back.

    Raises:
        ValueError: if topology and parameters do not fit each other, or there is not one server for
            each instance.
    """
    step3.check_params(params, config)
    topologies.check_topology(topology, config, params.embedding.dtype)
    if len(servers) != topology.num_ffn:
        raise ValueError(
            f"servers must be one for each of {topology.num_ffn} instances, got {len(servers)}"
        )

    def answer(layer: int, micro_batch: int, message: Packed) -> Array:
        A = message.payload.shape[0]
        arrays = {
            name: x.reshape(-1, *x.shape[2:])
            for name, x in message._asdict().items()
            if x is not None
        }
        count = arrays["payload"].shape[0]
        question = Message("attention", layer, micro_batch, count, arrays)
        for server in servers:
            server.send(question)
        back = wires.pack_back(jnp.zeros((), params.embedding.dtype), topology.wire).dtype
        partials = [_answer(server, question, (count, config.d_model), back) for server in servers]
        return jnp.moveaxis(jnp.stack(partials).reshape(len(servers), A, -1, config.d_model), 1, 0)

    feed_forward = FeedForward(lambda message: message, answer)
    return make_disaggregated_decoder(
        params, config, topology, feed_forward, threads=True, record=record
    )


def _answer(
    server: Connector, question: Message, shape: tuple[int, int], dtype: np.dtype
) -> np.ndarray:
    found = server.receive()
    partial = found.arrays.get("partial")
    right = found[:4] == ("ffn", *question[1:4])
    if not right or partial is None or partial.shape != shape or partial.dtype != dtype:
        server.close()
        raise PeerError(f"{server.peer} answered another question than {question[:4]}")
    return partial


def _is_question(
    message: Message,
    layers: Sequence[FfnShard],
    config: Step3Config,
    topology: Topology,
    dtype: np.dtype,
) -> bool:
    """Whether a message has what a layer needs, in shapes and dtypes of this model."""
    if message.stage != "attention" or not 0 <= message.layer < len(layers):
        return False
    N, D, k = message.tokens, config.d_model, config.num_active
    want = {"payload": ((N, D), dtype)}
    if topology.wire == "fp8":
        want["payload"] = ((N, D), jnp.dtype(quantization.FP8))
        want["scale"] = ((N, D // topologies.GROUP), jnp.dtype(jnp.float32))
    if layers[message.layer].routed is not None and topology.router == "attention":
        want["expert"] = ((N, k), jnp.dtype(jnp.int32))
        want["weight"] = ((N, k), jnp.promote_types(dtype, jnp.float32))
    return {name: (x.shape, x.dtype) for name, x in message.arrays.items()} == want
