"""The command line: `python -m experiments list | run | resume | report | bench | gpu`."""

import dataclasses
import functools
import io
import os
import pathlib
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

try:
    from experiments.bench import suite

    if __name__ == "__main__" and sys.argv[1:2] == ["gpu"]:  # a bare image has no tyro
        sys.exit(suite.main(sys.argv[2:], prog="python -m experiments gpu"))
    import rich  # noqa: F401  (so that a missing one is named here)
    import tyro
except ModuleNotFoundError as error:
    sys.exit(f"error: the command line needs {error.name}: pip install -e '.[experiments]'")

from experiments.bench import timing
from experiments.harness import findings, flags, markdown, report, result, runs, words
from experiments.harness.names import Names, find, listing, load

PROG = flags.PROG
RUNS = pathlib.Path("runs")
RESULTS = pathlib.Path(__file__).parent / "results"
PRESETS = {
    "smoke": "under a minute on a laptop: does it all work?",
    "cpu": "minutes to hours on a laptop: real figures",
    "gpu": "one accelerator; --minutes 9 stops it in time, resume goes on",
}
_FOLDER = tyro.conf.arg(metavar="DIR", help_behavior_hint="")
OVERVIEW = f"""\
usage: {PROG} COMMAND [...]

Runs the experiments, keeps what they measured, and puts it on one page.

  list             the experiments and benchmarks there are
  run NAME         run an experiment; its report is written and its path printed last
  resume DIR       go on with a run that was stopped
  report [DIR ...] one page, report.html, from all results or from the folders given
  bench [NAME]     time our code against its rivals (all benchmarks without NAME)
  gpu --budget S   run what has not been checked and timed on this accelerator yet

Every command explains itself: {PROG} run --help
The traceback behind a one-line error of an experiment: python -X dev -m experiments run ...

examples:
  {PROG} run icu_occupancy                     # the smoke preset
  {PROG} run icu_occupancy --preset cpu --help # its flags and their defaults
  {PROG} report --overview                     # three figures of each system, for a README
"""


def main(argv: Sequence[str] | None = None, names: Names | None = None) -> int:
    """Runs one command and returns the exit status.

    Args:
        argv: Arguments after the program's name; `sys.argv` by default.
        names: What there is to run; the lists of the package by default.
    """
    command, *args = (sys.argv[1:] if argv is None else argv) or ["--help"]
    commands = {
        "list": _list,
        "run": _run,
        "resume": _resume,
        "report": _report,
        "bench": _bench,
        "gpu": _gpu,
    }
    try:
        if command in ("--help", "-h", "help"):
            print(OVERVIEW, end="")
            return 0
        flags.known(command, commands, "command")
        return commands[command](args, names or Names())
    except flags.Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except OSError as error:
        if sys.flags.dev_mode or not result.is_storage(error):
            raise
        print(f"error: {result.reason(error)}", file=sys.stderr)
        return 2


# The commands


@dataclasses.dataclass(frozen=True)
class ListFlags:
    """Lists the experiments and benchmarks that can be run."""


def _list(args: Sequence[str], names: Names) -> int:
    flags.parse(ListFlags, args, "list")
    print(listing("experiments", names.experiments))
    print(f"  presets: {', '.join(PRESETS)}\n")
    print(listing("benchmarks", names.benches))
    return 0


def _run(args: Sequence[str], names: Names) -> int:
    if not args or args[0] in ("--help", "-h"):
        if not args:
            raise flags.Mistake(f"run which experiment? There are: {', '.join(names.experiments)}")
        print(f"usage: {PROG} run NAME [--preset {'|'.join(PRESETS)}] [--out DIR] [--flags]\n")
        print("Runs an experiment in a new folder, runs/NAME/<date-time>/, and writes there")
        print("config.json, metrics.jsonl, result.json, figures, units/ and report.html.\n")
        print(listing("experiments", names.experiments), end="\n\n")
        print("presets (the first is the default):")
        print("\n".join(f"  {name:8}{what}" for name, what in PRESETS.items()))
        print(f"\nThe flags of an experiment: {PROG} run NAME --help")
        return 0
    name, *rest = args
    if name.startswith("-"):
        raise flags.Mistake(f"the name comes first: {PROG} run NAME {shlex.join(args)}")
    package = find(name, names.experiments, "experiment")
    chosen = flags.parse_run(name, package, rest, RUNS / name)
    flags.positive("minutes", chosen.minutes)
    start = result.Start(
        experiment=name,
        preset=chosen.preset,
        config=_or_mistake(result.encode, chosen.config),
        command=shlex.join([*PROG.split(), "run", name, *flags.deciding(rest)]),
        started=words.now(),
        versions=result.versions(),
        commit=result.commit(),
        layout=result.LAYOUT,
    )
    runs.join(chosen.lost_after)
    out = runs.begin(start, chosen.out, RUNS / name)
    study = _study(name, names)
    return runs.carry_out(study, start, chosen.config, out, minutes=chosen.minutes)


@dataclasses.dataclass(frozen=True)
class ResumeFlags:
    """Goes on with a stopped run, from what it kept and with its own settings."""

    dir: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR", help_behavior_hint="")
    ] = ""
    """The run folder, runs/NAME/<date-time>."""
    minutes: float | None = None
    """Stop after so long, saved, to be resumed."""
    lost_after: Annotated[float, tyro.conf.arg(help=flags.LOST_AFTER)] = 15.0


