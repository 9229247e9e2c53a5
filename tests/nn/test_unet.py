"""The U-Net: published sizes, NumPy in float64 layer by layer, where gradients stop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxlab import nn
from jaxlab.nn import unet


def sizes(network, size, channels):
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    params = jax.eval_shape(
        network.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32)
    )
    return {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for name, part in params["params"].items()
    }


def test_published_numbers_of_parameters():
    found = sizes(nn.Unet(2), 128, 2)
    top = sum(n for name, n in found.items() if name.startswith(("decoder_0", "out_")))
    assert sum(found.values()) == pytest.approx(54.4e6, abs=0.05e6)
    assert top == pytest.approx(11.2e6, abs=0.05e6)
    assert top / sum(found.values()) == pytest.approx(0.206, abs=5e-4)
    assert sum(sizes(nn.Unet(3), 32, 3).values()) == pytest.approx(55.73e6, abs=0.005e6)


SMALL = nn.Unet(2, 8, (1, 2), 1, attention=(4,), dropout=0.5)


def drawn(network):
    """Weights of which none is small or zero, as a trained network's are."""
    x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), x.dtype))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda z: (0.3 * rng.normal(size=z.shape)).astype(np.float32), shapes)


def norm(x, p, eps=1e-6):
    H, W, C = x.shape
    groups = min(32, C // 4)
    g = x.reshape(H * W, groups, C // groups)
    g = (g - g.mean((0, 2), keepdims=True)) / np.sqrt(g.var((0, 2), keepdims=True) + eps)
    p = p.get("GroupNorm_0", p)
    return g.reshape(H, W, C) * p["scale"] + p["bias"]


def silu(x):
    return x / (1.0 + np.exp(-x))


def conv(x, p):
    kernel = p["kernel"]
    out = np.stack(
        [
            sum(
                scipy.signal.correlate2d(x[..., i], kernel[..., i, o], mode="same")
                for i in range(x.shape[-1])
            )
            for o in range(kernel.shape[-1])
        ],
        axis=-1,
    )
    return out + p["bias"]


def block(x, emb, p, resample="", attends=False):
    def change(z):
        if resample == "down":
            return 0.25 * (z[::2, ::2] + z[1::2, ::2] + z[::2, 1::2] + z[1::2, 1::2])
        return z.repeat(2, 0).repeat(2, 1) if resample == "up" else z

    h = conv(change(silu(norm(x, p["norm_0"]))), p["conv_0"])
    h = silu(norm(h + emb @ p["level"]["kernel"] + p["level"]["bias"], p["norm_1"]))
    h = conv(h, p["conv_1"])
    skip = conv(change(x), p["skip"]) if "skip" in p else x
    h = np.sqrt(0.5) * (h + skip)
    if not attends:
        return h
    C = h.shape[-1]
    q, k, v = np.split(conv(norm(h, p["norm_2"]), p["qkv"]).reshape(-1, 3 * C), 3, axis=1)
    scores = np.exp(q @ k.T / np.sqrt(C))
    seen = (scores / scores.sum(1, keepdims=True)) @ v
    return np.sqrt(0.5) * (h + conv(seen.reshape(h.shape), p["proj"]))


def reference(params, x, noise):
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params["params"])
    angle = noise * 10_000.0 ** (-np.arange(4) / 3)
    emb = np.concatenate([np.sin(angle), np.cos(angle)])
    for i in range(2):
        emb = silu(emb @ p[f"map_{i}"]["kernel"] + p[f"map_{i}"]["bias"])
    seen = [conv(x, p["encoder_0_in"])]
    seen.append(block(seen[-1], emb, p["encoder_0_block_0"], attends=True))
    seen.append(block(seen[-1], emb, p["encoder_1_in"], "down"))
    seen.append(block(seen[-1], emb, p["encoder_1_block_0"]))
    h = block(seen[-1], emb, p["decoder_1_in_0"], attends=True)
    h = block(h, emb, p["decoder_1_in_1"])
    for i in range(2):
        h = block(np.concatenate([h, seen.pop()], -1), emb, p[f"decoder_1_block_{i}"])
    h = block(h, emb, p["decoder_0_up"], "up")
    for i in range(2):
        h = np.concatenate([h, seen.pop()], -1)
        h = block(h, emb, p[f"decoder_0_block_{i}"], attends=i == 1)
    return conv(silu(norm(h, p["out_norm"])), p["out_conv"])


def test_network_is_numpys_layer_by_layer():
    params = drawn(SMALL)
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 3)).astype(np.float32)
    noise = np.array([-1.3, 0.4], np.float32)
    found = jax.jit(SMALL.apply)(params, x, noise)
    for i in range(2):
        expected = reference(params, x[i].astype(np.float64), float(noise[i]))
        np.testing.assert_allclose(found[i], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_gradient_of_a_convolution_is_that_of_xla(size, x64):
    """Both forms of it, in float64, inside of a loop too; a kernel of 3 is not its mirror."""
    rng = np.random.default_rng(5)
    x, kernel, given = (
        jnp.asarray(rng.normal(size=shape))
        for shape in ((2, 5, 4, 3), (size, size, 3, 2), (2, 5, 4, 2))
    )

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    @jax.jit
    def gradients(x, kernel, given):
        expected = jax.vjp(plain, x, kernel)[1](given)
        return (
            expected,
            jax.vjp(unet.convolve, x, kernel)[1](given),
            jax.vjp(lambda *a: unet.convolve(*a, True), x, kernel)[1](given),
            unet._gradient(False, x, kernel, given),
            unet._gradient(True, x, kernel, given),
        )

    expected, *found = gradients(x, kernel, given)
    for pair in found:
        for a, b in zip(pair, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_last_convolution_alone_is_as_precise_as_its_type():
    """A GPU rounds products of float32 to ten bits otherwise, which a residual amplifies."""
    network = nn.Unet(2, 8, (1, 1), 1, attention=(), dropout=0.0)
    x = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x, level)
    program = jax.jit(network.apply).lower(params, x, level).as_text()
    lines = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) > 10
    precise = [line for line in lines if "HIGHEST" in line]
    assert len(precise) == 1 and "tensor<1x8x8x2xf32>" in precise[0].rpartition("->")[2]


