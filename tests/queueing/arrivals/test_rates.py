"""Poisson regression and its designs against statsmodels, scipy and simulation."""

import datetime
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm
from scipy import interpolate

from jaxlab.queueing.arrivals import decomposition, glm, rates


def _seasonal_counts(seed, num_days, level=2.65, amplitude=0.3, shape=()):
    day = np.arange(num_days)
    rate = level * np.exp(amplitude * np.sin(2 * np.pi * day / 365.25) + 0.1 * (day % 7 < 5))
    return np.random.default_rng(seed).poisson(rate, (*shape, num_days)).astype(float), rate


def _check_derivatives(function, args, tol):
    """Forward and reverse derivative along one direction against a central difference."""
    rng = np.random.default_rng(99)
    tangents = tuple(jnp.asarray(rng.normal(size=jnp.shape(x))) for x in args)

    @jax.jit
    def compare(args, tangents):
        steps = jnp.asarray([1e-5, -1e-5])
        moved = jax.vmap(
            lambda h: function(*(x + h * t for x, t in zip(args, tangents, strict=True)))
        )
        numeric = jax.tree.map(lambda y: (y[0] - y[1]) / 2e-5, moved(steps))
        _, forward = jax.jvp(function, args, tangents)
        weights = jax.tree.map(jnp.cos, numeric)  # any cotangent
        _, pullback = jax.vjp(function, *args)
        reverse = sum(jnp.sum(g * t) for g, t in zip(pullback(weights), tangents, strict=True))
        inner = sum(jnp.sum(w * n) for w, n in zip(weights, numeric, strict=True))
        return numeric, forward, inner, reverse

    numeric, forward, inner, reverse = compare(args, tangents)
    for want, got in zip(numeric, forward, strict=True):
        np.testing.assert_allclose(got, want, rtol=tol, atol=tol * float(jnp.abs(want).max()))
        assert float(jnp.abs(want).max()) > 0.0
    np.testing.assert_allclose(reverse, inner, rtol=tol)


# --- Poisson regression -----------------------------------------------------------------------


@pytest.mark.parametrize("trend", rates.TRENDS)
def test_glm_equals_statsmodels(x64, trend):
    """Rare, usual and huge counts under every trend."""
    counts = np.stack([_seasonal_counts(1, 730, level)[0] for level in (0.05, 2.65, 1e5)])
    design = rates.rate_design(730, trend=trend, harmonics=2, start_weekday=4)
    fits = jax.jit(jax.vmap(lambda n: glm.poisson_glm(n, design.matrix)))(counts)
    for i, n in enumerate(counts):
        fit = jax.tree.map(lambda leaf, i=i: leaf[i], fits)
        want = sm.GLM(n, design.matrix, family=sm.families.Poisson()).fit(tol=1e-14)
        se = np.sqrt(np.diag(want.cov_params()))
        # In units of the standard errors; statsmodels' own stopping rule limits the huge counts.
        np.testing.assert_allclose(fit.coef / se, want.params / se, rtol=0, atol=1e-7)
        cov = want.cov_params() / np.outer(se, se)
        np.testing.assert_allclose(fit.cov / np.outer(se, se), cov, rtol=0, atol=1e-7)
        np.testing.assert_allclose(fit.mean, want.fittedvalues, rtol=1e-9)
        np.testing.assert_allclose(fit.deviance, want.deviance, rtol=1e-8)
        np.testing.assert_allclose(fit.dispersion, want.pearson_chi2 / want.df_resid, rtol=1e-8)
        np.testing.assert_allclose(fit.loglik, want.llf, rtol=1e-9)
        assert bool(fit.converged)
        assert float(fit.edf) == design.matrix.shape[1]


def test_glm_float32_is_close_to_float64():
    counts, _ = _seasonal_counts(2, 2922)
    design = rates.rate_design(2922, trend="spline", harmonics=3)
    fit = jax.jit(lambda n: glm.poisson_glm(n, design.matrix))(jnp.asarray(counts, jnp.float32))
    want = sm.GLM(counts, design.matrix, family=sm.families.Poisson()).fit(tol=1e-14)
    assert fit.mean.dtype == jnp.float32
    np.testing.assert_allclose(
        (fit.coef - want.params) / np.sqrt(np.diag(want.cov_params())), 0, atol=1e-4
    )
    np.testing.assert_allclose(fit.cov, want.cov_params(), rtol=0, atol=1e-4 * fit.cov.max())


