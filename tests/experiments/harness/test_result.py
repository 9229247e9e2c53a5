"""Records: what they refuse, what JSON keeps of them, and how files are written."""

import dataclasses
import html
import json
import os
import pathlib
import subprocess
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from experiments.harness import findings, report, result

ENVIRONMENT = result.Environment("TPU v9", "tpu", 4, "Some CPU", 8, {"jax": "0.10.2"})
FULL = result.Result(
    experiment="toy",
    rows=(
        result.Row(
            "c", "beds", 26, (25, 27.5), ("rule", 20), "24 to 26", "reproduced", "beds", "n"
        ),
        result.Row("c", "coverage", None, verdict="not measured"),
        result.Row("d", "loss", 0.25, None, ("Erlang", 0.125), 0.5, "worse"),
    ),
    figures=(result.Figure("a.png", "caption", "alt"),),
    tables=(result.Table("t", ("site", "beds"), (("1", 2), ("2", None), ("3", 0.5))),),
    title="ü <title>",
    limits=("one",),
    preset="cpu",
    config={"seed": 1, "nested": {"sites": [1, 2], "data": None}},
    environment=ENVIRONMENT,
    seconds=1.5,
    resumed=True,
    command="run it",
    finished="2025-11-23T04:00:00",
)


CURATED = sorted(pathlib.Path(experiments.__file__).parent.glob("results/**/result.json"))


@dataclasses.dataclass(frozen=True)
class Optim:
    learning_rate: float
    steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    optim: Optim
    sites: tuple[int, ...] = ()
    pair: tuple[str, float] = ("a", 1.0)
    rule: Literal["mean", "max"] = "mean"
    out: pathlib.Path | None = None
    names: list[str] = dataclasses.field(default_factory=list)
    table: dict[str, float | str] = dataclasses.field(default_factory=dict)
    keep: bool = False


def test_result_survives_its_file(tmp_path):
    path = tmp_path / "deep" / "result.json"
    result.write(path, FULL)
    assert result.read(path, result.Result) == FULL
    # A plain reader sees plain JSON, figures as numbers and what is missing as null.
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["value"] for row in rows] == [26, None, 0.25]


def test_config_survives_json():
    config = Config(
        Optim(1e-3, 7), (1, 2), ("b", 2.0), "max", pathlib.Path("x/y"), ["n"], {"a": 1.5, "b": "c"}
    )
    data = json.loads(json.dumps(result.encode(config)))
    assert result.decode(Config, data) == config
    assert result.decode(Config, {"optim": {"learning_rate": 1}}) == Config(Optim(1.0))


@pytest.mark.parametrize(
    "scalar",
    [np.float32(0.5), np.int64(3), np.bool_(True), jnp.asarray(0.5), jnp.asarray(3)],
    ids=["np_float", "np_int", "np_bool", "jax_float", "jax_int"],
)
def test_array_scalars_become_numbers(scalar):
    plain = result.encode({"x": scalar})["x"]
    assert plain == scalar.item() and type(plain) is type(scalar.item())


