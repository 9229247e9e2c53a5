"""What the outcomes of a comparison say: final losses, who wins, what is solved, which iterates are
feasible.

A point is feasible if no scaled constraint is violated by more than `tasks.tolerance(sigma)`,
and its gap is |f - f_ref|, as `Task.gap_scale` counts it: a value below the optimum that a
tolerable violation has bought is as far from it as one above. Both are exact, whatever the method
measured.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import verdicts
from experiments.zofl import Config, methods, runs
from experiments.zofl.runs import PUBLISHED, TUNED, Outcome, Record
from experiments.zofl.tasks import Task, allowance, tolerance
from jaxlab.zeroth_order import profiles

MOST_GAP = 1e3
"""Gaps are compared on a logarithmic scale from `least_gap` to this."""
INFEASIBLE_GAP = 1.0
"""An infeasible end counts as this gap at least, about that of the start."""
TAUS = (1e-1, 1e-3)
"""Relative accuracies at which a problem counts as solved (More and Wild 2009), where the noise
allows to tell."""
LEAST_PEAK = 1e-6
"""Violations below are all the same, a hundredth of what counts as feasible."""
TRANSIENT_STEPS = {"exact": 30, "noisy": 150}
"""Updates after which the start's violation has decayed: to 1e-6 or less at gain 0.5, and to 1e-6
at gain 0.1, the defaults without and with noise."""
BETTER, TIE, WORSE, NEITHER = "better", "tie", "worse", "nobody feasible"


class Comparison(NamedTuple):
    """A finished comparison; outcomes by problem and method, those that do not apply left out."""

    config: Config
    tasks: dict[str, Task]
    methods: tuple[str, ...]
    outcomes: dict[tuple[str, str], Outcome]

    @property
    def rivals(self) -> tuple[str, ...]:
        """The zeroth-order methods that are not ours; SciPy's solvers are no part of it."""
        return tuple(name for name in self.methods if name not in methods.OURS)

    def record(self, task: str, name: str) -> Record | None:
        """Returns the record of a method on a problem, with its answer as the best point."""
        outcome = self.outcomes.get((task, name))
        if outcome is None:
            return None
        if name not in methods.TABLE:
            return outcome.record
        return runs.answer(outcome.record, methods.TABLE[name], self.config.sigmas)


class Duel(NamedTuple):
    """ZOFL against one rival on one problem at one noise level.

    Attributes:
        outcome: `BETTER`, `TIE`, `WORSE` (for ZOFL) or `NEITHER`.
        ours, theirs: median gap of each.  rival: name of the rival.
    """

    outcome: str
    ours: float
    theirs: float
    rival: str


def losses(comparison: Comparison, task: str, name: str, level: int, column: int = TUNED):
    """Returns log10 of the final gap of every seed, `[S]`; None where it was not run.

    An infeasible end has a gap of `INFEASIBLE_GAP` at least.
    """
    ends = final(comparison, task, name, level, column)
    if ends is None:
        return None
    gap, violation = ends
    sigma = comparison.config.sigmas[level]
    feasible = violation <= tolerance(sigma)
    size = np.where(feasible, np.abs(gap), np.maximum(np.abs(gap), INFEASIBLE_GAP))
    return np.log10(np.clip(size, least_gap(comparison.tasks[task], sigma), MOST_GAP))


def least_gap(task: Task, sigma: float) -> float:
    """Returns the gap below which all gaps are equal: what a tolerated violation can buy.

    A constraint with multiplier lambda moved by epsilon changes the optimum by lambda epsilon.
    """
    return allowance(sigma) * max(1.0, task.price)


