"""What a unit of an external solver computes: host loops on small budgets, untuned."""

import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rivals import solvers
from experiments.zofl import runs, tasks
from experiments.zofl.runs import Outcome, Record
from experiments.zofl.tasks import Task
from jaxlab.zeroth_order import kkt, noise
from jaxlab.zeroth_order.problem import exact_of

QUERIES = 1000
"""Most queries of a run."""
SEEDS = 3
"""Most runs at a noise level; without noise SciPy's solvers draw nothing, and one is enough."""
ONE_SEED = ("NOMAD",)
"""Solvers that take ten seconds a run, and run one at a time: they get one seed."""
MOST_VARIABLES = {"COBYQA": 30, "COBYLA": 60, "NOMAD": 4}
"""A model of many variables and constraints takes minutes."""


def missing(task: Task, solver: str) -> str:
    """Says why a solver is not run on a task, "" if it is."""
    most = MOST_VARIABLES.get(solver)
    return f"more than {most} variables" if most and task.problem.n > most else ""


def measure(
    task: Task, solver: str, *, sigmas: tuple[float, ...], num_seeds: int, seed: int
) -> Outcome:
    """Runs one solver at every noise level; both columns of the record are the same runs."""
    clock = time.perf_counter()
    num_seeds = min(SEEDS, num_seeds)
    with jax.enable_x64(True):
        rows = []
        for sigma in sigmas:
            noisy = noise.with_noise(task.problem, sigma)
            noisy = noisy._replace(feasibility_tol=tasks.allowance(sigma))
            always_same = sigma == 0.0 and solver in solvers.SCIPY
            runs = [
                _trace(task, solver, noisy, sigma, seed + index)
                for index in range(1 if always_same or solver in ONE_SEED else num_seeds)
            ]
            rows.append([runs[index % len(runs)] for index in range(num_seeds)])
    stacked = jax.tree.map(
        lambda *leaves: np.stack(leaves).reshape(len(sigmas), 1, num_seeds, -1),
        *itertools.chain(*rows),
    )
    record = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=1), stacked)
    seconds = np.array([0.0, time.perf_counter() - clock])
    return Outcome(record, np.zeros((len(sigmas), 0)), np.zeros(len(sigmas), int), seconds)


def _trace(task: Task, solver: str, noisy, sigma: float, seed: int) -> Record:
    found = solvers.solve(noisy, solver, budget=min(QUERIES, task.budget), seed=seed)
    count = len(found.f)
    at = np.linspace(0, max(count - 1, 0), runs.NUM_POINTS).round().astype(int)
    here = found.x[at] if count else np.repeat(found.best_x[None], at.size, axis=0)
    best_x = found.x[np.maximum(found.best[at], 0)] if count else here
    values = [np.asarray(v, np.float32) for x in (here, best_x) for v in _exact(task)(x)]
    nothing = np.full(at.size, np.nan, np.float32)
    status = np.zeros(at.size, np.int32)
    leaves: list[Any] = [(at + 1).astype(np.int32), at.astype(np.int32), *values]
    return Record(*[*leaves, nothing, nothing, status])


@functools.cache
def _compiled(exact, f_ref: float, gap_scale: float, m_eq: int):
    def gap_and_violation(x):
        f, h = exact(x)
        return (f - f_ref) / gap_scale, kkt.max_violation(h, m_eq)

    return jax.jit(jax.vmap(gap_and_violation))


def _exact(task: Task):
    compiled = _compiled(exact_of(task.problem), task.f_ref, task.gap_scale, task.problem.m_eq)
    return lambda x: compiled(jnp.asarray(x))
