"""The rows of the comparison: the figures that the paper makes claims about, and their verdicts."""

import collections
from collections.abc import Callable

import numpy as np

from experiments.harness import verdicts
from experiments.harness.result import Row
from experiments.harness.verdicts import Verdict
from experiments.rivals import solvers
from experiments.zofl import analysis, external, methods, runs, tasks
from experiments.zofl.analysis import BETTER, NEITHER, TIE, WORSE, Comparison
from experiments.zofl.methods import HEADLINE

OUTPERFORMS = (
    "ZOFL consistently outperforms zeroth-order baselines: competitive objective, feasible"
)
FEASIBLE = "ZOFL enforces feasibility along the way, not in the limit alone"
GENERAL = "General solvers, on a smaller budget and untuned"
OVER_PROBLEMS = "95 % interval over problems, of the difference around our figure"
MIDPOINT = "The midpoint variant improves feasibility without sacrificing optimality"


def rows(comparison: Comparison) -> tuple[Row, ...]:
    """Returns the figures that the paper makes claims about, by noise level."""
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


def summary(comparison: Comparison) -> str:
    """Says in a few words how ZOFL fares at the first noise level."""
    counts, losers = count_duels(comparison, 0)
    sigma = comparison.config.sigmas[0]
    lost = f" ({', '.join(losers)})" if losers else ""
    decided = _won_by_feasibility(comparison, _duels(comparison, 0), 0)
    return (
        f"On {len(comparison.tasks)} problems at equal queries and equal tuning "
        f"({noise_name(sigma)}), ZOFL ends with a smaller gap than the best of "
        f"{len(comparison.rivals)} zeroth-order rivals on {counts[BETTER]}, ties on {counts[TIE]} "
        f"and loses on {counts[WORSE]}{lost}. The rival is chosen per problem in hindsight, and an "
        f"infeasible end counts as a gap of 1{decided}."
    )


def count_duels(comparison: Comparison, level: int) -> tuple[collections.Counter, list[str]]:
    """Counts the outcomes against the best rival of each problem, and names what ZOFL loses."""
    duels = _duels(comparison, level)
    counts = collections.Counter(duel.outcome for duel in duels.values())
    losers = [
        f"{task} ({methods.TABLE[duel.rival].label})"
        for task, duel in duels.items()
        if duel.outcome == WORSE
    ]
    return counts, losers


def noise_name(sigma: float) -> str:
    """Returns a level of noise in words."""
    return "exact values" if sigma == 0.0 else f"noise σ = {sigma:g}"


def _duels(comparison: Comparison, level: int) -> dict[str, analysis.Duel]:
    """Returns the duels with the best rival, by the problems that have one."""
    found = {}
    for task in comparison.tasks:
        rival = analysis.best_rival(comparison, task, level)
        duel = None if rival is None else analysis.duel(comparison, task, rival, level)
        if duel is not None:
            found[task] = duel
    return found


def _wins(comparison: Comparison, level: int) -> Row:
    duels = _duels(comparison, level)
    counts, losers = count_duels(comparison, level)
    outcomes = [duels[task].outcome if task in duels else TIE for task in comparison.tasks]
    won, lost = (np.array([float(one == word) for one in outcomes]) for word in (BETTER, WORSE))
    neither = f", on {counts[NEITHER]} nobody is feasible" if counts[NEITHER] else ""
    return _of_problems(
        comparison,
        OUTPERFORMS,
        f"Problems on which ZOFL beats the best rival, {_sigma(comparison, level)}",
        won,
        ("problems on which the best rival beats ZOFL", lost),
        f"Smaller final gap on {comparison.config.num_seeds} paired seeds; "
        f"an infeasible end counts as a gap of 1{_won_by_feasibility(comparison, duels, level)}; "
        "gaps are tied "
        f"below {tasks.allowance(comparison.config.sigmas[level]):g} times the sum of the "
        "multipliers (1 at least), for violation can buy as much. "
        f"Ties: {counts[TIE]}{neither}. The best of {len(comparison.rivals)} rivals is chosen per "
        f"problem in hindsight. ZOFL loses on: {', '.join(losers) if losers else 'none'}.",
    )


