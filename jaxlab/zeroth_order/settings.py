"""Settings of ZOFL, their validation, and schedules of step and radius.

Sources of the defaults: arXiv:2509.24056 and arXiv:2503.12665 where they state them; steps, radii
and the subspace form are derived (see the README of the room).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxlab.zeroth_order import direction_sets, estimators, multiplier
from jaxlab.zeroth_order.problem import Problem, check_start

Schedule = Callable[[Array], Array]
"""A value for each step, `schedule(t)` with t = 0, 1, ... int32, as in optax."""
Kind = Literal[
    "gaussian", "sphere", "orthonormal", "coordinate", "block", "rademacher", "hadamard", "exact"
]
Form = Literal["subspace", "plugin"]
Scheme = Literal["euler", "midpoint", "mid_reuse", "momentum", "adam"]
Ineq = Literal["nnqp", "slack", "clip"]
Metric = Literal["identity", "diagonal", "newton"]
Feedback = Literal["full", "diagonal"]
Bounds = Literal["constraints", "clip"]


class ZOFLConfig(NamedTuple):
    """Settings of ZOFL; numbers may be traced, so that a sweep is a `vmap`.

    Attributes:
        eta: step, a number or a `Schedule`; None measures one at the start (`initial_step`).
        gain: a = eta K in (0, 2), the share of each violation removed per step, one number or
            `[m]`; None is 0.5 without noise and 0.1 with it.
        K: decay rates, one number or `[m]`, in place of `gain`.
        B: number of directions; None is min(n, max(2 m_eq, 16)), n for `coordinate`.
        kind: direction set (`direction_sets.KINDS`), or `exact` for derivatives of `problem.exact`.
        u: radius of the differences, a number or a `Schedule`; None is 1e-3 (1e-2 in float32),
            with noise min(0.1, max(that, sigma^(1/3))), for variables of order 1.
        form: `subspace`: feasible to first order for any directions; `plugin`: the paper's, with
            estimated gradients in place of the true ones.
        scheme: `euler`; `midpoint`, with new differences at the half step; `mid_reuse`, with one
            query there; `momentum` (heavy ball with look-ahead); `adam` (FL direction into Adam).
        ineq: `nnqp` (exact), `slack` (closed form), `clip` (ablation with wrong fixed points).
        metric: T = identity, or 1 / curvature of f along the directions (`diagonal`), or the
            inverse Hessian of f on their span (`newton`, with B (B - 1) more queries).
        feedback: `full`, or `diagonal` feedback without a linear system (FL-PI).
        bounds: `constraints` takes the finite bounds into the multiplier, for they are known
            exactly; `clip` projects the step, which is cheap but has wrong fixed points where a
            constraint and a bound are active together.
        beta: momentum in [0, 1).
        ema: share of the previous gradient estimate that is kept, in [0, 1); `plugin` form.
        integral_gain: K_I <= 0 of FL-PI, with diagonal feedback.
        ridge: regularization of the multiplier's system, relative to its diagonal.
        iterations: most sweeps of the multiplier.  solver: see `multiplier.nnqp`.
        max_multiplier: cap on every |lam_i|, or None; see `multiplier.fl_multiplier`.
        max_velocity: cap on the norm of the velocity, or None.
        newton_fill: curvature in place of those that are not positive.
        control: adapts the step at the values measured anyway, see `control`: a point with a higher
            f + mu sum violation than the last is turned down, a step that does what it should
            grows (a step that is given, or noise: up to itself), and no constraint asks for a
            correction longer than max(1, |x|) at once. None: on where the velocity descends on
            that merit, which is the subspace form or exact derivatives, with full feedback,
            `nnqp`, bounds among the constraints, no Adam, no ema and no Armijo search. False is
            the method of the theory, whose step does not look back.
        armijo: number of trial steps eta, eta/2, ... of a line search on f + mu sum violation; the
            metric `zo/line_search` is 0 where none of them decreased it, and the last was taken.
        tolerance: what may be left of the gradient of f for the status `CONVERGED`, as a share.
        central: central or forward differences.
        center_repeats: queries of the iterate whose mean is its value.
        common_noise: both sides of a difference share their noise key.
        chunk: directions in memory at a time, for n of a million; None for all.
    """

    eta: float | Array | Schedule | None = None
    gain: float | Array | None = None
    K: float | Array | None = None
    B: int | None = None
    kind: Kind = "orthonormal"
    u: float | Array | Schedule | None = None
    form: Form = "subspace"
    scheme: Scheme = "euler"
    ineq: Ineq = "nnqp"
    metric: Metric = "identity"
    feedback: Feedback = "full"
    bounds: Bounds = "constraints"
    beta: float | Array = 0.8
    ema: float | Array = 0.0
    integral_gain: float | Array = 0.0
    ridge: float | Array = 1e-8
    iterations: int = 200
    solver: multiplier.Solver = "hildreth"
    max_multiplier: float | Array | None = None
    max_velocity: float | Array | None = None
    newton_fill: float | Array = 1.0
    control: bool | None = None
    armijo: int = 0
    tolerance: float | Array = 1e-4
    central: bool = True
    center_repeats: int = 1
    common_noise: bool = False
    chunk: int | None = None


def resolve(problem: Problem, config: ZOFLConfig) -> ZOFLConfig:
    """Fills in what was left to the problem, and checks the rest.

    Raises:
        ValueError: if a setting is out of range, or settings contradict each other or the problem.
    """
    if not isinstance(config, ZOFLConfig):
        raise ValueError(
            f"config must be a ZOFLConfig, got {type(config).__name__}; write ZOFLConfig(...) with "
            "the settings that differ from the defaults"
        )
    n, m, m_eq, dtype = problem.n, problem.m, problem.m_eq, problem.x0.dtype
    check_start(problem.x0, problem.lb, problem.ub)
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}"
            )
    exact = config.kind == "exact"
    if exact and problem.exact is None:
        raise ValueError("kind='exact' needs problem.exact, a differentiable function")
    B = config.B
    if exact or (B is None and config.kind == "coordinate"):
        B = n
    elif B is None:
        B = min(n, max(2 * m_eq, 16))
    if not exact:
        direction_sets.check_directions(n, B, config.kind)
    if config.form == "subspace" and B < m_eq:
        raise ValueError(
            f"the subspace form needs at least as many directions as equalities, got B = {B} and "
            f"m_eq = {m_eq}; raise B or use form='plugin'"
        )
    sigma = problem.sigma
    if config.gain is not None and config.K is not None:
        raise ValueError("gain = eta K and K are two names for one choice: give one of them")
    gain = jnp.where(sigma > 0.0, 0.1, 0.5) if config.gain is None else config.gain
    u = default_radius(sigma, dtype) if config.u is None else config.u
    _check_numbers(config._replace(gain=gain, u=u), m)
    config = config._replace(B=B, gain=gain, u=u)
    _check_combinations(problem, config, exact)
    if config.control is None:
        config = config._replace(control=_descends(problem, config))
    return config


def default_radius(sigma: float | Array, dtype: Any) -> Array:
    """Returns the radius for variables of order 1: 1e-3 (1e-2 in float32), up to 0.1 with noise.

    With noise sigma it is sigma^(1/3), which balances noise and bias of central differences.
    """
    least = 1e-3 if jnp.finfo(dtype).bits >= 64 else 1e-2
    return jnp.clip(jnp.asarray(sigma, dtype) ** (1.0 / 3.0), least, 0.1)


def polynomial_step(eta: float | Array, t0: float | Array, power: float | Array) -> Schedule:
    """Returns the schedule eta / (1 + t / t0)^power; powers 1/2 and 1 are usual."""
    return lambda t: eta / (1.0 + t / t0) ** power


def shrinking_radius(u: float | Array, least: float | Array) -> Schedule:
    """Returns the schedule max(u / sqrt(t + 1), least); `least` is about sigma^(1/3) with noise."""
    return lambda t: jnp.maximum(u / jnp.sqrt(t + 1.0), least)


def at(value: float | Array | Schedule, t: Array, dtype: Any) -> Array:
    """Evaluates a number or a schedule at step t."""
    return jnp.asarray(value(t.astype(dtype)) if callable(value) else value, dtype)


def is_averaging(config: ZOFLConfig) -> bool:
    """Says whether gradient estimates are averaged over steps; a traced share counts."""
    return not isinstance(config.ema, (int, float)) or config.ema > 0.0


def is_boxed(problem: Problem) -> bool:
    """Says whether any bound is finite; traced bounds count as finite."""
    bounds = (problem.lb, problem.ub)
    return any(isinstance(b, Tracer) or bool(np.isfinite(b).any()) for b in bounds)


def bound_rows(problem: Problem, config: ZOFLConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of finite lower and upper bounds that enter the multiplier."""
    if config.bounds == "clip":
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    return np.flatnonzero(np.isfinite(problem.lb)), np.flatnonzero(np.isfinite(problem.ub))


