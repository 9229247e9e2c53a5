"""Smooth arrival rates whose flexibility is chosen by held-out days, not by the residual.

Literature: Whittaker 1923 and Eilers 2003 (difference penalty), with a Poisson likelihood fitted by
IRLS; Wahba 1990 (GCV); Burman, Chow and Nolan 1994 (blocked cross-validation).  The least residual
SD, by which arXiv:2510.02852 chooses its STL configuration, always prefers the most flexible one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jaxlab.queueing.arrivals import decomposition, glm

PENALTIES = tuple(10.0 ** (0.5 * k) for k in range(25))
"""Default grid of Whittaker penalties: from about 4 days of smoothing to a straight line."""
TREND_SPANS = (15, 31, 61, 121, 241, 481)
"""Default STL trend spans in days: the paper's three, and longer ones."""
MIN_RATE = 1e-3
"""Least rate that a linear smoother is scored with, events per day; it may go below zero."""


class WhittakerFit(NamedTuple):
    """A penalized log rate.

    Attributes:
        rate: `[T]` fitted mean, offset included, also on days of weight zero.
        log_se: `[T]` posterior SD of the log rate given the penalty.
        edf: effective number of parameters, between `order` and T.
        deviance: Poisson deviance of the weighted days.
        converged: bool.
    """

    rate: Float[Array, " T"]
    log_se: Float[Array, " T"]
    edf: Float[Array, ""]
    deviance: Float[Array, ""]
    converged: Bool[Array, ""]


class PenaltyPath(NamedTuple):
    """Scores of a grid of penalties; both are in units of deviance per day, less is better.

    Attributes:
        penalties: `[G]` grid.
        cv: `[G]` mean Poisson deviance of the held-out days.
        gcv: `[G]` T deviance / (T - edf)^2.
        edf: `[G]` effective number of parameters of the fit to all days.
    """

    penalties: Float[Array, " G"]
    cv: Float[Array, " G"]
    gcv: Float[Array, " G"]
    edf: Float[Array, " G"]


class STLSelection(NamedTuple):
    """STL spans by blocked cross-validation.

    Attributes:
        best: index of the configuration with the least score.
        rate: `[T]` its rate fitted to all days.
        cv: `[G]` mean Poisson deviance of the held-out days.
    """

    best: Int[Array, ""]
    rate: Float[Array, " T"]
    cv: Float[Array, " G"]


