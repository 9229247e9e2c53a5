"""Statistics over seeds against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab.core import stats


@pytest.mark.parametrize("size", [3, 4, 7, 10, 101])
def test_iqm_is_scipys_trimmed_mean(size):
    x = np.random.default_rng(size).gamma(2.0, size=size)
    np.testing.assert_allclose(stats.iqm(jnp.asarray(x)), scipy.stats.trim_mean(x, 0.25), rtol=1e-5)


@pytest.mark.parametrize("statistic", [jnp.mean, stats.iqm], ids=["mean", "iqm"])
def test_bootstrap_matches_scipy_percentile(key, statistic):
    x = np.random.default_rng(0).lognormal(size=24).astype(np.float32)
    ours = stats.bootstrap_interval(key, jnp.asarray(x), statistic=statistic, num_resamples=20000)
    numpy_statistic = {
        jnp.mean: np.mean,
        stats.iqm: lambda v, axis: scipy.stats.trim_mean(v, 0.25, axis=axis),
    }[statistic]
    theirs = scipy.stats.bootstrap(
        (x,), numpy_statistic, n_resamples=20000, method="percentile", rng=1
    ).confidence_interval
    # Two independent bootstraps of 20,000 differ by about 1 % of the interval's width.
    width = theirs.high - theirs.low
    assert abs(float(ours.low) - theirs.low) < 0.04 * width
    assert abs(float(ours.high) - theirs.high) < 0.04 * width
    np.testing.assert_allclose(ours.estimate, numpy_statistic(x, axis=0), rtol=1e-5)


def test_interval_covers_the_mean_as_often_as_it_says(key):
    key_data, key_boot = jax.random.split(key)
    x = jax.random.normal(key_data, (400, 40))
    cover = jax.jit(
        jax.vmap(lambda k, v: stats.bootstrap_interval(k, v, level=0.9, num_resamples=400))
    )(jax.random.split(key_boot, 400), x)
    share = np.mean((np.asarray(cover.low) < 0) & (np.asarray(cover.high) > 0))
    # Percentile intervals of 40 values cover slightly less than 90 %; 400 runs have SE 1.5 %.
    assert 0.83 < share < 0.95


def test_stratified_bootstrap_keeps_the_spread_between_tasks_out(key):
    # Tasks that differ in level but not within: resampling within tasks leaves no uncertainty.
    x = jnp.repeat(jnp.arange(5.0)[:, None], 6, axis=1)
    interval = stats.bootstrap_interval(key, x, num_resamples=200)
    np.testing.assert_allclose(interval, [2.0, 2.0, 2.0], atol=1e-6)


def test_paired_comparison_against_scipy_permutation_test(key):
    rng = np.random.default_rng(5)
    a = rng.normal(0.6, 1.0, 10).astype(np.float32)
    b = rng.normal(0.0, 1.0, 10).astype(np.float32)
    ours = stats.compare_paired(key, jnp.asarray(a), jnp.asarray(b), num_resamples=20000)
    exact = scipy.stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    np.testing.assert_allclose(ours.difference.estimate, exact.statistic, rtol=1e-5)
    assert abs(float(ours.p_value) - exact.pvalue) < 4 * np.sqrt(0.25 / 20000)
    np.testing.assert_allclose(ours.probability_of_improvement, np.mean(a > b), rtol=1e-6)


def test_identical_methods_show_no_difference(key):
    x = jnp.linspace(0.0, 1.0, 8)
    same = stats.compare_paired(key, x, x, num_resamples=200)
    assert float(same.p_value) == 1.0
    assert float(same.probability_of_improvement) == 0.5


def test_bad_input_is_named(key):
    with pytest.raises(ValueError, match="2 seeds or more"):
        stats.bootstrap_interval(key, jnp.ones(1))
    with pytest.raises(ValueError, match="level must lie in"):
        stats.bootstrap_interval(key, jnp.ones(4), level=95.0)
    with pytest.raises(ValueError, match="one value per seed"):
        stats.compare_paired(key, jnp.ones(4), jnp.ones(5))
