"""Temperatures that are learned: by the entropy of a policy, or by a divergence from another.

Both are dual problems in one number. Its logarithm is what is stored and moved, so that it stays
positive; the gradient in the logarithm is the temperature times the gap to the constraint.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def entropy_dual_loss(
    log_alpha: Float[Array, ""],
    entropy: Float[Array, "..."],
    target_entropy: float | Float[Array, ""],
    *,
    in_log: bool = False,
) -> Float[Array, ""]:
    """Returns the loss whose descent keeps the mean entropy of a policy at a target.

    alpha (H - target) with H without gradient: alpha falls where there is more entropy than asked
    for. It is the dual of "maximize the return with at least this entropy".

    Args:
        log_alpha: logarithm of the temperature that multiplies the entropy in the policy's loss.
        entropy: of the policy in nats, of one state or several: -log pi of its own samples will do.
        target_entropy: in nats; SAC takes minus the number of action dimensions, a discrete policy
            a share of log(choices).
        in_log: multiply by log alpha in place of alpha, as released codes do: the same end, but a
            small temperature moves as fast as a large one.

    Source: Haarnoja et al. 2018, arXiv:1812.05905, eq. 18.
    """
    gap = jax.lax.stop_gradient(jnp.mean(entropy) - target_entropy).astype(log_alpha.dtype)
    return (log_alpha if in_log else jnp.exp(log_alpha)) * gap


def kl_dual_loss(
    log_temperature: Float[Array, ""], q: Float[Array, "M ..."], *, target_kl: float
) -> Float[Array, ""]:
    """Returns the dual of a radius: its least value is where KL(softmax(q / t) | uniform) is it.

    t (target_kl + log mean exp(q / t)), averaged over states; the mean is over the M samples of a
    state. It is the least upper bound, over t, of the mean value of any weights within the radius;
    its gradient in log t is t (target_kl - KL). Convex in t.

    Args:
        log_temperature: logarithm of t.
        q: `[M, ...]` values of M samples in each state, without gradient.
        target_kl: radius in nats, between 0 and log M.

    Raises:
        ValueError: if the radius is not between 0 and log M, which no weights of M samples pass.

    Source: Peters et al. 2010 (REPS), Abdolmaleki et al. 2018, arXiv:1806.06920, eq. 9.
    """
    if not target_kl > 0.0:
        raise ValueError(f"target_kl must be positive, got {target_kl}")
    if not target_kl < math.log(q.shape[0]):
        raise ValueError(
            f"target_kl must be below log M, {math.log(q.shape[0]):.3g} of {q.shape[0]} samples, "
            f"got {target_kl}"
        )
    q = jax.lax.stop_gradient(q)
    largest = jnp.max(q, axis=0)
    temperature = jnp.exp(log_temperature).astype(q.dtype)
    # Values less the largest of their state: a common offset does not cost the gradient digits.
    logs = jax.nn.logsumexp((q - largest[None]) / temperature, axis=0) - math.log(q.shape[0])
    return temperature * (target_kl + jnp.mean(logs)) + jnp.mean(largest)
