"""Connectors: messages between attention and feed-forward workers, apart from the model.

A message is a small header and arrays. Over a socket the header is JSON and the arrays are their
bytes, so that a peer can send no code; before the first message both sides say which version of the
protocol they speak and which model they hold. Whatever goes wrong with a peer is a `PeerError` of
one line that names it, within the timeout, and the connection is closed.

Source: Step-3, arXiv:2507.19427, section 5 (what goes over the wire).
"""

import contextlib
import hashlib
import json
import math
import queue
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

VERSION = 2
"""Of the protocol; peers of another one are refused."""
MAX_BYTES = 2**30
"""Largest size of the arrays of a message, by default."""

_MAGIC = b"AFD\n"
_PREFIX = struct.Struct("!4sIQ")
_MAX_HEADER = 2**16
_DTYPES = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        np.bool_,
        np.int8,
        np.int32,
        np.uint8,
        np.uint32,
        np.float16,
        np.float32,
        np.float64,
        jnp.bfloat16,
        jnp.float8_e4m3fn,
        jnp.float8_e5m2,
    )
}


class PeerError(ConnectionError):
    """A peer is lost, late, or not what it should be."""


class Message(NamedTuple):
    """What workers send each other.

    Attributes:
        stage: "attention" for what an attention worker sends, "ffn" for an answer.
        layer: index of the layer.
        micro_batch: index of the micro-batch.
        tokens: number of tokens that count; rows behind them are padding.
        number: running number of a question, which its answer repeats.
        seconds: of an answer, on its clock: when the question came, how long it computed, and when
            it answered. As text they keep every digit, whatever carries the arrays.
        arrays: by name; a peer gets arrays of its host, or of its device, as the connector has it.
    """

    stage: str
    layer: int
    micro_batch: int
    tokens: int
    arrays: dict[str, Any]
    number: int = 0
    seconds: tuple[float, ...] = ()


class Connector(NamedTuple):
    """A connection to one peer.

    Attributes:
        peer: its name in errors.
        send: `send(message)`.
        receive: `receive(timeout=None) -> message`; a timeout in seconds, that of the connector by
            default.
        ready: `ready(seconds) -> bool`, whether something comes within as many; it stays there for
            `receive`, be it a message or the news that the peer is lost.
        close: `close()`; the peer sees it as lost.
    """

    peer: str
    send: Callable[[Message], None]
    receive: Callable[..., Message]
    ready: Callable[[float], bool]
    close: Callable[[], None]


class Listener(NamedTuple):
    """Where peers connect.

    Attributes:
        address: `(host, port)` that it listens on.
        accept: `accept(timeout) -> connector`; a peer that is refused is a `PeerError`, none within
            the timeout a TimeoutError.
        close: `close()`.
    """

    address: tuple[str, int]
    accept: Callable[[float], Connector]
    close: Callable[[], None]


