"""The comparison: the base of every law, then every method from the same weights."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from experiments.pirf import Config, base, figures, judging, methods, rows, tasks, training, values
from experiments.pirf.judging import Outcome
from experiments.pirf.tasks import Task
from experiments.pirf.values import Values
from jaxlab.core.types import PyTree

PAPER = (
    "Yuan, Jin, Li, Li: PIRF: Physics-Informed Reward Fine-Tuning for Diffusion Models, "
    "arXiv:2509.20570"
)


def run(config: Config, out: pathlib.Path) -> Result:
    """Computes what the folder does not hold yet, and says what it means."""
    made = [tasks.own_task(config)] if config.data else _made(config.laws, config)
    for task in made:
        _check(task, config)
    parts, said = [], []
    weights: dict[str, PyTree] = {}
    if "models" in config.parts or config.data:
        for task in made:
            given = settings_of(task, config)
            weights[task.name] = base_of(task, given, out)
            found = compare(task, weights[task.name], given, out)
            told = (*rows.of_data(task), *rows.rows(found, task, given))
            pictures = figures.draw(found, task, given, out)
            shown = rows.tables(found, task, given)
            parts.append(Part(told, pictures, shown, rows.limits(found, task, given)))
            said.append(rows.summary(found, task, given))
    if "values" in config.parts and not config.data:
        looked_at = looked(config, out, weights)
        parts.append(
            Part(
                rows.values(looked_at),
                (figures.values(looked_at, out),),
                (rows.values_table(looked_at),),
                (rows.VALUES_LIMIT,),
            )
        )
    return result.assemble(
        parts,
        experiment="pirf",
        title="Physics as a reward",
        summary=" ".join(said),
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


def settings_of(task: Task, config: Config) -> Config:
    """Laws after the first are judged in no more steps than they are tuned in, or in the fewest."""
    if task.name in (tasks.OWN, config.laws[0]):
        return config
    few = tuple(num for num in config.judged_steps if num <= config.num_steps)
    return dataclasses.replace(config, judged_steps=few or (min(config.judged_steps),))


def base_of(task: Task, config: Config, out: pathlib.Path) -> PyTree:
    """Returns the weights of a task's base: those of the file, or trained here, a unit."""
    if base.is_kept(task, config.base_updates):
        return base.load(base.file_of(task.name))
    about = {"task": task.about, "base_updates": config.base_updates}
    unit = Unit(
        f"{task.name}/weights", about, lambda folder: base.train(task, config.base_updates, folder)
    )
    return jax.tree.map(jnp.asarray, units.run([unit], out, title="pirf")[unit.name])


def compare(task: Task, params: PyTree, config: Config, out: pathlib.Path) -> rows.Found:
    """Tunes and judges every method: a unit for each, and each seed."""
    judge = judging.make_judge(task, params, config)
    names = _names(task, config)

    def tuned(name: str, seed: int, folder: pathlib.Path) -> Outcome:
        return judge(name, training.tune(name, seed, task, params, config, folder))

    def unit(name: str, seed: int) -> Unit:
        if name in (*methods.TUNED, *methods.ON_DATA):
            compute: Any = functools.partial(tuned, name, seed)
        else:
            compute = lambda _: judge(name, params)  # noqa: E731
        about = training.settings(config, task, name)
        return Unit(f"{task.name}/{name}/{seed}", about, compute, Outcome)

    todo = {
        (name, seed): unit(name, seed)
        for name in (methods.BASE, *names)
        for seed in range(config.num_seeds if name in (*methods.TUNED, *methods.ON_DATA) else 1)
    }
    kept = units.run(list(todo.values()), out, title="pirf")
    found: rows.Found = {}
    for (name, _), one in todo.items():
        found.setdefault(name, []).append(kept[one.name])
    return found


def looked(
    config: Config, out: pathlib.Path, weights: dict[str, PyTree]
) -> dict[tuple[str, str], Values]:
    """Looks at values: of the data of each law, and of the bases that there are."""
    todo = {}
    for task in _made(config.value_laws, config):
        about = {"task": task.about, "seed": config.seed}
        todo[task.law.name, "data"] = Unit(
            f"values/{task.name}/data", about, lambda _, t=task: values.of_data(t, config), Values
        )
        if task.name in weights:
            params = weights[task.name]
            about = about | {"base": base.identity(task, config.base_updates)}
            todo[task.law.name, "model"] = Unit(
                f"values/{task.name}/model",
                about,
                lambda _, t=task, p=params: values.of_model(t, p, config),
                Values,
            )
    kept = units.run(list(todo.values()), out, title="pirf, values")
    return {pair: kept[one.name] for pair, one in todo.items()}


def _made(names: tuple[str, ...], config: Config) -> list[Task]:
    return [tasks.make_task(name, config.size) for name in names]


def _names(task: Task, config: Config) -> tuple[str, ...]:
    return methods.names(
        config,
        released=task.released,
        solved=task.law.solve is not None,
        few=task.name not in (tasks.OWN, config.laws[0]),
    )


def _check(task: Task, config: Config) -> None:
    """Refuses settings that do not fit a law, before anything is computed.

    Raises:
        ValueError: if a method is unknown, or there are more sensors than nodes.
    """
    _names(task, config)
    nodes = task.shape[0] * task.shape[1]
    if config.sensors >= nodes:
        raise ValueError(f"sensors must be fewer than the {nodes} nodes, got {config.sensors}")
