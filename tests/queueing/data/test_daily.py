"""Daily series and census against brute-force float64 loops, independent counting and limits."""

import math
import typing
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxlab.queueing import settings
from jaxlab.queueing.data import daily

CONVENTIONS = typing.get_args(settings.Convention)

I, T, N = 3, 40, 160


def _patients(seed=0):
    """Site 0 sparse, site 1 busy, site 2 empty; some patients outside the days or sites."""
    rng = np.random.default_rng(seed)
    day = rng.integers(-4, T + 4, N).astype(np.int32)
    site = rng.choice([-1, 0, 1, 1, 1, 1, 1, 3], N).astype(np.int32)
    return day, site, rng.gamma(1.5, 4.0, N) + 0.05


def _loop_daily(day, site, los, weight):
    counts, mean = np.zeros((I, T)), np.zeros((I, T))
    for i in range(I):
        for t in range(T):
            mask = (site == i) & (day == t)
            counts[i, t] = weight[mask].sum()
            if counts[i, t] > 0:
                mean[i, t] = (weight * los)[mask].sum() / counts[i, t]
        has = counts[i] > 0
        if has.any():
            mean[i] = np.interp(np.arange(T), np.flatnonzero(has), mean[i, has])
    return counts, mean, counts > 0


def test_stays_to_daily_matches_a_loop_and_np_interp(x64):
    @chex.assert_max_traces(1)
    def series(day, site, los, weight):
        return daily.stays_to_daily(day, site, los, I, T, weight=weight)

    fn = jax.jit(series)
    for seed in range(20):
        day, site, los = _patients(seed)
        weight = np.random.default_rng(seed).integers(0, 3, N).astype(float)
        got = fn(day, site, los, weight)
        for a, b in zip(got, _loop_daily(day, site, los, weight), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        inside = (day >= 0) & (day < T) & (site >= 0) & (site < I)
        np.testing.assert_allclose(got.counts.sum(), weight[inside].sum())


def test_stays_to_daily_float32_and_empty_site():
    day, site, los = _patients()
    got = daily.stays_to_daily(day, site, jnp.asarray(los, jnp.float32), I, T)
    counts, mean, has = _loop_daily(day, site, los, np.ones(N))
    assert got.mean_los.dtype == got.counts.dtype == jnp.float32
    np.testing.assert_array_equal(got.counts, counts)
    np.testing.assert_allclose(got.mean_los, mean, rtol=3e-6)
    np.testing.assert_array_equal(got.has, has)
    assert not got.has[2].any() and (got.mean_los[2] == 0).all()


def test_vmap_over_weights_equals_loop():
    day, site, los = _patients()
    weights = np.random.default_rng(1).integers(0, 3, (4, N)).astype(np.float32)

    def fn(weight):
        return daily.stays_to_daily(day, site, los, I, T, weight=weight)

    batched = jax.jit(jax.vmap(fn))(weights)
    for b in range(4):
        for got, want in zip(batched, _loop_daily(day, site, los, weights[b]), strict=True):
            np.testing.assert_allclose(got[b], want, rtol=1e-5)


def test_gradients_are_finite_and_right(x64):
    day, site, los = _patients()
    weight = np.random.default_rng(2).uniform(0.5, 2.0, N)

    def score(los, weight):
        series = daily.stays_to_daily(day, site, los, I, T, weight=weight)
        variance = daily.individual_variance(
            day, site, los, jnp.full((I, T), 5.0), window=7, weight=weight
        )
        census = daily.observed_census(day, site, los, I, T, convention="bed_days")
        total = jnp.sum(series.mean_los**2) + jnp.sum(jnp.sqrt(variance))
        return total + jnp.sum(jnp.sin(census))

    assert all(np.isfinite(g).all() for g in jax.jit(jax.grad(score, (0, 1)))(los, weight))
    check_grads(score, (los, weight), order=1, modes=("rev",), eps=1e-6, rtol=1e-6)


def test_whole_days_forgive_rounding_only():
    for dtype, near in ((np.float32, 3.0000002), (np.float64, 3.0000001)):
        with jax.enable_x64(dtype is np.float64):
            x = np.array([near, 72.00001 / 24, 3, 3.001, 0.2, 1e-9, 0, 100, 0.1 * 30], dtype)
            want = [3, 3, 3, 4, 1, 1, 0, 100, 3]
            np.testing.assert_array_equal(daily.whole_days(jnp.asarray(x)), want)
    x = np.random.default_rng(0).gamma(1.5, 8.0, 20_000)  # and changes nothing else
    with jax.enable_x64(True):
        np.testing.assert_array_equal(daily.whole_days(jnp.asarray(x)), np.ceil(x))


def _loop_census(day, site, los, offset, convention, discharge=None):
    """Counts each day's patients from their times of entry and exit."""
    census = np.zeros((I, T))
    for p in range(len(day)):
        if not 0 <= site[p] < I:
            continue
        known = discharge is not None and discharge[p] >= 0
        enter, leave = day[p] + offset[p], day[p] + offset[p] + los[p]
        for t in range(T):
            if convention == "ceil":
                last = discharge[p] if known else day[p] + math.ceil(los[p])
                inside = day[p] <= t < last
            elif convention == "midnight":
                inside = day[p] <= t < discharge[p] if known else enter < t + 1 < leave
            elif convention == "touch":
                inside = day[p] <= t <= discharge[p] if known else enter < t + 1 and leave > t
            else:
                inside = max(0.0, min(leave, t + 1) - max(enter, t))
            census[site[p], t] += inside
    return census


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("dated", [False, True], ids=["los", "discharge date"])
def test_census_with_known_times_matches_counting(x64, convention, dated):
    day, site, los = _patients(3)
    rng = np.random.default_rng(3)
    offset = rng.random(N)
    discharge = np.where(rng.random(N) < 0.5, day + np.floor(los + offset).astype(int), -1)
    discharge = discharge if dated else None
    got = daily.observed_census(
        day, site, los, I, T, discharge_day=discharge, convention=convention, offset=offset
    )
    want = _loop_census(day, site, los, offset, convention, discharge)
    np.testing.assert_allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_census_with_unknown_times_is_the_mean_over_uniform_times(x64, convention):
    day, site, los = _patients(4)
    got = daily.observed_census(day, site, los, I, T, convention=convention)
    grid = (np.arange(400) + 0.5) / 400  # midpoint rule: error below 1/800 per patient and edge
    copies = (np.tile(x, 400) for x in (day, site, los))
    mean = daily.observed_census(
        *copies,
        I,
        T,
        convention=convention,
        offset=np.repeat(grid, N),
        weight=np.full(400 * N, 1 / 400),
    )
    np.testing.assert_allclose(got, mean, atol=5e-3)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_census_of_patients_with_and_without_times_adds_up(x64, convention):
    day, site, los = _patients(11)
    rng = np.random.default_rng(11)
    offset, timed = rng.random(N), rng.random(N) < 0.5

    def census(offset, weight):
        return daily.observed_census(
            day, site, los, I, T, convention=convention, offset=offset, weight=weight
        )

    got = census(np.where(timed, offset, np.nan), None)
    want = census(offset, timed.astype(float)) + census(None, 1.0 - timed)
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_hourly_series_match_counting(x64, convention):
    rng = np.random.default_rng(12)
    num, days = 60, 4
    minute = rng.integers(-1440, days * 1440, num)  # whole minutes, exact in the reference
    minute[:8] = 60 * np.arange(8)  # on the hour
    length = rng.integers(1, 3000, num)
    length[:8] = 60
    site = rng.integers(0, 2, num)
    got = daily.observed_census(
        minute // 1440,
        site,
        length / 1440,
        2,
        days,
        offset=minute % 1440 / 1440,
        convention=convention,
        bin="1h",
    )
    want = np.zeros((2, 24 * days))
    for m, n, i in zip(minute, length, site, strict=True):
        for h in range(24 * days):
            if convention == "ceil":
                inside = m // 60 <= h < m // 60 - (-n // 60)
            elif convention == "midnight":
                inside = m < 60 * (h + 1) < m + n
            elif convention == "touch":
                inside = m < 60 * (h + 1) and m + n > 60 * h
            else:
                inside = max(0, min(m + n, 60 * (h + 1)) - max(m, 60 * h)) / 60
            want[i, h] += inside
    np.testing.assert_allclose(got, want, atol=1e-9)
    series = daily.stays_to_daily(
        minute // 1440, site, length / 1440, 2, days, offset=minute % 1440 / 1440, bin="1h"
    )
    inside = minute >= 0
    counts = np.zeros((2, 24 * days))
    np.add.at(counts, (site[inside], minute[inside] // 60), 1)
    np.testing.assert_array_equal(series.counts, counts)
    total = np.zeros_like(counts)
    np.add.at(total, (site[inside], minute[inside] // 60), length[inside] / 1440)
    np.testing.assert_allclose(
        series.mean_los[counts > 0], (total / np.maximum(counts, 1))[counts > 0]
    )


def test_hours_are_not_made_up():
    day, site, los = _patients(13)
    offset = np.where(site == 1, np.nan, 0.5)
    got = daily.observed_census(day, site, los, I, T, offset=offset, bin="1h")
    assert np.isnan(got[1]).all() and np.isfinite(got[0]).all() and got.shape == (I, 24 * T)
    with pytest.raises(ValueError, match="bin='1h' needs offset="):
        daily.observed_census(day, site, los, I, T, bin="1h")
    with pytest.raises(ValueError, match="bin must be one of"):
        daily.observed_census(day, site, los, I, T, bin="2h")  # pyright: ignore


def test_bed_days_of_each_convention(x64):
    """A patient adds ceil(x), x, x + 1 and x bed-days: the models' stationary sums."""
    los = np.random.default_rng(5).gamma(0.8, 6.0, 200) + 0.01
    day, site = np.full(200, 3), np.arange(200)
    total = {
        c: daily.observed_census(day, site, los, 200, 120, convention=c).sum(axis=1)
        for c in CONVENTIONS
    }
    np.testing.assert_allclose(total["ceil"], np.ceil(los))
    np.testing.assert_allclose(total["midnight"], los)
    np.testing.assert_allclose(total["touch"], los + 1)
    np.testing.assert_allclose(total["bed_days"], los)


def test_bed_days_kernel_is_the_published_integral(x64):
    """u = 0: int (1-x) 1{S > x}; u >= 1: int (1-|x|) 1{S > u+x}, by a fine Riemann sum."""
    for los in (0.3, 1.0, 1.7, 4.25):
        got = daily.observed_census(
            np.array([0]), np.array([0]), np.array([los]), 1, 8, convention="bed_days"
        )
        x = (np.arange(20_000) + 0.5) / 10_000 - 1
        want = [np.sum((1 - x) * (los > x) * (x > 0)) / 10_000]
        want += [np.sum((1 - np.abs(x)) * (los > u + x)) / 10_000 for u in range(1, 8)]
        np.testing.assert_allclose(got[0], want, atol=2e-4)


def test_weekly_census_of_each_convention():
    """Rates (3,3,3,3,3,2,2) by weekday, mean stay 10: weekly means of the four conventions."""
    rng = np.random.default_rng(6)
    weeks = 3000
    counts = rng.poisson(np.tile([3, 3, 3, 3, 3, 2, 2], weeks))
    day = np.repeat(np.arange(counts.size), counts)
    los = rng.lognormal(math.log(10) - 0.32, 0.8, day.size)
    want = {"ceil": 28.4999, "midnight": 27.1428, "bed_days": 27.1428, "touch": 29.8571}
    for convention, mean in want.items():
        census = daily.observed_census(day, 0 * day, los, 1, counts.size, convention=convention)
        # SE of the mean of 21000 days correlated over about 16 days: 5.3 * sqrt(16 / 21000) = 0.15.
        assert abs(float(census[0, 100:].mean()) - mean) < 0.5, convention


@pytest.mark.slow  # importing the library takes seconds
def test_census_agrees_with_hillmaker(tmp_path, monkeypatch):
    """Independent library: mean occupancy by day with fractional edge bins is `bed_days`."""
    hillmaker = pytest.importorskip("hillmaker")
    monkeypatch.chdir(tmp_path)  # it writes its tables where it stands
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(7)
    day, offset = np.sort(rng.integers(0, 30, 120)), rng.integers(0, 1440, 120) / 1440
    los = rng.integers(10, 15_000, 120) / 1440
    start = pandas.Timestamp("2024-01-01")
    enter = start + pandas.to_timedelta(np.round((day + offset) * 1440), unit="min")
    leave = enter + pandas.to_timedelta(np.round(los * 1440), unit="min")
    frame = pandas.DataFrame({"enter": enter, "leave": leave, "ward": "a"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own deprecations
        result = hillmaker.make_hills(
            data=frame,
            in_field="enter",
            out_field="leave",
            start_analysis_dt="2024-01-01",
            end_analysis_dt="2024-01-30",
            bin_size_minutes=1440,
            edge_bins=1,
            make_all_dow_plots=False,
            make_all_week_plots=False,
            export_all_week_plots=False,
            export_all_dow_plots=False,
            scenario_name="x",
        )
    want = result["bydatetime"]["datetime"]["occupancy"].to_numpy()
    got = daily.observed_census(
        day, 0 * day, los, 1, len(want), convention="bed_days", offset=offset
    )
    np.testing.assert_allclose(got[0], want, atol=1e-4)


def test_census_vmap_jit_and_dtype():
    day, site, los = _patients(8)
    los = np.stack([los, los[::-1]]).astype(np.float32)

    def fn(los):
        return daily.observed_census(day, site, los, I, T, convention="touch")

    batched = jax.jit(jax.vmap(fn))(los)
    assert batched.dtype == jnp.float32
    for b in range(2):
        np.testing.assert_allclose(batched[b], fn(los[b]), atol=1e-5)


def _loop_variance(day, site, los, mu, window):
    variance = np.full((I, T), np.nan)
    for i in range(I):
        for t in range(T):
            mask = (site == i) & (np.abs(day - t) <= window // 2) & (day >= 0) & (day < T)
            if mask.sum() > 1:
                variance[i, t] = np.var(los[mask] - mu[i, day[mask]], ddof=1)
        has = np.isfinite(variance[i])
        if has.any():
            variance[i] = np.interp(np.arange(T), np.flatnonzero(has), variance[i, has])
    return np.maximum(np.nan_to_num(variance), 1e-6)


@pytest.mark.parametrize("window", [1, 3, 31])
def test_individual_variance_matches_a_loop(x64, window):
    mu = 5 + np.random.default_rng(9).random((I, T))
    for seed in range(3):
        day, site, los = _patients(seed)
        got = daily.individual_variance(day, site, los, mu, window=window)
        np.testing.assert_allclose(got, _loop_variance(day, site, los, mu, window), rtol=1e-9)


def test_individual_variance_recovers_a_changing_spread():
    """Exponential stays whose mean doubles: the variance is mu squared, not mu squared over n."""
    rng = np.random.default_rng(10)
    day = np.repeat(np.arange(400), 30)
    mu = np.linspace(6.0, 12.0, 400)[None]
    los = rng.exponential(mu[0, day])
    got = daily.individual_variance(day, 0 * day, los, jnp.asarray(mu), window=61)[0]
    # Relative SE of a variance of n = 1830 exponentials: sqrt(8 / n) = 6.6 %; mean over days less.
    ratio = np.asarray(got) / mu[0] ** 2
    assert abs(ratio.mean() - 1) < 0.05 and np.abs(ratio - 1).max() < 0.35


def test_errors_name_the_argument():
    day, site, los = _patients()
    with pytest.raises(ValueError, match="site must be integer"):
        daily.stays_to_daily(day, los, site, I, T)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"los must have the shape of day \(160,\), got \(159,\)"):
        daily.stays_to_daily(day, site, los[1:], I, T)
    with pytest.raises(ValueError, match="convention must be one of"):
        daily.observed_census(day, site, los, I, T, convention="noon")  # pyright: ignore
    with pytest.raises(ValueError, match="at least 1"):
        daily.observed_census(day, site, los, I, 0)
    with pytest.raises(ValueError, match="odd"):
        daily.individual_variance(day, site, los, jnp.ones((I, T)), window=4)
    with pytest.raises(ValueError, match="mu must be"):
        daily.individual_variance(day, site, los, jnp.ones(T))
