"""Feed-forward instances as processes of their own, asked over connectors.

A server holds the shards of one instance and no state of a request: one that is lost is started
again, and the service goes on from what it knows, see `Service.restart`. Both sides make the
connection with `server_identity`, so that a server of another model, topology or place is refused.

Source: Step-3, arXiv:2507.19427, section 4.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxlab.nn import transformer
from jaxlab.serving.afd import connectors, two_meshes
from jaxlab.serving.afd import topology as topologies
from jaxlab.serving.afd.attention_side import (
    DisaggregatedDecoder,
    FeedForward,
    Record,
    make_disaggregated_decoder,
    place,
)
from jaxlab.serving.afd.connectors import Connector, Message, PeerError
from jaxlab.serving.afd.pipeline import StageEvent
from jaxlab.serving.afd.topology import FfnShard, Topology
from jaxlab.serving.afd.trace import Exchange
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
    links: Connector | Sequence[Connector],
    layers: Sequence[FfnShard],
    config: Step3Config,
    topology: Topology,
    stop: threading.Event,
    *,
    devices: Sequence[Any] | None = None,
    timeout: float = 3600.0,
) -> None:
    """Answers the messages of the attention side, until it closes or `stop` is set.

    With several attention processes it waits for the message of each, and answers all together.
    However it ends, it closes the connections; accept them again and call it again to go on.

    Args:
        links: to the attention processes, by their instances; or to the one.
        layers: the shards of this server, see `server_shards`.
        config: sizes of the model.
        topology: who computes what.
        stop: ends the service after the answer that is under way, or within a tenth of a second.
        devices: ep * tp of them, by group and place in the group; None for one device.
        timeout: seconds without a message after which the attention side counts as lost.

    Raises:
        PeerError: if a connection is lost or a message is none for a layer of this model.
        ValueError: if there are not as many devices as shards.
    """
    links = (links,) if isinstance(links, Connector) else tuple(links)
    dtype = layers[0].always.gate.dtype
    mesh = None
    if devices is not None:
        if len(devices) != topology.ep * topology.tp:
            raise ValueError(
                f"devices must be the {topology.ep * topology.tp} of an instance, got "
                f"{len(devices)}"
            )
        two_meshes.check_devices("of feed-forward", devices)
        mesh = Mesh(np.array(devices)[None], ("ffn", "device"))
        layers = [place(mesh, shard, P(("ffn", "device"))) for shard in layers]
    answer = two_meshes.make_ffn_program(config, topology._replace(num_ffn=1), dtype, mesh)
    until = time.monotonic() + timeout
    try:
        while not stop.is_set():
            if not links[0].ready(min(0.1, timeout)):
                if time.monotonic() < until:
                    continue
                raise PeerError(f"{links[0].peer} sent nothing within {timeout:g} seconds")
            questions, received = [], []
            for link in links:
                questions.append(link.receive(timeout))
                received.append(time.perf_counter())
                _check_question(link, questions, layers, config, topology, dtype)
            begin = time.perf_counter()
            heard = jax.tree.map(
                lambda *parts: place(mesh, jnp.concatenate(parts)[None], P()),
                *(_packed(question) for question in questions),
            )
            partial = answer(layers[questions[0].layer], heard)[0, 0].block_until_ready()
            compute, first = time.perf_counter() - begin, 0
            for link, question, came in zip(links, questions, received, strict=True):
                own = partial[first : first + question.tokens]
                first += question.tokens
                seconds = (came, compute, time.perf_counter())
                link.send(question._replace(stage="ffn", arrays={"partial": own}, seconds=seconds))
            until = time.monotonic() + timeout
    finally:
        for link in links:
            link.close()


def make_process_decode(
    params: Step3Params,
    config: Step3Config,
    topology: Topology,
    servers: Sequence[Connector],
    *,
    devices: Sequence[Any] | None = None,
    record: Record | None = None,
    record_exchange: Callable[[Exchange], Any] | None = None,
) -> DisaggregatedDecoder:
    """Makes the decoder whose feed-forward instances are servers.

    Messages go out while answers to earlier ones are under way, so that micro-batches hide the
    network as they hide the experts. An error of a server is raised by `decode`, whose cache is
    lost then, and all connections are closed, for answers may be under way: connect to all servers
    again, and go on with an empty cache, see `Service.restart`.

    Several attention processes share servers: each has the instances of its topology, and the
    servers that of all, see `serve_ffn`. They decode in step, each with as many tokens a request.

    Args:
        params: weights of the model, of which the feed-forward layers are not used here.
        config: sizes of the model.
        topology: who computes what.
        servers: a connector to each feed-forward instance, in their order; a list whose entries
            may be replaced.
        devices: one for each attention instance; None for one device.
        record: called with every stage as it ends, of attention and of the experts, and with the
            network before and after those as `pipeline.STAGES` names them; on the way out a message
            also waits until the server reads it. The clock of a server is told by its quickest
            message so far, both of whose ways are taken to be equally long.
        record_exchange: called with the times of every message, see `trace.peer_table`.

    Raises:
        ValueError: if topology and parameters do not fit each other, or there is not one server for
            each instance and one device for each of attention.
    """
    step3.check_params(params, config)
    dtype = params.embedding.dtype
    topologies.check_topology(topology, config, dtype)
    if len(servers) != topology.num_ffn:
        raise ValueError(
            f"servers must be one for each of {topology.num_ffn} instances, got {len(servers)}"
        )
    mesh = None
    if devices is not None:
        if len(devices) != topology.num_attention:
            raise ValueError(
                f"devices must be one for each of {topology.num_attention} attention instances, "
                f"got {len(devices)}"
            )
        two_meshes.check_devices("of attention", devices)
        mesh = Mesh(np.array(devices), ("attention",))
    home = params.embedding.devices().pop() if devices is None else devices[0]
    back = jnp.dtype(dtype if topology.wire == "exact" else jnp.bfloat16)
    numbers = itertools.count(1)
    clocks: dict[int, _Clock] = {}

    def ask(layer: int, micro_batch: int, message: Packed) -> tuple[Message, float]:
        arrays = {
            name: x.reshape(-1, *x.shape[2:])
            for name, x in message._asdict().items()
            if x is not None
        }
        count = arrays["payload"].shape[0]
        question = Message("attention", layer, micro_batch, count, arrays, next(numbers))
        sent = time.perf_counter()
        for server in servers:
            server.send(question)
        return question._replace(arrays={}), sent

    def answer(layer: int, micro_batch: int, asked: tuple[Message, float]) -> Array:
        question, sent = asked
        partials = []
        for index, server in enumerate(servers):
            found = _answer(server, question, (question.tokens, config.d_model), back)
            partials.append(jax.device_put(found.arrays["partial"], home))
            where = (0, index, layer, micro_batch)
            received, compute, answered = found.seconds
            exchange = Exchange(*where, sent, time.perf_counter(), received, answered, compute)
            if record is not None:
                clocks[index] = min(clocks.get(index, NO_CLOCK), _clock(exchange))
                _record_server(record, exchange, clocks[index].ahead)
            if record_exchange is not None:
                record_exchange(exchange)
        shape = (len(servers), topology.num_attention, -1, config.d_model)
        return jnp.moveaxis(jnp.stack(partials).reshape(shape), 1, 0)

    def close() -> None:
        clocks.clear()  # who is connected to again may be another host
        for server in servers:
            server.close()

    return make_disaggregated_decoder(
        params,
        config,
        topology,
        FeedForward(ask, answer, close),
        mesh=mesh,
        threads=True,
        record=record,
    )


class _Clock(NamedTuple):
    """What is known of a server's clock; the least of several is the best known.

    Attributes:
        network: seconds that its quickest message was under way, both ways together.
        ahead: seconds that the clock of this process is ahead of its.
    """

    network: float
    ahead: float


NO_CLOCK = _Clock(math.inf, 0.0)


def _clock(e: Exchange) -> _Clock:
    network = max(0.0, e.returned - e.sent - (e.answered - e.received))
    return _Clock(network, e.sent + network / 2.0 - e.received)


def _record_server(record: Record, e: Exchange, ahead: float) -> None:
    where = (e.expert, e.layer, e.micro_batch)
    received, answered = max(e.sent, e.received + ahead), min(e.returned, e.answered + ahead)
    record(StageEvent("network out", *where, e.sent, received))
    record(StageEvent("experts", *where, answered - e.compute, answered))
    record(StageEvent("network back", *where, answered, e.returned))


def _answer(
    server: Connector, question: Message, shape: tuple[int, int], dtype: np.dtype
) -> Message:
    found = server.receive()
    partial = found.arrays.get("partial")
    right = (*found[:4], found.number) == ("ffn", *question[1:4], question.number)
    if (
        not right
        or len(found.seconds) != 3
        or partial is None
        or partial.shape != shape
        or partial.dtype != dtype
    ):
        raise PeerError(f"{server.peer} answered another question than {question[:4]}")
    return found


def _packed(message: Message) -> Packed:
    return Packed(*(message.arrays.get(name) for name in Packed._fields))  # pyright: ignore[reportArgumentType]


def _check_question(
    link: Connector,
    questions: Sequence[Message],
    layers: Sequence[FfnShard],
    config: Step3Config,
    topology: Topology,
    dtype: np.dtype,
) -> None:
    """Refuses what is no message for a layer, or for another than the first peer's."""
    last = questions[-1]
    if not _is_question(last, layers, config, topology, dtype):
        raise PeerError(f"{link.peer} sent what is no message for a layer: {last[:4]}")
    if last[1:3] != questions[0][1:3]:
        raise PeerError(
            f"{link.peer} is at layer and micro-batch {last[1:3]}, the first attention process at "
            f"{questions[0][1:3]}: they must decode in step"
        )


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
        want["weight"] = ((N, k), transformer.wide_dtype(dtype))
    return {name: (x.shape, x.dtype) for name, x in message.arrays.items()} == want
