"""Utilization, overlap and stragglers: simulated pipelines, clocks that differ, traces by hand."""

import numpy as np
import pytest

from jaxlab.serving.afd import pipeline, trace

BY_HAND = [  # two micro-batches, one layer, perfectly overlapped, on a clock that starts at 10
    ("attention", 0, 0, 0, 10.0, 12.0),
    ("attention", 0, 0, 1, 12.0, 14.0),
    ("experts", 0, 0, 0, 12.0, 13.0),
    ("experts", 0, 0, 1, 14.0, 15.0),
]


def test_a_trace_by_hand():
    events = trace.read_trace(reversed(BY_HAND))
    assert [event.start for event in events] == [10.0, 12.0, 12.0, 14.0]
    assert trace.utilization(events) == {"attention": 0.8, "experts": 0.4}
    found = trace.overlap_efficiency(events)
    assert found.stage_seconds == {"attention": 2.0, "experts": 1.0}
    assert (found.serial, found.ideal, found.measured, found.efficiency) == (6.0, 5.0, 5.0, 1.0)
    late = [*BY_HAND[:3], ("experts", 0, 0, 1, 14.5, 15.5)]  # half a second of one was hidden
    assert trace.overlap_efficiency(trace.read_trace(late)).efficiency == 0.5
    bars = trace.gantt_bars(events)
    assert [(bar.row, bar.label, bar.start, bar.seconds) for bar in bars] == [
        (0, "attention 0", 0.0, 2.0),
        (1, "experts 0", 2.0, 1.0),
        (0, "attention 0", 2.0, 2.0),
        (1, "experts 0", 4.0, 1.0),
    ]


def test_an_ideal_pipeline_is_efficient_and_busy_by_the_formula():
    """Exactly 1 in numbers that floats hold, to 1e-9 in others; L M t / T of every role."""
    dyadic = trace.overlap_efficiency(pipeline.simulate_pipeline((1.0, 0.25, 0.75, 0.5), 3, 8))
    assert dyadic.efficiency == 1.0
    rng = np.random.default_rng(0)
    for _ in range(50):
        stages, M, L = rng.uniform(0.1, 1.0, 4), int(rng.integers(2, 6)), int(rng.integers(1, 8))
        events = pipeline.simulate_pipeline(stages, M, L)
        found = trace.overlap_efficiency(events)
        np.testing.assert_allclose(found.efficiency, 1.0, rtol=1e-9)
        np.testing.assert_allclose(found.serial, L * M * stages.sum())
        busy = trace.utilization(events)
        whole = pipeline.pipeline_time(stages, M, L)
        for role, t in zip(pipeline.STAGES, stages, strict=True):
            np.testing.assert_allclose(busy[role], L * M * t / whole, rtol=1e-9)


def test_no_overlap_is_zero_and_stalls_are_lost_time():
    """One stage after the other; a single stall leaves the medians, and lowers the efficiency."""
    rows, now = [], 0.0
    for layer in range(3):
        for m in range(2):
            for role, took in (("attention", 2.0), ("experts", 1.0)):
                rows.append((role, 0, layer, m, now, now + took))
                now += took
    assert trace.overlap_efficiency(trace.read_trace(rows)).efficiency == 0.0
    seconds = np.ones((4, 3))
    seconds[2, 1] = 3.0
    found = trace.overlap_efficiency(pipeline.simulate_pipeline((seconds, 0.25, 1.0, 0.5), 3, 4))
    assert found.stage_seconds["attention"] == 1.0
    np.testing.assert_allclose(
        found.efficiency, (found.serial - found.measured) / (found.serial - found.ideal)
    )
    assert found.efficiency < 1.0 and found.measured > found.ideal


def test_stages_measured_alone_show_what_contention_costs():
    """Overlap that makes every stage half again as long is efficient by its own medians alone."""
    alone = dict(zip(pipeline.STAGES, (1.0, 0.25, 1.0, 0.25), strict=True))
    events = pipeline.simulate_pipeline([1.5 * t for t in alone.values()], 3, 10)
    assert abs(trace.overlap_efficiency(events).efficiency - 1.0) < 1e-12
    found = trace.overlap_efficiency(events, alone)
    ideal = pipeline.pipeline_time(tuple(alone.values()), 3, 10)
    np.testing.assert_allclose(found.efficiency, (75.0 - 1.5 * ideal) / (75.0 - ideal))


