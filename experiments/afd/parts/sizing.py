"""The rule for the number of attention workers against the best of all numbers, simulated."""

import functools
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from experiments.afd import Config, figures
from experiments.harness import units, verdicts
from experiments.harness.result import Part, Table
from experiments.harness.units import Unit
from jaxlab.serving.afd import provisioning
from jaxlab.serving.afd.provisioning import Linear, SlotLoad, StepTimes

LAWS = ("geometric", "lognormal", "chats and documents")
LINKS = ("fast link", "slow link")
BATCH, COUNT = 64, 3000
"""Requests of a worker in a micro-batch; requests of a trace."""
CLAIM = "The ratio of attention to expert workers follows from the mean load of a slot"
LIMITS = (
    "Ratios are simulated slot by slot: requests finish and others take their slots, workers, link "
    "and experts serve micro-batches in order of arrival, attention waits for its slowest worker.",
    "Times are linear: attention 1 at its mean load and 0.1 without requests, experts 0.3 and 0.12 "
    "more a worker; a slow link 0.1 and 0.25 more a worker.",
)


class Simulated(NamedTuple):
    """One trace: tokens a second of every simulated ratio, and what the rule says.

    Attributes:
        ratios: `[R]`.
        rates: `[R]` tokens a second of each worker, simulated.
        told: `[R]` by the rule's expression, with the barrier.
        best: the ratio of the rule, with the barrier.
        mean_field: the ratio of the rule without it.
    """

    ratios: np.ndarray
    rates: np.ndarray
    told: np.ndarray
    best: int
    mean_field: int


def run(config: Config, out: pathlib.Path) -> Part:
    """Simulates, a unit a law and link, and says what the rule's ratio loses."""
    cells = [(law, link) for law in LAWS for link in LINKS]
    found = units.run([_unit(*cell, config) for cell in cells], out, title="afd, sizing")
    rows, told = [], []
    for law, link in cells:
        traces = found[_name(law, link)]
        losses = {
            kind: np.array([_loss(one, getattr(one, kind)) for one in traces])
            for kind in ("best", "mean_field")
        }
        rows.append(
            verdicts.row_alone(
                CLAIM,
                f"Throughput that the rule's ratio loses, {law}, {link}",
                100.0 * losses["best"],
                verdict="reproduced" if losses["best"].max() <= 0.1 else "not reproduced",
                paper="less than 10",
                unit="%",
                note=f"Against the best of {traces[0].ratios.size} simulated ratios. Without the "
                f"wait for the slowest worker {100 * losses['mean_field'].mean():.2g} %.",
            )
        )
        optimum = [int(one.ratios[np.argmax(one.rates)]) for one in traces]
        told.append(
            (
                law,
                link,
                _span([one.best for one in traces]),
                _span([one.mean_field for one in traces]),
                _span(optimum),
                100.0 * float(np.max(losses["best"])),
            )
        )
    picture = figures.sizing({cell: found[_name(*cell)] for cell in cells}, out)
    table = Table(
        "Attention workers for an expert worker",
        ("Lengths", "Network", "Rule", "Without barrier", "Best simulated", "Most lost, %"),
        tuple(told),
    )
    return Part(rows=tuple(rows), figures=(picture,), tables=(table,), limits=LIMITS)


def lengths(random: np.random.Generator, law: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws prompt and decode lengths; the third law mixes short prompts with long ones."""
    if law == "geometric":
        return random.poisson(400, COUNT), random.geometric(1 / 300, COUNT)
    if law == "lognormal":
        z = random.standard_normal((2, COUNT))
        return _lognormal(500, 600, z[0]), _lognormal(300, 350, 0.4 * z[0] + 0.84**0.5 * z[1])
    chat = random.random(COUNT) < 0.7
    prompt, decode = (
        np.where(chat, *(random.geometric(1 / mean, COUNT) for mean in means))
        for means in ((200, 3500), (350, 60))
    )
    return prompt, decode


def _lognormal(mean: float, sd: float, z: np.ndarray) -> np.ndarray:
    var = np.log1p((sd / mean) ** 2)
    return np.ceil(mean * np.exp(np.sqrt(var) * z - var / 2.0)).astype(int)


def _times(load: SlotLoad, link: str) -> StepTimes:
    slow = Linear(0.25 / BATCH, 0.1) if link == "slow link" else None
    return StepTimes(Linear(0.9 / (BATCH * load.mean), 0.1), Linear(0.12 / BATCH, 0.3), slow)


def _simulate(law: str, link: str, draws: int, num_steps: int, _: pathlib.Path) -> tuple:
    found = []
    for draw in range(draws):
        prompt, decode = lengths(np.random.default_rng([LAWS.index(law), draw]), law)
        load = provisioning.slot_load(provisioning.trace_moments(prompt, decode))
        times = _times(load, link)
        rules = [
            provisioning.best_ratio(times, load, BATCH, barrier=barrier).best
            for barrier in (True, False)
        ]
        ratios = np.arange(1, 2 * max(rules) + 5)
        rates = [
            provisioning.simulate_provisioning(
                jax.random.key(draw),
                prompt,
                decode,
                int(ratio),
                times,
                BATCH,
                lockstep=True,
                num_steps=num_steps,
            )
            for ratio in ratios
        ]
        told = provisioning.worker_throughput(ratios, times, load, BATCH, barrier=True)
        found.append(Simulated(ratios, np.array(rates), told, *rules))
    return tuple(found)


def _loss(one: Simulated, ratio: int) -> float:
    return float(1.0 - one.rates[one.ratios == ratio][0] / one.rates.max())


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _name(law: str, link: str) -> str:
    return f"sizing/{law}, {link}"


def _unit(law: str, link: str, config: Config) -> Unit:
    settings = {"law": law, "link": link, "draws": config.draws, "num_steps": config.num_steps}
    return Unit(
        _name(law, link),
        settings,
        functools.partial(_simulate, *settings.values()),
        tuple[Simulated, ...],
    )
