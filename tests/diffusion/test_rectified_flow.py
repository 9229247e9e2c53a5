"""Rectified flow against exact Gaussians: the weighted regression, Euler's method, one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion import closed_form, one_step, rectified_flow
from jaxlab.diffusion.closed_form import Gaussian, Mixture

OLD = Gaussian(jnp.asarray(0.0), jnp.asarray(0.5))
QUADRATIC = {"curvature": 3.0, "peak": 0.8, "temperature": 0.7}
BIMODAL = Mixture(jnp.asarray([0.3, 0.7]), jnp.asarray([-0.6, 0.5]), jnp.asarray([0.1, 0.2]))


def test_tilted_gaussian_by_hand(x64):
    tilted = closed_form.gaussian_tilt(Gaussian(0.0, jnp.asarray(0.5)), **QUADRATIC)
    np.testing.assert_allclose(tilted.mean, 0.413793, atol=5e-7)
    np.testing.assert_allclose(tilted.std**2, 0.120690, atol=5e-7)
    np.testing.assert_allclose(tilted.std, 0.347404, atol=5e-7)


def test_tilts_against_quadrature(x64):
    a = np.linspace(-4.0, 4.0, 200_001)
    q = -0.5 * 3.0 * (a - 0.8) ** 2
    parts = [
        w * np.exp(-0.5 * ((a - m) / s) ** 2) / s for w, m, s in np.asarray(BIMODAL, np.float64).T
    ]
    density = sum(parts) * np.exp(q / 0.7)
    density /= np.trapezoid(density, a)
    mean = np.trapezoid(a * density, a)
    tilted = closed_form.tilt(Mixture(*(x.astype(jnp.float64) for x in BIMODAL)), **QUADRATIC)
    np.testing.assert_allclose(jnp.sum(tilted.weight * tilted.mean), mean, rtol=1e-6)
    second = jnp.sum(tilted.weight * (tilted.mean**2 + tilted.std**2))
    np.testing.assert_allclose(second, np.trapezoid(a**2 * density, a), rtol=1e-6)


def test_k_steps_of_mirror_descent_add_their_precision(x64):
    policy = Gaussian(jnp.asarray(0.0), jnp.asarray(0.5))
    for _ in range(5):
        policy = closed_form.gaussian_tilt(policy, **QUADRATIC)
    np.testing.assert_allclose(policy.std**-2, 4.0 + 5 * 3.0 / 0.7, rtol=1e-12)


@pytest.mark.parametrize(
    "t, intercept, slope", [(0.3, 0.578, -1.325), (0.7, 0.832, -1.445), (0.95, 0.186, 0.580)]
)
def test_weights_turn_samples_of_the_old_policy_into_the_tilted_flow(t, intercept, slope):
    """The minimizer of the weighted loss, by least squares on two million samples."""
    rng = np.random.default_rng(7)
    a, e = 0.5 * rng.normal(size=2_000_000), rng.normal(size=2_000_000)
    w = np.exp(-0.5 * 3.0 * (a - 0.8) ** 2 / 0.7)
    # 0.545 of the samples count: exact for this weight.
    np.testing.assert_allclose(w.sum() ** 2 / (w.size * (w**2).sum()), 0.545, atol=1e-3)
    x = np.asarray(
        rectified_flow.interpolate(*(jnp.asarray(z[:, None]) for z in (a, e)), jnp.full(a.size, t))
    )[:, 0]
    design = np.stack([np.ones_like(x), x], axis=1).astype(np.float64)
    fit = np.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * (a - e)))
    np.testing.assert_allclose(fit, [intercept, slope], atol=7e-3)  # 3 std. errors of a slope
    tilted = closed_form.gaussian_tilt(OLD, **QUADRATIC)
    exact = closed_form.flow_velocity(tilted, jnp.asarray([0.0, 1.0]), jnp.asarray([t, t]))
    np.testing.assert_allclose(fit, [exact[0], exact[1] - exact[0]], atol=7e-3)


def test_loss_is_the_weighted_mean_by_hand(key):
    rng = np.random.default_rng(0)
    data, noise = rng.normal(size=(2, 6, 3)).astype(np.float32)
    t, w = rng.uniform(size=(2, 6)).astype(np.float32)
    got = rectified_flow.loss(
        lambda x, t: x * t[:, None], *map(jnp.asarray, (data, noise, t)), jnp.asarray(w)
    )
    x = t[:, None] * data + (1 - t[:, None]) * noise
    want = (w[:, None] * (x * t[:, None] - (data - noise)) ** 2).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    with pytest.raises(ValueError, match="one a sample"):
        rectified_flow.loss(lambda x, t: x, *map(jnp.asarray, (data, noise, t)), jnp.ones((6, 1)))


def test_scaling_all_weights_scales_the_gradient_and_none_runs_into_them():
    data, noise = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 2)), jnp.float32)
    t = jnp.linspace(0.1, 0.9, 5)

    def gradient(slope, scale):
        def f(slope, scale):
            return rectified_flow.loss(
                lambda x, t: slope * x, data, noise, t, scale * jnp.arange(1.0, 6.0)
            )

        return jax.grad(f, argnums=(0, 1))(slope, scale)

    one, ten = gradient(0.3, 1.0), gradient(0.3, 10.0)
    np.testing.assert_allclose(ten[0], 10.0 * one[0], rtol=1e-5)
    assert one[1] == 0.0


@pytest.mark.parametrize("std", [1.0, 0.3])
def test_euler_of_the_exact_flow(x64, std):
    """Affine in the noise: the slope is the product of 1 + slope_k / N, the mean exact."""
    target = Gaussian(0.4, jnp.asarray(std))
    listed = {1: 0.0, 2: std**2 / (1 + std**2)}
    if std == 1.0:
        listed |= {4: 0.72, 10: 0.87898, 20: 0.93770, 100: 0.98723}
    for num_steps in (1, 2, 4, 10, 20, 100):
        end = rectified_flow.sample(
            lambda x, t: closed_form.flow_velocity(target, x, t[..., None]),
            jnp.asarray([[0.0], [1.0], [-2.0]]),
            num_steps=num_steps,
        )[:, 0]
        slope = closed_form.euler_std(std, num_steps)
        np.testing.assert_allclose(end, 0.4 + slope * np.array([0.0, 1.0, -2.0]), atol=1e-12)
        if num_steps in listed:
            np.testing.assert_allclose(slope, listed[num_steps], atol=5e-6)
    with pytest.raises(ValueError, match="num_steps"):
        closed_form.euler_std(0.5, 0)
    with pytest.raises(ValueError, match="num_steps"):
        rectified_flow.sample(lambda x, t: x, jnp.zeros((1, 1)), num_steps=0)


def test_mixture_velocity_against_samples(key):
    """Mean and variance of a - e among draws whose x_t falls into a narrow window."""
    rng = np.random.default_rng(3)
    which = rng.random(4_000_000) < 0.7
    a = np.where(which, 0.5, -0.6) + np.where(which, 0.2, 0.1) * rng.normal(size=which.size)
    e = rng.normal(size=which.size)
    for t in (0.3, 0.6, 0.9):
        for x in (-0.4, 0.0, 0.3):
            near = np.abs(t * a + (1 - t) * e - x) < 0.01
            found = (a - e)[near]
            mean, variance = closed_form.mixture_velocity(BIMODAL, jnp.asarray(x), jnp.asarray(t))
            error = found.std() / np.sqrt(near.sum())
            np.testing.assert_allclose(mean, found.mean(), atol=5 * error + 0.01)
            np.testing.assert_allclose(variance, found.var(), rtol=0.05)


def test_one_step_from_noise_is_the_mean_and_its_error_the_variance():
    """At t = 0, v(x, 0) = E[a] - x: a constant, between the modes, whatever the noise."""
    x = jnp.linspace(-3.0, 3.0, 7)
    velocity, variance = closed_form.mixture_velocity(BIMODAL, x, jnp.zeros(7))
    mean = float(jnp.sum(BIMODAL.weight * BIMODAL.mean))
    np.testing.assert_allclose(x + velocity, mean, atol=1e-6)
    spread = float(jnp.sum(BIMODAL.weight * (BIMODAL.mean**2 + BIMODAL.std**2))) - mean**2
    np.testing.assert_allclose(variance, spread, rtol=1e-5)  # W2^2 to a constant is the variance


@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
def test_variance_bounds_one_euler_step(t):
    """Strictly, for a target with two modes: both sides are measured on a fresh million."""
    rng = np.random.default_rng(11)
    which = rng.random(1_000_000) < 0.7
    a = np.where(which, 0.5, -0.6) + np.where(which, 0.2, 0.1) * rng.normal(size=which.size)
    a, e = jnp.asarray(a[:, None], jnp.float32), jnp.asarray(rng.normal(size=(a.size, 1)))
    e = e.astype(jnp.float32)
    step = 1.0 - t

    def velocity(x, t):
        return closed_form.mixture_velocity(BIMODAL, x[:, 0], t)[0][:, None]

    x = rectified_flow.interpolate(a, e, jnp.full(a.shape[0], t))
    stepped = x + step * velocity(x, jnp.full(a.shape[0], t))
    distance = one_step.wasserstein(stepped[:, 0], a[::-1, 0])
    bound = one_step.step_bound(velocity, a, e, t, step)
    _, variance = closed_form.mixture_velocity(BIMODAL, x[:, 0], jnp.full(a.shape[0], t))
    np.testing.assert_allclose(bound, step * jnp.sqrt(jnp.mean(variance)), rtol=5e-3)
    assert 0.0 < distance < 0.95 * bound


def test_wasserstein_of_two_samples(key):
    """Gaussians: (m1 - m2)^2 + (s1 - s2)^2; unequal sizes: quantiles are steps."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.2, 0.5, 400_000), rng.normal(-0.1, 1.5, 400_000)
    got = one_step.wasserstein(*(jnp.asarray(z, jnp.float32) for z in (x, y)))
    np.testing.assert_allclose(got, np.hypot(0.3, 1.0), rtol=0.01)
    few, many = jnp.asarray([0.0, 1.0]), jnp.asarray([5.0, 0.0, 1.0])
    # Quantiles 0 (to 1/2), 1 against 0 (to 1/3), 1 (to 2/3), 5: pieces 1/3, 1/6, 1/6, 1/3.
    want = np.sqrt(0 / 3 + 1 / 6 + 0 / 6 + 16 / 3)
    np.testing.assert_allclose(one_step.wasserstein(few, many), want, rtol=1e-6)
    np.testing.assert_allclose(one_step.wasserstein(many, few), want, rtol=1e-6)
    with pytest.raises(ValueError, match="one dimension at a time"):
        one_step.wasserstein(few[:, None], few[:, None])


def test_shares_of_modes():
    x = jnp.asarray([[0.0, 0.0], [0.1, 0.0], [1.0, 1.0], [0.5, 0.5]])
    modes = jnp.asarray([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    shares = one_step.mode_shares(x, modes, radius=0.2)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.0])
