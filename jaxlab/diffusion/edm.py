"""Diffusion by level of noise: preconditioned denoisers, their loss, Heun's sampler, Gaussians.

Karras, Aittala, Aila, Laine 2022, arXiv:2206.00364 (EDM). Data are x_0, and x = x_0 + sigma n.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
"""`denoiser(x [..., D], sigma) -> [..., D]`, the mean of the data given x; sigma is a scalar or has
the leading axes of x."""
SIGMA_DATA = 0.5
"""Standard deviation of data that networks are prepared for."""
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0


def precondition(network: Denoiser, *, sigma_data: float = SIGMA_DATA) -> Denoiser:
    """Makes a denoiser of a network F whose input and target have variance 1 at every level.

    D(x, s) = c_skip x + c_out F(c_in x, log(s) / 4), with c_skip = d^2 / (s^2 + d^2),
    c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2); x and D are in float32 or wider.

    Args:
        network: `network(x, c_noise)`, of any dtype.
        sigma_data: d, the data's standard deviation; 0.5 is kept for fields scaled to [-1, 1].

    Raises:
        ValueError: if `sigma_data` is not positive, x is narrower than float32, or the network
            returns another shape than that of x.

    Source: EDM, table 1 and section 5.
    """
    if not 0.0 < sigma_data < np.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}")

    def denoiser(x: jax.Array, sigma: jax.Array) -> jax.Array:
        if x.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"x must be float32 or float64, got {x.dtype}; the network may be less"
            )
        sigma = jnp.asarray(sigma, x.dtype)
        s = over(sigma, x)
        total = s**2 + sigma_data**2
        f = network(x * jax.lax.rsqrt(total), 0.25 * jnp.log(sigma))
        if f.shape != x.shape:
            raise ValueError(f"the network must keep the shape of x, {x.shape}, got {f.shape}")
        c_skip, c_out = sigma_data**2 / total, s * sigma_data * jax.lax.rsqrt(total)
        return c_skip * x + c_out * f.astype(x.dtype)

    return denoiser


def over(sigma: Float[Array, "..."], x: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Returns sigma with axes of 1 behind, so that it multiplies x.

    Raises:
        ValueError: if sigma is neither a scalar nor has leading axes of x, or ones.
    """
    if sigma.ndim > x.ndim or any(
        a not in (1, b) for a, b in zip(sigma.shape, x.shape, strict=False)
    ):
        raise ValueError(
            f"sigma must be a scalar or have the leading axes of x, got {sigma.shape} for {x.shape}"
        )
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))


def loss(
    denoiser: Denoiser,
    data: Float[Array, "B ..."],
    noise: Float[Array, "B ..."],
    sigma: Float[Array, " B"],
    *,
    sigma_data: float = SIGMA_DATA,
) -> Float[Array, ""]:
    """Returns the mean over samples and dimensions of w |D(y + s n, s) - y|^2.

    w = (s^2 + d^2) / (s d)^2 gives every level's error the variance of F's target.

    Args:
        denoiser: D.
        data: `[B, ...]`, y.
        noise: `[B, ...]`, standard normal.
        sigma: `[B]`, levels, see `draw_sigma`.
        sigma_data: d.

    Source: EDM, section 5.
    """
    s = over(sigma, data)
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    return jnp.mean(weight * (denoiser(data + s * noise, sigma) - data) ** 2)


def draw_sigma(
    key: jax.Array, shape: tuple[int, ...], *, mean: float = -1.2, std: float = 1.2
) -> Float[Array, "..."]:
    """Draws levels of noise whose logarithm is normal, as in training."""
    return jnp.exp(mean + std * jax.random.normal(key, shape))


