"""One adapter for the solvers that people use instead: scipy's, CMA-ES, nevergrad, NOMAD.

Each sees the problem as a black box: `solve` counts joint queries (f and h at one point are one, a
point asked for twice is one), hands every query a fresh key, stops at the budget and records the
trace. Solvers keep their own defaults except for tolerances, which are tight, so that the budget
ends the run, and what a careful user sets: the difference step, the seed, the box.
"""

import contextlib
import functools
import importlib
import importlib.util
import math
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxlab.zeroth_order.problem import Problem

SCIPY = ("SLSQP", "trust-constr", "COBYLA", "COBYQA")
PACKAGES = {"cma": "cma", "nevergrad": "nevergrad", "NOMAD": "PyNomadBBO"}
"""Methods outside scipy and the pip package of each."""
MODULES = {"NOMAD": "PyNomad"}
METHODS = (*SCIPY, *PACKAGES)
EXTRA = "solvers"  # the extra of this project that installs them
FAILED_VALUE = 1e10
"""What a solver is told of f and each h where the black box returned something not finite."""

MOST_CALLS = 20
"""Calls a query, repeated points included, after which a solver is taken to be stuck."""

Host = Callable[[np.ndarray], tuple[Any, Any]]


class Trace(NamedTuple):
    """What a solver did.

    Attributes:
        x: `[Q, n]`, the points queried, in order.  f: `[Q]`, h: `[Q, m]`, the values measured.
        violation: `[Q]`, largest violation of a constraint or a bound; inf where a query failed.
        best_f, best_violation: `[Q]`, of the best point so far: feasible before infeasible, then
            objective, then violation. Entry i is after i + 1 queries.
        best_x: `[n]`, that point at the end; the start if no query was finite.
        returned_x: `[n]`, what the solver returned; `best_x` if it was interrupted.
        returned_f, returned_violation: there, without noise where the problem has `exact`.
        infeasible: the returned point violates a constraint by more than the tolerance.
        stop: "solver" if it ended by itself, "budget", "target", or "error: ..." .
        failed: queries that returned a value that is not finite.
        outside: queries that left the box by more than the tolerance.
        seconds: wall time, without the compilation of the query.
    """

    x: np.ndarray
    f: np.ndarray
    h: np.ndarray
    violation: np.ndarray
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


def solve(
    problem: Problem,
    method: str,
    *,
    budget: int,
    seed: int = 0,
    tol: float = 1e-10,
    feasibility_tol: float = 1e-4,
    target: float = -math.inf,
    difference_step: float | None = None,
    host: Host | None = None,
) -> Trace:
    """Runs one solver on one problem.

    Args:
        problem: the problem.
        method: one of `METHODS`. SLSQP and trust-constr get forward differences of the black box,
            n further queries a gradient, which turn backward at an upper bound.
        budget: most joint queries.
        seed: of the noise and of the solver's own draws.
        tol: the solver's own tolerance (on steps, or the trust region).
        feasibility_tol: largest violation of a feasible point. CMA-ES, nevergrad and NOMAD, which
            know no equalities, are given two inequalities of half this width each.
        target: stop at the first query that measures f at most this at a feasible point.
        difference_step: of forward differences; sqrt(max(rounding unit, sigma)) if None, which
            balances noise with curvature of order one.
        host: NumPy twin `host(x) -> (f, h)` of a deterministic oracle, called instead of it, for
            timings without the dispatch of a compiled query.

    Raises:
        ValueError: if the method is unknown or the budget not positive.
        ImportError: if the method's package is missing; it names the package and the extra.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
    package = None if method in SCIPY else _import(method)
    box = _BlackBox(problem, budget, seed, feasibility_tol, target, difference_step, host)
    box.warm_up()
    stop, returned = "solver", None
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of solvers, about their own progress
        try:
            returned = _RUN[method](box, method, package, tol, seed)
        except _Stop as reason:
            stop = str(reason)
        except (ArithmeticError, AssertionError, IndexError, ValueError) as error:
            # A failed query can break a solver (LinAlgError is a ValueError); its trace counts.
            stop = f"error: {type(error).__name__}: {error}"
    return box.trace(stop, returned, time.perf_counter() - start)


def installed() -> tuple[str, ...]:
    """Returns the methods whose package is here; SciPy's always are."""
    return tuple(
        method for method in METHODS
        if method in SCIPY or importlib.util.find_spec(MODULES.get(method, method))
    )  # fmt: skip


