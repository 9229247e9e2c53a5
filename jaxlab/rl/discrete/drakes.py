"""Fine-tuning by the reward's own gradient, through the steps of sampling: DRAKES.

Where the reward is differentiable in a soft sequence, such as a learned oracle, its gradient runs
back through the tokens that were drawn, as if each had been the softmax of its noisy logits. That
is no unbiased gradient; it needs far fewer samples than one that is. It finds the errors of a
learned reward as well, and what keeps it from them is the price on leaving the pre-trained law.

Wang et al. 2024, arXiv:2410.13643.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.diffusion.discrete import schedules
from jaxlab.diffusion.discrete.masked import Denoise, log_probs
from jaxlab.diffusion.discrete.sampling import Sample
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.learning import settings as settings_lib
from jaxlab.rl.discrete import bandits
from jaxlab.rl.discrete.policies import TokenPolicy

SoftReward = Callable[[jax.Array], jax.Array]
"""`reward(soft [B, K, V]) -> [B]`, differentiable. Where it or its gradient is not finite, the
sequence counts as the least of its batch and has no gradient."""


class Relaxed(NamedTuple):
    """Sequences that were drawn, and how they depend on the denoiser.

    Attributes:
        soft: `[B, K, V]` one-hot tokens, whose gradient is that of the softmax of their noisy
            logits.
        sample: the same as tokens, with their path.
        kl: `[N, B]` u_n sum over hidden tokens of KL(mu | mu of the base) in the state at n, n = 1
            first; its sum has KL of paths as its mean.
    """

    soft: Float[Array, "B K V"]
    sample: Sample
    kl: Float[Array, "N B"]


def relaxed_sample(
    key: jax.Array,
    denoise: Denoise,
    base: Denoise,
    batch: int,
    length: int,
    *,
    vocab: int,
    schedule: Schedule,
    num_grad_steps: int,
    gumbel_temperature: float | Float[Array, ""] = 1.0,
) -> Relaxed:
    """Draws sequences by ancestral sampling, with gradients straight through what was drawn.

    A token is the largest of log mu + Gumbel noise going forward, and softmax((log mu + noise) /
    temperature) going back. Which places are revealed does not depend on the denoiser, and has no
    gradient. Steps are computed again when gradients are taken, so that memory holds N states.

    Args:
        key: PRNG key.
        denoise: takes soft tokens `[B, K, V + 1]`, see `policies.TokenPolicy`.
        base: what `kl` is measured from; takes the same.
        batch: B.
        length: K.
        vocab: V.
        schedule: N steps.
        num_grad_steps: gradients run back through the last so many steps; what was drawn before
            counts as given. The divergence of every step has a gradient in its own denoiser.
        gumbel_temperature: of the softmax.

    Raises:
        ValueError: if `num_grad_steps` is not in 1 .. N.

    Source: arXiv:2410.13643, section 4; straight-through Gumbel-softmax of Jang et al. 2016,
    arXiv:1611.01144.
    """
    N = schedule.num_steps
    if not 1 <= num_grad_steps <= N:
        raise ValueError(f"num_grad_steps must lie in 1 .. {N}, got {num_grad_steps}")

    def step(carry: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], tuple]:
        soft, revealed_at = carry
        key_draw, key_which = jax.random.split(jax.random.fold_in(key, n))
        level = jnp.broadcast_to(schedule.level[n], (batch,))
        hidden = soft[..., vocab] > 0.5
        logp, logp_base = (log_probs(f, soft, level, vocab=vocab) for f in (denoise, base))
        divergence = jnp.sum(jnp.exp(logp) * (logp - logp_base), axis=-1)
        kl = schedule.reveal[n] * jnp.sum(jnp.where(hidden, divergence, 0.0), axis=-1)
        noisy = logp + jax.random.gumbel(key_draw, logp.shape, logp.dtype)
        drawn = jnp.argmax(noisy, axis=-1)
        relaxed = jax.nn.softmax(noisy / gumbel_temperature)
        # The bracket is exactly 0: what is drawn stays one-hot to the last bit.
        token = jax.nn.one_hot(drawn, vocab, dtype=logp.dtype)
        token = token + (relaxed - jax.lax.stop_gradient(relaxed))
        token = jnp.concatenate([token, jnp.zeros_like(token[..., :1])], axis=-1)
        reveal = hidden & (jax.random.uniform(key_which, hidden.shape) < schedule.reveal[n])
        new = jnp.where(reveal[..., None], token, soft)
        new = jnp.where(n <= num_grad_steps, new, jax.lax.stop_gradient(new))
        at_drawn = jnp.take_along_axis(logp, drawn[..., None], axis=-1)[..., 0]
        logp_drawn = jnp.sum(jnp.where(reveal, at_drawn, 0.0), axis=-1)
        return (new, jnp.where(reveal, n, revealed_at)), (kl, logp_drawn)

    start = jax.nn.one_hot(jnp.full((batch, length), vocab, jnp.int32), vocab + 1)
    steps = jnp.arange(N, 0, -1, dtype=jnp.int32)
    (soft, at), (kl, logp) = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False),
        (start, jnp.zeros((batch, length), jnp.int32)),
        steps,
    )
    soft = soft[..., :vocab]
    tokens = jnp.argmax(soft, axis=-1).astype(jnp.int32)
    return Relaxed(soft, Sample(tokens, at, jax.lax.stop_gradient(logp[::-1])), kl[::-1])


def drakes(
    reward: SoftReward,
    policy: TokenPolicy,
    pretrained: PyTree,
    *,
    num_steps: int = 128,
    num_grad_steps: int = 50,
    batch: int = 32,
    num_batches: int = 4,
    kl_coef: float = 1e-3,
    gumbel_temperature: float = 1.0,
    learning_rate: float = 1e-4,
    max_grad_norm: float = 1.0,
) -> Algorithm:
    """Makes DRAKES; one step is one step of Adam on -reward + kl_coef KL, averaged over batches.

    The divergence is exact: the sum over all steps n of u_n times that of every hidden token, which
    has the divergence of paths as its mean. The released code weighs the term of a token by its
    soft share of visible bases instead, and by 1 / (1 - alpha_n). On states whose tokens are either
    hidden or visible, as they are drawn here, that is 0: hidden tokens have no weight, and visible
    ones are copied by both denoisers.

    Args:
        reward: `reward(soft [B, K, V]) -> [B]`, such as `surrogates.predict` of an oracle.
        policy: what is trained.
        pretrained: its parameters to begin with, and to stay near.
        num_steps: N steps of sampling.
        num_grad_steps: the last steps, which the reward's gradient runs back through.
        batch: sequences that are in memory at once.
        num_batches: batches whose gradients are averaged.
        kl_coef: alpha, the price of a nat in units of the reward.
        gumbel_temperature: see `relaxed_sample`.
        learning_rate: of Adam.
        max_grad_norm: the gradient is shortened to this.

    Returns:
        The algorithm; `learning_rate`, `kl_coef`, `gumbel_temperature` and `max_grad_norm` may be
        swept.

    Raises:
        ValueError: if a number is out of range.

    Source: arXiv:2410.13643, algorithm 1; defaults are those of its released code.
    """
    bandits.check_counts(num_steps=num_steps, batch=batch, num_batches=num_batches)
    if not 1 <= num_grad_steps <= num_steps:
        raise ValueError(f"num_grad_steps must lie in 1 .. {num_steps}, got {num_grad_steps}")
    bandits.check_denoiser(policy)
    bandits.check_bands(policy, batch * num_batches)
    schedule = schedules.make_schedule(num_steps)
    numbers = {
        "learning_rate": learning_rate,
        "kl_coef": kl_coef,
        "gumbel_temperature": gumbel_temperature,
        "max_grad_norm": max_grad_norm,
    }
    base = policy.denoise(pretrained)

    def step(state: bandits.SequenceState) -> tuple[bandits.SequenceState, Metrics]:
        key, key_draw, key_bands = jax.random.split(state.key, 3)

        def loss(params: PyTree, key: Array) -> tuple[Array, tuple]:
            drawn = relaxed_sample(
                key,
                policy.denoise(params),
                base,
                batch,
                policy.length,
                vocab=policy.vocab,
                schedule=schedule,
                num_grad_steps=num_grad_steps,
                gumbel_temperature=state.settings["gumbel_temperature"],
            )
            rewards, slope = _slopes(reward, drawn.soft)
            gain = jnp.sum(slope * drawn.soft) / batch
            kl = jnp.mean(jnp.sum(drawn.kl, axis=0))
            return state.settings["kl_coef"] * kl - gain, (drawn.sample, rewards, kl)

        def accumulate(total: PyTree, key: Array) -> tuple[PyTree, tuple]:
            grads, seen = jax.grad(loss, has_aux=True)(state.params, key)
            return jax.tree.map(jnp.add, total, grads), seen

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        total, (drawn, rewards, kl) = jax.lax.scan(
            accumulate, zeros, jax.random.split(key_draw, num_batches)
        )
        grads = jax.tree.map(lambda g: g / num_batches, total)
        params, opt_state = bandits.descend(grads, state.params, state.opt_state, state.settings)
        rewards, failed = bandits.mend(rewards.reshape(-1))
        drawn = drawn._replace(logp=jnp.moveaxis(drawn.logp, 1, 0))  # [N, num_batches, batch]
        metrics = bandits.describe(key_bands, policy, state.params, drawn, rewards)
        metrics |= {"reward/failed": failed, "policy/kl": jnp.mean(kl)}
        state = state._replace(params=params, opt_state=opt_state, key=key)
        return bandits.remember(state, drawn.tokens, rewards, failed), metrics

    rules = bandits.RULES | {
        "kl_coef": settings_lib.NOT_NEGATIVE,
        "gumbel_temperature": settings_lib.POSITIVE,
    }
    return bandits.make_algorithm(policy, step, numbers, pretrained, "drakes_sequences", rules)


def _slopes(
    reward: SoftReward, soft: Float[Array, "B K V"]
) -> tuple[Float[Array, " B"], Float[Array, "B K V"]]:
    """Returns rewards and their gradients in the sequences; both fail where one does."""
    soft = jax.lax.stop_gradient(soft)
    rewards, pull = jax.vjp(reward, soft)
    bandits.check_rewards(rewards, soft)
    slope = pull(jnp.ones_like(rewards))[0]
    fine = jnp.isfinite(rewards) & jnp.all(jnp.isfinite(slope), axis=(1, 2))
    rewards = jnp.where(fine, rewards, jnp.nan)
    return jax.lax.stop_gradient((rewards, jnp.where(fine[:, None, None], slope, 0.0)))
