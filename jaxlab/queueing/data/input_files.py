"""Files of daily queue inputs: CSV in and out, exact in both directions.

One row per site and day: arrival rate, mean and variance of the stay, and the law of the stay.
"""

import datetime
import os
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxlab.core import tables
from jaxlab.queueing.census import occupancy
from jaxlab.queueing.data import records, times
from jaxlab.queueing.data.records import Processed
from jaxlab.queueing.stays import conditional


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
    table = tables.read_table(path, ("site", "day", "lam", "mu", "sig2"))
    columns, width = table.columns, len(table.header)
    law_names = [name for name in ("family", "kappa", "smax") if name in columns]
    cells: dict[str, dict[int, list[float]]] = {}
    laws: dict[str, list[str]] = {}
    dated = None
    for number, row in zip(table.numbers, table.rows, strict=True):
        where = f"{path}, line {number}"
        if len(row) != width:
            raise ValueError(f"{where}: {len(row)} cells, the header has {width}")
        site, text = tables.clean_name(row[columns["site"]]), row[columns["day"]].strip()
        counted = re.fullmatch(r"[+-]?[0-9]{1,7}", text) is not None
        day = int(text) if counted else times.iso_day(text)
        if not site or day is None or dated is counted:
            raise ValueError(
                f"{where}: site {tables.brief(site)}, day {tables.brief(text)}: need a name and a "
                "day number"
                " or an ISO date, the same kind on every row"
            )
        dated = not counted
        values = [tables.number(row[columns[name]], name, where) for name in ("lam", "mu", "sig2")]
        if values[0] < 0 or values[1] <= 0 or values[2] < 0:
            raise ValueError(f"{where}: need lam >= 0, mu > 0, sig2 >= 0, got {values}")
        if day in cells.setdefault(site, {}):
            raise ValueError(f"{where}: day {text} of site {tables.brief(site)} is given twice")
        cells[site][day] = values
        law = [row[columns[name]].strip() for name in law_names]
        if law != laws.setdefault(site, law):
            raise ValueError(
                f"{where}: {law_names} of site {tables.brief(site)} change, got {tables.brief(law)}"
            )
    names = tuple(sorted(cells, key=tables.natural))
    first = min(cells[names[0]])
    expected = range(first, first + len(cells[names[0]]))
    for name in names:
        if sorted(cells[name]) != list(expected):
            raise ValueError(
                f"{path}: site {tables.brief(name)} must have the {len(expected)} contiguous days"
                f" of site {tables.brief(names[0])}; it has {len(cells[name])}"
            )
    series = np.array([[cells[name][day] for day in expected] for name in names])
    given = {"family": family, "kappa": kappa, "smax": smax}
    for i, name in enumerate(law_names):
        given[name] = [laws[site][i] for site in names]
    file = os.fspath(path)
    family_, kappa_, smax_ = (_per_site(given[k], k, len(names), path) for k in given)
    inputs = occupancy.QueueInputs(
        *(jnp.asarray(series[:, :, i]) for i in range(3)),
        kappa=jnp.asarray([_shape(k, file) for k in kappa_]),
        family=jnp.asarray([_family_code(f, path) for f in family_], jnp.int32),
        smax=jnp.asarray([_lag(u, file) for u in smax_], jnp.int32),
    )
    origin = times.DAY_0 + datetime.timedelta(days=first) if dated else None
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
    day = np.arange(num_days) if origin is None else records.dates(origin, num_days)
    family = [conditional.FAMILIES[int(code)] for code in np.asarray(inputs.family)]
    columns = {"site": np.repeat(names, num_days), "day": np.tile(day, num_sites)}
    columns |= {name: np.ravel(getattr(inputs, name)) for name in ("lam", "mu", "sig2")}
    laws = {"family": family, "kappa": inputs.kappa, "smax": inputs.smax}
    columns |= {name: np.repeat(np.asarray(law), num_days) for name, law in laws.items()}
    tables.write_table(path, columns)


def _family_code(name, path):
    if name not in conditional.FAMILIES:
        raise ValueError(
            f"{path}: family {tables.brief(name)} is not one of {conditional.FAMILIES}"
        )
    return conditional.FAMILIES.index(name)


def _shape(value, path):
    kappa = tables.number(value, "kappa", path)
    if kappa <= 0:
        raise ValueError(f"{path}: kappa must be positive, got {kappa:g}")
    return kappa


def _lag(value, path):
    smax = tables.number(value, "smax", path)
    if smax != int(smax) or not 0 <= smax < 2**20:
        raise ValueError(f"{path}: smax must be a whole number of days below 2^20, got {smax:g}")
    return int(smax)


def _per_site(value, name, num_sites, path):
    if value is None:
        raise ValueError(f"{path} has no column {name!r}: add it or pass {name}=")
    values = [value] * num_sites if isinstance(value, str) or np.ndim(value) == 0 else list(value)
    if len(values) != num_sites:
        raise ValueError(f"{path}: {name} needs one value or {num_sites}, got {len(values)}")
    return values
