"""The problems of the comparison, scaled, with the value that each is measured against."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxlab.zeroth_order import kkt, problem
from jaxlab.zeroth_order.problem import Problem, exact_of
from jaxlab.zeroth_order.problems import (
    case9,
    client_fairness,
    high_dimensional,
    hock_schittkowski,
    policy_search,
    power_flow,
    qcqp,
    safe_learning,
)

TOLERANCE = 1e-4
"""Violation that counts as feasible without noise."""


def tolerance(sigma):
    """Returns the exact violation up to which an answer counts as feasible at a noise level."""
    return TOLERANCE + 3.0 * sigma


def allowance(sigma):
    """Returns the measured violation up to which a method may keep a point as its answer.

    Less than `tolerance`, so that a lucky measurement is no infeasible answer. Gaps below this mean
    nothing either: as much violation can buy them.
    """
    return TOLERANCE + sigma


class Entry(NamedTuple):
    """A line of the table of problems.

    Attributes:
        build: makes the problem.
        share: of the query budget; small where a query is dear, a data set or a simulator.
        box: half width of the box around the start in which SafeOpt may search, or None.
    """

    build: Callable[[], Problem]
    share: float = 1.0
    box: float | None = None


def _safe(name: str, d: int) -> Callable[[], Problem]:
    return lambda: safe_learning.safe_learning_problem(name, d)


def _instance() -> jax.Array:
    """Returns the key of the one random instance: seeds of a study draw runs, not problems."""
    return jax.random.key(0)


TABLE: dict[str, Entry] = {
    "qcqp": Entry(lambda: qcqp.random_qcqp(_instance())),
    "qcqp-ineq": Entry(lambda: qcqp.random_qcqp(_instance(), inequality=True)),
    "fair-logistic": Entry(client_fairness.fair_logistic, share=0.25),
    **{
        name: Entry(lambda name=name: hock_schittkowski.hs(name))
        for name in hock_schittkowski.HS_NAMES
    },
    "qp-2": Entry(_safe("qp", 2), box=1.0),
    "qp-10": Entry(_safe("qp", 10)),
    "rosenbrock-2": Entry(_safe("rosenbrock", 2), box=1.0),
    "rosenbrock-3": Entry(_safe("rosenbrock", 3), box=1.0),
    "rosenbrock-4": Entry(_safe("rosenbrock", 4)),
    "gaussian-2": Entry(_safe("gaussian", 2), box=1.0),
    "gaussian-10": Entry(_safe("gaussian", 10)),
    "gaussian-20": Entry(_safe("gaussian", 20)),
    "gaussian-10-inactive": Entry(_safe("gaussian_inactive", 10)),
    "opf9": Entry(case9.opf9),
    "opf9-blackbox": Entry(power_flow.opf9_blackbox, share=0.1),
    "sphere-100": Entry(lambda: high_dimensional.sphere(100, _instance())),
    "stiefel-20x3": Entry(lambda: high_dimensional.stiefel(20, 3, _instance())),
    "policy-search": Entry(policy_search.policy_search_problem, share=0.1),
}
"""T1 to T8 of the suite, in its order."""


class Task(NamedTuple):
    """A problem ready for comparison.

    Attributes:
        name: its name in `TABLE`.  problem: scaled and free of noise.
        budget: joint queries of a run.
        f_ref: optimal or best known value, scaled.
        gap_scale: what scaled gaps are divided by: of the raw values |f_start - f_ref| where the
            start is feasible, so that there is just that to gain, else max(1, |f_start - f_ref|).
        price: sum of the optimum's multipliers over `gap_scale`: the gap that a unit of violation
            of every constraint can buy.
        slack: distance of the start's largest constraint from 0 where there are no equalities and
            it is strictly feasible, else 0.
        box: see `Entry`.
    """

    name: str
    problem: Problem
    budget: int
    f_ref: float
    gap_scale: float
    price: float
    slack: float
    box: float | None


def make_task(name: str, max_queries: int) -> Task:
    """Builds a problem in float64, scaled; its budget is that of the suite, at most `max_queries`.

    Raises:
        ValueError: if there is no such problem.
    """
    check_names([name])
    entry = TABLE[name]
    with jax.enable_x64(True):
        raw = entry.build()
        lb, ub = jnp.asarray(raw.lb), jnp.asarray(raw.ub)
        raw = raw._replace(exact=jax.jit(exact_of(raw)), lb=lb, ub=ub)
        scaled = problem.scaled(raw)
        f_raw = float(exact_of(raw)(raw.x0)[0])
        f_start, h_start = jax.device_get(exact_of(scaled)(scaled.x0))
        f_ref, x_ref = scaled.f_star, scaled.x_star
        if f_ref is None or x_ref is None:
            f_found, x_ref = reference(scaled)
            f_ref = f_found if f_ref is None else float(f_ref)
        multipliers = multipliers_at(scaled, np.asarray(x_ref))
    gap = abs(float(f_start) - float(f_ref))
    start_violation = float(kkt.max_violation(jnp.asarray(h_start), raw.m_eq))
    if start_violation > TOLERANCE:
        gap = max(1.0 / max(1.0, abs(f_raw)), gap)
    budget = min(10**6, max(50_000, 1000 * (raw.n + 1)), max_queries)
    return Task(
        name=name,
        problem=scaled,
        budget=round(entry.share * budget),
        f_ref=float(f_ref),
        gap_scale=gap,
        price=float(np.abs(multipliers).sum()) / gap,
        slack=0.0 if raw.m_eq else max(0.0, -float(h_start.max())),
        box=entry.box,
    )


def check_names(names: tuple[str, ...] | list[str]) -> None:
    """Checks names of problems.

    Raises:
        ValueError: if there is no problem of a name.
    """
    unknown = [name for name in names if name not in TABLE]
    if unknown:
        raise ValueError(f"unknown problem {unknown[0]!r}; there are: {', '.join(TABLE)}")


def multipliers_at(scaled: Problem, x: np.ndarray) -> np.ndarray:
    """Returns the multipliers `[m]` that balance the objective's slope best at a point.

    Those of inequalities that are not active are zero, those of active bounds are left out of the
    result. Slopes are central differences of the exact values.
    """
    exact, step = exact_of(scaled), 1e-6

    def stacked(x: np.ndarray) -> np.ndarray:
        f, h = exact(jnp.asarray(x))
        return np.concatenate([[f], h])

    unit = step * np.eye(x.size)
    slopes = np.stack([(stacked(x + e) - stacked(x - e)) / (2.0 * step) for e in unit], axis=1)
    near, h = 1e-4, stacked(x)[1:]
    equal = np.arange(scaled.m) < scaled.m_eq
    active = equal | (h > -near)
    lower, upper = x - np.asarray(scaled.lb) < near, np.asarray(scaled.ub) - x < near
    columns = [slopes[1:][active].T, -np.eye(x.size)[:, lower], np.eye(x.size)[:, upper]]
    matrix = np.concatenate(columns, axis=1)
    least = np.zeros(matrix.shape[1])
    least[: active.sum()][equal[active]] = -np.inf
    found = np.zeros(scaled.m)
    if matrix.size:
        solution = scipy.optimize.lsq_linear(matrix, -slopes[0], bounds=(least, np.inf)).x
        found[active] = solution[: active.sum()]
    return found


def reference(scaled: Problem) -> tuple[float, np.ndarray]:
    """Returns value and place of the local minimum that SLSQP with exact derivatives finds."""
    value, m_eq = exact_of(scaled), scaled.m_eq
    assert value is not None

    def stacked(x: jax.Array) -> jax.Array:
        f, h = value(x)
        return jnp.concatenate([f[None], h])

    q, slope = jax.jit(stacked), jax.jit(jax.jacrev(stacked))
    kinds = (("eq", slice(1, 1 + m_eq), 1.0), ("ineq", slice(1 + m_eq, None), -1.0))
    constraints = [
        {
            "type": kind,
            "fun": lambda x, part=part, sign=sign: sign * np.asarray(q(x))[part],
            "jac": lambda x, part=part, sign=sign: sign * np.asarray(slope(x))[part],
        }
        for kind, part, sign in kinds
        if np.zeros(1 + scaled.m)[part].size
    ]
    found = scipy.optimize.minimize(
        lambda x: float(q(x)[0]),
        np.asarray(scaled.x0),
        jac=lambda x: np.asarray(slope(x)[0]),
        method="SLSQP",
        constraints=constraints,
        options={"maxiter": 1000, "ftol": 1e-10},
    )
    if not found.success or not math.isfinite(found.fun):
        raise RuntimeError(f"no reference value for {scaled.name}: {found.message}")
    return float(found.fun), np.asarray(found.x)
