"""The command line on a toy experiment: run, stop, resume, report; mistakes in one line."""

import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import experiments
import jaxlab
from experiments import __main__ as command_line
from experiments.bench import suite, timing
from experiments.harness import names, result

HERE = pathlib.Path(__file__).parent
NAMES = names.Names(
    experiments={"toy": "toy_study"},
    benches={"sums": "toy_targets"},
    entries=(suite.Entry("first", "check", "toy_targets:check", 60.0),),
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(command_line, "RESULTS", tmp_path / "results")


@pytest.fixture
def call(capsys):
    """Runs one command; returns its status, what it printed, and its complaints."""

    def run(*args):
        try:
            status = command_line.main(list(map(str, args)), NAMES)
        except SystemExit as stop:  # --help
            status = stop.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_run_leaves_a_complete_folder(call, tmp_path):
    status, out, err = call("run", "toy", "--preset", "smoke")
    assert status == 0
    assert [line.split()[1] for line in err.splitlines()] == "0/3 1/3 1/3 2/3 2/3 3/3".split()
    lines = out.strip().splitlines()
    folder, page = pathlib.Path(lines[0]), pathlib.Path(lines[-1])
    assert folder.parent == pathlib.Path("runs/toy") and page == folder / "report.html"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "result.json", "report.html", "units"}
    kept = result.read(folder / "result.json", result.Result)
    assert kept.rows[0].value == 1.5
    assert kept.preset == "smoke"
    assert kept.config["inner"] == {"rate": 0.5}
    assert kept.command == "python -m experiments run toy --preset smoke"
    assert kept.environment == result.environment()
    assert kept.seconds > 0 and not kept.resumed
    assert not jax.distributed.is_initialized()  # alone, without settings
    assert "A toy" in page.read_text() and "1.5" in page.read_text()


def test_flags_override_the_preset(call, tmp_path):
    status, _out, _ = call(
        "run",
        "toy",
        "--preset=cpu",
        "--inner.rate",
        "2",
        "--sites",
        "7",
        "8",
        "9",
        "--rule",
        "max",
        "--out",
        "here",
    )
    assert status == 0
    kept = result.read(tmp_path / "here" / "config.json", result.Start)
    assert kept.config["num_steps"] == 30  # of the preset
    assert kept.config["inner"]["rate"] == 2.0
    assert kept.config["sites"] == [7, 8, 9]
    assert kept.config["rule"] == "max"
    assert "here" not in kept.command  # where it was written does not decide a figure
    assert result.read(tmp_path / "here" / "result.json", result.Result).rows[0].value == 60.0


def test_interrupted_then_resumed_is_as_if_never_interrupted(call, tmp_path):
    assert call("run", "toy", "--preset", "cpu", "--inner.rate", "3", "--out", "whole")[0] == 0
    status, _, err = call(
        "run",
        "toy",
        "--preset",
        "cpu",
        "--inner.rate",
        "3",
        "--interrupt-at",
        "11",
        "--out",
        "halved",
    )
    assert status == 130
    assert "python -m experiments resume halved" in err
    assert not (tmp_path / "halved" / "result.json").exists()
    status, out, _ = call("resume", "halved")
    assert status == 0
    assert out.strip().splitlines()[-1] == "halved/report.html"
    whole, halved = (
        result.read(tmp_path / name / "result.json", result.Result) for name in ("whole", "halved")
    )
    assert halved.rows == whole.rows
    assert halved.resumed and not whole.resumed
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "halved" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 31))
    # A finished run is not run again.
    before = (tmp_path / "halved" / "metrics.jsonl").read_text()
    status, out, _ = call("resume", "halved")
    assert status == 0 and "nothing to resume" in out
    assert (tmp_path / "halved" / "metrics.jsonl").read_text() == before


def test_a_run_stops_in_time_and_goes_on(call, tmp_path):
    # The third step lasts until the time is up. On a machine so slow that it is up before the third
    # step begins, the run ends after what it was at then: at most three steps are done either way.
    flags = ("--preset", "cpu", "--wait-at", "2", "--minutes", "0.005", "--out", "piece")
    status, _, err = call("run", "toy", *flags)
    assert status == 130 and "resume piece" in err
    assert len(list((tmp_path / "piece").glob("units/*.npz"))) <= 3
    assert "minutes" not in result.read(tmp_path / "piece" / "config.json", result.Start).command
    config = json.loads((tmp_path / "piece" / "config.json").read_text())
    config["config"]["wait_at"] = None
    (tmp_path / "piece" / "config.json").write_text(json.dumps(config))
    assert call("resume", "piece", "--minutes", "9")[0] == 0
    kept = result.read(tmp_path / "piece" / "result.json", result.Result)
    assert kept.rows[0].value == 15.0


