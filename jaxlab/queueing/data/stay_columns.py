"""Stays as columns: what the cells of a file say, and what becomes of rows that cannot be right.

Each step takes `[R]` columns of all rows of a file and the reason, if any, why a row is set aside.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import tables
from jaxlab.queueing.data import times
from jaxlab.queueing.data.times import DAY, Moments

ENDED = frozenset("1 1.0 true t yes y discharged discharge died dead death alive".split())
"""Event codes (case-insensitive) of a stay whose end was observed."""
CENSORED = frozenset("0 0.0 false f no n censored ongoing in_bed".split())
"""Event codes (case-insensitive) of a patient who was still in bed when the data ended."""
EMPTY = frozenset(r"null na n/a nat none - -- . \n".split())
"""Words (case-insensitive) of databases and statistics programs for an empty cell."""
NAME_LENGTH = 200
"""Longest name of a site, characters."""
NOT_YET = ("2099-01-01", "2099-12-30", "2099-12-31", "2199-12-30", "2199-12-31")
"""Discharge dates that stand for "not yet", as do all from the year 2900 on."""
NEVER = ("0001-01-01", "1753-01-01", "1899-12-30", "1899-12-31", "1900-01-01", "1970-01-01")
"""First days of other programs' calendars: before the admission they stand for "no discharge"."""


class Columns(NamedTuple):
    """What the cells of `R` rows say.

    Attributes:
        site: `[R]` int64, number of the site among all that the file names.
        names: name of each site.
        admission: date and time.
        discharge: date and time; blank where a stand-in for "not yet" was given.
        los: `[R]` float64 days; NaN where there is none or no number.
        has_los: `[R]` bool, the cell is not empty.
        event: `[R]` int8, 1 ended, 0 still in bed, -1 not said, -2 unknown code.
        tells_open: whether the file has a column whose empty cell means "still in bed".
    """

    site: np.ndarray
    names: tuple[str, ...]
    admission: Moments
    discharge: Moments
    los: np.ndarray
    has_los: np.ndarray
    event: np.ndarray
    tells_open: bool


class Lengths(NamedTuple):
    """How long `R` patients stayed.

    Attributes:
        los: `[R]` float64 days; NaN if `is_open`.
        by_date: `[R]` bool, known in whole days only.
        event: `[R]` bool, the end of the stay was seen.
        is_open: `[R]` bool, in bed up to the end of the data, whenever that is.
    """

    los: np.ndarray
    by_date: np.ndarray
    event: np.ndarray
    is_open: np.ndarray


def add_reason(reason: np.ndarray, **masks: np.ndarray) -> np.ndarray:
    """Returns the reasons `[R]`, new ones where the mask is true and there was none."""
    for name, mask in masks.items():
        reason = np.where((reason == "") & mask, name, reason)
    return reason


def without_words(text: str) -> str:
    """Returns a cell's text without spaces around it, "" for a word that means an empty cell."""
    text = text.strip()
    return "" if text.lower() in EMPTY else text


