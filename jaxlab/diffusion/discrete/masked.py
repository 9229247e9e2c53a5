"""Masked (absorbing) diffusion: tokens are hidden one by one, a denoiser says what they were.

The clean sequence is `[K]` integers in 0 .. V - 1; a hidden token is V, the mask. A denoiser gives
logits of the clean token at every place, and only those of hidden places are read: what is visible
stays. Its second argument is the level of noise, the share of tokens that are hidden on average;
the best denoiser of this process does not depend on it, and it may be ignored.

Austin et al. 2021, arXiv:2107.03006; Sahoo et al. 2024, arXiv:2406.07524; Shi et al. 2024,
arXiv:2406.04329.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import Mean
from jaxlab.diffusion.discrete import schedules
from jaxlab.diffusion.discrete.schedules import Schedule

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""`denoise(tokens [..., K], level [...]) -> logits [..., K, V]`; conditions are closed over."""
Weighting = Literal["elbo", "uniform"]
LEAST_LEVEL = 1e-3
"""Least level of noise in continuous time, where the weight of a hidden token is 1 / level."""


def corrupt(
    key: jax.Array,
    tokens: Int[Array, "... K"],
    level: Float[Array, "..."],
    *,
    vocab: int,
    keep: Bool[Array, "... K"] | None = None,
) -> Int[Array, "... K"]:
    """Hides each token with the probability `level` of its sequence.

    Args:
        key: PRNG key.
        tokens: `[..., K]` clean tokens.
        level: `[...]` in [0, 1].
        vocab: V; hidden tokens become V, in int32.
        keep: tokens that may stay visible; the others are hidden always. All if None.

    Source: arXiv:2406.07524, eq. 3.
    """
    uniform = jax.random.uniform(key, tokens.shape, level.dtype)
    hidden = uniform < level[..., None]
    if keep is not None:
        hidden |= ~keep
    return jnp.where(hidden, vocab, tokens.astype(jnp.int32))  # eight bits might not hold V


