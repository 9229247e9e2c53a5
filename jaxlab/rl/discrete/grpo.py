"""Group-relative policy optimization over sequences, and its one-step form for diffusions.

What others fine-tune language models with: a clipped ratio for every token, rewards standardized
over a group, a price on leaving the model it began with. A diffusion has no probability of a token
given those before it; diffu-GRPO takes the one given that all are hidden.

Shao et al. 2024, arXiv:2402.03300; Zhao et al. 2025, arXiv:2504.12216 (d1).
"""

import jax
from jaxtyping import Array

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.diffusion.discrete import schedules
from jaxlab.learning import policy_gradient
from jaxlab.learning import settings as settings_lib
from jaxlab.rl.discrete import bandits, matching
from jaxlab.rl.discrete.policies import RevisingPolicy


def grpo(
    reward: bandits.Reward,
    policy: matching.Policy,
    pretrained: PyTree,
    *,
    num_steps: int | None = None,
    batch: int = 128,
    num_epochs: int = 4,
    num_minibatches: int = 4,
    kl_coef: float = 0.04,
    clip_eps: float = 0.5,
    learning_rate: float = 3e-4,
    max_grad_norm: float = 1.0,
) -> Algorithm:
    """Makes GRPO; one step draws a group and climbs for some epochs on it.

    Of a denoiser it is diffu-GRPO: its ratios are those of R3, which see no token and are wrong
    unless tokens are independent. Of `make_factored_policy` and of a writing policy they are exact.
    There is no prompt, so that none of it is hidden at random.

    Args:
        reward: `reward(tokens [B, K]) -> [B]`, traced.
        policy: what is trained, a denoiser or one that writes.
        pretrained: its parameters to begin with, and to stay near.
        num_steps: N steps of sampling; of a writing policy its K tokens, and may be left out.
        batch: sequences of a step: the group, over which rewards are standardized.
        num_epochs: how often the samples are learned from.
        num_minibatches: gradient steps of an epoch.
        kl_coef: beta, the price of the estimate k3 of the divergence from `pretrained`, by token.
        clip_eps: how far a token's ratio may be driven from 1.
        learning_rate: of Adam.
        max_grad_norm: the gradient is shortened to this.

    Returns:
        The algorithm; `learning_rate`, `kl_coef`, `clip_eps` and `max_grad_norm` may be swept.

    Raises:
        ValueError: if a number is out of range, or the batch does not divide.

    Source: arXiv:2504.12216, algorithm 1; beta and clip are its released code's, the others ours.
    """
    if isinstance(policy, RevisingPolicy):
        raise ValueError(
            "policy must be a denoiser of hidden tokens or one that writes; one that revises has "
            "no probabilities of single tokens, reverse trains it"
        )
    N = bandits.check_steps(policy, num_steps)
    bandits.check_counts(batch=batch, num_epochs=num_epochs, num_minibatches=num_minibatches)
    bandits.check_minibatches(batch, num_minibatches)
    bandits.check_bands(policy, batch)
    schedule = schedules.make_schedule(N)
    numbers = {
        "learning_rate": learning_rate,
        "kl_coef": kl_coef,
        "clip_eps": clip_eps,
        "max_grad_norm": max_grad_norm,
    }

    def step(state: bandits.SequenceState) -> tuple[bandits.SequenceState, Metrics]:
        key, key_draw, key_epochs, key_bands = jax.random.split(state.key, 4)
        old, settings = state.params, state.settings
        drawn = bandits.draw(key_draw, policy, old, (batch,), schedule)
        rewards, failed = bandits.rewards_of(reward, drawn.tokens)
        advantage = policy_gradient.normalize_advantage(rewards)
        logp_old = matching.token_logp(policy, old, drawn.tokens)
        logp_ref = matching.token_logp(policy, pretrained, drawn.tokens)

        def loss(params: PyTree, key: Array, index: Array) -> tuple[Array, dict[str, Array]]:
            return matching.grpo_loss(
                matching.token_logp(policy, params, drawn.tokens[index]),
                logp_old[index],
                logp_ref[index],
                advantage[index],
                clip_eps=settings["clip_eps"],
                kl_coef=settings["kl_coef"],
            )

        return bandits.climb(
            state._replace(key=key),
            loss,
            policy,
            drawn,
            rewards,
            failed,
            (key_epochs, key_bands),
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
        )

    rules = bandits.RULES | {"kl_coef": settings_lib.NOT_NEGATIVE}
    return bandits.make_algorithm(policy, step, numbers, pretrained, "grpo_sequences", rules)
