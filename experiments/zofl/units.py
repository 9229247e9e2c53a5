"""One unit of the comparison: a method tuned and measured on a problem, in one compiled program.

The lanes of the program are runs: noise level, candidate of the method's grid and seed are traced.
It is called twice, first for the tuning seeds at every candidate, then for the other seeds at the
chosen and at the published candidate. The history of a run is taken inside its scan.
"""

import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.zofl.methods import Method
from experiments.zofl.problems import Task
from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import kkt, method, noise

NUM_POINTS = 60
"""Entries of a history, half of them evenly spaced, half of them more and more apart."""
TOLERANCE = 1e-4
"""Violation that counts as feasible without noise."""
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


class Unit(NamedTuple):
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


class _Tracked(NamedTuple):
    state: method.State
    best_x: Float[Array, " n"]
    best_f: Float[Array, ""]
    best_violation: Float[Array, ""]


def tolerance(sigma: float | Array) -> float | Array:
    """Violation that counts as feasible at a noise level: less than that cannot be told from 0."""
    return TOLERANCE + 3.0 * sigma


def select(score: np.ndarray, published: int) -> int:
    """Returns the candidate with the least score, the published one where it ties for it."""
    score = np.where(np.isnan(score), np.inf, score)
    return published if score[published] <= score.min() else int(score.argmin())


def tuning_score(gap: np.ndarray, violation: np.ndarray, tol: np.ndarray | float) -> np.ndarray:
    """Returns the median over seeds (last axis) of |gap| and the weighted excess of violation.

    A value below the optimum is bought with violation, however tolerable: it counts by its size.
    """
    excess = np.maximum(violation - tol, 0.0)
    return np.median(np.abs(gap) + VIOLATION_WEIGHT * excess, axis=-1)


def median(values: np.ndarray) -> float:
    """Returns the median; NaN where nothing was run."""
    return float(np.median(values))


def log_steps(num_steps: int) -> np.ndarray:
    """Returns the steps after which a history has an entry, increasing, the last one included."""
    half = NUM_POINTS // 2
    both = (np.linspace(num_steps / half, num_steps, half), np.geomspace(1, num_steps, half))
    return np.unique(np.maximum(np.concatenate(both).round().astype(np.int32), 1))


def run_unit(
    task: Task, chosen_method: Method, *, sigmas: tuple[float, ...], num_seeds: int,
    tuning_seeds: int, seed: int, quick: bool = False,
) -> Unit:  # fmt: skip
    """Tunes and measures a method on a problem, in float64.

    Args:
        quick: halves the time to compile on a CPU and doubles that to run.
    """
    with jax.enable_x64(True):
        return _run_unit(task, chosen_method, sigmas, num_seeds, tuning_seeds, seed, quick)


