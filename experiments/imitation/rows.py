"""What is said of the methods."""

import numpy as np

from experiments.harness import verdicts
from experiments.harness.result import Row, Table
from experiments.imitation import methods
from experiments.imitation.training import Outcome

Found = dict[tuple[int, str], Outcome]
"""Outcomes by number of trajectories and method."""


def rows(found: Found) -> tuple[Row, ...]:
    """Returns all rows of the comparison, the most telling first."""
    return (*_rivals(found), *_spread(found), *_ablations(found))


def counts(found: Found) -> tuple[int, ...]:
    """The numbers of trajectories, in their order."""
    return tuple(dict.fromkeys(num for num, _ in found))


def table(found: Found) -> Table:
    """Scores of all methods at the last checkpoint and over the last evaluations."""
    names = [n for n in methods.NAMES if any(name == n for _, name in found)]
    columns = ["Method"]
    for num in counts(found):
        columns += [f"{_episodes(num)}, last", f"{_episodes(num)}, last ten"]
    lines = []
    for name in names:
        line: list[str | float | None] = [name]
        for num in counts(found):
            one = found.get((num, name))
            for x in (None, None) if one is None else (one.final, one.late):
                mean = np.nan if x is None else verdicts.average(x)
                line.append(round(mean, 1) if np.isfinite(mean) else None)
        lines.append(tuple(line))
    return Table(
        "Normalized scores: 100 is the expert, 0 random actions",
        tuple(columns),
        tuple(lines),
        "Means over seeds; never of the best checkpoint.",
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
