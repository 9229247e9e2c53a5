"""The tables of the comparison: every method, every duel, every problem, the tuning, outsiders."""

import collections
import math

import numpy as np

from experiments.harness.result import Table
from experiments.rivals import solvers
from experiments.zofl import analysis, external, methods, rows, runs, tasks
from experiments.zofl.analysis import BETTER, NEITHER, TIE, WORSE, Comparison
from experiments.zofl.methods import HEADLINE
from experiments.zofl.runs import PUBLISHED, TUNED


def draw_up(comparison: Comparison) -> tuple[Table, ...]:
    """Returns the tables of the comparison, in the order of the report."""
    found = [_method_table(comparison, column) for column in (TUNED, PUBLISHED)]
    if not comparison.config.tuning_seeds:
        found = found[:1]
    found.append(_duel_table(comparison))
    found += [_problem_table(comparison, level) for level in range(len(comparison.config.sigmas))]
    if comparison.config.tuning_seeds:
        found.append(_choice_table(comparison))
    if any(name in solvers.METHODS for _, name in comparison.outcomes):
        found.append(_external_table(comparison))
    return tuple(found)


def _method_table(comparison: Comparison, column: int) -> Table:
    sigmas = comparison.config.sigmas
    lines = []
    for name in comparison.methods:
        ran = sum((task, name) in comparison.outcomes for task in comparison.tasks)
        cells = []
        for level in range(len(sigmas)):
            if _never_ran(comparison, name, level):
                cells.append("n/a")
                continue
            cells.append(_shares(comparison, name, level, column))
        lines.append((methods.TABLE[name].label, ran, *cells))
    which = "tuned" if column == TUNED else "published or default step"
    return Table(
        f"Feasible / solved to 0.1 / solved to 0.001, {which}",
        ("Method", "Problems it applies to", *(rows.noise_name(sigma) for sigma in sigmas)),
        tuple(lines),
        f"Number of problems of {len(comparison.tasks)}, mean over seeds, within the budget. "
        "Solved: feasible, and the gap at most that share of the initial one; an accuracy that the "
        "noise drowns is left out. Violations are scaled by the start and feasible up to "
        f"{tasks.TOLERANCE:g} + 3 σ. n/a: not made for it.",
    )


def _duel_table(comparison: Comparison) -> Table:
    sigmas = comparison.config.sigmas
    lines = []
    for name in (*comparison.rivals, *(m for m in comparison.methods if m in methods.OURS[1:])):
        cells = []
        for level in range(len(sigmas)):
            duels = [analysis.duel(comparison, task, name, level) for task in comparison.tasks]
            counts = collections.Counter(duel.outcome for duel in duels if duel is not None)
            shown = f"{counts[BETTER]} : {counts[TIE] + counts[NEITHER]} : {counts[WORSE]}"
            cells.append(shown if counts else "n/a")
        lines.append((methods.TABLE[name].label, *cells))
    return Table(
        "ZOFL against each other method, both tuned: better : tied : worse",
        ("Against", *(rows.noise_name(sigma) for sigma in sigmas)),
        tuple(lines),
        "Number of problems, of those to which the other applies, by the final gaps of the same "
        "seeds; infeasible ends count as a gap of 1. The last lines are other forms of "
        "ZOFL.",
    )


def _problem_table(comparison: Comparison, level: int) -> Table:
    lines = []
    for name, task in comparison.tasks.items():
        rival = analysis.best_rival(comparison, name, level)
        duel = None if rival is None else analysis.duel(comparison, name, rival, level)
        lines.append(
            (
                name,
                f"{task.problem.n}, {task.problem.m_eq} + {task.problem.m_ineq}",
                task.budget,
                _ending(comparison, name, HEADLINE, level),
                "–" if rival is None else methods.TABLE[rival].label,
                "–" if rival is None else _ending(comparison, name, rival, level),
                "–" if duel is None else duel.outcome,
            )
        )
    return Table(
        f"Every problem, σ = {comparison.config.sigmas[level]:g}",
        (
            "Problem",
            "n, equalities + inequalities",
            "Queries",
            "ZOFL: gap (violation)",
            "Best rival",
            "Its gap (violation)",
            "ZOFL is",
        ),
        tuple(lines),
        "Medians over seeds at the best measured point, tuned, exact values. The gap is "
        "|f − reference| over |initial f − reference| (at least 1 where the start is infeasible), "
        "the violation is scaled by the start.",
    )


