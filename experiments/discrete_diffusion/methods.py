"""Methods by name: what each learns with, what it may tune, and how it draws."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.discrete_diffusion import Config
from jaxlab.core.types import Algorithm
from jaxlab.diffusion.discrete import sampling, schedules
from jaxlab.rl import discrete
from jaxlab.rl.discrete import TokenPolicy
from jaxlab.rl.discrete.tasks import SequenceTask

UPDATES = 4
"""How often a gradient sees each sequence that was drawn, of every method with a policy."""
PRICES = {"forward": (0.1, 0.03, 0.3), "reverse": (0.02, 0.0, 0.1)}
"""Temperatures to choose from, the default first: of the target, in units of reward; of a nat, in
standard deviations of the reward."""


class Method(NamedTuple):
    """How one method learns.

    Attributes:
        algorithm: Of one seed.
        rewards: Calls of the reward function in a step.
        sweep: Settings to choose from, by name.
        draw: `draw(key, state, batch, num_steps) -> [batch, K]`, of a diffusion in so many steps.
        diffuses: Whether it draws in steps.
    """

    algorithm: Algorithm
    rewards: int
    sweep: Mapping[str, tuple[float, ...]]
    draw: Callable[[jax.Array, Any, int, int], jax.Array]
    diffuses: bool = True


def make_method(name: str, task: SequenceTask, config: Config) -> Method:
    """Makes a method by its name."""
    return TABLE[name](task, config)


def num_steps(task: SequenceTask, config: Config) -> int:
    """Steps of sampling: one for each token at most."""
    return min(config.num_steps, task.length)


def _forward(**options: Any) -> Callable[[SequenceTask, Config], Method]:
    def make(task: SequenceTask, config: Config) -> Method:
        policy = _transformer(task, config)
        algorithm = discrete.forward(
            task.reward,
            policy,
            num_steps=num_steps(task, config),
            batch=config.batch // 4,
            num_batches=4,
            num_updates=UPDATES,
            **options,
        )
        sweep = {"learning_rate": config.learning_rates}
        if "target_kl" not in options:
            sweep["temperature"] = PRICES["forward"]
        return Method(algorithm, config.batch, sweep, _drawing(policy))

    return make


def _reverse(factored: bool = False, **options: Any) -> Callable[[SequenceTask, Config], Method]:
    def make(task: SequenceTask, config: Config) -> Method:
        make_policy = _factored if factored else _transformer
        policy = make_policy(task, config)
        steps = 1 if factored else num_steps(task, config)
        algorithm = discrete.reverse(
            task.reward,
            policy,
            num_steps=steps,
            count=-(-steps // 2),
            batch=config.batch,
            num_epochs=UPDATES,
            **options,
        )
        sweep = {"learning_rate": config.learning_rates, "temperature": PRICES["reverse"]}
        return Method(algorithm, config.batch, sweep, _drawing(policy), not factored)

    return make


def _genetic(task: SequenceTask, config: Config) -> Method:
    elite = config.batch // 16
    algorithm = discrete.evolve(
        task.reward, task.vocab, task.length, population=config.batch, elite=elite
    )
    return Method(
        algorithm,
        config.batch - elite,
        {},
        lambda key, state, batch, num_steps: state.tokens[:batch],
        False,
    )


def _transformer(task: SequenceTask, config: Config) -> TokenPolicy:
    return discrete.make_transformer_policy(
        task.vocab, task.length, width=config.width, num_layers=config.num_layers
    )


def _factored(task: SequenceTask, config: Config) -> TokenPolicy:
    return discrete.make_factored_policy(task.vocab, task.length)


def _drawing(policy: TokenPolicy) -> Callable[[jax.Array, Any, int, int], jax.Array]:
    def draw(key: jax.Array, state: Any, batch: int, num_steps: int) -> jax.Array:
        return sampling.sample(
            key,
            policy.denoise(state.params),
            (batch,),
            policy.length,
            vocab=policy.vocab,
            schedule=schedules.make_schedule(num_steps),
        ).tokens

    return draw


TABLE: dict[str, Callable[[SequenceTask, Config], Method]] = {
    "FKL": _forward(),
    "RKL": _reverse(),
    "factored": _reverse(factored=True, ratio="mean_field"),
    "diffu-GRPO": _reverse(ratio="mean_field"),
    "genetic": _genetic,
    "FKL, hard radius": _forward(target_kl=1.0),
    "FKL, visited states": _forward(noise="on_policy"),
    "FKL, weights with a sign": _forward(weighting="signed"),
    "RKL, ratio of bounds": _reverse(ratio="bound"),
}
"""The two updates of the paper, what they are held against, and variants."""
NAMES = tuple(TABLE)
OURS = ("FKL", "RKL")
RIVALS = ("factored", "autoregressive", "diffu-GRPO", "genetic")
