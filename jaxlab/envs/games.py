"""Games of several agents with a common reward, as tables: payoff matrices and small Markov games.

A table can be played (`game_task` makes it a task with agents) and solved exactly
(`jaxlab.marl`). The games here are those on which independent learners are known to settle for
less than they could have: whoever tries the best joint action alone is punished for it.

Claus and Boutilier 1998 and Kapetanakis and Kudenko 2002 (climbing, penalty and its stochastic
kin); Zhang et al. 2025, arXiv:2509.24047 (the asymmetric game and the gold mine, laid out anew).
"""

import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.envs.spaces import Discrete, is_count
from jaxlab.envs.task import Task

CLIMBING = np.array([[11.0, -30.0, 0.0], [-30.0, 7.0, 0.0], [0.0, 6.0, 5.0]])
"""Payoff [row of agent 1, column of agent 2]; 11 is best, 7 is where independent learners end."""
ASYMMETRIC = np.array([[-1.0, 0.14], [0.16, 0.15], [0.2, -1.0]])
"""Three actions against two; 0.2 is best, guarded by -1, beside a plateau of 0.16."""
STAG_SIZE = 5
"""Side of the grid of `stag_grid`."""


class Game(NamedTuple):
    """A Markov game with a common reward: in state s, joint action a has K possible outcomes.

    The tables are NumPy arrays over `[S, A_1, ..., A_N, K]`: states, the actions of N agents,
    outcomes. `check_game` says what they must be.

    Attributes:
        name: for messages.
        prob: probability of each outcome; they sum to 1 over K.
        reward: what all agents get.
        next_state: int32, where the outcome leads.
        ends: bool, whether the game ends with it.
        start: `[S]`, probability of each first state.
        time_limit: steps after which a played episode is cut; exact values know no clock.

    Example:
        >>> game = matrix_game([[1.0, 0.0], [0.0, 2.0]])
        >>> game.num_agents, game.num_actions, game.num_states
        (2, (2, 2), 1)
    """

    name: str
    prob: Float[np.ndarray, "S ..."]
    reward: Float[np.ndarray, "S ..."]
    next_state: Int[np.ndarray, "S ..."]
    ends: Bool[np.ndarray, "S ..."]
    start: Float[np.ndarray, " S"]
    time_limit: int

    @property
    def num_states(self) -> int:
        """S, how many states there are."""
        return self.prob.shape[0]

    @property
    def num_actions(self) -> tuple[int, ...]:
        """A_1, ..., A_N, how many actions each agent has."""
        return self.prob.shape[1:-1]

    @property
    def num_agents(self) -> int:
        """N, how many agents play."""
        return self.prob.ndim - 2


def check_game(game: Game) -> None:
    """Refuses tables that are no game.

    Raises:
        ValueError: if the tables differ in shape or have no agent, state, action or outcome, a
            reward is not finite, probabilities are none, a next state does not exist, or there is
            no time to play.
    """
    shape = np.shape(game.prob)
    tables = {name: getattr(game, name) for name in ("prob", "reward", "next_state", "ends")}
    if len(shape) < 3 or 0 in shape or any(np.shape(x) != shape for x in tables.values()):
        raise ValueError(
            f"{game.name}: tables must be [S, A_1, ..., A_N, K] of one shape, without an empty "
            "axis, got " + ", ".join(f"{name} {np.shape(x)}" for name, x in tables.items())
        )
    if not np.all(np.isfinite(game.reward)):
        where = tuple(map(int, np.argwhere(~np.isfinite(game.reward))[0]))
        raise ValueError(
            f"{game.name}: rewards must be finite, got {np.asarray(game.reward)[where]} at {where}"
        )
    for name, probs in (("prob", game.prob), ("start", game.start)):
        probs = np.asarray(probs)
        if not np.all(probs >= 0.0) or not np.allclose(probs.sum(axis=-1), 1.0, atol=1e-6):
            raise ValueError(
                f"{game.name}: {name} must not be negative and sum to 1 over its last axis, got "
                f"sums from {probs.sum(axis=-1).min()} to {probs.sum(axis=-1).max()}, least "
                f"{probs.min()}"
            )
    if np.shape(game.start) != shape[:1]:
        raise ValueError(f"{game.name}: start must be {shape[:1]}, got {np.shape(game.start)}")
    state = np.asarray(game.next_state)
    if state.dtype.kind != "i" or state.min() < 0 or state.max() >= shape[0]:
        raise ValueError(
            f"{game.name}: next_state must be integers from 0 to {shape[0] - 1}, got {state.dtype} "
            f"from {state.min()} to {state.max()}"
        )
    if np.asarray(game.ends).dtype != np.bool_:
        raise ValueError(f"{game.name}: ends must be bool, got {np.asarray(game.ends).dtype}")
    if not is_count(game.time_limit):
        raise ValueError(f"{game.name}: time_limit must be at least 1, got {game.time_limit!r}")