def read_columns(
    table: tables.Table, date_format: str | None
) -> tuple[Columns, np.ndarray, list[str]]:
    """Reads the cells.

    Returns:
        The columns, the reasons `[R]` so far ("" where there is none), and notices.

    Raises:
        ValueError: if dates have two readings, see `times.read_moments`.
    """
    width = len(table.header)
    rows = [_fitted(row, width) for row in table.rows]
    blank = [""] * width
    cells = list(zip(*(row or blank for row in rows), strict=True))
    empty = ("",) * len(rows)

    def column(name: str) -> Sequence[str]:
        return _each(without_words, cells[table.columns[name]]) if name in table.columns else empty

    sites = cells[table.columns["site"]]
    spelled = _each(tables.clean_name, sites)
    code, names = _sites(spelled)
    notices = _about_sites(sites)
    (admission, discharge), said = times.read_moments(
        [column("admission_date"), column("discharge_date")], date_format
    )
    discharge, more = _without_stand_ins(admission, discharge)
    notices += [*said, *more]
    admission, discharge, more = _without_idle_times(admission, discharge, code)
    notices += more
    comma = table.separator != ","
    los = _each(functools.partial(tables.plain_number, comma=comma), column("los_days"))
    found = Columns(
        site=code,
        names=names,
        admission=admission,
        discharge=discharge,
        los=np.array(los, np.float64),
        has_los=np.array([text != "" for text in column("los_days")], bool),
        event=np.array(_each(_event, column("event")), np.int8),
        tells_open=bool({"discharge_date", "event"} & table.columns.keys()),
    )
    reason = add_reason(
        np.full(len(rows), "", object),
        wrong_columns=np.array([row is None for row in rows], bool),
        bad_character=np.array(["\0" in "".join(row) for row in table.rows], bool),
        missing_site=np.array([not name for name in spelled], bool),
        long_site=np.array([len(name) > NAME_LENGTH for name in spelled], bool),
        missing_date=admission.blank,
        bad_date=np.isnan(admission.day),
        bad_discharge_date=~discharge.blank & np.isnan(discharge.day),
    )
    return found, reason, notices


def measure(
    columns: Columns, reason: np.ndarray, zero_stay: float | None
) -> tuple[Lengths, np.ndarray, list[str]]:
    """Decides how long each patient stayed and whether the end was seen.

    Args:
        columns: what the cells say.
        reason: `[R]` reasons so far.
        zero_stay: length of stays that have none, days, or None.

    Returns:
        The lengths, the reasons, and notices.
    """
    admission, discharge, cell, event = (
        columns.admission,
        columns.discharge,
        columns.los,
        columns.event,
    )
    has_end = ~np.isnan(discharge.day)
    span = discharge.day - admission.day
    ahead = np.nan_to_num(discharge.zone - admission.zone)  # clocks that are put forward
    exact = span + (discharge.time - admission.time - ahead) / DAY
    timed = ~np.isnan(exact)
    nothing = ~has_end & ~columns.has_los
    is_open = nothing & ((event == 0) | ((event == -1) & columns.tells_open))
    reason = add_reason(
        reason,
        discharge_before_admission=(span < 0) | (exact < 0),
        missing_los=nothing & ~is_open,
        bad_los=columns.has_los & ~np.isfinite(cell),
        negative_los=cell < 0,
        los_against_dates=np.abs(cell - span) > 1,
        unknown_event=event == -2,
    )
    good = reason == ""
    counted = good & columns.has_los & ~timed
    parts = counted & (event != 0) & (cell != np.floor(cell))
    whole = ~_any_at_site(columns.site, parts)
    whole = np.where(event == 0, cell == np.floor(cell), whole)
    by_date = ~timed & np.where(columns.has_los, whole, has_end)
    los = np.where(timed, exact, np.where(columns.has_los & ~(by_date & has_end), cell, span))
    notices = []
    if differ := int(np.sum(good & by_date & has_end & (cell != span) & columns.has_los)):
        rows = tables.count(differ, "row")
        notices.append(
            f"{rows} whose whole-day los_days differ from the dates: the dates are taken"
        )
    if marked := int(np.sum(good & has_end & (event == 0))):
        notices.append(
            f"{tables.count(marked, 'row')} with a discharge date and an event for still in bed: "
            "the end counts as not seen; if 0 means discharged alive, leave the column out"
        )
    none = los == 0
    if zero_stay is not None:
        los, by_date = np.where(none, zero_stay, los), by_date & ~none
    else:
        reason = add_reason(reason, zero_los=none & ~by_date)
    return Lengths(los, by_date, event != 0, is_open), reason, notices


def far_from_most(columns: Columns, good: np.ndarray, max_gap: float) -> np.ndarray:
    """Returns `[R]` True beyond a gap of more than `max_gap` days without admissions.

    First in the file, then at each site, the largest group of rows between such gaps is kept.

    Args:
        columns: what the cells say.
        good: `[R]` rows to look at.
        max_gap: days.
    """
    far = np.zeros(good.size, bool)
    for site in (np.zeros_like(columns.site), columns.site):
        kept = np.flatnonzero(good & ~far)
        far[kept] = _beyond_gap(columns.admission.day[kept], site[kept], max_gap)
    return far


