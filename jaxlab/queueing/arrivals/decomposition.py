"""Seasonal-trend decomposition by LOESS, and the search for its configuration.

Sources: Cleveland, Cleveland, McRae and Terpenning 1990 (STL); Bandara, Hyndman and Bergmeir 2021
(MSTL); arXiv:2510.02852 (the 72 configurations).
"""

import functools
import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from jaxlab.queueing.arrivals import loess, series

Degree2 = Literal["linear", "quadratic"]
"""Meaning of degree 2: a line, as in the reference implementations, or a true local parabola."""


class STLResult(NamedTuple):
    """`y = trend + seasonal + resid`, with the robustness weights of the last pass."""

    trend: Float[Array, "*B T"]
    seasonal: Float[Array, "*B T"]
    resid: Float[Array, "*B T"]
    weights: Float[Array, "*B T"]


class MSTLResult(NamedTuple):
    """`y = trend + sum of the P seasonal components + resid`."""

    trend: Float[Array, "*B T"]
    seasonal: Float[Array, "*B P T"]
    resid: Float[Array, "*B T"]
    weights: Float[Array, "*B T"]


class STLConfig(NamedTuple):
    """One configuration of the search (Python values, static under jit)."""

    seasonal: int = 7
    trend: int = 15
    seasonal_degree: int = 1
    trend_degree: int = 1
    robust: bool = False


class GridSelection(NamedTuple):
    """Configuration of least residual SD for each series."""

    best: Int[Array, " K"]
    """Index into the grid."""
    result: STLResult
    """Its decomposition, fields `[K, T]`."""
    resid_sd: Float[Array, "K G"]
    """Sample SD of the residual under every configuration."""


GRID: tuple[STLConfig, ...] = tuple(
    STLConfig(*values)
    for values in itertools.product((7, 15, 31), (15, 31, 61), (1, 2), (1, 2), (False, True))
)
"""The paper's 72 configurations; the first of equals is the one of least degree, not robust."""


class _Plan(NamedTuple):
    """The three smoothers of one configuration for series of one length."""

    seasonal: loess.Smoother
    trend: loess.Smoother
    low_pass: loess.Banded | loess.Dense | loess.Sized


def stl(
    y: Float[Array, "*B T"],
    *,
    period: int = 7,
    seasonal: int = 7,
    trend: int | None = 15,
    low_pass: int | None = None,
    degrees: tuple[int, int, int] = (1, 1, 1),
    robust: bool = False,
    inner: int | None = None,
    outer: int | None = None,
    degree2: Degree2 = "linear",
) -> STLResult:
    """Decomposes series into trend, seasonal and residual.

    Args:
        y: `[..., T]` float series without gaps, T >= 2 * period.
        period: steps per season.
        seasonal: span of the cycle-subseries smoother, odd, >= 3.
        trend: span of the trend smoother, odd, > period; None is `default_trend`.
        low_pass: span of the low-pass smoother, odd, > period; None is the smallest such.
        degrees: of the seasonal, trend and low-pass polynomials, each 0, 1 or 2.
        robust: whether to downweight outliers; only sets the defaults of `inner` and `outer`.
        inner: seasonal-trend sweeps per pass; default 5, robust 2.
        outer: passes with new robustness weights after the first; default 0, robust 15.
        degree2: see `Degree2`.

    Returns:
        `STLResult` with fields `[..., T]`.  If a fit is exact to rounding, its weights are noise.

    Raises:
        ValueError: if an argument is outside its range (checked at trace time).

    Source: Cleveland et al. 1990, section 2; equal to statsmodels' `STL` for degrees 0 and 1.
    """
    _check_series(y, period)
    trend = default_trend(period, seasonal) if trend is None else trend
    low_pass = period + 1 + period % 2 if low_pass is None else low_pass
    series.check_span("seasonal", seasonal)
    series.check_span("trend", trend, above=period)
    series.check_span("low_pass", low_pass, above=period)
    inner = (2 if robust else 5) if inner is None else inner
    outer = (15 if robust else 0) if outer is None else outer
    if inner < 1 or outer < 0:
        raise ValueError(f"inner must be >= 1 and outer >= 0, got {inner} and {outer}")
    if len(degrees) != 3:
        raise ValueError(f"degrees must be three: seasonal, trend, low-pass, got {degrees}")
    seasonal_degree, trend_degree, low_pass_degree = (_degree(d, degree2) for d in degrees)
    plan = _Plan(
        loess.smoother(y.shape[-1], span=seasonal, degree=seasonal_degree, period=period, extend=1),
        loess.smoother(y.shape[-1], span=trend, degree=trend_degree),
        _low_pass(y.shape[-1], period, low_pass, low_pass_degree),
    )
    return _stl(y, _cast(plan, y), period, inner, outer)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _stl(y: Array, plan: _Plan, period: int, inner: int, outer: int) -> STLResult:
    def decompose(y: Array) -> STLResult:
        return _decompose(y, plan, period=period, inner=inner, outer=outer)

    return series.over_last_axis(decompose)(y)


