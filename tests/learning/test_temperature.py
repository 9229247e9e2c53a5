"""Duals of learned temperatures: closed forms for normal values, two actions, and their ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from jaxlab.learning import temperature


def descend(gradient, *, rate, steps):
    def one(x, _):
        return x - rate * gradient(x), None

    return float(jax.lax.scan(one, jnp.zeros(()), length=steps)[0])


@pytest.mark.parametrize("in_log", [False, True])
def test_entropy_of_the_maximum_entropy_policy_ends_at_its_target(in_log):
    """Q = -k a^2 / 2: the best policy is normal of variance alpha / k, so alpha is known."""
    k, target = 3.0, 0.4

    def entropy(log_alpha):
        return 0.5 * (np.log(2 * np.pi * np.e / k) + log_alpha)

    def gradient(x):
        loss = jax.grad(temperature.entropy_dual_loss)
        return loss(x, jnp.full((4,), entropy(x)), target, in_log=in_log)

    at = jnp.asarray(0.7)
    factor = 1.0 if in_log else np.exp(0.7)
    np.testing.assert_allclose(gradient(at), factor * (entropy(0.7) - target), rtol=1e-5)
    end = descend(gradient, rate=0.2, steps=400)
    np.testing.assert_allclose(np.exp(end), k * np.exp(2 * target) / (2 * np.pi * np.e), rtol=1e-4)


def test_radius_of_two_actions_by_hand():
    """Values 0 and d: weights are a sigmoid, the divergence log 2 less their entropy."""
    d, t, radius = 1.7, 0.6, 0.2
    q = jnp.asarray([[0.0], [d]])
    value, slope = jax.value_and_grad(temperature.kl_dual_loss)(
        jnp.log(jnp.asarray(t)), q, target_kl=radius
    )
    p = scipy.special.expit(d / t)
    kl = np.log(2) + p * np.log(p) + (1 - p) * np.log1p(-p)
    np.testing.assert_allclose(value, t * (radius + np.log(0.5 * (1 + np.exp(d / t)))), rtol=1e-6)
    np.testing.assert_allclose(slope, t * (radius - kl), rtol=1e-5)


def test_radius_of_normal_values_is_a_closed_form():
    """Values of standard deviation s: KL is s^2 / 2 t^2, so t ends at s / sqrt(2 radius)."""
    s, radius = 3.0, 0.3
    quantiles = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    q = jnp.asarray(50.0 + s * quantiles[:, None], jnp.float32)
    slope = jax.jit(jax.grad(lambda x: temperature.kl_dual_loss(x, q, target_kl=radius)))
    for t in (2.0, 4.0, 8.0):
        want = t * (radius - s**2 / (2 * t**2))
        np.testing.assert_allclose(slope(jnp.log(jnp.asarray(t))), want, atol=0.02)
    end = scipy.optimize.brentq(lambda x: float(slope(jnp.asarray(x, jnp.float32))), 0.0, 3.0)
    np.testing.assert_allclose(np.exp(end), s / np.sqrt(2 * radius), rtol=0.01)


def test_the_dual_bounds_every_weighting_within_the_radius():
    """And its least value is reached by the softmax at that temperature."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(6, 3))
    grid = np.linspace(-4.0, 3.0, 2001)
    radius = 0.25
    dual = jax.vmap(lambda x: temperature.kl_dual_loss(x, jnp.asarray(q), target_kl=radius))
    values = np.asarray(dual(jnp.asarray(grid, jnp.float32)), np.float64)
    best = np.exp(grid[np.argmin(values)])
    weight = scipy.special.softmax(q / best, axis=0)
    np.testing.assert_allclose(np.mean(np.sum(weight * q, axis=0)), values.min(), atol=1e-3)
    np.testing.assert_allclose(
        np.mean(np.sum(weight * np.log(6 * weight), axis=0)), radius, atol=5e-3
    )


def test_large_offsets_and_cold_temperatures_cost_no_digits(key):
    """Values near -1e5 with spreads of one; a temperature of 1e-4: greedy weights, log M."""
    q = jax.random.normal(key, (16, 32))
    slope = jax.grad(temperature.kl_dual_loss)
    exact = jnp.round(q * 64) / 64  # of few digits, so that the shift rounds nothing
    at = jnp.zeros(())
    np.testing.assert_allclose(
        slope(at, exact - 1e5, target_kl=0.5), slope(at, exact, target_kl=0.5), rtol=1e-4
    )
    cold = slope(jnp.log(jnp.asarray(1e-4)), q, target_kl=0.5)
    np.testing.assert_allclose(cold, 1e-4 * (0.5 - np.log(16)), rtol=1e-3)
    through = jax.grad(lambda q: temperature.kl_dual_loss(at, q, target_kl=0.5))(q)
    assert not np.any(through)
    with pytest.raises(ValueError, match="target_kl must be positive"):
        temperature.kl_dual_loss(at, q, target_kl=0.0)
    with pytest.raises(ValueError, match="target_kl must be below log M, 0.693 of 2 samples"):
        temperature.kl_dual_loss(at, jnp.zeros((2, 3)), target_kl=0.7)
