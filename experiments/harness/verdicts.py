"""The one rule by which a figure is called better, worse or neither than its rival's.

A verdict is decided by the interval of the difference of two means, as `jaxlab.core.stats` computes
it: of the paired differences where there are pairs, Welch's otherwise; Student's below 20 seeds,
the bootstrap's from 20 on. That interval is the one which is shown, moved to stand around our
figure: the rival's figure lies outside of it exactly where the verdict is clear. Fewer than five
seeds have an interval but no verdict.

A seed whose figure is not finite is lost. Figures are of the seeds that are left, in pairs of those
that both have, and the note counts the lost ones. Who has lost more seeds than the other is not
called the better one, for the seeds that are left are a choice of the good ones; then no interval
is shown either, since it decides nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from experiments.harness.result import Row
from jaxlab.core import stats

LABEL = "95 % interval of the mean; beside a baseline, of the difference to it, around our figure"
"""What the intervals are, for `Result.interval_label`."""
FEWEST = 5
"""Seeds that a verdict takes."""


class Verdict(NamedTuple):
    """What is said of our seeds beside a rival's.

    Attributes:
        value: Our mean over the seeds that count; None if none does.
        interval: Ends of the interval that decides, around `value`; None below two seeds, and where
            lost seeds keep it from deciding.
        baseline: The rival's mean over the seeds that count; None if none does, or without rival.
        verdict: A key of `VERDICTS`.
        difference: `value - baseline` with its interval `(estimate, low, high)`; None without.
        note: Which seeds were lost, as a sentence; empty if none was.
    """

    value: float | None
    interval: tuple[float, float] | None
    baseline: float | None
    verdict: str
    difference: tuple[float, float, float] | None
    note: str = ""


def measure(ours: ArrayLike) -> Verdict:
    """Returns the mean of our seeds with its interval, beside nobody.

    Args:
        ours: `[seeds]` figures; those that are not finite are lost.
    """
    x = _seeds(ours, "ours")
    kept = x[np.isfinite(x)]
    note = _note([x.size - kept.size], (x.size,))
    if not kept.size:
        return Verdict(None, None, None, "not measured", None, note)
    interval = None
    if kept.size > 1:
        interval = _interval(_single, kept)[1:]
    return Verdict(_mean(kept), interval, None, "measured", None, note)


def average(ours: ArrayLike) -> float:
    """Returns the mean over the seeds that are left, NaN if none is."""
    value = measure(ours).value
    return np.nan if value is None else value


def compare(
    ours: ArrayLike, theirs: ArrayLike, *, larger_is_better: bool, paired: bool = True
) -> Verdict:
    """Says whether our figures are better than a rival's.

    Args:
        ours: `[seeds]` our figures; those that are not finite are lost.
        theirs: `[seeds]` the rival's.
        larger_is_better: Whether a larger figure is the better one, as a return is; a loss is not.
        paired: Whether both had the same seeds, in the same order.

    Raises:
        ValueError: if figures are not one per seed, or pairs do not fit.

    Example:
        `verdicts.compare(losses, rival_losses, larger_is_better=False).verdict`
    """
    a, b = _seeds(ours, "ours"), _seeds(theirs, "theirs")
    if paired and a.size != b.size:
        raise ValueError(
            f"paired figures must be of the same seeds, got {a.size} and {b.size}; "
            "pass paired=False if they have nothing in common"
        )
    lost = [int(np.sum(~np.isfinite(x))) for x in (a, b)]
    note = _note(lost, (a.size, b.size))
    alone = a[np.isfinite(a)], b[np.isfinite(b)]
    both = np.isfinite(a) & np.isfinite(b) if paired else None
    a, b = alone if both is None else (a[both], b[both])
    if min(a.size, b.size) < 2:  # nothing to compare: what there is of each
        value, baseline = map(_mean, alone)
        verdict = "not measured" if value is None else "too few seeds"
        return Verdict(value, None, baseline, verdict, None, note)
    difference = _interval(_paired if paired else _unpaired, a, b)
    baseline = float(b.mean())
    interval = baseline + difference[1], baseline + difference[2]
    verdict = "too few seeds"
    if min(a.size, b.size) >= FEWEST:
        verdict = _word(interval, baseline, larger_is_better)
    if (verdict == "better" and lost[0] > lost[1]) or (verdict == "worse" and lost[0] < lost[1]):
        verdict, interval = "no clear difference", None
        note += " The seeds that are left are a choice of the good ones and decide nothing."
    return Verdict(float(a.mean()), interval, baseline, verdict, difference, note)


def row(
    claim: str,
    metric: str,
    ours: ArrayLike,
    rival: tuple[str, ArrayLike],
    *,
    larger_is_better: bool,
    paired: bool = True,
    paper: float | str | None = None,
    unit: str = "",
    note: str = "",
    interval_label: str = "",
) -> Row:
    """Returns the row of a comparison, for arguments see `Row` and `compare`."""
    name, theirs = rival
    found = compare(ours, theirs, larger_is_better=larger_is_better, paired=paired)
    return Row(
        claim,
        metric,
        found.value,
        interval=found.interval,
        baseline=(name, found.baseline),
        paper=paper,
        verdict=found.verdict,
        unit=unit,
        note=" ".join(filter(None, (note, found.note))),
        interval_label=interval_label,
    )


def row_alone(
    claim: str,
    metric: str,
    ours: ArrayLike,
    *,
    verdict: str = "measured",
    paper: float | str | None = None,
    unit: str = "",
    note: str = "",
) -> Row:
    """Returns the row of our mean with its interval, beside no rival, for arguments see `Row`."""
    found = measure(ours)
    return Row(
        claim,
        metric,
        found.value,
        interval=found.interval,
        paper=paper,
        verdict=verdict if found.verdict == "measured" else found.verdict,
        unit=unit,
        note=" ".join(filter(None, (note, found.note))),
    )


def _word(interval: tuple[float, float], baseline: float, larger_is_better: bool) -> str:
    if interval[0] <= baseline <= interval[1]:
        return "no clear difference"
    return "better" if (interval[0] > baseline) == larger_is_better else "worse"


_single = jax.jit(stats.mean_interval)
_paired = jax.jit(lambda key, a, b: stats.compare_paired(key, a, b).difference)
_unpaired = jax.jit(lambda key, a, b: stats.compare_unpaired(key, a, b).difference)


def _interval(
    rule: Callable[..., stats.Interval], *seeds: np.ndarray
) -> tuple[float, float, float]:
    """Estimate and ends in double precision, the resamples always the same ones."""
    with jax.enable_x64(True):
        found = jax.device_get(rule(jax.random.key(0), *seeds))
    return float(found.estimate), float(found.low), float(found.high)


def _mean(x: np.ndarray) -> float | None:
    return float(x.mean()) if x.size else None


def _seeds(x: ArrayLike, name: str) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"{name} must be [seeds], one figure each, got shape {x.shape}")
    return x


def _note(lost: list[int], of: tuple[int, ...]) -> str:
    whose = ("seeds", "of the baseline's")
    told = [f"{n} of {all_} {who}" for n, all_, who in zip(lost, of, whose, strict=False) if n]
    return f"Lost, for not finite: {' and '.join(told)}." if told else ""
