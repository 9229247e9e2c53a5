"""What is said of the trained methods: returns, ways of acting, ablations, goals, the mechanism.

A seed that blew up has NaN for its figures; means leave it out, and verdicts count it.
"""

import jax.numpy as jnp
import numpy as np

from experiments.fpmd import methods, published
from experiments.fpmd.training import Outcome
from experiments.harness import verdicts
from experiments.harness.result import Row
from jaxlab.core import stats

BASELINES = (*methods.TUNED, "DPMD", "SDAC", "QVPO", "DIPO", "QSM", "DACER", "DIME")
ABLATIONS = tuple(name for name in methods.TABLE if name.startswith("FPMD-R,"))
Found = dict[tuple[str, str], Outcome]
"""Outcomes by task and method."""
Rates = dict[tuple[str, str], float]
"""Tuned learning rates by task and method."""


def rows(found: Found) -> tuple[Row, ...]:
    """Returns all rows of the comparison, the most telling first."""
    makers = (_returns, _published, _modes, _ablations, _goals, _mechanism)
    return tuple(row for make in makers for row in make(found))


def tasks_of(found: Found) -> tuple[str, ...]:
    """The tasks, in their order."""
    return tuple(dict.fromkeys(task for task, _ in found))


def _returns(found: Found) -> list[Row]:
    claim, rows = "Flow policies match the best baselines", []
    for task in tasks_of(found):
        rivals = {n: found[task, n].final for n in BASELINES if (task, n) in found}
        rivals = {name: final for name, final in rivals.items() if np.isfinite(final).any()}
        for name in methods.OURS:
            if (task, name) not in found:
                continue
            one, metric = found[task, name], f"Return of {name}, {task}"
            left = one.final[np.isfinite(one.final)]
            note = f"Mean of {left.size} seeds"
            if left.size:
                iqm = float(stats.iqm(jnp.asarray(left)))
                note += f", IQM {iqm:.4g}; best so far {verdicts.average(one.best):.4g}"
            if not rivals:
                rows.append(verdicts.row_alone(claim, metric, one.final, note=f"{note}."))
                continue
            best = max(rivals, key=lambda rival: verdicts.average(rivals[rival]))
            note += f". The baseline is the best of {len(rivals)} by its mean, chosen afterwards."
            rival = (best, rivals[best])
            rows.append(
                verdicts.row(claim, metric, one.final, rival, larger_is_better=True, note=note)
            )
    return rows


def _published(found: Found) -> list[Row]:
    return [
        verdicts.row_alone(
            "Returns of the papers",
            f"Return of {name}, {task}",
            one.final,
            paper=published.RETURNS[name][published.TASKS.index(task)],
            note="After 200,000 updates there; figures at second hand.",
        )
        for (task, name), one in found.items()
        if name in published.RETURNS and task in published.TASKS
    ]


def _modes(found: Found) -> list[Row]:
    return [
        verdicts.row(
            "One step acts as well as many",
            f"Return of {name} in one step, {task}",
            one.modes["one_step"],
            ("its best of K", one.modes["bon"]),
            larger_is_better=True,
            note=f"One evaluation of the network, against {'K N' if name == 'FPMD-R' else 'K'} and "
            "2 K of the critics'.",
        )
        for (task, name), one in found.items()
        if name in methods.OURS and "one_step" in one.modes
    ]


def _ablations(found: Found) -> list[Row]:
    return [
        verdicts.row(
            "What FPMD-R rests on: weights, noise of std 1, several steps, the best of K",
            f"Return of FPMD-R, {task}",
            found[task, "FPMD-R"].final,
            (name.removeprefix("FPMD-R, "), other.final),
            larger_is_better=True,
        )
        for (task, name), other in found.items()
        if name in ABLATIONS and (task, "FPMD-R") in found
    ]


def _goals(found: Found) -> list[Row]:
    claim, rows = "Samples keep several good actions", []
    for (task, name), one in found.items():
        number, arrived = one.goals
        if not number.size or name not in methods.OURS:
            continue
        metric = f"Goals that {name} comes to, {task}"
        note = (
            "Exponential of the entropy over four equally good ones, from their middle, with "
            f"exploration; {100 * verdicts.average(arrived):.0f} % of episodes come to one."
        )
        if (task, "SAC") in found and found[task, "SAC"].goals[0].size:
            rival = ("SAC", found[task, "SAC"].goals[0])
            rows.append(
                verdicts.row(claim, metric, number, rival, larger_is_better=True, note=note)
            )
        else:
            rows.append(verdicts.row_alone(claim, metric, number, note=note))
    return rows


def _mechanism(found: Found) -> list[Row]:
    """From the largest gap on: before, the flow has hardly learned to move its noise."""
    rows = []
    for (task, name), one in found.items():
        if name != "FPMD-R" or "eval/gap" not in one.course:
            continue
        spread, gap = one.course["eval/spread"], one.course["eval/gap"]
        first = int(np.argmax(gap))
        claim = "One step comes closer as the policy narrows"
        if gap.size - first > 2:
            correlation = float(np.corrcoef(spread[first:], gap[first:])[0, 1])
            rows.append(
                Row(
                    claim,
                    f"Correlation of spread and gap, {task}",
                    correlation,
                    verdict="reproduced" if correlation > 0.5 else "not reproduced",
                    note=f"Over the last {gap.size - first} of {gap.size} evaluations, in which "
                    f"samples spread {spread[first]:.3g} to {spread[-1]:.3g}, and one step is "
                    f"{gap[first]:.3g} to {gap[-1]:.3g} from all steps out of the same noise.",
                )
            )
        ratio = float(gap[-1] / spread[-1])
        rows.append(
            Row(
                claim,
                f"Gap over spread at the end, {task}",
                ratio,
                paper="1 for an exact flow",
                verdict="reproduced" if 0.8 <= ratio <= 1.25 else "not reproduced",
                note="One step of an exact flow is the mean of its samples.",
            )
        )
    return rows