def test_a_norm_keeps_its_features_alone_for_the_gradient():
    """In a loop, where memory grows by one array a step; without its checkpoint by several."""
    norm = unet.GroupNorm(2, silu=True)
    x = jax.ShapeDtypeStruct((4, 16, 16, 8), jnp.float32)
    params = jax.eval_shape(norm.init, jax.random.key(0), x)

    def memory(num):
        def loss(params, x):
            last, _ = jax.lax.scan(lambda x, _: (norm.apply(params, x), None), x, length=num)
            return jnp.sum(last**2)

        compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(40) - memory(20) <= 20 * 1.2 * 4 * math.prod(x.shape)


def test_gradients_stop_at_the_top_of_the_decoder():
    """Those of its own weights are the same, all others zero."""
    network = nn.Unet(2, 4, (1, 1), 1, attention=())
    x = jax.random.normal(jax.random.key(2), (2, 4, 4, 3))

    @jax.jit
    def gradients(params):
        def loss(params, detach):
            return jnp.sum(network.apply(params, x, jnp.zeros(1), detach=detach) ** 2)

        return jax.grad(loss)(params, False)["params"], jax.grad(loss)(params, True)["params"]

    whole, stopped = gradients(drawn(network))
    for name in whole:
        top = name.startswith(("decoder_0", "out_"))
        for a, b in zip(*(jax.tree.leaves(g[name]) for g in (whole, stopped)), strict=True):
            if top:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
            else:
                assert not np.any(b)
        assert top or any(np.any(a) for a in jax.tree.leaves(whole[name]))


def test_features_are_dropped_in_training_alone():
    """Half of what enters the second convolution, doubled; without training no key is asked for."""
    block = unet.ResidualBlock(4, dropout=0.5)
    x, emb = jax.random.normal(jax.random.key(1), (1, 4, 4, 4)), jnp.ones((1, 3))
    params = block.init(jax.random.key(0), x, emb, train=False)
    params = jax.tree.map(lambda z: z + 0.3, params)
    apply = jax.jit(block.apply, static_argnames="train")
    still = apply(params, x, emb, train=False)
    drawn = [apply(params, x, emb, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    assert np.max(np.abs(drawn[0] - drawn[1])) > 1e-3 and np.max(np.abs(drawn[0] - still)) > 1e-3


def test_what_does_not_fit_is_named():
    init = SMALL.init
    with pytest.raises(ValueError, match=r"x must be \[B, H, W, C\], got \(4, 4, 3\)"):
        init(jax.random.key(0), jnp.zeros((4, 4, 3)), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"divisible by 2, got \(5, 4\)"):
        init(jax.random.key(0), jnp.zeros((1, 5, 4, 3)), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"noise must be a number or \(3,\), got \(2,\)"):
        init(jax.random.key(0), jnp.zeros((3, 4, 4, 3)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.5"):
        nn.Unet(2, 4, dropout=1.5).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1))
    with pytest.raises(ValueError, match="channels must be a multiple of 4"):
        nn.Unet(2, 6).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1))