def stl_grid_select(
    y: Float[Array, "K T"],
    grid: tuple[STLConfig, ...] = GRID,
    *,
    period: int = 7,
    degree2: Degree2 = "linear",
    size: Int[Array, " K"] | None = None,
) -> GridSelection:
    """Chooses for each series the configuration of least residual SD; the first of equals wins.

    Configurations that differ only by a degree 2 that means 1 are computed once, so that their SDs
    are equal to the last bit; with `degree2="linear"` the default grid costs 18 decompositions.

    Args:
        y: `[K, T]` float series.
        grid: configurations, tried with `low_pass` of degree 1 and default span.
        period: steps per season.
        degree2: see `Degree2`.
        size: `[K]` number of steps of each series that count, 2 * period..T, from the first on; all
            by default. Each is decomposed as it would be alone, in one program for all sizes; what
            is returned for the steps beyond is zero.

    Returns:
        `GridSelection`.

    Raises:
        ValueError: as `stl`, or if `y` is not a matrix, the grid is empty, or a known size is out
            of range.

    Source: arXiv:2510.02852, choice of the decomposition.
    """
    _check_series(y, period)
    if y.ndim != 2:
        raise ValueError(f"y must be [K, T], got shape {y.shape}; use y[None] for one series")
    if not grid:
        raise ValueError("grid must hold at least one STLConfig, got none")
    for config in grid:
        series.check_span("seasonal", config.seasonal)
        series.check_span("trend", config.trend, above=period)
    plain = [
        config._replace(
            seasonal_degree=_degree(config.seasonal_degree, degree2),
            trend_degree=_degree(config.trend_degree, degree2),
            robust=bool(config.robust),
        )
        for config in grid
    ]
    series.check_size(size, y, 2 * period)
    return _grid_select(y, size, tuple(plain), period)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _grid_select(y: Array, size: Any, plain: tuple[STLConfig, ...], period: int) -> GridSelection:
    distinct = sorted(set(plain), key=lambda config: config.robust)  # one batch plain, one robust
    groups = [list(g) for _, g in itertools.groupby(distinct, key=lambda config: config.robust)]
    if size is not None:
        y = jnp.where(series.step_mask(y, size), y, 0.0)
    results = [_decompose_group(y, group, period, size) for group in groups]
    result = jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)  # [distinct, K, T]
    inside = None
    if size is not None:
        inside = jnp.broadcast_to(series.step_mask(y, size), result.resid.shape)
        result = jax.tree.map(lambda part: jnp.where(inside, part, 0.0), result)

    index = np.array([distinct.index(config) for config in plain])
    resid_sd = jnp.std(result.resid, axis=-1, ddof=1, where=inside)[index].T
    best = jnp.argmin(resid_sd, axis=-1).astype(jnp.int32)
    chosen = jnp.asarray(index)[best][None, :, None]
    result = jax.tree.map(lambda part: jnp.take_along_axis(part, chosen, axis=0)[0], result)
    return GridSelection(best, result, resid_sd)