def test_glm_exposure_offset_and_weights_equal_statsmodels(x64):
    counts, _ = _seasonal_counts(3, 400)
    rng = np.random.default_rng(0)
    exposure, offset = rng.uniform(0.3, 3.0, 400), rng.normal(0, 0.2, 400)
    weight = rng.integers(0, 3, 400).astype(float)
    holes = np.where(weight > 0, counts, np.nan)
    x = rates.rate_design(400, harmonics=1).matrix
    fit = jax.jit(lambda n, w: glm.poisson_glm(n, x, exposure=exposure, offset=offset, weight=w))(
        holes, weight
    )
    want = sm.GLM(
        counts,
        x,
        family=sm.families.Poisson(),
        exposure=exposure,
        offset=offset,
        freq_weights=weight,
    ).fit(tol=1e-14)
    np.testing.assert_allclose(fit.coef, want.params, atol=1e-9)
    np.testing.assert_allclose(fit.cov, want.cov_params(), atol=1e-9)
    np.testing.assert_allclose(fit.deviance, want.deviance, rtol=1e-9)
    np.testing.assert_allclose(fit.dispersion, want.pearson_chi2 / want.df_resid, rtol=1e-9)
    # Days of weight zero are predicted.
    np.testing.assert_allclose(fit.mean, np.exp(x @ want.params + offset) * exposure, rtol=1e-9)


