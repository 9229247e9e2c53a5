"""Returns from rewards and values, with a discount for every step.

A discount is gamma (1 - terminated), or gamma^k (1 - terminated) of an action that lasts k steps of
the clock: length and termination are one array.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def gae(
    reward: Float[Array, "T ..."],
    value: Float[Array, "T ..."],
    next_value: Float[Array, "T ..."],
    discount: Float[Array, "T ..."],
    done: Bool[Array, "T ..."],
    *,
    gae_lambda: float | Float[Array, ""],
) -> tuple[Float[Array, "T ..."], Float[Array, "T ..."]]:
    """Computes generalized advantages; truncation keeps the bootstrap, and ends the sum.

    Args:
        reward: `[T, ...]` after acting at step t; of an action that lasts several steps, their
            discounted sum.
        value: V of the observation acted on.
        next_value: V of the true next observation, before any new start.
        discount: gamma (1 - terminated), or gamma^k (1 - terminated) of an action of k steps.
        done: whether the episode ended after step t, terminated or truncated.
        gae_lambda: decay of the sum, in [0, 1].

    Returns:
        `(advantage, target)`, both `[T, ...]` without gradient; target = advantage + value.

    Raises:
        ValueError: if shapes differ, `done` is not bool, or `gae_lambda` is a number outside
            [0, 1].

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16; differs by the bootstrap of a truncated
        step.

    Example:
        >>> one = jnp.ones((3,))
        >>> done = jnp.asarray([False, False, True])
        >>> gae(one, 0.0 * one, 0.0 * one, 0.5 * one, done, gae_lambda=1.0)[0]
        Array([1.75, 1.5 , 1.  ], dtype=float32)
    """
    shapes = [jnp.shape(x) for x in (reward, value, next_value, discount, done)]
    if len(set(shapes)) > 1 or not shapes[0]:
        raise ValueError(
            "reward, value, next_value, discount and done must be [T, ...] of one shape, got "
            + ", ".join(map(str, shapes))
        )
    if done.dtype != jnp.bool_:
        raise ValueError(f"done must be bool, terminated | truncated, got {done.dtype}")
    if isinstance(gae_lambda, int | float) and not 0.0 <= gae_lambda <= 1.0:
        raise ValueError(f"gae_lambda must lie in [0, 1], got {gae_lambda}")
    return _gae(reward, value, next_value, discount, done, gae_lambda)


@jax.jit
def _gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    discount: jax.Array,
    done: jax.Array,
    gae_lambda: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    delta = reward + discount * next_value - value
    decay = gae_lambda * jnp.where(done, 0.0, discount)

    def back(later: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        delta, decay = inputs
        now = delta + decay * later
        return now, now

    _, advantage = jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return jax.lax.stop_gradient((advantage, advantage + value))


def td_target(
    next_q: Float[Array, "..."], reward: Float[Array, "..."], discount: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns reward + discount Q(s', a'), without gradient.

    Args:
        next_q: `[...]` value of the next action at the true next observation.
        reward: of the step, as in `gae`.
        discount: gamma (1 - terminated), so that a truncated episode bootstraps like any.

    Raises:
        ValueError: if shapes differ.
    """
    shapes = [jnp.shape(x) for x in (next_q, reward, discount)]
    if len(set(shapes)) > 1:
        raise ValueError(
            "next_q, reward and discount must have one shape, got " + ", ".join(map(str, shapes))
        )
    return jax.lax.stop_gradient(reward + discount * next_q)
