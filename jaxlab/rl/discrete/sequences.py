"""Learning which sequences have a high reward, by mirror descent with a diffusion over tokens.

One state, one action of K tokens, a reward function: a bandit whose arms are V^K. `forward` fits
weighted samples of the policy to itself, `reverse` climbs with clipped ratios of single steps.

Ma et al. 2025, arXiv:2509.22963.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.diffusion.discrete import path, schedules, uniform
from jaxlab.diffusion.discrete.masked import Denoise
from jaxlab.diffusion.discrete.sampling import Sample
from jaxlab.learning import policy_gradient
from jaxlab.learning import settings as settings_lib
from jaxlab.rl.discrete import bandits, matching, targets
from jaxlab.rl.discrete.policies import RevisingPolicy, TokenPolicy, check_corpus
from jaxlab.rl.discrete.transformers import WritingPolicy

Ratio = Literal["step", "bound", "mean_field", "exact"]


def forward(
    reward: bandits.Reward,
    policy: TokenPolicy | RevisingPolicy,
    *,
    num_steps: int,
    batch: int = 128,
    num_batches: int = 4,
    weighting: targets.Kind = "softmax",
    temperature: float = 0.1,
    target_kl: float | None = None,
    lower: float = 0.0,
    noise: matching.Noise = "forward",
    count: int = 1,
    num_updates: int = 1,
    learning_rate: float = 1e-4,
    max_grad_norm: float = 10.0,
    behavior: bandits.Policy | Int[Array, "num K"] | None = None,
    behavior_params: PyTree = None,
    init_params: PyTree = None,
) -> Algorithm:
    """Makes forward mirror descent (F1); one step draws sequences and fits them, weighted.

    Each of `num_batches` micro-batches has weights of its own, and their gradients are averaged:
    the divergence that a batch can show is at most log(batch).

    Args:
        reward: `reward(tokens [B, K]) -> [B]`, traced.
        policy: what is trained, a denoiser of hidden tokens, or one of uniform noise that revises.
        num_steps: N steps of sampling.
        batch: sequences of a micro-batch.
        num_batches: micro-batches of a step.
        weighting: how rewards become weights, see `targets.sample_weights`.
        temperature: lambda; without `target_kl`.
        target_kl: nats by which each micro-batch's target diverges; lambda is solved for.
        lower: see `targets.sample_weights`.
        noise: on what noise the policy is fitted, see `matching.sequence_loss`; one that revises
            on "forward" alone, the evidence bound `uniform.nelbo`.
        count: levels of noise, or steps, for each sequence and update.
        num_updates: gradient steps on each set of samples.
        learning_rate: of Adam.
        max_grad_norm: the gradient is shortened to this.
        behavior: what draws: a frozen policy, with `behavior_params`, or `[num, K]` sequences that
            are drawn from with replacement; the target is then a single tilt of it. The trained
            policy itself by default, which makes every step a step of mirror descent.
        behavior_params: its parameters.
        init_params: parameters to begin with, such as pre-trained ones; drawn by default.

    Returns:
        The algorithm; `learning_rate`, `temperature` and `max_grad_norm` may be swept by
        `learning.over_seeds(..., settings=)`.

    Raises:
        ValueError: if a number is out of range, or options do not go together.

    Source: arXiv:2509.22963 (DNA); defaults are those of its authors' code.
    """
    bandits.check_counts(
        num_steps=num_steps,
        batch=batch,
        num_batches=num_batches,
        count=count,
        num_updates=num_updates,
    )
    revises = isinstance(policy, RevisingPolicy)
    if not revises:
        bandits.check_denoiser(policy)
    bandits.check_bands(policy, batch * num_batches)
    if batch < 2:
        raise ValueError(
            f"batch must be at least 2, weights of one sequence say nothing, got {batch}"
        )
    frozen, dataset = None, None
    if isinstance(behavior, bandits.Policy):
        frozen = behavior
    elif behavior is not None:
        check_corpus(behavior, policy.vocab, policy.length)
        dataset = jnp.asarray(behavior, jnp.int32)
    if (frozen is None) != (behavior_params is None):
        raise ValueError("behavior and behavior_params go together; give both or neither")
    if noise != "forward" and (revises or not isinstance(behavior, TokenPolicy | None)):
        raise ValueError(
            f"noise={noise!r} needs the path of a diffusion of hidden tokens, which what draws "
            "has not; use 'forward'"
        )
    if noise != "forward" and count > num_steps:
        raise ValueError(f"count must lie in 1 .. {num_steps} with noise={noise!r}, got {count}")
    if target_kl is not None:
        targets.solve_temperature(jnp.zeros((batch,)), target_kl)  # refuses what cannot be met
    targets.sample_weights(jnp.zeros((batch,)), temperature, weighting, lower=lower)
    schedule = schedules.make_schedule(num_steps)
    numbers = {
        "learning_rate": learning_rate,
        "temperature": temperature,
        "max_grad_norm": max_grad_norm,
    }
    if target_kl is not None:
        del numbers["temperature"]

    def draw(key: Array, params: PyTree) -> bandits.Drawn:
        shape = (num_batches, batch)
        if dataset is not None:  # whose path nobody knows
            index = jax.random.randint(key, shape, 0, dataset.shape[0])
            return Sample(dataset[index], jnp.zeros((0,)), jnp.zeros((0,)))
        if frozen is not None:
            return bandits.draw(key, frozen, behavior_params, shape, schedule)
        return bandits.draw(key, policy, params, shape, schedule)

    def step(state: bandits.SequenceState) -> tuple[bandits.SequenceState, Metrics]:
        key, key_draw, key_fit, key_bands = jax.random.split(state.key, 4)
        drawn = draw(key_draw, state.params)
        rewards, failed = bandits.rewards_of(reward, drawn.tokens)
        if target_kl is None:
            lam = jnp.broadcast_to(state.settings["temperature"], (num_batches,))
        else:
            lam = targets.solve_temperature(rewards.T, target_kl)
        weight = targets.sample_weights(rewards.T, lam, weighting, lower=lower).T

        def loss(params: PyTree, key: Array) -> Array:
            denoise = policy.denoise(params)
            if revises:
                bound = uniform.nelbo(
                    key, denoise, drawn.tokens, vocab=policy.vocab, replicates=count
                )
            else:
                bound = matching.sequence_loss(
                    key,
                    denoise,
                    drawn.tokens,
                    vocab=policy.vocab,
                    noise=noise,
                    schedule=None if noise == "forward" else schedule,
                    reveal=drawn.reveal if isinstance(drawn, Sample) else None,
                    count=count,
                )
            return matching.forward_kl(bound, weight) / num_batches / policy.length

        def update(carry: tuple, key: Array) -> tuple[tuple, Array]:
            params, opt_state = carry
            value, grads = jax.value_and_grad(loss)(params, key)
            return bandits.descend(grads, params, opt_state, state.settings), value

        (params, opt_state), losses = jax.lax.scan(
            update, (state.params, state.opt_state), jax.random.split(key_fit, num_updates)
        )
        metrics = bandits.describe(key_bands, policy, state.params, drawn, rewards)
        metrics["reward/failed"] = failed
        if dataset is not None:
            del metrics["policy/entropy"]  # nothing was drawn by a policy
        metrics |= targets.weight_metrics(weight.T, weighting, lower=lower)
        metrics["policy/temperature"] = jnp.mean(lam)
        metrics["policy/loss"] = jnp.mean(losses)
        state = state._replace(params=params, opt_state=opt_state, key=key)
        return bandits.remember(state, drawn.tokens, rewards, failed), metrics

    return bandits.make_algorithm(policy, step, numbers, init_params, "forward_sequences")


def reverse(
    reward: bandits.Reward,
    policy: bandits.Policy,
    *,
    num_steps: int | None = None,
    batch: int = 512,
    ratio: Ratio = "step",
    num_epochs: int = 4,
    num_minibatches: int = 4,
    count: int | None = None,
    temperature: float = 0.02,
    target_kl: float | None = None,
    clip_eps: float = 0.2,
    learning_rate: float = 3e-4,
    max_grad_norm: float = 1.0,
    replicates: int = 1,
    per_token: bool = False,
    init_params: PyTree = None,
) -> Algorithm:
    """Makes reverse mirror descent; one step draws sequences and climbs for some epochs on them.

    Args:
        reward: `reward(tokens [B, K]) -> [B]`, traced.
        policy: what is trained: a denoiser of hidden tokens, one that writes (PPO of an
            autoregressive policy), or one that revises, whose ratios are of its posteriors.
        num_steps: N steps of sampling; of a writing policy its K tokens, and may be left out.
        batch: sequences of a step.
        ratio: "step": single steps of denoising (R2) or of writing, exact. Of a denoiser "bound":
            evidence bounds of the N steps (R1); of hidden tokens "mean_field": all at once from
            none (R3). Of a writing policy "exact": whole sequences.
        num_epochs: how often the samples are learned from.
        num_minibatches: gradient steps of an epoch.
        count: S of the N steps of denoising that a gradient step looks at, all by default: for
            their ratios, and for the divergence, which is priced alike with every ratio. A writing
            policy looks at all.
        temperature: lambda, the price of a nat of divergence from the policy that drew, on rewards
            standardized over the batch.
        target_kl: nats of path divergence that a step should make, the mean over its gradient
            steps; lambda is then where it begins, see `targets.adapt_temperature`. Fixed by
            default.
        clip_eps: how far a ratio may be driven from 1.
        learning_rate: of Adam.
        max_grad_norm: the gradient is shortened to this.
        replicates: levels of noise of "bound" for each sequence.
        per_token: divide the bound by K, see `matching.bound_logp`.
        init_params: parameters to begin with; drawn by default.

    Returns:
        The algorithm; the four numbers may be swept.

    Raises:
        ValueError: if a number is out of range, the batch does not divide, or the policy has no
            such ratio.

    Source: arXiv:2509.22963, reverse divergence; clip, epochs and price are those usual for
    diffusion language models (arXiv:2504.12216).
    """
    N, V = bandits.check_steps(policy, num_steps), policy.vocab
    writes, revises = (isinstance(policy, kind) for kind in (WritingPolicy, RevisingPolicy))
    known = ("step", "exact") if writes else ("step", "bound")
    if not (writes or revises):
        known += ("mean_field",)
    if ratio not in known:
        raise ValueError(f"ratio of this policy must be one of {', '.join(known)}, got {ratio!r}")
    single = ratio == "step"
    count = N if count is None else count
    bandits.check_counts(
        batch=batch,
        num_epochs=num_epochs,
        num_minibatches=num_minibatches,
        count=count,
        replicates=replicates,
    )
    if count > N or (writes and count < N):
        raise ValueError(
            f"count must lie in 1 .. {N}, all of them of a writing policy, got {count}"
        )
    bandits.check_minibatches(batch, num_minibatches)
    bandits.check_bands(policy, batch)
    schedule = schedules.make_schedule(N)
    numbers = {
        "learning_rate": learning_rate,
        "temperature": temperature,
        "max_grad_norm": max_grad_norm,
        "clip_eps": clip_eps,
    }
    rules = bandits.RULES
    if target_kl is None:
        rules = rules | {"temperature": settings_lib.NOT_NEGATIVE}
    bandits.check_target(target_kl, num_epochs, num_minibatches)

    def estimate(denoise: Denoise, key: Array, tokens: Array) -> Array:
        if ratio == "mean_field":
            return matching.mean_field_logp(denoise, tokens, vocab=V)
        if revises:
            bound = uniform.nelbo(
                key, denoise, tokens, vocab=V, schedule=schedule, replicates=replicates
            )
            return -bound[None] / (policy.length if per_token else 1)
        return matching.bound_logp(
            key,
            denoise,
            tokens,
            vocab=V,
            schedule=schedule,
            replicates=replicates,
            per_token=per_token,
        )

    def compare(
        params: PyTree, old: PyTree, key: Array, drawn: bandits.Drawn
    ) -> tuple[Array, Array, Array]:
        """Returns logp, old logp and KL, `[S, B]`, of single steps; `[1, B]` of whole sequences."""
        tokens = drawn.tokens
        if isinstance(policy, WritingPolicy):
            logp, logp_old, kl = matching.written_steps(policy, params, old, tokens)
            if single:
                return logp, logp_old, kl
            return _whole(logp), _whole(logp_old), _whole(kl)
        key_steps, key_noise = jax.random.split(key)
        new, before = policy.denoise(params), policy.denoise(old)
        steps = path.draw_steps(key_steps, N, count)
        if isinstance(drawn, uniform.Path):
            both = uniform.compare_steps(
                new, before, drawn.states, steps, vocab=V, schedule=schedule
            )
        else:
            both = path.compare_steps(
                new, before, tokens, drawn.reveal, steps, vocab=V, schedule=schedule
            )
        if single:
            return both
        logp, logp_old = (estimate(x, key_noise, tokens) for x in (new, before))
        return logp, logp_old, _whole(both.kl) * (N / count)

    def step(state: bandits.SequenceState) -> tuple[bandits.SequenceState, Metrics]:
        key, key_draw, key_epochs, key_bands = jax.random.split(state.key, 4)
        old, settings = state.params, state.settings
        drawn = bandits.draw(key_draw, policy, old, (batch,), schedule)
        rewards, failed = bandits.rewards_of(reward, drawn.tokens)
        advantage = policy_gradient.normalize_advantage(rewards)

        def loss(params: PyTree, key: Array, index: Array) -> tuple[Array, dict[str, Array]]:
            logp, logp_old, kl = compare(params, old, key, bandits.take(drawn, index))
            return matching.reverse_kl(
                logp,
                logp_old,
                advantage[index],
                kl,
                num_steps=N if single else 1,
                clip_eps=settings["clip_eps"],
                temperature=settings["temperature"],
            )

        climbed = bandits.climb(
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
        return climbed if target_kl is None else bandits.adapt(*climbed, target_kl)

    return bandits.make_algorithm(policy, step, numbers, init_params, "reverse_sequences", rules)


def _whole(each: Float[Array, " S *B"]) -> Float[Array, " 1 *B"]:
    return jnp.sum(each, axis=0, keepdims=True)
