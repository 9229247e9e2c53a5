"""What is said of the methods."""

import dataclasses

import numpy as np

from experiments.harness import verdicts
from experiments.harness.result import Row, Table
from experiments.imitation import methods
from experiments.imitation.training import Outcome

Found = dict[tuple[int, str], Outcome]
"""Outcomes by number of trajectories and method."""


def rows(found: Found, title: str, what: str = "Score") -> tuple[Row, ...]:
    """Returns all rows of the comparison in a task, the most telling first; of `what` they are."""
    made = (*_rivals(found), *_cloning(found), *_spread(found), *_ablations(found))
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
    for num in counts(found):
        columns += [f"{_episodes(num)}, last", "Last ten", "Error"]
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
        "Means over seeds; never of the best checkpoint. The error is the mean squared difference "
        "of actions from the expert's, in [-1, 1], on its episodes that were not given.",
    )


def _episodes(num: int) -> str:
    return f"{num} trajector{'y' if num == 1 else 'ies'}"


def _rivals(found: Found) -> list[Row]:
    return [
        verdicts.row(
            "Features of the dynamics imitate from little data",
            f"Score of ours, {_episodes(num)}",
            found[num, methods.OURS].final,
            (rival, found[num, rival].final),
            larger_is_better=True,
            paired=False,
        )
        for num in counts(found)
        for rival in methods.RIVALS
        if (num, methods.OURS) in found and (num, rival) in found
    ]


def _cloning(found: Found) -> list[Row]:
    """Whether matching occupancies differs from cloning where all there is are demonstrations."""
    return [
        verdicts.row(
            "Offline, matching occupancies comes to what regularized cloning does",
            f"Score of ValueDICE, {_episodes(num)}",
            found[num, "ValueDICE"].final,
            (rival, found[num, rival].final),
            larger_is_better=True,
            paired=False,
        )
        for num in counts(found)
        for rival in ("BC, regularized",)
        if (num, "ValueDICE") in found and (num, rival) in found
    ]


def _spread(found: Found) -> list[Row]:
    rows = []
    for num in counts(found):
        pair = [found.get((num, name)) for name in (methods.OURS, "ValueDICE")]
        if any(one is None for one in pair):
            continue
        ours, rival = (float(np.nanstd(one.final, ddof=1)) for one in pair if one is not None)
        rows.append(
            Row(
                "Seeds differ less than with a network for the dual variable",
                f"Standard deviation over seeds, {_episodes(num)}",
                ours,
                note=f"Of ValueDICE it is {rival:.3g}.",
            )
        )
    return rows


def _ablations(found: Found) -> list[Row]:
    return [
        verdicts.row(
            "What the features rest on",
            f"Score of {name}, {_episodes(num)}",
            found[num, name].final,
            (methods.OURS, found[num, methods.OURS].final),
            larger_is_better=True,
            paired=False,
        )
        for num in counts(found)
        for name in methods.ABLATIONS
        if (num, name) in found and (num, methods.OURS) in found
    ]
