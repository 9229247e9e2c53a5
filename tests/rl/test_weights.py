"""Importance weights, their statistics, the temperature: values by hand and published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from jaxlab.learning.temperature import kl_dual_loss
from jaxlab.rl import temperature, weights

Q = np.array([-40.0, -1.0, 0.5, 2.0, 9.0])
STATS = weights.Stats(jnp.asarray(1.5), jnp.asarray(4.0))


@pytest.mark.parametrize(
    "kind, z",
    [
        ("clip_std", np.clip((Q - 1.5) / 4.0, -3, 3) / 0.7),
        ("clip_release", np.clip(Q - 1.5 / 4.0, -3, 3) / 0.7),
        ("raw", Q / 0.7),
        ("scale_std", Q / 4.0 / 0.7),
        ("uniform", 0.0 * Q),
    ],
)
def test_weights_by_hand(kind, z):
    got, info = weights.importance_weights(jnp.asarray(Q, jnp.float32), STATS, 0.7, kind)
    np.testing.assert_allclose(got, np.exp(z), rtol=1e-5)
    w = np.exp(z - z.max())
    np.testing.assert_allclose(info["ess"], w.sum() ** 2 / (5 * (w**2).sum()), rtol=1e-5)
    clipped = np.abs(z * 0.7) >= 3 - 1e-9 if kind.startswith("clip") else np.zeros(5)
    np.testing.assert_allclose(info["saturated"], clipped.mean())


def test_large_values_saturate_the_released_form_alone():
    """|Q| of hundreds: all weights alike with "clip_release", ranked with "clip_std"."""
    q = jnp.asarray([300.0, 320.0, 340.0, 360.0])
    stats = weights.Stats(jnp.asarray(330.0), jnp.asarray(25.0))
    released, info = weights.importance_weights(q, stats, 0.54, "clip_release")
    assert np.ptp(released) == 0.0 and info["saturated"] == 1.0
    meant, info = weights.importance_weights(q, stats, 0.54, "clip_std")
    assert np.all(np.diff(meant) > 0) and info["saturated"] == 0.0


def test_no_gradient_runs_through_weights():
    def total(q, alpha):
        return jnp.sum(weights.importance_weights(q, STATS, alpha, "raw")[0])

    gradients = jax.grad(total, argnums=(0, 1))(jnp.asarray(Q[2:], jnp.float32), 0.7)
    assert not np.any(gradients[0]) and gradients[1] == 0.0
    with pytest.raises(ValueError, match="weighting must be one of"):
        weights.importance_weights(jnp.zeros(3), STATS, 1.0, "sharp")


def test_softmax_weights_do_not_see_a_shift_of_the_state():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(16, 4)).astype(np.float32)
    shift = np.array([[0.0, 10.0, -50.0, 3.0]], np.float32)
    got = weights.softmax_weights(jnp.asarray(q), 0.3)
    e = np.exp(q / 0.3 - (q / 0.3).max(axis=0))
    np.testing.assert_allclose(got, 16 * e / e.sum(axis=0), rtol=1e-4)
    np.testing.assert_allclose(weights.softmax_weights(jnp.asarray(q + shift), 0.3), got, rtol=2e-4)
    raw, _ = weights.importance_weights(jnp.asarray(q[0]), STATS, 1.0, "raw")
    moved, _ = weights.importance_weights(jnp.asarray((q + shift)[0]), STATS, 1.0, "raw")
    assert moved[3] / raw[3] > 10.0  # the factor Z(s)
    cold = weights.softmax_weights(jnp.asarray(q), 1e-3)
    np.testing.assert_allclose(cold, 16 * (q == q.max(axis=0)), atol=1e-3)


def test_running_statistics():
    stats = weights.init_stats()
    q = jnp.asarray([1.0, 3.0])
    stats = weights.update_stats(stats, q)
    np.testing.assert_allclose(stats, [0.002, 1.0], rtol=1e-6)  # std of (1, 3) is 1
    moved = jax.lax.fori_loop(0, 4000, lambda _, s: weights.update_stats(s, q), stats)
    np.testing.assert_allclose(moved.mean, 2.0 - 1.998 * 0.999**4000, rtol=1e-4)
    np.testing.assert_allclose(moved.std, 1.0, rtol=1e-5)


def test_one_move_of_the_statistics_stands_for_several():
    q, stats = jnp.asarray([1.0, 3.0, 8.0]), weights.Stats(jnp.asarray(-2.0), jnp.asarray(0.5))
    several = stats
    for _ in range(5):
        several = weights.update_stats(several, q, rate=0.1)
    at_once = weights.update_stats(stats, q, rate=0.1, count=5)
    np.testing.assert_allclose(at_once, several, rtol=1e-6)


def test_dual_finds_the_temperature_of_a_divergence(optax_promotes):
    """Gradient descent ends where KL(softmax | uniform) is the target."""
    q = jnp.asarray(np.random.default_rng(1).normal(size=(64, 32)), jnp.float32)
    optimizer = optax.adam(0.05)

    @jax.jit
    def solve():
        def step(carry, _):
            x, opt = carry
            grad = jax.grad(kl_dual_loss)(x, q, target_kl=1.0)
            step, opt = optimizer.update(grad, opt)
            return (x + step, opt), None

        start = jnp.zeros(())
        return jax.lax.scan(step, (start, optimizer.init(start)), length=600)[0][0]

    w = np.asarray(weights.softmax_weights(q, jnp.exp(solve())), np.float64) / 64
    divergence = np.mean(np.sum(w * np.log(w * 64), axis=0))
    np.testing.assert_allclose(divergence, 1.0, atol=0.02)


@pytest.mark.parametrize("action_size", [1, 6])
def test_temperature_falls_as_published(optax_promotes, action_size):
    """After 100, 200, 400, 600, 800 and 1000 steps of Adam(7e-3), whatever the action's size."""
    optimizer = optax.adam(7e-3)

    @jax.jit
    def run():
        def step(carry, _):
            x, opt = carry
            gap = temperature.temperature_gradient(x, action_size)
            move, opt = optimizer.update(gap, opt)
            return (x + move, opt), x

        start = jnp.log(jnp.asarray(5.0))
        (end, _), path = jax.lax.scan(step, (start, optimizer.init(start)), length=1000)
        return jnp.exp(jnp.append(path, end))

    path = np.asarray(run())
    want = [2.587, 1.514, 0.767, 0.587, 0.547, 0.541]
    np.testing.assert_allclose(path[[100, 200, 400, 600, 800, 1000]], want, rtol=0.01)


