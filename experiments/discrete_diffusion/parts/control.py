"""Macro-actions: returns against how many choices are made at once, without a look between.

Every method plays the same number of steps of a game, and chooses a learning rate on a quarter of
them. In the deep sea the best return is known; in a game that must be reacted to, long
macro-actions cost something, which is why K = 1 is always there.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.discrete_diffusion.parts import control_told
from experiments.discrete_diffusion.parts.control_told import SIZE, Outcome
from experiments.harness import units, verdicts
from experiments.harness.result import Part
from experiments.harness.units import Unit
from jaxlab import envs, learning, rl
from jaxlab.core import logging, loop
from jaxlab.core.types import Algorithm
from jaxlab.diffusion.discrete import schedules
from jaxlab.envs import spaces
from jaxlab.learning import over_seeds
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import discrete
from jaxlab.rl.discrete import StatePolicy, bandits, token_critics
from jaxlab.rl.discrete.state_policies import at_states

T = TypeVar("T")
ENVS = 16
"""Games side by side."""
ROLLOUT = 64
"""Steps of each game between two changes of a policy that learns from rollouts."""
BATCH = 32
"""Macro-actions of a gradient step on critics."""
EPISODES = 32
"""Of an evaluation."""
GLANCE_SEEDS = 2
"""Of games that are only looked at."""
GAMMA = 0.99
EVALUATION_KEY = 2**31 - 1
"""Seed of evaluations, apart from those of training."""
SETTINGS = ("width", "num_layers", "num_steps", "evaluations")
"""What an outcome depends on, of the study's settings, besides its own."""


class Method(NamedTuple):
    """How one method learns a game of macro-actions.

    Attributes:
        algorithm: Of one seed.
        act: `act(state, key, obs [B, O], mask) -> [B, K]`, as an evaluation plays; the mask is
            left out where nothing is forbidden.
        macros: Macro-actions of each game in a step of the algorithm.
        warmup: Macro-actions of all games before the first.
    """

    algorithm: Algorithm
    act: Callable[..., jax.Array]
    macros: int
    warmup: int


class Game(NamedTuple):
    """A game whose actions are K tokens, and the shape of what is seen.

    Attributes:
        play: `play(length) -> task`, as it is learned.
        judge: `judge(length) -> task`, as it is judged.
        obs_shape: (O,), or (H, W, C) of flat images.
        vocab: V, single choices.
        open_loop: Whether an action takes as many steps of the game as it has tokens: those of a
            macro-action are played one after another, those of a team at once.
        methods: Makers, by name, of methods that learn this game alone.
    """

    play: Callable[[int], envs.Task]
    judge: Callable[[int], envs.Task]
    obs_shape: tuple[int, ...]
    vocab: int
    open_loop: bool = True
    methods: Mapping[str, Callable[..., Method]] | None = None

    def span(self, length: int) -> int:
        """Steps of the game that an action of so many tokens takes at most."""
        return length if self.open_loop else 1


def run(config: Config, out: pathlib.Path) -> Part:
    """Trains what `out` does not hold, then tells."""
    names = tuple(name for name in METHODS if not config.methods or name in config.methods)
    games = make_games(config)
    wanted = list(itertools.product(games, config.control_lengths, names))
    cells = [
        (game, length, name)
        for game, length, name in wanted
        if name != "DQN" or _listable(games[game], length)
    ]
    found, chosen = {}, {}
    glance = dataclasses.replace(config, num_seeds=GLANCE_SEEDS, tuning_seeds=0)
    for given in (config, glance):
        some = [cell for cell in cells if (cell[0] in config.control_games) == (given is config)]
        trained, settings = learn(some, games, given, "control", config.control_frames, out)
        found, chosen = found | trained, chosen | settings
    return control_told.tell(found, chosen, config, out, left_out=_left_out(config, games, wanted))


