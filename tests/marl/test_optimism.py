"""Weights and losses of samples in float64 against closed forms and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxlab import learning, marl
from jaxlab.core import risk


@pytest.fixture(autouse=True)
def float64(x64):
    """All of this in double precision."""


def test_exponential_regression_finds_the_log_mean_exp():
    """Oracle 11: of targets without a model, for either sign of beta, and the mean at 0."""
    rng = np.random.default_rng(0)
    targets = rng.normal(2.0, 1.5, 200)
    style = marl.entropic(z_max=50.0)
    loss = jax.jit(lambda v, beta: jnp.mean(style.loss(jnp.asarray(targets) - v, beta)))
    for beta in (-0.7, 0.0, 1e-9, 0.3, 1.0):
        best = targets.mean() if beta == 0.0 else None
        best = scipy.special.logsumexp(beta * targets, b=1 / 200) / beta if best is None else best
        found = scipy.optimize.minimize_scalar(
            lambda v, beta=beta: float(loss(v, beta)), (best - 1.0, best + 1.0), tol=1e-12
        )
        # A flat minimum: the square root of rounding; 1e-9 is itself rounded by scipy's logsumexp.
        np.testing.assert_allclose(found.x, best, atol=1e-6)
        assert abs(float(jnp.mean(style.weight(jnp.asarray(targets) - found.x, beta)))) < 1e-5


def test_loss_is_the_area_under_the_weight():
    x = jnp.asarray(np.concatenate([np.linspace(-6.0, 12.0, 37), [1e-9, -1e-7, 0.0]]))
    for style, parameters in (
        (marl.entropic(z_max=3.0), (-0.5, 0.0, 1e-12, 1e-4, 0.4, 2.0)),
        (marl.expectile(), (0.2, 0.5, 0.9)),
    ):
        for parameter in parameters:
            slope = jax.vmap(jax.grad(style.loss), (0, None))(x, parameter)
            np.testing.assert_array_equal(slope, style.critic_weight(x, parameter))
            # Simpson's rule is exact enough on 2,000 intervals of each area.
            t = np.linspace(0.0, 1.0, 2001)
            weight = np.asarray(style.weight(jnp.asarray(x)[:, None] * t[None], parameter))
            simpson = np.ones(2001)
            simpson[1:-1:2], simpson[2:-1:2] = 4.0, 2.0
            area = np.asarray(x) * (weight @ simpson) / 6000.0
            np.testing.assert_allclose(style.loss(x, parameter), area, rtol=3e-6, atol=1e-30)


def test_exponential_weight_by_its_formula():
    x = np.array([-50.0, -1.0, 0.0, 0.5, 3.0])
    found = marl.entropic(z_max=2.0).weight(jnp.asarray(x), 2.0)
    np.testing.assert_allclose(found, np.expm1(np.minimum(2.0 * x, 2.0)) / 2.0)
    np.testing.assert_array_equal(marl.entropic().weight(jnp.asarray(x), 0.0), x)
    np.testing.assert_array_equal(
        marl.entropic(z_max=2.0).excess(jnp.asarray(x), 2.0), 2.0 * x > 2.0
    )
    np.testing.assert_allclose(marl.leaky().weight(jnp.asarray(x), 0.1), np.maximum(0.1 * x, x))


def test_hysteretic_learning_rests_at_an_expectile():
    """Oracle 12: rates a and b on a static sample, tau = a / (a + b)."""
    rng = np.random.default_rng(1)
    targets, rate, slow = rng.normal(size=50), 0.1, 0.02
    q = 0.0
    for _ in range(2000):
        error = targets - q
        q += np.mean(np.where(error >= 0.0, rate, slow) * error)
    tau = rate / (rate + slow)
    np.testing.assert_allclose(q, risk.expectile(tau).value(jnp.asarray(targets)), rtol=1e-10)
    assert abs(float(jnp.mean(marl.expectile().weight(jnp.asarray(targets - q), tau)))) < 1e-10


def test_divergence_of_the_tilt_and_the_beta_that_has_it():
    rng = np.random.default_rng(2)
    advantage, mask = rng.normal(0.0, 2.0, (7, 9)), rng.random((7, 9)) < 0.8
    kept = advantage[mask]
    p = np.exp(0.6 * kept) / np.exp(0.6 * kept).sum()
    expected = np.sum(p * np.log(p * kept.size))
    found = marl.tilt_divergence(jnp.asarray(advantage), 0.6, jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for scale in (1.0, 10.0):
        beta = marl.beta_of_divergence(
            scale * jnp.asarray(advantage), expected, beta_max=5.0, mask=jnp.asarray(mask)
        )
        np.testing.assert_allclose(beta, 0.6 / scale, rtol=1e-9)
    assert marl.beta_of_divergence(jnp.asarray(advantage), 0.5, beta_max=0.1) > 0.0999


def test_step_weights_against_a_loop():
    rng = np.random.default_rng(3)
    advantage, done = rng.normal(0.0, 1.0, (12, 2)), rng.random((12, 2)) < 0.25
    expected = np.ones((12, 2))
    for column in range(2):
        product = 1.0
        for t in range(12):
            expected[t, column] = min(product, 4.0)
            product = 1.0 if done[t, column] else product * np.exp(0.8 * advantage[t, column])
    found = marl.step_weights(jnp.asarray(advantage), 0.8, jnp.asarray(done), most=4.0)
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-12)


def test_the_loss_for_an_existing_ppo_against_numpy():
    rng = np.random.default_rng(4)
    logp, old, value, target, advantage, entropy = rng.normal(0.0, 0.5, (6, 20))
    given = {"beta": 0.9, "clip_eps": 0.2, "value_coef": 0.5, "entropy_coef": 0.01}
    loss, metrics = marl.optimistic_loss(marl.entropic(z_max=4.0))(
        learning.Outputs(*map(jnp.asarray, (logp, entropy, value))),
        learning.Samples(*map(jnp.asarray, (old, value, target, advantage)), None),
        {name: jnp.asarray(x) for name, x in given.items()},
    )
    weight = np.expm1(np.minimum(0.9 * advantage, 4.0)) / 0.9
    weight = weight / (weight.std() + 1e-8)
    ratio = np.exp(logp - old)
    gain = np.minimum(ratio * weight, np.clip(ratio, 0.8, 1.2) * weight).mean()
    z = 0.9 * (target - value)
    error = np.mean(np.exp(z) - z - 1.0) / 0.81
    np.testing.assert_allclose(metrics["critic/loss"], error, rtol=1e-10)
    np.testing.assert_allclose(loss, -gain + 0.5 * error - 0.01 * entropy.mean(), rtol=1e-10)


def variation(p, q):
    """Half the sum of |p - q|, a divergence with kinks."""
    return 0.5 * jnp.sum(jnp.abs(p - q))


def test_any_measure_weighs_the_law_of_the_advantages():
    """Of few samples the weight of the measure itself; of many the same, up to its groups."""
    rng = np.random.default_rng(5)
    few, many = rng.normal(0.0, 1.0, (2, 3)), rng.normal(0.0, 1.0, 501)
    known = [(risk.entropic, 0.8), (risk.chi2, 0.4), (risk.cvar, 0.3)]

    @jax.jit
    def weights(few, many):
        def of(x, measure, parameter):
            exact = measure(parameter).weight(x.reshape(-1))
            return marl.of_measure(measure).weight(x, parameter).reshape(-1), exact

        own = risk.penalized(variation), 0.4
        return [of(few, *one) for one in (*known, own)], [of(many, *one) for one in known]

    each = marl.of_measure(risk.chi2)
    apart = each.weight(jnp.asarray(few), jnp.asarray([0.4, 0.0, -0.3]))  # an agent a column
    for k, kappa in enumerate((0.4, 0.0, -0.3)):
        np.testing.assert_allclose(apart[:, k], each.weight(jnp.asarray(few[:, k]), kappa))
    exactly, nearly = weights(jnp.asarray(few), jnp.asarray(many))
    for found, exact in exactly:
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
    for found, exact in map(np.asarray, nearly):
        assert abs(found.mean()) < 1e-12 and np.all(np.diff(found[np.argsort(many)]) >= -1e-12)
        np.testing.assert_allclose(found, exact, rtol=0, atol=0.06 * np.abs(exact).max())
        np.testing.assert_allclose(found.max(), exact.max(), rtol=0.02)


def test_refusals():
    with pytest.raises(ValueError, match="z_max must be positive and finite, got 0.0"):
        marl.entropic(z_max=0.0)
