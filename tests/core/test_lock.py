"""Locks: one writer a folder, named to the others; what a killed process leaves locks nothing."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jaxlab.core import lock

HOLD = """
import sys, time
from jaxlab.core import lock
with lock.one_writer(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_with_the_first_ones_process_id(tmp_path):
    with lock.one_writer(tmp_path / "deep"):
        with (
            pytest.raises(lock.LockedError, match=rf"process {os.getpid()} on .* is at work in"),
            lock.one_writer(tmp_path / "deep"),
        ):
            pass
        with lock.one_writer(tmp_path / "deep", file_name=".other"):
            pass
        assert (tmp_path / "deep" / ".lock").exists()  # a refused one takes nothing away
    assert list((tmp_path / "deep").iterdir()) == []
    with lock.one_writer(tmp_path / "deep"):
        pass


def test_a_process_that_is_killed_lets_go(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(lock.LockedError, match=f"process {process.pid} on"):
        lock.one_writer(tmp_path).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pathlib.Path(tmp_path / ".lock").exists()
    with lock.one_writer(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    process.stdout.close()


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), lock.one_writer(tmp_path / "file"):
        pass
