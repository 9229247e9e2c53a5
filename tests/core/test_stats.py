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


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_few_values_have_students_interval(key, dtype):
    x = np.random.default_rng(1).normal(3.0, 2.0, (6, 5)).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        rule = jax.jit(jax.vmap(lambda x: stats.mean_interval(key, x, level=0.9)))
        ours = jax.device_get(rule(jnp.asarray(x)))
    theirs = scipy.stats.ttest_1samp(x.astype(float), 0.0, axis=1).confidence_interval(0.9)
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    assert ours.low.dtype == dtype
    np.testing.assert_allclose(ours.estimate, x.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(ours.low, theirs.low, rtol=rtol)
    np.testing.assert_allclose(ours.high, theirs.high, rtol=rtol)


def test_from_twenty_values_on_it_is_the_bootstraps(key):
    x = jnp.asarray(np.random.default_rng(2).exponential(size=20))
    np.testing.assert_array_equal(stats.mean_interval(key, x), stats.bootstrap_interval(key, x))
    few = stats.mean_interval(key, x[:19])
    np.testing.assert_allclose(few.high - few.estimate, few.estimate - few.low, rtol=1e-5)
    paired = stats.compare_paired(key, x[:19], jnp.zeros(19)).difference
    np.testing.assert_allclose(paired, few, rtol=1e-6)


def test_students_interval_of_five_covers_and_a_bootstrap_does_not(key):
    x = jax.random.normal(key, (4000, 5))
    t = jax.vmap(lambda x: stats.mean_interval(key, x))(x)
    bootstrap = jax.jit(jax.vmap(lambda x: stats.bootstrap_interval(key, x, num_resamples=400)))(x)
    t, bootstrap = (
        np.mean((np.asarray(i.low) < 0) & (np.asarray(i.high) > 0)) for i in (t, bootstrap)
    )
    assert abs(t - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)  # exact for normal values
    assert 0.80 < bootstrap < 0.86


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sizes", [(5, 5), (2, 9), (30, 6)], ids=str)
def test_unpaired_comparison_is_welchs(key, sizes, dtype):
    rng = np.random.default_rng(3)
    a = rng.normal(1.0, 5.0, (4, sizes[0])).astype(dtype)
    b = rng.normal(0.0, 0.3, (4, sizes[1])).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        test = jax.jit(jax.vmap(lambda a, b: stats.compare_unpaired(key, a, b, level=0.99)))
        ours = jax.device_get(test(jnp.asarray(a), jnp.asarray(b)))
    theirs = scipy.stats.ttest_ind(a.astype(float), b.astype(float), axis=1, equal_var=False)
    interval = theirs.confidence_interval(0.99)
    rtol = 1e-4 if dtype == np.float32 else 1e-9  # of a quantile found through betainc
    np.testing.assert_allclose(ours.difference.low, interval.low, rtol=rtol)
    np.testing.assert_allclose(ours.difference.high, interval.high, rtol=rtol)
    np.testing.assert_allclose(ours.p_value, theirs.pvalue, rtol=rtol)
    larger = np.mean(a[:, :, None] > b[:, None, :], axis=(1, 2))
    np.testing.assert_allclose(ours.probability_of_improvement, larger, rtol=1e-6)


def test_unpaired_bootstrap_resamples_both(key):
    rng = np.random.default_rng(4)
    a, b = rng.exponential(2.0, 25), rng.exponential(1.0, 40)
    ours = stats.compare_unpaired(key, jnp.asarray(a), jnp.asarray(b), num_resamples=5000)
    theirs = scipy.stats.bootstrap(
        (a, b),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        n_resamples=5000,
        method="percentile",
        rng=1,
    ).confidence_interval
    width = theirs.high - theirs.low  # two bootstraps of 5,000 differ by about 2 % of it
    assert abs(float(ours.difference.low) - theirs.low) < 0.08 * width
    assert abs(float(ours.difference.high) - theirs.high) < 0.08 * width


def test_equal_values_have_no_width(key):
    same = stats.compare_unpaired(key, jnp.ones(5), jnp.ones(4))
    np.testing.assert_array_equal(same.difference, 0.0)
    assert float(same.p_value) == 1.0
    apart = stats.compare_unpaired(key, jnp.ones(5), jnp.zeros(4))
    np.testing.assert_array_equal(apart.difference, 1.0)
    assert float(apart.p_value) == 0.0


def test_the_rule_traces_once(key):
    traces = []

    def statistic(x):
        traces.append(1)
        return jnp.mean(x)

    for size in (20.0, 30.0):
        stats.bootstrap_interval(key, jnp.linspace(0.0, size, 8), statistic=statistic)
    assert len(traces) == 2  # of the resamples and of the sample, in one program


def test_bad_input_is_named(key):
    with pytest.raises(ValueError, match="2 seeds or more, got"):
        stats.mean_interval(key, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="2 seeds or more each"):
        stats.compare_unpaired(key, jnp.ones(5), jnp.ones(1))
    with pytest.raises(ValueError, match="num_resamples must be at least 1, got 0"):
        stats.bootstrap_interval(key, jnp.ones(4), num_resamples=0)
    with pytest.raises(ValueError, match="2 seeds or more"):
        stats.bootstrap_interval(key, jnp.ones(1))
    with pytest.raises(ValueError, match="level must lie in"):
        stats.bootstrap_interval(key, jnp.ones(4), level=95.0)
    for wrong in (jnp.ones((8, 2)), jnp.ones(0)):
        with pytest.raises(ValueError, match=r"x must be \[N\] with a value or more, got"):
            stats.iqm(wrong)
    with pytest.raises(ValueError, match="one value per seed, of 2 seeds or more"):
        stats.compare_paired(key, jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match="one value per seed"):
        stats.compare_paired(key, jnp.ones(4), jnp.ones(5))


def test_keys_are_used_once(key):
    x, y = (jnp.asarray(np.random.default_rng(i).normal(size=25), jnp.float32) for i in (0, 1))
    with jax.debug_key_reuse(True):
        one, two, three = jax.random.split(key, 3)
        jax.jit(stats.mean_interval)(one, x)
        jax.jit(stats.compare_paired)(two, x, y)
        jax.jit(stats.compare_unpaired)(three, x, y)
