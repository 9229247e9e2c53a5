"""Football-lite: attackers with the ball against a few defenders and a keeper, seen from above.

The attack of Google Research Football's academy (Kurach et al. 2020, arXiv:1907.11180) with its 19
actions, in a few lines: a ball on the ground, defenders who run at it, a keeper on his line. Its
sizes are ours, set so that random play hardly ever scores.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.envs.spaces import Discrete
from jaxlab.envs.task import Task

STEPS = 128
"""Steps of an episode at most."""
HALF_WIDTH, HALF_GOAL, MOST_X, KEEPER_X = 0.42, 0.044, 0.96, 0.98
"""Side lines at y = +-0.42, posts at +-0.044 on x = 1; how far attackers run; the keeper's x."""
ATTACKERS = ((0.60, 0.0), (0.70, 0.2), (0.70, -0.2), (0.55, 0.25), (0.55, -0.25), (0.5, 0.1))
DEFENDERS = ((0.78, 0.0), (0.80, 0.12), (0.80, -0.12), (0.74, 0.22), (0.74, -0.22))
"""Where they start, with normal noise of 0.01."""
LEFT, UP_LEFT, UP, UP_RIGHT, RIGHT, DOWN_RIGHT, DOWN, DOWN_LEFT = range(1, 9)
LONG, HIGH, SHORT, SHOT, SPRINT, RELEASE, WALK, SLIDE, DRIBBLE, CARRY = range(9, 19)
NUM_ACTIONS = 19
_ANGLES = np.pi * np.array([1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.5, -0.75])
DIRECTIONS = np.concatenate([np.zeros((1, 2)), np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)])
"""`[9, 2]` unit vectors of headings; 0 stands still."""
REACH, TACKLE, PICK_UP, KEEPER_REACH = 0.022, 0.16, 0.035, 0.04


class FootballState(NamedTuple):
    """The pitch; lengths in half pitches, velocities in them a step.

    Attributes:
        attackers: `[n, 2]` places.
        heading: `[n]` int32, rows of `DIRECTIONS`.
        sprints, dribbles: `[n]` bool.
        defenders: `[d, 2]` places.
        keeper: y of the keeper.
        ball: `[2]` its place, the carrier's while it is carried.
        velocity: `[2]` of a free ball.
        owner: who carries it; n if nobody does.
        high: steps in which a high ball cannot be intercepted yet.
        is_shot: whether it was shot.
        reach: how far the keeper reaches on the line, by where the ball was kicked.
        start: x of the ball at the start.
        tenths: tenths of the way to x = 1 to which the ball has been carried.
        key: PRNG key of the noise to come.
    """

    attackers: Float[Array, "n 2"]
    heading: Int[Array, " n"]
    sprints: Bool[Array, " n"]
    dribbles: Bool[Array, " n"]
    defenders: Float[Array, "d 2"]
    keeper: Float[Array, ""]
    ball: Float[Array, " 2"]
    velocity: Float[Array, " 2"]
    owner: Int[Array, ""]
    high: Int[Array, ""]
    is_shot: Bool[Array, ""]
    reach: Float[Array, ""]
    start: Float[Array, ""]
    tenths: Float[Array, ""]
    key: Array


