"""Multi-layer perceptrons."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x tanh(softplus(x)), with one exponential.

    tanh(log(1 + n)) = m / (m + 2) with n = e^x and m = n (n + 2); beyond 20 it is 1 in floats.

    Source: Misra 2019, arXiv:1908.08681.
    """
    n = jnp.exp(jnp.minimum(x, 20.0))
    m = n * (n + 2.0)
    return x * (m / (m + 2.0))


def fan_in_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Draws weights from a normal distribution of std 1/sqrt(fan-in), cut at two of them."""
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    return jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape), dtype) * fan_in**-0.5


def orthogonal(scale: float = 1.0) -> Callable[..., jax.Array]:
    """Makes an initializer of orthogonal weights: `scale` times rows or columns of length 1.

    The weights are those of `flax.linen.initializers.orthogonal` up to rounding: the columns of a
    normal matrix are made orthonormal from left to right, each twice, which leaves no error that
    grows. No LAPACK: two batches of its calls in one program, as a `vmap` over seeds makes of two
    layers, can wait for each other for ever on a CPU.

    Args:
        scale: length of a row or column; sqrt(2) before a ReLU.

    Returns:
        `init(key, shape, dtype) -> weights`, shape `[..., in, out]` of two axes or more, the
        leading ones counting as inputs.

    Source: Saxe, McClelland, Ganguli 2014, arXiv:1312.6120.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = float) -> jax.Array:
        if len(shape) < 2:
            raise ValueError(f"orthogonal weights must have two axes or more, got {tuple(shape)}")
        outputs = shape[-1]
        inputs = math.prod(shape[:-1])
        normal = jax.random.normal(key, (max(inputs, outputs), min(inputs, outputs)), dtype)
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

        def one(column: Any, found: jax.Array) -> jax.Array:
            rest = normal[:, column]
            for _ in range(2):
                rest = rest - product(found, product(rest, found))
            return found.at[:, column].set(rest / jnp.linalg.norm(rest))

        columns = jax.lax.fori_loop(0, normal.shape[1], one, jnp.zeros_like(normal))
        weights = columns if inputs >= outputs else columns.T
        return scale * weights.reshape(shape)

    return init


class JoinedDense(nn.Module):
    """A linear layer of several inputs as if they were joined along their last axis.

    Where leading axes differ, each meets its own rows of the kernel before the sum: an input whose
    axis is 1 where others have K is multiplied once, and nothing is repeated.

    Attributes:
        features: width of the result.
        kernel_init: `kernel_init(key, shape, dtype) -> weights` of all inputs joined.
        use_bias: whether a bias is added.
    """

    features: int
    kernel_init: Callable[..., jax.Array] = fan_in_normal
    use_bias: bool = True

    @nn.compact
    def __call__(self, *inputs: Float[Array, "... _"]) -> Float[Array, "... features"]:
        ends = list(itertools.accumulate(x.shape[-1] for x in inputs))
        kernel = self.param("kernel", self.kernel_init, (ends[-1], self.features))
        if len({x.shape[:-1] for x in inputs}) == 1:
            joined = jnp.concatenate(inputs, axis=-1) @ kernel
        else:
            parts = jnp.split(kernel, ends[:-1])
            products = [x @ rows for x, rows in zip(inputs, parts, strict=True)]
            joined = functools.reduce(jnp.add, products)
        if not self.use_bias:
            return joined
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return joined + bias.reshape((1,) * (joined.ndim - 1) + (-1,))


class Mlp(nn.Module):
    """Hidden layers with an activation, then a linear one.

    Inputs have equal ranks; their leading axes broadcast, see `JoinedDense`.

    Attributes:
        hidden: widths of the hidden layers.
        out: width of the result.
        activation: function that follows every hidden layer.
        kernel_init: `kernel_init(key, shape, dtype) -> weights` of every layer.
        out_bias: whether the last layer has a bias.
    """

    hidden: tuple[int, ...]
    out: int
    activation: Callable[[jax.Array], jax.Array] = mish
    kernel_init: Callable[..., jax.Array] = fan_in_normal
    out_bias: bool = True

    @nn.compact
    def __call__(self, *inputs: Float[Array, "... _"]) -> Float[Array, "... out"]:
        for i, width in enumerate(self.hidden):
            layer = JoinedDense(width, self.kernel_init, name=f"layer_{i}")
            inputs = (self.activation(layer(*inputs)),)
        last = f"layer_{len(self.hidden)}"
        return JoinedDense(self.out, self.kernel_init, self.out_bias, name=last)(*inputs)
