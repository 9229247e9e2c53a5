"""Two meshes against the monolith, bit for bit, and against the plain step."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxlab.serving.afd import two_meshes
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import step3

PROGRAM = pathlib.Path(__file__).with_name("two_meshes.py")


def run(*arguments):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line.split()[1:] for line in done.stdout.splitlines() if " " in line]


def check(*topologies, num_steps=2):
    rows = run("agree", num_steps, *(item for topology in topologies for item in topology))
    assert len(rows) == len(topologies)
    for topology, (equal, distance, caches) in zip(topologies, rows, strict=True):
        assert (equal, caches) == ("True", "True"), topology
        # An exact wire sums in another order than the plain step; 2.6 % of every update is more.
        low, high = (0.0, 1e-6) if topology.wire == "exact" else (1e-3, 0.1)
        assert low <= float(distance) <= high, topology


def test_bits_are_those_of_the_monolith():
    check(Topology(2, 1, tp=2, micro_batches=2), num_steps=1)


@pytest.mark.slow
def test_every_kind_of_topology():
    check(
        Topology(1, 1, micro_batches=1),
        Topology(2, 1, tp=2, ep=2, micro_batches=2),
        Topology(4, 2, micro_batches=2),
        Topology(1, 2, tp=2, router="ffn"),
        Topology(2, 4, micro_batches=4),
        Topology(4, 1, ep=4, micro_batches=6),
        Topology(2, 2, wire="fp8", router="ffn", micro_batches=3),
    )


@pytest.mark.slow
def test_error_of_one_role_ends_the_other():
    assert run("fail") == [["no", "power"]]


def test_refuses_what_does_not_fit():
    config = step3.TINY
    params = step3.init_step3(jax.random.key(0), config)
    with pytest.raises(ValueError, match="needs 9 devices"):
        two_meshes.make_two_mesh_decode(
            params, config, Topology(1, 8), devices=jax.devices()[:1] * 8
        )
    decoder = two_meshes.make_monolith_decode(params, config, Topology(2, 1))
    with pytest.raises(ValueError, match="batch must be a multiple of num_attention=2, got 3"):
        decoder.init_cache(9, batch=3, max_pages=2)
    cache = decoder.init_cache(9, batch=4, max_pages=2)
    with pytest.raises(ValueError, match="got 3 tokens for 2 caches of 2"):
        decoder.decode(cache, jnp.zeros((3, 1), jnp.int32))
    plain = step3.init_step3_cache(config, 9, batch=4, max_pages=2)
    with pytest.raises(ValueError, match=r"of 2 attention instances, got lengths \(4,\)"):
        decoder.decode(plain, jnp.zeros((4, 1), jnp.int32))
    with pytest.raises(ValueError, match=r"active must be bool \[4\]"):
        decoder.decode(cache, jnp.zeros((4, 1), jnp.int32), jnp.ones((4,)))
