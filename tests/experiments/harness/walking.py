"""Units that walk by the training loop, for the tests: `python walking.py OUT UNIT STEP`.

The process is killed while it logs step STEP of unit UNIT.
"""

import os
import pathlib
import signal
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import units
from jaxlab.core import loop
from jaxlab.core.types import Algorithm


class Walk(NamedTuple):
    """Where a walk ended, and the steps at which this process logged it."""

    position: np.ndarray
    logged: tuple[int, ...]


def make(strike=lambda name, step: None):
    """Makes three units of twelve steps, in chunks of two; `strike(name, step)` when one logs."""

    def init(key):
        return {"key": key, "position": jnp.zeros(2)}

    def step(state):
        key, key_step = jax.random.split(state["key"])
        position = state["position"] + jax.random.normal(key_step, (2,))
        return {"key": key, "position": position}, {"walk/x": position[0]}

    def unit(index):
        name = f"walks/{index}"
        logged = []

        def log(step, metrics):
            logged.append(step)
            strike(name, step)

        def compute(folder):
            ended = loop.run(
                Algorithm(init, step),
                jax.random.key(index),
                num_steps=12,
                chunk_size=2,
                directory=folder,
                log=[log],
            )
            return Walk(ended.state["position"], tuple(logged))

        return units.Unit(name, {"seed": index}, compute, Walk)

    return [unit(index) for index in range(3)]


if __name__ == "__main__":
    out, name, last = sys.argv[1:]

    def strike(at, step):
        if (at, step) == (name, int(last)):
            os.kill(os.getpid(), signal.SIGKILL)

    units.run(make(strike), pathlib.Path(out), title="walking")
