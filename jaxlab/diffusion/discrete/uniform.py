"""Uniform diffusion: noise replaces tokens by random ones, and every token may be revised.

q(z_t | x) = alpha_t x + (1 - alpha_t) / V. There is no mask: the denoiser is called on tokens below
V alone, must be told the level 1 - alpha_t, and all places count, not only those that changed.
Schiff et al. 2024, arXiv:2412.10193 (UDLM).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.diffusion.discrete import schedules
from jaxlab.diffusion.discrete.masked import LEAST_LEVEL, Denoise, check_tokens, log_probs
from jaxlab.diffusion.discrete.schedules import Schedule, low_discrepancy_levels


def corrupt(
    key: jax.Array, tokens: Int[Array, "... K"], level: Float[Array, "..."], *, vocab: int
) -> Int[Array, "... K"]:
    """Replaces each token by one of V at random with the probability `level` of its sequence."""
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
    ratio = alpha_t / alpha_s
    top = vocab * alpha_t * clean * z + (ratio - alpha_t) * z
    top = top + (alpha_s - alpha_t) * clean + (1.0 - ratio) * (1.0 - alpha_s) / vocab
    agree = jnp.sum(clean * z, axis=-1, keepdims=True)
    return top / (vocab * alpha_t * agree + 1.0 - alpha_t)


def reverse_logits(
    denoise: Denoise, noisy: Int[Array, "*B K"], n: Int[Array, "*#B"], schedule: Schedule
) -> Float[Array, "*B K V"]:
    """Returns log of the probabilities of z_{n-1} given z_n at every place.

    That of `posterior`, whose terms are a multiple of the clean probability and a constant, summed
    as logarithms: probabilities that underflow keep their values and gradients.
    """
    alpha_s, alpha_t = (a[..., None] for a in _alphas(schedule, n, noisy))
    clean = log_probs(denoise, noisy, 1.0 - alpha_t[..., 0, 0])
    vocab = clean.shape[-1]
    z = jax.nn.one_hot(noisy, vocab, dtype=clean.dtype)
    ratio = alpha_t / alpha_s
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
) -> Int[Array, "N+1 *B K"]:
    """Draws the states of N steps, the clean sequences first, `states[0]`.

    All N + 1 states are kept: `step_logp` reads them.

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
    denoise = functools.partial(log_probs, denoise, vocab=vocab)
    key_start, key_steps = jax.random.split(key)
    start = jax.random.randint(key_start, (*batch, length), 0, vocab, jnp.int32)

    def step(tokens: Array, n: Array) -> tuple[Array, Array]:
        logits = reverse_logits(denoise, tokens, n, schedule)
        new = jax.random.categorical(jax.random.fold_in(key_steps, n), logits).astype(jnp.int32)
        return new, new

    steps = jnp.arange(schedule.num_steps, 0, -1, dtype=jnp.int32)
    _, states = jax.lax.scan(step, start, steps)
    return jnp.concatenate([states[::-1], start[None]])


def step_logp(
    denoise: Denoise, states: Int[Array, "N+1 *B K"], steps: Int[Array, " S"], *, schedule: Schedule
) -> Float[Array, " S *B"]:
    """Returns log p(z_{n-1} | z_n) of the drawn states at each of S steps n in 1 .. N."""

    def one(n: Array) -> Array:
        logits = reverse_logits(denoise, states[n], n, schedule)
        return jnp.sum(jnp.take_along_axis(logits, states[n - 1][..., None], axis=-1)[..., 0], -1)

    return jax.vmap(one)(steps)


def step_loss(
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    noisy: Int[Array, "*B K"],
    n: Int[Array, "*B"],
    *,
    schedule: Schedule,
) -> Float[Array, "*B"]:
    """Returns N KL(q(z_{n-1} | z_n, x) | q(z_{n-1} | z_n, mu)) summed over places, nats.

    Its mean over n = 1 .. N is the whole bound of -log p: the prior is the law of the last state.

    Args:
        denoise: see `masked.Denoise`.
        tokens: `[*B, K]` clean.
        noisy: `[*B, K]` z_n.
        n: `[*B]` in 1 .. N.
        schedule: N steps.

    Source: arXiv:2412.10193, eq. 14.
    """
    ours = reverse_logits(denoise, noisy, n, schedule)
    alpha_s, alpha_t = _alphas(schedule, n, tokens)
    clean = jax.nn.one_hot(tokens, ours.shape[-1], dtype=ours.dtype)
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

    Source: arXiv:2412.10193, eq. 17.
    """
    mu = jnp.exp(log_probs(denoise, noisy, level))
    vocab = mu.shape[-1]
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
    tokens: Int[Array, "B K"],
    *,
    vocab: int,
    schedule: Schedule | None = None,
) -> Float[Array, " B"]:
    """Estimates the negative evidence bound of each sequence with one level each, nats.

    Args:
        key: PRNG key.
        denoise: see `masked.Denoise`.
        tokens: `[B, K]` clean tokens.
        vocab: V.
        schedule: N steps, or None for continuous time and the linear schedule.

    Raises:
        ValueError: if tokens are no integers or empty, or the denoiser's logits are of others.
    """
    check_tokens(tokens, vocab)
    denoise = functools.partial(log_probs, denoise, vocab=vocab)
    key_level, key_noise = jax.random.split(key)
    batch = tokens.shape[0]
    if schedule is None:
        # At level 1 nothing of the token is left, and 1 / alpha has no bound.
        level = 1.0 - low_discrepancy_levels(key_level, batch)
        level = jnp.maximum(level, LEAST_LEVEL)
        noisy = corrupt(key_noise, tokens, level, vocab=vocab)
        return continuous_loss(denoise, tokens, noisy, level)
    n = schedules.low_discrepancy_steps(key_level, batch, schedule.num_steps)
    noisy = corrupt(key_noise, tokens, schedule.level[n], vocab=vocab)
    return step_loss(denoise, tokens, noisy, n, schedule=schedule)


def _alphas(schedule: Schedule, n: Array, tokens: Array) -> tuple[Array, Array]:
    """Returns alpha at n - 1 and at n for every place."""
    n = jnp.broadcast_to(n[..., None], tokens.shape)
    return schedule.alpha[n - 1], schedule.alpha[n]
