"""LOESS on equally spaced points as banded matrix products (Cleveland et al. 1990, section 2).

A local polynomial of degree d around x, with tricube weights k and robustness weights w, needs only
`S_c = sum_j k_j w_j (j-x)^c` for c = 0..2d and `Y_c = sum_j k_j w_j y_j (j-x)^c` for c = 0..d.
The kernels `k_j (j-x)^c` are fixed: one stencil inside the series, a few special rows at both ends.
The fit at x is `sum_c g_c Y_c`, with gains that depend on the `S_c` alone: they are solved once for
each set of weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

LINEAR_FLOOR = 1e-3
"""Degree 1: no slope where the weighted SD of x is below this share of the range of all x."""
QUADRATIC_FLOOR = 1e-2
"""Degree 2: no slope or curvature where its spread is below this share of half the span."""
MIN_BLOCK = 32
"""Least outputs per block of the Toeplitz product; the fastest on CPU for spans 15 to 61."""


class Banded(NamedTuple):
    """`C` linear filters of a long series: special rows at both ends, one stencil inside.

    With period p, span Q and M end rows, `n` inputs give `n + p (2 M - Q + 1)` outputs.
    """

    left: Float[Array | np.ndarray, "C M Q"]
    inner: Float[Array | np.ndarray, "C b w"]
    """Toeplitz block of the stencil: b outputs from w = b + Q - 1 inputs."""
    right: Float[Array | np.ndarray, "C M Q"]


class Dense(NamedTuple):
    """`C` linear filters of a short series: one `[O, K]` matrix for each of the `P` phases."""

    rows: Float[Array | np.ndarray, "C P O K"]


class Smoother(NamedTuple):
    """LOESS of one span and degree: moment kernels, and where to lower the degree."""

    kernel: Banded | Dense
    """Filters for the moments c = 0, ..., 2 degree."""
    floors: Float[Array | np.ndarray, "D n_out"]
    """Least weighted variance of the linear and of the quadratic term for which it is kept."""


class Gains(NamedTuple):
    """Solution of the local least squares for given weights: the fit is `sum_c gain_c Y_c`."""

    gain: tuple[Float[Array, " n_out"], ...]
    defined: Bool[Array, " n_out"]
    """False where all weights of a neighborhood are zero."""


def smoother(
    num_points: int,
    *,
    span: int,
    degree: int,
    period: int = 1,
    extend: int = 0,
    width: int | None = None,
    max_degree: int | None = None,
) -> Smoother:
    """Builds LOESS along every `period`-th point of a series (host, float64 numpy).

    Args:
        num_points: length n of the series.
        span: odd number q of nearest neighbors; above the number of points it takes them all and
            widens the bandwidth by `(q - n) // 2`.
        degree: 0 (mean), 1 (line) or 2 (parabola).
        period: distance of neighbors; each of the interleaved subseries is smoothed alone.
        extend: steps to evaluate before the start and after the end of every subseries.
        width: pad stencils to this span, so that smoothers of different spans can be stacked.
        max_degree: keep the moments for this degree, to the same end.

    Returns:
        `Smoother` with `n_out = num_points + 2 * extend * period` outputs.
    """
    width = span if width is None else width
    max_degree = degree if max_degree is None else max_degree
    # Phase r holds the points r, r + period, ...: the first phases may have one point more.
    counts = -(-(num_points - np.arange(period)) // period)

    def rows(xs: np.ndarray, first: int, size: int, count: Any) -> np.ndarray:
        return _moment_rows(xs, first, size, count=count, span=span, order=2 * max_degree)

    if counts[-1] < width:
        xs = np.arange(1 - extend, counts[0] + extend + 1)
        kernel = Dense(np.stack([rows(xs, 1, counts[0], k) for k in counts], axis=1))
    else:
        half, far = (
            width // 2,
            2 * width,
        )  # end rows are those of any series of at least `width` points
        kernel = _banded(
            left=rows(np.arange(1 - extend, half + 1), 1, width, far),
            stencil=rows(np.array([half + 1]), 1, width, far)[:, 0],
            right=rows(np.arange(far - half + 1, far + extend + 1), far - width + 1, width, far),
        )
    points = counts[np.arange(num_points + 2 * extend * period) % period]
    return Smoother(kernel, _floors(points, span=span, degree=degree)[:max_degree])


def linear_filter(num_points: int, *, span: int, degree: int, before: np.ndarray) -> Banded | Dense:
    """Builds LOESS with unit weights after a moving average, as one linear filter (float64 numpy).

    Args:
        num_points: number n of averaged points.
        span: odd number of nearest neighbors.
        degree: 0, 1 or 2.
        before: `[m]` weights of the moving average.

    Returns:
        A filter (`C = 1`) from `n + m - 1` inputs to `n` outputs.
    """
    kernel, floors = smoother(num_points, span=span, degree=degree)

    def collapse(rows: Any) -> np.ndarray:
        gain, _ = _solve(tuple(rows.sum(-1)), floors[:, :1], np)
        fitted = sum(g[:, None] * row for g, row in zip(gain, rows, strict=False))
        return np.stack([np.convolve(row, before) for row in np.asarray(fitted)])[None]

    if isinstance(kernel, Dense):
        return Dense(collapse(kernel.rows[:, 0])[:, None])
    stencil = kernel.inner[:, :1, :span]
    return _banded(collapse(kernel.left), collapse(stencil)[:, 0], collapse(kernel.right))


def correlate(
    kernel: Banded | Dense, x: Float[Array, " n"], period: int = 1
) -> tuple[Float[Array, " n_out"], ...]:
    """Applies the `C` filters of `kernel` along every `period`-th point of `x`.

    Args:
        kernel: filters, of the dtype of `x`.
        x: `[n]` series.
        period: distance of neighbors.

    Returns:
        `C` filtered series `[n_out]`.
    """
    if isinstance(kernel, Dense):
        num_rows, num_columns = kernel.rows.shape[-2:]
        num_outputs = x.size + (num_rows - num_columns) * period
        out = _dot("kp,cpok->cop", _fold(x, num_columns, period), kernel.rows)
        return tuple(o.ravel()[:num_outputs] for o in out)
    width = kernel.left.shape[-1]
    head, tail = x[: width * period], x[x.size - width * period :]
    left = _dot("qp,cmq->cmp", _fold(head, width, period), kernel.left)
    right = _dot("qp,cmq->cmp", _fold(tail, width, period), kernel.right)
    num_inner = x.size - (width - 1) * period
    parts = zip(left, _toeplitz(kernel.inner, x, period), right, strict=True)
    return tuple(jnp.concatenate([a.ravel(), b[:num_inner], c.ravel()]) for a, b, c in parts)


def gains(parts: Smoother, weights: Float[Array, " n"], period: int = 1) -> Gains:
    """Solves the local least squares of every output for robustness weights `[n]`."""
    return Gains(*_solve(correlate(parts.kernel, weights, period), parts.floors, jnp))


def smooth(
    parts: Smoother,
    solved: Gains,
    weighted: Float[Array, " n"],
    otherwise: Float[Array, " n_out"],
    period: int = 1,
) -> Float[Array, " n_out"]:
    """Evaluates the local polynomials at their centers.

    Args:
        parts: the smoother.
        solved: its `gains` under the robustness weights.
        weighted: `[n]` robustness weights times data.
        otherwise: `[n_out]` value where the fit is undefined.
        period: distance of neighbors, as in `gains`.

    Returns:
        `[n_out]` smoothed series.
    """
    kernel = jax.tree.map(lambda rows: rows[: len(solved.gain)], parts.kernel)
    moments = correlate(kernel, weighted, period)
    fit = sum(gain * moment for gain, moment in zip(solved.gain, moments, strict=True))
    return jnp.where(solved.defined, fit, otherwise)


def bisquare(resid: Float[Array, " n"]) -> Float[Array, " n"]:
    """Computes robustness weights `(1 - (r/h)^2)^2` with h = 6 median |r|; all one if that is zero.

    Args:
        resid: `[n]` residuals of the last fit.

    Returns:
        `[n]` weights in [0, 1]; 1 up to 0.001 h and 0 from 0.999 h.
    """
    size = jnp.abs(resid)
    lower, upper = _middle_pair(size)
    h = 3.0 * (lower + upper)
    u = size / jnp.where(h > 0, h, 1.0)
    weights = jnp.where(u <= 0.001, 1.0, jnp.where(u <= 0.999, (1 - u**2) ** 2, 0.0))
    return jnp.where(h > 0, weights, 1.0)


def _moment_rows(
    xs: np.ndarray, first: int, size: int, *, count: Any, span: int, order: int
) -> np.ndarray:
    """Tabulates moment kernels at x in `xs` on j = first, first+1, ...: `[order+1, X, size]`."""
    left = np.clip(xs - span // 2, 1, max(count - span + 1, 1))[:, None] - xs[:, None]
    right = np.minimum(left + span - 1, count - xs[:, None])
    distance = np.arange(first, first + size)[None] - xs[:, None]
    bandwidth = np.maximum(-left, right) + max(span - count, 0) // 2
    u = np.abs(distance) / bandwidth
    weight = np.where(u <= 0.001, 1.0, np.where(u <= 0.999, (1 - u**3) ** 3, 0.0))
    weight = np.where((distance >= left) & (distance <= right), weight, 0.0)
    return np.stack([weight * distance**c for c in range(order + 1)])


def _floors(points: np.ndarray, *, span: int, degree: int) -> np.ndarray:
    """Floors `[2, n_out]` in subseries of `points` points; an infinite floor drops the term."""
    never = np.full(points.shape, np.inf)
    if degree == 0:
        return np.stack([never, never])
    if degree == 1:
        return np.stack([(LINEAR_FLOOR * (points - 1)) ** 2, never])
    half = QUADRATIC_FLOOR * (np.minimum(span, points) // 2)
    return np.stack([half**2, half**4])


def _solve(moments: tuple[Any, ...], floors: Any, xp: Any) -> tuple[tuple[Any, ...], Any]:
    """Gains at the center from S_0, ..., S_2d, by orthogonal polynomials; `xp` is `np` or `jnp`."""
    degree = len(moments) // 2
    defined = moments[0] > 0
    total = xp.where(defined, moments[0], 1.0)
    gain = [1.0 / total]
    if degree > 0:
        # p1(j) = j - m has the variance c2 and the value -m at the center.
        m, s2 = moments[1] / total, moments[2] / total
        c2 = s2 - m**2
        inverse = _inverse_above(c2, floors[0], xp)
        slope = -m * inverse / total
        gain = [gain[0] - m * slope, slope]
        if degree > 1:
            # p2 = p1^2 - (c3/c2) p1 - c2 has the squared norm c4 - c3^2/c2 - c2^2.
            s3, s4 = moments[3] / total, moments[4] / total
            c3 = s3 - 3 * m * s2 + 2 * m**3
            c4 = s4 - 4 * m * s3 + 6 * m**2 * s2 - 3 * m**4
            skew = c3 * inverse
            p2 = m**2 + skew * m - c2
            scale = p2 * _inverse_above(c4 - c3 * skew - c2**2, floors[1], xp) / total
            gain = [gain[0] + scale * p2, gain[1] - scale * (2 * m + skew), scale]
    return tuple(xp.where(defined, g, 0.0) for g in gain), defined


def _inverse_above(variance: Any, floor: Any, xp: Any) -> Any:
    keep = variance > floor
    return xp.where(keep, 1.0 / xp.where(keep, variance, 1.0), 0.0)


def _banded(left: np.ndarray, stencil: np.ndarray, right: np.ndarray) -> Banded:
    num_filters, width = stencil.shape
    block = max(MIN_BLOCK, width // 2)
    inner = np.zeros((num_filters, block, block + width - 1))
    for i in range(block):
        inner[:, i, i : i + width] = stencil
    return Banded(left, inner, right)


def _toeplitz(
    inner: Float[Array | np.ndarray, "C b w"], x: Float[Array, " n"], period: int
) -> list[Float[Array, " m"]]:
    """Filters with the stencil: overlapping windows of w points give blocks of b outputs."""
    block, window = inner.shape[-2:]
    num_blocks = -(-(-(-x.size // period) - (window - block)) // block)
    pieces = -(-window // block)
    lanes = _fold(x, (num_blocks + pieces - 1) * block, period).T
    shifted = [
        lanes[:, i * block : (i + num_blocks) * block].reshape(period, num_blocks, block)
        for i in range(pieces)
    ]
    windows = jnp.concatenate(shifted, axis=-1)[..., :window]
    # One product per filter: a joint product would have to be transposed into time order.
    out = (_dot("pkw,bw->pkb", windows, matrix) for matrix in inner)
    return [o.reshape(period, -1).T.ravel() for o in out]


def _middle_pair(x: Float[Array, " T"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the order statistics (T-1)//2 and T//2 of non-negative values, differentiable.

    Non-negative floats are ordered as their bit patterns, so the lower one is built bit by bit from
    counts: on CPU four times as fast as sorting, which would take most of a robust fit.
    """
    rank = (x.size - 1) // 2
    num_bits = jnp.finfo(x.dtype).bits
    integer = jnp.dtype(f"int{num_bits}")
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), integer)

    def set_bit(lower: Array, bit: Array) -> tuple[Array, None]:
        candidate = lower | (jnp.ones((), integer) << bit)
        below = jnp.sum(bits < candidate, dtype=jnp.int32)
        return jnp.where(below <= rank, candidate, lower), None

    positions = jnp.arange(num_bits - 2, -1, -1, dtype=integer)
    lower, _ = jax.lax.scan(set_bit, jnp.zeros((), integer), positions)
    above = bits > lower
    num_up_to = x.size - jnp.sum(above, dtype=jnp.int32)
    lower_idx = jnp.argmax(bits == lower)
    next_idx = jnp.argmin(jnp.where(above, bits, jnp.iinfo(integer).max))
    return x[lower_idx], x[jnp.where(num_up_to > x.size // 2, lower_idx, next_idx)]


def _fold(x: Float[Array, " n"], rows: int, period: int) -> Float[Array, "rows period"]:
    return jnp.pad(x, (0, rows * period - x.size)).reshape(rows, period)


def _dot(spec: str, x: Array, kernel: Array | np.ndarray) -> Array:
    return jnp.einsum(spec, x, kernel, precision=jax.lax.Precision.HIGHEST)
