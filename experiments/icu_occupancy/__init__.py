"""Bed planning for intensive care: your own stays, real data, and the paper's tables."""

import dataclasses
import pathlib
from typing import Literal

from experiments.result import Result

SUMMARY = "ICU bed planning: from a CSV of stays to beds by overflow risk; the paper's tables"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a planning study and of the reproduction of arXiv:2510.02852."""

    data: str | None = None
    """CSV with site, admission_date, los_days[, event, discharge_date]; real births and stays when
    not given."""
    beds: tuple[int, ...] = ()
    """Beds each site has today, in the order of the sites; shown beside the recommendation."""
    strict: bool = False
    """Refuse a CSV with unusable rows instead of setting them aside in rejects.csv."""
    variant: Literal["fisk_mean", "fisk_paper", "burr_tool"] = "fisk_mean"
    """Reading of the log-logistic law in your study: mean-preserving, or the published one."""
    convention: Literal["ceil", "midnight", "touch"] = "ceil"
    """When the census is taken; model and observed census share it."""
    warmup: Literal["zero", "drop", "backfill"] = "drop"
    """The unit starts empty; drop the first days from averages, keep them, or fill in history."""
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


PRESETS = {
    "smoke": Config(),
    "cpu": Config(num_days=2922, replications=10240, bootstrap=100, num_seeds=8, null_repeats=50),
    "gpu": Config(
        num_days=2922, replications=102400, bootstrap=200, num_seeds=64, null_repeats=200
    ),
}


def run(config: Config, out: pathlib.Path, *, resume: bool = False) -> Result:
    """Runs the studies that the configuration asks for."""
    from experiments.icu_occupancy import study  # here, so that --help needs no JAX

    return study.run(config, out)
