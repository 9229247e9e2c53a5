"""Actions of K tokens: diffusion policies over sequences, and how mirror descent trains them."""

from jaxlab.rl.discrete import enhancers, matching, surrogates, targets, tasks
from jaxlab.rl.discrete.bandits import SequenceState, unique_share
from jaxlab.rl.discrete.candidates import forward_candidates, greedy_macro
from jaxlab.rl.discrete.convolutions import DenoisingConv, make_conv_policy
from jaxlab.rl.discrete.drakes import drakes, relaxed_sample
from jaxlab.rl.discrete.evaluation import DnaReport, eval_dna, most_active
from jaxlab.rl.discrete.genetic import GeneticState, evolve
from jaxlab.rl.discrete.grpo import grpo
from jaxlab.rl.discrete.guidance import best_of_n, smc, svdd
from jaxlab.rl.discrete.matching import (
    bound_logp,
    candidate_loss,
    forward_kl,
    grpo_loss,
    mean_field_logp,
    reverse_kl,
    sequence_loss,
    token_logp,
    written_steps,
)
from jaxlab.rl.discrete.on_policy import forward_rollouts, reverse_rollouts
from jaxlab.rl.discrete.policies import (
    DenoisingMlp,
    RevisingPolicy,
    TokenPolicy,
    make_factored_policy,
    make_mlp_policy,
    make_table_policy,
)
from jaxlab.rl.discrete.pretraining import PretrainState, log_likelihood, pretrain
from jaxlab.rl.discrete.replayed import forward_replay
from jaxlab.rl.discrete.sequences import forward, reverse
from jaxlab.rl.discrete.state_policies import (
    StateEncoder,
    StatePolicy,
    make_state_heads,
    make_state_policy,
    make_state_writer,
)
from jaxlab.rl.discrete.surrogates import Oracles, Surrogate, fit_oracles, fit_surrogate
from jaxlab.rl.discrete.targets import (
    advantage_weights,
    divergence,
    effective_size,
    exact_target,
    imitation_weights,
    sample_weights,
    solve_temperature,
)
from jaxlab.rl.discrete.token_critics import StateValue, make_flat_critics, make_token_critics
from jaxlab.rl.discrete.transformers import (
    WritingPolicy,
    make_revising_policy,
    make_transformer_policy,
    make_writing_policy,
)

__all__ = [
    "DenoisingConv",
    "DenoisingMlp",
    "DnaReport",
    "PretrainState",
    "GeneticState",
    "Oracles",
    "RevisingPolicy",
    "SequenceState",
    "StateEncoder",
    "StatePolicy",
    "StateValue",
    "Surrogate",
    "TokenPolicy",
    "WritingPolicy",
    "advantage_weights",
    "best_of_n",
    "bound_logp",
    "candidate_loss",
    "divergence",
    "drakes",
    "effective_size",
    "enhancers",
    "eval_dna",
    "evolve",
    "exact_target",
    "fit_oracles",
    "fit_surrogate",
    "forward",
    "forward_candidates",
    "forward_kl",
    "forward_replay",
    "forward_rollouts",
    "greedy_macro",
    "grpo",
    "grpo_loss",
    "imitation_weights",
    "log_likelihood",
    "make_conv_policy",
    "make_factored_policy",
    "make_flat_critics",
    "make_mlp_policy",
    "make_revising_policy",
    "make_state_heads",
    "make_state_policy",
    "make_state_writer",
    "make_table_policy",
    "make_token_critics",
    "make_transformer_policy",
    "make_writing_policy",
    "matching",
    "mean_field_logp",
    "most_active",
    "pretrain",
    "relaxed_sample",
    "reverse",
    "reverse_kl",
    "reverse_rollouts",
    "sample_weights",
    "sequence_loss",
    "smc",
    "solve_temperature",
    "svdd",
    "surrogates",
    "targets",
    "tasks",
    "token_logp",
    "unique_share",
    "written_steps",
]