def football(num_attackers: int = 3, num_defenders: int = 1, *, shaped: bool = False) -> Task:
    """Makes the game of n attackers, who are the agents, against d defenders and a keeper.

    A goal is worth 1 to all, and an episode ends with it, and with a ball that is out, intercepted,
    saved, tackled, brought too near to the keeper, or that lies still.

    Actions: 0 idle; 1 to 8 head left, up left, up, up right, right, down right, down, down left; 9
    long, 10 high and 11 short pass, 12 shot; 13 sprint and 15 stop sprinting; 14 stand still; 16
    slide, which does nothing; 17 dribble and 18 stop dribbling. Headings, sprint and dribble last
    until they are changed. Kicks do nothing without the ball.

    Each attacker observes `[2 (n + d) + n + 20]` numbers: its own place; where the attackers, the
    defenders, the keeper and the ball are from there; the ball's velocity; who carries the ball,
    one-hot, nobody last; its own heading, one-hot, and whether it sprints and dribbles.

    Args:
        num_attackers: n, 2 to 6.
        num_defenders: d, 0 to 5, the keeper not counted.
        shaped: pay 0.1 besides for each new tenth of the way from its start to x = 1 to which the
            ball is carried. Goals are counted without it.

    Raises:
        ValueError: if there are more, or fewer.

    Example:
        >>> env = envs.make_env(envs.football(3, 1), num_envs=16)
    """
    n, d = num_attackers, num_defenders
    if not 2 <= n <= len(ATTACKERS) or not 0 <= d <= len(DEFENDERS):
        raise ValueError(
            f"num_attackers must be 2 to {len(ATTACKERS)} and num_defenders 0 to {len(DEFENDERS)}, "
            f"got {n} and {d}"
        )
    directions = jnp.asarray(DIRECTIONS, jnp.float32)

    def observe(s: FootballState) -> Float[Array, "n O"]:
        keeper = jnp.stack([jnp.float32(KEEPER_X), s.keeper])
        everyone = jnp.concatenate([s.attackers, s.defenders, keeper[None], s.ball[None]])
        apart = (everyone[None] - s.attackers[:, None]).reshape(n, -1)
        common = jnp.concatenate([s.velocity, jax.nn.one_hot(s.owner, n + 1)])
        flags = jnp.stack([s.sprints, s.dribbles], axis=1).astype(jnp.float32)
        own = jnp.concatenate([jax.nn.one_hot(s.heading, 9), flags], axis=1)
        return jnp.concatenate(
            [s.attackers, apart, jnp.broadcast_to(common, (n, n + 3)), own], axis=1
        )

    def reset(key: jax.Array) -> tuple[FootballState, jax.Array]:
        key, key_attackers, key_defenders = jax.random.split(key, 3)
        places = jnp.asarray(ATTACKERS[:n], jnp.float32)
        attackers = places + 0.01 * jax.random.normal(key_attackers, (n, 2), jnp.float32)
        places = jnp.asarray(DEFENDERS[:d], jnp.float32).reshape(d, 2)
        defenders = places + 0.01 * jax.random.normal(key_defenders, (d, 2), jnp.float32)
        no, zero = jnp.zeros((n,), bool), jnp.zeros((), jnp.float32)
        state = FootballState(
            attackers,
            jnp.zeros((n,), jnp.int32),
            no,
            no,
            defenders,
            zero,
            attackers[0],
            jnp.zeros((2,), jnp.float32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), bool),
            zero,
            attackers[0, 0],
            zero,
            key,
        )
        return state, observe(state)

    def step(s: FootballState, action: Int[Array, " n"]) -> tuple:
        key, key_kick, key_tackle = jax.random.split(s.key, 3)
        turns = (action >= LEFT) & (action <= DOWN_LEFT)
        heading = jnp.where(turns, action, jnp.where(action == RELEASE, 0, s.heading))
        sprints = (s.sprints | (action == SPRINT)) & (action != WALK)
        dribbles = (s.dribbles | (action == DRIBBLE)) & (action != CARRY)
        speed = jnp.where(sprints, 0.016, 0.010) * jnp.where(dribbles, 0.75, 1.0)
        runs = speed[:, None] * directions[heading]
        attackers = s.attackers + runs
        attackers = attackers.at[:, 0].set(jnp.clip(attackers[:, 0], -1.0, MOST_X))
        s = s._replace(
            attackers=attackers, heading=heading, sprints=sprints, dribbles=dribbles, key=key
        )
        carried = s.owner < n
        carrier = jnp.minimum(s.owner, n - 1)
        kind = action[carrier]
        kicks = carried & (kind >= LONG) & (kind <= SHOT)
        s = _kick(s, key_kick, carrier, kind, kicks, runs, directions)
        before = jnp.where(carried, attackers[carrier], s.ball)
        free = ~carried | kicks
        ball = jnp.where(free, before + s.velocity, before)
        s = s._replace(
            ball=ball,
            velocity=jnp.where(free, 0.97 * s.velocity, 0.0),
            defenders=s.defenders + _towards(ball[None] - s.defenders, 0.009),
            keeper=s.keeper
            + jnp.clip(jnp.clip(0.15 * ball[1], -0.05, 0.05) - s.keeper, -0.010, 0.010),
        )
        goal, dead = _line(s, before)
        s, lost = _contacts(s, key_tackle, carrier, kicks)
        tenths, reward = s.tenths, goal.astype(jnp.float32)
        way = (s.ball[0] - s.start) / (1.0 - s.start)
        far = jnp.where(s.owner < n, jnp.clip(jnp.floor(10.0 * way), 0.0, 10.0), 0.0)
        s = s._replace(tenths=jnp.maximum(tenths, far))
        if shaped:
            reward += 0.1 * (s.tenths - tenths)
        return s, observe(s), reward, goal | dead | lost

    size = 2 * (n + d) + n + 20
    name = f"football {n}v{d}"
    return Task(name, size, Discrete(NUM_ACTIONS), STEPS, reset, step, num_agents=n)


