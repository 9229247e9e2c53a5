"""Feed-forward instances behind connectors: equal to the monolith, and killed without a loss."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving.afd import (
    attention_side,
    connectors,
    processes,
    service,
    trace,
    transfers,
    two_meshes,
)
from jaxlab.serving.afd.pipeline import STAGES
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import step3

from .ffn_server import CONFIG, TOPOLOGY

SERVER = pathlib.Path(__file__).with_name("ffn_server.py")


@pytest.fixture(scope="module")
def params():
    return step3.init_step3(jax.random.key(0), CONFIG)


@contextlib.contextmanager
def servers_in_threads(params, topology):
    """Connectors to all feed-forward instances of a topology, and what their threads raised."""
    ends, threads, errors = [], [], []
    for index in range(topology.num_ffn):
        here, there = connectors.in_process()
        layers = processes.server_shards(params, CONFIG, topology, index)

        def serve(there=there, layers=layers):
            try:
                processes.serve_ffn(there, layers, CONFIG, topology, threading.Event())
            except connectors.PeerError as error:
                errors.append(str(error))

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        ends.append(here)
    yield ends, errors
    for end in ends:
        end.close()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def server_process(*options):
    """A server in a process of its own: `(process, port)`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, str(SERVER), str(port), *options]
    process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


def connect(params, port, topology=TOPOLOGY, index=0):
    identity = processes.server_identity(params, CONFIG, topology, index)
    return connectors.connect("127.0.0.1", port, identity, timeout=60.0)


def decoded(decoder, batch, num_steps=2):
    """Logits of steps of one and two tokens, one request at rest in the first."""
    cache = decoder.init_cache(12, batch=batch, max_pages=4, page=2, dtype=jnp.float32)
    found = []
    for count in range(1, num_steps + 1):
        tokens = jax.random.randint(jax.random.key(count), (batch, count), 0, CONFIG.vocab)
        active = np.arange(batch) != (1 if count == 1 else -1)
        logits, cache, done = decoder.decode(cache, tokens, jnp.asarray(active))
        assert np.array_equal(done, active)
        found.append(np.asarray(logits)[active].reshape(-1, CONFIG.vocab))
    return np.concatenate(found)


def agrees(params, topology, num_steps):
    with servers_in_threads(params, topology) as (servers, errors):
        got = processes.make_process_decode(params, CONFIG, topology, servers)
        want = two_meshes.make_monolith_decode(params, CONFIG, topology)
        batch = 2 * topology.num_attention
        np.testing.assert_array_equal(
            decoded(got, batch, num_steps), decoded(want, batch, num_steps)
        )
    assert errors == ["the attention thread closed the connection"] * topology.num_ffn


def test_bits_are_those_of_the_monolith(params):
    agrees(params, Topology(1, 2, tp=2, micro_batches=2, wire="fp8"), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    [
        Topology(2, 1, ep=2, micro_batches=1),
        Topology(2, 2, tp=2, ep=2, micro_batches=3, router="ffn"),
        Topology(1, 4, micro_batches=6, wire="fp8", router="ffn"),
    ],
    ids=["2:1", "2:2", "1:4"],
)
def test_bits_are_those_of_the_monolith_in_every_topology(params, topology):
    agrees(params, topology, 2)


def test_what_does_not_fit_is_refused(params):
    topology = Topology(1, 2)
    with servers_in_threads(params, topology) as (servers, errors):
        with pytest.raises(ValueError, match="one for each of 2 instances, got 1"):
            processes.make_process_decode(params, CONFIG, topology, servers[:1])
        x = np.zeros((5, CONFIG.d_model), np.float32)
        for end, layer in zip(servers, (2, 1), strict=True):  # no such layer; no experts named
            end.send(connectors.Message("attention", layer, 0, 5, {"payload": x}))
            with pytest.raises(connectors.PeerError, match="the ffn thread closed"):
                end.receive()
    assert sorted(errors) == [
        f"the attention thread sent what is no message for a layer: ('attention', {layer}, 0, 5)"
        for layer in (1, 2)
    ]
    with pytest.raises(ValueError, match="index must be in 0 to 1, got 2"):
        processes.server_shards(params, CONFIG, topology, 2)
    names = {processes.server_identity(params, CONFIG, topology, index) for index in range(2)}
    names.add(processes.server_identity(params, CONFIG, topology._replace(num_ffn=1), 0))
    assert len(names) == 3  # a server of another place or topology is another one


def test_messages_go_out_while_answers_are_under_way(params):
    """A server that answers nothing before it has both micro-batches would wait for ever."""
    here, there = connectors.in_process(timeout=60.0)
    topology = Topology(1, 1, micro_batches=2)

    def serve():
        for _ in range(CONFIG.num_layers):
            questions = [there.receive() for _ in range(2)]
            assert [q.micro_batch for q in questions] == [0, 1]
            for question in questions:
                partial = np.zeros((question.tokens, CONFIG.d_model), np.float32)
                arrays, seconds = {"partial": partial}, (0.0, 0.0, 0.0)
                there.send(question._replace(stage="ffn", arrays=arrays, seconds=seconds))

    with futures.ThreadPoolExecutor(1) as pool:
        server = pool.submit(serve)
        logits = decoded(processes.make_process_decode(params, CONFIG, topology, [here]), 2, 1)
        server.result(60.0)
    assert np.all(np.isfinite(logits))


