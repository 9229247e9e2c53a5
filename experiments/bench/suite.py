"""The accelerator suite: what is still missing for this device, the most valuable first.

`python -m experiments gpu`, or `python -m experiments.bench.suite`, from a bare checkout too: it
needs JAX, what the cells need, and this project's files. A cell is one check, or one benchmark at
one shape. Results are kept after each cell in one file, so that a crash, a hang or the end of the
budget loses nothing that was measured before.
"""

import argparse
import collections
import contextlib
import math
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from experiments.bench import ledger, timing, worker
from experiments.bench.cells import SUITE, Entry
from experiments.harness import result, words

LOG = "log.txt"
START_S = 20.0
"""Seconds until JAX has found its device."""
START_LIMIT_S = 120.0
"""Seconds that it may take."""
PATIENCE = 2.0
"""A cell may take this many times its estimate, and always `LEAST_LIMIT_S`."""
LEAST_LIMIT_S = 60.0
MOST_SAID = 100_000
"""Characters of what a cell printed that the log keeps, the last: 16 MB come home at most."""


class Device(NamedTuple):
    """How cells are run: by workers and the clock on the wall, or pretended.

    Attributes:
        start: `start(limit_s) -> worker`, whose `environment` says what it runs on.
        call: `call(worker, entry, limit_s) -> worker.Answer`.
        stop: `stop(worker)`.
        clock: Seconds.
    """

    start: Callable[[float], Any]
    call: Callable[[Any, Entry, float], worker.Answer]
    stop: Callable[[Any], None]
    clock: Callable[[], float]


def _call(at_work: worker.Worker, entry: Entry, limit_s: float) -> worker.Answer:
    if at_work.environment.platform != "cpu":
        return worker.call(at_work, entry.target, entry.args, limit_s)
    if entry.small is None:
        return worker.Answer("not here", None, "too much for a CPU", alive=True)
    return worker.call(at_work, entry.target, entry.args | entry.small, limit_s)


HERE = Device(worker.start, _call, worker.stop, time.monotonic)
"""The device of this machine."""


def pretended(seconds: Callable[[Entry], float], start_s: float = START_S) -> Device:
    """Returns a device without a device: every cell ends well and takes so long by its clock.

    A cell that would take longer than its limit is stopped there, as a real one is.
    """
    now = 0.0

    def wait(wanted: float, limit_s: float) -> bool:
        nonlocal now
        now += min(wanted, limit_s)
        return wanted <= limit_s

    class At(NamedTuple):
        environment: result.Environment = result.Environment("", "", 0, "", 0, {})

    def start(limit_s: float) -> At:
        if not wait(start_s, limit_s):
            raise RuntimeError("no device within the limit")
        return At()

    def call(_: At, entry: Entry, limit_s: float) -> worker.Answer:
        well = wait(seconds(entry), limit_s)
        output = [] if entry.kind == "benchmark" else {}
        return worker.Answer("ok" if well else "timeout", output, "", well)

    return Device(start, call, lambda _: None, lambda: now)


