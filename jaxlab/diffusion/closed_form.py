"""Exact velocities, samplers and tilts of Gaussians and their mixtures, in one dimension each.

What learned fields are held against. Sums of dimensions follow by treating each on its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Gaussian(NamedTuple):
    """A normal distribution of independent dimensions; fields broadcast."""

    mean: Array
    std: Array


class Mixture(NamedTuple):
    """A mixture of normal distributions in one dimension; fields are `[K]`, weights sum to 1."""

    weight: Array | np.ndarray
    mean: Array | np.ndarray
    std: Array | np.ndarray


def gaussian_tilt(
    old: Gaussian, *, curvature: Array | float, peak: Array | float, temperature: Array | float
) -> Gaussian:
    """Returns the policy N(old) exp(Q / temperature) / Z with Q = -curvature (a - peak)^2 / 2.

    The exact step of policy mirror descent on a quadratic: precisions add, k steps add
    k curvature / temperature.

    Source: arXiv:2507.23675, eq. 7.
    """
    gained = jnp.asarray(curvature / temperature)
    precision = 1.0 / old.std**2 + gained
    mean = (old.mean / old.std**2 + gained * peak) / precision
    return Gaussian(mean, precision**-0.5)


def tilt(mixture: Mixture, *, curvature: float, peak: float, temperature: float) -> Mixture:
    """Returns the mixture proportional to p(a) exp(-curvature (a - peak)^2 / (2 temperature))."""
    parts = Gaussian(jnp.asarray(mixture.mean), jnp.asarray(mixture.std))
    tilted = gaussian_tilt(parts, curvature=curvature, peak=peak, temperature=temperature)
    # The mass of each part is N(mean; peak, std^2 + temperature / curvature), up to a constant.
    variance = mixture.std**2 + temperature / curvature
    log_mass = -0.5 * (mixture.mean - peak) ** 2 / variance - 0.5 * jnp.log(variance)
    weight = jax.nn.softmax(jnp.log(mixture.weight) + log_mass)
    return Mixture(weight, tilted.mean, tilted.std)


def flow_velocity(
    target: Gaussian, x: Float[Array, "..."], t: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns the rectified flow's velocity E[a - e | x_t = x] from N(0, 1) to a Gaussian.

    v = m + (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) (x - t m).
    """
    s2 = target.std**2
    slope = (t * s2 - (1.0 - t)) / (t**2 * s2 + (1.0 - t) ** 2)
    return target.mean + slope * (x - t * target.mean)


def mixture_velocity(
    target: Mixture, x: Float[Array, "..."], t: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns mean and variance of a - e given x_t = x, of the rectified flow to a mixture.

    The mean is the flow's velocity; the expected variance bounds the error of one Euler step.
    """
    x, t = x[..., None], t[..., None]
    given = Gaussian(*(jnp.broadcast_to(f, x.shape[:-1] + f.shape) for f in target[1:]))
    spread = t**2 * given.std**2 + (1.0 - t) ** 2  # of x_t within a part
    log_weight = jnp.log(jnp.broadcast_to(target.weight, given.mean.shape))
    log_weight -= 0.5 * (x - t * given.mean) ** 2 / spread + 0.5 * jnp.log(spread)
    responsibility = jax.nn.softmax(log_weight, axis=-1)
    velocity = flow_velocity(given, x, t)
    # Within a part a - e and x_t are jointly normal: Var = s^2 + 1 - Cov^2 / spread.
    covariance = t * given.std**2 - (1.0 - t)
    inner = given.std**2 + 1.0 - covariance**2 / spread
    mean = jnp.sum(responsibility * velocity, axis=-1)
    outer = (velocity - mean[..., None]) ** 2
    return mean, jnp.sum(responsibility * (inner + outer), axis=-1)


def euler_std(std: float, num_steps: int) -> Float[Array, ""]:
    """Returns the std of N Euler steps of the exact flow from N(0, 1) to N(m, std^2).

    The mean is exact for every N; one step gives 0, two give std^2 / (1 + std^2).

    Raises:
        ValueError: if there is no step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    t = jnp.arange(num_steps) / num_steps
    slope = (t * std**2 - (1.0 - t)) / (t**2 * std**2 + (1.0 - t) ** 2)
    return jnp.prod(1.0 + slope / num_steps)


def average_velocity(
    target: Gaussian, z: Float[Array, "..."], r: Float[Array, "..."], t: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns MeanFlow's u(z, r, t) for a Gaussian; data at time 0, noise at time 1.

    u = -m + (s(t) - s(r)) / (t - r) (z - (1 - t) m) / s(t), s(t)^2 = (1 - t)^2 s^2 + t^2; at r = t
    the fraction is s'(t).
    """
    s2 = target.std**2

    def spread(time: Array) -> Array:
        return jnp.sqrt((1.0 - time) ** 2 * s2 + time**2)

    # (s(t) - s(r)) / (t - r) without the difference: s(t)^2 - s(r)^2 has the factor t - r.
    slope = ((t + r) - (2.0 - t - r) * s2) / (spread(t) + spread(r))
    return -target.mean + slope * (z - (1.0 - t) * target.mean) / spread(t)


def noise_of_tilt(
    x: Float[Array, "..."], alpha_bar: Float[Array, "..."], target: Gaussian
) -> Float[Array, "..."]:
    """Returns E[noise | x_t = x] of a diffused Gaussian: the best noise prediction.

    sqrt(1 - alpha_bar) (x - sqrt(alpha_bar) m) / (alpha_bar s^2 + 1 - alpha_bar).
    """
    spread = alpha_bar * target.std**2 + 1.0 - alpha_bar
    return jnp.sqrt(1.0 - alpha_bar) * (x - jnp.sqrt(alpha_bar) * target.mean) / spread
