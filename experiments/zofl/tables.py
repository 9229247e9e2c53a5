"""The rows and tables of the comparison."""

import collections
import math

import jax
import numpy as np
import scipy.stats

from experiments.harness.result import Row, Table
from experiments.rivals import solvers
from experiments.zofl import analysis, external, methods, problems, units
from experiments.zofl.analysis import BETTER, NEITHER, TIE, WORSE, Comparison
from experiments.zofl.methods import HEADLINE
from experiments.zofl.units import PUBLISHED, TUNED

OUTPERFORMS = (
    "ZOFL consistently outperforms zeroth-order baselines: competitive objective, feasible"
)
FEASIBLE = "ZOFL enforces feasibility along the way, not in the limit alone"
GENERAL = "General solvers, on a smaller budget and untuned"
MIDPOINT = "The midpoint variant improves feasibility without sacrificing optimality"
SIGNIFICANT = 0.05


def rows(comparison: Comparison) -> tuple[Row, ...]:
    """The figures that the paper makes claims about, by noise level."""
    levels = range(len(comparison.config.sigmas))
    found = [_wins(comparison, level) for level in levels]
    found += [
        _solved(comparison, level, tau)
        for level in levels
        for tau in analysis.accuracies(comparison.config.sigmas[level])
    ]
    found += [_feasible_ends(comparison, level) for level in levels]
    found += [_feasible_iterates(comparison, level) for level in levels]
    found += [row for level in levels for row in _safe_iterates(comparison, level)]
    found += [row for level in levels for row in _external(comparison, level)]
    if "zofl-midpoint" in comparison.methods:
        for level in levels:
            found += _midpoint(comparison, level)
    return tuple(found)


def tables(comparison: Comparison) -> tuple[Table, ...]:
    """Every method, every duel, every problem, the tuning, and external solvers."""
    found = [_method_table(comparison, column) for column in (TUNED, PUBLISHED)]
    if not comparison.config.tuning_seeds:
        found = found[:1]
    found.append(_duel_table(comparison))
    found += [_problem_table(comparison, level) for level in range(len(comparison.config.sigmas))]
    if comparison.config.tuning_seeds:
        found.append(_choice_table(comparison))
    if any(name in solvers.METHODS for _, name in comparison.units):
        found.append(_external_table(comparison))
    return tuple(found)


def summary(comparison: Comparison) -> str:
    """Two sentences on the first noise level."""
    counts, losers = _count(comparison, 0)
    sigma = comparison.config.sigmas[0]
    lost = f" ({', '.join(losers)})" if losers else ""
    return (
        f"On {len(comparison.tasks)} problems at equal queries and equal tuning "
        f"({_noise(sigma)}), ZOFL ends with a smaller gap than the best of "
        f"{len(comparison.rivals)} zeroth-order rivals on {counts[BETTER]}, ties on {counts[TIE]} "
        f"and loses on {counts[WORSE]}{lost}. The rival is chosen per problem in hindsight."
    )


def _wins(comparison: Comparison, level: int) -> Row:
    counts, losers = _count(comparison, level)
    wins, defeats = counts[BETTER], counts[WORSE]
    sure = wins + defeats > 0 and (scipy.stats.binomtest(wins, wins + defeats).pvalue < SIGNIFICANT)
    verdict = "no clear difference" if not sure else "better" if wins > defeats else "worse"
    neither = f", on {counts[NEITHER]} nobody is feasible" if counts[NEITHER] else ""
    return Row(
        OUTPERFORMS,
        f"Problems on which ZOFL beats the best rival, {_sigma(comparison, level)}",
        wins,
        baseline=("problems on which the best rival beats ZOFL", defeats),
        verdict=verdict,
        unit=f"of {len(comparison.tasks)}",
        note=f"Smaller final gap by a paired bootstrap over {comparison.config.num_seeds} seeds; "
        "an infeasible end counts as a gap of 1; gaps are tied "
        f"below {problems.allowance(comparison.config.sigmas[level]):g} times the sum of the "
        "multipliers (1 at least), for violation can buy as much. "
        f"Ties: {counts[TIE]}{neither}. The best of {len(comparison.rivals)} rivals is chosen per "
        f"problem in hindsight; the verdict is a sign test. ZOFL loses on: "
        f"{', '.join(losers) if losers else 'none'}.",
    )


