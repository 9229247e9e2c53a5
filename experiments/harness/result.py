"""Records of a measured result, their JSON form, and the folders that runs are kept in."""

import dataclasses
import datetime
import errno
import functools
import json
import math
import os
import pathlib
import platform
import subprocess
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import jaxlab

LAYOUT = 1
"""Of the run folders that this version begins and resumes, see `Start`."""
VERDICTS = {
    "reproduced": "our figure agrees with the paper",
    "not reproduced": "our figure disagrees with the paper",
    "better": "clearly better than the baseline",
    "worse": "clearly worse than the baseline",
    "no clear difference": "the interval does not separate us from the baseline",
    "too few seeds": "fewer than five seeds: an interval at most, no verdict",
    "measured": "a figure without a verdict",
    "not measured": "no run has produced this figure, or none that is finite",
}
COMPARED = ("better", "worse", "no clear difference", "too few seeds")
"""Verdicts on a baseline."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure that an experiment measured, beside what it is compared with.

    Args:
        claim: The paper's claim, in plain words; rows of one claim share the text.
        metric: What the figure is, e.g. "Beds for 5 % overflow risk, site 1".
        value: The figure; `None` when it was not measured.
        interval: Lower and upper end of its uncertainty interval.
        baseline: Name and figure of the best rival under the same conditions; the figure is `None`
            when it has none, for it lost all its seeds.
        paper: The paper's own figure, or its range as text.
        verdict: A key of `VERDICTS`.
        unit: Unit of `value`, `interval`, `baseline` and a numeric `paper`.
        note: One sentence a reader needs to judge the figure.
        interval_label: What `interval` is, where it is not what `Result.interval_label` says.

    Raises:
        ValueError: if a figure is not finite, or the verdict does not fit the other fields.
    """

    claim: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None = None
    baseline: tuple[str, float | None] | None = None
    paper: float | str | None = None
    verdict: str = "measured"
    unit: str = ""
    note: str = ""
    interval_label: str = ""

    def __post_init__(self):
        where = f"row {self.metric!r}"
        _set(self, "value", _number(self.value, f"{where}: value"))
        if self.interval is not None:
            low, high = (_number(end, f"{where}: interval") for end in self.interval)
            if low is None or high is None or low > high:
                raise ValueError(f"{where}: interval must be (low, high), got {self.interval}")
            _set(self, "interval", (low, high))
        if self.baseline is not None:
            name, figure = self.baseline
            _set(self, "baseline", (str(name), _number(figure, f"{where}: baseline")))
        if not isinstance(self.paper, str):
            _set(self, "paper", _number(self.paper, f"{where}: paper"))
        if self.verdict not in VERDICTS:
            raise ValueError(
                f"{where}: verdict must be one of {', '.join(VERDICTS)}, got {self.verdict!r}"
            )
        if (self.value is None) != (self.verdict == "not measured"):
            raise ValueError(
                f"{where}: value is {self.value} but the verdict is {self.verdict!r}; "
                "'not measured' goes with no value and with nothing else"
            )
        if self.value is None and self.interval is not None:
            raise ValueError(f"{where}: an interval needs a value")
        if self.baseline is None and self.verdict in COMPARED:
            raise ValueError(f"{where}: the verdict {self.verdict!r} needs a baseline")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture in the run folder: relative path (.png or .svg), caption, text alternative.

    A phone is shown the file that `phone` names, where there is one.
    """

    path: str
    caption: str
    alt: str = ""


def phone(path: pathlib.Path) -> pathlib.Path:
    """Returns the file of a picture as it is drawn for a phone, beside the other."""
    return path.with_stem(f"{path.stem}_phone")


@dataclasses.dataclass(frozen=True)
class Table:
    """A free-form table; a cell is text, a number, or `None` for "not measured"."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    caption: str = ""

    def __post_init__(self):
        _set(self, "columns", tuple(self.columns))
        _set(self, "rows", tuple(tuple(row) for row in self.rows))
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: {len(self.columns)} columns but a row of {len(row)}"
                )


