"""Offline imitation with representations of the dynamics that are learned from any logs."""

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
from jaxlab.imitation.data.recording import record
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

__all__ = [
    "Dataset",
    "FiniteProcess",
    "LinearPolicy",
    "LowRank",
    "check_dataset",
    "discounted_second_moment",
    "dual_objective",
    "dual_optimum",
    "fingerprint",
    "gaussian_pendulum",
    "join",
    "kl",
    "leaking_episodes",
    "linear_episodes",
    "low_rank_process",
    "occupancy",
    "occupancy_kl",
    "parts_of_optimum",
    "pump_and_balance",
    "random_system",
    "record",
    "represented",
    "returns",
    "split_episodes",
    "stationary_covariance",
    "take_episodes",
    "to_npz",
    "true_log_ratio",
]
