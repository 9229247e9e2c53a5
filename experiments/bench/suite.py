"""The accelerator suite: checks and benchmarks still missing for this device, in order of worth.

Each entry runs in its own process under a time limit, and its record is written as soon as it
ends, so a crash, a hang or the end of the budget loses nothing that was measured before.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from experiments.bench import timing
from experiments.harness import result, words

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROBE_SECONDS = 120  # the first contact with a device: driver, backend, one allocation
PATIENCE = 3  # an entry may take this many times its estimate, and always a minute


@dataclasses.dataclass(frozen=True)
class Entry:
    """One check or benchmark.

    Args:
        name: Name of its record's file.
        kind: A check raises when it fails and may return a dict of details; a benchmark returns
            a list of `timing.Measurement`.
        target: `module:function`, called without arguments in a fresh process.
        estimate_s: Seconds it takes, compile time included.
    """

    name: str
    kind: Literal["check", "benchmark"]
    target: str
    estimate_s: float


# The most valuable first: a short lease ends somewhere down this list.
SUITE = (
    Entry("mqa_decode_check", "check", "experiments.bench.mqa_decode:check", 120.0),
    Entry("mqa_prefill_check", "check", "experiments.bench.mqa_prefill:check", 90.0),
    Entry("mqa_decode_few", "benchmark", "experiments.bench.mqa_decode:few", 240.0),
    Entry("mqa_decode_many", "benchmark", "experiments.bench.mqa_decode:many", 180.0),
    Entry("mqa_decode_ragged", "benchmark", "experiments.bench.mqa_decode:ragged", 240.0),
    Entry("mqa_decode_eight_bits", "benchmark", "experiments.bench.mqa_decode:eight_bits", 180.0),
    Entry("mqa_prefill_whole", "benchmark", "experiments.bench.mqa_prefill:whole", 240.0),
    Entry("mqa_decode_verify", "benchmark", "experiments.bench.mqa_decode:verify", 90.0),
    Entry("mqa_prefill_chunked", "benchmark", "experiments.bench.mqa_prefill:chunked", 60.0),
    Entry("projections_queries", "benchmark", "experiments.bench.projections:queries", 90.0),
    Entry("projections_experts", "benchmark", "experiments.bench.projections:experts", 120.0),
    Entry("rl_loops", "benchmark", "experiments.bench.rl:loops", 120.0),
    Entry("rl_acting", "benchmark", "experiments.bench.rl:acting", 60.0),
    Entry("rl_parts", "benchmark", "experiments.bench.rl:parts", 90.0),
    Entry("rl_scaling", "benchmark", "experiments.bench.rl:scaling", 180.0),
    Entry("rl_brax", "benchmark", "experiments.bench.rl:brax", 120.0),
    Entry("rl_brax_mjx", "benchmark", "experiments.bench.rl:brax_mjx", 300.0),
    Entry("queueing_pipeline", "benchmark", "experiments.bench.queueing:pipeline_gpu", 120.0),
    Entry("queueing_monte_carlo", "benchmark", "experiments.bench.queueing:monte_carlo_gpu", 180.0),
    Entry("zeroth_order_batches", "benchmark", "experiments.bench.zeroth_order:batches_gpu", 60.0),
    Entry(
        "zeroth_order_streamed", "benchmark", "experiments.bench.zeroth_order:streamed_gpu", 60.0
    ),
    Entry(
        "zeroth_order_rollouts", "benchmark", "experiments.bench.zeroth_order:rollouts_gpu", 60.0
    ),
)


@dataclasses.dataclass(frozen=True)
class Record:
    """What one entry left behind on one device.

    Args:
        name: Name of the entry.
        kind: What the entry is.
        status: Whether it ended well, raised, or ran out of time.
        seconds: Wall-clock time, start of the process included.
        environment: Device, versions and commit.
        finished: Local date and time, ISO 8601.
        measurements: What a benchmark timed.
        details: What a check returned.
        error: The end of what a failed process said, without paths of the machine.
    """

    name: str
    kind: Literal["check", "benchmark"]
    status: Literal["ok", "failed", "timeout"]
    seconds: float
    environment: result.Environment
    finished: str
    measurements: tuple[timing.Measurement, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""


def slug(device: str) -> str:
    """Returns a device kind as a folder name: "NVIDIA H100 80GB" -> "nvidia-h100-80gb"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def probe() -> result.Environment:
    """Asks a fresh process for the device: a backend in this one would hold the memory.

    Raises:
        RuntimeError: if JAX does not start within two minutes.
    """
    status, output, error = _call("experiments.harness.result:environment", PROBE_SECONDS)
    if status != "ok":
        raise RuntimeError(f"JAX found no working device ({status}): {_last_line(error)}")
    return result.decode(result.Environment, output)