def test_glm_constant_rate_is_the_sample_mean_and_weekday_totals_are_kept(x64):
    counts, _ = _seasonal_counts(4, 371)
    flat = jax.jit(lambda n: glm.poisson_glm(n, np.ones((371, 1))))(counts)
    np.testing.assert_allclose(flat.mean, counts.mean(), rtol=1e-12)
    np.testing.assert_allclose(flat.cov[0, 0], 1 / counts.sum(), rtol=1e-12)
    design = rates.rate_design(371, harmonics=0)
    weekly = jax.jit(lambda n: glm.poisson_glm(n, design.matrix))(counts)
    by_weekday = counts.reshape(53, 7).mean(0)  # the score equations of a saturated week
    np.testing.assert_allclose(np.asarray(weekly.mean).reshape(53, 7)[10], by_weekday, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_glm_never_diverges(x64, dtype):
    day = np.arange(210)
    rng = np.random.default_rng(5)
    spike = np.zeros(210)
    spike[77] = 1e6
    series = {
        "zero": np.zeros(210),
        "spike": spike,
        "billions": rng.poisson(1e9, 210).astype(float),
        "no Sundays": rng.poisson(2.0, 210) * (day % 7 != 6) * 1.0,
        "explosion": rng.poisson(np.exp(np.minimum(day / 10.0, 18.0))).astype(float),
    }
    design = rates.rate_design(210, trend="linear", harmonics=0)
    stacked = jnp.asarray(np.stack(list(series.values())), dtype)
    fit = jax.jit(jax.vmap(lambda n: glm.poisson_glm(n, design.matrix, iterations=60)))(stacked)
    assert fit.mean.dtype == jnp.dtype(dtype)
    assert np.all(np.isfinite(fit.mean)) and np.all(np.isfinite(fit.coef))
    assert np.all(np.isfinite(fit.cov))
    assert np.all(fit.converged), dict(zip(series, fit.converged, strict=True))
    assert float(fit.mean[0].max()) < 1e-5
    # An interior maximum keeps the total (score equation of the intercept).
    total = np.asarray(stacked).sum(1)
    np.testing.assert_allclose(
        fit.mean.sum(1)[1:], total[1:], rtol=1e-4 if dtype == "float32" else 1e-7
    )
    sundays = np.asarray(fit.mean[3])[day % 7 == 6]
    assert sundays.max() < 1e-4
    assert float(fit.cov[3, -1, -1]) > 1.0  # an estimate at minus infinity is not called certain


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_glm_converges_whatever_the_order_of_its_sums(x64, dtype):
    """One day outweighs the others, and each case adds the days up in another order."""
    rng = np.random.default_rng(14)
    design = rates.rate_design(210, trend="linear", harmonics=0).matrix
    counts, designs = np.zeros((64, 210)), np.empty((64, *design.shape))
    for i, level in enumerate(np.logspace(3, 8, 64)):
        order = rng.permutation(210)
        counts[i, rng.integers(210)] = round(level)
        designs[i] = design[order]
    fit = jax.jit(jax.vmap(functools.partial(glm.poisson_glm, iterations=60)))(
        jnp.asarray(counts, dtype), jnp.asarray(designs, dtype)
    )
    assert np.all(fit.converged), np.flatnonzero(~np.asarray(fit.converged))
    tolerance = 1e-4 if dtype == "float32" else 1e-7
    mean, total = np.asarray(fit.mean, np.float64), counts.sum(1)
    np.testing.assert_allclose(mean.sum(1), total, rtol=tolerance)
    # A trend keeps the mean day of the admissions too.
    day = designs[:, :, 1]
    np.testing.assert_allclose(
        (mean * day).sum(1) / total, (counts * day).sum(1) / total, atol=tolerance
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_glm_unfinished_is_flagged(x64, dtype):
    counts, _ = _seasonal_counts(6, 200)
    x = rates.rate_design(200, harmonics=1).matrix
    for iterations, enough in ((1, False), (25, True)):
        run = functools.partial(glm.poisson_glm, design=x, iterations=iterations)
        assert bool(jax.jit(run)(jnp.asarray(counts * 1e3, dtype)).converged) == enough


def test_glm_penalty_meets_its_normal_equations(x64):
    counts, _ = _seasonal_counts(7, 365)
    design = rates.rate_design(365, trend="random_walk", num_knots=40, harmonics=0)
    penalty = 30.0 * design.penalty
    x = design.matrix
    fit = jax.jit(lambda n: glm.poisson_glm(n, x, penalty=penalty))(counts)
    mean, coef = np.asarray(fit.mean), np.asarray(fit.coef)
    np.testing.assert_allclose(x.T @ (counts - mean), penalty @ coef, atol=1e-8)
    information = x.T @ (mean[:, None] * x)
    np.testing.assert_allclose(fit.cov, np.linalg.inv(information + penalty), atol=1e-9)
    edf = np.trace(np.linalg.solve(information + penalty, information))
    np.testing.assert_allclose(fit.edf, edf, rtol=1e-9)
    chi2 = np.sum((counts - mean) ** 2 / mean)
    np.testing.assert_allclose(fit.dispersion, chi2 / (365 - edf), rtol=1e-9)
    diagonal = jax.jit(lambda n: glm.poisson_glm(n, x, penalty=np.diag(penalty)))(counts)
    np.testing.assert_allclose(diagonal.coef, fit.coef, atol=1e-8)  # steps: identity penalty


def test_glm_gradients(x64):
    counts, _ = _seasonal_counts(8, 60)
    x = rates.rate_design(60, trend="linear", harmonics=0).matrix
    penalty = np.diag(np.arange(x.shape[1]) * 0.3)

    def outputs(n, offset, scale):
        fit = glm.poisson_glm(n, x, offset=offset, penalty=scale * penalty)
        return fit.coef, fit.mean, fit.deviance, fit.dispersion, fit.edf, fit.cov

    # Positive counts: n ln n has a vertical tangent at 0.
    args = (jnp.asarray(counts) + 0.5, jnp.linspace(-0.1, 0.1, 60), jnp.asarray(2.0))
    _check_derivatives(outputs, args, tol=1e-6)
    zero = jnp.zeros(60)
    slope = jax.jit(jax.grad(lambda n: glm.poisson_glm(n, x, penalty=penalty).deviance))(zero)
    assert np.all(np.isfinite(slope))


def test_glm_vmap_equals_loop_without_retrace(x64):
    counts, _ = _seasonal_counts(9, 140, shape=(3,))
    x = jnp.asarray(rates.rate_design(140, harmonics=0).matrix)
    batched = jax.jit(jax.vmap(glm.poisson_glm, in_axes=(0, None)))(jnp.asarray(counts), x)
    single = jax.jit(chex.assert_max_traces(lambda n: glm.poisson_glm(n, x), 1))
    for i in range(3):
        alone = single(jnp.asarray(counts[i]))
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], batched), alone, rtol=1e-9, atol=1e-12
        )


