"""Benchmark tasks against the published tables, exact Poisson quantiles and scipy's laws."""

import datetime

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from jaxlab.queueing.data import daily, tasks
from jaxlab.queueing.stays import conditional

SITES = tasks.CALGARY_SITES


def test_demo5_values(x64):
    got = tasks.demo5(family="weibull", num_days=800)
    t = np.arange(800)
    np.testing.assert_allclose(got.lam[1, 0], 3.416015, atol=5e-7)  # rho[0] of the second site
    want = 1.5 * (1 + 0.2 * np.sin(2 * np.pi * (t + 120) / 365))
    np.testing.assert_allclose(got.lam[4], want, rtol=1e-12)
    want = 8.4 * (1 + 0.1 * np.sin(2 * np.pi * (t + 115) / 365))
    np.testing.assert_allclose(got.mu[2], want, rtol=1e-12)
    np.testing.assert_allclose(got.sig2, np.square(got.mu), rtol=1e-12)
    np.testing.assert_allclose(got.lam[:, 365:730], got.lam[:, :365], rtol=1e-12)
    assert [conditional.FAMILIES[i] for i in got.family] == ["weibull"] * 5
    assert got.smax.tolist() == [60] * 5 and got.kappa.tolist() == [1.5] * 5
    assert tasks.demo5().lam.shape == (5, 365)
    with pytest.raises(ValueError, match="'normal'"):
        tasks.demo5(family="normal")


def test_true_poisson_quantiles_of_the_constant_units():
    """The ceil convention, rho = lam E[ceil S] = lam sum_u P(S > u), gives each unit's beds."""
    u = np.arange(3000.0)
    rho = np.array([unit.lam * np.sum(1 - tasks.los_cdf(unit, u)) for unit in SITES])
    assert stats.poisson.ppf(0.95, rho).astype(int).tolist() == [23, 44, 31, 32, 19]
    assert stats.poisson.ppf(0.99, rho).astype(int).tolist() == [26, 48, 35, 35, 22]
    rate, mean = np.array([(unit.lam, tasks.mean_los(unit)) for unit in SITES]).T
    midnight, touch = stats.poisson.ppf(0.95, (rate * mean, rate * (mean + 1))).astype(int)
    assert midnight.tolist() == [22, 42, 30, 31, 18]  # one or two beds fewer, or one more
    assert touch.tolist() == [23, 45, 32, 33, 20]


def test_rates_reproduce_the_published_system_row():
    """Ten equations: admissions-weighted mean and SD of the five site means, to rounding."""
    share = np.array([unit.lam for unit in SITES]) / sum(unit.lam for unit in SITES)
    np.testing.assert_allclose(share, [0.0899, 0.3356, 0.2213, 0.2136, 0.1396], atol=1e-4)
    assert abs(sum(unit.lam for unit in SITES) - 7.9) < 0.01
    for rule, published in tasks.PUBLISHED_SYSTEM_UTILIZATION.items():
        site_mean = np.array(tasks.PUBLISHED_UTILIZATION[rule])[:, 0]
        mean = share @ site_mean
        sd = np.sqrt(share @ (site_mean - mean) ** 2)
        np.testing.assert_allclose((mean, sd), published, atol=0.012, err_msg=rule)


def test_published_tables_agree_with_each_other():
    """Utilization times beds is one occupancy per site, whatever the rule (to rounding)."""
    beds = {k: np.array(v) for k, v in tasks.PUBLISHED_BEDS.items()}
    assert {k: v.sum() for k, v in beds.items()} == {
        "actual": 126,
        "B_average": 130,
        "B_0.05": 161,
        "B_0.01": 186,
        "B_max": 195,
    }
    assert [unit.beds for unit in SITES] == beds["actual"].tolist()
    occupied = [
        np.array(v) * beds[k][:, None] / 100 for k, v in tasks.PUBLISHED_UTILIZATION.items()
    ]
    np.testing.assert_allclose(np.ptp(occupied, axis=0), 0, atol=0.008)
    want = [(16.49, 2.88), (34.27, 4.17), (22.98, 4.55), (23.54, 3.73), (13.42, 3.25)]
    np.testing.assert_allclose(np.mean(occupied, axis=0), want, atol=0.006)


@pytest.mark.parametrize("unit", SITES, ids=lambda unit: unit.name)
def test_true_laws_match_scipy(unit):
    law = {
        "fisk": stats.fisk(unit.shape, scale=unit.scale),
        "exponential": stats.expon(scale=unit.scale),
        "weibull": stats.weibull_min(unit.shape, scale=unit.scale),
    }[unit.family]
    u = np.linspace(0.01, 340.0, 300)
    want = np.minimum(law.cdf(u) / law.cdf(unit.los_cap), 1.0)
    np.testing.assert_allclose(tasks.los_cdf(unit, u), want, atol=1e-12)
    p = np.linspace(0.001, 0.999, 50)
    np.testing.assert_allclose(tasks.los_cdf(unit, tasks.los_quantile(unit, p)), p, atol=1e-12)
    top = unit.los_cap if np.isfinite(unit.los_cap) else 1000.0
    mean = integrate.quad(lambda x: 1 - tasks.los_cdf(unit, x), 0, top, limit=500)[0]
    np.testing.assert_allclose(tasks.mean_los(unit), mean, rtol=1e-6)
    rounded = {"Site 1": 21.9, "Site 2": 12.2, "Site 3": 12.5, "Site 4": 13.35, "Site 5": 11.1}
    assert abs(mean - rounded[unit.name]) < 0.1
    capped = unit._replace(los_cap=30.0)
    mean = integrate.quad(lambda x: 1 - tasks.los_cdf(capped, x), 0, 30)[0]
    np.testing.assert_allclose(tasks.mean_los(capped), mean, rtol=1e-9)


