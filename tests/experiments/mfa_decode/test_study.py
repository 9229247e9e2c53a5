"""The kernel study and its workloads: bytes by hand, tables that are sound, resuming by cell."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import ceilings, mqa_decode, timing
from experiments.harness import store
from experiments.mfa_decode import Config, rows, study
from jaxlab.kernels.mqa_decode import specs
from jaxlab.kernels.mqa_decode.specs import Spec

TINY = Config(
    batches=(1, 2),
    contexts=(100,),
    lengths=("uniform", "bimodal"),
    kv=("f32",),
    num_heads=2,
    head_dim=16,
    repeats=2,
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(specs, "COLD_BYTES", 100_000)
    monkeypatch.setattr(ceilings, "copy_bandwidth", lambda: 1e10)


@pytest.mark.parametrize(
    "spec, size, scales",
    [
        (Spec(3, 70, "uniform", "bf16", H=4, C=16), 2, 0),
        (Spec(3, 70, "lognormal", "f32", H=4, C=16), 4, 0),
        (Spec(8, 70, "bimodal", "fp8", 2, H=4, C=16), 1, 8),
        (Spec(3, 70, "uniform", "direct", H=4, C=16), 1, 4),
    ],
    ids=["bf16", "f32", "fp8", "direct"],
)
def test_a_workload_counts_what_must_be_moved(spec, size, scales):
    work = specs.make(spec)
    tokens = int(np.asarray(work.lens).sum())
    element = 4 if spec.kv == "f32" else 2  # of queries and results
    ends = 2 * spec.B * spec.S_q * spec.H * spec.C * element
    assert work.num_bytes == tokens * (2 * spec.C * size + scales) + ends
    seen = sum(n - spec.S_q + 1 + t for n in np.asarray(work.lens) for t in range(spec.S_q))
    assert work.num_flops == 4 * spec.H * spec.C * seen


def test_tables_take_turns_and_share_no_page():
    work = specs.make(Spec(3, 200, "lognormal", "f32", H=2, C=16))
    tables, lens = np.asarray(work.tables), np.asarray(work.lens)
    assert tables.shape[0] * lens.sum() * 2 * 16 * 4 >= 0.8 * specs.COLD_BYTES
    named = [
        tables[copy, b, : -(-lens[b] // 64)] for copy in range(tables.shape[0]) for b in range(3)
    ]
    flat = np.concatenate(named)
    assert len(set(flat.tolist())) == flat.size == work.k_pages.shape[0]


def test_lengths_have_the_mean_they_say():
    for kind in ("uniform", "lognormal", "bimodal"):
        lens = specs.lengths(Spec(4096, 5000, kind))
        assert abs(lens.mean() / 5000 - 1) < 0.05
    assert np.std(specs.lengths(Spec(4096, 5000, "lognormal"))) > 3000


def test_a_chain_makes_all_its_calls():
    """Seven calls of x -> 2 x in one program: the last result, not the time, shows them."""
    program = timing.chain(lambda i, x, y: 2.0 * x + i.astype(x.dtype) * y)
    np.testing.assert_array_equal(program(7, jnp.ones(3), 0.0), np.full(3, 128.0))
    timed = timing.measure_program(program, jnp.ones(3), 0.0, calls=7, repeats=3)
    assert timed.n == 3 and timed.median_s > 0
    with pytest.raises(ValueError, match="calls must be at least 1"):
        timing.measure_chain(lambda i, x: x, jnp.ones(3), calls=0)


def test_study_times_checks_and_resumes(tmp_path, monkeypatch):
    first = study.run(TINY, tmp_path)
    cells = sorted((tmp_path / "units").iterdir())
    assert len(cells) == len(study.grid(TINY)) == 3  # one request alone has one length
    stored = store.load(cells[0], study.Cell)[0].items
    assert {item.rival_name for item in stored} == {
        "jax.nn, dense cache",
        "jax.nn on gathered pages",
    }
    assert all(item.error < 1e-5 for item in stored)
    share = rows.share(
        timing.Measurement("a", "b", timing.Timing(0, 2.0, 0, 1), work=6e9, ceiling=1e10)
    )
    assert share == pytest.approx(30.0)
    by_metric = {row.metric: row for row in first.rows}
    assert by_metric["Largest deviation from the reference, over the largest value"].value < 1e-5
    large = [row for metric, row in by_metric.items() if metric.startswith("Share")]
    assert large and all(row.verdict == "not measured" for row in large)

    def fail(*args, **options):
        raise AssertionError("a stored cell was timed again")

    monkeypatch.setattr(mqa_decode, "cells", fail)
    again = study.run(TINY, tmp_path)
    assert again.rows == first.rows


def test_a_cell_that_fails_costs_no_other(tmp_path, monkeypatch):
    def half(grid, *, repeats):
        if grid[0].B == 2:
            raise RuntimeError(f"{grid[0].name}: no memory")
        timed = timing.Timing(0, 1.0, 0, repeats)
        return [timing.Measurement("ours", "x", timed, work=5e9, ceiling=1e10, error=0.0)]

    monkeypatch.setattr(mqa_decode, "cells", half)
    found = study.run(TINY, tmp_path)
    assert found.summary.startswith("At most 50 %")
    assert found.limits[-2:] == tuple(
        f"Not measured: B = 2, S = 100 {lengths}, f32: no memory." for lengths in TINY.lengths
    )
    with pytest.raises(RuntimeError, match="no memory"):
        study.run(dataclasses.replace(TINY, batches=(2,)), tmp_path / "none")


def test_large_cells_are_summarized(tmp_path):
    """Two large cells at 80 % and 60 %: the median between them, and both ends."""
    found = {}
    for S, seconds in ((300_000, 1.0), (400_000, 4.0 / 3.0)):
        item = timing.Measurement(
            "mqa_decode",
            "x",
            timing.Timing(0, seconds, 0, 1),
            "other",
            timing.Timing(0, 2 * seconds, 0, 1),
            work=8e9,
            ceiling=1e10,
            error=1e-3,
        )
        found[Spec(2, S)] = [item]
    config = dataclasses.replace(TINY, kv=("bf16",), lengths=("uniform",))
    (row,) = rows.shares(found, config)
    assert (row.value, row.interval) == (pytest.approx(70.0), pytest.approx((60.0, 80.0)))
    (rival,) = rows.rivals([item for items in found.values() for item in items])
    assert (rival.value, rival.verdict) == (pytest.approx(2.0), "better")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batches": ()}, "batches must not be empty"),
        ({"head_dim": 24}, "multiple of 16"),
        ({"repeats": 1}, "repeats"),
        ({"max_tokens": 10}, "leaves no cell"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
