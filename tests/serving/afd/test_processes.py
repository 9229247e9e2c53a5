"""Feed-forward layers in another process, which is killed: no request is lost."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving.afd import connectors, processes, service
from jaxlab.serving.model import step3

from .ffn_server import CONFIG

SERVER = pathlib.Path(__file__).with_name("ffn_server.py")


def test_slices_of_two_servers_add_up_to_the_layer():
    params = step3.init_step3(jax.random.key(0), CONFIG)
    x = np.asarray(jax.random.normal(jax.random.key(1), (5, CONFIG.d_model)))
    ends, threads = [], []
    for index in range(2):
        here, there = connectors.in_process()
        layers = processes.ffn_slices(params, index, 2)

        def serve(there=there, layers=layers):
            with contextlib.suppress(connectors.PeerError):
                processes.serve_ffn(there, layers, CONFIG, threading.Event())

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        ends.append(here)
    dense = step3.transformer.swiglu(params.blocks[0].ffn, x)
    sparse = step3.experts.moe(params.blocks[1].ffn, jnp.asarray(x), num_active=CONFIG.num_active)
    for layer, want in enumerate((dense, sparse)):
        np.testing.assert_allclose(processes.ask_ffn(ends, layer, 0, x), want, atol=1e-5)
    ends[1].send(connectors.Message("attention", 2, 0, 5, {"x": x}))
    with pytest.raises(connectors.PeerError, match="the ffn thread closed"):
        ends[1].receive()
    ends[0].close()
    for thread in threads:
        thread.join()
    with pytest.raises(ValueError, match="divide over 5"):
        processes.ffn_slices(params, 0, 5)


@pytest.mark.slow
def test_a_killed_process_is_named_in_time_and_no_request_is_lost(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def start():
        return subprocess.Popen(
            [sys.executable, str(SERVER), str(port)], env=os.environ | {"JAX_PLATFORMS": "cpu"}
        )

    params = step3.init_step3(jax.random.key(0), CONFIG)
    identity = connectors.model_identity(CONFIG, params)
    server = start()
    requests = [service.Request((5, 6, 7), 6), service.Request((9, 8), 5, None, 1.0, 0.9, 3)]

    def init_cache():
        return step3.init_step3_cache(CONFIG, 11, batch=2, max_pages=4, page=4, dtype=jnp.float32)

    def finish(served, state):
        while not service.is_idle(state):
            state = served.advance(state)
        return [entry.tokens for entry in service.take(state)[1].values()]

    plain = jax.jit(step3.step3_decode_step, static_argnames="config")
    alone = service.make_service(plain, params, CONFIG, init_cache, chunk=1)
    state = alone.init()
    for request in requests:
        state, _ = alone.submit(state, request)
    want = finish(alone, state)

    link = [connectors.connect("127.0.0.1", port, identity, timeout=60.0)]
    blocks = [block.ffn for block in params.blocks]

    def remote(block, x, config):
        layer = [block.ffn is ffn for ffn in blocks].index(True)
        normed = step3.transformer.rms_norm(x, block.ffn_norm, eps=config.eps)
        flat = np.asarray(normed).reshape(-1, config.d_model)
        return processes.ask_ffn(link, layer, 0, flat).reshape(x.shape)

    monkeypatch.setattr(step3, "_feed_forward", remote)
    served = service.make_service(step3.step3_decode_step, params, CONFIG, init_cache, chunk=1)
    state = served.init()
    for request in requests:
        state, _ = served.submit(state, request)
    for _ in range(4):
        state = served.advance(state)
    assert any(entry.tokens for entry in state.progress.values())
    server.send_signal(signal.SIGKILL)
    server.wait()
    began = time.monotonic()
    with pytest.raises(connectors.PeerError, match=f"127.0.0.1:{port} "):
        served.advance(state)
    assert time.monotonic() - began < 60.0
    link[0].close()
    server = start()
    link[0] = connectors.connect("127.0.0.1", port, identity, timeout=60.0)
    assert finish(served, served.restart(state)) == want
    link[0].close()
    server.kill()
    server.wait()
