"""What the accelerator suite keeps: a record for each cell, one file for each device.

A file is replaced in one step, so that it is whole whenever a machine is taken away.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal

from experiments.bench import timing, worker
from experiments.bench.cells import Entry
from experiments.harness import result, words

ROOT = pathlib.Path(__file__).resolve().parents[1] / "results" / "gpu"
"""Results that are committed, a folder for each device."""
RESULTS = "results.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What one cell left behind on one device.

    Args:
        name: Name of the cell.
        kind: What the cell is.
        status: Whether it ended well, raised or crashed, ran out of time, or cannot run there.
        seconds: Wall-clock time.
        environment: Device, versions and commit.
        finished: Local date and time, ISO 8601.
        measurements: What a benchmark timed.
        details: What a check returned.
        error: The end of what a failed process said, without paths of the machine.
    """

    name: str
    kind: Literal["check", "benchmark"]
    status: worker.Status
    seconds: float
    environment: result.Environment
    finished: str
    measurements: tuple[timing.Measurement, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""


def slug(device: str) -> str:
    """Returns a device kind as a folder name: "NVIDIA H100 80GB" -> "nvidia-h100-80gb"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def records(folder: pathlib.Path) -> dict[str, Record]:
    """Reads the records of a folder by cell.

    Raises:
        ValueError: if its file is not what `write` wrote.
    """
    path = folder / RESULTS
    found = result.read(path, tuple[Record, ...]) if path.exists() else ()
    return {record.name: record for record in found}


def write(folder: pathlib.Path, found: dict[str, Record]) -> None:
    """Writes the records of a folder in one step."""
    result.write(folder / RESULTS, list(found.values()))


def newest(*found: dict[str, Record]) -> dict[str, Record]:
    """Joins records: what ended well counts more than what did not, then the later one."""
    joined: dict[str, Record] = {}

    def worth(record: Record) -> tuple[bool, str]:
        return record.status == "ok", record.finished

    for record in (record for some in found for record in some.values()):
        if record.name not in joined or worth(record) > worth(joined[record.name]):
            joined[record.name] = record
    return joined


def merge(folder: pathlib.Path, root: pathlib.Path = ROOT) -> list[tuple[pathlib.Path, int]]:
    """Joins what a machine brought home with the results of its device, and summarizes them.

    Args:
        folder: Where `results.json` is.
        root: Where the folders of devices are.

    Returns:
        The folders that were written, and how many records were taken over into each.

    Raises:
        FileNotFoundError: if there are no results.
        ValueError: if they cannot be read, or are a CPU's.
    """
    if not (folder / RESULTS).exists():
        raise FileNotFoundError(f"{folder} has no {RESULTS}")
    brought: dict[str, dict[str, Record]] = {}
    for record in records(folder).values():
        if record.environment.platform == "cpu":
            raise ValueError(
                f"{folder} holds figures of a CPU, which do not go among the accelerators'"
            )
        brought.setdefault(slug(record.environment.device), {})[record.name] = record
    written = []
    for name, found in brought.items():
        old = records(root / name)
        joined = newest(old, found)
        write(root / name, joined)
        result.write(root / name / "result.json", summarize(list(joined.values())))
        taken = sum(joined[cell] is record for cell, record in found.items())
        written.append((root / name, taken))
    return written


def summarize(found: Sequence[Record]) -> result.Result:
    """Returns the records of one device as the result that the report shows."""
    measurements = [item for record in found for item in record.measurements]
    columns = ("Cell", "Kind", "Status", "Time", "Details")
    rows = tuple(
        (
            record.name,
            record.kind,
            {"ok": "passed" if record.kind == "check" else "measured"}.get(
                record.status, record.status
            ),
            words.duration(record.seconds),
            last_line(record.error)
            or ", ".join(f"{name} {words.cell(value)}" for name, value in record.details.items()),
        )
        for record in found
    )
    last = max(found, key=lambda record: record.finished)
    timings = (timing.as_table(measurements),) if measurements else ()
    return result.Result(
        experiment=f"gpu_{slug(last.environment.device)}",
        title=f"Accelerator suite on {last.environment.device}",
        kind="accelerator suite",
        tables=(*timings, result.Table("Checks and benchmarks", columns, rows)),
        environment=last.environment,
        seconds=sum(record.seconds for record in found),
        command="python -m experiments gpu --budget 540",
        finished=last.finished,
    )


def learned(entries: Sequence[Entry], root: pathlib.Path = ROOT) -> list[Entry]:
    """Returns the cells with the longest time that any device has taken in place of a guess."""
    longest: dict[str, float] = {}
    for folder in sorted(root.glob("*")):
        for record in readable(folder).values():
            if record.status == "ok":
                longest[record.name] = max(record.seconds, longest.get(record.name, 0.0))
    return [
        dataclasses.replace(entry, estimate_s=longest.get(entry.name, entry.estimate_s))
        for entry in entries
    ]


def readable(folder: pathlib.Path) -> dict[str, Record]:
    """The records of a folder; a file that a broken disk cut short counts as missing."""
    with contextlib.suppress(ValueError):
        return records(folder)
    return {}


def last_line(said: str) -> str:
    return said.strip().splitlines()[-1] if said.strip() else ""
