"""What is known of a drawn sequence from the steps in which its tokens were revealed.

A sampler's path is the chain of N states, all hidden first. It need not be kept: the state at n is
the sequence with every token hidden that was revealed at n or later. Its probability is a product
over steps, which a marginal probability of the sequence is not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.diffusion.discrete.masked import (
    Denoise,
    check_mask,
    check_range,
    check_tokens,
    log_probs,
)
from jaxlab.diffusion.discrete.schedules import Schedule


def visited(
    tokens: Int[Array, "... K"], reveal: Int[Array, "... K"], n: int | Int[Array, ""], *, vocab: int
) -> Int[Array, "... K"]:
    """Returns the state at n, int32: tokens that were revealed before, and V for those to come."""
    shown = reveal.astype(jnp.int32) > jnp.asarray(n, jnp.int32)
    return jnp.where(shown, tokens.astype(jnp.int32), vocab)  # eight bits might not hold V


class _Step(NamedTuple):
    """One step n -> n - 1 of many paths: `[*B, K, V]` and `[*B, K]`, all places."""

    logp: Array
    at_token: Array
    hidden: Array
    revealed: Array


def step_logp(
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    reveal: Int[Array, "*B K"],
    steps: Int[Array, " S"],
    *,
    vocab: int,
    schedule: Schedule,
    token_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, " S *B"]:
    """Returns the log-probability of the tokens revealed in each of S steps.

    Which places are revealed has the same chance for all denoisers of an ancestral path, and is
    left out: the sum over all N steps is log p of the path up to a constant of the path.

    Args:
        denoise: see `masked.Denoise`; mapped over S.
        tokens: `[*B, K]` what was drawn.
        reveal: `[*B, K]` in which step, see `sampling.Sample`.
        steps: `[S]` numbers n in 1 .. N, of steps n -> n - 1.
        vocab: V.
        schedule: N steps.
        token_mask: tokens that count; all if None.

    Raises:
        ValueError: if tokens or their mask are not those of a vocabulary, see `masked.nelbo`,
            `reveal` is of another shape, a step is known and not in 1 .. N, or the denoiser's
            logits are of other tokens.

    Source: denoising as a decision process of N steps, Black et al. 2023, arXiv:2305.13301; for
    masked diffusion arXiv:2509.22963, single-step ratios.
    """

    _check(tokens, reveal, steps, vocab, schedule, token_mask)

    def one(n: Array) -> Array:
        step = _step(denoise, tokens, reveal, n, vocab, schedule, token_mask)
        return _sum(step.at_token, step.revealed)

    return jax.vmap(one)(steps.astype(jnp.int32))


class Compared(NamedTuple):
    """Two denoisers at S steps of many paths.

    Attributes:
        logp: `[S, *B]` log-probability of the tokens revealed in each step.
        logp_old: `[S, *B]` the same of the old denoiser, without a gradient.
        kl: `[S, *B]` nats, u_n sum over hidden tokens KL(mu | old). Summed over all steps, in
            expectation over ancestral paths of the new denoiser, it is the divergence of paths, an
            upper bound of KL(pi | pi_old). Over paths of the old one, which are those that are
            kept, it is another number: both vanish with their gradients where the denoisers agree
            and have the same curvature there, so that they differ in the third order alone. The
            price of a hidden token is u_n even of a path of another order than ancestral.
    """

    logp: Float[Array, " S *B"]
    logp_old: Float[Array, " S *B"]
    kl: Float[Array, " S *B"]


def compare_steps(
    denoise: Denoise,
    old: Denoise,
    tokens: Int[Array, "*B K"],
    reveal: Int[Array, "*B K"],
    steps: Int[Array, " S"],
    *,
    vocab: int,
    schedule: Schedule,
    token_mask: Bool[Array, "*B K"] | None = None,
) -> Compared:
    """Returns `step_logp` of both denoisers and their divergence, calling each once a step.

    Args:
        denoise: the new one, see `masked.Denoise`; mapped over S.
        old: the one that drew; no gradient runs into it.
        tokens, reveal, steps, vocab, schedule, token_mask: as for `step_logp`, and refused alike.
    """

    _check(tokens, reveal, steps, vocab, schedule, token_mask)

    def one(n: Array) -> Compared:
        new = _step(denoise, tokens, reveal, n, vocab, schedule, token_mask)
        before = jax.lax.stop_gradient(_step(old, tokens, reveal, n, vocab, schedule, token_mask))
        kl = jnp.sum(jnp.exp(new.logp) * (new.logp - before.logp), axis=-1)
        return Compared(
            _sum(new.at_token, new.revealed),
            _sum(before.at_token, before.revealed),
            schedule.reveal[n] * _sum(kl, new.hidden),
        )

    return jax.vmap(one)(steps.astype(jnp.int32))


def visited_nll(
    denoise: Denoise,
    tokens: Int[Array, "*B K"],
    reveal: Int[Array, "*B K"],
    steps: Int[Array, " S"],
    *,
    vocab: int,
    schedule: Schedule,
    token_mask: Bool[Array, "*B K"] | None = None,
) -> Float[Array, " S *B"]:
    """Returns u_n sum over hidden tokens of -log mu(token) in the states that were visited.

    The terms of the discrete NELBO, with the sampler's own states in place of fresh noise. Given
    the tokens both have one law where the NELBO is equality: of independent tokens, and of true
    conditionals of a joint distribution as N grows, since tokens of one step are drawn as if they
    were independent. Arguments as `step_logp`.

    Source: arXiv:2509.22963, on-policy diffusion learning.
    """

    _check(tokens, reveal, steps, vocab, schedule, token_mask)

    def one(n: Array) -> Array:
        step = _step(denoise, tokens, reveal, n, vocab, schedule, token_mask)
        return -schedule.reveal[n] * _sum(step.at_token, step.hidden)

    return jax.vmap(one)(steps.astype(jnp.int32))


def draw_steps(key: jax.Array, num_steps: int, count: int) -> Int[Array, " S"]:
    """Draws S of the N steps without replacement; all of them in order if S = N.

    Raises:
        ValueError: if S is not in 1 .. N.
    """
    if not 1 <= count <= num_steps:
        raise ValueError(f"count must lie in 1 .. {num_steps}, got {count}")
    if count == num_steps:
        return jnp.arange(1, num_steps + 1, dtype=jnp.int32)
    return 1 + jax.random.permutation(key, num_steps)[:count].astype(jnp.int32)


def _step(
    denoise: Denoise,
    tokens: Array,
    reveal: Array,
    n: Array,
    vocab: int,
    schedule: Schedule,
    token_mask: Array | None,
) -> _Step:
    state = visited(tokens, reveal, n, vocab=vocab)
    level = jnp.broadcast_to(schedule.level[n], tokens.shape[:-1])
    logp = log_probs(denoise, state, level, vocab=vocab)
    at_token = jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
    counts = jnp.ones_like(reveal, bool) if token_mask is None else token_mask
    return _Step(
        logp, at_token, (state == vocab) & counts, (reveal.astype(jnp.int32) == n) & counts
    )


def _check(
    tokens: Array,
    reveal: Array,
    steps: Array,
    vocab: int,
    schedule: Schedule,
    token_mask: Array | None,
) -> None:
    check_tokens(tokens, vocab)
    if reveal.shape != tokens.shape:
        raise ValueError(f"reveal must be {tokens.shape} like tokens, got {reveal.shape}")
    if steps.ndim != 1 or steps.size < 1:
        raise ValueError(f"steps must be [S], one at least, got {steps.shape}")
    check_range("steps", steps, schedule.num_steps, first=1)
    if token_mask is not None:
        check_mask(token_mask, tokens)


def _sum(x: Array, where: Array) -> Array:
    return jnp.sum(jnp.where(where, x, 0.0), axis=-1)
