"""The pipeline's formula and its simulation against a calendar of events."""

import heapq
import itertools

import numpy as np
import pytest

from jaxlab.serving.afd import pipeline


def calendar(seconds):
    """The time at the end: every stage takes what arrives first, whichever micro-batch that is.

    `seconds[s]` is `[L, M, instances]`. Arrivals are taken from a heap in order of time, so nothing
    is presumed about the order of micro-batches.
    """
    num_layers, num_micro_batches, _ = seconds[0].shape
    free = [np.zeros(took.shape[2]) for took in seconds]
    # In order of time; arrivals at the same time in the order in which they are due.
    waiting = [(0.0, 0, m) for m in range(num_micro_batches)]
    end = 0.0
    while waiting:
        arrival, k, m = heapq.heappop(waiting)
        layer, s = divmod(k, len(seconds))
        free[s] = np.maximum(arrival, free[s]) + seconds[s][layer, m]
        left = float(free[s].max())
        if k + 1 < len(seconds) * num_layers:
            heapq.heappush(waiting, (left, k + 1, m))
        end = max(end, left)
    return end


def constant(stages, num_micro_batches, num_layers):
    return [np.full((num_layers, num_micro_batches, 1), t) for t in stages]


def last(events):
    return max(event.end for event in events)


def test_formula_simulation_and_calendar_are_equal():
    """Also where micro-batches are too few to fill the longest stage."""
    rng = np.random.default_rng(0)
    too_few = 0
    for _ in range(400):
        stages, M, L = rng.uniform(0.1, 1.0, 4), int(rng.integers(1, 7)), int(rng.integers(1, 8))
        want = pipeline.pipeline_time(stages, M, L)
        np.testing.assert_allclose(calendar(constant(stages, M, L)), want, rtol=1e-12)
        np.testing.assert_allclose(last(pipeline.simulate_pipeline(stages, M, L)), want, rtol=1e-12)
        too_few += M < pipeline.min_micro_batches(stages)
    assert 100 < too_few < 300


def test_steady_state_and_fewest_micro_batches():
    """Per token: long runs of the calendar; fewer micro-batches than needed leave bubbles."""
    stages = (1.0, 0.3, 0.8, 0.4)
    assert pipeline.min_micro_batches(stages) == 3
    for M in (1, 2, 3, 5):
        rate = (calendar(constant(stages, M, 400)) - calendar(constant(stages, M, 200))) / 200
        np.testing.assert_allclose(pipeline.time_per_token(stages, M, 1), rate, rtol=1e-9)
    busy = {M: M * max(stages) / pipeline.time_per_token(stages, M, 1) for M in (2, 3)}
    assert busy[2] < 1.0 == busy[3]


def test_times_of_their_own_for_layers_micro_batches_and_instances():
    """Stragglers and noise: every event by the calendar's rule, the end equal to its end."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        M, L = int(rng.integers(1, 6)), int(rng.integers(1, 6))
        seconds = [rng.exponential(1.0, (L, M, int(rng.integers(1, 5)))) for _ in range(4)]
        events = pipeline.simulate_pipeline(seconds, M, L)
        np.testing.assert_allclose(last(events), calendar(seconds), rtol=1e-12)
        assert len(events) == L * M * sum(took.shape[2] for took in seconds)
        for event in events:
            took = seconds[pipeline.STAGES.index(event.role)]
            np.testing.assert_allclose(
                event.end - event.start,
                took[event.layer, event.micro_batch, event.instance],
                rtol=1e-9,
                atol=1e-12,
            )
        by_instance = {}
        for event in events:
            by_instance.setdefault((event.role, event.instance), []).append(event)
        for served in by_instance.values():  # one at a time, in order
            assert all(a.end <= b.start for a, b in itertools.pairwise(served))


def test_a_constant_straggler_sets_the_pace_and_lockstep_is_the_maximum():
    """One slow worker of four makes its stage as slow as itself; lockstep is never quicker."""
    M, L = 3, 5
    slow = np.array([1.0, 1.0, 1.4, 1.0]).reshape(1, 1, 4)
    found = last(pipeline.simulate_pipeline((slow, 0.25, 1.0, 0.5), M, L))
    np.testing.assert_allclose(found, pipeline.pipeline_time((1.4, 0.25, 1.0, 0.5), M, L))
    noise = np.random.default_rng(2).exponential(1.0, (L, M, 4))
    alone = last(pipeline.simulate_pipeline((noise, 0.25, 1.0, 0.5), M, L))
    lockstep = last(pipeline.simulate_pipeline((noise.max(2), 0.25, 1.0, 0.5), M, L))
    assert alone <= lockstep


def test_dummy_micro_batches():
    """Two requests in three micro-batches: free dummies change nothing, others cost their own."""
    sizes = np.array([1, 1, 0])
    for fixed in (0.0, 0.3):
        stages = [(fixed + t * sizes)[None] for t in (1.0, 0.25, 0.75, 0.5)]
        found = last(pipeline.simulate_pipeline(stages, 3, 4))
        without = pipeline.pipeline_time([fixed + t for t in (1.0, 0.25, 0.75, 0.5)], 2, 4)
        if fixed == 0.0:
            np.testing.assert_allclose(found, without, rtol=1e-12)
        else:
            assert found > without


def test_bad_input_is_named():
    for stages in ((1.0, -0.1), (0.0, 0.0), (float("nan"), 1.0), ()):
        with pytest.raises(ValueError, match="stage_seconds"):
            pipeline.pipeline_time(stages, 1, 1)
        with pytest.raises(ValueError, match="stage_seconds"):
            pipeline.min_micro_batches(stages)
    ones = np.ones((2, 3))
    for stages, message in (
        ((1.0, 1.0, 1.0), "one entry for each"),
        ((0.0,) * 4, "must not all be zero"),
        ((1.0, -1.0, 1.0, 1.0), "network out must be finite"),
        ((1.0, 1.0, np.inf, 1.0), "experts must be finite"),
        ((ones.T, 1.0, 1.0, 1.0), "attention must be a number or have the shape"),
        ((np.ones(3), 1.0, 1.0, 1.0), r"got \(3,\)"),
        ((np.ones((2, 3, 0)), 1.0, 1.0, 1.0), "one instance"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.simulate_pipeline(stages, 3, 2)
    with pytest.raises(ValueError, match="num_layers"):
        pipeline.simulate_pipeline((1.0,) * 4, 3, 0)
