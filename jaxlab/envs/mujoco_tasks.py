"""Nine control tasks on MuJoCo: starts, observations, rewards and ends as in Gymnasium.

Every function here is of plain arrays, so that the same line gives a task on every back-end; the
physics, how `qpos` and `qvel` move, comes from `mujoco_physics`. Constants were read in Gymnasium
1.3 (Towers et al. 2024, arXiv:2407.17032). Quantities derived by the engine, like positions of
bodies, lag the state by one substep after a step, as they do in Gymnasium.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class MujocoState(NamedTuple):
    """What is carried from step to step.

    Attributes:
        qpos, qvel: Positions and velocities of the joints.
        warmstart: Where the contact solver begins, `qacc_warmstart`.
        derived: Fields that the engine computes and the task reads, by name.
        model: Fields of the model that this episode has of its own, by name; empty without
            randomization.
    """

    qpos: Array
    qvel: Array
    warmstart: Array
    derived: dict[str, Array]
    model: dict[str, Array]


class Constants(NamedTuple):
    """What a task reads of its model.

    Attributes:
        qpos0: Initial positions of the joints.
        num_qvel: Degrees of freedom.
        dt: Seconds of a control step.
        mass: Masses of the bodies in kg.
        body: Index of each body by its name.
    """

    qpos0: np.ndarray
    num_qvel: int
    dt: float
    mass: np.ndarray
    body: dict[str, int]


class MujocoTask(NamedTuple):
    """One task.

    Attributes:
        xml: The model's file among Gymnasium's assets.
        frame_skip: Physics steps of a control step.
        obs_size: O, numbers of an observation.
        time_limit: Steps of an episode.
        derived: Fields of MuJoCo's data that the task reads.
        start: `start(constants, key) -> (qpos, qvel)`.
        observe: `observe(constants, state) -> [O]`.
        outcome: `outcome(constants, before, after, ctrl) -> (reward, terminated)`.
    """

    xml: str
    frame_skip: int
    obs_size: int
    time_limit: int
    derived: tuple[str, ...]
    start: Callable[[Constants, jax.Array], tuple[Array, Array]]
    observe: Callable[[Constants, MujocoState], Array]
    outcome: Callable[[Constants, MujocoState, MujocoState, Array], tuple[Array, Array]]


def _uniform(scale: float, velocity: str = "uniform") -> Callable:
    """Noise around the initial position; velocities uniform, or normal ("normal")."""

    def start(constants: Constants, key: jax.Array) -> tuple[Array, Array]:
        key_qpos, key_qvel = jax.random.split(key)
        qpos0 = jnp.asarray(constants.qpos0, jnp.float32)
        noise = jax.random.uniform(key_qpos, qpos0.shape, minval=-scale, maxval=scale)
        shape = (constants.num_qvel,)
        if velocity == "normal":
            qvel = scale * jax.random.normal(key_qvel, shape)
        else:
            qvel = jax.random.uniform(key_qvel, shape, minval=-scale, maxval=scale)
        return qpos0 + noise, qvel

    return start


def _reacher_start(constants: Constants, key: jax.Array) -> tuple[Array, Array]:
    """Joints near zero, the target uniform in a disc of radius 0.2."""
    key_qpos, key_qvel, key_radius, key_angle = jax.random.split(key, 4)
    qpos = jax.random.uniform(key_qpos, (2,), minval=-0.1, maxval=0.1) + constants.qpos0[:2]
    radius = 0.2 * jnp.sqrt(jax.random.uniform(key_radius))
    angle = jax.random.uniform(key_angle, maxval=2.0 * jnp.pi)
    target = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    qvel = jax.random.uniform(key_qvel, (2,), minval=-0.005, maxval=0.005)
    return jnp.concatenate([qpos, target]), jnp.concatenate([qvel, jnp.zeros(2)])


def _pusher_start(constants: Constants, key: jax.Array) -> tuple[Array, Array]:
    """The object uniform in a rectangle, more than 0.17 from the goal."""
    key_object, key_qvel = jax.random.split(key)
    # Of 64 draws all are too near with probability 1e-27.
    draws = jax.random.uniform(
        key_object, (64, 2), minval=jnp.asarray([-0.3, -0.2]), maxval=jnp.asarray([0.0, 0.2])
    )
    chosen = draws[jnp.argmax(jnp.linalg.norm(draws, axis=1) > 0.17)]
    arm = jnp.asarray(constants.qpos0[:-4], jnp.float32)
    qvel = jax.random.uniform(key_qvel, (constants.num_qvel - 4,), minval=-0.005, maxval=0.005)
    return jnp.concatenate([arm, chosen, jnp.zeros(2)]), jnp.concatenate([qvel, jnp.zeros(4)])


def _joints(skip: int, limit: float | None = None) -> Callable:
    """Observes positions but the first `skip`, and velocities, clipped if there is a limit."""

    def observe(constants: Constants, state: MujocoState) -> Array:
        qvel = state.qvel if limit is None else jnp.clip(state.qvel, -limit, limit)
        return jnp.concatenate([state.qpos[skip:], qvel])

    return observe


def _run(
    *,
    alive: float,
    cost: float,
    healthy: Callable[[MujocoState], Array] | None = None,
    pay_fallen: bool = True,
) -> Callable:
    """Forward speed by qpos[0], a bonus a step, a cost of control; the end if not healthy.

    Version 5 pays no bonus for the step that ends so.
    """

    def outcome(constants: Constants, before: MujocoState, after: MujocoState, ctrl: Array) -> Any:
        speed = (after.qpos[0] - before.qpos[0]) / constants.dt
        end = jnp.zeros((), bool) if healthy is None else ~healthy(after)
        bonus = alive if pay_fallen else jnp.where(end, 0.0, alive)
        return speed + bonus - cost * jnp.sum(ctrl**2), end

    return outcome


def _hopper_healthy(state: MujocoState) -> Array:
    rest = jnp.concatenate([state.qpos[2:], state.qvel])
    return (state.qpos[1] > 0.7) & (jnp.abs(state.qpos[2]) < 0.2) & jnp.all(jnp.abs(rest) < 100.0)


def _walker_healthy(state: MujocoState) -> Array:
    return (state.qpos[1] > 0.8) & (state.qpos[1] < 2.0) & (jnp.abs(state.qpos[2]) < 1.0)


def _ant_outcome(constants: Constants, before: MujocoState, after: MujocoState, ctrl: Array) -> Any:
    torso = constants.body["torso"]
    moved = after.derived["xpos"][torso, 0] - before.derived["xpos"][torso, 0]
    healthy = (after.qpos[2] >= 0.2) & (after.qpos[2] <= 1.0)
    return moved / constants.dt + 1.0 - 0.5 * jnp.sum(ctrl**2), ~healthy


def _ant_v5_outcome(
    constants: Constants, before: MujocoState, after: MujocoState, ctrl: Array
) -> Any:
    """Pays the bonus to the healthy only, and takes a cost of contact forces."""
    reward, fallen = _ant_outcome(constants, before, after, ctrl)
    contact = jnp.sum(jnp.clip(after.derived["cfrc_ext"], -1.0, 1.0) ** 2)
    return reward - jnp.where(fallen, 1.0, 0.0) - 5e-4 * contact, fallen


def _ant_v5_observe(constants: Constants, state: MujocoState) -> Array:
    forces = jnp.clip(state.derived["cfrc_ext"][1:], -1.0, 1.0)
    return jnp.concatenate([state.qpos[2:], state.qvel, forces.reshape(-1)])


def _humanoid_outcome(
    constants: Constants, before: MujocoState, after: MujocoState, ctrl: Array
) -> Any:
    share = jnp.asarray(constants.mass / constants.mass.sum(), jnp.float32)
    moved = share @ (after.derived["xipos"][:, 0] - before.derived["xipos"][:, 0])
    healthy = (after.qpos[2] > 1.0) & (after.qpos[2] < 2.0)
    return 1.25 * moved / constants.dt + 5.0 - 0.1 * jnp.sum(ctrl**2), ~healthy


def _humanoid_v5_outcome(
    constants: Constants, before: MujocoState, after: MujocoState, ctrl: Array
) -> Any:
    reward, fallen = _humanoid_outcome(constants, before, after, ctrl)
    contact = jnp.minimum(5e-7 * jnp.sum(after.derived["cfrc_ext"] ** 2), 10.0)
    return reward - jnp.where(fallen, 5.0, 0.0) - contact, fallen


def _humanoid_observe(first_body: int, first_force: int) -> Callable:
    def observe(constants: Constants, state: MujocoState) -> Array:
        inertia, velocity, force, contact = (
            state.derived[name] for name in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
        )
        bodies = [x[first_body:].reshape(-1) for x in (inertia, velocity)]
        contact = contact[first_body:].reshape(-1)
        return jnp.concatenate([state.qpos[2:], state.qvel, *bodies, force[first_force:], contact])

    return observe


def _tip_to_target(constants: Constants, state: MujocoState) -> Array:
    xpos, body = state.derived["xpos"], constants.body
    return xpos[body["fingertip"]] - xpos[body["target"]]


def _reacher_observe(size: int) -> Callable:
    def observe(constants: Constants, state: MujocoState) -> Array:
        angle = state.qpos[:2]
        parts = [jnp.cos(angle), jnp.sin(angle), state.qpos[2:], state.qvel[:2]]
        return jnp.concatenate([*parts, _tip_to_target(constants, state)[:size]])

    return observe


def _reacher_outcome(use_after: bool) -> Callable:
    """Distance of the fingertip, before the step in version 4 and after it in version 5."""

    def outcome(constants: Constants, before: MujocoState, after: MujocoState, ctrl: Array) -> Any:
        distance = jnp.linalg.norm(_tip_to_target(constants, after if use_after else before))
        return -distance - jnp.sum(ctrl**2), jnp.zeros((), bool)

    return outcome


def _pusher_points(constants: Constants, state: MujocoState) -> tuple[Array, ...]:
    xpos, body = state.derived["xpos"], constants.body
    return tuple(xpos[body[name]] for name in ("tips_arm", "object", "goal"))


def _pusher_observe(constants: Constants, state: MujocoState) -> Array:
    return jnp.concatenate([state.qpos[:7], state.qvel[:7], *_pusher_points(constants, state)])


def _pusher_outcome(
    constants: Constants, before: MujocoState, after: MujocoState, ctrl: Array
) -> Any:
    tip, thing, goal = _pusher_points(constants, after)
    far, near = jnp.linalg.norm(thing - goal), jnp.linalg.norm(thing - tip)
    return -far - 0.5 * near - 0.1 * jnp.sum(ctrl**2), jnp.zeros((), bool)


def _balance(constants: Constants, before: MujocoState, after: MujocoState, ctrl: Array) -> Any:
    return jnp.ones(()), jnp.abs(after.qpos[1]) > 0.2


_HUMANOID = ("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")

TASKS = {
    "half_cheetah": MujocoTask(
        "half_cheetah.xml",
        5,
        17,
        1000,
        (),
        _uniform(0.1, "normal"),
        _joints(1),
        _run(alive=0.0, cost=0.1),
    ),
    "ant": MujocoTask(
        "ant.xml", 5, 27, 1000, ("xpos",), _uniform(0.1, "normal"), _joints(2), _ant_outcome
    ),
    "ant_v5": MujocoTask(
        "ant.xml",
        5,
        105,
        1000,
        ("xpos", "cfrc_ext"),
        _uniform(0.1, "normal"),
        _ant_v5_observe,
        _ant_v5_outcome,
    ),
    "hopper": MujocoTask(
        "hopper.xml",
        4,
        11,
        1000,
        (),
        _uniform(5e-3),
        _joints(1, 10.0),
        _run(alive=1.0, cost=1e-3, healthy=_hopper_healthy),
    ),
    "hopper_v5": MujocoTask(
        "hopper.xml",
        4,
        11,
        1000,
        (),
        _uniform(5e-3),
        _joints(1, 10.0),
        _run(alive=1.0, cost=1e-3, healthy=_hopper_healthy, pay_fallen=False),
    ),
    "walker2d": MujocoTask(
        "walker2d.xml",
        4,
        17,
        1000,
        (),
        _uniform(5e-3),
        _joints(1, 10.0),
        _run(alive=1.0, cost=1e-3, healthy=_walker_healthy),
    ),
    "walker2d_v5": MujocoTask(
        "walker2d_v5.xml",
        4,
        17,
        1000,
        (),
        _uniform(5e-3),
        _joints(1, 10.0),
        _run(alive=1.0, cost=1e-3, healthy=_walker_healthy, pay_fallen=False),
    ),
    "humanoid": MujocoTask(
        "humanoid.xml",
        5,
        376,
        1000,
        _HUMANOID,
        _uniform(0.01),
        _humanoid_observe(0, 0),
        _humanoid_outcome,
    ),
    "humanoid_v5": MujocoTask(
        "humanoid.xml",
        5,
        348,
        1000,
        _HUMANOID,
        _uniform(0.01),
        _humanoid_observe(1, 6),
        _humanoid_v5_outcome,
    ),
    "swimmer": MujocoTask(
        "swimmer.xml", 4, 8, 1000, (), _uniform(0.1), _joints(2), _run(alive=0.0, cost=1e-4)
    ),
    "reacher": MujocoTask(
        "reacher.xml",
        2,
        11,
        50,
        ("xpos",),
        _reacher_start,
        _reacher_observe(3),
        _reacher_outcome(False),
    ),
    "reacher_v5": MujocoTask(
        "reacher.xml",
        2,
        10,
        50,
        ("xpos",),
        _reacher_start,
        _reacher_observe(2),
        _reacher_outcome(True),
    ),
    "pusher": MujocoTask(
        "pusher_v5.xml", 5, 23, 100, ("xpos",), _pusher_start, _pusher_observe, _pusher_outcome
    ),
    "inverted_pendulum": MujocoTask(
        "inverted_pendulum.xml", 2, 4, 1000, (), _uniform(0.01), _joints(0), _balance
    ),
}
"""By name; version 4 of Gymnasium's tasks, version 5 where the name says so, and of the pusher."""
