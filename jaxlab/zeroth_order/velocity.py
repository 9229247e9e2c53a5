"""The velocity of ZOFL at one point: measure, solve for the multiplier, and move.

Source: arXiv:2509.24056, plug-in form; the subspace form, the metrics on the directions, and
bounds inside the multiplier are derived.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.zeroth_order import estimators, field, kkt, multiplier, settings
from jaxlab.zeroth_order.estimators import Stencil
from jaxlab.zeroth_order.problem import Problem
from jaxlab.zeroth_order.settings import ZOFLConfig

BOUND_GAIN = 1.0  # a bound is linear and free of noise: it may be reached in one step


class Memory(NamedTuple):
    """What ZOFL carries between steps; `()` where a setting does not use it.

    Attributes:
        eta: `()`, the step measured at the start when none was given; 0 where that failed.
        x_prev: `[n]`, previous iterate (momentum).
        slack: `[m_ineq]`, slack variables.
        integral: `[m]`, accumulated constraint values (FL-PI).
        average: `([1 + m, n], bool)`, averaged gradient estimates, and whether there are any (ema).
        moments: `(first, second, count)`, `[n]` twice and int32 (adam).
    """

    eta: Any = ()
    x_prev: Any = ()
    slack: Any = ()
    integral: Any = ()
    average: Any = ()
    moments: Any = ()


class Field(NamedTuple):
    """The velocity at a point and what led to it.

    Attributes:
        F: `[n]`, velocity.
        lam: `[m + bounds]`, multiplier of the constraints, then of lower and upper bounds.
        residual: what the multiplier's solver left unsolved.
        gap: estimated KKT gap, bounds included.
        q0: `[1 + m]`, values at the point.
        memory: updated memory.  eta: `()`, step.
        found: the directional derivatives.  metric: the metric on the directions.
    """

    F: Float[Array, " n"]
    lam: Float[Array, " k"]
    residual: Float[Array, ""]
    gap: Float[Array, ""]
    q0: Float[Array, " d"]
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
            eta = jnp.where(eta > 0.0, eta, initial_step(found, x, problem.m_eq, config))
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

    solve = functools.partial(_solve, config=config, K=K, slack=memory.slack)
    v, lam, residual = field.feedback(found.D[0], D_h, fed, K, m_eq, metric=metric, solve=solve)
    if not isinstance(memory.integral, tuple):
        # An inequality that is slack and does not act must not wind up (conditional integration).
        idle = (jnp.arange(m) >= m_eq) & (lam[:m] == 0.0) & (h[:m] < 0.0)
        memory = memory._replace(integral=jnp.where(idle, memory.integral, integral))
    slope = found.c * found.lift(found.D[0] + lam @ D_h)  # gradient of the Lagrangian
    F = -slope if config.metric == "identity" else found.lift(v)
    gap = jnp.maximum(jnp.linalg.norm(slope), jnp.abs(jnp.sum(lam[m_eq:] * h[m_eq:])))
    gap = jnp.maximum(gap, kkt.max_violation(h, m_eq))
    if config.max_velocity is not None:
        norm = jnp.linalg.norm(F)
        F = F * jnp.where(norm > config.max_velocity, config.max_velocity / norm, 1.0)
    return Field(F, lam, residual, gap, found.q0, memory, jnp.asarray(eta, dtype), found, metric)


def initial_step(
    found: field.Probe, x: Float[Array, " n"], m_eq: int, config: ZOFLConfig
) -> Float[Array, ""]:
    """Returns a step for the scale of the problem: a quarter of the inverse curvature there.

    The curvature is the Lagrangian's, the largest one along the probe's directions, at the
    multiplier that keeps the constraints where they are; directions miss part of it, and it grows
    along the way, hence the quarter. The first step moves by max(1, |x|) at most.

    Args:
        found: a probe at x with curvatures.  x: `[n]`.  m_eq: number of equalities.
        config: momentum adds up 1 / (1 - beta) steps, and takes that share of one.

    Raises:
        ValueError: if the probe has no curvatures, as those of forward differences and exact ones.
    """
    if found.curvature is None:
        raise ValueError("a first step needs curvatures; take a probe by central differences")
    m = found.q0.shape[0] - 1
    still = jnp.zeros((m,), x.dtype)
    v, lam, _ = field.feedback(
        found.D[0], found.D[1:], still, still, m_eq, metric=field.scalar_metric(found.c)
    )
    curvature = jnp.max(jnp.abs(found.curvature[0] + lam @ found.curvature[1:]))
    # A unit direction has length |s|^2 = n / (B c); Gaussian ones are longer.
    curvature = curvature / _squared_length(found)
    # A velocity that is 0 up to rounding must not make the step infinite, nor must no curvature.
    slope = jnp.linalg.norm(found.c * found.lift(found.D[0]))
    speed = jnp.maximum(jnp.linalg.norm(found.lift(v)), 1e-3 * jnp.maximum(1.0, slope))
    reach = jnp.maximum(1.0, jnp.linalg.norm(x)) / speed
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


def _squared_length(found: field.Probe) -> float | Array:
    """Returns the mean squared length of the directions, from E[c S S'] = I: n / (B c)."""
    B = found.D.shape[1]
    n = jax.eval_shape(found.lift, found.D[0]).shape[0]
    return n / (B * found.c)


def _curvature_noise(problem: Problem, found: field.Probe, u: Array) -> Array:
    """Returns how large a measured second derivative of zero may be: rounding, noise, bias."""
    dtype = found.q0.dtype
    rounding = 20.0 * float(jnp.finfo(dtype).eps) * jnp.maximum(1.0, jnp.abs(found.q0[0]))
    noise = 5.0 * jnp.asarray(problem.sigma, dtype)
    assert found.curvature is not None
    bias = 10.0 * u**2 * jnp.max(jnp.abs(found.curvature[0]))
    return (rounding + noise) / u**2 + bias
