"""What every reinforcement learner is made of: replay, returns, normalization, evaluation, PPO."""

from jaxlab.learning.evaluation import evaluate
from jaxlab.learning.normalization import normalize_obs
from jaxlab.learning.seeds import over_seeds

__all__ = ["evaluate", "normalize_obs", "over_seeds"]
