"""Connectors: what is sent comes, bit by bit, and what is wrong with a peer is told in time."""

import contextlib
import json
import socket
import struct
import threading
import time
from concurrent import futures

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving.afd import connectors, transfers
from jaxlab.serving.afd.connectors import Message, PeerError


def joined(here="model", there="model", **options):
    """Both ends of a connection over loopback, or the errors that they got."""
    listener, ends = connectors.listen(there, timeout=30.0, **options), [None]

    def serve():
        try:
            ends[0] = listener.accept(5.0)
        except PeerError as error:
            ends[0] = error

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client = connectors.connect(*listener.address, here, timeout=30.0)
    except PeerError as error:
        client = error
    thread.join()
    listener.close()
    return client, ends[0]


def raw_peer(timeout=30.0, **options):
    """A connector whose peer is a bare socket that has said a right hello."""
    listener = connectors.listen("model", timeout=timeout, **options)
    link = socket.create_connection(listener.address)
    link.sendall(framed({"version": connectors.VERSION, "identity": "model"}))
    connector = listener.accept(5.0)
    listener.close()
    return connector, link


def framed(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("!4sIQ", b"AFD\n", len(text), len(data)) + text + data


def with_transfer(ends):
    """Both ends greet each other at once."""
    with futures.ThreadPoolExecutor(2) as pool:
        return tuple(pool.map(transfers.pulled, ends))


@pytest.mark.parametrize("kind", ["queues", "socket", "transfer"])
def test_messages_arrive_bit_by_bit(kind):
    client, server = connectors.in_process() if kind == "queues" else joined()
    if kind == "transfer":
        client, server = with_transfer((client, server))
    rng = np.random.default_rng(0)
    dtypes = [np.float32, np.int32, np.bool_, jnp.bfloat16, jnp.float8_e4m3fn]
    arrays = {
        np.dtype(d).name: rng.integers(0, 2, (3, 5, 8), np.uint8).repeat(np.dtype(d).itemsize, 2)
        for d in dtypes
    }
    arrays = {name: x.view(name)[..., ::2] for name, x in arrays.items()}  # not contiguous
    arrays |= {"none": np.zeros((0, 4), np.float32), "scalar": np.float32(np.nan)}
    seconds = (86_400.123456789, 1e-6)  # float32 would lose a millisecond
    client.send(Message("attention", 3, 1, 15, arrays, 7, seconds))
    got = server.receive()
    assert (got.number, got.seconds) == (7, seconds)
    assert got[:4] == ("attention", 3, 1, 15)
    assert list(got.arrays) == list(arrays)
    for name, array in arrays.items():
        assert got.arrays[name].dtype == array.dtype and got.arrays[name].shape == array.shape
        assert np.asarray(got.arrays[name]).tobytes() == array.tobytes()
    server.send(Message("ffn", 3, 1, 15, {"partial": np.asarray(jnp.ones(4, jnp.bfloat16))}))
    assert client.receive().arrays["partial"].astype(np.float32).sum() == 4.0
    with pytest.raises(PeerError, match=r"nothing|did not send"):
        client.receive(timeout=0.05)
    with pytest.raises(PeerError, match="closed the connection|no longer"):
        server.receive()
    with pytest.raises(PeerError):
        client.send(Message("ffn", 0, 0, 0, {}))


@pytest.mark.parametrize("what", ["version of the protocol", "model"])
def test_another_version_or_model_is_refused(what):
    if what == "model":
        ends = joined("one", "two")
        words = [("two", "one"), ("one", "two")]
    else:
        listener = connectors.listen("model", timeout=30.0)
        link = socket.create_connection(listener.address)
        link.sendall(framed({"version": 99, "identity": "model"}))
        with pytest.raises(PeerError) as error:
            listener.accept(5.0)
        listener.close()
        link.close()
        ends, words = [error.value], [("99", "2")]
    for end, (there, here) in zip(ends, words, strict=True):
        text = str(end)
        assert isinstance(end, PeerError) and "\n" not in text
        assert f"127.0.0.1:{text.split(':')[1].split()[0]} has another {what}: " in text
        assert f"{there} there, {here} here" in text


HEADER = {"stage": "ffn", "layer": 0, "micro_batch": 0, "tokens": 1, "number": 3, "seconds": []}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "closed the connection"),
        (b"AFD\n\0\0", "after 6 of 16 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak this protocol"),
        (framed(HEADER)[:-3], r"after \d+ of \d+ bytes"),
        (framed(HEADER | {"arrays": []}, bytes(8))[:-8], "after 0 of 8 bytes"),
        (struct.pack("!4sIQ", b"AFD\n", 2, 2**60), "more than"),
        (struct.pack("!4sIQ", b"AFD\n", 2**31, 0), "more than"),
        (struct.pack("!4sIQ", b"AFD\n", 2, 0) + b"{!", "not JSON"),
        (struct.pack("!4sIQ", b"AFD\n", 2, 0) + b"[]", "no JSON object"),
        (struct.pack("!4sIQ", b"AFD\n", 60_000, 0) + b"[" * 60_000, "not JSON"),
        (framed(HEADER), "false header"),
        (framed(HEADER | {"arrays": [["x", "float32", [3]]]}, bytes(8)), "needs 12 bytes"),
        (framed(HEADER | {"arrays": [["x", "float32", [1]]]}, bytes(8)), "are 4 bytes"),
        (framed(HEADER | {"arrays": [["x", "object", [1]]]}, bytes(8)), "unknown"),
        (framed(HEADER | {"arrays": [["x", "float32", [-1, -2]]]}, bytes(8)), "is none"),
        (framed(HEADER | {"arrays": [], "layer": "0"}), "must be text"),
    ],
)
def test_a_lost_truncated_or_false_message_names_the_peer(data, message):
    connector, link = raw_peer()
    link.sendall(data)
    link.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerError, match=message) as error:
        connector.receive()
    assert connector.peer in str(error.value) and "\n" not in str(error.value)
    link.close()


