"""CSV text as rows and columns: the reading and writing rules that all tables share.

Format: RFC 4180 (comma-separated, double quotes), one header line, ISO 8601 dates; see `text_files`
for what else is read.
"""

import csv
import os
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import text_files

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
_QUOTED_FORMULA = re.compile("'+[=+\\-@\t\r\n＝＋－＠]")


class Table(NamedTuple):
    """A file as text.

    Attributes:
        header: names of the columns as the file spells them.
        columns: position of each name in lower case, spaces and hyphens turned into underscores.
        numbers: `[R]` line of the file on which each row begins; the first line is 1.
        rows: cells of each row that is not blank.
        separator: character between the cells.
        notices: how the file was read, where that is no matter of course.
    """

    header: tuple[str, ...]
    columns: dict[str, int]
    numbers: np.ndarray
    rows: list[list[str]]
    separator: str
    notices: tuple[str, ...]


def read_table(
    path: str | os.PathLike,
    required: Sequence[str],
    *,
    one_of: Sequence[str] = (),
    encoding: str | None = None,
    separator: str | None = None,
) -> Table:
    """Reads a table as text.

    Args:
        path: the file.
        required: names of columns that there must be.
        one_of: names of columns of which there must be one.
        encoding: of the text; found out if it is None.
        separator: character between the cells; found out if it is None. "tab" is one too.

    Raises:
        ValueError: if the file is no text table, is empty or has no rows, a required column is
            missing, or a name appears twice.
    """
    given = {"tab": "\t", r"\t": "\t"}.get(separator or "", separator)
    if given is not None and (len(given) != 1 or given in '"\r\n'):
        raise ValueError(f"separator must be one character, or tab, got {brief(given)}")
    text, notices = text_files.read_text(path, encoding)
    lines = text_files.split_lines(text.removeprefix("\ufeff"))
    stated = text_files.stated_separator(lines[0]) if lines else None
    if stated is not None:
        lines[0] = "\n"  # a blank line, so that numbers stay those of the file
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise ValueError(f"{path}: the file is empty; it needs a header {', '.join(required)}")
    separator = given or stated or text_files.find_separator(first, required)
    found = text_files.records(lines, separator)
    cells = next(cells for _, cells, _ in found if any(map(str.strip, cells)))
    names = [text_files.column_name(cell) for cell in cells]
    doubled = [name for name, times in Counter(names).items() if times > 1 and name]
    if doubled:
        raise ValueError(f"{path}: columns {brief(doubled)} appear twice in the header")
    missing = [name for name in required if name not in names]
    if one_of and not set(one_of) & set(names):
        missing.append(" or ".join(one_of))
    if missing:
        hint = "" if len(cells) > 1 else "; is the separator another? (--separator)"
        raise ValueError(f"{path}: missing columns {missing}; it has {brief(cells)}{hint}")
    numbers, rows, spans = [], [], []
    for number, row, span in found:
        numbers.append(number)
        rows.append(row)
        spans.append(span)
    if not rows:
        raise ValueError(f"{path}: the file has a header but no rows")
    notices += _about_quotes(numbers, spans)
    columns = {name: i for i, name in enumerate(names)}
    return Table(tuple(cells), columns, np.array(numbers, np.int64), rows, separator, notices)


def clean_name(text: str) -> str:
    """Returns a name without what cannot be seen, runs of spaces of any kind turned into one.

    The apostrophe that `guarded` puts before a formula is taken off again.
    """
    seen = "".join(c for c in text if c.isspace() or c.isprintable())
    text = " ".join(unicodedata.normalize("NFC", seen).split())
    return text[1:] if _QUOTED_FORMULA.match(text) else text


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Returns a sort key that reads digits as numbers, Site 2 before Site 10, and has no ties."""
    parts = []
    for part in re.split(r"([0-9]+)", name):
        digits = part.lstrip("0")
        parts.append((0, len(digits), digits) if part.isdecimal() else (1, 0, part))
    return parts, name


def plain_number(text: str, *, comma: bool = False) -> float:
    """Returns the number that a cell holds, NaN if it is none: `1_000` and `1,000` are none.

    Args:
        text: the cell; spaces around the number are allowed.
        comma: read a comma as the decimal point.
    """
    text = text.strip()
    if comma and "." not in text:
        text = text.replace(",", ".", 1)
    return float(text) if _NUMBER.fullmatch(text) else np.nan


def number(text: str | float, name: str, where: str) -> float:
    """Returns a finite float, or raises a ValueError that names the column and the line."""
    value = plain_number(text) if isinstance(text, str) else float(text)
    if not np.isfinite(value):
        raise ValueError(f"{where}: {name} must be a finite number, got {brief(text)}")
    return value


def brief(value: object) -> str:
    """Returns a value as a message shows it: long texts cut, of long lists the first few."""
    if not isinstance(value, list | tuple):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:40]}... ({len(text):,} characters)"
    shown = ", ".join(brief(item) for item in value[:8])
    return f"[{shown}]" if len(value) <= 8 else f"[{shown}, ...] ({len(value):,} in all)"


def count(number: int, what: str) -> str:
    """Returns "1 row", or "12,345 rows"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def write_table(path: str | os.PathLike, columns: Mapping[str, Sequence | np.ndarray]) -> None:
    """Writes named columns of equal length as CSV.

    Floats are written with the fewest digits that read back exactly, NaN as an empty cell and dates
    in ISO form. Texts that a spreadsheet would take for formulas get an apostrophe in front.

    Raises:
        ValueError: if the columns differ in length or have more than one axis.
    """
    cells = {name: texts(values, name) for name, values in columns.items()}
    sizes = {name: len(text) for name, text in cells.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the columns differ in length: {sizes}")
    write_rows(path, [cells.keys(), *zip(*cells.values(), strict=True)])


def write_rows(
    path: str | os.PathLike, rows: Iterable[Iterable[object]], *, separator: str = ","
) -> None:
    """Writes rows of cells as CSV, no text of which is a formula."""
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        for row in rows:
            writer.writerow([guarded(cell) if isinstance(cell, str) else cell for cell in row])


def guarded(text: str) -> str:
    """Returns a text with an apostrophe in front if a spreadsheet would run it as a formula."""
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text.replace(",", ".", 1)):
        return f"'{text}"
    return text


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


def _about_quotes(numbers: Sequence[int], spans: Sequence[int]) -> tuple[str, ...]:
    """Returns notices of lines that quotes broke or joined."""
    stray = [number for number, span in zip(numbers, spans, strict=True) if span == 0]
    long = [(number, span) for number, span in zip(numbers, spans, strict=True) if span > 1]
    notices = ()
    if stray:
        notices += (
            f"{count(len(stray), 'line')} with a quote without its fellow, from line {stray[0]} on:"
            " read one by one and without quotes",
        )
    if long:
        total = sum(span for _, span in long)
        notices += (
            f"{count(len(long), 'row')} over {total:,} lines, from line {long[0][0]} on: unless "
            "quoted cells are meant to hold line breaks, quotes have swallowed rows",
        )
    return notices
