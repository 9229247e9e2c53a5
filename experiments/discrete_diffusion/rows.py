"""What is said of the methods on tasks whose rewards are known."""

from collections.abc import Mapping

import numpy as np

from experiments.discrete_diffusion import methods, tasks
from experiments.discrete_diffusion.training import Outcome
from experiments.harness import verdicts
from experiments.harness.result import Row

Found = dict[tuple[str, str], Outcome]
"""Outcomes by task and method."""
Chosen = dict[tuple[str, str], Mapping[str, float]]
"""Settings that were chosen by tuning, by task and method."""
EARLY = 0.25
"""Share of the run whose mean reward is called early."""


def rows(found: Found) -> tuple[Row, ...]:
    """Returns all rows of the comparison, the most telling first."""
    makers = (_rivals, _divergences, _diversity, _variants, _steps)
    return tuple(row for make in makers for row in make(found))


def tasks_of(found: Found) -> tuple[str, ...]:
    """The tasks, in their order."""
    return tuple(dict.fromkeys(task for task, _ in found))


def early(outcome: Outcome) -> np.ndarray:
    """`[seeds]` mean reward over the first quarter of a run, NaN if it was not looked at."""
    calls, rewards = outcome.curve
    first = calls <= EARLY * calls[-1:].sum()
    return rewards[first].mean(axis=0) if first.any() else np.full(outcome.final.shape, np.nan)


def _rivals(found: Found) -> list[Row]:
    rows = []
    for task in tasks_of(found):
        for name in methods.OURS:
            for rival in methods.RIVALS:
                if (task, name) not in found or (task, rival) not in found:
                    continue
                one, other = found[task, name], found[task, rival]
                rows.append(
                    verdicts.row(
                        "Diffusion policies earn more than others at equal calls of the reward",
                        f"Mean reward of {name}, {tasks.TITLES[task]}",
                        one.final,
                        (rival, other.final),
                        larger_is_better=True,
                        paired=False,
                    )
                )
    return rows


def _divergences(found: Found) -> list[Row]:
    rows = []
    for task in tasks_of(found):
        if any((task, name) not in found for name in methods.OURS):
            continue
        forward, reverse = (found[task, name] for name in methods.OURS)
        gone = not forward.curve[0].size  # which is told; a run of three looks has no early reward
        title = tasks.TITLES[task]
        rows += [
            verdicts.row(
                "Forward divergence learns sooner",
                f"Mean reward in the first quarter of FKL, {title}",
                early(forward),
                (rival, early(found[task, rival])),
                larger_is_better=True,
                paired=False,
            )
            for rival in ("RKL", "factored", "autoregressive")
            if (task, rival) in found and (gone or np.isfinite(early(forward)).any())
        ]
        rows.append(
            verdicts.row(
                "Reverse divergence ends higher",
                f"Mean reward at the end of RKL, {title}",
                reverse.final,
                ("FKL", forward.final),
                larger_is_better=True,
                paired=False,
            )
        )
    return rows


def _diversity(found: Found) -> list[Row]:
    return [
        verdicts.row(
            "Forward divergence keeps more different answers",
            f"Different sequences of FKL, {tasks.TITLES[task]}",
            100.0 * found[task, "FKL"].unique,
            ("RKL", 100.0 * found[task, "RKL"].unique),
            larger_is_better=True,
            paired=False,
            unit="%",
            note="Of what is drawn at the end.",
        )
        for task in tasks_of(found)
        if (task, "FKL") in found and (task, "RKL") in found
    ]


def _variants(found: Found) -> list[Row]:
    return [
        verdicts.row(
            "Variants of both updates",
            f"Mean reward of {name}, {tasks.TITLES[task]}",
            one.final,
            (name[:3], found[task, name[:3]].final),
            larger_is_better=True,
            paired=False,
        )
        for (task, name), one in found.items()
        if "," in name and (task, name[:3]) in found
    ]


def _steps(found: Found) -> list[Row]:
    rows = []
    for (task, name), one in found.items():
        if name not in methods.OURS or len(one.by_steps) < 2:
            continue
        fewest, most = min(one.by_steps), max(one.by_steps)
        rows.append(
            verdicts.row(
                "More steps of sampling give better sequences",
                f"Mean reward of {name} in {most} steps, {tasks.TITLES[task]}",
                one.by_steps[most],
                (f"in {fewest}", one.by_steps[fewest]),
                larger_is_better=True,
            )
        )
    return rows
