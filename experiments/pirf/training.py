"""A run of one method, and the judgement of what its model samples."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pirf import Config, base, methods
from jaxlab import physics
from jaxlab.core import loop
from jaxlab.core.types import PyTree
from jaxlab.diffusion import edm
from jaxlab.physics import metrics

SIGNS = ("amplitude", "boundary strip", "spectrum", "solution error", "diversity")
"""What the detector flags."""


class Outcome(NamedTuple):
    """What was measured of a model; a figure for each number of steps in `judged_steps`.

    Attributes:
        interior: `[E]`, mean square of the residual in the interior.
        every: `[E]`, of the published residual at every node.
        std: `[E, 2]`, standard deviations of source and solution, over those of the data.
        solution_error: `[E]`, median over fields.
        spectrum: `[E, 2]`, distances of log spectra to the data's.
        flags: `[E, 5]`, bool, what the detector says, see `SIGNS`.
    """

    interior: Any
    every: Any
    std: Any
    solution_error: Any
    spectrum: Any
    flags: Any


def tune(name: str, seed: int, config: Config, folder: pathlib.Path) -> Outcome:
    """Tunes the base by a method and judges what comes of it."""
    params = base.load()
    given: dict[str, Any] = {
        "num_steps": config.num_steps,
        "num_grad_steps": config.num_grad_steps,
        "batch_size": config.batch,
        "learning_rate": config.learning_rate,
        "reg_weight": config.hold,
    }
    algorithm = physics.make_pirf(
        base.LAW,
        base.NETWORK.apply,
        params,
        (base.SIZE, base.SIZE, 2),
        **(given | methods.METHODS[name]),
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 1 + seed)
    chunk = min(20, config.updates)
    found = loop.run(algorithm, key, num_steps=config.updates, chunk_size=chunk, directory=folder)
    return judge(physics.tuned_params(found.state), config)


def judge(params: PyTree, config: Config) -> Outcome:
    """Measures fields from the same noise, whatever the model."""
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    noise = jax.random.normal(key, (config.fields, base.SIZE, base.SIZE, 2))
    data = jnp.asarray(physics.make_dataset(base.LAW, jax.random.key(7), 512, base.SIZE))
    found = []
    for num in config.judged_steps:
        first, x = (_sampled(p, noise, num) for p in (base.load(), params))
        signs = physics.detect_hacking(base.LAW, x, data, base=first)
        left = physics.residual(base.LAW, x)
        every = physics.residual(base.LAW, x, region="all", repo_exact=True)
        found.append(
            (
                jnp.mean(left**2),
                jnp.mean(every**2),
                signs.amplitude,
                signs.solution_error,
                metrics.spectrum_distance(x, data),
                [name in signs.flags for name in SIGNS],
            )
        )
    return Outcome(*(np.asarray(list(column)) for column in zip(*found, strict=True)))


@functools.partial(jax.jit, static_argnums=2)
def _sampled(params: PyTree, noise: jax.Array, num_steps: int) -> jax.Array:
    denoiser = physics.denoiser_of(base.NETWORK, params)
    return jax.lax.map(
        lambda z: edm.sample(denoiser, z[None], num_steps=num_steps)[0], noise, batch_size=64
    )
