"""What an external solver sees of a problem: a black box that counts, caches and records queries.

A joint query is f and h at one point; a point asked for twice is one query. Every query has a fresh
key, and the box ends the run at its budget.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.zeroth_order.problem import Problem

FAILED_VALUE = 1e10
"""What a solver is told of f and each h where the black box returned something not finite."""

MOST_CALLS = 20
"""Calls a query, repeated points included, after which a solver is taken to be stuck."""


class Trace(NamedTuple):
    """What a solver did.

    Attributes:
        x: `[Q, n]`, the points queried, in order.  f: `[Q]`, h: `[Q, m]`, the values measured.
        violation: `[Q]`, largest violation of a constraint or a bound; inf where a query failed.
        best: `[Q]`, index of the best point so far, -1 before a finite one: feasible before
            infeasible, then objective, then violation. Entry i is after i + 1 queries.
        best_f, best_violation: `[Q]`, of that point.
        best_x: `[n]`, that point at the end; the start if no query was finite.
        returned_x: `[n]`, what the solver returned; `best_x` if it was interrupted.
        returned_f, returned_violation: there, without noise where the problem has `exact`.
        infeasible: the returned point violates a constraint by more than the tolerance.
        stop: "solver" if it ended by itself, "budget", or "error: ..." .
        failed: queries that returned a value that is not finite.
        outside: queries that left the box by more than the tolerance.
        seconds: wall time, without the compilation of the query.
    """

    x: np.ndarray
    f: np.ndarray
    h: np.ndarray
    violation: np.ndarray
    best: np.ndarray
    best_f: np.ndarray
    best_violation: np.ndarray
    best_x: np.ndarray
    returned_x: np.ndarray
    returned_f: float
    returned_violation: float
    infeasible: bool
    stop: str
    failed: int
    outside: int
    seconds: float


class Stop(Exception):
    """Ends a solver from within a query."""


class BlackBox:
    """Counts, caches and records the queries of one run; the one mutable object here."""

    def __init__(self, problem: Problem, budget: int, seed: int, difference_step: float | None):
        self.problem, self.budget = problem, budget
        self.feasibility_tol = float(problem.feasibility_tol)
        self.key = jax.random.key(seed)
        self.dtype = np.asarray(problem.x0).dtype
        self.x0, self.lb, self.ub = (
            np.asarray(value, float) for value in (problem.x0, problem.lb, problem.ub)
        )
        usual = max(float(np.finfo(self.dtype).eps), float(problem.sigma)) ** 0.5
        self.step: float = usual if difference_step is None else difference_step
        self.cache: dict[bytes, np.ndarray] = {}
        self.points: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.calls = 0
        self.last_jacobian = (b"", np.zeros((0, 0)))

    def warm_up(self) -> None:
        """Compiles the query outside the timing; its value is not looked at."""
        _query(self.problem.q, self.problem.x0, self.key, 0).block_until_ready()

    def measure(self, x: np.ndarray) -> np.ndarray:
        """Returns the stacked values `[1 + m]` at x, as they were measured."""
        x = np.asarray(x).astype(self.dtype)
        name = x.tobytes()
        self.calls += 1
        if name in self.cache:
            # A solver that asks for known points for ever would never reach the budget.
            if self.calls > MOST_CALLS * (self.budget + self.x0.size):
                raise Stop("error: the solver only repeats known points")
            return self.cache[name]
        if len(self.points) >= self.budget:
            raise Stop("budget")
        values = np.asarray(_query(self.problem.q, x, self.key, len(self.points)), float)
        self.cache[name] = values
        self.points.append(x)
        self.values.append(values)
        return values

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Returns `[1 + m]` with `FAILED_VALUE` for what is not finite: solvers expect numbers."""
        values = self.measure(x)
        return values if np.isfinite(values).all() else np.full_like(values, FAILED_VALUE)

    def f(self, x: np.ndarray) -> float:
        return float(self(x)[0])

    def h(self, x: np.ndarray) -> np.ndarray:
        return self(x)[1:]

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """Returns forward differences of all values, `[1 + m, n]`; 0 where a query failed."""
        x = np.asarray(x, float)
        if self.last_jacobian[0] == x.tobytes():  # f and constraints ask for it in turn
            return self.last_jacobian[1]
        base = self.measure(x)
        columns = np.zeros((base.size, x.size))
        for i in range(x.size):
            step = self.step * max(1.0, abs(x[i]))
            step = step if x[i] + step <= self.ub[i] else -step
            ahead = x.copy()
            ahead[i] += step
            # The difference of the points as the oracle saw them, rounded to its dtype.
            step = float(ahead[i].astype(self.dtype)) - float(x[i].astype(self.dtype))
            difference = self.measure(ahead) - base
            if step != 0.0 and np.isfinite(difference).all():
                columns[:, i] = difference / step
        self.last_jacobian = (x.tobytes(), columns)
        return columns

    def as_inequalities(self, x: np.ndarray, slack: float) -> np.ndarray:
        """Returns inequalities <= 0, an equality as two, `slack` wide on either side."""
        values, m_eq = self(x)[1:], self.problem.m_eq
        equal = values[:m_eq]
        return np.concatenate([equal - slack, -equal - slack, values[m_eq:]])

    def excess(self, x: np.ndarray) -> np.ndarray:
        """Returns how far each coordinate is outside the box, negative inside."""
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(np.maximum(self.lb - x, x - self.ub), nan=np.inf)

    def violation(self, x: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Returns the largest violation of constraints and bounds, `[...]`; inf if not finite."""
        m_eq = self.problem.m_eq
        parts = (np.abs(values[..., 1 : 1 + m_eq]), values[..., 1 + m_eq :], self.excess(x))
        largest = np.max(np.concatenate(parts, axis=-1), axis=-1, initial=0.0)
        return np.where(np.isfinite(values).all(axis=-1), largest, np.inf)

    def trace(self, stop: str, returned: np.ndarray | None, seconds: float) -> Trace:
        x = np.array(self.points, self.dtype).reshape(-1, self.x0.size)
        values = np.array(self.values, float).reshape(-1, 1 + self.problem.m)
        violation = self.violation(x, values)
        best = _best_so_far(values[:, 0], violation, self.feasibility_tol)
        found, at = best >= 0, np.maximum(best, 0)
        best_x = x[best[-1]] if found.any() else self.x0.astype(self.dtype)
        if returned is None or not np.isfinite(returned).all():
            returned = best_x
        returned = np.asarray(returned).astype(self.dtype)
        final = self._report(returned)
        final_violation = float(self.violation(returned, final))
        outside = self.excess(x).max(axis=1, initial=0.0)
        return Trace(
            x=x,
            f=values[:, 0],
            h=values[:, 1:],
            violation=violation,
            best=best,
            best_f=np.where(found, values[at, 0], np.inf) if len(x) else np.zeros(0),
            best_violation=np.where(found, violation[at], np.inf) if len(x) else np.zeros(0),
            best_x=best_x,
            returned_x=returned,
            returned_f=float(final[0]),
            returned_violation=final_violation,
            infeasible=not final_violation <= self.feasibility_tol,
            stop=stop,
            failed=int(np.isinf(violation).sum()),
            outside=int((outside > self.feasibility_tol).sum()),
            seconds=seconds,
        )

    def _report(self, x: np.ndarray) -> np.ndarray:
        """Values for the report: exact ones, else those measured, else one query off the record."""
        if self.problem.exact is not None:
            return np.asarray(_exact(self.problem.exact, x), float)
        values = self.cache.get(x.tobytes())
        if values is None:
            values = np.asarray(_query(self.problem.q, x, self.key, self.budget), float)
        return values


@functools.partial(jax.jit, static_argnums=0)
def _query(q, x, key, count):
    f, h = q(x, jax.random.fold_in(key, count))
    return jnp.concatenate([f[None], h])


@functools.partial(jax.jit, static_argnums=0)
def _exact(exact, x):
    f, h = exact(x)
    return jnp.concatenate([f[None], h])


def _best_so_far(f: np.ndarray, violation: np.ndarray, tol: float) -> np.ndarray:
    """Returns the index of the best entry so far, by `kkt.better`; -1 before a finite one."""
    best, index, order = -1, np.full(f.shape, -1), (2, np.inf)
    for i, (value, excess) in enumerate(zip(f, violation, strict=True)):
        if excess < np.inf:
            candidate = (0, value) if excess <= tol else (1, excess)
            if candidate < order:
                best, order = i, candidate
        index[i] = best
    return index
