"""Score matching to a density known up to a constant: noise is drawn in reverse, from x_t.

Ma et al. 2025, arXiv:2502.00361. For a target p(a) proportional to exp(f(a)), noise drawn from the
standard normal turns x_t into candidates for a; weighted by exp(f), their mean noise is what the
best noise prediction says at x_t. No sample of p is needed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.diffusion import ddpm


def candidates(
    schedule: ddpm.Schedule,
    x: Float[Array, "... D"],
    noise: Float[Array, "M ... D"],
    t: Int[Array, "..."],
    *,
    clip: float | None = 1.0,
) -> Float[Array, "M ... D"]:
    """Returns the data `[M, ..., D]` that x_t may have come from, one for each noise.

    Args:
        schedule: noise by step.
        x: `[..., D]`, noisy data at step t.
        noise: `[M, ..., D]`, standard normal.
        t: `[...]` int32, steps in 0 to T - 1.
        clip: bound within which candidates are kept, [-clip, clip]; None leaves them, which is
            exact.
    """
    found = jax.vmap(lambda e: ddpm.predict_data(schedule, x, e, t))(noise)
    return found if clip is None else jnp.clip(found, -clip, clip)


def mean_noise(
    log_weight: Float[Array, "M ..."], noise: Float[Array, "M ... D"]
) -> Float[Array, "... D"]:
    """Returns sum_j softmax_j(log_weight) noise_j: the self-normalized estimate of E[noise | x_t].

    A noise prediction that is fitted to it has the gradient of one that is fitted to all noises
    with their weights, at one evaluation a state instead of M.
    """
    weight = jax.nn.softmax(log_weight, axis=0)
    return jnp.sum(weight[..., None] * noise, axis=0)


def loss(
    predict_noise: ddpm.PredictNoise,
    x: Float[Array, "... D"],
    t: Int[Array, "..."],
    log_weight: Float[Array, "M ..."],
    noise: Float[Array, "M ... D"],
) -> Float[Array, ""]:
    """Returns mean |eps(x_t, t) - mean noise|^2 / M, whose gradient is that of `loss_of_all`.

    No gradient runs into the weights.
    """
    wanted = jax.lax.stop_gradient(mean_noise(log_weight, noise))
    return jnp.mean((predict_noise(x, t) - wanted) ** 2) / log_weight.shape[0]


def loss_of_all(
    predict_noise: ddpm.PredictNoise,
    x: Float[Array, "... D"],
    t: Int[Array, "..."],
    log_weight: Float[Array, "M ..."],
    noise: Float[Array, "M ... D"],
) -> Float[Array, ""]:
    """Returns mean over samples, candidates and dimensions of w_j |eps(x_t, t) - noise_j|^2.

    The form of the paper and its released code; `loss` is cheaper and has the same gradient.
    """
    weight = jax.lax.stop_gradient(jax.nn.softmax(log_weight, axis=0))
    error = predict_noise(x, t)[None] - noise
    return jnp.mean(weight[..., None] * error**2)


def draw_noise(key: jax.Array, num: int, like: Float[Array, "... D"]) -> Float[Array, "M ... D"]:
    """Draws `[num, ..., D]` standard normal noise for points like `like`.

    Raises:
        ValueError: if `num` is below 1.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    return jax.random.normal(key, (num, *like.shape), like.dtype)