@dataclasses.dataclass(frozen=True)
class Part:
    """What one part of an experiment says: figures, pictures, tables, and their limits.

    Args:
        rows: Measured figures, the most telling first.
        figures: Pictures.
        tables: Free-form tables.
        limits: What the figures do not show, one sentence each.
        opening: Tables that a reader needs first, before any figure.
    """

    rows: tuple[Row, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    limits: tuple[str, ...] = ()
    opening: tuple[Table, ...] = ()

    def __post_init__(self):
        for name in ("rows", "figures", "tables", "limits", "opening"):
            _set(self, name, tuple(getattr(self, name)))


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where a run took place, and by which code: its versions and its git commit.

    `commit` is empty outside a checkout, and ends in "-dirty" where files differ from it.
    """

    device: str
    platform: str
    device_count: int
    cpu: str
    cores: int
    versions: dict[str, str]
    commit: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """What an experiment hands back; the command line completes the fields from `preset` on.

    Args:
        experiment: Name of the experiment.
        rows: Measured figures, the most telling first.
        figures: Pictures.
        tables: Free-form tables.
        title: Heading in the report; the name when empty.
        summary: One or two plain sentences a reader takes away.
        paper: Authors, title and identifier of the paper.
        interval_label: What the intervals of `rows` are.
        limits: What the figures do not show, one sentence each.
        opening: Tables that the report opens with, before any figure.
        kind: `experiment`, or what else measured it.
        preset: Preset that the configuration started from.
        config: The configuration as plain data.
        environment: Device, versions and commit.
        seconds: Wall-clock time of the run; of its last part after a resume.
        resumed: Whether the run was continued from a checkpoint.
        command: What to type to run it again.
        finished: Local date and time, ISO 8601.
    """

    experiment: str
    rows: tuple[Row, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    title: str = ""
    summary: str = ""
    paper: str = ""
    interval_label: str = "95 % interval"
    limits: tuple[str, ...] = ()
    opening: tuple[Table, ...] = ()
    kind: Literal["experiment", "benchmark", "accelerator suite"] = "experiment"
    preset: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: Environment | None = None
    seconds: float | None = None
    resumed: bool = False
    command: str = ""
    finished: str = ""

    def __post_init__(self):
        for name in ("rows", "figures", "tables", "limits", "opening"):
            _set(self, name, tuple(getattr(self, name)))


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run folder says from its first second on, so that it can be resumed.

    `layout` counts the ways in which folders have kept what was begun; 0 is that of 0.4 and before.
    """

    experiment: str
    preset: str
    config: dict[str, Any]
    command: str
    started: str
    versions: dict[str, str]
    commit: str = ""
    layout: int = 0


class Misfit(ValueError):
    """Data are not what a type asks for: another version, or another program, wrote them."""


def assemble(
    parts: Sequence[Part],
    *,
    experiment: str,
    title: str = "",
    summary: str = "",
    paper: str = "",
    interval_label: str = "95 % interval",
) -> Result:
    """Puts the parts of an experiment together, in their order; the other fields are of `Result`.

    Raises:
        ValueError: if two parts wrote a picture to the same file.
    """
    figures = tuple(figure for part in parts for figure in part.figures)
    paths = [figure.path for figure in figures]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"figures must have files of their own, got {', '.join(twice)} twice")
    return Result(
        experiment=experiment,
        rows=tuple(row for part in parts for row in part.rows),
        figures=figures,
        tables=tuple(table for part in parts for table in part.tables),
        title=title,
        summary=summary,
        paper=paper,
        interval_label=interval_label,
        limits=tuple(dict.fromkeys(limit for part in parts for limit in part.limits)),
        opening=tuple(table for part in parts for table in part.opening),
    )


def versions() -> dict[str, str]:
    """Returns the versions that decide a result, without importing any of the packages."""
    from importlib import metadata

    packages = ("jax", "jaxlib", "numpy")
    return {
        "python": platform.python_version(),
        "jaxlab": jaxlab.__version__,
        **{package: metadata.version(package) for package in packages},
    }


@functools.cache
def commit() -> str:
    """Returns the git commit of this checkout, "-dirty" when files differ; "" outside of one."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # or git would find that of a folder above
        return ""
    command = ("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40")
    try:
        done = subprocess.run(
            (*command, "--exclude=*"), capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def environment() -> Environment:
    """Returns the device, the host and the versions of this process; starts JAX's backend."""
    import jax  # here, so that listing and reporting need no JAX

    return Environment(
        device=jax.devices()[0].device_kind,
        platform=jax.default_backend(),
        device_count=jax.device_count(),
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        versions=versions(),
        commit=commit(),
    )


def is_storage(error: BaseException) -> bool:
    """Whether an error says that nothing can be written: a full disk, a limit, no permission."""
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    )


