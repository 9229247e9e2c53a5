"""CSV text as rows and columns: the reading and writing rules that all tables share.

Format: RFC 4180 (comma-separated, double quotes), one header line, ISO 8601 dates.
"""

import csv
import datetime
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

DAY_0 = datetime.date(1970, 1, 1)
"""The date that `DayCache` counts from."""


class DayCache(dict):
    """Days since `DAY_0` of ISO date or datetime texts, None if unreadable.

    A file repeats few dates many times, so each text is parsed once.
    """

    def __missing__(self, text: str) -> int | None:
        try:
            day = (datetime.datetime.fromisoformat(text.strip()).date() - DAY_0).days
        except ValueError:
            day = None
        self[text] = day
        return day


def rows(path: str | os.PathLike, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yields `(line number, cells)` of every line that is not blank; the first line is number 1.

    Raises:
        ValueError: if the file cannot be decoded or is not CSV.
    """
    try:
        with pathlib.Path(path).open(newline="", encoding=encoding) as file:
            reader = csv.reader(file)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{path} is not {encoding} text ({reason}); pass encoding=") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not readable as CSV: {error}") from error


def header(
    lines: Iterator[tuple[int, list[str]]], path: str | os.PathLike, required: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Takes the header from `lines`.

    Returns:
        The original header, and the position of each name in lower case with spaces and hyphens
        turned into underscores.

    Raises:
        ValueError: if the file is empty, a required column is missing or a name appears twice.
    """
    _, cells = next(lines, (0, None))
    if cells is None:
        raise ValueError(f"{path}: the file is empty; it needs a header {', '.join(required)}")
    names = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in cells]
    doubled = [name for name, count in Counter(names).items() if count > 1 and name]
    if doubled:
        raise ValueError(f"{path}: columns {doubled} appear twice in the header {cells}")
    missing = [name for name in required if name not in names]
    if missing:
        hint = "" if len(cells) > 1 else " (is the file separated by commas?)"
        raise ValueError(f"{path}: missing columns {missing}; it has {cells}{hint}")
    return tuple(cells), {name: i for i, name in enumerate(names)}


def natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a sort key that reads digits as numbers: Site 2 before Site 10."""
    return [(0, int(s), "") if s.isdecimal() else (1, 0, s) for s in re.split(r"(\d+)", name)]


def number(text: str | float, name: str, where: str) -> float:
    """Returns a finite float, or raises a ValueError that names the column and the line."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{where}: {name} must be a finite number, got {text!r}")
    return value


def write_table(path: str | os.PathLike, columns: Mapping[str, Sequence | np.ndarray]) -> None:
    """Writes named columns of equal length as CSV.

    Floats are written with the fewest digits that read back exactly, NaN as an empty cell and dates
    in ISO form.

    Raises:
        ValueError: if the columns differ in length or have more than one axis.
    """
    cells = {name: texts(values, name) for name, values in columns.items()}
    sizes = {name: len(text) for name, text in cells.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the columns differ in length: {sizes}")
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(cells)
        writer.writerows(zip(*cells.values(), strict=True))


def texts(values: Sequence | np.ndarray, name: str) -> list:
    """Returns the cells of one column: shortest exact floats, NaN empty, ISO dates."""
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"column {name!r} must have one axis, got shape {values.shape}")
    if values.dtype.kind == "f":
        return ["" if value != value else str(value) for value in values]
    if values.dtype.kind == "M":
        return values.astype("datetime64[D]").astype(str).tolist()
    return values.tolist()
