"""The study of disaggregation: what it says of known schedules, and of published figures."""

import numpy as np
import pytest

from experiments.afd import Config, child, layer
from experiments.afd.parts import deployments, exactness, network, overlap, sizing, stages
from jaxlab.serving.afd.pipeline import pipeline_time, simulate_pipeline

SMALL = Config(micro_batches=(1, 2, 3), repeats=5, num_layers=4, num_steps=100, draws=1)
TIMES = (2e-3, 1e-3)


def run_ideally(name, realisation, micro_batches, num_layers, repeats, late, **_):
    """Answers as a decoder would whose stages take TIMES, `late` seconds after the ideal."""
    assert name == "overlap"
    events = simulate_pipeline((TIMES[0], 0.0, TIMES[1], 0.0), micro_batches, num_layers)
    ideal = pipeline_time((TIMES[0], 0.0, TIMES[1], 0.0), micro_batches, num_layers)
    trace = [tuple(e) for e in events if e.role in ("attention", "experts")]
    if realisation == "alone":
        assert micro_batches == 1
    traces = [] if realisation == "one program" else [trace] * repeats
    return {"seconds": [ideal + late + 1e-5 * i for i in range(repeats)], "traces": traces}


def test_overlap_is_the_share_of_what_could_be_saved(tmp_path, monkeypatch):
    """Two micro-batches, four layers: serial 24 ms, ideal 17 ms; 3.5 ms late is one half."""
    monkeypatch.setattr(child, "ask", lambda name, **kw: run_ideally(name, late=3.5e-3, **kw))
    part = overlap.run(SMALL, tmp_path)
    found = {row.metric: row for row in part.rows}
    cells = [m for m in found if m.startswith("Share") and "2 micro-batches" in m]
    assert len(cells) == 5
    for metric in cells:
        assert found[metric].value == pytest.approx(0.5 - 2e-5 / 7e-3, abs=1e-6)
        low, high = found[metric].interval
        assert low < found[metric].value < high
    gain = found["Tokens a second of 2 micro-batches over 1, sleeping stages"]
    # One micro-batch: 12 ms and 3.5 ms late, and 0.02 ms more in the median.
    assert gain.value == pytest.approx(2.0 * 15.52 / 20.52, rel=1e-3)
    assert {figure.path for figure in part.figures} == {"gantt.png", "token.png"}


@pytest.mark.parametrize(
    ("late", "verdict"),
    [(3.5e-3, "not reproduced"), (1e-4, "reproduced"), (-1e-3, "measured")],
    ids=["half", "all", "more than there was"],
)
def test_more_than_could_be_saved_is_no_success(tmp_path, monkeypatch, late, verdict):
    """Stages that were slower alone than in the pipeline: nothing is shown by that."""
    monkeypatch.setattr(child, "ask", lambda name, **kw: run_ideally(name, late=late, **kw))
    shares = [r for r in overlap.run(SMALL, tmp_path).rows if r.metric.startswith("Share")]
    assert shares
    for row in shares:
        assert row.verdict == verdict
        assert ("slower alone" in row.note) == (verdict == "measured")


def test_the_rule_loses_less_than_a_tenth_and_known_figures_come_out(tmp_path):
    rows = {row.metric: row for row in sizing.run(SMALL, tmp_path).rows}
    assert len(rows) == 6
    assert all(0.0 <= row.value <= 10.0 and row.verdict == "reproduced" for row in rows.values())

    predicted = [round(row.value) for row in deployments.run(SMALL, tmp_path).rows]
    assert predicted == [2693, 3181]  # of 2,643 and 3,321

    rows = {row.metric: row.value for row in network.run(SMALL, tmp_path).rows}
    used = [rows[f"Use of the expert servers of {name}, 400 GB/s"] for name in network.MODELS]
    assert used[0] > 90.0 > 60.0 > used[1]  # DSv3 is sparser than this network allows


def test_a_ratio_that_is_not_the_best_would_be_seen():
    """The loss of every other simulated ratio is above that of the best, which is 0."""
    one = sizing.Simulated(np.arange(1, 4), np.array([1.0, 4.0, 3.0]), np.ones(3), 3, 1)
    assert sizing._loss(one, one.best) == 0.25
    assert sizing._loss(one, 2) == 0.0


def test_stages_are_timed_at_every_size(tmp_path, monkeypatch):
    """A clock that a stage moves by what it should take gives its law back."""
    now = [0.0]
    law = {
        "attention": lambda b, s: 1e-3 + 2e-6 * b + 1e-9 * b * s,
        "experts": lambda b, s: 1e-5 * b,
    }

    def program(name):
        def make(given, batch, context):
            def call():
                now[0] += law[name](batch, context)

            return call

        return make

    monkeypatch.setattr(layer, "attention", program("attention"))
    monkeypatch.setattr(layer, "experts", program("experts"))
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    rows = stages.run(SMALL, tmp_path).rows
    assert [row.value for row in rows] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert rows[0].note.startswith("1e+03 µs fixed, 2 µs a request, 1 ns a token of cache")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"parts": ("exact",)}, "parts must be among exactness, overlap"),
        ({"parts": ()}, "parts must be among"),
        ({"micro_batches": (2, 3)}, "must be 1 and what is compared"),
        ({"micro_batches": (1, 3, 2)}, "must increase"),
        ({"width": 100}, "multiple of 128"),
        ({"sleep_ms": 0.0}, "sleep_ms must be in 0 to"),
        ({"topology": (2, 1)}, "topology must be four counts"),
        ({"repeats": 0}, "repeats must be at least 1"),
    ],
)
def test_refuses_what_makes_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


@pytest.mark.slow
def test_children_answer(tmp_path):
    """Bits are the monolith's; a step whose stages sleep takes their time."""
    found = exactness.run(Config(exact="few"), tmp_path)
    assert [row.verdict for row in found.rows] == ["reproduced", "reproduced"]
    settings = {"num_layers": 2, "width": 0, "requests": 1, "repeats": 2, "sleep_ms": 50.0}
    for realisation in ("alone", "two meshes", "one program", "server process"):
        answer = child.ask(
            "overlap", num_devices=2, realisation=realisation, micro_batches=2, **settings
        )
        slept = 8 if realisation == "alone" else 5  # stages in a row
        assert min(answer["seconds"]) >= 0.05 * slept
        stages = [event for event in answer["traces"][0] if event[0] in ("attention", "experts")]
        assert len(stages) == (0 if realisation == "one program" else 8)


@pytest.mark.slow
def test_an_error_of_a_child_is_told():
    with pytest.raises(RuntimeError, match="needs 4 devices"):
        child.ask("exactness", num_devices=1, realisation="two meshes", topology=[2, 2])
