"""ZOFL: feedback linearization on differences of function values, and its first-order twin.

The iterate follows the velocity of `velocity.zofl_field`, which descends on f while every
constraint decays like dh/dt = -K h; `control` watches its step. Source: arXiv:2509.24056 (ZOFL,
midpoint scheme); arXiv:2503.12665 (Euler, momentum, Newton).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import (
    control,
    estimators,
    field,
    kkt,
    method,
    multiplier,
    settings,
    velocity,
)
from jaxlab.zeroth_order.problem import Problem
from jaxlab.zeroth_order.settings import ZOFLConfig
from jaxlab.zeroth_order.velocity import Field, Memory

ARMIJO_SLOPE = 1e-4
ADAM_B1, ADAM_B2, ADAM_EPS = 0.9, 0.999, 1e-8


def make_zofl(
    problem: Problem,
    config: ZOFLConfig = ZOFLConfig(),  # noqa: B008
    *,
    evaluate: Callable[..., Array] = estimators.evaluate,
) -> Algorithm:
    """Builds ZOFL, or first-order FL with `kind="exact"`.

    Queries of a step: 1 + 2B, or 1 + B with forward differences; twice that for `midpoint`, one
    more for `mid_reuse`. With no constraints (m = 0) it is zeroth-order gradient descent. A step
    that has led to a worse point is taken back by half (`ZOFLConfig.control`).

    Args:
        problem: the problem; `problem.exact` is used by `kind="exact"` alone.
        config: settings.
        evaluate: evaluates `(q, points, keys)` as one batch; `ask_tell` replaces it.

    Returns:
        `(init, step)` over `method.State`. Metrics besides the common ones: `zo/kkt_gap`
        (estimated, at least its rounding), `zo/multiplier_max`, `zo/multiplier_residual`,
        `zo/velocity`, `zo/step` (eta), and with an Armijo search `zo/line_search` (1 if it found a
        step, 0 if it failed).

    Raises:
        ValueError: if settings contradict each other or the problem.
    """
    config = settings.resolve(problem, config)
    dtype = problem.x0.dtype
    # A step that is given, or measured under noise, whose floor grows with it, is the longest one.
    free = config.eta is None
    most = jnp.where(jnp.asarray(problem.sigma) > 0.0, 1.0, jnp.inf if free else 1.0).astype(dtype)
    field_at = functools.partial(velocity.zofl_field, config=config, evaluate=evaluate)

    def init_inner(key: Array, x0: Array) -> tuple[Memory, int]:
        unknown = jnp.full((), -1.0, dtype)
        memory, queries = Memory(first=(unknown, unknown)), 0
        if config.control:
            memory = memory._replace(control=control.start(x0, problem.m))
        if config.ineq == "slack" or config.eta is None:
            start, queries = _start(key, problem, x0, config, evaluate)
            if config.eta is None:
                assert config.u is not None  # resolved
                u = settings.at(config.u, jnp.asarray(0, jnp.int32), dtype)
                eta = velocity.initial_step(
                    start, x0, problem.m_eq, config, sigma=problem.sigma, u=u
                )
                memory = memory._replace(eta=jnp.where(jnp.isfinite(eta), eta, 0.0))
            if config.ineq == "slack":
                h_ineq = start.q0[1 + problem.m_eq :]
                h_ineq = jnp.where(jnp.isfinite(h_ineq), h_ineq, 0.0)
                memory = memory._replace(slack=multiplier.initial_slack(h_ineq))
        if config.scheme == "momentum":
            memory = memory._replace(x_prev=x0)
        if config.scheme == "adam":
            zeros = jnp.zeros_like(x0)
            memory = memory._replace(moments=(zeros, zeros, jnp.asarray(0, jnp.int32)))
        if config.feedback == "diagonal":
            memory = memory._replace(integral=jnp.zeros((problem.m,), dtype))
        if settings.is_averaging(config):
            average = jnp.zeros((1 + problem.m, problem.n), dtype)
            memory = memory._replace(average=(average, jnp.asarray(False)))
        return memory, queries

    def update(
        key: Array, x: Array, memory: Memory, t: Array, step_scale: Array
    ) -> method.Proposal:
        key, key_half, key_search = jax.random.split(key, 3)
        at, before = x, memory
        if config.scheme == "momentum":
            at = _project(problem, x + config.beta * (x - memory.x_prev))
            memory = memory._replace(x_prev=x)
        scale, reach = step_scale, 1.0
        if memory.control:
            scale = step_scale * memory.control.scale
        here = field_at(key, problem, at, t=t, memory=memory, step_scale=scale)
        eta = here.eta
        used, queries = here, velocity.probe_queries(config)
        if config.scheme in ("midpoint", "mid_reuse"):
            half = _project(problem, x + 0.5 * eta * here.F)
            memory_half = _slide(problem, here.memory, here, 0.5 * eta)
            if config.scheme == "midpoint":
                used = field_at(key_half, problem, half, t=t, memory=memory_half, step_scale=scale)
                queries *= 2
            else:
                h_half = _constraints(key_half, problem, half, config, evaluate)
                used = velocity.controlled(
                    problem, half, config, here.found, here.metric, h_half, memory_half, eta=eta
                )
                queries += 1
        # The slack moves from where it was, with the velocity of where the field was taken.
        memory = used.memory._replace(slack=here.memory.slack, integral=here.memory.integral)
        memory = _slide(problem, memory, used, eta)
        F = used.F
        if config.scheme == "adam":
            F, memory = _adam(F, memory)
        metrics = {
            "zo/kkt_gap": here.gap,
            "zo/multiplier_max": jnp.max(jnp.abs(here.lam), initial=0.0),
            "zo/multiplier_residual": here.residual,
            "zo/velocity": jnp.linalg.norm(F),
        }
        if config.armijo:
            eta, found = _line_search(key_search, problem, config, here, at, eta, evaluate)
            metrics["zo/line_search"] = found.astype(dtype)
            queries += config.armijo
        metrics["zo/step"] = eta

        now = here.gradient, here.rounding
        first = jax.tree.map(lambda a, b: jnp.where(a < 0.0, b, a), before.first, now)
        memory = memory._replace(first=first)
        stationary = velocity.is_stationary(here, first, at, problem.m_eq, config)
        stationary &= jnp.asarray(problem.sigma) == 0.0  # under noise it would be luck
        kept = jnp.asarray(True)
        if before.control:
            kept, watched = control.judge(
                before.control,
                here.q0,
                problem.m_eq,
                sigma=problem.sigma,
                most=most,
                friction=1.0 - config.beta if config.scheme == "momentum" else 1.0,
            )
            reach = watched.reach
            change = reach * eta * used.rate
            lam = here.lam[: problem.m]
            moved = control.follow(watched, at, here.q0, change, lam, here.found.D, problem.m_eq)
            memory = memory._replace(control=moved)
        following = _project(problem, at + reach * eta * F)
        if before.control:
            back = control.step_back(watched, at)
            stopped = before._replace(control=watched)
            if config.scheme == "momentum":
                stopped = stopped._replace(x_prev=back)
            following, memory = jax.tree.map(
                lambda a, b: jnp.where(kept, a, b), (following, memory), (back, stopped)
            )
        return method.Proposal(
            x=following,
            inner=memory,
            at=at,
            f=here.q0[0],
            h=here.q0[1:],
            queries=queries,
            metrics=metrics,
            kept=kept,
            stationary=stationary,
        )

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def _start(
    key: Array, problem: Problem, x0: Array, config: ZOFLConfig, evaluate: Callable
) -> tuple[field.Probe, int]:
    """Measures values and curvatures at the start."""
    assert config.u is not None  # resolved
    central = config._replace(central=True, metric="identity")
    u = settings.at(config.u, jnp.asarray(0, jnp.int32), x0.dtype)
    # A curvature needs both sides: step inside the box by the radius.
    margin = jnp.minimum(u, 0.5 * (problem.ub - problem.lb))
    x0 = jnp.clip(x0, problem.lb + margin, problem.ub - margin)
    found, _ = velocity.measure(key, problem, x0, central, u=u, evaluate=evaluate)
    if config.kind == "exact":
        hessians = jax.hessian(_stacked(problem))(x0)
        found = found._replace(curvature=jax.vmap(jnp.diagonal)(hessians))
    return found, velocity.probe_queries(central)


def _slide(problem: Problem, memory: Memory, used: Field, eta: Array) -> Memory:
    """Moves the slack variables by ds/dt = -s lam, s and lam those of the field used."""
    if isinstance(memory.slack, tuple):
        return memory
    lam = used.lam[problem.m_eq : problem.m]
    return memory._replace(slack=memory.slack - eta * used.memory.slack * lam)


def _constraints(
    key: Array, problem: Problem, x: Array, config: ZOFLConfig, evaluate: Callable
) -> Array:
    if config.kind == "exact":
        return _stacked(problem)(x)[1:]
    return evaluate(problem.q, x[None], key[None])[0, 1:]


def _adam(F: Array, memory: Memory) -> tuple[Array, Memory]:
    """Returns Adam's velocity for the FL direction (in the spirit of AdamFLIP, 2605.08408)."""
    first, second, count = memory.moments
    count = count + 1
    first = ADAM_B1 * first + (1.0 - ADAM_B1) * F
    second = ADAM_B2 * second + (1.0 - ADAM_B2) * F**2
    power = count.astype(F.dtype)
    unbiased = first / (1.0 - ADAM_B1**power), second / (1.0 - ADAM_B2**power)
    F = unbiased[0] / (jnp.sqrt(unbiased[1]) + ADAM_EPS)
    return F, memory._replace(moments=(first, second, count))


