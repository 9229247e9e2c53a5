"""The attention layers that are compared, and models of equal parameters around them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.mfa_quality import tasks
from jaxlab.serving.model import attention, decoder, factorized, latent
from jaxlab.serving.model.attention import Layer

REFERENCE = "MHA"
"""The layer whose model, with a feed-forward layer of 8/3 the width, sets the parameters."""


class Model(NamedTuple):
    """A language model with one kind of attention.

    Attributes:
        decoder: The model, see `serving.decoder`.
        cached: Elements of cache that a token leaves in a layer.
        num_parameters: Parameters of all blocks, embedding and head left out.
        hidden: Width of the feed-forward layers.
    """

    decoder: decoder.Decoder
    cached: int
    num_parameters: int
    hidden: int


def _mha(D: int, depth: int) -> Layer:
    return attention.make_gqa(D, 4, depth=depth)


def _gqa(D: int, depth: int) -> Layer:
    return attention.make_gqa(D, 4, num_kv_heads=2, depth=depth)


def _mqa(D: int, depth: int) -> Layer:
    return attention.make_gqa(D, 4, num_kv_heads=1, depth=depth)


def _mla(D: int, depth: int) -> Layer:
    rope = D // 4  # of D/2 cached elements: the more of them rotate, the better at this size
    return latent.make_mla(
        D, 4, q_rank=D // 2, kv_rank=D // 2 - rope, head_dim=D // 4, rope_dim=rope, depth=depth
    )


def _mfa(D: int, depth: int) -> Layer:
    return factorized.make_mfa(_mfa_config(D, depth))


def _mfa_kr(D: int, depth: int) -> Layer:
    return factorized.make_mfa(_mfa_config(D, depth)._replace(key_reuse=True))


def _mfa_config(D: int, depth: int) -> factorized.MfaConfig:
    return factorized.MfaConfig(D, num_heads=8, head_dim=D // 4, q_rank=D // 2, depth=depth)


TABLE: dict[str, Callable[[int, int], Layer]] = {
    "MHA": _mha,
    "GQA": _gqa,
    "MQA": _mqa,
    "MLA": _mla,
    "MFA": _mfa,
    "MFA-KR": _mfa_kr,
}
"""By name, `make(d_model, depth)`. A token leaves 2D elements a layer with MHA, D with GQA, D/2
with MQA, MLA and MFA, D/4 with MFA-KR."""


def make_model(name: str, d_model: int, num_layers: int) -> Model:
    """Makes the model whose feed-forward layers are as wide as equal parameters allow.

    Raises:
        ValueError: if there is no such layer.
    """
    if name not in TABLE:
        raise ValueError(f"variants must be among {', '.join(TABLE)}, got {name!r}")
    layers = [TABLE[name](d_model, depth + 1) for depth in range(num_layers)]
    budget = _size(TABLE[REFERENCE](d_model, 1)) + 8 * d_model**2
    hidden = round((budget - _size(layers[0])) / (3 * d_model))
    model = decoder.make_decoder(layers, vocab=tasks.VOCAB, d_model=d_model, hidden=hidden)
    blocks = jax.eval_shape(model.init, jax.random.key(0)).blocks
    return Model(model, layers[0].cached, _count(blocks), hidden)


def _size(layer: Layer) -> int:
    return _count(jax.eval_shape(layer.init, jax.random.key(0)))


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
