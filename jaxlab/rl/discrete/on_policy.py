"""On-policy learning of macro-actions: two divergences from the policy that played.

`reverse_rollouts` climbs with clipped ratios of single steps of denoising (R2); of a policy that
writes it is PPO with exact ratios of tokens, of `make_state_heads` in one step PPO of a factored
policy. `forward_rollouts` fits what went well, weighted (F3). Tokens that were not carried out,
since the episode had ended, have no part in either, but for what `compare_steps` says.

Ma et al. 2025, arXiv:2509.22963; Schulman et al. 2017, arXiv:1707.06347.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab import envs
from jaxlab.core.types import Algorithm, PyTree
from jaxlab.diffusion.discrete import path, schedules
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.settings import Settings
from jaxlab.rl.discrete import bandits, matching, rollouts, targets
from jaxlab.rl.discrete.matching import Policy
from jaxlab.rl.discrete.rollouts import Played
from jaxlab.rl.discrete.state_policies import StatePolicy
from jaxlab.rl.discrete.transformers import WritingPolicy


def reverse_rollouts(
    env: envs.Env,
    policy: StatePolicy,
    value: Any,
    *,
    num_steps: int | None = None,
    rollout: int = 128,
    num_epochs: int = 4,
    num_minibatches: int = 4,
    count: int | None = None,
    temperature: float = 0.02,
    target_kl: float | None = None,
    clip_eps: float = 0.2,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    value_coef: float = 0.5,
    learning_rate: float = 3e-4,
    max_grad_norm: float = 0.5,
    reward_scale: float = 1.0,
) -> Algorithm:
    """Makes reverse mirror descent on rollouts; one step plays and climbs for some epochs.

    Args:
        env: environments of macro-actions, see `envs.macro`, or of several choices.
        policy: what is trained: a denoiser (R2), one that writes, or heads with one step (PPO).
        value: network of the value of a state, with `init(key, obs)` and `apply(params, obs) ->
            [..., 1]`, such as `StateValue`.
        num_steps: N steps of sampling; of a writing policy its K tokens, and may be left out.
        rollout: macro-actions of each environment in a step.
        num_epochs: how often they are learned from.
        num_minibatches: gradient steps of an epoch.
        count: S of the N steps of denoising that a gradient step looks at; all by default.
        temperature: lambda, the price of a nat of divergence, on standardized advantages.
        target_kl: nats of path divergence that a step should make, the mean over its gradient
            steps; lambda is then where it begins, see `targets.adapt_temperature`. Fixed by
            default.
        clip_eps: how far a ratio may be driven from 1.
        gamma: discount of one step of the clock, the one of `envs.macro`.
        gae_lambda: decay of the advantages' sum, by macro-action.
        value_coef: weight of the value's squared error.
        learning_rate: of Adam, of both networks.
        max_grad_norm: the gradient is shortened to this.
        reward_scale: factor of rewards.

    Returns:
        The algorithm; numbers from `temperature` on may be swept.

    Raises:
        ValueError: if a number is out of range, the rollout does not divide, or the policy is for
            other actions than the environment's.

    Source: arXiv:2509.22963, reverse divergence with single-step ratios and a state critic.
    """
    example = rollouts.check_policy(policy, env)
    N, writes = bandits.check_steps(example, num_steps), isinstance(example, WritingPolicy)
    count = N if count is None else count
    bandits.check_counts(count=count)
    if count > N or (writes and count < N):
        raise ValueError(
            f"count must lie in 1 .. {N}, all of them of a writing policy, got {count}"
        )
    schedule = schedules.make_schedule(N)

    def loss(
        key: Array, here: Policy, params: PyTree, old: PyTree, played: Played, settings: Settings
    ) -> tuple[Array, dict[str, Array]]:
        logp, logp_old, kl = compare_steps(
            key, here, params, old, played, schedule=schedule, count=count
        )
        return matching.reverse_kl(
            logp,
            logp_old,
            played.advantage,
            kl,
            num_steps=N,
            clip_eps=settings["clip_eps"],
            temperature=settings["temperature"],
        )

    numbers = {"temperature": temperature, "clip_eps": clip_eps}
    numbers |= shared_numbers(
        gamma, gae_lambda, value_coef, learning_rate, max_grad_norm, reward_scale
    )
    rules = rollouts.RULES
    if target_kl is None:
        rules = rules | {"temperature": settings_lib.NOT_NEGATIVE}
    sizes, name = (rollout, num_epochs, num_minibatches), "reverse_rollouts"
    return rollouts.make_learner(
        env, policy, value, loss, schedule, sizes, numbers, rules, name, target_kl=target_kl
    )


def forward_rollouts(
    env: envs.Env,
    policy: StatePolicy,
    value: Any,
    *,
    num_steps: int | None = None,
    rollout: int = 128,
    num_epochs: int = 4,
    num_minibatches: int = 4,
    count: int = 1,
    temperature: float = 1.0,
    largest: float = 20.0,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    value_coef: float = 0.5,
    learning_rate: float = 3e-4,
    max_grad_norm: float = 0.5,
    reward_scale: float = 1.0,
) -> Algorithm:
    """Makes forward mirror descent on rollouts: bounds weighted by min(exp(A / lambda), w_max), F3.

    Arguments as `reverse_rollouts`, but for these.

    Args:
        env: environments of macro-actions.
        policy: what is trained, a denoiser, or one that writes, whose log-probability is exact.
        value: network of the value of a state.
        count: levels of noise for each macro-action and gradient step.
        temperature: lambda, on advantages standardized over the rollout.
        largest: w_max.

    Raises:
        ValueError: as `reverse_rollouts`.

    Source: arXiv:2509.22963, forward divergence with a state critic.
    """
    N = bandits.check_steps(rollouts.check_policy(policy, env), num_steps)
    bandits.check_counts(count=count)
    targets.advantage_weights(jnp.zeros((1,)), temperature, largest=largest)
    schedule = schedules.make_schedule(N)

    def loss(
        key: Array, here: Policy, params: PyTree, old: PyTree, played: Played, settings: Settings
    ) -> tuple[Array, dict[str, Array]]:
        del old
        weight = targets.advantage_weights(
            played.advantage, settings["temperature"], largest=largest
        )
        return weighted_loss(key, here, params, played, weight, count=count)

    numbers = {"temperature": temperature}
    numbers |= shared_numbers(
        gamma, gae_lambda, value_coef, learning_rate, max_grad_norm, reward_scale
    )
    sizes = (rollout, num_epochs, num_minibatches)
    return rollouts.make_learner(
        env, policy, value, loss, schedule, sizes, numbers, rollouts.RULES, "forward_rollouts"
    )


def weighted_loss(
    key: jax.Array,
    policy: Policy,
    params: PyTree,
    played: Played,
    weight: Float[Array, " B"],
    *,
    count: int,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the sum of w l over K, l of `executed_bound`, and metrics of the weights."""
    bound = executed_bound(key, policy, params, played.tokens, played.executed, count=count)
    metrics = {
        "policy/max_weight": jnp.max(weight),
        "policy/ess": jnp.where(jnp.sum(weight) > 0.0, targets.effective_size(weight), 0.0),
    }
    return matching.forward_kl(bound, weight) / policy.length, metrics


