"""The free-demand Monte Carlo against the Poisson law, brute-force patients and its own paths."""

import os
import subprocess
import sys

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.core import loop
from jaxlab.queueing.census import initial, occupancy, patients, simulate
from jaxlab.queueing.settings import QueueModel
from jaxlab.queueing.stays import conditional

NUM_DAYS = 40
# One site per family; rates and laws drift, so that a slip by a day shows.
FAMILIES = np.arange(len(conditional.FAMILIES), dtype=np.int32)
SMAX = np.array([30, 17, 25, 30, 22, 9], np.int32)
# Chance of a false alarm per test: tests look at 240 cells each.
FALSE_ALARM = 1e-7


def make_inputs(scale=1.0, stay=1.0, num_days=NUM_DAYS, dtype=np.float32):
    t = np.arange(num_days)
    site = np.arange(len(FAMILIES))[:, None]
    lam = scale * (2.0 + 0.4 * site + np.sin(2.0 * np.pi * (t + 3 * site) / 17.0))
    mu = stay * (4.0 + site + 1.5 * np.cos(2.0 * np.pi * (t + site) / 23.0))
    return occupancy.QueueInputs(
        lam=jnp.asarray(lam, dtype),
        mu=jnp.asarray(mu, dtype),
        sig2=jnp.asarray(0.7 * mu**2, dtype),
        kappa=jnp.asarray([1.0, 0.8, 1.0, 1.7, 1.6, 2.5], dtype),
        family=jnp.asarray(FAMILIES),
        smax=jnp.asarray(SMAX),
    )


def constant_inputs(lam, mu, smax, num_days):
    """Sites with constant rates and exponential stays."""
    lam, mu = np.atleast_1d(lam), np.atleast_1d(mu)
    row = np.ones((1, num_days), np.float32)
    return occupancy.QueueInputs(
        lam=jnp.asarray(lam[:, None] * row, jnp.float32),
        mu=jnp.asarray(mu[:, None] * row, jnp.float32),
        sig2=jnp.asarray(mu[:, None] ** 2 * row, jnp.float32),
        kappa=jnp.ones(lam.shape, jnp.float32),
        family=jnp.zeros(lam.shape, jnp.int32),
        smax=jnp.full(lam.shape, smax, jnp.int32),
    )


def jitted(function, inputs):
    """`function(key, inputs)` compiled as one program in which families and smax stay concrete."""

    @jax.jit
    def run(key, values):
        return function(key, inputs._replace(**values))

    names = ("lam", "mu", "sig2", "kappa")
    return lambda key, inputs=inputs: jax.tree.map(
        np.asarray, run(key, {name: getattr(inputs, name) for name in names})
    )


def summary(key, inputs, **settings):
    return jitted(lambda k, i: simulate.simulate_free(k, i, **settings), inputs)(key)


def sampled(key, inputs, num_replications, **settings):
    return jitted(lambda k, i: simulate.simulate_paths(k, i, num_replications, **settings), inputs)(
        key
    )


def weights(inputs, convention, num_lags=30):
    """`[I, T, U+1]` chance of presence u days after admission, site by site."""
    rows = []
    for i, family in enumerate(conditional.FAMILIES):
        law = conditional.law(family, inputs.mu[i], inputs.sig2[i], inputs.kappa[i])
        k = jax.vmap(lambda u, law=law: occupancy.census_weight(u, law, convention))(
            jnp.arange(num_lags + 1)
        )
        rows.append(np.where(np.arange(num_lags + 1)[:, None] <= SMAX[i], k, 0.0).T)
    return np.stack(rows).astype(np.float64)


def mean_by_hand(lam, weight):
    lam = np.asarray(lam, np.float64)
    rho = np.zeros_like(lam)
    for t in range(lam.shape[1]):
        for u in range(min(t, weight.shape[2] - 1) + 1):
            rho[:, t] += lam[:, t - u] * weight[:, t - u, u]
    return rho


def z_limit(num_tests):
    return stats.norm.isf(FALSE_ALARM / (2 * num_tests))


def brute_force_paths(rng, lam, mu, smax, num_paths):
    """`[R, T]` census of one site, exponential stays, patient after patient."""
    paths = np.zeros((num_paths, len(lam)), int)
    for path in paths:
        for day, rate in enumerate(lam):
            for _ in range(rng.poisson(rate)):
                stay = min(int(np.ceil(rng.exponential(mu[day]))), smax + 1)
                path[day : day + stay] += 1
    return paths


