"""Oracles for the mean occupancy: brute-force loops, closed forms and published numbers."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import integrate, special, stats

from jaxlab.queueing import settings
from jaxlab.queueing.census import companions, occupancy
from jaxlab.queueing.census.occupancy import QueueInputs, occupancy_mean
from jaxlab.queueing.settings import QueueModel
from jaxlab.queueing.stays import conditional
from jaxlab.queueing.stays.conditional import FAMILIES, survival

CONVENTIONS = typing.get_args(settings.Convention)

DEMO5_SITES = ((1.6, 0.25, 8.0, 0), (3.2, 0.20, 9.5, 20), (2.4, 0.18, 8.4, 55))
# Site 2 of demo5, kappa 1.5, S_max 60: mean and peak of rho.
DEMO5_TABLE = {
    "exponential": (31.174697, 40.931786),
    "weibull": (31.438121, 41.042184),
    "gamma": (31.340383, 41.017819),
    "lognormal": (30.994904, 40.521184),
    "fisk_paper": (27.893715, 36.316766),
    "fisk_mean": (24.881218, 32.331850),
    "burr_tool": (22.298554, 28.961131),
}


def demo5(site):
    """lam, mu, sig2 of one site of the deterministic benchmark, 365 days."""
    base, amplitude, los, phase = DEMO5_SITES[site]
    t = np.arange(365)
    lam = base * (1 + amplitude * np.sin(2 * np.pi * (t + phase) / 365))
    mu = los * (1 + 0.1 * np.sin(2 * np.pi * (t + 60 + phase) / 365))
    return lam, mu, mu**2


def random_inputs(num_sites=3, num_days=40, seed=0):
    rng = np.random.default_rng(seed)
    lam = rng.uniform(0.0, 4.0, (num_sites, num_days))
    mu = rng.uniform(0.5, 12.0, (num_sites, num_days))
    sig2 = rng.uniform(1.0, 80.0, (num_sites, num_days))
    return lam, mu, sig2


def brute_force(lam, weight, smax):
    """sum_u lam[t-u] weight[t-u, u] by the double loop."""
    rho = np.zeros_like(lam)
    for t in range(len(lam)):
        for u in range(min(t, smax) + 1):
            rho[t] += lam[t - u] * weight[t - u, u]
    return rho


@pytest.mark.parametrize("family", DEMO5_TABLE)
def test_demo5_table(x64, family):
    lam, mu, sig2 = demo5(1)
    compute = jax.jit(lambda *x: occupancy_mean(*x, 1.5, family, 60))
    rho = compute(lam, mu, sig2)
    np.testing.assert_allclose((rho.mean(), rho.max()), DEMO5_TABLE[family], atol=1e-6)
    np.testing.assert_allclose(rho[0], 3.416015, atol=1e-6)
    single = compute(*(x.astype(np.float32) for x in (lam, mu, sig2)))
    assert single.dtype == jnp.float32
    # 60 additions of float32 terms, each within 2e-6.
    np.testing.assert_allclose(single, rho, rtol=5e-6)


def test_sites_with_their_own_laws_equal_the_double_loop(x64):
    """[I, T] with names, codes and a traced batch of codes, each S_max its own."""
    lam, mu, sig2 = random_inputs()
    kappa, smax = np.array([0.7, 1.6, 2.2]), np.array([9, 55, 20])
    names = ("weibull", "lognormal", "burr")
    days = np.arange(60)
    want = np.stack(
        [
            brute_force(
                lam[i],
                np.asarray(survival(names[i], days, mu[i][:, None], sig2[i][:, None], kappa[i])),
                smax[i],
            )
            for i in range(3)
        ]
    )
    by_name = jax.jit(lambda *x: occupancy_mean(*x, kappa, names, smax))(lam, mu, sig2)
    np.testing.assert_allclose(by_name, want, rtol=1e-12)
    codes = np.array([FAMILIES.index(n) for n in names], np.int32)
    inputs = QueueInputs(lam, mu, sig2, kappa, codes, smax.astype(np.int32))
    np.testing.assert_allclose(occupancy_mean(*inputs), want, rtol=1e-12)
    traced = jax.jit(lambda q: occupancy_mean(*q, num_lags=59))(inputs)
    np.testing.assert_allclose(traced, want, rtol=1e-12)
    one_by_one = jax.jit(jax.vmap(lambda q: occupancy_mean(*q, num_lags=59)))(inputs)
    np.testing.assert_allclose(one_by_one, want, rtol=1e-12)


def test_general_law_equals_the_double_loop(x64):
    rng = np.random.default_rng(1)
    lam, surv = rng.uniform(0, 3, 30), np.sort(rng.uniform(0, 1, (30, 12)), axis=1)[:, ::-1]
    got = jax.jit(occupancy.occupancy_mean_general)(lam, surv.copy())
    np.testing.assert_allclose(got, brute_force(lam, surv, 11), rtol=1e-13)


def test_constant_rate_exponential_reaches_its_steady_state(x64):
    ones = np.ones(150)
    rho = np.asarray(occupancy_mean(2 * ones, 10 * ones, 100 * ones, 1.0, "exponential", 100))
    steady = 2 / (1 - np.exp(-0.1)) * (1 - np.exp(-10.1))
    np.testing.assert_allclose(rho[100:], steady, rtol=1e-13)
    np.testing.assert_allclose(2 / (1 - np.exp(-0.1)), 21.0166, atol=1e-4)
    assert np.all(np.diff(rho[:101]) > 0)  # fills up from an empty unit


@pytest.mark.parametrize(
    ("convention", "published"),
    [("ceil", 28.4999), ("midnight", 27.1428), ("bed_days", 27.1428), ("touch", 29.8571)],
)
def test_weekly_rates_under_each_census_convention(x64, convention, published):
    rate = np.tile([3.0, 3, 3, 3, 3, 2, 2], 60)
    mu = np.full(420, 10.0)
    sig2 = mu**2 * np.expm1(0.8**2)
    rho = jax.jit(
        lambda *x: occupancy_mean(
            *x, 1.0, "lognormal", 400, queue=QueueModel(convention=convention)
        )
    )(rate, mu, sig2)
    np.testing.assert_allclose(rho[-7:].mean(), published, atol=1e-4)


# Exact weights by adaptive quadrature; the argument is the lag.
EXACT_WEIGHT = {
    "ceil": lambda s, u: s(u),
    "midnight": lambda s, u: integrate.quad(s, u, u + 1, epsabs=1e-11)[0],
    "bed_days": lambda s, u: (
        integrate.quad(lambda x: (1 - x) * s(u + x), 0, 1, epsabs=1e-11)[0]
        + (u > 0 and integrate.quad(lambda x: (1 + x) * s(u + x), -1, 0, epsabs=1e-11)[0])
    ),
    "touch": lambda s, u: 1.0 if u == 0 else integrate.quad(s, u - 1, u, epsabs=1e-11)[0],
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_census_weights_equal_adaptive_quadrature(x64, convention):
    """Also for Weibull 0.7, whose survival has an infinite slope at 0."""
    cases = {
        "weibull": stats.weibull_min(0.7, scale=6.0 / special.gamma(1 + 1 / 0.7)),
        "lognormal": stats.lognorm(np.sqrt(np.log(2)), scale=6.0 / np.sqrt(2)),
        "fisk_mean": stats.fisk(1.4, scale=6.0 * np.sinc(1 / 1.4)),
    }
    kappas = {"weibull": 0.7, "lognormal": 1.0, "fisk_mean": 1.4}
    for name, law in cases.items():
        surv = conditional.law(name, 6.0, 36.0, kappas[name])
        weights = jax.jit(
            jax.vmap(lambda u, surv=surv: occupancy.census_weight(u, surv, convention))
        )(jnp.arange(8))
        want = [EXACT_WEIGHT[convention](law.sf, u) for u in range(8)]
        # 8 nodes; the worst is Weibull at 0, u^(2 kappa) after the substitution.
        np.testing.assert_allclose(weights, want, atol=2e-7)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_census_weights_equal_simulated_patients(x64, convention):
    """Arrivals uniform in the day 0; who is there on day u, by each way of counting."""
    rng = np.random.default_rng(2)
    count = 400_000
    arrival, stay = rng.uniform(size=count), rng.gamma(1.7, 2.0, count)
    leave = arrival + stay
    surv = conditional.law("gamma", 3.4, 1.0, 1.7)
    for u in range(6):
        present = {
            "ceil": np.ceil(stay) > u,
            "midnight": leave > u + 1,
            "bed_days": np.clip(leave - np.maximum(arrival, u), 0, u + 1 - np.maximum(arrival, u)),
            "touch": leave > u,
        }[convention]
        got = float(occupancy.census_weight(u, surv, convention))
        assert abs(got - present.mean()) < 4 * 0.5 / np.sqrt(count)


def test_stationary_sums_of_the_conventions(x64):
    """E[ceil stay], E[stay], E[stay], E[stay] + 1."""
    surv = conditional.law("gamma", 5.0, 1.0, 1.5)

    def weights(u):
        return jnp.stack([occupancy.census_weight(u, surv, c) for c in CONVENTIONS])

    total = jax.jit(jax.vmap(weights))(jnp.arange(120)).sum(axis=0)
    ceil = stats.gamma.sf(np.arange(200), 1.5, scale=5.0 / 1.5).sum()
    np.testing.assert_allclose(total, [ceil, 5.0, 5.0, 6.0], atol=2e-6)


def test_warm_up(x64):
    """Backfill removes the transient; "drop" is the same rho and a mask."""
    constant = (np.full(400, 2.0), np.full(400, 10.0), np.full(400, 100.0))
    zero, drop, mean, calendar = (
        occupancy_mean(*constant, 1.0, "exponential", 50, queue=QueueModel(**changes))
        for changes in (
            {},
            {"warmup": "drop"},
            {"warmup": "backfill"},
            {"warmup": "backfill", "backfill": "calendar"},
        )
    )
    np.testing.assert_array_equal(zero, drop)
    np.testing.assert_allclose(mean, zero[-1], rtol=1e-12)
    np.testing.assert_allclose(calendar, zero[-1], rtol=1e-12)
    mask = occupancy.warm_mask(400, np.array([50, 3]), "drop")
    np.testing.assert_array_equal(mask.argmax(axis=1), [50, 3])
    np.testing.assert_array_equal(mask.sum(axis=1), [350, 397])
    assert occupancy.warm_mask(400, 50, "zero").all()
    assert occupancy.warm_mask(400, 50, "backfill").shape == (400,)


def test_backfill_calendar_repeats_the_first_year(x64):
    """Equal to the third of three equal years; the lags reach beyond one year."""
    lam, mu, sig2 = demo5(1)
    got = jax.jit(
        lambda *x: occupancy_mean(
            *x, 1.5, "fisk", 500, queue=QueueModel(warmup="backfill", backfill="calendar")
        )
    )(lam, mu, sig2)
    thrice = (np.tile(x, 3) for x in (lam, mu, sig2))
    want = occupancy_mean(*thrice, 1.5, "fisk", 500)[-365:]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_limits(x64):
    lam, mu, _ = random_inputs(1)
    lam, mu = lam[0], np.ones(40)
    one_day = occupancy_mean(lam, mu, 0 * lam, 1.0, "lognormal", 20)  # exactly one day
    np.testing.assert_array_equal(one_day, lam)
    np.testing.assert_array_equal(occupancy_mean(lam, mu, mu, 1.0, "gamma", 0), lam)
    np.testing.assert_array_equal(occupancy_mean(0 * lam, mu, mu, 1.0, "gamma", 9), 0 * lam)
    # Variance to zero: everyone stays 6.5 days, seven censuses.
    step = occupancy_mean(lam, 6.5 * mu, 1e-9 * mu, 1.0, "lognormal", 20)
    np.testing.assert_allclose(step, np.convolve(lam, np.ones(7))[:40], rtol=1e-9)


def test_streams_add(x64):
    lam, mu, sig2 = random_inputs(2)
    both = occupancy_mean(lam.sum(0), mu[0], sig2[0], 1.3, "weibull", 15)
    each = [occupancy_mean(x, mu[0], sig2[0], 1.3, "weibull", 15) for x in lam]
    np.testing.assert_allclose(both, sum(each), rtol=1e-13)


@pytest.mark.parametrize(
    ("moments", "codes"), [("one", range(6)), ("two", (1, 3))], ids=["one", "two"]
)
def test_gradients_of_every_law_by_finite_differences(x64, moments, codes):
    """All laws at once, with respect to lam, mu, sig2 and kappa, through a vmapped switch."""
    codes = np.array(codes, np.int32)
    lam, mu, sig2 = random_inputs(len(codes), 6, seed=3)
    kappa = np.array([1.0, 0.8, 1.0, 1.4, 1.3, 1.8])[codes]
    weight = np.random.default_rng(4).normal(size=lam.shape)

    @jax.jit
    def value(lam, mu, sig2, kappa):
        rho = jax.vmap(lambda *x: occupancy_mean(*x, 4, queue=QueueModel(moments=moments)))
        return (rho(lam, mu, sig2, kappa, codes) * weight).sum()

    check_grads(value, (lam, mu, sig2, kappa), 1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("convention", ["midnight", "bed_days", "touch"])
def test_gradients_of_every_convention_by_finite_differences(x64, convention):
    lam, mu, sig2 = (x[0] for x in random_inputs(1, 8, seed=9))
    weight = np.random.default_rng(4).normal(size=8)

    @jax.jit
    def value(lam, mu, kappa):
        rho = occupancy_mean(
            lam, mu, sig2, kappa, "weibull", 5, queue=QueueModel(convention=convention)
        )
        return (rho * weight).sum()

    check_grads(value, (lam, mu, np.float64(0.7)), 1, modes=["rev"], rtol=1e-5)


def test_gradient_memory_is_linear_in_days():
    """No [T, U] residual: the reverse pass needs a few series, not one per lag."""
    num_days, num_lags = 500, 200
    x = jnp.ones((2, num_days))
    smax = np.array([num_lags, 90])
    grad = jax.jit(
        jax.grad(
            lambda lam, mu: occupancy_mean(lam, mu, mu, 1.2, ("weibull", "fisk"), smax).sum(),
            (0, 1),
        )
    )
    scratch = grad.lower(x, 8 * x).compile().memory_analysis().temp_size_in_bytes
    assert scratch < 0.3 * 4 * num_days * num_lags


def test_batch_of_draws_equals_a_loop_and_does_not_retrace(x64):
    lam, mu, sig2 = random_inputs(2)
    draws = np.random.default_rng(5).uniform(0.5, 2.0, (4, 2, 1))
    traces = []

    def rho(lam, mu):
        traces.append(1)
        return occupancy_mean(lam, mu, sig2, 1.4, ("gamma", "fisk"), np.array([30, 12]))

    batched = jax.jit(jax.vmap(rho))
    got = batched(draws * lam, draws * mu)
    batched(draws * lam + 1, draws * mu)
    assert len(traces) == 1
    for k, scale in enumerate(draws):
        np.testing.assert_allclose(got[k], rho(scale * lam, scale * mu), rtol=1e-12)


def test_a_lag_beyond_the_bound_is_never_silent():
    lam, mu, sig2 = (x.astype(np.float32) for x in random_inputs())
    args = (lam, mu, sig2, 1.0, "exponential")
    rho = jax.jit(lambda smax: occupancy_mean(*args, smax, num_lags=10))(jnp.array([10, 11, -1]))
    np.testing.assert_array_equal(np.isnan(rho).all(axis=1), [False, True, True])
    with pytest.raises(ValueError, match="num_lags = 10"):
        occupancy_mean(*args, 11, num_lags=10)
    with pytest.raises(ValueError, match="give its static bound"):
        jax.jit(lambda smax: occupancy_mean(*args, smax))(jnp.array([1, 2, 3]))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"queue": QueueModel(convention="noon")}, "convention must be one of"),
        ({"queue": QueueModel(warmup="cold")}, "warmup must be one of"),
        ({"queue": QueueModel(warmup="backfill", backfill="mean")}, "backfill must be one of"),
        ({"queue": QueueModel(warmup="backfill", backfill="calendar")}, "needs 365 days"),
        ({"family": ("gamma", "fisk")}, "family must name 1 or 3"),
        ({"family": "burr", "kappa": 0.9}, "kappa > 1"),
        ({"smax": 3.5}, "whole days"),
        ({"smax": np.array([1, 2])}, "smax must be a scalar"),
        ({"mu": np.ones(4)}, "alike"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_errors(kwargs, match):
    lam, mu, sig2 = random_inputs()
    args = {"lam": lam, "mu": mu, "sig2": sig2, "kappa": 1.5, "family": "gamma", "smax": 9}
    with pytest.raises(ValueError, match=match):
        occupancy_mean(**(args | kwargs))


def test_batches_against_simulated_twins(x64):
    """Singles and twins with independent stays: mean and variance of a constant-rate unit."""
    rng = np.random.default_rng(6)
    reps, num_days, rate, twin_prob, retention = 40_000, 25, 1.5, 0.3, 0.8
    present = np.zeros((reps, num_days))
    for day in range(num_days):
        births = rng.poisson(rate, reps)
        patients = births + rng.binomial(births, twin_prob)
        for later in range(day, num_days):  # geometric stays: S(u) = retention^u
            present[:, later] += patients
            patients = rng.binomial(patients, retention)
    # Stays do not depend on whether the patient is a twin, so binomial thinning is exact.
    mu = np.full(num_days, -1 / np.log(retention))
    mean, variance = occupancy.occupancy_batch(
        np.full(num_days, rate),
        mu,
        mu**2,
        1.0,
        "exponential",
        24,
        size_mean=1 + twin_prob,
        size_pairs=2 * twin_prob,
    )
    error = np.sqrt(np.asarray(variance) / reps)
    assert np.all(np.abs(present.mean(0) - mean) < 5 * error)
    np.testing.assert_allclose(present.var(0), variance, rtol=5 * np.sqrt(2 / reps))
    assert np.all(variance > mean)
    with pytest.raises(ValueError, match="bed_days"):
        queue = QueueModel(convention="bed_days")
        occupancy.occupancy_batch(
            mu, mu, mu, 1.0, "gamma", 3, size_mean=1, size_pairs=0, queue=queue
        )


def test_departures_balance_the_flow(x64):
    lam, mu, _ = random_inputs(1, 30)
    surv = np.exp(-np.arange(9) / mu[0][:, None])
    rho = np.asarray(occupancy.occupancy_mean_general(lam[0], surv))
    left = np.asarray(companions.departure_rate(lam[0], surv))
    np.testing.assert_allclose(np.diff(rho), lam[0][1:] - left[1:], rtol=1e-12)
    want = np.zeros(30)
    ended = surv - np.pad(surv, ((0, 0), (0, 1)))[:, 1:]
    for t in range(30):
        for u in range(1, min(t, 9) + 1):
            want[t] += lam[0][t - u] * ended[t - u, u - 1]
    np.testing.assert_allclose(left, want, rtol=1e-12)


def test_covariance_equals_the_double_loop_and_the_stationary_excess(x64):
    lam, mu, _ = random_inputs(1, 40)
    lam, surv = lam[0], np.exp(-((np.arange(11) / mu[0][:, None]) ** 0.8))
    got = jax.jit(companions.occupancy_cov)(lam, surv, jnp.array([0, 3, 10, 11]))
    padded = np.pad(surv, ((0, 0), (0, 20)))
    for row, h in zip(got, (0, 3, 10, 11), strict=True):
        np.testing.assert_allclose(row, brute_force(lam, padded[:, h:], 10), atol=1e-13)
    # Constant rate: the autocorrelation is P(S_e > h).
    constant = np.tile(surv[:1], (40, 1))
    cov = np.asarray(companions.occupancy_cov(np.ones(40), constant, jnp.arange(11)))
    excess = companions.stationary_excess(surv[0])
    np.testing.assert_allclose(cov[:, -1] / cov[0, -1], excess, rtol=1e-12)


def test_covariance_by_simulation(x64):
    """Cov(N_s, N_{s+h}) of simulated paths, arrivals varying and stays geometric."""
    rng = np.random.default_rng(7)
    reps, num_days, retention = 60_000, 16, 0.85
    lam = 1.0 + 0.8 * np.sin(np.arange(num_days))
    path, now = np.zeros((reps, num_days)), np.zeros(reps, int)
    for t in range(num_days):
        now = rng.binomial(now, retention) + rng.poisson(lam[t], reps)
        path[:, t] = now
    surv = np.tile(retention ** np.arange(num_days), (num_days, 1))
    cov = np.asarray(companions.occupancy_cov(lam, surv, jnp.array([4])))[0]
    sample = np.cov(path[:, 10], path[:, 14])
    error = np.sqrt((sample[0, 0] * sample[1, 1] + sample[0, 1] ** 2) / reps)
    assert abs(sample[0, 1] - cov[10]) < 4 * error


@pytest.mark.parametrize("frequency", [2 * np.pi / 365, 2 * np.pi / 7])
def test_sinusoid(x64, frequency):
    """The transform of an exponential in closed form, of a lognormal by adaptive quadrature."""
    a, b, rate, g = 3.0, 1.2, 1 / 8, frequency
    t = np.linspace(0, 400, 9)
    transform = companions.sinusoid_transform(g, conditional.law("exponential", 8.0, 1.0, 1.0), 400)
    np.testing.assert_allclose(
        transform, (8.0, rate / (rate**2 + g**2), g / (rate**2 + g**2)), rtol=1e-11
    )
    want = a / rate + b * (rate * np.sin(g * t) - g * np.cos(g * t)) / (rate**2 + g**2)
    np.testing.assert_allclose(companions.sinusoid_mean(t, a, b, g, transform), want, rtol=1e-11)

    law = stats.lognorm(0.8, scale=10 * np.exp(-0.32))
    surv = conditional.law("lognormal", 10.0, 100 * np.expm1(0.64), 1.0)
    transform = companions.sinusoid_transform(g, surv, 600)
    t = 123.4  # m(t) = int lam(t - u) S(u) du
    want = sum(
        integrate.quad(lambda u: (a + b * np.sin(g * (t - u))) * law.sf(u), k, k + 20)[0]
        for k in range(0, 600, 20)
    )
    got = companions.sinusoid_mean(jnp.array([t]), a, b, g, transform)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_spread_of_the_dispersion_is_that_of_simulated_units():
    mean, num_days, repeats = 5.0, 200, 1500
    surv = np.exp(-np.arange(120) / mean)
    with jax.enable_x64(True):
        expected, sd = companions.dispersion_spread(jnp.asarray(surv), num_days)
    rest = surv[::-1].cumsum()[::-1] / surv.sum()
    r = np.pad(rest, (0, num_days))[np.abs(np.subtract.outer(*[np.arange(num_days)] * 2))]
    centered = r - r.mean(0) - r.mean(1)[:, None] + r.mean()
    exact = np.sqrt(2 * (centered * centered.T).sum()) / num_days
    assert float(sd) == pytest.approx(exact, rel=1e-9)
    assert float(expected) == pytest.approx(1 - r.mean(), rel=1e-9)
    rng = np.random.default_rng(0)
    arrivals = rng.poisson(4.0, (repeats, num_days + 60))
    census = np.zeros((repeats, num_days + 60))
    for day in range(num_days + 60):  # a geometric stay leaves each day with one chance
        left = census[:, day - 1] if day else np.zeros(repeats)
        census[:, day] = rng.binomial(left.astype(int), np.exp(-1 / mean)) + arrivals[:, day]
    ratio = census[:, 60:].var(axis=1) / census[:, 60:].mean(axis=1)
    assert ratio.mean() == pytest.approx(float(expected), abs=4 * ratio.std() / repeats**0.5)
    assert ratio.std() == pytest.approx(float(sd), rel=0.08)
