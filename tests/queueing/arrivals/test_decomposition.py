"""Decomposition against statsmodels, pandas and loops of least squares; transforms and errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from statsmodels.tsa.seasonal import MSTL, STL

from jaxlab.queueing.arrivals import decomposition, loess, rolling

ATOL = 1e-8  # agreement promised in float64; about 1e-12 is measured
RTOL32 = 2e-3  # float32, share of the SD of the data; about 1e-5 is measured

SPANS = ((7, 15, 31), (15, 31, 61))
SMALL_GRID = (
    decomposition.STLConfig(7, 15, 1, 1, False),
    decomposition.STLConfig(7, 15, 2, 1, False),
    decomposition.STLConfig(15, 31, 1, 1, True),
    decomposition.STLConfig(7, 31, 1, 1, True),
)


def _series(num_steps, period=7, seed=0, num_series=2):
    """Heavy-tailed noise on a trend and a season, with some gross outliers."""
    rng = np.random.default_rng(seed)
    t = np.arange(num_steps)
    season = 2 * rng.normal(size=(num_series, period))[:, t % period]
    noise = rng.standard_t(2, size=(num_series, num_steps))
    return 10 + 3 * np.sin(t / 40) + season + noise


def _statsmodels(y, *, inner=None, outer=None, degrees=(1, 1, 1), **options):
    names = ("seasonal_deg", "trend_deg", "low_pass_deg")
    options = {"period": 7, "seasonal": 7, "trend": 15} | options
    fits = [
        STL(row, **options, **dict(zip(names, degrees, strict=True))).fit(inner, outer) for row in y
    ]
    return decomposition.STLResult(
        *(np.stack([getattr(f, name) for f in fits]) for name in ("trend", "seasonal", "resid")),
        np.stack([f.weights for f in fits]),
    )


def _jitted(**options):
    return jax.jit(lambda y: decomposition.stl(y, **options))


def _assert_results(got, want, atol):
    for name, a, b in zip(decomposition.STLResult._fields, got, want, strict=False):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


def _local_polynomial(y, weights, xs, span, degree):
    """LOESS at one position by weighted least squares; None where there is no weight."""
    n = len(y)
    left = min(max(xs - span // 2, 1), max(n - span + 1, 1))
    right = min(left + span - 1, n)
    h = max(xs - left, right - xs) + (max(span - n, 0) // 2)
    j = np.arange(left, right + 1)
    u = np.abs(j - xs) / h
    w = np.where(u > 0.999, 0, np.clip(1 - u**3, 0, 1) ** 3) * weights[left - 1 : right]
    if w.sum() <= 0:
        return None
    degree = min(degree, np.count_nonzero(w) - 1)
    design = np.sqrt(w)[:, None] * ((j - xs)[:, None] / h) ** np.arange(degree + 1)
    return np.linalg.lstsq(design, np.sqrt(w) * y[left - 1 : right], rcond=None)[0][0]


def _loop_loess(y, weights, span, degree, extend=0):
    n = len(y)
    fits = [
        _local_polynomial(y, weights, x, span, degree) for x in range(1 - extend, n + 1 + extend)
    ]
    for i in range(n):
        fits[i + extend] = y[i] if fits[i + extend] is None else fits[i + extend]
    if extend:
        fits[0] = fits[1] if fits[0] is None else fits[0]
        fits[-1] = fits[-2] if fits[-1] is None else fits[-1]
    return np.array(fits)


def _loop_stl(y, *, period, seasonal, trend, degrees, inner, outer):
    """STL in plain loops over least-squares fits."""
    n = len(y)
    weights, t = np.ones(n), np.zeros(n)
    for k in range(outer + 1):
        for _ in range(inner):
            cycles = np.zeros(n + 2 * period)
            for phase in range(period):
                part = slice(phase, None, period)
                cycles[part] = _loop_loess((y - t)[part], weights[part], seasonal, degrees[0], 1)
            low = cycles
            for length in (period, period, 3):
                low = np.convolve(low, np.full(length, 1 / length), "valid")
            low_pass = period + 1 + period % 2
            s = cycles[period:-period] - _loop_loess(low, np.ones(n), low_pass, degrees[2])
            t = _loop_loess(y - s, weights, trend, degrees[1])
        used = weights
        if k < outer:
            r = np.abs(y - t - s)
            u = r / (6 * np.median(r))
            weights = np.where(u <= 0.001, 1, np.where(u <= 0.999, (1 - u**2) ** 2, 0))
    return t, s, y - t - s, used


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(robust=True),
        dict(seasonal=31, trend=61),
        dict(seasonal=15, trend=31, robust=True),
        dict(degrees=(0, 1, 0), robust=True),
        dict(degrees=(1, 0, 1)),
        dict(degrees=(0, 0, 0), robust=True),
        dict(degrees=(2, 2, 2)),
        dict(period=12, trend=None, low_pass=None, robust=True),
        dict(period=5, low_pass=17, trend=7, inner=3, outer=1),
        dict(seasonal=3, robust=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_steps", [301, 61, 40], ids=lambda n: f"T{n}")
def test_stl_equals_statsmodels(x64, options, num_steps):
    # 301 uses banded filters; 61 and 40 have subseries (and trends) shorter than the span.
    y = _series(num_steps, options.get("period", 7), seed=num_steps)
    got = _jitted(**options)(jnp.asarray(y))
    _assert_results(got, _statsmodels(y, **options), ATOL)


@pytest.mark.parametrize("num_steps", [14, 15, 20, 21])
def test_stl_equals_statsmodels_at_least_length(x64, num_steps):
    # Robust fits of two cycles are exact: their weights are rounding noise in any implementation.
    y = _series(num_steps)
    options = dict(seasonal=7, trend=15, low_pass=25)
    _assert_results(_jitted(**options)(jnp.asarray(y)), _statsmodels(y, **options), ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("spans", list(itertools.product(*SPANS)), ids=str)
def test_stl_equals_statsmodels_on_eight_years(spans, robust):
    options = dict(seasonal=spans[0], trend=spans[1], robust=robust)
    y = _series(2922)
    want = _statsmodels(y, **options)
    with jax.enable_x64(True):
        _assert_results(_jitted(**options)(jnp.asarray(y)), want, ATOL)
    _assert_results(_jitted(**options)(jnp.asarray(y, jnp.float32)), want, RTOL32 * y.std())


@pytest.mark.parametrize("robust", [False, True])
def test_stl_float32(robust):
    y = _series(730)
    got = _jitted(robust=robust)(jnp.asarray(y, jnp.float32))
    assert all(leaf.dtype == jnp.float32 for leaf in got)
    _assert_results(got, _statsmodels(y, robust=robust), RTOL32 * y.std())


def test_stl_where_fits_are_undefined(x64):
    # Alternating outliers: on one weekday for nine weeks at each end, and on 31 days in a row.
    t = np.arange(300)
    rng = np.random.default_rng(3)
    y = np.stack([rng.normal(size=300), rng.poisson(0.3, size=300).astype(float)])
    sign = np.where(t // 7 % 2, 1e3, -1e3)
    y += sign * (((t % 7 == 2) & (t < 63)) | ((t % 7 == 4) & (t >= 237)))
    y += np.where(t % 2, 1e3, -1e3) * ((t > 130) & (t < 162))
    # Later passes amplify rounding on such data, in statsmodels more than here.
    options = dict(robust=True, inner=2, outer=2)
    got = _jitted(**options)(jnp.asarray(y))
    _assert_results(got, _statsmodels(y, **options), ATOL)
    weekly = loess.smoother(300, span=7, degree=1, period=7, extend=1)
    defined = np.asarray(loess.gains(weekly, got.weights[0], 7).defined)
    assert not defined[2] and not defined[311] and defined[0]  # both extrapolations
    daily = loess.smoother(300, span=15, degree=1)
    assert not np.all(loess.gains(daily, got.weights[0]).defined)


def test_stl_with_median_residual_zero(x64):
    y = np.where(np.arange(600) == 550, 5.0, 0.0)[None]  # the fit is exact far from the spike
    options = dict(robust=True, outer=1)
    got = _jitted(**options)(jnp.asarray(y))
    assert np.abs(got.resid).max() > 0.1
    np.testing.assert_array_equal(got.weights, 1.0)
    _assert_results(got, _statsmodels(y, inner=2, outer=1, robust=True), ATOL)


@pytest.mark.parametrize("num_points", [1, 2, 9, 10])
def test_bisquare_equals_its_definition(num_points):
    rng = np.random.default_rng(num_points)
    resid = np.round(rng.standard_cauchy(size=(50, num_points)), 1)  # ties and zeros included
    resid[0] = 0.0
    h = 6 * np.median(np.abs(resid), axis=-1, keepdims=True)
    u = np.abs(resid) / np.where(h > 0, h, 1)
    want = np.where(u <= 0.001, 1, np.where(u <= 0.999, (1 - u**2) ** 2, 0))
    want = np.where(h > 0, want, 1)
    got = jax.jit(jax.vmap(loess.bisquare))(jnp.asarray(resid, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_stl_of_exact_fit(x64):
    # The weights are rounding noise here (statsmodels leaves residuals of 0.2 on the last series).
    t = np.arange(119)
    week = np.where(t % 7 < 5, 1.0, -2.5)
    trend = np.stack([np.full(119, 3.7), np.zeros(119), 2.0 + 0.03 * t])
    season = np.stack([np.zeros(119), week, np.zeros(119)])
    got = _jitted(robust=True)(jnp.asarray(trend + season))
    _assert_results(got[:3], (trend, season, np.zeros((3, 119))), ATOL)
    assert np.all((np.asarray(got.weights) >= 0) & (np.asarray(got.weights) <= 1))


@pytest.mark.parametrize("num_steps", [75, 30], ids=["banded", "dense"])
@pytest.mark.parametrize("degrees", [(2, 2, 2), (2, 1, 1), (1, 2, 0)], ids=str)
def test_quadratic_stl_equals_least_squares_loop(x64, num_steps, degrees):
    rng = np.random.default_rng(7)
    y = 5 + np.sin(np.arange(num_steps) / 9) + rng.normal(size=num_steps)
    options = dict(period=5, seasonal=7, trend=15, degrees=degrees, inner=2, outer=2)
    got = _jitted(degree2="quadratic", **options)(jnp.asarray(y))
    _assert_results(got, _loop_stl(y, **options), ATOL)


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize(
    ("num_points", "span", "period", "extend"),
    [(40, 9, 1, 0), (40, 41, 1, 2), (41, 5, 3, 1), (41, 15, 3, 1), (7, 15, 1, 0)],
    ids=str,
)
def test_loess_equals_least_squares_loop(x64, num_points, span, period, extend, degree):
    rng = np.random.default_rng(span)
    y = rng.normal(size=num_points)
    weights = rng.uniform(0.2, 1, size=num_points)

    @jax.jit
    def run(y, weights):
        parts = loess.smoother(num_points, span=span, degree=degree, period=period, extend=extend)
        solved = loess.gains(parts, weights, period)
        otherwise = jnp.zeros_like(solved.gain[0])
        return loess.smooth(parts, solved, weights * y, otherwise, period)

    want = np.zeros(num_points + 2 * extend * period)
    for phase in range(period):
        part = slice(phase, None, period)
        fits = [
            _local_polynomial(y[part], weights[part], x, span, degree)
            for x in range(1 - extend, len(y[part]) + extend + 1)
        ]
        want[part] = fits
    np.testing.assert_allclose(run(jnp.asarray(y), jnp.asarray(weights)), want, atol=1e-9)


@pytest.mark.parametrize("degree", [1, 2])
def test_loess_reproduces_polynomials_of_its_degree(x64, degree):
    t = np.arange(90) / 10
    y = np.stack([t**c for c in range(degree + 1)])
    weights = np.random.default_rng(1).uniform(0.1, 1, size=y.shape)

    @jax.jit
    def run(y, weights):
        parts = loess.smoother(90, span=15, degree=degree)
        solved = loess.gains(parts, weights)
        return loess.smooth(parts, solved, weights * y, jnp.zeros_like(y))

    got = jax.vmap(run)(jnp.asarray(y), jnp.asarray(weights))
    np.testing.assert_allclose(got, y, atol=1e-9)


@pytest.mark.parametrize("num_points", [60, 9], ids=["banded", "dense"])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_linear_filter_is_loess_of_the_average(x64, num_points, degree):
    y = np.random.default_rng(2).normal(size=num_points + 3)
    before = np.array([0.1, 0.2, 0.3, 0.4])
    kernel = loess.linear_filter(num_points, span=11, degree=degree, before=before)
    averaged = np.convolve(y, before[::-1], "valid")
    want = _loop_loess(averaged, np.ones(num_points), 11, degree)
    got = jax.jit(lambda y: loess.correlate(kernel, y)[0])(jnp.asarray(y))
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_vmap_and_batch_equal_loop(x64):
    y = jnp.asarray(_series(120, num_series=6).reshape(2, 3, 120))
    run = _jitted(robust=True)
    batched = run(y)
    mapped = jax.jit(jax.vmap(jax.vmap(lambda row: decomposition.stl(row, robust=True))))(y)
    one = run(y[1, 2])
    for a, b, c in zip(batched, mapped, one, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
        np.testing.assert_allclose(a[1, 2], c, atol=1e-12)


@pytest.mark.parametrize(
    ("degree2", "num_steps"), [("linear", 70), ("quadratic", 40)], ids=["banded", "dense"]
)
def test_gradient_equals_finite_difference(x64, degree2, num_steps):
    rng = np.random.default_rng(5)
    y, direction, probe, probe_weights = jnp.asarray(rng.normal(size=(4, num_steps)))

    def loss(y):
        result = decomposition.stl(y, degrees=(2, 2, 1), degree2=degree2, inner=1, outer=1)
        return jnp.sum(probe * result.trend**2) + jnp.sum(probe_weights * result.weights)

    step = 1e-5
    gradient = jax.jit(jax.grad(loss))(y)
    above, below = jax.jit(jax.vmap(loss))(jnp.stack([y + step * direction, y - step * direction]))
    np.testing.assert_allclose(gradient @ direction, (above - below) / (2 * step), rtol=1e-6)


def test_gradients_are_finite_on_degenerate_series(x64):
    t = np.arange(140)
    y = np.stack([0.0 * t, 0.0 * t + 2.0, 1e4 * ((t > 40) & (t < 90)) + np.sin(9.0 * t)])

    def loss(y):
        return jnp.sum(decomposition.stl(y, robust=True).trend), jnp.sum(
            rolling.rolling_variance_select(y)[0]
        )

    trend, variance = jax.jit(jax.vmap(jax.jacrev(loss)))(jnp.asarray(y))
    assert np.all(np.isfinite(trend)) and np.all(np.isfinite(variance))
    # With unit weights a shift of the level is a shift of the trend.
    np.testing.assert_allclose(jnp.sum(trend[0]), 140, rtol=1e-9)


def test_default_grid_has_the_order_of_the_paper():
    assert len(decomposition.GRID) == len(set(decomposition.GRID)) == 72
    assert decomposition.GRID[0] == decomposition.STLConfig(7, 15, 1, 1, False)
    assert decomposition.GRID[1] == decomposition.STLConfig(7, 15, 1, 1, True)
    assert decomposition.GRID[2] == decomposition.STLConfig(7, 15, 1, 2, False)
    assert decomposition.GRID[4] == decomposition.STLConfig(7, 15, 2, 1, False)
    assert decomposition.GRID[8] == decomposition.STLConfig(7, 31, 1, 1, False)
    assert decomposition.GRID[71] == decomposition.STLConfig(31, 61, 2, 2, True)


@pytest.mark.parametrize("num_steps", [250, 60], ids=["banded", "dense"])
def test_grid_equals_statsmodels(x64, num_steps):
    y = _series(num_steps, num_series=3, seed=11)
    got = jax.jit(decomposition.stl_grid_select)(jnp.asarray(y))
    want = np.empty((3, 72))
    cache = {}
    for g, c in enumerate(decomposition.GRID):
        spans = (c.seasonal, c.trend, c.robust)
        if spans not in cache:
            fit = _statsmodels(y, seasonal=c.seasonal, trend=c.trend, robust=c.robust)
            cache[spans] = fit.resid.std(-1, ddof=1)
        want[:, g] = cache[spans]
    np.testing.assert_allclose(got.resid_sd, want, rtol=1e-9)
    np.testing.assert_array_equal(got.best, want.argmin(-1))
    assert got.best.dtype == jnp.int32
    for k in range(3):
        c = decomposition.GRID[int(got.best[k])]
        fit = _statsmodels(y[k : k + 1], seasonal=c.seasonal, trend=c.trend, robust=c.robust)
        _assert_results([leaf[k] for leaf in got.result], [leaf[0] for leaf in fit], ATOL)


def test_grid_ties_go_to_the_first(key):
    y = jnp.asarray(_series(100), jnp.float32)
    config = decomposition.STLConfig(15, 31, 1, 1, False)
    twins = [config._replace(seasonal_degree=a, trend_degree=b) for a in (2, 1) for b in (2, 1)]
    grid = (decomposition.STLConfig(31, 61, 1, 1, False), *twins)
    got = jax.jit(lambda y: decomposition.stl_grid_select(y, grid))(y)
    np.testing.assert_array_equal(got.best, 1)
    assert np.all(np.asarray(got.resid_sd[:, 1:]) == np.asarray(got.resid_sd[:, 1:2]))


def test_quadratic_grid_equals_single_fits(x64):
    # Stacked smoothers of several spans and degrees against one smoother each.
    y = jnp.asarray(_series(130))
    grid = (
        decomposition.STLConfig(7, 15, 2, 1, False),
        decomposition.STLConfig(7, 31, 1, 2, False),
        decomposition.STLConfig(15, 15, 2, 2, False),
    )
    got = jax.jit(lambda y: decomposition.stl_grid_select(y, grid, degree2="quadratic"))(y)

    @jax.jit
    def single(y):
        fits = [
            decomposition.stl(
                y,
                seasonal=c.seasonal,
                trend=c.trend,
                degrees=(c.seasonal_degree, c.trend_degree, 1),
                robust=c.robust,
                degree2="quadratic",
            )
            for c in grid
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits)

    want = single(y)
    sd = np.std(np.asarray(want.resid), -1, ddof=1).T
    np.testing.assert_allclose(got.resid_sd, sd, rtol=1e-10)
    for k in range(2):
        np.testing.assert_allclose(got.result.trend[k], want.trend[sd[k].argmin(), k], atol=1e-10)
    assert len(np.unique(sd[0])) == 3


def test_grid_compiles_once(key):
    traces = []

    @jax.jit
    def run(y):
        traces.append(1)
        return decomposition.stl_grid_select(y, SMALL_GRID).best

    for seed in range(2):
        run(jnp.asarray(_series(100, seed=seed), jnp.float32))
    assert len(traces) == 1


@pytest.mark.parametrize("window", [3, 7, 31, 101])
def test_rolling_sd_equals_pandas(x64, window):
    resid = _series(60, seed=window)
    want = pd.DataFrame(resid.T).rolling(window, center=True, min_periods=1).std().to_numpy().T
    got = jax.jit(lambda r: rolling.rolling_sd(r, window))(jnp.asarray(resid))
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_rolling_variance_takes_the_most_stable_window(x64):
    rng = np.random.default_rng(4)
    t = np.arange(400)
    resid = np.stack([rng.normal(size=400), rng.normal(size=400) * (1 + 9 * (t % 20 < 3))])
    got, window = jax.jit(rolling.rolling_variance_select)(jnp.asarray(resid))
    sds = {
        w: pd.DataFrame(resid.T).rolling(w, center=True, min_periods=1).std().to_numpy().T
        for w in (7, 15, 31)
    }
    score = {w: sd.std(-1) / sd.mean(-1) for w, sd in sds.items()}
    for k in range(2):
        best = min((31, 15, 7), key=lambda w, k=k: score[w][k])
        assert int(window[k]) == best
        np.testing.assert_allclose(got[k], np.maximum(sds[best][k] ** 2, 1e-6), rtol=1e-10)
    assert window.dtype == jnp.int32


def test_rolling_variance_ties_and_floor(x64):
    # A constant residual: all scores are zero, the longest window wins wherever it stands.
    sig2, window = jax.jit(lambda r: rolling.rolling_variance_select(r, windows=(15, 31, 7)))(
        jnp.ones(50)
    )
    assert int(window) == 31
    np.testing.assert_array_equal(sig2, 1e-6)
    # A period-2 residual has windows of the same composition but for their length.
    short = jnp.asarray([1.0, -1.0, 1.0])
    sig2, window = jax.jit(lambda r: rolling.rolling_variance_select(r, windows=(7, 15)))(short)
    assert int(window) == 15
    np.testing.assert_allclose(sig2, 4 / 3)


@pytest.mark.parametrize("robust", [False, True])
def test_mstl_equals_statsmodels(x64, robust):
    t = np.arange(300)
    y = _series(300) + 4 * np.cos(2 * np.pi * t / 31)
    got = jax.jit(lambda y: decomposition.mstl(y, periods=(7, 31), robust=robust))(jnp.asarray(y))
    for k in range(2):
        fit = MSTL(y[k], periods=(7, 31), stl_kwargs={"robust": robust}).fit()
        np.testing.assert_allclose(got.trend[k], fit.trend, atol=ATOL)
        np.testing.assert_allclose(got.seasonal[k], fit.seasonal.T, atol=ATOL)
        np.testing.assert_allclose(got.resid[k], fit.resid, atol=ATOL)
        np.testing.assert_allclose(got.weights[k], fit.weights, atol=ATOL)


def test_mstl_with_one_period_is_stl(x64):
    y = _series(100)
    got = jax.jit(lambda y: decomposition.mstl(y, periods=(7,)))(jnp.asarray(y))
    want = _statsmodels(y, seasonal=11, trend=None)
    np.testing.assert_allclose(got.trend, want.trend, atol=ATOL)
    np.testing.assert_allclose(got.seasonal[:, 0], want.seasonal, atol=ATOL)


@pytest.mark.slow
def test_mstl_with_a_year_equals_statsmodels(x64):
    y = _series(2922)[:1]
    got = jax.jit(decomposition.mstl)(jnp.asarray(y))
    fit = MSTL(y[0], periods=(7, 365)).fit()
    np.testing.assert_allclose(got.trend[0], fit.trend, atol=ATOL)
    np.testing.assert_allclose(got.seasonal[0], fit.seasonal.T, atol=ATOL)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(seasonal=8), "seasonal"),
        (dict(seasonal=1), "seasonal"),
        (dict(seasonal=7.0), "seasonal"),
        (dict(trend=7), "trend"),
        (dict(trend=16), "trend"),
        (dict(low_pass=7), "low_pass"),
        (dict(low_pass=10), "low_pass"),
        (dict(period=1), "period"),
    ],
    ids=str,
)
def test_stl_refuses_what_statsmodels_refuses(options, match):
    y = _series(60)[0]
    with pytest.raises(ValueError, match=match):
        STL(y, **({"period": 7, "trend": 15} | options))
    with pytest.raises(ValueError, match=match):
        decomposition.stl(jnp.asarray(y, jnp.float32), **options)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda y: decomposition.stl(y[:13]), "T >= 2"),
        (lambda y: decomposition.stl(y.astype(jnp.int32)), "floating"),
        (lambda y: decomposition.stl(y, degrees=(1, 3, 1)), "degrees"),
        (lambda y: decomposition.stl(y, degrees=(1, 1)), "degrees"),
        (lambda y: decomposition.stl(y, degree2="cubic"), "degree2"),
        (lambda y: decomposition.stl(y, inner=0), "inner"),
        (lambda y: decomposition.stl(y, outer=-1), "outer"),
        (lambda y: decomposition.stl_grid_select(y), r"\[K, T\]"),
        (lambda y: decomposition.stl_grid_select(y[None], ()), "grid"),
        (
            lambda y: decomposition.stl_grid_select(y[None], (decomposition.STLConfig(trend=5),)),
            "trend",
        ),
        (lambda y: decomposition.mstl(y, periods=(31, 7)), "periods"),
        (lambda y: decomposition.mstl(y, periods=(7, 30)), "T > 2"),
        (lambda y: decomposition.mstl(y, periods=(7, 12), iterate=0), "iterate"),
        (lambda y: rolling.rolling_sd(y, 4), "window"),
        (lambda y: rolling.rolling_sd(y[:1], 3), "T >= 2"),
        (lambda y: rolling.rolling_variance_select(y, windows=()), "windows"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call(jnp.asarray(_series(60)[0], jnp.float32))


def test_a_padded_series_is_decomposed_as_it_is_alone():
    """Sizes on both sides of the least that the banded filters take, 7 * 7 and 15 * 7 steps."""
    grid = (decomposition.STLConfig(7, 15), decomposition.STLConfig(15, 31, robust=True))
    sizes = np.array([112, 105, 104, 49, 48, 20])
    y = _series(112, num_series=sizes.size)
    with jax.enable_x64(True):
        padded = y.copy()
        padded[np.arange(112)[None] >= sizes[:, None]] = np.nan  # nothing beyond is looked at
        chosen = jax.jit(lambda y, n: decomposition.stl_grid_select(y, grid, size=n))
        found = chosen(jnp.asarray(padded), jnp.asarray(sizes))
        sig2, window = rolling.rolling_variance_select(found.result.resid, size=sizes)
    for k, size in enumerate(sizes):
        fits = [STL(y[k, :size], 7, c.seasonal, c.trend, robust=c.robust).fit() for c in grid]
        sds = [np.std(fit.resid, ddof=1) for fit in fits]
        np.testing.assert_allclose(found.resid_sd[k], sds, atol=ATOL)
        best = fits[int(found.best[k])]
        assert int(found.best[k]) == int(np.argmin(sds))
        for name in ("trend", "seasonal", "resid"):
            np.testing.assert_allclose(
                getattr(found.result, name)[k, :size], getattr(best, name), atol=ATOL
            )
        assert not np.asarray(found.result.trend)[k, size:].any()
        spans = (31, 15, 7)
        rolled = [pd.Series(best.resid).rolling(n, center=True, min_periods=2).std() for n in spans]
        scores = [x.std(ddof=0) / x.mean() for x in rolled]
        assert int(window[k]) == spans[int(np.argmin(scores))]
        wanted = np.maximum(rolled[int(np.argmin(scores))] ** 2, 1e-6)
        np.testing.assert_allclose(sig2[k, :size], wanted, atol=1e-6)
    with pytest.raises(ValueError, match="size must be in 14..112 steps, got 13..13"):
        decomposition.stl_grid_select(jnp.asarray(y[:1]), grid, size=np.array([13]))