def learn(
    cells: list[control_told.Cell],
    games: Mapping[str, Game],
    config: Config,
    part: str,
    frames: int,
    out: pathlib.Path,
) -> tuple[dict[control_told.Cell, Outcome], dict[control_told.Cell, dict[str, float]]]:
    """Chooses the setting of every cell on other seeds and a quarter of the frames, then trains.

    Returns outcomes and settings by cell: game, K and method.
    """

    def unit(cell: control_told.Cell, values: Mapping[str, float], tuning: bool) -> Unit:
        game, length, name = cell
        number = config.tuning_seeds if tuning else config.num_seeds
        played = frames // 4 if tuning else frames
        seed = config.seed + 1000 * tuning
        run_ = Run(game, length, name, played, number, seed, dict(values))
        settings = {k: getattr(config, k) for k in SETTINGS} | run_._asdict()
        where = "".join(f"/tuning/{x:g}" for x in values.values()) if tuning else ""
        compute = functools.partial(train, run_, games[game], config)
        return Unit(f"{part}/{game}/K{length}/{name}{where}", settings, compute, Outcome)

    chosen, tried = {}, {}
    for cell in cells:
        setting, candidates = sweep(cell[2], config)
        chosen[cell] = {setting: candidates[0]}
        if len(candidates) > 1 and config.tuning_seeds:
            tried |= {(cell, x): unit(cell, {setting: x}, True) for x in candidates}
    kept = units.run(
        list(tried.values()), out, title=f"discrete_diffusion, {part} tuning", metrics=_metrics
    )
    best: dict[control_told.Cell, float] = {}
    for (cell, x), one in tried.items():
        worth = float(np.mean(kept[one.name].final))  # one that loses a seed is not taken
        if worth > best.get(cell, -np.inf):
            best[cell] = worth
            chosen[cell] = dict.fromkeys(chosen[cell], x)
    todo = {cell: unit(cell, chosen[cell], False) for cell in cells}
    title = f"discrete_diffusion, {part}"
    kept = units.run(list(todo.values()), out, title=title, metrics=_metrics)
    return {cell: kept[one.name] for cell, one in todo.items()}, chosen


class Run(NamedTuple):
    """What one program trains.

    Attributes:
        game: Its name.
        length: K.
        method: Its name.
        frames: Steps of the game, a seed.
        num_seeds: Seeds side by side.
        seed: Of all draws.
        values: The setting that is chosen.
    """

    game: str
    length: int
    method: str
    frames: int
    num_seeds: int
    seed: int
    values: dict[str, float]