_CHOICES = {
    "kind": get_args(Kind),
    "form": get_args(Form),
    "scheme": get_args(Scheme),
    "ineq": get_args(Ineq),
    "metric": get_args(Metric),
    "feedback": get_args(Feedback),
    "bounds": get_args(Bounds),
    "solver": multiplier.SOLVERS,
}


def _check_numbers(config: ZOFLConfig, m: int) -> None:
    def check(name: str, low: float, high: float, closed: str = "") -> None:
        value = getattr(config, name)
        if value is None or callable(value) or isinstance(value, Tracer):
            return
        values = np.asarray(value)
        above = values >= low if "[" in closed else values > low
        below = values <= high if "]" in closed else values < high
        if not (above & below).all():  # False for NaN too
            opening, closing = ("[" if "[" in closed else "("), ("]" if "]" in closed else ")")
            raise ValueError(f"{name} must be in {opening}{low}, {high}{closing}, got {value}")

    infinity = float("inf")
    for name in ("eta", "K", "max_velocity", "max_multiplier", "newton_fill", "tolerance"):
        check(name, 0.0, infinity)
    check("gain", 0.0, 2.0)
    check("beta", 0.0, 1.0, "[")
    check("ema", 0.0, 1.0, "[")
    check("integral_gain", -infinity, 0.0, "]")
    check("ridge", 0.0, infinity, "[")
    if not callable(config.u) and not isinstance(config.u, Tracer):
        estimators.check_radius(float(np.asarray(config.u)))
    for name in ("gain", "K"):
        value = getattr(config, name)
        if value is not None and jnp.shape(value) not in ((), (m,)):
            raise ValueError(f"{name} must be one number or [m = {m}], got {jnp.shape(value)}")
    for name, least in {"iterations": 1, "center_repeats": 1, "armijo": 0}.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


