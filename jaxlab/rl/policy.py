"""What an actor is to the learner: how it acts, what it proposes, and how it is improved.

`learner` writes critics, replay, targets, exploration and the temperature once; methods differ in
this record. All functions are pure; `q` is always the smaller of two critics.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.envs.spaces import Space
from jaxlab.learning.settings import Settings
from jaxlab.rl import critics
from jaxlab.rl.weights import Stats

NOTHING: Mapping[str, Any] = types.MappingProxyType({})


class Context(NamedTuple):
    """What a policy may learn from, after the critics have moved.

    Attributes:
        obs: `[B, O]` observations of the replay, encoded.
        action: `[B, A]` actions taken there; `[B]` or `[B, K]` integers for choices.
        next_obs: `[B, O]` what the step led to, encoded.
        terminated: `[B]` bool, the episode ended by the decision process.
        next_action: like `action`, the one whose value was the critics' target.
        extras: What the policy stores with a transition, see `Policy.extras`.
        q: Online critics, the smaller of both.
        q_first: The first of the online critics.
        q_target: Target critics, the smaller of both.
        alpha: Temperature.
        stats: Running mean and standard deviation of values.
        updates: int32, gradient steps of the critics so far.
        action_mask, next_action_mask: `[B, num_logits]` bool, choices that were allowed at `obs`
            and are at `next_obs`; `()` without masks.
        settings: Numbers of the run, those of `Policy.loss_settings` among them.
        average_params: Running average of the policy's parameters, or those that it was renewed
            with last, see `Policy.renew_every`.
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
    action_mask: Any = ()
    next_action_mask: Any = ()
    settings: Settings = NOTHING
    average_params: Any = ()


class Improvement(NamedTuple):
    """What a policy's loss returns beside the loss.

    Attributes:
        values: `[...]` of the actions it looked at, for the running statistics.
        entropy_gap: Gradient in the logarithm of the temperature, which falls where it is positive:
            entropy less its target, or a multiple of that, see `learning.temperature`.
        metrics: Scalars to log.
    """

    values: Float[Array, "..."]
    entropy_gap: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


class Policy(NamedTuple):
    """An actor.

    Where the environment has action masks, `act` and `propose` take `mask [B, num_logits]` besides,
    a keyword: the choices that are allowed at their observations.

    Attributes:
        action_size: A, numbers in one action.
        init: `init(key) -> params`.
        act: `act(key, params, obs [B, O], q, alpha, *, explore) -> [B, A]`; `explore` is static.
        propose: `propose(key, params, target_params, obs, q, alpha) -> (action, bonus, metrics)`:
            the next action whose value is the critics' target, and what is added to it, `[B]`.
        loss: `loss(key, params, context) -> (loss, Improvement)`.
        optimizer: Optimizer of the parameters.
        act_with_average: Act with the running average of the parameters.
        policy_every: Critic updates for one of the policy and of all targets.
        alpha_init: Temperature at the start.
        alpha_every: Critic updates between two moves of the temperature; 0 for none.
        alpha_learning_rate: Learning rate of the temperature's Adam.
        extras: `extras(action [E, A])`, stored with transitions, or None for nothing.
        refine: `refine(key, params, context) -> extras`, written back to the replay, or None.
        action_space: The space that its networks know; None if any of that size will do.
        obs_size: O, numbers that its networks look at; None if it does not matter. They are the
            first of an observation: what follows is for critics alone.
        loss_settings: Numbers by name that the loss finds in `Context.settings`, so that they may
            be swept.
        renew_every: Steps of the policy after which the average parameters become the present ones;
            in between they stay, and are an old policy. 0: they follow by the learner's tau.
        name: What tells it from others that the same function made, for the learner's checkpoints.
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
    action_space: Space | None = None
    obs_size: int | None = None
    loss_settings: Mapping[str, float] = NOTHING
    renew_every: int = 0
    name: str = ""


def decaying_adam(
    learning_rate: float = 3e-4, *, end: float = 3e-5, begin: int = 25_000, over: int = 50_000
) -> optax.GradientTransformation:
    """Makes the released optimizer: Adam whose rate falls linearly, in policy steps."""
    schedule = optax.linear_schedule(learning_rate, end, over, transition_begin=begin)
    return optax.adam(schedule)


def see(obs: Float[Array, "... F"], obs_size: int) -> Float[Array, "... O"]:
    """Returns the first `obs_size` numbers, what an actor looks at of what critics see."""
    return obs[..., :obs_size]
