"""Fitting a diffusion over tokens to the target of mirror descent, forward or reverse.

Forward: min KL(pi_MD | pi), samples of the old policy weighted by what the target makes of them and
fitted by the diffusion's own bound. It covers all that the target covers. Reverse: min
KL(pi | pi_MD), a clipped policy gradient with ratios of the diffusion, and a price on divergence.
It seeks modes, and collapses to one sequence without that price.

Ma et al. 2025, arXiv:2509.22963. Names F and R as in the room's README.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import PyTree
from jaxlab.diffusion.discrete import masked, path
from jaxlab.diffusion.discrete.masked import Denoise
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.learning import policy_gradient
from jaxlab.rl.discrete import targets
from jaxlab.rl.discrete.policies import TokenPolicy
from jaxlab.rl.discrete.transformers import WritingPolicy

Noise = Literal["forward", "on_policy", "mix", "path"]
Policy = TokenPolicy | WritingPolicy
"""One that reveals tokens in any order, or one that writes them from left to right."""
Scalar = float | Float[Array, ""]


def sequence_loss(
    key: jax.Array,
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    *,
    vocab: int,
    noise: Noise = "forward",
    schedule: Schedule | None = None,
    reveal: Int[Array, "*B K"] | None = None,
    count: int = 1,
    weighting: masked.Weighting = "elbo",
    token_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, "*B"]:
    """Returns the diffusion's loss of each sequence, nats, on one of four kinds of noise.

    * "forward": fresh noise, the negative evidence bound (`masked.nelbo`).
    * "on_policy": the states that the sampler visited on its way to the sequence. They are fresh
      noise where the bound is tight: the denoiser is consistent and N large. Early in training, in
      few steps, and with samplers that go by confidence, they are not, and these are the states
      that matter.
    * "mix": half of each, the fresh noise at the sampler's own levels.
    * "path": visited states, and only the tokens that were revealed there. With weights
      exp(A / lambda) it is the exact forward divergence of paths.

    Args:
        key: PRNG key of levels and masks, or of the steps that are looked at.
        denoise: see `masked.Denoise`.
        tokens: `[*B, K]` sequences.
        vocab: V.
        noise: see above.
        schedule: N steps of the sampler; None for "forward" in continuous time.
        reveal: `[*B, K]` when each token was revealed, see `sampling.Sample`; for visited states.
        count: levels of noise for each sequence, or how many of the N steps are looked at.
        weighting: of "forward" alone, see `masked.nelbo`.
        token_mask: tokens that count; all if None.

    Raises:
        ValueError: if there is no such noise, or visited states are asked for without schedule or
            `reveal`.

    Source: arXiv:2509.22963, on-policy diffusion learning.
    """
    if noise not in get_args(Noise):
        raise ValueError(f"noise must be one of {', '.join(get_args(Noise))}, got {noise!r}")
    if noise == "forward":
        return masked.nelbo(
            key,
            denoise,
            tokens,
            vocab=vocab,
            schedule=schedule,
            replicates=count,
            weighting=weighting,
            token_mask=token_mask,
        )
    if schedule is None or reveal is None:
        raise ValueError(f"noise={noise!r} needs the sampler's schedule and reveal steps")
    if noise == "mix":
        fresh, seen = (
            sequence_loss(
                key_one,
                denoise,
                tokens,
                vocab=vocab,
                noise=one,
                schedule=schedule,
                reveal=reveal,
                count=count,
                weighting=weighting,
                token_mask=token_mask,
            )
            for key_one, one in zip(jax.random.split(key), ("forward", "on_policy"), strict=True)
        )
        return 0.5 * (fresh + seen)
    steps = path.draw_steps(key, schedule.num_steps, count)
    if noise == "on_policy":
        loss = path.visited_nll(
            denoise, tokens, reveal, steps, vocab=vocab, schedule=schedule, token_mask=token_mask
        )
    else:
        loss = -path.step_logp(
            denoise, tokens, reveal, steps, vocab=vocab, schedule=schedule, token_mask=token_mask
        )
    return schedule.num_steps * jnp.mean(loss, axis=0)


def forward_kl(loss: Float[Array, "*B"], weight: Float[Array, "*B"]) -> Float[Array, ""]:
    """Returns sum of w l: F1 to F4, by where sequences and weights come from.

    Args:
        loss: `[*B]` of each sequence, see `sequence_loss`.
        weight: `[*B]`, see `targets.sample_weights`; no gradient runs into it.

    Source: arXiv:2509.22963, forward divergence.
    """
    return jnp.sum(jax.lax.stop_gradient(weight) * loss)


def candidate_loss(
    loss: Float[Array, " n *B"],
    q: Float[Array, " n *B"],
    temperature: Scalar | Float[Array, "*B"],
    *,
    kind: targets.Kind = "softmax",
    lower: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean over states of sum of w l over n candidates of each, and metrics: F2.

    Candidates are drawn from the old policy, which is renewed every so many updates
    (`optax.periodic_update`), and weighted by what a critic says of them. A hard radius has the
    temperature of `targets.solve_temperature`, or one that descends `learning.kl_dual_loss`.

    Args:
        loss: `[n, *B]` of `sequence_loss`, whose denoiser closes over states `[*B, ...]` and is
            called on `[R, n, *B, K]`: axes of a state are the last.
        q: `[n, *B]` values, the mean or the least of an ensemble.
        temperature: lambda, one or `[*B]`.
        kind: see `targets.sample_weights`.
        lower: see `targets.sample_weights`.

    Source: arXiv:2509.22963, forward divergence with an action critic.
    """
    weight = targets.sample_weights(q, temperature, kind, lower=lower)
    metrics = targets.weight_metrics(weight, kind, lower=lower)
    return forward_kl(loss, weight) / weight[0].size, metrics


