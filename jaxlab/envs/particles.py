"""Particles in the plane that push each other: simple spread, and predators that need each other.

Each agent goes left, right, down or up, or does nothing. Bodies keep three quarters of their speed,
are accelerated by what they choose, and are pushed apart where they touch: the physics of the
public multi-agent particle environments, in the order of PettingZoo.

Lowe et al. 2017, arXiv:1706.02275 (the physics and simple spread); Bohmer et al. 2020,
arXiv:1910.00091 (a penalty for who hunts alone). The prey's flight is of this module.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.envs.spaces import Discrete, is_count
from jaxlab.envs.task import Task

DT, DAMPING = 0.1, 0.25
"""A step, and the share of its speed that a body loses in one."""
CONTACT_FORCE, CONTACT_MARGIN = 100.0, 1e-3
"""How hard touching bodies push, and over which length the push sets in."""
MOVES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
"""Nothing, left, right, down, up."""
STEPS = 25
SPREAD_RADIUS, SPREAD_FORCE = 0.15, 5.0
"""Radius and acceleration of an agent of `simple_spread`."""
HUNT_RADIUS, HUNT_FORCE, HUNT_SPEED = (0.075, 0.05), (3.0, 4.0), (1.0, 0.6)
"""Radius, acceleration and largest speed of a predator, and of the prey."""
REACH = 0.4
"""Distance within which a predator has its hands on the prey."""
CATCH = 10.0
"""What a step is worth in which enough predators have."""


class Particles(NamedTuple):
    """The physics: `[M, 2]` positions and velocities of what moves, `[L, 2]` landmarks."""

    position: Float[Array, "M 2"]
    velocity: Float[Array, "M 2"]
    landmarks: Float[Array, "L 2"]


def simple_spread(num_agents: int = 3, *, local_share: float = 0.5) -> Task:
    """Makes the task of covering as many landmarks as there are agents, without collisions.

    All pay half of the sum over landmarks of the distance of the nearest agent, and each half a
    point for every other agent that it touches. An agent observes its velocity and position,
    landmarks and other agents from where it is, and `2 (N - 1)` zeros, the silence of the original:
    `[6 N]` numbers for N agents. 25 steps.

    Args:
        num_agents: agents and landmarks.
        local_share: weight of the agents' own part, the rest is that of the common one.

    Raises:
        ValueError: if there are fewer than two agents, or the share is not in [0, 1].
    """
    _check_agents(num_agents)
    if not 0.0 <= local_share <= 1.0:
        raise ValueError(f"local_share must lie in [0, 1], got {local_share}")
    radius = np.full(num_agents, SPREAD_RADIUS)

    def observe(at: Particles) -> jax.Array:
        silence = jnp.zeros((num_agents, 2 * (num_agents - 1)), at.position.dtype)
        seen = at.landmarks[None] - at.position[:, None]
        parts = at.velocity, at.position, seen.reshape(num_agents, -1), _others(at.position)
        return jnp.concatenate([*parts, silence], axis=1)

    def reset(key: jax.Array) -> tuple[Particles, jax.Array]:
        start = jax.random.uniform(key, (2, num_agents, 2), minval=-1.0)
        at = Particles(start[0], jnp.zeros_like(start[0]), start[1])
        return at, observe(at)

    def step(at: Particles, action: Int[Array, " N"]) -> tuple:
        force = SPREAD_FORCE * jnp.asarray(MOVES, at.position.dtype)[action]
        at = move(at, force, radius, np.full(num_agents, np.inf))
        away = jnp.linalg.norm(at.landmarks[:, None] - at.position[None], axis=-1)
        common = -jnp.sum(jnp.min(away, axis=1))
        touching = _distances(at.position) < jnp.asarray(radius[:, None] + radius)
        touching = touching & ~jnp.eye(num_agents, dtype=bool)
        own = -jnp.sum(touching, axis=1).astype(common.dtype)
        reward = local_share * own + (1.0 - local_share) * common
        return at, observe(at), reward, jnp.zeros((), bool)

    return Task(
        "simple_spread", 6 * num_agents, Discrete(5), STEPS, reset, step, num_agents=num_agents
    )


def predator_prey(loss: float = 2.0, *, num_agents: int = 3, needed: int = 2) -> Task:
    """Makes a hunt in which whoever lays hands on the prey alone is punished.

    The prey flees from all predators p_i, from near ones most, and turns back far from the middle:
    it accelerates along sum_i (x - p_i) / |x - p_i|^2 - 2 |x|^2 x. It is slower than they are. A
    step with at least `needed` predators within 0.4 of it pays 10 to all, one with fewer but any
    costs `loss`, any other pays nothing. A predator observes its velocity and position, the prey
    and the prey's velocity, and the other predators from where it is: `[6 + 2 N]` numbers. 25
    steps.

    Args:
        loss: what a step of hunting with too few costs.
        num_agents: predators.
        needed: how many must be there.

    Raises:
        ValueError: if `loss` is negative or not finite, or there are not enough predators.
    """
    _check_agents(num_agents)
    if not is_count(needed) or needed > num_agents:
        raise ValueError(f"needed must be from 1 to num_agents {num_agents}, got {needed!r}")
    if not 0.0 <= loss < np.inf:
        raise ValueError(f"loss must not be negative and be finite, got {loss}")
    radius, force_of, top = (
        np.array([pair[0]] * num_agents + [pair[1]])
        for pair in (HUNT_RADIUS, HUNT_FORCE, HUNT_SPEED)
    )

    def observe(at: Particles) -> jax.Array:
        hunters, prey = at.position[:-1], at.position[-1:]
        escape = jnp.broadcast_to(at.velocity[-1:], hunters.shape)
        parts = at.velocity[:-1], hunters, prey - hunters, escape, _others(hunters)
        return jnp.concatenate(parts, axis=1)

    def reset(key: jax.Array) -> tuple[Particles, jax.Array]:
        start = jax.random.uniform(key, (num_agents + 1, 2), minval=-1.0)
        at = Particles(start, jnp.zeros_like(start), jnp.zeros((0, 2), start.dtype))
        return at, observe(at)

    def step(at: Particles, action: Int[Array, " N"]) -> tuple:
        dtype = at.position.dtype
        chosen = jnp.asarray(MOVES, dtype)[action]
        direction = jnp.concatenate([chosen, flight(at.position)[None]])
        at = move(at, jnp.asarray(force_of[:, None], dtype) * direction, radius, top)
        near = jnp.linalg.norm(at.position[:-1] - at.position[-1:], axis=1) < REACH
        count = jnp.sum(near)
        alone = jnp.where(count > 0, -loss, 0.0)
        reward = jnp.where(count >= needed, CATCH, alone).astype(dtype)
        return at, observe(at), reward, jnp.zeros((), bool)

    return Task(
        "predator_prey", 6 + 2 * num_agents, Discrete(5), STEPS, reset, step, num_agents=num_agents
    )


def flight(position: Float[Array, "M 2"]) -> Float[Array, "2"]:
    """Returns the direction in which the last body flees from all others, of length 1."""
    away = position[-1:] - position[:-1]
    square = jnp.maximum(jnp.sum(away**2, axis=1, keepdims=True), 1e-6)
    x = position[-1]
    urge = jnp.sum(away / square, axis=0) - 2.0 * jnp.sum(x**2) * x
    return urge / jnp.maximum(jnp.linalg.norm(urge), 1e-6)


def move(
    at: Particles, force: Float[Array, "M 2"], radius: np.ndarray, top: np.ndarray
) -> Particles:
    """Moves bodies of mass 1 by one step: positions by the old velocities, these by the forces.

    Bodies at a distance d push each other apart by 100 m log(1 + exp((r_i + r_j - d) / m)), with
    the margin m = 0.001.

    Args:
        at: where they are.
        force: `[M, 2]`, what they choose.
        radius: `[M]`.
        top: `[M]` largest speed; infinity for none.
    """
    dtype = at.position.dtype
    apart = at.position[:, None] - at.position[None]
    distance = _distances(at.position)
    overlap = jnp.asarray(radius[:, None] + radius, dtype) - distance
    depth = CONTACT_MARGIN * jax.nn.softplus(overlap / CONTACT_MARGIN)
    push = CONTACT_FORCE * depth / jnp.maximum(distance, 1e-6)
    force = force + jnp.sum(push[..., None] * apart, axis=1)
    velocity = (1.0 - DAMPING) * at.velocity + DT * force
    speed = jnp.linalg.norm(velocity, axis=1)
    limit = jnp.asarray(top, dtype)
    slower = jnp.where(speed > limit, limit / jnp.maximum(speed, 1e-6), 1.0)
    return at._replace(position=at.position + DT * at.velocity, velocity=slower[:, None] * velocity)


def _distances(position: jax.Array) -> jax.Array:
    """Distances of all pairs, `[M, M]`, 0 of a body from itself."""
    return jnp.sqrt(jnp.sum((position[:, None] - position[None]) ** 2, axis=-1))


def _others(position: jax.Array) -> jax.Array:
    """Where the others are from each, `[N, 2 (N - 1)]`, in their order."""
    N = position.shape[0]
    index = np.array([[j for j in range(N) if j != i] for i in range(N)])
    return (position[index] - position[:, None]).reshape(N, -1)


def _check_agents(num_agents: int) -> None:
    if not is_count(num_agents) or num_agents < 2:
        raise ValueError(f"num_agents must be an integer of at least 2, got {num_agents!r}")
