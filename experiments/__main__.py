"""The command line: `python -m experiments list | run | resume | report | bench | gpu`."""

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import pathlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

try:
    import rich  # noqa: F401  (so that a missing one is named here)
    import tyro
except ModuleNotFoundError as error:
    sys.exit(f"error: the command line needs {error.name}: pip install -e '.[experiments]'")

import experiments
from experiments.bench import suite, timing
from experiments.harness import flags, report, result, words

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
  {PROG} report --markdown                     # the table for a README
"""


@dataclasses.dataclass(frozen=True)
class Names:
    """What can be run, by name: the modules of experiments and benchmarks, the suite."""

    experiments: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: experiments.EXPERIMENTS
    )
    benches: Mapping[str, str] = dataclasses.field(default_factory=lambda: experiments.BENCHES)
    entries: Sequence[suite.Entry] = suite.SUITE


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


# The commands


@dataclasses.dataclass(frozen=True)
class ListFlags:
    """Lists the experiments and benchmarks that can be run."""


def _list(args: Sequence[str], names: Names) -> int:
    flags.parse(ListFlags, args, "list")
    print(_listing("experiments", names.experiments))
    print(f"  presets: {', '.join(PRESETS)}\n")
    print(_listing("benchmarks", names.benches))
    return 0


def _run(args: Sequence[str], names: Names) -> int:
    if not args or args[0] in ("--help", "-h"):
        if not args:
            raise flags.Mistake(f"run which experiment? There are: {', '.join(names.experiments)}")
        print(f"usage: {PROG} run NAME [--preset {'|'.join(PRESETS)}] [--out DIR] [--flags]\n")
        print("Runs an experiment in a new folder, runs/NAME/<date-time>/, and writes there")
        print("config.json, metrics.jsonl, result.json, figures, checkpoints/ and report.html.\n")
        print(_listing("experiments", names.experiments), end="\n\n")
        print("presets (the first is the default):")
        print("\n".join(f"  {name:8}{what}" for name, what in PRESETS.items()))
        print(f"\nThe flags of an experiment: {PROG} run NAME --help")
        return 0
    name, *rest = args
    if name.startswith("-"):
        raise flags.Mistake(f"the name comes first: {PROG} run NAME {shlex.join(args)}")
    module = _import(name, names.experiments, "experiment")
    chosen = _parse_run(name, module, rest)
    out = _new_folder(chosen.out, RUNS / name)
    start = result.Start(
        experiment=name,
        preset=chosen.preset,
        config=_or_mistake(result.encode, chosen.config),
        command=shlex.join([*PROG.split(), "run", name, *_deciding(rest)]),
        started=words.now(),
        versions=result.versions(),
    )
    result.write(out / "config.json", start)
    return _carry_out(module, start, chosen.config, out, resume=False, minutes=chosen.minutes)


@dataclasses.dataclass(frozen=True)
class ResumeFlags:
    """Goes on with a stopped run, from its last checkpoint and with its own settings."""

    dir: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR", help_behavior_hint="")
    ] = ""
    """The run folder, runs/NAME/<date-time>."""
    minutes: float | None = None
    """Stop after so long, saved, to be resumed."""


def _resume(args: Sequence[str], names: Names) -> int:
    given = flags.parse(ResumeFlags, args, "resume")
    if not given.dir:
        found = sorted(RUNS.glob("*/*/config.json"), key=lambda path: path.stat().st_mtime)
        hint = f"; the latest is {found[-1].parent}" if found else ""
        raise flags.Mistake(f"resume needs a run folder{hint}")
    out = pathlib.Path(given.dir)
    start = _or_mistake(result.read, out / "config.json", result.Start)
    module = _import(start.experiment, names.experiments, "experiment")
    flags.known(start.preset, module.PRESETS, "preset")
    try:
        config = result.decode(module.Config, start.config)
    except ValueError as error:
        raise flags.Mistake(f"{out / 'config.json'} does not fit this version: {error}") from None
    if (out / "result.json").exists():
        print(f"{out} is finished; nothing to resume")
        return _write_report(out)
    for package, version in result.versions().items():
        if start.versions.get(package, version) != version:
            print(
                f"note: begun with {package} {start.versions[package]}, going on with {version}",
                file=sys.stderr,
            )
    return _carry_out(module, start, config, out, resume=True, minutes=given.minutes)


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
    """Print the table for a README instead of writing the page."""


def _report(args: Sequence[str], names: Names) -> int:
    given = flags.parse(ReportFlags, args, "report")
    default = [path for path in (RUNS, RESULTS) if path.is_dir()]
    runs, problems = report.load(given.dirs or default)
    if given.dirs and problems:
        raise flags.Mistake(problems[0])
    for problem in problems:
        if "holds no result.json" not in problem:  # an empty default folder is no news
            print(f"skipped: {problem}", file=sys.stderr)
    if not runs:
        raise flags.Mistake(
            f"no results yet; make some with: {PROG} run {next(iter(names.experiments))}"
        )
    missing = []
    if not given.dirs:
        runs = report.latest(runs)
        missing = sorted(set(names.experiments) - {run.result.experiment for run in runs})
    if given.markdown:
        print(report.markdown(runs), end="")
        return 0
    try:
        report.write(given.out, runs, missing)
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
        module = _import(name, names.benches, "benchmark")
        parent = given.out if given.name or given.out is None else given.out / name
        out = _new_folder(parent, RUNS / f"bench_{name}")
        try:
            timing.run(name, module, out, command=f"{PROG} bench {name}")
        except ModuleNotFoundError as error:
            raise flags.Mistake(
                f"the rivals of {name} need the package {error.name}: pip install -e '.[test]'"
            ) from None
        print(out)
    return 0


@dataclasses.dataclass(frozen=True)
class GpuFlags:
    """Runs every check and benchmark that this accelerator has not been through yet.

    The most valuable come first; each is saved as it ends, under experiments/results/gpu/DEVICE/.
    """

    budget: float = 1800.0
    """Seconds there are; nothing starts that would not fit."""
    list: bool = False
    """Only list the suite and where each entry has been measured."""
    allow_cpu: bool = False
    """Run without an accelerator, to try the suite out; the results go under runs/gpu/."""
    out: Annotated[pathlib.Path | None, _FOLDER] = None
    """Folder to keep the results in, instead of experiments/results/gpu."""


def _gpu(args: Sequence[str], names: Names) -> int:
    given = flags.parse(GpuFlags, args, "gpu")
    root = given.out or RESULTS / "gpu"
    if given.list:
        folders = [folder for folder in sorted(root.glob("*")) if folder.is_dir()]
        known = {folder.name: suite.records(folder) for folder in folders}
        for entry in names.entries:
            states = [
                f"{device}: {found[entry.name].status}"
                for device, found in known.items()
                if entry.name in found
            ]
            where = ", ".join(states) or "not measured"
            print(f"{entry.name:32}{entry.kind:11}about {entry.estimate_s:.0f} s   {where}")
        return 0
    try:
        environment = suite.probe()
    except RuntimeError as error:
        raise flags.Mistake(error) from None
    if environment.platform == "cpu":
        if not given.allow_cpu:
            raise flags.Mistake(
                "JAX sees no accelerator here; --allow-cpu tries the suite out anyway"
            )
        root = given.out or RUNS / "gpu"
    folder = root / suite.slug(environment.device)
    print(f"{words.device(environment)}: {given.budget:.0f} s, results in {folder}")
    written = suite.run_suite(names.entries, environment, folder, budget_s=given.budget)
    return 0 if all(record.status == "ok" for record in written) else 1


# What they share


def _carry_out(
    module: Any,
    start: result.Start,
    config: Any,
    out: pathlib.Path,
    *,
    resume: bool,
    minutes: float | None = None,
) -> int:
    """Runs the experiment, completes and writes its result and report."""
    print(out, flush=True)
    before, clock = _snapshot(out), time.perf_counter()
    try:
        with _at_most(minutes):
            outcome = module.run(config, out, resume=resume)
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: {PROG} resume {shlex.quote(str(out))}", file=sys.stderr)
        return 130
    except SystemExit:  # the training loop saved and leaves on SIGTERM
        print(f"\nstopped; go on with: {PROG} resume {shlex.quote(str(out))}", file=sys.stderr)
        raise
    except (ValueError, OSError) as error:
        # Until it writes, an experiment only reads its settings and its data, so this is the
        # user's mistake; later it is ours and deserves its traceback.
        if _snapshot(out) != before or sys.flags.dev_mode:
            raise
        if not resume:
            (out / "config.json").unlink()
            out.rmdir()
        raise flags.Mistake(error) from None
    seconds = time.perf_counter() - clock
    outcome = dataclasses.replace(
        outcome,
        preset=start.preset,
        config=start.config,
        environment=result.environment(),
        seconds=seconds,
        resumed=resume,
        command=start.command,
        finished=words.now(),
    )
    result.write(out / "result.json", outcome)
    words.show(outcome)
    return _write_report(out)


@contextlib.contextmanager
def _at_most(minutes: float | None) -> Iterator[None]:
    """Interrupts after so long, as Ctrl-C does: the training loop ends its chunk and saves."""
    if minutes is None:
        yield
        return
    if minutes <= 0.0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    alarm = threading.Timer(60.0 * minutes, os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def _snapshot(folder: pathlib.Path) -> set[tuple[str, int]]:
    return {(path.name, path.stat().st_mtime_ns) for path in folder.iterdir()}


def _write_report(out: pathlib.Path) -> int:
    runs, problems = report.load([out / "result.json"])
    if problems:
        raise flags.Mistake(problems[0])
    report.write(out / "report.html", runs)
    print(out / "report.html")
    return 0


def _parse_run(name: str, module: Any, args: Sequence[str]) -> Any:
    """Parses `--preset`, `--out` and the experiment's own flags over the preset's values."""
    preset = "smoke"
    for index, arg in enumerate(args):
        if arg == "--preset" and index + 1 < len(args):
            preset = args[index + 1]
        elif arg.startswith("--preset="):
            preset = arg.removeprefix("--preset=")
    flags.known(preset, module.PRESETS, "preset")
    choice = Literal[tuple(module.PRESETS)]  # pyright: ignore[reportInvalidTypeForm]
    kind = dataclasses.make_dataclass(
        "RunFlags",
        [
            ("preset", Annotated[choice, tyro.conf.arg(help="Sets the defaults below.")], preset),
            (
                "out",
                Annotated[
                    pathlib.Path | None,
                    tyro.conf.arg(
                        help=f"Run folder, instead of {RUNS / name}/<date-time>.",
                        metavar="DIR",
                        help_behavior_hint="",
                    ),
                ],
                None,
            ),
            (
                "minutes",
                Annotated[
                    float | None, tyro.conf.arg(help="Stop after so long, saved, to be resumed.")
                ],
                None,
            ),
            ("config", Annotated[module.Config, tyro.conf.arg(name="")], module.PRESETS[preset]),
        ],
    )
    kind.__doc__ = module.SUMMARY
    return flags.parse(kind, args, f"run {name}")


def _import(name: str, modules: Mapping[str, str], what: str) -> Any:
    flags.known(name, modules, what)
    try:
        return importlib.import_module(modules[name])
    except ModuleNotFoundError as error:
        wanted = (error.name or "").partition(".")[0]
        if wanted in ("experiments", "jaxlab", "kernels"):
            raise
        raise flags.Mistake(
            f"{name} needs the package {wanted}: pip install -e '.[experiments]'"
        ) from None


def _listing(title: str, modules: Mapping[str, str]) -> str:
    width = max(map(len, modules), default=0) + 2
    return "\n".join([f"{title}:", *(f"  {n:{width}}{_summary(m)}" for n, m in modules.items())])


def _summary(module: str) -> str:
    """Reads `SUMMARY` from the source: importing it would import JAX and take a second."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return "(missing)"
    for node in ast.parse(pathlib.Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SUMMARY":
            return ast.literal_eval(node.value)
    return ""


def _deciding(args: Sequence[str]) -> list[str]:
    """The flags that decide the figures: where they are written and how long it takes do not."""
    kept = list(args)
    for flag in ("--out", "--minutes"):
        kept = [arg for arg in kept if not arg.startswith(f"{flag}=")]
        if flag in kept:
            del kept[kept.index(flag) : kept.index(flag) + 2]
    return kept


def _new_folder(asked: pathlib.Path | None, parent: pathlib.Path) -> pathlib.Path:
    if asked is None:
        return result.new_folder(parent)
    if asked.exists() and (not asked.is_dir() or any(asked.iterdir())):
        raise flags.Mistake(
            f"{asked} is not an empty folder; {PROG} resume goes on with a stopped run"
        )
    asked.mkdir(parents=True, exist_ok=True)
    return asked


def _or_mistake(fn: Any, *args: Any) -> Any:
    try:
        return fn(*args)
    except (ValueError, FileNotFoundError) as error:
        raise flags.Mistake(error) from None


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without "×" still shows the rest
    sys.exit(main())
