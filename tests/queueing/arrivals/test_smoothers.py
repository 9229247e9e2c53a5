"""Penalized smoothers and their choice by held-out days, against dense numpy and statsmodels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from statsmodels.tsa.seasonal import STL

from jaxlab.queueing.arrivals import decomposition, glm, rates, smoothers


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


# --- Whittaker ----------------------------------------------------------------------------------


def _dense_whittaker(counts, order, penalty, weight):
    """Full Newton by least squares on stacked square roots, which stays accurate."""
    diff = np.diff(np.eye(len(counts)), n=order, axis=0)
    eta = np.full(len(counts), np.log(counts[weight > 0].mean()))
    for _ in range(25):
        mean = np.exp(eta)
        root = np.sqrt(weight * mean)
        rows = np.concatenate([np.diag(root), np.sqrt(penalty) * diff])
        target = np.concatenate([root * (eta + (counts - mean) / mean), np.zeros(len(diff))])
        eta = np.linalg.lstsq(rows, target, rcond=None)[0]
    root = np.sqrt(weight * np.exp(eta))
    factor = np.linalg.inv(
        np.linalg.qr(np.concatenate([np.diag(root), np.sqrt(penalty) * diff]))[1]
    )
    variance = np.sum(factor**2, axis=1)
    return np.exp(eta), np.sqrt(variance), np.sum(root**2 * variance)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whittaker_equals_dense_solution(x64, order, dtype):
    counts = np.random.default_rng(20).poisson(2.6 * np.exp(0.4 * np.sin(np.arange(90) / 15)))
    gaps = np.ones(90)
    gaps[:4] = gaps[40:60] = gaps[85:] = 0.0
    penalties, weights = [1.0, 1e3, 1e7, 1e11], [np.ones(90), gaps]
    cases = [(p, w) for p in penalties for w in weights]
    fit = jax.jit(
        jax.vmap(
            lambda p, w: smoothers.whittaker_poisson(
                jnp.asarray(counts, dtype), penalty=p, order=order, weight=w
            )
        )
    )(
        jnp.asarray([p for p, _ in cases], dtype),
        jnp.asarray(np.stack([w for _, w in cases]), dtype),
    )
    assert fit.rate.dtype == jnp.dtype(dtype) and np.all(fit.converged)
    for i, (penalty, weight) in enumerate(cases):
        rate, se, edf = _dense_whittaker(counts, order, penalty, weight)
        # float32 stays good even where the penalty exceeds its 2^24 integers by far; the longest
        # extrapolations of a cubic gap are the worst.
        tol = 2e-3 if dtype == "float32" else 1e-6
        np.testing.assert_allclose(fit.rate[i], rate, rtol=tol)
        np.testing.assert_allclose(fit.log_se[i], se, rtol=tol)
        np.testing.assert_allclose(fit.edf[i], edf, rtol=tol)
        np.testing.assert_allclose(
            fit.deviance[i], glm.poisson_deviance(counts, rate, weight=weight), rtol=tol
        )


def test_whittaker_limits(x64):
    counts, _ = _seasonal_counts(21, 400)
    n = jnp.asarray(counts)
    offset = jnp.asarray(0.2 * (np.arange(400) % 7 == 0))
    x = rates.rate_design(400, trend="linear", harmonics=0, weekday=False).matrix
    line = jax.jit(lambda n: glm.poisson_glm(n, x, offset=offset))(n)
    smooth = jax.jit(
        lambda n, p, order: smoothers.whittaker_poisson(n, penalty=p, order=order, offset=offset),
        static_argnums=2,
    )
    stiff = smooth(n, 1e14, 2)
    np.testing.assert_allclose(stiff.rate, line.mean, rtol=1e-6)
    np.testing.assert_allclose(stiff.edf, 2.0, atol=1e-4)
    # Without a penalty to speak of, the observed counts themselves.
    np.testing.assert_allclose(smooth(n + 1.0, 1e-9, 2).rate, counts + 1.0, rtol=1e-6)
    zero = smooth(jnp.zeros(400), 1e4, 2)
    assert float(zero.rate.max()) < 1e-5 and bool(zero.converged)
    huge = smooth(n * 1e9, 1e4, 2)
    assert bool(huge.converged)
    # The penalty ignores the level, so the total is kept.
    np.testing.assert_allclose(huge.rate.sum(), counts.sum() * 1e9, rtol=1e-9)


def test_whittaker_gradients(x64):
    counts = np.random.default_rng(22).poisson(3.0, 25).astype(float)

    def outputs(n, penalty, offset):
        fit = smoothers.whittaker_poisson(n, penalty=penalty, offset=offset)
        return fit.rate, fit.log_se, fit.edf, fit.deviance

    args = (jnp.asarray(counts) + 0.5, jnp.asarray(7.0), jnp.linspace(0.0, 0.2, 25))
    _check_derivatives(outputs, args, tol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 4}, "order must be"),
        ({"penalty": 0.0}, "penalty must be positive"),
        ({"counts": np.ones(2)}, "T > 2"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_whittaker_errors(arguments, message):
    known = {"counts": np.ones(20), "penalty": 1.0, **arguments}
    with pytest.raises(ValueError, match=message):
        smoothers.whittaker_poisson(known.pop("counts"), **known)


# --- choice by held-out days --------------------------------------------------------------------


def test_penalty_path_equals_brute_force(x64):
    counts = np.random.default_rng(23).poisson(2.0 * np.exp(0.5 * np.sin(np.arange(70) / 11)))
    counts = counts.astype(float)
    folds = smoothers.blocked_folds(70, block=7, num_folds=3)
    grid = [1.0, 1e2, 1e4]
    chosen, path = jax.jit(
        lambda n: smoothers.whittaker_select(n, penalties=grid, folds=folds, criterion="gcv")
    )(counts)
    best = grid[int(np.argmin(path.gcv))]
    np.testing.assert_allclose(
        chosen.rate, _dense_whittaker(counts, 2, best, np.ones(70))[0], rtol=1e-6
    )
    with pytest.raises(ValueError, match="criterion must be"):
        smoothers.whittaker_select(counts, criterion="aic")
    for i, penalty in enumerate(grid):
        total = 0.0
        for fold in folds:
            rate, _, _ = _dense_whittaker(counts, 2, penalty, 1.0 - fold)
            n, r = counts[fold], rate[fold]
            total += 2 * np.sum(
                n * np.log(np.where(n > 0, n, 1) / r * (n > 0) + (n == 0)) - (n - r)
            )
        np.testing.assert_allclose(path.cv[i], total / 70, rtol=1e-7)
        rate, _, edf = _dense_whittaker(counts, 2, penalty, np.ones(70))
        gcv = (
            70
            * float(glm.poisson_deviance(jnp.asarray(counts), jnp.asarray(rate)))
            / (70 - edf) ** 2
        )
        np.testing.assert_allclose(path.gcv[i], gcv, rtol=1e-7)
        np.testing.assert_allclose(path.edf[i], edf, rtol=1e-7)


def test_blocked_folds_partition_the_days():
    folds = smoothers.blocked_folds(100, block=14, num_folds=3)
    np.testing.assert_array_equal(folds.sum(0), 1)
    assert all(folds[(t // 14) % 3, t] for t in range(100))
    with pytest.raises(ValueError, match="do not make"):
        smoothers.blocked_folds(50, block=28, num_folds=3)


def test_both_criteria_are_nearly_the_best_of_the_grid():
    counts, truth = _seasonal_counts(24, 1461, level=4.0)
    weekday = 0.1 * (np.arange(1461) % 7 < 5)
    grid = tuple(10.0**k for k in range(11))
    n, offset = jnp.asarray(counts, jnp.float32), jnp.asarray(weekday, jnp.float32)

    @jax.jit
    def run(n):
        fit, path = smoothers.whittaker_select(n, penalties=grid, offset=offset)
        each = jax.vmap(lambda p: smoothers.whittaker_poisson(n, penalty=p, offset=offset).rate)
        return fit.rate, path, each(path.penalties)

    rate, path, every = run(n)
    loss = np.mean((np.asarray(every) - truth) ** 2, axis=1)
    # Alone and in a batch the same sums may be vectorised otherwise.
    np.testing.assert_allclose(rate, every[int(np.argmin(path.cv))], rtol=1e-5)
    for score in (path.cv, path.gcv):
        # Steps of a factor 10 and one series: twice the best, against 80 times at the rough end.
        chosen = loss[int(np.argmin(score))]
        assert chosen < 2.5 * loss.min()
        assert chosen < 0.05 * loss[0]


def test_penalty_path_takes_a_glm(x64):
    counts, _ = _seasonal_counts(25, 420)
    design = rates.rate_design(420, trend="random_walk", num_knots=20, harmonics=0)
    folds = smoothers.blocked_folds(420, num_folds=2)

    def fit(weight, penalty):
        result = glm.poisson_glm(
            counts, design.matrix, weight=weight, penalty=penalty * design.penalty
        )
        return result.mean, result.edf, result.deviance

    path = jax.jit(lambda n: smoothers.penalty_path(fit, n, (0.1, 100.0), folds=folds))(counts)
    # Independent optimum of each fold by damped Newton in numpy.
    x, p = design.matrix, 100.0 * design.penalty
    total = 0.0
    for fold in folds:
        n, kept, coef = counts[fold], 1.0 - fold, np.zeros(x.shape[1])
        for _ in range(50):
            mean = kept * np.exp(x @ coef)
            step = np.linalg.solve(
                x.T @ (mean[:, None] * x) + p, x.T @ (kept * counts - mean) - p @ coef
            )
            coef += step / max(1.0, np.abs(x @ step).max())
        r = np.exp(x @ coef)[fold]
        total += 2 * np.sum(np.where(n > 0, n * np.log(np.maximum(n, 1) / r), 0.0) - (n - r))
    np.testing.assert_allclose(path.cv[1], total / 420, rtol=1e-9)
    assert path.edf[0] > path.edf[1] > 7.0


def test_stl_blocked_cv_equals_brute_force(x64):
    counts = np.random.default_rng(26).poisson(2.65, 400).astype(float)
    configs = [decomposition.STLConfig(7, 15), decomposition.STLConfig(7, 61)]
    folds = smoothers.blocked_folds(400, block=28, num_folds=3)
    got = jax.jit(lambda n: smoothers.stl_blocked_cv(n, configs, folds=folds, passes=4))(counts)
    assert int(got.best) == int(np.argmin(got.cv))

    diff = np.diff(np.eye(400), axis=0)
    for config, cv in zip(configs, got.cv, strict=True):
        total = 0.0
        for fold in folds:
            known = np.diag(1.0 - fold)
            y = np.linalg.solve(known + 100.0 * diff.T @ diff, known @ counts)
            for _ in range(4):
                y = np.where(fold, y, counts)
                fit = STL(y, period=7, seasonal=7, trend=config.trend).fit()
                y = fit.trend + fit.seasonal
            n, r = counts[fold], np.maximum(fit.trend[fold], smoothers.MIN_RATE)
            total += 2 * np.sum(np.where(n > 0, n * np.log(np.maximum(n, 1) / r), 0.0) - (n - r))
        np.testing.assert_allclose(cv, total / 400, rtol=1e-7)
    want = STL(counts, period=7, seasonal=7, trend=configs[int(got.best)].trend).fit().trend
    np.testing.assert_allclose(got.rate, want, atol=1e-8)
    with pytest.raises(ValueError, match="at least one STLConfig"):
        smoothers.stl_blocked_cv(counts, [])
    with pytest.raises(ValueError, match="folds"):
        smoothers.stl_blocked_cv(counts, configs, folds=folds[:, :-1])


def test_stl_blocked_cv_prefers_the_long_span_for_a_constant_rate():
    counts = np.random.default_rng(28).poisson(2.65, (8, 1461))
    configs = [decomposition.STLConfig(7, 15), decomposition.STLConfig(7, 121)]
    run = jax.vmap(lambda n: smoothers.stl_blocked_cv(n, configs, passes=4))
    got = jax.jit(run)(jnp.asarray(counts, jnp.float32))
    assert np.sum(got.best) >= 7
    assert np.mean(got.cv[:, 0] - got.cv[:, 1]) > 0.02
    assert np.all(np.std(got.rate, axis=1) < 0.25 * np.sqrt(2.65))
