"""The cost study: every published figure it sets itself against, and what it refuses."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.harness import drawing
from experiments.step3_cost import Config, figures, own, rows, study
from jaxlab.serving.afd import planner
from jaxlab.serving.cost import catalog

SMALL = Config(contexts=(8192, 32768), max_servers=2)


def test_every_published_figure_that_can_be_computed_is_reproduced(tmp_path):
    result = study.run(SMALL, tmp_path)
    verdicts = {row.metric: row.verdict for row in result.rows}
    measured = {metric for metric, verdict in verdicts.items() if verdict == "measured"}
    assert measured == {
        "Bound of the planner, 2A2F at 4K",
        "Bound of the planner, 4A2F at 8K",
        "Bound of the planner, 3A2F at 4K, BF16 cache",
        "Bound of the planner, 16A2F at 32K",
        "Bound of the planner, 3A4F at 4K, twice the experts",
    }
    missed = {metric for metric, verdict in verdicts.items() if verdict == "not reproduced"}
    assert missed == {
        "Cards for all experts on L4 (300 GB/s), too slow for attention",
        "Requests of 8K in a micro-batch of an accelerator",
    }
    for row in result.rows:
        if row.metric in measured:
            assert row.value > row.paper  # a bound
    cells = {row.metric: row.value for row in result.rows if row.unit == "cells"}
    assert list(cells.values()) == [72, 108]
    for figure in result.figures:
        assert (tmp_path / figure.path).stat().st_size > 5000


@pytest.mark.parametrize("name", ["_pareto", "_intensity"])
def test_names_cover_neither_each_other_nor_a_point(name, tmp_path, monkeypatch):
    def look(figure, path):
        figure.draw_without_rendering()
        for axis in figure.axes:
            boxes = [text.get_window_extent() for text in axis.texts]
            assert len(boxes) == len(catalog.MODELS)
            for a, b in itertools.combinations(boxes, 2):
                assert not a.overlaps(b)
            points = [line.get_xydata() for line in axis.lines if line.get_marker() == "o"]
            for x, y in axis.transData.transform(np.concatenate(points)):
                assert not any(box.contains(x, y) for box in boxes)
        seen.append(path.name)

    seen = []
    monkeypatch.setattr(plt.Figure, "savefig", lambda figure, path, **_: look(figure, path))
    monkeypatch.setattr(drawing, "_shrink", lambda path: None)
    draw = getattr(figures, name)
    draw(tuple(catalog.MODELS.values()), tuple(catalog.ACCELERATORS.values()), tmp_path)
    assert seen == [f"{name[1:]}.png", f"{name[1:]}_phone.png"]


def test_a_wrong_count_would_be_noticed(tmp_path, monkeypatch):
    """MLA counted with 512 columns for the values, as it is: fewer cells agree."""
    import dataclasses

    spec = catalog.MODELS["DSv3"]
    layers, kind = spec.attention[0]
    wrong = spec.replace(attention=((layers, dataclasses.replace(kind, kv_rank=511)),))
    monkeypatch.setitem(catalog.MODELS, "DSv3", wrong)
    found = rows.tables()
    assert found[0].value < 72 and found[0].verdict == "not reproduced"


def test_plans_in_the_table_are_those_of_the_planner(tmp_path):
    result = study.run(SMALL, tmp_path)
    table = result.tables[-1]
    on = catalog.ACCELERATORS["H800"]
    best = planner.plan(catalog.MODELS["Step-3"], on, on, context=8192, max_servers=2)
    row = next(row for row in table.rows if row[:2] == ("H800", 8192))
    assert row[2] == f"{best.num_attention}A{best.num_ffn}F"
    gpus = 8 * (best.num_attention + best.num_ffn)
    dollars = gpus * 2.0 / 3600 / (best.tokens_per_gpu_second * gpus) * 1e6
    assert row[7] == pytest.approx(dollars, abs=6e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"models": ("GPT-9",)}, "models must be among DSv3"),
        ({"accelerators": ("H9000",)}, "accelerators must be among H800"),
        ({"planned": "GPT-9"}, "planned must be among"),
    ],
)
def test_unknown_names_are_refused(change, message, tmp_path):
    import dataclasses

    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(SMALL, **change), tmp_path)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="contexts"):
        Config(contexts=(0,))
    with pytest.raises(ValueError, match="max_servers"):
        Config(max_servers=0)


MINE = {
    "accelerators": [{"name": "L40S", "usd_per_hour": 0.9, "flops": 7.33e14, "bandwidth": 8.64e11}],
    "models": [
        {
            "name": "Mine",
            "d_model": 7168,
            "attention": [[61, {"kind": "mfa", "num_heads": 64, "head_dim": 256, "q_rank": 2048}]],
            "ffn": [
                {"num_layers": 56, "hidden": 5120, "num_active": 4, "num_experts": 49},
                {"num_layers": 5, "hidden": 18432},
            ],
        }
    ],
}


def test_models_and_accelerators_of_ones_own(tmp_path):
    """Step-3 written out in a file costs what Step-3 costs."""
    import dataclasses
    import json

    path = tmp_path / "mine.json"
    path.write_text(json.dumps(MINE))
    config = dataclasses.replace(
        SMALL,
        own=str(path),
        models=("Mine", "Step-3"),
        accelerators=("L40S", "H800"),
        planned="Mine",
    )
    mine, step3 = study.run(config, tmp_path).tables[0].rows
    assert mine[1:] == step3[1:] and mine[0] == "Mine"
    assert "L40S" in study.run(config, tmp_path).tables[0].columns


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not readable JSON"),
        ("[]", "must hold an object"),
        ('{"models": [{"name": "x"}]}', r"models\[0\] does not fit"),
        ('{"accelerators": [{"name": "x", "price": 1}]}', r"accelerators\[0\] does not fit"),
        (
            '{"models": [{"name": "x", "d_model": 8, "attention": [[1, {"kind": "rnn"}]], '
            '"ffn": []}]}',
            "gqa, mla, mfa, lightning",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(text, message, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        own.read(str(path))
    with pytest.raises(ValueError, match="not readable"):
        own.read(str(tmp_path / "absent.json"))
