"""The ICU experiment from the command line: on real data, on a user's CSV, and through a kill."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from experiments.harness import result
from jaxlab import queueing as q

ROOT = pathlib.Path(__file__).parents[3]
QUICK = ("--bootstrap", "2", "--replications", "2048")
HOW = ("Risk, % of days", "Risk simulated, %")


def run(*arguments, **options):
    command = [sys.executable, "-m", "experiments", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAXLAB_SIR3": "/nowhere"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=500, **options
    )


def steps(out):
    """Steps of the simulation, each logged once."""
    lines = (out / "units" / "simulation.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    """Two sites over two years, with three bad rows."""
    path = tmp_path_factory.mktemp("csv") / "stays.csv"
    stays = q.calgary_like(5, num_days=730, sites=q.CALGARY_SITES[3:])
    q.write_stays(path, stays)
    with path.open("a") as file:
        columns = path.read_text().splitlines()[0].split(",")
        for day, los in (("2016-05-01", "-3"), ("31/12/2016", "2"), ("2016-06-01", "")):
            row = {"site": stays.site_names[0], "admission_date": day, "los_days": los}
            row |= {"patient": f"bad {day}", "event": "1"}
            file.write(",".join(row.get(name, "") for name in columns) + "\n")
    return path


def test_a_users_csv_becomes_beds_figures_and_a_report(csv, tmp_path):
    out = tmp_path / "run"
    process = run("run", "icu_occupancy", "--data", csv, "--beds", 27, 16, *QUICK, "--out", out)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.splitlines()[-1] == str(out / "report.html")
    outcome = result.read(out / "result.json", result.Result)
    beds, risk = outcome.opening
    assert beds.columns[1] == "Beds today"
    assert [row[0] for row in beds.rows] == ["Site 4", "Site 5", "All sites"]
    # B_average of these units is published as 28 and 16; two years of data move it by a few beds.
    assert beds.columns[2] == "Risk, %" and beds.rows[2][1:3] == ("43", "–")
    average = [int(row[3].split()[0]) for row in beds.rows]
    assert abs(average[0] - 28) <= 4 and abs(average[1] - 16) <= 4
    assert average[2] == sum(average[:2])
    today = {row[0]: row for row in risk.rows if row[1] == "Beds today"}
    assert [row[2:4] for row in today.values()] == [(27, "–"), (16, "–")]
    model, simulated = map(risk.columns.index, HOW)
    for row, site in zip(today.values(), beds.rows, strict=False):
        # About the beds of the average rule, so about its risk.
        assert 5 < row[model] < 45 and abs(row[model] - row[simulated]) < 3
        assert float(site[2]) == row[model]
    assert "at 2 sites" in outcome.summary and "Today's 43 beds are too few on" in outcome.summary
    told = dict.fromkeys(row.interval_label for row in outcome.rows)
    assert list(told) == ["range over sites", "95 % bootstrap interval"]
    rejected = (out / "rejects.csv").read_text().splitlines()
    assert len(rejected) == 4
    assert [line.split(",")[1] for line in rejected[1:]] == [
        "negative_los",
        "bad_date",
        "missing_los",
    ]
    pictures = ("beds", "occupancy", "risk", "survival", "decomposition")
    assert {path.name for path in out.glob("*.png")} == {
        f"{name}{way}.png" for name in pictures for way in ("", "_phone")
    }
    assert steps(out) == [1, 2]
    inputs = q.read_processed(out / "inputs.csv")
    assert inputs.site_names == ("Site 4", "Site 5") and inputs.inputs.lam.shape == (2, 730)


@pytest.mark.slow
def test_a_days_average_is_simulated_at_midnight(csv, tmp_path):
    out = tmp_path / "run"
    options = ("--data", csv, *QUICK, "--convention", "bed_days", "--out", out)
    process = run("run", "icu_occupancy", *options)
    assert process.returncode == 0, process.stderr[-2000:]
    table = result.read(out / "result.json", result.Result).opening[1]
    assert "patient by patient, at midnight" in table.caption
    model, simulated = map(table.columns.index, HOW)
    for row in table.rows:
        assert abs(row[model] - row[simulated]) < 3


def test_strict_refuses_the_file_in_one_line(csv, tmp_path):
    process = run("run", "icu_occupancy", "--data", csv, "--strict", "--out", tmp_path / "run")
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1
    for reason in ("negative_los", "bad_date", "missing_los"):
        assert reason in process.stderr
    assert not (tmp_path / "run").exists()


def test_wrong_number_of_beds_is_one_line(csv, tmp_path):
    process = run("run", "icu_occupancy", "--data", csv, "--beds", 27, "--out", tmp_path / "run")
    assert process.returncode == 2
    assert "--beds names 1 sites, the data have 2: Site 4, Site 5" in process.stderr
    missing = run("run", "icu_occupancy", "--data", tmp_path / "no.csv")
    assert missing.returncode == 2 and "no.csv" in missing.stderr


@pytest.mark.slow
def test_smoke_runs_and_a_killed_run_resumes(tmp_path):
    out = tmp_path / "run"
    arguments = ["run", "icu_occupancy", "--num-days", 730, *QUICK[:2], "--replications", 4096]
    command = [sys.executable, "-m", "experiments", *map(str, arguments), "--out", str(out)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAXLAB_SIR3": "/nowhere"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if line.startswith("Monte Carlo 2/4"):
                process.send_signal(signal.SIGKILL)
                break
    assert not (out / "result.json").exists()
    resumed = run("resume", out)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert steps(out) == [1, 2, 3, 4]
    outcome = result.read(out / "result.json", result.Result)
    assert outcome.resumed
    verdicts = {row.metric: row.verdict for row in outcome.rows}
    assert verdicts["Figures equal to the last printed digit"] == "reproduced"
    assert verdicts["Mean occupancy of the SIR-3 cohort, model"] == "not measured"
