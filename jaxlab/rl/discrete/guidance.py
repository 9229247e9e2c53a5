"""High rewards without training: choosing among draws of a frozen policy, at the end or on the way.

What fine-tuning is held against at equal calls of the reward function.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.core.types import PyTree
from jaxlab.diffusion.discrete import masked, sampling
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.rl.discrete import bandits
from jaxlab.rl.discrete.bandits import Reward
from jaxlab.rl.discrete.policies import TokenPolicy


class Chosen(NamedTuple):
    """What was chosen.

    Attributes:
        tokens: `[B, K]`.
        reward: `[B]`.
    """

    tokens: Int[Array, "B K"]
    reward: Float[Array, " B"]


def best_of_n(
    key: jax.Array,
    reward: Reward,
    policy: TokenPolicy,
    params: PyTree,
    *,
    batch: int,
    num_draws: int,
    schedule: Schedule,
) -> Chosen:
    """Returns the best of n draws, B times: n B rewards.

    One set of draws after another, so that memory does not grow with n. A reward that is not finite
    is never the best; where all n are not, it is -inf with the first of the draws.

    Raises:
        ValueError: if a count is below 1, or the policy writes.
    """
    _check(policy, batch=batch, num_draws=num_draws)

    def draw(best: Chosen, at: tuple[Array, Array]) -> tuple[Chosen, None]:
        number, key = at
        tokens = _sample(key, policy, params, batch, schedule)
        rewards = reward(tokens).astype(jnp.float32)
        rewards = jnp.where(jnp.isfinite(rewards), rewards, -jnp.inf)
        better = (rewards > best.reward) | (number == 0)
        return Chosen(
            jnp.where(better[:, None], tokens, best.tokens), jnp.where(better, rewards, best.reward)
        ), None

    none = Chosen(
        jnp.zeros((batch, policy.length), jnp.int32), jnp.full((batch,), -jnp.inf, jnp.float32)
    )
    each = jnp.arange(num_draws), jax.random.split(key, num_draws)
    return jax.lax.scan(draw, none, each)[0]


def svdd(
    key: jax.Array,
    reward: Reward,
    policy: TokenPolicy,
    params: PyTree,
    *,
    batch: int,
    schedule: Schedule,
    num_candidates: int = 10,
) -> Chosen:
    """Returns draws that took the best of several candidates at every step: n N B rewards.

    A candidate is worth the reward of the denoiser's likeliest sequence from there, and as little
    as the least of them where that is not finite.

    Args:
        key: PRNG key.
        reward: `reward(tokens [B, K]) -> [B]`.
        policy: the frozen policy.
        params: its parameters.
        batch: B.
        schedule: N steps.
        num_candidates: n continuations of each state.

    Raises:
        ValueError: if a count is below 1, or the policy writes.

    Source: Li et al. 2024, arXiv:2408.08252 (SVDD-PM).
    """
    _check(policy, batch=batch, num_candidates=num_candidates)
    denoise = policy.denoise(params)

    def step(tokens: Array, n: Array) -> tuple[Array, None]:
        wide = jnp.broadcast_to(tokens[None], (num_candidates, *tokens.shape))
        level = _level(schedule, n, (batch,))
        logp = masked.log_probs(denoise, tokens, level, vocab=policy.vocab)
        wide_logp = jnp.broadcast_to(logp[None], (num_candidates, *logp.shape))
        ahead = _reveal(jax.random.fold_in(key, n), wide, wide_logp, schedule.reveal[n], policy)
        flat = ahead.reshape(-1, policy.length)
        value = _value(reward, denoise, flat, schedule, n - 1, policy)
        best = jnp.argmax(value.reshape(num_candidates, batch), axis=0)
        return ahead[best, jnp.arange(batch)], None

    start = jnp.full((batch, policy.length), policy.vocab, jnp.int32)
    tokens = jax.lax.scan(step, start, _steps(schedule))[0]
    return Chosen(tokens, reward(tokens).astype(jnp.float32))


def smc(
    key: jax.Array,
    reward: Reward,
    policy: TokenPolicy,
    params: PyTree,
    *,
    batch: int,
    schedule: Schedule,
    temperature: float = 0.5,
) -> Chosen:
    """Returns B particles that were resampled at every step by what they gained: N B rewards.

    Weights are exp((v(after) - v(before)) / temperature), v the reward of the denoiser's likeliest
    sequence, the least of all where that is not finite; resampling is systematic.

    Args:
        key: PRNG key.
        reward: `reward(tokens [B, K]) -> [B]`.
        policy: the frozen policy.
        params: its parameters.
        batch: B particles.
        schedule: N steps.
        temperature: positive.

    Raises:
        ValueError: if a count is below 1, the policy writes, or the temperature is not positive.

    Source: Wu et al. 2023, arXiv:2306.17775, without twisting, as in arXiv:2410.13643.
    """
    _check(policy, batch=batch)
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    denoise = policy.denoise(params)

    def step(carry: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], None]:
        tokens, value = carry
        key_reveal, key_resample = jax.random.split(jax.random.fold_in(key, n))
        level = _level(schedule, n, (batch,))
        logp = masked.log_probs(denoise, tokens, level, vocab=policy.vocab)
        ahead = _reveal(key_reveal, tokens, logp, schedule.reveal[n], policy)
        after = _value(reward, denoise, ahead, schedule, n - 1, policy)
        index = systematic(key_resample, (after - value) / temperature)
        return (ahead[index], after[index]), None

    start = jnp.full((batch, policy.length), policy.vocab, jnp.int32)
    value = _value(reward, denoise, start, schedule, jnp.asarray(schedule.num_steps), policy)
    (tokens, _), _ = jax.lax.scan(step, (start, value), _steps(schedule))
    return Chosen(tokens, reward(tokens).astype(jnp.float32))


def systematic(key: jax.Array, log_weight: Float[Array, " B"]) -> Int[Array, " B"]:
    """Draws B indices with probabilities softmax(log_weight), with one number for all.

    Each index is drawn as often as B times its probability, rounded down or up.
    """
    batch = log_weight.shape[0]
    ends = jnp.cumsum(jax.nn.softmax(log_weight))
    points = (
        jnp.arange(batch, dtype=ends.dtype) + jax.random.uniform(key, dtype=ends.dtype)
    ) / batch
    return jnp.minimum(jnp.searchsorted(ends, points, side="right"), batch - 1)


def _sample(
    key: Array, policy: TokenPolicy, params: PyTree, batch: int, schedule: Schedule
) -> Array:
    return sampling.sample(
        key, policy.denoise(params), (batch,), policy.length, vocab=policy.vocab, schedule=schedule
    ).tokens


def _reveal(key: Array, tokens: Array, logp: Array, chance: Array, policy: TokenPolicy) -> Array:
    """One ancestral step: reveals each hidden token with this chance."""
    key_draw, key_which = jax.random.split(key)
    drawn = jax.random.categorical(key_draw, logp).astype(jnp.int32)
    reveal = (tokens == policy.vocab) & (jax.random.uniform(key_which, tokens.shape) < chance)
    return jnp.where(reveal, drawn, tokens)


def _value(
    reward: Reward,
    denoise: masked.Denoise,
    tokens: Array,
    schedule: Schedule,
    n: Array,
    policy: TokenPolicy,
) -> Array:
    """Reward of the likeliest sequence from here; of one that fails, the least of the others."""
    level = _level(schedule, n, tokens.shape[:-1])
    logp = masked.log_probs(denoise, tokens, level, vocab=policy.vocab)
    likely = jnp.argmax(logp, axis=-1).astype(jnp.int32)
    return bandits.mend(reward(jnp.where(tokens == policy.vocab, likely, tokens)))[0]


def _level(schedule: Schedule, n: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(schedule.level[n], shape)


def _steps(schedule: Schedule) -> Array:
    return jnp.arange(schedule.num_steps, 0, -1, dtype=jnp.int32)


def _check(policy: TokenPolicy, **counts: int) -> None:
    bandits.check_denoiser(policy)
    bandits.check_counts(**counts)