class _Stop(Exception):
    """Ends a solver from within a query."""


class _BlackBox:
    """Counts, caches and records the queries of one run; the one mutable object here."""

    def __init__(self, problem, budget, seed, feasibility_tol, target, difference_step, host):
        self.problem, self.budget, self.host = problem, budget, host
        self.feasibility_tol, self.target = feasibility_tol, target
        self.key = jax.random.key(seed)
        self.dtype = np.asarray(problem.x0).dtype
        self.x0, self.lb, self.ub = (
            np.asarray(value, float) for value in (problem.x0, problem.lb, problem.ub)
        )
        if difference_step is None:
            unit = float(np.finfo(self.dtype).eps)
            difference_step = max(unit, float(problem.sigma)) ** 0.5
        self.step = difference_step
        self.cache: dict[bytes, np.ndarray] = {}
        self.points: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.calls = 0
        self.last_jacobian = (b"", np.zeros((0, 0)))

    def warm_up(self) -> None:
        """Compiles the query outside the timing; its value is not looked at."""
        if self.host is None:
            _query(self.problem.q, self.problem.x0, self.key, 0).block_until_ready()

    def measure(self, x: np.ndarray) -> np.ndarray:
        """Returns the stacked values `[1 + m]` at x, as they were measured."""
        x = np.asarray(x).astype(self.dtype)
        name = x.tobytes()
        self.calls += 1
        if name in self.cache:
            # A solver that asks for known points for ever would never reach the budget.
            if self.calls > MOST_CALLS * (self.budget + self.x0.size):
                raise _Stop("error: the solver only repeats known points")
            return self.cache[name]
        if len(self.points) >= self.budget:
            raise _Stop("budget")
        if self.host is not None:
            f, h = self.host(x)
            values = np.concatenate([[f], np.atleast_1d(h)]).astype(float)
        else:
            count = len(self.points)
            values = np.asarray(_query(self.problem.q, x, self.key, count), float)
        self.cache[name] = values
        self.points.append(x)
        self.values.append(values)
        if self.violation(x, values) <= self.feasibility_tol and values[0] <= self.target:
            raise _Stop("target")
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
        """Forward differences of the stacked values, `[1 + m, n]`; 0 where a query failed."""
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
        """Constraints as inequalities <= 0, an equality as two, `slack` wide on either side."""
        values, m_eq = self(x)[1:], self.problem.m_eq
        equal = values[:m_eq]
        return np.concatenate([equal - slack, -equal - slack, values[m_eq:]])

    def excess(self, x: np.ndarray) -> np.ndarray:
        """How far each coordinate is outside the box, negative inside; inf if it is infinite."""
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(np.maximum(self.lb - x, x - self.ub), nan=np.inf)

    def violation(self, x: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Largest violation of constraints and bounds, `[...]`; inf where a value is not finite."""
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
            x=x, f=values[:, 0], h=values[:, 1:], violation=violation,
            best_f=np.where(found, values[at, 0], np.inf) if len(x) else np.zeros(0),
            best_violation=np.where(found, violation[at], np.inf) if len(x) else np.zeros(0),
            best_x=best_x, returned_x=returned, returned_f=float(final[0]),
            returned_violation=final_violation,
            infeasible=not final_violation <= self.feasibility_tol,
            stop=stop, failed=int(np.isinf(violation).sum()),
            outside=int((outside > self.feasibility_tol).sum()), seconds=seconds,
        )  # fmt: skip

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
    """Index of the best entry up to each, -1 before a finite one; the order of `kkt.better`."""
    best, index, order = -1, np.full(f.shape, -1), (2, np.inf)
    for i, (value, excess) in enumerate(zip(f, violation, strict=True)):
        if excess < np.inf:
            candidate = (0, value) if excess <= tol else (1, excess)
            if candidate < order:
                best, order = i, candidate
        index[i] = best
    return index


def _slsqp(box: _BlackBox, method: str, package: None, tol: float, seed: int) -> np.ndarray:
    m_eq = box.problem.m_eq
    # scipy's convention: inequalities are >= 0.
    constraints = [
        {
            "type": "eq",
            "fun": lambda x: box.h(x)[:m_eq],
            "jac": lambda x: box.jacobian(x)[1 : 1 + m_eq],
        },
        {
            "type": "ineq",
            "fun": lambda x: -box.h(x)[m_eq:],
            "jac": lambda x: -box.jacobian(x)[1 + m_eq :],
        },
    ]
    sizes = (m_eq, box.problem.m_ineq)
    used = [constraint for constraint, size in zip(constraints, sizes, strict=True) if size]
    return _minimize(box, method, used, jac=True, options={"ftol": tol, "maxiter": box.budget})


def _trust_constr(box: _BlackBox, method: str, package: None, tol: float, seed: int) -> np.ndarray:
    # At a reachable gtol it ends before the barrier parameter is small, 1e-4 off on HS14.
    options = {"gtol": 1e-16, "xtol": tol, "maxiter": box.budget}
    constraints = []
    if box.problem.m:
        constraints = scipy.optimize.NonlinearConstraint(
            box.h,
            _lower_limits(box),
            0.0,
            jac=lambda x: box.jacobian(x)[1:],
            hess=scipy.optimize.BFGS(),
        )
    return _minimize(
        box, method, constraints, jac=True, options=options, hess=scipy.optimize.BFGS()
    )


def _cobyla(box: _BlackBox, method: str, package: None, tol: float, seed: int) -> np.ndarray:
    constraints = []
    if box.problem.m:  # older releases know inequalities only
        constraints = scipy.optimize.NonlinearConstraint(
            lambda x: box.as_inequalities(x, 0.0), -np.inf, 0.0
        )
    options = {"maxiter": box.budget, "rhobeg": _first_radius(box), "tol": tol}
    return _minimize(box, method, constraints, options=options)


def _cobyqa(box: _BlackBox, method: str, package: None, tol: float, seed: int) -> np.ndarray:
    constraints = []
    if box.problem.m:
        constraints = scipy.optimize.NonlinearConstraint(box.h, _lower_limits(box), 0.0)
    radius = _first_radius(box)
    options = {
        "maxfev": box.budget, "maxiter": box.budget,
        "initial_tr_radius": radius, "final_tr_radius": min(tol, radius),
    }  # fmt: skip
    return _minimize(box, method, constraints, options=options)


def _minimize(
    box: _BlackBox, method: str, constraints: Any, *, jac: bool = False, **kwargs: Any
) -> np.ndarray:
    bounded = np.isfinite(box.lb).any() or np.isfinite(box.ub).any()
    return scipy.optimize.minimize(
        box.f,
        box.x0,
        method=method,
        jac=(lambda x: box.jacobian(x)[0]) if jac else None,
        bounds=scipy.optimize.Bounds(box.lb, box.ub) if bounded else None,  # pyright: ignore
        constraints=constraints,
        **kwargs,
    ).x


def _cma(box: _BlackBox, method: str, cma: Any, tol: float, seed: int) -> np.ndarray:
    """CMA-ES with the package's augmented Lagrangian; equalities as two inequalities."""
    slack = 0.5 * box.feasibility_tol
    # The package makes a folder for its logs where it stands, even if it logs nothing.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        fitness = cma.ConstrainedFitnessAL(
            box.f,
            lambda x: box.as_inequalities(x, slack),
            dimension=box.x0.size,
            logging=0,
            archives=False,
        )
        assert fitness.al is not None  # made on first use
    search = cma.CMAEvolutionStrategy(
        box.x0,
        _spread(box),
        {
            "bounds": [box.lb, box.ub], "seed": seed + 1, "verbose": -9, "verb_log": 0,
            "tolx": tol, "maxiter": box.budget,
        },
    )  # fmt: skip
    while not search.stop():
        points = search.ask()
        if box.problem.m:
            search.tell(points, [fitness(x) for x in points])
            fitness.update(search)
        else:
            search.tell(points, [box.f(x) for x in points])
    return search.result.xfavorite


