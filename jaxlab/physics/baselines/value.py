"""What guidance and residual losses take for a value, r(D(x_t)), against E[r(x_0) | x_t]."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.diffusion import edm
from jaxlab.learning import settings as settings_lib


class Values(NamedTuple):
    """Two values of the same states; each field is `[B]`.

    Attributes:
        approximate: r(D(x_t)), as guidance takes it.
        mean: E[r(x_0) | x_t] by Monte Carlo.
        std_error: Standard error of that mean.
    """

    approximate: Array
    mean: Array
    std_error: Array


def value_error(
    key: jax.Array,
    denoiser: edm.Denoiser,
    reward: Callable[[jax.Array], jax.Array],
    x: Float[Array, "B ..."],
    sigma: float,
    *,
    num_samples: int = 64,
    num_steps: int = 40,
) -> Values:
    """Estimates the value of noisy states, and what r(D(x_t)) says instead.

    With a reward that is minus a square, r(D(x_t)) is too high by the variance of the residual: the
    Jensen gap. It is 0 where the residual is linear and the data obey it, as with Poisson.

    Args:
        key: PRNG key of the samples.
        denoiser: D.
        reward: `reward(x [B, ...]) -> [B]`.
        x: `[B, ...]`, states at level `sigma`.
        sigma: their level, above 0.002.
        num_samples: draws of x_0 for each state.
        num_steps: steps of each draw, from `sigma` down.

    Raises:
        ValueError: if a number is out of range.

    Source: arXiv:2509.20570, on the approximation of values; the linear case is derived here.
    """
    settings_lib.check_count(num_samples, "num_samples", 2)
    settings_lib.check_count(num_steps, "num_steps", 2)
    if not edm.SIGMA_MIN < sigma < np.inf:
        raise ValueError(f"sigma must be above {edm.SIGMA_MIN} and finite, got {sigma}")
    levels = edm.sigmas(num_steps, sigma_max=sigma)

    def draw(key: jax.Array) -> jax.Array:
        return reward(posterior_sample(key, denoiser, x, levels))

    found = jax.lax.map(draw, jax.random.split(key, num_samples))
    error = jnp.std(found, axis=0, ddof=1) / num_samples**0.5
    clean = denoiser(x, jnp.asarray(sigma, x.dtype))
    return Values(reward(clean), jnp.mean(found, axis=0), error)


def posterior_sample(
    key: jax.Array, denoiser: edm.Denoiser, x: Float[Array, "B ..."], levels: np.ndarray
) -> Float[Array, "B ..."]:
    """Draws x_0 given x at `levels[0]` by the reverse chain, noise at every level but the last.

    From s to t < s: x_t = D + (t / s)^2 (x_s - D) + t sqrt(1 - (t / s)^2) n.
    """

    def back(x: jax.Array, at: tuple) -> tuple[jax.Array, None]:
        key, now, then = at
        share = (then / now) ** 2
        clean = denoiser(x, now)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return clean + share * (x - clean) + then * jnp.sqrt(1.0 - share) * noise, None

    at = jnp.asarray(levels, x.dtype)
    keys = jax.random.split(key, len(levels) - 2)
    x, _ = jax.lax.scan(back, x, (keys, at[:-2], at[1:-1]))
    return denoiser(x, at[-2])
