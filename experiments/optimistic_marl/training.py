"""What is computed and kept: exact play, sampled play, rules of Q-learning, strangers."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import envs, learning, marl
from jaxlab.core import logging, loop, risk
from jaxlab.envs import Game
from jaxlab.envs import ball as ball_task

GAMMA = 0.95
WITHIN = 0.03
"""Share of what play can gain over chance, within which it counts as optimal."""
NUM_ENVS = 64
RELIABLE = 600.0
"""Return of the ball, of 667, from which a seed counts as having learned it."""


class Rule(NamedTuple):
    """A rule of Q-learning.

    Attributes:
        given: Arguments of `marl.make_q_learner` that stay.
        tuned: The one that is chosen, on seeds of their own.
        values: From what.
    """

    given: Mapping[str, Any]
    tuned: str
    values: tuple[float, ...]


OURS = "Entropic Q"
RULES: Mapping[str, Rule] = {
    "Independent Q": Rule({"rule": "independent"}, "rate", (0.1, 0.5, 0.9)),
    "Distributed Q": Rule({"rule": "distributed"}, "rate", (0.1, 0.5, 0.9)),
    "Hysteretic Q": Rule({"rule": "hysteretic", "rate": 0.9}, "slow_rate", (0.01, 0.1, 0.5)),
    OURS: Rule({"rule": "entropic", "rate": 0.5}, "beta", (0.2, 0.5, 2.0)),
}
MATRIX_RULES: Mapping[str, Rule] = {
    **RULES,
    "Lenient Q": Rule({"rule": "lenient", "rate": 0.5}, "cooling", (0.99, 0.995, 0.999)),
    "Frequency Q": Rule({"rule": "frequency", "rate": 0.1}, "bonus", (1.0, 3.0, 10.0)),
}
"""With those that are for games of one state alone, or made for them."""


class Ends(NamedTuple):
    """Where play ended.

    Attributes:
        betas: `[B]`.
        score: `[B, seeds]` neutral value of the start.
        optimum: `[]` what best play is worth.
        chance: `[]` what uniform play is worth.
        joint: `[B, A, A]` joint policy at the start, mean over seeds.
        best: `[B, seeds]` probability of the best joint actions at the start.
    """

    betas: np.ndarray
    score: np.ndarray
    optimum: np.ndarray
    chance: np.ndarray
    joint: np.ndarray
    best: np.ndarray

    @property
    def success(self) -> np.ndarray:
        """`[B, seeds]` whether play ended within 3 % of what there is to gain."""
        slack = WITHIN * (self.optimum - self.chance)
        return (self.score >= self.optimum - slack).astype(np.float64)

    @property
    def found(self) -> np.ndarray:
        """`[B, seeds]` whether the best joint action has more than 0.9."""
        return (self.best > 0.9).astype(np.float64)


class Greedy(NamedTuple):
    """Worth of a rule's greedy joint action, `[values * seeds]`, and of the best there is."""

    value: np.ndarray
    optimum: np.ndarray

    @property
    def success(self) -> np.ndarray:
        """Whether it is a best one."""
        return (self.value >= self.optimum - 1e-6).astype(np.float64)


class Ball(NamedTuple):
    """How a rule learned the ball: last tenth of training, greedy return, curve, a trace."""

    final: np.ndarray
    greedy: np.ndarray
    steps: np.ndarray
    returns: np.ndarray
    trace: np.ndarray


class Strangers(NamedTuple):
    """Payoffs `[B, seeds, seeds]` of agent 1 of one run with agent 2 of another."""

    betas: np.ndarray
    payoff: np.ndarray