def run_lengths(path, beds):
    """Lengths of the runs of days above beds, in order."""
    lengths, run = [], 0
    for census in path:
        if census > beds:
            run += 1
        elif run:
            lengths.append(run)
            run = 0
    return lengths + [run] * (run > 0)


def same_law_p_value(a, b):
    """Two-sample chi-square of integer samples, bins of at least 10."""
    edges = np.unique(np.quantile(np.concatenate([a, b]), np.linspace(0, 1, 15)))
    counts = np.stack([np.histogram(x, np.append(edges, np.inf))[0] for x in (a, b)])
    return stats.chi2_contingency(counts[:, counts.sum(axis=0) >= 10]).pvalue


@pytest.mark.parametrize("convention", ["ceil", "midnight", "touch"])
def test_every_day_is_poisson_with_the_mean_of_the_core_formula(key, convention):
    inputs, num = make_inputs(), 8192
    beds = jnp.asarray([12, 20], jnp.int32)
    result = summary(
        key,
        inputs,
        beds=beds,
        num_replications=num,
        queue=QueueModel(convention=convention),
        hist_size=64,
    )
    rho = mean_by_hand(inputs.lam, weights(inputs, convention))
    assert int(result.invalid) == 0
    assert int(result.replications) == num
    assert result.hist.sum() == num * rho.size and not np.any(result.hist_overflow)
    # Mean; variance, whose own variance for a Poisson law is (rho + 2 rho^2) / R.
    limit = z_limit(rho.size)
    assert np.abs((result.mean - rho) / np.sqrt(rho / num)).max() < limit
    assert np.abs((result.var - rho) / np.sqrt((rho + 2 * rho**2) / num)).max() < limit
    np.testing.assert_allclose(result.mean_se, np.sqrt(rho / num), rtol=0.1)
    for b, bed in enumerate(np.asarray(beds)):
        tail = stats.poisson.sf(bed, rho)
        error = np.asarray(result.exceed_daily[:, b]) - tail
        assert np.abs(error / np.sqrt(tail * (1 - tail) / num + 1e-7)).max() < limit
    # The whole law of each day: chi-square over bins with at least 8 expected.
    expected = num * stats.poisson.pmf(np.arange(64), rho[..., None])
    kept = expected >= 8
    chi2 = (np.where(kept, np.asarray(result.hist) - expected, 0) ** 2 / expected.clip(8)).sum(-1)
    assert stats.chi2.sf(chi2, kept.sum(-1)).min() > FALSE_ALARM / rho.size


def test_covariance_between_days_is_that_of_the_patients_present_on_both(key):
    inputs, num = make_inputs(), 16384
    paths = sampled(key, inputs, num)
    weight, lam = weights(inputs, "ceil"), np.asarray(inputs.lam, np.float64)
    days = np.array([0, 3, 11, 20, 21, 39])
    want = np.zeros((6, 6, 6))
    for i in range(6):
        for a, s in enumerate(days):
            for b, t in enumerate(days):
                lo, hi = min(s, t), max(s, t)
                want[i, a, b] = sum(
                    lam[i, d] * weight[i, d, hi - d] for d in range(lo + 1) if hi - d <= 30
                )
    picked = np.asarray(paths, np.float64)[:, :, days]
    centered = picked - picked.mean(axis=0)
    got = np.einsum("ria,rib->iab", centered, centered) / (num - 1)
    rho = want.diagonal(axis1=1, axis2=2)
    spread = np.sqrt((rho[:, :, None] * rho[:, None] + want**2 + want) / num)
    assert np.abs((got - want) / spread).max() < z_limit(want.size)


