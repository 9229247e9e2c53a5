"""What a unit of the comparison computes: a method tuned and measured on a problem.

It is one compiled program whose lanes are runs: noise level, candidate of the method's grid and
seed are traced. It runs the tuning seeds at every candidate, then the other seeds at the chosen and
at the published candidate. The history of a run is taken inside its scan.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from experiments.zofl.methods import Method
from experiments.zofl.tasks import Task, allowance, tolerance
from jaxlab.zeroth_order import kkt, method, noise
from jaxlab.zeroth_order.problem import exact_of

NUM_POINTS = 60
"""Entries of a history, half of them evenly spaced, half of them more and more apart."""
VIOLATION_WEIGHT = 10.0
"""What a unit of violation costs in the score by which candidates are chosen."""
TUNED, PUBLISHED = 0, 1
_FIRST_TUNING_SEED = 1_000_000


class Record(NamedTuple):
    """An entry of a history, of exact values; `[..., T]` in a trace.

    Attributes:
        queries: joint queries so far, int32.  steps: updates so far, int32.
        gap, violation: at the iterate.  The gap is f - f_ref over `Task.gap_scale`, signed.
        best_gap, best_violation: at the best measured point so far.
        average_gap, average_violation: at the average iterate.
        status: of `method.State`.
    """

    queries: Array
    steps: Array
    gap: Array
    violation: Array
    best_gap: Array
    best_violation: Array
    average_gap: Array
    average_violation: Array
    status: Array


class Outcome(NamedTuple):
    """What one method did on one problem.

    Attributes:
        record: leaves `[sigmas, 2, seeds, T]`, tuned and published; NaN where it was not run.
        score: `[sigmas, GRID_SIZE]`, of the tuning runs; empty without tuning.
        chosen: `[sigmas]`, index of the tuned candidate.
        seconds: `[2]`, of tracing and compiling, and of running.
    """

    record: Record
    score: np.ndarray
    chosen: np.ndarray
    seconds: np.ndarray


def select(score: np.ndarray, published: int) -> int:
    """Returns the candidate with the least score, the published one where it ties for it."""
    score = np.where(np.isnan(score), np.inf, score)
    return published if score[published] <= score.min() else int(score.argmin())


def tuning_score(gap: ArrayLike, violation: ArrayLike, tol: ArrayLike) -> np.ndarray:
    """Returns the median over seeds (last axis) of |gap| and the weighted excess of violation.

    A value below the optimum is bought with violation, however tolerable: it counts by its size.
    """
    excess = np.maximum(np.asarray(violation) - tol, 0.0)
    return np.median(np.abs(gap) + VIOLATION_WEIGHT * excess, axis=-1)


def median(values: ArrayLike) -> float:
    """Returns the median; NaN where nothing was run."""
    return float(np.median(np.asarray(values)))


def log_steps(num_steps: int) -> np.ndarray:
    """Returns the steps after which a history has an entry, increasing, the last one included."""
    half = NUM_POINTS // 2
    both = (np.linspace(num_steps / half, num_steps, half), np.geomspace(1, num_steps, half))
    return np.unique(np.maximum(np.concatenate(both).round().astype(np.int32), 1))


def measure(
    task: Task,
    chosen_method: Method,
    *,
    sigmas: tuple[float, ...],
    num_seeds: int,
    tuning_seeds: int,
    seed: int,
    quick: bool = False,
) -> Outcome:
    """Tunes and measures a method on a problem, in float64.

    Args:
        quick: halves the time to compile on a CPU and doubles that to run.
    """
    with jax.enable_x64(True):
        return _measure(task, chosen_method, sigmas, num_seeds, tuning_seeds, seed, quick)


def _measure(
    task: Task,
    chosen_method: Method,
    sigmas: tuple[float, ...],
    num_seeds: int,
    tuning_seeds: int,
    seed: int,
    quick: bool,
) -> Outcome:
    grid = np.array(chosen_method.grid)
    levels = np.array(sigmas)
    used = levels[levels == 0.0] if chosen_method.only_exact else levels
    lanes = used.size * num_seeds
    clock = time.perf_counter()
    program = _compile(task, chosen_method, lanes, grid.shape[1], quick)
    compiled = time.perf_counter()
    root = jax.random.key(seed)

    def call(candidate_idx: np.ndarray, seeds: np.ndarray) -> Record:
        """Runs `[sigmas, candidates]` with every seed; leaves `[sigmas, candidates, seeds, T]`."""
        shape = (*candidate_idx.shape, seeds.size)
        per_lane = np.broadcast_to(used[:, None, None], shape).ravel()
        candidates = grid[np.broadcast_to(candidate_idx[:, :, None], shape).ravel()]
        numbers = np.broadcast_to(seeds[None, None], shape).ravel()
        parts = []
        for first in range(0, numbers.size, lanes):
            # The last run fills what is left of the one batch size that is compiled.
            idx = np.minimum(np.arange(first, first + lanes), numbers.size - 1)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(root, numbers[idx].astype(np.uint32))
            parts.append(jax.device_get(program(keys, per_lane[idx], candidates[idx])))
        found = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: numbers.size], *parts)
        return jax.tree.map(lambda x: x.reshape(*shape, -1), found)

    chosen = np.full(used.size, chosen_method.published)
    score = np.zeros((used.size, 0))
    if tuning_seeds:
        everything = np.broadcast_to(np.arange(len(grid)), (used.size, len(grid)))
        tried = call(everything, _FIRST_TUNING_SEED + np.arange(tuning_seeds))
        tried = answer(tried, chosen_method, used)
        allowed = tolerance(used)[:, None, None]
        score = tuning_score(tried.best_gap[..., -1], tried.best_violation[..., -1], allowed)
        chosen = np.array([select(row, chosen_method.published) for row in score])
    pair = np.stack([chosen, np.full_like(chosen, chosen_method.published)], axis=1)
    record = call(pair, np.arange(num_seeds))
    _check_queries(record, task, chosen_method)
    seconds = np.array([compiled - clock, time.perf_counter() - compiled])
    record, score, chosen = _spread((record, score, chosen), levels, used)
    return Outcome(record, score, chosen, seconds)


def answer(record: Record, chosen_method: Method, sigmas: Sequence[float] | np.ndarray) -> Record:
    """Puts the average iterate in place of the best point where it is a method's answer and better.

    Better in exact values, its distance from the optimum counted: a favor to the method.
    """
    if not chosen_method.averages:
        return record
    best = (record.best_gap, record.best_violation)
    average = (record.average_gap, record.average_violation)
    tol = tolerance(np.asarray(sigmas)).reshape(-1, *(1,) * (record.best_gap.ndim - 1))
    (gap, violation), (gap_average, violation_average) = best, average
    take = np.asarray(
        kkt.better((abs(gap_average), violation_average), (abs(gap), violation), jnp.asarray(tol))
    )
    return record._replace(
        best_gap=np.where(take, average[0], best[0]),
        best_violation=np.where(take, average[1], best[1]),
    )


def _compile(
    task: Task, chosen_method: Method, lanes: int, width: int, quick: bool
) -> Callable[..., Record]:
    num_steps = chosen_method.num_steps(task)
    steps = log_steps(num_steps)
    periods = jnp.asarray(np.diff(steps, prepend=0))
    dtype = task.problem.x0.dtype

    def lane(key: Array, sigma: Array, candidate: Array) -> Record:
        noisy = noise.with_noise(task.problem, sigma)
        noisy = noisy._replace(feasibility_tol=allowance(sigma))
        algorithm = chosen_method.make(task, noisy, candidate, num_steps)

        def period(state: method.State, count: Array) -> tuple[method.State, Record]:
            # The count is traced, so that the step is compiled once for all entries.
            state = jax.lax.fori_loop(0, count, lambda _, s: algorithm.step(s)[0], state)
            return state, _observe(task, state)

        return jax.lax.scan(period, algorithm.init(key), periods)[1]

    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), lanes))
    shapes = (
        key,
        jax.ShapeDtypeStruct((lanes,), dtype),
        jax.ShapeDtypeStruct((lanes, width), dtype),
    )
    hasty = quick and jax.default_backend() == "cpu"
    options: dict[str, Any] | None = {"xla_backend_optimization_level": 0} if hasty else None
    return jax.jit(jax.vmap(lane)).lower(*shapes).compile(compiler_options=options)


def _observe(task: Task, state: method.State) -> Record:
    values = []
    for x in (state.x, state.best_x, state.average):
        f, h = exact_of(task.problem)(x)
        gap = (f - task.f_ref) / task.gap_scale
        values += [gap, kkt.max_violation(h, task.problem.m_eq)]
    short = [value.astype(jnp.float32) for value in values]
    return Record(*[state.queries, state.t, *short, state.status])


def _check_queries(record: Record, task: Task, chosen_method: Method) -> None:
    """Checks that the table's price of a step is the method's own account."""
    start, per_step = chosen_method.queries(task.problem)
    made = record.queries[..., -1].max()
    most = start + per_step * chosen_method.num_steps(task)
    if made > task.budget or (
        (record.status < method.BUDGET_SPENT).all()
        and not (made == most or (chosen_method.most_steps and made <= most))
    ):
        raise RuntimeError(f"{chosen_method.label} made {made} queries on {task.name}, not {most}")


def _spread(tree: Any, levels: np.ndarray, used: np.ndarray) -> Any:
    """Fills in the noise levels that a method is not made for: NaN, or -1 for integers."""
    rows = np.searchsorted(levels, used) if used.size < levels.size else np.arange(levels.size)

    def fill(found: np.ndarray) -> np.ndarray:
        empty = np.nan if np.issubdtype(found.dtype, np.floating) else -1
        every = np.full((levels.size, *found.shape[1:]), empty, found.dtype)
        every[rows] = found
        return every

    return jax.tree.map(fill, tree)
