"""A process that runs cells one after another, and how its parent talks to it.

JAX takes seconds to start and most of an accelerator's memory, so that one process runs many cells
and the parent touches no device. A cell that crashes or hangs takes only its process with it; the
parent starts another. A process whose device is broken by a cell that raised ends itself.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from experiments.harness import result

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
Status = Literal["ok", "failed", "timeout", "not here"]


class Worker(NamedTuple):
    """A process that waits for cells.

    Attributes:
        process: The leader of a process group of its own.
        answers: Descriptor that its answers are read from, a line of JSON each.
        said: File that holds what it printed, all cells together.
        environment: Device, versions and commit.
    """

    process: subprocess.Popen
    answers: int
    said: pathlib.Path
    environment: result.Environment


class Answer(NamedTuple):
    """What became of a cell.

    Attributes:
        status: Whether it ended well, raised or crashed, ran out of time, or cannot run here.
        output: What its function returned, as JSON data.
        said: What the process printed meanwhile, and how it ended.
        alive: Whether the worker can take another cell.
    """

    status: Status
    output: Any
    said: str
    alive: bool


# The parent


def start(limit_s: float) -> Worker:
    """Starts a worker and waits until JAX has found its device.

    Raises:
        RuntimeError: if it does not within the limit; the message is the last line that it printed.
    """
    descriptor, said = tempfile.mkstemp(prefix="cells-", suffix=".log")
    answers, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.bench.worker", str(theirs)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=descriptor,
        stderr=descriptor,
        bufsize=0,
        pass_fds=(theirs,),
        start_new_session=True,  # so that its own children can be ended with it
    )
    os.close(descriptor)
    os.close(theirs)
    worker = Worker(process, answers, pathlib.Path(said), result.Environment("", "", 0, "", 0, {}))
    try:
        told = _read_line(answers, limit_s)
    except BaseException:  # Ctrl-C
        stop(worker)
        raise
    if not told:
        why = "" if told == "" else f"nothing within {limit_s:.0f} s; "
        last = _last_line(worker.said.read_text(errors="replace"))
        stop(worker)
        raise RuntimeError(f"JAX found no working device: {why}{last}")
    return worker._replace(environment=result.decode(result.Environment, json.loads(told)))


def call(worker: Worker, target: str, args: Mapping[str, Any], limit_s: float) -> Answer:
    """Has `module:function` called with these arguments; a worker that is no good is ended."""
    begin = worker.said.stat().st_size
    request = json.dumps({"target": target, "args": dict(args)})
    told: str | None = ""
    try:
        assert worker.process.stdin is not None
        worker.process.stdin.write(request.encode() + b"\n")
        told = _read_line(worker.answers, limit_s)
    except BrokenPipeError:  # it has ended since its last answer
        pass
    if told:
        answer = json.loads(told)
        alive = answer["sound"]
        if not alive:
            _end(worker)
        return Answer(answer["status"], answer["output"], _said(worker, begin), alive)
    _end(worker)
    if told is None:
        return Answer(
            "timeout", None, _said(worker, begin, f"stopped after {limit_s:.0f} s"), False
        )
    code = worker.process.returncode
    how = f"ended by {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
    return Answer("failed", None, _said(worker, begin, how), False)


def stop(worker: Worker) -> None:
    """Ends a worker with all its children, and forgets what it printed."""
    _end(worker)
    os.close(worker.answers)
    worker.said.unlink(missing_ok=True)


def _end(worker: Worker) -> None:
    process = worker.process
    if process.returncode is not None:  # ended before: its number may be another's by now
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # It may be in a call of the driver that nothing interrupts.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10.0)
    if process.stdin is not None:
        process.stdin.close()


def _read_line(descriptor: int, limit_s: float) -> str | None:
    """Reads up to the next line's end; "" if the other side is gone, None when time is up."""
    deadline, line = time.monotonic() + limit_s, b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0.0 or not select.select([descriptor], [], [], left)[0]:
            return None
        part = os.read(descriptor, 2**16)
        if not part:
            return ""
        line += part
    return line.decode()


def _said(worker: Worker, begin: int, more: str = "") -> str:
    """What was printed since `begin`, without paths of the machine: records are committed."""
    with worker.said.open("rb") as file:
        file.seek(begin)
        said = "\n".join([file.read().decode(errors="replace").strip(), more]).strip()
    for path in (str(REPOSITORY), sys.prefix, sys.base_prefix, str(pathlib.Path.home())):
        if path != "/":
            said = said.replace(path, "~")
    return said


def _last_line(said: str) -> str:
    return said.strip().splitlines()[-1] if said.strip() else "it said nothing"


# The child


def main(descriptor: int) -> None:
    """Answers with the environment, then to every line of the standard input."""
    _end_with_parent()
    with os.fdopen(descriptor, "w") as answers:

        def answer(data: Any) -> None:
            answers.write(json.dumps(result.encode(data)) + "\n")
            answers.flush()

        answer(result.environment())
        for line in sys.stdin:
            answer(_run(**json.loads(line)))


def _end_with_parent() -> None:
    """Has this process killed when its parent is, by the limit of a lease: it may hang in a cell.

    Linux can; elsewhere it ends when it asks for its next cell.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _run(target: str, args: dict[str, Any]) -> dict[str, Any]:
    module, _, function = target.partition(":")
    status, output = "ok", None
    try:
        output = result.encode(getattr(importlib.import_module(module), function)(**args))
    except Exception as error:
        status = "not here" if _is_a_limit(error) else "failed"
        traceback.print_exc()
    sys.stdout.flush()
    return {"status": status, "output": output, "sound": _sound(status == "ok")}


def _is_a_limit(error: Exception) -> bool:
    """Whether a kernel is not for this device, or a package is not installed."""
    if isinstance(error, ModuleNotFoundError):
        return (error.name or "").partition(".")[0] not in ("experiments", "jaxlab", "kernels")
    return isinstance(error, NotImplementedError)


def _sound(well: bool) -> bool:
    """Frees what the cell held; after an error, whether the device still computes."""
    import jax
    import jax.numpy as jnp

    jax.clear_caches()
    gc.collect()
    if well:
        return True
    try:
        return float(jnp.ones(8).sum()) == 8.0
    except Exception:  # an illegal address, a lost device: every later call would fail
        traceback.print_exc()
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
