"""Units: what one process computes and keeps, so that a study can stop anywhere and go on.

A study lists its units, by (task, method, seed block) or however its work falls into pieces, and
`run` computes those that its folder does not hold yet. A unit's result is any nesting of records
(NamedTuples, dataclasses), tuples, lists, dictionaries, arrays, numbers, strings and None. It is
kept in one file, `units/NAME.npz`, which a notebook may open with `np.load`: the arrays, and a text
that says how they belong together. A digest in the file finds damage; nothing is ever unpickled.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import sys
import typing
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from experiments.harness import result
from jaxlab.core import logging, loop

_LENGTH = (64).to_bytes(2, "little")
"""The digest is the comment of the zip archive; this is its length, the last field before it."""
WEEK_MS = 7 * 24 * 3600 * 1000
"""Longest that processes wait for each other, in milliseconds."""
_MISSING = object()
"""Stands for a result that there is not."""


class Unit(NamedTuple):
    """A piece of a study.

    Attributes:
        name: Its name, unique in the run folder; a path such as "pendulum/FPMD-R" reads well.
        settings: All that its result depends on: a dataclass, or what else JSON holds. A stored
            result is used with equal settings only.
        compute: `compute(folder) -> result`. The folder is the unit's own, for checkpoints: what a
            stopped process left there is there again when the unit goes on, and it is removed once
            the result is kept. Only a `metrics.jsonl` in it stays, as `units/NAME.jsonl`.
        kind: The type of the result, which names the records in it: a record, `tuple[Record, ...]`,
            `dict[str, Record]`. Results without records need none.
    """

    name: str
    settings: Any
    compute: Callable[[pathlib.Path], Any]
    kind: Any = object


class Damaged(Exception):
    """A file is not what was written."""


def run(
    units: Sequence[Unit],
    out: pathlib.Path,
    *,
    title: str = "",
    workers: int = 1,
    metrics: Callable[[str, Any], Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Computes the units that `out` does not hold, and returns the results of all.

    A killed process loses only the unit it was at, whose checkpoints go on. On SIGTERM and SIGINT
    (Ctrl-C, `--minutes`) what is at work is finished and kept, or saved by its training loop, and
    the run ends (exit status 143, or KeyboardInterrupt); a second signal ends it at once.

    A unit that raises does not stop the others: it is named at once, and its error is raised after
    all have been tried. A damaged file is named, and its unit is computed again.

    In a run of several processes (`jax.process_count()`) unit i is computed by process
    i modulo their number; they share `out`, wait for each other, and read the results of all. A
    training loop in a unit is the process's own, as is what it computes without a mesh. A signal
    should go to all of them, as Slurm and `--minutes` have it: they end together.

    Args:
        units: What to compute, in this order.
        out: The run folder.
        title: Name of the study, for its progress.
        workers: Units at a time. More than one are in threads of their own: a context such as
            `jax.enable_x64` has to be entered inside `compute`, and none may save checkpoints,
            since Orbax takes one writer a process.
        metrics: `metrics(name, result)`, numbers that are shown when a unit is done and written to
            `metrics.jsonl`, where a step is the number of units that the folder holds.

    Returns:
        Results by name, in the order of `units`. Arrays are NumPy's; a result is the same whether
        it was computed or read.

    Raises:
        ValueError: if names repeat, or a stored unit has other settings or fields.
        Exception: what the first unit that failed raised, with a note that names all that failed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    places = [_place(out, unit) for unit in units]
    if len({place.file for place in places}) < len(units):
        raise ValueError(f"units must have different names, got {[unit.name for unit in units]}")
    found: dict[str, Any] = {}
    for place in places:
        if (value := _stored(place)) is not _MISSING:
            found[place.unit.name] = value

    log = logging.jsonl(out / "metrics.jsonl")
    errors: list[tuple[str, Exception]] = []
    process, count = jax.process_index(), jax.process_count()
    title = title if count == 1 else f"{title} process {process}".lstrip()
    with loop.signals_caught() as signals, _progress(title, len(units), len(found)) as say:

        def attempt(place: _Place) -> Any:
            if signals:
                return _MISSING
            say(len(found), f"{place.unit.name} ...")
            try:
                return _compute(place)
            except Exception as error:
                return error
            except (KeyboardInterrupt, SystemExit):
                if signals:  # its training loop has saved and ended
                    return _MISSING
                raise

        def finish(name: str, value: Any) -> None:
            found[name] = value
            shown = {} if metrics is None else dict(metrics(name, value))
            if process == 0:
                kept = len(list((out / "units").glob("*.npz")))  # those of other calls included
                log(kept, {f"{name}/{metric}": number for metric, number in shown.items()})
            numbers = [f"{metric} {number:.4g}" for metric, number in shown.items()]
            say(len(found), "  ".join([name, *numbers]))

        mine = [place for place in places[process::count] if place.unit.name not in found]
        for place, value in _each(attempt, mine, workers):
            if isinstance(value, Exception):
                errors.append((place.unit.name, value))
                say(len(found), f"{place.unit.name} failed: {value!r}")
            elif value is not _MISSING:
                finish(place.unit.name, value)
        if count > 1:
            _meet(signals, errors)
            for place in places:
                if place.unit.name not in found and not signals:
                    finish(place.unit.name, _stored(place))
    if count == 1:  # another process may be about to use it
        with contextlib.suppress(OSError):
            (out / "checkpoints").rmdir()  # unless something in it is to go on
    loop.leave(signals)
    if errors:
        error = errors[0][1]
        error.add_note(f"units that failed: {', '.join(name for name, _ in errors)}")
        raise error
    return {unit.name: found[unit.name] for unit in units}


def save(path: pathlib.Path, value: Any, kind: Any = object, settings: Any = None) -> None:
    """Writes a result in one step: a reader finds the whole file or none.

    Args:
        path: File to write, *.npz.
        value: The result, see the head of this module.
        kind: Its type, which names the records in it.
        settings: What it depends on, plain JSON data.

    Raises:
        ValueError: if something in it cannot be kept; the message says where it is.
    """
    arrays: dict[str, np.ndarray] = {}
    about = {
        "value": _encode(value, _records(kind), arrays, path.stem),
        "settings": settings,
        "commit": result.commit(),
        "versions": result.versions(),
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(buffer, allow_pickle=False, about=text, **arrays)
    content = buffer.getvalue().removesuffix(b"\0\0") + _LENGTH  # a comment follows
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    os.replace(partial, path)


def load(path: pathlib.Path, kind: Any = object) -> tuple[Any, Any]:
    """Reads `(result, settings)` back, the result with the types that it had, arrays as NumPy's.

    Raises:
        FileNotFoundError: if there is no such file.
        Damaged: if it is not what was written.
        ValueError: if a record of it is not in `kind`, or has other fields there.
    """
    raw = path.read_bytes()
    content, digest = raw[:-64], raw[-64:]
    if not content.endswith(_LENGTH) or hashlib.sha256(content).hexdigest().encode() != digest:
        raise Damaged(f"{path} is damaged")
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        return _decode(about["value"], _records(kind), arrays, path), about["settings"]


# One unit


class _Place(NamedTuple):
    """Where a unit is kept: its file, its folder while it is at work, and its plain settings."""

    unit: Unit
    file: pathlib.Path
    folder: pathlib.Path
    settings: Any


def _place(out: pathlib.Path, unit: Unit) -> _Place:
    name = "--".join(urllib.parse.quote(part, safe=" ,()+=") for part in unit.name.split("/"))
    settings = json.loads(json.dumps(result.encode(unit.settings)))
    return _Place(unit, out / "units" / f"{name}.npz", out / "checkpoints" / name, settings)


def _stored(place: _Place) -> Any:
    """The result that is kept, or `_MISSING`; what is begun or kept has these settings."""
    with contextlib.suppress(FileNotFoundError):
        _check_settings(place, json.loads(_begun(place).read_text(encoding="utf-8")))
    try:
        value, settings = load(place.file, place.unit.kind)
    except FileNotFoundError:
        return _MISSING
    except Damaged as error:
        print(f"{error}: its unit is computed again", file=sys.stderr, flush=True)
        return _MISSING
    _check_settings(place, settings)
    return value


def _compute(place: _Place) -> Any:
    """Computes and keeps a unit, and returns what a later run will read."""
    result.write(_begun(place), place.settings)
    save(place.file, place.unit.compute(place.folder), place.unit.kind, place.settings)
    with contextlib.suppress(FileNotFoundError):
        os.replace(place.folder / "metrics.jsonl", place.file.with_suffix(".jsonl"))
    shutil.rmtree(place.folder)
    return load(place.file, place.unit.kind)[0]


def _begun(place: _Place) -> pathlib.Path:
    return place.folder / "settings.json"


def _check_settings(place: _Place, stored: Any) -> None:
    now = place.settings
    if now == stored:
        return
    where, then = "settings", stored
    if isinstance(now, dict) and isinstance(then, dict):
        where = next(k for k in (*now, *then) if now.get(k, _MISSING) != then.get(k, _MISSING))
        then, now = (x.get(where, "missing") for x in (then, now))
    raise ValueError(
        f"{place.file.parent.parent} holds the unit {place.unit.name} with {where} = {then!r}, "
        f"now it is {now!r}; take the same settings or a new folder"
    )


# All units


def _each(
    attempt: Callable[[_Place], Any], places: Sequence[_Place], workers: int
) -> Iterator[tuple[_Place, Any]]:
    """Yields what `attempt` returns of each, as soon as it does."""
    if workers == 1:  # in the main thread, where a training loop hears of signals
        yield from ((place, attempt(place)) for place in places)
        return
    pool = futures.ThreadPoolExecutor(workers)
    try:
        waiting = {pool.submit(attempt, place): place for place in places}
        for future in futures.as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _progress(title: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """Yields `say(done, text)`: a live bar on a terminal, a plain line elsewhere."""
    prefix = f"{title} " if title else ""
    if not sys.stderr.isatty():

        def say(done: int, text: str) -> None:
            print(f"{prefix}{done}/{total}  {text}", file=sys.stderr, flush=True)

        yield say
        return
    from rich import console, progress

    columns = (
        progress.TextColumn("{task.fields[title]}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}"),
    )
    with progress.Progress(*columns, console=console.Console(file=sys.stderr)) as bar:
        task = bar.add_task("", total=total, completed=done, title=title)
        yield lambda done, text: bar.update(task, completed=done, description=text)


def _meet(signals: list[int], errors: list[tuple[str, Exception]]) -> None:
    """Waits for all processes; a signal or an error of one is known to all then."""
    # A barrier of the coordination service first: a collective would give up after seconds.
    multihost.get_barrier_sync_fn()(key="units", timeout_ms=WEEK_MS)
    mine = [signal.SIGINT in signals, signal.SIGTERM in signals, bool(errors)]
    everyone = multihost_utils.process_allgather(np.array(mine))
    for number, caught in zip((signal.SIGINT, signal.SIGTERM), everyone.any(axis=0), strict=False):
        if caught and number not in signals:
            signals.append(number)
    failed = np.flatnonzero(everyone[:, 2]).tolist()
    if failed and not errors:
        error = RuntimeError(f"units failed in process {', '.join(map(str, failed))}; see there")
        errors.append(("those of others", error))


# What a file holds


def _records(kind: Any) -> dict[str, type]:
    """The record types that `kind` names, by name: its own, those of its fields and arguments."""
    found: dict[str, type] = {}

    def visit(hint: Any) -> None:
        for arm in typing.get_args(hint):
            visit(arm)
        named = isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")
        if not (named or (isinstance(hint, type) and dataclasses.is_dataclass(hint))):
            return
        if found.setdefault(hint.__qualname__, hint) is not hint:
            raise ValueError(f"kind names two different records {hint.__qualname__}")
        for field in typing.get_type_hints(hint).values():
            visit(field)

    visit(kind)
    return found


def _fields(kind: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init)
    return kind._fields


def _encode(x: Any, records: Mapping[str, type], arrays: dict[str, np.ndarray], where: str) -> Any:
    """Returns `x` as JSON data; its arrays go to `arrays`, by the number that stands for them."""

    def all_of(items: Mapping[Any, Any]) -> dict[Any, Any]:
        return {k: _encode(v, records, arrays, f"{where}.{k}") for k, v in items.items()}

    if x is None or type(x) in (bool, int, float, str):
        return x
    if isinstance(x, (np.ndarray, np.generic, jax.Array)):
        return _encode_array(x, arrays, where)
    name = type(x).__qualname__
    is_record = hasattr(x, "_fields") or dataclasses.is_dataclass(x)
    if is_record and records.get(name) is type(x):
        return {"record": name, "fields": all_of({k: getattr(x, k) for k in _fields(type(x))})}
    if is_record:
        raise ValueError(f"{where} is the record {name}, which the unit's kind does not name")
    if type(x) in (tuple, list):
        return {name: list(all_of(dict(enumerate(x))).values())}
    if type(x) is dict:
        keys = [_encode(key, records, arrays, f"{where} (key)") for key in x]
        return {"dict": [keys, list(all_of(x).values())]}
    raise ValueError(
        f"{where} is a {name}; a unit's result holds records, tuples, lists, dictionaries, arrays, "
        "numbers, strings and None"
    )


def _encode_array(x: Any, arrays: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{where} is a PRNG key; keep jax.random.key_data of it")
    array = np.asarray(x)
    if array.dtype.hasobject:
        raise ValueError(f"{where} is an array of Python objects; keep numbers")
    number = str(len(arrays))
    about = {"array": number, "scalar": isinstance(x, np.generic)}
    if array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 and its like
        about |= {"dtype": array.dtype.name, "shape": array.shape}
        array = np.frombuffer(array.tobytes(), np.uint8)
    arrays[number] = array
    return about


def _decode(
    x: Any, records: Mapping[str, type], arrays: Mapping[str, np.ndarray], path: pathlib.Path
) -> Any:
    if not isinstance(x, dict):
        return x

    def all_of(items: Sequence[Any]) -> list[Any]:
        return [_decode(item, records, arrays, path) for item in items]

    match x:
        case {"array": number, "scalar": scalar}:
            array = arrays[number]
            if "dtype" in x:
                array = np.frombuffer(array.tobytes(), np.dtype(x["dtype"]))
                array = array.reshape(x["shape"]).copy()
            return array[()] if scalar else array
        case {"record": name, "fields": fields}:
            kind = records.get(name)
            known = () if kind is None else _fields(kind)
            if kind is None or set(known) != set(fields):
                raise ValueError(
                    f"{path} holds a record {name} with {', '.join(fields)}, this version has "
                    f"{', '.join(known) or 'none'}; start a new run"
                )
            return kind(**dict(zip(fields, all_of(list(fields.values())), strict=True)))
        case {"tuple": items}:
            return tuple(all_of(items))
        case {"list": items}:
            return all_of(items)
        case {"dict": (keys, values)}:
            return dict(zip(all_of(keys), all_of(values), strict=True))
    raise ValueError(f"{path} holds {', '.join(x)}, which this version does not read")
