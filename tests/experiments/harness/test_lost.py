"""The line for a lost process: what the runtime says on a page, in words of our own."""

import subprocess
import sys

import pytest

from experiments.harness import lost

HEAD = (
    "F1129 22:42:15.005931 4151 client.h:80] Terminating process because the JAX distributed "
    "service detected fatal errors. This most likely indicates that another task died; see the "
    "other task logs for more details. absl::Status: UNAVAILABLE: "
)
TRACE = (
    "*** Check failure stack trace: ***\n    @     0x7f5f99a40634  absl::log_internal::Flush()\n"
)
UNHEALTHY = "The following tasks are unhealthy (stopped sending heartbeats):\n"


@pytest.mark.parametrize(
    ("said", "who"),
    [
        (f"{UNHEALTHY}1\nThe tasks have crashed. Check the task logs.", "process 1 is"),
        (f"{UNHEALTHY}2\n13\nThe tasks have crashed.", "processes 2, 13 are"),
        ("/job:jax_worker/replica:0/task:7 heartbeat timeout.", "process 7 is"),
        ("Failed to send RPC to coordination service (usually slice 0 task 0).", "process 0 is"),
    ],
)
def test_the_runtimes_last_words_become_one_line(said, who):
    command = [sys.executable, "-I", lost.__file__, "15"]
    text = f"toy 1/3  a ...\n\xff\n{HEAD}{said}\n{TRACE}"
    done = subprocess.run(command, input=text.encode("latin-1"), capture_output=True, check=True)
    *before, line = done.stderr.splitlines()
    assert before == [b"toy 1/3  a ...", b"\xff"]  # passed on as they are
    assert line.decode().startswith(f"error: {who} lost, without a sign for up to 15 s; this one")


def test_without_a_loss_all_is_passed_on():
    command = [sys.executable, "-I", lost.__file__, "15"]
    text = b"Traceback (most recent call last):\n  E1129 not of the runtime\nlast, no newline"
    done = subprocess.run(command, input=text, capture_output=True, check=True)
    assert done.stderr == text
