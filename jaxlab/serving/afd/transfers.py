"""Messages whose arrays go from device to device, through `jax.experimental.transfer`.

A link, such as a socket, carries the headers; the receiver pulls the arrays from the sender's
transfer server onto its own device. On accelerators they do not pass the host.
"""

import json
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import transfer

from jaxlab.serving.afd.connectors import Connector, Message, PeerError


def pulled(
    link: Connector, *, device: Any = None, address: str = "127.0.0.1:0", pull_timeout: float = 30.0
) -> Connector:
    """Returns a connector over a link both of whose ends call this.

    Peers are not authenticated, as of `connectors.listen`. Arrays are given out until they are
    pulled: what a lost peer did not pull stays in memory, so that one closes the link then.

    Args:
        link: carries headers; its peer, timeout and errors are those of the connector.
        device: where received arrays go; the first local one by default.
        address: host and port at which this end gives out arrays, as the peer reaches them.
        pull_timeout: seconds for the arrays of a message after its header.

    Raises:
        PeerError: if the peer is lost or does not speak this protocol.
        ValueError: if pull_timeout is not positive.
    """
    if not pull_timeout > 0.0:
        raise ValueError(f"pull_timeout must be positive, in seconds, got {pull_timeout}")
    device = jax.local_devices()[0] if device is None else device
    sharding = jax.sharding.SingleDeviceSharding(device)
    server = transfer.start_transfer_server(device.client, address, [address])
    link.send(_header(Message("transfer", 0, 0, 0, {}), server.address()))
    greeting = link.receive()
    if greeting.stage != "transfer" or "transfer" not in greeting.arrays:
        link.close()
        raise PeerError(f"{link.peer} does not send by transfer: it began with {greeting[:4]}")
    source = server.connect(_text(greeting))
    sent = [0]

    def send(message: Message) -> None:
        arrays = {name: jax.device_put(x, sharding) for name, x in message.arrays.items()}
        jax.block_until_ready(arrays)  # a peer may pull at once
        sent[0] += 1
        if full := [x for x in arrays.values() if x.size]:
            server.await_pull(sent[0], full)
        specs = [(name, x.dtype.name, x.shape) for name, x in arrays.items()]
        link.send(_header(message, json.dumps([sent[0], specs])))

    def receive(timeout: float | None = None) -> Message:
        header = link.receive() if timeout is None else link.receive(timeout)
        try:
            number, specs = json.loads(_text(header))
            kinds = [
                jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
                for _, dtype, shape in specs
            ]
            names = [name for name, _, _ in specs]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            link.close()
            raise PeerError(f"{link.peer} sent a message with a false header: {error}") from None
        full = [kind for kind in kinds if math.prod(kind.shape)]  # an empty one never arrives
        arrays = source.pull(number, full) if full else []
        until = time.monotonic() + pull_timeout
        while not all(x.is_ready() for x in arrays):
            if time.monotonic() > until:
                link.close()
                late = f"within {pull_timeout:g} seconds"
                raise PeerError(f"{link.peer} did not give out arrays {late}")
            time.sleep(1e-4)
        try:
            jax.block_until_ready(arrays)
        except jax.errors.JaxRuntimeError as error:
            link.close()
            raise PeerError(f"{link.peer} is no longer connected: {error}") from None
        came = iter(arrays)
        everything = [
            next(came) if math.prod(kind.shape) else jnp.zeros(kind.shape, kind.dtype)
            for kind in kinds
        ]
        return header._replace(arrays=dict(zip(names, everything, strict=True)))

    return Connector(link.peer, send, receive, link.ready, link.close)


def _header(message: Message, text: str) -> Message:
    return message._replace(arrays={"transfer": np.frombuffer(text.encode(), np.uint8)})


def _text(message: Message) -> str:
    return message.arrays["transfer"].tobytes().decode()
