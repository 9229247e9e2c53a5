"""Ball balancing: two agents hold the ends of a beam and keep a ball in its middle.

Matignon, Laurent and Le Fort-Piat 2007, "Hysteretic Q-learning" (the task and its numbers).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.envs.spaces import Box, Discrete
from jaxlab.envs.task import Task

LENGTH, MASS, FRICTION, GRAVITY, DT = 2.0, 0.5, 0.01, 9.8, 0.03
"""Beam in m, ball in kg, friction in kg/s, gravity in m/s^2, a step in s."""
LEVELS = 15
"""Heights between -1 m and 1 m that an agent can choose from."""
MAX_SPEED = 3.0
BINS = (100, 50)
"""Bins of position and speed in `ball_index`."""
STEPS = 667
"""Steps of an episode, 20 s."""


class BallState(NamedTuple):
    """The physics: position in m, speed in m/s, PRNG key of the noise to come."""

    x: Float[Array, ""]
    speed: Float[Array, ""]
    key: Array


def ball_balancing(
    *, random_start: bool = False, noise: float = 0.0, continuous: bool = False
) -> Task:
    """Makes the task: balance a ball together, without seeing what the partner does.

    Each agent chooses the height h of its end of the beam; the ball accelerates by
    (-c speed + m g (h_1 - h_2) / length) / m. The common reward of a step is 0.8 exp(-(x / 0.25)^2)
    + 0.2 exp(-(speed / 0.25)^2) where it led to; beyond x = 1 or -1 the ball has fallen, which ends
    the episode without a reward. So the return is at most 667. Both agents observe `[2]` numbers,
    position and speed.

    Args:
        random_start: begin uniform in |x| < 0.75, |speed| < 0.5 instead of at 0.5 and 0.1.
        noise: standard deviation of a random acceleration in m/s^2, against which optimism about
            luck can be told from optimism about the partner.
        continuous: heights are any numbers from -1 to 1 instead of 15 levels.

    Raises:
        ValueError: if the noise is negative or not finite.
    """
    if not 0.0 <= noise < np.inf:
        raise ValueError(f"noise must not be negative and be finite, got {noise}")

    def observe(state: BallState) -> jax.Array:
        return jnp.broadcast_to(jnp.stack([state.x, state.speed]), (2, 2))

    def reset(key: jax.Array) -> tuple[BallState, jax.Array]:
        key, key_start = jax.random.split(key)
        x, speed = jnp.asarray(0.5), jnp.asarray(0.1)
        if random_start:
            x, speed = jax.random.uniform(key_start, (2,), minval=-1.0) * jnp.asarray([0.75, 0.5])
        state = BallState(x, speed, key)
        return state, observe(state)

    def step(state: BallState, action: jax.Array) -> tuple:
        key, key_noise = jax.random.split(state.key)
        x, speed = state.x, state.speed
        if continuous:
            height = action[:, 0].astype(x.dtype)
        else:
            height = action.astype(x.dtype) * (2.0 / (LEVELS - 1)) - 1.0
        push = MASS * GRAVITY * (height[0] - height[1]) / LENGTH
        acceleration = (push - FRICTION * speed) / MASS
        if noise:
            acceleration += noise * jax.random.normal(key_noise, dtype=x.dtype)
        x = x + speed * DT + 0.5 * acceleration * DT**2
        speed = jnp.clip(speed + acceleration * DT, -MAX_SPEED, MAX_SPEED)
        fallen = jnp.abs(x) > 0.5 * LENGTH
        reward = 0.8 * jnp.exp(-((x / 0.25) ** 2)) + 0.2 * jnp.exp(-((speed / 0.25) ** 2))
        state = BallState(x, speed, key)
        return state, observe(state), jnp.where(fallen, 0.0, reward), fallen

    space = Box((-1.0,), (1.0,)) if continuous else Discrete(LEVELS)
    return Task("ball_balancing", 2, space, STEPS, reset, step, num_agents=2)


def ball_index(obs: Float[Array, "... N O"]) -> Int[Array, "..."]:
    """Returns the bin of position and speed that agents observe, from 0 to 4,999, for tables.

    The ball itself moves continuously; only the look-up is coarse.
    """
    scale = jnp.asarray([0.5 * LENGTH, MAX_SPEED], obs.dtype)
    bins = jnp.asarray(BINS, obs.dtype)
    share = (obs[..., 0, :] / scale.reshape((1,) * (obs.ndim - 2) + (2,)) + 1.0) / 2.0
    bins = bins.reshape((1,) * (obs.ndim - 2) + (2,))
    cell = jnp.clip(jnp.floor(share * bins), 0.0, bins - 1.0).astype(jnp.int32)
    return cell[..., 0] * BINS[1] + cell[..., 1]


def balance(obs: Float[Array, "... N O"]) -> Int[Array, "... N"]:
    """Returns the levels of a controller that knows all: h_1 - h_2 = -(8 x + 2.5 speed), shared."""
    tilt = jnp.clip(-(8.0 * obs[..., 0, 0] + 2.5 * obs[..., 0, 1]), -2.0, 2.0)
    heights = jnp.stack([0.5 * tilt, -0.5 * tilt], axis=-1)
    return jnp.round((heights + 1.0) * (LEVELS - 1) / 2.0).astype(jnp.int32)
