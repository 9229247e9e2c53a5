"""Multi-layer perceptrons."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x tanh(softplus(x)). Source: Misra 2019, arXiv:1908.08681."""
    return x * jnp.tanh(jax.nn.softplus(x))


def fan_in_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Draws weights from a normal distribution of std 1/sqrt(fan-in), cut at two of them."""
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    return jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape), dtype) * fan_in**-0.5


class Mlp(nn.Module):
    """Hidden layers with an activation, then a linear one; inputs are joined along the last axis.

    Attributes:
        hidden: widths of the hidden layers.  out: width of the result.
        activation: after every hidden layer.
    """

    hidden: tuple[int, ...]
    out: int
    activation: Callable[[jax.Array], jax.Array] = mish

    @nn.compact
    def __call__(self, *inputs: Float[Array, "... _"]) -> Float[Array, "... out"]:
        x = jnp.concatenate(inputs, axis=-1)
        for width in self.hidden:
            x = self.activation(nn.Dense(width, kernel_init=fan_in_normal)(x))
        return nn.Dense(self.out, kernel_init=fan_in_normal)(x)
