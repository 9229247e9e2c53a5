"""The velocity of ZOFL at one point: measure, solve for the multiplier, and move.

Source: arXiv:2509.24056, plug-in form; the subspace form, the metrics on the directions, and
bounds inside the multiplier are derived.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.zeroth_order import direction_sets, estimators, field, kkt, multiplier, settings
from jaxlab.zeroth_order.control import Control
from jaxlab.zeroth_order.estimators import Stencil
from jaxlab.zeroth_order.problem import Problem
from jaxlab.zeroth_order.settings import ZOFLConfig

BOUND_GAIN = 1.0  # a bound is linear and free of noise: it may be reached in one step
LEAST_SHARE = 0.01  # of a measured gradient that may be true: all of one may be noise


class Memory(NamedTuple):
    """What ZOFL carries between steps; `()` where a setting does not use it.

    Attributes:
        eta: `()`, the step measured at the start when none was given; 0 where that failed.
        x_prev: `[n]`, previous iterate (momentum).
        slack: `[m_ineq]`, slack variables.
        integral: `[m]`, accumulated constraint values (FL-PI).
        average: `([1 + m, n], bool)`, averaged gradient estimates, and whether there are any (ema).
        moments: `(first, second, count)`, `[n]` twice and int32 (adam).
        control: what the control of the step knows.
        first: `(gradient, rounding)` of the first field, by which its status is judged; -1 before.
    """

    eta: Any = ()
    x_prev: Any = ()
    slack: Any = ()
    integral: Any = ()
    average: Any = ()
    moments: Any = ()
    control: Control | tuple[()] = ()
    first: Any = ()


class Field(NamedTuple):
    """The velocity at a point and what led to it.

    Attributes:
        F: `[n]`, velocity.
        lam: `[m + bounds]`, multiplier of the constraints, then of lower and upper bounds.
        residual: what the multiplier's solver left unsolved.
        gap: estimated KKT gap, bounds included; at least what rounding leaves of a gradient.
        q0: `[1 + m]`, values at the point.
        rate: `[1 + m]`, derivative of the values along F.
        slope: length of the gradient of the Lagrangian.  gradient: length of that of f.
        rounding: length of the error that rounding leaves in the first.
        complementarity: |lam' h| over inequalities and bounds.
        memory: updated memory.  eta: `()`, step.
        found: the directional derivatives.  metric: the metric on the directions.
    """

    F: Float[Array, " n"]
    lam: Float[Array, " k"]
    residual: Float[Array, ""]
    gap: Float[Array, ""]
    q0: Float[Array, " d"]
    rate: Float[Array, " d"]
    slope: Float[Array, ""]
    gradient: Float[Array, ""]
    rounding: Float[Array, ""]
    complementarity: Float[Array, ""]
    memory: Memory
    eta: Array
    found: field.Probe
    metric: field.Metric


def zofl_field(
    key: Array,
    problem: Problem,
    x: Float[Array, " n"],
    config: ZOFLConfig,
    *,
    t: Array,
    memory: Memory = Memory(),  # noqa: B008
    step_scale: float | Array = 1.0,
    evaluate: Callable[..., Array] = estimators.evaluate,
) -> Field:
    """Measures at x and returns the velocity F = -c S (D_f + D_h' lam).

    Args:
        key: source of directions and noise.
        problem: the problem.  x: `[n]`.
        config: settings that `settings.resolve` has completed.
        t: int32, number of the step, for schedules.
        memory: what earlier steps left.
        step_scale: factor on the step, which turns the gain into decay rates K = gain / eta.
        evaluate: evaluates `(q, points, keys)` as one batch.
    """
    assert config.u is not None  # resolved
    u = settings.at(config.u, t, x.dtype)
    found, metric = measure(key, problem, x, config, u=u, evaluate=evaluate)
    if config.eta is None:
        eta = memory.eta
        if found.curvature is not None:  # the measurement at the start has failed: use this one
            now = initial_step(found, x, problem.m_eq, config, sigma=problem.sigma, u=u)
            eta = jnp.where(eta > 0.0, eta, now)
        memory = memory._replace(eta=eta)
    else:
        eta = settings.at(config.eta, t, x.dtype)
    if config.form == "plugin" and config.kind != "exact":
        found = field.plug_in(found, x)
    if memory.average:
        average, started = memory.average
        kept = jnp.where(started, jnp.asarray(config.ema, x.dtype), 0.0)
        found = found._replace(D=kept * average + (1.0 - kept) * found.D)
        memory = memory._replace(average=(found.D, jnp.asarray(True)))
    return controlled(problem, x, config, found, metric, found.q0[1:], memory, eta=eta * step_scale)


def controlled(
    problem: Problem,
    x: Float[Array, " n"],
    config: ZOFLConfig,
    found: field.Probe,
    metric: field.Metric,
    h: Float[Array, " m"],
    memory: Memory,
    *,
    eta: float | Array,
) -> Field:
    """Solves for multiplier and velocity from measured derivatives and constraint values."""
    m, m_eq, dtype = problem.m, problem.m_eq, x.dtype
    assert config.gain is not None  # resolved
    K = config.gain / eta if config.K is None else config.K
    K = jnp.broadcast_to(jnp.asarray(K, dtype), (m,))
    if memory.control:
        K = K * memory.control.pull
    fed = h
    if not isinstance(memory.integral, tuple):
        integral = memory.integral + h
        fed = h - config.integral_gain * integral / K
    D_h, lower_idx, upper_idx = found.D[1:], *settings.bound_rows(problem, config)
    if lower_idx.size or upper_idx.size:
        lower, upper = found.rows(jnp.asarray(lower_idx)), found.rows(jnp.asarray(upper_idx))
        D_h = jnp.concatenate([D_h, -lower, upper])
        outside = jnp.concatenate([(problem.lb - x)[lower_idx], (x - problem.ub)[upper_idx]])
        h, fed = jnp.concatenate([h, outside]), jnp.concatenate([fed, outside])
        K = jnp.concatenate([K, jnp.full(outside.shape, BOUND_GAIN, dtype) / eta])
    if config.control:
        K = K * _within_reach(found, D_h, eta * K * kkt.violation(fed, m_eq), x)

    solve = functools.partial(_solve, config=config, K=K, slack=memory.slack)
    v, lam, residual = field.feedback(found.D[0], D_h, fed, K, m_eq, metric=metric, solve=solve)
    if not isinstance(memory.integral, tuple):
        # An inequality that is slack and does not act must not wind up (conditional integration).
        idle = (jnp.arange(m) >= m_eq) & (lam[:m] == 0.0) & (h[:m] < 0.0)
        memory = memory._replace(integral=jnp.where(idle, memory.integral, integral))
    lagrangian = found.c * found.lift(found.D[0] + lam @ D_h)  # its gradient
    F, rate = -lagrangian if config.metric == "identity" else found.lift(v), found.D @ v
    slope, complementarity = jnp.linalg.norm(lagrangian), jnp.abs(jnp.sum(lam[m_eq:] * h[m_eq:]))
    rounding = found.rounding[0] + jnp.abs(lam[:m]) @ found.rounding[1:]
    gap = jnp.maximum(jnp.maximum(slope, rounding), complementarity)
    gap = jnp.maximum(gap, kkt.max_violation(h, m_eq))
    if config.max_velocity is not None:
        norm = jnp.linalg.norm(F)
        share = jnp.where(norm > config.max_velocity, config.max_velocity / norm, 1.0)
        F, rate = F * share, rate * share
    return Field(
        F=F,
        lam=lam,
        residual=residual,
        gap=gap,
        q0=found.q0,
        rate=rate,
        slope=slope,
        gradient=jnp.linalg.norm(found.c * found.lift(found.D[0])),
        rounding=rounding,
        complementarity=complementarity,
        memory=memory,
        eta=jnp.asarray(eta, dtype),
        found=found,
        metric=metric,
    )


def is_stationary(
    here: Field, first: tuple[Array, Array], x: Float[Array, " n"], m_eq: int, config: ZOFLConfig
) -> Array:
    """Says whether nothing is left to do but for the feasibility of the point.

    The gradient of the Lagrangian must be below `config.tolerance` times the gradient of f, here or
    at the start, or be lost in rounding that is no worse than at the start; complementarity
    likewise, times max(1, |x|), the change of f that such a gradient is worth. A start far away may
    be as steep as it likes: where the curvature here is known, its gradient counts up to that of a
    bowl of this curvature max(1, |x|) away from its bottom. Active constraints as many as the
    directions hide the gradient from them: then nothing is said.

    Args:
        here: the field at x.
        first: gradient of f and rounding of the first field, `Field.gradient` and `rounding`.
        x: `[n]`.  m_eq: number of equalities.
        config: settings that `settings.resolve` has completed.
    """
    gradient, rounding = first
    reach = jnp.maximum(1.0, jnp.linalg.norm(x))
    if here.found.curvature is not None:
        curvature = _curvature(here.found, here.lam[: here.found.D.shape[0] - 1])
        gradient = jnp.minimum(gradient, jnp.max(jnp.abs(curvature)) * reach)
    scale = config.tolerance * jnp.maximum(here.gradient, gradient)
    small = jnp.maximum(here.slope, here.rounding) <= scale
    lost = (here.slope <= 2.0 * here.rounding) & (here.rounding <= 2.0 * rounding)
    balanced = here.complementarity <= scale * reach
    num_active = m_eq + jnp.sum(here.lam[m_eq:] > 0.0)
    B = here.found.D.shape[1]
    return (small | lost) & balanced & ((num_active < B) | (B >= x.shape[0]))


def initial_step(
    found: field.Probe,
    x: Float[Array, " n"],
    m_eq: int,
    config: ZOFLConfig,
    *,
    sigma: float | Array = 0.0,
    u: float | Array | None = None,
) -> Float[Array, ""]:
    """Returns a step for the problem at hand: 1 / (4 L r), L its curvature and r >= 1 the spread.

    L is the curvature of the Lagrangian, the largest one along the probe's directions, at the
    multiplier that keeps the constraints where they are; directions miss part of it, and it grows
    along the way, hence the quarter. r = E|g|^2 / |E g|^2 is how much longer estimated gradients g
    are than the true one: n / B for orthonormal directions (`gram_inflation`), and more with noise.
    A step along g lowers a quadratic on average up to 2 / (L r). The first step moves by
    max(1, |x|) at most.

    Args:
        found: a probe at x with curvatures.  x: `[n]`.  m_eq: number of equalities.
        config: its directions, and momentum, which adds up 1 / (1 - beta) steps and takes that
            share of one.
        sigma: standard deviation of the noise on every value.
        u: radius of the probe; None takes its curvatures for exact.

    Raises:
        ValueError: if the probe has no curvatures, as those of forward differences and exact ones.
    """
    if found.curvature is None:
        raise ValueError("a first step needs curvatures; take a probe by central differences")
    n, m, B, dtype = x.shape[0], found.q0.shape[0] - 1, found.D.shape[1], x.dtype
    still = jnp.zeros((m,), dtype)
    v, lam, _ = field.feedback(
        found.D[0], found.D[1:], still, still, m_eq, metric=field.scalar_metric(found.c)
    )
    along = jnp.abs(found.curvature[0] + lam @ found.curvature[1:])
    curvature, variance = jnp.max(along), jnp.zeros((), dtype)
    if u is not None:
        sigma = jnp.asarray(sigma, dtype) * jnp.sqrt(1.0 + jnp.sum(lam**2))
        values = jnp.abs(found.q0[0]) + jnp.abs(lam) @ jnp.abs(found.q0[1:])
        error = 6.0**0.5 * (sigma + float(jnp.finfo(dtype).eps) * values) / u**2
        # Without its error the largest of B would be less by so much; the mean errs less.
        lucky = (2.0 * math.log(2.0 * B)) ** 0.5 * error
        mean = jnp.abs(jnp.mean(found.curvature[0] + lam @ found.curvature[1:]))
        curvature = jnp.minimum(curvature, jnp.maximum(curvature - lucky, mean + error / B**0.5))
        variance = found.c * n * sigma**2 / (2.0 * u**2)  # of c S D, as `noise_variance`
    # A unit direction has length |s|^2 = n / (B c); Gaussian ones are longer.
    curvature = curvature / _squared_length(found)
    # A velocity that is 0 up to rounding must not make the step infinite, nor must no curvature.
    slope = jnp.linalg.norm(found.c * found.lift(found.D[0]))
    length = jnp.linalg.norm(found.lift(v))
    speed = jnp.maximum(length, 1e-3 * jnp.maximum(1.0, slope))
    reach = jnp.maximum(1.0, jnp.linalg.norm(x)) / speed
    true_share = jnp.maximum(1.0 - variance / jnp.maximum(length, 1e-3 * speed) ** 2, LEAST_SHARE)
    spread = 1.0 if config.kind == "exact" else direction_sets.gram_inflation(n, B, config.kind)
    curvature = curvature * spread / true_share
    eta = jnp.minimum(0.25 / jnp.maximum(curvature, 0.25 / reach), reach)
    return eta * (1.0 - config.beta) if config.scheme == "momentum" else eta


def measure(
    key: Array,
    problem: Problem,
    x: Float[Array, " n"],
    config: ZOFLConfig,
    *,
    u: Array,
    evaluate: Callable[..., Array] = estimators.evaluate,
) -> tuple[field.Probe, field.Metric]:
    """Measures derivatives along directions, and the metric on them."""
    if config.kind == "exact":
        exact = problem.exact
        assert exact is not None  # resolved
        found = field.exact_probe(exact, x)
        if config.metric == "identity":
            return found, field.scalar_metric(1.0)
        H = jax.hessian(lambda x: exact(x)[0])(x)
        if config.metric == "newton":
            return found, field.newton_metric(H, config.newton_fill)
        return found, field.diagonal_metric(jnp.diagonal(H), config.newton_fill)
    stencil = _stencil(config, u)
    if config.chunk is not None:
        found = field.streamed_probe(
            key, problem.q, x, stencil, kind=config.kind, chunk=config.chunk
        )
    else:
        lb, ub = (problem.lb, problem.ub) if settings.is_boxed(problem) else (None, None)
        found = field.probe(
            key,
            problem.q,
            x,
            stencil,
            kind=config.kind,
            lb=lb,
            ub=ub,
            pairs=config.metric == "newton",
            evaluate=evaluate,
        )
    if config.form == "plugin":
        return found, field.scalar_metric(1.0)
    if config.metric == "newton":
        assert found.hessian is not None
        noise = _curvature_noise(problem, found, u)
        return found, field.newton_metric(
            found.hessian, config.newton_fill, scale=found.c, noise=noise
        )
    if config.metric == "diagonal":
        assert found.curvature is not None
        noise = _curvature_noise(problem, found, u)
        return found, field.diagonal_metric(
            found.curvature[0], config.newton_fill, scale=found.c, noise=noise
        )
    return found, field.scalar_metric(found.c)


def probe_queries(config: ZOFLConfig) -> int:
    """Returns the joint queries of one velocity; one evaluation counts as one with `exact`."""
    if config.kind == "exact":
        return 1
    stencil = _stencil(config, 1.0)  # of any radius
    pairs = stencil.B * (stencil.B - 1) if config.metric == "newton" else 0
    return stencil.num_queries + pairs


def _stencil(config: ZOFLConfig, u: float | Array) -> Stencil:
    assert config.B is not None  # resolved
    return Stencil(config.B, u, config.central, config.center_repeats, config.common_noise)


def _solve(
    A: Array, b: Array, m_eq: int, *, config: ZOFLConfig, K: Array, slack: Any
) -> tuple[Array, Array]:
    """Solves for the multiplier in the configured way."""
    if config.feedback == "diagonal":
        lam = multiplier.diagonal_multiplier(A, b, m_eq)
        return lam, multiplier.residual(A, b, lam, m_eq)
    if not isinstance(slack, tuple):
        # Bounds keep their inequality; the slack constraints in between become equalities.
        bounds = jnp.zeros((b.shape[0] - m_eq - slack.shape[0],), b.dtype)
        A, b = multiplier.slack_system(A, b, K, jnp.concatenate([slack, bounds]), m_eq)
        m_eq = m_eq + slack.shape[0]
    return multiplier.fl_multiplier(
        A,
        b,
        m_eq,
        "clip" if config.ineq == "clip" else "nnqp",
        ridge=config.ridge,
        iterations=config.iterations,
        solver=config.solver,
        max_multiplier=config.max_multiplier,
    )


def _within_reach(found: field.Probe, D_h: Array, asked: Array, x: Array) -> Array:
    """Returns the share of each decay that a move of max(1, |x|) can bring about alone, `[k]`.

    A constraint that is violated where it is all but flat asks for a move without bounds, and would
    take the step for itself.

    Args:
        D_h: `[k, B]`, derivatives.  asked: `[k]`, change of the violated ones that is asked for.
    """
    longest = jnp.maximum(1.0, jnp.linalg.norm(x))
    can = longest * jnp.linalg.norm(D_h, axis=1) / jnp.sqrt(_squared_length(found))
    return jnp.where((asked > can) & (can > 0.0), can / jnp.where(asked > 0.0, asked, 1.0), 1.0)


def _curvature(found: field.Probe, lam: Array) -> Float[Array, " B"]:
    """Returns second derivatives of the Lagrangian along unit vectors in the probe's directions.

    A direction has the squared length n / (B c); Gaussian ones have it in the mean.
    """
    assert found.curvature is not None
    return (found.curvature[0] + lam @ found.curvature[1:]) / _squared_length(found)


def _squared_length(found: field.Probe) -> Array:
    """Returns the mean squared length of the directions, from E[c S S'] = I: n / (B c)."""
    B = found.D.shape[1]
    n = jax.eval_shape(found.lift, found.D[0]).shape[0]
    return jnp.asarray(n / (B * found.c), found.q0.dtype)


def _curvature_noise(problem: Problem, found: field.Probe, u: Array) -> Array:
    """Returns how large a measured second derivative of zero may be: rounding, noise, bias."""
    dtype = found.q0.dtype
    rounding = 20.0 * float(jnp.finfo(dtype).eps) * jnp.maximum(1.0, jnp.abs(found.q0[0]))
    noise = 5.0 * jnp.asarray(problem.sigma, dtype)
    assert found.curvature is not None
    bias = 10.0 * u**2 * jnp.max(jnp.abs(found.curvature[0]))
    return (rounding + noise) / u**2 + bias
