"""The births-driven projection against a Python loop with the same drawn years."""

import datetime

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from jaxlab.queueing import forecast, scenario
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.settings import BedRules, QueueModel

MODEL = scenario.BedModel(num_lags=20, rules=BedRules(bed_cap=64))


def _daily(num_days, num_sites=2, seed=0):
    rng = np.random.default_rng(seed)
    series = lambda low, high: jnp.asarray(rng.uniform(low, high, (num_sites, num_days)))  # noqa: E731
    return QueueInputs(
        lam=series(0.5, 2.0),
        mu=series(4.0, 7.0),
        sig2=series(5.0, 30.0),
        kappa=jnp.ones(num_sites),
        family=jnp.asarray([0, 2][:num_sites], jnp.int32),  # exponential, lognormal
        smax=jnp.asarray([20, 11][:num_sites], jnp.int32),
    )


def _days(first, last):
    return (datetime.date.fromisoformat(last) - datetime.date.fromisoformat(first)).days + 1


def _brute_year(lam, mu, sig2, site):
    smax = (20, 11)[site]

    def surv(u, d):
        if site == 0:
            return np.exp(-u / mu[d])
        tau2 = np.log1p(sig2[d] / mu[d] ** 2)
        return ndtr(-(np.log(max(u, 1e-300) / mu[d]) + tau2 / 2) / np.sqrt(tau2))

    days = range(len(lam))
    rho = np.array(
        [sum(lam[t - u] * surv(u, t - u) for u in range(min(t, smax) + 1)) for t in days]
    )
    mean = lam.mean() * mu.mean()
    risk = [
        next(b for b in range(1, 99) if stats.poisson.sf(b, rho).mean() <= alpha)
        for alpha in (0.05, 0.01)
    ]
    peak = rho.max()
    return rho, [int(np.ceil(mean + mean**0.5)), *risk, int(np.ceil(peak + peak**0.5))]


def test_history_keeps_dates_and_counts_leap_days(x64):
    first, last = "2019-11-20", "2022-03-01"
    num_days = _days(first, last)
    start = datetime.date.fromisoformat(first)
    dates = [start + datetime.timedelta(days=t) for t in range(num_days)]
    stamp = np.array([d.year * 10_000 + d.month * 100 + d.day for d in dates], float)
    inputs = _daily(num_days)._replace(lam=jnp.asarray(np.tile(stamp, (2, 1))))
    counts = np.random.default_rng(1).poisson(2.0, (2, num_days))
    history = forecast.yearly_history(inputs, first, admissions=jnp.asarray(counts))
    assert history.years == (2020, 2021)
    for h, year in enumerate(history.years):
        want = [
            s
            for s, d in zip(stamp, dates, strict=True)
            if d.year == year and (d.month, d.day) != (2, 29)
        ]
        np.testing.assert_array_equal(history.lam[h, 1], want)
        inside = [t for t, d in enumerate(dates) if d.year == year]
        np.testing.assert_array_equal(history.admissions[h], counts[:, inside].sum(1))
        kept = [t for t in inside if (dates[t].month, dates[t].day) != (2, 29)]
        np.testing.assert_array_equal(history.mu[h], np.asarray(inputs.mu)[:, kept])
        np.testing.assert_array_equal(history.sig2[h], np.asarray(inputs.sig2)[:, kept])
    default = forecast.yearly_history(inputs, np.datetime64(first))
    assert float(default.admissions[0, 0]) == sum(stamp[t] for t in range(42, 42 + 366))
    with pytest.raises(ValueError, match="no complete calendar year"):
        forecast.yearly_history(_daily(300), first)
    with pytest.raises(ValueError, match="admissions must be"):
        forecast.yearly_history(inputs, first, admissions=jnp.ones((2, 5)))


