"""Small exact tasks in plain JAX: pendulum, bandits, goals, linear-quadratic, a deep sea.

They compile in a second and have known optima, so that learners can be tested against the truth.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int

from jaxlab.envs.spaces import Box, Discrete
from jaxlab.envs.task import Task


def pendulum(time_limit: int = 200) -> Task:
    """Swings a pendulum up: the dynamics and reward of Gymnasium's Pendulum-v1.

    Torque u in [-2, 2]; obs (cos, sin, angular velocity in rad/s); reward of the state before the
    step, -(angle^2 + 0.1 velocity^2 + 0.001 u^2). It never terminates.
    """

    def observe(physics: Array) -> Array:
        return jnp.stack([jnp.cos(physics[0]), jnp.sin(physics[0]), physics[1]])

    def reset(key: jax.Array) -> tuple[Array, Array]:
        limit = jnp.asarray([jnp.pi, 1.0])
        physics = jax.random.uniform(key, (2,), minval=-limit, maxval=limit)
        return physics, observe(physics)

    def step(physics: Array, action: Array) -> tuple[Array, Array, Array, Array]:
        angle, velocity = physics
        u = jnp.clip(action[0].astype(physics.dtype), -2.0, 2.0)
        wrapped = jnp.mod(angle + jnp.pi, 2.0 * jnp.pi) - jnp.pi
        reward = -(wrapped**2 + 0.1 * velocity**2 + 0.001 * u**2)
        velocity = jnp.clip(velocity + (15.0 * jnp.sin(angle) + 3.0 * u) * 0.05, -8.0, 8.0)
        physics = jnp.stack([angle + 0.05 * velocity, velocity])
        return physics, observe(physics), reward, jnp.zeros((), bool)

    return Task("pendulum", 3, Box((-2.0,), (2.0,)), time_limit, reset, step)


def bandit(reward: Callable[[jax.Array], jax.Array], action_size: int = 1) -> Task:
    """One state, one step, then the end: `reward(action [A]) -> []` on [-1, 1]^A."""

    def reset(key: jax.Array) -> tuple[Array, Array]:
        return jnp.zeros((0,)), jnp.zeros((1,))

    def step(physics: Array, action: Array) -> tuple[Array, Array, Array, Array]:
        return physics, jnp.zeros((1,)), reward(action), jnp.ones((), bool)

    return Task("bandit", 1, Box((-1.0,) * action_size, (1.0,) * action_size), 1, reset, step)


GOALS = ((5.0, 0.0), (-5.0, 0.0), (0.0, 5.0), (0.0, -5.0))
"""Goals of `multi_goal`, all equally good from its start."""


def multi_goal(*, time_limit: int = 20, start_std: float = 0.1, action_cost: float = 0.3) -> Task:
    """A point in the plane that may go to any of four goals.

    The action is a displacement in [-1, 1]^2. The reward is minus the distance to the nearest goal
    over 5 and the cost |a|^2 times `action_cost` over 5; within 1 of a goal the episode ends with
    10. From the middle four directions are best: the optimal policy has four modes, and their mean
    stays where it is.

    Source: after the multi-goal task of soft Q-learning, Haarnoja et al. 2017.
    """

    def reset(key: jax.Array) -> tuple[Array, Array]:
        position = start_std * jax.random.normal(key, (2,))
        return position, position

    def step(position: Array, action: Array) -> tuple[Array, Array, Array, Array]:
        goals, action = jnp.asarray(GOALS, position.dtype), action.astype(position.dtype)
        position = jnp.clip(position + action, -7.0, 7.0)
        distance = jnp.min(jnp.linalg.norm(position[None] - goals, axis=1))
        arrived = distance < 1.0
        cost = (distance + action_cost * jnp.sum(action**2)) / 5.0
        return position, position, jnp.where(arrived, 10.0, 0.0) - cost, arrived

    return Task("multi_goal", 2, Box((-1.0, -1.0), (1.0, 1.0)), time_limit, reset, step)


class LinearQuadratic(NamedTuple):
    """x' = A x + B u with reward -(x' Q x + u' R u); matrices, n states and m inputs."""

    A: np.ndarray
    B: np.ndarray
    Q: np.ndarray
    R: np.ndarray


