"""Denoising diffusion with few steps: schedules, noising, the noise-prediction loss, sampling.

Ho et al. 2020, arXiv:2006.11239. Steps are numbered t = 0 .. T - 1, the noisiest last.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.diffusion.rectified_flow import weighted_mean

PredictNoise = Callable[[jax.Array, jax.Array], jax.Array]
"""`predict_noise(x [..., D], t [...] int32) -> [..., D]`; an axis of t may be 1."""


class Schedule(NamedTuple):
    """Noise by step; every field is `[T]`.

    Attributes:
        beta: variance that step t adds.
        alpha_bar: share of the data's variance that is left after it, prod (1 - beta).
        posterior_variance: variance of x_{t-1} given x_t and the data; 0 at t = 0.
        of_data: coefficient of the data in that posterior's mean.
        of_noisy: coefficient of x_t in that posterior's mean.
    """

    beta: Array
    alpha_bar: Array
    posterior_variance: Array
    of_data: Array
    of_noisy: Array

    @property
    def num_steps(self) -> int:
        """The number of steps T."""
        return self.beta.shape[0]


def make_schedule(beta: np.ndarray) -> Schedule:
    """Makes a schedule of the variances `[T]` that the steps add, computed in float64.

    Raises:
        ValueError: if a variance does not lie in (0, 1).
    """
    beta = np.asarray(beta, np.float64)
    if beta.ndim != 1 or not beta.size or not np.all((0.0 < beta) & (beta < 1.0)):
        raise ValueError(f"beta must be [T] numbers in (0, 1), got {beta}")
    alpha_bar = np.cumprod(1.0 - beta)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    fields = (
        beta,
        alpha_bar,
        beta * (1.0 - before) / (1.0 - alpha_bar),
        np.sqrt(before) * beta / (1.0 - alpha_bar),
        np.sqrt(1.0 - beta) * (1.0 - before) / (1.0 - alpha_bar),
    )
    return Schedule(*(jnp.asarray(field) for field in fields))


def linear_schedule(num_steps: int = 20, *, scale: float = 0.8) -> Schedule:
    """Makes beta_t = scale * linspace(1e-4, 0.999, T).

    Source: the released code of arXiv:2502.00361 (scale 0.8 in its scripts, 0.3 in its network's
    default).
    """
    _check_steps(num_steps)
    return make_schedule(scale * np.linspace(1e-4, 0.999, num_steps))


def cosine_schedule(num_steps: int = 20, *, offset: float = 0.008) -> Schedule:
    """Makes alpha_bar_t proportional to cos^2(pi/2 (t/T + s) / (1 + s)), beta_t at most 0.999.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17.
    """
    _check_steps(num_steps)
    t = np.arange(num_steps + 1) / num_steps
    alpha_bar = np.cos((t + offset) / (1.0 + offset) * np.pi / 2) ** 2
    return make_schedule(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999))


def diffuse(
    schedule: Schedule,
    data: Float[Array, "... D"],
    noise: Float[Array, "... D"],
    t: Int[Array, "..."],
) -> Float[Array, "... D"]:
    """Returns x_t = sqrt(alpha_bar) data + sqrt(1 - alpha_bar) noise."""
    alpha_bar = schedule.alpha_bar.astype(data.dtype)[t][..., None]
    return jnp.sqrt(alpha_bar) * data + jnp.sqrt(1.0 - alpha_bar) * noise


def predict_data(
    schedule: Schedule, x: Float[Array, "... D"], noise: Float[Array, "... D"], t: Int[Array, "..."]
) -> Float[Array, "... D"]:
    """Returns the data that x_t is with this noise, (x - sqrt(1 - alpha_bar) noise) / sqrt(...)."""
    alpha_bar = schedule.alpha_bar.astype(x.dtype)[t][..., None]
    return x / jnp.sqrt(alpha_bar) - jnp.sqrt(1.0 / alpha_bar - 1.0) * noise


def loss(
    schedule: Schedule,
    predict_noise: PredictNoise,
    data: Float[Array, "... D"],
    noise: Float[Array, "... D"],
    t: Int[Array, "..."],
    weight: Float[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """Returns mean over samples and dimensions of w |eps(x_t, t) - noise|^2.

    Args:
        schedule: noise by step.
        predict_noise: network, `predict_noise(x, t)`.
        data: `[..., D]`, drawn from the target.
        noise: `[..., D]`, standard normal.
        t: `[...]` int32, steps in 0 to T - 1.
        weight: `[...]`, weights of the samples, 1 if None; no gradient runs into them.

    Source: arXiv:2502.00361, reweighted score matching.
    """
    error = predict_noise(diffuse(schedule, data, noise, t), t) - noise
    return weighted_mean(error**2, weight)


def sample(
    key: jax.Array,
    schedule: Schedule,
    predict_noise: PredictNoise,
    start: Float[Array, "... D"],
    *,
    clip: float | None = 1.0,
) -> Float[Array, "... D"]:
    """Draws from the reverse chain, from `start` at the last step; no noise is added at the end.

    Args:
        key: PRNG key for the noise of all steps.
        schedule: noise by step.
        predict_noise: network, `predict_noise(x, t)`.
        start: `[..., D]`, standard normal noise.
        clip: bound within which the predicted data are kept at every step, [-clip, clip]; None
            leaves them.

    Source: Ho et al. 2020, algorithm 2 with the posterior's own variance.
    """

    def reverse(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
        steps = t.reshape((1,) * (x.ndim - 1))
        data = predict_data(schedule, x, predict_noise(x, steps), steps)
        if clip is not None:
            data = jnp.clip(data, -clip, clip)
        of_data, of_noisy, variance = (
            field.astype(x.dtype)[t]
            for field in (schedule.of_data, schedule.of_noisy, schedule.posterior_variance)
        )
        noise = jax.random.normal(jax.random.fold_in(key, t), x.shape, x.dtype)
        return of_data * data + of_noisy * x + jnp.sqrt(variance) * noise, None

    steps = jnp.arange(schedule.num_steps - 1, -1, -1, dtype=jnp.int32)
    return jax.lax.scan(reverse, start, steps)[0]


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
