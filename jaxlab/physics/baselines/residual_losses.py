"""Losses that see the residual of the denoised field: PIDM, PBFM's rule, and the value alone.

All of them tune a base model on data, through `make_tuning`. What they look at is R(D(x_t)),
an estimate of the residual of the field that x_t becomes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.core.types import Metrics, PyTree
from jaxlab.diffusion import edm
from jaxlab.learning import settings as settings_lib
from jaxlab.physics import pde as pde_lib
from jaxlab.physics.base import check_fields
from jaxlab.physics.pde import Pde
from jaxlab.physics.stencils import Region
from jaxlab.physics.tuning import Objective

Kind = Literal["pidm_mean", "pidm_sample", "pbfm", "value"]
"""PIDM with D(x_t), or with D after a jump to the lowest level; PBFM's combination of gradients;
the reward of D(x_t) alone, which is what PIRF avoids."""


def residual_objective(
    kind: Kind,
    pde: Pde,
    apply: Callable[..., Any],
    data: Float[Array, "N H W C"] | np.ndarray,
    *,
    weight: float = 1e-4,
    unroll: int = 4,
    batch_size: int = 16,
    region: Region = "interior",
    bc_weight: float | None = None,
    repo_exact: bool = False,
) -> Objective:
    """Makes the objective of a rival that tunes on data, for `make_tuning`.

    With x_t = y + s n, y from the data, and means over samples and dimensions:

      "pidm_mean":   w |D(x_t) - y|^2 + weight sum R(D(x_t))^2 / (2 s)
      "pidm_sample": the same, with R at D(x') for the jump x' from s to the lowest level
      "pbfm":        w |D(x_t) - y|^2 and mean R(x_0)^2, x_0 unrolled from x_t; to be combined by
                     `conflict_free`
      "value":       -reward(D(x_t))

    Args:
        kind: which.
        pde, apply, region, repo_exact: see `make_pirf`.
        bc_weight: see `make_pirf`, of "value" alone, and 1 by default; the others have no edge.
        data: `[N, H, W, C]`, normalized fields.
        weight: PIDM's c; 1e-4 in the released code.
        unroll: PBFM's steps from x_t to x_0, the last of which denoises.
        batch_size: fields of an update; tell `make_tuning` the same.

    Raises:
        ValueError: if the kind is unknown, or settings or data do not fit.

    Example:
        >>> objective = residual_objective("pbfm", poisson(), network.apply, x)
        >>> tune = make_tuning(
        ...     params, objective, layers="none", regularizer="off", combine=conflict_free
        ... )

    Source: PIDM as PIRF's released code has it; PBFM is arXiv:2506.08604, its rule ConFIG (Liu et
    al. 2024, arXiv:2408.11104).
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"weight must be finite and not negative, got {weight}")
    if bc_weight is not None and kind != "value":
        raise ValueError(f"bc_weight is of the kind 'value' alone, got {bc_weight} for {kind!r}")
    edge = 1.0 if bc_weight is None else bc_weight
    settings_lib.check_count(unroll, "unroll")
    settings_lib.check_count(batch_size, "batch_size")
    check_fields(data)
    data = jnp.asarray(data)

    def squares(x: jax.Array) -> jax.Array:
        return pde_lib.residual(pde, x, region=region, repo_exact=repo_exact) ** 2

    jax.eval_shape(squares, data[:1])

    def objective(
        key: jax.Array, params: PyTree, anchor: PyTree
    ) -> tuple[tuple[jax.Array, ...], Metrics]:
        key_rows, key_noise, key_sigma = jax.random.split(key, 3)
        y = data[jax.random.randint(key_rows, (batch_size,), 0, data.shape[0])]
        noise = jax.random.normal(key_noise, y.shape, y.dtype)
        sigma = edm.draw_sigma(key_sigma, (batch_size,))
        denoiser = edm.precondition(lambda x, level: apply(params, x, level))
        x = y + edm.over(sigma, y) * noise
        if kind == "value":
            clean = denoiser(x, sigma)
            reward = pde_lib.reward(
                pde, clean, region=region, bc_weight=edge, repo_exact=repo_exact
            )
            return (-jnp.mean(reward),), {"tune/reward": jnp.mean(reward)}
        clean = denoiser(x, sigma)
        fit = edm.loss(lambda *_: clean, y, noise, sigma)
        num = {"pidm_mean": 1, "pidm_sample": 2, "pbfm": unroll}[kind]
        left = squares(unrolled(denoiser, x, clean, sigma, num))
        if kind == "pbfm":
            penalty = jnp.mean(left)
        else:
            each = jnp.sum(left, axis=(-2, -1)) / (2.0 * sigma)
            penalty = weight * jnp.mean(each) / y[0].size
        return (fit, penalty), {"tune/fit": fit, "tune/residual": jnp.mean(left)}

    return objective


def unrolled(
    denoiser: edm.Denoiser,
    x: Float[Array, "B ..."],
    clean: Float[Array, "B ..."],
    sigma: Float[Array, " B"],
    num: int,
) -> Float[Array, "B ..."]:
    """Returns the field that x becomes in `num` steps: Euler's down to the lowest level, then D.

    `clean` is D(x, sigma): one step ends there, and others begin with it. Levels fall
    geometrically; a sigma below the lowest level stays.
    """
    low = jnp.minimum(sigma, edm.SIGMA_MIN)
    for i in range(num - 1):
        now = sigma * (low / sigma) ** (i / (num - 1))
        then = sigma * (low / sigma) ** ((i + 1) / (num - 1))
        ratio = edm.over(then / now, x)
        x = ratio * x + (1.0 - ratio) * clean
        clean = denoiser(x, then)
    return clean


def conflict_free(grads: Sequence[PyTree]) -> PyTree:
    """Combines two gradients to one that descends both losses at equal rates (ConFIG).

    g = (g_1 . u + g_2 . u) u, u the unit vector along the sum of the unit vectors of each gradient
    orthogonal to the other. One that is zero, or opposite gradients, leave their sum.

    Raises:
        ValueError: if there are not two.

    Source: Liu, Chu, Thuerey 2024, arXiv:2408.11104, for two losses.
    """
    if len(grads) != 2:
        raise ValueError(f"grads must be those of two losses, got {len(grads)}")
    flat = [jax.flatten_util.ravel_pytree(g) for g in grads]
    (a, back), (b, _) = flat

    def unit(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        length = jnp.linalg.norm(v)
        return v / jnp.where(length > 0.0, length, 1.0), length

    (to_a, long_a), (to_b, long_b) = unit(a), unit(b)
    cosine = jnp.sum(to_a * to_b)
    # Of unit vectors: the sum of both orthogonal parts points along to_a + to_b.
    direction, length = unit(to_a + to_b)
    combined = (jnp.sum(a * direction) + jnp.sum(b * direction)) * direction
    usable = (long_a > 0.0) & (long_b > 0.0) & (length > 1e-6) & (cosine > -1.0)
    return back(jnp.where(usable, combined, a + b))