# Games without states


def matrix_game(
    payoff: Float[np.ndarray, "..."],
    *,
    chances: Float[np.ndarray, " K"] | None = None,
    num_steps: int = 1,
    name: str = "matrix_game",
) -> Game:
    """Makes a game of a payoff tensor: one state, and what the joint action pays.

    Args:
        payoff: `[A_1, ..., A_N]` of two agents or more; `[A_1, ..., A_N, K]` where payoffs are
            lotteries over K outcomes.
        chances: `[K]` probabilities of the outcomes; None: payoffs are certain.
        num_steps: steps of an episode. With one the game ends after it; with more it is cut by
            time, and its values are those of an endless repetition.
        name: for messages.

    Raises:
        ValueError: if the payoff has too few axes or a number that is not finite, or chances are
            no probabilities of its last axis.

    Example:
        >>> game = matrix_game([[11.0, -30.0, 0.0], [-30.0, 7.0, 0.0], [0.0, 6.0, 5.0]])
    """
    try:
        table = np.asarray(payoff)
    except ValueError as error:
        raise ValueError(f"{name}: payoff must be a tensor, got rows of several lengths") from error
    if table.dtype.kind not in "fiu":
        raise ValueError(f"{name}: payoff must be numbers, got {table.dtype}")
    table = table.astype(np.float64)
    wanted = "[A_1, ..., A_N]" if chances is None else "[A_1, ..., A_N, K]"
    if table.ndim < (2 if chances is None else 3) or 0 in table.shape:
        raise ValueError(
            f"{name}: payoff must be {wanted} with an axis for each of two agents or more, got "
            f"shape {table.shape}"
        )
    if chances is None:
        table, chances = table[..., None], np.ones(1)
    probs = np.asarray(chances, np.float64)
    if probs.shape != table.shape[-1:]:
        raise ValueError(f"{name}: chances must be {table.shape[-1:]}, got {probs.shape}")
    table = table[None]
    game = Game(
        name,
        np.broadcast_to(probs, table.shape),
        table,
        np.zeros(table.shape, np.int32),
        np.full(table.shape, num_steps == 1),
        np.ones(1),
        num_steps,
    )
    check_game(game)
    return game


def climbing(random: Literal["none", "partly", "fully"] = "none", *, num_steps: int = 1) -> Game:
    """Makes the climbing game, of which `CLIMBING` is the payoff.

    Args:
        random: "partly": (b, b) pays 14 or 0. "fully": every cell is a lottery of two payoffs, and
            the rows of the third action differ, with the means [[11, -30, 0], [-30, 7, 6],
            [0, 0, 5]].
        num_steps: see `matrix_game`.

    Raises:
        ValueError: if `random` is no such word.
    """
    if random == "none":
        return matrix_game(CLIMBING, num_steps=num_steps, name="climbing")
    if random == "partly":
        payoff = np.stack([CLIMBING, CLIMBING], axis=-1)
        payoff[1, 1] = 14.0, 0.0
    elif random == "fully":
        payoff = np.array(
            [
                [[10.0, 12.0], [5.0, -65.0], [8.0, -8.0]],
                [[5.0, -65.0], [14.0, 0.0], [12.0, 0.0]],
                [[5.0, -5.0], [5.0, -5.0], [10.0, 0.0]],
            ]
        )
    else:
        raise ValueError(f"random must be none, partly or fully, got {random!r}")
    return matrix_game(
        payoff, chances=np.full(2, 0.5), num_steps=num_steps, name=f"climbing_{random}_random"
    )