DOUBLE_INTEGRATOR = LinearQuadratic(
    np.array([[1.0, 0.1], [0.0, 1.0]]),
    np.array([[0.005], [0.1]]),
    np.diag([1.0, 0.1]),
    np.array([[0.1]]),
)
"""Position and velocity, moved by a force, at steps of 0.1 s."""


def linear_quadratic(
    system: LinearQuadratic = DOUBLE_INTEGRATOR,
    *,
    bound: float = 6.0,
    limit: float = 3.0,
    time_limit: int = 100,
) -> Task:
    """Steers a linear system at a quadratic cost; it starts uniform in [-1, 1]^n.

    Where a number of the state passes `limit` the episode terminates, and the last reward is less
    by x' P x, with P of `riccati(system, gamma=1.0)`: the least that it would have cost to go on
    from there. So nothing is gained by leaving. The gain of `riccati` stays the exact optimum for
    every discount, from all states from which it keeps within both bounds; and no state, reward or
    value is beyond a known size, however a learner explores. Without a limit random actions lead to
    costs of 10^5 times those near the origin, on which critics waste themselves.

    Args:
        system: Matrices A, B, Q and R of the system and its cost.
        bound: Bound of |u|, wide enough that the optimum lies within (see `riccati`).
        limit: Largest |x| of each number of the state, likewise; infinity for none. The optimum of
            the double integrator keeps within 1.2.
        time_limit: Steps of an episode.

    Raises:
        ValueError: If the matrices do not fit each other, the limit is below the starts, or the
            system cannot be stabilized, so that no cost to go is finite.
    """
    system = _checked(system)
    n, m = system.B.shape
    if not limit >= 1.0:
        raise ValueError(f"limit must be at least 1, where episodes start, got {limit}")
    to_go = np.zeros((n, n)) if np.isinf(limit) else riccati(system, gamma=1.0)[1]

    def reset(key: jax.Array) -> tuple[Array, Array]:
        x = jax.random.uniform(key, (n,), minval=-1.0, maxval=1.0)
        return x, x

    def step(x: Array, u: Array) -> tuple[Array, Array, Array, Array]:
        A, B, Q, R, P = (jnp.asarray(matrix, x.dtype) for matrix in (*system, to_go))
        u = u.astype(x.dtype)
        cost = x @ Q @ x + u @ R @ u
        x = A @ x + B @ u
        left = jnp.max(jnp.abs(x)) > limit
        return x, x, -(cost + jnp.where(left, x @ P @ x, 0.0)), left

    inputs = Box((-float(bound),) * m, (float(bound),) * m)
    return Task("linear_quadratic", n, inputs, time_limit, reset, step)


def riccati(
    system: LinearQuadratic = DOUBLE_INTEGRATOR, *, gamma: float = 0.99
) -> tuple[Float[np.ndarray, "m n"], Float[np.ndarray, "n n"]]:
    """Returns the optimal gain K, u = -K x, and P of the optimal discounted return -x' P x.

    Raises:
        ValueError: If gamma is not in (0, 1], the matrices do not fit each other, or the system
            cannot be stabilized.

    Source: the discrete algebraic Riccati equation with sqrt(gamma) A, sqrt(gamma) B.
    """
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
    A, B, Q, R = _checked(system)
    root = gamma**0.5
    try:
        P = scipy.linalg.solve_discrete_are(root * A, root * B, Q, R)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the system must have a control that keeps its cost finite at gamma {gamma}, got "
            f"{error}; mend A and B, or discount more"
        ) from None
    K = np.linalg.solve(R + gamma * B.T @ P @ B, gamma * B.T @ P @ A)
    return K, P


