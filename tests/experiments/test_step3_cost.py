"""The cost study: every published figure it sets itself against, and what it refuses."""

import pytest

from experiments.step3_cost import Config, study
from jaxlab.serving import catalog, planner

SMALL = Config(contexts=(8192, 32768), max_servers=2)


def test_every_published_figure_that_can_be_computed_is_reproduced(tmp_path):
    result = study.run(SMALL, tmp_path)
    verdicts = {row.metric: row.verdict for row in result.rows}
    measured = {metric for metric, verdict in verdicts.items() if verdict != "reproduced"}
    assert measured == {
        "Bound of the planner, 2A2F at 4K", "Bound of the planner, 4A2F at 8K",
        "Cards for all experts on L4 (300 GB/s), too slow for attention",
    }  # fmt: skip
    cells = {row.metric: row.value for row in result.rows if row.unit == "cells"}
    assert list(cells.values()) == [72, 108]
    for figure in result.figures:
        assert (tmp_path / figure.path).stat().st_size > 5000


def test_a_wrong_count_would_be_noticed(tmp_path, monkeypatch):
    """MLA counted with 512 columns for the values, as it is: fewer cells agree."""
    import dataclasses

    spec = catalog.MODELS["DSv3"]
    layers, kind = spec.attention[0]
    wrong = spec.replace(attention=((layers, dataclasses.replace(kind, kv_rank=511)),))
    monkeypatch.setitem(catalog.MODELS, "DSv3", wrong)
    rows = study._table_rows()
    assert rows[0].value < 72 and rows[0].verdict == "not reproduced"


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
