"""A run, from its folder to its report: begun, stopped in time, shared by processes, completed."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from experiments.harness import findings, flags, lost, report, result, words
from jaxlab.core import lock

SHARED = ("units", "checkpoints")
"""Folders of a run that its processes have in common."""
SEVERAL = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Variables of which one at least is set where a process is one of several, without Slurm."""


def join(lost_after: float) -> None:
    """Makes this process one of several, where Slurm or the variables `JAX_*` say that it is.

    Args:
        lost_after: Seconds without a sign of one of them after which the others end.

    Raises:
        Mistake: if only some of the variables are set.
    """
    flags.positive("lost_after", lost_after)
    if os.environ.get("SLURM_NTASKS", "1") == "1" and not any(n in os.environ for n in SEVERAL):
        return  # alone: the run's folder is named before JAX is loaded, which takes seconds
    lost.say_in_one_line(lost_after)
    from jaxlab.core import sharding

    try:
        sharding.initialize(lost_after=lost_after)
    except ValueError as error:
        raise flags.Mistake(error) from None


def begin(start: result.Start, asked: pathlib.Path | None, parent: pathlib.Path) -> pathlib.Path:
    """Makes the run's folder, the same for all processes, and writes `config.json` there.

    Args:
        start: What is to be run.
        asked: The folder that the user names; it must be empty or not there yet.
        parent: Where a folder named by date and time is made without one.

    Raises:
        Mistake: if the folder holds something already, or cannot be written.
    """

    def make() -> str:
        out = folder(asked, parent)
        with _in_one_line(f"cannot write {out}"):
            try:
                (out / "config.json").touch(exist_ok=False)  # of two at once one gets the folder
                result.write(out / "config.json", start)
            except FileExistsError:
                raise flags.Mistake(f"{out} has just been taken by another run") from None
            except OSError:
                _discard(out)
                raise
        return str(out)

    return pathlib.Path(_agreed(make))


def folder(asked: pathlib.Path | None, parent: pathlib.Path) -> pathlib.Path:
    """Makes a folder to write to: the one that is asked for, or a new one under `parent`.

    Raises:
        Mistake: if it holds something already, or cannot be made.
    """
    with _in_one_line(f"cannot write {asked or parent}"):
        if asked is None:
            return result.new_folder(parent)
        if asked.exists() and (not asked.is_dir() or any(asked.iterdir())):
            raise flags.Mistake(
                f"{asked} is not an empty folder; {flags.PROG} resume goes on with a stopped run"
            )
        asked.mkdir(parents=True, exist_ok=True)
        return asked


def carry_out(
    study: Callable[[], Any],
    start: result.Start,
    config: Any,
    out: pathlib.Path,
    *,
    resumed: bool = False,
    minutes: float | None = None,
) -> int:
    """Runs a study, completes and writes its result and report, and returns the exit status.

    Of several processes only the first writes into the folder and prints, units aside.

    Args:
        study: Imports the study and returns its module, with `run(config, out)`.
        start: What is run, as `config.json` has it.
        config: Its settings.
        out: The run folder.
        resumed: Whether the folder holds what a stopped run left.
        minutes: Time until the run is stopped, saved, to be resumed; None lets it end.

    Raises:
        Mistake: for settings or data that do not fit, before anything is written.
    """
    first = _process() == 0
    if first:
        print(out, flush=True)
    clock = time.perf_counter()
    told = f"go on with: {flags.PROG} resume {shlex.quote(str(out))}"
    try:
        with _one_writer(out):
            with _at_most(minutes), _own_folder(out) as mine:
                outcome = _run(study, config, mine)
            if not first:
                return 0
            outcome = dataclasses.replace(
                outcome,
                preset=start.preset,
                config=start.config,
                environment=result.environment(),
                seconds=time.perf_counter() - clock,
                resumed=resumed,
                command=start.command,
                finished=words.now(),
            )
            result.write(out / "result.json", outcome)
            page = _page(out)
    except (KeyboardInterrupt, SystemExit) as stop:
        if first:
            print(f"\nstopped; {told}", file=sys.stderr)
        if isinstance(stop, SystemExit):  # SIGTERM, its exit status
            raise
        return 130
    except flags.Mistake as mistake:
        if first and not resumed:
            _discard(out)
            if not out.exists():  # it has been named above
                raise flags.Mistake(f"{mistake}; {out} is removed again") from None
        raise
    except lock.LockedError as error:  # of a notebook, say, that computes units in this folder
        raise flags.Mistake(error) from None
    except OSError as error:
        if sys.flags.dev_mode or not result.is_storage(error):
            raise
        raise flags.Mistake(f"{result.reason(error)}; {told}") from None
    words.show(outcome)  # last: who reads along may have left
    print(page)
    return 0


