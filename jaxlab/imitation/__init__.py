"""Offline imitation with representations of the dynamics that are learned from any logs."""

from jaxlab.imitation.baselines.behavior_cloning import make_bc
from jaxlab.imitation.baselines.demodice import make_demodice
from jaxlab.imitation.baselines.dwbc import make_dwbc
from jaxlab.imitation.baselines.ilid import make_ilid
from jaxlab.imitation.baselines.iq_learn import make_iq_learn
from jaxlab.imitation.baselines.smodice import make_smodice
from jaxlab.imitation.data.dataset import (
    Dataset,
    check_dataset,
    fingerprint,
    join,
    leaking_episodes,
    returns,
    split_episodes,
    take_episodes,
    to_npz,
)
from jaxlab.imitation.data.preparing import (
    Demonstrations,
    Normalizer,
    Transitions,
    acting,
    observe,
    prepare,
    union,
)
from jaxlab.imitation.data.reading import from_d4rl, from_minari, read_npz
from jaxlab.imitation.data.recording import record
from jaxlab.imitation.heads import Dual, Head, Kind, make_head
from jaxlab.imitation.learner import Method, TrainState, make_learner
from jaxlab.imitation.policy import Policy, make_policy, orthogonality
from jaxlab.imitation.pretraining import (
    Loss,
    Pretrained,
    PretrainState,
    load_representation,
    make_pretraining,
    save_representation,
)
from jaxlab.imitation.problems.gaussian_pendulum import (
    gaussian_pendulum,
    pump_and_balance,
    true_log_ratio,
)
from jaxlab.imitation.problems.linear_gaussian import (
    LinearPolicy,
    discounted_second_moment,
    linear_episodes,
    occupancy_kl,
    random_system,
    stationary_covariance,
)
from jaxlab.imitation.problems.tabular import (
    FiniteProcess,
    LowRank,
    dual_objective,
    dual_optimum,
    kl,
    low_rank_process,
    occupancy,
    parts_of_optimum,
    represented,
)
from jaxlab.imitation.representation import (
    Representation,
    binary_nce_loss,
    diagnose,
    make_representation,
    ranking_log_ratio,
    ranking_loss,
    ratio,
    spectral_loss,
)
from jaxlab.imitation.value_dice import (
    Pairs,
    between,
    draw_pairs,
    estimate,
    gradient_penalty,
    make_value_dice,
)

__all__ = [
    "Dataset",
    "Demonstrations",
    "Dual",
    "FiniteProcess",
    "Head",
    "Kind",
    "LinearPolicy",
    "Loss",
    "LowRank",
    "Method",
    "Normalizer",
    "Pairs",
    "Policy",
    "PretrainState",
    "Pretrained",
    "Representation",
    "TrainState",
    "Transitions",
    "acting",
    "between",
    "binary_nce_loss",
    "check_dataset",
    "diagnose",
    "discounted_second_moment",
    "draw_pairs",
    "dual_objective",
    "dual_optimum",
    "estimate",
    "fingerprint",
    "from_d4rl",
    "from_minari",
    "gaussian_pendulum",
    "gradient_penalty",
    "join",
    "kl",
    "leaking_episodes",
    "linear_episodes",
    "load_representation",
    "low_rank_process",
    "make_bc",
    "make_demodice",
    "make_dwbc",
    "make_head",
    "make_ilid",
    "make_iq_learn",
    "make_learner",
    "make_policy",
    "make_pretraining",
    "make_representation",
    "make_smodice",
    "make_value_dice",
    "observe",
    "occupancy",
    "occupancy_kl",
    "orthogonality",
    "parts_of_optimum",
    "prepare",
    "pump_and_balance",
    "random_system",
    "ranking_log_ratio",
    "ranking_loss",
    "ratio",
    "read_npz",
    "record",
    "represented",
    "returns",
    "save_representation",
    "spectral_loss",
    "split_episodes",
    "stationary_covariance",
    "take_episodes",
    "to_npz",
    "true_log_ratio",
    "union",
]
