"""Optimistic, risk-seeking multi-agent reinforcement learning."""

from jaxlab.marl.gradients import Gradient, agent_weights, policy_gradient, project_simplex
from jaxlab.marl.ippo import IppoState, make_op_ippo
from jaxlab.marl.joint_critic import JointState, make_joint
from jaxlab.marl.networks import Memory, gru_networks
from jaxlab.marl.off_policy import OffPolicyState, make_off_policy
from jaxlab.marl.optimism import (
    Optimism,
    beta_of_divergence,
    entropic,
    expectile,
    leaky,
    neutral,
    of_measure,
    optimistic_loss,
    step_weights,
    tilt_divergence,
)
from jaxlab.marl.play import PlayState, make_play, policies_of, score
from jaxlab.marl.q_learners import QState, make_q_learner
from jaxlab.marl.tabular import TabularState, make_tabular
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
    "IppoState",
    "JointState",
    "Memory",
    "OffPolicyState",
    "Optimism",
    "PlayState",
    "QState",
    "TabularState",
    "Values",
    "agent_values",
    "agent_weights",
    "beta_of_divergence",
    "entropic",
    "evaluate",
    "expectile",
    "gru_networks",
    "joint_policy",
    "leaky",
    "make_joint",
    "make_off_policy",
    "make_op_ippo",
    "make_play",
    "make_q_learner",
    "make_tabular",
    "marginal",
    "neutral",
    "of_measure",
    "optimal_values",
    "optimistic_loss",
    "policies_of",
    "policy_gradient",
    "project_simplex",
    "q_values",
    "score",
    "state_values",
    "step_weights",
    "tilt_divergence",
    "tilted_policy",
    "visitation",
]
