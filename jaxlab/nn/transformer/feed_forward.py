"""SwiGLU, the gated feed-forward layer."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float


class Swiglu(NamedTuple):
    """Weights of one or of E feed-forward layers.

    Attributes:
        gate: `[(E,) D, F]`, into the gates.
        up: `[(E,) D, F]`, into what is gated.
        down: `[(E,) F, D]`, back to the width of the model.
    """

    gate: Float[Array, "... D F"]
    up: Float[Array, "... D F"]
    down: Float[Array, "... F D"]


def init_swiglu(
    key: Array, d_model: int, hidden: int, *, experts: int | None = None, depth: float | Array = 1
) -> Swiglu:
    """Draws weights of variance 1 / fan-in, those of `down` divided by sqrt(2 depth) more.

    Args:
        key: PRNG key for the three matrices.
        d_model: width D of the model.
        hidden: width F between the two products.
        experts: leading axis of the weights, or None for one layer.
        depth: index of the layer from 1, which keeps the residual stream from growing.
    """
    lead = () if experts is None else (experts,)
    keys = jax.random.split(key, 3)
    gate, up = (jax.random.normal(k, (*lead, d_model, hidden)) * d_model**-0.5 for k in keys[:2])
    down = jax.random.normal(keys[2], (*lead, hidden, d_model)) * (2.0 * depth * hidden) ** -0.5
    return Swiglu(gate, up, down)


def swiglu(params: Swiglu, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Returns (silu(x gate) * (x up)) down.

    Source: Shazeer 2020, eq. 6, without biases.
    """
    return (jax.nn.silu(x @ params.gate) * (x @ params.up)) @ params.down
