"""Tables of the comparison: what every method reached, and with which settings."""

from experiments.discrete_diffusion import rows, tasks
from experiments.harness import verdicts
from experiments.harness.result import Table


def tables(found: rows.Found, chosen: rows.Chosen) -> tuple[Table, ...]:
    """Returns a table for each task."""
    return tuple(_of_task(task, found, chosen) for task in rows.tasks_of(found))


def _of_task(task: str, found: rows.Found, chosen: rows.Chosen) -> Table:
    return Table(
        tasks.TITLES[task],
        ("Method", "Mean reward", "Early", "Different, %", "Settings"),
        tuple(
            (
                name,
                _number(verdicts.average(one.final)),
                _number(verdicts.average(rows.early(one))),
                _number(100.0 * verdicts.average(one.unique)),
                ", ".join(f"{k.replace('_', ' ')} {x:g}" for k, x in chosen[task, name].items()),
            )
            for (which, name), one in found.items()
            if which == task
        ),
        "Mean reward at the end, and over the first quarter of the run; different sequences of "
        "those that are drawn at the end; settings with which it learned.",
    )


def _number(x: float) -> float | None:
    return round(x, 4) if x == x else None