def test_rows_take_array_scalars_as_figures():
    row = result.Row("c", "m", jnp.asarray(2.5), (np.float32(2.0), jnp.asarray(3.0)))
    assert row == result.Row("c", "m", 2.5, (2.0, 3.0))
    assert type(row.value) is float and type(row.interval[1]) is float


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(value=float("nan")), "not a figure"),
        (dict(value=float("inf")), "not a figure"),
        (dict(value=1.0, verdict="great"), "must be one of reproduced"),
        (dict(value=None), "'not measured' goes with no value"),
        (dict(value=1.0, verdict="not measured"), "'not measured' goes with no value"),
        (dict(value=1.0, interval=(2.0, 1.0)), "low, high"),
        (dict(value=1.0, interval=(2.0, float("inf"))), "not a figure"),
        (dict(value=None, interval=(1.0, 2.0), verdict="not measured"), "needs a value"),
        (dict(value=1.0, verdict="better"), "needs a baseline"),
        (dict(value=1.0, baseline=("b", float("nan"))), "not a figure"),
        (dict(value=1.0, paper=float("nan")), "not a figure"),
    ],
    ids=lambda case: case if isinstance(case, str) else None,
)
def test_rows_refuse_what_would_mislead(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        result.Row("claim", "the metric", **fields)
    assert "the metric" in str(error.value)


def test_tables_refuse_a_ragged_row():
    with pytest.raises(ValueError, match="2 columns but a row of 3"):
        result.Table("t", ("a", "b"), ((1, 2, 3),))


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Config, {"optim": {"learning_rate": "fast"}}, "optim.learning_rate.*float.*'fast'"),
        (Config, {"optim": {"learning_rate": True}}, "optim.learning_rate.*float.*True"),
        (Config, {"optim": {"learning_rate": 1.0, "momentum": 1}}, "optim.momentum.*steps"),
        (Config, {"optim": {}}, "optim.learning_rate.*missing"),
        (Config, {}, "'optim' is missing"),
        (Config, {"optim": 3}, "expected a Optim"),
        (Config, {"optim": {"learning_rate": 1.0}, "sites": [1, "b"]}, "sites.1.*int"),
        (Config, {"optim": {"learning_rate": 1.0}, "rule": "min"}, "rule.*'mean', 'max'"),
        (Config, {"optim": {"learning_rate": 1.0}, "pair": ["a"]}, "pair"),
        (Config, {"optim": {"learning_rate": 1.0, "steps": 1.5}}, "optim.steps.*int"),
        (Config, {"optim": {"learning_rate": 1.0, "steps": True}}, "optim.steps.*int"),
        (Config, {"optim": {"learning_rate": 1.0}, "keep": 1}, "keep.*bool"),
    ],
    ids=lambda case: case if isinstance(case, str) else None,
)
def test_decode_names_the_field(kind, data, message):
    with pytest.raises(ValueError, match=message):
        result.decode(kind, data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"experiment": ', "not readable JSON"),
        ('{"experiment": 3}', "'experiment': expected str, got 3"),
        ('{"experiment": "a", "rows": [{"claim": "c", "metric": "m"}]}', "rows.0.value.*missing"),
        ('{"experiment": "a", "extra": 1}', "unknown field 'extra'"),
        ("[]", "expected a Result"),
    ],
    ids=["broken", "type", "missing", "unknown", "list"],
)
def test_reading_a_bad_file_names_file_and_field(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        result.read(path, result.Result)
    assert str(path) in str(error.value)


def test_reading_a_missing_file_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no result.json"):
        result.read(tmp_path / "result.json", result.Result)


@pytest.mark.parametrize(
    "value", [{"a": [float("nan")]}, {"a": [object()]}], ids=["not_finite", "no_json"]
)
def test_a_failed_write_keeps_the_old_file(tmp_path, value: Any):
    path = tmp_path / "x.json"
    result.write(path, {"a": 1})
    with pytest.raises(ValueError, match=r"a\.0"):
        result.write(path, value)
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    result.write(path, {"a": 1})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_new_folders_are_new(tmp_path):
    folders = [result.new_folder(tmp_path / "runs" / "toy") for _ in range(5)]
    assert len(set(folders)) == 5
    assert sorted(folders) == sorted((tmp_path / "runs" / "toy").iterdir())


def test_environment_tells_this_process():
    found = result.environment()
    assert found.device == jax.devices()[0].device_kind
    assert found.platform == jax.devices()[0].platform
    assert found.device_count == len(jax.devices())
    assert found.versions["jax"] == jax.__version__
    assert found.versions["numpy"] == np.__version__
    assert found.cpu and found.cores >= 1


@pytest.mark.parametrize("path", CURATED, ids=lambda path: path.parent.name)
def test_curated_results_of_older_versions_are_read_and_shown(path):
    kept = result.read(path, result.Result)
    page = report.page([findings.Run(path.parent, kept)])
    data = json.loads(path.read_text(encoding="utf-8"))
    assert len(kept.rows) == len(data["rows"]) and len(kept.tables) == len(data["tables"])
    for row in kept.rows:
        assert html.escape(row.metric) in page
    assert "is not in the run folder" not in page


def test_parts_are_put_together_in_their_order():
    rows = [result.Row("c", name, 1.0) for name in "abc"]
    figures = [result.Figure(f"{name}.png", name) for name in "ab"]
    table = result.Table("t", ("x",), ((1,),))
    parts = (
        result.Part(rows=rows[:1], figures=figures[:1], limits=("first",)),
        result.Part(tables=(table,)),
        result.Part(rows=rows[1:], figures=figures[1:], limits=("second", "third")),
    )
    whole = result.assemble(parts, experiment="toy", title="A toy", summary="s", paper="p")
    assert whole == result.Result(
        "toy",
        tuple(rows),
        tuple(figures),
        (table,),
        title="A toy",
        summary="s",
        paper="p",
        limits=("first", "second", "third"),
    )
    with pytest.raises(ValueError, match="files of their own, got a.png twice"):
        result.assemble([parts[0], result.Part(figures=figures)], experiment="toy")


def test_the_commit_is_that_of_this_checkout_or_none(tmp_path, monkeypatch):
    """Asked of a repository made here, with and without changes, and of a folder inside of one."""

    def git(*args):
        identity = ("-c", "user.name=a", "-c", "user.email=b")
        command = ("git", "-C", str(tmp_path), *identity, *args)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def asked(root):
        monkeypatch.setattr(result, "__file__", str(root / "experiments" / "harness" / "result.py"))
        result.commit.cache_clear()
        return result.commit()

    (tmp_path / "inside").mkdir()
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    git("tag", "v1")
    head = git("rev-parse", "HEAD")
    try:
        assert asked(tmp_path) == head
        (tmp_path / "new").write_text("not tracked")
        assert asked(tmp_path) == head
        (tmp_path / "a").write_text("2")
        assert asked(tmp_path) == f"{head}-dirty"
        assert asked(tmp_path / "inside") == ""
        monkeypatch.setenv("PATH", str(tmp_path))
        assert asked(tmp_path) == ""  # without git
    finally:
        result.commit.cache_clear()