def _nevergrad(box: _BlackBox, method: str, ng: Any, tol: float, seed: int) -> np.ndarray | None:
    """nevergrad's optimizer `NEVERGRAD` with its own penalty on constraints."""
    slack = 0.5 * box.feasibility_tol
    array = ng.p.Array(init=box.x0)
    if np.isfinite(box.lb).all() and np.isfinite(box.ub).all():
        array.set_bounds(box.lb, box.ub, method="clipping", full_range_sampling=False)
    array.set_mutation(sigma=_spread(box))
    array.random_state.seed(seed)
    search = ng.optimizers.registry[NEVERGRAD](parametrization=array, budget=box.budget)
    while len(box.points) < box.budget:
        candidate = search.ask()
        x = np.clip(candidate.value, box.lb, box.ub)
        excess = np.maximum(box.as_inequalities(x, slack), 0.0)
        search.tell(candidate, box.f(x), excess.tolist() if excess.size else None)
    return np.clip(search.provide_recommendation().value, box.lb, box.ub)


_ONE_NOMAD = threading.Lock()
"""NOMAD keeps its state in global variables: two at a time crash the process."""


def _nomad(box: _BlackBox, method: str, nomad: Any, tol: float, seed: int) -> np.ndarray | None:
    """Mesh adaptive direct search with the progressive barrier."""
    slack, reasons = 0.5 * box.feasibility_tol, []

    def evaluate(point: Any) -> int:
        if reasons:
            return 0
        x = np.array([point.get_coord(i) for i in range(point.size())])
        try:
            values = [box.f(x), *box.as_inequalities(x, slack)]
        except _Stop as reason:  # exceptions do not pass through the C++ of the package
            reasons.append(reason)
            return 0
        point.setBBO(" ".join(repr(float(value)) for value in values).encode())
        return 1

    count = 2 * box.problem.m_eq + box.problem.m_ineq
    parameters = [
        f"BB_OUTPUT_TYPE OBJ {'PB ' * count}".strip(),
        f"MAX_BB_EVAL {box.budget}",
        f"LOWER_BOUND ( {_nomad_bounds(box.lb)} )",
        f"UPPER_BOUND ( {_nomad_bounds(box.ub)} )",
        f"SEED {seed}",
        "DISPLAY_DEGREE 0",
    ]
    with _ONE_NOMAD:
        nomad.resetRandomNumberGenerator()  # else it draws on from the run before, at any seed
        found = nomad.optimize(evaluate, box.x0.tolist(), [], [], parameters)
    if reasons:
        raise reasons[0]
    points = found["x_best_feas"] or found["x_best_infeas"]
    return np.array(points[0]) if points else None