def _won_by_feasibility(comparison: Comparison, duels: dict[str, analysis.Duel], level: int) -> str:
    """Names the problems that ZOFL wins over an infeasible rival, and what it leaves there."""
    named = [
        f"{task}, of whose gap ZOFL leaves {100.0 * duel.ours:.2g} %"
        for task, duel in duels.items()
        if duel.outcome == BETTER and not analysis.is_feasible(comparison, task, duel.rival, level)
    ]
    return f", which decides {'; '.join(named)}" if named else ""


def _of_problems(
    comparison: Comparison,
    claim: str,
    metric: str,
    ours: np.ndarray,
    rival: tuple[str, np.ndarray],
    note: str,
) -> Row:
    """Returns a row of two numbers of problems, compared problem by problem.

    Args:
        ours: `[problems]`, the share of our seeds that count on each.
        rival: name of the rival, and its shares on the same problems.
    """
    name, theirs = rival
    found = verdicts.compare(ours, theirs, larger_is_better=True)
    count = len(comparison.tasks)
    return Row(
        claim,
        metric,
        float(ours.sum()),
        interval=_each_end(found, lambda end: ours.size * end),
        baseline=(name, float(theirs.sum())),
        verdict=found.verdict,
        unit=f"of {count}",
        note=note,
        interval_label=OVER_PROBLEMS,
    )