def test_a_role_takes_the_time_of_its_slowest_instance():
    slow = np.array([1.0, 2.0]).reshape(1, 1, 2)
    events = pipeline.simulate_pipeline((slow, 0.0, 1.0, 0.0), 2, 3)
    found = trace.overlap_efficiency(events)
    assert found.stage_seconds["attention"] == 2.0
    assert found.efficiency == 1.0
    busy = trace.utilization(events)["attention"]
    np.testing.assert_allclose(busy, 3 * 2 * 1.5 / found.measured)
    assert {bar.label for bar in trace.gantt_bars(events) if bar.row < 2} == {
        "attention 0",
        "attention 1",
    }


def exchanges(offsets, rng):
    """Messages of three attention workers to two expert workers, on clocks that differ."""
    of_attention, of_expert = offsets
    found = []
    for layer in range(6):
        for m in range(2):
            sent = 100.0 * layer + 10.0 * m + rng.uniform(0.0, 0.1, 3)
            out = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 4.0]])  # a slow link from 2 to 1
            received = sent[:, None] + out
            compute = np.array([0.5, 0.75])
            answered = received.max(0) + compute
            returned = answered + out
            found += [
                trace.Exchange(
                    a,
                    f,
                    layer,
                    m,
                    sent[a] + of_attention[a],
                    returned[a, f] + of_attention[a],
                    received[a, f] + of_expert[f],
                    answered[f] + of_expert[f],
                    compute[f],
                )
                for a in range(3)
                for f in range(2)
            ]
    return found


def test_peers_are_told_apart_on_clocks_that_differ():
    """Network 2 s, and 8 s over the slow link; what the others wait for is named."""
    table = trace.peer_table(exchanges(([0.0, -7.0, 1e4], [5e3, -3.0]), np.random.default_rng(0)))
    by_pair = {(peer.attention, peer.expert): peer for peer in table}
    for (a, f), peer in by_pair.items():
        np.testing.assert_allclose(peer.network, 8.0 if (a, f) == (2, 1) else 2.0, rtol=1e-9)
        np.testing.assert_allclose(peer.compute, (0.5, 0.75)[f])
        assert peer.count == 12
        assert peer.last_to_return == float(f == 1)
    assert by_pair[2, 1].last_to_arrive == 1.0
    assert by_pair[2, 1].waiting < 1e-6  # nobody is waited for who comes later
    assert abs(by_pair[0, 1].waiting - 3.0) < 0.1
    np.testing.assert_allclose(sum(by_pair[a, 0].last_to_arrive for a in range(3)), 1.0)
    same = trace.peer_table(exchanges(([0.0] * 3, [0.0] * 2), np.random.default_rng(0)))
    for a, b in zip(table, same, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one event at least"):
        trace.read_trace([])
    for row, message in (
        (("attention", 0, 0, 0, 1.0), "a row of a trace is"),
        (("attention", 0.5, 0, 0, 0.0, 1.0), "instance must be a whole number from 0, got 0.5"),
        (("attention", 0, -1, 0, 0.0, 1.0), "layer must be"),
        (("attention", 0, 0, 0, 2.0, 1.0), "start <= end"),
        (("attention", 0, 0, 0, 0.0, float("nan")), "start <= end"),
        (("attention", 0, 0, 0, 1.0, 1.0), "longer than zero"),
    ):
        with pytest.raises(ValueError, match=message):
            trace.read_trace([row])
    with pytest.raises(ValueError, match="attention 0 has a layer and micro-batch twice"):
        trace.read_trace([*BY_HAND, BY_HAND[0]])
    with pytest.raises(ValueError, match="experts 0 has 1 of the 2"):
        trace.read_trace(BY_HAND[:3])
    events = trace.read_trace(BY_HAND)
    with pytest.raises(ValueError, match="must name the roles of the trace"):
        trace.overlap_efficiency(events, {"attention": 1.0})
    for stages, M in (((1.0, 0.5, 1.0, 0.5), 1), ((1.0, 0.0, 0.0, 0.0), 4)):
        with pytest.raises(ValueError, match="nothing to overlap"):
            trace.overlap_efficiency(pipeline.simulate_pipeline(stages, M, 5))
    good = trace.Exchange(0, 0, 0, 0, 0.0, 3.0, 1.0, 2.0, 0.5)
    for wrong in (
        [],
        [good, good],
        [good._replace(returned=-1.0)],
        [good._replace(compute=1.5)],
        [good._replace(sent=float("nan"))],
    ):
        with pytest.raises(ValueError, match="exchange"):
            trace.peer_table(wrong)