def test_peaks_and_overflow_episodes_follow_the_law_of_brute_force_patients(key):
    num_days, num, beds = 60, 3000, 18
    t = np.arange(num_days)
    lam, mu = 2.2 + np.sin(t / 8.0), 6.0 + np.cos(t / 5.0)
    inputs = constant_inputs(1.0, 1.0, 25, num_days)._replace(
        lam=jnp.asarray(lam[None], jnp.float32), mu=jnp.asarray(mu[None], jnp.float32)
    )
    ours = sampled(key, inputs, num)[:, 0]
    rng = np.random.default_rng(5)
    theirs = brute_force_paths(rng, lam, mu, 25, num)
    daily = rng.poisson(ours.mean(axis=0), ours.shape)  # right law of each day, wrong law of paths

    def statistics(paths):
        runs = [run_lengths(path, beds) for path in paths]
        return {
            "peak": paths.max(axis=1),
            "days over": (paths > beds).sum(axis=1),
            "episodes": np.array([len(r) for r in runs]),
            "longest": np.array([max(r, default=0) for r in runs]),
            "run length": np.array([length for r in runs for length in r]),
            "sum": paths.sum(axis=1) // 20,
        }

    ours, theirs, daily = (statistics(p) for p in (ours, theirs, daily))
    p_values = {name: same_law_p_value(ours[name], theirs[name]) for name in ours}
    assert min(p_values.values()) > 1e-7, p_values
    power = {name: same_law_p_value(ours[name], daily[name]) for name in ours}
    assert max(power.values()) < 1e-7, power


def test_stationary_unit_reaches_the_published_mean_and_variance(key):
    lam, mu, num_days, num = 2.65, 12.4, 2922, 512
    inputs = constant_inputs(lam, mu, 200, num_days)
    result = summary(
        key, inputs, num_replications=num, queue=QueueModel(warmup="drop"), hist_size=96
    )
    steady = lam / -np.expm1(-1.0 / mu)  # 34.20; a simulation of 500 paths gave 34.19 and 34.11
    assert abs(result.path_mean.mean[0] - steady) < 6 * result.path_sd.mean[0] / np.sqrt(num)
    assert abs(result.mean[0, 200:].mean() - 34.19) < 0.06
    assert abs(result.var[0, 200:].mean() - 34.11) < 0.4
    # corr(h) = exp(-h/mu): an average over T days is worth T / (1 + 2 sum corr) independent days.
    correlated = 1.0 + 2.0 / np.expm1(1.0 / mu)
    worth = num * (num_days - 200) / correlated
    assert result.effective_replications[0] == pytest.approx(worth, rel=0.35)


def test_replications_are_independent_within_and_between_groups(key):
    inputs = constant_inputs([3.0, 0.6], [5.0, 3.0], 20, 12)
    paths = sampled(key, inputs, 128 * 256).astype(np.float64)
    rho = mean_by_hand(
        inputs.lam, np.exp(-np.arange(21) / np.array([[[5.0]], [[3.0]]])) * np.ones((2, 12, 1))
    )
    for shape, axis in (((128, 256, 2, 12), 1), ((128, 256, 2, 12), 0)):
        means = paths.reshape(shape).mean(axis=axis)
        count, size = means.shape[0], shape[axis]
        chi2 = (count - 1) * means.var(axis=0, ddof=1) * size / rho
        p = stats.chi2.cdf(chi2, count - 1)
        assert np.minimum(p, 1 - p).min() > 1e-7


def test_a_stay_of_one_day_makes_days_independent_and_no_rate_leaves_the_unit_empty(key):
    inputs = constant_inputs([3.0, 0.0], [5.0, 5.0], 0, 30)
    paths = sampled(key, inputs, 4096).astype(np.float64)
    assert not paths[:, 1].any()
    lagged = [np.corrcoef(paths[:, 0, t], paths[:, 0, t + 1])[0, 1] for t in range(29)]
    assert np.abs(lagged).max() < z_limit(29) / np.sqrt(4096)
    np.testing.assert_allclose(paths[:, 0].mean(), 3.0, atol=6 * np.sqrt(3 / 4096 / 30))


def test_common_random_numbers_couple_scenarios_path_by_path(key):
    base, num = make_inputs(), 2048
    ceiling = 1.2 * base.lam

    paths = jitted(lambda k, i: simulate.simulate_paths(k, i, num, lam_max=ceiling), base)
    longer = base._replace(mu=1.1 * base.mu, sig2=1.21 * base.sig2)
    low, busy, longer = (
        paths(key, i).astype(np.float64) for i in (base, make_inputs(scale=1.1), longer)
    )
    other = paths(jax.random.fold_in(key, 1), make_inputs(scale=1.1)).astype(np.float64)
    # The same patients and more of them; the same quantiles of longer stays.
    assert (busy >= low).all() and (longer >= low).all()
    assert (busy - low).mean() > 0.5
    late = slice(20, None)
    coupled, independent = ((x - low)[..., late].var(axis=0) for x in (busy, other))
    assert np.all(coupled < 0.15 * independent)
    # Thinning keeps the law.
    rho = mean_by_hand(base.lam, weights(base, "ceil"))
    assert np.abs((low.mean(axis=0) - rho) / np.sqrt(rho / num)).max() < z_limit(rho.size)


