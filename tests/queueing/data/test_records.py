"""Patients side by side and single sites, against loops."""

import datetime

import numpy as np
import pytest

from jaxlab.queueing.data import records


def _stays(rng, num=300):
    day = rng.integers(5, 90, num)
    event = rng.random(num) < 0.9
    return records.Stays(
        site=rng.choice([0, 0, 0, 2], num).astype(np.int32),
        day=day.astype(np.int32),
        los=rng.exponential(9.0, num) + 0.01,
        event=event,
        discharge_day=np.where(event, day + 3, -1).astype(np.int32),
        num_sites=3,
        num_days=90,
        site_names=("A", "B", "C"),
        origin=datetime.date(2021, 12, 1),
    )


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
    with pytest.raises(ValueError, match="no stays at site 1"):
        records.take_site(stays, 1)