def test_a_peer_that_drips_is_late_as_a_whole():
    connector, link = raw_peer()

    def drip():
        with contextlib.suppress(OSError):
            for byte in framed(HEADER | {"arrays": []}):
                link.sendall(bytes([byte]))
                time.sleep(0.02)

    thread = threading.Thread(target=drip)
    thread.start()
    with pytest.raises(PeerError, match="within 0.2 seconds"):
        connector.receive(timeout=0.2)
    thread.join()
    link.close()


def test_nobody_there_and_what_is_too_large():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PeerError, match=f"127.0.0.1:{port} did not accept"):
        connectors.connect("127.0.0.1", port, "model", timeout=0.2)
    client, server = joined(max_bytes=8)
    with pytest.raises(ValueError, match="at most 8 bytes, got 12"):
        server.send(Message("ffn", 0, 0, 1, {"x": np.zeros(3, np.float32)}))
    client.send(Message("ffn", 0, 0, 1, {"x": np.zeros(3, np.float32)}))
    with pytest.raises(PeerError, match="more than"):
        server.receive()
    with pytest.raises(ValueError, match="dtype"):
        client.send(Message("ffn", 0, 0, 1, {"x": np.array(["text"])}))
    client.close()
    with pytest.raises(ValueError, match="timeout must be positive"):
        connectors.connect("127.0.0.1", port, "model", timeout=0.0)


def test_identity_sees_every_bit():
    params = {"a": jnp.arange(4, dtype=jnp.float32), "b": jnp.zeros(2, jnp.bfloat16)}
    identity = connectors.model_identity("config", params)
    assert identity == connectors.model_identity("config", dict(params))
    others = [
        ("other", params),
        ("config", params | {"a": params["a"].at[3].set(np.nextafter(np.float32(3), 4))}),
        ("config", params | {"a": params["a"].reshape(2, 2)}),
        ("config", params | {"b": jnp.zeros(2, jnp.float16)}),
    ]
    assert identity not in [connectors.model_identity(*other) for other in others]