def final(
    comparison: Comparison, task: str, name: str, level: int, column: int = TUNED
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns gap and violation of the final best point of every seed, `[S]` each."""
    record = comparison.record(task, name)
    if record is None or (record.queries[level] < 0).all():
        return None
    ends = record.best_gap[level, column, :, -1], record.best_violation[level, column, :, -1]
    return np.asarray(ends[0], float), np.asarray(ends[1], float)


def accuracies(sigma: float) -> tuple[float, ...]:
    """Returns those of `TAUS` that mean something at a noise level."""
    return tuple(tau for tau in TAUS if tau > allowance(sigma))


def duel(comparison: Comparison, task: str, rival: str, level: int) -> Duel | None:
    """Compares final gaps, paired by seed, by the one rule; None where the rival was not run.

    With fewer seeds than a verdict takes every duel is a tie.
    """
    ours = losses(comparison, task, methods.HEADLINE, level)
    theirs = losses(comparison, task, rival, level)
    if theirs is None:
        return None
    assert ours is not None
    medians = (
        runs.median(np.abs(_ends(comparison, task, methods.HEADLINE, level)[0])),
        runs.median(np.abs(_ends(comparison, task, rival, level)[0])),
    )
    if not is_feasible(comparison, task, methods.HEADLINE, level) and not is_feasible(
        comparison, task, rival, level
    ):
        return Duel(NEITHER, *medians, rival)
    verdict = verdicts.compare(ours, theirs, larger_is_better=False).verdict
    outcome = {"better": BETTER, "worse": WORSE}.get(verdict, TIE)
    return Duel(outcome, *medians, rival)


def best_rival(comparison: Comparison, task: str, level: int) -> str | None:
    """Returns the tuned rival with the least mean loss on a problem, in hindsight.

    The mean is what `duel` tests; where several tie for it, so do their duels.
    """
    found = {
        name: float(np.mean(loss))
        for name in comparison.rivals
        if (loss := losses(comparison, task, name, level)) is not None
    }
    return min(found, key=lambda name: found[name]) if found else None


def is_feasible(comparison: Comparison, task: str, name: str, level: int) -> bool:
    """Says whether at least half of a method's tuned runs end feasible."""
    _, violation = _ends(comparison, task, name, level)
    return bool(np.mean(violation <= tolerance(comparison.config.sigmas[level])) >= 0.5)


def queries_to_solve(
    comparison: Comparison, task: str, name: str, level: int, tau: float, column: int = TUNED
) -> np.ndarray | None:
    """Returns the queries after which each run has solved the problem, inf if never, `[S]`."""
    record = comparison.record(task, name)
    if record is None or (record.queries[level] < 0).all():
        return None
    tol = tolerance(comparison.config.sigmas[level])
    part = (record.best_gap, record.best_violation, record.queries)
    gap, violation, queries = (leaf[level, column] for leaf in part)
    return np.asarray(_solve_times()(gap, violation, queries.astype(np.float32), tau, tol))


def solved_shares(
    comparison: Comparison, name: str, level: int, tau: float, column: int = TUNED
) -> np.ndarray:
    """Returns the share of seeds that solve each problem, `[P]`; 0 where it was not run."""
    times = (
        queries_to_solve(comparison, task, name, level, tau, column) for task in comparison.tasks
    )
    return np.array([0.0 if t is None else np.isfinite(t).mean() for t in times])


def feasible_shares(
    comparison: Comparison, name: str, level: int, column: int = TUNED
) -> np.ndarray:
    """Returns the share of runs that end feasible on each problem, `[P]`; 0 where not run."""
    tol = tolerance(comparison.config.sigmas[level])
    ends = (final(comparison, task, name, level, column) for task in comparison.tasks)
    return np.array([0.0 if end is None else np.mean(end[1] <= tol) for end in ends])


def feasible_iterates(comparison: Comparison, name: str, level: int) -> np.ndarray:
    """Returns the share of iterates that are feasible on each problem, `[P]`; NaN where not run.

    An entry of the history stands for the updates since the one before it.
    """
    tol = tolerance(comparison.config.sigmas[level])
    shares = []
    for task in comparison.tasks:
        record = comparison.record(task, name)
        if record is None or (record.queries[level] < 0).all():
            shares.append(np.nan)
            continue
        steps = record.steps[level, TUNED]
        weights = np.diff(steps, axis=-1, prepend=0)
        feasible = record.violation[level, TUNED] <= tol
        shares.append(np.sum(weights * feasible) / max(np.sum(weights), 1))
    return np.array(shares)


def peak_violation(comparison: Comparison, task: str, name: str, level: int) -> float:
    """Returns the largest violation of an iterate after the transient, median over seeds.

    With the published step, so that the forms of ZOFL take the same one.
    """
    record = comparison.record(task, name)
    assert record is not None
    noisy = comparison.config.sigmas[level] > 0.0
    after = TRANSIENT_STEPS["noisy" if noisy else "exact"]
    late = record.steps[level, PUBLISHED] >= after
    late[:, -1] = True
    peaks = np.max(np.where(late, record.violation[level, PUBLISHED], 0.0), axis=-1)
    return max(runs.median(peaks), LEAST_PEAK)


@functools.cache
def _solve_times():
    def solve(gap, violation, queries, tau, tol):
        # Gaps are relative already: the optimum is 0 and the scale 1. One below is as far off.
        return profiles.queries_to_solve(
            jnp.abs(gap), violation, queries, 0.0, 0.0, tau=tau, feasibility_tol=tol
        )

    return jax.jit(jax.vmap(solve, (0, 0, 0, None, None)))


def _ends(comparison: Comparison, task: str, name: str, level: int):
    ends = final(comparison, task, name, level)
    assert ends is not None
    return ends
