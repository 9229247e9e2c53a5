"""Patient stays and daily queue inputs, read from CSV with every unusable row accounted for.

Everything here runs on the host with numpy: dates become day indices before anything is jitted.
Data model of arXiv:2510.02852: one row per stay (site, admission date, length of stay).
"""

import csv
import datetime
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.queueing.census import occupancy
from jaxlab.queueing.data import tables
from jaxlab.queueing.stays import conditional

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


class Stays(NamedTuple):
    """Stays of `N` patients; host-side numpy, in the order of the file.

    Attributes:
        site: `[N]` int32, index into `site_names`.
        day: `[N]` int32, admission day, days since `origin`.
        los: `[N]` float64, length of stay in days, > 0 (time to the end of the data if censored).
        event: `[N]` bool, True if discharged or died, False if censored (still in bed).
        discharge_day: `[N]` int32, days since `origin`; -1 where no discharge date is given.
        num_sites: number of sites.
        num_days: days from `origin` to the last admission, both included.
        site_names: name of each site.
        origin: calendar date of day 0, the first admission unless a window was asked for.
    """

    site: np.ndarray
    day: np.ndarray
    los: np.ndarray
    event: np.ndarray
    discharge_day: np.ndarray
    num_sites: int
    num_days: int
    site_names: tuple[str, ...]
    origin: datetime.date


class Rejects(NamedTuple):
    """Rows that were set aside; `rows.size` is their number.

    Attributes:
        rows: `[R]` int64, line number in the file (the header is line 1).
        reasons: one key of `REASONS` per row.
        lines: the original cells of each row.
        header: the original header.
    """

    rows: np.ndarray
    reasons: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    header: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Returns reason -> number of rows, most frequent first."""
        return dict(Counter(self.reasons).most_common())


class Patients(NamedTuple):
    """Patients of each site side by side, padded to one length.

    Attributes:
        day: `[I, N]` int32 admission day; padding is 0.
        los: `[I, N]` float64 days; padding is 1, so that logarithms stay finite.
        event: `[I, N]` bool; padding is True.
        weight: `[I, N]` float64, 1 for a patient and 0 for padding.
    """

    day: np.ndarray | jax.Array
    los: np.ndarray | jax.Array
    event: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array


class Processed(NamedTuple):
    """Daily queue inputs with the labels of their axes.

    Attributes:
        inputs: `[I, T]` series and `[I]` laws.
        site_names: name of each site.
        origin: calendar date of day 0, or None if the file counts days.
    """

    inputs: occupancy.QueueInputs
    site_names: tuple[str, ...]
    origin: datetime.date | None


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
    write_table(path, columns)


def write_rejects(path: str | os.PathLike, rejects: Rejects) -> None:
    """Writes the rejects file: line number, reason, then the original cells.

    Corrected in place, the file can be given to `read_stays` again: the two leading columns are
    ignored there.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("row", "reason", *rejects.header))
        for row, reason, cells in zip(rejects.rows, rejects.reasons, rejects.lines, strict=True):
            writer.writerow((row, reason, *cells))


def take_site(stays: Stays, site: int) -> Stays:
    """Returns one site's stays over its own contiguous range, first to last admission.

    Source: arXiv:2510.02852, each unit is analyzed from its first to its last admission date.
    """
    mask = stays.site == site
    if not mask.any():
        raise ValueError(f"no stays at site {site}; the stays have {stays.num_sites} sites")
    day, discharge = stays.day[mask], stays.discharge_day[mask]
    first = day.min()
    return Stays(
        site=np.zeros(day.size, np.int32),
        day=day - first,
        los=stays.los[mask],
        event=stays.event[mask],
        discharge_day=np.where(discharge >= 0, discharge - first, np.int32(-1)),
        num_sites=1,
        num_days=int(day.max() - first) + 1,
        site_names=(stays.site_names[site],),
        origin=stays.origin + datetime.timedelta(days=int(first)),
    )