NEVERGRAD = "RescaledCMA"
"""The optimizer of nevergrad that `solve` runs: the one that came out feasible on HS40, 43 and 71.

Its choosers (NGOpt) stop with a TypeError under NumPy 2.4; differential evolution met no equality.
"""
_RUN: dict[str, Callable[..., np.ndarray | None]] = {
    "SLSQP": _slsqp,
    "trust-constr": _trust_constr,
    "COBYLA": _cobyla,
    "COBYQA": _cobyqa,
    "cma": _cma,
    "nevergrad": _nevergrad,
    "NOMAD": _nomad,
}


def _lower_limits(box: _BlackBox) -> np.ndarray:
    """0 of equalities, -inf of inequalities; the upper limit of both is 0."""
    return np.where(np.arange(box.problem.m) < box.problem.m_eq, 0.0, -np.inf)


def _first_radius(box: _BlackBox) -> float:
    """Radius of the first trust region: 1, at most a quarter of the narrowest side of the box."""
    return min(1.0, 0.25 * _width(box))


def _spread(box: _BlackBox) -> float:
    """Initial standard deviation of the samplers: 0.03, at most a fifth of the narrowest side.

    They adapt it. From 0.3, the package's default for a unit box, CMA-ES left for infinity on HS40,
    whose objective is unbounded outside the constraints.
    """
    return min(0.03, 0.2 * _width(box))


def _width(box: _BlackBox) -> float:
    """Narrowest side of the box, fixed variables aside; inf if it has no two bounds."""
    sides = box.ub - box.lb
    return float(np.min(sides[sides > 0.0], initial=np.inf))


def _nomad_bounds(bounds: np.ndarray) -> str:
    return " ".join(repr(float(bound)) if np.isfinite(bound) else "-" for bound in bounds)


def _import(method: str) -> types.ModuleType:
    try:
        return importlib.import_module(MODULES.get(method, method))
    except ImportError as error:
        raise ImportError(
            f"method {method!r} needs the package {PACKAGES[method]}: "
            f"pip install {PACKAGES[method]}; pip install 'jaxlab[{EXTRA}]' has cma and NOMAD"
        ) from error
