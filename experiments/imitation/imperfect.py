"""Scores by amount and quality of the logs, which come from six snapshots of one training run."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing, verdicts
from experiments.harness.result import Figure, Part
from experiments.imitation import Config, comparing, data, methods
from experiments.imitation.comparing import Case
from experiments.imitation.data import Source
from experiments.imitation.training import Outcome

USERS = (methods.OURS, "ILID")
"""Methods that learn from logs."""
CLAIM = "Features can be learned from data of any quality"


def run(config: Config, task: str, source: Source, out: pathlib.Path) -> Part:
    """Trains what learns from logs on parts of them, with the fewest of the expert's episodes."""
    num = min(data.counts(config, source))
    whole = f"all {len(np.unique(source.logs.episode_id))}"
    cases = {name: Case(num, name) for name in data.some_logs(source.logs)} | {whole: Case(num)}
    pairs = [(case, name) for name in USERS for case in cases.values()]
    outcomes = comparing.compare(config, task, source, pairs, out).outcomes
    found = {(label, name): outcomes[case, name] for label, case in cases.items() for name in USERS}
    rows = [
        verdicts.row(
            CLAIM,
            f"Score of {name}, logs: {label}, {source.title}",
            found[label, name].final,
            (f"logs: {other}", found[other, name].final),
            larger_is_better=True,
            paired=False,
        )
        for name in USERS
        for label, other in (("worst third", "best third"), (next(iter(cases)), whole))
    ]
    return Part(tuple(rows), (_draw(found, list(cases), task, source.title, out),))


def _draw(
    found: dict[tuple[str, str], Outcome],
    labels: list[str],
    task: str,
    title: str,
    out: pathlib.Path,
) -> Figure:
    amounts = [label for label in labels if "third" not in label]
    qualities = [label for label in labels if "third" in label]
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 2)
        for axis, shown, what in zip(
            axes.flat, (amounts, qualities), ("Amount of logs", "Quality of logs"), strict=True
        ):
            for i, name in enumerate(USERS):
                scores = np.stack([found[label, name].final for label in shown])
                x = np.arange(len(shown)) + 0.12 * (i - 0.5)
                axis.plot(x, np.nanmean(scores, axis=1), "-o", color=drawing.COLORS[i], label=name)
                axis.plot(x, scores, "o", color=drawing.COLORS[i], ms=3, alpha=0.35)
            axis.set_xticks(np.arange(len(shown)), shown)
            axis.set(title=what, ylabel="Normalized score")
        drawing.legend(figure)
        drawing.save(figure, out / f"logs_{task}.png")
    return Figure(
        f"logs_{task}.png",
        f"{title}, the fewest of the expert's episodes: score at the last checkpoint by the logs "
        "that features, or ILID's selection, are learned from; small points are seeds.",
        f"Scores of ours and ILID in {title} by amount and by quality of logs",
    )
