"""Bed planning for intensive care: your own stays, real data, and the paper's tables."""

import dataclasses
import pathlib
from typing import Literal

SUMMARY = "ICU bed planning: from a CSV of stays to beds by overflow risk; the paper's tables"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a planning study and of the reproduction of arXiv:2510.02852."""

    data: str | None = None
    """CSV with site, admission_date, los_days[, event, discharge_date]; real births and stays when
    not given."""
    beds: tuple[int, ...] = ()
    """Beds each site has today, sites in natural order (2 before 10); shown beside ours."""
    strict: bool = False
    """Refuse a CSV with unusable rows instead of setting them aside in rejects.csv."""
    variant: Literal["fisk_mean", "fisk_paper", "burr_tool"] = "fisk_mean"
    """Reading of the log-logistic law in your study: mean-preserving, or the published one."""
    convention: Literal["ceil", "midnight", "touch"] = "ceil"
    """When the census is taken; model and observed census share it."""
    warmup: Literal["zero", "drop", "backfill"] = "drop"
    """The unit starts empty: keep those days (zero), drop them, or fill in history (backfill)."""
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
        if self.data is not None:  # a resume may come from another working directory
            object.__setattr__(self, "data", str(pathlib.Path(self.data).resolve()))


PRESETS = {
    "smoke": Config(),
    "cpu": Config(num_days=2922, replications=10240, bootstrap=100, num_seeds=8, null_repeats=50),
    "gpu": Config(
        num_days=2922, replications=102400, bootstrap=200, num_seeds=64, null_repeats=200
    ),
}