def executed_bound(
    key: jax.Array,
    policy: Policy,
    params: PyTree,
    tokens: Int[Array, "*B K"],
    executed: Bool[Array, "*B K"],
    *,
    count: int,
) -> Float[Array, "*B"]:
    """Returns the negative evidence bound of what was carried out; of one that writes it is exact.

    Args:
        key: PRNG key of the noise: the same for two policies that are compared.
        policy: at the states.
        params: of the policy.
        tokens: `[*B, K]`.
        executed: `[*B, K]` bool.
        count: levels of noise for each sequence.
    """
    if isinstance(policy, WritingPolicy):
        logp = matching.token_logp(policy, params, tokens)
        return -jnp.sum(jnp.where(executed, logp, 0.0), axis=-1)
    return matching.sequence_loss(
        key, policy.denoise(params), tokens, vocab=policy.vocab, count=count, token_mask=executed
    )


def compare_steps(
    key: jax.Array,
    policy: Policy,
    params: PyTree,
    old_params: PyTree,
    played: Played,
    *,
    schedule: Schedule,
    count: int,
) -> tuple[Float[Array, " S B"], Float[Array, " S B"], Float[Array, " S B"]]:
    """Returns logp, old logp and KL of S steps of denoising, or of all tokens of a writing policy.

    A token that was not carried out counts where one that was carried out was revealed after it,
    and may have depended on it: without it the gradient would not be the policy gradient. Tokens
    that are written, or drawn all at once, depend on none that comes later in time, so that those
    that were carried out are all that count.

    Args:
        key: PRNG key of the steps that are looked at.
        policy: at the states.
        params: of the policy, with gradient.
        old_params: those that drew.
        played: `[B, ...]`.
        schedule: N steps.
        count: S.
    """
    tokens = played.tokens
    if isinstance(policy, WritingPolicy):
        found = matching.written_steps(policy, params, old_params, tokens)
        kept = jnp.moveaxis(played.executed, -1, 0)
        logp, logp_old, kl = (jnp.where(kept, x, 0.0) for x in found)
        return logp, logp_old, kl
    last = jnp.min(jnp.where(played.executed, played.reveal, schedule.num_steps), axis=-1)
    counts = played.executed | (played.reveal > last[..., None])
    steps = path.draw_steps(key, schedule.num_steps, count)
    return path.compare_steps(
        policy.denoise(params),
        policy.denoise(old_params),
        tokens,
        played.reveal,
        steps,
        vocab=policy.vocab,
        schedule=schedule,
        token_mask=counts,
    )


def shared_numbers(
    gamma: float,
    gae_lambda: float,
    value_coef: float,
    learning_rate: float,
    max_grad_norm: float,
    reward_scale: float,
) -> dict[str, float]:
    """Returns the settings by name that all learners on rollouts have."""
    return {
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "value_coef": value_coef,
        "learning_rate": learning_rate,
        "max_grad_norm": max_grad_norm,
        "reward_scale": reward_scale,
    }