def _line_search(
    key: Array,
    problem: Problem,
    config: ZOFLConfig,
    here: Field,
    x: Array,
    eta: Array,
    evaluate: Callable,
) -> tuple[Array, Array]:
    """Searches eta, eta/2, ... for enough decrease of f + mu sum violation.

    Returns:
        `(eta, found)`: the largest such step, or the smallest one tried, and whether it is such.
    """
    mu = 1.1 * jnp.max(jnp.abs(here.lam), initial=0.0)

    def merit(q: Array) -> Array:
        return q[0] + mu * jnp.sum(kkt.violation(q[1:], problem.m_eq))

    etas = eta * 0.5 ** jnp.arange(config.armijo, dtype=x.dtype)
    points = jax.vmap(lambda eta: _project(problem, x + eta * here.F))(etas)
    if config.kind == "exact":
        values = jax.vmap(_stacked(problem))(points)
    else:
        values = evaluate(problem.q, points, jax.random.split(key, config.armijo))
    enough = merit(here.q0) - ARMIJO_SLOPE * etas * jnp.sum(here.F**2)
    passed = jax.vmap(merit)(values) <= enough
    found = jnp.any(passed)
    return jnp.where(found, etas[jnp.argmax(passed)], etas[-1]), found


def _project(problem: Problem, x: Array) -> Array:
    return jnp.clip(x, problem.lb, problem.ub) if settings.is_boxed(problem) else x


def _stacked(problem: Problem) -> Callable[[Array], Array]:
    """Returns a function of x that computes the exact values (f, h) as one vector."""
    exact = problem.exact
    assert exact is not None  # resolved

    def stacked(x: Array) -> Array:
        f, h = exact(x)
        return jnp.concatenate([f[None], h])

    return stacked
