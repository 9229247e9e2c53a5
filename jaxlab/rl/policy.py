"""What an actor is to the learner: how it acts, what it proposes, and how it is improved.

`learner` writes critics, replay, targets, exploration and the temperature once; methods differ in
this record. All functions are pure; `q` is always the smaller of two critics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.rl import critics, temperature
from jaxlab.rl.weights import Stats


class Context(NamedTuple):
    """What a policy may learn from, after the critics have moved.

    Attributes:
        obs, action, next_obs: `[B, ...]` from the replay, observations encoded.
        terminated: `[B]` bool.
        next_action: `[B, A]`, the one whose value was the critics' target.
        extras: what the policy stores with a transition, see `Policy.extras`.
        q: online critics, the smaller of both.  q_first: the first of them.
        q_target: target critics, the smaller of both.
        alpha: temperature.  stats: running mean and std of values.
        updates: int32, gradient steps of the critics so far.
    """

    obs: Float[Array, "B O"]
    action: Float[Array, "B A"]
    next_obs: Float[Array, "B O"]
    terminated: Bool[Array, " B"]
    next_action: Float[Array, "B A"]
    extras: Any
    q: critics.Q
    q_first: critics.Q
    q_target: critics.Q
    alpha: Float[Array, ""]
    stats: Stats
    updates: Int[Array, ""]


class Improvement(NamedTuple):
    """What a policy's loss returns beside the loss.

    Attributes:
        values: `[...]` of the actions it looked at, for the running statistics.
        entropy_gap: entropy less its target, whose multiple is the temperature's gradient.
        metrics: scalars to log.
    """

    values: Float[Array, "..."]
    entropy_gap: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


class Policy(NamedTuple):
    """An actor.

    Attributes:
        action_size: A.
        init: `init(key) -> params`.
        act: `act(key, params, obs [B, O], q, alpha, *, explore) -> [B, A]`; `explore` is static.
        propose: `propose(key, params, target_params, obs, q, alpha) -> (action, bonus, metrics)`:
            the next action whose value is the critics' target, and what is added to it, `[B]`.
        loss: `loss(key, params, context) -> (loss, Improvement)`.
        optimizer: of the parameters.
        act_with_average: act with the running average of the parameters.
        policy_every: critic updates for one of the policy and of all targets.
        alpha_init, alpha_every, alpha_learning_rate: of the temperature; it moves every so many
            critic updates, never if 0.
        extras: `extras(action [E, A])`, stored with transitions, or None for nothing.
        refine: `refine(key, params, context) -> extras`, written back to the replay, or None.
    """

    action_size: int
    init: Callable[[jax.Array], Any]
    act: Callable[..., jax.Array]
    propose: Callable[..., tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
    loss: Callable[[jax.Array, Any, Context], tuple[jax.Array, Improvement]]
    optimizer: optax.GradientTransformation
    act_with_average: bool = True
    policy_every: int = 2
    alpha_init: float = 5.0
    alpha_every: int = 250
    alpha_learning_rate: float = 7e-3
    extras: Callable[[jax.Array], Any] | None = None
    refine: Callable[[jax.Array, Any, Context], Any] | None = None


def decaying_adam(
    learning_rate: float = 3e-4, *, end: float = 3e-5, begin: int = 25_000, over: int = 50_000
) -> optax.GradientTransformation:
    """Makes the released optimizer: Adam whose rate falls linearly, in policy steps."""
    schedule = optax.linear_schedule(learning_rate, end, over, transition_begin=begin)
    return optax.adam(schedule)


def noise_gap(alpha: Float[Array, ""], action_size: int, **options: float) -> Float[Array, ""]:
    """Returns entropy less target of the added noise, see `temperature.temperature_gradient`."""
    return temperature.temperature_gradient(jnp.log(alpha), action_size, **options)