def bound_logp(
    key: jax.Array,
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    *,
    vocab: int,
    schedule: Schedule | None = None,
    replicates: int = 1,
    per_token: bool = False,
    token_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, " 1 *B"]:
    """Returns minus the evidence bound as if it were log pi(a), the ratio R1: one step of one.

    Two denoisers compared with the same key see the same noise. The ratio of bounds is that of
    probabilities times exp of the difference of both gaps, which has a gradient of its own: R1
    points elsewhere than the policy gradient.

    Args:
        key: PRNG key of levels and masks, the same for both policies of a ratio.
        denoise: see `masked.Denoise`.
        tokens: `[*B, K]` sequences.
        vocab: V.
        schedule: N steps, or None for continuous time.
        replicates: draws of noise, averaged before a ratio is taken.
        per_token: divide by K, which keeps ratios of long sequences near 1.
        token_mask: tokens that count; all if None.

    Source: arXiv:2509.22963, ratio of bounds.
    """
    bound = masked.nelbo(
        key,
        denoise,
        tokens,
        vocab=vocab,
        schedule=schedule,
        replicates=replicates,
        token_mask=token_mask,
    )
    return -bound[None] / (tokens.shape[-1] if per_token else 1)


def mean_field_logp(
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    *,
    vocab: int,
    token_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, " 1 *B"]:
    """Returns the sum of log mu(token) with all tokens hidden, the ratio R3 of diffu-GRPO.

    Raises:
        ValueError: if tokens or their mask are not those of a vocabulary, see `masked.nelbo`.

    Source: Zhao et al. 2025, arXiv:2504.12216.
    """
    masked.check_tokens(tokens, vocab)
    if token_mask is not None:
        masked.check_mask(token_mask, tokens)
    hidden = jnp.full(tokens.shape, vocab, jnp.int32)
    level = jnp.ones(tokens.shape[:-1])
    nll = masked.hidden_nll(denoise, tokens, hidden, level, vocab=vocab, counts=token_mask)
    return -nll[None]


def token_logp(policy: Policy, params: PyTree, tokens: Int[Array, "*B K"]) -> Float[Array, "*B K"]:
    """Returns log-probabilities of single tokens, whose sum stands for log pi of the sequence.

    Of a writing policy they are given the tokens before, and the sum is exact. Of a denoiser they
    are those of R3, given that all tokens are hidden: exact if tokens are independent, as those of
    `policies.make_factored_policy` are.
    """
    if isinstance(policy, WritingPolicy):
        logp = policy.conditionals(params, tokens)
    else:
        hidden = jnp.full(tokens.shape, policy.vocab, jnp.int32)
        logp = masked.log_probs(
            policy.denoise(params), hidden, jnp.ones(tokens.shape[:-1]), vocab=policy.vocab
        )
    return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]


