"""Files of stays: CSV in and out, with every unusable row accounted for.

One row per stay (site, admission date, length of stay or discharge date), as in arXiv:2510.02852.
"""

import datetime
import os
from collections import Counter
from typing import Literal, get_args

import numpy as np

from jaxlab.core import tables, text_files
from jaxlab.queueing.data import records, stay_columns, times
from jaxlab.queueing.data.records import Rejects, Stays
from jaxlab.queueing.data.times import DAY, DAY_0

Duplicates = Literal["by_id", "keep", "reject"]
"""What becomes of rows that are equal in every cell, see `read_stays`."""
REASONS = {
    "wrong_columns": "the row has more or fewer cells than the header",
    "bad_character": "a cell holds a NUL character",
    "missing_site": "the site is empty",
    "long_site": "the name of the site has more than 200 characters",
    "missing_date": "the admission date is empty",
    "bad_date": "the admission is no date such as 2023-05-31 or 2023-05-31 08:00; another format "
    "needs date_format (--date-format)",
    "bad_discharge_date": "the discharge is no date of the same kind",
    "discharge_before_admission": "the discharge lies before the admission",
    "missing_los": "neither a length of stay nor a discharge date is given; of a patient still in "
    "bed the event is 0 or empty",
    "bad_los": "the length of stay is no plain finite number of days",
    "negative_los": "the length of stay is negative",
    "zero_los": "the stay has no length, though others at the site are known to parts of a day",
    "los_against_dates": "the length of stay and the dates differ by more than a day",
    "unknown_event": "the event is neither a known code for discharged/died nor for still in bed",
    "far_date": "more than max_gap days (--max-gap, 5 years) without an admission lie between this "
    "row and most others",
    "long_stay": "the stay is longer than max_stay days (--max-stay, 5 years)",
    "outside_window": "the patient was not in bed within the requested window",
    "duplicate": "every cell equals an earlier accepted row",
}
"""Why `read_stays` sets a row aside: code -> meaning."""
ID_COLUMNS = ("patient_id", "patient")
"""Columns that say by default which rows are one stay."""
QUIET_DAYS = 31
"""More days than this without a discharge may have come after the end of the data."""
MAX_DAYS = 1826.0
"""Five years: no stay is believed to be longer, no gap between admissions either."""


