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
from jax import lax
from jaxtyping import Array, Bool, Float, Int

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


class Sized(NamedTuple):
    """Filters of a padded series of which the first `size` points count, known at run time only.

    What lies beyond is never looked at, and the outputs beyond the last one have no meaning.
    """

    banded: Banded | None
    """For a size of at least one span in every phase; None if no series of this shape has that."""
    dense: Dense | None
    """For a smaller size; None if there is no such."""
    size: Int[Array, ""]


class Smoother(NamedTuple):
    """LOESS of one span and degree: moment kernels, and where to lower the degree."""

    kernel: Banded | Dense | Sized
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
    size: Int[Array, ""] | None = None,
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
        size: number of points that count, from the first on, 1..num_points; may be traced. All by
            default.

    Returns:
        `Smoother` with `n_out = num_points + 2 * extend * period` outputs.
    """
    width = span if width is None else width
    max_degree = degree if max_degree is None else max_degree
    # Phase r holds the points r, r + period, ...: the first phases may have one point more.
    room = -(-(num_points - np.arange(period)) // period)
    counts = room if size is None else -(-(size - np.arange(period, dtype=np.int32)) // period)

    def rows(xs: np.ndarray, first: int, length: int, count: Any, xp: Any = np) -> Any:
        order = 2 * max_degree
        return _moment_rows(xs, first, length, count=count, span=span, order=order, xp=xp)

    banded = dense = None
    if room[-1] >= width:
        # End rows are those of any series of at least `width` points.
        half, far = width // 2, 2 * width
        banded = _banded(
            left=rows(np.arange(1 - extend, half + 1), 1, width, far),
            stencil=rows(np.array([half + 1]), 1, width, far)[:, 0],
            right=rows(np.arange(far - half + 1, far + extend + 1), far - width + 1, width, far),
        )
    if size is not None or banded is None:
        longest, xp = int(min(room[0], width)), np if size is None else jnp
        xs = np.arange(1 - extend, longest + extend + 1, dtype=np.int32)
        dense = Dense(xp.stack([rows(xs, 1, longest, k, xp) for k in counts], axis=1))
    kernel = Sized(banded, dense, size) if size is not None else banded or dense
    assert kernel is not None
    points = counts[np.arange(num_points + 2 * extend * period) % period]
    return Smoother(kernel, _floors(points, span=span, degree=degree)[:max_degree])


def linear_filter(
    num_points: int,
    *,
    span: int,
    degree: int,
    before: np.ndarray,
    size: Int[Array, ""] | None = None,
) -> Banded | Dense | Sized:
    """Builds LOESS with unit weights after a moving average, as one linear filter (float64 numpy).

    Args:
        num_points: number n of averaged points.
        span: odd number of nearest neighbors.
        degree: 0, 1 or 2.
        before: `[m]` weights of the moving average.
        size: number of averaged points that count, at least the span; may be traced, for a degree
            of at most 1. All by default.

    Returns:
        A filter (`C = 1`) from `n + m - 1` inputs to `n` outputs.
    """
    kernel, floors = smoother(num_points, span=span, degree=degree)

    def collapse(rows: Any, floors: Any = floors[:, :1], xp: Any = np) -> Any:
        gain, _ = _solve(tuple(rows.sum(-1)), floors, xp)
        fitted = sum(g[:, None] * row for g, row in zip(gain, rows, strict=False))
        last = len(before) - 1
        shifted = (xp.pad(fitted, ((0, 0), (k, last - k))) for k in range(last + 1))
        return xp.sum(xp.stack([w * x for w, x in zip(before, shifted, strict=True)]), axis=0)[None]

    if isinstance(kernel, Dense):
        return Dense(collapse(kernel.rows[:, 0])[:, None])
    assert isinstance(kernel, Banded)
    stencil = collapse(kernel.inner[:, :1, :span])[:, 0]
    if size is None:
        return _banded(collapse(kernel.left), stencil, collapse(kernel.right))
    # The slope is left out near the ends of a long series; in the middle it is zero by symmetry.
    own = _floors(jnp.reshape(size, (1,)), span=span, degree=degree)[:degree]
    left, right = (collapse(rows, own, jnp) for rows in (kernel.left, kernel.right))
    return Sized(_banded(left, stencil, right), None, size + len(before) - 1)


def correlate(
    kernel: Banded | Dense | Sized, x: Float[Array, " n"], period: int = 1
) -> tuple[Float[Array, " n_out"], ...]:
    """Applies the `C` filters of `kernel` along every `period`-th point of `x`.

    Args:
        kernel: filters, of the dtype of `x`.
        x: `[n]` series.
        period: distance of neighbors.

    Returns:
        `C` filtered series `[n_out]`.
    """
    if isinstance(kernel, Sized):
        return _correlate_sized(kernel, x, period)
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
    first = len(solved.gain)
    kernel = jax.tree.map(lambda leaf: leaf[:first] if leaf.ndim else leaf, parts.kernel)
    moments = correlate(kernel, weighted, period)
    fit = sum(gain * moment for gain, moment in zip(solved.gain, moments, strict=True))
    return jnp.where(solved.defined, fit, otherwise)


def bisquare(
    resid: Float[Array, " n"], size: Int[Array, ""] | int | None = None
) -> Float[Array, " n"]:
    """Computes robustness weights `(1 - (r/h)^2)^2` with h = 6 median |r|; all one if that is zero.

    Args:
        resid: `[n]` residuals of the last fit.
        size: number of residuals that count, from the first on; all by default.

    Returns:
        `[n]` weights in [0, 1]; 1 up to 0.001 h and 0 from 0.999 h.
    """
    absolute = jnp.abs(resid)
    lower, upper = _middle_pair(absolute, resid.size if size is None else size)
    h = 3.0 * (lower + upper)
    u = absolute / jnp.where(h > 0, h, 1.0)
    weights = jnp.where(u <= 0.001, 1.0, jnp.where(u <= 0.999, (1 - u**2) ** 2, 0.0))
    return jnp.where(h > 0, weights, 1.0)


def _correlate_sized(
    kernel: Sized, x: Float[Array, " n"], period: int
) -> tuple[Float[Array, " n_out"], ...]:
    """Applies filters to the first `kernel.size` points of `x`, as `correlate` does to them alone.

    The filters of the end are moved to where the series ends.
    """
    size = kernel.size
    x = jnp.where(jnp.arange(x.size, dtype=size.dtype) < size, x, 0.0)
    short = long = None
    if kernel.dense is not None:
        columns = kernel.dense.rows.shape[-1]
        short = correlate(kernel.dense, x[: columns * period], period)
    if kernel.banded is not None:
        long = correlate(kernel.banded, x, period)
        width, num_rows = kernel.banded.right.shape[-1], kernel.banded.right.shape[-2]
        tail = lax.dynamic_slice_in_dim(x, size - width * period, width * period)
        ends = _dot("qp,cmq->cmp", _fold(tail, width, period), kernel.banded.right)
        last = size + (num_rows + kernel.banded.left.shape[-2] - (width - 1)) * period
        start = last - num_rows * period
        long = tuple(
            lax.dynamic_update_slice_in_dim(out, end.ravel(), start, 0)
            for out, end in zip(long, ends, strict=True)
        )
    if kernel.banded is None or short is None or long is None:
        return short or long or ()
    is_short = size < kernel.banded.right.shape[-1] * period
    return tuple(
        jnp.where(is_short, jnp.pad(a, (0, b.size - a.size)), b)
        for a, b in zip(short, long, strict=True)
    )


def _moment_rows(
    xs: np.ndarray, first: int, length: int, *, count: Any, span: int, order: int, xp: Any = np
) -> Any:
    """Tabulates moment kernels at x in `xs` on j = first, first+1, ...: `[order+1, X, length]`.

    Positions beyond a traced `count` get numbers without a meaning, all finite.
    """
    left = xp.clip(xs - span // 2, 1, xp.maximum(count - span + 1, 1))[:, None] - xs[:, None]
    right = xp.minimum(left + span - 1, count - xs[:, None])
    bandwidth = xp.maximum(-left, right) + xp.maximum(span - count, 0) // 2
    left, right, bandwidth = (x.astype(float) for x in (left, right, xp.maximum(bandwidth, 1)))
    distance = (np.arange(first, first + length)[None] - xs[:, None]).astype(float)
    u = np.abs(distance) / bandwidth
    weight = xp.where(u <= 0.001, 1.0, xp.where(u <= 0.999, (1 - u**3) ** 3, 0.0))
    weight = xp.where((distance >= left) & (distance <= right), weight, 0.0)
    return xp.stack([weight * distance**c for c in range(order + 1)])


def _floors(points: Any, *, span: int, degree: int) -> Any:
    """Floors `[2, n_out]` in subseries of `points` points; an infinite floor drops the term."""
    xp = np if isinstance(points, np.ndarray) else jnp
    points = points.astype(float)
    never = xp.full(points.shape, np.inf)
    if degree == 0:
        return xp.stack([never, never])
    if degree == 1:
        return xp.stack([(LINEAR_FLOOR * (points - 1)) ** 2, never])
    half = QUADRATIC_FLOOR * (xp.minimum(span, points) // 2)
    return xp.stack([half**2, half**4])


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


def _middle_pair(
    x: Float[Array, " T"], size: Int[Array, ""] | int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the order statistics (n-1)//2 and n//2 of n non-negative values, differentiable.

    The values are the first n = `size` of `x`.

    Non-negative floats are ordered as their bit patterns, so the lower one is built bit by bit from
    counts: on CPU four times as fast as sorting, which would take most of a robust fit.
    """
    rank = (size - 1) // 2
    num_bits = jnp.finfo(x.dtype).bits
    integer = jnp.dtype(f"int{num_bits}")
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), integer)
    beyond = jnp.iinfo(integer).max
    bits = jnp.where(jnp.arange(x.size, dtype=jnp.int32) < size, bits, beyond)

    def set_bit(lower: Array, bit: Array) -> tuple[Array, None]:
        candidate = lower | (jnp.ones((), integer) << bit)
        below = jnp.sum(bits < candidate, dtype=jnp.int32)
        return jnp.where(below <= rank, candidate, lower), None

    positions = jnp.arange(num_bits - 2, -1, -1, dtype=integer)
    lower, _ = lax.scan(set_bit, jnp.zeros((), integer), positions)
    above = bits > lower
    num_up_to = x.size - jnp.sum(above, dtype=jnp.int32)
    lower_idx = jnp.argmax(bits == lower)
    next_idx = jnp.argmin(jnp.where(above, bits, beyond))
    return x[lower_idx], x[jnp.where(num_up_to > size // 2, lower_idx, next_idx)]


def _fold(x: Float[Array, " n"], rows: int, period: int) -> Float[Array, "rows period"]:
    return jnp.pad(x, (0, rows * period - x.size)).reshape(rows, period)


def _dot(spec: str, x: Array, kernel: Array | np.ndarray) -> Array:
    return jnp.einsum(spec, x, kernel, precision=lax.Precision.HIGHEST)
