"""One program over all devices of all processes of this run, for machines that one has."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.afd import Config, child
from experiments.harness import verdicts
from experiments.harness.result import Part, Row
from jaxlab.serving.afd import spmd, two_meshes
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import step3

CLAIM = "One program runs on many processes as it runs on one"
LIMITS = (
    "All processes of the run are one program; bits are compared with the same stages on one "
    "device of this process.",
)


def run(config: Config) -> Part:
    """Decodes on the devices of all processes, which call this together.

    Raises:
        ValueError: if the topology does not fit the devices.
    """
    num_attention, num_ffn, tp, ep = config.topology
    M = max(2, config.micro_batches[-1])
    topology = Topology(num_attention, num_ffn, tp, ep, micro_batches=M)
    model = child.overlap_model(config.num_layers, config.width)
    params = step3.init_step3(jax.random.key(0), model)
    B = num_attention * M * config.requests
    room: dict[str, Any] = {"batch": B, "max_pages": 1, "page": 64, "dtype": jnp.float32}
    each = M * config.requests + 1
    tokens = np.zeros((B, 1), np.int32)
    decoder = spmd.make_spmd_decode(params, model, topology)
    cache, seconds, first = decoder.init_cache(each, **room), [], np.zeros(())
    for number in range(2 + config.repeats):
        begin = time.perf_counter()
        logits, cache, _ = decoder.decode(cache, tokens)
        jax.block_until_ready(logits)
        if number == 0:
            first = np.asarray(logits)
        if number >= 2:
            seconds.append(time.perf_counter() - begin)
    alone = two_meshes.make_monolith_decode(params, model, topology)
    want, _, _ = alone.decode(alone.init_cache(each, **room), tokens)
    equal = bool(np.array_equal(first, np.asarray(want)))
    row = verdicts.row_alone(
        CLAIM,
        f"Tokens a second on {2 * num_attention} devices of {jax.process_count()} processes",
        B / np.array(seconds),
        unit="tokens/s",
        note=f"{num_attention}A{num_ffn}F, tp {tp}, ep {ep}, {M} micro-batches.",
    )
    bits = Row(
        CLAIM,
        "Topologies with the monolith's bits, on these devices",
        int(equal),
        verdict="reproduced" if equal else "not reproduced",
        unit="of 1",
        note="Logits of the first step, with an exact wire.",
    )
    return Part(rows=(bits, row), limits=LIMITS)
