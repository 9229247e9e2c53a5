"""Teams: a joint action is one token of each agent, beside agents who choose each for themselves.

The paper's rival is a policy that writes the agents' actions one after another. Independent PPO,
whose values see what one agent sees (IPPO) or what all see (MAPPO), is what teams are usually
trained with. All methods are paid alike, in football for bringing the ball forward too; what is
told is goals.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.discrete_diffusion.parts import control
from experiments.discrete_diffusion.parts.control import Game, Method
from experiments.discrete_diffusion.parts.control_told import Cell, Outcome
from experiments.harness import drawing, verdicts
from experiments.harness.result import Figure, Part, Row, Table
from jaxlab import envs, learning
from jaxlab.learning import Networks

OURS = ("R2 ratios", "F3 advantages")
RIVALS = ("PPO, autoregressive", "PPO, factored", "IPPO", "MAPPO")
NAMES: tuple[str, ...] = (*OURS, *RIVALS)
FOOTBALL = {"3v1": (3, 1), "4v2": (4, 2), "6v3": (6, 3)}
SMAX = ("3m", "5m_vs_6m")
TITLES = {
    **{name: f"football {name}" for name in FOOTBALL},
    "spread": "simple spread",
    **{name: f"SMAX {name}" for name in SMAX},
}


def run(config: Config, out: pathlib.Path) -> Part:
    """Trains what `out` does not hold, then tells."""
    names = tuple(name for name in NAMES if not config.methods or name in config.methods)
    games = make_games(config)
    cells = [(game, size, name) for game, (_, size) in games.items() for name in names]
    found, chosen = control.learn(
        cells, {k: one for k, (one, _) in games.items()}, config, "teams", config.team_frames, out
    )
    shown = tuple(games)
    left_out = control.not_installed(config.team_games, games, TITLES, "jaxmarl")
    return Part(
        tuple(row for game in shown for row in _rows(game, found)),
        _draw(shown, found, out),
        tuple(_table(game, found, chosen) for game in shown),
        _limits(config) + left_out,
    )


def make_games(config: Config) -> dict[str, tuple[Game, int]]:
    """Makes the games by name, with the number of agents of each.

    Games whose library is not installed are left out.

    Raises:
        ValueError: if there is no such game, or none is left.
    """
    makers = {name: functools.partial(_game, name) for name in TITLES}
    return control.make_installed({"team_games": config.team_games}, makers, "jaxmarl")


def _game(name: str) -> tuple[Game, int]:
    if name in FOOTBALL:
        task, judge = envs.football(*FOOTBALL[name], shaped=True), envs.football(*FOOTBALL[name])
    elif name == "spread":
        task = judge = envs.simple_spread(3)
    else:
        task = judge = _smax(name)
    agents: Any = task.num_agents
    space: Any = task.action_space
    whole, judged = envs.joint(task), envs.joint(judge)
    game = Game(
        lambda length: whole,
        lambda length: judged,
        (whole.obs_size,),
        space.num,
        open_loop=False,
        methods={
            "IPPO": functools.partial(_each_for_itself, task, False),
            "MAPPO": functools.partial(_each_for_itself, task, True),
        },
    )
    return game, agents


def _smax(name: str) -> envs.Task:
    import jaxmarl  # pyright: ignore[reportMissingImports]
    from jaxmarl.environments import smax  # pyright: ignore[reportMissingImports]

    scenario = smax.map_name_to_scenario(name)
    return envs.from_jaxmarl(jaxmarl.make("HeuristicEnemySMAX", scenario=scenario))


def seen_by_all(task: envs.Task) -> envs.Task:
    """Makes the task whose observations have a part "all", `[A O]`, beside each agent's "own"."""

    def parts(obs: jax.Array) -> dict[str, jax.Array]:
        return {"own": obs, "all": obs.reshape(-1)}

    def reset(key: jax.Array) -> tuple[Any, Any]:
        physics, obs = task.reset(key)
        return physics, parts(obs)

    def step(physics: Any, action: jax.Array) -> tuple:
        physics, obs, *more = task.step(physics, action)
        return physics, parts(obs), *more

    return task._replace(reset=reset, step=step, actor_part="own")


def networks(env: envs.Env, together: bool) -> Networks:
    """Makes one policy for all agents, and a value of one agent's observation or of all of them."""
    return learning.make_networks(env, hidden=(128, 128), critic_part="all" if together else None)