def test_glm_takes_integer_counts():
    counts, _ = _seasonal_counts(10, 70)
    x = rates.rate_design(70, harmonics=0).matrix
    fit = jax.jit(lambda n: glm.poisson_glm(n, x))
    as_int, as_float = fit(jnp.asarray(counts, jnp.int32)), fit(jnp.asarray(counts, jnp.float32))
    assert as_int.mean.dtype == jnp.float32
    # Two programs; fields that cancel (the likelihood of small counts) differ by a few roundings.
    chex.assert_trees_all_close(as_int, as_float, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"design": np.ones((9, 1))}, "design must be"),
        ({"weight": np.ones(9)}, "weight must have the shape"),
        ({"weight": -np.ones(10)}, "must not be negative"),
        ({"counts": -np.ones(10)}, "must not be negative"),
        ({"exposure": np.zeros(10)}, "exposure must be positive"),
        ({"penalty": np.ones(3)}, "penalty must be"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_glm_errors(arguments, message):
    known = {"counts": np.ones(10), "design": np.ones((10, 1)), **arguments}
    with pytest.raises(ValueError, match=message):
        glm.poisson_glm(known.pop("counts"), known.pop("design"), **known)


# --- designs ------------------------------------------------------------------------------------


def test_design_columns():
    start = datetime.date(2016, 1, 1)
    design = rates.rate_design(
        1000, start_weekday=start.weekday(), trend="linear", harmonics=2, weekday=True
    )
    assert design.names[:6] == ("intercept", "year", "cos1", "sin1", "cos2", "sin2")
    column = dict(zip(design.names, design.matrix.T, strict=True))
    for t in (0, 59, 366, 999):
        np.testing.assert_allclose(column["sin2"][t], np.sin(4 * np.pi * t / 365.25), atol=1e-12)
        np.testing.assert_allclose(column["year"][t], (t - 499.5) / 365.25, atol=1e-12)
        name = (start + datetime.timedelta(days=t)).strftime("%a")
        row = [column[day][t] for day in rates.WEEKDAYS[:6]]
        want = [-1.0] * 6 if name == "Sun" else [1.0 * (day == name) for day in rates.WEEKDAYS[:6]]
        assert row == want
    assert [design.names[i] for i in design.weekday_columns] == list(rates.WEEKDAYS[:6])


@pytest.mark.parametrize("trend", ["piecewise", "spline", "random_walk"])
def test_design_trend_spans_the_interpolants_of_its_knots(trend):
    num_days, num_knots = 200, 6
    knots = np.round(np.linspace(0, num_days - 1, num_knots + 2))
    values = np.random.default_rng(1).normal(size=knots.size)
    day = np.arange(num_days)
    target = {
        "piecewise": lambda: np.interp(day, knots, values),
        "spline": lambda: interpolate.CubicSpline(knots, values, bc_type="natural")(day),
        "random_walk": lambda: values[np.searchsorted(knots[1:-1], day, side="right")],
    }[trend]()
    design = rates.rate_design(
        num_days, trend=trend, num_knots=num_knots, harmonics=0, weekday=False
    )
    coef, *_ = np.linalg.lstsq(design.matrix, target, rcond=None)
    np.testing.assert_allclose(design.matrix @ coef, target, atol=1e-9)
    rough = np.diff(target, n=1 if trend == "random_walk" else 2)
    np.testing.assert_allclose(coef @ design.penalty @ coef, np.sum(rough**2), rtol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trend": "cubic"}, "trend must be one of"),
        ({"num_days": 0}, "num_days"),
        ({"start_weekday": 7}, "start_weekday"),
        ({"num_days": 5}, "cannot identify"),
        ({"trend": "spline", "num_knots": 0}, "num_knots"),
        ({"num_days": 30, "trend": "random_walk", "num_knots": 40}, "num_knots"),
    ],
)
def test_design_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        rates.rate_design(**{"num_days": 100, **arguments})


def test_weekday_effect_equals_statsmodels_contrasts(x64):
    counts, _ = _seasonal_counts(11, 700)
    design = rates.rate_design(700, start_weekday=2, harmonics=1)
    fit = jax.jit(lambda n: glm.poisson_glm(n, design.matrix))(counts)
    effect = jax.jit(lambda fit: rates.weekday_effect(fit, design))(fit)
    want = sm.GLM(counts, design.matrix, family=sm.families.Poisson()).fit(tol=1e-14)
    contrast = np.zeros((7, design.matrix.shape[1]))
    contrast[:6, list(design.weekday_columns)] = np.eye(6)
    contrast[6, list(design.weekday_columns)] = -1.0
    test = want.t_test(contrast)
    np.testing.assert_allclose(effect.effect, np.exp(test.effect), rtol=1e-8)
    np.testing.assert_allclose(effect.lower, np.exp(test.conf_int()[:, 0]), rtol=1e-8)
    np.testing.assert_allclose(effect.upper, np.exp(test.conf_int()[:, 1]), rtol=1e-8)
    np.testing.assert_allclose(np.prod(effect.effect), 1.0, rtol=1e-10)
    wide = rates.weekday_effect(fit._replace(dispersion=jnp.asarray(4.0)), design, quasi=True)
    np.testing.assert_allclose(
        np.log(wide.upper / wide.lower), 2 * np.log(effect.upper / effect.lower), rtol=1e-8
    )
    with pytest.raises(ValueError, match="no weekday columns"):
        rates.weekday_effect(fit, rates.rate_design(700, weekday=False))


