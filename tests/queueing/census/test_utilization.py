"""Oracles for utilization: the paper's own system row, numpy definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.queueing.census import utilization

# Table 4 of arXiv:2510.02852, percent: five sites by actual, B_average, B_0.05, B_0.01, B_max.
SITE_MEANS = np.array(
    [
        [117.79, 82.45, 63.43, 53.20, 51.53],
        [87.86, 87.86, 74.49, 64.65, 59.08],
        [76.59, 85.10, 67.58, 58.91, 57.44],
        [87.19, 84.08, 69.24, 60.36, 60.36],
        [83.90, 83.90, 63.92, 55.93, 51.63],
    ]
)
SYSTEM_MEAN = np.array([87.36, 85.40, 69.37, 60.22, 57.27])
SYSTEM_SD = np.array([10.52, 1.87, 4.10, 3.74, 3.25])
SHARES = np.array([0.0899, 0.3356, 0.2213, 0.2136, 0.1396])


def test_weighted_system_row_of_the_paper(x64):
    mean, sd = jax.jit(utilization.system_weighted)(SITE_MEANS, SHARES)
    # Site figures and shares are printed to half a unit of their last digit.
    np.testing.assert_allclose(mean, SYSTEM_MEAN, atol=0.005)
    np.testing.assert_allclose(sd, SYSTEM_SD, atol=0.0075)
    scaled = utilization.system_weighted(SITE_MEANS, 7.9 * SHARES)
    np.testing.assert_allclose(scaled, (mean, sd), rtol=1e-12)


def reference(occ, beds, low, high):
    """The definitions in numpy."""
    percent = 100 * occ / beds
    over, under = percent[occ * 100 > high * beds], percent[occ * 100 < low * beds]
    return (
        percent.mean(),
        percent.std(ddof=1),
        100 * over.size / percent.size,
        (over - high).mean() if over.size else 0.0,
        100 * under.size / percent.size,
        (low - under).mean() if under.size else 0.0,
    )


@pytest.mark.parametrize("beds", [14, 20, 27, 60, 3])
def test_metrics_equal_their_definitions(x64, beds):
    occ = np.random.default_rng(0).poisson(16.5, 400)
    mask = np.arange(400) >= 40
    got = jax.jit(utilization.utilization_metrics)(occ, beds)
    np.testing.assert_allclose(got, reference(occ, beds, 70, 100), rtol=1e-12)
    masked = utilization.utilization_metrics(occ, beds, low=50.0, high=90.0, mask=mask)
    np.testing.assert_allclose(masked, reference(occ[mask], beds, 50, 90), rtol=1e-12)


def test_a_full_unit_is_not_over_its_beds():
    """100 B / B and 70 B / (100 B) are on the threshold whatever the rounding of the quotient."""
    beds = jnp.arange(1, 2001)
    full = jax.jit(jax.vmap(lambda b: utilization.utilization_metrics(jnp.stack([b, b]), b)))(beds)
    np.testing.assert_array_equal(full.pct_over, 0.0)
    np.testing.assert_array_equal(full.mean_excess, 0.0)
    tens = 10 * beds
    at_low = jax.vmap(lambda b: utilization.utilization_metrics(jnp.stack([7 * (b // 10)] * 2), b))
    np.testing.assert_array_equal(at_low(tens).pct_under, 0.0)


def test_sites_in_one_call_and_system(x64):
    occ = np.random.default_rng(1).poisson(np.array([[16.5], [34.0], [13.4]]), (3, 200))
    beds = np.array([20, 39, 16])
    by_site = jax.jit(jax.vmap(utilization.utilization_metrics))(occ, beds)
    want = np.stack([reference(o, b, 70, 100) for o, b in zip(occ, beds, strict=True)])
    np.testing.assert_allclose(np.stack(by_site, axis=1), want, rtol=1e-12)
    weights = np.array([0.2, 0.5, 0.3])
    mean, sd = utilization.system_weighted(by_site, weights)
    assert isinstance(mean, utilization.UtilMetrics)
    np.testing.assert_allclose(mean.pct_over, np.average(want[:, 2], weights=weights))
    variance = np.average(
        (want[:, 0] - np.average(want[:, 0], weights=weights)) ** 2, weights=weights
    )
    np.testing.assert_allclose(sd.mean, np.sqrt(variance))


def test_status_and_errors():
    occ = jnp.array([3.0, 5.0, 4.0])
    nobeds = jax.vmap(lambda b: utilization.utilization_metrics(occ, b))(jnp.array([0, 4]))
    assert all(np.isnan(x[0]) and not np.isnan(x[1]) for x in nobeds)
    no_days = utilization.utilization_metrics(occ, 4, mask=jnp.zeros(3, bool))
    assert all(np.isnan(x) for x in no_days)
    one_day = utilization.utilization_metrics(occ, 4, mask=jnp.array([True, False, False]))
    assert np.isnan(one_day.sd) and one_day.mean == 75.0
    with pytest.raises(ValueError, match="beds must be positive"):
        utilization.utilization_metrics(occ, 0)
    with pytest.raises(ValueError, match=r"must be \[T\]"):
        utilization.utilization_metrics(occ, 4, mask=jnp.ones(2, bool))
