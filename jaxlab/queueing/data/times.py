"""Dates and times as hospitals write them, read without guessing.

Year first (ISO 8601, `2023-05-31`, `2023-5-31 8:00`, `20230531T080000Z`) has one reading. Year last
(`31/05/2023 08:00`) is read where most dates of a file are such, and if some of them cannot be read
the other way round; if none decides, the file is refused until a format is given.
"""

import datetime
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

DAY_0 = datetime.date(1970, 1, 1)
"""The date that days are counted from."""
DAY = 86_400_000_000
"""Microseconds of a day, the unit of times."""
_ORDINAL_0 = DAY_0.toordinal()
_MINUTE, _SECOND = 60_000_000, 1_000_000
_CLOCK = r"(?:(?:[Tt]|,?\s+)(\S.*))?"
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})" + _CLOCK, re.ASCII)
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})" + _CLOCK, re.ASCII)
_DIGITS = re.compile(r"(\d{4})(\d{2})(\d{2})(?:[Tt ]?(\d{4,6}.*))?", re.ASCII)
_TIME = re.compile(
    r"(\d{1,2}):?(\d{2})(?::?(\d{2})(?:[.,](\d{1,9}))?)?"
    r"\s*([ap])?(?(5)\.?m\.?)\s*(z|utc|gmt|[+-]\d{2}(?::?\d{2})?)?",
    re.ASCII | re.IGNORECASE,
)
_WORDS = {"yyyy": "%Y", "yy": "%y", ":mm": ":%M", ":ss": ":%S", "hh": "%H", "mm": "%m", "dd": "%d"}
_Moment = tuple[int, float, float]  # day, time, zone


class Moments(NamedTuple):
    """A column of dates, with times where they are given.

    Attributes:
        day: `[N]` float64, days since `DAY_0`; NaN where the text is blank or no date.
        time: `[N]` float64, microseconds since midnight as the clock on the wall shows them; NaN
            where there is none.
        zone: `[N]` float64, microseconds that the clock is ahead of UTC; NaN where not said.
        blank: `[N]` bool, True where there is no text.
    """

    day: np.ndarray
    time: np.ndarray
    zone: np.ndarray
    blank: np.ndarray


def read_moments(
    columns: Sequence[Sequence[str]], date_format: str | None
) -> tuple[list[Moments], tuple[str, ...]]:
    """Reads columns of one file, which share the order of day and month.

    Args:
        columns: texts of each column.
        date_format: as `strptime` has it (`%d/%m/%Y`) or in words (`DD/MM/YYYY`); a time after the
            date is read in any case. None reads what has one reading only.

    Returns:
        The columns, and notices of how they were read.

    Raises:
        ValueError: if the format does not name a date, or a date of the file has two readings.
    """
    texts = dict.fromkeys(text for column in columns for text in column)
    stripped = {text: " ".join(text.split()) for text in texts}
    if date_format is not None:
        parse, notices = _formatted(date_format), ()
    else:
        parse, notices = _ordered(stripped.values())
    missing = (np.nan, np.nan, np.nan)
    known = {text: parse(short) or missing for text, short in stripped.items()}
    found = []
    for column in columns:
        day, time, zone = np.array([known[text] for text in column], np.float64).reshape(-1, 3).T
        blank = np.array([not stripped[text] for text in column], bool)
        found.append(Moments(day, time, zone, blank))
    return found, notices


def iso_day(text: str) -> int | None:
    """Returns days since `DAY_0` of a date with the year first, None if it is none."""
    moment = _parse(" ".join(text.split()), None)
    return None if moment is None else moment[0]


def date_of(day: float) -> datetime.date:
    """Returns the date of a number of days since `DAY_0`."""
    return DAY_0 + datetime.timedelta(days=int(day))


def iso_text(days: np.ndarray, time: np.ndarray) -> list[str]:
    """Returns `YYYY-MM-DD`, or `YYYY-MM-DDTHH:MM:SS[.ffffff]` where there is a time.

    Args:
        days: `[N]` datetime64 dates.
        time: `[N]` microseconds since midnight, NaN where there is none.
    """
    dated = np.isnan(time)
    stamps = days.astype("datetime64[us]") + np.where(dated, 0, time).astype(np.int64)
    short = days.astype("datetime64[D]").astype(str)
    long = [text.removesuffix(".000000") for text in stamps.astype(str).tolist()]
    return np.where(dated, short, long).tolist()


