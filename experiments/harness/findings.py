"""What runs left behind: found, the newest of each kind, and the most telling rows of a system."""

import itertools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.harness import result, words

GLANCE = 3
"""Figures of a system at a glance."""
_KINDS = ("experiment", "benchmark", "accelerator suite")
Systems = Mapping[str, tuple[str, Sequence[str]]]
"""Folder and experiments of each system, by its title."""


class Run(NamedTuple):
    """A result and the folder that holds its figures."""

    folder: pathlib.Path
    result: result.Result


def load(paths: Iterable[pathlib.Path]) -> tuple[list[Run], list[str]]:
    """Reads every `result.json` at or under `paths`.

    Returns:
        The readable runs, and one message for each path that holds none or a broken one.
    """
    runs, problems = [], []
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("result.json"))
        if not files:
            problems.append(f"{path} holds no result.json")
        for file in files:
            try:
                runs.append(Run(file.parent, result.read(file, result.Result)))
            except (ValueError, OSError) as error:
                problems.append(str(error))
    return runs, problems


def latest(runs: Sequence[Run]) -> list[Run]:
    """Returns the newest run of every command and device, experiments first.

    The plain smoke run of an experiment shows that things work; it is left out once there is a run
    of a larger preset. Runs with flags of their own (a user's data) are studies apart and stay.
    """
    newest: dict[tuple[str, ...], Run] = {}
    for run in sorted(runs, key=lambda run: run.result.finished):
        outcome, where = run.result, words.device(run.result.environment)
        newest[outcome.experiment, outcome.preset, _own_flags(outcome), where] = run
    larger = {name for name, preset, own, _ in newest if preset != "smoke" and not own}
    kept = [
        run
        for (name, preset, own, _), run in newest.items()
        if preset != "smoke" or own or name not in larger
    ]
    return sorted(
        kept,
        key=lambda run: (_KINDS.index(run.result.kind), run.result.experiment, run.result.preset),
    )


def _own_flags(outcome: result.Result) -> str:
    """The flags of the command besides its preset: they make a study of its own."""
    flags = re.sub(r"--preset[ =]\S+", "", outcome.command)
    return flags[flags.find("--") :].strip() if "--" in flags else ""


class Glance(NamedTuple):
    """A system on the first screen.

    Attributes:
        title: The system; of experiments that are in none, their own title.
        folder: Where the system lives; empty where that is not known.
        rows: Its most telling figures, each with the run that it is of.
    """

    title: str
    folder: str
    rows: list[tuple[Run, result.Row]]


def glance(runs: Sequence[Run], systems: Systems) -> list[Glance]:
    """Returns the three most telling figures of each system that has results.

    Results have their most telling rows first: taken are the first measured row of every claim,
    from the experiments of a system in turn; of an experiment with several runs from the one with
    the defaults of its largest preset.
    """
    best: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (bool(_own_flags(run.result)), _size(run.result))):
        if run.result.kind == "experiment":
            best.setdefault(run.result.experiment, run)
    grouped = {name for _, names in systems.values() for name in names}
    alone = {title_of(best[n].result): ("", (n,)) for n in sorted(best) if n not in grouped}
    found = []
    for title, (folder, names) in (*systems.items(), *alone.items()):
        firsts = [_telling(best[name]) for name in names if name in best]
        turns = [row for turn in itertools.zip_longest(*firsts) for row in turn if row]
        if firsts:
            found.append(Glance(title, folder, turns[:GLANCE]))
    return found


def _size(outcome: result.Result) -> int:
    order = ("cpu", "gpu", "smoke")
    return order.index(outcome.preset) if outcome.preset in order else len(order)


def _telling(run: Run) -> list[tuple[Run, result.Row]]:
    """The first measured row of every claim."""
    groups = by_claim(run.result).values()
    firsts = ([row for row in rows if row.value is not None][:1] for rows in groups)
    return [(run, row) for row in itertools.chain(*firsts)]


def title_of(outcome: result.Result) -> str:
    """Returns the heading of a result."""
    return outcome.title or outcome.experiment


def by_claim(outcome: result.Result) -> dict[str, list[result.Row]]:
    groups: dict[str, list[result.Row]] = {}
    for row in outcome.rows:
        groups.setdefault(row.claim, []).append(row)
    return groups