def save(path: pathlib.Path, unit: Unit) -> None:
    """Writes a unit in one step: a killed run leaves the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file, score=unit.score, chosen=unit.chosen, seconds=unit.seconds,
            **unit.record._asdict(),
        )  # fmt: skip
    partial.replace(path)


def load(path: pathlib.Path) -> Unit:
    """Reads a unit back."""
    with np.load(path) as file:
        record = Record(**{name: file[name] for name in Record._fields})
        return Unit(record, file["score"], file["chosen"], file["seconds"])


def _run_unit(
    task: Task, chosen_method: Method, sigmas: tuple[float, ...], num_seeds: int,
    tuning_seeds: int, seed: int, quick: bool,
) -> Unit:  # fmt: skip
    grid = np.array(chosen_method.grid)
    levels = np.array(sigmas)
    used = levels[levels == 0.0] if chosen_method.only_exact else levels
    lanes = used.size * max(2 * num_seeds, len(grid) * tuning_seeds)
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
        # The last lane fills what is left of the one batch size that is compiled.
        padded = np.minimum(np.arange(lanes), numbers.size - 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(root, numbers[padded].astype(np.uint32))
        found = jax.device_get(program(keys, per_lane[padded], candidates[padded]))
        return jax.tree.map(lambda x: x[: numbers.size].reshape(*shape, -1), found)

    chosen = np.full(used.size, chosen_method.published)
    score = np.zeros((used.size, 0))
    if tuning_seeds:
        everything = np.broadcast_to(np.arange(len(grid)), (used.size, len(grid)))
        tried = answer(
            call(everything, _FIRST_TUNING_SEED + np.arange(tuning_seeds)), chosen_method
        )
        allowed = tolerance(used)[:, None, None]
        score = tuning_score(tried.best_gap[..., -1], tried.best_violation[..., -1], allowed)
        chosen = np.array([select(row, chosen_method.published) for row in score])
    pair = np.stack([chosen, np.full_like(chosen, chosen_method.published)], axis=1)
    record = call(pair, np.arange(num_seeds))
    _check_queries(record, task, chosen_method)
    seconds = np.array([compiled - clock, time.perf_counter() - compiled])
    return Unit(*_spread((record, score, chosen), levels, used), seconds)


def answer(record: Record, chosen_method: Method) -> Record:
    """Puts the average iterate in place of the best point where it is a method's answer and better.

    Better in exact values: a favor to the method.
    """
    if not chosen_method.averages:
        return record
    best = (record.best_gap, record.best_violation)
    average = (record.average_gap, record.average_violation)
    take = np.asarray(kkt.better(average, best, TOLERANCE))
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
        algorithm = chosen_method.make(task, noisy, candidate, num_steps)
        tracked = _track(algorithm, tolerance(sigma))

        def period(carry: _Tracked, count: Array) -> tuple[_Tracked, Record]:
            # The count is traced, so that the step is compiled once for all entries.
            carry = jax.lax.fori_loop(0, count, lambda _, c: tracked.step(c)[0], carry)
            return carry, _observe(task, carry)

        return jax.lax.scan(period, tracked.init(key), periods)[1]

    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), lanes))
    shapes = (
        key,
        jax.ShapeDtypeStruct((lanes,), dtype),
        jax.ShapeDtypeStruct((lanes, width), dtype),
    )
    hasty = quick and jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if hasty else None
    return jax.jit(jax.vmap(lane)).lower(*shapes).compile(compiler_options=options)


def _track(algorithm: Algorithm, tol: Array | float) -> Algorithm:
    """Keeps the best point by a tolerance of our own, which depends on the noise."""

    def init(key: Array) -> _Tracked:
        state = algorithm.init(key)
        return _Tracked(state, state.best_x, state.best_f, state.best_violation)

    def step(carry: _Tracked) -> tuple[_Tracked, dict[str, Array]]:
        state, best_x, best_f, best_violation = carry
        # Without a best point, the one that the step reports is the one that it measured.
        infinite = jnp.full_like(best_f, jnp.inf)
        state, metrics = algorithm.step(
            state._replace(best_f=infinite, best_violation=infinite)
        )  # fmt: skip
        measured = (state.best_f, state.best_violation)
        take = kkt.better(measured, (best_f, best_violation), tol)
        kept = (
            jnp.where(take, new, old)
            for new, old in zip(
                (state.best_x, *measured), (best_x, best_f, best_violation), strict=True
            )
        )
        return _Tracked(state, *kept), metrics

    return Algorithm(init, step)


def _observe(task: Task, carry: _Tracked) -> Record:
    state = carry.state
    values = []
    for x in (state.x, carry.best_x, state.average):
        f, h = task.problem.exact(x)
        gap = (f - task.f_ref) / task.gap_scale
        values += [gap, kkt.max_violation(h, task.problem.m_eq)]
    short = [value.astype(jnp.float32) for value in values]
    return Record(state.queries, state.t, *short, state.status)


def _check_queries(record: Record, task: Task, chosen_method: Method) -> None:
    """The table's price of a step must be the method's own account."""
    start, per_step = chosen_method.queries(task.problem)
    made = record.queries[..., -1].max()
    most = start + per_step * chosen_method.num_steps(task)
    if (
        made > task.budget
        or (record.status == method.RUNNING).all()
        and not (made == most or chosen_method.most_steps and made <= most)
    ):
        raise RuntimeError(f"{chosen_method.label} made {made} queries on {task.name}, not {most}")


def _spread(tree, levels: np.ndarray, used: np.ndarray):
    """Fills in the noise levels that a method is not made for: NaN, or -1 for integers."""
    rows = np.searchsorted(levels, used) if used.size < levels.size else np.arange(levels.size)

    def fill(found: np.ndarray) -> np.ndarray:
        empty = np.nan if np.issubdtype(found.dtype, np.floating) else -1
        every = np.full((levels.size, *found.shape[1:]), empty, found.dtype)
        every[rows] = found
        return every

    return jax.tree.map(fill, tree)