def read_stays(
    path: str | os.PathLike,
    *,
    strict: bool = False,
    start: datetime.date | None = None,
    end: datetime.date | None = None,
    zero_stay: float | None = None,
    duplicates: Duplicates = "by_id",
    id_column: str | None = None,
    date_format: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    max_stay: float = MAX_DAYS,
    max_gap: float = MAX_DAYS,
) -> tuple[Stays, Rejects]:
    """Reads stays from CSV: `site, admission_date, los_days[, event, discharge_date]`.

    Header names are matched without regard to case, spaces or hyphens; other columns are allowed.
    Blank lines are not rows; every other row is either accepted or listed in `Rejects`. If all rows
    are rejected the stays are empty (`num_sites == 0`). What was decided on the way is said in
    `rejects.notices`. NULL, NA and the like are empty cells.

    Length: two times of day give it to the second; otherwise it is `los_days` or, where that is
    empty, the difference of the dates. Differences of dates, and `los_days` that are whole for all
    of a site, are marked `by_date`. Times that are 0:00 for all of a site are no times.

    End: a stay without `event` has ended if a discharge date or else `los_days` is given. A
    patient without either (or with a date such as 9999-12-31) is still in bed at the end of the
    data if there is a column `discharge_date` or `event` to say so; so is one whose `los_days`
    reach that day and who has no discharge date and no event where others have. The end of the
    data is `end`, or else the last admission or discharge in the file (but for one discharge in a
    hundred or fewer that come more than `QUIET_DAYS` after all others).

    Window: days are counted from the first admission or `start`, to the last one or `end`; each
    site's own window runs from its first to its last admission, the stays of the last patients
    having run out without new ones afterwards. With `start`, patients who were in bed on that day
    are kept, on negative days.

    Args:
        path: the CSV file.
        strict: raise instead of setting rows aside.
        start: first day of all sites' windows, and then day 0.
        end: last day of all sites' windows, which is then the end of the data.
        zero_stay: length in days (> 0) given to stays of no length. Otherwise those that are known
            in whole days are kept as same-day stays and the others are rejected.
        duplicates: of rows that are equal in every cell, "by_id" sets the later ones aside if an id
            is among the cells, since two patients may well agree in everything else; "keep" keeps
            them all, "reject" needs no id.
        id_column: column of that id; default one of `ID_COLUMNS`.
        date_format: such as `%d/%m/%Y` or `DD/MM/YYYY`; by default what has one reading is read.
        separator: character between cells; default found out.
        encoding: text encoding of the file; default found out.
        max_stay: longest stay that is believed, days.
        max_gap: longest time without admissions, of all sites or of one, that is believed, days;
            rows beyond one, seen from where most rows are, are set aside.

    Returns:
        `(stays, rejects)`; sites are numbered in natural order of their names (2 before 10). Names
        that differ only in case or spaces are one site.

    Raises:
        ValueError: if a column is missing or doubled, the file has no rows, is no text or has dates
            of two readings, an option is out of range, or (with `strict`) any row is unusable.
    """
    limits = {"max_stay": max_stay, "max_gap": max_gap}
    _check_options(start, end, zero_stay, duplicates, limits)
    table = tables.read_table(
        path,
        ("site", "admission_date"),
        one_of=("los_days", "discharge_date"),
        encoding=encoding,
        separator=separator,
    )
    ids = _ids(table, path, id_column)
    try:
        columns, reason, notices = stay_columns.read_columns(table, date_format)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    lengths, reason, more = stay_columns.measure(columns, reason, zero_stay)
    notices = [*table.notices, *notices, *more]
    day, low, high = columns.admission.day, _number(start, -np.inf), _number(end, np.inf)
    early, late = day < low, day > high
    far = stay_columns.far_from_most(columns, (reason == "") & ~early & ~late, max_gap)
    reason = stay_columns.add_reason(reason, far_date=far, long_stay=lengths.los > max_stay)
    last = _end_of_data(columns, reason, high)
    lengths = stay_columns.close(columns, lengths, last)
    leaves = day + np.nan_to_num(columns.admission.time) / DAY + lengths.los
    reason = stay_columns.add_reason(
        reason, outside_window=late | (early & (leaves <= low)), long_stay=lengths.los > max_stay
    )
    duplicate, num_alike = _equal_rows(table.rows, reason == "", ids, duplicates)
    reason = stay_columns.add_reason(reason, duplicate=duplicate)
    good = reason == ""
    notices += _about_alike(columns, ids, good, num_alike, duplicates)
    notices += _about_open(columns, lengths, good, last)
    notices += stay_columns.quiet_times(columns, good & ~early)
    notices += stay_columns.empty_ends(columns, good, low, high)
    if same := int(np.sum(good & (lengths.los == 0))):
        notices.append(f"{tables.count(same, 'same-day stay')} known by dates only: kept")
    if before := int(np.sum(good & early)):
        notices.append(f"{tables.count(before, 'patient')} in bed when the window opened")
    bad = np.flatnonzero(~good)
    rejects = Rejects(
        rows=table.numbers[bad],
        reasons=tuple(reason[bad]),
        lines=tuple(tuple(table.rows[k]) for k in bad),
        header=table.header,
        notices=tuple(notices),
        num_alike=num_alike,
        separator=table.separator,
    )
    if strict and bad.size:
        raise ValueError(f"{path}: {_summary(rejects)}; fix them or read with strict=False")
    return _stays(columns, lengths, np.flatnonzero(good), start, end), rejects