def run_and_shoot(obs: Float[Array, "*B n O"]) -> Int[Array, "*B n"]:
    """Returns the actions of a carrier who sprints around defenders and shoots when he is near.

    The others stand still. Written by hand, as something that learning is to be held against.
    """
    n = obs.shape[-2]
    d = (obs.shape[-1] - 3 * n - 20) // 2
    place = obs[..., :2]
    defenders = obs[..., 2 + 2 * n : 2 + 2 * (n + d)].reshape(*obs.shape[:-1], d, 2)
    near = jnp.hypot(1.0 - place[..., 0], place[..., 1]) < 0.1
    ahead = (defenders[..., 0] > -0.02) & (jnp.linalg.norm(defenders, axis=-1) < 0.12)
    blocked = jnp.any(ahead & (jnp.abs(defenders[..., 1]) < 0.06), axis=-1)
    side = jnp.sum(jnp.where(ahead, defenders[..., 1], 0.0), axis=-1)
    goes_up = jnp.where(blocked, side < 0.0, place[..., 1] < -0.03)
    goes_down = jnp.where(blocked, side >= 0.0, place[..., 1] > 0.03)
    run = jnp.where(goes_up, UP_RIGHT, jnp.where(goes_down, DOWN_RIGHT, RIGHT))
    owns = obs[..., 2 * (n + d) + 8 : 2 * (n + d) + 8 + n]
    carries = jnp.diagonal(owns, axis1=-2, axis2=-1) > 0.5
    sprints = obs[..., -2] > 0.5
    best = jnp.where(near, SHOT, jnp.where(sprints, run, SPRINT))
    return jnp.where(carries, best, 0).astype(jnp.int32)