def log_probs(
    denoise: Denoise,
    noisy: Int[Array, "... K"],
    level: Float[Array, "..."],
    *,
    vocab: int | None = None,
) -> Float[Array, "... K V"]:
    """Returns log mu of a denoiser, in float32 or wider.

    Raises:
        ValueError: if V is given, and logits are of another number of tokens, such as the mask too.
    """
    logits = denoise(noisy, level)
    if vocab is not None and logits.shape[-1] != vocab:
        raise ValueError(
            f"the denoiser must give logits [..., K, {vocab}], of all tokens and not of the mask, "
            f"got {logits.shape}"
        )
    if jnp.finfo(logits.dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    return jax.nn.log_softmax(logits)


def hidden_nll(
    denoise: Denoise,
    tokens: Int[Array, "... K"],
    noisy: Int[Array, "... K"],
    level: Float[Array, "..."],
    *,
    vocab: int,
    counts: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """Returns the sum of -log mu(token) over the hidden tokens of each sequence, nats.

    Args:
        denoise: see `Denoise`.
        tokens: `[..., K]` clean tokens.
        noisy: `[..., K]` the same with some hidden.
        level: `[...]` level of noise.
        vocab: V.
        counts: tokens that count; all if None.
    """
    logp = log_probs(denoise, noisy, level, vocab=vocab)
    at_token = jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
    hidden = noisy == vocab
    if counts is not None:
        hidden &= counts
    return jnp.sum(jnp.where(hidden, -at_token, 0.0), axis=-1)


def nelbo(
    key: jax.Array,
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    *,
    vocab: int,
    schedule: Schedule | None = None,
    replicates: int = 1,
    weighting: Weighting = "elbo",
    token_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, "*B"]:
    """Estimates the negative evidence bound of each sequence: at least -log of its probability.

    In continuous time (no schedule) E_t[(1 / t) sum of -log mu over hidden tokens], the level t
    uniform in [1e-3, 1] and spread evenly over sequences and replicates. It is the same for every
    schedule, bounds the law of sampling in a random order one token a step, and is exactly the
    negative logarithm if the denoiser knows the true conditionals.

    With a schedule of N steps N E_n[u_n sum ...], n uniform in 1 .. N, which bounds the law of
    ancestral sampling with that schedule, and equals it for N = 1.

    Two calls with the same key hide the same tokens, so that a difference of two denoisers is not
    drowned in noise.

    Args:
        key: PRNG key for levels and for what is hidden.
        denoise: see `Denoise`; called on `[R, *B, K]`, R replicates.
        tokens: `[*B, K]` clean tokens.
        vocab: V.
        schedule: N steps, or None for continuous time.
        replicates: draws R of level and mask for each sequence, averaged.
        weighting: "elbo" as above; "uniform" leaves the weights 1 / t and N u_n out: the plain
            cross-entropy of hidden tokens, which is no bound.
        token_mask: tokens that count, such as actions that were carried out; the others are hidden
            from the denoiser and not in the sum. All if None.

    Returns:
        Nats.

    Raises:
        ValueError: if tokens are not integers, there is no replicate, no such weighting, a mask is
            of another shape or, known, leaves no token of a sequence, or the denoiser's logits are
            of other tokens or, outside of jit, all -inf at a place.

    Source: arXiv:2406.07524, eq. 10 and appendix; discrete steps arXiv:2107.03006, eq. 1.
    """
    check_tokens(tokens, vocab)
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {replicates}")
    if weighting not in get_args(Weighting):
        raise ValueError(
            f"weighting must be one of {', '.join(get_args(Weighting))}, got {weighting!r}"
        )
    if token_mask is not None:
        check_mask(token_mask, tokens)
    batch = (replicates, *tokens.shape[:-1])
    key_level, key_order, key_hide = jax.random.split(key, 3)
    size = math.prod(batch)
    if schedule is None:
        level = schedules.low_discrepancy_levels(key_level, size, least=LEAST_LEVEL)
        weight = 1.0 / level
    else:
        n = schedules.low_discrepancy_steps(key_level, size, schedule.num_steps)
        level, weight = schedule.level[n], schedule.num_steps * schedule.reveal[n]
    # Else the levels of one sequence's replicates would be neighbors.
    order = jax.random.permutation(key_order, size)
    level, weight = (x[order].reshape(batch) for x in (level, weight))
    clean = jnp.broadcast_to(tokens, (*batch, tokens.shape[-1]))
    counts = None if token_mask is None else jnp.broadcast_to(token_mask, clean.shape)
    noisy = corrupt(key_hide, clean, level, vocab=vocab, keep=counts)
    nll = hidden_nll(denoise, clean, noisy, level, vocab=vocab, counts=counts)
    check_numbers(nll)
    return jnp.mean(weight * nll if weighting == "elbo" else nll, axis=0)


def band_losses(
    key: jax.Array,
    denoise: Denoise,
    tokens: Int[Array, "B K"],
    *,
    vocab: int,
    num_bands: int = 4,
    token_mask: Bool[Array, "B K"] | None = None,
) -> Mean:
    """Returns the mean -log mu of a hidden token at rising levels of noise, `[num_bands]` nats.

    Sequences are dealt to bands of equal width in turn, each with a level drawn in its band. It is
    kept as sum and count: in a band of low noise it may be that no token was hidden.

    Args:
        key: PRNG key.
        denoise: see `Denoise`.
        tokens: `[B, K]` clean tokens.
        vocab: V.
        num_bands: number of bands, at most B.
        token_mask: tokens that count, the others are hidden always, as in `nelbo`; all if None.

    Raises:
        ValueError: if there are more bands than sequences, or the mask is none of these tokens.
    """
    check_tokens(tokens, vocab)
    if token_mask is not None:
        check_mask(token_mask, tokens)
    key_level, key_hide = jax.random.split(key)
    band, level = schedules.band_levels(key_level, tokens.shape[0], num_bands)
    noisy = corrupt(key_hide, tokens, level, vocab=vocab, keep=token_mask)
    nll = hidden_nll(denoise, tokens, noisy, level, vocab=vocab, counts=token_mask)
    hidden = noisy == vocab if token_mask is None else (noisy == vocab) & token_mask
    hidden = jnp.sum(hidden, axis=-1).astype(nll.dtype)
    total, count = (jax.ops.segment_sum(x, jnp.asarray(band), num_bands) for x in (nll, hidden))
    return Mean(total, count)


def check_tokens(tokens: Int[Array, "... K"], vocab: int) -> None:
    """Refuses what is no batch of sequences over a vocabulary.

    Raises:
        ValueError: if the vocabulary or a sequence is empty, or tokens are not integers or, known,
            not below V: the mask is none of them.
    """
    if vocab < 1:
        raise ValueError(f"vocab must be at least 1, got {vocab}")
    if tokens.ndim < 1 or tokens.shape[-1] < 1:
        raise ValueError(f"tokens must be [..., K] with K at least 1, got {tokens.shape}")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype}")
    check_range("tokens", tokens, vocab - 1)


def check_range(name: str, tokens: Int[Array, "..."], last: int, *, first: int = 0) -> None:
    """Refuses integers that are known and not in first .. last, with a ValueError."""
    if isinstance(tokens, Tracer) or tokens.size == 0:
        return
    low, high = int(np.min(np.asarray(tokens))), int(np.max(np.asarray(tokens)))
    if low < first or high > last:
        raise ValueError(f"{name} must be in {first} .. {last}, got {low} .. {high}")


def check_numbers(logp: Float[Array, "..."]) -> None:
    """Refuses log-probabilities that are known and NaN, with a ValueError."""
    if not isinstance(logp, Tracer) and np.isnan(np.asarray(logp)).any():
        raise ValueError(
            "the denoiser must leave a token at every place, got logits that are all -inf, or NaN"
        )


def check_mask(token_mask: Bool[Array, "... K"], tokens: Int[Array, "... K"]) -> None:
    """Refuses a mask that is not of the tokens, or is known to leave none of a sequence.

    Raises:
        ValueError: see above.
    """
    if token_mask.shape != tokens.shape:
        raise ValueError(f"token_mask must be {tokens.shape} like tokens, got {token_mask.shape}")
    if not isinstance(token_mask, Tracer) and not np.asarray(token_mask).any(axis=-1).all():
        raise ValueError("token_mask must leave at least one token of every sequence")
