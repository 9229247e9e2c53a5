"""Finite decision processes on which every quantity of distribution matching is a linear solve.

S states, A actions, arrays of the dtype that the process has: float64 under x64, as oracles want
it. Ma et al. 2025, arXiv:2508.14383; the dual is that of Kostrikov et al. 2020, arXiv:1912.05032.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.envs import spaces


class FiniteProcess(NamedTuple):
    """A decision process without reward.

    Attributes:
        transition: `[S, A, S]`, P(s' | s, a).
        start: `[S]`, law of the first state.
        gamma: discount in (0, 1).
    """

    transition: Float[Array, "S A S"]
    start: Float[Array, " S"]
    gamma: float


class LowRank(NamedTuple):
    """A process whose transitions factorize: P(s' | s, a) = phi(s, a) mu(s') noise(s').

    Attributes:
        process: the process.
        phi: `[S, A, K]`, features of state and action.
        mu: `[S, K]`, features of the next state.
        noise: `[S]`, the law of states that ratios are taken to; positive everywhere.
    """

    process: FiniteProcess
    phi: Float[Array, "S A K"]
    mu: Float[Array, "S K"]
    noise: Float[Array, " S"]


def low_rank_process(
    key: jax.Array,
    *,
    num_states: int = 12,
    num_actions: int = 3,
    rank: int = 4,
    gamma: float = 0.9,
    start_is_noise: bool = False,
) -> LowRank:
    """Draws P = sum over z of w_z(s, a) m_z(s') with Dirichlet weights, and its exact features.

    Args:
        key: PRNG key of the draw.
        num_states, num_actions, rank: S, A and K, at least 1 each.
        gamma: discount in (0, 1).
        start_is_noise: whether episodes start from the noise law, as the practical head assumes.

    Raises:
        ValueError: if a size is below 1 or gamma is outside (0, 1).
    """
    if not all(map(spaces.is_count, (num_states, num_actions, rank))) or not 0.0 < gamma < 1.0:
        raise ValueError(
            "num_states, num_actions and rank must be at least 1 and gamma lie in (0, 1), got "
            f"{num_states}, {num_actions}, {rank} and {gamma}"
        )
    key_phi, key_law, key_noise, key_start = jax.random.split(key, 4)
    phi = jax.random.dirichlet(key_phi, jnp.ones(rank), (num_states, num_actions))
    laws = jax.random.dirichlet(key_law, jnp.ones(num_states), (rank,))
    noise = jax.random.dirichlet(key_noise, jnp.full(num_states, 3.0))
    start = jax.random.dirichlet(key_start, jnp.ones(num_states))
    transition = jnp.einsum("sak,kt->sat", phi, laws, precision="highest")
    process = FiniteProcess(transition, noise if start_is_noise else start, gamma)
    return LowRank(process, phi, laws.T / noise[:, None], noise)


def after_one_step(
    process: FiniteProcess, policy: Float[Array, "S A"], values: Float[Array, "S A"]
) -> Float[Array, "S A"]:
    """Returns E[values(s', a')] with s' ~ P(. | s, a) and a' ~ policy(. | s')."""
    return process.transition @ jnp.sum(policy * values, axis=1)


def occupancy(process: FiniteProcess, policy: Float[Array, "S A"]) -> Float[Array, "S A"]:
    """Returns d(s, a) = (1 - gamma) sum over t of gamma^t Pr(s_t = s, a_t = a); it sums to 1."""
    moves = jnp.einsum("sa,sat->st", policy, process.transition, precision="highest")
    eye = jnp.eye(moves.shape[0], dtype=moves.dtype)
    states = jnp.linalg.solve(eye - process.gamma * moves.T, (1.0 - process.gamma) * process.start)
    return states[:, None] * policy


def kl(first: Float[Array, "*X"], second: Float[Array, "*X"]) -> Float[Array, ""]:
    """Returns KL(first || second) in nats; places where `first` is 0 add nothing."""
    some = first > 0.0
    ratio = jnp.where(some, first, 1.0) / jnp.where(some, second, 1.0)
    return jnp.sum(first * jnp.log(ratio))


def dual_objective(
    nu: Float[Array, "S A"],
    process: FiniteProcess,
    policy: Float[Array, "S A"],
    expert: Float[Array, "S A"],
    *,
    replay: Float[Array, "S A"] | None = None,
    alpha: float = 0.0,
) -> Float[Array, ""]:
    """Returns J(policy, nu), whose least value over nu is -KL(d || expert).

    With a share `alpha` of a replay's law both sides are mixed with it, and the least value is
    -KL((1 - alpha) d + alpha replay || (1 - alpha) expert + alpha replay).

    Args:
        nu: `[S, A]`, the dual variable; J does not change if a constant is added.
        process, policy: the process, and `[S, A]` the policy that is judged.
        expert: `[S, A]`, occupancy of the expert.
        replay: `[S, A]`, law of other data; needed where alpha is not 0.
        alpha: share of the replay in [0, 1].

    Raises:
        ValueError: if there is a share, but no replay.
    """
    replay = _replay_of(expert, replay, alpha)
    change = nu - process.gamma * after_one_step(process, policy, nu)
    law = (1.0 - alpha) * expert + alpha * replay
    at_start = jnp.sum(process.start * jnp.sum(policy * nu, axis=1))
    linear = (1.0 - alpha) * (1.0 - process.gamma) * at_start + alpha * jnp.sum(replay * change)
    return jax.nn.logsumexp(change, b=law) - linear


def dual_optimum(
    process: FiniteProcess,
    policy: Float[Array, "S A"],
    expert: Float[Array, "S A"],
    *,
    replay: Float[Array, "S A"] | None = None,
    alpha: float = 0.0,
) -> Float[Array, "S A"]:
    """Returns the nu that `dual_objective` is least at: (I - gamma P)^-1 of a log-ratio.

    The log-ratio is that of the two laws whose divergence it measures. Arguments are those of
    `dual_objective`; alpha must be below 1 unless the constant 0 is wanted.

    Raises:
        ValueError: if there is a share, but no replay.
    """
    replay = _replay_of(expert, replay, alpha)
    own = (1.0 - alpha) * occupancy(process, policy) + alpha * replay
    ratio = jnp.log(own / ((1.0 - alpha) * expert + alpha * replay))
    num_states, num_actions = policy.shape
    size = num_states * num_actions
    moves = (process.transition[..., None] * policy[None, None]).reshape(size, size)
    eye = jnp.eye(size, dtype=moves.dtype)
    solved = jnp.linalg.solve(eye - process.gamma * moves, ratio.reshape(size))
    return solved.reshape(policy.shape)


def _replay_of(expert: jax.Array, replay: jax.Array | None, alpha: float) -> jax.Array:
    """Returns the replay, or what stands for it where it has no share."""
    if replay is None and not (isinstance(alpha, (int, float)) and alpha == 0.0):
        raise ValueError(f"a share alpha = {alpha} of other data needs replay, their law")
    return expert if replay is None else replay


class Linear(NamedTuple):
    """The parts of the dual variable that the features carry.

    Attributes:
        f: `[S, A]`, what depends on expert, noise and policy alone.
        omega: `[K]`, weights of phi.
        theta: `[K]`, weights of mu.
    """

    f: Float[Array, "S A"]
    omega: Float[Array, " K"]
    theta: Float[Array, " K"]


def represented(low_rank: LowRank, parts: Linear) -> Float[Array, "S A"]:
    """Returns Q = f + phi omega - log(mu theta + (1 - gamma) start / noise), which is -nu."""
    start, gamma = low_rank.process.start, low_rank.process.gamma
    ratio = low_rank.mu @ parts.theta + (1.0 - gamma) * start / low_rank.noise
    return parts.f + low_rank.phi @ parts.omega - jnp.log(ratio)[:, None]


def parts_of_optimum(
    low_rank: LowRank, policy: Float[Array, "S A"], expert: Float[Array, "S A"]
) -> Linear:
    """Returns the parts whose `represented` is the optimum -nu, exactly.

    Source: arXiv:2508.14383, its theorem on the optimal dual variable: P Q is linear in phi, and
    the policy's law of states over the noise is linear in mu.
    """
    process = low_rank.process
    q = -dual_optimum(process, policy, expert)
    values = jnp.sum(policy * q, axis=1)
    omega = process.gamma * low_rank.mu.T @ (low_rank.noise * values)
    reached = occupancy(process, policy)
    theta = process.gamma * jnp.einsum("sa,sak->k", reached, low_rank.phi, precision="highest")
    return Linear(jnp.log(expert / (low_rank.noise[:, None] * policy)), omega, theta)
