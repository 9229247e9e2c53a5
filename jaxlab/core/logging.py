"""Loggers: functions `log(step, metrics)` that write to a file, a console or TensorBoard."""

import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

Logger = Callable[[int, Mapping[str, Any]], None]
"""Receives the number of finished steps and host-side numbers named `group/name`: floats, and lists
of floats by seed, None for a seed that has none. What was not measured in a chunk is left out.

A logger may carry a function `close()`, which the loop calls when it ends, however it ends."""


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
    """Reads the records of `jsonl`, skipping a last line that a killed process left unfinished."""
    records = []
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
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


def rewind_jsonl(path: str | pathlib.Path, step: int) -> None:
    """Drops records later than `step`, so that a resumed run logs every step once."""
    path = pathlib.Path(path)
    if path.exists():
        kept = [record for record in read_jsonl(path) if record["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        partial.replace(path)


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
        print(f"{title} {step}/{num_steps}  {shown}".lstrip(), file=output, flush=True)

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
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[metrics]}"),
        console=rich_console.Console(file=stream),
    )
    task = bar.add_task(title, total=num_steps, metrics="")

    def log(step: int, metrics: Mapping[str, Any]) -> None:
        bar.start()
        scalars = _scalars(metrics).items()
        shown = "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in scalars)
        bar.update(task, completed=step, metrics=shown)

    log.close = bar.stop  # pyright: ignore[reportFunctionMemberAccess]
    return log


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, list):
        return value and [_json_value(x) for x in value]
    value = float(value)
    return value if math.isfinite(value) else str(value)
