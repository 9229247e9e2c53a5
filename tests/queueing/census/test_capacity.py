"""Oracles for the bed rules: published counts, scipy's Poisson law, exact integer arithmetic."""

import fractions
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from jaxlab.queueing import settings
from jaxlab.queueing.census import capacity, occupancy

RULES = typing.get_args(settings.Rule)

# Site 2 of demo5, kappa 1.5, S_max 60: B_0.05, B_0.01, B_max.
DEMO5_BEDS = {
    "exponential": (46, 51, 48),
    "weibull": (46, 52, 48),
    "gamma": (46, 52, 48),
    "lognormal": (45, 51, 47),
    "fisk_paper": (41, 46, 43),
    "fisk_mean": (37, 42, 39),
    "burr_tool": (33, 38, 35),
}
# Poisson occupancy, B = ceil(rho / 0.85): rho, B, P(N > B), Erlang blocking.
RULE_85_FACTS = (
    (5, 6, 0.238, 0.192),
    (10, 12, 0.208, 0.120),
    (20, 24, 0.157, 0.066),
    (40, 48, 0.0925, 0.030),
    (60, 71, 0.0719, 0.020),
    (100, 118, 0.0349, 0.0082),
    (200, 236, 0.0059, 0.0012),
)


def demo5_site2():
    t = np.arange(365)
    lam = 3.2 * (1 + 0.20 * np.sin(2 * np.pi * (t + 20) / 365))
    mu = 9.5 * (1 + 0.1 * np.sin(2 * np.pi * (t + 80) / 365))
    return lam, mu, mu**2


def varying_rho(seed=0, num_days=50, mean=30.0):
    return mean * np.random.default_rng(seed).uniform(0.6, 1.4, num_days)


def first_enough(rho, alpha, gamma, rule, cap=400):
    """The definition, with exact thresholds from rational arithmetic."""
    ppm = fractions.Fraction(round(gamma * 10**6), 10**6)
    for beds in range(1, cap + 1):
        daily = stats.poisson.sf(int(ppm * beds), rho)
        if (daily.mean() if rule == "average" else daily.max()) <= alpha:
            return beds
    return -1


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("family", DEMO5_BEDS)
def test_demo5_beds(x64, family, dtype):
    """The published table; no demo5 risk lies within float32's error of its alpha."""
    lam, mu, sig2 = (x.astype(dtype) for x in demo5_site2())

    @jax.jit
    def beds(lam, mu, sig2):
        rho = occupancy.occupancy_mean(lam, mu, sig2, 1.5, family, 60)
        by_risk = [capacity.beds_alpha(rho, alpha) for alpha in (0.05, 0.01)]
        return *by_risk, capacity.beds_max(rho), capacity.beds_average(lam.mean(), mu.mean())

    got = beds(lam, mu, sig2)
    assert all(b.dtype == jnp.int32 for b in got)
    assert tuple(int(b) for b in got) == (*DEMO5_BEDS[family], 36)


@pytest.mark.parametrize("rule", RULES)
def test_beds_alpha_is_the_smallest_that_meets_the_risk(x64, rule):
    rho = np.stack([varying_rho(i, mean=m) for i, m in enumerate((0.3, 4.0, 30.0, 150.0))])
    for gamma in (1.0, 0.85, 0.7, 2.5):
        both = jax.jit(
            jax.vmap(
                lambda r, gamma=gamma: jnp.stack(
                    [capacity.beds_alpha(r, a, gamma=gamma, rule=rule) for a in (0.05, 0.01)]
                )
            )
        )(rho)
        want = [[first_enough(r, a, gamma, rule) for a in (0.05, 0.01)] for r in rho]
        np.testing.assert_array_equal(both, want)


def test_beds_alpha_limits_and_status(x64):
    rho = varying_rho()
    assert capacity.beds_alpha(rho, 0.05, gamma=1000.0) == 1
    assert capacity.beds_alpha(0 * rho, 0.05) == 1
    enough = int(capacity.beds_alpha(rho, 0.05))
    assert capacity.beds_alpha(rho, 0.05, bed_cap=enough) == enough
    assert capacity.beds_alpha(rho, 0.05, bed_cap=enough - 1) == -1
    assert capacity.beds_alpha(rho * np.nan, 0.05) == -1
    nothing = np.zeros(50, bool)
    for rule in RULES:
        assert capacity.beds_alpha(rho, 0.05, rule=rule, mask=nothing) == -1


def test_mask_leaves_days_out(x64):
    rho = varying_rho()
    mask = np.arange(50) >= 20
    dirty = np.where(mask, rho, np.nan)
    kept = rho[mask]
    for rule in RULES:
        masked = capacity.beds_alpha(dirty, 0.05, rule=rule, mask=mask)
        assert masked == capacity.beds_alpha(kept, 0.05, rule=rule)
    assert capacity.beds_max(dirty, mask) == capacity.beds_max(kept)
    assert capacity.beds_rule85(dirty, 0.85, mask) == capacity.beds_rule85(kept)
    assert capacity.beds_max(dirty, np.zeros(50, bool)) == -1


