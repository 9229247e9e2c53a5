"""Guidance: samples are pushed down the residual while they are drawn, the weights left alone.

DiffusionPDE (Huang et al. 2024, arXiv:2406.17763) and CoCoGen (Jacobsen et al. 2023,
arXiv:2312.10527), as PIRF's released code has them. A guided step costs a gradient through the
network.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.diffusion import edm
from jaxlab.learning import settings as settings_lib
from jaxlab.physics import pde as pde_lib
from jaxlab.physics.pde import Pde
from jaxlab.physics.stencils import Region

Penalty = Callable[[jax.Array], jax.Array]
"""`penalty(x [B, H, W, C]) -> [B]`, or a scalar of the whole batch: what is pushed down."""
Norm = Literal["field", "batch"]
"""One norm for each field, or one for the batch, which makes a field's step depend on others."""


def residual_norm(
    pde: Pde, *, region: Region = "interior", repo_exact: bool = False, norm: Norm = "field"
) -> Penalty:
    """Makes |R(x)|_2; "batch" is the released form.

    Raises:
        ValueError: if the norm is unknown.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")

    def penalty(x: jax.Array) -> jax.Array:
        squares = pde_lib.residual(pde, x, region=region, repo_exact=repo_exact) ** 2
        return _root(jnp.sum(squares, axis=(-2, -1) if norm == "field" else None))

    return penalty


def sensor_norm(mask: Float[Array, "H W C"], values: Float[Array, "... H W C"]) -> Penalty:
    """Makes |mask (x - values)|_2 of each field: sparse sensors, in normalized units.

    Args:
        mask: `[H, W, C]`, true where there is a sensor.
        values: `[H, W, C]`, or `[B, H, W, C]`, what they read.

    Raises:
        ValueError: if there is no sensor, or shapes differ.
    """
    kept = np.asarray(mask, bool)
    if not kept.any():
        raise ValueError("mask must keep a sensor, got none")
    if tuple(values.shape[-3:]) != kept.shape:
        raise ValueError(f"values must have the mask's shape {kept.shape}, got {values.shape}")

    def penalty(x: jax.Array) -> jax.Array:
        target = values if values.ndim == x.ndim else values[None]
        error = jnp.where(kept[None], x - target, 0.0)
        return _root(jnp.sum(error**2, axis=(-3, -2, -1)))

    return penalty


def guided_sample(
    denoiser: edm.Denoiser,
    noise: Float[Array, "B H W C"],
    penalty: Penalty,
    *,
    zeta: float,
    num_steps: int = 40,
    start: float = 0.8,
    post_steps: int = 0,
) -> Float[Array, "B H W C"]:
    """Samples; from step `start` N on, each step also goes down the penalty of what it denoised.

    x_{i+1} -= zeta grad_{x_i} penalty(D), for i > start N, with D the last output of the denoiser
    in that step; then `post_steps` times x -= zeta grad penalty(x) (CoCoGen).

    Args:
        denoiser: D.
        noise: `[B, H, W, C]`, standard normal.
        penalty: see `residual_norm`, `sensor_norm`, or a sum of weighted ones. Its scale depends
            on the grid and on the number of sensors, so zeta is tuned for each.
        zeta: length of a step; 5e-6 to 1e-3 with the published norm.
        num_steps: N.
        start: share of the steps that is not guided.
        post_steps: corrections at the end, 1 to 5 in CoCoGen.

    Raises:
        ValueError: if a number is out of range.
    """
    levels = edm.sigmas(num_steps)
    if not 0.0 <= zeta < np.inf:
        raise ValueError(f"zeta must be finite and not negative, got {zeta}")
    if not 0.0 <= start <= 1.0:
        raise ValueError(f"start must lie in [0, 1], got {start}")
    settings_lib.check_count(post_steps, "post_steps", 0)
    first = min(int(np.floor(start * num_steps)) + 1, num_steps)
    x = edm.heun_steps(denoiser, float(levels[0]) * noise, levels, 0, first)

    def step(x: jax.Array, now: jax.Array, then: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next state, and the last denoised field."""
        slope = (x - denoiser(x, now)) / now
        ahead = x + (then - now) * slope
        clean = denoiser(ahead, then)
        return x + 0.5 * (then - now) * (slope + (ahead - clean) / then), clean

    def guided(x: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        def value(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            ahead, clean = step(x, pair[0], pair[1])
            return jnp.sum(penalty(clean)), ahead

        push, ahead = jax.grad(value, has_aux=True)(x)
        return ahead - zeta * push, None

    if first < num_steps - 1:
        pairs = np.stack([levels[first:-2], levels[first + 1 : -1]], axis=1)
        x, _ = jax.lax.scan(guided, x, jnp.asarray(pairs, x.dtype))
    if first < num_steps:

        def last(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            clean = denoiser(x, jnp.asarray(levels[-2], x.dtype))
            return jnp.sum(penalty(clean)), clean

        push, clean = jax.grad(last, has_aux=True)(x)
        x = clean - zeta * push
    push_down = jax.grad(lambda x: jnp.sum(penalty(x)))
    for _ in range(post_steps):
        x = x - zeta * push_down(x)
    return x


def _root(squares: jax.Array) -> jax.Array:
    """The square root, with a gradient of 0 at 0."""
    safe = jnp.where(squares > 0.0, squares, 1.0)
    return jnp.where(squares > 0.0, jnp.sqrt(safe), 0.0)
