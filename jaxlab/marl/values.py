"""Optimistic values of a tabular game: a risk measure of what the agents will do.

The value of a state is the best case over joint actions less what a divergence from the joint
policy costs,

    V(s) = max over p of  sum_a p_a Q(s, a) - penalty(p, policy(s)),   Q(s, a) = E[r + gamma V(s')],

which is `Risk.value` of Q under the policy; the p that attains it is the tilted policy. Chance
(rewards and next states) is averaged as it is. All functions are pure ones of tables, work under
`vmap`, `grad` and `jit`, and take any measure of `jaxlab.core.risk`; its parameter may be traced.

Zhang et al. 2025, arXiv:2509.24047.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxlab.core.risk import Risk
from jaxlab.envs.games import Game

MAX_ITERATIONS = 20_000
"""Where fixed points are given up; contraction by 0.999 gains seven digits in 16,000."""

Critic = Literal["joint", "local"]


class Values(NamedTuple):
    """Values of a policy in a game.

    Attributes:
        v: `[S]` value of each state.
        q: `[S, A_1, ..., A_N]` value of each joint action.
        residual: `[]` largest |T v - v| of the operator T; 0 up to rounding where it converged.
    """

    v: Float[Array, " S"]
    q: Float[Array, "S ..."]
    residual: Float[Array, ""]


def joint_policy(policies: Sequence[Float[Array, "S A"]]) -> Float[Array, "S ..."]:
    """Returns the product of the agents' policies, `[S, A_1, ..., A_N]`.

    Raises:
        ValueError: if there is none, or they are not `[S, A_i]` of one S.
    """
    if not policies or any(p.ndim != 2 or p.shape[0] != policies[0].shape[0] for p in policies):
        raise ValueError(
            "policies must be [S, A_i] of one S, one for each agent, got "
            f"{[p.shape for p in policies]}"
        )
    joint = policies[0]
    for policy in policies[1:]:
        lead = joint.shape + (1,) * (policy.ndim - 1)
        joint = joint.reshape(lead) * policy.reshape(
            policy.shape[0], *(1,) * (joint.ndim - 1), policy.shape[1]
        )
    return joint


def q_values(
    game: Game, v: Float[Array, " S"], *, gamma: float | jax.Array, chance: Risk | None = None
) -> Float[Array, "S ..."]:
    """Returns E[r + gamma V(s')] of every joint action, `[S, A_1, ..., A_N]`.

    Args:
        game: the game.
        v: values of the next states.
        gamma: discount of a step.
        chance: a measure of the outcomes instead of their mean: what an agent believes that cannot
            tell luck from its partners' doing.
    """
    gamma = jnp.asarray(gamma, v.dtype)
    goes_on = jnp.asarray(~game.ends).astype(v.dtype)
    target = jnp.asarray(game.reward, v.dtype) + gamma * goes_on * v[jnp.asarray(game.next_state)]
    prob = jnp.asarray(game.prob, v.dtype)
    if chance is not None:
        return chance.value(target, prob)
    return jnp.sum(prob * target, axis=-1)


def state_values(
    q: Float[Array, "S ..."], policy: Float[Array, "S ..."], risk: Risk
) -> Float[Array, " S"]:
    """Returns the measure of Q under the joint policy in every state."""
    return risk.value(q.reshape(q.shape[0], -1), policy.reshape(q.shape[0], -1))


def evaluate(
    game: Game,
    policy: Float[Array, "S ..."],
    risk: Risk,
    *,
    gamma: float | jax.Array,
    critic: Critic = "joint",
    initial: Float[Array, " S"] | None = None,
    tolerance: float | None = None,
) -> Values:
    """Finds the optimistic values of a joint policy, the fixed point of a gamma-contraction.

    The derivatives by the policy, gamma and the parameter of the measure are those of the fixed
    point (implicit function theorem), forwards and backwards, however it was found.

    Args:
        game: the game.
        policy: `[S, A_1, ..., A_N]` joint policy, such as that of `joint_policy`; it need not be a
            product. Its dtype is that of the values.
        risk: measure of the joint action, such as `core.risk.entropic(beta)`.
        gamma: discount in [0, 1).
        critic: "joint" averages over chance. "local" takes the measure over chance as well: the
            values that agents find who see neither their partners' actions nor the odds, and who
            are optimistic about luck too. Both are one where outcomes are certain.
        initial: `[S]` where to start, such as the values of a policy nearby; 0 by default.
        tolerance: largest relative change of the last iteration; 16 units of rounding by default.

    Raises:
        ValueError: if shapes do not fit, or `gamma` is a number outside [0, 1).

    Example:
        >>> game = envs.climbing()
        >>> policy = joint_policy([jnp.full((1, 3), 1 / 3), jnp.full((1, 3), 1 / 3)])
        >>> evaluate(game, policy, core.risk.entropic(0.5), gamma=0.9).v

    Source: Zhang et al. 2025, the Bellman equations of the optimistic value.
    """
    check_gamma(gamma)
    _check_policy(game, policy)
    if critic not in ("joint", "local"):
        raise ValueError(f"critic must be joint or local, got {critic!r}")
    chance = risk if critic == "local" else None
    v = jnp.zeros(policy.shape[:1], policy.dtype) if initial is None else initial

    def excess(v: jax.Array) -> jax.Array:
        return state_values(q_values(game, v, gamma=gamma, chance=chance), policy, risk) - v

    def solve(excess: Callable, v: jax.Array) -> jax.Array:
        return _iterate(lambda v: v + excess(v), v, tolerance)

    def tangent_solve(excess: Callable, y: jax.Array) -> jax.Array:
        # excess(x) = (gamma P - 1) x, with P stochastic: x = x + excess(x) - y contracts, and so
        # does its transpose, in another norm.
        def by_iteration(matvec: Callable, y: jax.Array) -> jax.Array:
            return _iterate(lambda x: x + matvec(x) - y, jnp.zeros_like(y), tolerance)

        return jax.lax.custom_linear_solve(excess, y, by_iteration, by_iteration)

    v = jax.lax.custom_root(excess, jax.lax.stop_gradient(v), solve, tangent_solve)
    q = q_values(game, v, gamma=gamma, chance=chance)
    return Values(v, q, jnp.max(jnp.abs(state_values(q, policy, risk) - v)))


def optimal_values(game: Game, *, gamma: float | jax.Array, dtype=jnp.float32) -> Values:
    """Finds the values of the best joint play by value iteration."""
    check_gamma(gamma)

    def best(v: jax.Array) -> jax.Array:
        q = q_values(game, v, gamma=gamma)
        return jnp.max(q.reshape(q.shape[0], -1), axis=1)

    v = _iterate(best, jnp.zeros((game.num_states,), dtype), None)
    return Values(v, q_values(game, v, gamma=gamma), jnp.max(jnp.abs(best(v) - v)))


def tilted_policy(
    q: Float[Array, "S ..."], policy: Float[Array, "S ..."], risk: Risk
) -> Float[Array, "S ..."]:
    """Returns the joint policy that attains the optimistic value; in general it is no product."""
    flat = risk.tilt(q.reshape(q.shape[0], -1), policy.reshape(q.shape[0], -1))
    return flat.reshape(q.shape)


def marginal(table: Float[Array, "S ..."], agent: int) -> Float[Array, "S A"]:
    """Sums a table over the actions of all other agents, `[S, A_agent]`."""
    others = tuple(i for i in range(1, table.ndim) if i != agent + 1)
    return jnp.sum(table, axis=others)


def agent_values(
    q: Float[Array, "S ..."], policies: Sequence[Float[Array, "S A"]], agent: int, risk: Risk
) -> Float[Array, "S A"]:
    """Returns the measure of Q over what the partners do, for every action of one agent.

    Of the entropic measure the measure of these under the agent's own policy is V again, and
    policy exp(beta (Q_i - V)) the agent's marginal of the tilted policy. No other measure here but
    the mean has this tower property; `gradients.agent_weights` needs none.
    """
    mine = jnp.moveaxis(q, agent + 1, 1)
    flat = mine.reshape(*mine.shape[:2], -1)
    partners = [p for i, p in enumerate(policies) if i != agent]
    if not partners:
        return flat[..., 0]
    others = joint_policy(partners).reshape(q.shape[0], 1, -1)
    return risk.value(flat, jnp.broadcast_to(others, flat.shape))


def visitation(
    game: Game,
    policy: Float[Array, "S ..."],
    *,
    gamma: float | jax.Array,
    initial: Float[Array, " S"] | None = None,
) -> Float[Array, " S"]:
    """Returns (1 - gamma) sum_t gamma^t Pr(s_t = s) under a joint policy, `[S]`.

    It sums to 1 less what ended games leave out.

    Args:
        game: the game; episodes begin with its `start`.
        policy: `[S, A_1, ..., A_N]`; the tilted policy gives the distribution of the gradient.
        gamma: discount in [0, 1).
        initial: `[S]` where to start the iteration.
    """
    check_gamma(gamma)
    _check_policy(game, policy)
    dtype = policy.dtype
    gamma = jnp.asarray(gamma, dtype)
    start = jnp.asarray(game.start, dtype)
    goes = jnp.asarray(game.prob * ~game.ends, dtype) * policy[..., None]
    to = jnp.asarray(game.next_state)

    def step(d: jax.Array) -> jax.Array:
        weight = d.reshape(-1, *(1,) * (goes.ndim - 1)) * goes
        return (1.0 - gamma) * start + gamma * jnp.zeros_like(d).at[to].add(weight)

    return _iterate(step, start if initial is None else initial, None)


def check_gamma(gamma: float | jax.Array) -> None:
    """Refuses a discount outside [0, 1), unless it is being traced."""
    if not isinstance(gamma, Tracer) and not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma must lie in [0, 1), got {gamma}")


def _check_policy(game: Game, policy: jax.Array) -> None:
    shape = (game.num_states, *game.num_actions)
    if policy.shape != shape or not jnp.issubdtype(policy.dtype, jnp.floating):
        raise ValueError(
            f"{game.name}: the joint policy must be floats {shape}, got {policy.dtype} "
            f"{policy.shape}; joint_policy makes it of those of the agents"
        )


def _iterate(contract: Callable, x: jax.Array, tolerance: float | None) -> jax.Array:
    """Repeats a contraction until it changes nothing but rounding."""
    relative = 16.0 * float(jnp.finfo(x.dtype).eps) if tolerance is None else tolerance

    def unfinished(carry: tuple) -> jax.Array:
        x, change, count = carry
        # NaN ends it too.
        return (change > relative * jnp.max(jnp.abs(x))) & (count < MAX_ITERATIONS)

    def once(carry: tuple) -> tuple:
        x, _, count = carry
        after = contract(x)
        return after, jnp.max(jnp.abs(after - x)), count + 1

    start = (x, jnp.full((), jnp.inf, x.dtype), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, once, start)[0]
