"""Reinforcement learning: one learner, and policies from flows and diffusions to Gaussians."""

from jaxlab.learning.evaluation import evaluate
from jaxlab.learning.normalization import normalize_obs
from jaxlab.learning.ppo import make_ppo
from jaxlab.learning.returns import gae, td_target
from jaxlab.learning.seeds import over_seeds
from jaxlab.rl.acting import MODES, Mode, act, num_evaluations
from jaxlab.rl.backprop_diffusion import dacer, dime
from jaxlab.rl.critics import (
    Critics,
    best_of,
    make_critics,
    make_gaussian_critics,
    make_pixel_critics,
)
from jaxlab.rl.deterministic import td3
from jaxlab.rl.diffusion_baselines import dipo, qsm, qvpo
from jaxlab.rl.gaussian import sac
from jaxlab.rl.generators import Generator, draw, make_diffusion, make_flow, make_mean_flow
from jaxlab.rl.learner import (
    env_steps_per_step,
    join_obs,
    joined_size,
    make_learner,
    updates_per_step,
)
from jaxlab.rl.mirror_descent import dpmd, fpmd_m, fpmd_r, make_mirror_descent
from jaxlab.rl.policy import Context, Improvement, Policy, decaying_adam
from jaxlab.rl.soft_diffusion import sdac
from jaxlab.rl.train_state import SEED_AXES, TrainState
from jaxlab.rl.weights import WEIGHTINGS, Weighting, importance_weights, softmax_weights

__all__ = [
    "MODES",
    "SEED_AXES",
    "WEIGHTINGS",
    "Context",
    "Critics",
    "Generator",
    "Improvement",
    "Mode",
    "Policy",
    "TrainState",
    "Weighting",
    "act",
    "best_of",
    "dacer",
    "decaying_adam",
    "dime",
    "dipo",
    "dpmd",
    "draw",
    "env_steps_per_step",
    "evaluate",
    "fpmd_m",
    "fpmd_r",
    "gae",
    "importance_weights",
    "join_obs",
    "joined_size",
    "make_critics",
    "make_diffusion",
    "make_flow",
    "make_gaussian_critics",
    "make_learner",
    "make_mean_flow",
    "make_mirror_descent",
    "make_pixel_critics",
    "make_ppo",
    "normalize_obs",
    "num_evaluations",
    "over_seeds",
    "qsm",
    "qvpo",
    "sac",
    "sdac",
    "softmax_weights",
    "td3",
    "td_target",
    "updates_per_step",
]