def test_the_first_error_is_told_and_not_what_follows_from_it(params):
    """An answer fails, which closes all connections, at which the next question fails too."""
    closed = threading.Event()

    def ask(layer, micro_batch, message):
        if micro_batch == 1 and closed.wait(60.0):
            raise connectors.PeerError("the other server is no longer connected")

    def answer(layer, micro_batch, question):
        raise connectors.PeerError("this server is lost")

    decoder = attention_side.make_disaggregated_decoder(
        params,
        CONFIG,
        Topology(1, 2, micro_batches=2),
        attention_side.FeedForward(ask, answer, closed.set),
        threads=True,
    )
    with pytest.raises(connectors.PeerError, match="this server is lost"):
        decoded(decoder, 2, 1)


def test_who_is_not_connected_to_again_is_named(params):
    """One of two servers is lost and replaced alone: the answers under way must not be taken."""
    topology = Topology(1, 2, micro_batches=1)
    with servers_in_threads(params, topology) as (servers, _):
        decoder = processes.make_process_decode(params, CONFIG, topology, servers)
        decoded(decoder, 2, 1)
        servers[0].close()
        with pytest.raises(connectors.PeerError, match="no longer connected"):
            decoded(decoder, 2, 1)
        with servers_in_threads(params, topology) as (others, _):
            first, servers[0] = servers[0], others[0]
            with pytest.raises(connectors.PeerError, match="no longer connected"):
                decoded(decoder, 2, 1)
            servers[0] = first


def test_several_attention_processes_share_servers(params):
    """Each decodes its own requests; together they have the bits of all in one process."""
    topology = Topology(2, 1, tp=2, micro_batches=2)
    own = topology._replace(num_attention=1)
    want = two_meshes.make_monolith_decode(params, CONFIG, topology)
    expected = decoded(want, 4, 1)
    ends = [connectors.in_process(timeout=60.0) for _ in range(2)]
    layers = processes.server_shards(params, CONFIG, topology, 0)
    tokens = jax.random.randint(jax.random.key(1), (4, 1), 0, CONFIG.vocab)
    active = np.arange(4) != 1

    def decode(index):
        decoder = processes.make_process_decode(params, CONFIG, own, [ends[index][0]])
        cache = decoder.init_cache(12, batch=2, max_pages=4, page=2, dtype=jnp.float32)
        part = slice(2 * index, 2 * index + 2)
        logits, _, done = decoder.decode(cache, tokens[part], active[part])
        assert np.array_equal(done, active[part])
        return np.asarray(logits)[active[part], 0]

    stop = threading.Event()
    with futures.ThreadPoolExecutor(3) as pool:
        links = [there for _, there in ends]
        server = pool.submit(processes.serve_ffn, links, layers, CONFIG, topology, stop)
        got = np.concatenate(list(pool.map(decode, range(2))))
        stop.set()
        server.result(60.0)
    np.testing.assert_array_equal(got, expected)


def test_stages_and_messages_are_recorded(params):
    """All four stages of every server, layer and micro-batch; their messages by peer."""
    topology = Topology(1, 2, tp=2, micro_batches=2)
    events, exchanges = [], []
    with servers_in_threads(params, topology) as (servers, _):
        decoder = processes.make_process_decode(
            params,
            CONFIG,
            topology,
            servers,
            record=events.append,
            record_exchange=exchanges.append,
        )
        decoded(decoder, 2, 1)
    for role in STAGES:
        cells = {(e.instance, e.layer, e.micro_batch) for e in events if e.role == role}
        assert len(cells) == (4 if role == "attention" else 8)
    assert all(e.end >= e.start for e in events)
    table = trace.peer_table(exchanges)
    assert [(p.attention, p.expert, p.count) for p in table] == [(0, 0, 4), (0, 1, 4)]
    for e in exchanges:
        assert e.sent <= e.received <= e.received + e.compute <= e.answered <= e.returned


def test_bfloat16_goes_through_servers():
    topology = Topology(1, 1, micro_batches=1)
    params = step3.init_step3(jax.random.key(0), CONFIG, dtype=jnp.bfloat16)
    with servers_in_threads(params, topology) as (servers, _):
        got = processes.make_process_decode(params, CONFIG, topology, servers)
        want = two_meshes.make_monolith_decode(params, CONFIG, topology)
        np.testing.assert_array_equal(decoded(got, 2, 1), decoded(want, 2, 1))


