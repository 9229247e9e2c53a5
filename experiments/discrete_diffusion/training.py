"""Training of one method on one task, seeds in one program, and what is looked at on the way."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.discrete_diffusion import Config, methods
from jaxlab.core import logging, loop
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.learning import over_seeds
from jaxlab.rl import discrete
from jaxlab.rl.discrete.tasks import SequenceTask

EVALUATION_KEY = 2**31 - 1
"""Seed of evaluations, apart from those of training."""
SETTINGS = (
    "seed",
    "num_seeds",
    "rewards",
    "batch",
    "num_steps",
    "width",
    "num_layers",
    "evaluations",
    "eval_draws",
)
"""What an outcome depends on, of the study's settings."""
COURSE = ("policy/ess", "policy/kl", "policy/target_kl", "policy/unique", "policy/entropy")
"""What is kept of the log besides rewards."""


class Outcome(NamedTuple):
    """One method on one task.

    Attributes:
        final: `[seeds]` mean reward of what is drawn at the end, NaN for a seed that blew up.
        unique: `[seeds]` different sequences over all that are drawn at the end.
        curve: Calls of the reward function `[chunks]` and mean rewards `[chunks, seeds]`.
        by_steps: Mean rewards `[seeds]` at the end, by the steps in which a sequence is drawn.
        course: By name `[chunks]`, means over seeds of `COURSE`.
    """

    final: np.ndarray
    unique: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]
    by_steps: dict[int, np.ndarray]
    course: dict[str, np.ndarray]


def settings(task: str, name: str, config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """All that an outcome depends on."""
    fields = {name: getattr(config, name) for name in SETTINGS}
    return {"task": task, "of": name, **values, **fields}


def train(
    task: SequenceTask,
    name: str,
    config: Config,
    values: Mapping[str, tuple[float, ...]],
    folder: pathlib.Path,
    *,
    steps: Sequence[int] = (),
) -> Outcome:
    """Trains all seeds, each with its own of the `values`, or goes on with what `folder` holds.

    Of a diffusion, `steps` are the numbers of steps in which it draws at the end besides.
    """
    method = methods.make_method(name, task, config)
    swept = {k: jnp.asarray(x, jnp.float32) for k, x in values.items()} or None
    learner = over_seeds(method.algorithm, config.num_seeds, settings=swept)
    num_steps = config.rewards // method.rewards
    usual = methods.num_steps(task, config)
    most = max(steps, default=usual) if method.diffuses else usual

    @jax.jit
    def look(state: Any, schedule: Schedule) -> dict[str, jax.Array]:
        def of_one(state: Any) -> dict[str, jax.Array]:
            key = jax.random.key(EVALUATION_KEY)
            tokens = method.draw(key, state, config.eval_draws, schedule)
            reward, unique = jnp.mean(task.reward(tokens)), discrete.unique_share(tokens)
            return {"eval/reward": reward, "eval/unique": unique}

        return jax.vmap(of_one, in_axes=(learner.axes,))(state)

    try:
        ended = loop.run(
            learner,
            jax.random.key(config.seed),
            num_steps=num_steps,
            chunk_size=max(num_steps // config.evaluations, 1),
            directory=folder,
            evaluate=lambda state: look(state, methods.make_schedule(usual, most)),
            config=settings(task.name, name, config, values),
        )
    except loop.NonFiniteError:
        gone, none = np.full(config.num_seeds, np.nan), np.zeros(0)
        return Outcome(gone, gone, (none, np.zeros((0, config.num_seeds))), {}, {})
    records = logging.read_jsonl(folder / "metrics.jsonl")
    at, rewards = logging.series(records, "eval/reward_seeds")
    unique = logging.series(records, "eval/unique_seeds")[1]
    by_steps = {}
    for n in steps if method.diffuses else ():
        by_steps[n] = rewards[-1].copy()  # as it was looked at last
        if n != usual:
            schedule = methods.make_schedule(n, most)
            by_steps[n] = np.array(look(ended.state, schedule)["eval/reward"])
        by_steps[n][list(ended.frozen)] = np.nan
    return Outcome(
        final=rewards[-1],
        unique=unique[-1],
        curve=(at * method.rewards, rewards),
        by_steps=by_steps,
        course={k: logging.series(records, k)[1] for k in COURSE if k in records[-1]},
    )
