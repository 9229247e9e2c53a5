"""How far one Euler step is from the flow: a bound by a variance, and distances to hold against it.

One step of a rectified flow is exact where paths do not cross. Where several data may have led to
the same x_t, the step goes to their mean, and errs by their spread (AdaFlow, Hu et al. 2024;
arXiv:2507.23675, propositions 1 and 2).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.diffusion import rectified_flow


def wasserstein(x: Float[Array, " N"], y: Float[Array, " M"]) -> Float[Array, ""]:
    """Returns the 2-Wasserstein distance of two samples in one dimension, exactly.

    The coupling of quantiles is optimal: the integral of their squared difference, over the common
    refinement of both grids.

    Raises:
        ValueError: if a sample is empty, or not one number each.
    """
    if x.ndim != 1 or y.ndim != 1 or not (x.size and y.size):
        raise ValueError(
            f"samples must be [N] and [M] with at least one number each, got {x.shape} and "
            f"{y.shape}; take one dimension at a time"
        )
    if x.shape == y.shape:
        return jnp.sqrt(jnp.mean((jnp.sort(x) - jnp.sort(y)) ** 2))
    x, y = jnp.sort(x), jnp.sort(y)
    N, M = x.size, y.size
    dtype = x.dtype
    steps = [jnp.arange(1, n + 1).astype(dtype) / n for n in (N, M)]
    edges = jnp.sort(jnp.concatenate(steps))
    width = jnp.diff(edges, prepend=jnp.zeros((1,), dtype))
    middle = edges - 0.5 * width
    i, j = (jnp.clip((middle * n).astype(jnp.int32), 0, n - 1) for n in (N, M))
    return jnp.sqrt(jnp.sum(width * (x[i] - y[j]) ** 2))


def step_bound(
    velocity: rectified_flow.Velocity,
    data: Float[Array, "B D"],
    noise: Float[Array, "B D"],
    t: float,
    step: float,
) -> Float[Array, ""]:
    """Returns a bound of the W2 distance after one Euler step from the exact x_t.

    Both x_t + h (data - noise), which is distributed as x_{t+h}, and the step x_t + h v are
    functions of the same draw, so W2^2 <= h^2 E |data - noise - v|^2: h^2 times the flow matching
    loss at t. With the exact v it is h^2 times the expected conditional variance; with a learned
    one it holds too, and tells what is left to learn.

    Args:
        data: `[B, D]`, drawn from the target.
        noise: `[B, D]`, standard normal.
        t: time at which the step begins.
        step: length h of the step.
    """
    times = jnp.full(data.shape[:1], t, data.dtype)
    x = rectified_flow.interpolate(data, noise, times)
    error = data - noise - velocity(x, times)
    return step * jnp.sqrt(jnp.mean(jnp.sum(error**2, axis=-1)))


def mode_shares(
    x: Float[Array, "N D"], modes: Float[Array, "K D"], *, radius: float
) -> Float[Array, " K"]:
    """Returns the share of samples within `radius` of each mode, `[K]`."""
    distance = jnp.linalg.norm(x[:, None] - modes[None], axis=-1)
    return jnp.mean((distance <= radius).astype(x.dtype), axis=0)
