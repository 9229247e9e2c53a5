"""The accelerator suite: a crash, a hang or the end of the budget loses nothing."""

import dataclasses
import json
import os
import pathlib
import time

import pytest

from experiments import __main__ as command_line
from experiments.bench import suite
from experiments.harness import report, result

HERE = pathlib.Path(__file__).parents[1]
ENVIRONMENT = result.Environment("NVIDIA H100 80GB HBM3", "gpu", 1, "Some CPU", 8, {"jax": "0.1"})


def entry(function, estimate_s=5.0, kind="check"):
    return suite.Entry(function, kind, f"toy_targets:{function}", estimate_s)


@pytest.fixture(autouse=True)
def toys_in_children(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("TOY_PID_FILE", str(tmp_path / "pid"))


def run(entries, folder, budget_s=300.0):
    said = []
    return suite.run_suite(entries, ENVIRONMENT, folder, budget_s=budget_s, say=said.append), said


def test_a_crash_loses_nothing(tmp_path):
    entries = (
        entry("check"),
        entry("broken"),
        entry("crash"),
        entry("nonsense", kind="benchmark"),
        suite.Entry("gone", "check", "toy_targets:no_such_function", 5.0),
        entry("silent_check"),
        entry("benchmark", kind="benchmark"),
    )
    written, _ = run(entries, tmp_path)
    assert [record.status for record in written] == [
        "ok",
        "failed",
        "failed",
        "failed",
        "failed",
        "ok",
        "ok",
    ]
    assert suite.records(tmp_path) == {record.name: record for record in written}
    by_name = suite.records(tmp_path)
    assert by_name["check"].details == {"max_error": 1e-6, "passed": True}
    assert by_name["benchmark"].measurements[0].work == 3.0
    assert "bad answer" in by_name["broken"].error
    assert "SIGKILL" in by_name["crash"].error
    assert "returned the wrong thing" in by_name["nonsense"].error
    assert "no_such_function" in by_name["gone"].error
    # Records are committed: they tell no paths of the machine.
    everything = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert str(suite.REPOSITORY) not in everything and str(pathlib.Path.home()) not in everything
    # The report finds the device like any other result.
    runs, problems = report.load([tmp_path])
    assert problems == [] and runs[0].result.title == "Accelerator suite on NVIDIA H100 80GB HBM3"
    page = report.page(runs)
    for words in ("passed", "failed", "SIGKILL", "max_error 1×10⁻⁶", "3 numbers"):
        assert words in page


def test_a_hang_ends_with_its_children_and_the_next_entry_runs(tmp_path):
    written, _ = run((entry("hang", 1.0), entry("check", 0.1)), tmp_path / "out", budget_s=3.0)
    hung = written[0]
    assert hung.status == "timeout" and hung.seconds > 2.0
    assert "stopped after 3 s" in hung.error
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


def test_only_what_is_missing_runs_and_failures_come_last(tmp_path):
    entries = (entry("broken"), entry("check"), entry("silent_check"))
    run(entries[:2], tmp_path)
    before = (tmp_path / "check.json").stat().st_mtime_ns
    written, said = run(entries, tmp_path)
    assert [record.name for record in written] == ["silent_check", "broken"]
    assert (tmp_path / "check.json").stat().st_mtime_ns == before
    assert said[0].startswith("1 of 3")
    # A record that a broken disk cut short counts as missing.
    (tmp_path / "check.json").write_text("{")
    assert [record.name for record in run(entries[1:2], tmp_path)[0]] == ["check"]


def test_it_stops_before_what_does_not_fit(tmp_path):
    entries = (entry("check", 1.0), entry("benchmark", 1000.0), entry("silent_check", 1.0))
    written, said = run(entries, tmp_path, budget_s=100.0)
    # The third would fit, but it is worth less than the second: the order is kept.
    assert [record.name for record in written] == ["check"]
    assert said[-1].startswith("stopping: benchmark takes about 1000 s")
    assert run(entries, tmp_path / "none", budget_s=0.5)[0] == []


def test_each_record_is_there_before_the_next_entry_starts(tmp_path):
    seen = []

    def say(_):
        seen.append(sorted(path.name for path in tmp_path.glob("*.json")))

    suite.run_suite(
        (entry("check"), entry("silent_check")), ENVIRONMENT, tmp_path, budget_s=99.0, say=say
    )
    # Told: what is known; first starts, ends; second starts, ends.
    assert seen[1:] == [
        [],
        ["check.json", "result.json"],
        ["check.json", "result.json"],
        ["check.json", "result.json", "silent_check.json"],
    ]


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
    assert suite.slug(device) == name


def test_command_line_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "RESULTS", tmp_path / "results")
    names = command_line.Names(entries=(entry("check"), entry("broken")))
    assert command_line.main(["gpu", "--allow-cpu", "--budget", "100"], names) == 1
    out = capsys.readouterr().out
    assert "check (check, about 5 s)" in out and "failed" in out
    folder = tmp_path / "runs" / "gpu" / "cpu"
    assert sorted(os.listdir(folder)) == ["broken.json", "check.json", "result.json"]
    assert not (tmp_path / "results").exists()  # a CPU's figures do not go among the accelerators'
    environment = json.loads((folder / "check.json").read_text())["environment"]
    assert environment == dataclasses.asdict(result.environment())
    assert command_line.main(["gpu", "--list", "--out", "runs/gpu"], names) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["check", "check", "about", "5", "s", "cpu:", "ok"]
    assert listed[1].endswith("cpu: failed")


def test_suite_is_well_formed():
    assert len({entry.name for entry in suite.SUITE}) == len(suite.SUITE)
    for item in suite.SUITE:
        assert item.name != "result" and item.estimate_s <= 540  # fits a ten-minute lease
        assert item.target.count(":") == 1