def test_patients_in_bed_at_the_start_have_residual_stays(key):
    inputs, num = make_inputs(), 16384
    ages = np.full((6, 5), -1.0, np.float32)
    ages[:, 0], ages[:, 1], ages[3, 2:] = 0.5, 4.0, [7.25, 2.0, 11.0]
    result = summary(
        key, inputs, num_replications=num, initial_ages=jnp.asarray(ages), hist_size=64
    )
    rho = mean_by_hand(inputs.lam, weights(inputs, "ceil"))
    mean, var, days = rho.copy(), rho.copy(), np.arange(NUM_DAYS)
    for i, family in enumerate(conditional.FAMILIES):
        law = conditional.law(family, inputs.mu[i, 0], inputs.sig2[i, 0], inputs.kappa[i])
        for age in ages[i][ages[i] >= 0]:
            p = np.asarray(law(jnp.asarray(age + days)) / law(jnp.asarray(age)), np.float64)
            p = np.where((age + days <= SMAX[i]) | (days == 0), p, 0.0)
            mean[i] += p
            var[i] += p * (1 - p)
    assert int(result.invalid) == 0
    limit = z_limit(mean.size)
    assert np.abs((result.mean - mean) / np.sqrt(var / num)).max() < limit
    assert np.abs((result.var - var) / np.sqrt((var + 2 * var**2) / num)).max() < limit
    # The whole law: Poisson-binomial survivors convolved with Poisson newcomers.
    days = np.array([1, 5, 12])
    law = conditional.law("gamma", inputs.mu[3, 0], inputs.sig2[3, 0], inputs.kappa[3])
    pmf = initial.initial_occupancy_pmf(
        jnp.asarray(ages[3]),
        jnp.asarray(ages[3] >= 0),
        jnp.asarray(days, jnp.float32),
        law,
        jnp.asarray(rho[3, days], jnp.float32),
        63,
    )
    expected = num * np.asarray(pmf, np.float64)
    kept = expected >= 8
    chi2 = (np.where(kept, result.hist[3, days] - expected, 0) ** 2 / expected.clip(8)).sum(-1)
    assert stats.chi2.sf(chi2, kept.sum(-1)).min() > FALSE_ALARM


def test_without_admissions_only_the_initial_patients_are_there_and_leave(key):
    inputs = constant_inputs([0.0, 0.0], [4.0, 9.0], 12, 20)
    ages = jnp.asarray([[0.0, 3.5, -1.0], [14.0, 12.0, 11.0]])
    paths = sampled(key, inputs, 64, initial_ages=ages)
    assert (paths[:, :, 0] == np.array([2, 3])).all()
    assert (np.diff(paths, axis=2) <= 0).all()
    # A stay ends after S_max + 1 = 13 days in all: two of the second site leave at once.
    assert (paths[:, 1, 1] <= 1).all() and paths[:, 1, 1].any() and not paths[:, 1, 2:].any()
    assert paths[:, 0, 1:13].any() and not paths[:, 0, 13:].any()


