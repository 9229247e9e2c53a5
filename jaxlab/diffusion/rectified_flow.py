"""Rectified flow: a velocity field that carries noise at t = 0 to data at t = 1 on straight lines.

Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747. Time runs the other way in
`mean_flow`, as in its paper.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
"""`velocity(x [..., D], t [...]) -> [..., D]`; an axis of t is 1 where all share a time."""


def interpolate(
    data: Float[Array, "... D"], noise: Float[Array, "... D"], t: Float[Array, "..."]
) -> Float[Array, "... D"]:
    """Returns x_t = t data + (1 - t) noise."""
    t = t[..., None]
    return t * data + (1.0 - t) * noise


def loss(
    velocity: Velocity,
    data: Float[Array, "... D"],
    noise: Float[Array, "... D"],
    t: Float[Array, "..."],
    weight: Float[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """Returns mean over samples and dimensions of w |v(x_t, t) - (data - noise)|^2.

    Its minimizer is the mean of `data - noise` given x_t under the distribution of `data` tilted by
    w: a weight that depends on the data alone moves the flow's end there.

    Args:
        data: `[..., D]`, drawn from the target.
        noise: `[..., D]`, standard normal.
        t: `[...]`, times in [0, 1].
        weight: `[...]`, 1 by default; no gradient runs into it.

    Source: arXiv:2507.23675, eq. 9; `flow_policy_mirror_descent` (3.1).
    """
    error = velocity(interpolate(data, noise, t), t) - (data - noise)
    return weighted_mean(error**2, weight)


def sample(
    velocity: Velocity, start: Float[Array, "... D"], *, num_steps: int
) -> Float[Array, "... D"]:
    """Integrates dx/dt = v from t = 0 to 1 by Euler's method.

    Args:
        start: `[..., D]`, noise.
        num_steps: N; one step returns `start + v(start, 0)`.

    Raises:
        ValueError: if `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    step = 1.0 / num_steps

    def euler(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        t = (i.astype(x.dtype) * step).reshape((1,) * (x.ndim - 1))  # one time for all
        return x + step * velocity(x, t), None

    return jax.lax.scan(euler, start, jnp.arange(num_steps, dtype=jnp.int32))[0]


def weighted_mean(
    squares: Float[Array, "... D"], weight: Float[Array, "..."] | None
) -> Float[Array, ""]:
    """Returns the mean of `weight * squares` over all elements.

    Raises:
        ValueError: if the weights are not one a sample.
    """
    if weight is None:
        return jnp.mean(squares)
    if weight.shape != squares.shape[:-1]:
        raise ValueError(f"weight must be one a sample, {squares.shape[:-1]}, got {weight.shape}")
    return jnp.mean(jax.lax.stop_gradient(weight)[..., None] * squares)
