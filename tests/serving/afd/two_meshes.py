"""Programs for test_two_meshes.py, run on eight devices of the host.

python two_meshes.py agree NUM_STEPS [NUM_ATTENTION NUM_FFN TP EP MICRO_BATCHES WIRE ROUTER]...
    prints, a line a topology, whether bits are those of the monolith, the largest difference of its
    logits from the plain step's relative to the largest logit, and whether caches are equal
python two_meshes.py fail   a stage of feed-forward fails: prints the error that the caller sees
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.serving.afd import two_meshes
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


def agree(num_steps, *topologies):
    params = step3.init_step3(jax.random.key(7), CONFIG)
    plain = jax.jit(lambda c, t, a: step3.step3_decode_step(params, c, t, CONFIG, active=a))
    want, _ = steps(
        plain, make_cache(lambda n, **o: step3.init_step3_cache(CONFIG, n, **o)), num_steps
    )
    for topology in topologies:
        events = []
        one = two_meshes.make_monolith_decode(params, CONFIG, topology)
        two = two_meshes.make_two_mesh_decode(params, CONFIG, topology, record=events.append)
        expected, cache_one = steps(one.decode, make_cache(one.init_cache), num_steps)
        got, cache_two = steps(two.decode, make_cache(two.init_cache), num_steps)
        pairs = zip(jax.tree.leaves(cache_one), jax.tree.leaves(cache_two), strict=True)
        caches = all(np.array_equal(a, b) for a, b in pairs)
        stages = {(e.role, e.layer, e.micro_batch) for e in events if e.end >= e.start}
        assert len(stages) == 2 * CONFIG.num_layers * topology.micro_batches
        distance = np.abs(expected - want).max() / np.abs(want).max()
        print("topology", np.array_equal(got, expected), distance, caches)


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
    if sys.argv[1] == "fail":
        fail()
    else:
        rows = (sys.argv[i : i + 7] for i in range(3, len(sys.argv), 7))
        agree(int(sys.argv[2]), *(Topology(*map(int, row[:5]), *row[5:]) for row in rows))
