"""Patients side by side and single sites, against loops."""

import datetime

import numpy as np
import pytest

from jaxlab.queueing.data import records


def _stays(rng, num=300):
    day = rng.integers(5, 90, num)
    event = rng.random(num) < 0.9
    site = rng.choice([0, 0, 0, 2], num).astype(np.int32)
    return records.Stays(
        site=site,
        day=day.astype(np.int32),
        los=rng.exponential(9.0, num) + 0.01,
        event=event,
        discharge_day=np.where(event, day + 3, -1).astype(np.int32),
        offset=rng.random(num),
        by_date=rng.random(num) < 0.5,
        num_sites=3,
        num_days=90,
        site_names=("A", "B", "C"),
        origin=datetime.date(2021, 12, 1),
        windows=records.own_windows(day, site, 3),
    )


def test_windows_span_each_sites_own_admissions():
    stays = _stays(np.random.default_rng(2))
    expected = [
        (stays.day[stays.site == i].min(), stays.day[stays.site == i].max()) for i in (0, 2)
    ]
    np.testing.assert_array_equal(stays.windows[[0, 2]], expected)
    assert stays.windows.dtype == np.int32 and tuple(stays.windows[1]) == (0, -1)  # nobody there
    np.testing.assert_array_equal(records.one_window(2, 90), [[0, 89], [0, 89]])


def test_pooled_by_site_matches_a_loop():
    stays = _stays(np.random.default_rng(0))
    pooled = records.pooled_by_site(stays, multiple=64)
    sizes = np.bincount(stays.site, minlength=3)
    assert pooled.los.shape == (3, -(-sizes.max() // 64) * 64)
    for i in range(3):
        mask = stays.site == i
        np.testing.assert_array_equal(pooled.day[i, : sizes[i]], stays.day[mask])
        np.testing.assert_array_equal(pooled.los[i, : sizes[i]], stays.los[mask])
        np.testing.assert_array_equal(pooled.event[i, : sizes[i]], stays.event[mask])
        np.testing.assert_array_equal(pooled.weight[i], np.arange(len(pooled.weight[i])) < sizes[i])
    assert (pooled.los[pooled.weight == 0] == 1).all()
    assert records.pooled_by_site(stays).los.shape == (3, 1024)  # one shape for many data sets


def test_take_site_has_its_own_contiguous_range():
    stays = _stays(np.random.default_rng(1))
    one = records.take_site(stays, 2)
    mask = stays.site == 2
    assert one.day.min() == 0 and one.day.max() == one.num_days - 1
    np.testing.assert_array_equal(
        records.dates(one.origin, one.num_days)[one.day],
        records.dates(stays.origin, stays.num_days)[stays.day[mask]],
    )
    length = one.discharge_day - one.day
    assert (length[one.event] == 3).all() and (one.discharge_day[~one.event] == -1).all()
    assert one.site_names == ("C",)
    np.testing.assert_array_equal(one.windows, [[0, one.num_days - 1]])
    np.testing.assert_array_equal(one.offset, stays.offset[mask])
    np.testing.assert_array_equal(one.by_date, stays.by_date[mask])


def test_take_site_keeps_patients_from_before_its_window():
    stays = _stays(np.random.default_rng(3))
    windows = stays.windows.copy()
    windows[0, 0] += 20  # a later start was asked for
    one = records.take_site(stays._replace(windows=windows), 0)
    mask = stays.site == 0
    np.testing.assert_array_equal(one.day, stays.day[mask] - windows[0, 0])
    assert one.day.min() < 0 and one.num_days == windows[0, 1] - windows[0, 0] + 1
    before = stays.discharge_day[mask] < windows[0, 0]
    assert before.any() and (one.discharge_day[before] == -1).all()


def test_a_site_without_patients_is_not_taken():
    stays = _stays(np.random.default_rng(1))
    with pytest.raises(ValueError, match="no stays at site 1"):
        records.take_site(stays, 1)