def mstl(
    y: Float[Array, "*B T"],
    *,
    periods: tuple[int, ...] = (7, 365),
    windows: tuple[int, ...] | None = None,
    iterate: int = 2,
    trend: int | None = None,
    low_pass: int | None = None,
    degrees: tuple[int, int, int] = (1, 1, 1),
    robust: bool = False,
    inner: int | None = None,
    outer: int | None = None,
    degree2: Degree2 = "linear",
) -> MSTLResult:
    """Decomposes series with several seasons by STL for each period in turn.

    Args:
        y: `[..., T]` float series, T > 2 * max(periods).
        periods: P seasons in steps, increasing.
        windows: seasonal span for each period; default 11, 15, 19, ...
        iterate: rounds over the periods (one if there is a single period).
        trend, low_pass, degrees, robust, inner, outer, degree2: as in `stl`, for every period.

    Returns:
        `MSTLResult`; trend and weights are those of the last decomposition.

    Raises:
        ValueError: as `stl`, or if periods are not increasing or do not match the windows.

    Source: Bandara, Hyndman and Bergmeir 2021, algorithm 1, without its Box-Cox transform.
    """
    windows = tuple(11 + 4 * i for i in range(len(periods))) if windows is None else windows
    if not periods or list(periods) != sorted(set(periods)) or len(windows) != len(periods):
        raise ValueError(
            f"periods must increase and have one window each, got {periods} with windows {windows}"
        )
    if y.shape[-1] <= 2 * periods[-1]:
        raise ValueError(f"y must have T > 2 * {periods[-1]} steps, got shape {y.shape}")
    if iterate < 1:
        raise ValueError(f"iterate must be >= 1, got {iterate}")

    options = {
        "trend": trend,
        "low_pass": low_pass,
        "degrees": tuple(degrees),
        "robust": robust,
        "inner": inner,
        "outer": outer,
        "degree2": degree2,
    }
    return _mstl(y, tuple(periods), tuple(windows), iterate, tuple(options.items()))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _mstl(
    y: Array,
    periods: tuple[int, ...],
    windows: tuple[int, ...],
    iterate: int,
    options: tuple[tuple[str, Any], ...],
) -> MSTLResult:
    def sweep(carry: tuple[Array, STLResult], _: Any) -> tuple[tuple[Array, STLResult], None]:
        seasonal, result = carry
        for i, (period, window) in enumerate(zip(periods, windows, strict=True)):
            rest = y - (jnp.sum(seasonal, axis=0) - seasonal[i])
            result = stl(rest, period=period, seasonal=window, **dict(options))
            seasonal = seasonal.at[i].set(result.seasonal)
        return (seasonal, result), None

    zero = jnp.zeros_like(y)
    start = (jnp.zeros((len(periods), *y.shape), y.dtype), STLResult(zero, zero, zero, zero))
    rounds = iterate if len(periods) > 1 else 1
    (seasonal, last), _ = lax.scan(sweep, start, None, length=rounds)
    return MSTLResult(last.trend, jnp.moveaxis(seasonal, 0, -2), last.resid, last.weights)


def default_trend(period: int, seasonal: int) -> int:
    """Returns the smallest odd trend span of at least `1.5 period / (1 - 1.5 / seasonal)`.

    Source: Cleveland et al. 1990, section 3.4.
    """
    series.check_span("seasonal", seasonal)
    span = int(np.ceil(1.5 * period / (1 - 1.5 / seasonal)))
    return span + (span + 1) % 2


def _decompose(
    y: Float[Array, " T"],
    plan: _Plan,
    *,
    period: int,
    inner: int,
    outer: int,
    size: Int[Array, ""] | None = None,
) -> STLResult:
    """Runs the inner and outer loops of STL on the first `size` steps."""

    def robust_pass(carry: STLResult, _: Any) -> tuple[STLResult, None]:
        weights = loess.bisquare(carry.resid, size)
        cycle_gains = loess.gains(plan.seasonal, weights, period)
        trend_gains = loess.gains(plan.trend, weights)

        def sweep(components: tuple[Array, Array], _: Any) -> tuple[tuple[Array, Array], None]:
            trend, _ = components
            detrended = y - trend
            cycles = _smooth_cycles(plan.seasonal, cycle_gains, weights, detrended, period, size)
            low = loess.correlate(plan.low_pass, cycles)[0]
            seasonal = cycles[period:-period] - low
            adjusted = y - seasonal
            trend = loess.smooth(plan.trend, trend_gains, weights * adjusted, adjusted)
            return (trend, seasonal), None

        (trend, seasonal), _ = lax.scan(sweep, (carry.trend, carry.seasonal), None, length=inner)
        return STLResult(trend, seasonal, y - trend - seasonal, weights), None

    zero = jnp.zeros_like(y)  # a zero residual has unit weights: the first pass is not robust
    result, _ = lax.scan(robust_pass, STLResult(zero, zero, zero, zero), None, length=outer + 1)
    return result


