"""Programs for test_realisations.py, run on several devices of the host, or in several processes.

python realisations.py agree REALISATION NUM_STEPS
        [NUM_ATTENTION NUM_FFN TP EP MICRO_BATCHES WIRE ROUTER]...
    REALISATION is two_mesh, spmd or servers. Prints, a line a topology, whether bits are those of
    the monolith, the largest difference of its logits from the plain step's relative to the
    largest logit, and whether caches are equal
python realisations.py serve  requests through a service on each: prints whether tokens are equal
python realisations.py fail   a stage of feed-forward fails: prints the error that the caller sees
"""

import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxlab.core import sharding
from jaxlab.serving.afd import connectors, processes, service, spmd, two_meshes
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import step3

CONFIG = step3.TINY._replace(num_layers=2, dense_layers=(0,))
BATCH = 4
# The second request is at rest in the first step: contexts are ragged, and two tokens follow one.
STEPS = ((1, (True, False, True, True)), (2, (True, True, True, True)))


def steps(decode, cache, num_steps):
    logits = []
    for number, (count, active) in enumerate(STEPS[:num_steps]):
        tokens = jax.random.randint(jax.random.key(number), (BATCH, count), 0, CONFIG.vocab)
        out, cache, done = decode(cache, tokens, jnp.asarray(active))
        assert np.array_equal(done, active)
        logits.append(np.asarray(out)[np.asarray(active)].reshape(-1, CONFIG.vocab))
    return np.concatenate(logits), cache


def make_cache(init_cache):
    return init_cache(12, batch=BATCH, max_pages=4, page=2, dtype=jnp.float32)


def agree(realisation, num_steps, *topologies):
    params = step3.init_step3(jax.random.key(7), CONFIG)
    plain = jax.jit(lambda c, t, a: step3.step3_decode_step(params, c, t, CONFIG, active=a))
    want, _ = steps(
        plain, make_cache(lambda n, **o: step3.init_step3_cache(CONFIG, n, **o)), num_steps
    )
    for topology in topologies:
        one = two_meshes.make_monolith_decode(params, CONFIG, topology)
        events = []
        if realisation == "two_mesh":
            other = two_meshes.make_two_mesh_decode(params, CONFIG, topology, record=events.append)
        elif realisation == "spmd":
            other = spmd.make_spmd_decode(params, CONFIG, topology)
        else:
            other = with_servers(params, topology)
        expected, cache_one = steps(one.decode, make_cache(one.init_cache), num_steps)
        got, cache_other = steps(other.decode, make_cache(other.init_cache), num_steps)
        if realisation == "two_mesh":
            stages = {(e.role, e.layer, e.micro_batch) for e in events if e.end >= e.start}
            assert len(stages) == 2 * CONFIG.num_layers * topology.micro_batches
        caches = all(
            np.array_equal(a, whole(b)[: topology.num_attention])
            for a, b in zip(held(cache_one), held(cache_other), strict=True)
        )
        distance = np.abs(expected - want).max() / np.abs(want).max()
        print("topology", np.array_equal(got, expected), distance, caches)


def with_servers(params, topology):
    """Feed-forward instances in threads, each with devices of its own."""
    devices, first, servers = jax.devices(), topology.num_attention, []
    for index in range(topology.num_ffn):
        here, there = connectors.in_process()
        layers = processes.server_shards(params, CONFIG, topology, index)
        each = topology.num_shards // topology.num_ffn
        own = devices[first + each * index : first + each * (index + 1)]
        threading.Thread(
            target=processes.serve_ffn,
            args=(there, layers, CONFIG, topology, threading.Event()),
            kwargs={"devices": own},
            daemon=True,
        ).start()
        servers.append(here)
    return processes.make_process_decode(params, CONFIG, topology, servers, devices=devices[:first])


def held(cache):
    """Returns what a cache holds: nobody reads page 0, to which goes what is not kept."""
    pages = [x[:, :, 1:] for x in (cache.k_pages, cache.v_pages)]
    return [*pages, cache.lens, cache.page_table]


def whole(x):
    return multihost_utils.process_allgather(x, tiled=True) if jax.process_count() > 1 else x


def serve():
    """Requests through the service on every realisation: prints whether all tokens are equal."""
    params = step3.init_step3(jax.random.key(7), CONFIG)
    topology, found = Topology(2, 2, micro_batches=2), []
    for make, count in (
        (two_meshes.make_monolith_decode, None),
        (two_meshes.make_two_mesh_decode, None),
        (spmd.make_spmd_decode, 2),
    ):
        decoder = make(params, CONFIG, topology)
        served = service.make_service(
            lambda params, cache, tokens, config, active, d=decoder: d.decode(
                cache, tokens, active
            ),
            None,
            CONFIG,
            lambda d=decoder: d.init_cache(10, batch=4, max_pages=10, page=4, dtype=jnp.float32),
            chunk=8,
            num_instances=count,
        )
        state, evicted = served.init(), 0
        for seed in range(6):
            length = 3 + 5 * seed % 17
            prompt = jax.random.randint(jax.random.key(seed), (length,), 0, CONFIG.vocab)
            request = service.Request(prompt.tolist(), 12, None, float(seed % 2), 0.9, seed)
            state, _ = served.submit(state, request)
        while not service.is_idle(state):
            waiting = len(state.waiting)
            state = served.advance(state)
            evicted += len(state.waiting) > waiting
        assert evicted
        found.append({n: entry.tokens for n, entry in service.take(state)[1].items()})
    print("served", all(tokens == found[0] for tokens in found), len(found[0]))


def fail():
    params = step3.init_step3(jax.random.key(7), CONFIG)

    def record(event):
        if event.role == "experts" and event.layer == 1:
            raise RuntimeError("no power")

    topology = Topology(1, 1, micro_batches=2)
    decoder = two_meshes.make_two_mesh_decode(params, CONFIG, topology, record=record)
    try:
        steps(decoder.decode, make_cache(decoder.init_cache), 1)
    except RuntimeError as error:
        print("raised", error)


if __name__ == "__main__":
    sharding.initialize(lost_after=600.0)  # a slow machine loses nobody
    if sys.argv[1] == "fail":
        fail()
    elif sys.argv[1] == "serve":
        serve()
    else:
        rows = (sys.argv[i : i + 7] for i in range(4, len(sys.argv), 7))
        topologies = [Topology(*map(int, row[:5]), *row[5:]) for row in rows]
        agree(sys.argv[2], int(sys.argv[3]), *topologies)
