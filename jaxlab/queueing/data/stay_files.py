"""Files of stays: CSV in and out, with every unusable row accounted for.

One row per stay (site, admission date, length of stay), as in arXiv:2510.02852.
"""

import csv
import datetime
import os
import pathlib
from typing import Literal, NamedTuple

import numpy as np

from jaxlab.queueing.data import records, tables
from jaxlab.queueing.data.records import Rejects, Stays

REASONS = {
    "wrong_columns": "the row has more or fewer cells than the header",
    "missing_site": "the site is empty",
    "missing_date": "the admission date is empty",
    "bad_date": "the admission date is not an ISO date such as 2023-05-31",
    "outside_window": "the admission date lies outside the requested window",
    "bad_discharge_date": "the discharge date is not an ISO date",
    "discharge_before_admission": "the discharge date lies before the admission date",
    "missing_los": "neither a length of stay nor a discharge date is given",
    "bad_los": "the length of stay is not a finite number",
    "negative_los": "the length of stay is negative",
    "los_against_dates": "the length of stay and the dates differ by more than a day",
    "zero_los": "the length of stay is zero (same-day stay)",
    "unknown_event": "the event is neither a known code for discharged/died nor for censored",
    "duplicate": "every cell equals an earlier accepted row",
}
"""Why `read_stays` sets a row aside: code -> meaning."""
ENDED = frozenset("1 1.0 true t yes y discharged discharge died dead death alive".split())
"""Event codes (case-insensitive) of a stay whose end was observed."""
CENSORED = frozenset("0 0.0 false f no n censored ongoing in_bed".split())
"""Event codes (case-insensitive) of a patient who was still in bed when the data ended."""


def read_stays(
    path: str | os.PathLike,
    *,
    strict: bool = False,
    start: datetime.date | None = None,
    end: datetime.date | None = None,
    zero_stay: float | None = None,
    duplicates: Literal["reject", "keep"] = "reject",
    encoding: str = "utf-8-sig",
) -> tuple[Stays, Rejects]:
    """Reads stays from CSV: `site, admission_date, los_days[, event, discharge_date]`.

    Header names are matched without regard to case, spaces or hyphens; other columns are allowed.
    Dates are ISO dates or datetimes (only the date is used). A row without `los_days` takes the
    difference of its two dates in days. Without an `event` column every stay counts as ended.
    Blank lines are not rows; every other row is either accepted or listed in `Rejects`. If all rows
    are rejected the stays are empty (`num_sites == 0`).

    Two patients can agree in every cell when a file has no patient identifier and whole-day stays:
    add such a column, or pass `duplicates="keep"`.

    Args:
        path: the CSV file.
        strict: raise instead of setting rows aside.
        start: first admission date to accept, and then day 0; default the first one in the file.
        end: last admission date to accept, and then the last day; default the last in the file.
        zero_stay: length in days (> 0) given to stays of zero days, which are rejected otherwise.
        duplicates: "reject" sets aside rows that repeat an earlier one in every cell.
        encoding: text encoding of the file.

    Returns:
        `(stays, rejects)`; sites are numbered in natural order of their names (2 before 10).

    Raises:
        ValueError: if a column is missing or doubled, the file has no rows or cannot be decoded, an
            option is out of range, or (with `strict`) any row is unusable.
    """
    if zero_stay is not None and not 0 < zero_stay < np.inf:
        raise ValueError(f"zero_stay must be a positive number of days, got {zero_stay}")
    if duplicates not in ("reject", "keep"):
        raise ValueError(f"duplicates must be 'reject' or 'keep', got {duplicates!r}")
    if start is not None and end is not None and end < start:
        raise ValueError(f"the window ends on {end}, before it starts on {start}")
    lines = tables.rows(path, encoding)
    header, columns = tables.header(lines, path, ("site", "admission_date"))
    if not {"los_days", "discharge_date"} & columns.keys():
        raise ValueError(f"{path}: missing column 'los_days'; it has {list(header)}")
    optional = (columns.get(name) for name in ("los_days", "event", "discharge_date"))
    at = _Columns(len(header), columns["site"], columns["admission_date"], *optional)
    low = -np.inf if start is None else (start - tables.DAY_0).days
    high = np.inf if end is None else (end - tables.DAY_0).days
    days = tables.DayCache()
    seen: set[tuple[str, ...]] = set()
    accepted, rejected = [], []
    for number, row in lines:
        result = _parse(row, at, days, low, high, zero_stay)
        if duplicates == "reject" and not isinstance(result, str):
            cells = tuple(row)
            if cells in seen:
                result = "duplicate"
            seen.add(cells)
        if isinstance(result, str):
            rejected.append((number, result, tuple(row)))
        else:
            accepted.append(result)
    if not accepted and not rejected:
        raise ValueError(f"{path}: the file has a header but no rows")
    rows, reasons, cells = zip(*rejected, strict=True) if rejected else ((), (), ())
    rejects = Rejects(np.array(rows, np.int64), reasons, cells, header)
    if strict and rejected:
        raise ValueError(f"{path}: {_summary(rejects)}; fix them or read with strict=False")
    return _stays(accepted, start, end), rejects


