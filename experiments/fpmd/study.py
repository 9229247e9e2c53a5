"""The comparison: every method on every task, the ways of acting, and the theory of one step."""

import dataclasses
import functools
import pathlib

import numpy as np

from experiments.fpmd import Config, figures, methods, rows, tables, tasks, training
from experiments.fpmd.parts import latency, theory
from experiments.fpmd.training import Outcome
from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from jaxlab import envs

PAPER = (
    "Chen et al.: One-Step Flow Policy Mirror Descent, arXiv:2507.23675; Ma et al.: Efficient "
    "Online Reinforcement Learning for Diffusion Policy, arXiv:2502.00361"
)


def run(config: Config, out: pathlib.Path) -> Result:
    """Trains what `out` does not hold, then compares."""
    names = config.methods or methods.NAMES
    for name in names:  # so that a wrong name costs no run
        if name not in methods.NAMES:
            raise ValueError(f"methods must be among {', '.join(methods.NAMES)}, got {name!r}")
    made = tasks.make_tasks(config)
    found: rows.Found = {}
    parts, course = [], None
    if "returns" in config.parts:
        found, rates = _returns(config, made, names, out)
        parts.append(
            Part(
                rows.rows(found),
                figures.draw(found, out),
                tables.tables(found, rates, config),
                _limits(found, config),
            )
        )
    if "latency" in config.parts:
        parts.append(latency.run(config, out))
    if "theory" in config.parts:
        course = theory.measured(config, out)
        parts.append(theory.tell(course, out))
    return result.assemble(
        parts,
        experiment="fpmd",
        title="One-step flow policies by mirror descent",
        summary=_summary(found, course),
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


def _returns(
    config: Config, made: dict[str, envs.Task], names: tuple[str, ...], out: pathlib.Path
) -> tuple[rows.Found, rows.Rates]:
    """Tunes the baselines that are tuned, then trains every method with its learning rate."""
    each = [(task, name) for task in made for name in names]
    tuned = [key for key in each if key[1] in methods.TUNED and len(config.tuning_rates) > 1]
    tuning = {
        (task, name, rate): _unit(
            f"{task}/{name}/tuning/{rate:g}",
            made[task],
            name,
            dataclasses.replace(
                _of_task(config, task),
                learning_rate=rate,
                seed=config.seed + 1000,  # on seeds of its own
                num_seeds=config.tuning_seeds,
            ),
        )
        for task, name in tuned
        for rate in config.tuning_rates
    }
    kept = units.run(list(tuning.values()), out, title="fpmd, tuning", metrics=_metrics)
    returns = {key: verdicts.average(kept[unit.name].final) for key, unit in tuning.items()}
    rates = {
        (task, name): max(config.tuning_rates, key=lambda rate: _worth(returns[task, name, rate]))
        for task, name in tuned
    }
    main = {
        (task, name): _unit(
            f"{task}/{name}",
            made[task],
            name,
            dataclasses.replace(
                _of_task(config, task), learning_rate=rates.get((task, name), config.learning_rate)
            ),
        )
        for task, name in each
    }
    kept = units.run(list(main.values()), out, title="fpmd", metrics=_metrics)
    return {key: kept[unit.name] for key, unit in main.items()}, rates


def _of_task(config: Config, task: str) -> Config:
    return dataclasses.replace(config, updates=config.updates // tasks.SHORTER.get(task, 1))


def _unit(unit: str, task: envs.Task, name: str, config: Config) -> Unit:
    compute = functools.partial(training.train, task, name, config)
    return Unit(unit, training.settings(name, config), compute, Outcome)


def _worth(value: float) -> float:
    """For the best of several: a rate that lost all of its seeds is the worst."""
    return value if np.isfinite(value) else -np.inf


def _metrics(_: str, outcome: Outcome) -> dict[str, float]:
    return {"return": verdicts.average(outcome.final)}


def _limits(found: rows.Found, config: Config) -> tuple[str, ...]:
    tuned = (
        "The learning rate of SAC, TD3 and PPO is the best of "
        f"{', '.join(f'{rate:g}' for rate in config.tuning_rates)}, on {config.tuning_seeds} seeds "
        f"of their own; all others have {config.learning_rate:g}."
        if len(config.tuning_rates) > 1
        else f"All methods have the learning rate {config.learning_rate:g}, none is tuned."
    )
    dipo = ", DIPO 100" if config.diffusion_steps >= 20 else ""
    limits = [
        "Widths of the networks, replay, transitions and seeds are common. DACER and DIME have "
        "critics of distributions, SAC has GELU, PPO learns from its rollouts alone.",
        tuned,
        f"Diffusions take {config.diffusion_steps} steps (DIME 16, QSM 20{dipo}) and choose among "
        f"{config.num_particles} samples; QVPO and SDAC improve with twice as many. Their papers "
        "have more.",
        "Verdicts against a baseline are by the paired differences over seeds, from five seeds on; "
        "the interval that is shown decides.",
        "Returns are of the last evaluation; the best one so far stands beside them, and is "
        "biased up.",
    ]
    if not {task for task, _ in found} & set(rows.published.TASKS):
        limits.insert(0, "These tasks are ours: the papers report MuJoCo (preset gpu) and pixels.")
    return tuple(limits)


def _summary(found: rows.Found, course: theory.Course | None) -> str:
    parts = []
    for task in dict.fromkeys(task for task, _ in found):
        final = {n: verdicts.average(one.final) for (t, n), one in found.items() if t == task}
        listed = ", ".join(f"{n} {final[n]:.4g}" for n in (*methods.OURS, "SAC") if n in final)
        parts.append(f"{task}: {listed}")
    if course is not None:
        modes = {name: 100 * share.mean() for name, share in course.modes.items()}
        parts.append("near a mode: " + ", ".join(f"{n} {x:.0f} %" for n, x in modes.items()))
    return "Returns, " + "; ".join(parts) + "."
