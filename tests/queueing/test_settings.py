"""Settings name their own faults, and the README's table says what is true of the room."""

import pathlib
import re

import pytest

from jaxlab import queueing as q
from jaxlab.queueing import pipeline, settings

ROOT = pathlib.Path(__file__).parents[2]
ROOM = ROOT / "jaxlab" / "queueing"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (q.QueueModel(variant="fisk"), "variant must be one of .*fisk_mean.*, got 'fisk'"),
        (q.QueueModel(moments="three"), "moments must be one of .*, got 'three'"),
        (q.QueueModel(convention=None), "convention must be one of .*, got None"),
        (q.QueueModel(warmup="cold"), "warmup must be one of .*, got 'cold'"),
        (q.QueueModel(backfill="mean"), "backfill must be one of .*, got 'mean'"),
        (q.BedRules(rule="median"), "rule must be one of .*, got 'median'"),
        (q.SeriesOptions(degree2="cubic"), "degree2 must be one of .*, got 'cubic'"),
        (q.SeriesOptions(spread="pooled"), "spread must be one of .*, got 'pooled'"),
        (q.LawOptions(criterion="best"), "criterion must be one of .*, got 'best'"),
        (q.BedModel(mean_stay="median"), "mean_stay must be one of .*, got 'median'"),
    ],
)
def test_an_unknown_name_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        settings.check(record)
    settings.check(type(record)())


def test_the_defaults_are_those_of_the_paper():
    assert q.QueueModel() == ("fisk_paper", "one", "ceil", "zero", "year_mean")
    assert q.BedRules() == ((0.05, 0.01), 1.0, "average", 4096)
    assert q.ALPHAS == q.BedRules().alphas
    assert pipeline.PAPER_SERIES == (q.GRID, "linear", False, "daily_mean")
    assert pipeline.PAPER_LAWS == (q.FAMILIES_DEFAULT, "rmse")


def test_the_table_in_the_readme_is_true():
    table = re.findall(r"^\| \*\*(.+?)\*\*.*? \| (.*?) \| .*? \| (.*?) \|$", readme(), re.MULTILINE)
    groups = dict(
        re.findall(r"    # (.+)\n((?:    \".+\",\n)+)", (ROOM / "__init__.py").read_text())
    )
    assert [group for group, _, _ in table] == list(groups)
    for group, functions, tests in table:
        names = re.findall(r'"(\w+)"', groups[group])
        assert set(re.findall(r"`(\w+)`", functions)) <= set(names), group
        assert all(hasattr(q, name) for name in names)
        paths = re.findall(r"`([\w/.]+)`", tests)
        assert paths and all((ROOT / "tests" / "queueing" / path).exists() for path in paths), group
    assert sorted(q.__all__) == sorted(re.findall(r'"(\w+)"', "".join(groups.values())))


def readme() -> str:
    return (ROOM / "README.md").read_text()
