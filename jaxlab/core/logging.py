"""Loggers: functions `log(step, metrics)` that write to a file, a console or TensorBoard."""

import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Logger = Callable[[int, Mapping[str, float]], None]
"""Receives the number of finished steps and host-side scalars named `group/name`.

A logger may carry a function `close()`, which the loop calls when it ends, however it ends."""


def jsonl(path: str | pathlib.Path) -> Logger:
    """Appends one JSON object a call to `path`; non-finite values are written as strings."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def log(step: int, metrics: Mapping[str, float]) -> None:
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
                raise ValueError(f"{path}, line {number}: not JSON ({error}).") from error
    return records


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

    def log(step: int, metrics: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        print(f"{title} {step}/{num_steps}  {shown}".lstrip(), file=output, flush=True)

    return log


def tensorboard(directory: str | pathlib.Path) -> Logger:
    """Writes TensorBoard scalars through the optional package tensorboardX."""
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("tensorboard logging needs `pip install tensorboardX`.") from error
    writer = SummaryWriter(str(directory))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
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

    def log(step: int, metrics: Mapping[str, float]) -> None:
        bar.start()
        shown = "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in metrics.items())
        bar.update(task, completed=step, metrics=shown)

    log.close = bar.stop  # pyright: ignore[reportFunctionMemberAccess]
    return log


def _json_value(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else str(value)
