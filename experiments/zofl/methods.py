"""The methods of the comparison: how each is built, what a step costs, and what is tuned of it.

Every method has a grid of `GRID_SIZE` candidates for two settings, its own published or default
ones among them: mostly five multipliers of the step, times three values of the second setting that
matters most to it. The grids of rivals are wider than ZOFL's, whose step is measured. With noise,
differences that are published for exact values get at least the radius that ZOFL takes by default,
for otherwise they measure noise alone; LB-SGD, whose margin of safety the radius is, keeps its own.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.zofl.tasks import Task
from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import settings, zofl
from jaxlab.zeroth_order.baselines import (
    barrier,
    block_descent,
    conex,
    penalty,
    primal_dual,
    safe_qcqp,
    safeopt,
)
from jaxlab.zeroth_order.problem import Problem, exact_of

STEPS = (0.01, 0.1, 0.3, 1.0, 4.0)
"""Of ZOFL: multipliers of the measured step."""
WIDE_STEPS = (0.003, 0.03, 0.3, 1.0, 8.0)
"""Of rivals: multipliers of the published step. The least are for methods whose one random
direction inflates the curvature n times."""
SMOOTHNESS = (0.01, 0.3, 1.0, 4.0, 16.0)
"""Of the safe methods: multipliers of the inverse smoothness constants."""


def _product(
    steps: tuple[float, ...], seconds: tuple[float, ...]
) -> tuple[tuple[float, float], ...]:
    return tuple((step, second) for step in steps for second in seconds)


def _duals(published: float, strong: float = 1.0) -> tuple[tuple[float, float], ...]:
    """Multipliers of the primal step with dual steps: in proportion to it, published, strong."""
    between = math.sqrt(published * strong)
    return tuple(
        (step, dual)
        for step in WIDE_STEPS
        for dual in (between if step == 1.0 else step * published, published, strong)
    )


GAINS = _product(STEPS, (0.3, 1.0, 1.7))
"""Of ZOFL: multipliers of the step and of the gain."""
LEVELS = _product(WIDE_STEPS, (1e-4, 1e-3, 3e-2))
"""Of the switching method: multiplier of the step, and the violation at which it switches."""
BARRIERS = _product(SMOOTHNESS, (0.005, 0.05, 0.2))
"""Of LB-SGD: multiplier of the inverse smoothness constants, and first weight of the barrier."""
PROXIMITIES = _product(SMOOTHNESS, (0.01, 0.1, 1.0))
"""Of SZO-QQ: multipliers of the inverse smoothness constants and of the proximal weight."""
PENALTY_STEPS = (0.1, 1.0, 6.0)
QUADRATIC = _product((0.1, 1.0, 10.0, 100.0, 1000.0), PENALTY_STEPS)
EXACT = _product((0.1, 0.3, 1.0, 10.0, 100.0), PENALTY_STEPS)
"""Of the penalty methods: weight, and multiplier of the step."""
MODELS = tuple((length, beta) for length in (0.15, 0.3, 0.6, 1.0, 2.0) for beta in (1.0, 2.0, 3.0))
"""Of SafeOpt: length scale in units of the box, and width of the confidence bounds."""
GRID_SIZE = len(GAINS)
SAFEOPT_QUERIES, SAFEOPT_GRID = 64, 300
"""Queries and most grid points of SafeOpt, whose cost grows with their product and faster."""
LB_SGD_CUTS = 40
"""Reductions of LB-SGD's barrier weight over a run, which bring it from 0.05 to 1e-4."""
LEAST_SMOOTHNESS = 1e-3

Candidate = jax.Array
"""`[2]`, a traced row of a grid."""


