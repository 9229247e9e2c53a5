"""Optimistic, risk-seeking multi-agent reinforcement learning."""

from jaxlab.marl.gradients import Gradient, agent_weights, policy_gradient, project_simplex
from jaxlab.marl.play import PlayState, make_play, policies_of, score
from jaxlab.marl.values import (
    Values,
    agent_values,
    evaluate,
    joint_policy,
    marginal,
    optimal_values,
    q_values,
    state_values,
    tilted_policy,
    visitation,
)

__all__ = [
    "Gradient",
    "PlayState",
    "Values",
    "agent_values",
    "agent_weights",
    "evaluate",
    "joint_policy",
    "make_play",
    "marginal",
    "optimal_values",
    "policies_of",
    "policy_gradient",
    "project_simplex",
    "q_values",
    "score",
    "state_values",
    "tilted_policy",
    "visitation",
]
