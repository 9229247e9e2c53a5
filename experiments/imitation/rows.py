"""What is said of the methods."""

import dataclasses

import numpy as np

from experiments.harness import verdicts
from experiments.harness.result import Row, Table
from experiments.imitation import methods, training
from experiments.imitation.training import Outcome

TUNED = "Chosen among three by the error on the expert's other episodes."
PENALTY = "The weight of the penalty on gradients"
Found = dict[tuple[int, str], Outcome]
"""Outcomes by number of trajectories and method."""


def rows(found: Found, title: str, what: str = "Score") -> tuple[Row, ...]:
    """Returns all rows of the comparison in a task, the most telling first; of `what` they are."""
    made = (
        *_rivals(found),
        *_spread(found),
        *_shrinking(found),
        *_cloning(found),
        *_ablations(found),
    )
    return tuple(
        dataclasses.replace(row, metric=f"{row.metric}, {title}".replace("Score", what))
        for row in made
    )


def counts(found: Found) -> tuple[int, ...]:
    """The numbers of trajectories, in their order."""
    return tuple(dict.fromkeys(num for num, _ in found))


def table(found: Found, title: str, what: str = "Score") -> Table:
    """Scores of all methods at the last checkpoint and over the last evaluations."""
    names = [n for n in methods.NAMES if any(name == n for _, name in found)]
    columns = ["Method"]
    late = min(training.LAST, max(len(one.curve[0]) for one in found.values()))
    for num in counts(found):
        columns += [f"{_episodes(num)}, last", f"Last {late}", "Error"]
    lines = []
    for name in names:
        line: list[str | float | None] = [name]
        for num in counts(found):
            one = found.get((num, name))
            for field, digits in (("final", 1), ("late", 1), ("error", 4)):
                mean = np.nan if one is None else verdicts.average(getattr(one, field))
                line.append(round(mean, digits) if np.isfinite(mean) else None)
        lines.append(tuple(line))
    scores = "normalized scores, 100 the expert's and 0 those of random actions"
    return Table(
        f"{title}: {scores if what == 'Score' else 'returns'}",
        tuple(columns),
        tuple(lines),
        f"Means over seeds, never of the best checkpoint: of the last and of the last {late}. "
        "The error is the mean squared difference of actions from the expert's, in [-1, 1], on its "
        "episodes that were not given.",
    )


def _episodes(num: int) -> str:
    return f"{num} trajector{'y' if num == 1 else 'ies'}"


def tuned(found: Found, num: int) -> str | None:
    """The kind of cloning with the least error on the expert's other episodes, if that is known."""
    errors = {
        name: verdicts.average(found[num, name].error)
        for name in methods.CLONES
        if (num, name) in found
    }
    known = {name: error for name, error in errors.items() if np.isfinite(error)}
    return min(known, key=lambda name: known[name]) if len(known) > 1 else None


def _rivals(found: Found) -> list[Row]:
    made = []
    for num in counts(found):
        if (num, methods.OURS) not in found:
            continue
        ours = found[num, methods.OURS].final
        rivals = {name: name for name in methods.RIVALS if (num, name) in found}
        if (best := tuned(found, num)) is not None:
            rivals = {f"tuned cloning: {best}": best, **rivals}
        made += [
            verdicts.row(
                "Features of the dynamics imitate from little data",
                f"Score of ours, {_episodes(num)}",
                ours,
                (label, found[num, rival].final),
                larger_is_better=True,
                paired=False,
                note=TUNED if label != rival else "",
            )
            for label, rival in rivals.items()
        ]
    return made


def _cloning(found: Found) -> list[Row]:
    """Whether matching occupancies differs from cloning where all there is are demonstrations."""
    made = []
    for num in counts(found):
        best = tuned(found, num) or "BC, regularized"
        if not {(num, "ValueDICE"), (num, best)} <= set(found):
            continue
        made += [
            verdicts.row(
                "Offline, matching occupancies comes to what regularized cloning does",
                f"{what} of ValueDICE, {_episodes(num)}",
                getattr(found[num, "ValueDICE"], field),
                (best, getattr(found[num, best], field)),
                larger_is_better=what == "Score",
                paired=False,
            )
            for what, field in (("Score", "final"), ("Error", "error"))
            if np.isfinite(getattr(found[num, best], field)).any()
        ]
    return made


def _spread(found: Found) -> list[Row]:
    """Seeds' distances from their median, which are compared like any figure."""
    made = []
    for num in counts(found):
        if not {(num, methods.OURS), (num, "ValueDICE")} <= set(found):
            continue
        ours, rival = (
            np.abs(scores - np.nanmedian(scores)) if np.isfinite(scores).any() else scores
            for scores in (found[num, name].final for name in (methods.OURS, "ValueDICE"))
        )
        made.append(
            verdicts.row(
                "Seeds differ less than with a network for the dual variable",
                f"Mean distance of a seed's score from their median, {_episodes(num)}",
                ours,
                ("ValueDICE", rival),
                larger_is_better=False,
                paired=False,
            )
        )
    return made


def _shrinking(found: Found) -> list[Row]:
    """Whether what features gain falls with the number of episodes; seeds are pairs of a number."""
    nums = [num for num in counts(found) if {(num, methods.OURS), (num, "ValueDICE")} <= set(found)]
    if len(nums) < 2:
        return []
    few, many = (
        found[num, methods.OURS].final - found[num, "ValueDICE"].final
        for num in (min(nums), max(nums))
    )
    return [
        verdicts.row(
            "The advantage shrinks with more demonstrations",
            f"Score of ours less ValueDICE's, {_episodes(min(nums))}",
            few,
            (f"the same with {_episodes(max(nums))}", many),
            larger_is_better=True,
            paired=False,
            note="The claim needs an advantage to begin with: a figure above 0.",
        )
    ]


def _ablations(found: Found) -> list[Row]:
    """Each variant beside what it is a variant of, and the expert's features beside random ones."""
    pairs = [
        (name, methods.OURS if name.startswith(methods.OURS) else "ValueDICE")
        for name in methods.ABLATIONS
    ]
    pairs.append(("ours, the expert's features", "ours, random features"))
    return [
        verdicts.row(
            PENALTY if name.endswith("penalty") else "What the features rest on",
            f"Score of {name}, {_episodes(num)}",
            found[num, name].final,
            (rival, found[num, rival].final),
            larger_is_better=True,
            paired=False,
        )
        for num in counts(found)
        for name, rival in pairs
        if (num, name) in found and (num, rival) in found
    ]
