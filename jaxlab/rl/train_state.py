"""All that evolves while the learner trains, and where the seeds of several runs lie in it."""

import typing
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from jaxlab.core.types import PyTree
from jaxlab.envs import State
from jaxlab.learning import replay as replay_lib
from jaxlab.learning.collecting import Experience
from jaxlab.learning.settings import Settings
from jaxlab.rl import weights


class TrainState(NamedTuple):
    """All that evolves.

    Attributes:
        policy_params: Parameters of the actor.
        policy_average_params: Running average of them, which acts where the policy says so.
        policy_opt_state: State of the actor's optimizer.
        critic_params: Parameters of both critics, stacked.
        target_critic_params: Their running average, which the critics' targets are made of.
        critic_opt_state: State of the critics' optimizer.
        log_alpha: Logarithm of the temperature.
        alpha_opt_state: State of the temperature's optimizer.
        stats: Running mean and standard deviation of values.
        updates: int32, gradient steps of the critics so far.
        env, replay, obs_stats, returns, failures: What acting left behind, see
            `learning.collecting.Experience`.
        settings: Numbers of the run that may be swept, see `learner.make_learner`.
        key: PRNG key for all random draws of the run.
    """

    policy_params: Any
    policy_average_params: Any
    policy_opt_state: Any
    critic_params: Any
    target_critic_params: Any
    critic_opt_state: Any
    log_alpha: Float[Array, ""]
    alpha_opt_state: Any
    stats: weights.Stats
    updates: Int[Array, ""]
    env: State
    replay: replay_lib.Replay
    obs_stats: PyTree
    returns: Float[Array, " E"]
    failures: Int[Array, ""]
    settings: Settings
    key: Array

    @property
    def experience(self) -> Experience:
        """What acting left behind, as the collector takes it."""
        return Experience(self.env, self.replay, self.obs_stats, self.returns, self.failures)

    def with_experience(self, experience: Experience) -> "TrainState":
        """Returns the state with this experience in place of its own."""
        return self._replace(**experience._asdict())


def _seed_axes() -> Any:
    state, ring = (typing.cast(Any, record) for record in (TrainState, replay_lib.Replay))
    axes = state(*(0,) * len(TrainState._fields))
    return axes._replace(replay=ring(0, None, None), updates=None)


SEED_AXES = _seed_axes()
"""Axes of seeds in a `TrainState` of several, as `jax.vmap` takes them. What all seeds share, the
count of updates and where the replay is written, is one number: a branch that is rarely taken is
skipped, and the replay is written in place."""