def test_weekday_intervals_cover():
    truth = np.array([1.3, 1.1, 1.0, 1.0, 0.95, 0.8, 0.8])
    truth = truth / np.exp(np.mean(np.log(truth)))
    counts = np.random.default_rng(12).poisson(2.0 * truth[np.arange(728) % 7], (300, 728))
    design = rates.rate_design(728, harmonics=0)

    def interval(n):
        return rates.weekday_effect(glm.poisson_glm(n, design.matrix), design)

    effect = jax.jit(jax.vmap(interval))(jnp.asarray(counts, jnp.float32))
    lower, upper = np.asarray(effect.lower), np.asarray(effect.upper)
    covered = np.mean((lower < truth) & (truth < upper))
    # 2100 intervals in correlated groups of seven: SE below 0.95 * 0.05 / sqrt(300) = 1.3 %.
    assert 0.92 < covered < 0.98


# --- dispersion ---------------------------------------------------------------------------------


def test_dispersion_and_negative_binomial_moments(x64):
    rng = np.random.default_rng(13)
    num_days, alpha = 100_000, 0.4
    rate = 3.0 * np.exp(0.3 * np.sin(np.arange(num_days) / 58.0))
    mixed = rng.poisson(rate * rng.gamma(1 / alpha, alpha, num_days))
    plain = rng.poisson(rate)
    for counts, want in ((mixed, alpha), (plain, 0.0)):
        fit = jax.jit(glm.negative_binomial_variance)(jnp.asarray(counts), jnp.asarray(rate))
        # SE of the moment estimator at these numbers is about 0.005.
        assert abs(float(fit.alpha) - want) < 0.02
        np.testing.assert_allclose(fit.variance, rate + float(fit.alpha) * rate**2)
    np.testing.assert_allclose(
        glm.dispersion(jnp.asarray(mixed), jnp.asarray(rate), 5),
        np.sum((mixed - rate) ** 2 / rate) / (num_days - 5),
    )
    linear = glm.negative_binomial_variance(jnp.asarray(mixed), jnp.asarray(rate), form="nb1")
    np.testing.assert_allclose(
        linear.variance, np.sum((mixed - rate) ** 2 / rate) / num_days * rate
    )
    with pytest.raises(ValueError, match="form must be"):
        glm.negative_binomial_variance(jnp.ones(3), jnp.ones(3), form="nb3")


def test_regression_does_not_count_the_noise_twice():
    """Variance of the fitted rate over the days, as a share of the Poisson variance."""
    num_days, level = 2922, 2.65
    counts = np.random.default_rng(27).poisson(level, (16, num_days))
    n = jnp.asarray(counts, jnp.float32)
    design = rates.rate_design(num_days, trend="linear", harmonics=1)

    def shares(n):
        fast = jax.vmap(lambda row: decomposition.stl(row, seasonal=7, trend=15).trend)(n)
        slow = jax.vmap(lambda row: decomposition.stl(row, seasonal=31, trend=61).trend)(n)
        regression = jax.vmap(lambda row: glm.poisson_glm(row, design.matrix).mean)(n)
        return [jnp.mean(jnp.var(rate, axis=1)) / level for rate in (fast, slow, regression)]

    fast, slow, regression = (float(s) for s in jax.jit(shares)(n))
    # A local line on equally spaced days keeps sum w^2 / (sum w)^2, w the tricube weights.
    for share, span in ((fast, 15), (slow, 61)):
        distance = np.arange(-(span // 2), span // 2 + 1)
        w = (1 - np.abs(distance / (span // 2)) ** 3) ** 3
        np.testing.assert_allclose(share, np.sum(w**2) / np.sum(w) ** 2, rtol=0.08)
    assert 0.095 < fast < 0.107 and 0.021 < slow < 0.026
    # P - 1 parameters beside the level, one variance / T each; 16 x 9 squared normals: SE 12 %.
    num_free = design.matrix.shape[1] - 1
    assert 0.6 < regression / (num_free / num_days) < 1.5
