"""Linear systems with Gaussian noise: occupancies and divergences in closed form, in float64.

x' = A x + B u + w with w ~ N(0, noise_std^2 I), and policies u = -K x + N(0, action_std^2 I).
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from jaxlab import envs
from jaxlab.envs import spaces
from jaxlab.imitation.data.dataset import Dataset


class LinearPolicy(NamedTuple):
    """u = -K x + N(0, action_std^2 I).

    Attributes:
        gain: `[M, N]`, K.
        action_std: standard deviation of each input.
    """

    gain: Float[np.ndarray, "M N"]
    action_std: float


def random_system(seed: int, *, num_states: int = 4, num_inputs: int = 2) -> envs.LinearQuadratic:
    """Draws a system with the spectral radius 1.05, so that it needs its control, and unit costs.

    Raises:
        ValueError: if a size is below 1.
    """
    if not all(map(spaces.is_count, (num_states, num_inputs))):
        raise ValueError(
            f"num_states and num_inputs must be at least 1, got {num_states} and {num_inputs}"
        )
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(num_states, num_states))
    A *= 1.05 / np.max(np.abs(np.linalg.eigvals(A)))
    B = rng.normal(size=(num_states, num_inputs)) / np.sqrt(num_states)
    return envs.LinearQuadratic(A, B, np.eye(num_states), np.eye(num_inputs))


def stationary_covariance(
    system: envs.LinearQuadratic, policy: LinearPolicy, *, noise_std: float
) -> Float[np.ndarray, "N N"]:
    """Returns S = M S M' + action_std^2 B B' + noise_std^2 I with M = A - B K.

    Episodes that start from N(0, S) have it as their occupancy for every discount.

    Raises:
        ValueError: if the policy does not stabilize the system.
    """
    closed, spread = _closed_loop(system, policy, noise_std)
    if (radius := np.max(np.abs(np.linalg.eigvals(closed)))) >= 1.0:
        raise ValueError(
            f"the gain must stabilize the system, got a spectral radius of {radius:.4g}; there is "
            "no stationary law"
        )
    return scipy.linalg.solve_discrete_lyapunov(closed, spread)


def discounted_second_moment(
    system: envs.LinearQuadratic,
    policy: LinearPolicy,
    start: Float[np.ndarray, "N N"],
    *,
    noise_std: float,
    gamma: float,
) -> Float[np.ndarray, "N N"]:
    """Returns E[x x'] under the occupancy (1 - gamma) sum gamma^t p_t, from E[x x'] = `start`.

    It solves S = (1 - gamma) start + gamma (M S M' + spread), for unstable systems too as long as
    sqrt(gamma) M is stable.

    Raises:
        ValueError: if sqrt(gamma) M is not stable.
    """
    closed, spread = _closed_loop(system, policy, noise_std)
    shrunk = np.sqrt(gamma) * closed
    if (radius := np.max(np.abs(np.linalg.eigvals(shrunk)))) >= 1.0:
        raise ValueError(f"sqrt(gamma) (A - B K) must be stable, got a radius of {radius:.4g}")
    return scipy.linalg.solve_discrete_lyapunov(shrunk, (1.0 - gamma) * start + gamma * spread)


def occupancy_kl(
    system: envs.LinearQuadratic, first: LinearPolicy, second: LinearPolicy, *, noise_std: float
) -> float:
    """Returns KL of the stationary laws of (x, u), in nats.

    The divergence of the states, and the mean of that of the inputs over the first's states.
    """
    one, two = (stationary_covariance(system, p, noise_std=noise_std) for p in (first, second))
    num_states, num_inputs = system.B.shape
    log_det = np.linalg.slogdet(two)[1] - np.linalg.slogdet(one)[1]
    of_states = 0.5 * (np.trace(np.linalg.solve(two, one)) - num_states + log_det)
    wider = (first.action_std / second.action_std) ** 2
    away = second.gain - first.gain
    moved = np.trace(away @ one @ away.T) / second.action_std**2
    of_inputs = 0.5 * (num_inputs * (wider - 1.0 - np.log(wider)) + moved)
    return float(of_states + of_inputs)


def linear_episodes(
    seed: int,
    system: envs.LinearQuadratic,
    policy: LinearPolicy,
    *,
    noise_std: float,
    num_episodes: int,
    num_steps: int,
    bound: float = 50.0,
) -> Dataset:
    """Plays episodes from the stationary law, cut by time.

    Args:
        seed: of starts and noise.
        system, policy, noise_std: what is played.
        num_episodes, num_steps: how many, and how long each is.
        bound: bound of |u| that the record states; inputs beyond it are refused.

    Raises:
        ValueError: if the policy does not stabilize the system, an input is beyond the bound, or a
            number is below 1.
    """
    if not all(map(spaces.is_count, (num_episodes, num_steps))):
        raise ValueError(
            f"num_episodes and num_steps must be at least 1, got {num_episodes} and {num_steps}"
        )
    rng = np.random.default_rng(seed)
    num_states, num_inputs = system.B.shape
    root = np.linalg.cholesky(stationary_covariance(system, policy, noise_std=noise_std))
    x = rng.normal(size=(num_episodes, num_states)) @ root.T
    rows = []
    for _ in range(num_steps):
        u = -x @ policy.gain.T + policy.action_std * rng.normal(size=(num_episodes, num_inputs))
        after = x @ system.A.T + u @ system.B.T + noise_std * rng.normal(size=x.shape)
        cost = np.sum(x @ system.Q * x, axis=1) + np.sum(u @ system.R * u, axis=1)
        rows.append((x, u, after, -cost))
        x = after
    obs, action, next_obs, reward = (
        np.stack(column, axis=1).reshape(num_episodes * num_steps, *column[0].shape[1:])
        for column in zip(*rows, strict=True)
    )
    if (largest := np.max(np.abs(action))) > bound:
        raise ValueError(f"bound must be at least the largest input, got {bound} for {largest:.4g}")
    last = np.tile(np.arange(num_steps) == num_steps - 1, num_episodes)
    return Dataset(
        obs=obs.astype(np.float32),
        action=action.astype(np.float32),
        next_obs=next_obs.astype(np.float32),
        reward=reward.astype(np.float32),
        terminated=np.zeros(len(obs), bool),
        truncated=last,
        episode_id=np.repeat(np.arange(num_episodes, dtype=np.int32), num_steps),
        action_low=np.full(num_inputs, -bound, np.float32),
        action_high=np.full(num_inputs, bound, np.float32),
        about={"env": "linear_gaussian", "seed": seed, "time_limit": num_steps},
    )


def _closed_loop(
    system: envs.LinearQuadratic, policy: LinearPolicy, noise_std: float
) -> tuple[np.ndarray, np.ndarray]:
    closed = system.A - system.B @ policy.gain
    spread = policy.action_std**2 * system.B @ system.B.T
    return closed, spread + noise_std**2 * np.eye(len(closed))
