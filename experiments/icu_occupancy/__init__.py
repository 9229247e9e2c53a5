"""Bed planning for intensive care: your own stays, real data, and the paper's tables."""

import dataclasses
import datetime
import os
import pathlib
from typing import Literal

SUMMARY = "ICU bed planning: from a CSV of stays to beds by overflow risk; the paper's tables"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a planning study and of the reproduction of arXiv:2510.02852."""

    data: str | None = None
    """CSV with site, admission_date and los_days or discharge_date (empty while in bed)[, event,
    patient_id]; dates may have times. Real births and stays when not given."""
    beds: tuple[int, ...] = ()
    """Beds each site has today, sites in natural order (2 before 10); shown beside ours."""
    strict: bool = False
    """Refuse a CSV with unusable rows instead of setting them aside in rejects.csv."""
    duplicates: Literal["by_id", "keep", "reject"] = "by_id"
    """Rows equal in every cell: one stay if they have an id (by_id), all kept, or set aside."""
    id_column: str | None = None
    """Column of the CSV that says whose stay it is; patient_id if there is one."""
    date_format: str | None = None
    """How the CSV writes dates, such as DD/MM/YYYY or %d/%m/%Y, where they can be misread."""
    separator: str | None = None
    """Character between the cells of the CSV, or tab; found out when not given."""
    encoding: str | None = None
    """Text encoding of the CSV, such as utf-8 or cp1252; found out when not given."""
    start: str | None = None
    """First day to count (2023-01-31); patients in bed by then are kept. Else each site's first."""
    end: str | None = None
    """Last day to count, and the end of the data. Else the last admission of each site."""
    bin: Literal["1d", "1h"] = "1d"
    """1h adds the occupancy by the hour, from the times of admission and discharge."""
    max_stay: float = 1826.0
    """Longest stay that is believed, days."""
    max_gap: float = 1826.0
    """Longest time without admissions that is believed, days; rows beyond it are set aside."""
    variant: Literal["fisk_mean", "fisk_paper", "burr_tool"] = "fisk_mean"
    """Reading of the log-logistic law in your study: mean-preserving, or the published one."""
    convention: Literal["ceil", "midnight", "bed_days", "touch"] = "ceil"
    """When the census is taken; model and observed census share it. A day's average, bed_days, is
    simulated at midnight."""
    warmup: Literal["zero", "drop", "backfill"] = "drop"
    """The unit starts empty: keep those days (zero), drop them, or fill in history (backfill)."""
    tail: Literal["cut", "keep"] = "cut"
    """Stays beyond the longest one that counts (S_max): lost from the mean, or made up for."""
    gamma: float = 1.0
    """Share of the beds that may be filled before a day counts as overflow."""
    seed: int = 2025
    """Seed of every random draw."""
    num_days: int = 1461
    """Days of real births used when there is no CSV."""
    replications: int = 2048
    """Simulated histories of the Monte Carlo."""
    bootstrap: int = 20
    """Repeats of the whole pipeline behind the intervals of the bed counts."""
    num_seeds: int = 0
    """Draws of the five published units for Tables 3 and 4; 0 leaves the tables out."""
    null_repeats: int = 0
    """Draws of constant units for the bias of the bed rules; 0 leaves it out."""

    def __post_init__(self):
        least = {"num_days": 28, "replications": 1, "bootstrap": 2, "num_seeds": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.null_repeats < 0 or self.null_repeats == 1:
            raise ValueError(f"null_repeats must be 0 or at least 2, got {self.null_repeats}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if any(count < 1 for count in self.beds):
            raise ValueError(f"beds must be at least 1 at every site, got {self.beds}")
        for name in ("max_stay", "max_gap"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if _day("start", self.start) > _day("end", self.end):
            raise ValueError(f"start {self.start} lies after end {self.end}")
        if self.data is None:
            fields = {field.name: field.default for field in dataclasses.fields(self)}
            given = [name for name in OF_DATA if getattr(self, name) != fields[name]]
            if given:
                raise ValueError(f"{', '.join(given)} say how to read a CSV: name it with --data")
        else:  # a resume may come from another working directory
            object.__setattr__(self, "data", str(_readable(pathlib.Path(self.data).resolve())))


OF_DATA = (
    "strict",
    "duplicates",
    "id_column",
    "date_format",
    "separator",
    "encoding",
    "start",
    "end",
    "bin",
    "max_stay",
    "max_gap",
)
"""Settings that say how a CSV is read."""


def _day(name: str, text: str | None) -> datetime.date:
    """Returns the date of `start` or `end`."""
    if text is None:
        return datetime.date.min if name == "start" else datetime.date.max
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name} must be a date such as 2023-01-31, got {text!r}") from None


def _readable(path: pathlib.Path) -> pathlib.Path:
    """Refuses a file that is not there before a folder is made for its run."""
    if not path.is_file():
        raise ValueError(f"data: there is {'a folder' if path.is_dir() else 'no file'} {path}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"data: {path} cannot be read: permission denied")
    return path


PRESETS = {
    "smoke": Config(),
    "cpu": Config(num_days=2922, replications=10240, bootstrap=100, num_seeds=8, null_repeats=50),
    "gpu": Config(
        num_days=2922, replications=102400, bootstrap=200, num_seeds=64, null_repeats=200
    ),
}