@pytest.mark.parametrize("kind", ["queues", "sockets"])
def test_a_server_stops_at_once_or_when_nobody_asks(params, kind):
    layers = processes.server_shards(params, CONFIG, TOPOLOGY, 0)

    def ends():
        if kind == "queues":
            return connectors.in_process()
        listener = connectors.listen("model")
        with futures.ThreadPoolExecutor(1) as pool:
            other = pool.submit(connectors.connect, *listener.address, "model")
            there = listener.accept(10.0)
        listener.close()
        return other.result(), there

    here, there = ends()
    stop = threading.Event()
    with futures.ThreadPoolExecutor(1) as pool:
        server = pool.submit(processes.serve_ffn, there, layers, CONFIG, TOPOLOGY, stop)
        time.sleep(0.05)
        assert not server.done()
        stop.set()
        assert server.result(10.0) is None  # not after the hour that it would wait
    here.close()
    there.close()
    here, there = ends()
    with pytest.raises(connectors.PeerError, match="sent nothing within 0.05 seconds"):
        processes.serve_ffn(there, layers, CONFIG, TOPOLOGY, threading.Event(), timeout=0.05)
    here.close()


def test_a_process_of_its_own_agrees(params):
    with server_process() as (_, port):
        link = connect(params, port)
        got = processes.make_process_decode(params, CONFIG, TOPOLOGY, [link])
        want = two_meshes.make_monolith_decode(params, CONFIG, TOPOLOGY)
        # Another process compiles for itself: equal to rounding.
        np.testing.assert_allclose(decoded(got, 2, 1), decoded(want, 2, 1), atol=2e-6)
        link.close()


@pytest.mark.slow
def test_two_processes_agree_and_one_that_is_killed_ends_the_other(params):
    """Each is refused in the place of the other; after a loss both are started again."""
    topology = TOPOLOGY._replace(num_ffn=2)
    want = decoded(two_meshes.make_monolith_decode(params, CONFIG, topology), 2, 2)
    servers = []
    got = None
    for _ in range(2):
        with (
            server_process("--of", "2") as (first, port),
            server_process("--of", "2", "--index", "1") as (second, other_port),
        ):
            servers[:] = [
                connect(params, port, topology, 0),
                connect(params, other_port, topology, 1),
            ]
            got = got or processes.make_process_decode(params, CONFIG, topology, servers)
            np.testing.assert_allclose(decoded(got, 2, 2), want, atol=2e-6)
            second.send_signal(signal.SIGKILL)
            second.wait()
            with pytest.raises(connectors.PeerError, match=f"127.0.0.1:{other_port}"):
                decoded(got, 2, 1)
            assert first.wait(60.0) != 0  # told that the attention side has closed
    refused = pytest.raises(connectors.PeerError, match="has another model")
    with server_process("--of", "2") as (_, port), refused:
        connect(params, port, topology, 1)


@pytest.mark.slow
def test_a_process_gives_and_takes_arrays_by_transfer(params):
    """The same answers; one that is killed is told of within the timeouts."""
    with server_process("--transfer") as (process, port):
        link = transfers.pulled(connect(params, port), pull_timeout=10.0)
        got = processes.make_process_decode(params, CONFIG, TOPOLOGY, [link])
        want = two_meshes.make_monolith_decode(params, CONFIG, TOPOLOGY)
        np.testing.assert_allclose(decoded(got, 2, 2), decoded(want, 2, 2), atol=2e-6)
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with pytest.raises(connectors.PeerError, match=f"127.0.0.1:{port}"):
            decoded(got, 2, 1)
        assert time.monotonic() - began < 90.0


@pytest.mark.slow
def test_a_killed_process_is_named_in_time_and_no_request_is_lost(params):
    requests = [service.Request((5, 6, 7), 6), service.Request((9, 8), 5, None, 1.0, 0.9, 3)]

    def served_by(decoder):
        """A service on the one attention instance of a decoder."""

        made = service.make_service(
            lambda params, cache, tokens, config, active: decoder.decode(cache, tokens, active),
            params,
            CONFIG,
            lambda: decoder.init_cache(11, batch=2, max_pages=4, page=4, dtype=jnp.float32),
            chunk=1,
        )
        state = made.init()
        for request in requests:
            state, _ = made.submit(state, request)
        return made, state

    def finish(served, state):
        while not service.is_idle(state):
            state = served.advance(state)
        return [entry.tokens for entry in service.take(state)[1].values()]

    want = finish(*served_by(two_meshes.make_monolith_decode(params, CONFIG, TOPOLOGY)))
    links = []
    with server_process() as (process, port):
        links.append(connect(params, port))
        decoder = processes.make_process_decode(params, CONFIG, TOPOLOGY, links)
        served, state = served_by(decoder)
        for _ in range(4):
            state = served.advance(state)
        assert any(entry.tokens for entry in state.progress.values())
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with pytest.raises(connectors.PeerError, match=f"127.0.0.1:{port} "):
            served.advance(state)
        assert time.monotonic() - began < 60.0  # the timeout of the connection
    with server_process() as (_, port):
        links[0] = connect(params, port)
        assert finish(served, served.restart(state)) == want
        links[0].close()
