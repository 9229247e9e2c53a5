"""Base models: the exact Gaussian law, an update by hand, resuming, and what is refused."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import physics
from jaxlab.core import loop
from jaxlab.diffusion import edm


class Small(flax.linen.Module):
    """A network of each pixel that is called like a U-Net."""

    @flax.linen.compact
    def __call__(self, x, noise, *, train=False):
        level = jnp.atleast_1d(noise)[:, None, None, None]
        h = jnp.tanh(flax.linen.Dense(5)(x) + level)
        return flax.linen.Dense(2)(flax.linen.Dropout(0.2, deterministic=not train)(h))


TINY = Small()


@pytest.fixture(scope="module")
def fields():
    return physics.make_dataset(physics.poisson(), jax.random.key(0), 4000, 8)


@pytest.mark.parametrize("law", [physics.poisson(), physics.helmholtz()], ids=lambda x: x.name)
def test_law_of_the_data_is_gaussian_and_its_denoiser_obeys_the_equation(law):
    """Covariances of samples to 5 standard errors; the residual of D*(x) is 0 for any x."""
    exact = physics.gaussian_law(law, 8)
    x = physics.make_dataset(law, jax.random.key(3), 4000, 8).reshape(4000, -1)
    axes = np.asarray(exact.axes, np.float64).reshape(exact.axes.shape[0], -1)
    along = x @ axes.T / np.sqrt(exact.variance)
    strong = np.asarray(exact.variance) > 1e-6 * exact.variance[0]
    second = along[:, strong].T @ along[:, strong] / 4000
    assert np.max(np.abs(second - np.eye(len(second)))) < 6.0 * np.sqrt(2.0 / 4000)
    assert np.sum(exact.variance) == pytest.approx(np.sum(x**2) / 4000, rel=0.05)
    noisy = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    for sigma in (0.05, 1.0, 20.0):
        clean = exact.denoiser(noisy, jnp.asarray(sigma))
        left = physics.residual(law, clean)
        source = jnp.max(jnp.abs(physics.post(law, clean)[..., 0]))
        assert jnp.max(jnp.abs(left)) < 2e-4 * source
    with pytest.raises(ValueError, match="data of Darcy are not normal"):
        physics.gaussian_law(physics.darcy(), 8)


def test_sampler_of_the_exact_denoiser_draws_the_law():
    """Along every axis the variance is what 40 Heun steps make of it: 1 to 4 % too much."""
    exact = physics.gaussian_law(physics.poisson(), 8)
    noise = jax.random.normal(jax.random.key(5), (4000, 8, 8, 2))
    x = jax.jit(lambda z: edm.sample(exact.denoiser, z, num_steps=40))(noise)
    axes = np.asarray(exact.axes).reshape(exact.axes.shape[0], -1)
    found = np.var(np.asarray(x).reshape(4000, -1) @ axes.T, axis=0) / exact.variance
    strong = np.asarray(exact.variance) > 1e-4
    assert np.mean(found[strong]) == pytest.approx(1.025, abs=0.015)


@pytest.mark.usefixtures("optax_promotes")
def test_an_update_and_its_average_by_hand(fields):
    algorithm = physics.make_base(
        fields, TINY, num_steps=10, batch_size=8, learning_rate=1e-2, warmup=2, half_life=1e9
    )
    state = jax.jit(algorithm.init)(jax.random.key(0))
    step = jax.jit(algorithm.step)
    first, _ = step(state)  # the rate is 0 at first
    second, metrics = step(first)
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(*map(jax.tree.leaves, (second.params, first.params)), strict=True)
    ]
    # Adam's first two gradients alike: a step of the rate, half of the way through the warm-up.
    assert max(moved) == pytest.approx(5e-3, rel=0.5)
    keep = 0.5 ** (8 / (0.05 * 16))
    for a, p, q in zip(
        *map(jax.tree.leaves, (second.average_params, second.params, first.average_params)),
        strict=True,
    ):
        np.testing.assert_allclose(a, keep * q + (1 - keep) * p, rtol=1e-5, atol=1e-7)
    assert np.isfinite(metrics["train/loss"])


@pytest.mark.usefixtures("optax_promotes")
def test_a_stopped_run_goes_on_as_if_it_had_not_been(fields, tmp_path):
    algorithm = physics.make_base(fields, TINY, num_steps=6, batch_size=8, warmup=1)
    given = {"num_steps": 6, "chunk_size": 3}
    whole = loop.run(algorithm, jax.random.key(2), **given)
    half = loop.run(algorithm, jax.random.key(2), directory=tmp_path, stop=lambda *_: True, **given)
    assert half.step == 3
    # A run that was stopped by hand is over; what a killed process leaves is the same checkpoint.
    again = loop.run(
        algorithm, jax.random.key(2), directory=tmp_path / "other", num_steps=3, chunk_size=3
    )
    rest = loop.run(algorithm, jax.random.key(9), directory=tmp_path / "other", **given)
    assert again.step == 3 and rest.step == 6
    for a, b in zip(
        *map(jax.tree.leaves, (whole.state._replace(key=0), rest.state._replace(key=0))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_what_is_no_field_is_named(fields):
    with pytest.raises(ValueError, match=r"data must be \[N, H, W, C\], got \(8, 8, 2\)"):
        physics.make_base(fields[0], TINY, num_steps=10)
    with pytest.raises(
        ValueError, match="order one, got values of .*; pass them through normalize"
    ):
        physics.make_base(fields * np.float32(100.0), TINY, num_steps=10)
    with pytest.raises(ValueError, match="data must be float32, got float64"):
        physics.make_base(fields.astype(np.float64), TINY, num_steps=10)
    with pytest.raises(ValueError, match="data must be finite, got 1 that are not"):
        bad = fields.copy()
        bad[0, 0, 0, 0] = np.inf
        physics.make_base(bad, TINY, num_steps=10)
    with pytest.raises(ValueError, match="warmup must lie in 0 to num_steps - 1, got 100 of 10"):
        physics.make_base(fields, TINY, num_steps=10)