def _solved(comparison: Comparison, level: int, tau: float) -> Row:
    shares = {
        name: analysis.solved_shares(comparison, name, level, tau)
        for name in (HEADLINE, *comparison.rivals)
    }
    return _against_best(
        comparison,
        level,
        shares,
        OUTPERFORMS,
        f"Problems solved to {tau:g}, {_sigma(comparison, level)}",
        f"Gap, either way, at most {tau:g} of the initial one at a feasible answer within the "
        "budget, mean over seeds.",
    )


def _feasible_ends(comparison: Comparison, level: int) -> Row:
    shares = {
        name: analysis.feasible_shares(comparison, name, level)
        for name in (HEADLINE, *comparison.rivals)
    }
    tol = problems.tolerance(comparison.config.sigmas[level])
    return _against_best(
        comparison,
        level,
        shares,
        OUTPERFORMS,
        f"Problems with a feasible end, {_sigma(comparison, level)}",
        f"Scaled violation at most {tol:.3g} at the best measured point, mean over seeds.",
    )


def _against_best(comparison, level, shares, claim, metric, note) -> Row:
    """ZOFL's number of problems against the rival with the most, tested over problems."""
    best = max(comparison.rivals, key=lambda name: shares[name].sum())
    ours, theirs = shares[HEADLINE], shares[best]
    key = jax.random.fold_in(jax.random.key(comparison.config.seed), 100 + level)
    interval = analysis.compare(key, ours, theirs).difference if ours.size > 1 else None
    count = ours.size
    if interval is None:
        verdict = "no clear difference"
    else:
        verdict = _verdict(interval.low, interval.high)
        gap, low, high = (count * end for end in (interval.estimate, interval.low, interval.high))
        note += f" Difference to the best rival: {gap:+.1f} problems "
        note += f"({low:+.1f} to {high:+.1f} over resampled problems)."
    return Row(
        claim,
        metric,
        float(ours.sum()),
        baseline=(methods.TABLE[best].label, float(theirs.sum())),
        verdict=verdict,
        unit=f"of {count}",
        note=note,
    )


def _feasible_iterates(comparison: Comparison, level: int) -> Row:
    shares = {
        name: analysis.feasible_iterates(comparison, name, level)
        for name in (HEADLINE, *comparison.rivals)
    }
    everywhere = [name for name in comparison.rivals if np.isfinite(shares[name]).all()]
    ours = shares[HEADLINE]
    baseline, verdict, note = None, "measured", ""
    if everywhere and ours.size > 1:
        best = max(everywhere, key=lambda name: shares[name].mean())
        key = jax.random.fold_in(jax.random.key(comparison.config.seed), 200 + level)
        interval = analysis.compare(key, ours, shares[best]).difference
        baseline = (methods.TABLE[best].label, 100.0 * float(shares[best].mean()))
        verdict = _verdict(interval.low, interval.high)
        note = " The rival with the largest share of those that apply to every problem; it may "
        note += "owe it to small steps."
    return Row(
        FEASIBLE,
        f"Iterates that are feasible, {_sigma(comparison, level)}",
        100.0 * float(ours.mean()),
        baseline=baseline,
        verdict=verdict,
        unit="%",
        note="Of all updates of the tuned runs, the approach from infeasible starts included; "
        f"mean over problems.{note}",
    )


