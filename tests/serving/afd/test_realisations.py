"""Two meshes and one program against the monolith, bit for bit, and against the plain step."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving.afd import spmd, two_meshes
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import step3

PROGRAM = pathlib.Path(__file__).with_name("realisations.py")


def run(*arguments, num_processes=1, devices=8):
    """Runs the program in one process or several, and returns the words of its lines."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices}",
    }
    if num_processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(num_processes)}
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | ({"JAX_PROCESS_ID": str(i)} if num_processes > 1 else {}),
        )
        for i in range(num_processes)
    ]
    lines = []
    try:
        for process in running:
            out, errors = process.communicate(timeout=1800)
            assert process.returncode == 0, errors[-2000:]
            words = [line.split() for line in out.splitlines() if line.strip()]
            ours = ("topology", "served", "raised")  # the runtime prints lines too
            lines += [line[1:] for line in words if line[0] in ours]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return lines


def check(realisation, *topologies, num_steps=2, num_processes=1, devices=8):
    rows = run(
        "agree",
        realisation,
        num_steps,
        *(item for topology in topologies for item in topology),
        num_processes=num_processes,
        devices=devices,
    )
    assert len(rows) == len(topologies) * num_processes
    for topology, (equal, distance, caches) in zip(topologies * num_processes, rows, strict=True):
        assert (equal, caches) == ("True", "True"), topology
        # An exact wire sums in another order than the plain step; 2.6 % of every update is more.
        low, high = (0.0, 1e-6) if topology.wire == "exact" else (1e-3, 0.1)
        assert low <= float(distance) <= high, topology


def test_bits_of_two_meshes_are_those_of_the_monolith():
    check("two_mesh", Topology(2, 1, tp=2, micro_batches=2), num_steps=1)


def test_bits_of_one_program_are_those_of_the_monolith():
    check("spmd", Topology(2, 1, tp=2, micro_batches=2), num_steps=1)


@pytest.mark.slow
def test_every_kind_of_topology_of_two_meshes():
    check(
        "two_mesh",
        Topology(1, 1, micro_batches=1),
        Topology(2, 1, tp=2, ep=2, micro_batches=2),
        Topology(4, 2, micro_batches=2),
        Topology(1, 2, tp=2, router="ffn"),
        Topology(2, 4, micro_batches=4),
        Topology(4, 1, ep=4, micro_batches=6),
        Topology(2, 2, wire="fp8", router="ffn", micro_batches=3),
    )


@pytest.mark.slow
def test_every_kind_of_topology_of_one_program():
    check(
        "spmd",
        Topology(1, 1, micro_batches=3),
        Topology(2, 2, micro_batches=2, router="ffn"),
        Topology(4, 1, tp=2, ep=2, micro_batches=6, wire="fp8"),
    )


@pytest.mark.slow
def test_every_kind_of_topology_of_servers_with_devices():
    check(
        "servers",
        Topology(2, 1, tp=2, ep=2, micro_batches=1),
        Topology(2, 2, tp=2, micro_batches=6, router="ffn"),
        Topology(1, 2, ep=2, micro_batches=3, wire="fp8"),
    )


@pytest.mark.slow
def test_one_program_of_two_processes():
    check(
        "spmd",
        Topology(2, 1, tp=2, micro_batches=2),
        Topology(2, 2, micro_batches=3, wire="fp8", router="ffn"),
        num_processes=2,
        devices=2,
    )


@pytest.mark.slow
def test_one_program_of_four_processes():
    check("spmd", Topology(4, 2, tp=2, micro_batches=2), num_steps=1, num_processes=4, devices=2)


@pytest.mark.slow
def test_requests_get_the_same_tokens_from_every_realisation():
    assert run("serve", devices=4) == [["True", "6"]]


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
    shallow = config._replace(num_layers=2, dense_layers=(0,))
    other = step3.init_step3(jax.random.key(0), shallow)
    other = two_meshes.make_monolith_decode(other, shallow, Topology(2, 1))
    with pytest.raises(ValueError, match="of 4 layers of 32 dimensions, got 2 of 32"):
        decoder.decode(other.init_cache(9, batch=4, max_pages=2), jnp.zeros((4, 1), jnp.int32))
    with pytest.raises(ValueError, match="of attention must differ"):
        two_meshes.make_two_mesh_decode(
            params, config, Topology(2, 1), devices=jax.devices()[:1] * 3
        )
    unknown = jnp.array([[1], [config.vocab], [-1], [0]])
    given = decoder.init_cache(9, batch=4, max_pages=2)
    assert np.array_equal(decoder.decode(given, unknown)[2], [True, False, False, True])
    with pytest.raises(ValueError, match="got -1 to 512"):
        decoder.decode(cache, np.asarray(unknown))
    plain = step3.init_step3_cache(config, 9, batch=4, max_pages=2)
    with pytest.raises(ValueError, match=r"of 2 attention instances, got lengths \(4,\)"):
        decoder.decode(plain, jnp.zeros((4, 1), jnp.int32))
    with pytest.raises(ValueError, match=r"active must be bool \[4\]"):
        decoder.decode(cache, jnp.zeros((4, 1), jnp.int32), jnp.ones((4,)))


def test_one_program_refuses_what_does_not_fit():
    config = step3.TINY
    params = step3.init_step3(jax.random.key(0), config)
    with pytest.raises(ValueError, match=r"got 2 and num_ffn \* ep \* tp = 1; take make_two_mesh"):
        spmd.make_spmd_decode(params, config, Topology(2, 1))
    with pytest.raises(ValueError, match="micro_batches of at least 2, got 1"):
        spmd.make_spmd_decode(params, config, Topology(1, 1, micro_batches=1))
    with pytest.raises(ValueError, match="needs 16 devices"):
        spmd.make_spmd_decode(params, config, Topology(8, 1, tp=8))
