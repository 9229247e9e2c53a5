"""Policies over sequences of tokens: a record of functions, and networks that fill it.

A policy is a denoiser with parameters, of tokens that are hidden, or that are replaced by others.
The factored one sees no token at all, which makes every token independent of the others; a table
sees all and generalizes nothing, for oracles.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.core.types import PyTree
from jaxlab.diffusion.discrete import exact
from jaxlab.diffusion.discrete.masked import Denoise, check_tokens
from jaxlab.nn import Mlp


class TokenPolicy(NamedTuple):
    """A denoiser with parameters.

    Attributes:
        vocab: V, tokens are 0 .. V - 1 and V is hidden.
        length: K tokens of an action.
        init: `init(key) -> params`.
        denoise: `denoise(params) -> Denoise`, which takes soft tokens `[..., K, V + 1]` too: a
            distribution at each place, hidden ones last, which is differentiated through.
    """

    vocab: int
    length: int
    init: Callable[[jax.Array], PyTree]
    denoise: Callable[[PyTree], Denoise]


class RevisingPolicy(NamedTuple):
    """A denoiser with parameters of uniform diffusion, which may revise every token in every step.

    Attributes:
        vocab: V, tokens are 0 .. V - 1; there is no mask.
        length: K tokens of an action.
        init: `init(key) -> params`.
        denoise: `denoise(params) -> Denoise`, which must heed the level of noise.
    """

    vocab: int
    length: int
    init: Callable[[jax.Array], PyTree]
    denoise: Callable[[PyTree], Denoise]


class DenoisingMlp(nn.Module):
    """An MLP on one-hot tokens, hidden ones included: for short sequences.

    Attributes:
        vocab: V.
        length: K.
        hidden: widths of the hidden layers.
    """

    vocab: int
    length: int
    hidden: tuple[int, ...] = (256, 256)

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "*B K"] | Float[Array, "*B K V+1"]
    ) -> Float[Array, "*B K V"]:
        shown = one_hot(tokens, self.vocab + 1)
        flat = shown.reshape(*shown.shape[:-2], -1)
        logits = Mlp(self.hidden, self.length * self.vocab)(flat)
        return logits.reshape(*shown.shape[:-1], self.vocab)


def make_mlp_policy(
    vocab: int, length: int, *, hidden: tuple[int, ...] = (256, 256)
) -> TokenPolicy:
    """Makes a policy of a `DenoisingMlp`.

    Raises:
        ValueError: if a size is below 1.
    """
    check_sizes(vocab, length, *hidden)
    network = DenoisingMlp(vocab, length, hidden)

    def init(key: jax.Array) -> Any:
        return network.init(key, jnp.zeros((1, length), jnp.int32))

    return TokenPolicy(vocab, length, init, _without_level(network.apply))


def make_table_policy(vocab: int, length: int) -> TokenPolicy:
    """Makes a policy with logits of its own for every partial sequence, `[(V + 1)^K, K, V]`.

    Raises:
        ValueError: if a size is below 1.
    """
    check_sizes(vocab, length)
    return TokenPolicy(
        vocab,
        length,
        lambda key: jnp.zeros(((vocab + 1) ** length, length, vocab)),
        exact.table_denoiser,
    )


def make_factored_policy(vocab: int, length: int) -> TokenPolicy:
    """Makes a product of K independent distributions: what a diffusion is held against.

    Its law is the same for every number of steps and every order.

    Raises:
        ValueError: if a size is below 1.
    """
    check_sizes(vocab, length)

    def denoise(params: Array) -> Denoise:
        return lambda tokens, level: jnp.broadcast_to(params, (*level.shape, length, vocab))

    return TokenPolicy(vocab, length, lambda key: jnp.zeros((length, vocab)), denoise)


def one_hot(
    tokens: Int[Array, "*B K"] | Float[Array, "*B K D"], size: int
) -> Float[Array, "*B K D"]:
    """Returns tokens as vectors of this size; soft ones, which are vectors already, as they are.

    Raises:
        ValueError: if soft tokens have another size.
    """
    if jnp.issubdtype(tokens.dtype, jnp.integer):
        return jax.nn.one_hot(tokens, size)
    if tokens.ndim < 2 or tokens.shape[-1] != size:
        raise ValueError(f"soft tokens must be [..., K, {size}], got {tokens.shape}")
    return tokens


def check_corpus(corpus: Int[Array, "num K"], vocab: int, length: int) -> None:
    """Refuses what is no batch of sequences that a policy can draw, with a ValueError."""
    check_tokens(corpus, vocab)
    if corpus.ndim != 2 or corpus.shape[0] < 1 or corpus.shape[1] != length:
        raise ValueError(f"corpus must be [num, {length}] tokens, got {corpus.shape}")


def check_sizes(*sizes: int) -> None:
    """Refuses a vocabulary, length, width or number of layers below 1, with a ValueError."""
    if min(sizes) < 1:
        raise ValueError(f"vocab, length, widths and layers must be at least 1, got {sizes}")


def _without_level(apply: Callable[..., Any]) -> Callable[[PyTree], Denoise]:
    return lambda params: lambda tokens, level: apply(params, tokens)