def _safe_iterates(comparison: Comparison, level: int) -> list[Row]:
    """ZOFL against the safe methods, where they apply: a strictly feasible start is their need."""
    ours = analysis.feasible_iterates(comparison, HEADLINE, level)
    found = {}
    for name in comparison.rivals:
        shares = analysis.feasible_iterates(comparison, name, level)
        where = np.isfinite(shares)
        if where.sum() > 1 and not where.all():
            found[name] = (shares[where], ours[where])
    if not found:
        return []
    best = max(found, key=lambda name: found[name][0].mean())
    theirs, mine = found[best]
    key = jax.random.fold_in(jax.random.key(comparison.config.seed), 400 + level)
    interval = analysis.compare(key, mine, theirs).difference
    row = Row(
        FEASIBLE,
        f"The same where safe methods apply, {_sigma(comparison, level)}",
        100.0 * float(mine.mean()),
        baseline=(methods.TABLE[best].label, 100.0 * float(theirs.mean())),
        verdict=_verdict(interval.low, interval.high),
        unit="%",
        note=f"On the {mine.size} problems that this rival applies to; of LB-SGD, SZO-QQ and "
        "SafeOpt the one with the largest share.",
    )
    return [row]


def _external(comparison: Comparison, level: int) -> list[Row]:
    """ZOFL against the external solver that solves most problems."""
    tau = analysis.accuracies(comparison.config.sigmas[level])[-1]
    names = {name for _, name in comparison.units if name in solvers.METHODS}
    shares = {name: analysis.solved_shares(comparison, name, level, tau) for name in names}
    if not shares or len(comparison.tasks) < 2:
        return []
    best = max(sorted(shares), key=lambda name: shares[name].sum())
    ours, theirs = analysis.solved_shares(comparison, HEADLINE, level, tau), shares[best]
    key = jax.random.fold_in(jax.random.key(comparison.config.seed), 500 + level)
    interval = analysis.compare(key, ours, theirs).difference
    row = Row(
        GENERAL,
        f"Problems solved to {tau:g}, {_sigma(comparison, level)}",
        float(ours.sum()),
        baseline=(f"{best}, {external.QUERIES:,} queries", float(theirs.sum())),
        verdict=_verdict(interval.low, interval.high),
        unit=f"of {len(comparison.tasks)}",
        note="The external solver that solves most problems at this noise, in hindsight; one that "
        "is not run on a problem has not solved it.",
    )
    return [row]


def _midpoint(comparison: Comparison, level: int) -> list[Row]:
    peaks = {
        name: np.array(
            [analysis.peak_violation(comparison, task, name, level) for task in comparison.tasks]
        )
        for name in (HEADLINE, "zofl-midpoint")
    }
    gaps = {
        name: np.array(
            [
                units.median(analysis.losses(comparison, task, name, level))
                for task in comparison.tasks
            ]
        )
        for name in peaks
    }
    logs = {name: np.log10(values) for name, values in peaks.items()}
    found = []
    for what, values, note in (
        (
            "Violation of the midpoint variant over Euler's, after the transient",
            logs,
            "Largest violation of a logged iterate, published step; geometric mean over problems "
            f"of medians over seeds, nothing below {analysis.LEAST_PEAK:g}.",
        ),
        (
            "Final gap of the midpoint variant over Euler's",
            gaps,
            "Both tuned, equal queries, so that the midpoint variant takes half as many steps; "
            "geometric mean over problems.",
        ),
    ):
        ratio = values["zofl-midpoint"] - values[HEADLINE]
        if ratio.size < 2:
            continue
        key = jax.random.fold_in(jax.random.key(comparison.config.seed), 300 + level)
        interval = analysis.compare(key, ratio, np.zeros_like(ratio)).difference
        low, high = 10.0**interval.low, 10.0**interval.high
        clear = "not reproduced" if low > 1.0 else "no clear difference"
        verdict = "reproduced" if high < 1.0 else clear
        found.append(
            Row(
                MIDPOINT,
                f"{what}, {_sigma(comparison, level)}",
                10.0**interval.estimate,
                interval=(low, high),
                baseline=("Euler", 1.0),
                paper="less than 1" if what.startswith("Violation") else "about 1 or less",
                verdict=verdict,
                note=note + " The interval is over problems.",
            )
        )
    return found


