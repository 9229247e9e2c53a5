"""The convolutional network of diffusion models: residual blocks on a ladder of resolutions.

Song et al. 2021, arXiv:2011.13456 ("DDPM++"), as Karras et al. 2022, arXiv:2206.00364 build it.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_init = nn.initializers.xavier_uniform()
SMALL = 1e-5
"""Factor of the weights that begin a block near zero."""
SKIP = math.sqrt(0.5)
"""Factor of a sum of two branches, which keeps its variance."""
EPSILON = 1e-6
"""Added to variances."""


class Unet(nn.Module):
    """Maps images and a level of noise to images of the same shape.

    The encoder goes down a ladder of resolutions H, H/2, ..., the decoder up again, and is given
    what the encoder saw at each rung. Gradients are reverse mode: `jax.jvp` does not pass its
    convolutions. Parts of the decoder at the highest resolution are named
    `decoder_0_*`, `out_norm` and `out_conv`, those below `decoder_1_*` and so on.

    Attributes:
        out: Channels of the result.
        channels: Channels at the top, a multiple of 4.
        multiples: Factor of the channels at each level, the highest resolution first.
        num_blocks: Residual blocks of a level in the encoder; the decoder has one more.
        attention: Resolutions whose pixels see each other; those at the bottom always do, once.
        dropout: Share of features that is dropped in training.
        dtype: Of convolutions; norms, and the result, are float32 or wider.
    """

    out: int
    channels: int = 128
    multiples: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.13
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        noise: Float[Array, "..."],
        *,
        train: bool = False,
        detach: bool = False,
    ) -> Float[Array, "B H W out"]:
        """Applies the network.

        Args:
            x: `[B, H, W, C]`, H and W divisible by 2^(levels - 1).
            noise: `[B]`, `[1]` or `[]`, what the network is told of the noise's level.
            train: whether features are dropped; `apply` is then given `rngs={"dropout": key}`.
            detach: whether gradients stop where features enter the decoder's highest resolution.

        Raises:
            ValueError: if sizes do not fit.
        """
        self._check(x, noise)
        emb = sines(jnp.atleast_1d(noise), self.channels)
        for i in range(2):
            emb = nn.silu(nn.Dense(4 * self.channels, kernel_init=_init, name=f"map_{i}")(emb))

        def block(x: jax.Array, name: str, channels: int, **given: Any) -> jax.Array:
            settings = {"dropout": self.dropout, "dtype": self.dtype} | given
            return ResidualBlock(channels, name=name, **settings)(x, emb, train=train)

        h = Conv(self.channels, 3, dtype=self.dtype, name="encoder_0_in")(x)
        seen = [h]
        for level, multiple in enumerate(self.multiples):
            if level:
                h = block(h, f"encoder_{level}_in", h.shape[-1], resample="down")
                seen.append(h)
            for i in range(self.num_blocks):
                attends = h.shape[1] in self.attention
                width = multiple * self.channels
                h = block(h, f"encoder_{level}_block_{i}", width, attends=attends)
                seen.append(h)
        bottom = len(self.multiples) - 1
        for level in range(bottom, -1, -1):
            if level == 0 and detach:
                h, emb, seen = jax.lax.stop_gradient((h, emb, seen))
            if level == bottom:
                h = block(h, f"decoder_{level}_in_0", h.shape[-1], attends=True)
                h = block(h, f"decoder_{level}_in_1", h.shape[-1])
            else:
                h = block(h, f"decoder_{level}_up", h.shape[-1], resample="up")
            for i in range(self.num_blocks + 1):
                attends = i == self.num_blocks and h.shape[1] in self.attention
                joined = jnp.concatenate([h, seen.pop()], axis=-1)
                width = self.multiples[level] * self.channels
                h = block(joined, f"decoder_{level}_block_{i}", width, attends=attends)
        h = _norm(h, "out_norm", silu=True)
        last = Conv(self.out, 3, SMALL, self.dtype, exact=True, name="out_conv")
        return last(h).astype(x.dtype)

    def _check(self, x: jax.Array, noise: jax.Array) -> None:
        if x.ndim != 4:
            raise ValueError(f"x must be [B, H, W, C], got {x.shape}")
        if jnp.shape(noise) not in ((), (1,), x.shape[:1]):
            raise ValueError(f"noise must be a number or {x.shape[:1]}, got {jnp.shape(noise)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.channels < 4 or self.channels % 4 or not self.multiples:
            raise ValueError(
                f"channels must be a multiple of 4 and multiples not empty, got {self.channels} "
                f"and {self.multiples}"
            )
        factor = 2 ** (len(self.multiples) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"height and width must be divisible by {factor}, got {x.shape[1:3]}; take fewer "
                "levels or another grid"
            )


class Conv(nn.Module):
    """A convolution of stride 1 that keeps the resolution; zeros stand beyond the edge.

    Attributes:
        features: Channels of the result.
        size: Side of the kernel, odd.
        factor: Of Xavier's uniform weights at the start.
        dtype: Of the product.
        exact: Whether products are as precise as `dtype`; a GPU rounds those of float32 to ten bits
            otherwise, and second differences of a field on S points amplify that by 4 S^2.
    """

    features: int
    size: int
    factor: float = 1.0
    dtype: Any = jnp.float32
    exact: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W features"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", lambda key: self.factor * _init(key, shape))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        product: Any = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.exact)
        return product + bias.astype(self.dtype)[None, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "s s C D"], exact: bool = False
) -> Float[Array, "B H W D"]:
    """Correlates images with kernels of odd side, stride 1, zeros beyond the edge.

    With `exact` products are as precise as their type wherever it runs, see `Conv`.

    Its gradient is written out, since XLA's on a CPU is some 20 times slower inside of a loop: that
    of the images is a convolution like this one, that of the kernel a single product of shifted
    copies. Elsewhere it is XLA's own.
    """
    return _correlate(x, kernel, exact)


def _correlate(x: jax.Array, kernel: jax.Array, exact: bool = False) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST if exact else None,
    )


def _convolve_forward(x: jax.Array, kernel: jax.Array, exact: bool) -> tuple[jax.Array, tuple]:
    return convolve(x, kernel, exact), (x, kernel)


def _convolve_backward(exact: bool, kept: tuple, given: jax.Array) -> tuple[jax.Array, jax.Array]:
    default = functools.partial(_gradient, exact)
    return jax.lax.platform_dependent(*kept, given, cpu=_gradient_by_shifts, default=default)


def _gradient(
    exact: bool, x: jax.Array, kernel: jax.Array, given: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(functools.partial(_correlate, exact=exact), x, kernel)[1](given)


def _gradient_by_shifts(
    x: jax.Array, kernel: jax.Array, given: jax.Array
) -> tuple[jax.Array, jax.Array]:
    of_x = _correlate(given, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    # sum_hw x[h + i, w + j] g[h, w] = sum_hw x[h + i, w] g[h, w - j]: each moves along one axis.
    (size, _, C, D), (height, width) = kernel.shape, x.shape[1:3]
    half = size // 2
    tall = jnp.pad(x, ((0, 0), (half, half), (0, 0), (0, 0)))
    wide = jnp.pad(given, ((0, 0), (0, 0), (half, half), (0, 0)))
    rows = jnp.concatenate([tall[:, i : i + height] for i in range(size)], axis=-1)
    columns = jnp.concatenate([wide[:, :, j : j + width] for j in reversed(range(size))], axis=-1)
    product = jnp.einsum("bhwc,bhwd->cd", rows, columns).reshape(size, C, size, D)
    return of_x, product.swapaxes(1, 2)


convolve.defvjp(_convolve_forward, _convolve_backward)


class ResidualBlock(nn.Module):
    """Norm, convolution, noise level, norm, convolution; on request, attention over pixels.

    Attributes:
        channels: Channels of the result.
        resample: "down" halves the resolution by means of 2 x 2 pixels, "up" doubles it by
            repeating them, "" keeps it.
        attends: Whether pixels see each other afterwards, with one head.
        dropout: See `Unet`.
        dtype: See `Unet`.
    """

    channels: int
    resample: str = ""
    attends: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "b E"], *, train: bool
    ) -> Float[Array, "B h w channels"]:
        def conv(x: jax.Array, name: str, size: int, width: int, factor: float = 1.0) -> jax.Array:
            return Conv(width, size, factor, self.dtype, name=name)(x)

        h = conv(self._resample(_norm(x, "norm_0", silu=True)), "conv_0", 3, self.channels)
        level = nn.Dense(self.channels, kernel_init=_init, name="level")(emb)
        h = _norm(h + level.astype(h.dtype)[:, None, None, :], "norm_1", silu=True)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(h, "conv_1", 3, self.channels, SMALL)
        skip = x.astype(self.dtype)
        if self.resample or x.shape[-1] != self.channels:
            skip = conv(self._resample(skip), "skip", 1, self.channels)
        h = SKIP * (h + skip)
        if not self.attends:
            return h
        qkv = conv(_norm(h, "norm_2"), "qkv", 1, 3 * self.channels, math.sqrt(0.2))
        flat = qkv.reshape(h.shape[0], -1, 3, self.channels).astype(jnp.float32)
        q, k, v = (flat[:, :, i] for i in range(3))
        scores = jnp.einsum("bqc,bkc->bqk", q, k) * self.channels**-0.5
        seen = jnp.einsum("bqk,bkc->bqc", nn.softmax(scores), v).reshape(h.shape)
        return SKIP * (h + conv(seen, "proj", 1, self.channels, SMALL))

    def _resample(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        if self.resample == "down":
            return jnp.mean(x.reshape(B, H // 2, 2, W // 2, 2, C), axis=(2, 4))
        if self.resample == "up":
            return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return x


def sines(t: Float[Array, " B"], size: int) -> Float[Array, "B size"]:
    """Returns sines, then cosines, of t times frequencies 1 to 1/10000, both ends included."""
    half = size // 2
    frequency = 10_000.0 ** (-np.arange(half) / max(half - 1, 1))
    angle = t[:, None] * jnp.asarray(frequency, t.dtype)[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class GroupNorm(nn.Module):
    """Normalizes groups of channels over all pixels, in float32 or wider.

    Moments are those of each channel, averaged over its group: sums over pixels alone are vectors
    of channels, which takes half the time on a CPU, and less than that backward. For the gradient
    only the features are kept; what lies between is computed again, which is faster than to store
    several arrays of that size in a loop.

    Attributes:
        groups: Number of groups, a divisor of the channels.
        silu: Whether x sigmoid(x) follows.
    """

    groups: int
    silu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        size = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (size,))
        bias = self.param("bias", nn.initializers.zeros_init(), (size,))

        def normalized(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            pixels = x.reshape(len(x), -1, size)

            def of_groups(moment: jax.Array) -> jax.Array:
                shared = jnp.mean(moment.reshape(len(x), self.groups, -1), axis=-1)
                return jnp.repeat(shared, size // self.groups, axis=-1)

            mean, square = (of_groups(jnp.mean(y, axis=1)) for y in (pixels, pixels**2))
            # Rounding may leave a variance below zero.
            slope = scale[None] * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + EPSILON)
            y = x * slope[:, None, None] + (bias[None] - mean * slope)[:, None, None]
            return nn.silu(y) if self.silu else y

        return jax.checkpoint(normalized, prevent_cse=False)(x, scale, bias)


def _norm(x: jax.Array, name: str, *, silu: bool = False) -> jax.Array:
    return GroupNorm(min(32, x.shape[-1] // 4), silu, name=name)(x)
