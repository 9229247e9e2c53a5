"""The methods of the comparison: how each is built, what a step costs, and what is tuned of it.

Every method has a grid of `GRID_SIZE` candidates for one setting, its own published or default one
among them: a multiplier of its step sizes, primal and dual alike; the weight of a penalty, at two
steps; the length scale of SafeOpt's model. With noise, differences that are published for exact
values get at least the radius that ZOFL takes by default, for otherwise they measure noise alone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.zofl.problems import Task
from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import (
    barrier,
    block_descent,
    conex,
    penalty,
    primal_dual,
    safe_qcqp,
    safeopt,
    settings,
    zofl,
)
from jaxlab.zeroth_order.problem import Problem

STEPS = ((0.001,), (0.01,), (0.1,), (0.3,), (1.0,), (3.0,), (10.0,))
"""Candidates of most methods: multipliers of the step. The least are for methods whose one random
direction inflates the curvature n times."""
PENALTIES = (
    (1.0, 1.0), (10.0, 1.0), (100.0, 1.0), (1000.0, 1.0), (10.0, 0.1), (100.0, 0.1), (100.0, 0.01)
)  # fmt: skip
"""Candidates of the penalty methods: weight, and multiplier of the step."""
GRID_SIZE = len(STEPS)
SAFEOPT_QUERIES, SAFEOPT_GRID = 64, 300
"""Queries and most grid points of SafeOpt, whose cost grows with their product and faster."""
LB_SGD_CUTS = 40
"""Reductions of LB-SGD's barrier weight over a run, which bring it from 0.05 to 1e-4."""
LEAST_SMOOTHNESS = 1e-3

Candidate = jax.Array
"""`[1]` or `[2]`, a traced row of a grid."""


class Method(NamedTuple):
    """A line of the table of methods.

    Attributes:
        label: name in tables and figures.
        make: `make(task, problem, candidate, num_steps)`, with the noisy `problem`.
        queries: joint queries `(at the start, per step)` for a problem.
        grid: candidates.  published: index of the published or default one.
        missing: says why the method does not apply to a task, "" where it does.
        only_exact: made for values without noise.
        averages: its answer is the average iterate, which counts where it is the better point.
        most_steps: a limit of the method's own, or None.
    """

    label: str
    make: Callable[[Task, Problem, Candidate, int], Algorithm]
    queries: Callable[[Problem], tuple[int, int]]
    grid: tuple[tuple[float, ...], ...] = STEPS
    published: int = STEPS.index((1.0,))
    missing: Callable[[Task], str] = lambda task: ""
    only_exact: bool = False
    averages: bool = False
    most_steps: int | None = None

    def num_steps(self, task: Task) -> int:
        """Steps within the task's budget."""
        start, per_step = self.queries(task.problem)
        num_steps = (task.budget - start) // per_step
        return num_steps if self.most_steps is None else min(num_steps, self.most_steps)


