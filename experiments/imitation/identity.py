"""The theorem on finite processes, where both of its sides are linear solves in float64."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import units
from experiments.harness.result import Part, Row
from experiments.harness.units import Unit
from experiments.imitation import Config
from jaxlab import imitation

NUM = 100
"""Processes that are drawn: 12 states, 3 actions, rank 4."""
BOUND = 1e-10


class Gaps(NamedTuple):
    """Of each process `[NUM]`.

    Attributes:
        features: Largest difference of the optimal dual variable and its form in the features.
        divergence: Difference of the least objective and minus the divergence.
    """

    features: np.ndarray
    divergence: np.ndarray


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures, or reads, then tells."""
    unit = Unit("identity", {"seed": config.seed, "num": NUM}, lambda _: measure(config.seed), Gaps)
    gaps = units.run([unit], out, title="imitation, identity")["identity"]
    rows = [
        Row(
            "The optimal dual variable lies in what the features span",
            metric,
            worst,
            paper="0, exactly",
            verdict="reproduced" if worst < BOUND else "not reproduced",
            note=f"Largest of {NUM} random processes of rank 4.",
        )
        for metric, worst in (
            ("Error of Q in the features", float(gaps.features.max())),
            ("Least objective plus divergence", float(np.abs(gaps.divergence).max())),
        )
    ]
    return Part(tuple(rows))


def measure(seed: int) -> Gaps:
    """Draws processes, policies and experts, all at once."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        low_rank = imitation.low_rank_process(key)
        keys = jax.random.split(jax.random.fold_in(key, 1))
        policy, other = (jax.nn.softmax(jax.random.normal(k, (12, 3)), axis=1) for k in keys)
        process = low_rank.process
        expert = imitation.occupancy(process, other)
        nu = imitation.dual_optimum(process, policy, expert)
        form = imitation.represented(low_rank, imitation.parts_of_optimum(low_rank, policy, expert))
        least = imitation.dual_objective(nu, process, policy, expert)
        divergence = imitation.kl(imitation.occupancy(process, policy), expert)
        return jnp.max(jnp.abs(form + nu)), least + divergence

    with jax.enable_x64(True):
        features, divergence = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), NUM))
        return Gaps(np.asarray(features), np.asarray(divergence))