def _ordered(texts: Iterable[str]) -> tuple[Callable[[str], _Moment | None], tuple[str, ...]]:
    """Returns how to read dates whose order the file itself decides."""
    pairs, num_first, num_last = {}, 0, 0
    for text in texts:
        num_first += _YEAR_FIRST.fullmatch(text) is not None
        if (found := _YEAR_LAST.fullmatch(text)) is not None:
            num_last += 1
            pairs.setdefault((int(found[1]), int(found[3])), text)
    if num_first >= num_last:  # a few dates of another kind are slips
        return (lambda text: _parse(text, None)), ()
    day_first = [text for (a, b), text in pairs.items() if a > 12 >= b]
    month_first = [text for (a, b), text in pairs.items() if a <= 12 < b]
    choose = "give the format: date_format= (--date-format %d/%m/%Y or %m/%d/%Y)"
    if day_first and month_first:
        raise ValueError(
            f"the dates {day_first[0]!r} and {month_first[0]!r} have day and month in different "
            f"orders; {choose}"
        )
    unclear = [text for (a, b), text in pairs.items() if a != b and a <= 12 and b <= 12]
    if unclear and not day_first and not month_first:
        raise ValueError(f"the date {unclear[0]!r} may have the day or the month first; {choose}")
    notices = ()
    if day_first or month_first:
        order, text = ("day", day_first[0]) if day_first else ("month", month_first[0])
        notices = (f"dates are read {order} first, as {text!r} has no other reading",)
    return (lambda text: _parse(text, not month_first)), notices


def _parse(text: str, day_first: bool | None) -> _Moment | None:
    """Reads one stripped text; year last only if the order is known."""
    if text[4:5] == "-":
        try:  # most files are ISO, and large ones have as many texts as times
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return _moment(moment, timed=len(text) > 10)
    if (found := _YEAR_FIRST.fullmatch(text)) is not None:
        year, _, month, day, clock = found.groups()
    elif (found := _DIGITS.fullmatch(text)) is not None:
        year, month, day, clock = found.groups()
    elif day_first is not None and (found := _YEAR_LAST.fullmatch(text)) is not None:
        day, _, month, year, clock = found.groups()
        if not day_first:
            day, month = month, day
    else:
        return None
    try:
        number = (datetime.date(int(year), int(month), int(day)) - DAY_0).days
    except ValueError:
        return None
    return _with_clock(number, clock)


def _with_clock(day: int, clock: str | None) -> _Moment | None:
    """Adds the time of day, if there is one; 24:00 is 0:00 of the next day."""
    if clock is None:
        return day, np.nan, np.nan
    found = _TIME.fullmatch(clock)
    if found is None:
        return None
    hour, minute, second = int(found[1]), int(found[2]), int(found[3] or 0)
    if found[5]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (found[5] in "pP")
    micro = int((found[4] or "0")[:6].ljust(6, "0"))
    if minute > 59 or second > 59 or hour > 24 or (hour == 24 and minute + second + micro > 0):
        return None
    zone = np.nan
    if found[6]:
        digits = re.sub(r"\D", "", found[6]).ljust(4, "0")
        zone = float((60 * int(digits[:2]) + int(digits[2:])) * _MINUTE)
        zone = -zone if found[6][0] == "-" else zone
    time = (60 * hour + minute) * _MINUTE + second * _SECOND + micro
    return day + time // DAY, float(time % DAY), zone


def _formatted(date_format: str) -> Callable[[str], _Moment | None]:
    """Returns how to read dates of a given format."""
    form = date_format
    if "%" not in form:
        for word, directive in _WORDS.items():
            form = re.sub(word, directive, form, flags=re.IGNORECASE)
    sample = datetime.datetime(2023, 5, 31, tzinfo=datetime.UTC)
    readable = all(re.search(directive, form) for directive in ("%d", "%[mbB]", "%[yY]"))
    if readable:
        try:
            back = datetime.datetime.strptime(sample.strftime(form), form)
            readable = back.date() == sample.date()
        except ValueError:
            readable = False
    if not readable:
        raise ValueError(
            "date_format must name day, month and year, such as %d/%m/%Y or DD/MM/YYYY, got "
            f"{date_format!r}"
        )
    timed = re.search(r"%[HIcXT]", form) is not None

    def parse(text: str) -> _Moment | None:
        split = re.fullmatch(r"(.*?)(?:[Tt]|,?\s+)(\d{1,2}:\d{2}.*)", text)
        date, clock = (text, None) if timed or split is None else (split[1], split[2])
        try:
            moment = datetime.datetime.strptime(date, form)
        except ValueError:
            return None
        return _moment(moment, timed=True) if timed else _with_clock(_moment(moment)[0], clock)

    return parse


def _moment(moment: datetime.datetime, *, timed: bool = False) -> _Moment:
    """Returns what a `datetime` says; its time only if it was given."""
    day = moment.toordinal() - _ORDINAL_0
    if not timed:
        return day, np.nan, np.nan
    minute = 60 * moment.hour + moment.minute
    time = float(minute * _MINUTE + moment.second * _SECOND + moment.microsecond)
    ahead = moment.utcoffset()
    return day, time, np.nan if ahead is None else ahead / datetime.timedelta(microseconds=1)