def reason(error: OSError) -> str:
    """Says what the system did not let us do, and why; what has no number of the system's is ours.

    "results.json: File exists", and not "[Errno 17] File exists: 'results.json'".
    """
    return f"{error.filename or 'cannot write'}: {error.strerror}" if error.errno else str(error)


def new_folder(parent: pathlib.Path) -> pathlib.Path:
    """Creates `parent/<date-time>` and returns it; never one that exists."""
    stamp = f"{datetime.datetime.now():%Y-%m-%d_%H%M%S}"
    for suffix in ("", *(f"-{count}" for count in range(2, 1000))):
        folder = parent / (stamp + suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{parent / stamp} and a thousand more exist")


def write(path: pathlib.Path, record: Any) -> None:
    """Writes a record as JSON in one step: a reader sees the old file or the new one."""
    write_text(path, json.dumps(encode(record), indent=2, ensure_ascii=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in one step, through a temporary file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: pathlib.Path, kind: Any) -> Any:
    """Reads back what `write` wrote, as the annotated type `kind`, see `decode`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON or does not fit `kind`; the message names file and field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None
    try:
        return decode(kind, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def encode(value: Any, where: str = "") -> Any:
    """Returns `value` (dataclasses, containers, paths, scalars) as plain JSON data.

    Raises:
        ValueError: for a number that is not finite or a type that JSON does not hold.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: encode(getattr(value, name), _join(where, name)) for name in names}
    if isinstance(value, dict):
        return {str(name): encode(item, _join(where, name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item, _join(where, index)) for index, item in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if getattr(value, "shape", None) == ():  # a NumPy or JAX scalar
        return encode(value.item(), where)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, float):
        return _number(value, where)
    raise ValueError(f"{where}: cannot write a {type(value).__name__} as JSON")


def decode(kind: Any, data: Any, where: str = "") -> Any:
    """Returns plain JSON data as the annotated type `kind`; the inverse of `encode`.

    Args:
        kind: A dataclass, `tuple`, `list`, `dict`, `Literal`, a union, a path or a scalar type.
        data: What `json.loads` returned.
        where: Name of the field, for messages.

    Raises:
        Misfit: if the data do not fit; the message names the field.
        ValueError: if they do, but a dataclass refuses their values.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return decode(args[0], data, where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    if origin in (typing.Union, types.UnionType):
        for arm in sorted(args, key=lambda arm: arm is not type(data)):  # the exact type first
            try:
                return decode(arm, data, where)
            except ValueError:
                continue
    elif origin is Literal:
        if data in args:
            return data
    elif origin in (list, tuple) and isinstance(data, list):
        if origin is list or args[-1] is Ellipsis:
            args = (args[0],) * len(data)
        if len(args) == len(data):
            pairs = enumerate(zip(args, data, strict=True))
            return origin(decode(arm, item, _join(where, index)) for index, (arm, item) in pairs)
    elif origin is dict and isinstance(data, dict):
        return {name: decode(args[1], item, _join(where, name)) for name, item in data.items()}
    elif kind is Any or (kind in (None, type(None)) and data is None):
        return data
    elif kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    elif isinstance(kind, type) and issubclass(kind, pathlib.PurePath) and isinstance(data, str):
        return kind(data)
    elif kind in (bool, int, str) and type(data) is kind:
        return data
    expected = kind.__name__ if isinstance(kind, type) and not args else str(kind)
    raise Misfit(f"field {where!r}: expected {expected}, got {data!r}")


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise Misfit(f"field {where!r}: expected a {kind.__name__}, got {data!r}")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise Misfit(
            f"unknown field {_join(where, unknown[0])!r}; a {kind.__name__} has {', '.join(fields)}"
        )
    missing = dataclasses.MISSING
    for name, field in fields.items():
        if name not in data and field.default is missing and field.default_factory is missing:
            raise Misfit(f"field {_join(where, name)!r} is missing")
    return kind(
        **{name: decode(hints[name], item, _join(where, name)) for name, item in data.items()}
    )


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _set(record: Any, name: str, value: Any) -> None:
    object.__setattr__(record, name, value)  # records are frozen once constructed


def _number(value: Any, where: str) -> float | None:
    """Checks that a figure is finite; a Python float or int is kept as it is."""
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not a figure; use None for what was not measured")
    return value


def _cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
