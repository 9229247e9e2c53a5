"""MeanFlow against the exact average velocity of a Gaussian, and its identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion import closed_form, mean_flow
from jaxlab.diffusion.closed_form import Gaussian

TARGET = Gaussian(0.4, 0.35)


def exact(z, r, t):
    target = Gaussian(*(jnp.asarray(x, z.dtype) for x in TARGET))
    return closed_form.average_velocity(target, z, r[..., None], t[..., None])


def draw(count=64, dtype=np.float64):
    rng = np.random.default_rng(0)
    r, t = np.sort(rng.uniform(size=(2, count)), axis=0)
    return (jnp.asarray(x, dtype) for x in (rng.normal(size=(count, 1)), r, t))


def marginal(z, t):
    """The flow's own velocity with noise at t = 1: that of rectified flow, backward."""
    target = Gaussian(*(jnp.asarray(x, z.dtype) for x in TARGET))
    return -closed_form.flow_velocity(target, z, 1.0 - t[..., None])


def test_exact_average_velocity_integrates_the_velocity(x64):
    """Against Simpson's rule along the exact path z_tau = (1 - tau) m + s(tau)/s(t) (z - ...)."""
    z, r, t = draw()
    m, s = TARGET

    def spread(time):
        return np.sqrt((1 - time) ** 2 * s**2 + time**2)

    tau = np.linspace(np.asarray(r), np.asarray(t), 2001)  # [2001, 64]
    path = (1 - tau) * m + spread(tau) / spread(np.asarray(t)) * (
        np.asarray(z)[:, 0] - (1 - np.asarray(t)) * m
    )
    v = marginal(jnp.asarray(path)[..., None], jnp.asarray(tau))[..., 0]
    weights = np.ones(2001)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    average = (weights[:, None] * np.asarray(v)).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(exact(z, r, t)[:, 0], average, rtol=1e-9)
    # At r = t it is the velocity itself.
    np.testing.assert_allclose(exact(z, t, t), marginal(z, t), rtol=1e-12)


def test_identity_holds_to_rounding(x64):
    z, r, t = draw()
    u, target = mean_flow.target(exact, z, marginal(z, t), r, t)
    np.testing.assert_allclose(u, target, atol=1e-14)


def test_derivative_along_the_flow_is_a_finite_difference(x64):
    """Of a field that is no flow at all: target = v - (t - r) du/dt."""

    def field(z, r, t):
        return jnp.sin(z * (1 + r[:, None])) + (t * t)[:, None] * z

    z, r, t = draw()
    v = jnp.cos(3.0 * z)
    _, target = mean_flow.target(field, z, v, r, t)
    h = 1e-6
    ahead, behind = (field(z + d * v, r, t + d) for d in (h, -h))
    want = v - (t - r)[:, None] * (ahead - behind) / (2 * h)
    np.testing.assert_allclose(target, want, atol=1e-8)


def test_one_step_of_the_exact_field_is_the_distribution(x64):
    noise = jnp.asarray([[0.0], [1.0], [-2.0]])
    for num_steps in (1, 3, 7):  # any number of steps lands at the same place
        end = mean_flow.sample(exact, noise, num_steps=num_steps)
        np.testing.assert_allclose(end, 0.4 + 0.35 * noise, atol=1e-12)
    half = mean_flow.sample(exact, 0.5 * noise)
    np.testing.assert_allclose(half, 0.4 + 0.175 * noise, atol=1e-12)  # half the spread
    with pytest.raises(ValueError, match="num_steps"):
        mean_flow.sample(exact, noise, num_steps=0)


def test_loss_by_hand(x64):
    """mean w |u - sg(v - (t - r) du/dt)|^2, with and without the adaptive factor."""
    rng = np.random.default_rng(2)
    data, noise = rng.normal(size=(2, 8, 2))
    _, r, t = draw(8)
    w = rng.uniform(size=8)
    slope = 0.7

    def field(z, r, t):
        return slope * z * t[:, None]

    z = (1 - t[:, None]) * data + t[:, None] * noise
    v = noise - data
    u = slope * z * t[:, None]
    target = v - (t - r)[:, None] * (slope * t[:, None] * v + slope * z)
    squares = np.asarray((u - target) ** 2)
    args = (field, jnp.asarray(data), jnp.asarray(noise), r, t, jnp.asarray(w))
    np.testing.assert_allclose(mean_flow.loss(*args), (w[:, None] * squares).mean(), rtol=1e-12)
    factor = (squares.sum(axis=1) + 1e-3) ** -0.5
    want = ((w * factor)[:, None] * squares).mean()
    np.testing.assert_allclose(mean_flow.loss(*args, adaptive_power=0.5), want, rtol=1e-12)
    # The target and the weights are constants to the gradient.
    gradient = jax.grad(lambda s: mean_flow.loss(lambda z, r, t: s * z * t[:, None], *args[1:]))(
        slope
    )
    by_hand = (w[:, None] * 2 * np.asarray(u - target) * np.asarray(z * t[:, None])).mean()
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-10)


@pytest.mark.parametrize("equal", [0.0, 0.25, 0.75])
def test_times_are_ordered_and_as_often_equal(key, equal):
    r, t = map(np.asarray, mean_flow.sample_times(key, (100_000,), equal=equal))
    assert np.all((0.0 <= r) & (r <= t) & (t <= 1.0))
    share = np.mean(r == t)
    assert abs(share - equal) < 4 * np.sqrt(0.25 / r.size)
    np.testing.assert_allclose(t.mean(), 2 / 3, atol=4 * 0.236 / np.sqrt(r.size))


def test_logit_normal_times(key):
    r, t = mean_flow.sample_times(key, (200_000,), distribution="logit_normal")
    both = np.concatenate([r, t])
    logits = np.log(both / (1 - both))
    np.testing.assert_allclose([logits.mean(), logits.std()], [-0.4, 1.0], atol=0.01)
    with pytest.raises(ValueError, match="equal must"):
        mean_flow.sample_times(key, (3,), equal=1.5)
    with pytest.raises(ValueError, match="distribution must"):
        mean_flow.sample_times(key, (3,), distribution="normal")