def _descends(problem: Problem, config: ZOFLConfig) -> bool:
    """Says whether the velocity descends on f + mu sum violation, whatever the directions."""
    projected = config.bounds == "clip" and is_boxed(problem)
    return (
        (config.form == "subspace" or config.kind == "exact")
        and (config.ineq, config.feedback) == ("nnqp", "full")
        and config.scheme != "adam"
        and not (is_averaging(config) or projected or config.armijo)
    )


def _check_combinations(problem: Problem, config: ZOFLConfig, exact: bool) -> None:
    bounds = (problem.lb, problem.ub)
    traced = any(isinstance(bound, Tracer) for bound in bounds)
    forward = not exact and not config.central
    streamed = config.chunk is not None
    B, chunk = config.B or 0, config.chunk or 0
    integral = isinstance(config.integral_gain, Tracer) or bool(np.any(config.integral_gain != 0))
    rules = (
        (
            config.bounds == "constraints" and traced,
            "bounds='constraints' needs concrete bounds; use bounds='clip' where they are traced",
        ),
        (
            is_averaging(config) and config.form != "plugin" and not exact,
            "ema averages estimated gradients: use form='plugin'",
        ),
        (
            config.metric != "identity" and config.form == "plugin" and not exact,
            "a metric on directions needs form='subspace'",
        ),
        (
            config.metric != "identity" and forward,
            "metrics read curvatures off central differences: use central=True",
        ),
        (
            config.metric != "identity" and not exact and is_boxed(problem),
            "a metric on differences has no box: at a bound they are one-sided, without curvature",
        ),
        (
            streamed and (exact or config.form == "plugin" or config.metric == "newton"),
            "chunk streams the subspace form with the identity or diagonal metric",
        ),
        (
            streamed and config.kind not in direction_sets.STREAMABLE,
            f"directions of kind {config.kind!r} cannot be drawn in chunks; those that can are "
            f"{', '.join(direction_sets.STREAMABLE)}",
        ),
        (
            streamed and (chunk < 1 or B % chunk > 0),
            f"chunk must divide the number of directions B = {B}, got {config.chunk}",
        ),
        (streamed and is_boxed(problem), "streamed directions have no box; leave out the bounds"),
        (
            config.armijo > 0 and config.scheme not in ("euler", "momentum"),
            "the line search goes with scheme 'euler' or 'momentum'",
        ),
        (
            config.armijo > 0 and config.ineq == "slack",
            "the line search has no slack form; use ineq='nnqp'",
        ),
        (
            config.feedback == "diagonal" and config.ineq == "slack",
            "the diagonal feedback has no slack form; use ineq='nnqp'",
        ),
        (
            bool(config.control) and not _descends(problem, config),
            "control needs a velocity that descends on the merit, which this one need not; leave "
            "it at None, which then means off",
        ),
        (
            integral and config.feedback != "diagonal",
            "integral_gain belongs to feedback='diagonal' (FL-PI)",
        ),
    )
    for broken, message in rules:
        if broken:
            raise ValueError(message)
