"""Text of tables as programs write it: encoding, separator and quotes are found out, and said.

Format: RFC 4180 (a header line, then a record per line, double quotes) with commas, semicolons,
tabs or bars between the cells, in UTF-8, UTF-16 or the Windows code page 1252.
"""

import codecs
import csv
import io
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

SEPARATORS = (",", ";", "\t", "|")
"""Characters that may stand between cells."""
NO_TEXT = {
    b"PK\x03\x04": "an Excel workbook (.xlsx) or another zip archive: save the sheet as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls): save the sheet as CSV UTF-8",
    b"\x1f\x8b": "compressed (gzip): unpack it first",
    b"%PDF": "a PDF document: export the table as CSV",
    b"SQLite format 3": "an SQLite database: export the table as CSV",
    b"PAR1": "a Parquet file: write it as CSV",
}
"""First bytes of files that are taken for tables and are none: what they are, what to do."""
_MARKED = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: str | os.PathLike, encoding: str | None) -> tuple[str, tuple[str, ...]]:
    """Returns the text of a file and, if that needed a guess, a notice.

    Without an `encoding` the byte order mark decides, then UTF-8 is tried and then cp1252.

    Raises:
        ValueError: if the file is no text, or not in the encoding.
    """
    data = pathlib.Path(path).read_bytes()
    for start, what in NO_TEXT.items():
        if data.startswith(start):
            raise ValueError(f"{path} is no CSV but {what}")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|table|\?xml)", data[:100], re.IGNORECASE):
        raise ValueError(f"{path} is no CSV but HTML or XML: open it in Excel and save it as CSV")
    marked = next((name for mark, name in _MARKED.items() if data.startswith(mark)), None)
    name, notices = encoding or marked, ()
    if name is None:
        name = "utf-8"
        try:
            data.decode(name)
        except UnicodeDecodeError:
            name = "cp1252"
            notices = (
                "the file is not UTF-8: read as cp1252 (Windows), unless encoding= says else",
            )
    try:
        return data.decode(name), notices
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ValueError(
            f"{path} is not {name} text ({reason}): pass encoding= (--encoding)"
        ) from error
    except LookupError:
        raise ValueError(f"encoding must be one that Python knows, got {encoding!r}") from None


def split_lines(text: str) -> list[str]:
    """Returns the physical lines with their ends, whichever of the three kinds these are."""
    return list(io.StringIO(text, newline=""))


def stated_separator(line: str) -> str | None:
    """Returns the separator that a first line such as `sep=;` states, as Excel writes it."""
    found = re.fullmatch(r'\ufeff?"?sep=(.)"?[\r\n]*', line, re.IGNORECASE)
    return found[1] if found else None


def find_separator(header: str, required: Sequence[str]) -> str:
    """Returns the separator that finds most of the required names in a header, then most cells."""

    def found(separator: str) -> tuple[int, int]:
        cells = header[:100_000].rstrip("\r\n").split(separator)
        names = {column_name(cell.strip('" ')) for cell in cells}
        return len(names.intersection(required)), len(cells)

    return max(SEPARATORS, key=found)  # the first of equals: a comma


def column_name(cell: str) -> str:
    """Returns a header's name in lower case, spaces and hyphens turned into underscores."""
    return re.sub(r"[\s-]+", "_", cell.strip("\ufeff \t\r\n\xa0").lower())


def records(lines: Sequence[str], separator: str) -> Iterator[tuple[int, list[str], int]]:
    """Yields `(line number, cells, number of lines)` of every record that is not blank.

    A quote that is not closed, or closed in the middle of a cell, would swallow the lines up to the
    next quote and the patients on them. Such a line is split without regard to quotes, and reading
    starts anew on the next one; its number of lines is then given as 0.
    """
    start = 0
    while start < len(lines):
        rest = map(lines.__getitem__, range(start, len(lines)))  # a slice would copy each time
        reader = csv.reader(rest, delimiter=separator, strict=True)
        done = 0
        try:
            for cells in reader:
                if cells:
                    yield start + done + 1, cells, reader.line_num - done
                done = reader.line_num
            return
        except csv.Error:
            cells = lines[start + done].rstrip("\r\n").split(separator)
            yield start + done + 1, [cell.strip('"') for cell in cells], 0
            start += done + 1