def test_monotone(x64):
    """B_alpha does not increase in alpha, nor decrease in the arrival rate or the mean stay."""
    lam, mu, _ = (x[:120] for x in demo5_site2())
    alphas = jnp.array([0.001, 0.01, 0.05, 0.2, 0.6])
    scales = jnp.linspace(0.3, 2.5, 9)

    def beds(alpha, demand, stay):
        rho = occupancy.occupancy_mean(demand * lam, stay * mu, mu, 1.0, "exponential", 60)
        return capacity.beds_alpha(rho, alpha)

    beds = jax.jit(jax.vmap(beds, (0, None, None)))
    assert np.all(np.diff(np.asarray(beds(alphas, 1.0, 1.0))) <= 0)
    assert np.all(np.diff(np.asarray([beds(alphas, s, 1.0) for s in scales]), axis=0) >= 0)
    assert np.all(np.diff(np.asarray([beds(alphas, 1.0, s) for s in scales]), axis=0) >= 0)


@pytest.mark.parametrize("gamma", [1.0, 0.85, 0.7, 0.58, 1 / 3, 0.999999, 12.34, 1000.0], ids=str)
def test_thresholds_are_exact_integers(gamma):
    """floor(gamma B) in floats is wrong at exact products: 0.7 * 90 -> 62.99 -> 62."""
    beds = np.unique(np.concatenate([np.arange(3000), np.linspace(0, capacity.MAX_BEDS, 4001)]))
    beds = beds.astype(np.int32)
    got = jax.jit(lambda b: capacity.overflow_threshold(b, gamma))(beds)
    want = [int(b) * round(gamma * 10**6) // 10**6 for b in beds]
    np.testing.assert_array_equal(got, want)


def test_threshold_reaches_the_risk(x64):
    """P(N > 63), not P(N > 62), for gamma = 0.7 and 90 beds."""
    rho = varying_rho(mean=60.0)
    got = capacity.overflow_risk(rho, 90, gamma=0.7)
    np.testing.assert_allclose(got, stats.poisson.sf(63, rho).mean(), rtol=1e-11)


def test_overflow_risk_curve(x64):
    rho, beds = varying_rho(), np.arange(0, 70)
    tails = stats.poisson.sf(beds[:, None], rho)
    mean, worst = jax.jit(lambda b: [capacity.overflow_risk(rho, b, rule=rule) for rule in RULES])(
        beds
    )
    np.testing.assert_allclose(mean, tails.mean(1), rtol=1e-10)
    np.testing.assert_allclose(worst, tails.max(1), rtol=1e-10)
    assert int(np.argmax(np.asarray(mean) <= 0.05)) == int(capacity.beds_alpha(rho, 0.05))


def test_simple_rules():
    rho, lam, mu = jnp.array([2.0, 9.0, 4.0]), jnp.array([1.0, 2.0]), jnp.array([3.0, 2.6])
    assert capacity.beds_average(2.5, 6.4) == 20  # 16 + 4
    assert capacity.beds_average(2.5, 6.42) == 21
    assert capacity.beds_max(rho) == 12
    assert capacity.beds_naive_peak(lam, mu) == 6
    assert capacity.beds_rule85(rho) == 6
    assert capacity.beds_rule85(rho, 0.75) == 7
    np.testing.assert_array_equal(capacity.beds_sqrt_staffing(rho, 2.0), [5, 15, 8])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_rounding_does_not_add_a_bed(x64, dtype):
    """k / 0.85 * 0.85 and sums of squares land within rounding of an integer."""
    k = np.arange(1, 400)
    got = jax.vmap(lambda x: capacity.beds_rule85(x[None]))((k * dtype(0.85)).astype(dtype))
    np.testing.assert_array_equal(got, k)
    root = np.arange(1, 30)
    got = capacity.beds_average((root**2 / 7.0).astype(dtype), dtype(7.0))
    np.testing.assert_array_equal(got, root**2 + root)
    # A true excess is a bed.
    assert capacity.beds_rule85(np.array([dtype(17.001)])) == 21


@pytest.mark.parametrize(("rho", "beds", "overflow", "blocking"), RULE_85_FACTS, ids=str)
def test_85_percent_rule_facts(x64, rho, beds, overflow, blocking):
    mean = np.array([float(rho)])
    assert capacity.beds_rule85(mean) == beds
    digits = 5.1e-4 if overflow > 0.1 else 5.1e-5
    np.testing.assert_allclose(capacity.overflow_risk(mean, beds), overflow, atol=digits)
    digits = 5.1e-4 if blocking > 0.01 else 5.1e-5
    np.testing.assert_allclose(capacity.erlang_b(beds, float(rho)), blocking, atol=digits)


def test_stationary_quantile(x64):
    rho = np.array([15.5, 32.3, 21.9, 22.5, 12.2])
    for level in (0.95, 0.99):
        np.testing.assert_array_equal(
            capacity.beds_stationary(rho, level), stats.poisson.ppf(level, rho)
        )


def test_erlang_b(x64):
    """The truncated Poisson law, for arrays of c and a, at c = 0 and a = 0 too; falling in c."""
    c, a = np.arange(60), np.array([0.0, 0.5, 8.0, 40.0])
    got = np.asarray(jax.jit(lambda a: capacity.erlang_b(c[:, None], a))(a))
    law = stats.poisson(a)
    np.testing.assert_allclose(got, law.pmf(c[:, None]) / law.cdf(c[:, None]), rtol=1e-10)
    assert np.all(np.diff(got[:, 1:], axis=0) < 0)
    traced = jax.jit(lambda c: capacity.erlang_b(c, 8.0, max_servers=20))
    np.testing.assert_allclose(traced(np.arange(19)), got[:19, 2], rtol=1e-14)
    np.testing.assert_array_equal(np.isnan(traced(np.array([-1, 20, 21]))), [True, False, True])
    check_grads(lambda a: capacity.erlang_b(9, a), (np.float64(8.0),), 1, modes=["rev"])
    with pytest.raises(ValueError, match="max_servers"):
        jax.jit(lambda c: capacity.erlang_b(c, 8.0))(3)
    with pytest.raises(ValueError, match="need 0 <= c"):
        capacity.erlang_b(-1, 8.0)


@pytest.mark.parametrize("blocking", [0.05, 0.01])
def test_beds_erlang(x64, blocking):
    a = np.array([0.0, 0.3, 5.0, 32.3, 120.0, np.nan])
    got = jax.jit(lambda a: capacity.beds_erlang(a, blocking))(a)
    c = np.arange(1, 300)
    share = stats.poisson.pmf(c, a[:5, None]) / stats.poisson.cdf(c, a[:5, None])
    np.testing.assert_array_equal(got, [*c[(share <= blocking).argmax(1)], -1])
    assert capacity.beds_erlang(120.0, blocking, bed_cap=100) == -1


@pytest.mark.parametrize("level", [0.5, 0.55, 0.95, 0.99, 1.0], ids=str)
def test_census_quantile(level):
    census = np.random.default_rng(3).poisson(30, 100)
    got = capacity.beds_census_quantile(jnp.asarray(census), level)
    assert got == np.quantile(census, level, method="inverted_cdf")
    mask = np.arange(100) % 3 > 0
    got = capacity.beds_census_quantile(jnp.asarray(census), level, jnp.asarray(mask))
    assert got == np.quantile(census[mask], level, method="inverted_cdf")
    assert capacity.beds_census_quantile(census, level, np.zeros(100, bool)) == -1


def test_census_recursion_is_geometric_stays(x64):
    n, los = np.random.default_rng(4).poisson(3.0, 60), 7.5
    got = jax.jit(capacity.census_recursion)(n, los)
    want = np.convolve(n, (1 - 1 / los) ** np.arange(60))[:60]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    later = capacity.census_recursion(n[30:], los, initial=want[29])
    np.testing.assert_allclose(later, want[30:], rtol=1e-12)
    one_day = capacity.census_recursion(n, np.ones(60))
    np.testing.assert_array_equal(one_day, n)


def test_cohort_rule_equals_deterministic_stays(x64):
    rng = np.random.default_rng(5)
    lam, mu = rng.uniform(0, 4, 50), rng.choice([1.0, 2.5, 7.0, 80.0], 50)
    want = np.zeros(50)
    for t in range(50):
        want[t : t + int(np.ceil(mu[t]))] += lam[t]
    np.testing.assert_allclose(jax.jit(capacity.occupancy_cohort)(lam, mu), want, rtol=1e-12)


def test_no_retrace_and_batch_equals_loop(x64):
    rho = np.stack([varying_rho(i) for i in range(4)])
    traces = []

    @jax.jit
    def beds(rho, alpha):
        traces.append(1)
        return jax.vmap(lambda r: capacity.beds_alpha(r, alpha))(rho)

    got = beds(rho, 0.05)
    beds(rho + 1, 0.01)
    assert len(traces) == 1
    np.testing.assert_array_equal(got, [capacity.beds_alpha(r, 0.05) for r in rho])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda r: capacity.beds_alpha(r, 0.0), "alpha must be in"),
        (lambda r: capacity.beds_alpha(r, 0.05, gamma=0.0), "gamma must be"),
        (lambda r: capacity.beds_alpha(r, 0.05, gamma=1001.0), "gamma must be"),
        (lambda r: capacity.beds_alpha(r, 0.05, rule="mean"), "rule must be one of"),
        (lambda r: capacity.beds_alpha(r, 0.05, bed_cap=0), "bed_cap must be"),
        (lambda r: capacity.beds_alpha(r, 0.05, mask=np.ones(3, bool)), "mask must have"),
        (lambda r: capacity.overflow_risk(r, -1), "beds must be in"),
        (lambda r: capacity.overflow_risk(r, 10.5), "beds must be integers"),
        (lambda r: capacity.beds_rule85(r, 0.0), "target must be"),
        (lambda r: capacity.beds_stationary(r, 1.0), "level must be"),
        (lambda r: capacity.beds_erlang(3.0, 1.0), "blocking must be"),
        (lambda r: capacity.beds_census_quantile(r, 0.0), "level must be"),
        (lambda r: capacity.census_recursion(r, 0.5), "los must be"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call(jnp.ones(5))