def _checked(system: LinearQuadratic) -> LinearQuadratic:
    """The matrices in float64; refuses those that do not fit each other."""
    A, B, Q, R = (np.asarray(x, np.float64) for x in system)
    n, m = B.shape if B.ndim == 2 else (0, 0)
    if [x.shape for x in (A, Q, R)] != [(n, n), (n, n), (m, m)]:
        raise ValueError(
            "A, B, Q and R must be [n, n], [n, m], [n, n] and [m, m], got "
            + ", ".join(str(x.shape) for x in (A, B, Q, R))
        )
    return LinearQuadratic(A, B, Q, R)


MOVE_COST = 0.01
"""What a dive to the right costs in `deep_sea`, all its steps together."""


def deep_sea(size: int = 10, *, seed: int | None = 0) -> Task:
    """Dives from one corner of a grid to the other: one of 2^N sequences of choices is worth it.

    Every step goes one row down, and one column to the right or to the left as far as there are
    columns. Which of the two choices goes right is drawn for every cell. A step to the right costs
    0.01 / N; one from the last column is rewarded with 1, and only whoever has gone right N - 1
    times, and in no row left, stands there. Whoever explores by chance finds it once in 2^N
    episodes, and is told by the costs to stay away. `deep_sea_optimum` is what can be had.

    Args:
        size: N; episodes take N steps. The observation is the cell, `[N * N]` one-hot, and zeros
            at the end.
        seed: Of what the choices mean, `deep_sea_rights`; None: 1 goes right everywhere.

    Raises:
        ValueError: If the size is below 1.

    Source: Osband et al. 2019, arXiv:1908.03568 (bsuite), deterministic.
    """
    rights = deep_sea_rights(size, seed=seed)

    def observe(physics: Array) -> Array:
        row, column = physics[0], physics[1]
        cell = jnp.where(row < size, row * size + column, size * size)
        return jax.nn.one_hot(cell, size * size)

    def reset(key: jax.Array) -> tuple[Array, Array]:
        physics = jnp.zeros((2,), jnp.int32)
        return physics, observe(physics)

    def step(physics: Array, action: Array) -> tuple[Array, Array, Array, Array]:
        row, column = physics[0], physics[1]
        right = action == jnp.asarray(rights)[row, column]
        found = right & (column == size - 1)
        reward = found.astype(jnp.float32) - right.astype(jnp.float32) * (MOVE_COST / size)
        column = jnp.clip(column + jnp.where(right, 1, -1), 0, size - 1)
        physics = jnp.stack([row + 1, column])
        return physics, observe(physics), reward, row + 1 == size

    return Task("deep_sea", size * size, Discrete(2), size, reset, step)


def deep_sea_rights(size: int, *, seed: int | None = 0) -> Int[np.ndarray, "N N"]:
    """Returns which choice goes right in each cell of `deep_sea`; its diagonal is the way.

    Raises:
        ValueError: If the size is below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if seed is None:
        return np.ones((size, size), np.int32)
    return np.random.default_rng(seed).integers(0, 2, (size, size), dtype=np.int32)


def deep_sea_optimum(size: int, *, gamma: float = 1.0) -> float:
    """Returns the best discounted return of `deep_sea`: all right, or not at all.

    gamma^(N-1) - 0.01 / N (1 + gamma + ... + gamma^(N-1)), and 0 if that is less.

    Raises:
        ValueError: If the size is below 1, or gamma lies outside [0, 1].
    """
    if size < 1 or not 0.0 <= gamma <= 1.0:
        raise ValueError(f"size must be at least 1 and gamma lie in [0, 1], got {size} and {gamma}")
    powers = gamma ** np.arange(size, dtype=np.float64)
    return max(float(powers[-1] - MOVE_COST / size * powers.sum()), 0.0)
