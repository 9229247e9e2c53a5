"""Puts the toy together: units, what they add up to, and the row that says so."""

import pathlib
import time

from experiments.harness import result, units
from jaxlab.core import loop
from toy_study import Config


def run(config: Config, out: pathlib.Path) -> result.Result:
    """Computes the steps that are missing, and adds up."""
    if config.num_steps > 1000:
        raise ValueError("num_steps is\nbeyond what a toy should do")
    if config.data is not None:
        pathlib.Path(config.data).read_text()
    added = units.run(
        [_unit(config, step) for step in range(config.num_steps)],
        out,
        title="toy",
        metrics=lambda name, value: {"added": value},
    )
    total = sum(added.values())
    row = result.Row("Adding works", "Total", total, None, ("zero", 0.0), 1.5, "reproduced")
    return result.assemble([result.Part(rows=(row,))], experiment="toy", title="A toy")


def _unit(config: Config, step: int) -> units.Unit:
    def compute(folder: pathlib.Path) -> float:
        interrupted = folder / "interrupted"
        if step == config.interrupt_at and not interrupted.exists():
            interrupted.touch()
            raise KeyboardInterrupt
        if step == config.fail_at:
            raise ValueError("a bug")
        with loop.signals_caught() as signals:
            while step == config.wait_at and not signals:
                time.sleep(0.001)
        return config.inner.rate

    return units.Unit(f"step/{step}", {"rate": config.inner.rate}, compute)