def run_suite(
    entries: Sequence[Entry],
    known: dict[str, ledger.Record],
    device: Device,
    at_work: Any,
    *,
    budget_s: float,
    keep: Callable[[ledger.Record], None],
    say: Callable[[str], None],
    log: Callable[[str], None] = lambda said: None,
) -> list[ledger.Record]:
    """Runs the cells that are missing, those that failed before coming last.

    A cell starts if its estimate fits what is left of the budget; one that does not is passed over
    for one that does. Estimates grow with what the cells of this call took beyond theirs. When two
    cells of a module have hung, its others come last: a kernel that never ends would take it all.

    Args:
        entries: Cells, the most valuable first.
        known: Records of this device by cell; what ended well is left out.
        device: How cells are run.
        at_work: The worker that `device.start` has returned.
        budget_s: Seconds from now.
        keep: Called with each record at once.
        say: Told about each step.
        log: Given what the worker printed.

    Returns:
        The records of this call.
    """
    deadline = device.clock() + budget_s
    missing = [entry for entry in entries if entry.name not in known]
    failed = [
        entry for entry in entries if entry.name in known and known[entry.name].status != "ok"
    ]
    say(f"{len(entries) - len(missing) - len(failed)} of {len(entries)} cells measured before")
    waiting, written = missing + failed, []
    hung: collections.Counter[str] = collections.Counter()
    taken = estimated = 0.0
    environment = at_work.environment
    try:
        while waiting:
            left = deadline - device.clock()
            pace = max(1.0, taken / estimated) if estimated else 1.0
            start_s = 0.0 if at_work else START_S
            entry = next((e for e in waiting if start_s + pace * e.estimate_s <= left), None)
            if entry is None:
                more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
                say(f"{left:.0f} s left, too little for {waiting[0].name}{more}")
                break
            waiting.remove(entry)
            say(f"{entry.name} ({entry.kind}, about {pace * entry.estimate_s:.0f} s) ...")
            begin = device.clock()
            if not at_work:
                try:
                    at_work = device.start(min(START_LIMIT_S, left))
                except RuntimeError as error:
                    say(str(error))
                    break
                left = deadline - device.clock()
                if at_work.environment.device != environment.device:
                    say(f"the device is gone: a new process sees {at_work.environment.device}")
                    break
            own_s = max(PATIENCE * pace * entry.estimate_s, LEAST_LIMIT_S)
            start = device.clock()
            answer = device.call(at_work, entry, max(0.0, min(own_s, left)))
            log(answer.said[-MOST_SAID:])
            if not answer.alive:
                device.stop(at_work)
                at_work = None
            if answer.status == "timeout" and left < own_s:
                say("  cut short by the end of the budget: it stays missing")
                break
            seconds = device.clock() - start
            if answer.status == "ok":
                taken, estimated = taken + seconds, estimated + entry.estimate_s
            elif answer.status == "timeout":
                hung[_module(entry)] += 1
                waiting.sort(key=lambda e: hung[_module(e)] > 1)
            record = _record(entry, answer, seconds, environment)
            keep(record)
            written.append(record)
            told = f"  {record.status}, {device.clock() - begin:.1f} s"
            say(f"{told}  {ledger.last_line(record.error)}".rstrip())
    finally:
        if at_work:
            device.stop(at_work)
    return written


def _module(entry: Entry) -> str:
    return entry.target.partition(":")[0]


def _record(
    entry: Entry, answer: worker.Answer, seconds: float, environment: result.Environment
) -> ledger.Record:
    status, error = answer.status, "" if answer.status == "ok" else answer.said[-4000:]
    fields: dict[str, Any] = {}
    if status == "ok":
        try:
            if entry.kind == "benchmark":
                kind = tuple[timing.Measurement, ...]
                fields["measurements"] = result.decode(kind, answer.output, "measurements")
            else:
                fields["details"] = result.decode(dict[str, Any], answer.output or {}, "details")
        except ValueError as mistake:
            status, error = "failed", f"{entry.target} returned the wrong thing: {mistake}"
    return ledger.Record(
        entry.name, entry.kind, status, seconds, environment, words.now(), error=error, **fields
    )


# The command


def main(
    args: Sequence[str] | None = None,
    entries: Sequence[Entry] = SUITE,
    *,
    root: pathlib.Path = ledger.ROOT,
    runs: pathlib.Path = pathlib.Path("runs/gpu"),
    prog: str = "python -m experiments.bench.suite",
) -> int:
    """Runs the command `gpu` and returns the exit status.

    It is 1 if a cell failed, or none that was tried can run here, and 2 for a mistake.

    Args:
        args: What was typed after the command; `sys.argv` by default.
        entries: The suite.
        root: Where the results of devices are kept.
        runs: Where this call keeps its own without `--out`.
        prog: What was typed.
    """
    parser = _parser(prog)
    given = parser.parse_args(args)
    try:
        entries = ledger.learned(entries, root)
        if given.merge is not None:
            for folder, count in ledger.merge(given.merge, root):
                print(f"{folder}: {count} new")
            return 0
        if given.list:
            return _list(entries, root)
        if given.dry_run:
            return _dry_run(entries, given.budget)
        return _run(entries, given, root, runs)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        said = result.reason(error) if isinstance(error, OSError) else str(error)
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        return 2


