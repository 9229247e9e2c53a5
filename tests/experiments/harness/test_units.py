"""Units: what a file keeps, what a killed, stopped or failed run keeps, and what is refused."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import store, units
from jaxlab.core import lock, logging

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def walking():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        import walking

        yield walking


@pytest.fixture(scope="module")
def whole(walking, tmp_path_factory):
    """The walks of a run that nothing stopped."""
    return units.run(walking.make(), tmp_path_factory.mktemp("whole"))


class Inner(NamedTuple):
    x: np.ndarray
    by_steps: dict[int, np.ndarray]
    maybe: float | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    pair: tuple[Inner, str]
    many: list[Inner]
    share: float


ARRAYS = {
    "float32": np.float32([[1.5, -0.0], [np.nan, np.inf]]),
    "float64": np.array(1.0 / 3.0),
    "int8": np.int8([[-128, 127]]),
    "int64": np.array([2**62]),
    "uint32": np.uint32([]),
    "bool": np.array([True, False]),
    "complex": np.array([1 - 2j]),
    "text": np.array(["ü", "abc"]),
    "bfloat16": np.asarray(jnp.asarray([[1.5], [-3.0]], jnp.bfloat16)),
    "float8": np.asarray(jnp.asarray(0.25, jnp.float8_e4m3fn)),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "time": np.array(["2020-02-29"], "datetime64[D]"),
}


def same(a, b):
    """Whether two results are the same to the last bit, types included."""
    assert type(a) is type(b)
    if isinstance(a, (np.ndarray, np.generic)):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a):
        return same(vars(a), vars(b))
    return a == b or (a != a and b != b)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, object),
        ((1, True, "ü\n", -0.1, float("nan"), float("-inf"), 2**70), object),
        ({"a.b": [], 3: (), (1, "x"): {}, None: [None]}, object),
        ([np.float32(0.1), np.int64(3), np.bool_(True), np.float64(np.pi)], object),
        (ARRAYS, dict[str, np.ndarray]),
        (Inner(np.zeros(2), {5: np.ones(1, int)}), Inner),
        ((Inner(np.zeros(0), {}, 0.5),) * 2, tuple[Inner, ...]),
        (Outer((Inner(np.ones(1), {}), "s"), [Inner(np.zeros(1), {})], 0.5), Outer),
        ({"one": Outer((Inner(np.ones(1), {}), "s"), [], 1.0)}, dict[str, Outer | None]),
    ],
    ids=["none", "plain", "dict", "scalars", "arrays", "record", "tuple", "nested", "dict_of"],
)
def test_results_survive_their_file(tmp_path, value, kind):
    store.save(tmp_path / "x.npz", value, kind, {"seed": 1})
    back, settings = store.load(tmp_path / "x.npz", kind)
    assert same(back, value) and settings == {"seed": 1}
    with np.load(tmp_path / "x.npz") as plain:  # what a notebook opens
        assert "about" in plain.files


def test_arrays_of_jax_come_back_as_numpys(tmp_path):
    (found,) = units.run([units.Unit("a", {}, lambda _: jnp.arange(3))], tmp_path).values()
    assert same(found, np.arange(3, dtype=np.int32))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [Inner(np.zeros(1), {})]}, r"x.a.0 is the record Inner, which the unit's kind"),
        ({"a": {1, 2}}, "x.a is a set"),
        ({"a": jax.random.key(0)}, "x.a is a PRNG key"),
        ([np.array([None])], "x.0 is an array of Python objects"),
    ],
    ids=["record", "set", "key", "objects"],
)
def test_what_cannot_be_kept_is_named(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        store.save(tmp_path / "x.npz", value)
    assert list(tmp_path.iterdir()) == []


def test_a_record_with_other_fields_is_refused(tmp_path):
    store.save(tmp_path / "x.npz", Inner(np.zeros(1), {}), Inner)

    class Changed(NamedTuple):
        x: np.ndarray
        share: float

    Changed.__qualname__ = "Inner"
    with pytest.raises(ValueError, match="x, by_steps, maybe, this version has x, share; start a"):
        store.load(tmp_path / "x.npz", Changed)
    with pytest.raises(ValueError, match="this version has none"):
        store.load(tmp_path / "x.npz")


def test_any_damage_is_found(tmp_path):
    path = tmp_path / "x.npz"
    store.save(path, {"x": np.arange(100.0)})
    whole = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 60).tolist()
    for at in (*places, 0, len(whole) - 1, len(whole) - 65, len(whole) - 66):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(store.Damaged, match="x.npz is damaged"):
            store.load(path)
    for torn in (b"", whole[:10], whole[:-1], whole + b"0", b"\n", whole[: len(whole) // 2]):
        path.write_bytes(torn)
        with pytest.raises(store.Damaged):
            store.load(path)


def counted(names, fail=(), settings=None):
    """Units that return their name, and the list of those that were computed."""
    computed = []

    def unit(name):
        def compute(folder):
            computed.append(name)
            if name in fail:
                raise RuntimeError(f"no {name}")
            return name

        return units.Unit(name, {"of": name} if settings is None else settings, compute)

    return [unit(name) for name in names], computed


def test_a_damaged_unit_is_named_and_computed_again(tmp_path, capsys):
    todo, computed = counted(["a", "b/c", "d"])
    units.run(todo, tmp_path)
    path = tmp_path / "units" / "b--c.npz"
    path.write_bytes(path.read_bytes()[:-3])
    capsys.readouterr()
    assert units.run(todo, tmp_path) == {name: name for name in ("a", "b/c", "d")}
    assert computed == ["a", "b/c", "d", "b/c"]
    assert f"{path} is damaged: its unit is computed again" in capsys.readouterr().err


def test_a_unit_of_another_program_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / "units" / "b.npz"
    path.parent.mkdir()
    np.savez_compressed(path, score=np.zeros(3))  # as jaxlab 0.4 kept those of zofl
    before = path.read_bytes()
    todo, computed = counted(["a", "b"])
    with pytest.raises(ValueError, match="b.npz was kept by jaxlab 0.4 or before; start a new"):
        units.run(todo, tmp_path)
    assert computed == [] and path.read_bytes() == before


def test_torn_settings_of_a_begun_unit_are_named(tmp_path):
    path = tmp_path / "checkpoints" / "a" / "settings.json"
    path.parent.mkdir(parents=True)
    path.write_text("")
    with pytest.raises(ValueError, match=r"a/settings.json is not readable JSON"):
        units.run(counted(["a"])[0], tmp_path)


def test_finished_units_are_read_and_new_ones_computed(tmp_path):
    units.run(counted(["a", "b"])[0], tmp_path)
    todo, computed = counted(["c", "b", "a"])
    assert list(units.run(todo, tmp_path)) == ["c", "b", "a"]
    assert computed == ["c"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.2, "of": [1, 2]}, "unit b with rate = 0.1, now it is 0.2"),
        ({"rate": 0.1, "of": [1, 3]}, r"with of = \[1, 2\], now it is \[1, 3\]"),
        ({"rate": 0.1}, r"with of = \[1, 2\], now it is 'missing'"),
        (3, "settings = .*, now it is 3"),
    ],
)
def test_units_of_other_settings_are_refused_before_anything_runs(tmp_path, settings, message):
    units.run(counted(["b"], settings={"rate": 0.1, "of": (1, 2)})[0], tmp_path)
    todo, computed = counted(["a", "b"], settings=settings)
    with pytest.raises(ValueError, match=message):
        units.run(todo, tmp_path)
    assert computed == []


def test_a_begun_unit_of_other_settings_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        units.run(counted(["a"], fail=["a"], settings={"rate": 0.1})[0], tmp_path)
    todo, computed = counted(["b", "a"], settings={"rate": 0.2})
    with pytest.raises(ValueError, match="unit a with rate = 0.1, now it is 0.2"):
        units.run(todo, tmp_path)
    assert computed == []


def test_one_that_fails_is_named_and_stops_no_other(tmp_path, capsys):
    todo, computed = counted(["a", "b", "c", "d"], fail=["b", "d"])
    with pytest.raises(RuntimeError, match="no b") as failed:
        units.run(todo, tmp_path)
    assert computed == ["a", "b", "c", "d"]
    assert failed.value.__notes__ == ["units that failed: b, d"]
    assert "b failed: RuntimeError('no b')" in capsys.readouterr().err
    todo, computed = counted(["a", "b", "c", "d"])
    units.run(todo, tmp_path)
    assert computed == ["b", "d"]


@pytest.mark.parametrize("names", [["a", "b", "a"], ["a/b", "a--b"]])
def test_names_are_unique(tmp_path, names):
    with pytest.raises(ValueError, match="different names"):
        units.run(counted(names)[0], tmp_path)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        units.run([], tmp_path, workers=0)


def test_names_stay_in_their_folder(tmp_path):
    names = ["../x", "/etc", ".", "..", ".hidden", "%2E", "a b, c", "ü%"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    units.run(counted(names)[0], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").exists()
    assert len(list((tmp_path / "out" / "units").glob("[!.]*"))) == len(names)
    with pytest.raises(ValueError, match=r"units must have names, got \['a', ''\]"):
        units.run(counted(["a", ""])[0], tmp_path / "out")


def test_a_killed_run_loses_only_what_was_at_work(tmp_path, walking, whole):
    command = [sys.executable, str(HERE / "walking.py"), str(tmp_path / "killed"), "walks/1", "8"]
    root = HERE.parents[2]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = units.run(walking.make(), tmp_path / "killed")
    assert found["walks/0"].logged == tuple(range(2, 13, 2))  # by the killed process
    # The one at work went on where it was; the kill may have caught the save in flight.
    assert found["walks/1"].logged in (tuple(range(n, 13, 2)) for n in (8, 10))
    for name, walk in whole.items():
        np.testing.assert_array_equal(found[name].position, walk.position)
        log = logging.read_jsonl(tmp_path / "killed/units" / f"{name.replace('/', '--')}.jsonl")
        assert [record["step"] for record in log] == list(range(2, 13, 2))
    assert not (tmp_path / "killed" / "checkpoints").exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_ends_the_run_after_what_is_at_work(tmp_path, workers, number, error):
    before = signal.getsignal(number)
    todo, computed = counted([str(index) for index in range(9)])
    struck = todo[2].compute

    def strike(folder):
        os.kill(os.getpid(), number)
        return struck(folder)

    stopped = [*todo[:2], todo[2]._replace(compute=strike), *todo[3:]]
    with pytest.raises(error) as ended:
        units.run(stopped, tmp_path, workers=workers)
    assert error is KeyboardInterrupt or ended.value.code == 143
    assert signal.getsignal(number) is before
    kept = {path.stem for path in (tmp_path / "units").iterdir()}
    assert kept == set(computed) and "2" in kept and (workers == 2 or len(kept) == 3)
    assert units.run(todo, tmp_path) == {str(index): str(index) for index in range(9)}
    assert len(computed) == 9


def test_a_signal_reaches_the_training_loop_at_work(tmp_path, walking, whole):
    def strike(name, step):
        if (name, step) == ("walks/0", 4):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        units.run(walking.make(strike), tmp_path / "cut")
    assert not (tmp_path / "cut" / "units" / "walks--0.npz").exists()
    found = units.run(walking.make(), tmp_path / "cut")
    assert found["walks/0"].logged[0] > 4
    for name, walk in whole.items():
        np.testing.assert_array_equal(found[name].position, walk.position)


def test_workers_work_at_the_same_time(tmp_path):
    both = threading.Barrier(2)
    todo = [units.Unit(name, {}, lambda _: both.wait(60) >= 0) for name in "abcd"]
    assert units.run(todo, tmp_path, workers=2) == dict.fromkeys("abcd", True)


def test_what_takes_long_is_told_again(tmp_path, capsys, monkeypatch):
    """As a compilation does; ever more seldom, so that a log of hours stays short."""
    monkeypatch.setattr(units, "QUIET_S", 0.02)
    long = units.Unit("a", {}, lambda _: time.sleep(0.3))
    units.run([long], tmp_path, title="toy")
    first, *again, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("toy 0/1  a ...", "toy 1/1  a")
    assert 1 <= len(again) <= 4
    assert all(re.fullmatch(r"toy 0/1  a \.\.\. [\d.]+ ms", line) for line in again)


def test_a_second_process_is_refused(tmp_path):
    def compute(folder):
        with pytest.raises(lock.LockedError, match=f"process {os.getpid()} on .* is at work in"):
            units.run([units.Unit("b", {}, lambda _: 2)], tmp_path)
        return 1

    assert units.run([units.Unit("a", {}, compute)], tmp_path) == {"a": 1}
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_torn_line_of_the_metrics_is_no_obstacle(tmp_path):
    units.run(counted(["a"])[0], tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "b/le')
    units.run(counted(["a", "b"])[0], tmp_path)
    assert [r["step"] for r in logging.read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]


def test_progress_is_told_and_metrics_kept(tmp_path, capsys):
    todo, _ = counted(["a", "b"])
    units.run(todo, tmp_path, title="toy", metrics=lambda name, value: {"length": len(value)})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "toy 0/2  a ...",
        "toy 1/2  a  length 1",
        "toy 1/2  b ...",
        "toy 2/2  b  length 1",
    ]
    assert logging.read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 1, "a/length": 1.0},
        {"step": 2, "b/length": 1.0},
    ]