def model_identity(config: Any, params: Any) -> str:
    """Returns a digest of a configuration and of every bit of its weights.

    Both sides of a connection have to name the same one: make it from the whole model, before it is
    split among workers.
    """
    digest = hashlib.sha256(repr(config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype.name} {array.shape}".encode())
        digest.update(_raw(array))
    return digest.hexdigest()


def in_process(*, timeout: float = 30.0) -> tuple[Connector, Connector]:
    """Makes the two ends of a connection between threads: queues, which nothing is copied for."""
    _check_timeout(timeout)
    ways: tuple[queue.Queue, queue.Queue] = (queue.Queue(), queue.Queue())

    def end(peer: str, out: queue.Queue, come: queue.Queue) -> Connector:
        gone = []

        def send(message: Message) -> None:
            if gone:
                raise PeerError(f"{peer} is no longer connected")
            out.put(message)

        def receive(timeout: float = timeout) -> Message:
            if gone:
                raise PeerError(f"{peer} is no longer connected")
            try:
                message = come.get(timeout=timeout)
            except queue.Empty:
                close()
                raise PeerError(f"{peer} sent nothing within {timeout:g} seconds") from None
            if message is None:
                close()
                raise PeerError(f"{peer} closed the connection")
            return message

        def ready(seconds: float) -> bool:
            with come.not_empty:  # the queue's own condition
                return bool(gone) or come.not_empty.wait_for(lambda: len(come.queue), seconds) > 0

        def close() -> None:
            if not gone:
                gone.append(True)
                out.put(None)

        return Connector(peer, send, receive, ready, close)

    return end("the ffn thread", *ways), end("the attention thread", *ways[::-1])


def connect(
    host: str, port: int, identity: str, *, timeout: float = 30.0, max_bytes: int = MAX_BYTES
) -> Connector:
    """Connects to a listener, and waits for it if it has not started yet.

    Args:
        host: name or address.
        port: its port.
        identity: of the model, see `model_identity`.
        timeout: seconds for the connection, and then for every message.
        max_bytes: largest size of the arrays of a message.

    Raises:
        PeerError: if nobody listens within the timeout, or a peer of another version or model.
        ValueError: if timeout or max_bytes is not positive.
    """
    _check_timeout(timeout)
    _check_size(max_bytes)
    peer, until = f"{host}:{port}", time.monotonic() + timeout
    while True:
        try:
            link = socket.create_connection((host, port), timeout=_left(until))
            break
        except OSError as error:
            if time.monotonic() + 0.05 >= until:
                raise PeerError(
                    f"{peer} did not accept a connection within {timeout:g} seconds: {error}"
                ) from None
            time.sleep(0.05)
    return _over(link, peer, identity, timeout, max_bytes)


def listen(
    identity: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    timeout: float = 30.0,
    max_bytes: int = MAX_BYTES,
) -> Listener:
    """Listens for peers.

    Peers are not authenticated: listen on loopback or on a network that is yours alone.

    Args:
        identity: of the model, see `model_identity`.
        host: address to listen on.
        port: its port; 0 for any that is free.
        timeout: seconds for every message.
        max_bytes: largest size of the arrays of a message.

    Raises:
        ValueError: if timeout or max_bytes is not positive.
        OSError: if the address cannot be listened on.
    """
    _check_timeout(timeout)
    _check_size(max_bytes)
    server = socket.create_server((host, port))

    def accept(seconds: float) -> Connector:
        server.settimeout(seconds)
        link, address = server.accept()
        return _over(link, ":".join(map(str, address[:2])), identity, timeout, max_bytes)

    here = server.getsockname()
    return Listener((here[0], here[1]), accept, server.close)


def _over(
    link: socket.socket, peer: str, identity: str, timeout: float, max_bytes: int
) -> Connector:
    """Makes a connector of a socket, after the peer has shown what it is."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def safely(action: Callable, *arguments: Any) -> Any:
        """A connection after an error is closed: nobody knows where in a message it stands."""
        try:
            return action(link, peer, *arguments)
        except PeerError:
            link.close()
            raise
        except TimeoutError:
            link.close()
            late = f"within {arguments[-1]:g} seconds"
            raise PeerError(f"{peer} did not send or take a message {late}") from None
        except OSError as error:
            link.close()
            raise PeerError(f"{peer} is no longer connected: {error}") from None

    hello = {"version": VERSION, "identity": identity}
    safely(_write, hello, [], timeout)
    other, _ = safely(_read, 0, timeout)
    for name, what in (("version", "version of the protocol"), ("identity", "model")):
        if other.get(name) != hello[name]:
            link.close()
            got, own = str(other.get(name))[:12], str(hello[name])[:12]
            raise PeerError(f"{peer} has another {what}: {got} there, {own} here")

    def send(message: Message) -> None:
        arrays = {name: np.asarray(array) for name, array in message.arrays.items()}
        size = sum(array.nbytes for array in arrays.values())
        if size > max_bytes:
            raise ValueError(f"a message must have at most {max_bytes} bytes, got {size}")
        for name, array in arrays.items():
            if array.dtype.name not in _DTYPES:
                raise ValueError(
                    f"arrays must have a dtype of {', '.join(_DTYPES)}, got {array.dtype} for "
                    f"{name!r}"
                )
        header = message._asdict() | {
            "arrays": [(name, x.dtype.name, x.shape) for name, x in arrays.items()]
        }
        safely(_write, header, [_raw(array) for array in arrays.values()], timeout)

    def receive(timeout: float = timeout) -> Message:
        header, data = safely(_read, max_bytes, timeout)
        try:
            return _unpacked(header, data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            link.close()
            raise PeerError(f"{peer} sent a message with a false header: {error}") from None

    def ready(seconds: float) -> bool:
        return link.fileno() < 0 or bool(select.select([link], [], [], seconds)[0])

    def close() -> None:
        with contextlib.suppress(OSError):  # a thread that waits on it is to see it
            link.shutdown(socket.SHUT_RDWR)
        link.close()

    return Connector(peer, send, receive, ready, close)


def _write(link: socket.socket, peer: str, header: dict, data: list, timeout: float) -> None:
    link.settimeout(timeout)
    text = json.dumps(header).encode()
    size = sum(len(part) for part in data)
    link.sendall(b"".join([_PREFIX.pack(_MAGIC, len(text), size), text, *data]))


def _read(link: socket.socket, peer: str, max_bytes: int, timeout: float) -> tuple[dict, bytearray]:
    until = time.monotonic() + timeout
    magic, header_size, size = _PREFIX.unpack(_exactly(link, peer, _PREFIX.size, until))
    if magic != _MAGIC:
        raise PeerError(f"{peer} does not speak this protocol: it began with {magic!r}")
    if header_size > _MAX_HEADER or size > max_bytes:
        raise PeerError(
            f"{peer} sent a message of {header_size} + {size} bytes, more than the {_MAX_HEADER} + "
            f"{max_bytes} that are taken"
        )
    text = _exactly(link, peer, header_size, until, inside=True)
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise PeerError(f"{peer} sent a header that is not JSON") from None
    if not isinstance(header, dict):
        raise PeerError(f"{peer} sent a header that is no JSON object")
    return header, _exactly(link, peer, size, until, inside=True)


def _exactly(
    link: socket.socket, peer: str, size: int, until: float, *, inside: bool = False
) -> bytearray:
    """Reads `size` bytes, all of them before `until`."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        link.settimeout(_left(until))
        count = link.recv_into(view[got:])
        if not count and not got and not inside:
            raise PeerError(f"{peer} closed the connection")
        if not count:
            raise PeerError(f"{peer} closed the connection after {got} of {size} bytes")
        got += count
    return data


def _unpacked(header: dict, data: bytearray) -> Message:
    arrays, at = {}, 0
    for name, dtype, shape in header["arrays"]:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype {dtype!r} of {name!r} is unknown")
        if any(type(size) is not int or size < 0 for size in shape):
            raise ValueError(f"shape {shape} of {name!r} is none")
        size = _DTYPES[dtype].itemsize * math.prod(shape)
        if at + size > len(data):
            raise ValueError(f"{name!r} needs {at + size} bytes, there are {len(data)}")
        arrays[name] = np.frombuffer(data, np.uint8, size, at).view(_DTYPES[dtype]).reshape(shape)
        at += size
    if at != len(data):
        raise ValueError(f"the arrays are {at} bytes, there are {len(data)}")
    counts = ("layer", "micro_batch", "tokens", "number")
    stage, *numbers = (header[name] for name in ("stage", *counts))
    if type(stage) is not str or any(type(number) is not int for number in numbers):
        raise ValueError(f"stage must be text, {', '.join(counts)} integers")
    seconds = tuple(header["seconds"])
    if any(type(x) is not float or not math.isfinite(x) for x in seconds):
        raise ValueError(f"seconds must be finite numbers, got {seconds}")
    layer, micro_batch, tokens, number = numbers
    return Message(stage, layer, micro_batch, tokens, arrays, number, seconds)


def _raw(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0.0:
        raise TimeoutError
    return left


def _check_timeout(timeout: float) -> None:
    if not 0.0 < timeout < math.inf:
        raise ValueError(f"timeout must be positive and finite, in seconds, got {timeout}")


def _check_size(max_bytes: int) -> None:
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