def penalty(k: float = 100.0, *, num_steps: int = 1) -> Game:
    """Makes the penalty game [[-k, 0, 10], [0, 2, 0], [10, 0, -k]]: two optima, one safe action."""
    payoff = np.array([[-k, 0.0, 10.0], [0.0, 2.0, 0.0], [10.0, 0.0, -k]])
    return matrix_game(payoff, num_steps=num_steps, name="penalty")


def asymmetric() -> Game:
    """Makes the game of `ASYMMETRIC`, in which agents have three and two actions."""
    return matrix_game(ASYMMETRIC, name="asymmetric")


# Games with states


def gold_mine(*, time_limit: int = 40) -> Game:
    """Makes the gold mine: dig at once together, or commit to two steps together.

    From the road (state 0) both may dig (action 0) for 1, or both go to mine A (action 1) or B
    (action 2), which pays nothing yet. Once there (states 1 and 2), both must repeat the choice:
    A pays 4, B pays 1. Whatever else happens pays 0 and leads back to the road. Always A is best,
    2 a step; without end, at a discount of 0.95, it is worth 38.974.
    """
    prob, reward, next_state, ends = _tables((3, 3, 3, 1))
    reward[0, 0, 0] = 1.0
    next_state[0, 1, 1], next_state[0, 2, 2] = 1, 2
    reward[1, 1, 1], reward[2, 2, 2] = 4.0, 1.0
    start = np.array([1.0, 0.0, 0.0])
    return _game("gold_mine", prob, reward, next_state, ends, start, time_limit)


def stag_grid(loss: float = 5.0, *, slip: float = 0.0, time_limit: int = 25) -> Game:
    """Makes a stag hunt on a 5 x 5 grid, with a loss for whoever meets the stag alone.

    Two agents start in opposite corners; state 25 i + j has them in cells i and j, row by row. They
    go north, south, west or east, or stay; walls block, and both may stand in one cell. After the
    move, both at the stag in the middle get 10, and the game ends; one alone there costs `loss`,
    and it goes on. Each agent at a hare, in one of the other two corners, gets 1, and ends it too.
    A step costs 0.05. At a discount of 0.95 and without slips the best is worth 8.388.

    Args:
        loss: what one agent alone at the stag costs in every step.
        slip: probability that an agent's move is replaced by one drawn from all five.
        time_limit: steps of a played episode.

    Raises:
        ValueError: if the slip is no probability or the loss is not finite.
    """
    if not 0.0 <= slip <= 1.0:
        raise ValueError(f"slip must lie in [0, 1], got {slip}")
    side = STAG_SIZE
    cells, moves = side * side, ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
    place = np.array(
        [
            [
                min(max(row + down, 0), side - 1) * side + min(max(column + right, 0), side - 1)
                for down, right in moves
            ]
            for row, column in itertools.product(range(side), range(side))
        ]
    )
    middle, hares = cells // 2, (side - 1, cells - side)
    num_moves = len(moves)
    # Without slips the joint move is what was chosen; with them any of the 25 may come of it.
    actual = list(itertools.product(range(num_moves), repeat=2)) if slip else [None]
    shape = (cells * cells, num_moves, num_moves, len(actual))
    prob, reward, next_state, ends = _tables(shape)
    first, second = np.divmod(np.arange(cells * cells), cells)
    for a, b in itertools.product(range(num_moves), repeat=2):
        for k, pair in enumerate(actual):
            to = [place[at, m] for at, m in zip((first, second), pair or (a, b), strict=True)]
            chance = 1.0
            if pair is not None:
                for chosen, m in zip((a, b), pair, strict=True):
                    chance *= (1.0 - slip) * (chosen == m) + slip / num_moves
            at_stag = sum((x == middle).astype(int) for x in to)
            at_hare = sum(np.isin(x, hares).astype(int) for x in to)
            prob[:, a, b, k] = chance
            reward[:, a, b, k] = (
                10.0 * (at_stag == 2) - loss * (at_stag == 1) + 1.0 * at_hare - 0.05
            )
            next_state[:, a, b, k] = to[0] * cells + to[1]
            ends[:, a, b, k] = (at_stag == 2) | (at_hare > 0)
    start = np.zeros(cells * cells)
    start[cells - 1] = 1.0  # in cells 0 and 24
    return _game("stag_grid", prob, reward, next_state, ends, start, time_limit)


