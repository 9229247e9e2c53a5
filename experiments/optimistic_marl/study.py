"""The comparison: exact and sampled play over beta, stag hunt, ball, strangers, networks."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from experiments.optimistic_marl import Config, figures, games, networks, rows, training
from experiments.optimistic_marl.networks import Deep
from experiments.optimistic_marl.training import Ball, Ends, Greedy, Strangers
from jaxlab import envs
from jaxlab.envs import Game

PAPER = (
    "Zhang, Li, Ozdaglar, Shamma, Zardini: Optimism as risk-seeking in multi-agent reinforcement "
    "learning, arXiv:2509.24047"
)
SIGNS = (-0.5, 0.0, 0.5)
"""Averse, neutral and optimistic pairs of `cross_play`."""
APART = 1000
"""Seeds of choices lie this far from those of what is told."""


def run(config: Config, out: pathlib.Path) -> Result:
    """Computes what `out` does not hold, then compares."""
    exact_games = games.exact_games(config.payoff)  # a wrong file costs no run
    sampled_games = games.sampled_games(config.payoff, config.games)
    if "deep" in config.parts:
        for task in config.deep_tasks:
            networks.deep_task(task)
    exact: dict[str, Ends] = {}
    sampled: dict[tuple[str, str], Ends] = {}
    parts = []
    if "exact" in config.parts:
        exact = _kept(
            out,
            {
                name: _unit(
                    f"exact/{name}",
                    training.exact,
                    (one.game, config.betas),
                    {
                        "starts": min(config.starts, one.most),
                        "steps": config.play_steps,
                        "rate": 0.05,
                        "scale": one.scale,
                        "seed": config.seed,
                    },
                    Ends,
                )
                for name, one in exact_games.items()
            },
        )
        pictures = (figures.joint(exact, out),)
        parts.append(Part(rows.exact(exact), pictures, (rows.exact_table(exact),)))
    if "sampled" in config.parts:
        given = {"seeds": config.num_seeds, "updates": config.updates, "seed": config.seed}
        sampled = _kept(
            out,
            {
                (name, critic): _unit(
                    f"sampled/{name}/{critic}",
                    training.sampled,
                    (game, critic, config.betas),
                    given,
                    Ends,
                )
                for name, game in sampled_games.items()
                for critic in (("values", "joint") if "random" in name else ("values",))
            },
        )
        parts.append(Part(rows.sampled(sampled), (), (rows.sampled_table(sampled),)))
    if exact or sampled:
        parts.append(Part((), (figures.success(exact, sampled, out),)))
    if "stag" in config.parts:
        given = {
            "starts": config.stag_seeds,
            "steps": 300,
            "rate": 0.1,
            "scale": 0.1,
            "seed": config.seed,
        }
        stag = _kept(
            out,
            {
                loss: _unit(
                    f"stag/{loss:g}",
                    training.exact,
                    (envs.stag_grid(loss), config.betas),
                    given,
                    Ends,
                )
                for loss in config.losses
            },
        )
        parts.append(Part(rows.stag(stag), (), (rows.stag_table(stag),)))
    if "rules" in config.parts:
        parts.append(_rules(config, sampled_games, out))
    if "ball" in config.parts:
        ball, chosen = _tuned(
            config,
            out,
            "ball",
            {name: rule.values for name, rule in training.RULES.items()},
            training.ball,
            {"trials": config.ball_trials},
            (config.ball_seeds, config.tuning_seeds),
            Ball,
            lambda one: one.greedy,
        )
        told = (rows.ball_table(ball, chosen),)
        parts.append(Part(rows.ball(ball), (figures.ball(ball, out),), told))
    if "cross_play" in config.parts:
        given = {"seeds": config.num_seeds, "seed": config.seed}
        met = {"climbing": envs.climbing(), "penalty": envs.penalty(25.0)}
        strangers = _kept(
            out,
            {
                name: _unit(
                    f"strangers/{name}", training.strangers, (game, SIGNS), given, Strangers
                )
                for name, game in met.items()
            },
        )
        parts.append(Part(rows.strangers(strangers), (figures.strangers(strangers, out),)))
    if "deep" in config.parts:
        tasks = zip(config.deep_tasks, config.deep_steps, strict=True)
        parts.extend(_deep(task, steps, config, out) for task, steps in tasks)
    if {"rules", "ball", "deep"} & set(config.parts):
        parts.append(Part((), (), (), (_limit(config),)))
    return result.assemble(
        parts,
        experiment="optimistic_marl",
        title="Optimistic multi-agent learning",
        summary=_summary(exact, sampled),
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


def _rules(config: Config, all_games: dict[str, Game], out: pathlib.Path) -> Part:
    """Rules of Q-learning on the games of one state."""
    found, chosen = {}, {}
    for name, game in all_games.items():
        if game.num_states > 1 or len(set(game.num_actions)) > 1:
            continue  # what rules of one state, and without masks, cannot learn
        found[name], chosen[name] = _tuned(
            config,
            out,
            f"rules/{name}",
            {rule: one.values for rule, one in training.MATRIX_RULES.items()},
            training.rules,
            {"plays": config.plays},
            (config.num_seeds, config.num_seeds // 2),
            Greedy,
            lambda one: one.value,
            game,
        )
    return Part(rows.rules(found), (), (rows.rules_table(found, chosen),))


def _deep(task: str, steps: int, config: Config, out: pathlib.Path) -> Part:
    """The learning rate is IPPO's best, and everybody's; the others choose a setting at it."""
    tuned = {
        networks.PLAIN: config.tuning_rates,
        networks.OURS: config.tuning_betas,
        "OptiMAPPO": config.tuning_etas,
    }
    found: dict[str, Deep] = {}
    chosen: dict[str, float] = {}
    rate = 0.0
    for methods in ({networks.PLAIN}, tuned.keys() - {networks.PLAIN}):
        more = _tuned(
            config,
            out,
            f"deep/{task}",
            {name: values for name, values in tuned.items() if name in methods},
            networks.deep,
            {"task": task, "steps": steps, "rate": rate or config.tuning_rates[0]},
            (config.deep_seeds, config.tuning_seeds),
            Deep,
            lambda one: one.sampled,
        )
        found, chosen = found | more[0], chosen | more[1]
        rate = chosen[networks.PLAIN]
    told = (rows.deep_table(found, chosen, task),)
    return Part(rows.deep(found, task), (figures.deep(found, task, out),), told)


def _tuned(
    config: Config,
    out: pathlib.Path,
    folder: str,
    methods: dict[str, tuple[float, ...]],
    compute: Callable,
    given: dict[str, Any],
    seeds: tuple[int, int],
    kind: Any,
    worth: Callable[[Any], np.ndarray],
    *first: Any,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Every method at the best of its values, which other seeds have chosen; with these values.

    Args:
        config: The study's.
        out: The run folder.
        folder: Of the units' names.
        methods: Values of each.
        compute: `compute(*first, name, values, folder, **given, seeds, seed) -> kind`.
        given: Its settings.
        seeds: How many, of what is told and of the choice.
        kind: A record.
        worth: `worth(record) -> [values * seeds]`; more is better.
        first: See `compute`.
    """
    many, few = seeds
    tuning = {
        name: _unit(
            f"{folder}/{name}/tuning",
            compute,
            (*first, name, values),
            given | {"seeds": few, "seed": config.seed + APART},
            kind,
        )
        for name, values in methods.items()
    }
    chosen = {}
    for name, one in _kept(out, tuning).items():
        by_value = worth(one).reshape(len(methods[name]), -1)
        mean = np.nan_to_num(by_value, nan=-np.inf).mean(axis=1)
        chosen[name] = methods[name][int(np.argmax(mean))]
    told = {
        name: _unit(
            f"{folder}/{name}",
            compute,
            (*first, name, (value,)),
            given | {"seeds": many, "seed": config.seed},
            kind,
        )
        for name, value in chosen.items()
    }
    return _kept(out, told), chosen