def write_stays(path: str | os.PathLike, stays: Stays) -> None:
    """Writes stays as a CSV that `read_stays` reads back, with a running `patient` column."""
    dated = stays.discharge_day >= 0
    calendar = np.datetime64(stays.origin, "D")
    columns = {
        "patient": np.arange(1, stays.site.size + 1),
        "site": [stays.site_names[i] for i in stays.site],
        "admission_date": calendar + stays.day,
        "los_days": stays.los,
        "event": stays.event.astype(int),
    }
    if dated.any():
        text = (calendar + stays.discharge_day).astype(str)
        columns["discharge_date"] = np.where(dated, text, "")
    tables.write_table(path, columns)


def write_rejects(path: str | os.PathLike, rejects: Rejects) -> None:
    """Writes the rejects file: line number, reason, then the original cells.

    Corrected in place, the file can be given to `read_stays` again: the two leading columns are
    ignored there.
    """
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("row", "reason", *rejects.header))
        for row, reason, cells in zip(rejects.rows, rejects.reasons, rejects.lines, strict=True):
            writer.writerow((row, reason, *cells))


class _Columns(NamedTuple):
    """Positions of the columns in a row of `width` cells."""

    width: int
    site: int
    admission_date: int
    los_days: int | None
    event: int | None
    discharge_date: int | None


def _parse(row, at, days, low, high, zero_stay):
    """Returns (site, day, los, event, discharge day or None), or the reason why it cannot."""
    if len(row) != at.width:
        return "wrong_columns"
    site = row[at.site].strip()
    if not site:
        return "missing_site"
    day = days[row[at.admission_date]]
    if day is None:
        return "bad_date" if row[at.admission_date].strip() else "missing_date"
    if not low <= day <= high:
        return "outside_window"
    discharge = None
    if at.discharge_date is not None and row[at.discharge_date].strip():
        discharge = days[row[at.discharge_date]]
        if discharge is None:
            return "bad_discharge_date"
        if discharge < day:
            return "discharge_before_admission"
    text = "" if at.los_days is None else row[at.los_days].strip()
    if not text and discharge is None:
        return "missing_los"
    try:
        los = float(text) if text else float(discharge - day)
    except ValueError:
        return "bad_los"
    if not -np.inf < los < np.inf:
        return "bad_los"
    if los < 0:
        return "negative_los"
    if los == 0 and zero_stay is None:
        return "zero_los"
    if discharge is not None and abs(los - (discharge - day)) > 1:
        return "los_against_dates"
    event = "1" if at.event is None else row[at.event].strip().lower()
    if event not in ENDED and event not in CENSORED:
        return "unknown_event"
    return site, day, los or zero_stay, event in ENDED, discharge


def _summary(rejects):
    parts = []
    for reason, count in rejects.counts().items():
        first = [str(n) for n, r in zip(rejects.rows, rejects.reasons, strict=True) if r == reason]
        more = ", ..." if count > 5 else ""
        parts.append(f"{count} {reason} (lines {', '.join(first[:5])}{more})")
    return f"{rejects.rows.size} unusable rows: " + "; ".join(parts)


def _stays(accepted, start, end):
    site, day, los, event, discharge = zip(*accepted, strict=True) if accepted else ((),) * 5
    names = tuple(sorted(set(site), key=tables.natural))
    code = {name: i for i, name in enumerate(names)}
    day = np.array(day, np.int64)
    first = int(day.min(initial=10**9)) if start is None else (start - tables.DAY_0).days
    last = int(day.max(initial=first - 1)) if end is None else (end - tables.DAY_0).days
    if not accepted:
        first, last = 0, -1
    index = np.fromiter((code[name] for name in site), np.int32, len(site))
    day, los = (day - first).astype(np.int32), np.array(los, np.float64)
    windows = records.own_windows(day, index, len(names))
    if start is not None:
        windows[:, 0] = 0
    if end is not None:
        windows[:, 1] = last - first
    return Stays(
        site=index,
        day=day,
        los=los,
        event=np.array(event, bool),
        discharge_day=np.fromiter(
            (-1 if d is None else d - first for d in discharge), np.int32, len(discharge)
        ),
        offset=np.full(len(site), np.nan),
        by_date=np.full(los.size, bool(np.all(los == np.floor(los)))),
        num_sites=len(names),
        num_days=last - first + 1,
        site_names=names,
        origin=tables.DAY_0 + datetime.timedelta(days=first),
        windows=windows,
    )
