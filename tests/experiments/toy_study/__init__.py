"""The smallest experiment, a model of the others: it adds up its rate, a step a unit."""

import dataclasses
from typing import Literal

SUMMARY = "Adds up a number, for the tests"


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    """What each step adds."""


@dataclasses.dataclass(frozen=True)
class Config:
    num_steps: int = 3
    """Number of steps."""
    sites: tuple[int, ...] = (1, 2)
    """Sites to plan for."""
    rule: Literal["mean", "max"] = "mean"
    """Which risk is held down."""
    data: str | None = None
    """A CSV file of stays."""
    interrupt_at: int | None = None
    """Step at which Ctrl-C arrives, the first time."""
    wait_at: int | None = None
    """Step that lasts until the run is told to stop."""
    fail_at: int | None = None
    """Step at which a bug raises."""
    inner: Inner = Inner()

    def __post_init__(self):
        if self.num_steps < 0:
            raise ValueError(f"num_steps must not be negative, got {self.num_steps}")


PRESETS = {"smoke": Config(), "cpu": Config(num_steps=30), "gpu": Config(num_steps=300)}
