"""Shared networks by hand."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nn


def test_mlp_is_its_layers(key):
    network = nn.Mlp((8, 8), 2)
    x, y = jax.random.normal(key, (5, 3)), jax.random.normal(key, (5, 1))
    params = network.init(key, x, y)["params"]
    h = np.concatenate([x, y], axis=1)
    for i in range(3):
        h = h @ np.asarray(params[f"layer_{i}"]["kernel"]) + np.asarray(
            params[f"layer_{i}"]["bias"]
        )
        if i < 2:
            h = h * np.tanh(np.log1p(np.exp(h)))
    np.testing.assert_allclose(network.apply({"params": params}, x, y), h, atol=1e-5)


def test_weights_are_drawn_by_the_fan_in(key):
    draw = np.asarray(nn.fan_in_normal(key, (400, 500)))
    assert np.abs(draw).max() <= 2.0 / 20.0
    # A normal distribution cut at two standard deviations has 0.8796 of its spread.
    np.testing.assert_allclose(draw.std() * 20.0, 0.8796, atol=0.005)


def test_sines_and_cosines(x64):
    t = jnp.asarray([0.0, 0.3, 1.0])
    got = nn.sinusoidal(t, 16)
    frequency = np.array([10_000.0 ** (-j / 8) for j in range(8)])
    angle = np.asarray(t)[:, None] * frequency
    want = np.concatenate([np.sin(angle), np.cos(angle)], axis=1) / 4
    np.testing.assert_allclose(got, want, atol=1e-12)
    np.testing.assert_allclose(nn.sinusoidal(t, 16, scale=3.0), nn.sinusoidal(3.0 * t, 16))
    with pytest.raises(ValueError, match="even"):
        nn.sinusoidal(t, 5)


@pytest.mark.parametrize("shape", [(3, 5), (40, 40), (30, 7), (3, 3, 4, 8)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_orthogonal_weights_are_those_of_flax(shape, dtype, key, x64):
    found = nn.orthogonal(1.5)(key, shape, jnp.dtype(dtype))
    theirs = flax.linen.initializers.orthogonal(1.5)(key, shape, jnp.dtype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, theirs, atol={"float32": 2e-6, "float64": 1e-14}[dtype])


def test_orthogonal_weights_of_several_layers_and_seeds_in_one_program(key):
    """Batches of LAPACK's QR wait for each other here for ever, on two cores."""

    def draw(key):
        return [nn.orthogonal()(k, (128, 256)) for k in jax.random.split(key, 4)]

    for weights in jax.jit(jax.vmap(draw))(jax.random.split(key, 5)):
        np.testing.assert_allclose(
            np.einsum("sio,sjo->sij", weights, weights),
            np.broadcast_to(np.eye(128), (5, 128, 128)),
            atol=3e-6,
        )


def test_orthogonal_weights_need_two_axes(key):
    with pytest.raises(ValueError, match=r"two axes or more, got \(3,\)"):
        nn.orthogonal()(key, (3,))