def _method_table(comparison: Comparison, column: int) -> Table:
    sigmas = comparison.config.sigmas
    lines = []
    for name in comparison.methods:
        ran = sum((task, name) in comparison.units for task in comparison.tasks)
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
        ("Method", "Problems it applies to", *(_noise(sigma) for sigma in sigmas)),
        tuple(lines),
        f"Number of problems of {len(comparison.tasks)}, mean over seeds, within the budget. "
        "Solved: feasible, and the gap at most that share of the initial one; an accuracy that the "
        "noise drowns is left out. Violations are scaled by the start and feasible up to "
        f"{problems.TOLERANCE:g} + 3 σ. n/a: not made for it.",
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
        ("Against", *(_noise(sigma) for sigma in sigmas)),
        tuple(lines),
        "Number of problems, of those to which the other applies, by a paired bootstrap over seeds "
        "of the final gap; infeasible ends count as a gap of 1. The last lines are other forms of "
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
        f"Every problem, {_sigma(comparison, level)}",
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
                for (_, other), unit in comparison.units.items()
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
        ("Method", *(_noise(sigma) for sigma in comparison.config.sigmas)),
        tuple(lines),
        f"The three most frequent of {methods.GRID_SIZE} pairs. First: multiplier of the published "
        "or default step, of LB-SGD's and SZO-QQ's inverse smoothness constants; weight of the "
        "penalties; length scale of SafeOpt. Second: multiplier of ZOFL's gain; dual step; "
        "multiplier of the penalties' step; level of switching; LB-SGD's first barrier weight; "
        "multiplier of SZO-QQ's proximal weight; width of SafeOpt's bounds. Chosen on "
        f"{comparison.config.tuning_seeds} seeds of their own by the median of |gap| + "
        f"{units.VIOLATION_WEIGHT:g} × excess violation.",
    )


def _external_table(comparison: Comparison) -> Table:
    lines = []
    for solver in solvers.METHODS:
        found = {task: u for (task, name), u in comparison.units.items() if name == solver}
        if not found:
            continue
        cells = []
        for level in range(len(comparison.config.sigmas)):
            cells.append(_shares(comparison, solver, level, TUNED))
        queries = [units.median(u.record.queries[0, TUNED, :, -1]) for u in found.values()]
        lines.append((solver, len(found), math.ceil(np.median(queries)), *cells))
    return Table(
        "External solvers: feasible / solved to 0.1 / solved to 0.001",
        (
            "Solver",
            "Problems",
            f"Median queries, σ = {comparison.config.sigmas[0]:g}",
            *(_noise(sigma) for sigma in comparison.config.sigmas),
        ),
        tuple(lines),
        f"At most {external.QUERIES:,} queries, untuned, {external.SEEDS} seeds or fewer; "
        "derivatives of SLSQP and trust-constr by forward differences. Not part of the rows "
        "above: their budgets are smaller.",
    )


def _count(comparison: Comparison, level: int) -> tuple[collections.Counter, list[str]]:
    """Outcomes against the best rival of each problem, and the problems that ZOFL loses."""
    counts, losers = collections.Counter(), []
    for task in comparison.tasks:
        rival = analysis.best_rival(comparison, task, level)
        duel = None if rival is None else analysis.duel(comparison, task, rival, level)
        if duel is None or rival is None:
            continue
        counts[duel.outcome] += 1
        if duel.outcome == WORSE:
            losers.append(f"{task} ({methods.TABLE[rival].label})")
    return counts, losers


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
    return f"{units.median(np.abs(ends[0])):.1e} ({units.median(ends[1]):.1e})"


def _verdict(low: float, high: float) -> str:
    return "better" if low > 0.0 else "worse" if high < 0.0 else "no clear difference"


def _candidate(values: tuple[float, float]) -> str:
    return f"{values[0]:g} & {values[1]:.2g}"


def _sigma(comparison: Comparison, level: int) -> str:
    return f"σ = {comparison.config.sigmas[level]:g}"


def _noise(sigma: float) -> str:
    return "exact values" if sigma == 0.0 else f"noise σ = {sigma:g}"
