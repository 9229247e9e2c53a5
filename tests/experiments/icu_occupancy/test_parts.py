"""What the side studies say, from results that are known."""

import json
import pathlib

import numpy as np
import pytest

from experiments.harness import units
from experiments.icu_occupancy import PRESETS, Config, published
from experiments.icu_occupancy.parts import null, projection, published_tables
from jaxlab import queueing as q

TABLE3 = np.array([q.tasks.PUBLISHED_BEDS[name] for name in published.CAPACITIES])
TABLE6 = np.array([q.tasks.PUBLISHED_BEDS_2030[name] for name in published.CAPACITIES]).T


@pytest.fixture
def measured(monkeypatch):
    """Gives units the results that a test sets, in place of computing them."""
    given = {}
    monkeypatch.setattr(units, "run", lambda todo, *_, **__: {u.name: given[u.name] for u in todo})
    return given


@pytest.mark.parametrize(("shift", "inside"), [(0, 20), (3, 15)])
def test_published_counts_inside_the_range_of_draws(measured, tmp_path, shift, inside):
    config = Config(num_seeds=2, seed=5)
    percent = np.stack([np.full((4, 5), 80.0), np.full((4, 5), 10.0)], axis=-1)
    for seed, apart in ((5, -1), (6, 1)):
        beds = TABLE3 + apart
        beds[1] += shift
        draw = published_tables.Draw(beds, percent, percent, np.array([0.1, 0.2, 0.1, 0.2, 0.25]))
        measured[f"published tables/seed {seed}"] = draw
    part = published_tables.run(config, tmp_path)
    share, average, first_risk, *_, overflow = part.rows
    assert (share.value, share.paper) == (inside, 20)
    assert share.verdict == ("not reproduced" if shift else "reproduced")
    assert (average.value, average.interval) == (130.0, (125.0, 135.0))
    assert first_risk.value == 161 + 5 * shift
    assert first_risk.verdict == ("not reproduced" if shift else "reproduced")
    assert overflow.value == pytest.approx(17.0) and overflow.verdict == "reproduced"
    assert overflow.interval == pytest.approx((10.0, 25.0))
    assert part.tables[0].rows[0][1] == "20.0 (19–21) / 20"
    assert part.tables[1].rows[5] == (
        "B_average",
        "weighted system",
        *["80.0 (0.0)"] * 2,
        "85.4 (1.9)",
    )
    assert (tmp_path / "table3.png").exists()


def test_projected_beds_are_medians_over_runs(measured, tmp_path):
    runs = np.repeat(TABLE6[None, None], 41, axis=0)  # [run, year, site, rule]
    runs = runs + np.arange(-20, 21)[:, None, None, None]
    runs[..., 3] += 2  # B_max two beds a site off
    measured["projection"] = runs
    rows = projection.run(Config(), tmp_path).rows
    assert [row.value for row in rows] == [*TABLE6.sum(axis=0)[:3], TABLE6[:, 3].sum() + 10]
    assert [row.verdict for row in rows] == [*["reproduced"] * 3, "not reproduced"]
    assert rows[0].interval == (143 - 5 * 19, 143 + 5 * 19)


def test_the_bias_of_the_rule_is_that_over_the_true_need(measured, tmp_path):
    true = np.array([[20, 40, 30, 28, 16], [25, 46, 34, 34, 21]])
    noise = np.random.default_rng(0).integers(-1, 2, (12, 2, 5))
    nothing = np.zeros((12, 5))
    measured["null calibration"] = q.NullCalibration(  # pyright: ignore[reportArgumentType]
        true, true + 2 + noise, true + noise, true - 1 + 0 * noise, nothing, nothing > 0
    )
    rows = null.run(Config(null_repeats=12), tmp_path).rows
    for alpha, row in enumerate(rows):
        bias = 2 + noise[:, alpha].mean()
        assert row.value == pytest.approx(bias) and row.baseline is not None
        assert row.baseline[1] == pytest.approx(bias - 2)
        assert row.verdict == "worse"  # two beds more in every draw


def test_presets_are_plain_and_the_package_needs_no_jax():
    text = (pathlib.Path(published.__file__).parent / "__init__.py").read_text()
    assert "import jax" not in text and "jaxlab" not in text
    assert json.dumps(list(PRESETS)) == '["smoke", "cpu", "gpu"]'
    with pytest.raises(ValueError, match="bootstrap must be at least 2, got 1"):
        Config(bootstrap=1)
