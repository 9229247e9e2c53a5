"""Oracles for the Poisson law: scipy.stats and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from jaxlab.queueing.census import poisson

RHO = np.array([0.0, 1e-3, 0.4, 5.0, 17.5, 34.19, 120.0])
K = np.arange(-2, 200)


@pytest.fixture(scope="module")
def table():
    """tail, cdf, pmf, logpmf on a grid of rho and k, in one program."""

    def all_four(rho, k):
        return (
            poisson.tail(rho, k),
            poisson.cdf(rho, k),
            poisson.pmf(rho, k),
            poisson.logpmf(rho, k),
        )

    return jax.jit(all_four)


def test_float64_equals_scipy(x64, table):
    tail, cdf, pmf, logpmf = table(RHO[:, None], K)
    law = stats.poisson(RHO[:, None])
    np.testing.assert_allclose(tail, law.sf(K), rtol=1e-11, atol=1e-290)
    np.testing.assert_allclose(cdf, law.cdf(K), rtol=1e-11, atol=1e-290)
    np.testing.assert_allclose(pmf, law.pmf(K), rtol=1e-11, atol=1e-290)
    np.testing.assert_allclose(logpmf, law.logpmf(K), rtol=1e-12)


@pytest.mark.parametrize(
    ("rho", "rtol"), [(5.0, 1e-5), (30.0, 3e-5), (300.0, 5e-4), (1e4, 2e-2)], ids=str
)
def test_float32_accuracy_is_as_documented(rho, rtol):
    """Up to 4 standard deviations; the documented figures with a margin of two."""
    k = np.unique(np.floor(rho + np.sqrt(rho) * np.linspace(-2, 4, 25))).astype(np.int32)
    tail = poisson.tail(jnp.float32(rho), k)
    assert tail.dtype == jnp.float32
    np.testing.assert_allclose(tail, stats.poisson.sf(k, rho), rtol=rtol)


def test_gradients_at_and_away_from_zero(x64):
    """d tail / d rho = pmf(k) and d pmf / d rho = pmf(k-1) - pmf(k), exact at rho = 0 too."""
    rho = np.array([0.0, 0.3, 20.0])
    k = jnp.arange(-1, 6)

    def slopes(f):
        return jax.jit(jax.vmap(jax.jacfwd(lambda r: f(r, k))))(rho)

    pmf = stats.poisson.pmf(np.asarray(k), rho[:, None])
    before = stats.poisson.pmf(np.asarray(k) - 1, rho[:, None])
    np.testing.assert_allclose(slopes(poisson.tail), pmf, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(slopes(poisson.cdf), -pmf, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(slopes(poisson.pmf), before - pmf, rtol=1e-12, atol=1e-16)
    overflow = slopes(poisson.expected_overflow)  # d E[(N-B)+] / d rho = P(N >= B)
    np.testing.assert_allclose(overflow, stats.poisson.sf(np.asarray(k) - 1, rho[:, None]), 1e-11)


def test_gradients_in_relaxed_beds_and_second_order(x64):
    rho, beds = np.array([0.5, 20.0]), np.array([1.3, 24.6])
    check_grads(jax.jit(poisson.tail), (rho, beds), 1, modes=["rev"], rtol=1e-6)
    check_grads(jax.jit(poisson.expected_overflow), (rho, beds), 1, modes=["rev"], rtol=1e-6)
    check_grads(jax.jit(lambda r: poisson.tail(r, 3)), (rho,), 2, modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("level", [0.01, 0.5, 0.95, 0.99, 1 - 1e-9], ids=str)
def test_quantile(x64, level):
    rho = np.array([0.0, 1e-4, 0.05, 0.6931, 3.0, 34.2, 777.7, 1e6])
    got = jax.jit(poisson.quantile)(rho, level)
    assert got.dtype == jnp.int32
    want = stats.poisson.ppf(level, rho)
    # Some scipy releases return -1 or 0 for a point mass at 0.
    np.testing.assert_array_equal(got, np.where(rho == 0.0, 0, want))


def test_quantile_status_and_errors():
    rho = jnp.array([3.0, jnp.nan, 3.0, 3.0, -1.0])
    level = jnp.array([0.95, 0.95, 1.0, 0.0, 0.5])
    np.testing.assert_array_equal(jax.jit(poisson.quantile)(rho, level), [6, -1, -1, -1, -1])
    with pytest.raises(ValueError, match="level must be in"):
        poisson.quantile(3.0, 1.0)


def test_expected_overflow(x64):
    """sum_{n > B} (n - B) pmf(n), and rho - B where everyone overflows."""
    rho = np.array([0.0, 0.5, 8.0, 30.0])
    beds = np.array([-3, 0, 1, 8, 35, 60])
    n = np.arange(400)
    excess = np.maximum(n - beds[:, None], 0)
    want = stats.poisson.pmf(n, rho[:, None]) @ excess.T
    got = jax.jit(poisson.expected_overflow)(rho[:, None], beds)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_negative_binomial_tail(x64, dtype):
    """Against scipy across the switch to the expansion, and Poisson at v = 0."""
    mean, k = 30.0, np.arange(-1, 70)
    extra = np.array([1e-3, 3e-3, 4e-3, 0.02, 0.5, 0.6, 3.0, 90.0])[:, None]
    got = jax.jit(poisson.negative_binomial_tail)(dtype(mean), extra.astype(dtype), k)
    want = stats.nbinom.sf(k, mean**2 / extra, mean / (mean + extra))
    np.testing.assert_allclose(got, want, atol=5e-9 if dtype is np.float64 else 1e-3)
    poisson_limit = poisson.negative_binomial_tail(dtype(mean), dtype(0.0), k)
    np.testing.assert_allclose(
        poisson_limit, stats.poisson.sf(k, mean), atol=1e-14 if dtype is np.float64 else 2e-5
    )
    np.testing.assert_array_equal(
        poisson.negative_binomial_tail(dtype(0.0), dtype(0.0), np.array([-1, 0, 3])), [1, 0, 0]
    )


def test_integer_mean_and_broadcasting():
    got = poisson.tail(jnp.arange(3)[:, None], jnp.arange(4))
    np.testing.assert_allclose(
        got, stats.poisson.sf(np.arange(4), np.arange(3)[:, None]), rtol=1e-5, atol=1e-12
    )
