"""The policy that every method of this room trains: a Gaussian squashed by tanh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import PyTree
from jaxlab.envs import spaces
from jaxlab.learning import distributions
from jaxlab.nn import Mlp, orthogonal

LOG_STD = (-5.0, 2.0)
"""Bounds of the logarithm of the standard deviation before tanh, reached smoothly."""
_BOUND = 1.0 - 1e-6
"""Actions of data are clipped to it: those at the bounds of their range are common, and have an
unbounded density otherwise."""


class Policy(NamedTuple):
    """Pure functions of one network; leading axes are a batch.

    Attributes:
        obs_size, action_size: O, with the flag, and A.
        init: `init(key) -> params`.
        law: `law(params, obs [..., O]) -> [..., 2 A]`, means and logarithms of standard deviations
            before tanh.
        sample: `sample(key, params, obs) -> [..., A]` in [-1, 1], with a gradient.
        draw: `draw(key, params, obs) -> (action, [...])`, the same and its log-density.
        log_prob: `log_prob(params, obs, action) -> [...]`, log-density of an action of data, which
            is clipped to 1 - 1e-6.
        mode: `mode(params, obs) -> [..., A]`, tanh of the mean.
    """

    obs_size: int
    action_size: int
    init: Callable[[jax.Array], PyTree]
    law: Callable[[PyTree, jax.Array], jax.Array]
    sample: Callable[[jax.Array, PyTree, jax.Array], jax.Array]
    draw: Callable[[jax.Array, PyTree, jax.Array], tuple[jax.Array, jax.Array]]
    log_prob: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    mode: Callable[[PyTree, jax.Array], jax.Array]


def make_policy(
    obs_size: int,
    action_size: int,
    *,
    hidden: tuple[int, ...] = (256, 256),
    activation: Callable[[jax.Array], jax.Array] = nn.relu,
) -> Policy:
    """Makes the policy; orthogonal weights, log std = -5 + 3.5 (tanh(raw) + 1).

    Raises:
        ValueError: if a size is below 1.
    """
    if not all(map(spaces.is_count, (obs_size, action_size))):
        raise ValueError(
            f"obs_size and action_size must be at least 1, got {obs_size} and {action_size}"
        )
    network: Any = Mlp(hidden, 2 * action_size, activation, orthogonal())
    squashed = distributions.squashed_gaussian(action_size)
    low, high = LOG_STD

    def law(params: PyTree, obs: Float[Array, "... O"]) -> Float[Array, "... P"]:
        mean, raw = jnp.split(network.apply(params, obs), 2, axis=-1)
        log_std = low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)
        return jnp.concatenate([mean, log_std], axis=-1)

    def draw(key: jax.Array, params: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_std = jnp.split(law(params, obs), 2, axis=-1)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        x = mean + jnp.exp(log_std) * noise
        return jnp.tanh(x), distributions.squashed_logp(x, noise, log_std)

    def log_prob(params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        return squashed.log_prob(law(params, obs), jnp.clip(action, -_BOUND, _BOUND))

    return Policy(
        obs_size,
        action_size,
        init=lambda key: network.init(key, jnp.zeros((obs_size,))),
        law=law,
        sample=lambda key, params, obs: draw(key, params, obs)[0],
        draw=draw,
        log_prob=log_prob,
        mode=lambda params, obs: squashed.mode(law(params, obs)),
    )


def orthogonality(params: PyTree) -> Float[Array, ""]:
    """Returns the sum over layers of ||offdiag(W' W)||^2, columns of W the units of a layer."""
    total = jnp.zeros(())
    for path, W in jax.tree.leaves_with_path(params):
        if jax.tree_util.keystr(path, simple=True, separator=".").endswith("kernel"):
            gram = W.T @ W
            total = total + jnp.sum(gram**2) - jnp.sum(jnp.diagonal(gram) ** 2)
    return total