def _kick(
    s: FootballState,
    key: jax.Array,
    carrier: Int[Array, ""],
    kind: Int[Array, ""],
    kicks: Bool[Array, ""],
    runs: Float[Array, "n 2"],
    directions: Float[Array, "9 2"],
) -> FootballState:
    """Gives the ball its velocity: a pass to where a mate will be, or a shot past the keeper."""
    n, noise = runs.shape[0], jax.random.normal(key, (3,), jnp.float32)
    here = s.attackers[carrier]
    apart = s.attackers - here[None]
    distance = jnp.linalg.norm(apart, axis=1)
    looks = jnp.where(s.heading[carrier] == 0, directions[RIGHT], directions[s.heading[carrier]])
    worth = apart @ looks / jnp.maximum(distance, 1e-6)
    worth -= jnp.where(kind == SHORT, 1.0, 0.3) * distance
    mate = jnp.argmax(jnp.where(jnp.arange(n) == carrier, -jnp.inf, worth))
    speed = jnp.where(kind == SHORT, 0.045, 0.075)
    lead = apart[mate] + distance[mate] / speed * runs[mate]
    passed = _towards(lead + 0.04 * distance[mate] * noise[:2], speed, always=True)
    far = jnp.hypot(1.0 - here[0], here[1])
    aim = -0.038 * jnp.sign(s.keeper) + (0.004 + 0.05 * far) * noise[2]
    shot = _towards(jnp.stack([jnp.float32(1.0), aim]) - here, 0.11, always=True)
    shoots = kind == SHOT
    return s._replace(
        velocity=jnp.where(kicks, jnp.where(shoots, shot, passed), s.velocity),
        owner=jnp.where(kicks, n, s.owner),
        high=jnp.where(kicks, jnp.where(kind == HIGH, 4, 0), s.high),
        is_shot=jnp.where(kicks, shoots, s.is_shot),
        reach=jnp.where(kicks, 0.004 + 0.10 * far, s.reach),
    )


def _line(s: FootballState, before: Float[Array, " 2"]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Returns whether there is a goal, and whether the ball is out or saved."""
    moved = s.ball - before
    crosses = (before[0] < 1.0) & (s.ball[0] >= 1.0)
    share = (1.0 - before[0]) / jnp.where(moved[0] > 0.0, moved[0], 1.0)
    y = before[1] + share * moved[1]
    saved = crosses & (jnp.abs(y - s.keeper) < s.reach)
    goal = crosses & ~saved & (jnp.abs(y) < HALF_GOAL)
    aside = (jnp.abs(s.ball[1]) > HALF_WIDTH) | (s.ball[0] < -1.0)
    return goal, ~goal & (crosses | aside)


def _contacts(
    s: FootballState, key: jax.Array, carrier: Int[Array, ""], kicked: Bool[Array, ""]
) -> tuple[FootballState, Bool[Array, ""]]:
    """Returns who has the ball now, and whether it is lost on the pitch."""
    n = s.attackers.shape[0]
    free = s.owner == n
    met = jnp.any(jnp.linalg.norm(s.defenders - s.ball[None], axis=1) < REACH)
    distance = jnp.linalg.norm(s.attackers - s.ball[None], axis=1)
    distance = jnp.where((jnp.arange(n) == carrier) & kicked, jnp.inf, distance)
    nearest = jnp.argmin(distance)
    speed = jnp.linalg.norm(s.velocity)
    intercepted = free & met & (s.high == 0)
    taken = free & ~intercepted & (distance[nearest] < PICK_UP) & ~(s.is_shot & (speed > 0.06))
    stalled = free & ~taken & (speed < 0.004)
    chance = TACKLE * jnp.where(s.dribbles[carrier], 0.5, 1.0)
    tackled = ~free & met & (jax.random.uniform(key) < chance)
    owner = jnp.where(taken, nearest.astype(jnp.int32), s.owner)
    ball = jnp.where(taken, s.attackers[nearest], s.ball)
    keeper = jnp.stack([jnp.float32(KEEPER_X), s.keeper])
    caught = (owner < n) & (jnp.linalg.norm(ball - keeper) < KEEPER_REACH)
    s = s._replace(
        owner=owner,
        ball=ball,
        velocity=jnp.where(taken, 0.0, s.velocity),
        high=jnp.maximum(s.high - 1, 0),
    )
    return s, intercepted | stalled | tackled | caught


def _towards(
    way: Float[Array, "*B 2"], speed: float | Float[Array, ""], *, always: bool = False
) -> Float[Array, "*B 2"]:
    """A step of this speed along a way, no further than its end unless it goes on `always`."""
    length = jnp.linalg.norm(way, axis=-1, keepdims=True)
    step = way / jnp.maximum(length, 1e-9) * speed
    return step if always else jnp.where(length < speed, way, step)
