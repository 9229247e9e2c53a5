"""EDM against NumPy, exact Gaussians and published digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion import edm


def test_levels_of_the_sampler():
    levels = edm.sigmas(20)
    np.testing.assert_allclose(levels[[0, -4, -3, -2]], [80.0, 0.0184, 0.00662, 0.002], rtol=3e-3)
    assert levels[-1] == 0.0 and levels.dtype == np.float32 and len(levels) == 21
    share = 7 / 19
    by_hand = (80.0 ** (1 / 7) + share * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    assert levels[7] == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    ("v", "gains"),
    [
        (0.25, [1.0892, 1.0196, 1.00459]),
        (1.0, [1.07198, 1.01586, 1.00364]),
        (1e-2, [1.14699, 1.03126, 1.0070]),
    ],
)
def test_variance_that_the_sampler_makes_of_a_normal_law(v, gains, x64):
    """The sampler is linear here: its gain is what it makes of 1; digits as published."""

    def exact(x, sigma):
        return v / (v + sigma**2) * x

    for num_steps, gain in zip((20, 40, 80), gains, strict=True):
        levels = (edm.sigmas(num_steps)).astype(np.float64)
        x = edm.heun_steps(exact, jnp.asarray(levels[:1]), levels, 0, num_steps)
        assert float(x[0]) ** 2 / v == pytest.approx(gain, abs=2e-4)  # 1.0070 is rounded


def test_sampler_is_a_loop_and_stops_where_it_is_told(x64):
    """Of a denoiser that is not linear; 2 N - 1 calls; parts join; gradients with and without."""
    calls = []

    def denoiser(x, sigma):
        return np.tanh(x) / (1.0 + sigma)

    def counted(x, sigma):
        calls.append(sigma)
        return denoiser(x, sigma)

    levels = edm.sigmas(6).astype(np.float64)
    x = start = np.array([3.0, -20.0, 70.0])
    states = [x]
    for i in range(6):
        s, t = levels[i], levels[i + 1]
        slope = (x - counted(x, s)) / s
        ahead = x + (t - s) * slope
        if i < 5:
            ahead = x + (t - s) * 0.5 * (slope + (ahead - counted(ahead, t)) / t)
        x = ahead
        states.append(x)
    assert len(calls) == 11

    def jax_denoiser(x, sigma):
        return jnp.tanh(x) / (1.0 + sigma)

    @jax.jit
    def run(x):
        middle = edm.heun_steps(jax_denoiser, x, levels, 0, 4)
        plain, again = (
            edm.heun_steps(jax_denoiser, middle, levels, 4, 6, remat=r) for r in (False, True)
        )
        slope = jax.grad(
            lambda z: jnp.sum(edm.heun_steps(jax_denoiser, z, levels, 3, 6, remat=True) ** 2)
        )
        return middle, plain, again, slope(x)

    middle, plain, again, slope = run(jnp.asarray(start))
    np.testing.assert_allclose(middle, states[4], rtol=1e-12)
    np.testing.assert_allclose(plain, states[6], rtol=1e-12)
    np.testing.assert_allclose(again, plain, rtol=1e-14)
    np.testing.assert_allclose(plain, denoiser(states[5], levels[5]), rtol=1e-12)

    def numpy_end(x):
        for i in range(3, 6):
            s, t = levels[i], levels[i + 1]
            slope = (x - denoiser(x, s)) / s
            ahead = x + (t - s) * slope
            x = x + (t - s) * 0.5 * (slope + (ahead - denoiser(ahead, t)) / t) if i < 5 else ahead
        return np.sum(x**2)

    for j in range(3):
        e = 1e-5 * np.eye(3)[j]
        numeric = (numpy_end(start + e) - numpy_end(start - e)) / 2e-5
        assert float(slope[j]) == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_preconditioning_by_hand():
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
    sigma = np.array([0.01, 1.0, 50.0], np.float32)
    seen = []

    def network(x, noise):
        seen.append((x, noise))
        return jnp.sin(x).astype(jnp.bfloat16)

    found = edm.precondition(network, sigma_data=0.7)(jnp.asarray(x), jnp.asarray(sigma))
    s = sigma.astype(np.float64)[:, None, None, None]
    total = s**2 + 0.49
    np.testing.assert_allclose(seen[0][0], x / np.sqrt(total), rtol=1e-5)
    np.testing.assert_allclose(seen[0][1], np.log(sigma) / 4.0, rtol=1e-5)
    expected = 0.49 / total * x + s * 0.7 / np.sqrt(total) * np.sin(x / np.sqrt(total))
    np.testing.assert_allclose(found, expected, atol=4e-3)  # the network's bfloat16
    assert found.dtype == jnp.float32
    with pytest.raises(ValueError, match="x must be float32 or float64, got bfloat16"):
        edm.precondition(network)(jnp.zeros((2, 1), jnp.bfloat16), 1.0)
    with pytest.raises(ValueError, match=r"leading axes of x, got \(2,\) for \(3, 2, 2, 1\)"):
        edm.precondition(network)(jnp.asarray(x), jnp.ones(2))
    with pytest.raises(ValueError, match=r"shape of x, \(3, 2, 2, 2\), got \(3, 2, 2, 1\)"):
        edm.precondition(lambda x, s: x[..., :1])(jnp.zeros((3, 2, 2, 2)), 1.0)


def test_gaussian_denoiser_and_its_loss(x64):
    """Against the dense matrix; no other denoiser has a smaller loss."""
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(4, 2, 3))
    law = edm.gaussian_of(factor)
    cov = np.einsum("mi,mj->ij", factor.reshape(4, 6), factor.reshape(4, 6))
    x, sigma = rng.normal(size=(5, 2, 3)), np.array([0.05, 0.3, 1.0, 4.0, 30.0])
    found = law.denoiser(jnp.asarray(x), jnp.asarray(sigma))
    least = law.least_loss(jnp.asarray(sigma))
    for i in range(5):
        best = cov @ np.linalg.inv(cov + sigma[i] ** 2 * np.eye(6))
        np.testing.assert_allclose(found[i].ravel(), best @ x[i].ravel(), atol=1e-10)
        weight = (sigma[i] ** 2 + 0.25) / (0.5 * sigma[i]) ** 2
        expected = weight * np.trace(sigma[i] ** 2 * best) / 6
        assert float(least[i]) == pytest.approx(expected, rel=1e-8)
    draws = 40_000
    data = np.einsum("nm,mij->nij", rng.normal(size=(draws, 4)), factor)
    noise = rng.normal(size=data.shape)
    at = jnp.full(draws, 0.6)
    arrays = jnp.asarray(data), jnp.asarray(noise), at
    exact = float(edm.loss(law.denoiser, *arrays))
    assert exact == pytest.approx(float(law.least_loss(jnp.asarray(0.6))), rel=0.02)
    worse = float(edm.loss(lambda x, s: 1.05 * law.denoiser(x, s), *arrays))
    assert worse > exact


def test_levels_of_training_are_log_normal():
    draws = np.log(edm.draw_sigma(jax.random.key(0), (20_000,)))
    assert np.mean(draws) == pytest.approx(-1.2, abs=5 * 1.2 / np.sqrt(20_000))
    assert np.std(draws) == pytest.approx(1.2, rel=5 / np.sqrt(40_000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edm.sigmas(1), "num_steps must be an integer of at least 2, got 1"),
        (lambda: edm.sigmas(20, sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: edm.precondition(None, sigma_data=0.0), "sigma_data must be positive"),
        (lambda: edm.heun_steps(None, 0.0, edm.sigmas(3), 2, 4), "0 <= start <= stop <= 3"),
    ],
)
def test_wrong_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