def close(columns: Columns, lengths: Lengths, last: float) -> Lengths:
    """Ends the open stays with the data, at the end of day `last` (days since `times.DAY_0`).

    A stay whose `los_days` reach that day counts as open too if it has no event and no discharge
    date and others have: such lengths are days so far.
    """
    day, has_end = columns.admission.day, ~np.isnan(columns.discharge.day)
    since = np.nan_to_num(columns.admission.time) / DAY
    others = bool(has_end.any() or (columns.event >= 0).any())
    so_far = columns.has_los & ~has_end & (columns.event == -1) & (day + lengths.los >= last)
    so_far &= others
    timed = ~np.isnan(columns.admission.time)
    los = np.where(lengths.is_open, last + 1 - day - since, lengths.los)
    by_date = np.where(so_far, los == np.floor(los), lengths.by_date)
    return Lengths(
        los=los,
        by_date=np.where(lengths.is_open, ~timed, by_date),
        event=lengths.event & ~lengths.is_open & ~so_far,
        is_open=lengths.is_open,
    )


def quiet_times(columns: Columns, good: np.ndarray) -> list[str]:
    """Returns notices of times without an admission that cannot be chance.

    At a Poisson rate a gap of `g` days has the probability exp(-rate g), here below exp(-30).
    """
    kept = np.flatnonzero(good)
    order = kept[np.lexsort((columns.admission.day[kept], columns.site[kept]))]
    day, site = columns.admission.day[order], columns.site[order]
    gap = np.where(np.diff(site) == 0, np.diff(day), 0)
    num = np.bincount(site, minlength=len(columns.names))[site[:-1]]
    first = np.full(len(columns.names), np.inf)
    last = np.full(len(columns.names), -np.inf)
    np.minimum.at(first, site, day)
    np.maximum.at(last, site, day)
    rest = (last - first)[site[:-1]] - gap + 1
    long = np.flatnonzero((gap >= 14) & (num * gap > 30 * rest))
    long = long[np.argsort(-gap[long], kind="stable")]
    return [
        f"no admission at {columns.names[site[k]]} from {times.date_of(float(day[k] + 1))} to "
        f"{times.date_of(float(day[k + 1] - 1))}: if it was closed, --start or --end leave that out"
        for k in long[:3]
    ]


def empty_ends(columns: Columns, good: np.ndarray, low: float, high: float) -> list[str]:
    """Returns notices of sites without a patient at an end of the window that was asked for.

    The days count as empty; told are those that cannot be chance, as in `quiet_times`.

    Args:
        columns: what the cells say.
        good: `[R]` rows to look at, with patients admitted before the window.
        low: first day of the window, infinite if none was asked for.
        high: last day of the window, likewise.
    """
    site, day = columns.site[good], columns.admission.day[good]
    num = np.bincount(site, minlength=len(columns.names))
    first, last = np.full(num.size, np.inf), np.full(num.size, -np.inf)
    np.minimum.at(first, site, day)
    np.maximum.at(last, site, day)
    notices = []
    for flag, gap in (("start", first - low), ("end", high - last)):
        gap = np.where(np.isfinite(gap), gap, 0)
        long = (gap >= 14) & (num * gap > 30 * (last - first + 1))
        for k in np.flatnonzero(long)[:3]:
            before = flag == "start"
            begin = low if before else float(last[k]) + 1
            end = float(first[k]) - 1 if before else high
            notices.append(
                f"no admission at {columns.names[k]} from {times.date_of(begin)} to "
                f"{times.date_of(end)}, days that count as empty: without --{flag} they do not"
            )
    return notices


def _each(function, texts):
    """Applies a function to every text, to equal ones once: files repeat few texts many times."""
    return list(map(functools.cache(function), texts))