def train(what: Run, game: Game, config: Config, folder: pathlib.Path) -> Outcome:
    """Trains all seeds of one method, or goes on with what `folder` holds."""
    method = make_method(what.method, game, what.length, what.frames, config)
    swept = {k: jnp.full(what.num_seeds, x, jnp.float32) for k, x in what.values.items()}
    learner = over_seeds(method.algorithm, what.num_seeds, settings=swept)
    span = game.span(what.length)
    a_step = ENVS * span * method.macros
    num_steps = max((what.frames - method.warmup * span) // a_step, 1)
    judge = envs.make_env(game.judge(what.length), EPISODES)

    def look(state: Any) -> jax.Array:
        act = functools.partial(method.act, state)
        return jnp.mean(learning.evaluate(jax.random.key(EVALUATION_KEY), act, judge))

    looks = jax.jit(jax.vmap(look, in_axes=(learner.axes,)))
    try:
        ended = loop.run(
            learner,
            jax.random.key(what.seed),
            num_steps=num_steps,
            chunk_size=max(num_steps // config.evaluations, 1),
            directory=folder,
            evaluate=lambda state: {"eval/return": looks(state)},
            config=what._asdict(),
        )
    except loop.NonFiniteError:
        gone, none = np.full(what.num_seeds, np.nan), np.zeros(0)
        return Outcome(gone, (none, np.zeros((0, what.num_seeds))))
    steps, found = logging.series(logging.read_jsonl(folder / "metrics.jsonl"), "eval/return_seeds")
    final = np.array(found[-1])
    final[list(ended.frozen)] = np.nan
    return Outcome(final, (method.warmup * span + steps * a_step, found))


def make_games(config: Config) -> dict[str, Game]:
    """Makes the games by name; those whose library is not installed are left out.

    Raises:
        ValueError: if there is no such game, or none is left.
    """
    more = tuple(name for name in config.control_glances if name not in config.control_games)
    asked = {"control_games": config.control_games, "control_glances": more}
    return make_installed(asked, GAMES, "gymnax")


def make_installed(
    asked: Mapping[str, tuple[str, ...]], makers: Mapping[str, Callable[[], T]], library: str
) -> dict[str, T]:
    """Makes by name what its library is installed for, of the names by the flag that asks for them.

    Raises:
        ValueError: if there is no such name, or nothing is left.
    """
    made = {}
    pairs = [(flag, name) for flag, names in asked.items() for name in names]
    for flag, name in pairs:
        if name not in makers:
            raise ValueError(f"{flag} must be among {', '.join(makers)}, got {name!r}")
        try:
            made[name] = makers[name]()
        except ImportError:
            continue
    if not made:
        names = ", ".join(name for _, name in pairs)
        raise ValueError(f"the games {names} need {library}: pip install 'jaxlab[games]'")
    return made


def not_installed(
    names: tuple[str, ...], made: Mapping[str, Any], titles: Mapping[str, str], library: str
) -> tuple[str, ...]:
    """Sentences on the games that were asked for and are not here."""
    return tuple(
        f"{titles[name][:1].upper()}{titles[name][1:]} was left out: it needs {library}, pip "
        "install 'jaxlab[games]'."
        for name in names
        if name not in made
    )


def make_method(name: str, game: Game, length: int, frames: int, config: Config) -> Method:
    """Makes a method by its name."""
    return {**METHODS, **(game.methods or {})}[name](game, length, frames, config)


def sweep(name: str, config: Config) -> tuple[str, tuple[float, ...]]:
    """Returns the setting that a method chooses, a learning rate, and its candidates."""
    if name == "F2 candidates":  # times that of its optimizer
        return "policy_rate_factor", tuple(
            x / config.control_rates[0] for x in config.control_rates
        )
    return "critic_learning_rate" if name == "DQN" else "learning_rate", config.control_rates


def _in_turn(task: envs.Task, obs_shape: tuple[int, ...]) -> Game:
    return Game(
        functools.partial(envs.macro, task, gamma=GAMMA),
        functools.partial(envs.macro, task, gamma=1.0),
        obs_shape,
        spaces.num_logits(task.action_space),
    )


def _deep_sea() -> Game:
    return _in_turn(envs.deep_sea(SIZE), (SIZE * SIZE,))


def _minatar(name: str) -> Game:
    import gymnax  # pyright: ignore[reportMissingImports]

    env, params = gymnax.make(f"{name}-MinAtar")
    return _in_turn(envs.from_gymnax(env, params), env.obs_shape)


GAMES: Mapping[str, Callable[[], Game]] = {
    "deep_sea": _deep_sea,
    "breakout": functools.partial(_minatar, "Breakout"),
    "space_invaders": functools.partial(_minatar, "SpaceInvaders"),
    "asterix": functools.partial(_minatar, "Asterix"),
    "freeway": functools.partial(_minatar, "Freeway"),
}


def _left_out(
    config: Config, games: Mapping[str, Game], wanted: list[tuple[str, int, str]]
) -> tuple[str, ...]:
    """Sentences on what was asked for and is not here."""
    asked = tuple(dict.fromkeys((*config.control_games, *config.control_glances)))
    told = not_installed(asked, games, control_told.TITLES, "gymnax")
    if any(name == "DQN" and not _listable(games[game], k) for game, k, name in wanted):
        told += (
            f"DQN is left out where there are more than {token_critics.MOST_ACTIONS} "
            "macro-actions.",
        )
    return told


def _listable(game: Game, length: int) -> bool:
    return game.vocab**length <= token_critics.MOST_ACTIONS


def _metrics(_: str, outcome: Outcome) -> dict[str, float]:
    return {"return": verdicts.average(outcome.final)}


# Methods that learn from a replay of single macro-actions


def _off_policy(
    make: Callable[[Game, int, Config], tuple[rl.Policy, rl.Critics]],
) -> Callable[[Game, int, int, Config], Method]:
    def method(game: Game, length: int, frames: int, config: Config) -> Method:
        policy, critics = make(game, length, config)
        macros = frames // game.span(length)
        warmup = -(-max(macros // 20, BATCH) // ENVS) * ENVS
        capacity = -(-max(min(macros, 2**16), warmup) // ENVS) * ENVS
        algorithm = rl.make_learner(
            envs.make_env(game.play(length), ENVS),
            policy,
            critics=critics,
            gamma=GAMMA,
            batch_size=BATCH,
            capacity=capacity,
            warmup=warmup,
            num_updates=-(-game.span(length) // 2),  # nearly as many for a step of the game
            reward_scale=1.0,
            critic_learning_rate=config.control_rates[0],
        )

        def act(state: rl.TrainState, key: jax.Array, obs: jax.Array, mask: Any = ()) -> jax.Array:
            params = state.policy_average_params
            q = critics_lib.smaller(critics, state.critic_params)
            alpha = jnp.exp(state.log_alpha)
            return policy.act(key, params, obs, q, alpha, explore=False, mask=mask)

        return Method(algorithm, act, 1, warmup)

    return method


def _candidates(game: Game, length: int, config: Config) -> tuple[rl.Policy, rl.Critics]:
    sizes = (game.obs_shape, game.vocab, length)
    policy = discrete.forward_candidates(
        _denoiser(game, length, config),
        num_steps=_num_steps(length, config),
        num_candidates=8,
        target_kl=1.0,
        temperature_learning_rate=1e-2,  # in a few thousand steps 3e-4 would leave lambda at 1
        renew_every=100,
        uniform_share=0.05,
        learning_rate=config.control_rates[0],
    )
    critics = discrete.make_token_critics(*sizes, width=config.width, num_layers=config.num_layers)
    return policy, critics


def _deep_q(game: Game, length: int, config: Config) -> tuple[rl.Policy, rl.Critics]:
    vocab = game.vocab
    policy = discrete.greedy_macro(vocab, length, explore_prob=0.1)
    critics = discrete.make_flat_critics(game.obs_shape, vocab, length)
    return policy, critics


# Methods that learn from rollouts


def _on_policy(
    make: Callable[..., Algorithm],
    make_policy: Callable[[Game, int, Config], StatePolicy],
    **options: Any,
) -> Callable[[Game, int, int, Config], Method]:
    def method(game: Game, length: int, frames: int, config: Config) -> Method:
        policy = make_policy(game, length, config)
        example = policy.given(jnp.zeros((1,)))
        writes = isinstance(example, discrete.WritingPolicy)
        alone = make_policy is _heads
        num_steps = None if writes else 1 if alone else _num_steps(length, config)
        macros = max(ROLLOUT // game.span(length), 1)
        algorithm = make(
            envs.make_env(game.play(length), ENVS),
            policy,
            discrete.StateValue(game.obs_shape),
            num_steps=num_steps,
            rollout=macros,
            gamma=GAMMA,
            **options,
        )
        schedule = schedules.make_schedule(bandits.check_steps(example, num_steps))

        def act(state: Any, key: jax.Array, obs: jax.Array, mask: Any = ()) -> jax.Array:
            here, params = at_states(policy, obs, mask), state.params["policy"]
            return bandits.draw(key, here, params, obs.shape[:1], schedule).tokens

        return Method(algorithm, act, macros, 0)

    return method


def _denoiser(game: Game, length: int, config: Config) -> StatePolicy:
    return _transformer(discrete.make_state_policy, game, length, config)


def _writer(game: Game, length: int, config: Config) -> StatePolicy:
    return _transformer(discrete.make_state_writer, game, length, config)


def _heads(game: Game, length: int, config: Config) -> StatePolicy:
    del config
    return discrete.make_state_heads(game.obs_shape, game.vocab, length)


def _transformer(
    make: Callable[..., StatePolicy], game: Game, length: int, config: Config
) -> StatePolicy:
    return make(
        game.obs_shape, game.vocab, length, width=config.width, num_layers=config.num_layers
    )


def _num_steps(length: int, config: Config) -> int:
    return min(config.num_steps, length)


METHODS: Mapping[str, Callable[[Game, int, int, Config], Method]] = {
    "F2 candidates": _off_policy(_candidates),
    "R2 ratios": _on_policy(discrete.reverse_rollouts, _denoiser),
    "F3 advantages": _on_policy(discrete.forward_rollouts, _denoiser),
    "F4 replay": _on_policy(discrete.forward_replay, _denoiser),
    "PPO, factored": _on_policy(discrete.reverse_rollouts, _heads),
    "PPO, autoregressive": _on_policy(discrete.reverse_rollouts, _writer),
    "DQN": _off_policy(_deep_q),
}
"""Candidates weighed by an action critic, ratios of single steps of denoising, advantages of
rollouts and of past ones; PPO of independent tokens and of written ones; and deep Q learning, which
lists all macro-actions."""
NAMES = tuple(METHODS)
