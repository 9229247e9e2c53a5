"""The ZOFL comparison: selection, units against plain runs, resuming, and what it refuses."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import zofl as experiment
from experiments.harness import drawing
from experiments.harness.result import VERDICTS, Figure, Part, Row
from experiments.zofl import analysis, external, figures, methods, rows, runs, study, tasks
from experiments.zofl.analysis import Comparison
from experiments.zofl.runs import PUBLISHED, TUNED, Outcome, Record
from jaxlab.core import logging
from jaxlab.zeroth_order import method, zofl

SEEDS = 5
"""As many as a verdict takes."""
TINY = experiment.Config(
    num_seeds=2,
    tuning_seeds=1,
    sigmas=(0.0,),
    max_queries=400,
    problems=("HS7", "qp-2"),
    methods=("zofl", "zob-gda"),
    thorough=False,
)


@pytest.fixture
def comparison_alone(monkeypatch):
    """Leaves out the studies beside the comparison, which have tests of their own."""
    monkeypatch.setattr(study, "PARTS", ())


def test_selection_takes_the_least_score_and_the_published_step_where_it_ties():
    assert runs.select(np.array([3.0, 1.0, 2.0]), published=0) == 1
    assert runs.select(np.array([1.0, 1.0, 1.0]), published=2) == 2
    assert runs.select(np.array([np.nan, 2.0, np.inf]), published=0) == 1
    assert runs.select(np.array([np.inf, np.inf]), published=1) == 1


def test_score_is_the_median_of_gap_and_weighted_excess_violation():
    gap = np.array([[0.5, -0.2, 0.1], [0.0, 0.0, 7.0]])
    violation = np.array([[0.0, 0.01, 0.2], [0.05, 0.03, 0.0]])
    # Seeds of the first: 0.5, 0.2, 0.1 + 10 * 0.19; of the second: 10 * 0.04, 10 * 0.02, 7.
    score = runs.tuning_score(gap, violation, 0.01)
    np.testing.assert_allclose(score, [0.5, 0.4], rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 7, 64, 10_000])
def test_history_has_increasing_entries_up_to_the_last_step(num_steps):
    steps = runs.log_steps(num_steps)
    assert (np.diff(steps) > 0).all() and steps[0] >= 1 and steps[-1] == num_steps
    if num_steps > 1000:  # a decade early on, and late ones of one size
        assert steps[10] < 50 and np.diff(steps).max() <= num_steps / (runs.NUM_POINTS / 2) + 1


def test_the_best_point_of_a_lane_goes_by_the_noise_of_the_lane(x64):
    """qp-2 at x0 = 0: a point beyond the corner is kept if it violates by no more than sigma."""
    task = tasks.make_task("qp-2", 200)
    unit = runs.measure(
        task,
        methods.TABLE["switching"],
        sigmas=(0.0, 0.1),
        num_seeds=SEEDS,
        tuning_seeds=2,
        seed=0,
        quick=True,
    )
    exact, noisy = unit.record.best_violation[:, TUNED, :, -1]
    assert exact.max() <= tasks.allowance(0.0) < noisy.max() < tasks.allowance(0.1) + 0.5


def test_gaps_are_relative_to_what_there_is_to_gain(x64):
    """From a feasible start the initial gap is the unit, from an infeasible one at least 1 is."""
    task = tasks.make_task("opf9-blackbox", 200)
    f0 = task.problem.exact(task.problem.x0)[0]
    np.testing.assert_allclose((f0 - task.f_ref) / task.gap_scale, 1.0, rtol=1e-6)
    task = tasks.make_task("HS40", 200)  # f from -0.41 to -0.25
    assert task.gap_scale == 1.0


def test_what_violation_can_buy():
    """HS7: lambda = 1 / (2 sqrt 3) at (0, sqrt 3); h is 25 at the start, which scales it."""
    task = tasks.make_task("HS7", 200)
    gap = np.log(5.0) - 2.0 + np.sqrt(3.0)
    np.testing.assert_allclose(task.price, 25.0 / (2.0 * np.sqrt(3.0)) / gap, rtol=1e-6)
    assert analysis.least_gap(task, 0.01) == tasks.allowance(0.01) * task.price
    assert analysis.least_gap(task._replace(price=0.1), 0.0) == tasks.allowance(0.0)
    # Multipliers of inequalities that are not active, and of bounds, are no part of it.
    inside = tasks.make_task("gaussian-10-inactive", 200)
    assert abs(inside.price) < 1e-6


def test_an_average_is_judged_by_the_tolerance_of_its_noise():
    """SZO-ConEx: the nearer point is feasible at its noise level, though not without noise."""
    unit = _outcome(0.5, 0.0)
    record = unit.record._replace(
        average_gap=np.full_like(unit.record.gap, 0.001),
        average_violation=np.full_like(unit.record.gap, 0.02),
    )
    conex = methods.TABLE["szo-conex"]
    assert (runs.answer(record, conex, (0.01,)).best_gap == np.float32(0.001)).all()
    assert (runs.answer(record, conex, (0.0,)).best_gap[..., -1] == 0.5).all()
    below = record._replace(average_gap=np.full_like(unit.record.gap, -0.9))
    assert (runs.answer(below, conex, (0.01,)).best_gap[..., -1] == 0.5).all()


def test_a_gap_below_the_optimum_does_not_solve():
    task = tasks.make_task("HS7", 300)
    for gap, solved in ((-0.9, 0.0), (-0.05, 1.0), (0.05, 1.0), (0.9, 0.0)):
        comparison = Comparison(
            dataclasses.replace(TINY, num_seeds=SEEDS, sigmas=(0.01,)),
            {"HS7": task},
            ("zofl",),
            {("HS7", "zofl"): _outcome(gap, 0.02)},
        )
        assert analysis.solved_shares(comparison, "zofl", 0, 0.1).tolist() == [solved]
    assert analysis.accuracies(0.01) == (0.1,) and analysis.accuracies(0.0) == (0.1, 0.001)


def test_every_method_has_as_many_candidates_its_own_among_them():
    for name, entry in methods.TABLE.items():
        assert len(set(entry.grid)) == methods.GRID_SIZE, name
        assert entry.grid[entry.published] == entry.default


def test_a_unit_is_the_plain_run_of_its_method(x64):
    task = tasks.make_task("HS7", 300)
    chosen = methods.TABLE["zofl"]
    unit = runs.measure(
        task, chosen, sigmas=(0.0,), num_seeds=2, tuning_seeds=0, seed=3, quick=True
    )
    assert unit.chosen.tolist() == [chosen.published]
    num_steps = chosen.num_steps(task)
    algorithm = zofl.make_zofl(task.problem)
    key = jax.random.fold_in(jax.random.key(3), jnp.uint32(1))
    state, _ = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)
    record = jax.tree.map(lambda leaf: leaf[0, PUBLISHED, 1, -1], unit.record)
    assert record.queries == state.queries <= 300 and record.steps == num_steps
    # HS7 by hand; |f| at the start is below 1 and is not scaled, h there is 25.
    x1, x2 = np.asarray(state.x)
    gap = (np.log1p(x1**2) - x2 + np.sqrt(3)) / max(1.0, np.log(5) - 2 + np.sqrt(3))
    violation = abs((1 + x1**2) ** 2 + x2**2 - 4) / 25
    # A float32 history of float64 values. At the optimum the two programs differ by the rounding of
    # differences over the radius, 1e-16 / 1e-3, and by what the last steps make of it.
    np.testing.assert_allclose(record.gap, gap, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(record.violation, violation, rtol=1e-6, atol=1e-12)


def test_a_tuned_unit_runs_the_candidate_that_it_chose(x64):
    task = tasks.make_task("qp-2", 200)
    chosen = methods.TABLE["zob-gda"]
    common = {"sigmas": (0.0,), "num_seeds": 2, "seed": 0, "quick": True}
    unit = runs.measure(task, chosen, tuning_seeds=1, **common)
    index = int(unit.chosen[0])
    assert index == runs.select(unit.score[0], chosen.published) != chosen.published
    best = unit.record.best_gap[0, :, :, -1]
    alone = runs.measure(
        task, chosen._replace(default=chosen.grid[index]), tuning_seeds=0, **common
    )
    np.testing.assert_allclose(best[TUNED], alone.record.best_gap[0, PUBLISHED, :, -1], rtol=1e-5)


def test_comparison_runs_and_a_resumed_one_gives_the_same(tmp_path, monkeypatch, comparison_alone):
    first = study.run(TINY, tmp_path)
    assert all(row.verdict in VERDICTS for row in first.rows)
    solved = {row.metric: row.value for row in first.rows}
    # ZOFL reaches a feasible 1e-3 on both problems within 400 queries, with any seed.
    assert solved["Problems solved to 0.001, σ = 0"] == 2.0
    assert solved["Problems with a feasible end, σ = 0"] == 2.0
    lines = logging.read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for figure in first.figures:
        assert 5_000 < (tmp_path / figure.path).stat().st_size < 150_000

    (tmp_path / "units" / "qp-2--zob-gda.npz").unlink()
    asked = []
    measure = runs.measure

    def watched(task, *args, **options):
        asked.append(task.name)
        return measure(task, *args, **options)

    monkeypatch.setattr(runs, "measure", watched)
    second = study.run(TINY, tmp_path)
    assert asked == ["qp-2"]
    assert second.rows == first.rows and second.tables == first.tables
    again = logging.read_jsonl(tmp_path / "metrics.jsonl")[4:]
    # What was read is not said again: one line, with the figures of the unit that was measured.
    (line,), (before,) = (
        [one for one in said if "qp-2/zob-gda/perf/run_seconds" in one] for said in (again, lines)
    )
    assert len(again) == 1 and line.keys() == before.keys()


def test_a_study_beside_the_comparison_is_kept_with_its_pictures(tmp_path, monkeypatch):
    ran, stop = [], [True]

    def part(name):
        def run(config, folder):
            ran.append(name)
            if name == "second" and stop:
                raise KeyboardInterrupt
            (folder / f"{name}.png").write_bytes(name.encode())
            row = Row("claim", name, float(config.seed))
            return Part((row,), (Figure(f"{name}.png", name),))

        return types.SimpleNamespace(__name__=f"parts.{name}", run=run)

    monkeypatch.setattr(study, "PARTS", (part("first"), part("second")))
    with pytest.raises(KeyboardInterrupt):
        study._beside(TINY, tmp_path)
    stop.clear()
    parts = study._beside(TINY, tmp_path)
    assert ran == ["first", "second", "second"]
    assert [one.rows[0].metric for one in parts] == ["first", "second"]
    (tmp_path / "first.png").unlink()
    assert study._beside(TINY, tmp_path) == parts and len(ran) == 3
    assert (tmp_path / "first.png").read_bytes() == b"first"


@pytest.mark.parametrize(
    "change, named",
    [
        ({"problems": ("HS7", "HS8")}, "HS8"),
        ({"methods": ("zofl", "adam")}, "adam"),
        ({"methods": ("zofl", "zofl-midpoint")}, "rival"),
    ],
    ids=["problem", "method", "no rival"],
)
def test_refuses_before_it_writes(tmp_path, change, named):
    with pytest.raises(ValueError, match=named):
        study.run(dataclasses.replace(TINY, **change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_scipy_ends_at_the_optimum(x64):
    task = tasks.make_task("HS7", 1000)
    unit = external.measure(task, "SLSQP", sigmas=(0.0,), num_seeds=2, seed=0)
    gap, violation = unit.record.best_gap[0, 0, :, -1], unit.record.best_violation[0, 0, :, -1]
    # The least value within the tolerance 1e-4 counts, which a multiplier of about 1 buys.
    assert (np.abs(gap) < 2e-4).all() and (violation <= 1.0001e-4).all()
    assert (unit.record.queries[0, 0, :, -1] < 1000).all()


def _outcome(gap, violation):
    """An outcome with these ends, `[seeds]`, after 100 queries and as many steps."""
    gap, violation = (
        np.broadcast_to(v, (1, 2, SEEDS)).astype(np.float32) for v in (gap, violation)
    )

    def trace(values):
        return np.stack([np.ones_like(values), values], axis=-1)

    count = np.broadcast_to(np.asarray([10, 100], np.int32), (1, 2, SEEDS, 2))
    ends = (trace(gap), trace(violation)) * 3
    return Outcome(
        Record(count, count, *ends, 0 * count), np.zeros((1, 0)), np.zeros(1, int), np.zeros(2)
    )


@pytest.mark.parametrize(
    ("violation", "low", "high"),
    [((2e-9, 3e-9), 1e-10, 1e-7), ((3e-5, 0.2), 1e-6, 1.0), ((0.0, 0.0), 1e-10, 1.0)],
    ids=["far below the tolerance", "across it", "none"],
)
def test_axes_show_where_the_data_are(tmp_path, monkeypatch, violation, low, high):
    """Legends stand outside of the axes, and these reach less than two decades past the curves."""
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: drawn.append(figure))
    x, gap = np.geomspace(10.0, 1e4, 20), np.geomspace(3.0, 2e-3, 20)
    bands = {
        name: (x, np.tile(gap, (SEEDS, 1)), np.tile(np.linspace(*violation, 20), (SEEDS, 1)))
        for name in ("ZOFL, subspace form", "ZOB-GDA, a block of variables", "SZO-ConEx")
    }
    figures.progress(
        tmp_path / "a.png", bands, ours=("ZOFL, subspace form",), tol=1e-4, title="HS43: n = 4"
    )
    curves = {name: (x, values[0]) for name, (_, values, _) in bands.items()}
    figures.lines(
        tmp_path / "b.png", curves, xlabel="queries", ylabel="gap", title="qcqp", log="xy"
    )
    for figure in drawn:
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert not any(
            axis.get_tightbbox().overlaps(box) or axis.get_legend() for axis in figure.axes
        )
        assert 0.0 <= box.x0 and box.x1 <= figure.bbox.width
        for axis in figure.axes:
            inside = axis.get_tightbbox()
            assert 0.0 <= inside.x0 and inside.x1 <= figure.bbox.width  # its notes too
    upper, lower = drawn[0].axes
    assert 2e-5 < upper.get_ylim()[0] < 2e-3 and 3.0 < upper.get_ylim()[1] < 300.0
    assert low <= lower.get_ylim()[0] and lower.get_ylim()[1] <= high
    notes = [text.get_text() for text in lower.texts]
    assert ("no violation" in notes) == (violation[1] == 0.0)
    assert any("feasible" in note for note in notes) == (violation[0] == 3e-5)


def test_duels_by_hand():
    ours = _outcome(np.asarray([4e-4, 2e-4, 5e-4, 3e-4, 4e-4]), 0.0)
    cases = {
        "far": (_outcome(0.1, 0.0), analysis.BETTER),
        "infeasible": (_outcome(1e-9, 0.5), analysis.BETTER),
        "solved": (_outcome(1e-9, 0.0), analysis.WORSE),
        "same": (ours, analysis.TIE),
    }
    task = tasks.make_task("HS7", 300)._replace(price=1.0)
    for rival, expected in cases.values():
        comparison = Comparison(
            dataclasses.replace(TINY, num_seeds=SEEDS),
            {"HS7": task},
            ("zofl", "zob-gda"),
            {("HS7", "zofl"): ours, ("HS7", "zob-gda"): rival},
        )
        found = analysis.duel(comparison, "HS7", "zob-gda", 0)
        assert found is not None and found.outcome == expected
        counts, losers = rows.count_duels(comparison, 0)
        assert counts[expected] == 1
        assert bool(losers) == (expected == analysis.WORSE)
        # Solved to 1e-3 means feasible too.
        shares = analysis.solved_shares(comparison, "zob-gda", 0, 1e-3)
        assert shares.tolist() == [
            float(rival is not cases["far"][0] and rival is not cases["infeasible"][0])
        ]
    # The best rival is the one whose duel is hardest: the mean of its seeds, not their median.
    three = Comparison(
        dataclasses.replace(TINY, num_seeds=SEEDS),
        {"HS7": task},
        ("zofl", "zob-gda", "zoeg"),
        {
            ("HS7", "zofl"): _outcome(1e-3, 0.0),
            ("HS7", "zob-gda"): _outcome(np.asarray([1e-9, 1e-9, 1e-9, 1e-9, 0.9]), 0.0),
            ("HS7", "zoeg"): _outcome(2e-4, 0.0),
        },
    )
    assert analysis.best_rival(three, "HS7", 0) == "zoeg"
    assert rows.count_duels(three, 0)[0][analysis.WORSE] == 1
    both = Comparison(
        dataclasses.replace(TINY, num_seeds=SEEDS),
        {"HS7": task},
        ("zofl", "zob-gda"),
        {("HS7", "zofl"): _outcome(0.0, 0.2), ("HS7", "zob-gda"): _outcome(0.0, 0.3)},
    )
    found = analysis.duel(both, "HS7", "zob-gda", 0)
    assert found is not None and found.outcome == analysis.NEITHER
