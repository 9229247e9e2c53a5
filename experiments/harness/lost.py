"""One line for a lost process: the runtime of several processes would say it on a page.

A process of a run that hears nothing of another one is ended by JAX's runtime, from within C++,
with its message and a stack trace. So what such a process says on standard error goes through a
small program, this file, which passes everything on but that message.
"""

import os
import re
import subprocess
import sys

FATAL = b"Terminating process because the JAX distributed service"
"""How the runtime's last words begin, after date and place."""
NAMED = re.compile(r"stopped sending heartbeats\):((?:\s+\d+,?)+)|task:(\d+)")
"""Where they name the processes that were lost; process 0 alone, which tells, they do not."""


def say_in_one_line(lost_after: float) -> None:
    """Sends this process's standard error through the filter, from now to its end.

    Args:
        lost_after: Seconds after which the runtime counts a process as lost.
    """
    # The runtime says nothing but its last words then, if JAX has not been imported yet.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    command = [sys.executable, "-I", __file__, f"{lost_after:g}"]
    # In a session of its own, so that Ctrl-C leaves it to say the last.
    passed_on = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert passed_on.stdin is not None
    os.dup2(passed_on.stdin.fileno(), 2)
    passed_on.stdin.close()


def in_one_line(said: str, lost_after: str) -> str:
    """Returns what the runtime's last words mean."""
    found = NAMED.search(said)
    lost = re.findall(r"\d+", found[0]) if found else ["0"]
    who = f"process {lost[0]} is" if len(lost) == 1 else f"processes {', '.join(lost)} are"
    return (
        f"error: {who} lost, without a sign for up to {lost_after} s; this one ends, resume goes "
        "on from what was saved"
    )


def _filter(lost_after: str) -> None:
    for line in iter(sys.stdin.buffer.readline, b""):
        if FATAL in line:
            rest = line + sys.stdin.buffer.read()
            print(in_one_line(rest.decode(errors="replace"), lost_after), file=sys.stderr)
            return
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


if __name__ == "__main__":
    _filter(sys.argv[1])
