"""Loggers: functions `log(step, metrics)` that write to a file, a console or TensorBoard."""

import json
import math
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

Logger = Callable[[int, Mapping[str, Any]], None]
"""Receives the number of finished steps and host-side numbers named `group/name`: floats, and lists
of floats by seed, None for a seed that has none. What was not measured in a chunk is left out.

A logger may carry a function `note(step, text)`, which the loop calls before it does something long
(compilation), and a function `close()`, which it calls when it ends, however it ends."""


def jsonl(path: str | pathlib.Path) -> Logger:
    """Appends one JSON object a call to `path`; non-finite values are written as strings."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def log(step: int, metrics: Mapping[str, Any]) -> None:
        record = {"step": step} | {name: _json_value(value) for name, value in metrics.items()}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    return log


def read_jsonl(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads the records of `jsonl`, skipping a last line that a killed process left unfinished.

    Raises:
        ValueError: if another line is no record; it is named. `rewind_jsonl` drops such lines.
    """
    records = []
    lines = pathlib.Path(path).read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number}: not JSON with a step, got {line[:60]!r}")
    return records


def series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Picks one metric out of the records of `read_jsonl`.

    Args:
        records: As read, each with its "step".
        name: Of the metric; the values of all seeds are under `name_seeds`.

    Returns:
        Steps `[N]` and values `[N]`, or `[N, seeds]`, of the records that have the metric, which
        may be none; NaN where a seed has no value.

    Example:
        `steps, returns = logging.series(logging.read_jsonl(path), "env/return_seeds")`
    """
    having = [record for record in records if name in record]
    values = np.array([record[name] for record in having], np.float64)  # None becomes NaN
    return np.array([record["step"] for record in having], np.int64), values


def rewind_jsonl(path: str | pathlib.Path, step: int) -> int:
    """Drops records later than `step`, so that a resumed run logs every step once.

    Lines that are no records, torn or of other bytes, are dropped too, and a warning names them.

    Returns:
        The last step that is left, -1 if there is none.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return -1
    raw = path.read_bytes()
    lines = raw.splitlines()
    records = [_record(line) for line in lines]
    kept = [
        line + b"\n"
        for line, record in zip(lines, records, strict=True)
        if record is not None and record["step"] <= step
    ]
    if b"".join(kept) != raw:
        partial = path.with_suffix(".partial")
        partial.write_bytes(b"".join(kept))
        partial.replace(path)
    # A last line that a killed process left unfinished is no news.
    damaged = [number for number, record in enumerate(records[:-1], start=1) if record is None]
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        warnings.warn(
            f"{path} was damaged: line{'s' if len(damaged) > 1 else ''} {shown} dropped, being no "
            "records",
            RuntimeWarning,
            stacklevel=3,
        )
    return max(
        (record["step"] for record in records if record and record["step"] <= step), default=-1
    )


def console(num_steps: int, *, title: str = "", stream: TextIO | None = None) -> Logger:
    """Shows progress: a live bar on a terminal (if rich is installed), plain lines elsewhere."""
    output: TextIO = stream or sys.stderr
    if output.isatty():
        try:
            return _rich_bar(num_steps, title, output)
        except ImportError:
            pass

    def log(step: int, metrics: Mapping[str, Any]) -> None:
        shown = "  ".join(f"{name} {value:.6g}" for name, value in _scalars(metrics).items())
        note(step, shown)

    def note(step: int, text: str) -> None:
        print(f"{title} {step}/{num_steps}  {text}".lstrip(), file=output, flush=True)

    log.note = note  # pyright: ignore[reportFunctionMemberAccess]
    return log


def tensorboard(directory: str | pathlib.Path) -> Logger:
    """Writes TensorBoard scalars through the optional package tensorboardX."""
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("tensorboard logging needs `pip install tensorboardX`") from error
    writer = SummaryWriter(str(directory))

    def log(step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in _scalars(metrics).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _rich_bar(num_steps: int, title: str, stream: TextIO) -> Logger:
    from rich import console as rich_console
    from rich import progress

    bar = progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[metrics]}"),
        console=rich_console.Console(file=stream),
    )
    task = bar.add_task(title, total=num_steps, metrics="")

    def log(step: int, metrics: Mapping[str, Any]) -> None:
        scalars = _scalars(metrics).items()
        note(step, "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in scalars))

    def note(step: int, text: str) -> None:
        bar.start()
        bar.update(task, completed=step, metrics=text)

    log.note, log.close = note, bar.stop  # pyright: ignore[reportFunctionMemberAccess]
    return log


def _record(line: bytes) -> dict[str, Any] | None:
    """One line of a log as its record, None if it is none."""
    try:
        record = json.loads(line)
    except ValueError:  # bytes that are no text included
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, list):
        return value and [_json_value(x) for x in value]
    value = float(value)
    return value if math.isfinite(value) else str(value)