def _solved(comparison: Comparison, level: int, tau: float) -> Row:
    shares = {
        name: analysis.solved_shares(comparison, name, level, tau)
        for name in (HEADLINE, *comparison.rivals)
    }
    return _against_best(
        comparison,
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
    tol = tasks.tolerance(comparison.config.sigmas[level])
    return _against_best(
        comparison,
        shares,
        OUTPERFORMS,
        f"Problems with a feasible end, {_sigma(comparison, level)}",
        f"Scaled violation at most {tol:.3g} at the best measured point, mean over seeds.",
    )


def _against_best(
    comparison: Comparison, shares: dict[str, np.ndarray], claim: str, metric: str, note: str
) -> Row:
    """Sets ZOFL's number of problems beside the rival with the most."""
    best = max(comparison.rivals, key=lambda name: shares[name].sum())
    rival = (methods.TABLE[best].label, shares[best])
    return _of_problems(comparison, claim, metric, shares[HEADLINE], rival, note)


def _feasible_iterates(comparison: Comparison, level: int) -> Row:
    """Sets ZOFL's share of feasible iterates beside the best rival's."""
    shares = {
        name: analysis.feasible_iterates(comparison, name, level)
        for name in (HEADLINE, *comparison.rivals)
    }
    metric = f"Iterates that are feasible, {_sigma(comparison, level)}"
    note = (
        "Of all updates of the tuned runs, the approach from infeasible starts included; mean over "
        "problems."
    )
    everywhere = [name for name in comparison.rivals if np.isfinite(shares[name]).all()]
    if not everywhere:
        return Row(FEASIBLE, metric, 100.0 * float(shares[HEADLINE].mean()), unit="%", note=note)
    best = max(everywhere, key=lambda name: shares[name].mean())
    return verdicts.row(
        FEASIBLE,
        metric,
        100.0 * shares[HEADLINE],
        (methods.TABLE[best].label, 100.0 * shares[best]),
        larger_is_better=True,
        unit="%",
        note=f"{note} The rival with the largest share of those that apply to every problem; it "
        "may owe it to small steps.",
        interval_label=OVER_PROBLEMS,
    )


def _safe_iterates(comparison: Comparison, level: int) -> list[Row]:
    """Compares ZOFL with the safe methods, where they apply: at a strictly feasible start."""
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
    row = verdicts.row(
        FEASIBLE,
        f"The same where safe methods apply, {_sigma(comparison, level)}",
        100.0 * mine,
        (methods.TABLE[best].label, 100.0 * theirs),
        larger_is_better=True,
        unit="%",
        note=f"On the {mine.size} problems that this rival applies to; of LB-SGD, SZO-QQ and "
        f"SafeOpt the one with the largest share. {OVER_PROBLEMS}",
    )
    return [row]


def _external(comparison: Comparison, level: int) -> list[Row]:
    """Compares ZOFL with the external solver that solves most problems."""
    tau = analysis.accuracies(comparison.config.sigmas[level])[-1]
    names = {name for _, name in comparison.outcomes if name in solvers.METHODS}
    shares = {name: analysis.solved_shares(comparison, name, level, tau) for name in names}
    if not shares or len(comparison.tasks) < 2:
        return []
    best = max(sorted(shares), key=lambda name: shares[name].sum())
    row = _of_problems(
        comparison,
        GENERAL,
        f"Problems solved to {tau:g}, {_sigma(comparison, level)}",
        analysis.solved_shares(comparison, HEADLINE, level, tau),
        (f"{best}, {external.QUERIES:,} queries", shares[best]),
        "The external solver that solves most problems at this noise, in hindsight; one that is "
        "not run on a problem has not solved it.",
    )
    return [row]


def _midpoint(comparison: Comparison, level: int) -> list[Row]:
    """Divides violation and final gap of the midpoint variant by Euler's on the same problem."""
    problems = list(comparison.tasks)
    peak, gap = (
        np.array([of(task, "zofl-midpoint") - of(task, HEADLINE) for task in problems])
        for of in (
            lambda task, name: np.log10(analysis.peak_violation(comparison, task, name, level)),
            lambda task, name: _median_loss(comparison, task, name, level),
        )
    )
    return [
        _over_euler(
            f"Violation of the midpoint variant over Euler's, after the transient, "
            f"{_sigma(comparison, level)}",
            peak,
            "less than 1",
            "Largest violation of a logged iterate, published step; geometric mean over problems "
            f"of medians over seeds, nothing below {analysis.LEAST_PEAK:g}.",
        ),
        _over_euler(
            f"Final gap of the midpoint variant over Euler's, {_sigma(comparison, level)}",
            gap,
            "about 1 or less",
            "Both tuned, equal queries, so that the midpoint variant takes half as many steps; "
            "geometric mean over problems.",
        ),
    ]


def _median_loss(comparison: Comparison, task: str, name: str, level: int) -> float:
    """Median over seeds of the logarithm of the final gap; NaN where it was not run."""
    loss = analysis.losses(comparison, task, name, level)
    return np.nan if loss is None else runs.median(loss)


def _over_euler(metric: str, log_ratio: np.ndarray, paper: str, note: str) -> Row:
    """Returns the row of a geometric mean over problems: reproduced if clearly below 1."""
    found = verdicts.compare(log_ratio, np.zeros_like(log_ratio), larger_is_better=False)
    word = {"better": "reproduced", "worse": "not reproduced"}.get(found.verdict, found.verdict)
    return Row(
        MIDPOINT,
        metric,
        None if found.value is None else 10.0**found.value,
        interval=_each_end(found, lambda end: 10.0**end),
        baseline=("Euler", 1.0),
        paper=paper,
        verdict=word,
        note=" ".join(filter(None, (note, found.note))),
        interval_label="95 % interval over problems",
    )


def _each_end(found: Verdict, scale: Callable[[float], float]) -> tuple[float, float] | None:
    """The interval that decides, in the units that are shown."""
    if found.interval is None:
        return None
    low, high = found.interval
    return scale(low), scale(high)


def _sigma(comparison: Comparison, level: int) -> str:
    return f"σ = {comparison.config.sigmas[level]:g}"
