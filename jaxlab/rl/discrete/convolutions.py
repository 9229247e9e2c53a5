"""A denoiser for long sequences: residual dilated convolutions, such as reads regulatory DNA.

Stark et al. 2024, arXiv:2402.05841, and the released code of arXiv:2410.13643 (DRAKES).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.diffusion.discrete.masked import Denoise
from jaxlab.nn.mlp import fan_in_normal
from jaxlab.rl.discrete.policies import TokenPolicy, check_sizes, one_hot

DILATIONS = (1, 1, 4, 16, 64)


class DenoisingConv(nn.Module):
    """A convolution, layers x + relu(conv(norm(x))) of rising dilation, and a head of two layers.

    Layers of one dilation are scanned.

    Attributes:
        vocab: V.
        hidden: channels of all layers.
        repeats: layers of each dilation: 4 make the 20 layers of the published network.
        width: places that a convolution covers, odd.
        dilations: distance between them, by group of layers.
    """

    vocab: int
    hidden: int = 128
    repeats: int = 4
    width: int = 9
    dilations: tuple[int, ...] = DILATIONS

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "*B L"] | Float[Array, "*B L V+1"]
    ) -> Float[Array, "*B L V"]:
        H = self.hidden
        shown = one_hot(tokens, self.vocab + 1)
        x = shown.reshape(-1, *shown.shape[-2:])
        first = self.param("first", fan_in_normal, (self.width, self.vocab + 1, H))
        bias = self.param("first_bias", nn.initializers.zeros_init(), (H,))
        x = jax.nn.relu(dilated_conv(x, first, 1) + _wide(bias, x.ndim))
        shapes = {
            "kernel": (self.repeats, self.width, H, H),
            "bias": (self.repeats, H),
            "scale": (self.repeats, H),
            "shift": (self.repeats, H),
        }
        starts: dict[str, Any] = {
            "kernel": _stacked,
            "bias": nn.initializers.zeros_init(),
            "scale": nn.initializers.ones_init(),
            "shift": nn.initializers.zeros_init(),
        }
        for i, dilation in enumerate(self.dilations):
            layers = {
                name: self.param(f"layers_{i}_{name}", starts[name], shape)
                for name, shape in shapes.items()
            }

            def layer(
                x: Array, w: dict[str, Array], dilation: int = dilation
            ) -> tuple[Array, None]:
                h = _layer_norm(x) * _wide(w["scale"], x.ndim) + _wide(w["shift"], x.ndim)
                h = dilated_conv(h, w["kernel"], dilation) + _wide(w["bias"], x.ndim)
                return x + jax.nn.relu(h), None

            x, _ = jax.lax.scan(layer, x, layers)
        x = jax.nn.relu(nn.Dense(H, kernel_init=fan_in_normal)(x))
        logits = nn.Dense(self.vocab, kernel_init=nn.initializers.zeros_init())(x)
        return logits.reshape(*shown.shape[:-1], self.vocab)


def make_conv_policy(
    vocab: int, length: int, *, hidden: int = 128, repeats: int = 4
) -> TokenPolicy:
    """Makes a policy of a `DenoisingConv`; the defaults are the published network's.

    Raises:
        ValueError: if a size is below 1.
    """
    check_sizes(vocab, length, hidden, repeats)
    network = DenoisingConv(vocab, hidden, repeats)

    def denoise(params: Any) -> Denoise:
        return lambda tokens, level: network.apply(params, tokens)  # pyright: ignore

    return TokenPolicy(
        vocab, length, lambda key: network.init(key, jnp.zeros((1, length), jnp.int32)), denoise
    )


def dilated_conv(
    x: Float[Array, "B L C"], kernel: Float[Array, "W C D"], dilation: int
) -> Float[Array, "B L D"]:
    """Returns the convolution of the same length, zero beyond both ends, W odd.

    On a CPU its gradient is written out, since XLA's is ten times slower and more in loops: that of
    the sequences is a convolution like this one, that of the kernel a product for each of its
    places. Kernels of several seeds take their turns there, and sequences no longer than the kernel
    are a sum of products, both for speed.
    """
    short = functools.partial(_sum_of_products, dilation=dilation)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=short if x.shape[1] <= kernel.shape[0] else _on_cpu(dilation),
        default=functools.partial(_convolution, dilation=dilation),
    )


def _sum_of_products(x: Array, kernel: Array, *, dilation: int) -> Array:
    shifted, reached = _places(x, kernel, dilation)
    y = shifted[0] @ reached[0]
    for i in range(1, len(shifted)):
        y += shifted[i] @ reached[i]
    return y


def _places(x: Array, kernel: Array, dilation: int) -> tuple[list[Array], Array]:
    """Shifted copies of x for the places of the kernel that reach the sequence, and those."""
    length, middle = x.shape[1], kernel.shape[0] // 2
    reach = min(middle, (length - 1) // dilation)
    padded = jnp.pad(x, ((0, 0), (reach * dilation, reach * dilation), (0, 0)))
    starts = range(0, (2 * reach + 1) * dilation, dilation)
    return [padded[:, i : i + length] for i in starts], kernel[middle - reach : middle + reach + 1]


@functools.cache
def _on_cpu(dilation: int) -> Callable[[Array, Array], Array]:
    """Returns the convolution with its gradient; under a vmap, kernels take their turns."""

    @jax.custom_batching.sequential_vmap
    def forward(x: Array, kernel: Array) -> Array:
        return _convolution(x, kernel, dilation=dilation)

    @jax.custom_batching.sequential_vmap
    def backward(x: Array, kernel: Array, given: Array) -> tuple[Array, Array]:
        of_x = _convolution(given, jnp.flip(kernel, 0).swapaxes(1, 2), dilation=dilation)
        shifted, reached = _places(x, kernel, dilation)
        # The transpose of what is given is one copy for all places.
        products = jnp.stack([jnp.einsum("bld,blc->dc", given, y).T for y in shifted])
        beyond = (kernel.shape[0] - reached.shape[0]) // 2
        return of_x, jnp.pad(products, ((beyond, beyond), (0, 0), (0, 0)))

    @jax.custom_vjp
    def convolve(x: Array, kernel: Array) -> Array:
        return forward(x, kernel)

    convolve.defvjp(lambda *given: (forward(*given), given), lambda kept, y: backward(*kept, y))
    return convolve


def _convolution(x: Array, kernel: Array, *, dilation: int) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), "SAME", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
    )


def _layer_norm(x: Array) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def _stacked(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws kernels of several layers, each by its own fan-in."""
    return jax.vmap(lambda key: fan_in_normal(key, shape[1:]))(jax.random.split(key, shape[0]))


def _wide(x: Array, rank: int) -> Array:
    return x.reshape((1,) * (rank - 1) + (-1,))
