"""Loggers: files that survive kills, consoles that stay readable."""

import io
import json

import numpy as np
import pytest

from jaxlab.core import logging


def test_jsonl_round_trip_and_rewind(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    log = logging.jsonl(path)
    for step in (10, 20, 30):
        log(step, {"train/loss": 1.0 / step, "train/bad": float("nan")})
    with path.open("a") as file:
        file.write('{"step": 40, "train/lo')  # the process was killed here
    assert [r["step"] for r in logging.read_jsonl(path)] == [10, 20, 30]
    logging.rewind_jsonl(path, 20)
    log(30, {"train/loss": 7.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in records] == [10, 20, 30]
    assert records[0] == {"step": 10, "train/loss": 0.1, "train/bad": "nan"}
    assert records[2]["train/loss"] == 7.0


def test_a_torn_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        logging.read_jsonl(path)


def test_lines_that_are_no_records_are_dropped_and_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1, "a": 1.0}\n{"step": 2, "a": "nan"}\n'
    path.write_bytes(whole)
    assert logging.rewind_jsonl(path, 9) == 2 and path.read_bytes() == whole
    lines = [b"\x00\xff\x80", b'{"a": 1.0}', b"7", b'{"step": "3"}', b'{"step": 5}', b'{"step": 6']
    path.write_bytes(whole + b"\n".join(lines))
    with pytest.warns(RuntimeWarning, match="lines 3, 4, 5, 6 dropped") as caught:
        assert logging.rewind_jsonl(path, 4) == 2
    assert len(caught) == 1 and path.read_bytes() == whole
    assert logging.rewind_jsonl(path, 0) == -1 and path.read_bytes() == b""
    path.write_bytes(b"\xff\n" + whole)
    with pytest.raises(ValueError, match="line 1: not JSON with a step"):
        logging.read_jsonl(path)


def test_console_prints_one_plain_line_a_call():
    stream = io.StringIO()
    log = logging.console(20, title="mc", stream=stream)
    log(10, {"sim/mean": 3.14159265})
    log.note(10, "compiling 10 steps ...")
    log(20, {"sim/mean": 2.0})
    assert stream.getvalue().splitlines() == [
        "mc 10/20  sim/mean 3.14159",
        "mc 10/20  compiling 10 steps ...",
        "mc 20/20  sim/mean 2",
    ]


def test_values_by_seed_are_for_files_only():
    stream = io.StringIO()
    logging.console(20, stream=stream)(10, {"a/b": 1.0, "a/b_seeds": [0.5, None, 1.5]})
    assert stream.getvalue() == "10/20  a/b 1\n"


def test_a_series_has_the_steps_that_have_it(tmp_path):
    log = logging.jsonl(tmp_path / "metrics.jsonl")
    log(5, {"a/b": 1.0, "a/b_seeds": [0.5, 1.5]})
    log(10, {"a/c": 7.0})
    log(15, {"a/b": 3.0, "a/b_seeds": [3.0, None]})
    log(20, {"a/b": float("inf"), "a/b_seeds": [float("inf"), 2.0]})
    records = logging.read_jsonl(tmp_path / "metrics.jsonl")
    steps, values = logging.series(records, "a/b")
    assert steps.tolist() == [5, 15, 20]
    np.testing.assert_array_equal(values, [1.0, 3.0, np.inf])
    steps, values = logging.series(records, "a/b_seeds")
    np.testing.assert_array_equal(values, [[0.5, 1.5], [3.0, np.nan], [np.inf, 2.0]])
    steps, values = logging.series(records, "never")
    assert steps.shape == values.shape == (0,)


def test_console_shows_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    log = logging.console(20, title="census", stream=stream)
    log.note(0, "compiling 10 steps ...")
    log(10, {"sim/mean": 3.5})
    log(20, {"sim/mean": 4.25})
    log.close()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back
    assert "census" in stream.getvalue()
    assert "20/20" in stream.getvalue()
