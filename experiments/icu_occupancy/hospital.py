"""What is computed for one hospital beyond its plan: intervals and a simulation, unit by unit."""

import functools
import hashlib
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import result, units
from experiments.harness.units import Unit
from experiments.icu_occupancy import Config
from jaxlab import queueing as q
from jaxlab.core import logging, loop, sharding

REPLICATIONS_PER_STEP = 1024
NUM_BLOCKS = 4
"""Parts of a step: up to four devices share them, and their number does not change the draws."""
DRAWS_PER_UNIT = 20
"""Draws of the bootstrap that one unit plans for."""


class Measured(NamedTuple):
    """A planning study with what was computed beside it.

    Attributes:
        study: plan, patients and observed census.
        interval: 95 % intervals of the bed counts.
        num_draws: draws behind the intervals.
        summary: the simulated demand.
    """

    study: q.Study
    interval: q.Interval
    num_draws: int
    summary: q.SimSummary


def settings_of(config: Config) -> tuple[q.QueueModel, q.BedRules]:
    """Returns how the configuration reads the data and counts beds."""
    queue = q.QueueModel(variant=config.variant, convention=config.convention, warmup=config.warmup)
    return queue, q.BedRules(gamma=config.gamma)


def measure(
    study: q.Study, config: Config, out: pathlib.Path, *, seed: int, prefix: str = ""
) -> Measured:
    """Bootstraps the bed counts of a study and simulates its demand.

    Args:
        study: the planning study.
        config: numbers of draws and replications.
        out: the run folder, which keeps the units.
        seed: of the bootstrap; the simulation takes the next one.
        prefix: put before the names of the units, "sir3/" for example.
    """
    about = about_study(study)
    keys = jax.random.split(jax.random.key(seed), config.bootstrap)
    draws = [
        Unit(
            f"{prefix}bootstrap/{first}",
            about | {"seed": seed, "draws": config.bootstrap},
            functools.partial(_bootstrap, keys[first : first + DRAWS_PER_UNIT], study),
        )
        for first in range(0, config.bootstrap, DRAWS_PER_UNIT)
    ]
    demand = about | {"seed": seed + 1, "replications": config.replications}
    simulation = Unit(
        f"{prefix}simulation",
        demand,
        functools.partial(_simulate, study, demand),
        kind=q.SimSummary,
    )
    found = units.run([*draws, simulation], out, title=f"{prefix}hospital".replace("/", " "))
    beds = np.concatenate([found[unit.name] for unit in draws])
    return Measured(study, q.interval_of(beds), config.bootstrap, found[simulation.name])


def about_study(study: q.Study) -> dict[str, Any]:
    """Returns all that the plan of a study depends on, the patients as a digest."""
    stays = study.stays
    columns = b"".join(np.ascontiguousarray(column).tobytes() for column in stays[:7])
    labels = (stays.num_days, stays.site_names, stays.origin, stays.windows.tolist())
    labels = repr(labels).encode()
    digest = hashlib.sha256(columns + labels).hexdigest()
    return result.encode(
        {"stays": digest, "queue": study.queue._asdict(), "rules": study.rules._asdict()}
    )


def _bootstrap(keys: jax.Array, study: q.Study, folder: pathlib.Path) -> np.ndarray:
    return q.bootstrap_beds(keys, study)


def _simulate(study: q.Study, about: dict[str, Any], folder: pathlib.Path) -> q.SimSummary:
    """Simulates patient by patient through the training loop, so that a killed run goes on."""
    inputs = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if np.issubdtype(x.dtype, np.floating) else jnp.int32),
        study.plan.inputs,
    )
    # Processes share units, not their devices.
    num_devices = math.gcd(NUM_BLOCKS, jax.device_count()) if jax.process_count() == 1 else 1
    mesh = sharding.make_mesh({"data": num_devices}) if num_devices > 1 else None
    beds = q.overflow_threshold(q.stack_rules(study.plan.beds).T, study.rules.gamma)
    algorithm = q.make_monte_carlo(
        inputs,
        beds=beds,
        replications_per_step=REPLICATIONS_PER_STEP,
        num_blocks=NUM_BLOCKS,
        mesh=mesh,
        num_lags=_round_up(int(inputs.smax.max()), 64),
        queue=study.queue,
        hist_size=max(128, _round_up(int(3 * study.plan.rho.max()) + 32, 64)),
    )
    num_steps = -(-about["replications"] // REPLICATIONS_PER_STEP)
    done = loop.run(
        algorithm,
        jax.random.key(about["seed"]),
        num_steps=num_steps,
        chunk_size=1,
        directory=folder,
        config=about,
        log=[logging.console(num_steps, title="Monte Carlo")],
        state_sharding=None if mesh is None else sharding.replicated(mesh),
    )
    summary = jax.device_get(jax.jit(q.summarize)(done.state))
    if summary.invalid or summary.hist_overflow.any():
        raise RuntimeError(
            f"the simulation is incomplete: {summary.invalid} invalid cells, share beyond the "
            f"histogram {summary.hist_overflow}"
        )
    return summary


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