def test_annual_admissions_formula(x64):
    past = np.array([[100.0, 300.0], [130.0, 270.0], [90.0, 410.0], [1.0, 1.0]])
    years = (2020, 2021, 2022, 2023)
    births = {2026: 21_000.0, 2024: 19_000.0, 2025: 20_500.0}
    got = forecast.annual_admissions(
        jnp.asarray(past),
        years,
        births,
        eta=0.7,
        psi=1.02,
        baseline_years=(2020, 2021, 2022),
        base_year=2025,
    )
    totals = [400.0, 400.0, 500.0]
    for k, year in enumerate((2024, 2025, 2026)):
        annual = np.mean(totals) * (births[year] / births[2025]) ** 0.7 * 1.02 ** (year - 2025)
        share = np.mean([100 / 400, 130 / 400, 90 / 500])
        np.testing.assert_allclose(got[k], [annual * share, annual * (1 - share)], rtol=1e-12)
    faithful = forecast.annual_admissions(jnp.asarray(past), years, forecast.BIRTHS)
    np.testing.assert_allclose(faithful[0].sum(), np.mean([400, 500, 2]), rtol=1e-12)
    np.testing.assert_allclose(faithful[-1] / faithful[0], 21_049 / 19_337, rtol=1e-12)
    assert list(forecast.BIRTHS) == list(range(2024, 2031))
    np.testing.assert_allclose(np.diff(list(forecast.BIRTHS.values())), 1712 / 6)


def test_projected_beds_equal_a_python_loop(x64):
    history = forecast.yearly_history(_daily(3 * 365 + 1), "2020-01-01")
    assert history.years == (2020, 2021, 2022)
    admissions = np.array([[400.0, 520.0], [450.0, 600.0]])
    draws = forecast.YearDraws(
        arrival=jnp.asarray([[[0, 1], [2, 2]], [[1, 0], [0, 1]]], jnp.int32),
        stay=jnp.asarray([[[2, 1], [0, 0]], [[1, 2], [2, 0]]], jnp.int32),
    )
    got = jax.jit(lambda h, a, d: forecast.project_beds(h, a, d, model=MODEL, chunk=1))(
        history, jnp.asarray(admissions), draws
    )
    lam, mu, sig2 = (np.asarray(x) for x in (history.lam, history.mu, history.sig2))
    for r, y, i in np.ndindex(2, 2, 2):
        a, s = int(draws.arrival[r, y, i]), int(draws.stay[r, y, i])
        rate = lam[a, i] / lam[a, i].sum() * admissions[y, i]
        np.testing.assert_allclose(rate.sum(), admissions[y, i])
        rho, beds = _brute_year(rate, mu[s, i], sig2[s, i], i)
        np.testing.assert_array_equal(got.beds[r, y, i], beds)
        np.testing.assert_allclose(got.rho_mean[r, y, i], rho.mean(), rtol=1e-12)
        np.testing.assert_allclose(got.rho_peak[r, y, i], rho.max(), rtol=1e-12)
    with pytest.raises(ValueError, match="draws must be"):
        forecast.project_beds(history, jnp.asarray(admissions[:1]), draws)


def test_backfilled_year_is_preceded_by_itself(x64):
    history = forecast.yearly_history(_daily(365), "2021-01-01")
    admissions = jnp.asarray([[400.0, 520.0]])
    zero = jnp.zeros((1, 1, 2), jnp.int32)
    draws = forecast.YearDraws(zero, zero)
    queue = QueueModel(warmup="backfill", backfill="calendar")
    got = forecast.project_beds(history, admissions, draws, model=MODEL._replace(queue=queue))
    cold = forecast.project_beds(history, admissions, draws, model=MODEL)
    for i in range(2):
        rate = np.asarray(history.lam[0, i] / history.lam[0, i].sum() * admissions[0, i])
        twice = [np.tile(np.asarray(x[0, i]), 2) for x in (history.mu, history.sig2)]
        rho, _ = _brute_year(np.tile(rate, 2), *twice, i)
        np.testing.assert_allclose(got.rho_mean[0, 0, i], rho[365:].mean(), rtol=1e-12)
        np.testing.assert_allclose(cold.rho_mean[0, 0, i], rho[:365].mean(), rtol=1e-12)
    assert np.all(cold.rho_mean < got.rho_mean)


