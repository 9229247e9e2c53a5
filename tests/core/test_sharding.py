"""Sharding: the same numbers on 1 and 8 devices, and on two processes over loopback."""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import loop, sharding

DEVICES = pathlib.Path(__file__).with_name("devices.py")
_spec = importlib.util.spec_from_file_location("devices", DEVICES)
devices = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(devices)


def start(*arguments, num_devices=1):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={num_devices}",
    }
    return subprocess.Popen(
        [sys.executable, str(DEVICES), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-2000:]
    return output.splitlines()[-1].split()  # the runtime prints its own lines first


def test_same_result_on_one_and_eight_devices():
    one = finish(start("map", num_devices=1))
    eight = finish(start("map", num_devices=8))
    assert one[:2] == ["1", "1"] and eight[:2] == ["8", "8"]
    assert one[2] == eight[2]


def test_two_processes_over_loopback_agree_with_one(tmp_path):
    def here(folder, num_steps):
        mesh = sharding.make_mesh({"data": 1})
        return loop.run(
            devices.sharded_walk(mesh),
            jax.random.key(2),
            num_steps=num_steps,
            chunk_size=3,
            directory=tmp_path / folder,
            state_sharding=sharding.along(mesh),
        )

    here("pair", 3)  # one process saves, two go on from it
    address = f"127.0.0.1:{_free_port()}"
    pair = [
        start("join", address, "2", str(index), str(tmp_path / "pair"), "6", num_devices=2)
        for index in range(2)
    ]
    first, second = [finish(process) for process in pair]
    assert first[:3] == second[:3]
    assert first[:2] == ["2", "4"]
    assert first[3] == "6"  # the steps before were read back
    alone, found = here("one", 6), here("pair", 6)
    np.testing.assert_allclose(found.state["x"], alone.state["x"], rtol=1e-6)  # what two saved
    # The mean over walkers is summed in another order on four devices than on one.
    assert float(first[2]) == pytest.approx(alone.metrics["walk/square"], rel=1e-6)
    # Of what is reported by walker, every process knows all walkers.
    assert first[4] == second[4]
    assert float(first[4]) == pytest.approx(float(first[2]), rel=1e-6)


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_the_run_goes_on_bit_equal(tmp_path):
    def pair(folder, *steps):
        address = f"127.0.0.1:{_free_port()}"
        arguments = (str(tmp_path / folder), *map(str, steps))
        return [
            start("join", address, "2", str(index), *arguments, num_devices=2) for index in range(2)
        ]

    whole = [finish(process) for process in pair("whole", 12)]
    survivor, victim = pair("parts", 12, 9)  # saved at 3 and 6
    victim.communicate(timeout=180)
    began = time.monotonic()
    _, errors = survivor.communicate(timeout=60)
    assert time.monotonic() - began < 30.0
    assert survivor.returncode != 0 and "stopped sending heartbeats):\n1" in errors
    parts = [finish(process) for process in pair("parts", 12)]
    assert int(parts[0][3]) in (6, 9)  # the first step that is logged is not that of a new run
    assert [said[:3] + said[4:] for said in parts] == [said[:3] + said[4:] for said in whole]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_alone_without_settings(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert sharding.initialize() == 1


def test_bad_settings_are_named(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="give process_id too"):
        sharding.initialize("127.0.0.1:1", 2)
    with pytest.raises(ValueError, match=r"process_id must lie in \[0, 2\), got 2"):
        sharding.initialize("127.0.0.1:1", 2, 2)
    with pytest.raises(ValueError, match="needs 4096 devices"):
        sharding.make_mesh({"data": 4096})
    with pytest.raises(ValueError, match="at least 1 device"):
        sharding.make_mesh({"data": 0})
    with pytest.raises(ValueError, match="its leading dimension must be a multiple"):
        sharding.shard({"x": jnp.zeros(())}, sharding.make_mesh({"data": 1}))


def test_unsharded_map_is_a_map(key):
    keys = jax.random.split(key, 3)
    mapped = jax.jit(lambda k: sharding.sharded_map(jax.random.normal, k, None))(keys)
    assert jnp.array_equal(mapped, jnp.stack([jax.random.normal(k) for k in keys]))