def test_calgary_like_follows_its_laws():
    stays = tasks.calgary_like(1)
    assert stays.num_days == 2922 and stays.origin == datetime.date(2016, 1, 1)
    last = stays.origin + datetime.timedelta(days=stays.num_days - 1)
    assert last == datetime.date(2023, 12, 31)
    assert (np.diff(stays.day) >= 0).all() and stays.event.all() and (stays.los > 0).all()
    for i, unit in enumerate(SITES):
        mask = stays.site == i
        counts = np.bincount(stays.day[mask], minlength=2922)
        # 4 standard errors of a Poisson mean and of the index of dispersion, sqrt(2 / T).
        assert abs(counts.mean() - unit.lam) < 4 * np.sqrt(unit.lam / 2922)
        assert abs(counts.var() / counts.mean() - 1) < 4 * np.sqrt(2 / 2922)
        los = stays.los[mask]
        assert los.max() <= unit.los_cap * (1 + 1e-12)
        # Conditioning leaves no heap at the cap; a 1e-4 level test of the whole law.
        assert stats.kstest(los, lambda x, unit=unit: tasks.los_cdf(unit, x)).pvalue > 1e-4


def test_census_of_calgary_like_is_poisson_about_its_mean():
    stays = tasks.calgary_like(2, num_days=9000)
    census = daily.observed_census(stays.day, stays.site, stays.los.astype(np.float32), 5, 9000)
    for i in (2, 3, 4):  # stationary after some mean stays
        unit, x = SITES[i], np.asarray(census[i, 400:])
        rho = unit.lam * np.sum(1 - tasks.los_cdf(unit, np.arange(2000.0)))
        effective = x.size / (2 * unit.scale)
        assert abs(x.mean() - rho) < 4 * np.sqrt(rho / effective)
        assert abs(x.var() / rho - 1) < 4 * np.sqrt(2 / effective)


def test_seeds_and_keys():
    a, b = tasks.calgary_like(3, num_days=50), tasks.calgary_like(3, num_days=50)
    np.testing.assert_array_equal(a.los, b.los)
    c = tasks.calgary_like(jax.random.key(3), num_days=50)
    d = tasks.calgary_like(jax.random.fold_in(jax.random.key(3), 1), num_days=50)
    assert c.los.size != d.los.size or (c.los != d.los).any()
    np.testing.assert_array_equal(c.los, tasks.calgary_like(jax.random.key(3), num_days=50).los)


def test_options_shape_rates_and_stays():
    day = np.arange(2922)
    lam, mu = tasks.calgary_rates(annual=0.2, annual_phase=30.0, growth=0.03, los_drift=0.02)
    want = 1.687 * (1 + 0.2 * np.sin(2 * np.pi * (day + 30) / 365.25)) * (1 + 0.03 * day / 365.25)
    np.testing.assert_allclose(lam[3], want)
    np.testing.assert_allclose(mu[3], 13.35 * (1 + 0.02 * day / 365.25))
    lam, _ = tasks.calgary_rates(14, weekday=(7, 0, 0, 0, 0, 0, 0))
    # 2016-01-01 was a Friday: the first Monday is day 3; factors are brought to mean 1.
    np.testing.assert_allclose(lam[0], 0.71 * 7 * (np.arange(14) % 7 == 3))


def test_scenarios_draw_from_their_rates():
    for name, options in tasks.SCENARIOS.items():
        stays = tasks.calgary_like(4, **options)
        rates = {k: v for k, v in options.items() if k not in ("twins", "strata")}
        lam, mu = tasks.calgary_rates(**rates)
        batch = 1 + 2 * 0.15 / 1.15 if "twins" in options else 1.0
        counts = np.bincount(stays.day, minlength=2922)
        score = (counts - lam.sum(0)) / np.sqrt(lam.sum(0) * batch)
        assert abs(score.mean()) < 4 / np.sqrt(2922), name
        # Var of a batch-Poisson count is mean (1 + E[K(K-1)] / E[K]), K = 2 with probability 0.15.
        assert abs(score.var() - 1) < 4 * np.sqrt(3 / 2922), name
        relative = stays.los / mu[stays.site, stays.day]
        assert abs(relative.mean() - 1) < 4 * relative.std() / np.sqrt(relative.size), name
    weekly = np.bincount((stays.day + 4) % 7)  # day 0 is a Friday, so this counts from Monday
    assert weekly[:5].min() > 1.15 * weekly[5:].max()


def test_strata_are_a_mixture_of_scaled_laws():
    unit = SITES[2]
    stays = tasks.calgary_like(5, sites=[unit], strata=((1, 3.0), (3, 1.0)))  # mean 1.5
    law = lambda x: 0.25 * -np.expm1(-x / 25.0) + 0.75 * -np.expm1(-x * 1.5 / 12.5)  # noqa: E731
    assert stats.kstest(stays.los, law).pvalue > 1e-4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"twins": 1.0}, "twins"),
        ({"growth": -0.2}, "negative"),
        ({"annual": 1.5}, "negative"),
        ({"los_drift": -0.5}, "no stay"),
        ({"weekday": (1, 1)}, "seven"),
        ({"strata": ((0.5, 0.0),)}, "strata"),
        ({"strata": (0.5, 1.0)}, "strata"),
        ({"sites": [SITES[0]._replace(family="gamma")]}, "family"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.calgary_like(0, **options)