def sigmas(
    num_steps: int, *, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> np.ndarray:
    """Returns the `[N + 1]` levels of the sampler, float32, from `sigma_max` down to 0.

    sigma_i = (max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho, and sigma_N = 0.

    Raises:
        ValueError: if there are fewer than two steps, or the levels are out of order.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 2:
        raise ValueError(f"num_steps must be an integer of at least 2, got {num_steps!r}")
    if not 0.0 < sigma_min < sigma_max < np.inf or not rho > 0.0:
        raise ValueError(
            "0 < sigma_min < sigma_max, finite, and rho > 0, got "
            f"{sigma_min}, {sigma_max} and {rho}"
        )
    share = np.arange(num_steps) / (num_steps - 1)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return np.append((high + share * (low - high)) ** rho, 0.0).astype(np.float32)


def heun_step(
    denoiser: Denoiser, x: Float[Array, "..."], now: jax.Array, then: jax.Array
) -> Float[Array, "..."]:
    """Goes from one level to a lower one above 0 by Heun's method: two calls of the denoiser."""
    slope = (x - denoiser(x, now)) / now
    ahead = x + (then - now) * slope
    return x + 0.5 * (then - now) * (slope + (ahead - denoiser(ahead, then)) / then)


def heun_steps(
    denoiser: Denoiser,
    x: Float[Array, "..."],
    levels: np.ndarray,
    start: int,
    stop: int,
    *,
    remat: bool = False,
) -> Float[Array, "..."]:
    """Takes steps `start` to `stop` - 1 of the sampler; the last, to 0, is x = D(x, sigma_min).

    Differentiable; the number of denoiser calls is 2 for each step and 1 for the last of all.

    Args:
        denoiser: D.
        x: the state at `levels[start]`.
        levels: `[N + 1]`, see `sigmas`.
        start, stop: static, 0 <= start <= stop <= N.
        remat: compute each step again in the backward pass instead of keeping its activations.

    Raises:
        ValueError: if the steps are out of range.
    """
    num = len(levels) - 1
    if not 0 <= start <= stop <= num:
        raise ValueError(f"0 <= start <= stop <= {num} must hold, got {start} and {stop}")

    def step(x: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        return heun_step(denoiser, x, pair[0], pair[1]), None

    def last(x: jax.Array) -> jax.Array:
        return denoiser(x, jnp.asarray(levels[num - 1], x.dtype))

    if remat:
        step, last = jax.checkpoint(step), jax.checkpoint(last)
    until = min(stop, num - 1)
    if start < until:
        pairs = np.stack([levels[start:until], levels[start + 1 : until + 1]], axis=1)
        x, _ = jax.lax.scan(step, x, jnp.asarray(pairs, x.dtype))
    return last(x) if start < stop == num else x


def sample(
    denoiser: Denoiser, noise: Float[Array, "..."], *, num_steps: int = 20
) -> Float[Array, "..."]:
    """Turns standard normal noise into samples by N steps of Heun's method, 2 N - 1 calls of D.

    Source: EDM, algorithm 1 without churn.
    """
    levels = sigmas(num_steps)
    return heun_steps(denoiser, float(levels[0]) * noise, levels, 0, num_steps)


class Gaussian(NamedTuple):
    """A normal distribution of zero mean by its principal axes.

    Attributes:
        axes: `[M, ...]`, orthonormal.
        variance: `[M]`, variances along them; along all others there is none.
    """

    axes: Array
    variance: Array

    def denoiser(self, x: Float[Array, "... _"], sigma: Array) -> Float[Array, "... _"]:
        """Returns the mean of the data given x: each axis is shrunk by v / (v + sigma^2)."""
        rank = self.axes.ndim - 1
        lead = x.shape[: x.ndim - rank]
        axes = self.axes.reshape(self.axes.shape[0], -1).astype(x.dtype)
        along = jnp.matmul(x.reshape(*lead, -1), axes.T, precision=jax.lax.Precision.HIGHEST)
        s = over(jnp.asarray(sigma, x.dtype), along)
        v = self.variance.astype(x.dtype).reshape((1,) * len(lead) + (-1,))
        kept = v / (v + s**2) * along
        return jnp.matmul(kept, axes, precision=jax.lax.Precision.HIGHEST).reshape(x.shape)

    def least_loss(self, sigma: Float[Array, "..."], *, sigma_data: float = SIGMA_DATA) -> Array:
        """Returns the loss at each level that no denoiser is below, w sum v s^2 / (v + s^2) / D."""
        size = int(np.prod(self.axes.shape[1:]))
        s2 = sigma[..., None] ** 2
        v = self.variance.astype(sigma.dtype).reshape((1,) * sigma.ndim + (-1,))
        left = jnp.sum(v * s2 / (v + s2), axis=-1) / size
        return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * left


def gaussian_of(factor: np.ndarray, *, least: float = 1e-12) -> Gaussian:
    """Returns the law of sum_m factor_m xi_m, xi standard normal.

    Args:
        factor: `[M, ...]`.
        least: share of the largest variance below which an axis has none.
    """
    flat = np.asarray(factor, np.float64).reshape(factor.shape[0], -1)
    _, scale, axes = np.linalg.svd(flat, full_matrices=False)
    kept = scale**2 > least * scale[0] ** 2
    axes = axes[kept].reshape(-1, *factor.shape[1:])
    return Gaussian(jnp.asarray(axes), jnp.asarray(scale[kept] ** 2))
