"""Autotuning: the fastest of those that are right, and what a file remembers."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels import mqa_decode, tuning
from jaxlab.kernels.moe import api as moe
from jaxlab.kernels.mqa_decode import api, specs


class Setting(NamedTuple):
    delay: float
    shift: float = 0.0
    broken: bool = False


X = jnp.arange(4.0)


class Clock:
    """A clock that stands still but for the delays of what it times, however slow the machine."""

    now = 0.0

    def perf_counter(self):
        return self.now


CLOCK = Clock()


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(tuning, "time", CLOCK)


def build(setting: Setting):
    """x + shift, as late as the setting says."""

    def late(x):
        CLOCK.now += setting.delay
        return np.asarray(x) + np.float32(setting.shift)

    def f(x):
        if setting.broken:
            raise RuntimeError("out of shared memory")
        return jax.pure_callback(late, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    return f


def tune(candidates, **options):
    return tuning.autotune("toy", build, candidates, [X], reference=lambda x: x, **options)


def test_the_fastest_that_runs_and_is_right_is_taken(clock):
    wrong, broken = Setting(0.0, shift=0.5), Setting(0.0, broken=True)
    slow, fast = Setting(0.03), Setting(0.001)
    with pytest.warns(UserWarning) as warned:
        assert tune([slow, wrong, broken, fast]) == fast
    said = " ".join(str(w.message) for w in warned)
    assert "is off by 0.167" in said and "out of shared memory" in said


def test_a_file_remembers_by_device_shape_and_dtype(tmp_path, clock):
    path = tmp_path / "deep" / "tuned.json"
    fast, slow = Setting(0.0), Setting(0.02)
    assert tune([slow, fast], path=path) == fast
    ((key, kept),) = json.loads(path.read_text()).items()
    assert key == f"toy | {jax.devices()[0].device_kind} | float32[4]" and kept == fast._asdict()
    # What it says is believed, and not timed again.
    path.write_text(json.dumps({key: slow._asdict()}))
    assert tune([slow, fast], path=path) == slow
    # A setting that is no longer a candidate is found anew; other entries stay.
    path.write_text(json.dumps({key: {"delay": 7.0}, "other": {}}))
    assert tune([slow, fast], path=path) == fast
    assert json.loads(path.read_text()) == {key: fast._asdict(), "other": {}}


def test_no_candidate_is_an_error():
    with pytest.raises(ValueError, match="needs a candidate"):
        tune([])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no candidate of toy"):
        tune([Setting(0.0, shift=1.0)])


def test_launches_of_the_kernels_agree(tmp_path):
    """What autotuning compares on this machine gives the same numbers, and one of them wins."""
    work = specs.make(specs.Spec(3, 90, "lognormal", kv="f32", H=4, C=16, page=16))
    operands = (work.q, work.k_pages, work.v_pages, work.tables[0], work.lens)
    best = mqa_decode.autotune(*operands, path=tmp_path / "tuned.json")
    call = api.Call(1, 4, 16, 16, *[jnp.dtype(jnp.float32)] * 2, False)
    assert best in mqa_decode.candidates(call, *work.tables.shape[1:])
    with pytest.raises(ValueError, match="not both"):
        mqa_decode.mqa_decode(*operands, impl="xla", config=best)

    rng = np.random.default_rng(0)
    shapes = ((40, 12), (5, 12, 10), (5, 12, 10), (5, 10, 12))
    operands = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    operands.append(jnp.asarray([0, 23, 0, 16, 1], jnp.int32))
    options = moe.candidates(40, 5)
    assert len(options) >= 4 and options[0] == moe.heuristic(40, 5)
    results = [moe.grouped_swiglu(*operands, config=option) for option in options]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=2e-5, atol=2e-4)
    assert moe.autotune(*operands, path=tmp_path / "tuned.json") in options
    assert len(json.loads((tmp_path / "tuned.json").read_text())) == 2
    with pytest.raises(ValueError, match="block must be"):
        moe.grouped_swiglu(*operands, config=moe.Config("blocked", 0))


def test_launches_on_a_gpu_fit_its_memory(monkeypatch):
    """Stages of the Hopper kernel: a multiple of its lanes, as many as shared memory holds."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(api.compat, "compute_capability", lambda: 9.0)
    bf16 = jnp.dtype(jnp.bfloat16)

    def stages(call):
        return [c.stages for c in api.candidates(call, 8, 256) if c.impl == "mosaic_gpu"]

    assert stages(api.Call(1, 64, 256, 64, bf16, bf16, False)) == [2]  # 2 x 64 KB of 227
    assert stages(api.Call(2, 64, 128, 64, bf16, bf16, False)) == [2, 1, 3, 4, 5]  # 32 KB each
    splits = {
        c.num_splits
        for c in api.candidates(api.Call(1, 8, 64, 64, bf16, bf16, False), 8, 64)
        if c.impl == "triton"
    }
    assert splits == {8, 16, 32, 64, 128}  # 32 of 2 pages each, a quarter to four times as many
