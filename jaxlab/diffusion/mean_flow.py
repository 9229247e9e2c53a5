"""MeanFlow: the average velocity between two times, so that one evaluation crosses them.

Geng et al. 2025, arXiv:2505.13447. Data lie at t = 0 and noise at t = 1, against `rectified_flow`;
z_t = (1 - t) data + t noise, and the instantaneous velocity is noise - data.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.diffusion import rectified_flow

AverageVelocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`average_velocity(z [..., D], r [...], t [...]) -> [..., D]`, r <= t; their axes may be 1."""


def interpolate(
    data: Float[Array, "... D"], noise: Float[Array, "... D"], t: Float[Array, "..."]
) -> Float[Array, "... D"]:
    """Returns z_t = (1 - t) data + t noise."""
    return rectified_flow.interpolate(noise, data, t)


def sample_times(
    key: jax.Array,
    shape: tuple[int, ...],
    *,
    equal: float = 0.0,
    distribution: Literal["uniform", "logit_normal"] = "uniform",
) -> tuple[jax.Array, jax.Array]:
    """Draws ordered pairs r <= t in [0, 1], each `shape`.

    Args:
        equal: share of pairs with r = t, where the loss is that of flow matching. MeanFlow's images
            take 0.75, flow policies 0.
        distribution: distribution of both times before they are ordered; "logit_normal" is the
            sigmoid of N(-0.4, 1).

    Raises:
        ValueError: if `equal` is not in [0, 1], or there is no such distribution.
    """
    check_times(equal, distribution)
    key_times, key_equal = jax.random.split(key)
    if distribution == "uniform":
        times = jax.random.uniform(key_times, (2, *shape))
    else:
        times = jax.nn.sigmoid(jax.random.normal(key_times, (2, *shape)) - 0.4)
    r, t = jnp.min(times, axis=0), jnp.max(times, axis=0)
    return jnp.where(jax.random.uniform(key_equal, shape) < equal, t, r), t


def check_times(equal: float, distribution: str) -> None:
    """Raises `ValueError` for what `sample_times` cannot draw."""
    if not 0.0 <= equal <= 1.0:
        raise ValueError(f"equal must lie in [0, 1], got {equal}")
    if distribution not in ("uniform", "logit_normal"):
        raise ValueError(f"distribution must be uniform or logit_normal, got {distribution!r}")


def target(
    average_velocity: AverageVelocity,
    z: Float[Array, "... D"],
    velocity: Float[Array, "... D"],
    r: Float[Array, "..."],
    t: Float[Array, "..."],
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """Returns u(z, r, t) and what MeanFlow's identity says it is, v - (t - r) du/dt.

    du/dt is the derivative along (v, 0, 1): how u changes while z moves with the flow.

    Args:
        average_velocity: network, `average_velocity(z, r, t)`.
        z: `[..., D]`, points at time t.
        velocity: `[..., D]`, velocity of the flow at z; conditional ones, noise - data, serve in
            expectation.
        r: `[...]`, earlier times.
        t: `[...]`, later times.

    Returns:
        `(u, target)`; no gradient runs into the target.
    """
    u, du_dt = jax.jvp(average_velocity, (z, r, t), (velocity, jnp.zeros_like(r), jnp.ones_like(t)))
    return u, jax.lax.stop_gradient(velocity - (t - r)[..., None] * du_dt)


def loss(
    average_velocity: AverageVelocity,
    data: Float[Array, "... D"],
    noise: Float[Array, "... D"],
    r: Float[Array, "..."],
    t: Float[Array, "..."],
    weight: Float[Array, "..."] | None = None,
    *,
    adaptive_power: float = 0.0,
    adaptive_offset: float = 1e-3,
) -> Float[Array, ""]:
    """Returns mean over samples and dimensions of w |u - target|^2.

    Args:
        average_velocity: network, `average_velocity(z, r, t)`.
        data: `[..., D]`, drawn from the target.
        noise: `[..., D]`, standard normal.
        r: `[...]`, earlier times, see `sample_times`.
        t: `[...]`, later times.
        weight: `[...]`, weights of the samples, 1 if None; no gradient runs into them.
        adaptive_power: exponent p of the factor (|error|^2 + c)^-p; 0.5 is close to a Huber loss,
            and MeanFlow's images take 1.
        adaptive_offset: constant c of that factor.

    Source: MeanFlow eq. 9 to 11 and 22; arXiv:2507.23675 (FPMD-M).
    """
    z = interpolate(data, noise, t)
    u, wanted = target(average_velocity, z, noise - data, r, t)
    error = u - wanted
    if adaptive_power:
        squared = jnp.sum(error**2, axis=-1) + adaptive_offset
        adaptive = jax.lax.stop_gradient(squared**-adaptive_power)
        weight = adaptive if weight is None else weight * adaptive
    return rectified_flow.weighted_mean(error**2, weight)


def sample(
    average_velocity: AverageVelocity, start: Float[Array, "... D"], *, num_steps: int = 1
) -> Float[Array, "... D"]:
    """Goes from noise at t = 1 to data at t = 0 in equal steps, z_r = z_t - (t - r) u(z_t, r, t).

    Raises:
        ValueError: if `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    step = 1.0 / num_steps

    def jump(z: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        t = 1.0 - i.astype(z.dtype) * step
        r, t = (time.reshape((1,) * (z.ndim - 1)) for time in (t - step, t))
        return z - step * average_velocity(z, r, t), None

    return jax.lax.scan(jump, start, jnp.arange(num_steps, dtype=jnp.int32))[0]