class Method(NamedTuple):
    """A line of the table of methods.

    Attributes:
        label: name in tables and figures.
        make: `make(task, problem, candidate, num_steps)`, with the noisy `problem`, whose
            `feasibility_tol` decides which measured point is the answer.
        queries: joint queries `(at the start, per step)` for a problem.
        grid: candidates.  default: the published or default one.
        missing: says why the method does not apply to a task, "" where it does.
        only_exact: made for values without noise.
        averages: its answer is the average iterate, which counts where it is the better point.
        most_steps: a limit of the method's own, or None.
    """

    label: str
    make: Callable[[Task, Problem, Candidate, int], Algorithm]
    queries: Callable[[Problem], tuple[int, int]]
    grid: tuple[tuple[float, float], ...]
    default: tuple[float, float]
    missing: Callable[[Task], str] = lambda task: ""
    only_exact: bool = False
    averages: bool = False
    most_steps: int | None = None

    @property
    def published(self) -> int:
        """The index of the published or default candidate."""
        return self.grid.index(self.default)

    def num_steps(self, task: Task) -> int:
        """Steps within the task's budget."""
        start, per_step = self.queries(task.problem)
        num_steps = (task.budget - start) // per_step
        return num_steps if self.most_steps is None else min(num_steps, self.most_steps)