def written_steps(
    policy: WritingPolicy, params: PyTree, old_params: PyTree, tokens: Int[Array, "*B K"]
) -> tuple[Float[Array, " K *B"], Float[Array, " K *B"], Float[Array, " K *B"]]:
    """Returns logp, old logp and KL of each token of a writing policy, given those before it.

    Its K tokens are its steps, and this is what `path.step_logp` and `path.compare_steps` say of a
    denoiser: sums over tokens are log pi and, in expectation over sequences of the new policy,
    KL(pi | pi_old). No gradient runs into the old policy.
    """
    logp = policy.conditionals(params, tokens)
    logp_old = jax.lax.stop_gradient(policy.conditionals(old_params, tokens))
    kl = jnp.sum(jnp.exp(logp) * (logp - logp_old), axis=-1)
    new, old = (
        jnp.take_along_axis(x, tokens[..., None], axis=-1)[..., 0] for x in (logp, logp_old)
    )
    return jnp.moveaxis(new, -1, 0), jnp.moveaxis(old, -1, 0), jnp.moveaxis(kl, -1, 0)


def grpo_loss(
    logp: Float[Array, "*B K"],
    logp_old: Float[Array, "*B K"],
    logp_ref: Float[Array, "*B K"],
    advantage: Float[Array, "*B"],
    *,
    clip_eps: Scalar,
    kl_coef: Scalar,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean over tokens of kl_coef k3 - min(rho A, clip(rho) A), and metrics.

    Every token has a ratio of its own, and the price exp(d) - d - 1 with d = log mu_ref - log mu.
    Where `token_logp` is exact, the gradient at the old policy is the policy gradient over K.

    Args:
        logp: `[*B, K]` of `token_logp` now, with gradient.
        logp_old: when the sequences were drawn.
        logp_ref: of the policy that is to be stayed near.
        advantage: `[*B]` of the sequences, standardized over their group.
        clip_eps: how far a ratio may be driven from 1.
        kl_coef: beta, the price.

    Source: Shao et al. 2024, arXiv:2402.03300, eq. 3; for diffusion Zhao et al. 2025,
    arXiv:2504.12216 (diffu-GRPO).
    """
    wide = jnp.broadcast_to(advantage[..., None], logp.shape)
    gain = policy_gradient.clipped_surrogate(logp, logp_old, wide, clip_eps=clip_eps)
    price = policy_gradient.approx_kl(jax.lax.stop_gradient(logp_ref), logp)
    outside = policy_gradient.outside_clip(logp, logp_old, clip_eps=clip_eps)
    metrics = {
        "policy/reference_kl": jnp.mean(jnp.sum(price, axis=-1)),
        "policy/clipped": jnp.mean(outside.astype(gain.dtype)),
    }
    return jnp.mean(kl_coef * price - gain), metrics


def reverse_kl(
    logp: Float[Array, " S *B"],
    logp_old: Float[Array, " S *B"],
    advantage: Float[Array, "*B"],
    kl: Float[Array, " S *B"],
    *,
    num_steps: int,
    clip_eps: Scalar,
    temperature: Scalar,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns (N / S) sum over steps of -min(rho A, clip(rho) A) + lambda KL, and metrics.

    Of these `policy/ess` is how many of the sequences count as the ratios weigh them, the mean over
    steps: all of them, a minibatch, as long as the policy is the one that drew.

    With log-probabilities of single steps of denoising (`path.step_logp`) it is R2: the ratio of
    each step is exact, and at the old policy the gradient over all N steps is the policy gradient.
    With those of `bound_logp` and `mean_field_logp`, N = S = 1, it is R1 and R3. The steps of a
    writing policy are its tokens (`written_steps`), N = S = K.

    Args:
        logp: `[S, *B]` of S steps now, with gradient.
        logp_old: the same when they were drawn.
        advantage: `[*B]` of the sequences, standardized or of GAE.
        kl: `[S, *B]` divergence from the old policy at each step, with gradient, see
            `path.compare_steps`.
        num_steps: N, of which S were drawn.
        clip_eps: how far a ratio may be driven from 1; infinity for no clip.
        temperature: lambda, the price of a nat.

    Source: arXiv:2509.22963, reverse divergence with single-step ratios.
    """
    wide = jnp.broadcast_to(advantage, logp.shape)
    gain = policy_gradient.clipped_surrogate(logp, logp_old, wide, clip_eps=clip_eps)
    outside = policy_gradient.outside_clip(logp, logp_old, clip_eps=clip_eps)
    loss = num_steps * jnp.mean(temperature * kl - gain)
    moved = jax.lax.stop_gradient(logp - logp_old).reshape(logp.shape[0], -1)
    metrics = {
        "policy/kl": num_steps * jnp.mean(kl),
        "policy/ess": jnp.mean(targets.effective_size(jax.nn.softmax(moved, axis=1).T)),
        "policy/clipped": jnp.mean(outside.astype(gain.dtype)),
    }
    return loss, metrics
