"""What guidance takes for the value of a noisy state, r(D(x_t)), against E[r(x_0) given x_t]."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pirf import Config
from experiments.pirf.tasks import Task
from jaxlab import physics
from jaxlab.core.types import PyTree
from jaxlab.physics.baselines import value

LEVELS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Levels of noise."""
STATES = 32
"""Noisy states at each level."""
DRAWS, STEPS = 16, 20
"""Samples of x_0 for each state of a model, and their steps."""


class Values(NamedTuple):
    """Two values of the same states, as mean squares of the residual; each is `[levels, states]`.

    Attributes:
        taken: Of the denoised field D(x_t).
        true: Mean over the fields that x_t may come from.
    """

    taken: Any
    true: Any


def of_data(task: Task, config: Config) -> Values:
    """Takes some data for the whole law: the fields that a state comes from, and D, are exact.

    Of M fields y_i, P(y_i given x) is proportional to exp(-|x - y_i|^2 / (2 s^2)).
    """
    data = jnp.asarray(task.judged())
    squares = jax.lax.map(lambda y: _square(task, y), data, batch_size=256)

    @jax.jit
    def at(key: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        def of_state(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            apart = jnp.sum((data - x[None]) ** 2, axis=(1, 2, 3))
            weight = jax.nn.softmax(-0.5 * apart / level**2)
            clean = jnp.einsum("n,nhwc->hwc", weight, data)
            return _square(task, clean), jnp.sum(weight * squares)

        return jax.lax.map(of_state, _states(key, data, level))

    found = [at(*pair) for pair in _levels(config)]
    return Values(*(np.asarray(list(column)) for column in zip(*found, strict=True)))


def of_model(task: Task, params: PyTree, config: Config) -> Values:
    """Takes a base for the law: fields are drawn from each state by its reverse chain."""
    data = jnp.asarray(task.judged())
    denoiser = physics.denoiser_of(task.network, params)
    found = []
    for key, level in _levels(config):
        key_states, key_draws = jax.random.split(key)

        @jax.jit
        def at(key: jax.Array, x: jax.Array, level: float = float(level)) -> value.Values:
            return value.value_error(
                key,
                denoiser,
                lambda x: _square(task, x),
                x,
                level,
                num_samples=DRAWS,
                num_steps=STEPS,
            )

        both = at(key_draws, _states(key_states, data, level))
        found.append((both.approximate, both.mean))
    return Values(*(np.asarray(list(column)) for column in zip(*found, strict=True)))


def _square(task: Task, x: jax.Array) -> jax.Array:
    return jnp.mean(physics.residual(task.law, x) ** 2, axis=(-2, -1))


def _states(key: jax.Array, data: jax.Array, level: jax.Array) -> jax.Array:
    key_rows, key_noise = jax.random.split(key)
    y = data[jax.random.randint(key_rows, (STATES,), 0, data.shape[0])]
    return y + level * jax.random.normal(key_noise, y.shape)


def _levels(config: Config) -> list[tuple[jax.Array, jax.Array]]:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1_000_007), len(LEVELS))
    return list(zip(keys, jnp.asarray(LEVELS), strict=True))