def _fitted(row, width):
    """Returns the cells under the header, None if there are others."""
    if len(row) == width:
        return row
    return row[:width] if len(row) > width and not any(row[width:]) else None


def _event(text):
    code = text.lower()
    return 1 if code in ENDED else 0 if code in CENSORED else -2 if code else -1


def _sites(spelled):
    """Numbers the sites in natural order; spellings that differ in case only are one."""
    counts = Counter(spelled)
    by_key = {}
    for name in sorted(counts, key=tables.natural):
        by_key.setdefault(name.casefold(), []).append(name)
    chosen = {key: max(same, key=counts.__getitem__) for key, same in by_key.items()}
    names = tuple(sorted(chosen.values(), key=tables.natural))
    number = {name: i for i, name in enumerate(names)}
    code = {name: number[chosen[name.casefold()]] for name in counts}
    return np.array([code[name] for name in spelled], np.int64), names


def _about_sites(texts):
    """Returns a notice of sites that were written in more than one way."""
    ways = {}
    for text in sorted({text.strip() for text in texts}):
        ways.setdefault(tables.clean_name(text).casefold(), []).append(text)
    folded = [" = ".join(map(tables.brief, same)) for same in ways.values() if len(same) > 1]
    if not folded:
        return []
    more = "" if len(folded) <= 3 else f" and {len(folded) - 3} more"
    return [f"sites that differ in case or spaces are one: {'; '.join(folded[:3])}{more}"]


def _without_stand_ins(admission, discharge):
    """Blanks discharge dates that mean "not yet"."""
    day = discharge.day
    stand_in = np.isin(day, _days(*NOT_YET)) | (day >= _days("2900-01-01"))
    stand_in |= np.isin(day, _days(*NEVER)) & (day < admission.day)
    if not stand_in.any():
        return discharge, []
    first = times.date_of(day[stand_in][0])
    dates = tables.count(int(stand_in.sum()), "discharge date")
    notice = f"{dates} such as {first} that stand for none: read as empty"
    day, time, zone = (np.where(stand_in, np.nan, column) for column in discharge[:3])
    return Moments(day, time, zone, discharge.blank | stand_in), [notice]


def _without_idle_times(admission, discharge, site):
    """Takes off the times of sites whose clocks only ever show 0:00: they are dates."""
    found, notices = [], []
    for name, moments in (("admission", admission), ("discharge", discharge)):
        timed = ~np.isnan(moments.time)
        idle = timed & ~_any_at_site(site, timed & (moments.time != 0))
        if idle.any():
            rows = tables.count(int(idle.sum()), "row")
            notices.append(f"{rows} at sites whose {name} times are all 0:00: read as dates")
        found.append(moments._replace(time=np.where(idle, np.nan, moments.time)))
    if (admission.zone == 0).any():
        notices.append("times are in UTC: days begin at 0:00 UTC, not at local midnight")
    return *found, notices


def _days(*dates):
    return np.array(dates, "datetime64[D]").astype(np.int64)


def _any_at_site(site, mask):
    """Returns `[R]` whether the mask is true for any row of the same site."""
    return np.bincount(site, weights=mask, minlength=1)[site] > 0


def _beyond_gap(day, site, max_gap):
    """Returns whether each row lies outside of its site's largest block without a long gap."""
    if not day.size:
        return np.zeros(0, bool)
    order = np.lexsort((day, site))
    breaks = (np.diff(site[order]) != 0) | (np.diff(day[order]) > max_gap)
    block = np.concatenate([[0], np.cumsum(breaks)])
    size = np.bincount(block)
    owner = np.zeros(size.size, np.int64)
    owner[block] = site[order]
    best = np.lexsort((-np.arange(size.size), -size, owner))  # the largest, then the latest
    first = np.concatenate([[True], np.diff(owner[best]) != 0])
    far = np.ones(day.size, bool)
    far[order] = ~np.isin(block, best[first])
    return far
