"""The comparison: exact and sampled play over beta, stag hunt, ball, strangers, networks."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from experiments.optimistic_marl import Config, figures, games, rows, training
from experiments.optimistic_marl.training import Ball, Deep, Ends, Strangers
from jaxlab import envs

PAPER = (
    "Zhang, Li, Ozdaglar, Shamma, Zardini: Optimism as risk-seeking in multi-agent reinforcement "
    "learning, arXiv:2509.24047"
)
SIGNS = (-0.5, 0.0, 0.5)
"""Averse, neutral and optimistic pairs of `cross_play`."""


def run(config: Config, out: pathlib.Path) -> Result:
    """Computes what `out` does not hold, then compares."""
    exact_games = games.exact_games(config.payoff)  # a wrong file costs no run
    sampled_games = games.sampled_games(config.payoff, config.games)
    if "deep" in config.parts:
        for task in config.deep_tasks:
            training.deep_task(task)
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
    if "ball" in config.parts:
        given = {"seeds": config.ball_seeds, "trials": config.ball_trials, "seed": config.seed}
        ball = _kept(
            out,
            {
                rule: _unit(f"ball/{rule}", training.ball, (rule,), given, Ball)
                for rule in training.RULES
            },
        )
        parts.append(Part(rows.ball(ball), (figures.ball(ball, out),), (rows.ball_table(ball),)))
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
        parts.extend(_deep(task, config, out) for task in config.deep_tasks)
    return result.assemble(
        parts,
        experiment="optimistic_marl",
        title="Optimistic multi-agent learning",
        summary=_summary(exact, sampled),
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


def _deep(task: str, config: Config, out: pathlib.Path) -> Part:
    """Tunes both optimists on seeds of their own, then trains all methods alike."""
    given = {"task": task, "steps": config.deep_steps}
    tuned = {"Op-IPPO": config.tuning_betas, "OptiMAPPO": config.tuning_etas}
    tuning = {
        name: _unit(
            f"deep/{task}/{name}/tuning",
            training.deep,
            (name, values),
            given | {"seeds": config.tuning_seeds, "seed": config.seed + 1000},
            Deep,
        )
        for name, values in tuned.items()
    }
    kept = _kept(out, tuning)
    chosen = {"IPPO": 0.0}
    for name, one in kept.items():
        worth = np.nan_to_num(one.final.reshape(len(tuned[name]), -1), nan=-np.inf).mean(axis=1)
        chosen[name] = tuned[name][int(np.argmax(worth))]
    given |= {"seeds": config.deep_seeds, "seed": config.seed}
    found = _kept(
        out,
        {
            name: _unit(f"deep/{task}/{name}", training.deep, (name, (parameter,)), given, Deep)
            for name, parameter in chosen.items()
        },
    )
    limit = (
        f"{task}: beta of Op-IPPO is {chosen['Op-IPPO']:g}, eta of OptiMAPPO "
        f"{chosen['OptiMAPPO']:g}, each the best of {len(config.tuning_betas)} and "
        f"{len(config.tuning_etas)} on {config.tuning_seeds} seeds of their own; all else is "
        "common."
    )
    return Part(rows.deep(found, task), (figures.deep(found, task, out),), (), (limit,))


def _unit(name: str, compute: Callable, args: tuple, given: dict[str, Any], kind: Any) -> Unit:
    """A unit whose settings are the arguments of what it computes."""
    told = [_told(x) if isinstance(x, envs.Game) else x for x in args]

    def of_folder(folder: pathlib.Path) -> Any:
        return compute(*args, folder, **given)

    return Unit(name, {"args": told, **given}, of_folder, kind)


def _told(game: envs.Game) -> dict[str, str]:
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
