"""Diffusion with few steps: schedules by loops, the exact reverse chain, reverse sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion import closed_form, ddpm, reverse_sampling
from jaxlab.diffusion.closed_form import Gaussian

SCHEDULES = {
    "linear": lambda: ddpm.linear_schedule(20, scale=0.8),
    "linear 0.3": lambda: ddpm.linear_schedule(20, scale=0.3),
    "cosine": lambda: ddpm.cosine_schedule(20),
    "one step": lambda: ddpm.linear_schedule(1),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_by_a_loop(x64, name):
    schedule = SCHEDULES[name]()
    T = schedule.num_steps
    if name == "cosine":
        f = [np.cos((t / T + 0.008) / 1.008 * np.pi / 2) ** 2 for t in range(T + 1)]
        beta = [min(1 - f[t + 1] / f[t], 0.999) for t in range(T)]
        assert beta[-1] == 0.999
    else:
        scale = 0.3 if name == "linear 0.3" else 0.8
        beta = [scale * (1e-4 + (0.999 - 1e-4) * t / max(T - 1, 1)) for t in range(T)]
    left = 1.0
    for t in range(T):
        before, left = left, left * (1 - beta[t])
        want = (
            beta[t],
            left,
            beta[t] * (1 - before) / (1 - left),
            np.sqrt(before) * beta[t] / (1 - left),
            np.sqrt(1 - beta[t]) * (1 - before) / (1 - left),
        )
        np.testing.assert_allclose([field[t] for field in schedule], want, rtol=1e-12)
    assert schedule.posterior_variance[0] == 0.0


def test_bad_schedules():
    with pytest.raises(ValueError, match="beta must be"):
        ddpm.make_schedule(np.array([0.1, 1.0]))
    with pytest.raises(ValueError, match="num_steps"):
        ddpm.linear_schedule(0)


def test_noise_and_data_are_each_others_inverse(x64):
    rng = np.random.default_rng(0)
    schedule = ddpm.cosine_schedule(20)
    data, noise = jnp.asarray(rng.normal(size=(2, 20, 3)))
    t = jnp.arange(20, dtype=jnp.int32)
    x = ddpm.diffuse(schedule, data, noise, t)
    np.testing.assert_allclose(ddpm.predict_data(schedule, x, noise, t), data, atol=1e-10)
    loss = ddpm.loss(schedule, lambda x, t: 0.0 * x, data, noise, t, jnp.arange(20.0))
    want = (np.arange(20)[:, None] * np.asarray(noise) ** 2).mean()
    np.testing.assert_allclose(loss, want, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_reverse_chain_of_the_exact_noise_prediction(key, name):
    """Gaussian data: every reverse step is affine with Gaussian noise, moments by recursion."""
    schedule = SCHEDULES[name]()
    target = Gaussian(0.3, 0.2)

    def predict(x, t):
        return closed_form.noise_of_tilt(x, schedule.alpha_bar[t][:, None], target)

    start = jax.random.normal(jax.random.fold_in(key, 1), (200_000, 1))
    end = np.asarray(jax.jit(lambda: ddpm.sample(key, schedule, predict, start, clip=None))())
    mean, var = 0.0, 1.0
    fields = [np.asarray(field, np.float64) for field in schedule]
    for _, alpha_bar, posterior, of_data, of_noisy in reversed(list(zip(*fields, strict=True))):
        spread = alpha_bar * 0.04 + 1 - alpha_bar  # of x_t; E[data | x_t] is affine in it
        gain = np.sqrt(alpha_bar) * 0.04 / spread
        slope = of_data * gain + of_noisy
        mean = of_data * (0.3 - gain * np.sqrt(alpha_bar) * 0.3) + slope * mean
        var = slope**2 * var + posterior
    np.testing.assert_allclose(end.mean(), mean, atol=4 * np.sqrt(var / end.size))
    np.testing.assert_allclose(end.std(), np.sqrt(var), rtol=4 / np.sqrt(2 * end.size))


def test_clipped_chain_by_a_loop(key):
    """Data are predicted, clipped, and noised again with the posterior; nothing at the end."""
    schedule = ddpm.linear_schedule(20)
    start = 2.0 * jax.random.normal(jax.random.fold_in(key, 1), (50, 2))
    got = jax.jit(lambda: ddpm.sample(key, schedule, lambda x, t: jnp.sin(3.0 * x), start))()
    x, clipped = np.asarray(start, np.float64), 0
    for t in reversed(range(20)):
        beta, left = float(schedule.beta[t]), float(schedule.alpha_bar[t])
        before = left / (1 - beta)
        data = (x - np.sqrt(1 - left) * np.sin(3 * x)) / np.sqrt(left)
        clipped += np.mean(np.abs(data) > 1) / 20
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, t), x.shape), np.float64)
        mean = np.sqrt(before) * beta * np.clip(data, -1, 1) + np.sqrt(1 - beta) * (1 - before) * x
        x = mean / (1 - left) + np.sqrt(max(beta * (1 - before) / (1 - left), 0.0)) * noise
    np.testing.assert_allclose(got, x, atol=2e-4)
    assert 0.1 < clipped < 0.99 and np.abs(got).max() <= 1.0


def test_reverse_sampling_finds_the_exact_noise():
    """Q = -k (a - c)^2 / 2: the closed form, and zero without a preference."""
    k, c, temperature, alpha_bar, x = 3.0, 0.4, 0.5, 0.5, 0.3
    exact = closed_form.noise_of_tilt(
        jnp.asarray(x), jnp.asarray(alpha_bar), Gaussian(c, (temperature / k) ** 0.5)
    )
    np.testing.assert_allclose(exact, 0.0208, atol=5e-5)
    schedule = ddpm.make_schedule(np.array([1.0 - alpha_bar]))
    noise = reverse_sampling.draw_noise(jax.random.key(1), 2_000_000, jnp.zeros((1,)))
    t = jnp.zeros((), jnp.int32)
    a = reverse_sampling.candidates(schedule, jnp.asarray([x]), noise, t, clip=None)
    q = -0.5 * k * (a[:, 0] - c) ** 2
    found = reverse_sampling.mean_noise(q / temperature, noise)
    np.testing.assert_allclose(found, exact, atol=4e-3)
    flat = reverse_sampling.mean_noise(jnp.zeros(noise.shape[0]), noise)
    np.testing.assert_allclose(flat, 0.0, atol=4e-3)
    clipped = reverse_sampling.candidates(schedule, jnp.asarray([x]), noise[:1000], t)
    np.testing.assert_array_equal(clipped, np.clip(a[:1000], -1.0, 1.0))
    with pytest.raises(ValueError, match="num must"):
        reverse_sampling.draw_noise(jax.random.key(1), 0, noise)


@pytest.mark.parametrize("shift", [0.0, 40.0])
def test_cheap_form_has_the_gradient_of_all_candidates(shift):
    """And a shift of all log weights, however large, changes neither."""
    rng = np.random.default_rng(4)
    x, t = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32), jnp.arange(8, dtype=jnp.int32)
    noise = jnp.asarray(rng.normal(size=(64, 8, 3)), jnp.float32)
    log_weight = jnp.asarray(3 * rng.normal(size=(64, 8)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)

    def gradient(loss, shift):
        return jax.grad(
            lambda w: loss(lambda x, t: jnp.tanh(x @ w), x, t, log_weight + shift, noise)
        )(weights)

    cheap = gradient(reverse_sampling.loss, shift)
    np.testing.assert_allclose(cheap, gradient(reverse_sampling.loss_of_all, 0.0), atol=1e-5)


def test_weighted_denoising_finds_the_tilted_policy():
    """The identity behind DPMD: the weighted regression of noise on x_t is exact for the tilt."""
    rng = np.random.default_rng(9)
    a, e = 0.5 * rng.normal(size=2_000_000), rng.normal(size=2_000_000)
    w = np.exp(-0.5 * 3.0 * (a - 0.8) ** 2 / 0.7)
    tilted = closed_form.gaussian_tilt(
        Gaussian(jnp.asarray(0.0), jnp.asarray(0.5)), curvature=3.0, peak=0.8, temperature=0.7
    )
    for alpha_bar in (0.2, 0.6, 0.95):
        x = np.sqrt(alpha_bar) * a + np.sqrt(1 - alpha_bar) * e
        design = np.stack([np.ones_like(x), x], axis=1)
        fit = np.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * e))
        ends = closed_form.noise_of_tilt(jnp.asarray([0.0, 1.0]), jnp.full(2, alpha_bar), tilted)
        np.testing.assert_allclose(fit, [ends[0], ends[1] - ends[0]], atol=5e-3)
