"""What every reinforcement learner is made of: replay, returns, normalization, evaluation, PPO."""

from jaxlab.learning.actor_critic import Networks, make_networks
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
from jaxlab.learning.normalization import normalize_obs
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

__all__ = [
    "Distribution",
    "Networks",
    "Outputs",
    "PpoState",
    "Samples",
    "approx_kl",
    "categorical",
    "clipped_surrogate",
    "clipped_value_loss",
    "distribution_of",
    "evaluate",
    "gae",
    "gaussian",
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
]
