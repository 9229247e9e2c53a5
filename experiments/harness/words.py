"""How figures read in words: on the terminal, in Markdown and on the report's page."""

import datetime
import math
from collections.abc import Sequence
from typing import Any

from experiments.harness import result

SHAPES = {
    "reproduced": "●",
    "not reproduced": "◆",
    "better": "▲",
    "worse": "▼",
    "no clear difference": "◐",
    "too few seeds": "◌",
    "measured": "■",
    "not measured": "○",
}
NONE = "not measured"
COMPARISON = ("Figure", "Ours", "Baseline", "Paper", "Verdict")


def now() -> str:
    """Returns the local date and time to the second."""
    return datetime.datetime.now().isoformat(timespec="seconds")


def number(value: float) -> str:
    """Returns a figure to four significant digits: 26, 0.1317, 1,234,567, 3.2×10⁻⁵."""
    size = abs(value)
    if size and not 1e-4 <= size < 1e9:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa.rstrip('0').rstrip('.')}×10{raised}".replace("-", "−")
    decimals = 0 if value == int(value) or not size else max(0, 3 - math.floor(math.log10(size)))
    text = _fixed(value, decimals, size)
    return text.rstrip("0").rstrip(".") if decimals else text


def duration(seconds: float) -> str:
    """Returns a length of time in the unit one would say it in."""
    if seconds >= 5400:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes:02d} min"
    if seconds >= 90:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs" if seconds else "0 s"


def device(environment: result.Environment | None) -> str:
    """Returns the device in words, "" where it is unknown."""
    if environment is None:
        return ""
    if environment.platform == "cpu":
        return f"CPU {environment.cpu}, {environment.cores} cores"
    return f"{environment.device_count} × {environment.device}"


def versions(environment: result.Environment | None) -> str:
    """Returns the versions and the commit in words, "" where they are unknown."""
    if environment is None:
        return ""
    told = [f"{name} {version}" for name, version in environment.versions.items()]
    return ", ".join([*told, commit(environment)])


def commit(environment: result.Environment | None) -> str:
    """Returns the commit that a figure was made by in words, "" where nothing is known."""
    if environment is None:
        return ""
    hexadecimal, _, changed = environment.commit.partition("-")
    if not hexadecimal:
        return "commit not recorded"
    return f"commit {hexadecimal[:10]}{' with changes' if changed else ''}"


def cell(value: Any) -> str:
    """Returns one cell as text; `None` reads "not measured"."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, (int, float)) else str(value)


def cells(table: result.Table) -> list[tuple[str, ...]]:
    """Returns the cells of a table as text, the decimals of a column of figures aligned."""
    columns = [_column(column) for column in zip(*table.rows, strict=True)]
    return list(zip(*columns, strict=True))


def is_figure(value: Any) -> bool:
    """Returns whether a cell is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def are_figures(column: Sequence[Any]) -> bool:
    """Returns whether a column holds numbers, or text without letters, such as "12–14"."""
    if any(map(is_figure, column)):
        return True
    text = "".join(value for value in column if isinstance(value, str))
    return any(map(str.isdigit, text)) and not any(map(str.isalpha, text))


def quantity(value: float | None, unit: str) -> str:
    """Returns a figure with its unit; `None` reads "not measured"."""
    if value is None:
        return NONE
    return f"{number(value)} {unit}".rstrip()


def span(interval: tuple[float, float]) -> str:
    """Returns an interval in words."""
    return f"{number(interval[0])} to {number(interval[1])}"


def interval_labels(outcome: result.Result) -> list[str]:
    """Returns what the intervals of the rows are, each once."""
    labels = (row.interval_label or outcome.interval_label for row in outcome.rows if row.interval)
    return list(dict.fromkeys(labels))


def paper(row: result.Row) -> str:
    """Returns the paper's figure, a dash where it gives none."""
    if row.paper is None:
        return "–"
    return row.paper if isinstance(row.paper, str) else quantity(row.paper, row.unit)


def against(row: result.Row) -> str:
    """Returns what a figure is held against: its baseline, else the paper's figure, else ""."""
    if row.baseline:
        return f"{quantity(row.baseline[1], row.unit)} ({row.baseline[0]})"
    return f"{paper(row)} (paper)" if row.paper is not None else ""


def when(stamp: str) -> str:
    """Returns an ISO date and time as one writes it."""
    try:
        return f"{datetime.datetime.fromisoformat(stamp):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return stamp


def comparison(row: result.Row) -> tuple[str, str, str, str, str]:
    """Returns a row as five cells: figure, ours with its interval, baseline, paper, verdict."""
    ours = quantity(row.value, row.unit) + (f" ({span(row.interval)})" if row.interval else "")
    baseline = against(row) if row.baseline else "–"
    return row.metric, ours, baseline, paper(row), f"{SHAPES[row.verdict]} {row.verdict}"


def show(outcome: result.Result) -> None:
    """Prints a result to the terminal: device, comparison with the paper, tables."""
    import rich.console  # here: the accelerator suite may have JAX alone

    console = rich.console.Console(highlight=False)
    for told in (device(outcome.environment), versions(outcome.environment)):
        console.print(told, style="dim", markup=False)
    for table in outcome.opening:
        _print_free(console, table)
    if outcome.rows:
        _print_table(console, COMPARISON, [comparison(row) for row in outcome.rows])
    for table in outcome.tables:
        _print_free(console, table)


def _print_free(console: Any, table: result.Table) -> None:
    _print_table(console, table.columns, cells(table), table.title)
    if table.caption:
        console.print(table.caption, style="dim", markup=False)


def _print_table(
    console: Any, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
) -> None:
    from rich import table, text

    printed = table.Table(title=text.Text(title) if title else None, title_justify="left")
    for name in columns:
        printed.add_column(text.Text(name), overflow="fold")
    for row in rows:
        printed.add_row(*map(text.Text, row))  # as text: brackets are no markup
    console.print(printed)


def _column(values: Sequence[Any]) -> list[str]:
    figures = [value for value in values if is_figure(value)]
    largest = max((abs(value) for value in figures), default=0.0)
    if not 1e-3 <= largest < 1e9 or any(0 < abs(value) < largest * 1e-4 for value in figures):
        return [cell(value) for value in values]
    most = max(0, 3 - math.floor(math.log10(largest)))
    decimals = max(len(f"{v:.{most}f}".rstrip("0").partition(".")[2]) for v in figures)
    return [_fixed(v, decimals, largest) if is_figure(v) else cell(v) for v in values]


def _fixed(value: float, decimals: int, largest: float) -> str:
    """A figure with fixed decimals; thousands are set apart from 10,000 on, so years are not."""
    comma = "," if largest >= 1e4 else ""
    return f"{value:{comma}.{decimals}f}".replace("-", "−")
