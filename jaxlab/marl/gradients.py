"""Policy gradients of the optimistic value, exact, in all their forms.

By the envelope theorem the gradient needs no derivative of the tilted policy,

    d V(start) / d policy(a | s) = d(s) / (1 - gamma) weight(s, a),

where `weight` is the derivative of the risk measure by the probabilities (of the entropic one
(exp(beta A) - 1) / beta, with A = Q - V) and d is the discounted state distribution **of the tilted
policy**, not of the policy itself. An agent needs the mean of the weights over what its partners
do, and nothing else of them.

Zhang et al. 2025, arXiv:2509.24047; the weights of agents and the natural form are derived in the
room's README.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.risk import Risk
from jaxlab.envs.games import Game
from jaxlab.marl import values
from jaxlab.marl.values import Critic, Values

Form = Literal["softmax", "direct", "natural"]
States = Literal["tilted", "policy", "marginals"]


class Gradient(NamedTuple):
    """A gradient of the optimistic value.

    Attributes:
        agents: one `[S, A_i]` for each agent.
        values: what the gradient was computed from.
        visitation: `[S]`, the distribution of states that it was weighted by.
    """

    agents: tuple[Float[Array, "S A"], ...]
    values: Values
    visitation: Float[Array, " S"]


def agent_weights(
    q: Float[Array, "S ..."], policies: Sequence[Float[Array, "S A"]], agent: int, risk: Risk
) -> Float[Array, "S A"]:
    """Returns the mean weight of each action of one agent over what its partners do.

    Of the entropic measure it is (exp(beta (Q_i - V)) - 1) / beta with Q_i of `agent_values`. Its
    mean under the agent's policy is 0.
    """
    joint = values.joint_policy(policies)
    flat = risk.weight(q.reshape(q.shape[0], -1), joint.reshape(q.shape[0], -1))
    others = [jnp.ones_like(p) if i == agent else p for i, p in enumerate(policies)]
    return values.marginal(flat.reshape(q.shape) * values.joint_policy(others), agent)


def policy_gradient(
    game: Game,
    policies: Sequence[Float[Array, "S A"]],
    risk: Risk,
    *,
    gamma: float | jax.Array,
    form: Form = "softmax",
    states: States = "tilted",
    critic: Critic = "joint",
    initial: Float[Array, " S"] | None = None,
) -> Gradient:
    """Computes the gradient of the start's optimistic value by every agent's policy.

    Args:
        game: the game.
        policies: one `[S, A_i]` for each agent.
        risk: measure of the joint action.
        gamma: discount in [0, 1).
        form: "softmax": by logits. "direct": by probabilities, less a baseline that a projection
            on the simplex takes out anyway. "natural": by logits in the metric of Fisher, the
            weights themselves, which is mirror ascent.
        states: whose state distribution weights the first two forms. "tilted": that of the theorem.
            "policy": that of the policy itself, a bias that learners accept who only have its
            samples. "marginals": of the product of the tilted policy's marginals, which agents
            can act by.
        critic: see `values.evaluate`. The gradient is that of the joint critic's values; with
            "local" it is what agents follow who take luck for their partners' doing.
        initial: `[S]` values to start the evaluation with.

    Raises:
        ValueError: if a word is unknown, shapes do not fit, or `gamma` is outside [0, 1).
    """
    check_words(form=(form, Form), states=(states, States))
    joint = values.joint_policy(policies)
    found = values.evaluate(game, joint, risk, gamma=gamma, critic=critic, initial=initial)
    weights = [agent_weights(found.q, policies, i, risk) for i in range(len(policies))]
    acting = joint
    if states != "policy":
        acting = values.tilted_policy(found.q, joint, risk)
    if states == "marginals":
        acting = values.joint_policy([values.marginal(acting, i) for i in range(len(policies))])
    visited = values.visitation(game, acting, gamma=gamma)
    if form == "natural":
        return Gradient(tuple(weights), found, visited)
    scale = (visited / (1.0 - jnp.asarray(gamma, joint.dtype)))[:, None]
    if form == "softmax":
        weights = [p * w for p, w in zip(policies, weights, strict=True)]
    return Gradient(tuple(scale * w for w in weights), found, visited)


def project_simplex(x: Float[Array, "... A"]) -> Float[Array, "... A"]:
    """Returns the nearest probabilities along the last axis.

    Source: Held, Wolfe and Crowder 1974; the threshold is found by sorting.
    """
    ordered = -jnp.sort(-x, axis=-1)
    count = jnp.arange(1, x.shape[-1] + 1).astype(x.dtype)
    count = count.reshape((1,) * (x.ndim - 1) + count.shape)
    excess = (jnp.cumsum(ordered, axis=-1) - 1.0) / count
    last = jnp.sum(ordered > excess, axis=-1, keepdims=True) - 1
    return jnp.maximum(x - jnp.take_along_axis(excess, last, axis=-1), 0.0)


def check_words(**words: tuple) -> None:
    """Refuses a word that is not among those of its `Literal`, each given as `(word, literal)`."""
    for name, (word, literal) in words.items():
        if word not in literal.__args__:
            raise ValueError(f"{name} must be one of {', '.join(literal.__args__)}, got {word!r}")