def show(out: pathlib.Path) -> int:
    """Writes the report of a finished run, prints its path, and returns the exit status."""
    print(_page(out))
    return 0


def _page(out: pathlib.Path) -> pathlib.Path:
    found, problems = findings.load([out / "result.json"])
    if problems:
        raise flags.Mistake(problems[0])
    page = out / "report.html"
    with _in_one_line(f"cannot write {page}"):
        report.write(page, found)
    return page


def _run(study: Callable[[], Any], config: Any, out: pathlib.Path) -> result.Result:
    """Until it writes, a study only reads its settings and its data: an error is the user's then.

    Later it is ours, and deserves its traceback.
    """
    module, before = study(), _snapshot(out)
    from jaxlab.core import sharding

    try:
        with sharding.named_if_lost():
            return module.run(config, out)
    except (ValueError, OSError) as error:
        if _snapshot(out) != before or sys.flags.dev_mode:
            raise
        raise flags.Mistake(error) from None


def _snapshot(out: pathlib.Path) -> set[tuple[str, int]]:
    return {(path.name, path.lstat().st_mtime_ns) for path in out.iterdir()}


def _discard(out: pathlib.Path) -> None:
    """Takes back a folder in which nothing was written."""
    (out / "config.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for name in SHARED:
            if (out / name).exists():
                (out / name).rmdir()
        out.rmdir()


@contextlib.contextmanager
def _at_most(minutes: float | None) -> Iterator[None]:
    """Interrupts after so long, as Ctrl-C does: what is at work is finished or saved."""
    if minutes is None:
        yield
        return
    alarm = threading.Timer(60.0 * minutes, os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


@contextlib.contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Says what failed where the system does not let us write."""
    try:
        yield
    except OSError as error:
        raise flags.Mistake(f"{what}: {error.strerror}") from None


# Several processes


@contextlib.contextmanager
def _one_writer(out: pathlib.Path) -> Iterator[None]:
    """Keeps the run folder for this run; of its processes the first has the lock."""
    with contextlib.ExitStack() as stack:

        def take() -> str:
            with _in_one_line(f"cannot write {out}"):
                try:
                    stack.enter_context(lock.one_writer(out))
                except lock.LockedError as error:
                    raise flags.Mistake(error) from None
            return ""

        _agreed(take)
        yield


@contextlib.contextmanager
def _own_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """The run folder for the first process; for another one that shares its units alone.

    So whatever a study writes, figures and tables, is written by one process.
    """
    if _alone():
        yield out
        return

    def make() -> str:
        for name in SHARED:
            (out / name).mkdir(exist_ok=True)
        return ""

    _agreed(make)  # so that the folders are there for all
    if _process() == 0:
        yield out
        for name in SHARED:
            with contextlib.suppress(OSError):
                (out / name).rmdir()  # unless something is in it
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in SHARED:
            (pathlib.Path(scratch) / name).symlink_to((out / name).resolve())
        yield pathlib.Path(scratch)


def _alone() -> bool:
    """Whether there is one process, told without JAX, which takes seconds to load."""
    if "jax" not in sys.modules:
        return True
    import jax

    return not jax.distributed.is_initialized() or jax.process_count() == 1


def _process() -> int:
    if _alone():
        return 0
    import jax

    return jax.process_index()


def _agreed(decide: Callable[[], str]) -> str:
    """What the first process decides, text or `Mistake`, for all of them."""
    if _alone():
        return decide()
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    said = np.zeros(4096, np.uint8)
    if jax.process_index() == 0:
        try:
            text = json.dumps({"text": decide()})
        except flags.Mistake as mistake:
            text = json.dumps({"mistake": str(mistake)})
        coded = np.frombuffer(text.encode(), np.uint8)
        said[: coded.size] = coded
    told = json.loads(bytes(multihost_utils.broadcast_one_to_all(said)).rstrip(b"\0"))
    if "mistake" in told:
        raise flags.Mistake(told["mistake"])
    return told["text"]