def _run(
    entries: Sequence[Entry], given: argparse.Namespace, root: pathlib.Path, runs: pathlib.Path
) -> int:
    begin = time.monotonic()
    at_work = HERE.start(min(START_LIMIT_S, given.budget))
    environment = at_work.environment
    if environment.platform == "cpu" and not given.allow_cpu:
        HERE.stop(at_work)
        raise RuntimeError("JAX sees no accelerator here; --allow-cpu tries the suite out anyway")
    device = ledger.slug(environment.device)
    out = given.out or runs / device
    # A CPU's figures do not go among the accelerators'; what --out keeps is brought home first.
    merging = given.out is None and environment.platform != "cpu"
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = ledger.records(out)
        for record in found.values():
            if (other := record.environment.device) != environment.device:
                raise ValueError(
                    f"{out} holds results of {other}, this is {environment.device}: take another "
                    "folder"
                )
    except (OSError, ValueError):
        HERE.stop(at_work)
        raise

    def keep(record: ledger.Record) -> None:
        found[record.name] = record
        ledger.write(out, found)
        if merging:
            ledger.merge(out, root)

    with _ended_by_sigterm(), _logged(out / LOG) as (say, log):
        say(f"{words.device(environment)}: {given.budget:.0f} s, results in {out / ledger.RESULTS}")
        written = run_suite(
            entries,
            ledger.newest(ledger.readable(root / device), found),
            HERE,
            at_work,
            budget_s=given.budget - (time.monotonic() - begin),
            keep=keep,
            say=say,
            log=log,
        )
        if given.out is not None and written and environment.platform != "cpu":
            say(f"python -m experiments gpu --merge {out} adds them to the committed results")
        if written and all(record.status == "not here" for record in written):
            say(f"nothing can run here: {ledger.last_line(written[0].error)}")
            return 1
    return 0 if all(record.status in ("ok", "not here") for record in written) else 1


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the worker too, which would go on with its cell."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _logged(path: pathlib.Path) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Yields `say`, which prints and logs a line, and `log`, which only logs."""
    with path.open("a", encoding="utf-8") as file:

        def log(said: str) -> None:
            if said:
                print(said, file=file, flush=True)

        def say(line: str) -> None:
            print(line, flush=True)
            log(f"{words.now()}  {line}")

        yield say, log


def _list(entries: Sequence[Entry], root: pathlib.Path) -> int:
    known = {folder.name: ledger.readable(folder) for folder in sorted(root.glob("*"))}
    width = max(len(entry.name) for entry in entries) + 2
    for entry in entries:
        states = [
            f"{device}: {found[entry.name].status}"
            for device, found in known.items()
            if entry.name in found
        ]
        where = ", ".join(states) or "not measured"
        print(f"{entry.name:{width}}{entry.kind:11}about {entry.estimate_s:.0f} s   {where}")
    return 0


def _dry_run(entries: Sequence[Entry], budget_s: float) -> int:
    device = pretended(lambda entry: entry.estimate_s)
    written = run_suite(
        entries,
        {},
        device,
        device.start(START_LIMIT_S),
        budget_s=budget_s - device.clock(),
        keep=lambda record: None,
        say=lambda line: print(f"{device.clock():5.0f} s  {line}"),
    )
    print(f"{len(written)} of {len(entries)} cells in {device.clock():.0f} s, by the estimates")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        description="Runs every check and benchmark that this accelerator has not been through "
        "yet, the most valuable first, each kept as it ends.",
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        default=540.0,
        metavar="S",
        help="seconds that there are, the start included (default: 540)",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help=f"folder for {ledger.RESULTS} and {LOG} to bring home; without it they go to "
        "runs/gpu/DEVICE and the results at once into experiments/results/gpu/DEVICE",
    )
    parser.add_argument(
        "--merge",
        type=pathlib.Path,
        metavar="DIR",
        help="add the results that such a folder holds to experiments/results/gpu/DEVICE",
    )
    parser.add_argument(
        "--list", action="store_true", help="list the suite and where each cell has been measured"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would run in the budget, by the estimates, without any device",
    )
    parser.add_argument(
        "--allow-cpu",
        action="store_true",
        help="run without an accelerator, small shapes in place of the real ones, to try it out",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"could not convert {text!r} to a number of seconds"
        ) from None
    if not 0.0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"seconds must be positive, got {text}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
