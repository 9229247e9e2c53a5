"""Checkpoints: exact round trips of awkward leaves, and errors that name what differs."""

import errno
import pathlib
import resource
import shutil
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import checkpoint


class Inner(NamedTuple):
    table: jax.Array
    nothing: tuple = ()


def awkward_state(seed: int = 3):
    return {
        "threefry": jax.random.split(jax.random.key(seed), 3),
        "rbg": jax.random.key(seed, impl="rbg"),
        "half": jnp.asarray([1.5, -2.25], jnp.bfloat16),
        "empty": jnp.zeros((0, 4)),
        "flag": jnp.asarray(True),
        "inner": [Inner(jnp.arange(6, dtype=jnp.int32).reshape(2, 3)), None],
    }


def test_round_trip_is_exact_for_keys_half_precision_and_empty_arrays(tmp_path):
    state = awkward_state()
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 4, state, config={"seed": 3})
        manager.wait_until_finished()
        restored = checkpoint.restore(manager, jax.eval_shape(awkward_state))
    assert restored.step == 4 and restored.config == {"seed": 3}
    assert restored.versions["jax"] == jax.__version__
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)

    def raw(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    for expected, found in zip(
        jax.tree.leaves(state), jax.tree.leaves(restored.state), strict=True
    ):
        assert expected.dtype == found.dtype
        np.testing.assert_array_equal(raw(expected), raw(found))

    def draw(s):
        return jax.random.normal(s["rbg"], (3,))

    np.testing.assert_array_equal(draw(state), draw(restored.state))


def test_a_state_of_one_process_of_several_is_a_file_that_every_run_reads(tmp_path, monkeypatch):
    """And a run of several processes reads what one process wrote."""
    state = awkward_state() | {"file": jnp.arange(3.0), "allow_pickle": jnp.ones(2)}
    like = jax.eval_shape(
        lambda: awkward_state() | {"file": jnp.zeros(3), "allow_pickle": jnp.ones(2)}
    )
    for alone in (True, False):
        folder = tmp_path / str(alone)
        monkeypatch.setattr(checkpoint, "is_alone", lambda state, alone=alone: alone)
        with checkpoint.open_manager(folder, alone=alone) as manager:
            for step in (4, 7):
                checkpoint.save(manager, step, state, config={"seed": 3})
            manager.wait_until_finished()
        assert (folder / "7" / "state" / "arrays.npz").exists() == alone
        monkeypatch.setattr(checkpoint, "is_alone", lambda state, alone=alone: not alone)
        with checkpoint.open_manager(folder, alone=not alone) as manager:
            restored = checkpoint.restore(manager, like)
        assert (restored.step, restored.config) == (7, {"seed": 3})
        for expected, found in zip(
            jax.tree.leaves(state), jax.tree.leaves(restored.state), strict=True
        ):
            assert expected.dtype == found.dtype and expected.shape == found.shape
            if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
                expected, found = jax.random.key_data(expected), jax.random.key_data(found)
            np.testing.assert_array_equal(expected, found)


def equal(a, b):
    raw = [x if jnp.issubdtype(x.dtype, jnp.number) else jax.random.key_data(x) for x in (a, b)]
    return a.dtype == b.dtype and np.array_equal(*raw)


def plain_state(scale=1.0):
    x = scale * jax.random.normal(jax.random.key(5), (20_000,))
    return {"x": x, "count": jnp.arange(6), "key": jax.random.key(1)}


@pytest.fixture(scope="module", params=[False, True], ids=["orbax", "file"])
def kept(request, tmp_path_factory):
    """Folder of two checkpoints, of steps 4 and 8, in either form."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "is_alone", lambda state: request.param)
        with checkpoint.open_manager(folder, alone=request.param) as manager:
            for step in (4, 8):
                metrics = {"a/b": 1.5, "a/b_seeds": [1.0, None]}
                config = {10: "ten", 9: [1, 2]}  # keys whose order JSON changes
                checkpoint.save(
                    manager,
                    step,
                    plain_state(step),
                    algorithm="walk",
                    metrics=metrics,
                    config=config,
                )
    return folder


def test_any_flipped_bit_is_found_before_a_file_is_read(kept, capfd):
    """In every file that says what the state is, at its ends, in between and at random."""
    rng = np.random.default_rng(0)
    files = [path for path in (kept / "8" / "state").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) > 50_000
    with checkpoint.open_manager(kept) as manager:
        for path in files:
            whole = path.read_bytes()
            places = {0, len(whole) // 2, len(whole) - 1, *rng.integers(0, len(whole), 3).tolist()}
            for at in places if "commit" not in path.name else ():  # Orbax's mark that it is done
                flipped = bytearray(whole)
                flipped[at] ^= 1 << at % 8
                path.write_bytes(bytes(flipped))
                with pytest.raises(
                    ValueError, match=r"damaged checkpoint: that of step 8 \(.*take"
                ):
                    checkpoint.restore(manager, plain_state(), step=8)
            path.write_bytes(whole)
        restored = checkpoint.restore(manager, plain_state(), algorithm="walk")
    assert restored.step == 8 and restored.config == {"10": "ten", "9": [1, 2]}
    assert jax.tree.all(jax.tree.map(equal, restored.state, plain_state(8)))
    assert capfd.readouterr() == ("", "")


def renamed(folder):
    (folder / "8").rename(folder / "12")


def stray(folder):
    (folder / "99").mkdir()
    (folder / "99" / "commit_success.txt").touch()


def truncated(folder):
    path = max((folder / "8").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(folder):
    for path in (folder / "8" / "state").rglob("*"):
        if path.is_file() and "commit" not in path.name:
            path.write_bytes(b"")


def without(name):
    def remove(folder):
        path = folder / "8" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def mixed(folder):
    """The state of another step, whole, under this one."""
    shutil.rmtree(folder / "8" / "state")
    shutil.copytree(folder / "4" / "state", folder / "8" / "state")


@pytest.mark.parametrize(
    ("damage", "step", "why"),
    [
        (renamed, 12, "it is that of step 8"),
        (stray, 99, "digests.json is missing"),
        (truncated, 8, "is not what was written"),
        (emptied, 8, "is not what was written"),
        (without("state"), 8, "digests.json is missing"),
        (without("state/digests.json"), 8, "digests.json is missing"),
        (without("state/record.json"), 8, "record.json is missing"),
        (mixed, 8, "it is that of step 4"),
    ],
    ids="renamed stray truncated emptied no_state no_digests no_record mixed".split(),
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    kept, tmp_path, capfd, damage, step, why
):
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    damage(folder)
    last = 8 if step == 99 else 4
    with checkpoint.open_manager(folder) as manager:
        with pytest.warns(RuntimeWarning) as caught:
            restored = checkpoint.restore(manager, plain_state(), algorithm="walk")
        (told,) = (str(warning.message) for warning in caught)
        assert f"that of step {step} (" in told and why in told and "\n" not in told
        assert told.endswith(f"set aside; going on from the one of step {last}")
        assert restored.step == last
        assert jax.tree.all(jax.tree.map(equal, restored.state, plain_state(last)))
        assert manager.latest_step() == last
        assert (folder / f"{step}.damaged").is_dir()
        # The steps of the resumed run have their places again, and nothing is told twice.
        checkpoint.save(manager, step, plain_state(7.0), algorithm="walk")
        manager.wait_until_finished()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert checkpoint.restore(manager, plain_state()).step == step
    assert capfd.readouterr() == ("", "")


def test_without_a_whole_checkpoint_each_is_named(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "run")
    for step in ("4", "8"):
        (tmp_path / "run" / step / "state" / "record.json").write_text("{}")
    with checkpoint.open_manager(tmp_path / "run") as manager:
        with pytest.raises(ValueError, match=r"step 8 \(.*step 4 \(.*no whole one; start in a new"):
            checkpoint.restore(manager, plain_state())
        assert sorted(manager.all_steps()) == [4, 8]  # nothing is touched


def test_another_algorithm_is_refused_though_its_state_has_the_same_shapes(kept):
    class Fields(NamedTuple):
        count: jax.Array
        key: jax.Array
        x: jax.Array

    with checkpoint.open_manager(kept) as manager:
        with pytest.raises(
            ValueError, match="of the algorithm 'walk', now it is 'jump'; resume with"
        ):
            checkpoint.restore(manager, plain_state(), algorithm="jump")
        with pytest.raises(ValueError, match=r"leaf 'count', expected \.count, found \['count'\]"):
            checkpoint.restore(manager, Fields(**plain_state()), algorithm="walk")


# Writes that end after one of them has failed find their event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("alone", [False, True], ids=["orbax", "file"])
def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path, monkeypatch, capfd, alone):
    monkeypatch.setattr(checkpoint, "is_alone", lambda state: alone)
    manager = checkpoint.open_manager(tmp_path, alone=alone)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint.save(manager, 4, plain_state())
            checkpoint.close(manager)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert "absl" not in capfd.readouterr().err
    with checkpoint.open_manager(tmp_path, alone=alone) as manager:
        assert manager.all_steps() == []
        checkpoint.save(manager, 4, plain_state())
    assert [path.name for path in tmp_path.iterdir()] == ["4"]  # what was half written is gone


def test_steps_go_up(kept):
    with checkpoint.open_manager(kept) as manager:
        for step in (8, 5):
            with pytest.raises(
                ValueError, match=f"step must be above 8, the last one .*, got {step}"
            ):
                checkpoint.save(manager, step, plain_state())


def test_checkpoints_of_older_versions_are_refused(tmp_path):
    (tmp_path / "8" / "meta").mkdir(parents=True)
    (tmp_path / "8" / "commit_success.txt").touch()
    with (
        checkpoint.open_manager(tmp_path) as manager,
        pytest.raises(ValueError, match="written by jaxlab 0.5 or before; start in a new folder"),
    ):
        checkpoint.restore(manager, plain_state())
    assert pathlib.Path(tmp_path / "8").exists()


def test_saved_arrays_survive_donation(tmp_path):
    grow = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x = jnp.zeros(200_000)
    with checkpoint.open_manager(tmp_path, max_to_keep=9) as manager:
        for step in range(1, 6):
            x = grow(x)
            checkpoint.save(manager, step, {"x": x})
        manager.wait_until_finished()
        like = {"x": jax.ShapeDtypeStruct((200_000,), jnp.float32)}
        for step in range(1, 6):
            found = checkpoint.restore(manager, like, step=step).state["x"]
            np.testing.assert_array_equal(found, np.full(200_000, step, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"new": jnp.zeros(2)}, r"'new', expected float32\[2\], found no such leaf"),
        (lambda s: {k: v for k, v in s.items() if k != "half"}, r"'half', expected no such leaf"),
        (lambda s: s | {"half": jnp.zeros(2)}, r"'half', expected float32\[2\], found bfloat16"),
        (lambda s: s | {"flag": jnp.zeros(3, bool)}, r"'flag', expected bool\[3\], found bool\[\]"),
    ],
    ids=["missing", "extra", "dtype", "shape"],
)
def test_mismatch_names_the_leaf(tmp_path, change, message):
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, awkward_state())
        manager.wait_until_finished()
        with pytest.raises(ValueError, match=message):
            checkpoint.restore(manager, change(awkward_state()))


def test_missing_checkpoint_lists_what_there_is(tmp_path):
    with checkpoint.open_manager(tmp_path, max_to_keep=2) as manager:
        for step in (1, 2, 3):
            checkpoint.save(manager, step, {"x": jnp.ones(2)})
        manager.wait_until_finished()
        with pytest.raises(FileNotFoundError, match=r"no checkpoint 1 .*\[2, 3\]"):
            checkpoint.restore(manager, {"x": jnp.ones(2)}, step=1)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"count": 3}, "'count' is a int, expected an array"),
        ({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, "distinct paths"),
    ],
    ids=["python scalar", "ambiguous path"],
)
def test_bad_states_are_refused(tmp_path, state, message):
    with checkpoint.open_manager(tmp_path) as manager, pytest.raises(ValueError, match=message):
        checkpoint.save(manager, 1, state)
