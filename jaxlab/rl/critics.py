"""Twin critics, stacked: two networks as one with a leading axis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.nn import Mlp, mish

Q = Callable[[jax.Array, jax.Array], jax.Array]
"""`q(obs [..., O], action [..., A]) -> [...]`, the smaller of two critics."""


class Critics(NamedTuple):
    """Two critics.

    Attributes:
        init: `init(key) -> params`, every leaf with a leading axis of two.
        apply: `apply(params, obs [..., O], action [..., A]) -> [2, ...]`.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]


def make_critics(
    obs_size: int,
    action_size: int,
    *,
    hidden: tuple[int, ...] = (256, 256, 256),
    activation: Callable[[jax.Array], jax.Array] = mish,
) -> Critics:
    """Makes critics with the widths and activation of the released code (three layers, Mish)."""
    network: Any = Mlp(hidden, 1, activation)

    def init(key: jax.Array) -> Any:
        obs, action = jnp.zeros((obs_size,)), jnp.zeros((action_size,))
        return jax.vmap(lambda k: network.init(k, obs, action))(jax.random.split(key))

    def apply(params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        return jax.vmap(lambda p: network.apply(p, obs, action)[..., 0])(params)

    return Critics(init, apply)


def smaller(critics: Critics, params: Any) -> Q:
    """Returns the function min(Q1, Q2)."""
    return lambda obs, action: jnp.min(critics.apply(params, obs, action), axis=0)


def td_target(
    next_q: Float[Array, " B"],
    reward: Float[Array, " B"],
    terminated: Bool[Array, " B"],
    *,
    gamma: float,
) -> Float[Array, " B"]:
    """Returns r + gamma (1 - terminated) Q(s', a'); a truncated episode bootstraps like any."""
    alive = 1.0 - terminated.astype(next_q.dtype)
    return jax.lax.stop_gradient(reward + gamma * alive * next_q)


def loss(
    critics: Critics, params: Any, obs: jax.Array, action: jax.Array, target: Float[Array, " B"]
) -> tuple[Float[Array, ""], Float[Array, " 2"]]:
    """Returns the sum of both critics' mean squared errors, and each critic's mean value."""
    q = critics.apply(params, obs, action)
    return jnp.sum(jnp.mean((q - target[None]) ** 2, axis=1)), jnp.mean(q, axis=1)


def best_of(
    q: Q, obs: Float[Array, "B O"], actions: Float[Array, "K B A"]
) -> tuple[Float[Array, "B A"], Float[Array, "K B"]]:
    """Returns the candidate with the largest value in each state, clipped to [-1, 1].

    Candidates are valued as they come and clipped afterwards, as in the released code.

    Returns:
        `(action [B, A], values [K, B])`.
    """
    values = q(jnp.broadcast_to(obs, (actions.shape[0], *obs.shape)), actions)
    best = jnp.argmax(values, axis=0)
    chosen = jnp.take_along_axis(actions, best[None, :, None], axis=0)[0]
    return jnp.clip(chosen, -1.0, 1.0), values
