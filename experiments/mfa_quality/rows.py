"""What the runs say of the claims: losses beside each other, caches, and a table a task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.harness import verdicts
from experiments.harness.result import Row, Table
from experiments.mfa_quality import published
from experiments.mfa_quality.methods import REFERENCE, Model
from experiments.mfa_quality.training import Runs

CLAIMS = (
    ("MFA", "MHA", "MFA holds MHA's quality with a fraction of its cache"),
    ("MFA-KR", "MHA", "MFA-KR, with half the cache of MFA, loses little"),
    ("MFA", "MLA", "MFA is better than MLA at the same cache"),
    ("MFA", "MQA", "MFA is better than MQA at the same cache"),
    ("MFA", "GQA", "MFA is better than GQA at half the cache"),
)
"""Attention, its rival, and what the papers say of the two."""


class Outcome(NamedTuple):
    """One attention on one task.

    Attributes:
        model: The model around it.
        learning_rate: The tuned one.
        runs: A run a seed.
    """

    model: Model
    learning_rate: float
    runs: Runs


Found = Mapping[tuple[str, str], Outcome]
"""By task and attention."""


def rows(found: Found, tasks: Sequence[str]) -> tuple[Row, ...]:
    """Returns a row for every claim and task, and the caches beside the paper's."""
    compared = [
        _row(found, task, ours, rival, claim)
        for ours, rival, claim in CLAIMS
        for task in tasks
        if (task, ours) in found and (task, rival) in found
    ]
    cached = {name: outcome.model.cached for (_, name), outcome in found.items()}
    caches = [
        Row(
            "The cache of MFA is a fraction of MHA's",
            f"Cache of {name}, share of MHA's",
            100.0 * cached[name] / cached[REFERENCE],
            unit="%",
            paper=paper,
            note="The paper's 7-billion model: 24.6 and 12.3 KB a token of 196.6. Ours is "
            "narrower, and its heads are not made smaller in proportion.",
        )
        for name, paper in published.CACHE.items()
        if name in cached and REFERENCE in cached
    ]
    return (*compared, *caches)


def _row(found: Found, task: str, ours: str, rival: str, claim: str) -> Row:
    """Losses on the same seeds, in bits: the less the better."""
    a, b = found[task, ours], found[task, rival]
    compared = verdicts.compare(a.runs.loss, b.runs.loss, larger_is_better=False)
    both = np.isfinite(a.runs.loss) & np.isfinite(b.runs.loss)
    told = []
    if compared.difference is not None:
        estimate, low, high = compared.difference
        told.append(
            f"Less that of {rival}: {estimate:+.4f} ({low:+.4f} to {high:+.4f}), over "
            f"{both.sum()} pairs of seeds."
        )
    told.append(f"Cache: {100 * a.model.cached / b.model.cached:.0f} % of {rival}'s.")
    if task == "recall" and both.any():
        right = [100 * (1 - one.runs.error[both].mean()) for one in (a, b)]
        told.append(f"Recalled: {right[0]:.1f} % against {right[1]:.1f} %.")
    return verdicts.row(
        claim,
        f"Loss of {ours}, {task}",
        a.runs.loss,
        (rival, b.runs.loss),
        larger_is_better=False,
        unit="bits" if task == "recall" else "bits per byte",
        note=" ".join(told),
    )


def table(found: Found, task: str, title: str) -> Table:
    """Returns sizes, rates and losses of every attention on a task."""
    rows = []
    for (name_task, name), one in found.items():
        if name_task == task:
            loss, kept = verdicts.measure(one.runs.loss), np.isfinite(one.runs.loss)
            half = None if loss.interval is None else (loss.interval[1] - loss.interval[0]) / 2
            rows.append(
                (
                    name,
                    one.model.cached,
                    one.model.num_parameters,
                    one.model.hidden,
                    f"{one.learning_rate:g}",
                    loss.value,
                    "–" if half is None else f"± {half:.2g}",
                    100.0 * float(one.runs.error[kept].mean()) if kept.any() else None,
                    f"{kept.sum()} of {kept.size}",
                )
            )
    columns = (
        "Attention",
        "Cache",
        "Parameters",
        "FFN width",
        "Rate",
        "Loss (bits)",
        "95 % interval",
        "Wrong (%)",
        "Seeds",
    )
    return Table(
        title,
        columns,
        tuple(rows),
        "Cache: elements a token and layer. Parameters: those of the blocks. Loss and wrong "
        "predictions: means over the seeds that stayed finite, of what is held out.",
    )
