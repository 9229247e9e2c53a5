"""A pendulum with Gaussian noise, whose transition density is known: truth for learned ratios.

angle' = angle + dt velocity + e1, velocity' = clip(velocity + dt (15 sin angle + 3 u), -8, 8) + e2
with dt = 0.05 s, |u| <= 2 N m and e ~ N(0, 0.05^2 I). Angles are in rad from upright; observations
are (cos, sin, velocity / 8).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab import envs

NOISE_STD, DT, MAX_TORQUE, MAX_SPEED = 0.05, 0.05, 2.0, 8.0
_UPRIGHT = envs.LinearQuadratic(
    np.array([[1.0, DT], [15.0 * DT, 1.0]]),
    np.array([[0.0], [3.0 * DT]]),
    np.diag([1.0, 0.1]),
    np.array([[0.1]]),
)
"""The pendulum near its upright rest."""


def gaussian_pendulum(time_limit: int = 200) -> envs.Task:
    """The pendulum as a task; the reward is that of `envs.pendulum`, and it never terminates."""

    def observe(angle: Array, velocity: Array) -> Array:
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), velocity / MAX_SPEED])

    def reset(key: jax.Array) -> tuple[tuple, Array]:
        key, key_start = jax.random.split(key)
        limit = jnp.asarray([jnp.pi, 1.0])
        angle, velocity = jax.random.uniform(key_start, (2,), minval=-limit, maxval=limit)
        return (angle, velocity, key), observe(angle, velocity)

    def step(physics: tuple, action: Array) -> tuple[tuple, Array, Array, Array]:
        angle, velocity, key = physics
        key, key_noise = jax.random.split(key)
        u = jnp.clip(action[0].astype(angle.dtype), -MAX_TORQUE, MAX_TORQUE)
        wrapped = jnp.arctan2(jnp.sin(angle), jnp.cos(angle))
        reward = -(wrapped**2 + 0.1 * velocity**2 + 0.001 * u**2)
        noise = NOISE_STD * jax.random.normal(key_noise, (2,), angle.dtype)
        angle, velocity = next_means(angle, velocity, u)
        angle, velocity = angle + noise[0], velocity + noise[1]
        end = jnp.zeros((), bool)
        return (angle, velocity, key), observe(angle, velocity), reward, end

    box = envs.Box((-MAX_TORQUE,), (MAX_TORQUE,))
    return envs.Task("gaussian_pendulum", 3, box, time_limit, reset, step)


def next_means(angle: Array, velocity: Array, torque: Array) -> tuple[Array, Array]:
    """Returns where the next angle and velocity lie before noise; the torque is in N m."""
    speed = velocity + DT * (15.0 * jnp.sin(angle) + 3.0 * torque)
    return angle + DT * velocity, jnp.clip(speed, -MAX_SPEED, MAX_SPEED)


def log_density(
    obs: Float[Array, "... 3"], action: Float[Array, "... 1"], next_obs: Float[Array, "... 3"]
) -> Float[Array, "..."]:
    """Returns log P(s' | s, a) over angle and velocity; the action is in [-1, 1].

    The angle's normal law is wrapped on the circle. The nearest turn is all of it: the next adds
    less than exp(-1900).
    """
    angle, next_angle = (jnp.arctan2(x[..., 1], x[..., 0]) for x in (obs, next_obs))
    velocity, next_velocity = (MAX_SPEED * x[..., 2] for x in (obs, next_obs))
    mean_angle, mean_velocity = next_means(angle, velocity, MAX_TORQUE * action[..., 0])
    away = next_angle - mean_angle
    away = jnp.arctan2(jnp.sin(away), jnp.cos(away))
    square = (away**2 + (next_velocity - mean_velocity) ** 2) / NOISE_STD**2
    return -0.5 * square - jnp.log(2.0 * jnp.pi * NOISE_STD**2)


def true_log_ratio(
    obs: Float[Array, "B 3"],
    action: Float[Array, "B 1"],
    next_obs: Float[Array, "B 3"],
    data_obs: Float[Array, "N 3"],
    data_action: Float[Array, "N 1"],
) -> Float[Array, " B"]:
    """Returns log P(s' | s, a) - log p(s'), p the law of the next states of data.

    p is the mean of the N transition densities of the data, exact for the law that their next
    states were drawn from. Actions are in [-1, 1].
    """

    def marginal(x: Float[Array, " 3"]) -> Float[Array, ""]:
        each = log_density(data_obs, data_action, jnp.broadcast_to(x, data_obs.shape))
        return jax.nn.logsumexp(each) - jnp.log(float(len(data_obs)))

    return log_density(obs, action, next_obs) - jax.lax.map(marginal, next_obs, batch_size=64)


def pump_and_balance(obs: Float[Array, "... 3"], *, gain: float = 1.0) -> Float[Array, "... 1"]:
    """An expert without training: pumps energy far from upright, and balances near it.

    Args:
        obs: `[..., 3]` observations.
        gain: of the pumping, `torque = gain (E* - E) velocity` with E in J and E* = 5 upright.

    Returns:
        `[..., 1]`, the action in [-1, 1].
    """
    angle, velocity = jnp.arctan2(obs[..., 1], obs[..., 0]), MAX_SPEED * obs[..., 2]
    energy = velocity**2 / 6.0 + 5.0 * jnp.cos(angle)
    # A pendulum at rest below has no velocity to pump with, so there is one by convention.
    moving = jnp.where(jnp.abs(velocity) < 0.1, 0.1, velocity)
    pump = gain * (5.0 - energy) * moving
    K = jnp.asarray(envs.riccati(_UPRIGHT)[0], angle.dtype)[0]
    balance = -(K[0] * angle + K[1] * velocity)
    near = (jnp.abs(angle) < 0.5) & (jnp.abs(balance) < 3.0 * MAX_TORQUE)
    torque = jnp.clip(jnp.where(near, balance, pump), -MAX_TORQUE, MAX_TORQUE)
    return (torque / MAX_TORQUE)[..., None]