def _limit(config: Config) -> str:
    """How fair the choices were."""
    return (
        "Rules of Q-learning and networks have one setting of their own each, the best of three by "
        f"other seeds: {config.tuning_seeds} on the ball and of networks, {config.num_seeds // 2} "
        "in games of one state. All else is common, the networks' learning rate too, which is "
        "IPPO's best."
    )


def _unit(name: str, compute: Callable, args: tuple, given: dict[str, Any], kind: Any) -> Unit:
    """A unit whose settings are the arguments of what it computes."""
    told = [_told(x) if isinstance(x, Game) else x for x in args]

    def of_folder(folder: pathlib.Path) -> Any:
        return compute(*args, folder, **given)

    return Unit(name, {"args": told, **given}, of_folder, kind)


def _told(game: Game) -> dict[str, str]:
    """What a game is, for the settings of a unit: its name and a digest of its tables."""
    tables = b"".join(np.ascontiguousarray(x).tobytes() for x in game[1:6])
    return {"game": game.name, "tables": hashlib.sha256(tables).hexdigest()}


def _kept(out: pathlib.Path, made: dict[Any, Unit]) -> dict[Any, Any]:
    kept = units.run(list(made.values()), out, title="optimistic_marl")
    return {key: kept[unit.name] for key, unit in made.items()}


def _summary(exact: dict[str, Ends], sampled: dict[tuple[str, str], Ends]) -> str:
    parts = []
    for name, ends in exact.items():
        shares = 100.0 * ends.success.mean(axis=1)
        none = shares[int(np.argmin(np.abs(ends.betas)))]
        parts.append(f"{name}, exact: {none:.0f} % to {shares[-1]:.0f} %")
    for (name, critic), ends in sampled.items():
        if name.endswith("fully random"):
            word = "own" if critic == "values" else "joint"
            parts.append(f"{name}, {word} critic: {100.0 * ends.found.mean(axis=1).max():.0f} %")
    return "Success without optimism and with it: " + "; ".join(parts) + "." if parts else ""