def test_resume_tells_of_other_versions(call, tmp_path):
    call("run", "toy", "--interrupt-at", "1", "--out", "old")
    path = tmp_path / "old" / "config.json"
    start = json.loads(path.read_text())
    start["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(start))
    status, _, err = call("resume", "old")
    assert status == 0 and f"begun with jax 0.0.1, going on with {jax.__version__}" in err


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["rnu"], ["unknown command rnu", "did you mean run?"]),
        (["run"], ["toy"]),
        (["run", "--preset", "cpu", "toy"], ["the name comes first"]),
        (["run", "tpy"], ["unknown experiment tpy", "did you mean toy?"]),
        (["run", "zzz"], ["unknown experiment zzz", "there is: toy"]),
        (["run", "toy", "--preset", "cpy"], ["unknown preset cpy", "cpu?", "smoke, cpu, gpu"]),
        (["run", "toy", "--num-step", "3"], ["unknown flag --num-step", "--num-steps?"]),
        (["run", "toy", "--inner.rat=3"], ["unknown flag --inner.rat", "--inner.rate?"]),
        (["run", "toy", "extra"], ["'extra'", "one argument too many"]),
        (["run", "toy", "--num-steps", "many"], ["--num-steps", "'many'"]),
        (["run", "toy", "--num-steps"], ["--num-steps"]),
        (["run", "toy", "--rule", "min"], ["'min'", "--rule", "mean", "max"]),
        (["run", "toy", "--num-steps", "-1"], ["must not be negative, got -1"]),
        (["run", "toy", "--num-steps", "2000"], ["num_steps is beyond what a toy"]),
        (["run", "toy", "--data", "gone.csv"], ["gone.csv", "; runs/toy/", " is removed again"]),
        (["run", "toy", "--minutes", "1e30"], ["minutes must be at most"]),
        (["run", "toy", "--minutes", "0"], ["minutes must be positive, got 0"]),
        (["run", "toy", "--minutes", "nan"], ["minutes must be positive, got nan"]),
        (["run", "toy", "--minutes", "-inf"], ["minutes must be positive, got -inf"]),
        (["run", "toy", "--lost-after", "nan"], ["lost_after must be positive, got nan"]),
        (
            ["run", "toy", "--out", "full/notes.txt/x"],
            ["cannot write full/notes.txt/x", "directory"],
        ),
        (["bench", "sums", "--out", "full/notes.txt/x"], ["cannot write full/notes.txt/x"]),
        (["report", "finished", "--out", "full/notes.txt/x"], ["cannot write full/notes.txt/x"]),
        (["resume", "finished", "--minutes", "nan"], ["minutes must be positive, got nan"]),
        (["run", "toy", "--out", "full"], ["full is not an empty folder"]),
        (["resume"], ["resume needs a run folder"]),
        (["resume", "nowhere"], ["nowhere has no config.json"]),
        (["resume", "broken"], ["broken/config.json", "not readable JSON"]),
        (["resume", "stranger"], ["unknown experiment stranger", "there is: toy"]),
        (["resume", "retired"], ["unknown preset huge", "smoke, cpu, gpu"]),
        (["resume", "old"], ["old was begun by jaxlab 0.4.0", "start a new run"]),
        (["resume", "refused"], ["refused cannot go on: num_steps must not be negative, got -1"]),
        (["resume", "outdated"], ["does not fit this version", "momentum"]),
        (["report"], ["no results yet", "python -m experiments run toy"]),
        (["report", "full"], ["full holds no result.json"]),
        (["report", "--markdow"], ["unknown flag --markdow", "--markdown?"]),
        (["bench", "sum"], ["unknown benchmark sum", "did you mean sums?"]),
        (["gpu", "--budget", "long"], ["could not convert", "--budget", "'long'"]),
        (["gpu", "--budget", "9"], ["no accelerator", "--allow-cpu"]),
        (["list", "all"], ["'all'", "one argument too many"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(call, tmp_path, args, expected):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for folder, changed in {
        "stranger": result.Start("stranger", "smoke", {}, "", "", {}, layout=result.LAYOUT),
        "retired": result.Start("toy", "huge", {}, "", "", {}, layout=result.LAYOUT),
        "outdated": result.Start("toy", "smoke", {"momentum": 1}, "", "", {}, layout=result.LAYOUT),
        "refused": result.Start("toy", "smoke", {"num_steps": -1}, "", "", {}, layout=1),
        "old": result.Start("toy", "smoke", {}, "", "", {"jaxlab": "0.4.0"}),
    }.items():
        result.write(tmp_path / folder / "config.json", changed)
    result.write(tmp_path / "finished" / "result.json", result.Result("toy"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    before = sorted(path for path in tmp_path.rglob("*") if path.name != "runs")
    status, _out, err = call(*args)
    assert status == 2
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    for words in expected:
        assert words in err
    kept = [p for p in tmp_path.rglob("*") if p.relative_to(tmp_path).parts[0] != "runs"]
    assert sorted(kept) == before
    assert not list(tmp_path.glob("runs/*/*"))


COMMAND = (
    f"import sys; sys.path.insert(0, {str(HERE)!r}); "
    "from experiments import __main__ as m; from experiments.harness import names; "
    "m.Names = lambda: names.Names(experiments={'toy': 'toy_study'}); sys.exit(m._program())"
)


def program(*args, code=COMMAND, **options):
    """Starts the command line as a program of its own, as a shell does."""
    root = pathlib.Path(experiments.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("args", [["list"], ["run", "toy", "--help"], ["run"], ["report"]])
def test_a_reader_that_leaves_is_no_error(tmp_path, args):
    """As in `python -m experiments list | head -1`."""
    read, write = os.pipe()
    os.close(read)
    process = program(*args, stdout=write)
    os.close(write)
    said = process.communicate(timeout=60)[1]
    assert "Error" not in said and "Traceback" not in said and len(said.splitlines()) <= 1


def test_an_output_without_room_is_one_line():
    with open("/dev/full", "w") as full:
        process = program("list", stdout=full)
        said = process.communicate(timeout=60)[1]
    assert said.startswith("error: cannot write") and said.endswith(": No space left on device\n")
    assert len(said.splitlines()) == 1
    assert process.returncode == 2


def test_a_limit_on_files_is_one_line_and_the_run_goes_on(call, tmp_path):
    """A full disk is the same kind of error. It ends the run, for no other unit could be kept."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))  # metrics.jsonl will be longer
    try:
        status, _, err = call("run", "toy", "--preset", "cpu", "--out", "here")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    *progress, told = err.splitlines()
    assert status == 2 and progress[-1].endswith(" ...") and "error" not in "".join(progress)
    assert told == (
        "error: cannot write: File too large; go on with: python -m experiments resume here"
    )
    assert 0 < len(list((tmp_path / "here" / "units").iterdir())) < 30
    assert call("resume", "here")[0] == 0
    assert result.read(tmp_path / "here/result.json", result.Result).rows[0].value == 15.0


def test_a_run_has_its_folder_alone(call, tmp_path):
    """A second process is refused with the first one's number; a killed one holds nothing."""
    flags = ("--preset", "cpu", "--wait-at", "2", "--out", tmp_path / "run")
    process = program("run", "toy", *flags, stdout=subprocess.DEVNULL)
    for line in process.stderr:
        if "step/2 ..." in line:
            break
    status, _, err = call("resume", "run")
    assert status == 2 and f"process {process.pid} on" in err and len(err.splitlines()) == 1
    status, _, err = call("run", "toy", "--out", "run")
    assert status == 2 and "not an empty folder" in err
    process.kill()
    process.communicate()
    config = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(config.replace('"wait_at": 2', '"wait_at": null'))
    assert call("resume", "run")[0] == 0
    assert not list((tmp_path / "run").glob(".*lock"))


def test_a_bug_keeps_its_traceback_and_its_folder(call, tmp_path):
    with pytest.raises(ValueError, match="a bug"):
        call("run", "toy", "--fail-at", "2", "--out", "failed")
    assert (tmp_path / "failed" / "metrics.jsonl").read_text().count("\n") == 2


def test_help_at_every_level(call):
    status, out, err = call("--help")
    assert (status, err) == (0, "") and call()[1] == out
    for command in ("list", "run", "resume", "report", "bench", "gpu"):
        assert command in out
        assert call(command, "--help")[0] == 0
    told = call("run", "--help")[1]
    assert "Adds up a number, for the tests" in told
    assert all(preset in told for preset in ("smoke", "cpu", "gpu"))
    told = " ".join(call("run", "toy", "--preset", "cpu", "--help")[1].replace("│", " ").split())
    assert "Adds up a number, for the tests" in told
    assert "--num-steps INT Number of steps. (default: 30)" in told  # the preset's own value
    assert "--inner.rate FLOAT What each step adds. (default: 0.5)" in told
    assert "(default: cpu)" in told


def test_list_imports_no_experiment_and_no_jax():
    code = (
        "import sys; from experiments.__main__ import main; "
        f"sys.path.insert(0, {str(HERE)!r}); "
        "from experiments.__main__ import Names; "
        "main(['list'], Names(experiments={'toy': 'toy_study'})); main(['run', '--help']); "
        "print(sorted({'jax', 'toy_study', 'matplotlib'} & set(sys.modules)))"
    )
    root = pathlib.Path(experiments.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert "toy  Adds up a number, for the tests" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_run_says_which_code_it_was_made_by(call, tmp_path, monkeypatch):
    monkeypatch.setattr(result, "commit", lambda: "0123456789" * 4 + "-dirty")
    assert call("run", "toy", "--out", "here")[0] == 0
    start = result.read(tmp_path / "here" / "config.json", result.Start)
    kept = result.read(tmp_path / "here" / "result.json", result.Result)
    assert start.commit == kept.environment.commit == "0123456789" * 4 + "-dirty"
    assert kept.environment.versions["jaxlab"] == jaxlab.__version__
    assert "commit 0123456789 with changes" in (tmp_path / "here" / "report.html").read_text()


def test_report_gathers_the_newest_runs_and_what_is_missing(call, tmp_path):
    for folder, rate in (("a", "1"), ("b", "2"), ("c", "2")):
        call("run", "toy", "--inner.rate", rate, "--out", f"runs/toy/{folder}")
    status, out, err = call("report")
    assert (status, out, err) == (0, "report.html\n", "")
    page = (tmp_path / "report.html").read_text()
    # One entry for each set of flags, the newest run of each.
    assert page.count("<strong>6</strong>") == page.count("<strong>3</strong>") == 1
    # Folders that are named are all shown.
    assert call("report", "runs/toy/b", "runs/toy/c", "--out", "deep/both.html")[0] == 0
    page = (tmp_path / "deep" / "both.html").read_text()
    assert page.count("<strong>6</strong>") == 2
    # A broken curated result is told about and does not stop the rest.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "result.json").write_text("{")
    status, out, err = call("report", "--markdown")
    assert status == 0 and err.startswith("skipped: ") and len(err.splitlines()) == 1
    assert "| Adding works | Total | 6 | 0 (zero) | 1.5 | ● reproduced |" in out


def test_report_names_what_was_never_run(call, tmp_path):
    result.write(tmp_path / "results" / "result.json", result.Result("elsewhere"))
    assert call("report")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "Not measured yet" in page and "python -m experiments run toy --preset cpu" in page


def test_bench_prints_and_keeps_its_table(call, tmp_path):
    status, out, _ = call("bench", "sums")
    assert status == 0
    folder = pathlib.Path(out.strip().splitlines()[-1])
    assert folder.parent == pathlib.Path("runs/bench_sums")
    assert (folder / "trace.txt").read_text() == "kept"
    raw = json.loads((folder / "measurements.json").read_text())
    assert raw[0]["ours"] == {"compile_s": 0.5, "median_s": 1e-3, "iqr_s": 1e-5, "n": 10}
    kept = result.read(folder / "result.json", result.Result)
    assert kept.kind == "benchmark" and kept.environment == result.environment()
    told = " ".join(out.split())
    assert jax.__version__ in told and "1 ms" in told and "500 ms" in told


def test_measure_separates_compile_time_from_run_time(monkeypatch):
    now = [0.0]
    naps = iter([0.25, 7.0] + [0.01, 0.02, 0.03] * 3)  # the first call, the warm-up, nine timed

    def work():
        now[0] += next(naps)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    timed = timing.measure(work, repeats=9)
    assert next(naps, None) is None
    assert timed == timing.Timing(
        pytest.approx(0.23), pytest.approx(0.02), pytest.approx(0.02), n=9
    )
    with pytest.raises(ValueError, match="at least 2"):
        timing.measure(work, repeats=1)


def test_measure_compiles_a_jitted_function_afresh():
    traces = []

    @jax.jit
    def double(x):
        traces.append(1)
        return 2 * x

    double(jnp.ones(3))
    timed = timing.measure(double, jnp.ones(3), repeats=5)
    assert len(traces) == 2
    assert timed.compile_s > timed.median_s > 0


def test_measurement_ratio_and_rate():
    ours, rival = timing.Timing(0, 0.5, 0, 10), timing.Timing(0, 2.0, 0, 10)
    item = timing.Measurement("a", "b", ours, "slow one", rival, 100.0, "B", 400.0)
    assert item.ratio == 4.0 and item.rate == 200.0
    row = timing.as_table([item, timing.Measurement("c", "d", ours)]).rows
    assert row[0][-3:] == ("4 ×", "200 B/s", "50%") and "slow one" in row[0][4]
    assert row[1][-4:] == ("–", "–", "–", "–")


def test_every_listed_name_keeps_the_protocol():
    """What the package lists can be found, and says in one line what it is."""
    for modules in (experiments.EXPERIMENTS, experiments.BENCHES):
        for module in modules.values():
            summary = names.summary(module)
            assert summary and summary != "(missing)" and "\n" not in summary, module
    for package in experiments.EXPERIMENTS.values():
        assert importlib.util.find_spec(f"{package}.study") is not None
