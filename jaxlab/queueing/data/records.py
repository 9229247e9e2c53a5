"""What is known of patients and days: the records that files are read into and plans start from.

Host-side numpy: dates become day indices before anything is jitted. Data model of
arXiv:2510.02852: one row per stay (site, admission date, length of stay).
"""

import datetime
from collections import Counter
from typing import NamedTuple

import jax
import numpy as np

from jaxlab.queueing.census import occupancy


class Stays(NamedTuple):
    """Stays of `N` patients; host-side numpy, in the order of the file.

    Attributes:
        site: `[N]` int32, index into `site_names`.
        day: `[N]` int32, admission day, days since `origin`. A patient admitted before the window
            of the site, on a negative day perhaps, was in bed when it opened: counted in the census
            and not among the admissions.
        los: `[N]` float64, length of stay in days (time to the end of the data if censored); > 0,
            or 0 for a same-day stay `by_date`.
        event: `[N]` bool, True if discharged or died, False if censored (still in bed at the end of
            the data).
        discharge_day: `[N]` int32, days since `origin`; -1 where no discharge date is given.
        offset: `[N]` float64, time of admission within its day as a share in [0, 1), NaN where only
            the date is known.
        by_date: `[N]` bool, True where `los` is a whole number of days that came from dates or an
            integer column: the true stay is known only to lie in an interval.
        num_sites: number of sites.
        num_days: days from `origin` to the last day of the sites' windows, both included; stays may
            end later.
        site_names: name of each site.
        origin: calendar date of day 0, the first admission unless a window was asked for.
        windows: `[I, 2]` int32, first and last day (both included) of each site's own window, days
            since `origin`.
    """

    site: np.ndarray
    day: np.ndarray
    los: np.ndarray
    event: np.ndarray
    discharge_day: np.ndarray
    offset: np.ndarray
    by_date: np.ndarray
    num_sites: int
    num_days: int
    site_names: tuple[str, ...]
    origin: datetime.date
    windows: np.ndarray


class Rejects(NamedTuple):
    """Rows that were set aside; `rows.size` is their number.

    Attributes:
        rows: `[R]` int64, line number in the file (the header is line 1).
        reasons: one key of `REASONS` per row.
        lines: the original cells of each row.
        header: the original header.
        notices: what was decided in reading the file, a line each.
        num_alike: accepted rows that equal an earlier one in every cell.
        separator: character between the cells of the file.
    """

    rows: np.ndarray
    reasons: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    header: tuple[str, ...]
    notices: tuple[str, ...] = ()
    num_alike: int = 0
    separator: str = ","

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
        by_date: `[I, N]` bool, as in `Stays`; padding is False. None where no stay is such.
        offset: `[I, N]` float64, as in `Stays`; padding is 0. None where nobody asks.
    """

    day: np.ndarray | jax.Array
    los: np.ndarray | jax.Array
    event: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array
    by_date: np.ndarray | jax.Array | None = None
    offset: np.ndarray | jax.Array | None = None


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


def take_site(stays: Stays, site: int) -> Stays:
    """Returns one site's stays over its own window, whose first day becomes day 0."""
    mask = stays.site == site
    if not mask.any():
        raise ValueError(f"no stays at site {site}; the stays have {stays.num_sites} sites")
    day, discharge = stays.day[mask], stays.discharge_day[mask]
    first, last = stays.windows[site]
    return Stays(
        site=np.zeros(day.size, np.int32),
        day=day - first,
        los=stays.los[mask],
        event=stays.event[mask],
        discharge_day=np.where(discharge >= first, discharge - first, np.int32(-1)),
        offset=stays.offset[mask],
        by_date=stays.by_date[mask],
        num_sites=1,
        num_days=int(last - first) + 1,
        site_names=(stays.site_names[site],),
        origin=stays.origin + datetime.timedelta(days=int(first)),
        windows=np.array([[0, last - first]], np.int32),
    )


def own_windows(day: np.ndarray, site: np.ndarray, num_sites: int) -> np.ndarray:
    """Returns `[I, 2]` int32 windows from each site's first to its last admission, both included.

    A site without a patient gets an empty window, `(0, -1)`.

    Source: arXiv:2510.02852, each unit is analyzed from its first to its last admission date.
    """
    first, last = np.full(num_sites, np.iinfo(np.int32).max), np.full(num_sites, -1)
    np.minimum.at(first, site, day)
    np.maximum.at(last, site, day)
    return np.stack([np.where(last < first, 0, first), last], axis=1).astype(np.int32)


