"""Censored maximum likelihood, Kaplan-Meier and goodness of fit against scipy and lifelines."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.queueing.stays import conditional, empirical, fit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lifelines

FAMILIES = conditional.FAMILIES
N, U_MAX = 300, 150


def scipy_law(family, shape, scale):
    return {
        "exponential": lambda: stats.expon(scale=scale),
        "weibull": lambda: stats.weibull_min(shape, scale=scale),
        "lognormal": lambda: stats.lognorm(shape, scale=scale),
        "gamma": lambda: stats.gamma(shape, scale=scale),
        "fisk": lambda: stats.fisk(shape, scale=scale),
        "burr": lambda: stats.lomax(shape, scale=scale),
    }[family]()


def stays(seed=0, n=N, censored=True):
    """Stays of [5, n] patients: four laws and whole days; a fifth to a third are censored."""
    rng = np.random.default_rng(seed)
    x = np.stack(
        [
            rng.gamma(1.6, 6, n),
            rng.lognormal(2, 0.8, n),
            stats.fisk(1.6, scale=6).rvs(n, random_state=rng),
            stats.lomax(2.5, scale=15).rvs(n, random_state=rng),
            np.ceil(9 * rng.weibull(0.9, n)),
        ]
    )
    limit = rng.exponential(25, x.shape) if censored else np.full(x.shape, np.inf)
    limit[4] = np.ceil(limit[4])
    return np.minimum(x, limit), x <= limit


@jax.jit
@jax.vmap
def fit_all(x, event, weight):
    return fit.fit_families(x, event, FAMILIES, weight=weight, u_max=U_MAX)


def km_loop(x, event, weight, grid):
    """Product-limit estimate with explicit loops over distinct times."""
    surv = np.ones(len(grid))
    for t in np.unique(x[(weight > 0) & (event > 0)]):
        deaths = weight[(x == t) & (event > 0)].sum()
        surv[grid >= t] *= 1 - deaths / weight[x >= t].sum()
    return surv


# ---------------------------------------------------------------------- Kaplan-Meier


def test_kaplan_meier_matches_lifelines_with_ties_and_censoring(x64):
    x, event = stays(seed=1)
    grid = np.concatenate([np.arange(60.0), [3.5, 1e4, 0.0]])
    got = jax.jit(jax.vmap(lambda x, e: empirical.kaplan_meier(x, e, grid)))(x, event)
    for i in range(len(x)):
        km = lifelines.KaplanMeierFitter().fit(x[i], event[i])
        np.testing.assert_allclose(got[i], km.predict(grid).to_numpy(), atol=1e-12)


def test_kaplan_meier_conventions(x64):
    # A patient censored at 2 is at risk for the deaths at 2; the curve drops at its jumps.
    x, event = np.array([2.0, 2.0, 2.0, 5.0, 7.0]), np.array([0, 1, 1, 1, 0])
    grid = np.array([0, 1.999, 2, 4.999, 5, 100])
    want = [1, 1, 3 / 5, 3 / 5, 3 / 10, 3 / 10]
    np.testing.assert_allclose(empirical.kaplan_meier(x, event, grid), want, atol=1e-15)
    assert float(empirical.kaplan_meier(x, np.ones(5), grid)[-1]) == 0.0  # exactly


def test_kaplan_meier_weights_and_padding(x64):
    rng = np.random.default_rng(2)
    x, event = np.ceil(rng.exponential(5, 40)), rng.random(40) < 0.7
    count = rng.integers(0, 4, 40)
    grid = np.arange(20.0)

    @jax.jit
    def km(x, event, weight):
        return empirical.kaplan_meier(x, event, grid, weight=weight)

    np.testing.assert_allclose(
        km(x, event, count), km_loop(x, event, count.astype(float), grid), atol=1e-12
    )
    repeated = empirical.kaplan_meier(np.repeat(x, count), np.repeat(event, count), grid)
    np.testing.assert_allclose(km(x, event, count), repeated, atol=1e-12)
    fraction = rng.random(40)
    np.testing.assert_allclose(
        km(x, event, fraction), km_loop(x, event, fraction, grid), atol=1e-12
    )
    padding = np.where(count == 0, np.nan, x)
    np.testing.assert_allclose(km(padding, event, count), repeated, atol=1e-12)
    assert np.isnan(km(np.full(40, np.nan), event, np.ones(40))).all()
    np.testing.assert_array_equal(km(x, event, np.zeros(40)), 1.0)


def test_empirical_law_and_its_scaling(x64):
    x, event = stays(seed=3, censored=False)
    x = np.ceil(x[4])
    surv = jax.jit(lambda x, e: empirical.empirical_law(x, e, 70))(x, event[4])
    np.testing.assert_allclose(surv, [(x > u).mean() for u in range(71)], atol=1e-12)
    mean = float(np.trapezoid(surv))
    scaled_law = jax.jit(empirical.scaled_law)
    np.testing.assert_allclose(scaled_law(surv, mean), surv, atol=1e-12)
    mu = np.array([[3.0, 6.0, 9.0]])
    scaled = scaled_law(surv, mu)
    assert scaled.shape == (1, 3, 71)
    for j, m in enumerate(mu[0]):
        want = np.interp(np.arange(71) * mean / m, np.arange(71), surv)
        np.testing.assert_allclose(scaled[0, j], want, atol=1e-12)
    # Finely resolved laws have the wanted mean.
    fine = jnp.asarray(stats.gamma(2, scale=100).sf(np.arange(4000.0)))
    assert float(np.trapezoid(scaled_law(fine, 300.0))) == pytest.approx(300, rel=1e-4)


# ---------------------------------------------------------------------- maximum likelihood


@pytest.mark.parametrize("censored", [False, True], ids=["complete", "censored"])
def test_estimates_are_maxima_of_the_scipy_likelihood(censored, x64):
    """The score of the likelihood written with scipy vanishes; this fixes every estimate."""
    x, event = stays(seed=4, censored=censored)
    weight = np.random.default_rng(4).integers(0, 3, x.shape).astype(float)
    fits = jax.device_get(fit_all(x, event, weight))
    for i in range(len(x)):
        for j, family in enumerate(FAMILIES):
            phi = np.log([fits.params.shape[i, j], fits.params.scale[i, j]])

            def loglik(phi, family=family, i=i):
                law = scipy_law(family, *np.exp(phi))
                terms = np.where(event[i], law.logpdf(x[i]), law.logsf(x[i]))
                return (weight[i] * terms).sum()

            if family == "burr" and not fits.converged[i, j]:
                continue  # checked below
            assert fits.converged[i, j], (i, family)
            assert fits.loglik[i, j] == pytest.approx(loglik(phi), rel=1e-10)
            for k in range(int(family == "exponential"), 2):
                step = 1e-4 * np.eye(2)[k]
                low, mid, high = loglik(phi - step), loglik(phi), loglik(phi + step)
                newton = 1e-4 * 0.5 * (high - low) / (2 * mid - high - low)
                # One coordinate's Newton step, to the rounding of the differences.
                assert abs(newton) < 2e-6, (i, family, k, newton)
            num_params = 1 if family == "exponential" else 2
            aic = 2 * num_params - 2 * fits.loglik[i, j]
            assert fits.aic[i, j] == pytest.approx(aic)
            bic = aic - 2 * num_params + num_params * np.log(weight[i].sum())
            assert fits.bic[i, j] == pytest.approx(bic)
    # Lomax data have an interior maximum for the Burr law, Weibull data of shape > 1 have none.
    assert fits.converged[3, FAMILIES.index("burr")]


def test_closed_form_estimates(x64):
    x, event = stays(seed=5, censored=False)
    fits = jax.device_get(fit_all(x, event, np.ones_like(x)))
    for i in range(4):
        np.testing.assert_allclose(fits.params.scale[i, 0], x[i].mean(), rtol=1e-12)
        k, theta = (leaf[i, 1] for leaf in fits.params)
        power = x[i] ** k
        score = 1 / k + np.log(x[i]).mean() - (power * np.log(x[i])).sum() / power.sum()
        assert abs(score) < 1e-10
        np.testing.assert_allclose(theta**k, power.mean(), rtol=1e-9)
        for j, law in ((2, stats.lognorm), (3, stats.gamma)):  # exact in scipy
            shape, _, scale = law.fit(x[i], floc=0)
            got = fits.params.shape[i, j], fits.params.scale[i, j]
            np.testing.assert_allclose(got, (shape, scale), rtol=1e-8)


def test_censored_estimates_match_lifelines(x64):
    x, event = stays(seed=6)
    fits = jax.device_get(fit_all(x, event, np.ones_like(x)))
    fitters = {
        "exponential": (lifelines.ExponentialFitter, lambda f: (1.0, f.lambda_)),
        "weibull": (lifelines.WeibullFitter, lambda f: (f.rho_, f.lambda_)),
        "lognormal": (lifelines.LogNormalFitter, lambda f: (f.sigma_, np.exp(f.mu_))),
        "fisk": (lifelines.LogLogisticFitter, lambda f: (f.beta_, f.alpha_)),
    }
    for i in range(3):
        for family, (fitter, params) in fitters.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = fitter().fit(x[i], event[i])
            j = FAMILIES.index(family)
            got = fits.params.shape[i, j], fits.params.scale[i, j]
            # lifelines stops its optimizer at about 1e-5.
            np.testing.assert_allclose(got, params(want), rtol=2e-4)
            assert fits.loglik[i, j] == pytest.approx(want.log_likelihood_, abs=1e-5)
            assert fits.aic[i, j] == pytest.approx(want.AIC_, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_implicit_gradients_match_finite_differences(family, x64):
    rng = np.random.default_rng(7)
    x = (
        rng.gamma(1.5, 6, 30)
        if family != "burr"
        else stats.lomax(2, scale=9).rvs(30, random_state=rng)
    )
    event = rng.random(30) < 0.7
    weight = rng.random(30) + 0.5

    def params(x, weight):
        result = fit.fit_los(x, event, family, weight=weight, u_max=30)
        return jnp.stack(result.params), result.converged

    (dx, dw), converged = jax.jit(jax.jacobian(params, argnums=(0, 1), has_aux=True))(x, weight)
    assert converged
    value = jax.jit(lambda x, weight: params(x, weight)[0])
    for k in (0, 11, 29):
        step = 1e-5 * np.eye(30)[k]
        slope = (value(x + step, weight) - value(x - step, weight)) / 2e-5
        np.testing.assert_allclose(dx[:, k], slope, rtol=1e-4, atol=1e-6)
        slope = (value(x, weight + step) - value(x, weight - step)) / 2e-5
        np.testing.assert_allclose(dw[:, k], slope, rtol=1e-4, atol=1e-6)


def test_float32_with_ten_thousand_stays():
    """float32 agrees with float64 to 5e-5.

    It may give up on a Burr likelihood too flat for its digits (k above 10, nearly exponential).
    """
    x, event = stays(seed=8, n=10_000)
    x = x.astype(np.float32)
    results = []
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            results.append(jax.device_get(fit_all(x.astype(dtype), event, np.ones(x.shape, dtype))))
    low, high = results
    assert low.loglik.dtype == np.float32 and high.loglik.dtype == np.float64
    assert low.converged[:, :5].all() and high.converged[:, :5].all()
    ok = low.converged & high.converged
    assert (ok[:, 5] | ~(high.kappa[:, 5] < 10)).all()
    for name, tol in (("kappa", 5e-5), ("q99", 1e-4), ("loglik", 3e-6)):
        np.testing.assert_allclose(getattr(low, name)[ok], getattr(high, name)[ok], rtol=tol)
    np.testing.assert_allclose(low.rmse[ok], high.rmse[ok], atol=1e-5)
    np.testing.assert_allclose(low.ks[ok], high.ks[ok], atol=1e-5)
    np.testing.assert_allclose(low.ad[ok], high.ad[ok], rtol=5e-3)


# ---------------------------------------------------------------------- goodness of fit


def test_uncensored_ks_and_ad_match_scipy_with_ties(x64):
    x, event = stays(seed=9, censored=False)
    fits = jax.device_get(fit_all(x, event, np.ones_like(x)))
    for i in (1, 4):  # continuous stays, whole days
        for j, family in enumerate(FAMILIES):
            law = scipy_law(family, fits.params.shape[i, j], fits.params.scale[i, j])
            assert fits.ks[i, j] == pytest.approx(stats.kstest(x[i], law.cdf).statistic, rel=1e-9)
            s = np.sort(x[i])
            order = 2 * np.arange(1, N + 1) - 1
            ad = -N - np.mean(order * (law.logcdf(s) + law.logsf(s)[::-1]))
            assert fits.ad[i, j] == pytest.approx(ad, rel=1e-8)


def test_censored_ks_and_ad_match_numerical_integrals(x64):
    x, event = stays(seed=10)
    fits = jax.device_get(fit_all(x, event, np.ones_like(x)))
    for i in (2, 4):
        km = lifelines.KaplanMeierFitter().fit(x[i], event[i])
        for j in (1, 2):
            law = scipy_law(FAMILIES[j], fits.params.shape[i, j], fits.params.scale[i, j])
            cdf = np.linspace(0, law.cdf(x[i].max()), 400_001)
            middle = 0.5 * (cdf[1:] + cdf[:-1])
            curve = km.predict(law.ppf(middle)).to_numpy()
            gap = 1 - middle - curve
            last = abs(law.sf(x[i].max()) - km.predict(x[i].max()))
            assert fits.ks[i, j] == pytest.approx(max(np.abs(gap).max(), last), abs=1e-5)
            ad = N * np.sum(gap**2 / (middle * (1 - middle))) * cdf[1]
            if km.predict(x[i].max()) == 0:
                ad += N * (-law.logcdf(x[i].max()) - law.sf(x[i].max()))
            assert fits.ad[i, j] == pytest.approx(ad, rel=1e-3)


def test_rmse_on_own_and_common_grids(x64):
    x, event = stays(seed=11)
    fits = jax.device_get(fit_all(x, event, np.ones_like(x)))
    for i in range(len(x)):
        km = km_loop(x[i], event[i], np.ones(N), np.arange(U_MAX + 1.0))
        good = fits.status[i] == fit.OK
        common = fits.smax[i][good].max()
        for j, family in enumerate(FAMILIES):
            law = scipy_law(family, fits.params.shape[i, j], fits.params.scale[i, j])
            smax = max(1, int(min(x[i].max(), law.ppf(0.99))))
            assert fits.smax[i, j] == smax
            gap = law.sf(np.arange(U_MAX + 1)) - km
            own = np.sqrt(np.mean(gap[: smax + 1] ** 2))
            assert fits.rmse[i, j] == pytest.approx(own, rel=1e-7)
            if good[j]:
                own = np.sqrt(np.mean(gap[: common + 1] ** 2))
                assert fits.rmse_common[i, j] == pytest.approx(own, rel=1e-7)
    chosen = fit.select_los(fits, "rmse")
    np.testing.assert_array_equal(
        chosen, np.argmin(np.where(fits.status == fit.OK, fits.rmse, np.inf), axis=1)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_truncation_point_is_an_exact_floor(dtype):
    """q99 = 57 up to rounding gives 57 days, and the published means give 57 and 61."""
    with jax.enable_x64(dtype == "float64"):
        longest = 70.0
        x = np.full((5, 200), longest, dtype)
        for i, mean in enumerate((57 / np.log(100), 12.5, 13.35, 100.0, 0.1)):
            x[i] = mean if i == 4 else x[i]
            rest = (200 * mean - longest) / 199
            x[i, 1:] = rest if i < 3 else x[i, 1:]
        event = np.ones(x.shape, bool)
        smax = jax.jit(jax.vmap(lambda x, e: fit.fit_los(x, e, "exponential", u_max=80).smax))(
            x, event
        )
    assert smax.tolist() == [57, 57, 61, 70, 1]


# ---------------------------------------------------------------------- failure and selection


def test_grid_too_short_is_flagged_and_never_selected():
    x, event = stays(seed=12, n=100)
    fits = jax.jit(lambda x, e: fit.fit_families(x, e, u_max=30))(x[2], event[2])
    assert set(fits.status.tolist()) == {fit.GRID_TOO_SHORT}
    assert fits.converged.all() and (fits.smax > 30).all()
    assert np.isinf(fits.rmse).all() and np.isinf(fits.rmse_common).all()
    assert fit.select_los(fits) == -1


def test_degenerate_samples_do_not_touch_their_neighbors(x64):
    x, event = stays(seed=13)
    x, event = np.repeat(x[:1], 10, 0), np.ones((10, N), bool)
    weight = np.ones_like(x)
    weight[1] = np.arange(N) == 0  # one stay
    x[2] = 5.0  # all equal
    event[3] = False  # all censored
    weight[4] = 0.0  # nobody
    x[5, 200:], weight[5, 200:] = np.nan, 0.0  # padding
    x[6, 7] = -1.0
    x[7, 7] = np.nan
    weight[8, 7] = np.nan
    x[9, 7] = 0.0
    fits = [jax.device_get(fit_all(x[i], event[i], weight[i])) for i in (slice(5), slice(5, 10))]
    fits = jax.tree.map(lambda *leaves: np.concatenate(leaves), *fits)
    for name in ("loglik", "ks", "ad", "rmse", "aic", "bic"):
        assert np.isfinite(getattr(fits, name)).all(), name
    assert all(np.isfinite(leaf).all() for leaf in fits.params)
    ok, two = fit.OK, slice(1, 6)
    assert (fits.status[0, :5] == ok).all() and (fits.status[5, :5] == ok).all()
    for i in (1, 2):
        assert fits.status[i, 0] == ok and (fits.status[i, two] == fit.NOT_CONVERGED).all()
        assert fits.params.scale[i, 0] == pytest.approx(x[i, 0])
    assert (fits.status[3:5] == fit.NO_EVENTS).all()
    assert (fits.status[6:] == fit.BAD_DATA).all()
    assert not fits.converged[3:5].any() and not fits.converged[6:].any()
    for criterion in ("rmse", "rmse_common", "aic", "bic", "ks", "ad", "loglik"):
        choice = np.asarray(fit.select_los(fits, criterion))
        assert (choice[[1, 2]] == 0).all() and (choice[[3, 4, 6, 7, 8, 9]] == -1).all()
        assert (choice[[0, 5]] >= 0).all()
    # Padding and neighbors change nothing: the same as the 200 stays alone.
    alone = jax.jit(lambda x: fit.fit_los(x, x > 0, "weibull", u_max=U_MAX))(x[5, :200])
    for got, want in zip(jax.tree.leaves(fits), jax.tree.leaves(alone), strict=True):
        if got is not fits.rmse_common:
            np.testing.assert_allclose(got[5, 1], want, rtol=1e-8)


def test_gradients_of_degenerate_samples_are_finite(x64):
    def loss(x, event, weight):
        params = fit.fit_families(x, event, FAMILIES, weight=weight, u_max=10).params
        return jnp.sum(jnp.log(params.shape) + jnp.log(params.scale))

    x = np.stack([np.full(12, 5.0), np.arange(1.0, 13), np.where(np.arange(12) < 6, 3.0, np.nan)])
    event = np.stack([np.ones(12), np.zeros(12), np.ones(12)])
    weight = np.stack([np.ones(12), np.ones(12), np.arange(12) < 6])
    grads = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 2))))(x, event, weight)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)


def test_selection_recovers_the_law(x64):
    """With 10,000 stays the criteria prefer each law on its own data."""
    rng = np.random.default_rng(14)
    laws = [scipy_law(f, 1.8 if f != "lognormal" else 0.9, 8.0) for f in FAMILIES[:5]]
    x = np.stack([law.rvs(10_000, random_state=rng) for law in laws])
    x = np.minimum(x, 120.0)
    fits = fit_all(x, x < 120, np.ones_like(x))
    assert fit.select_los(fits, "bic").tolist() == [0, 1, 2, 3, 4]
    assert fit.select_los(fits, "ad")[1:].tolist() == [1, 2, 3, 4]


def test_selection_ignores_nan_and_failed_fits():
    scores = jnp.asarray([[3.0, jnp.nan, 1.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    status = jnp.asarray([[0, 0, fit.NOT_CONVERGED, 0, 0], [1, 2, 3, 4, 1]])
    fits = fit.LOSFit(*([None] * len(fit.LOSFit._fields)))
    fits = fits._replace(rmse=scores, loglik=scores, status=status)
    assert fit.select_los(fits).tolist() == [3, -1]
    assert fit.select_los(fits, "loglik").tolist() == [0, -1]
    with pytest.raises(ValueError, match="unknown criterion 'cvm'"):
        fit.select_los(fits, "cvm")


def test_one_trace_for_new_values():
    traces = []

    @jax.jit
    def scale(x, event):
        traces.append(1)
        return fit.fit_los(x, event, "weibull", u_max=50).params.scale

    x, event = stays(seed=15, n=50)
    assert scale(x[0], event[0]) != scale(x[1], event[1])
    assert len(traces) == 1


def test_bad_arguments():
    x = np.ones(5)
    with pytest.raises(ValueError, match="unknown family"):
        fit.fit_los(x, x, "pareto", u_max=10)
    with pytest.raises(ValueError, match="one shape"):
        fit.fit_los(x, np.ones(4), "gamma", u_max=10)
    with pytest.raises(ValueError, match="one shape"):
        empirical.kaplan_meier(np.ones((2, 5)), np.ones((2, 5)), np.arange(3.0))
    with pytest.raises(ValueError, match="u_max must be at least 1"):
        fit.fit_los(x, x, "gamma", u_max=0)


@pytest.mark.parametrize("convention", ["ceil", "midnight"])
def test_counts_of_days_are_fitted_by_the_probability_of_the_count(convention):
    """Stays known by their dates, some of no night, some open, some to the minute."""
    rng = np.random.default_rng(12)
    n = 400
    start, length = rng.uniform(0, 1, n), 5.0 * rng.weibull(0.9, n)
    days = np.floor(start + length)
    limit = rng.integers(1, 40, n)
    ended = days < limit
    exact = np.arange(n) < 60
    value = np.where(exact, length, np.where(ended, days, limit))
    ended = ended | exact
    with jax.enable_x64(True):
        found = jax.jit(
            lambda x, e, b: fit.fit_families(
                x, e, ("exponential", "weibull"), by_date=b, convention=convention, u_max=64
            )
        )(value, ended, ~exact)
    node, weight = np.polynomial.legendre.leggauss(40)
    node, weight = 0.5 + 0.5 * node, 0.5 * weight

    def reached(law, d):
        if convention == "ceil":
            return law.sf(np.maximum(d, 1.0) - 1)
        inside = (law.sf(np.maximum(d - 1, 0)[:, None] + node**2 * 1.0) * 2 * node * weight).sum(1)
        later = (law.sf(np.maximum(d - 1, 0)[:, None] + node) * weight).sum(1)
        return np.where(d < 1, 1.0, np.where(d == 1, inside, later))

    def loglik(shape, scale):
        law = stats.weibull_min(shape, scale=scale)
        d = np.maximum(value, 1.0) if convention == "ceil" else value
        exactly = np.log(reached(law, d) - reached(law, d + 1))
        counts = np.where(ended, exactly, np.log(reached(law, d)))
        return np.where(exact, law.logpdf(value), counts).sum()

    for f in (0, 1):
        shape, scale = (float(x[f]) for x in found.params)
        best = loglik(shape, scale)
        assert float(found.loglik[f]) == pytest.approx(best, rel=1e-6)
        steps = [(1.0, 1.003), (1.0, 0.997)] + ([(1.003, 1.0), (0.997, 1.0)] if f else [])
        assert all(loglik(shape * a, scale * b) < best for a, b in steps)
        assert abs(loglik(shape, scale * 1.003) - loglik(shape, scale * 0.997)) < 2e-3
    assert np.asarray(found.status == fit.OK).all()
    if convention == "midnight":  # what is counted by dates has the mean of the stays
        assert abs(float(found.params.scale[0]) - length.mean()) < 0.35