def pooled_by_site(stays: Stays, *, multiple: int = 1024) -> Patients:
    """Puts each site's stays in one row, padded to a common multiple of `multiple` patients.

    The rounding keeps the shape stable from one data set to the next, so that jitted fits are
    compiled once.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    sizes = np.bincount(stays.site, minlength=stays.num_sites)
    width = max(-(-int(sizes.max(initial=0)) // multiple), 1) * multiple
    order = np.argsort(stays.site, kind="stable")
    row = stays.site[order]
    column = np.arange(row.size) - (np.cumsum(sizes) - sizes)[row]
    day = np.zeros((stays.num_sites, width), np.int32)
    los = np.ones((stays.num_sites, width))
    event = np.ones((stays.num_sites, width), bool)
    weight = np.zeros((stays.num_sites, width))
    day[row, column] = stays.day[order]
    los[row, column], event[row, column] = stays.los[order], stays.event[order]
    weight[row, column] = 1.0
    return Patients(day, los, event, weight)


def dates(origin: datetime.date, num_days: int) -> np.ndarray:
    """Returns `[T]` datetime64 calendar dates, day 0 first."""
    return np.datetime64(origin, "D") + np.arange(num_days)


def read_processed(
    path: str | os.PathLike,
    *,
    family: str | Sequence[str] | None = None,
    kappa: float | Sequence[float] | None = None,
    smax: int | Sequence[int] | None = None,
) -> Processed:
    """Reads daily inputs from a CSV with columns `site, day, lam, mu, sig2[, family, kappa, smax]`.

    `day` is an integer (any origin) or an ISO date. Every site needs the same days without a gap,
    in any order. The laws are constant per site: columns repeated on every row, or else keywords.

    Args:
        path: the CSV file.
        family: name in `conditional.FAMILIES`, for all sites or one per site in natural order of
            their names; used where the file has no such column, as are `kappa` and `smax`.
        kappa: shape of the length-of-stay law.
        smax: truncation lag, days.

    Returns:
        The inputs as jax arrays (float64 under x64) with their site names and first date.

    Raises:
        ValueError: naming the line and the rule: missing columns, cells that are no finite numbers,
            lam < 0, mu <= 0, sig2 < 0, gaps or repeated days, laws that change within a site.
    """
    lines = tables.rows(path, "utf-8-sig")
    header, columns = tables.header(lines, path, ("site", "day", "lam", "mu", "sig2"))
    law_names = [name for name in ("family", "kappa", "smax") if name in columns]
    days = tables.DayCache()
    cells: dict[str, dict[int, list[float]]] = {}
    laws: dict[str, list[str]] = {}
    dated = None
    for number, row in lines:
        where = f"{path}, line {number}"
        if len(row) != len(header):
            raise ValueError(f"{where}: {len(row)} cells, the header has {len(header)}")
        site, text = row[columns["site"]].strip(), row[columns["day"]].strip()
        counted = re.fullmatch(r"[+-]?\d{1,7}", text) is not None
        day = int(text) if counted else days[text]
        if not site or day is None or dated is counted:
            raise ValueError(
                f"{where}: site {site!r}, day {text!r}: need a name and a day number"
                " or an ISO date, the same kind on every row"
            )
        dated = not counted
        values = [tables.number(row[columns[name]], name, where) for name in ("lam", "mu", "sig2")]
        if values[0] < 0 or values[1] <= 0 or values[2] < 0:
            raise ValueError(f"{where}: need lam >= 0, mu > 0, sig2 >= 0, got {values}")
        if day in cells.setdefault(site, {}):
            raise ValueError(f"{where}: day {text} of site {site!r} is given twice")
        cells[site][day] = values
        law = [row[columns[name]].strip() for name in law_names]
        if law != laws.setdefault(site, law):
            raise ValueError(f"{where}: {law_names} of site {site!r} change, got {law}")
    if not cells:
        raise ValueError(f"{path}: the file has a header but no rows")
    names = tuple(sorted(cells, key=tables.natural))
    first = min(cells[names[0]])
    expected = range(first, first + len(cells[names[0]]))
    for name in names:
        if sorted(cells[name]) != list(expected):
            raise ValueError(
                f"{path}: site {name!r} must have the {len(expected)} contiguous days"
                f" of site {names[0]!r}; it has {len(cells[name])}"
            )
    series = np.array([[cells[name][day] for day in expected] for name in names])
    given = {"family": family, "kappa": kappa, "smax": smax}
    for i, name in enumerate(law_names):
        given[name] = [laws[site][i] for site in names]
    file = os.fspath(path)
    family_, kappa_, smax_ = (_per_site(given[k], k, len(names), path) for k in given)
    inputs = occupancy.QueueInputs(
        *(jnp.asarray(series[:, :, i]) for i in range(3)),
        kappa=jnp.asarray([tables.number(k, "kappa", file) for k in kappa_]),
        family=jnp.asarray([_family_code(f, path) for f in family_], jnp.int32),
        smax=jnp.asarray([int(tables.number(u, "smax", file)) for u in smax_], jnp.int32),
    )
    origin = tables.DAY_0 + datetime.timedelta(days=first) if dated else None
    return Processed(inputs, names, origin)


def write_processed(
    path: str | os.PathLike,
    inputs: occupancy.QueueInputs,
    *,
    site_names: Sequence[str] | None = None,
    origin: datetime.date | None = None,
) -> None:
    """Writes daily inputs as a CSV that `read_processed` reads back exactly, one row per site-day.

    Args:
        path: the CSV file.
        inputs: `[I, T]` series and `[I]` laws.
        site_names: default "1", "2", ...
        origin: calendar date of day 0; days are numbered from 0 if it is None.
    """
    num_sites, num_days = inputs.lam.shape
    names = [str(i + 1) for i in range(num_sites)] if site_names is None else list(site_names)
    if len(set(names)) != num_sites:
        raise ValueError(f"need {num_sites} different site names, got {names}")
    day = np.arange(num_days) if origin is None else dates(origin, num_days)
    family = [conditional.FAMILIES[int(code)] for code in np.asarray(inputs.family)]
    columns = {"site": np.repeat(names, num_days), "day": np.tile(day, num_sites)}
    columns |= {name: np.ravel(getattr(inputs, name)) for name in ("lam", "mu", "sig2")}
    laws = {"family": family, "kappa": inputs.kappa, "smax": inputs.smax}
    columns |= {name: np.repeat(np.asarray(law), num_days) for name, law in laws.items()}
    write_table(path, columns)


def write_table(path: str | os.PathLike, columns: Mapping[str, Sequence | np.ndarray]) -> None:
    """Writes named columns of equal length as CSV.

    Floats are written with the fewest digits that read back exactly, NaN as an empty cell and dates
    in ISO form.

    Raises:
        ValueError: if the columns differ in length or have more than one axis.
    """
    texts = {name: tables.texts(values, name) for name, values in columns.items()}
    sizes = {name: len(text) for name, text in texts.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the columns differ in length: {sizes}")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(texts)
        writer.writerows(zip(*texts.values(), strict=True))


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
    return Stays(
        site=np.fromiter((code[name] for name in site), np.int32, len(site)),
        day=(day - first).astype(np.int32),
        los=np.array(los, np.float64),
        event=np.array(event, bool),
        discharge_day=np.fromiter(
            (-1 if d is None else d - first for d in discharge), np.int32, len(discharge)
        ),
        num_sites=len(names),
        num_days=last - first + 1,
        site_names=names,
        origin=tables.DAY_0 + datetime.timedelta(days=first),
    )


def _family_code(name, path):
    if name not in conditional.FAMILIES:
        raise ValueError(f"{path}: family {name!r} is not one of {conditional.FAMILIES}")
    return conditional.FAMILIES.index(name)


def _per_site(value, name, num_sites, path):
    if value is None:
        raise ValueError(f"{path} has no column {name!r}: add it or pass {name}=")
    values = [value] * num_sites if isinstance(value, str) or np.ndim(value) == 0 else list(value)
    if len(values) != num_sites:
        raise ValueError(f"{path}: {name} needs one value or {num_sites}, got {len(values)}")
    return values