def test_fixed_points_of_the_temperature():
    np.testing.assert_allclose(temperature.fixed_point(), 0.5399, atol=5e-5)
    np.testing.assert_allclose(temperature.fixed_point(entropy_per_dim=-0.9), 0.9838, atol=5e-5)
    at = jnp.log(jnp.asarray(temperature.fixed_point()))
    np.testing.assert_allclose(temperature.temperature_gradient(at, 3), 0.0, atol=1e-5)
    entropy = temperature.noise_entropy(jnp.log(jnp.asarray(2.0)), 4)
    np.testing.assert_allclose(entropy, 4 * 0.5 * np.log(2 * np.pi * np.e * 0.04), rtol=1e-6)


@pytest.mark.parametrize("kind, scale", [("raw", 1.0), ("scale_std", 0.1)])
def test_large_values_do_not_overflow(kind, scale):
    """Weights keep their ratios, and small values their exact weights."""
    stats = weights.Stats(jnp.zeros(()), jnp.asarray(scale))
    divisor = 1.0 if kind == "raw" else scale
    q = np.array([90.0, 88.0, 50.0]) * divisor
    got, info = weights.importance_weights(jnp.asarray(q, jnp.float32), stats, 1.0, kind)
    np.testing.assert_allclose(got, np.exp(q / divisor - 50.0), rtol=1e-4)
    exact, _ = weights.importance_weights(jnp.asarray(q / 30, jnp.float32), stats, 1.0, kind)
    np.testing.assert_allclose(exact, np.exp(q / divisor / 30), rtol=1e-5)
    share = scipy.special.softmax(q / divisor)
    np.testing.assert_allclose(info["ess"], 1.0 / (3 * np.sum(share**2)), rtol=1e-4)


def test_small_and_equal_values_keep_a_weight():
    """Returns of -150: weights in their proportions, large enough for Adam; no spread: equal."""
    q = jnp.asarray([-150.0, -149.0, -147.0])
    weight, found = weights.importance_weights(q, weights.init_stats(), 1.0, "raw")
    np.testing.assert_allclose(weight, np.exp(-10.0 + np.array([-3.0, -2.0, 0.0])), rtol=1e-5)
    share = np.exp([-3.0, -2.0, 0.0])
    np.testing.assert_allclose(found["ess"], share.sum() ** 2 / (3 * (share**2).sum()), rtol=1e-5)
    still = weights.Stats(jnp.asarray(0.5), jnp.zeros(()))
    for kind in ("clip_std", "clip_release", "scale_std"):
        weight, _ = weights.importance_weights(jnp.full((3,), 0.5), still, 0.5, kind)
        assert np.all(np.isfinite(weight)) and np.ptp(weight) == 0.0
