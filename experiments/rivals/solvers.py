"""One adapter for the solvers that people use instead: scipy's, CMA-ES, nevergrad, NOMAD.

Each sees the problem as a `BlackBox`, which ends the run at its budget. Solvers keep their own
defaults except for tolerances, which are tight, so that the budget ends the run, and what a careful
user sets: the difference step, the seed, the box.
"""

import contextlib
import importlib
import importlib.util
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize

from experiments.rivals import black_box
from experiments.rivals.black_box import BlackBox, Trace
from jaxlab.zeroth_order.problem import Problem

SCIPY = ("SLSQP", "trust-constr", "COBYLA", "COBYQA")
PACKAGES = {"cma": "cma", "nevergrad": "nevergrad", "NOMAD": "PyNomadBBO"}
"""Methods outside scipy and the pip package of each."""
MODULES = {"NOMAD": "PyNomad"}
METHODS = (*SCIPY, *PACKAGES)
EXTRA = "solvers"  # the extra of this project that installs them


def solve(
    problem: Problem,
    method: str,
    *,
    budget: int,
    seed: int = 0,
    tol: float = 1e-10,
    difference_step: float | None = None,
) -> Trace:
    """Runs one solver on one problem.

    Args:
        problem: the problem. CMA-ES, nevergrad and NOMAD, which know no equalities, are given two
            inequalities for each, half of its `feasibility_tol` wide.
        method: one of `METHODS`. SLSQP and trust-constr get forward differences of the black box,
            n further queries a gradient, which turn backward at an upper bound.
        budget: most joint queries.
        seed: of the noise and of the solver's own draws.
        tol: the solver's own tolerance (on steps, or the trust region).
        difference_step: of forward differences; sqrt(max(rounding unit, sigma)) if None, which
            balances noise with curvature of order one.

    Raises:
        ValueError: if the method is unknown or the budget not positive.
        ImportError: if the method's package is missing; it names the package and the extra.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
    package = None if method in SCIPY else _import(method)
    box = BlackBox(problem, budget, seed, difference_step)
    box.warm_up()
    stop, returned = "solver", None
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of solvers, about their own progress
        try:
            returned = _RUN[method](box, method, package, tol, seed)
        except black_box.Stop as reason:
            stop = str(reason)
        except (ArithmeticError, AssertionError, IndexError, ValueError) as error:
            # A failed query can break a solver (LinAlgError is a ValueError); its trace counts.
            stop = f"error: {type(error).__name__}: {error}"
    return box.trace(stop, returned, time.perf_counter() - start)


def installed() -> tuple[str, ...]:
    """Returns the methods whose package is here; SciPy's always are."""
    return tuple(
        method
        for method in METHODS
        if method in SCIPY or importlib.util.find_spec(MODULES.get(method, method))
    )


def _slsqp(box: BlackBox, method: str, package: None, tol: float, seed: int) -> np.ndarray:
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


def _trust_constr(box: BlackBox, method: str, package: None, tol: float, seed: int) -> np.ndarray:
    # At a reachable gtol it ends before the barrier parameter is small, 1e-4 off on HS14.
    options = {"gtol": 1e-16, "xtol": tol, "maxiter": box.budget}
    constraints = []
    if box.problem.m:
        slopes: dict[str, Any] = {
            "jac": lambda x: box.jacobian(x)[1:],
            "hess": scipy.optimize.BFGS(),
        }
        constraints = scipy.optimize.NonlinearConstraint(box.h, _lower_limits(box), 0.0, **slopes)
    return _minimize(
        box, method, constraints, jac=True, options=options, hess=scipy.optimize.BFGS()
    )


def _cobyla(box: BlackBox, method: str, package: None, tol: float, seed: int) -> np.ndarray:
    constraints = []
    if box.problem.m:  # older releases know inequalities only
        constraints = scipy.optimize.NonlinearConstraint(
            lambda x: box.as_inequalities(x, 0.0), -np.inf, 0.0
        )
    options = {"maxiter": box.budget, "rhobeg": _first_radius(box), "tol": tol}
    return _minimize(box, method, constraints, options=options)


def _cobyqa(box: BlackBox, method: str, package: None, tol: float, seed: int) -> np.ndarray:
    constraints = []
    if box.problem.m:
        constraints = scipy.optimize.NonlinearConstraint(box.h, _lower_limits(box), 0.0)
    radius = _first_radius(box)
    options = {
        "maxfev": box.budget,
        "maxiter": box.budget,
        "initial_tr_radius": radius,
        "final_tr_radius": min(tol, radius),
    }
    return _minimize(box, method, constraints, options=options)


def _minimize(
    box: BlackBox, method: str, constraints: Any, *, jac: bool = False, **kwargs: Any
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


def _cma(box: BlackBox, method: str, cma: Any, tol: float, seed: int) -> np.ndarray:
    """Runs CMA-ES with the package's augmented Lagrangian; equalities as two inequalities."""
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
            "bounds": [box.lb, box.ub],
            "seed": seed + 1,
            "verbose": -9,
            "verb_log": 0,
            "tolx": tol,
            "maxiter": box.budget,
        },
    )
    while not search.stop():
        points = search.ask()
        if box.problem.m:
            search.tell(points, [fitness(x) for x in points])
            fitness.update(search)
        else:
            search.tell(points, [box.f(x) for x in points])
    return search.result.xfavorite


def _nevergrad(box: BlackBox, method: str, ng: Any, tol: float, seed: int) -> np.ndarray | None:
    """Runs nevergrad's optimizer `NEVERGRAD` with its own penalty on constraints."""
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


def _nomad(box: BlackBox, method: str, nomad: Any, tol: float, seed: int) -> np.ndarray | None:
    """Runs mesh adaptive direct search with the progressive barrier."""
    slack, reasons = 0.5 * box.feasibility_tol, []

    def evaluate(point: Any) -> int:
        if reasons:
            return 0
        x = np.array([point.get_coord(i) for i in range(point.size())])
        try:
            values = [box.f(x), *box.as_inequalities(x, slack)]
        except black_box.Stop as reason:  # exceptions do not pass through the C++ of the package
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


def _lower_limits(box: BlackBox) -> np.ndarray:
    """Returns 0 of equalities, -inf of inequalities; the upper limit of both is 0."""
    return np.where(np.arange(box.problem.m) < box.problem.m_eq, 0.0, -np.inf)


def _first_radius(box: BlackBox) -> float:
    """Returns the first trust region's radius: 1, at most a quarter of the narrowest side."""
    return min(1.0, 0.25 * _width(box))


def _spread(box: BlackBox) -> float:
    """Returns the samplers' first standard deviation: 0.03, at most a fifth of the narrowest side.

    They adapt it. From 0.3, the package's default for a unit box, CMA-ES left for infinity on HS40,
    whose objective is unbounded outside the constraints.
    """
    return min(0.03, 0.2 * _width(box))


def _width(box: BlackBox) -> float:
    """Returns the narrowest side of the box, fixed variables aside; inf if it has no two bounds."""
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