@pytest.mark.parametrize("warmup", ["zero", "drop", "backfill"])
def test_path_statistics_are_those_of_the_paths(key, warmup):
    inputs, num = constant_inputs([2.0, 1.3], [4.0, 6.0], 11, 50), 200
    inputs = inputs._replace(family=jnp.asarray([0, 1]), smax=jnp.asarray([11, 7]))
    beds = jnp.asarray([[8, 14], [6, 9]], jnp.int32)

    def one_step(key, inputs):
        algorithm = simulate.make_monte_carlo(
            inputs,
            beds=beds,
            replications_per_step=num,
            queue=QueueModel(warmup=warmup),
            hist_size=64,
        )
        state, metrics = algorithm.step(algorithm.init(key))
        block_key = jax.random.split(jax.random.split(key)[1], 1)[0]
        paths = simulate.simulate_paths(block_key, inputs, num, queue=QueueModel(warmup=warmup))
        return simulate.summarize(state), metrics, paths

    result, metrics, paths = jitted(one_step, inputs)(key)
    first = [11, 7] if warmup == "drop" else [0, 0]
    for i in range(2):
        kept = paths[:, i, first[i] :]
        np.testing.assert_array_equal(
            result.hist[i], [np.bincount(day, minlength=64) for day in paths[:, i].T]
        )
        np.testing.assert_array_equal(result.max_hist[i], np.bincount(kept.max(1), minlength=64))
        wanted = {"mean": kept.mean(axis=1), "peak": kept.max(axis=1)}
        for name, values in wanted.items():
            np.testing.assert_allclose(getattr(result.path_mean, name)[i], values.mean(), rtol=1e-5)
            np.testing.assert_allclose(
                getattr(result.path_sd, name)[i], values.std(ddof=1), rtol=1e-4
            )
        for b in range(2):
            bed = int(beds[i, b])
            runs = [run_lengths(path, bed) for path in kept]
            exceed = (kept > bed).mean(axis=1)
            wanted = {
                "exceed": exceed,
                "episodes": np.array([len(r) for r in runs]),
                "longest": np.array([max(r, default=0) for r in runs]),
            }
            for name, values in wanted.items():
                got = getattr(result.path_mean, name)[i, b], getattr(result.path_sd, name)[i, b]
                want = values.mean(), values.std(ddof=1)
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(result.exceed[i, b], exceed.mean(), rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(
                result.exceed_se[i, b], exceed.std(ddof=1) / np.sqrt(num), rtol=1e-4, atol=1e-7
            )
            np.testing.assert_allclose(
                result.exceed_daily[i, b], (paths[:, i] > bed).mean(axis=0), atol=1e-6
            )
            lengths = [length for r in runs for length in r]
            np.testing.assert_allclose(
                result.episode_days[i, b], np.mean(lengths) if lengths else 0.0, rtol=1e-4
            )
    np.testing.assert_allclose(result.mean, paths.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.var, paths.var(axis=0, ddof=1), rtol=1e-4)
    bands = np.quantile(paths, simulate.LEVELS, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(result.quantiles, np.moveaxis(bands, 0, -1))
    assert metrics["sim/replications"] == num and metrics["sim/invalid"] == 0
    np.testing.assert_allclose(
        metrics["sim/mean_occupancy"], result.path_mean.mean.mean(), rtol=1e-5
    )
    if warmup == "backfill":
        rho = occupancy.occupancy_mean(*inputs, queue=QueueModel(warmup="backfill"))
        assert np.abs((result.mean - rho) / np.sqrt(rho / num)).max() < z_limit(rho.size)


def test_calendar_backfill_puts_the_first_year_before_itself():
    inputs = constant_inputs([2.0, 1.3], [4.0, 6.0], 8, 365)
    day = jnp.arange(365, dtype=jnp.float32) / 365.0
    inputs = inputs._replace(lam=inputs.lam * (1.0 + day[None]), mu=inputs.mu * (2.0 - day[None]))
    queue = QueueModel(warmup="backfill", backfill="calendar")
    law = patients.make_law(inputs, history=8, queue=queue)
    assert law.rate.shape == (2, 373)
    np.testing.assert_allclose(law.rate[:, :8], inputs.lam[:, -8:])
    np.testing.assert_array_equal(law.stay[:, :8], law.stay[:, -8:])  # chances within one program


def test_moments_of_many_steps_are_those_of_all_paths(key):
    inputs = constant_inputs([2.0, 0.7], [4.0, 6.0], 20, 30)
    beds = jnp.asarray([9], jnp.int32)

    def steps(key, inputs):
        algorithm = simulate.make_monte_carlo(
            inputs, beds=beds, replications_per_step=48, hist_size=32
        )
        state, _ = jax.lax.scan(
            lambda s, _: (algorithm.step(s)[0], None), algorithm.init(key), length=5
        )

        def paths(key, _):
            key, key_step = jax.random.split(key)
            return key, simulate.simulate_paths(jax.random.split(key_step, 1)[0], inputs, 48)

        return simulate.summarize(state), jax.lax.scan(paths, key, length=5)[1]

    result, paths = jitted(steps, inputs)(key)
    paths = paths.reshape(-1, 2, 30)
    assert int(result.replications) == 240 and result.hist.sum() == paths.size
    means, over = paths.mean(axis=2), (paths > 9).mean(axis=2)
    np.testing.assert_allclose(result.path_mean.mean, means.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.path_sd.mean, means.std(axis=0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(result.path_sd.exceed[:, 0], over.std(axis=0, ddof=1), rtol=1e-4)


def test_census_beyond_the_histogram_is_reported(key):
    inputs = constant_inputs([2.0, 0.2], [6.0, 2.0], 30, 60)
    result = summary(key, inputs, num_replications=512, hist_size=10)
    paths = mean_by_hand(
        inputs.lam, np.exp(-np.arange(31) / np.array([[[6.0]], [[2.0]]])) * np.ones((2, 60, 1))
    )
    share = stats.poisson.sf(8, paths).mean(axis=1)
    assert share[0] > 0.5 and share[1] < 1e-6
    np.testing.assert_allclose(result.hist_overflow, share, atol=0.03)
    assert result.hist_overflow[1] == 0.0
    assert (result.hist.sum(axis=-1) == 512).all()  # nobody is dropped


def test_states_do_not_depend_on_how_steps_are_grouped_or_resumed(key, tmp_path):
    inputs = constant_inputs([2.0, 0.7], [4.0, 6.0], 20, 30)
    algorithm = simulate.make_monte_carlo(
        inputs, beds=jnp.asarray([9], jnp.int32), replications_per_step=32, hist_size=32
    )
    whole = loop.run(algorithm, key, num_steps=4, chunk_size=1).state  # one program: bit-equal
    loop.run(algorithm, key, num_steps=2, chunk_size=1, directory=tmp_path)
    parts = loop.run(algorithm, key, num_steps=4, chunk_size=1, directory=tmp_path).state
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_draws_depend_on_the_seed_and_not_on_the_tile(key):
    inputs = constant_inputs([5.0, 0.7], [4.0, 6.0], 20, 40)
    tiles = [sampled(key, inputs, 300, tile=tile) for tile in (1024, 65536)]
    np.testing.assert_array_equal(*tiles)
    other = sampled(jax.random.fold_in(key, 1), inputs, 300, tile=1024)
    assert np.mean(tiles[0] == other) < 0.3


def test_vmap_over_seeds_and_scenarios_equals_the_loop(key):
    inputs = constant_inputs([2.0, 0.7], [4.0, 6.0], 20, 15)
    keys = jax.random.split(key, 3)
    factors = jnp.asarray([0.5, 1.0, 3.0], jnp.float32)

    def paths(key, factor):
        scaled = inputs._replace(lam=factor * inputs.lam)
        return simulate.simulate_paths(key, scaled, 16, tile=256)

    together = jax.jit(jax.vmap(paths))(keys, factors)
    one = jax.jit(paths)
    for i in range(3):
        # The batched law is another program: rounding may move a patient, another key moves most.
        alone, batched = np.asarray(one(keys[i], factors[i])), np.asarray(together[i])
        assert np.mean(alone != batched) < 0.02


def test_new_values_do_not_retrace_and_invalid_ones_are_counted(key):
    traces = 0

    @jax.jit
    def run(key, inputs, lam_max):
        nonlocal traces
        traces += 1
        return simulate.simulate_free(
            key, inputs, num_replications=64, num_lags=30, lam_max=lam_max, hist_size=64
        )

    good = make_inputs()
    assert int(run(key, good, 1.5 * good.lam).invalid) == 0
    assert int(run(key, good, good.lam.at[2, 5:8].multiply(0.9)).invalid) == 3
    bad = good._replace(
        lam=good.lam.at[0, 0].set(jnp.nan).at[1, 3].set(-1.0),
        mu=good.mu.at[4, 7].set(jnp.nan),
        smax=good.smax.at[5].set(31),
    )
    result = run(key, bad, 1.5 * good.lam)
    assert int(result.invalid) == 3 + NUM_DAYS
    assert np.isfinite(result.mean).all() and not result.mean[5].any()
    assert traces == 1


def test_float64_inputs_draw_the_same_patients(key, x64):
    single = constant_inputs([2.0, 0.7], [4.0, 6.0], 20, 30)
    double = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, single)
    paths = [sampled(key, inputs, 64) for inputs in (single, double)]
    # Rounding moves a stay across a 24-bit boundary once in a while.
    assert np.mean(paths[0] != paths[1]) < 1e-3
    assert paths[1].dtype == np.int32


def test_cipher_is_the_one_of_jax_and_of_its_authors():
    x, y = patients.threefry(jnp.zeros(2, jnp.uint32), jnp.zeros(1, jnp.uint32))
    assert (int(x[0]), int(y[0])) == (0x6B200159, 0x99BA4EFE)  # known answer of Random123
    counter = jnp.arange(1000, dtype=jnp.uint32) * 2654435
    key_data = jnp.asarray([0xDEADBEEF, 12345], jnp.uint32)
    theirs = jax.extend.random.threefry_2x32(
        (key_data[0], key_data[1]), jnp.concatenate([counter, jnp.zeros_like(counter)])
    )
    np.testing.assert_array_equal(
        np.concatenate(patients.threefry(key_data, counter)), np.asarray(theirs)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queue": QueueModel(convention="bed_days")}, "count at one time"),
        ({"queue": QueueModel(convention="noon")}, "convention must be"),
        ({"queue": QueueModel(warmup="cold")}, "warmup must be"),
        ({"num_lags": 29}, "num_lags"),
        ({"lam_max": jnp.ones((6, NUM_DAYS))}, "lam_max must be >= lam"),
        ({"lam_max": jnp.ones((6, 3))}, "lam_max must be"),
        ({"initial_ages": jnp.ones((5, 2))}, "initial_ages must be"),
        (
            {"initial_ages": jnp.ones((6, 2)), "queue": QueueModel(warmup="backfill")},
            "initial_ages",
        ),
        ({"beds": jnp.ones((6, 2))}, "beds must be integers"),
        ({"beds": jnp.ones((5, 2), jnp.int32)}, "beds must be"),
        ({"beds": jnp.asarray([63]), "hist_size": 64}, "hist_size must be"),
        ({"num_replications": 10, "replications_per_step": 4}, "must be a multiple"),
        ({"num_replications": 0}, "at least 1"),
        ({"tile": 100}, "tile"),
        ({"queue": QueueModel(variant="fisk")}, "variant"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_unsuitable_arguments_are_named(key, change, message):
    with pytest.raises(ValueError, match=message):
        simulate.simulate_free(key, make_inputs(), **({"num_replications": 8} | change))


def test_other_unsuitable_inputs_are_named(key):
    inputs = make_inputs()
    with pytest.raises(ValueError, match="threefry"):
        simulate.simulate_paths(jax.random.key(0, impl="rbg"), inputs, 4)
    with pytest.raises(ValueError, match="threefry"):
        simulate.simulate_paths(jax.random.PRNGKey(0), inputs, 4)
    with pytest.raises(ValueError, match="alike"):
        simulate.simulate_paths(key, inputs._replace(mu=inputs.mu[:, 1:]), 4)
    with pytest.raises(ValueError, match="smax is traced"):
        jax.eval_shape(lambda i: simulate.simulate_paths(key, i, 4), inputs)
    with pytest.raises(ValueError, match="too many"):
        jax.eval_shape(lambda k: simulate.simulate_paths(k, inputs, 10**8), key)
    with pytest.raises(ValueError, match="multiple of num_blocks"):
        simulate.make_monte_carlo(inputs, replications_per_step=10, num_blocks=3)


@pytest.mark.slow
def test_two_devices_draw_what_one_draws():
    program = """
import jax, jax.numpy as jnp, numpy as np
from jaxlab.core import sharding
from jaxlab.queueing.census import occupancy, simulate
shape = (2, 30)
inputs = occupancy.QueueInputs(
    jnp.full(shape, 2.0), jnp.full(shape, 5.0), jnp.full(shape, 9.0), jnp.ones(2),
    jnp.zeros(2, jnp.int32), jnp.full(2, 20, jnp.int32))
assert jax.device_count() == 2
states = []
for mesh in (None, sharding.make_mesh()):
    alg = simulate.make_monte_carlo(
        inputs, replications_per_step=64, num_blocks=4, hist_size=32, mesh=mesh)
    state = jax.jit(alg.init)(jax.random.key(0))
    states.append(jax.jit(alg.step)(state)[0])
a, b = states
assert int(a.hist.sum()) == 64 * 60
np.testing.assert_array_equal(a.hist, b.hist)
np.testing.assert_array_equal(a.max_hist, b.max_hist)
np.testing.assert_allclose(a.path_m2.mean, b.path_m2.mean, rtol=1e-5)
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=env)
