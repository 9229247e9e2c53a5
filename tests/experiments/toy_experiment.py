"""The smallest experiment: it adds up its rate, step by step, and can be stopped and resumed."""

import dataclasses
import json
import pathlib
import time
from typing import Literal

from experiments.harness import result

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
    fail_at: int | None = None
    """Step at which a bug raises."""
    pause: float = 0.0
    """Seconds that a step waits."""
    inner: Inner = Inner()

    def __post_init__(self):
        if self.num_steps < 0:
            raise ValueError(f"num_steps must not be negative, got {self.num_steps}")


PRESETS = {"smoke": Config(), "cpu": Config(num_steps=30), "gpu": Config(num_steps=300)}


def run(config: Config, out: pathlib.Path, *, resume: bool = False) -> result.Result:
    if config.num_steps > 1000:
        raise ValueError("num_steps is\nbeyond what a toy should do")
    if config.data is not None:
        pathlib.Path(config.data).read_text()
    state = out / "state.json"
    step, total = json.loads(state.read_text()) if resume else (0, 0.0)
    while step < config.num_steps:
        if step == config.interrupt_at and not resume:
            raise KeyboardInterrupt
        if step == config.fail_at:
            raise ValueError("a bug")
        time.sleep(config.pause)
        step, total = step + 1, total + config.inner.rate
        state.write_text(json.dumps((step, total)))
        with (out / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "toy/total": total}) + "\n")
    row = result.Row("Adding works", "Total", total, None, ("zero", 0.0), 1.5, "reproduced")
    return result.Result("toy", (row,), title="A toy")