def _smooth_cycles(
    parts: loess.Smoother,
    cycle_gains: loess.Gains,
    weights: Float[Array, " T"],
    detrended: Float[Array, " T"],
    period: int,
    size: Int[Array, ""] | None,
) -> Float[Array, " n_out"]:
    """Smooths each cycle-subseries, from one period before the series to one period after it."""
    otherwise = jnp.pad(detrended, period)
    cycles = loess.smooth(parts, cycle_gains, weights * detrended, otherwise, period)
    # An undefined value outside the series repeats its neighbor.
    first, last = cycle_gains.defined[:period], cycle_gains.defined[-period:]
    body = cycles[period:-period]
    if size is not None:
        start = jnp.where(first, cycles[:period], body[:period])
        cycles = jnp.concatenate([start, cycles[period:]])
        after = jnp.arange(cycles.size, dtype=size.dtype) >= size + period
        return jnp.where(after & ~cycle_gains.defined, jnp.roll(cycles, period), cycles)
    return jnp.concatenate(
        [
            jnp.where(first, cycles[:period], body[:period]),
            body,
            jnp.where(last, cycles[-period:], body[-period:]),
        ]
    )


def _decompose_group(
    y: Float[Array, "K T"], group: list[STLConfig], period: int, size: Int[Array, " K"] | None
) -> STLResult:
    """Decomposes all series under configurations of equal `robust`: fields `[len(group), K, T]`."""
    inner, outer = (2, 15) if group[0].robust else (5, 0)

    def decompose(y: Array, plan: _Plan, size: Array | None = None) -> STLResult:
        return _decompose(y, plan, period=period, inner=inner, outer=outer, size=size)

    if size is None:
        plan = _group_plan(y, group, period, None)
        return jax.vmap(jax.vmap(decompose, (0, None)), (None, 0))(y, plan)

    def one_series(y: Array, size: Array) -> STLResult:
        plan = _group_plan(y, group, period, size)
        return jax.vmap(decompose, (None, 0, None))(y, plan, size)

    return jax.vmap(one_series, out_axes=1)(y, jnp.asarray(size, jnp.int32))


def _group_plan(
    y: Float[Array, "*B T"], group: list[STLConfig], period: int, size: Int[Array, ""] | None
) -> _Plan:
    """Builds the smoothers of all configurations, stacked."""
    num_steps = y.shape[-1]
    seasonal_width = max(config.seasonal for config in group)
    trend_width = max(config.trend for config in group)
    seasonal_degree = max(config.seasonal_degree for config in group)
    trend_degree = max(config.trend_degree for config in group)
    low_pass = _low_pass(num_steps, period, period + 1 + period % 2, 1, size)
    plans = [
        _Plan(
            loess.smoother(
                num_steps,
                span=config.seasonal,
                degree=config.seasonal_degree,
                period=period,
                extend=1,
                width=seasonal_width,
                max_degree=seasonal_degree,
                size=size,
            ),
            loess.smoother(
                num_steps,
                span=config.trend,
                degree=config.trend_degree,
                width=trend_width,
                max_degree=trend_degree,
                size=size,
            ),
            low_pass,
        )
        for config in group
    ]

    def stack(*parts: Any) -> Any:
        known = all(isinstance(part, np.ndarray) for part in parts)
        return np.stack(parts) if known else jnp.stack(parts)

    return _cast(jax.tree.map(stack, *plans), y)


def _low_pass(
    num_steps: int, period: int, span: int, degree: int, size: Int[Array, ""] | None = None
) -> loess.Banded | loess.Dense | loess.Sized:
    """Makes one filter of moving averages of lengths period, period and 3, and a LOESS."""
    box = np.full(period, 1 / period)
    before = np.convolve(np.convolve(box, box), np.full(3, 1 / 3))
    return loess.linear_filter(num_steps, span=span, degree=degree, before=before, size=size)


def _cast(plan: _Plan, y: Array) -> _Plan:
    def cast(leaf: Any) -> Any:
        return leaf.astype(y.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, plan)


def _check_series(y: Shaped[Array, "*B T"], period: int) -> None:
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(f"y must be floating point, got {y.dtype}; convert with y.astype(float)")
    if not isinstance(period, int | np.integer) or period < 2:
        raise ValueError(f"period must be an integer >= 2, got {period}")
    if y.ndim < 1 or y.shape[-1] < 2 * period:
        raise ValueError(f"y must have T >= 2 * period = {2 * period} steps, got shape {y.shape}")


def _degree(degree: int, degree2: Degree2) -> int:
    if degree2 not in ("linear", "quadratic"):
        raise ValueError(f'degree2 must be "linear" or "quadratic", got {degree2!r}')
    if degree not in (0, 1, 2):
        raise ValueError(f"LOESS degrees must be 0, 1 or 2, got {degree}")
    return min(degree, 1) if degree2 == "linear" else degree