def one_window(num_sites: int, num_days: int) -> np.ndarray:
    """Returns `[I, 2]` int32 windows that all span days 0..num_days-1."""
    return np.tile(np.array([0, num_days - 1], np.int32), (num_sites, 1))


def pooled_by_site(stays: Stays, *, multiple: int = 1024, times: bool = False) -> Patients:
    """Puts each site's stays in one row, padded to a common multiple of `multiple` patients.

    The rounding keeps the shape stable from one data set to the next, so that jitted fits are
    compiled once. Patients admitted outside the window of their site are left out: those who were
    in bed before it are in `initial_ages`.

    Args:
        stays: the patients.
        multiple: patients are padded to a multiple of this many.
        times: whether to hand on the times of admission.

    Raises:
        ValueError: if `multiple` is below 1, or a time of admission is asked for and not known.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    if times and (unknown := int(np.isnan(stays.offset).sum())):
        raise ValueError(
            f"the time of admission is needed for every stay, {unknown} of {stays.offset.size} "
            "have a date alone; read a file with times, or take bin='1d'"
        )
    first, last = stays.windows[stays.site].T
    admitted = np.flatnonzero((stays.day >= first) & (stays.day <= last))
    sizes = np.bincount(stays.site[admitted], minlength=stays.num_sites)
    width = max(-(-int(sizes.max(initial=0)) // multiple), 1) * multiple
    order = admitted[np.argsort(stays.site[admitted], kind="stable")]
    row = stays.site[order]
    column = np.arange(row.size) - (np.cumsum(sizes) - sizes)[row]
    day = np.zeros((stays.num_sites, width), np.int32)
    los = np.ones((stays.num_sites, width))
    event = np.ones((stays.num_sites, width), bool)
    weight = np.zeros((stays.num_sites, width))
    by_date, offset = np.zeros(weight.shape, bool), np.zeros(weight.shape)
    day[row, column] = stays.day[order]
    los[row, column], event[row, column] = stays.los[order], stays.event[order]
    weight[row, column], by_date[row, column] = 1.0, stays.by_date[order]
    offset[row, column] = stays.offset[order]
    return Patients(
        day, los, event, weight, by_date if by_date.any() else None, offset if times else None
    )


def initial_ages(stays: Stays, *, hourly: bool = False, multiple: int = 16) -> np.ndarray | None:
    """Returns how long each patient had been in bed when the window of the site opened.

    Counted are those admitted before the window's first day and still in bed at the end of that
    day, or by the hour at its beginning.

    Args:
        stays: the patients.
        hourly: count whole hours to the window's first hour, from known times of admission.
        multiple: places are padded to a multiple of this many.

    Returns:
        `[I, P]` int32, whole days from admission to the window's first day, at least 1; -1 is an
        empty place. None if nobody was in bed.
    """
    first = stays.windows[stays.site, 0]
    exact = np.where(np.isnan(stays.offset), np.ceil(stays.los), np.floor(stays.offset + stays.los))
    leave = stays.day + np.where(stays.by_date, stays.los, exact)
    leave = np.where(stays.discharge_day >= 0, stays.discharge_day, leave)
    leave = stays.day + stays.offset + stays.los if hourly else leave
    found = np.flatnonzero((stays.day < first) & (leave > first))
    if not found.size:
        return None
    site = stays.site[found]
    sizes = np.bincount(site, minlength=stays.num_sites)
    ages = np.full((stays.num_sites, -(-int(sizes.max()) // multiple) * multiple), -1, np.int32)
    order = np.argsort(site, kind="stable")
    row = site[order]
    column = np.arange(row.size) - (np.cumsum(sizes) - sizes)[row]
    age = 24 * first - np.floor(24 * (stays.day + stays.offset)) if hourly else first - stays.day
    ages[row, column] = age[found][order]
    return ages


def dates(origin: datetime.date, num_days: int) -> np.ndarray:
    """Returns `[T]` datetime64 calendar dates, day 0 first."""
    return np.datetime64(origin, "D") + np.arange(num_days)