def write_stays(path: str | os.PathLike, stays: Stays) -> None:
    """Writes stays as a CSV that `read_stays` reads back, with a running `patient` column.

    Times are written to the microsecond. `los_days` is left empty where the two dates, or the two
    times, say the same.
    """
    first, micro = np.datetime64(stays.origin, "D"), np.rint(stays.offset * DAY)
    dated = stays.discharge_day >= 0
    leaves = np.rint((stays.offset + stays.los) * DAY)
    timed = dated & ~stays.by_date & (leaves // DAY == stays.discharge_day - stays.day)
    said = timed | (dated & stays.by_date & (stays.los == stays.discharge_day - stays.day))
    columns = {
        "patient": np.arange(1, stays.site.size + 1),
        "site": [stays.site_names[i] for i in stays.site],
        "admission_date": times.iso_text(first + stays.day, micro),
        "los_days": np.where(said, np.nan, stays.los),
        "event": stays.event.astype(int),
    }
    if dated.any():
        text = times.iso_text(first + stays.discharge_day, np.where(timed, leaves % DAY, np.nan))
        columns["discharge_date"] = np.where(dated, text, "")
    tables.write_table(path, columns)


def write_rejects(path: str | os.PathLike, rejects: Rejects) -> None:
    """Writes the rejects file: line number, reason, then the original cells.

    Corrected in place, the file can be given to `read_stays` again: the two leading columns are
    ignored there. Cells are separated as in the file they are from.
    """
    cells = zip(rejects.rows.tolist(), rejects.reasons, rejects.lines, strict=True)
    rows = [("row", "reason", *rejects.header), *((row, why, *line) for row, why, line in cells)]
    tables.write_rows(path, rows, separator=rejects.separator)


def _check_options(start, end, zero_stay, duplicates, limits):
    if zero_stay is not None and not 0 < zero_stay < np.inf:
        raise ValueError(f"zero_stay must be a positive number of days, got {zero_stay}")
    if duplicates not in get_args(Duplicates):
        raise ValueError(f"duplicates must be one of {get_args(Duplicates)}, got {duplicates!r}")
    for name, limit in limits.items():
        if not limit > 0:
            raise ValueError(f"{name} must be a positive number of days, got {limit}")
    if start is not None and end is not None and end < start:
        raise ValueError(f"the window ends on {end}, before it starts on {start}")


def _number(date, default):
    return default if date is None else date.toordinal() - DAY_0.toordinal()


def _end_of_data(columns, reason, end):
    """Returns the last day of the data: `end`, or the last admission or discharge in the file.

    One discharge in a hundred or fewer, `QUIET_DAYS` after all others, do not decide it: they may
    be slips of the pen, and the length of every open stay would follow them.
    """
    good = reason == ""
    if end < np.inf or not good.any():  # of no rows any day will do
        return end
    admitted, leaves = columns.admission.day[good].max(), columns.discharge.day[good]
    leaves = np.sort(leaves[~np.isnan(leaves)])
    days = np.concatenate([[admitted], leaves[leaves > admitted]])
    later = days.size - 1 - np.arange(days.size - 1)  # how many come after each gap
    alone = np.flatnonzero((np.diff(days) > QUIET_DAYS) & (100 * later <= leaves.size))
    return int(days[alone[0]] if alone.size else days[-1])


def _ids(table, path, id_column):
    """Returns the id of every row, "" where there is none."""
    named = None if id_column is None else text_files.column_name(id_column)
    if named is not None and named not in table.columns:
        raise ValueError(
            f"{path}: there is no id column {tables.brief(id_column)}; it has "
            f"{tables.brief(table.header)}"
        )
    name = next((name for name in (named, *ID_COLUMNS) if name in table.columns), None)
    if name is None:
        return [""] * len(table.rows)
    position = table.columns[name]
    return [
        stay_columns.without_words(row[position]) if len(row) > position else ""
        for row in table.rows
    ]


def _equal_rows(rows, good, ids, duplicates):
    """Returns which rows are set aside as equal to an earlier one, and how many such are kept."""
    seen: set[tuple[str, ...]] = set()
    duplicate, num_alike = np.zeros(len(rows), bool), 0
    for k in np.flatnonzero(good):
        cells = tuple(rows[k])
        if cells not in seen:
            seen.add(cells)
            continue
        duplicate[k] = duplicates == "reject" or (duplicates == "by_id" and ids[k] != "")
        num_alike += not duplicate[k]
    return duplicate, num_alike


def _about_alike(columns, ids, good, num_alike, duplicates):
    """Returns notices of rows that may be one stay and count as several."""
    notices = []
    if num_alike:
        notices.append(
            f"{tables.count(num_alike, 'row')} equal to an earlier one in every cell: kept as "
            "other patients; an id column tells (--id-column), --duplicates reject leaves them out"
        )
    known = np.array([name != "" for name in ids], bool) & good & (duplicates == "by_id")
    when = columns.admission.day + np.nan_to_num(columns.admission.time) / DAY
    stay = Counter((ids[k], columns.site[k], when[k]) for k in np.flatnonzero(known))
    double = stay.total() - len(stay)
    if double:
        notices.append(
            f"{tables.count(double, 'row')} with the id, site and admission of an earlier one and "
            "another end: kept; if one row has replaced the other, leave the old one out"
        )
    return notices


def _about_open(columns, lengths, good, last):
    """Returns notices of patients who are still in bed at the end of the data."""
    still = good & lengths.is_open
    if not still.any():
        return []
    admitted = columns.admission.day
    first, latest = admitted[still].min(), admitted[good].max()
    notice = (
        f"{tables.count(int(still.sum()), 'patient')} without a discharge: still in bed at the end "
        f"of the data, {times.date_of(last)}, the longest since {times.date_of(first)}"
    )
    if last - latest > QUIET_DAYS:
        notice += f"; the last admission is of {times.date_of(latest)}, --end sets another end"
    beyond = columns.discharge.day[good & (columns.discharge.day > last)]
    if beyond.size and latest <= last:
        few, first = tables.count(beyond.size, "discharge"), times.date_of(beyond.min())
        notice += (
            f"; {few} from {first} on, long after all others, did not decide it: correct the date, "
            "or --end sets another end"
        )
    return [notice]


def _summary(rejects):
    parts = []
    for reason, count in rejects.counts().items():
        first = [str(n) for n, r in zip(rejects.rows, rejects.reasons, strict=True) if r == reason]
        more = ", ..." if count > 5 else ""
        parts.append(f"{count} {reason} (lines {', '.join(first[:5])}{more})")
    return f"{rejects.rows.size} unusable rows: " + "; ".join(parts)


def _stays(columns, lengths, kept, start, end):
    """Returns the record of the rows that are kept."""
    day = columns.admission.day[kept].astype(np.int64)
    first = _number(start, day.min(initial=10**9))
    last = _number(end, day.max(initial=first))
    if not day.size:
        first, last = 0, -1
    used, site = np.unique(columns.site[kept], return_inverse=True)
    day = (day - first).astype(np.int32)
    event, leaves = lengths.event[kept], columns.discharge.day[kept] - first
    windows = records.own_windows(day, site, used.size)
    if start is not None:
        windows[:, 0] = 0
    if end is not None:
        windows[:, 1] = last - first
    return Stays(
        site=site.astype(np.int32),
        day=day,
        los=lengths.los[kept],
        event=event,
        discharge_day=np.where(event & ~np.isnan(leaves), leaves, -1).astype(np.int32),
        offset=columns.admission.time[kept] / DAY,
        by_date=lengths.by_date[kept],
        num_sites=used.size,
        num_days=int(last - first) + 1,
        site_names=tuple(columns.names[i] for i in used),
        origin=DAY_0 + datetime.timedelta(days=int(first)),
        windows=windows,
    )