def test_draws_are_uniform_and_independent(key):
    draws = forecast.draw_years(key, num_runs=400, num_years=3, num_sites=2, num_history=4)
    both = np.stack([draws.arrival, draws.stay])
    assert both.min() == 0 and both.max() == 3
    columns = both.transpose(1, 0, 2, 3).reshape(400, 12)
    uniform = [stats.chisquare(np.bincount(c, minlength=4)).pvalue for c in columns.T]
    assert min(uniform) > 1e-3 / 12
    for a in range(12):
        for b in range(a):
            table = np.zeros((4, 4))
            np.add.at(table, (columns[:, a], columns[:, b]), 1)
            assert stats.chi2_contingency(table).pvalue > 1e-3 / 66
    fewer = forecast.draw_years(key, num_runs=5, num_years=3, num_sites=2, num_history=4)
    np.testing.assert_array_equal(fewer.stay, draws.stay[:5])


def test_projection_summary_chunks_and_keys(x64, key):
    history = forecast.yearly_history(_daily(3 * 365), "2021-01-01")
    births = {2024: 19_337.0, 2030: 30_000.0}

    @jax.jit
    @chex.assert_max_traces(1)
    def run(key):
        return forecast.projection(key, history, births, num_runs=7, model=MODEL, chunk=3)

    got, again = run(key), run(key)
    chex.assert_trees_all_equal(got, again)
    other = run(jax.random.fold_in(key, 1))
    assert np.any(other.draws.arrival != got.draws.arrival)

    admissions = forecast.annual_admissions(history.admissions, history.years, births)
    np.testing.assert_allclose(got.admissions, admissions, rtol=1e-14)
    alone = jax.jit(lambda d: forecast.project_beds(history, admissions, d, model=MODEL, chunk=7))
    chex.assert_trees_all_close(alone(got.draws), got.runs, rtol=1e-12)

    beds = np.asarray(got.runs.beds)
    assert beds.min() > 0
    np.testing.assert_allclose(got.summary.median, np.median(beds, 0))
    np.testing.assert_allclose(got.summary.q25, np.percentile(beds, 25, axis=0))
    np.testing.assert_allclose(got.summary.q75, np.percentile(beds, 75, axis=0))
    np.testing.assert_allclose(got.summary.mean, beds.mean(0))
    np.testing.assert_allclose(got.summary.sd, beds.std(0, ddof=1), atol=1e-12)
    # Half as many births again: more beds by every rule and site.
    assert np.all(got.summary.mean[1] > got.summary.mean[0])


def test_equal_years_leave_no_spread(key):
    year = _daily(365, seed=3)
    repeat = year._replace(**{n: jnp.tile(getattr(year, n), (1, 3)) for n in ("lam", "mu", "sig2")})
    history = forecast.yearly_history(repeat, "2021-01-01")
    got = jax.jit(
        lambda key: forecast.projection(key, history, {2024: 1.0}, num_runs=4, model=MODEL, chunk=4)
    )(key)
    np.testing.assert_array_equal(got.summary.sd, 0.0)
    beds, _ = scenario.bed_counts(year, MODEL)
    np.testing.assert_array_equal(got.summary.median[0], beds)


def test_a_missing_count_is_not_averaged():
    beds = jnp.asarray([[[[5, -1]]], [[[7, 9]]]], jnp.int32)
    summary = forecast.summarize_runs(beds)
    assert float(summary.mean[0, 0, 0]) == 6.0 and np.isnan(summary.mean[0, 0, 1])
    assert np.isnan(summary.median[0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline_years": (1999,)}, "baseline_years"),
        ({"baseline_years": ()}, "baseline_years"),
        ({"births": {2024: 0.0}}, "births must map"),
        ({"births": {}}, "births must map"),
        ({"base_year": 2000}, "base_year 2000"),
        ({"num_runs": 0}, "num_runs"),
    ],
)
def test_projection_errors(key, arguments, message):
    history = forecast.yearly_history(_daily(3 * 365), "2021-01-01")
    births = arguments.pop("births", {2024: 100.0})
    with pytest.raises(ValueError, match=message):
        forecast.projection(key, history, births, **arguments)