def exact(
    game: Game,
    betas: tuple[float, ...],
    folder: pathlib.Path,
    *,
    starts: int,
    steps: int,
    rate: float,
    scale: float,
    seed: int,
) -> Ends:
    """Plays exactly from random starts, the same ones for every beta."""
    play = marl.make_play(game, learning_rate=rate, init_scale=scale, gamma=GAMMA)
    each = same_seeds(play, {"beta": betas}, starts)
    ended = loop.run(
        each,
        jax.random.key(seed),
        num_steps=steps,
        chunk_size=-(-steps // 2),
        directory=folder,
        config={"of": "exact play"},
    )
    policies = jax.vmap(marl.policies_of)(ended.state)
    return _ends(game, betas, starts, policies)


def sampled(
    game: Game,
    critic: Any,
    betas: tuple[float, ...],
    folder: pathlib.Path,
    *,
    seeds: int,
    updates: int,
    seed: int,
) -> Ends:
    """Learns from samples with tables, all seeds and betas side by side."""
    env = envs.make_env(envs.game_task(game), NUM_ENVS)
    index = functools.partial(envs.state_of, game)
    # A short run needs longer steps; the ratio of the two rates stays.
    pace = max(4000 / updates, 1.0)
    learner = marl.make_tabular(
        env,
        index,
        game.num_states,
        critic=critic,
        gamma=GAMMA,
        init_scale=0.5 if game.num_states > 1 else 0.0,
        policy_rate=0.02 * pace**0.5,
        critic_rate=min(0.05 * pace**0.5, 1.0),
    )
    each = same_seeds(learner, {"beta": betas}, seeds)
    ended = loop.run(
        each,
        jax.random.key(seed),
        num_steps=updates,
        chunk_size=-(-updates // 4),
        directory=folder,
        config={"of": f"sampled play, {critic}"},
    )
    policies = tuple(
        jax.nn.softmax(ended.state.logits[:, i, :, :num]) for i, num in enumerate(game.num_actions)
    )
    return _ends(game, betas, seeds, policies)


def strangers(
    game: Game, betas: tuple[float, ...], folder: pathlib.Path, *, seeds: int, seed: int
) -> Strangers:
    """Trains pairs exactly from random starts, and lets the agents of different pairs meet."""
    play = marl.make_play(game, learning_rate=0.05, init_scale=1.0, gamma=GAMMA)
    each = same_seeds(play, {"beta": betas}, seeds)
    ended = loop.run(
        each,
        jax.random.key(seed),
        num_steps=2000,
        chunk_size=1000,
        directory=folder,
        config={"of": "strangers"},
    )
    first, second = (np.asarray(p)[:, 0] for p in jax.vmap(marl.policies_of)(ended.state))
    shape = (len(betas), seeds, -1)
    payoff = np.sum(game.prob * game.reward, axis=-1)[0]
    met = np.einsum("bia,ac,bjc->bij", first.reshape(shape), payoff, second.reshape(shape))
    return Strangers(np.array(betas), met)


def rules(
    game: Game,
    name: str,
    values: tuple[float, ...],
    folder: pathlib.Path,
    *,
    seeds: int,
    plays: int,
    seed: int,
) -> Greedy:
    """Learns a game of one state by a rule, at several values of its parameter side by side."""
    env = envs.make_env(envs.game_task(game), 1)
    index = functools.partial(envs.state_of, game)
    state = _learn_q(env, index, 1, MATRIX_RULES[name], values, folder, seeds, plays, seed).state
    payoff = np.sum(game.prob * game.reward, axis=-1)[0]
    actions = np.asarray(state.greedy)[:, :, 0]
    return Greedy(payoff[tuple(actions.T)], payoff.max())


def ball(
    name: str,
    values: tuple[float, ...],
    folder: pathlib.Path,
    *,
    seeds: int,
    trials: int,
    seed: int,
) -> Ball:
    """Learns to balance the ball by a rule, at several values of its parameter side by side."""
    env = envs.make_env(envs.ball_balancing(), 1)
    num_states = ball_task.BINS[0] * ball_task.BINS[1]
    steps = trials * ball_task.STEPS
    ended = _learn_q(
        env, envs.ball_index, num_states, RULES[name], values, folder, seeds, steps, seed
    )
    records = logging.read_jsonl(folder / "metrics.jsonl")
    at, returns = logging.series(records, "env/return_seeds")

    def rollout(greedy: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
            state, running, total = carry
            here = envs.ball_index(state.obs)
            state = env.step(state, greedy[:, here].T)
            total = total + jnp.where(running, state.reward[0], 0.0)
            running = running & ~state.terminated[0]
            return (state, running, total), jnp.where(running, state.final_obs[0, 0], jnp.nan)

        start = (env.reset(jax.random.key(0)), jnp.ones((), bool), jnp.zeros(()))
        (_, _, total), seen = jax.lax.scan(one, start, length=ball_task.STEPS)
        return total, seen

    greedy, traces = jax.device_get(jax.jit(jax.vmap(rollout))(ended.state.greedy))
    return Ball(late(returns), greedy, at, returns, traces[0])


def late(returns: np.ndarray) -> np.ndarray:
    """Mean of the last tenth by seed; NaN of a seed none of whose episodes ended in it."""
    last = returns[-max(len(returns) // 10, 1) :]
    seen = np.isfinite(last).sum(axis=0)
    return np.where(seen > 0, np.nansum(last, axis=0) / np.maximum(seen, 1), np.nan)


def same_seeds(algorithm: Any, values: Mapping[str, tuple[float, ...]], seeds: int) -> Any:
    """All values of a setting with the same seeds: value k has the rows from k `seeds` on."""
    ((name, swept),) = values.items()
    init, step, num = algorithm.init, algorithm.step, len(swept) * seeds
    repeated = {name: jnp.repeat(jnp.asarray(swept, jnp.float32), seeds)}
    wide = learning.over_seeds(algorithm, num, settings=repeated)

    def same(key: jax.Array) -> Any:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(seeds))
        rows = jnp.tile(jnp.arange(seeds), len(swept))
        return jax.vmap(init)(keys[rows], repeated)

    return wide._replace(init=same, name=step.__qualname__)


def _learn_q(
    env: envs.Env,
    index: Any,
    num_states: int,
    rule: Rule,
    values: tuple[float, ...],
    folder: pathlib.Path,
    seeds: int,
    steps: int,
    seed: int,
) -> loop.LoopResult:
    learner = marl.make_q_learner(
        env, index, num_states, explore_steps=steps, gamma=0.9, **rule.given
    )
    return loop.run(
        same_seeds(learner, {rule.tuned: values}, seeds),
        jax.random.key(seed),
        num_steps=steps,
        chunk_size=-(-steps // 40),
        directory=folder,
        config={"rule": rule.given["rule"], rule.tuned: list(values)},
    )


def _ends(game: Game, betas: tuple[float, ...], seeds: int, policies: Any) -> Ends:
    start = int(np.argmax(game.start))
    best = marl.optimal_values(game, gamma=GAMMA)
    weights = jnp.asarray(game.start, jnp.float32)
    top = np.asarray(best.q[start] >= jnp.max(best.q[start]) - 1e-4 * jnp.max(jnp.abs(best.q)))

    @jax.jit
    @jax.vmap
    def judge(policies: Any) -> tuple[jax.Array, jax.Array]:
        joint = marl.joint_policy(policies)
        found = marl.evaluate(game, joint, risk.neutral(), gamma=GAMMA)
        return weights @ found.v, joint[start]

    uniform = tuple(jnp.full((game.num_states, num), 1.0 / num) for num in game.num_actions)
    score, joint = jax.device_get(judge(policies))
    chance, _ = jax.device_get(judge(jax.tree.map(lambda x: x[None], uniform)))
    joint = joint.reshape(len(betas), seeds, *game.num_actions)
    return Ends(
        np.array(betas),
        score.reshape(len(betas), seeds),
        np.asarray(weights @ best.v),
        chance[0],
        joint.mean(axis=1),
        np.sum(joint * top, axis=tuple(range(2, joint.ndim))),
    )
