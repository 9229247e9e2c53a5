"""Settings name their own faults, and the README's table says what is true of the room."""

import pathlib
import re

import jax
import numpy as np
import pytest

from jaxlab import queueing as q
from jaxlab.queueing import estimates, settings

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
        settings.check(record, type(record))
    settings.check(type(record)(), type(record))


INPUTS = q.QueueInputs(
    lam=np.full((1, 6), 2.0),
    mu=np.full((1, 6), 3.0),
    sig2=np.full((1, 6), 9.0),
    kappa=np.array([1.4]),
    family=np.array([q.FAMILIES.index("fisk")]),
    smax=np.array([4]),
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: q.occupancy_mean(*INPUTS, queue="fisk_mean"), "must be a QueueModel, got str; wr"),
        (lambda: q.occupancy_mean(*INPUTS, queue=q.BedRules()), "a QueueModel, got BedRules"),
        (
            lambda: q.occupancy_batch(*INPUTS, size_mean=1.0, size_pairs=0.0, queue=None),
            "must be a QueueModel, got NoneType",
        ),
        (
            lambda: q.simulate_paths(jax.random.key(0), INPUTS, 8, queue=("fisk_mean",)),
            "must be a QueueModel, got tuple",
        ),
        (lambda: q.bed_counts(INPUTS, q.QueueModel()), "must be a BedModel, got QueueModel"),
        (lambda: q.bed_counts(INPUTS, q.BedModel((0.05,))), "must be a QueueModel, got tuple"),
        (lambda: q.truncated_share(INPUTS, q.QueueModel()), "must be a BedModel"),
        (lambda: q.bed_counts(INPUTS, q.BedModel(rules=q.BedRules(0.05))), "alphas must be a tupl"),
        (lambda: q.estimate_series(None, 9, q.GRID[:1]), "must be a SeriesOptions, got tuple"),
        (lambda: q.estimate_laws(None, {}, u_max=9), "must be a LawOptions, got dict"),
    ],
)
def test_a_record_of_another_kind_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_record_is_read_and_its_fields_are_no_keywords():
    paper, kept = (
        q.occupancy_mean(*INPUTS, queue=q.QueueModel(name)) for name in ("fisk_paper", "fisk_mean")
    )
    assert abs(paper - kept).max() > 0.1
    with pytest.raises(TypeError, match="unexpected keyword argument 'variant'"):
        q.occupancy_mean(*INPUTS, variant="fisk_mean")


def test_the_defaults_are_those_of_the_paper():
    assert q.QueueModel() == ("fisk_paper", "one", "ceil", "zero", "year_mean")
    assert q.BedRules() == ((0.05, 0.01), 1.0, "average", 4096)
    assert q.ALPHAS == q.BedRules().alphas
    assert estimates.PAPER_SERIES == (q.GRID, "linear", False, "daily_mean")
    assert estimates.PAPER_LAWS == (q.FAMILIES_DEFAULT, "rmse")


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
