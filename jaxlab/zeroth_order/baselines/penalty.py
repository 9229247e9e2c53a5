"""Penalty and switching methods: gradient descent from function values, without duals.

The simplest baselines for constraints c(x) <= 0, an equality h = 0 being the pair h <= 0, -h <= 0.
All three are zeroth-order gradient descent; they differ in the function that they descend on. They
estimate gradients by central differences along random directions that the bounds cut off, so that
no query leaves the box. Scale f and h to about one first (`problem.scaled`); without constraints
each is plain zeroth-order gradient descent.

Sources: Nocedal and Wright, Numerical Optimization, 2nd ed., sections 17.1 (quadratic penalty) and
17.2 (l1 penalty); Polyak, "A general method of solving extremum problems", 1967 (switching).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import direction_sets, estimators, method, settings
from jaxlab.zeroth_order.baselines import lagrangian
from jaxlab.zeroth_order.method import Proposal
from jaxlab.zeroth_order.problem import Oracle, Problem

RHO_SWEEP = (1.0, 10.0, 100.0, 1000.0)
"""Penalty weights of the usual sweep."""
BASE_STEP = 0.1
"""Step for functions of order one: the primal step of ZO-Min-Max in the benchmark of 30 problems
by the authors of arXiv:2510.19165."""

Measure = Callable[[Array, Oracle, Array], tuple[Array, Array]]
"""`measure(key, q, x) -> (q0, G)`: values at x, `[d]`, and estimated gradients, `[d, n]`."""


def make_quadratic_penalty(
    problem: Problem,
    *,
    rho: float | Array = 10.0,
    alpha: float | Array | None = None,
    u: float | Array | None = None,
    B: int | None = None,
    kind: direction_sets.Kind = "orthonormal",
) -> Algorithm:
    """Makes descent on f + (rho/2) sum [c_i]_+^2, 1 + 2B queries a step.

    x+ = clip(x - alpha g, lb, ub). It ends outside the feasible set, by about lambda_i / rho in
    constraint i, where lambda is the multiplier: raise rho for less (`RHO_SWEEP`).

    Args:
        problem: the problem.
        rho: weight of the penalty.
        alpha: step; None is 0.1 / max(1, rho), because the penalty's curvature grows like rho.
        u: radius of the differences; None is `settings.default_radius`.
        B: directions; None is min(n, max(2 m_eq, 16)), n for `coordinate`.
        kind: direction set, see `direction_sets.directions`.

    Raises:
        ValueError: if a setting is not positive or B does not fit `kind`.
    """
    return _make_penalty(problem, _half_square, rho, alpha, u=u, B=B, kind=kind)


def make_exact_penalty(
    problem: Problem,
    *,
    rho: float | Array = 10.0,
    alpha: float | Array | None = None,
    u: float | Array | None = None,
    B: int | None = None,
    kind: direction_sets.Kind = "orthonormal",
) -> Algorithm:
    """Makes descent on f + rho sum [c_i]_+, 1 + 2B queries a step.

    Its minimizers are those of the problem if rho exceeds every multiplier. The penalty has a kink
    there, so with a constant step the iterate ends up swinging across the constraint, by about
    alpha rho ||grad c_i||.

    Args:
        problem: the problem.
        rho: weight of the penalty, more than the largest multiplier.
        alpha: step; None is 0.1 / max(1, rho), so that the swing does not grow with rho.
        u: radius of the differences; None is `settings.default_radius`.
        B: directions; None is min(n, max(2 m_eq, 16)), n for `coordinate`.
        kind: direction set, see `direction_sets.directions`.

    Raises:
        ValueError: if a setting is not positive or B does not fit `kind`.
    """
    return _make_penalty(problem, _identity, rho, alpha, u=u, B=B, kind=kind)


def make_switching(
    problem: Problem,
    *,
    tau: float | Array = 1e-3,
    alpha: float | Array = BASE_STEP,
    u: float | Array | None = None,
    B: int | None = None,
    kind: direction_sets.Kind = "orthonormal",
) -> Algorithm:
    """Makes the switching method, 1 + 2B queries a step.

    x+ = clip(x - alpha g, lb, ub) with g the gradient of the most violated constraint while
    max_i c_i(x) > tau, else that of f. The directions are the same for all of them. Since f moves
    the iterate whenever it is feasible, the violation ends below about
    tau + alpha ||grad c_i|| ||grad f||.

    Args:
        problem: the problem.
        tau: violation above which a step restores feasibility.
        alpha: step.
        u: radius of the differences; None is `settings.default_radius`.
        B: directions; None is min(n, max(2 m_eq, 16)), n for `coordinate`.
        kind: direction set, see `direction_sets.directions`.

    Raises:
        ValueError: if a setting is not positive or B does not fit `kind`.
    """
    lagrangian.check_positive({"tau": tau, "alpha": alpha})
    measure, queries = _make_measure(problem, u, B, kind)
    m_eq = problem.m_eq

    def update(key: Array, x: Array, inner: tuple[()], t: Array, step_scale: Array) -> Proposal:
        q0, G = measure(key, problem.q, x)
        # The index of the first entry that exceeds all before it: 0, f, unless one exceeds tau.
        level = jnp.full((1,), tau, x.dtype)
        chosen = jnp.argmax(jnp.concatenate([level, lagrangian.inequalities(q0[1:], m_eq)]))
        rows = jnp.concatenate([G[:1], lagrangian.inequalities(G[1:], m_eq)])
        x_next = jnp.clip(x - alpha * step_scale * rows[chosen], problem.lb, problem.ub)
        metrics = {"zo/restoring": (chosen > 0).astype(x.dtype)}
        return Proposal(x_next, inner, x, q0[0], q0[1:], queries, metrics)

    return method.make_algorithm(problem, init_inner=_nothing, update=update)


def _make_penalty(
    problem: Problem,
    shape: Callable[[Array], Array],
    rho: float | Array,
    alpha: float | Array | None,
    *,
    u: float | Array | None,
    B: int | None,
    kind: direction_sets.Kind,
) -> Algorithm:
    """Descends on f + rho sum shape([c_i]_+)."""
    if alpha is None:
        alpha = BASE_STEP / jnp.maximum(1.0, rho)
    lagrangian.check_positive({"rho": rho, "alpha": alpha})
    measure, queries = _make_measure(problem, u, B, kind)

    def penalized(x: Array, key: Array) -> tuple[Array, Array]:
        """Computes the penalized objective, and the plain values beside it."""
        f, h = problem.q(x, key)
        excess = jnp.maximum(lagrangian.inequalities(h, problem.m_eq), 0.0)
        return f + rho * jnp.sum(shape(excess)), jnp.concatenate([f[None], h])

    def update(key: Array, x: Array, inner: tuple[()], t: Array, step_scale: Array) -> Proposal:
        q0, G = measure(key, penalized, x)
        x_next = jnp.clip(x - alpha * step_scale * G[0], problem.lb, problem.ub)
        return Proposal(x_next, inner, x, q0[1], q0[2:], queries, {"zo/penalized": q0[0]})

    return method.make_algorithm(problem, init_inner=_nothing, update=update)


def _make_measure(
    problem: Problem, u: float | Array | None, B: int | None, kind: direction_sets.Kind
) -> tuple[Measure, int]:
    """Makes the estimator that the three share, and counts its queries."""
    n, dtype = problem.n, problem.x0.dtype
    if B is None:
        B = n if kind == "coordinate" else min(n, max(2 * problem.m_eq, 16))
    if u is None:
        u = settings.default_radius(problem.sigma, dtype)
    direction_sets.check_directions(n, B, kind)
    estimators.check_radius(u)

    def measure(key: Array, q: Oracle, x: Float[Array, " n"]) -> tuple[Array, Array]:
        key_directions, key_query = jax.random.split(key)
        S, c = direction_sets.directions(key_directions, n, B, kind, dtype)
        S_plus, S_minus = estimators.within_box(x, S, u, problem.lb, problem.ub)
        q0, D, _ = estimators.two_point(q, x, S_plus, u, key_query, S_minus=S_minus)
        return q0, estimators.gradient(0.5 * (S_plus + S_minus), c, D)

    return measure, 1 + 2 * B


def _nothing(key: Array, x0: Array) -> tuple[tuple[()], int]:
    """Returns nothing to carry: these methods keep nothing from step to step."""
    return (), 0


def _half_square(excess: Array) -> Array:
    return 0.5 * excess**2


def _identity(excess: Array) -> Array:
    return excess
