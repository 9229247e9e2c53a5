"""Small cases in full: laws of samplers, bounds and best denoisers, by enumeration.

A partial sequence is numbered by its K digits in base V + 1, the last digit fastest, and a clean
one by its digits in base V: a table denoiser is `[(V + 1)^K, K, V]`, a distribution `[V^K]`. What
learned denoisers are held against, and what makes tasks of a few thousand sequences exact.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.diffusion.discrete import uniform
from jaxlab.diffusion.discrete.masked import Denoise, log_probs
from jaxlab.diffusion.discrete.schedules import Schedule

LARGEST = 5_000
"""Most partial sequences that are enumerated; a law needs the square of their number."""


def sequences(vocab: int, length: int) -> np.ndarray:
    """Returns all sequences of K digits below V, `[V^K, K]` int32 in the order of their number.

    Raises:
        ValueError: if a size is below 1, or there are more than a million.
    """
    if vocab < 1 or length < 1:
        raise ValueError(f"vocab and length must be at least 1, got {vocab} and {length}")
    if length * math.log(vocab) > math.log(1e6):
        raise ValueError(f"{vocab}^{length} sequences are too many to enumerate")
    digits = np.indices((vocab,) * length).reshape(length, -1).T
    return np.ascontiguousarray(digits, np.int32)


def number(tokens: Int[Array, "... K"], base: int) -> Int[Array, "..."]:
    """Returns the number of each sequence, its digits in the given base."""
    powers = jnp.asarray(base ** np.arange(tokens.shape[-1] - 1, -1, -1), jnp.int32)
    return tokens.astype(jnp.int32) @ powers


def table_denoiser(logits: Float[Array, "S K V"]) -> Denoise:
    """Returns the denoiser that looks a partial sequence up in a table, whatever the level.

    Of soft tokens `[..., K, V + 1]` it is the mean over all partial sequences that they may be.
    """
    length, vocab = logits.shape[1:]

    def denoise(tokens: jax.Array, level: jax.Array) -> jax.Array:
        if jnp.issubdtype(tokens.dtype, jnp.integer):
            return logits[number(tokens, vocab + 1)]
        rows = _outer(tokens.reshape(-1, length, vocab + 1))
        blend = jnp.einsum("bs,skv->bkv", rows, logits, precision="highest")
        return blend.reshape(*tokens.shape[:-1], vocab)

    return denoise


def conditionals(joint: Float[Array, " V^K"], *, vocab: int, length: int) -> Float[Array, "S K V"]:
    """Returns log of the true conditionals of a joint distribution, given every partial sequence.

    The best denoiser. Where the visible tokens have probability 0 it is uniform, and at a visible
    place it is one-hot; neither is ever read.

    Args:
        joint: `[V^K]` probabilities.
        vocab: V.
        length: K.

    Raises:
        ValueError: if there is not one for each sequence, or they are no distribution.
    """
    probs = np.asarray(joint, np.float64)
    if probs.shape != (vocab**length,) or not (probs >= 0.0).all() or abs(probs.sum() - 1.0) > 1e-3:
        raise ValueError(
            f"joint must be {vocab**length} probabilities of sum 1, got shape {probs.shape}, sum "
            f"{probs.sum():.4g}"
        )
    probs = probs.reshape((vocab,) * length)
    table = np.zeros(((vocab + 1,) * length) + (length, vocab))
    for partial in itertools.product(range(vocab + 1), repeat=length):
        slices = tuple(slice(None) if x == vocab else slice(x, x + 1) for x in partial)
        seen = probs[slices]
        total = seen.sum()
        for k in range(length):
            other = tuple(i for i in range(length) if i != k)
            marginal = seen.sum(axis=other)
            if partial[k] != vocab:
                table[(*partial, k, partial[k])] = 1.0
            else:
                table[(*partial, k)] = marginal / total if total > 0.0 else 1.0 / vocab
    with np.errstate(divide="ignore"):
        logs = np.log(table.reshape(-1, length, vocab))
    return jnp.asarray(np.maximum(logs, -1e9), jnp.zeros(()).dtype)


def sampler_law(
    denoise: Denoise, schedule: Schedule, *, vocab: int, length: int
) -> Float[Array, " V^K"]:
    """Returns the law of ancestral sampling: the probability of every sequence.

    By passing the probability of all partial sequences from step to step; `denoise` may be traced
    and is differentiated through.

    Raises:
        ValueError: if there are too many partial sequences.
    """
    logp, partial = _all_log_probs(denoise, schedule, vocab, length)
    hidden = jnp.asarray(partial == vocab)
    # The sequence that is all hidden has the last number.
    state = jnp.zeros(partial.shape[0], logp.dtype).at[-1].set(1.0)
    stay = jax.nn.one_hot(partial, vocab + 1, dtype=logp.dtype)

    def step(state: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        chance, logp = at
        wait = jnp.broadcast_to(1.0 - chance, (*logp.shape[:-1], 1))
        revealed = jnp.concatenate([chance * jnp.exp(logp), wait], axis=-1)
        spread = _outer(jnp.where(hidden[..., None], revealed, stay))
        return jnp.matmul(state, spread, precision="highest"), None

    chances = schedule.reveal[1:].astype(logp.dtype)
    state, _ = jax.lax.scan(step, state, (chances, logp), reverse=True)
    return state[np.flatnonzero((partial != vocab).all(axis=1))]


def uniform_sampler_law(
    denoise: Denoise, schedule: Schedule, *, vocab: int, length: int
) -> Float[Array, " V^K"]:
    """Returns the law of sampling with uniform noise, see `uniform.sample`.

    Raises:
        ValueError: if there are too many sequences.
    """
    clean = sequences(vocab, length)
    _check_number(clean.shape[0])
    tokens = jnp.asarray(clean)

    def step(state: Array, n: Array) -> tuple[Array, None]:
        logits = uniform.reverse_logits(denoise, tokens, n, vocab=vocab, schedule=schedule)
        spread = _outer(jnp.exp(logits))
        return jnp.matmul(state, spread, precision="highest"), None

    start = jnp.full(clean.shape[0], 1.0 / clean.shape[0])
    steps = jnp.arange(schedule.num_steps, 0, -1, dtype=jnp.int32)
    return jax.lax.scan(step, start, steps)[0]


def nelbo_steps(
    denoise: Denoise, schedule: Schedule, *, vocab: int, length: int
) -> Float[Array, " V^K"]:
    """Returns the discrete NELBO of every sequence, its expectation over noise taken exactly."""
    logp, _ = _all_log_probs(denoise, schedule, vocab, length)
    clean = sequences(vocab, length)
    hidden, rows = _maskings(clean, vocab)
    at_token = logp[:, rows[..., None], np.arange(length), clean[:, None, :]]  # [N, V^K, 2^K, K]
    nll = -jnp.sum(jnp.where(jnp.broadcast_to(hidden, at_token.shape), at_token, 0.0), axis=-1)
    size = jnp.asarray(hidden.sum(axis=1), schedule.alpha.dtype)[None]
    level, reveal = (x[1:, None] for x in (schedule.level, schedule.reveal))
    weight = reveal * level**size * (1.0 - level) ** (length - size)  # [N, 2^K]
    return jnp.einsum("nsh,nh->s", nll, weight.astype(nll.dtype), precision="highest")


def nelbo_subsets(denoise: Denoise, *, vocab: int, length: int) -> Float[Array, " V^K"]:
    """Returns the continuous-time NELBO of every sequence as a sum over sets of hidden tokens.

    sum over S of (|S| - 1)! (K - |S|)! / K! times -log mu over S: exact for every schedule, and
    the same as the mean over all orders of revealing tokens one by one (`nelbo_orders`). It is for
    denoisers that do not depend on the level; they are told |S| / K.
    """
    clean = sequences(vocab, length)
    hidden, _ = _maskings(clean, vocab)
    size = hidden.sum(axis=1)
    weight = [
        math.factorial(s - 1) * math.factorial(length - s) / math.factorial(length) if s else 0.0
        for s in size
    ]
    noisy = np.where(hidden, vocab, clean[:, None, :])
    level = jnp.broadcast_to(jnp.asarray(size / length), noisy.shape[:-1])
    logp = log_probs(denoise, jnp.asarray(noisy), level, vocab=vocab)
    at_token = jnp.take_along_axis(logp, clean[:, None, :, None], axis=-1)[..., 0]
    nll = -jnp.sum(jnp.where(jnp.broadcast_to(hidden, at_token.shape), at_token, 0.0), axis=-1)
    return jnp.matmul(nll, jnp.asarray(weight, nll.dtype), precision="highest")


def nelbo_orders(denoise: Denoise, *, vocab: int, length: int) -> Float[Array, " V^K"]:
    """Returns the mean over all K! orders of -log of revealing a sequence token by token."""
    clean = sequences(vocab, length)
    total = jnp.zeros(clean.shape[0])
    orders = list(itertools.permutations(range(length)))
    for order in orders:
        for j, place in enumerate(order):
            noisy = clean.copy()
            noisy[:, list(order[j:])] = vocab
            level = jnp.full(clean.shape[0], (length - j) / length)
            logp = log_probs(denoise, jnp.asarray(noisy), level, vocab=vocab)
            total -= logp[np.arange(clean.shape[0]), place, clean[:, place]]
    return total / len(orders)


def _all_log_probs(
    denoise: Denoise, schedule: Schedule, vocab: int, length: int
) -> tuple[Array, np.ndarray]:
    """Returns log mu `[N, S, K, V]` of all partial sequences at every level, and these."""
    partial = sequences(vocab + 1, length)
    _check_number(partial.shape[0])

    def at(level: Array) -> Array:
        levels = jnp.full(partial.shape[0], level)
        return log_probs(denoise, jnp.asarray(partial), levels, vocab=vocab)

    return jax.vmap(at)(schedule.level[1:]), partial


def _check_number(number: int) -> None:
    if number > LARGEST:
        raise ValueError(f"{number} sequences are too many to enumerate, at most {LARGEST}")


def _maskings(clean: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns all subsets `[2^K, K]` bool and the numbers `[V^K, 2^K]` of sequences so hidden."""
    length = clean.shape[1]
    hidden = sequences(2, length).astype(bool)
    noisy = np.where(hidden, vocab, clean[:, None, :])
    return hidden, np.asarray(noisy @ (vocab + 1) ** np.arange(length - 1, -1, -1))


def _outer(rows: Float[Array, "S K D"]) -> Float[Array, "S D^K"]:
    """Returns for each row the product of its K distributions, over all combinations."""
    product = rows[:, 0]
    for k in range(1, rows.shape[1]):
        product = (product[:, :, None] * rows[:, k, None, :]).reshape(rows.shape[0], -1)
    return product