def _resume(args: Sequence[str], names: Names) -> int:
    given = flags.parse(ResumeFlags, args, "resume")
    flags.positive("minutes", given.minutes)
    if not given.dir:
        found = sorted(RUNS.glob("*/*/config.json"), key=lambda path: path.stat().st_mtime)
        hint = f"; the latest is {found[-1].parent}" if found else ""
        raise flags.Mistake(f"resume needs a run folder{hint}")
    out = pathlib.Path(given.dir)
    start = _or_mistake(result.read, out / "config.json", result.Start)
    package = find(start.experiment, names.experiments, "experiment")
    if (out / "result.json").exists():
        print(f"{out} is finished; nothing to resume")
        return runs.show(out)
    if start.layout != result.LAYOUT:
        by = start.versions.get("jaxlab", "of an unknown version")
        raise flags.Mistake(f"{out} was begun by jaxlab {by}; start a new run")
    flags.known(start.preset, package.PRESETS, "preset")
    try:
        config = result.decode(package.Config, start.config)
    except result.Misfit as error:
        raise flags.Mistake(f"{out / 'config.json'} does not fit this version: {error}") from None
    except ValueError as error:  # what it needs has changed: data that are gone
        raise flags.Mistake(f"{out} cannot go on: {error}") from None
    now = result.versions() | {"commit": result.commit()}
    for what, then in (start.versions | {"commit": start.commit}).items():
        if now.get(what, then) != then:
            print(f"note: begun with {what} {then}, going on with {now[what]}", file=sys.stderr)
    runs.join(given.lost_after)
    study = _study(start.experiment, names)
    return runs.carry_out(study, start, config, out, resumed=True, minutes=given.minutes)


def _study(name: str, names: Names) -> Callable[[], Any]:
    """What imports the study of an experiment, when the run's folder has been named."""
    return functools.partial(load, name, f"{names.experiments[name]}.study")


@dataclasses.dataclass(frozen=True)
class ReportFlags:
    """Builds one self-contained page from result folders.

    Without folders: the newest run of every experiment, preset and device under runs/ and
    experiments/results/.
    """

    dirs: Annotated[
        tyro.conf.Positional[tuple[pathlib.Path, ...]],
        tyro.conf.arg(metavar="[DIR ...]", help_behavior_hint=""),
    ] = ()
    """Run folders, or folders of them; all that they hold is shown."""
    out: pathlib.Path = pathlib.Path("report.html")
    """File to write."""
    markdown: bool = False
    """Print all figures as a Markdown table instead of writing the page."""
    overview: bool = False
    """Print its first screen as a Markdown table: three figures of each system, for a README."""


def _report(args: Sequence[str], names: Names) -> int:
    given = flags.parse(ReportFlags, args, "report")
    default = [path for path in (RUNS, RESULTS) if path.is_dir()]
    found, problems = findings.load(given.dirs or default)
    if given.dirs and problems:
        raise flags.Mistake(problems[0])
    for problem in problems:
        if "holds no result.json" not in problem:  # an empty default folder is no news
            print(f"skipped: {problem}", file=sys.stderr)
    if not found:
        raise flags.Mistake(
            f"no results yet; make some with: {PROG} run {next(iter(names.experiments))}"
        )
    missing = []
    if not given.dirs:
        found = findings.latest(found)
        missing = sorted(set(names.experiments) - {run.result.experiment for run in found})
    if given.markdown or given.overview:
        said = markdown.claims(found) if given.markdown else markdown.overview(found, names.systems)
        print(said, end="")
        return 0
    try:
        report.write(given.out, found, missing, names.systems)
    except OSError as error:
        raise flags.Mistake(f"cannot write {given.out}: {error.strerror}") from None
    print(given.out)
    return 0


@dataclasses.dataclass(frozen=True)
class BenchFlags:
    """Times our code against its rivals, compile time apart, and keeps the table."""

    name: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")
    ] = ""
    """The benchmark; all of them without it."""
    out: Annotated[pathlib.Path | None, _FOLDER] = None
    """Folder to write to, instead of runs/bench_NAME/<date-time>."""


def _bench(args: Sequence[str], names: Names) -> int:
    given = flags.parse(BenchFlags, args, "bench")
    for name in [given.name] if given.name else names.benches:
        module = find(name, names.benches, "benchmark")
        parent = given.out if given.name or given.out is None else given.out / name
        out = runs.folder(parent, RUNS / f"bench_{name}")
        try:
            timing.run(name, module, out, command=f"{PROG} bench {name}")
        except ModuleNotFoundError as error:
            raise flags.Mistake(
                f"the rivals of {name} need the package {error.name}: pip install -e '.[test]'"
            ) from None
        print(out)
    return 0


def _gpu(args: Sequence[str], names: Names) -> int:
    return suite.main(
        args, names.entries, root=RESULTS / "gpu", runs=RUNS / "gpu", prog=f"{PROG} gpu"
    )


def _or_mistake(fn: Any, *args: Any) -> Any:
    try:
        return fn(*args)
    except (ValueError, FileNotFoundError) as error:
        raise flags.Mistake(error) from None


def _program() -> int | str | None:
    """Runs `main` for a terminal, a file or a pipe, and returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without "×" still shows the rest
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    sys.unraisablehook = _tell_unraisable
    try:
        try:
            status = main()
        except SystemExit as stop:  # --help, or SIGTERM
            status = stop.code
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        status = 128 + signal.SIGPIPE
    except OSError as error:
        if not result.is_storage(error):
            raise
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        status = 2
    else:
        return status
    # What is left in the buffers has nowhere to go.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return status


def _tell_unraisable(what: Any) -> None:
    """Tells what threads raise, but for writes of a checkpoint that end after one has failed."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


if __name__ == "__main__":
    sys.exit(_program())
