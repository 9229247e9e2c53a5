"""A killed simulation goes on bit for bit."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

CENSUS = pathlib.Path(__file__).with_name("census_run.py")


def run(directory, *arguments, num_devices=1):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={num_devices}",
    }
    return subprocess.run(
        [sys.executable, str(CENSUS), str(directory), "8", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    process = run(tmp_path_factory.mktemp("whole"))
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    ("name", "status"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 143)], ids=["SIGKILL", "SIGTERM"]
)
def test_killed_simulation_resumes_bit_identically(tmp_path, uninterrupted, name, status):
    killed = run(tmp_path, "--signal", name, "--after", "4")
    assert killed.returncode == status, killed.stderr
    resumed = run(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    state, first = resumed.stdout.splitlines()
    assert state == uninterrupted.splitlines()[0]
    # It went on where it had been, not from the start; a kill may lose the save in flight.
    assert int(first.split()[-1]) in ({8} if name == "SIGTERM" else {4, 6})
