"""Drawing sequences from a masked denoiser, in N steps, in one of several orders.

How a denoiser is bent before it is drawn from, by temperature or by ruling tokens out, is a
denoiser again (`sharpen`): the probabilities of what was drawn (`path`) are those of that one.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxlab.diffusion.discrete.masked import Denoise, check_numbers, check_range, log_probs
from jaxlab.diffusion.discrete.schedules import Schedule

Order = Literal["ancestral", "random", "drawn", "largest", "margin", "entropy"]
NEVER = -1e9
"""Logit of a token that must not be drawn; -inf would give NaN for gradients."""


class Sample(NamedTuple):
    """What was drawn.

    Attributes:
        tokens: `[*B, K]` int32 in 0 .. V - 1.
        reveal: `[*B, K]` int32, the n of the step n -> n - 1 in which each token was revealed, 1 ..
            N; N + 1 for tokens that were given. With it every state on the way is known, see
            `path.visited`.
        logp: `[N, *B]` log-probability of the tokens revealed in each step, n = 1 first. It is NaN
            where no token of a place could be drawn: the denoiser's logits there are all -inf.
    """

    tokens: Int[Array, "*B K"]
    reveal: Int[Array, "*B K"]
    logp: Float[Array, " N *B"]


def sample(
    key: jax.Array,
    denoise: Denoise,
    batch: tuple[int, ...],
    length: int,
    *,
    vocab: int,
    schedule: Schedule,
    order: Order = "ancestral",
    given: Int[Array, "*B K"] | None = None,
    remask: Float[Array, " N+1"] | None = None,
) -> Sample:
    """Draws sequences with exactly N calls of the denoiser.

    Orders:

    * "ancestral": at the step n -> n - 1 every hidden token is revealed with probability u_n. The
      reverse process itself; its law is bounded by the NELBO of the same schedule.
    * "random": as many tokens as are left over the steps left, rounded up, at random places. With
      N = K its law is bounded by the NELBO of continuous time.
    * by confidence: a token is proposed at every hidden place and the most confident ones are kept,
      K // N a step and one more in the first K mod N. Confidence is the probability of the token
      that was "drawn", the "largest" one, the "margin" of the two largest, or minus the "entropy".
      Papers call it low-confidence remasking. There is no bound on its law; of "drawn" even the
      probability of a path is not the product of the tokens'.

    Args:
        key: PRNG key.
        denoise: see `masked.Denoise`; called on `[*B, K]`.
        batch: shape B of what is drawn.
        length: K.
        vocab: V.
        schedule: N steps. Orders other than "ancestral" take from it N and the level that the
            denoiser is told, which is the share of hidden tokens if it is linear.
        order: see above.
        given: tokens that are known, the others V (infilling).
        remask: `[N + 1]` probability that a token revealed earlier is hidden again by the step n ->
            n - 1, of "ancestral" alone, at most (1 - alpha[n-1]) / alpha[n] so that as many tokens
            as before are visible on average. A path has no probability then: `reveal` is the last
            step in which a token was revealed, and `logp` counts every revealing.

    Raises:
        ValueError: if a size is below 1, there is no such order, given tokens are of another shape
            or, known, not in 0 .. V, tokens are hidden again in another order, or the denoiser's
            logits are of other tokens or, outside of jit, all -inf at a place.

    Source: ancestral arXiv:2406.07524; confidence arXiv:2202.04200; remasking arXiv:2503.00307.
    """
    if length < 1 or vocab < 1 or min(batch, default=1) < 1:
        raise ValueError(
            f"batch, length and vocab must be at least 1, got {batch}, {length} and {vocab}"
        )
    if order not in get_args(Order):
        raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
    if remask is not None and order != "ancestral":
        raise ValueError(f"remask goes with the order ancestral, got {order!r}")
    shape, N = (*batch, length), schedule.num_steps
    if given is not None and given.shape != shape:
        raise ValueError(f"given must be {shape}, got {given.shape}")
    if given is not None:
        check_range("given", given, vocab)
    if remask is not None:
        _check_remask(remask, schedule)
    start = jnp.full(shape, vocab, jnp.int32) if given is None else given.astype(jnp.int32)
    known = start != vocab
    num_free = jnp.sum(~known, axis=-1, dtype=jnp.int32)

    def step(carry: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], Array]:
        tokens, revealed_at = carry
        key_draw, key_order, key_hide = jax.random.split(jax.random.fold_in(key, n), 3)
        hidden = tokens == vocab
        level = jnp.broadcast_to(schedule.level[n], batch)
        logp = log_probs(denoise, tokens, level, vocab=vocab)
        drawn = jax.random.categorical(key_draw, logp).astype(jnp.int32)
        at_drawn = jnp.take_along_axis(logp, drawn[..., None], axis=-1)[..., 0]
        if order == "ancestral":
            chance = schedule.reveal[n]
            if remask is not None:  # hidden tokens make up for those that are hidden again
                chance += remask[n] * schedule.alpha[n] / schedule.level[n]
            reveal = hidden & (jax.random.uniform(key_order, shape) < chance)
        else:
            if order == "random":
                left = jnp.sum(hidden, axis=-1, dtype=jnp.int32)
                count, rank_by = -(-left // n), jax.random.uniform(key_order, shape)
            else:
                count = num_free // N + (N - n < num_free % N).astype(jnp.int32)
                rank_by = _confidence(order, logp, at_drawn)
            reveal = hidden & (_rank(jnp.where(hidden, rank_by, -jnp.inf)) < count[..., None])
        new = jnp.where(reveal, drawn, tokens)
        at = jnp.where(reveal, n, revealed_at)
        if remask is not None:
            again = ~hidden & ~known & (jax.random.uniform(key_hide, shape) < remask[n])
            new = jnp.where(again, vocab, new)
        return (new, at), jnp.sum(jnp.where(reveal, at_drawn, 0.0), axis=-1)

    at = jnp.where(known, N + 1, 0).astype(jnp.int32)
    steps = jnp.arange(N, 0, -1, dtype=jnp.int32)
    (tokens, at), logp = jax.lax.scan(step, (start, at), steps)
    check_numbers(logp)
    return Sample(tokens, at, logp[::-1])


def sharpen(
    denoise: Denoise,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_p: float = 1.0,
    valid: Bool[Array, "*#B #K V"] | None = None,
) -> Denoise:
    """Returns a denoiser that gives the probabilities which are to be drawn from.

    Ruled-out tokens first, then the temperature, then the smallest set of tokens whose probability
    reaches `top_p`. Sample and take probabilities of the same sharpened denoiser.

    Args:
        denoise: see `masked.Denoise`.
        temperature: positive; divides logits.
        top_p: in (0, 1]; 1 keeps all (MD4 samples text with 0.98).
        valid: True where a token may be drawn at a place, one at least at each. Where there is none
            and JAX traces, so that this cannot be refused, logits are NaN.

    Raises:
        ValueError: if an option is out of range, or the mask leaves a place without any token.
    """
    known = not isinstance(temperature, Tracer)
    if known and not np.all((0.0 < np.asarray(temperature)) & (np.asarray(temperature) < math.inf)):
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    if valid is not None and not isinstance(valid, Tracer):
        if not np.asarray(valid).any(axis=-1).all():
            raise ValueError("valid must leave at least one token at every place")

    def sharpened(tokens: Array, level: Array) -> Array:
        logits = denoise(tokens, level)
        if valid is not None:
            logits = jnp.where(jnp.broadcast_to(valid, logits.shape), logits, NEVER)
            some = jnp.any(valid, axis=-1, keepdims=True)
            logits = jnp.where(jnp.broadcast_to(some, logits.shape), logits, jnp.nan)
        logits = logits / temperature
        if top_p < 1.0:
            logits = jnp.where(_nucleus(jax.nn.softmax(logits), top_p), logits, NEVER)
        return logits

    return sharpened


def guide(conditional: Denoise, unconditional: Denoise, weight: float) -> Denoise:
    """Returns the denoiser (1 + w) log mu(.|c) - w log mu, classifier-free guidance.

    Raises:
        ValueError: if the weight is not finite.

    Source: Ho and Salimans 2022, arXiv:2207.12598, eq. 6, on logits.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, got {weight}")

    def guided(tokens: Array, level: Array) -> Array:
        with_condition = log_probs(conditional, tokens, level)
        return (1.0 + weight) * with_condition - weight * log_probs(unconditional, tokens, level)

    return guided