def _zofl(label: str, probes: int = 1, **options) -> Method:
    """A form of ZOFL; `probes` is the number of velocities a step measures."""

    def make(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
        algorithm = zofl.make_zofl(problem, settings.ZOFLConfig(**options))

        def init(key: jax.Array):
            # The default step is measured at the start: what is tuned is a multiple of it.
            state = algorithm.init(key)
            inner = state.inner._replace(eta=state.inner.eta * candidate[0])
            return state._replace(inner=inner, good_inner=inner)

        return Algorithm(init, algorithm.step)

    def queries(problem: Problem) -> tuple[int, int]:
        probe = 1 + 2 * _directions(problem)
        return probe, probes * probe

    return Method(label, make, queries)


def _minmax(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    m = candidate[0]
    return primal_dual.make_zo_minmax(
        problem, alpha=0.1 * m, beta=0.003 * m, u=_radius(problem, 1e-3)
    )


def _zoagp(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    m = candidate[0]
    return primal_dual.make_zoagp(problem, alpha=0.3 * m, beta=0.09 * m, u=_radius(problem, 0.003))


def _zoeg(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    return primal_dual.make_zoeg(problem, alpha=0.03 * candidate[0], u=_radius(problem, 1e-3))


def _zoceg(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    return primal_dual.make_zoceg(problem, alpha=0.03 * candidate[0], u=_radius(problem, 1e-3))


def _zob_gda(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    m = candidate[0]
    return block_descent.make_zob_gda(
        problem, alpha=0.08 * m, beta=0.05 * m, u=_radius(problem, 0.003)
    )


def _zob_sgda(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    m = candidate[0]
    return block_descent.make_zob_sgda(
        problem, num_steps=num_steps, alpha=0.1 * m, beta=0.05 * m, u=_radius(problem, 0.003)
    )


def _penalty(make: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
    def build(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
        rho, m = candidate[0], candidate[1]
        alpha = penalty.BASE_STEP * m / jnp.maximum(1.0, rho)
        return make(problem, rho=rho, alpha=alpha)

    return build


def _switching(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    return penalty.make_switching(problem, alpha=penalty.BASE_STEP * candidate[0])


def _conex(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    m = candidate[0]
    return conex.make_szo_conex(problem, alpha=0.03 * m, beta=0.009 * m, u=_radius(problem, 0.01))


def _lb_sgd(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    M0, M = smoothness(task)
    return barrier.make_lb_sgd(
        problem,
        M0=M0 / candidate[0],
        M=M / candidate[0],
        T_in=max(3, num_steps // LB_SGD_CUTS),
        # A start closer to a constraint than the radius would never be left.
        u=min(0.01, 0.1 * task.slack),
    )


def _szo_qq(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    M0, M = smoothness(task)
    return safe_qcqp.make_szo_qq(problem, M=M / candidate[0], mu=0.5 * M0 / candidate[0])


def _safeopt(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    return safeopt.make_safeopt(
        problem._replace(lb=problem.x0 - task.box, ub=problem.x0 + task.box),
        lengthscale=0.3 * candidate[0],
        capacity=SAFEOPT_QUERIES,
        resolution=int(SAFEOPT_GRID ** (1.0 / problem.n)),
    )


def smoothness(task: Task) -> tuple[float, np.ndarray]:
    """Returns `(M0, M)`, the largest curvatures of f and each h at the start and the optimum.

    The safe methods must be told; they get it for nothing, and from the optimum too.
    """
    problem = task.problem
    assert problem.exact is not None and problem.x_star is not None
    hessian = jax.jit(jax.jacfwd(jax.jacfwd(lambda x: jnp.concatenate(_stacked(problem, x)))))
    with jax.ensure_compile_time_eval():  # it is asked for while a run is being traced
        hessians = [np.asarray(hessian(x)) for x in (problem.x0, problem.x_star)]
    found = [np.abs(np.linalg.eigvalsh(H)).max(axis=1) for H in hessians]
    largest = np.maximum(np.max(found, axis=0), LEAST_SMOOTHNESS)
    return float(largest[0]), largest[1:]


def _stacked(problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    assert problem.exact is not None
    f, h = problem.exact(x)
    return f[None], h


def _directions(problem: Problem) -> int:
    """The default number of directions of ZOFL and of the penalty methods."""
    return min(problem.n, max(2 * problem.m_eq, 16))


def _radius(problem: Problem, published: float) -> jax.Array:
    return jnp.maximum(published, settings.default_radius(problem.sigma, problem.x0.dtype))


def _around(problem: Problem) -> tuple[int, int]:
    return 0, 1 + 2 * _directions(problem)


def _needs_interior(task: Task) -> str:
    if task.problem.m_eq:
        return "equalities"
    return "" if task.slack > 0.0 else "start not strictly feasible"


def _needs_grid(task: Task) -> str:
    return _needs_interior(task) or ("" if task.box is not None else "no small box")


TABLE: dict[str, Method] = {
    "zofl": _zofl("ZOFL"),
    "zofl-plugin": _zofl("ZOFL plug-in", form="plugin", kind="sphere"),
    "zofl-midpoint": _zofl("ZOFL midpoint", probes=2, scheme="midpoint"),
    "zofl-momentum": _zofl("ZOFL momentum", scheme="momentum"),
    "zo-minmax": Method("ZO-MinMax", _minmax, lambda p: (1, 2)),
    "zoagp": Method("ZOAGP", _zoagp, lambda p: (1, p.n + 1)),
    "zoeg": Method("ZOEG", _zoeg, lambda p: (0, 4)),
    "zoceg": Method("ZOCEG", _zoceg, lambda p: (0, 2 * (p.n + 1))),
    "zob-gda": Method("ZOB-GDA", _zob_gda, lambda p: (0, math.ceil(math.sqrt(p.n)) + 1)),
    "zob-sgda": Method("ZOB-SGDA", _zob_sgda, lambda p: (0, math.ceil(0.75 * math.sqrt(p.n)) + 1)),
    "szo-conex": Method(
        "SZO-ConEx", _conex, lambda p: (0, 2 * (1 + 2 * p.m_eq + p.m_ineq)), averages=True
    ),
    "quadratic-penalty": Method(
        "quadratic penalty", _penalty(penalty.make_quadratic_penalty), _around, PENALTIES, 1
    ),
    "exact-penalty": Method(
        "exact penalty", _penalty(penalty.make_exact_penalty), _around, PENALTIES, 1
    ),
    "switching": Method("switching", _switching, _around),
    "lb-sgd": Method(
        "LB-SGD", _lb_sgd, lambda p: (0, 2 * max(1, p.n // 2)), missing=_needs_interior
    ),
    "szo-qq": Method(
        "SZO-QQ", _szo_qq, lambda p: (0, p.n + 1), missing=_needs_interior, only_exact=True
    ),
    "safeopt": Method(
        "SafeOpt", _safeopt, lambda p: (0, 1), missing=_needs_grid, most_steps=SAFEOPT_QUERIES
    ),
}
"""The methods, ours first."""
OURS = ("zofl", "zofl-plugin", "zofl-midpoint", "zofl-momentum")
HEADLINE = "zofl"


def check_names(names: tuple[str, ...]) -> None:
    """Checks names of methods.

    Raises:
        ValueError: if there is no method of a name.
    """
    unknown = [name for name in names if name not in TABLE]
    if unknown:
        raise ValueError(f"unknown method {unknown[0]!r}; there are: {', '.join(TABLE)}")
