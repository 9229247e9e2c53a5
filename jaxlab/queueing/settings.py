"""Settings that travel through the room: how a queue is read, and how its beds are counted.

Plain records of static values. Each is checked once, by the public function that it is given to.
Paper: Akbari-Moghaddam et al. 2025, arXiv:2510.02852, whose choices are the defaults.
"""

import typing
from typing import Literal, NamedTuple

Variant = Literal["fisk_mean", "fisk_paper", "burr_tool"]
"""Reading of the log-logistic law "fisk": with the given mean, as published, or as in the companion
planner; see `stays.conditional.survival`."""
Moments = Literal["one", "two"]
"""Whether gamma and Weibull keep their fitted shape, or take it from the variance of the day."""
Convention = Literal["ceil", "midnight", "bed_days", "touch"]
"""When a day's census counts a patient; see `census.occupancy.census_weight`."""
Warmup = Literal["zero", "drop", "backfill"]
"""What comes before day 0; see `QueueModel`."""
Backfill = Literal["year_mean", "calendar"]
"""What the days before day 0 are made of."""
Tail = Literal["cut", "keep"]
"""Whether the part of the mean stay that lies beyond S_max is lost, as in the paper, or the law's
scale is raised until what comes before has the mean of the stays."""
Rule = Literal["average", "max"]
"""Whether the average or the worst day's risk of overflow is held to alpha."""

VARIANTS: tuple[str, ...] = typing.get_args(Variant)


class QueueModel(NamedTuple):
    """How the inputs of a queue are read. The planner, the mean and the simulation share it.

    Example: `queue = QueueModel(variant="fisk_mean", warmup="drop")`, then
    `plan(patients, num_days, u_max=384, queue=queue)`, `occupancy_mean(*inputs, queue=queue)` and
    `simulate_free(key, inputs, num_replications=512, queue=queue)` speak of the same unit.

    Attributes:
        variant: which law the family "fisk" means.
        moments: "one" keeps the fitted shape kappa; "two" solves it from mean and variance of the
            day, for gamma and Weibull.
        convention: when the census is taken.
        warmup: "zero": the unit is empty before day 0, so that the first S_max days are too low;
            "drop": the same, but averages leave those days out; "backfill": days before day 0 are
            made up.
        backfill: "year_mean" puts the mean of the first 365 days (all, if fewer) before day 0;
            "calendar" the first 365 days themselves.
    """

    variant: Variant = "fisk_paper"
    moments: Moments = "one"
    convention: Convention = "ceil"
    warmup: Warmup = "zero"
    backfill: Backfill = "year_mean"


class BedRules(NamedTuple):
    """How much overflow is accepted.

    Attributes:
        alphas: risks of overflow that beds are counted for, each in (0, 1).
        gamma: share of the beds that may be filled before a day counts as overflow.
        rule: whether the "average" or the "max" over days of the daily risk is held to alpha.
        bed_cap: largest count that is looked at; -1 is returned where it is too small.
    """

    alphas: tuple[float, ...] = (0.05, 0.01)
    gamma: float = 1.0
    rule: Rule = "average"
    bed_cap: int = 4096


PAPER_QUEUE = QueueModel()
"""The paper's reading."""
PAPER_RULES = BedRules()
"""The paper's risks."""


def check(settings: NamedTuple, kind: type) -> None:
    """Raises where `settings` is no record of `kind`, or a field of it holds what it cannot.

    Raises:
        ValueError: naming the field, what it takes and what it holds.
    """
    if not isinstance(settings, kind):
        raise ValueError(
            f"these settings must be a {kind.__name__}, got {type(settings).__name__}; write "
            f"{kind.__name__}(...) with the fields that differ from the defaults"
        )
    for field, hint in typing.get_type_hints(kind).items():
        value = getattr(settings, field)
        if hasattr(hint, "_fields"):
            check(value, hint)
        elif typing.get_origin(hint) is tuple and not isinstance(value, (tuple, list)):
            raise ValueError(f"{field} must be a tuple, got {value!r}; write ({value!r},) for one")
        else:
            check_name(field, value, hint)


def check_name(what: str, value: object, kind: object) -> None:
    """Raises if `kind` is a `Literal` and `value` is none of its names."""
    names = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if names and not (isinstance(value, str) and value in names):
        raise ValueError(f"{what} must be one of {names}, got {value!r}")
