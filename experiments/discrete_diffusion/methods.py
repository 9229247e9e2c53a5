"""Methods by name: what each learns with, what it may tune, and how it draws."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.discrete_diffusion import Config
from jaxlab.core.types import Algorithm
from jaxlab.diffusion.discrete import schedules
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.rl import discrete
from jaxlab.rl.discrete import RevisingPolicy, TokenPolicy, WritingPolicy, bandits
from jaxlab.rl.discrete.bandits import Policy
from jaxlab.rl.discrete.tasks import SequenceTask

UPDATES = 4
"""How often a gradient sees each sequence that was drawn, of every method with a policy."""
PRICES = {"forward": (0.1, 0.03, 0.3), "reverse": (0.02, 0.0, 0.1), "grpo": (0.04, 0.0, 0.1)}
"""What to choose from, the default first: the temperature of the target, in units of reward; the
price of a nat, in standard deviations of the reward, from the last policy and from the first."""


class Method(NamedTuple):
    """How one method learns.

    Attributes:
        algorithm: Of one seed.
        rewards: Calls of the reward function in a step.
        sweep: Settings to choose from, by name.
        draw: `draw(key, state, batch, schedule) -> [batch, K]`.
        diffuses: Whether it draws in the steps of the schedule.
    """

    algorithm: Algorithm
    rewards: int
    sweep: Mapping[str, tuple[float, ...]]
    draw: Callable[[jax.Array, Any, int, Schedule], jax.Array]
    diffuses: bool = True


def make_method(name: str, task: SequenceTask, config: Config) -> Method:
    """Makes a method by its name."""
    return TABLE[name](task, config)


def num_steps(task: SequenceTask, config: Config) -> int:
    """Steps of sampling: one for each token at most."""
    return min(config.num_steps, task.length)


def make_schedule(num_steps: int, most: int) -> Schedule:
    """Makes the schedule of some steps, and before them idle ones: one shape for all numbers."""
    idle = np.zeros(most - num_steps, np.float32)
    return Schedule(
        *(jnp.concatenate([x, jnp.asarray(idle)]) for x in schedules.make_schedule(num_steps))
    )


def _forward(
    make_policy: Callable[[SequenceTask, Config], TokenPolicy | RevisingPolicy], **options: Any
) -> Callable[[SequenceTask, Config], Method]:
    def make(task: SequenceTask, config: Config) -> Method:
        policy = make_policy(task, config)
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


def _reverse(
    make_policy: Callable[[SequenceTask, Config], Policy], **options: Any
) -> Callable[[SequenceTask, Config], Method]:
    def make(task: SequenceTask, config: Config) -> Method:
        policy = make_policy(task, config)
        diffuses = make_policy in (_transformer, _revising)
        steps = num_steps(task, config) if diffuses else 1 if make_policy is _factored else None
        # Of the steps of denoising, every gradient looks at half.
        half = {"count": -(-num_steps(task, config) // 2)} if diffuses else {}
        algorithm = discrete.reverse(
            task.reward,
            policy,
            num_steps=steps,
            batch=config.batch,
            num_epochs=UPDATES,
            **half,
            **options,
        )
        sweep = {"learning_rate": config.learning_rates, "temperature": PRICES["reverse"]}
        return Method(algorithm, config.batch, sweep, _drawing(policy), diffuses)

    return make


def _grpo(task: SequenceTask, config: Config) -> Method:
    policy = _transformer(task, config)
    algorithm = discrete.grpo(
        task.reward,
        policy,
        policy.init(jax.random.key(config.seed)),  # even over all sequences
        num_steps=num_steps(task, config),
        batch=config.batch,
        num_epochs=UPDATES,
    )
    sweep = {"learning_rate": config.learning_rates, "kl_coef": PRICES["grpo"]}
    return Method(algorithm, config.batch, sweep, _drawing(policy))


def _genetic(task: SequenceTask, config: Config) -> Method:
    elite = config.batch // 16
    algorithm = discrete.evolve(
        task.reward, task.vocab, task.length, population=config.batch, elite=elite
    )
    return Method(
        algorithm,
        config.batch - elite,
        {},
        lambda key, state, batch, schedule: state.tokens[:batch],
        False,
    )


def _transformer(task: SequenceTask, config: Config) -> TokenPolicy:
    return discrete.make_transformer_policy(
        task.vocab, task.length, width=config.width, num_layers=config.num_layers
    )


def _revising(task: SequenceTask, config: Config) -> RevisingPolicy:
    return discrete.make_revising_policy(
        task.vocab, task.length, width=config.width, num_layers=config.num_layers
    )


def _factored(task: SequenceTask, config: Config) -> TokenPolicy:
    return discrete.make_factored_policy(task.vocab, task.length)


def _writing(task: SequenceTask, config: Config) -> WritingPolicy:
    return discrete.make_writing_policy(
        task.vocab, task.length, width=config.width, num_layers=config.num_layers
    )


def _drawing(policy: Policy) -> Callable[[jax.Array, Any, int, Schedule], jax.Array]:
    def draw(key: jax.Array, state: Any, batch: int, schedule: Schedule) -> jax.Array:
        return bandits.draw(key, policy, state.params, (batch,), schedule).tokens

    return draw


TABLE: dict[str, Callable[[SequenceTask, Config], Method]] = {
    "FKL": _forward(_transformer),
    "RKL": _reverse(_transformer),
    "factored": _reverse(_factored),
    "autoregressive": _reverse(_writing),
    "diffu-GRPO": _grpo,
    "genetic": _genetic,
    "FKL, hard radius": _forward(_transformer, target_kl=1.0),
    "FKL, visited states": _forward(_transformer, noise="on_policy"),
    "FKL, weights with a sign": _forward(_transformer, weighting="signed"),
    "FKL, uniform noise": _forward(_revising),
    "RKL, ratio of bounds": _reverse(_transformer, ratio="bound"),
    "RKL, mean field": _reverse(_transformer, ratio="mean_field"),
    "RKL, uniform noise": _reverse(_revising),
}
"""The two updates of the paper, what they are held against, and variants."""
NAMES = tuple(TABLE)
OURS = ("FKL", "RKL")
RIVALS = ("factored", "autoregressive", "diffu-GRPO", "genetic")