def _choice_table(comparison: Comparison) -> Table:
    lines = []
    for name in comparison.methods:
        method = methods.TABLE[name]
        chosen = [
            collections.Counter(
                int(unit.chosen[level])
                for (_, other), unit in comparison.outcomes.items()
                if other == name and unit.chosen[level] >= 0
            )
            for level in range(len(comparison.config.sigmas))
        ]
        cells = [
            ", ".join(f"{_candidate(method.grid[k])}: {n}" for k, n in counts.most_common(3))
            for counts in chosen
        ]
        lines.append((method.label, *(cell or "n/a" for cell in cells)))
    return Table(
        "What the tuning chose most: candidate and on how many problems",
        ("Method", *(rows.noise_name(sigma) for sigma in comparison.config.sigmas)),
        tuple(lines),
        f"The three most frequent of {methods.GRID_SIZE} pairs. First: multiplier of the published "
        "or default step, of LB-SGD's and SZO-QQ's inverse smoothness constants; weight of the "
        "penalties; length scale of SafeOpt. Second: multiplier of ZOFL's gain; dual step; "
        "multiplier of the penalties' step; level of switching; LB-SGD's first barrier weight; "
        "multiplier of SZO-QQ's proximal weight; width of SafeOpt's bounds. Chosen on "
        f"{comparison.config.tuning_seeds} seeds of their own by the median of |gap| + "
        f"{runs.VIOLATION_WEIGHT:g} × excess violation.",
    )


def _external_table(comparison: Comparison) -> Table:
    lines = []
    for solver in solvers.METHODS:
        found = {task: u for (task, name), u in comparison.outcomes.items() if name == solver}
        if not found:
            continue
        cells = []
        for level in range(len(comparison.config.sigmas)):
            cells.append(_shares(comparison, solver, level, TUNED))
        queries = [runs.median(u.record.queries[0, TUNED, :, -1]) for u in found.values()]
        lines.append((solver, len(found), math.ceil(np.median(queries)), *cells))
    return Table(
        "External solvers: feasible / solved to 0.1 / solved to 0.001",
        (
            "Solver",
            "Problems",
            f"Median queries, σ = {comparison.config.sigmas[0]:g}",
            *(rows.noise_name(sigma) for sigma in comparison.config.sigmas),
        ),
        tuple(lines),
        f"At most {external.QUERIES:,} queries, untuned, {external.SEEDS} seeds or fewer; "
        "derivatives of SLSQP and trust-constr by forward differences. Not part of the rows "
        "above: their budgets are smaller.",
    )


def _shares(comparison: Comparison, name: str, level: int, column: int) -> str:
    """Numbers of problems with a feasible end, and solved to each accuracy."""
    found = [analysis.feasible_shares(comparison, name, level, column)]
    sigma = comparison.config.sigmas[level]
    for tau in analysis.accuracies(sigma):
        found.append(analysis.solved_shares(comparison, name, level, tau, column))
    return " / ".join(f"{share.sum():.1f}" for share in found)


def _never_ran(comparison: Comparison, name: str, level: int) -> bool:
    return all(analysis.final(comparison, task, name, level) is None for task in comparison.tasks)


def _ending(comparison: Comparison, task: str, name: str, level: int) -> str:
    ends = analysis.final(comparison, task, name, level)
    if ends is None:
        return "n/a"
    return f"{runs.median(np.abs(ends[0])):.1e} ({runs.median(ends[1]):.1e})"


def _candidate(values: tuple[float, float]) -> str:
    return f"{values[0]:g} & {values[1]:.2g}"