def whittaker_poisson(
    counts: Num[Array, " T"],
    *,
    penalty: Float[Array, ""] | float,
    order: int = 2,
    offset: Float[Array, " T"] | None = None,
    weight: Num[Array, " T"] | None = None,
    iterations: int = 25,
) -> WhittakerFit:
    """Smooths counts by the penalized Poisson likelihood of their log rate eta.

    Maximizes sum(n eta - exp(eta)) - penalty / 2 sum((difference^order eta)^2) by damped IRLS; each
    step is an exact O(T) smoother, two `lax.scan`s over the days, which stays accurate in float32
    for penalties up to 1e12 (a straight line).  Order 2 is the log-linear Hodrick-Prescott filter,
    order 1 a random walk.  Days of weight zero are interpolated.  Differentiable in counts, penalty
    and offset (first order, by the last step).

    Args:
        counts: `[T]` events per day, >= 0; NaN is allowed where `weight` is zero.
        penalty: smoothness, > 0; grows as the fourth power (order 2) of the time scale in days.
        order: of the difference, 1, 2 or 3.
        offset: `[T]` known part of the log rate (weekday effect, exposure), not penalized.
        weight: `[T]` number of times each day counts.
        iterations: at most so many steps, static.

    Returns:
        `WhittakerFit`.

    Raises:
        ValueError: on an order outside 1..3, T <= order, a known penalty <= 0, or shapes.

    Source: Eilers 2003; the smoother is the Kalman recursion for the equivalent integrated random
    walk with variance 1 / penalty and a flat start, in information form.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if counts.ndim != 1 or counts.shape[0] <= order:
        raise ValueError(f"counts must be [T] with T > {order}, got {counts.shape}")
    if glm.is_concrete(penalty) and not np.all(np.asarray(penalty) > 0):
        raise ValueError(f"penalty must be positive, got {penalty}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    counts, weight, offset = glm.prepare_counts(counts, weight, offset, None)
    penalty = jnp.asarray(penalty, counts.dtype)
    # Measured from the constant rate, so that float32 has its digits where they are needed.
    level = (jnp.sum(weight * counts) + 0.5) / (jnp.sum(weight * jnp.exp(offset)) + 0.5)
    offset = offset + jax.lax.stop_gradient(jnp.log(level))
    return _whittaker((counts, penalty, offset, weight), order, iterations)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _whittaker(
    data: tuple[Array, Array, Array, Array], order: int, iterations: int
) -> WhittakerFit:
    counts, penalty, offset, weight = data

    def unfinished(carry):
        _, small, step = carry
        return (step < iterations) & ~small

    def advance(carry):
        path, _, step = carry
        path, small = _irls_step(path, *frozen, order)
        return path, small, step + 1

    frozen = jax.lax.stop_gradient(data)
    flat = (jnp.zeros_like(counts), jnp.zeros_like(counts))
    start = (flat, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    path, _, _ = jax.lax.while_loop(unfinished, advance, start)
    path, converged = _irls_step(jax.lax.stop_gradient(path), *data, order)

    rate = jnp.exp(path[0] + offset)
    _, _, variance = _smooth(path[0], weight * rate, penalty, order)
    return WhittakerFit(
        rate=rate,
        log_se=jnp.sqrt(variance),
        edf=jnp.sum(weight * rate * variance),
        deviance=glm.poisson_deviance(counts, rate, weight=weight),
        converged=converged & jnp.all(jnp.isfinite(rate)),
    )


def whittaker_select(
    counts: Num[Array, " T"],
    *,
    penalties: Sequence[float] | Float[Array, " G"] = PENALTIES,
    order: int = 2,
    criterion: str = "cv",
    folds: Bool[Array, "F T"] | np.ndarray | None = None,
    offset: Float[Array, " T"] | None = None,
) -> tuple[WhittakerFit, PenaltyPath]:
    """Fits `whittaker_poisson` with the penalty of least held-out deviance ("cv") or GCV ("gcv").

    Args:
        counts: `[T]` events per day.
        penalties: `[G]` grid, increasing; the largest (smoothest) of equals wins.
        order: of the difference.
        criterion: "cv" or "gcv".
        folds: `[F, T]` held-out days, `blocked_folds(T)` by default.
        offset: `[T]` known part of the log rate.

    Returns:
        `(fit, path)`.

    Raises:
        ValueError: on an unknown criterion, and as `whittaker_poisson` and `penalty_path`.
    """
    if criterion not in ("cv", "gcv"):
        raise ValueError(f"criterion must be 'cv' or 'gcv', got {criterion!r}")

    def fit(weight, penalty):
        result = whittaker_poisson(
            counts, penalty=penalty, order=order, offset=offset, weight=weight
        )
        return result.rate, result.edf, result.deviance

    path = penalty_path(fit, counts, penalties, folds=folds)
    score = getattr(path, criterion)
    best = path.penalties[score.shape[0] - 1 - jnp.argmin(score[::-1])]
    return whittaker_poisson(counts, penalty=best, order=order, offset=offset), path


def penalty_path(
    fit: Callable[[Array, Array], tuple[Array, Array, Array]],
    counts: Num[Array, " T"],
    penalties: Sequence[float] | Float[Array, " G"],
    *,
    folds: Bool[Array, "F T"] | np.ndarray | None = None,
) -> PenaltyPath:
    """Scores every penalty by GCV and by blocked cross-validation, in one vmapped program.

    Args:
        fit: `fit(weight [T], penalty) -> (rate [T], edf, deviance)`, a rate also on days of weight
            zero; for example a `glm.poisson_glm` with `penalty=p * design.penalty`.
        counts: `[T]` events per day.
        penalties: `[G]` grid.
        folds: `[F, T]` True on the days that each fold holds out; `blocked_folds(T)` by default.

    Returns:
        `PenaltyPath`.

    Raises:
        ValueError: if the folds do not fit the counts, or the grid is not a vector.
    """
    folds = blocked_folds(counts.shape[0]) if folds is None else folds
    _check_folds(folds, counts)
    counts, everyday, _ = glm.prepare_counts(counts, None, None, None)
    held_out = jnp.asarray(folds, counts.dtype)
    grid = jnp.asarray(penalties, counts.dtype)
    if grid.ndim != 1 or grid.shape[0] < 1:
        raise ValueError(f"penalties must be a vector of at least one, got shape {grid.shape}")

    # The last lane holds nothing out: the fit to all days.
    lanes = jnp.concatenate([1.0 - held_out, everyday[None, :]])
    by_lane = jax.vmap(fit, in_axes=(0, None))
    rate, edf, deviance = jax.vmap(by_lane, in_axes=(None, 0))(lanes, grid)
    score = jax.vmap(lambda r, w: glm.poisson_deviance(counts, r, weight=w))
    cv = jnp.sum(jax.vmap(score, in_axes=(0, None))(rate[:, :-1], held_out), axis=1)
    edf, num_days = edf[:, -1], counts.shape[0]
    gcv = num_days * deviance[:, -1] / jnp.square(num_days - edf)
    return PenaltyPath(grid, cv / jnp.sum(held_out), gcv, edf)


def stl_blocked_cv(
    counts: Num[Array, " T"],
    configs: Sequence[decomposition.STLConfig] | None = None,
    *,
    period: int = 7,
    keep_seasonal: bool = False,
    folds: Bool[Array, "F T"] | np.ndarray | None = None,
    passes: int = 8,
) -> STLSelection:
    """Chooses the spans of an STL rate by the Poisson deviance of held-out blocks of days.

    STL knows no gaps: a held-out block starts as the line between local means on either side and is
    replaced by the fitted trend + seasonal in each of `passes` passes.  Its own counts are never
    used.  Unlike the smallest residual SD this does not reward following the noise.

    Args:
        counts: `[T]` events per day.
        configs: G candidates (degree 2 is read as 1), by default seasonal span 7 with the trend
            spans `TREND_SPANS`.
        period: days per season.
        keep_seasonal: whether the rate is trend + seasonal, or the trend alone.
        folds: `[F, T]` held-out days, `blocked_folds(T)` by default.
        passes: times the gaps are refilled, static.

    Returns:
        `STLSelection`; rates are at least `MIN_RATE`.

    Raises:
        ValueError: if there is no candidate, the folds do not fit, or a span does not.
    """
    if configs is None:
        configs = [decomposition.STLConfig(seasonal=7, trend=span) for span in TREND_SPANS]
    if len(configs) == 0 or passes < 1:
        raise ValueError("need at least one STLConfig and passes >= 1")
    folds = blocked_folds(counts.shape[0]) if folds is None else folds
    _check_folds(folds, counts)
    counts, _, _ = glm.prepare_counts(counts, None, None, None)
    # The last lane holds nothing out: the fit to all days.
    masks = jnp.concatenate([jnp.asarray(folds), jnp.zeros((1, counts.shape[0]), bool)])
    held_out = masks.astype(counts.dtype)
    width = jnp.asarray(100.0, counts.dtype)  # about 10 days on either side of a gap
    bridge, _, _ = jax.vmap(lambda w: _smooth(counts, w, width, 1))(1.0 - held_out)

    def evaluate(config):
        config = decomposition.STLConfig(*config)
        trend, seasonal = _refilled(counts, masks, bridge, config, period, passes)
        rate = jnp.maximum(trend + seasonal if keep_seasonal else trend, MIN_RATE)
        deviance = jax.vmap(lambda r, w: glm.poisson_deviance(counts, r, weight=w))(rate, held_out)
        return jnp.sum(deviance) / jnp.sum(held_out), rate[-1]

    # Spans are static: one program per candidate instead of one vmap.
    scores, rates = zip(*(evaluate(config) for config in configs), strict=True)
    cv = jnp.stack(scores)
    best = jnp.argmin(cv).astype(jnp.int32)
    return STLSelection(best, jnp.stack(rates)[best], cv)


def blocked_folds(num_days: int, *, block: int = 28, num_folds: int = 5) -> np.ndarray:
    """Returns `[F, T]` bool: fold f holds out the blocks f, f + F, f + 2F, ... of `block` days.

    Blocks longer than the correlation time keep the neighbors of a held-out day from giving it
    away; a multiple of 7 keeps the weekdays balanced.

    Args:
        num_days: T.  block: days per block.  num_folds: F, 2 at least.

    Raises:
        ValueError: if the days do not fill one block per fold.
    """
    if block < 1 or num_folds < 2 or num_days <= block * (num_folds - 1):
        raise ValueError(
            f"{num_days} days do not make {num_folds} folds (2 at least) of blocks of {block} days"
        )
    fold = (np.arange(num_days) // block) % num_folds
    return fold[None, :] == np.arange(num_folds)[:, None]


def _irls_step(path, counts, penalty, offset, weight, order):
    """Takes one damped step for (log rate beyond the offset, its differences of that order)."""
    eta, diff = path
    mean = jnp.exp(eta + offset)
    target, target_diff, _ = _smooth(eta + (counts - mean) / mean, weight * mean, penalty, order)
    move, move_diff = target - eta, target_diff - diff
    finite = jnp.all(jnp.isfinite(move) & jnp.isfinite(move_diff))
    move, move_diff = (jnp.where(finite, m, 0.0) for m in (move, move_diff))
    bend = penalty * jnp.sum(diff * move_diff)
    curve = penalty * jnp.sum(jnp.square(move_diff))
    information = weight * mean

    def gain(factor):  # of the penalized likelihood, written without cancellation
        linear = weight * (counts - mean) * factor * move
        rest = jnp.expm1(factor * move) - factor * move
        gained = jnp.sum(linear - information * rest)
        return gained - factor * bend - 0.5 * jnp.square(factor) * curve

    eps = float(jnp.finfo(eta.dtype).eps)
    slack = jnp.sum((weight * counts + information) * jnp.abs(move)) + curve
    slack = 8.0 * eps * (slack + penalty * jnp.sum(jnp.abs(diff * move_diff)))
    small = glm.is_small(jnp.sum(information * jnp.square(move)) + curve, jnp.sum(information))
    factor = jnp.where(small, 1.0, glm.longest_uphill(gain, slack))
    return (eta + factor * move, diff + factor * move_diff), small & finite


@functools.partial(jax.jit, static_argnums=3)
def _smooth(
    z: Float[Array, " T"], w: Float[Array, " T"], penalty: Float[Array, ""], order: int
) -> tuple[Float[Array, " T"], Float[Array, " T"], Float[Array, " T"]]:
    """Minimizes sum w (eta - z)^2 + penalty sum v^2, v the differences of the given order.

    The state x = (eta, its differences up to order - 1) follows x' = F x + e v, F = 1 + shift and e
    the last unit vector.  Backwards: the cost to go x' J x / 2 - b' x; the best v is k - K' x.
    Forwards: the best path and its posterior covariance.  In this basis nothing of the size of the
    penalty is ever subtracted, unlike in a banded Cholesky factorization of diag(w) + D'D penalty.

    Returns:
        `(eta [T], v [T], variance of eta [T])`.
    """

    def ahead(x):  # F x, on the first axis
        return x + jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])

    def back(x):  # F' x, on the first axis
        return x + jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    def cost_to_go(carry, day):
        info, b = carry
        z_t, w_t = day
        last = info[:, -1]
        slack = 1.0 / (penalty + last[-1])
        gain, push = slack * back(last), slack * b[-1]
        info = info - slack * last[:, None] * last[None, :]
        info = back(back(info).T)
        info = (0.5 * (info + info.T)).at[0, 0].add(w_t)
        b = back(b - push * last).at[0].add(w_t * z_t)
        return (info, b), (gain, push, slack)

    def follow(carry, law):
        x, cov = carry
        gain, push, slack = law
        v = push - jnp.sum(gain * x)
        out = (x[0], v, cov[0, 0])
        x = ahead(x).at[-1].add(v)
        # (F - e gain') cov (F - e gain')' + e e' slack
        cov = ahead(cov).at[-1].add(-jnp.sum(gain[:, None] * cov, axis=0))
        cov = ahead(cov.T).at[-1].add(-jnp.sum(gain[:, None] * cov.T, axis=0))
        return (x, cov.at[-1, -1].add(slack)), out

    nothing = (jnp.zeros((order, order), z.dtype), jnp.zeros((order,), z.dtype))
    (info, b), law = jax.lax.scan(cost_to_go, nothing, (z, w), reverse=True)
    cov = glm.solve_spd(info, jnp.eye(order, dtype=z.dtype))
    _, (eta, v, variance) = jax.lax.scan(follow, (glm.solve_spd(info, b), cov), law)
    return eta, v, variance


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _refilled(counts, masks, bridge, config: decomposition.STLConfig, period: int, passes: int):
    """Returns trend and seasonal part of every lane, its gaps filled by its own fit."""

    def decompose(y):
        return decomposition.stl(
            y,
            period=period,
            seasonal=config.seasonal,
            trend=config.trend,
            degrees=(config.seasonal_degree, config.trend_degree, 1),
            robust=config.robust,
        )

    def refill(carry, _):
        trend, seasonal = carry
        y = jnp.where(masks, trend + seasonal, counts[None, :])
        result = jax.vmap(decompose)(y)
        return (result.trend, result.seasonal), None

    start = (bridge, jnp.zeros_like(bridge))
    return jax.lax.scan(refill, start, None, length=passes)[0]


def _check_folds(folds, counts) -> None:
    if counts.ndim != 1 or folds.ndim != 2 or folds.shape[1] != counts.shape[0]:
        raise ValueError(f"need counts [T] and folds [F, T], got {counts.shape} and {folds.shape}")
