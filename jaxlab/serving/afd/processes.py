"""Decoding with the feed-forward layers in other processes, over connectors.

Every server holds a slice of the hidden axis of each expert and dense layer; the attention side
adds their partial results in the order of the servers. Servers hold no state of a request: one that
is lost is started again, and the service goes on from what it knows, see `Service.restart`.

Source: Step-3, arXiv:2507.19427, section 4.
"""

import functools
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.nn import transformer
from jaxlab.nn.transformer import Swiglu
from jaxlab.serving.afd.connectors import Connector, Message, PeerError
from jaxlab.serving.model import experts
from jaxlab.serving.model.experts import Moe
from jaxlab.serving.model.step3 import Step3Config, Step3Params


def ffn_slices(params: Step3Params, index: int, count: int) -> tuple[Moe | Swiglu, ...]:
    """Returns what server `index` of `count` holds: a slice of the hidden axis of every layer.

    Raises:
        ValueError: if there is no such server, or the hidden axes do not divide.
    """
    if not 0 <= index < count:
        raise ValueError(f"index must be in 0 to {count - 1}, got {index}")

    def cut(weights: Swiglu) -> Swiglu:
        hidden = weights.gate.shape[-1]
        if hidden % count:
            raise ValueError(f"hidden axes must divide over {count} servers, got {hidden}")
        size = hidden // count
        here = slice(index * size, (index + 1) * size)
        return Swiglu(weights.gate[..., here], weights.up[..., here], weights.down[..., here, :])

    def one(ffn: Any) -> Moe | Swiglu:
        if not isinstance(ffn, Moe):
            return cut(ffn)
        return Moe(ffn.router, cut(ffn.experts), None if ffn.shared is None else cut(ffn.shared))

    return tuple(one(block.ffn) for block in params.blocks)


def serve_ffn(
    connector: Connector,
    layers: Sequence[Moe | Swiglu],
    config: Step3Config,
    stop: threading.Event,
    *,
    timeout: float = 3600.0,
) -> None:
    """Answers the messages of one attention worker, until it closes or `stop` is set.

    Args:
        connector: to the attention worker.
        layers: weights of this server, see `ffn_slices`.
        config: sizes of the model.
        stop: ends the service after the answer that is under way.
        timeout: seconds without a message after which the worker counts as lost.

    Raises:
        PeerError: if the connection is lost or a message is not of this model.
    """

    @jax.jit
    def answer(weights: Moe | Swiglu, x: Array) -> Array:
        if isinstance(weights, Moe):
            return experts.moe(weights, x, num_active=config.num_active)
        return transformer.swiglu(weights, x)

    while not stop.is_set():
        message = connector.receive(timeout)
        x = message.arrays.get("x")
        right = message.stage == "attention" and 0 <= message.layer < len(layers)
        if not right or x is None or x.ndim != 2 or x.shape[1] != config.d_model:
            connector.close()
            raise PeerError(f"{connector.peer} sent what is no message for a layer: {message[:4]}")
        partial = np.asarray(answer(layers[message.layer], jnp.asarray(x)))
        connector.send(message._replace(stage="ffn", arrays={"partial": partial}))


def ask_ffn(servers: Sequence[Connector], layer: int, micro_batch: int, x: np.ndarray) -> Array:
    """Sends normalized tokens `[N, D]` to all servers and adds their answers in order.

    Raises:
        PeerError: if a server is lost, late, or answers another question.
    """
    question = Message("attention", layer, micro_batch, x.shape[0], {"x": x})
    for server in servers:
        server.send(question)
    partials = []
    for server in servers:
        answer = server.receive()
        partial = answer.arrays.get("partial")
        right = answer[:4] == ("ffn", *question[1:4])
        if not right or partial is None or partial.shape != x.shape or partial.dtype != x.dtype:
            server.close()
            raise PeerError(f"{server.peer} answered another question than {question[:4]}")
        partials.append(jnp.asarray(partial))
    return functools.reduce(jnp.add, partials)
