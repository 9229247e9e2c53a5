"""What is computed and kept: exact play, sampled play, the ball, strangers, networks."""

import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping
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
RULES: Mapping[str, Any] = {
    "Independent Q": {"rule": "independent", "rate": 0.9},
    "Hysteretic Q": {"rule": "hysteretic", "rate": 0.9, "slow_rate": 0.1},
    "Distributed Q": {"rule": "distributed", "rate": 0.9},
    "Entropic Q": {"rule": "entropic", "rate": 0.5, "beta": 0.5},
}
RELIABLE = 600.0
"""Return of the ball, of 667, from which a seed counts as having learned it."""
STYLES: Mapping[str, Callable[[], marl.Optimism]] = {
    "IPPO": marl.neutral,
    "Op-IPPO": marl.entropic,
    "OptiMAPPO": marl.leaky,
}


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


class Deep(NamedTuple):
    """Returns of networks: `[seeds]` at the end, and `[points, seeds]` over environment steps."""

    final: np.ndarray
    steps: np.ndarray
    returns: np.ndarray
    steps_per_second: np.ndarray


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
    each = _same_seeds(play, betas, starts)
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
    each = _same_seeds(learner, betas, seeds)
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
    each = _same_seeds(play, betas, seeds)
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


def ball(rule: str, folder: pathlib.Path, *, seeds: int, trials: int, seed: int) -> Ball:
    """Learns to balance the ball with one rule, all seeds side by side."""
    env = envs.make_env(envs.ball_balancing(), 1)
    num_states = ball_task.BINS[0] * ball_task.BINS[1]
    steps = trials * ball_task.STEPS
    learner = marl.make_q_learner(
        env, envs.ball_index, num_states, explore_steps=steps, gamma=0.9, **RULES[rule]
    )
    ended = loop.run(
        learning.over_seeds(learner, seeds),
        jax.random.key(seed),
        num_steps=steps,
        chunk_size=-(-steps // 40),
        directory=folder,
        config={"of": rule},
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
    return Ball(_late(returns), greedy, at, returns, traces[0])


def deep(
    method: str,
    parameters: tuple[float, ...],
    folder: pathlib.Path,
    *,
    task: str,
    seeds: int,
    steps: int,
    seed: int,
) -> Deep:
    """Trains networks, `seeds` for each parameter, side by side."""
    env = envs.make_env(deep_task(task), 16)
    rollout = 128
    updates = max(steps // (rollout * env.num_envs), 2)
    learner = marl.make_op_ippo(env, style=STYLES[method](), num_steps=rollout, learning_rate=7e-4)
    each = _same_seeds(learner, parameters, seeds)
    loop.run(
        each,
        jax.random.key(seed),
        num_steps=updates,
        chunk_size=-(-updates // 20),
        directory=folder,
        config={"of": method, "parameters": list(parameters)},
    )
    records = logging.read_jsonl(folder / "metrics.jsonl")
    at, returns = logging.series(records, "env/return_seeds")
    speed = np.median(logging.series(records, "perf/steps_per_second")[1])
    per_step = rollout * env.num_envs
    rate = np.array(speed * per_step * seeds * len(parameters))
    return Deep(_late(returns), at * per_step, returns, rate)


def deep_task(name: str) -> envs.Task:
    """Makes what networks learn.

    Raises:
        ValueError: if JaxMARL is needed and not installed.
    """
    if name in OWN:
        return OWN[name]()
    try:
        jaxmarl = importlib.import_module("jaxmarl")
    except ImportError as error:
        raise ValueError(
            f"the task {name!r} needs jaxmarl (pip install -e '.[games]'); leave it out of "
            "--deep-tasks"
        ) from error
    if name == "overcooked":
        layouts = importlib.import_module("jaxmarl.environments.overcooked").overcooked_layouts
        return envs.from_jaxmarl(jaxmarl.make("overcooked", layout=layouts["coord_ring"]))
    smax = importlib.import_module("jaxmarl.environments.smax")
    scenario = smax.map_name_to_scenario("3m")
    return envs.from_jaxmarl(jaxmarl.make("HeuristicEnemySMAX", scenario=scenario))


OWN: Mapping[str, Callable[[], envs.Task]] = {
    "spread": envs.simple_spread,
    "predators": envs.predator_prey,
    "stag": lambda: envs.game_task(envs.stag_grid(5.0)),
}


def _late(returns: np.ndarray) -> np.ndarray:
    """Mean of the last tenth by seed; NaN of a seed none of whose episodes ended in it."""
    late = returns[-max(len(returns) // 10, 1) :]
    seen = np.isfinite(late).sum(axis=0)
    return np.where(seen > 0, np.nansum(late, axis=0) / np.maximum(seen, 1), np.nan)


def _same_seeds(algorithm: Any, betas: tuple[float, ...], seeds: int) -> Any:
    """Every beta with the same seeds, side by side: beta k has the rows from k `seeds` on."""
    init, step, num = algorithm.init, algorithm.step, len(betas) * seeds
    repeated = {"beta": jnp.repeat(jnp.asarray(betas, jnp.float32), seeds)}
    wide = learning.over_seeds(algorithm, num, settings=repeated)

    def same(key: jax.Array) -> Any:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(seeds))
        rows = jnp.tile(jnp.arange(seeds), len(betas))
        return jax.vmap(init)(keys[rows], repeated)

    return wide._replace(init=same, name=step.__qualname__)


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