def _check_remask(remask: Array, schedule: Schedule) -> None:
    if remask.shape != schedule.alpha.shape:
        raise ValueError(f"remask must be {schedule.alpha.shape}, got {remask.shape}")
    if isinstance(remask, Tracer) or isinstance(schedule.alpha, Tracer):
        return
    sigma, alpha = np.asarray(remask, np.float64)[1:-1], np.asarray(schedule.alpha, np.float64)
    if not ((sigma >= 0.0) & (sigma * alpha[1:-1] <= 1.0 - alpha[:-2] + 1e-6)).all():
        raise ValueError(
            "remask must lie between 0 and (1 - alpha[n-1]) / alpha[n], which is 0 at n = 1, got "
            f"{remask}"
        )


def _confidence(order: Order, logp: Array, at_drawn: Array) -> Array:
    if order == "drawn":
        return at_drawn
    if order == "largest":
        return jnp.max(logp, axis=-1)
    if order == "margin":
        if logp.shape[-1] == 1:
            return logp[..., 0]
        two = jax.lax.top_k(jnp.exp(logp), 2)[0]
        return two[..., 0] - two[..., 1]
    return jnp.sum(jnp.exp(logp) * logp, axis=-1)


def _rank(x: Array) -> Array:
    """Returns the place of each number in falling order, 0 first."""
    return jnp.argsort(jnp.argsort(-x, axis=-1), axis=-1)


def _nucleus(probs: Array, top_p: float) -> Array:
    """Returns the smallest set of most probable tokens that holds at least `top_p`."""
    order = jnp.argsort(-probs, axis=-1)
    falling = jnp.take_along_axis(probs, order, axis=-1)
    before = jnp.cumsum(falling, axis=-1) - falling
    return jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
