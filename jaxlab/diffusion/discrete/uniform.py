"""Uniform diffusion: noise replaces tokens by random ones, and every token may be revised.

q(z_t | x) = alpha_t x + (1 - alpha_t) / V. There is no mask: the denoiser is called on tokens below
V alone, must be told the level 1 - alpha_t, and all places count, not only those that changed.
Schiff et al. 2024, arXiv:2412.10193 (UDLM).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Mean
from jaxlab.diffusion.discrete import schedules
from jaxlab.diffusion.discrete.masked import (
    LEAST_LEVEL,
    Denoise,
    check_range,
    check_tokens,
    log_probs,
)
from jaxlab.diffusion.discrete.path import Compared
from jaxlab.diffusion.discrete.schedules import Schedule


class Path(NamedTuple):
    """What was drawn, and all states on the way: any token may change in any step.

    Attributes:
        states: `[N + 1, *B, K]` int32, the clean sequences first.
        logp: `[N, *B]` log p(z_{n-1} | z_n) of what was drawn in each step, n = 1 first.
    """

    states: Int[Array, "N+1 *B K"]
    logp: Float[Array, " N *B"]

    @property
    def tokens(self) -> Int[Array, "*B K"]:
        """The clean sequences."""
        return self.states[0]


def corrupt(
    key: jax.Array, tokens: Int[Array, "... K"], level: Float[Array, "..."], *, vocab: int
) -> Int[Array, "... K"]:
    """Replaces each token by one of V at random with the probability `level` of its sequence.

    Raises:
        ValueError: if the tokens are known, and some of them is none of the V.
    """
    check_tokens(tokens, vocab)
    key_which, key_token = jax.random.split(key)
    replaced = jax.random.uniform(key_which, tokens.shape, level.dtype) < level[..., None]
    drawn = jax.random.randint(key_token, tokens.shape, 0, vocab, tokens.dtype)
    return jnp.where(replaced, drawn, tokens)


def posterior(
    clean: Float[Array, "... V"],
    noisy: Int[Array, "..."],
    alpha_s: Float[Array, "..."],
    alpha_t: Float[Array, "..."],
) -> Float[Array, "... V"]:
    """Returns q(z_s | z_t, x) for an earlier s < t, of a one-hot token or of a distribution x.

    [V a_t x z_t + (a_ts - a_t) z_t + (a_s - a_t) x + (1 - a_ts)(1 - a_s) / V] / [V a_t <x, z_t> + 1
    - a_t] with a_ts = a_t / a_s. Of a distribution it is not the mixture of the posteriors of
    tokens: loss and sampler must both use it so.

    Args:
        clean: `[..., V]` x.
        noisy: `[...]` tokens z_t.
        alpha_s: `[...]` probability that a token is untouched at s.
        alpha_t: the same at t.

    Source: arXiv:2412.10193, eq. 13.
    """
    vocab = clean.shape[-1]
    alpha_s, alpha_t = alpha_s[..., None], alpha_t[..., None]
    z = jax.nn.one_hot(noisy, vocab, dtype=clean.dtype)
    ratio = _ratio(alpha_t, alpha_s)
    top = vocab * alpha_t * clean * z + (ratio - alpha_t) * z
    top = top + (alpha_s - alpha_t) * clean + (1.0 - ratio) * (1.0 - alpha_s) / vocab
    agree = jnp.sum(clean * z, axis=-1, keepdims=True)
    return top / (vocab * alpha_t * agree + 1.0 - alpha_t)


def reverse_logits(
    denoise: Denoise,
    noisy: Int[Array, "*B K"],
    n: Int[Array, "*#B"],
    *,
    vocab: int,
    schedule: Schedule,
) -> Float[Array, "*B K V"]:
    """Returns log of the probabilities of z_{n-1} given z_n at every place.

    That of `posterior`, whose terms are a multiple of the clean probability and a constant, summed
    as logarithms: probabilities that underflow keep their values and gradients.

    Args:
        denoise: see `masked.Denoise`.
        noisy: `[*B, K]` z_n.
        n: `[*B]`, or one for all, in 1 .. N.
        vocab: V.
        schedule: N steps.

    Raises:
        ValueError: if known tokens are not below V, a known n is no step, or the denoiser's logits
            are of other tokens.
    """
    check_tokens(noisy, vocab)
    check_range("n", n, schedule.num_steps, first=1)
    alpha_s, alpha_t = (a[..., None] for a in _alphas(schedule, n, noisy))
    clean = log_probs(denoise, noisy, 1.0 - alpha_t[..., 0, 0], vocab=vocab)
    z = jax.nn.one_hot(noisy, vocab, dtype=clean.dtype)
    ratio = _ratio(alpha_t, alpha_s)
    slope = vocab * alpha_t * z + alpha_s - alpha_t
    constant = (ratio - alpha_t) * z + (1.0 - ratio) * (1.0 - alpha_s) / vocab
    agree = jnp.take_along_axis(clean, noisy[..., None], axis=-1)
    total = jnp.logaddexp(jnp.log(vocab * alpha_t) + agree, jnp.log1p(-alpha_t))
    ruled_out = jnp.isneginf(clean) & (constant == 0.0)  # two infinities have no slope
    top = jnp.logaddexp(jnp.log(slope) + jnp.where(ruled_out, 0.0, clean), jnp.log(constant))
    return jnp.where(ruled_out, -jnp.inf, top) - total


def sample(
    key: jax.Array,
    denoise: Denoise,
    batch: tuple[int, ...],
    length: int,
    *,
    vocab: int,
    schedule: Schedule,
) -> Path:
    """Draws sequences in N steps, from random tokens on; all states on the way are kept.

    Args:
        key: PRNG key.
        denoise: see `masked.Denoise`; called on `[*B, K]`.
        batch: shape B of what is drawn.
        length: K.
        vocab: V.
        schedule: N steps.

    Raises:
        ValueError: if a size is below 1, or the denoiser's logits are of other tokens.
    """
    if length < 1 or vocab < 1 or min(batch, default=1) < 1:
        raise ValueError(
            f"batch, length and vocab must be at least 1, got {batch}, {length} and {vocab}"
        )
    key_start, key_steps = jax.random.split(key)
    start = jax.random.randint(key_start, (*batch, length), 0, vocab, jnp.int32)

    def step(tokens: Array, n: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = reverse_logits(denoise, tokens, n, vocab=vocab, schedule=schedule)
        new = jax.random.categorical(jax.random.fold_in(key_steps, n), logits).astype(jnp.int32)
        return new, (new, _at(logits, new))

    steps = jnp.arange(schedule.num_steps, 0, -1, dtype=jnp.int32)
    _, (states, logp) = jax.lax.scan(step, start, steps)
    return Path(jnp.concatenate([states[::-1], start[None]]), logp[::-1])


def step_logp(
    denoise: Denoise,
    states: Int[Array, "N+1 *B K"],
    steps: Int[Array, " S"],
    *,
    vocab: int,
    schedule: Schedule,
) -> Float[Array, " S *B"]:
    """Returns log p(z_{n-1} | z_n) of the drawn states at each of S steps n in 1 .. N.

    Raises:
        ValueError: if there are not N + 1 states of tokens below V, a known step is not in 1 .. N,
            or the denoiser's logits are of other tokens.
    """
    _check_path(states, steps, vocab, schedule)

    def one(n: Array) -> Array:
        logits = reverse_logits(denoise, states[n], n, vocab=vocab, schedule=schedule)
        return _at(logits, states[n - 1])

    return jax.vmap(one)(steps.astype(jnp.int32))


def compare_steps(
    denoise: Denoise,
    old: Denoise,
    states: Int[Array, "N+1 *B K"],
    steps: Int[Array, " S"],
    *,
    vocab: int,
    schedule: Schedule,
) -> Compared:
    """Returns `step_logp` of both denoisers and KL(p(. | z_n) | p_old(. | z_n)) at each of S steps.

    Summed over all steps, in expectation over paths of the new denoiser, the last is the divergence
    of paths, an upper bound of KL(pi | pi_old); what is said there of `path.Compared` holds here.
    No gradient runs into the old denoiser. Arguments as `step_logp`, and refused alike.

    Source: single-step ratios of arXiv:2509.22963, with the posteriors of arXiv:2412.10193.
    """
    _check_path(states, steps, vocab, schedule)

    def one(n: Array) -> Compared:
        new, before = (
            reverse_logits(f, states[n], n, vocab=vocab, schedule=schedule) for f in (denoise, old)
        )
        before = jax.lax.stop_gradient(before)
        possible = ~jnp.isneginf(new)  # what is ruled out has no part in the divergence
        apart = jnp.where(possible, new, 0.0) - jnp.where(possible, before, 0.0)
        kl = jnp.sum(jnp.exp(new) * apart, axis=(-2, -1))
        return Compared(_at(new, states[n - 1]), _at(before, states[n - 1]), kl)

    return jax.vmap(one)(steps.astype(jnp.int32))


def step_loss(
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    noisy: Int[Array, "*B K"],
    n: Int[Array, "*B"],
    *,
    vocab: int,
    schedule: Schedule,
) -> Float[Array, "*B"]:
    """Returns N KL(q(z_{n-1} | z_n, x) | q(z_{n-1} | z_n, mu)) summed over places, nats.

    Its mean over n = 1 .. N is the whole bound of -log p: the prior is the law of the last state.

    Args:
        denoise: see `masked.Denoise`.
        tokens: `[*B, K]` clean.
        noisy: `[*B, K]` z_n.
        n: `[*B]` in 1 .. N.
        vocab: V.
        schedule: N steps.

    Raises:
        ValueError: if known tokens are not below V, a known n is no step, or the denoiser's logits
            are of other tokens.

    Source: arXiv:2412.10193, eq. 14.
    """
    check_tokens(tokens, vocab)
    ours = reverse_logits(denoise, noisy, n, vocab=vocab, schedule=schedule)
    alpha_s, alpha_t = _alphas(schedule, n, tokens)
    clean = jax.nn.one_hot(tokens, vocab, dtype=ours.dtype)
    true = posterior(clean, noisy, alpha_s, alpha_t)
    possible = true > 0.0  # what is ruled out, by the path and by the denoiser, counts nothing
    apart = jnp.log(jnp.where(possible, true, 1.0)) - jnp.where(possible, ours, 0.0)
    kl = jnp.sum(true * apart, axis=(-2, -1))
    return schedule.num_steps * kl


def continuous_loss(
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    noisy: Int[Array, "*B K"],
    level: Float[Array, "*B"],
    *,
    vocab: int,
) -> Float[Array, "*B"]:
    """Returns the limit of `step_loss` for N to infinity, of the linear schedule, at t = level.

    With y = V alpha x + 1 - alpha of the clean token, y' of the denoiser and i = z_t:
    c [V / y_i - V / y'_i - sum_j (y_j / y_i)(log y'_i - log y'_j + log y_j - log y_i)] with c =
    -1 / (V alpha), summed over places.

    Args:
        denoise: see `masked.Denoise`.
        tokens: `[*B, K]` clean.
        noisy: `[*B, K]` z_t.
        level: `[*B]` in (0, 1).
        vocab: V.

    Raises:
        ValueError: if known tokens are not below V, a known level is not in (0, 1), or the
            denoiser's logits are of other tokens.

    Source: arXiv:2412.10193, eq. 17.
    """
    check_tokens(tokens, vocab)
    check_tokens(noisy, vocab)
    _check_level(level)
    mu = jnp.exp(log_probs(denoise, noisy, level, vocab=vocab))
    alpha = (1.0 - level)[..., None, None]
    y = vocab * alpha * jax.nn.one_hot(tokens, vocab, dtype=mu.dtype) + 1.0 - alpha
    ours = vocab * alpha * mu + 1.0 - alpha
    index = noisy[..., None]
    y_i, ours_i = (jnp.take_along_axis(a, index, axis=-1) for a in (y, ours))
    logs = jnp.log(ours_i) - jnp.log(ours) + jnp.log(y) - jnp.log(y_i)
    inner = vocab / y_i - vocab / ours_i - jnp.sum(y / y_i * logs, axis=-1, keepdims=True)
    return jnp.sum(-inner / (vocab * alpha), axis=(-2, -1))


def nelbo(
    key: jax.Array,
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    *,
    vocab: int,
    schedule: Schedule | None = None,
    replicates: int = 1,
) -> Float[Array, "*B"]:
    """Estimates the negative evidence bound of each sequence, nats.

    Two calls with the same key see the same noise.

    Args:
        key: PRNG key.
        denoise: see `masked.Denoise`; called on `[R, *B, K]`, R replicates.
        tokens: `[*B, K]` clean tokens.
        vocab: V.
        schedule: N steps, or None for continuous time and the linear schedule.
        replicates: draws R of level and noise for each sequence, averaged.

    Raises:
        ValueError: if tokens are no integers, empty or, known, not below V, there is no replicate,
            or the denoiser's logits are of others.
    """
    check_tokens(tokens, vocab)
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {replicates}")
    key_level, key_order, key_noise = jax.random.split(key, 3)
    batch = (replicates, *tokens.shape[:-1])
    size = math.prod(batch)
    # Else the levels of one sequence's replicates would be neighbors.
    order = jax.random.permutation(key_order, size)
    clean = jnp.broadcast_to(tokens, (*batch, tokens.shape[-1]))
    if schedule is None:
        # At level 1 nothing of the token is left, and 1 / alpha has no bound.
        level = 1.0 - schedules.low_discrepancy_levels(key_level, size)
        level = jnp.maximum(level, LEAST_LEVEL)[order].reshape(batch)
        noisy = corrupt(key_noise, clean, level, vocab=vocab)
        loss = continuous_loss(denoise, clean, noisy, level, vocab=vocab)
    else:
        n = schedules.low_discrepancy_steps(key_level, size, schedule.num_steps)
        n = n[order].reshape(batch)
        noisy = corrupt(key_noise, clean, schedule.level[n], vocab=vocab)
        loss = step_loss(denoise, clean, noisy, n, vocab=vocab, schedule=schedule)
    return jnp.mean(loss, axis=0)


def band_losses(
    key: jax.Array, denoise: Denoise, tokens: Int[Array, "B K"], *, vocab: int, num_bands: int = 4
) -> Mean:
    """Returns the mean -log mu of the clean token of a place at rising levels, `[num_bands]` nats.

    Sequences are dealt to bands of equal width in turn, each with a level drawn in its band, see
    `masked.band_losses`; here all places count.

    Raises:
        ValueError: if tokens are not those of a vocabulary, or bands outnumber sequences.
    """
    check_tokens(tokens, vocab)
    key_level, key_noise = jax.random.split(key)
    band, level = schedules.band_levels(key_level, tokens.shape[0], num_bands)
    noisy = corrupt(key_noise, tokens, level, vocab=vocab)
    logp = log_probs(denoise, noisy, level, vocab=vocab)
    nll = -_at(logp, tokens)
    total = jax.ops.segment_sum(nll, jnp.asarray(band), num_bands)
    count = np.bincount(band, minlength=num_bands) * tokens.shape[1]
    return Mean(total, jnp.asarray(count, total.dtype))


def _at(logits: Float[Array, "*B K V"], tokens: Int[Array, "*B K"]) -> Float[Array, "*B"]:
    """Returns the sum over places of the logarithms at these tokens."""
    return jnp.sum(jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0], axis=-1)


def _alphas(schedule: Schedule, n: Array, tokens: Array) -> tuple[Array, Array]:
    """Returns alpha at n - 1 and at n for every place."""
    n = jnp.broadcast_to(n[..., None], tokens.shape)
    return schedule.alpha[n - 1], schedule.alpha[n]


def _ratio(alpha_t: Array, alpha_s: Array) -> Array:
    """Returns alpha_t / alpha_s, 0 where both are: a step from noise to noise."""
    return jnp.where(alpha_s > 0.0, alpha_t / jnp.where(alpha_s > 0.0, alpha_s, 1.0), 0.0)


def _check_path(states: Array, steps: Array, vocab: int, schedule: Schedule) -> None:
    check_tokens(states, vocab)
    if states.ndim < 2 or states.shape[0] != schedule.num_steps + 1:
        raise ValueError(
            f"states must be [{schedule.num_steps + 1}, ..., K], all of the schedule, got "
            f"{states.shape}"
        )
    if steps.ndim != 1 or steps.size < 1:
        raise ValueError(f"steps must be [S], one at least, got {steps.shape}")
    check_range("steps", steps, schedule.num_steps, first=1)


def _check_level(level: Array) -> None:
    if isinstance(level, Tracer) or level.size == 0:
        return
    if not ((np.asarray(level) > 0.0) & (np.asarray(level) < 1.0)).all():
        raise ValueError(f"level must lie in (0, 1), got {level}")
