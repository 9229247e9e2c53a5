"""What every reinforcement learner is made of: replay, returns, normalization, evaluation, PPO."""

from jaxlab.learning.actor_critic import Networks, make_networks
from jaxlab.learning.collecting import Collector, Experience, make_collector
from jaxlab.learning.distributions import (
    Distribution,
    categorical,
    distribution_of,
    gaussian,
    mask_logits,
    multi_categorical,
    squashed_gaussian,
    squashed_logp,
)
from jaxlab.learning.evaluation import evaluate
from jaxlab.learning.normalization import ObsStats, init_obs_stats, normalize_obs, update_obs_stats
from jaxlab.learning.policy_gradient import (
    Outputs,
    Samples,
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    masked_mean,
    normalize_advantage,
    outside_clip,
    ppo_loss,
)
from jaxlab.learning.ppo import PpoState, make_ppo
from jaxlab.learning.returns import gae, td_target
from jaxlab.learning.seeds import over_seeds
from jaxlab.learning.temperature import entropy_dual_loss, kl_dual_loss

__all__ = [
    "Collector",
    "Distribution",
    "Experience",
    "Networks",
    "ObsStats",
    "Outputs",
    "PpoState",
    "Samples",
    "approx_kl",
    "categorical",
    "clipped_surrogate",
    "clipped_value_loss",
    "distribution_of",
    "entropy_dual_loss",
    "evaluate",
    "gae",
    "gaussian",
    "init_obs_stats",
    "kl_dual_loss",
    "make_collector",
    "make_networks",
    "make_ppo",
    "mask_logits",
    "masked_mean",
    "multi_categorical",
    "normalize_advantage",
    "normalize_obs",
    "outside_clip",
    "over_seeds",
    "ppo_loss",
    "squashed_gaussian",
    "squashed_logp",
    "td_target",
    "update_obs_stats",
]