def _tables(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return np.ones(shape), np.zeros(shape), np.zeros(shape, np.int32), np.zeros(shape, bool)


def _game(name: str, prob: np.ndarray, reward: np.ndarray, *rest) -> Game:
    game = Game(name, prob, reward, *rest)
    check_game(game)
    return game


# Playing them


class GameState(NamedTuple):
    """The physics of a played game.

    Attributes:
        state: int32, the state of the game.
        key: PRNG key of the outcomes to come.
    """

    state: Int[Array, ""]
    key: Array


def game_task(game: Game) -> Task:
    """Makes a task with agents of a game.

    Every agent observes `[S + N]` numbers: the state, and which agent it is, both one-hot. Where
    agents have different numbers of actions, a mask forbids what one does not have.

    Example:
        >>> env = make_env(game_task(climbing()), num_envs=64)
        >>> env.num_agents, env.obs_size
        (2, 3)
    """
    check_game(game)
    S, N, num_outcomes = game.num_states, game.num_agents, game.prob.shape[-1]
    most = max(game.num_actions)
    allowed = np.arange(most)[None] < np.array(game.num_actions)[:, None]

    def observe(state: jax.Array) -> jax.Array:
        seen = jnp.broadcast_to(jax.nn.one_hot(state, S, dtype=jnp.float32), (N, S))
        return jnp.concatenate([seen, jnp.eye(N, dtype=jnp.float32)], axis=1)

    def reset(key: jax.Array) -> tuple[GameState, jax.Array]:
        state = jnp.asarray(np.argmax(game.start), jnp.int32)
        if np.count_nonzero(game.start) > 1:
            key, key_start = jax.random.split(key)
            state = _draw(key_start, jnp.asarray(game.start, jnp.float32))
        return GameState(state, key), observe(state)

    def step(physics: GameState, action: jax.Array) -> tuple:
        key = physics.key
        at = (physics.state, *action)
        outcome = jnp.zeros((), jnp.int32)
        if num_outcomes > 1:
            key, key_outcome = jax.random.split(key)
            outcome = _draw(key_outcome, jnp.asarray(game.prob, jnp.float32)[at])
        at = (*at, outcome)
        state = _entry(game.next_state, at, jnp.int32)
        reward = _entry(game.reward, at, jnp.float32)
        return GameState(state, key), observe(state), reward, _entry(game.ends, at, jnp.bool_)

    def mask(physics: GameState) -> jax.Array:
        return jnp.asarray(allowed)

    return Task(
        game.name,
        S + N,
        Discrete(most),
        game.time_limit,
        reset,
        step,
        num_agents=N,
        action_mask=None if allowed.all() else mask,
    )


def _entry(table: np.ndarray, at: tuple, dtype: Any) -> jax.Array:
    """Returns an entry of a table, without a look where all are the same."""
    if np.all(table == table.flat[0]):
        return jnp.asarray(table.flat[0], dtype)
    return jnp.asarray(table, dtype)[at]


def _draw(key: jax.Array, probs: jax.Array) -> jax.Array:
    """Draws an index; never one without a probability."""
    total = jnp.cumsum(probs)
    u = jax.random.uniform(key) * total[-1]
    return jnp.minimum(jnp.sum(u >= total), jnp.argmax(total)).astype(jnp.int32)


def state_of(game: Game, obs: Float[Array, "... N O"]) -> Int[Array, "..."]:
    """Returns the state that agents of `game_task` observe."""
    return jnp.argmax(obs[..., 0, : game.num_states], axis=-1).astype(jnp.int32)


def random_game(
    seed: int, num_states: int, num_actions: tuple[int, ...], *, num_outcomes: int = 1
) -> Game:
    """Draws a game of normal rewards that never ends, for tests and trials of one's own code.

    Args:
        seed: of NumPy's generator.
        num_states, num_actions, num_outcomes: S, (A_1, ..., A_N) and K of the tables.
    """
    rng = np.random.default_rng(seed)
    shape = (num_states, *num_actions, num_outcomes)
    prob = rng.dirichlet(np.ones(num_outcomes), shape[:-1])
    reward = rng.normal(size=shape)
    next_state = rng.integers(0, num_states, shape, dtype=np.int32)
    start = rng.dirichlet(np.ones(num_states))
    return _game("random_game", prob, reward, next_state, np.zeros(shape, bool), start, 25)
