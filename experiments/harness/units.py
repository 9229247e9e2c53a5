"""Units: what one process computes and keeps, so that a study can stop anywhere and go on.

A study lists its units, by (task, method, seed block) or however its work falls into pieces, and
`run` computes those that its folder does not hold yet. A unit's result is kept in one file,
`units/NAME.npz`; what it may hold, `store` says.
"""

import contextlib
import json
import pathlib
import shutil
import signal
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from experiments.harness import result, store, words
from jaxlab.core import lock, logging, loop

WEEK_MS = 7 * 24 * 3600 * 1000
"""Longest that processes wait for each other, in milliseconds."""
QUIET_S = 10.0
"""Seconds after which a plain log repeats what is at work; then twice as long, and so on."""
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
    all have been tried. A damaged file is named, and its unit is computed again. What cannot be
    written, for a full disk or a limit, stops all at once: no other unit could be kept either.

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
        ValueError: if names repeat or are empty, or a stored unit has other settings or fields, or
            was kept by jaxlab 0.4.
        LockedError: if another process is at work in `out`; it is named.
        OSError: if a file cannot be written.
        Exception: what the first unit that failed raised, with a note that names all that failed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if not all(unit.name for unit in units):
        raise ValueError(f"units must have names, got {[unit.name for unit in units]}")
    places = [_place(out, unit) for unit in units]
    if len({place.file for place in places}) < len(units):
        raise ValueError(f"units must have different names, got {[unit.name for unit in units]}")
    process, count = jax.process_index(), jax.process_count()
    found: dict[str, Any] = {}
    errors: list[tuple[str, Exception]] = []
    with contextlib.ExitStack() as stack:
        if process == 0:  # for all of them
            stack.enter_context(lock.one_writer(out, file_name=".units.lock"))
        for place in places:
            if (value := _stored(place)) is not _MISSING:
                found[place.unit.name] = value
        logging.rewind_jsonl(out / "metrics.jsonl", sys.maxsize)
        log = logging.jsonl(out / "metrics.jsonl")
        signals = stack.enter_context(loop.signals_caught())
        title = title if count == 1 else f"{title} process {process}".lstrip()
        say = stack.enter_context(_progress(title, len(units), len(found)))

        def attempt(place: _Place) -> Any:
            if signals:
                return _MISSING
            say(len(found), f"{place.unit.name} ...")
            try:
                return _compute(place)
            except Exception as error:
                if result.is_storage(error):
                    raise
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


# One unit


class _Place(NamedTuple):
    """Where a unit is kept: its file, its folder while it is at work, and its plain settings."""

    unit: Unit
    file: pathlib.Path
    folder: pathlib.Path
    settings: Any


def _place(out: pathlib.Path, unit: Unit) -> _Place:
    name = "--".join(urllib.parse.quote(part, safe=" ,()+=") for part in unit.name.split("/"))
    if name.startswith("."):  # hidden, or the folder itself
        name = f"%2E{name[1:]}"
    settings = json.loads(json.dumps(result.encode(unit.settings)))
    return _Place(unit, out / "units" / f"{name}.npz", out / "checkpoints" / name, settings)


def _stored(place: _Place) -> Any:
    """The result that is kept, or `_MISSING`; what is begun or kept has these settings."""
    with contextlib.suppress(FileNotFoundError):
        _check_settings(place, result.read(_begun(place), Any))
    try:
        value, settings = store.load(place.file, place.unit.kind)
    except FileNotFoundError:
        return _MISSING
    except store.Damaged as error:
        print(f"{error}: its unit is computed again", file=sys.stderr, flush=True)
        return _MISSING
    _check_settings(place, settings)
    return value


def _compute(place: _Place) -> Any:
    """Computes and keeps a unit, and returns what a later run will read."""
    result.write(_begun(place), place.settings)
    store.save(place.file, place.unit.compute(place.folder), place.unit.kind, place.settings)
    with contextlib.suppress(FileNotFoundError):
        (place.folder / "metrics.jsonl").replace(place.file.with_suffix(".jsonl"))
    shutil.rmtree(place.folder)
    return store.load(place.file, place.unit.kind)[0]


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
    if not sys.stderr.isatty():
        with _plain_lines(f"{title} " if title else "", total) as say:
            yield say
        return
    from rich import console, progress

    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.fields[title]}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}"),
    )
    with progress.Progress(*columns, console=console.Console(file=sys.stderr)) as bar:
        task = bar.add_task("", total=total, completed=done, title=title)
        yield lambda done, text: bar.update(task, completed=done, description=text)


@contextlib.contextmanager
def _plain_lines(prefix: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Prints what is said; what takes long (a compilation) is said again, ever more seldom."""
    last = [(0, "", time.monotonic())]
    over = threading.Event()

    def show(done: int, text: str) -> None:
        print(f"{prefix}{done}/{total}  {text}", file=sys.stderr, flush=True)

    def say(done: int, text: str) -> None:
        last[0] = (done, text, time.monotonic())
        show(done, text)

    def remind() -> None:
        seen, pause = last[0], QUIET_S
        while not over.wait(pause):
            if last[0] is not seen:
                seen, pause = last[0], QUIET_S
            else:
                done, text, since = seen
                pause *= 2
                show(done, f"{text} {words.duration(time.monotonic() - since)}")

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield say
    finally:
        over.set()
        reminder.join()


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