def run_suite(
    suite: Sequence[Entry],
    environment: result.Environment,
    folder: pathlib.Path,
    *,
    budget_s: float,
    say: Callable[[str], None] = print,
) -> list[Record]:
    """Runs what is missing under `folder`, entries that failed before coming last.

    Args:
        suite: Entries, the most valuable first.
        environment: What `probe` returned.
        folder: Where this device's records are, one JSON file per entry.
        budget_s: Seconds of wall-clock time; no entry starts whose estimate exceeds the rest.
        say: Told about each step.

    Returns:
        The records written by this call.
    """
    deadline = time.monotonic() + budget_s
    known = records(folder)
    missing = [entry for entry in suite if entry.name not in known]
    failed = [entry for entry in suite if entry.name in known and known[entry.name].status != "ok"]
    say(f"{len(suite) - len(missing) - len(failed)} of {len(suite)} entries measured before")
    written = []
    for entry in missing + failed:
        left = deadline - time.monotonic()
        if entry.estimate_s > left:
            say(f"stopping: {entry.name} takes about {entry.estimate_s:.0f} s, {left:.0f} s left")
            break
        say(f"{entry.name} ({entry.kind}, about {entry.estimate_s:.0f} s) ...")
        limit_s = min(left, max(PATIENCE * entry.estimate_s, 60.0))
        record = _run_entry(entry, environment, limit_s)
        result.write(folder / f"{entry.name}.json", record)
        result.write(folder / "result.json", summarize(list(records(folder).values())))
        say(f"  {record.status}, {record.seconds:.1f} s" + f"  {_last_line(record.error)}".rstrip())
        written.append(record)
    return written


def records(folder: pathlib.Path) -> dict[str, Record]:
    """Reads the records of one device by entry name; an unreadable file counts as missing."""
    found = {}
    for path in sorted(set(folder.glob("*.json")) - {folder / "result.json"}):
        with contextlib.suppress(ValueError):
            found[path.stem] = result.read(path, Record)
    return found


def summarize(found: Sequence[Record]) -> result.Result:
    """Returns the records of one device as the result that the report shows."""
    measurements = [item for record in found for item in record.measurements]
    columns = ("Entry", "Kind", "Status", "Time", "Details")
    rows = tuple(
        (
            record.name,
            record.kind,
            {"ok": "passed" if record.kind == "check" else "measured"}.get(
                record.status, record.status
            ),
            words.duration(record.seconds),
            _last_line(record.error)
            or ", ".join(f"{name} {words.cell(value)}" for name, value in record.details.items()),
        )
        for record in found
    )
    newest = max(found, key=lambda record: record.finished)
    timings = (timing.as_table(measurements),) if measurements else ()
    return result.Result(
        experiment=f"gpu_{slug(newest.environment.device)}",
        title=f"Accelerator suite on {newest.environment.device}",
        kind="accelerator suite",
        tables=(*timings, result.Table("Checks and benchmarks", columns, rows)),
        environment=newest.environment,
        seconds=sum(record.seconds for record in found),
        command="python -m experiments gpu --budget 1800",
        finished=newest.finished,
    )


def _run_entry(entry: Entry, environment: result.Environment, limit_s: float) -> Record:
    start = time.monotonic()
    status, output, error = _call(entry.target, limit_s)
    fields: dict[str, Any] = {}
    if status == "ok":
        try:
            if entry.kind == "benchmark":
                kind = tuple[timing.Measurement, ...]
                fields["measurements"] = result.decode(kind, output, "measurements")
            else:
                fields["details"] = result.decode(dict[str, Any], output or {}, "details")
        except ValueError as mistake:
            status, error = "failed", f"{entry.target} returned the wrong thing: {mistake}"
    seconds = time.monotonic() - start
    return Record(
        entry.name, entry.kind, status, seconds, environment, words.now(), error=error, **fields
    )


def _call(target: str, limit_s: float) -> tuple[Literal["ok", "failed", "timeout"], Any, str]:
    """Calls `module:function` in a fresh process; returns status, JSON data, end of stderr."""
    with tempfile.TemporaryDirectory() as scratch:
        answer, errors = pathlib.Path(scratch) / "answer.json", pathlib.Path(scratch) / "stderr"
        with errors.open("wb") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "experiments.bench.suite", target, str(answer)],
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # so that its own children can be ended with it
            )
        status: Literal["ok", "failed", "timeout"]
        try:
            status = "ok" if child.wait(limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timeout"
        finally:
            if child.poll() is None:  # out of time, or Ctrl-C
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if status == "ok" and not answer.is_file():
            return "failed", None, "the process ended without an answer"
        if status == "ok":
            return "ok", json.loads(answer.read_text()), ""
        said = errors.read_text(errors="replace")[-4000:].strip()
        if status == "timeout":
            said += f"\nstopped after {limit_s:.0f} s"
        elif child.returncode < 0:
            said += f"\nended by {signal.Signals(-child.returncode).name}"
        # Records are committed: no paths of the machine that wrote them.
        for path in (str(REPOSITORY), sys.prefix, sys.base_prefix, str(pathlib.Path.home())):
            said = said.replace(path, "~")
        return status, None, said.strip() or f"exit status {child.returncode}"


def _last_line(said: str) -> str:
    return said.strip().splitlines()[-1] if said.strip() else ""


def _worker(target: str, answer: str) -> None:
    module, _, function = target.partition(":")
    outcome = getattr(importlib.import_module(module), function)()
    result.write(pathlib.Path(answer), outcome)


if __name__ == "__main__":
    _worker(*sys.argv[1:])
