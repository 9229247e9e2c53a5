"""PPO's surrogate by hand, by enumeration, and where its clip acts; masks; extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.learning import distributions, policy_gradient

RATIO = np.array([0.5, 0.9, 1.0, 1.1, 1.5])


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_surrogate_and_its_gradient_by_hand(x64, advantage):
    """For a good action the ratio counts up to 1.2, for a bad one down to 0.8."""
    logp_old = jnp.asarray([-0.3, -1.0, 0.2, -2.0, 0.0])
    logp = logp_old + np.log(RATIO)

    def surrogate(logp):
        return policy_gradient.clipped_surrogate(
            logp, logp_old, jnp.full(5, advantage), clip_eps=0.2
        )

    counted = np.minimum(RATIO, 1.2) if advantage > 0 else np.maximum(RATIO, 0.8)
    free = RATIO <= 1.2 if advantage > 0 else RATIO >= 0.8
    np.testing.assert_allclose(surrogate(logp), advantage * counted, rtol=1e-12)
    gradient = jax.grad(lambda x: jnp.sum(surrogate(x)))(logp)
    np.testing.assert_allclose(gradient, advantage * RATIO * free, rtol=1e-12)


def test_companions_by_hand(x64):
    logp_old = jnp.zeros(5)
    logp = jnp.asarray(np.log(RATIO))
    outside = policy_gradient.outside_clip(logp, logp_old, clip_eps=0.2)
    np.testing.assert_array_equal(outside, [True, False, False, False, True])
    kl = policy_gradient.approx_kl(logp, logp_old)
    np.testing.assert_allclose(kl, RATIO - 1 - np.log(RATIO), atol=1e-15)


def test_value_loss_by_hand(x64):
    """Target 0, old value 1, reach 0.5: nearer than 0.5 nothing is gained, farther than 1.5 too."""
    value = jnp.asarray([0.2, 0.7, 1.2, 2.0, -2.0])

    def loss(value):
        one = jnp.ones(5)
        return policy_gradient.clipped_value_loss(value, one, 0.0 * one, clip_eps=0.5)

    np.testing.assert_allclose(loss(value), [0.25, 0.49, 1.44, 4.0, 4.0], rtol=1e-12)
    gradient = jax.grad(lambda x: jnp.sum(loss(x)))(value)
    np.testing.assert_allclose(gradient, [0.0, 1.4, 2.4, 4.0, -4.0], rtol=1e-12)


def test_without_a_clip_it_is_the_policy_gradient(x64):
    """Over all actions, weighted as the old policy draws them: at the old policy the gradient of
    E A, and elsewhere too, since importance weights change the measure exactly."""
    rng = np.random.default_rng(5)
    law = distributions.multi_categorical((3, 2))
    actions = jnp.asarray([(i, j) for i in range(3) for j in range(2)])
    old, new, advantage = (jnp.asarray(rng.normal(size=n)) for n in (5, 5, 6))
    logp = jax.vmap(law.log_prob, (None, 0))
    for params in (old, new):

        def estimate(params):
            gain = policy_gradient.clipped_surrogate(
                logp(params, actions), logp(old, actions), advantage, clip_eps=jnp.inf
            )
            return jnp.sum(jnp.exp(logp(old, actions)) * gain)

        def score(params, at=params):  # E [A grad log p], the score function
            p = jax.lax.stop_gradient(jnp.exp(logp(at, actions)))
            return jnp.sum(p * advantage * logp(params, actions))

        found, want = jax.grad(estimate)(params), jax.grad(score)(params)
        np.testing.assert_allclose(found, want, atol=1e-12)
        value = jnp.sum(jnp.exp(logp(params, actions)) * advantage)
        np.testing.assert_allclose(estimate(params), value, rtol=1e-12)
    # And their mean of r - 1 - log r is the divergence of the old from the new.
    kl = policy_gradient.approx_kl(logp(new, actions), logp(old, actions))
    mean = jnp.sum(jnp.exp(logp(old, actions)) * kl)
    np.testing.assert_allclose(mean, law.kl(old, new), rtol=1e-12)


def test_small_divergence_keeps_its_digits():
    """r - 1 - log r is half the square of log r = 1e-3, 5e-7; in floats r - 1 is 1e-3 +- 6e-8."""
    kl = policy_gradient.approx_kl(jnp.asarray(1e-3), jnp.zeros(()))
    np.testing.assert_allclose(kl, 5e-7, rtol=1e-2)


@pytest.mark.parametrize("gap", [1e4, -1e4, np.inf, -np.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_far_ratios_leave_finite_gradients(gap, advantage):
    """An action that has become e^10000 times as likely as it was, or impossible."""

    def total(logp):
        gain = policy_gradient.clipped_surrogate(
            logp, jnp.zeros(2), jnp.full(2, advantage), clip_eps=0.2
        )
        return jnp.sum(gain), policy_gradient.approx_kl(logp, jnp.zeros(2))

    (value, _), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray([gap, 0.0]))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert gradient[1] == advantage


def test_masked_samples_do_not_count():
    """Their advantages may be anything, NaN too, forwards and backwards."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]], bool)
    spoiled = jnp.asarray(np.where(mask, x, np.nan))
    found = policy_gradient.normalize_advantage(spoiled, jnp.asarray(mask))
    want = (x - x[mask].mean()) / x[mask].std()
    np.testing.assert_allclose(found, np.where(mask, want, 0.0), rtol=1e-4, atol=1e-5)
    mean, gradient = jax.value_and_grad(policy_gradient.masked_mean)(spoiled, jnp.asarray(mask))
    np.testing.assert_allclose(mean, x[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, mask / mask.sum(), rtol=1e-6)
    assert policy_gradient.masked_mean(spoiled, jnp.zeros((4, 3), bool)) == 0.0
    assert not policy_gradient.normalize_advantage(spoiled, jnp.zeros((4, 3), bool)).any()
    whole = policy_gradient.normalize_advantage(jnp.asarray(x))
    np.testing.assert_allclose(whole, (x - x.mean()) / x.std(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [0.1, 123.4, -7e5])
def test_equal_advantages_teach_nothing(size):
    """Their mean in floats is not quite theirs; the difference over its own size would be one."""
    found = policy_gradient.normalize_advantage(jnp.full((1001,), size))
    assert not found.any()


def test_bad_arguments_are_refused():
    one = jnp.ones(3)
    with pytest.raises(ValueError, match="clip_eps must be positive, got 0.0"):
        policy_gradient.clipped_surrogate(one, one, one, clip_eps=0.0)
    with pytest.raises(ValueError, match=r"one shape, got \(3,\), \(3,\), \(2,\)"):
        policy_gradient.clipped_surrogate(one, one, one[:2], clip_eps=0.2)
    with pytest.raises(ValueError, match="clip_eps must be positive, got -1.0"):
        policy_gradient.clipped_value_loss(one, one, one, clip_eps=-1.0)
    with pytest.raises(ValueError, match="one shape"):
        policy_gradient.masked_mean(one, jnp.ones(2, bool))
