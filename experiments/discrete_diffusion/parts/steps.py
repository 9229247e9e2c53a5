"""Error by the number of steps, with denoisers that know every conditional exactly.

Tokens that are revealed in the same step know nothing of each other: with the best denoiser there
is, few steps draw wrong sequences. All figures are laws by enumeration, no draws.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.harness import drawing, units
from experiments.harness.result import Figure, Part, Row
from experiments.harness.units import Unit
from jaxlab.diffusion.discrete import exact, schedules
from jaxlab.rl.discrete import tasks

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
GAMES = {"parity of 4 bits": tasks.parity(4), "4 agents, all different": tasks.permutation(4)}
SPEED = "The error of parallel sampling falls with the number of steps as 1 / N"


class Errors(NamedTuple):
    """By game `[len(STEPS)]`: share of right sequences, and total variation from the target."""

    right: dict[str, np.ndarray]
    distance: dict[str, np.ndarray]


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures, or reads, then tells and draws."""
    del config
    unit = Unit("steps", {"steps": STEPS}, lambda folder: measure(), Errors)
    errors = units.run([unit], out, title="discrete_diffusion, steps")["steps"]
    return Part(_rows(errors), (_draw(errors, out),))


def measure() -> Errors:
    """Returns the laws' errors, in double precision."""
    right, distance = {}, {}
    with jax.enable_x64(True):
        for name, game in GAMES.items():
            target = game.table / game.table.sum()
            sizes = {"vocab": game.vocab, "length": game.length}
            denoise = exact.table_denoiser(exact.conditionals(jnp.asarray(target), **sizes))
            laws = [
                np.asarray(exact.sampler_law(denoise, schedules.make_schedule(n), **sizes))
                for n in STEPS
            ]
            right[name] = np.array([law @ game.table for law in laws])
            distance[name] = np.array([0.5 * np.abs(law - target).sum() for law in laws])
    return Errors(right, distance)


def parity_closed_form(length: int, steps: int) -> float:
    """Share of even sequences: half, and half of those whose last token is revealed alone.

    1/2 + 1/2 sum_j (K / N) ((j - 1) / N)^(K - 1).
    """
    last = (np.arange(1, steps + 1) - 1) / steps
    return 0.5 + 0.5 * float(np.sum(length / steps * last ** (length - 1)))


def _rows(errors: Errors) -> tuple[Row, ...]:
    rows = []
    for name, distance in errors.distance.items():
        late = np.array(STEPS) >= 16
        slope = np.polyfit(np.log(np.array(STEPS)[late]), np.log(distance[late]), 1)[0]
        rows.append(
            Row(
                SPEED,
                f"Exponent of the error in N, {name}",
                float(slope),
                note=f"Of the total variation from N = 16 to {STEPS[-1]}, with an exact denoiser; "
                "-1 in the limit.",
            )
        )
        for n in (1, 4, 16):
            right = 100.0 * errors.right[name][STEPS.index(n)]
            rows.append(
                Row(SPEED, f"Right in {n} step{'s' if n > 1 else ''}, {name}", right, unit="%")
            )
    return tuple(rows)


def _draw(errors: Errors, out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4), layout="constrained")
        for color, name in zip(drawing.COLORS, errors.right, strict=False):
            left.plot(STEPS, errors.right[name], "o-", ms=4, color=color, label=name)
            right.loglog(STEPS, errors.distance[name], "o-", ms=4, color=color, label=name)
        anchor = max(distance[-1] for distance in errors.distance.values())
        late = np.array([16, 64])
        right.loglog(late, 1.5 * anchor * 64 / late, "--", color=drawing.MUTED, label="1 / N")
        left.set(title="Right sequences", xscale="log", ylim=(0.0, 1.02))
        right.set_title("Total variation from the target")
        for axis in (left, right):
            axis.set_xlabel("Steps of sampling N")
            axis.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
            axis.minorticks_off()
        right.legend()
        drawing.save(figure, out / "steps.png")
    return Figure(
        "steps.png",
        "A denoiser that knows every conditional exactly, sampled in N steps; laws by enumeration.",
        "Share of right sequences and distance from the target against the steps of sampling",
    )
