"""Checkpoints: exact round trips of awkward leaves, and errors that name what differs."""

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