def _each_for_itself(
    task: envs.Task, together: bool, game: Game, length: int, frames: int, config: Config
) -> Method:
    """PPO of agents with one network, whose values see one agent's observation, or all of them."""
    del game, frames
    env = envs.make_env(seen_by_all(task) if together else task, control.ENVS)
    nets = networks(env, together)
    algorithm = learning.make_ppo(
        env,
        nets,
        num_steps=control.ROLLOUT,
        num_epochs=4,
        num_minibatches=4,
        gamma=control.GAMMA,
        learning_rate=config.control_rates[0],
        entropy_coef=0.01,
        reward_scale=1.0,
    )

    def act(state: Any, key: jax.Array, obs: jax.Array, mask: Any = ()) -> jax.Array:
        own = obs.reshape(*obs.shape[:-1], length, -1)
        if not isinstance(mask, tuple):
            mask = mask.reshape(*mask.shape[:-1], length, -1)
        seen = {"own": own} if together else own
        return nets.sample(key, state.params, seen, mask)[0].astype(jnp.int32)

    return Method(algorithm, act, control.ROLLOUT, 0)


def _measure(game: str) -> str:
    return "Goals a game" if game in FOOTBALL else "Return"


def _rows(game: str, found: Mapping[Cell, Outcome]) -> list[Row]:
    of_game = {name: one.final for (g, _, name), one in found.items() if g == game}
    return [
        verdicts.row(
            "A team's diffusion policy earns more than others at equal steps of a game",
            f"{_measure(game)} of {name}, {TITLES[game]}",
            of_game[name],
            (rival, of_game[rival]),
            larger_is_better=True,
            paired=False,
        )
        for name in OURS
        for rival in RIVALS
        if name in of_game and rival in of_game
    ]


def _table(
    game: str, found: Mapping[Cell, Outcome], chosen: Mapping[Cell, Mapping[str, float]]
) -> Table:
    rows: list[tuple[float | str | None, ...]] = []
    for cell, one in found.items():
        if cell[0] == game:
            value = verdicts.average(one.final)
            ((setting, x),) = chosen[cell].items()
            shown = round(value, 4) if value == value else None
            rows.append((cell[2], shown, f"{setting.replace('_', ' ')} {x:g}"))
    return Table(
        f"Teams, {TITLES[game]}",
        ("Method", _measure(game), "Settings"),
        tuple(rows),
        "Mean over whole episodes at the end; the learning rate with which it learned.",
    )


def _draw(
    games: tuple[str, ...], found: Mapping[Cell, Outcome], out: pathlib.Path
) -> tuple[Figure, ...]:
    left = {cell: x for cell, x in found.items() if np.isfinite(x.final).any()}
    if not left:
        return ()
    colors = dict(zip(NAMES, drawing.COLORS, strict=False))
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(-(-len(games) // 2), min(len(games), 2))
        for axis, game in zip(axes.flat, games, strict=False):
            for (g, _, name), one in left.items():
                if g == game:
                    frames, returns = one.curve
                    drawing.band(axis, frames / 1000, returns, colors[name], name)
            title = TITLES[game]
            axis.set(title=title[:1].upper() + title[1:], ylabel=_measure(game))
            axis.set_xlabel("Steps of the game (thousands)")
        for axis in axes.flat[len(games) :]:
            axis.set_axis_off()
        drawing.legend(figure)
        drawing.save(figure, out / "teams.png")
    return (
        Figure(
            "teams.png",
            "What teams earn in training; lines are means over seeds, bands their range.",
            "Learning curves of teams, by method and game",
        ),
    )


def _limits(config: Config) -> tuple[str, ...]:
    football = tuple(name for name in config.team_games if name in FOOTBALL)
    return (
        "The paper plays Google Research Football; football here is a small game of our own rules.",
        f"Every method plays {config.team_frames:,} steps of a game; teams of one actor see what "
        "all agents see, as does the value of MAPPO.",
        f"Each chooses its learning rate of {', '.join(f'{r:g}' for r in config.control_rates)} on "
        f"{config.tuning_seeds} seeds of their own and a quarter of the steps; other settings are "
        "fixed in the study, not tuned, and some are not the methods' defaults."
        if config.tuning_seeds and len(config.control_rates) > 1
        else "No method is tuned.",
        *(
            ("In training, bringing the ball forward is paid for too; goals are counted alone.",)
            if football
            else ()
        ),
    )