def _zofl(label: str, probes: int = 1, **options) -> Method:
    """Makes a line for a form of ZOFL; `probes` is the number of velocities a step measures."""

    def make(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
        gain = candidate[1] * jnp.where(problem.sigma > 0.0, 0.1, 0.5)
        config = settings.ZOFLConfig(gain=gain, **options)
        algorithm = zofl.make_zofl(problem, config)

        def init(key: jax.Array):
            # The default step is measured at the start: what is tuned is a multiple of it.
            state = algorithm.init(key)
            inner = state.inner._replace(eta=state.inner.eta * candidate[0])
            return state._replace(inner=inner, good_inner=inner)

        return algorithm._replace(init=init)

    def queries(problem: Problem) -> tuple[int, int]:
        probe = 1 + 2 * _directions(problem)
        return probe, probes * probe

    return Method(label, make, queries, GAINS, (1.0, 1.0))


def _primal_dual(build: Callable[..., Algorithm], alpha: float, u: float) -> Callable:
    """Makes the `make` of a method with a primal step, a dual step and a radius."""

    def make(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
        return build(problem, alpha=alpha * candidate[0], beta=candidate[1], u=_radius(problem, u))

    return make


def _zob_sgda(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    build = functools.partial(block_descent.make_zob_sgda, num_steps=num_steps)
    return _primal_dual(build, 0.1, 0.003)(task, problem, candidate, num_steps)


def _penalty(build: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
    def make(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
        rho, m = candidate[0], candidate[1]
        alpha = penalty.BASE_STEP * m / jnp.maximum(1.0, rho)
        return build(problem, rho=rho, alpha=alpha)

    return make


def _switching(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    alpha = penalty.BASE_STEP * candidate[0]
    return penalty.make_switching(problem, alpha=alpha, tau=candidate[1])


def _lb_sgd(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    M0, M = smoothness(task)
    radius = jnp.where(problem.sigma > 0.0, 0.01, settings.default_radius(0.0, problem.x0.dtype))
    return barrier.make_lb_sgd(
        problem,
        M0=M0 / candidate[0],
        M=jnp.asarray(M) / candidate[0],
        eta=candidate[1],
        T_in=max(3, num_steps // LB_SGD_CUTS),
        # A start closer to a constraint than the radius would never be left.
        u=jnp.minimum(radius, 0.1 * task.slack),
    )


def _szo_qq(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    M0, M = smoothness(task)
    return safe_qcqp.make_szo_qq(
        problem, M=jnp.asarray(M) / candidate[0], mu=0.5 * M0 * candidate[1]
    )


def _safeopt(task: Task, problem: Problem, candidate: Candidate, num_steps: int) -> Algorithm:
    if task.box is None:
        raise ValueError(f"SafeOpt searches a box, {task.name} has none; leave it out")
    return safeopt.make_safeopt(
        problem._replace(lb=problem.x0 - task.box, ub=problem.x0 + task.box),
        lengthscale=candidate[0],
        beta=candidate[1],
        capacity=SAFEOPT_QUERIES,
        resolution=int(SAFEOPT_GRID ** (1.0 / problem.n)),
    )


def smoothness(task: Task) -> tuple[float, np.ndarray]:
    """Returns `(M0, M)`, the largest curvatures of f and each h at the start and the optimum.

    The safe methods must be told; they get it for nothing, and from the optimum too.
    """
    problem = task.problem
    assert problem.x_star is not None
    hessian = jax.jit(jax.jacfwd(jax.jacfwd(lambda x: jnp.concatenate(_stacked(problem, x)))))
    with jax.ensure_compile_time_eval():  # it is asked for while a run is being traced
        hessians = [np.asarray(hessian(x)) for x in (problem.x0, problem.x_star)]
    found = [np.abs(np.linalg.eigvalsh(H)).max(axis=1) for H in hessians]
    largest = np.maximum(np.max(found, axis=0), LEAST_SMOOTHNESS)
    return float(largest[0]), largest[1:]


def _stacked(problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    f, h = exact_of(problem)(x)
    return f[None], h


def _directions(problem: Problem) -> int:
    """Returns the default number of directions of ZOFL and of the penalty methods."""
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
    "zo-minmax": Method(
        "ZO-MinMax",
        _primal_dual(primal_dual.make_zo_minmax, 0.1, 1e-3),
        lambda p: (1, 2),
        _duals(0.003),
        (1.0, 0.003),
    ),
    "zoagp": Method(
        "ZOAGP",
        _primal_dual(primal_dual.make_zoagp, 0.3, 0.003),
        lambda p: (1, p.n + 1),
        _duals(0.09),
        (1.0, 0.09),
    ),
    "zoeg": Method(
        "ZOEG",
        _primal_dual(primal_dual.make_zoeg, 0.03, 1e-3),
        lambda p: (0, 4),
        _duals(0.03),
        (1.0, 0.03),
    ),
    "zoceg": Method(
        "ZOCEG",
        _primal_dual(primal_dual.make_zoceg, 0.03, 1e-3),
        lambda p: (0, 2 * (p.n + 1)),
        _duals(0.03, 3.0),
        (1.0, 0.03),
    ),
    "zob-gda": Method(
        "ZOB-GDA",
        _primal_dual(block_descent.make_zob_gda, 0.08, 0.003),
        lambda p: (0, math.ceil(math.sqrt(p.n)) + 1),
        _duals(0.05),
        (1.0, 0.05),
    ),
    "zob-sgda": Method(
        "ZOB-SGDA",
        _zob_sgda,
        lambda p: (0, math.ceil(0.75 * math.sqrt(p.n)) + 1),
        _duals(0.05),
        (1.0, 0.05),
    ),
    "szo-conex": Method(
        "SZO-ConEx",
        _primal_dual(conex.make_szo_conex, 0.03, 0.01),
        lambda p: (0, 2 * (1 + 2 * p.m_eq + p.m_ineq)),
        _duals(0.009, 3.0),
        (1.0, 0.009),
        averages=True,
    ),
    "quadratic-penalty": Method(
        "quadratic penalty",
        _penalty(penalty.make_quadratic_penalty),
        _around,
        QUADRATIC,
        (10.0, 1.0),
    ),
    "exact-penalty": Method(
        "exact penalty", _penalty(penalty.make_exact_penalty), _around, EXACT, (10.0, 1.0)
    ),
    "switching": Method("switching", _switching, _around, LEVELS, (1.0, 1e-3)),
    "lb-sgd": Method(
        "LB-SGD",
        _lb_sgd,
        lambda p: (0, 2 * max(1, p.n // 2)),
        BARRIERS,
        (1.0, 0.05),
        missing=_needs_interior,
    ),
    "szo-qq": Method(
        "SZO-QQ",
        _szo_qq,
        lambda p: (0, p.n + 1),
        PROXIMITIES,
        (1.0, 1.0),
        missing=_needs_interior,
        only_exact=True,
    ),
    "safeopt": Method(
        "SafeOpt",
        _safeopt,
        lambda p: (0, 1),
        MODELS,
        (0.3, 2.0),
        missing=_needs_grid,
        most_steps=SAFEOPT_QUERIES,
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
