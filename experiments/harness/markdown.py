"""Results as Markdown: all rows of some runs, and the first screen that a README opens with."""

import re
from collections.abc import Sequence

from experiments.harness import findings, words
from experiments.harness.findings import Run, Systems


def claims(runs: Sequence[Run]) -> str:
    """Returns the rows of all runs as one GitHub table, followed by how each was run."""
    lines = [f"| Claim | {' | '.join(words.COMPARISON)} |", "|---|---|--:|--:|--:|---|"]
    notes = []
    for outcome in (run.result for run in runs if run.result.rows):
        for claim, rows in findings.by_claim(outcome).items():
            for row in rows:
                cells = (claim if row is rows[0] else "", *words.comparison(row))
                lines.append("| " + " | ".join(map(escaped, cells)) + " |")
        facts = (words.device(outcome.environment), words.versions(outcome.environment))
        told = "; ".join(escaped(fact) for fact in facts if fact)
        labels = escaped("; ".join(words.interval_labels(outcome)))
        inside = f" In brackets after our figures: {labels}." if labels else ""
        notes.append(
            f"- {escaped(findings.title_of(outcome))} `{outcome.command}` ({told}).{inside}"
        )
    return "\n".join([*lines, "", *notes]) + "\n"


def overview(runs: Sequence[Run], systems: Systems) -> str:
    """Returns the first screen as a GitHub table, as a README opens with it."""
    lines = ["| System | Figure | Ours | Against | Verdict |", "|---|---|--:|--:|---|"]
    for found in findings.glance(runs, systems):
        title = escaped(found.title)
        title = f"**[{title}]({found.folder}/README.md#results)**" if found.folder else title
        for index, (_, row) in enumerate(found.rows):
            figure, ours, _, _, verdict = words.comparison(row)
            cells = map(escaped, (figure, ours, words.against(row), verdict))
            lines.append(f"| {'' if index else title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def escaped(said: str) -> str:
    """Returns text as a cell of a table shows it."""
    said = re.sub(r"([\\|`*\[\]])", r"\\\1", " ".join(said.split()))
    return said.replace("&", "&amp;").replace("<", "&lt;")
