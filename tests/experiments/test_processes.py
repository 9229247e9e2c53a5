"""The command line in two processes over loopback: units shared out, one folder, one report."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import experiments
from experiments.harness import result

HERE = pathlib.Path(__file__).parent
ROOT = pathlib.Path(experiments.__file__).parents[1]
COMMAND = ("-m", "experiments")
TOY = (
    "-c",
    "import sys; from experiments.__main__ import main; from experiments.harness import names; "
    "sys.exit(main(sys.argv[1:], names.Names(experiments={'toy': 'toy_study'})))",
)
pytestmark = pytest.mark.slow


def start(program, *args, of=2):
    """Starts the command in `of` processes, joined by the variables that the command reads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    alone = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COORD")}
    alone["PYTHONPATH"] = f"{ROOT}{os.pathsep}{HERE}"

    def joined(index):
        if of == 1:
            return alone
        numbers = {"JAX_NUM_PROCESSES": str(of), "JAX_PROCESS_ID": str(index)}
        return alone | {"JAX_COORDINATOR_ADDRESS": address} | numbers

    return [
        subprocess.Popen(
            [sys.executable, *program, *map(str, args)],
            env=joined(index),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(of)
    ]


def finish(processes):
    """Exit status, standard output and standard error of each; the runtime's own lines left out."""
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=600)
        said = [line for line in out.splitlines() if not line.startswith("[Gloo]")]
        ended.append((process.returncode, said, err))
    return ended


def test_two_processes_share_a_study_and_report_once(tmp_path):
    """A real study, training loops and checkpoints included, against the same in one process."""
    flags = "--tasks recall --variants MHA MFA --num-steps 10 --num-seeds 2 --tokens 64".split()
    flags += "--learning-rates 4e-3 8e-3 --recall-length 8 --length 4 --pairs 1 3".split()
    run = ("run", "mfa_quality", *flags, "--out")
    (alone,) = finish(start(COMMAND, *run, tmp_path / "alone", of=1))
    both = finish(start(COMMAND, *run, tmp_path / "both"))
    assert [alone[0], *(status for status, _, _ in both)] == [0, 0, 0], both
    (_, told, first), (_, silent, second) = both
    assert told[0] == str(tmp_path / "both") and told[-1] == str(tmp_path / "both/report.html")
    assert silent == []
    for said, mine, other in (
        (first, "recall/MHA", "recall/MFA"),
        (second, "recall/MFA", "recall/MHA"),
    ):
        assert f"{mine}/tuning ..." in said and f"{mine} ..." in said
        assert f"{other} ..." not in said and f"{other}/tuning ..." not in said
    names = [
        sorted(str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*"))
        for folder in ("alone", "both")
    ]
    assert names[0] == names[1] and "units/recall--MFA.npz" in names[0]
    kept = [result.read(tmp_path / f / "result.json", result.Result) for f in ("alone", "both")]
    assert [row.metric for row in kept[0].rows] == [row.metric for row in kept[1].rows]
    # The same programs on the same processor; the runtime of several processes may order sums
    # otherwise.
    for a, b in zip(*(result_.rows for result_ in kept), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-5)
    (again, _) = finish(start(COMMAND, "resume", tmp_path / "both"))
    assert again[0] == 0 and "nothing to resume" in again[1][0]


def test_two_processes_stop_together_and_go_on(tmp_path):
    """Step 3 is the second process's, and lasts until both are told to stop."""
    out = tmp_path / "run"
    pair = start(TOY, "run", "toy", "--preset", "cpu", "--wait-at", "3", "--out", out)
    for line in pair[1].stderr:
        if "step/3 ..." in line:
            break
    for process in pair:
        process.send_signal(signal.SIGINT)
    ended = finish(pair)
    assert [status for status, _, _ in ended] == [130, 130], ended
    assert "resume" in ended[0][2] and "resume" not in ended[1][2]
    done = {path.stem for path in (out / "units").glob("*.npz")}
    assert "step--3" in done and "step--5" not in done and not (out / "result.json").exists()
    config = (out / "config.json").read_text().replace('"wait_at": 3', '"wait_at": null')
    (out / "config.json").write_text(config)
    ended = finish(start(TOY, "resume", out))
    assert [status for status, _, _ in ended] == [0, 0], ended
    kept = result.read(out / "result.json", result.Result)
    assert kept.rows[0].value == 15.0 and kept.resumed
    assert kept.environment.device_count == 2


@pytest.mark.parametrize("victim", [1, 0], ids=["the_second", "the_first"])
def test_a_lost_process_is_named_by_the_others_which_end(tmp_path, victim):
    """Within half a minute, and what they had kept is there when the run goes on."""
    out, waiting = tmp_path / "run", 3 if victim else 2
    flags = ("--preset", "cpu", "--wait-at", waiting, "--out", out, "--lost-after", "8")
    pair = start(TOY, "run", "toy", *flags)
    for line in pair[victim].stderr:
        if f"step/{waiting} ..." in line:
            break
    pair[victim].kill()
    began = time.monotonic()
    status, _, err = finish([pair[1 - victim]])[0]
    assert time.monotonic() - began < 30.0 and status != 0
    told = [line for line in err.splitlines() if not line.startswith(f"toy process {1 - victim} ")]
    assert len(told) == 1 and told[0].startswith(f"error: process {victim} is lost, "), err
    pair[victim].communicate()
    kept = {path.stem for path in (out / "units").glob("*.npz")}
    assert f"step--{victim}" in kept and f"step--{waiting}" not in kept
    config = (out / "config.json").read_text().replace(f'"wait_at": {waiting}', '"wait_at": null')
    (out / "config.json").write_text(config)
    ended = finish(start(TOY, "resume", out))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert result.read(out / "result.json", result.Result).rows[0].value == 15.0


def test_a_mistake_is_one_line_in_every_process(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for flags, said in (
        (("--out", tmp_path / "full"), "is not an empty folder"),
        (("--num-steps", "2000", "--out", tmp_path / "new"), "num_steps is beyond what a toy"),
    ):
        for status, _, err in finish(start(TOY, "run", "toy", *flags)):
            assert status == 2 and said in err and "Traceback" not in err, err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]


@pytest.mark.parametrize(
    ("name", "value", "missing"),
    [
        ("JAX_NUM_PROCESSES", "2", "coordinator_address, process_id"),
        ("JAX_PROCESS_ID", "1", "coordinator_address, num_processes"),
    ],
)
def test_settings_that_are_not_complete_are_named(tmp_path, monkeypatch, name, value, missing):
    monkeypatch.setenv(name, value)
    ((status, _, err),) = finish(start(TOY, "run", "toy", "--out", tmp_path / "new", of=1))
    assert status == 2 and f"give {missing} too" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "new").exists()
