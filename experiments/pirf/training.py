"""A run of the fine-tuning, by PIRF or by one of its rivals."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments.pirf import Config, base, methods
from experiments.pirf.tasks import Task
from jaxlab import physics
from jaxlab.core import loop
from jaxlab.core.types import Algorithm, PyTree
from jaxlab.physics.baselines import residual_losses


def settings(config: Config, task: Task, name: str = "") -> dict[str, Any]:
    """Returns all that a unit's result depends on; `name` is that of its method."""
    kept = ("seed", "fields", "judged_steps", "num_steps", "sensors")
    tuning = ("updates", "num_grad_steps", "batch", "learning_rate", "hold")
    tuned = name in (*methods.TUNED, *methods.ON_DATA)
    chosen = {n: getattr(config, n) for n in kept + (tuning if tuned else ())}
    if tuned:
        chosen["updates"] = methods.updates(name, config)
    given = (methods.TUNED | methods.ON_DATA | methods.GUIDED).get(name, {})
    which = base.identity(task, config.base_updates)
    return {**chosen, "base": which, "task": task.about, "given": given}


def tune(
    name: str, seed: int, task: Task, params: PyTree, config: Config, folder: pathlib.Path
) -> PyTree:
    """Returns the weights that the base's become; they are NaN where a run blows up."""
    num = methods.updates(name, config)
    key = jax.random.fold_in(jax.random.key(config.seed), 1 + seed)
    algorithm = make_algorithm(name, task, params, config)
    try:
        found = loop.run(
            algorithm, key, num_steps=num, chunk_size=max(num // 4, 1), directory=folder
        )
    except loop.NonFiniteError:
        return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    return physics.tuned_params(found.state)


def make_algorithm(name: str, task: Task, params: PyTree, config: Config) -> Algorithm:
    """Makes the fine-tuning that a name stands for."""
    common: dict[str, Any] = {"learning_rate": config.learning_rate, "batch_size": config.batch}
    if name in methods.TUNED:
        given = {
            "num_steps": config.num_steps,
            "num_grad_steps": config.num_grad_steps,
            "reg_weight": config.hold,
            **common,
            **methods.TUNED[name],
        }
        return physics.make_pirf(task.law, task.network.apply, params, task.shape, **given)
    given = dict(methods.ON_DATA[name])
    kind = given.pop("kind")
    objective = residual_losses.residual_objective(
        kind, task.law, task.network.apply, task.data(), batch_size=config.batch, **given
    )
    if kind == "value":  # held and masked as PIRF is
        return physics.make_tuning(params, objective, reg_weight=config.hold, **common)
    return physics.make_tuning(
        params,
        objective,
        layers="none",
        regularizer="off",
        combine=residual_losses.conflict_free if kind == "pbfm" else None,
        **common,
    )
