"""The dual variable nu(s, a) on frozen features, in four forms.

nu is minus the Q of arXiv:2508.14383 and the nu of ValueDICE (Kostrikov et al. 2020,
arXiv:1912.05032): the sign is turned here and nowhere else.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import PyTree
from jaxlab.imitation.data.preparing import Transitions
from jaxlab.imitation.representation import Representation
from jaxlab.nn import Mlp, orthogonal

Kind = Literal["paper", "repo", "linear", "mlp"]
OMEGA_STD = 1e-2
"""Standard deviation of the first weights of phi."""


class Dual(NamedTuple):
    """The dual variable at a batch, and what it is made of.

    Attributes:
        nu: `[...]`, the dual variable.
        correction: `[...]`, the part f that a small network adds; 0 where there is none.
        clamped: `[...]` bool, the logarithm of the head's third part was clamped.
    """

    nu: Float[Array, "..."]
    correction: Float[Array, "..."]
    clamped: Array


class Head(NamedTuple):
    """A form of the dual variable.

    Attributes:
        kind: which.
        init: `init(key, representation_params, expert) -> params`.
        dual: `dual(params, representation_params, obs, action) -> Dual`.
    """

    kind: Kind
    init: Callable[[jax.Array, PyTree, Transitions], PyTree]
    dual: Callable[[PyTree, PyTree, jax.Array, jax.Array], Dual]


def make_head(
    kind: Kind,
    obs_size: int,
    action_size: int,
    *,
    representation: Representation | None = None,
    gamma: float = 0.99,
    hidden: tuple[int, ...] = (256, 256),
    phi_input_grad: bool = True,
    least: float | None = None,
) -> Head:
    """Makes a head.

    "paper": nu = -(f + phi omega - log(max(mu theta + 1 - gamma, least))), with theta at its value
    for the expert, gamma E[phi]. "repo": nu = f + phi omega. "linear": nu = phi omega. "mlp": nu is
    a network and there are no features, which is ValueDICE.

    Args:
        kind: which form.
        obs_size, action_size: numbers of an observation with its flag, and of an action.
        representation: the features; not for "mlp".
        gamma: discount.
        hidden: of f, ELU, or of "mlp", ReLU; no bias at the end.
        phi_input_grad: whether gradients with respect to observation and action flow through the
            features, as they must for the policy and the penalty to see them. False is the
            authors' first code.
        least: what the logarithm is clamped at, positive; None: 1 - gamma, since mu theta is no
            less than 0 where it is what it stands for. The paper's 1e-6 has slopes of a million
            beside it, which the penalty on gradients cannot bear.

    Raises:
        ValueError: if the kind is unknown, features are missing or of other sizes, or a number is
            out of range.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"head must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if kind != "mlp":
        if representation is None:
            raise ValueError(f"head {kind!r} needs a representation; make_representation makes one")
        found = (representation.obs_size, representation.action_size)
        if found != (obs_size, action_size):
            raise ValueError(
                f"representation must be of {obs_size} and {action_size} numbers of observation "
                f"and action, got {found[0]} and {found[1]}"
            )
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must lie in (0, 1), got {gamma}")
    floor = 1.0 - gamma if least is None else least
    if not floor > 0.0:
        raise ValueError(f"least must be positive, got {least}")
    activation = nn.relu if kind == "mlp" else nn.elu
    network: Any = Mlp(hidden, 1, activation, orthogonal(), out_bias=False)

    def init(key: jax.Array, representation_params: PyTree, expert: Transitions) -> PyTree:
        key_network, key_omega = jax.random.split(key)
        params = {}
        if kind != "linear":
            zeros = (jnp.zeros((obs_size,)), jnp.zeros((action_size,)))
            params["network"] = network.init(key_network, *zeros)
        if representation is not None and kind != "mlp":
            size = (representation.feature_size,)
            params["omega"] = OMEGA_STD * jax.random.normal(key_omega, size)
            if kind == "paper":
                phi = representation.phi(representation_params, expert.obs, expert.action)
                params["theta"] = gamma * jnp.mean(phi, axis=0)
        return params

    def dual(
        params: PyTree, representation_params: PyTree, obs: jax.Array, action: jax.Array
    ) -> Dual:
        nothing = jnp.zeros(obs.shape[:-1], obs.dtype)
        f = nothing if kind == "linear" else network.apply(params["network"], obs, action)[..., 0]
        if representation is None or kind == "mlp":
            return Dual(f, nothing, nothing > 0.0)
        if not phi_input_grad:
            obs, action = jax.lax.stop_gradient((obs, action))
        linear = representation.phi_dot(representation_params, obs, action, params["omega"])
        if kind != "paper":
            return Dual(f + linear, f, nothing > 0.0)
        reached = representation.mu_dot(representation_params, obs, params["theta"]) + 1.0 - gamma
        return Dual(jnp.log(jnp.maximum(reached, floor)) - f - linear, f, reached < floor)

    return Head(kind, init, dual)
