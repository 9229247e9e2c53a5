"""Weights of the mirror-descent target against sums, duals and SciPy's roots."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxlab.learning.temperature import kl_dual_loss
from jaxlab.rl.discrete import targets

ADVANTAGE = np.random.default_rng(0).normal(size=(12, 5)) * np.array([0.1, 1.0, 3.0, 30.0, 1.0])
ADVANTAGE[:, 4] = np.where(ADVANTAGE[:, 4] > 0, 1.0, 0.0)  # ties


def test_exact_target_solves_the_regularized_problem(x64):
    rng = np.random.default_rng(1)
    prior, advantage = rng.dirichlet(np.ones(6)), rng.normal(size=6)
    got = np.asarray(targets.exact_target(jnp.asarray(prior), jnp.asarray(advantage), 0.7))

    def value(p):
        return p @ advantage - 0.7 * (p * np.log(p / prior)).sum()

    assert value(got) == pytest.approx(0.7 * math.log(prior @ np.exp(advantage / 0.7)), rel=1e-12)
    for other in rng.dirichlet(np.ones(6), 50):
        assert value(0.99 * got + 0.01 * other) < value(got)


def test_k_steps_are_one_step_at_a_kth_of_the_temperature(x64):
    rng = np.random.default_rng(2)
    law, reward = jnp.asarray(rng.dirichlet(np.ones(8))), jnp.asarray(rng.normal(size=8))
    once = targets.exact_target(law, reward, 0.5 / 6)
    for _ in range(6):
        law = targets.exact_target(law, reward, 0.5)
    np.testing.assert_allclose(law, once, rtol=1e-12)


def test_impossible_actions_stay_impossible():
    got = targets.exact_target(jnp.asarray([0.0, 0.5, 0.5]), jnp.asarray([9.0, 0.0, 0.0]), 0.1)
    np.testing.assert_allclose(got, [0.0, 0.5, 0.5])


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "signed", "linear", "square", "z_linear", "z_square"])
def test_weights_are_their_formula(kind, x64):
    lam, lower, n = 0.8, -0.5, 12
    with jax.enable_x64(x64):
        got = np.asarray(
            targets.sample_weights(jnp.asarray(ADVANTAGE), lam, kind, lower=lower)
        ).astype(float)
    a = ADVANTAGE
    z = (a - a.mean(axis=0)) / a.std(axis=0)
    soft = lambda x: np.exp(x - x.max(axis=0)) / np.exp(x - x.max(axis=0)).sum(axis=0)  # noqa: E731

    def solved(shape):
        columns = []
        for column in a.T:
            total = lambda nu: shape((column - nu) / lam).sum() - 1.0  # noqa: B023, E731
            nu = optimize.brentq(total, column.min() - 50 * lam, column.max(), xtol=1e-14)
            columns.append(shape((column - nu) / lam))
        return np.array(columns).T

    expected = {
        "softmax": lambda: soft(a / lam),
        "signed": lambda: soft(a / lam) - soft(-a / lam),
        "linear": lambda: solved(lambda x: np.maximum(x, lower / n)),
        "square": lambda: solved(lambda x: np.maximum(x, 0.0) ** 2),
        "z_linear": lambda: np.clip(z, lower, 3.0) / n,
        "z_square": lambda: np.where(z > 0, z**2, np.maximum(z, lower)) / n,
    }[kind]()
    np.testing.assert_allclose(
        got, expected, rtol=1e-9 if x64 else 2e-4, atol=1e-9 if x64 else 2e-6
    )


@pytest.mark.parametrize("kind", ["softmax", "signed", "linear", "square", "z_linear", "z_square"])
def test_what_is_common_to_a_state_changes_nothing(kind, x64):
    shift = np.array([5.0, -100.0, 0.0, 1e4, 3.0])
    order = np.random.default_rng(3).permutation(12)
    plain = targets.sample_weights(jnp.asarray(ADVANTAGE), 0.5, kind)
    moved = targets.sample_weights(jnp.asarray((ADVANTAGE + shift)[order]), 0.5, kind)
    np.testing.assert_allclose(moved, np.asarray(plain)[order], rtol=1e-8, atol=1e-10)


def test_equal_rewards_have_equal_weights_and_standardize_to_none():
    flat = jnp.full((4, 2), 0.3)
    np.testing.assert_allclose(targets.sample_weights(flat, 0.1), 0.25)
    np.testing.assert_array_equal(targets.sample_weights(flat, 0.1, "z_linear"), 0.0)
    assert float(targets.solve_temperature(flat, 0.5)[0]) == 1.0


def test_temperature_meets_the_radius_and_is_least_of_the_dual(x64):
    advantage, radius = ADVANTAGE[:, :4], 0.9
    found = np.asarray(targets.solve_temperature(jnp.asarray(advantage), radius))
    for column, lam in zip(advantage.T, found, strict=True):
        weight = np.exp((column - column.max()) / lam)
        weight /= weight.sum()
        assert math.log(12) + (weight * np.log(weight)).sum() == pytest.approx(radius, abs=1e-10)

        def dual(log, column=column):
            value = kl_dual_loss(jnp.asarray(log), jnp.asarray(column), target_kl=radius)
            return float(value)

        at = dual(math.log(lam))
        assert at < dual(math.log(lam) + 1e-3) and at < dual(math.log(lam) - 1e-3)
    weight = targets.sample_weights(jnp.asarray(advantage), jnp.asarray(found))
    np.testing.assert_allclose(targets.divergence(weight), radius, atol=1e-10)


def test_temperature_scales_with_advantages_of_any_size():
    small = targets.solve_temperature(jnp.asarray(ADVANTAGE[:, 1:2], jnp.float32) * 1e-8, 1.0)
    large = targets.solve_temperature(jnp.asarray(ADVANTAGE[:, 1:2], jnp.float32) * 1e8, 1.0)
    assert float(large[0] / small[0]) == pytest.approx(1e16, rel=1e-4)


def test_the_price_follows_the_divergence(x64):
    """By the rule of adaptive prices: up beyond 1.5 times the target, down below 1 / 1.5 of it."""
    kl = jnp.asarray([0.31, 0.29, 0.2, 0.14, 0.13, 0.0, math.nan, math.inf])
    got = targets.adapt_temperature(jnp.full(8, 0.6), kl, 0.2)
    np.testing.assert_allclose(got, [0.9, 0.6, 0.6, 0.6, 0.4, 0.4, 0.6, 0.9], rtol=1e-12)
    ends = targets.adapt_temperature(jnp.asarray([1e-6, 1e6]), jnp.asarray([0.0, 9.0]), 0.2)
    np.testing.assert_allclose(ends, [1e-6, 1e6])
    assert float(targets.adapt_temperature(jnp.asarray(1e-8), jnp.asarray(0.2), 0.2)) == 1e-8


def test_effective_size_and_divergence_at_both_ends():
    one_hot, even = jnp.eye(8)[:, :1], jnp.full((8, 1), 0.125)
    assert float(targets.effective_size(one_hot)[0]) == 1.0
    assert float(targets.effective_size(even)[0]) == pytest.approx(8.0)
    assert float(targets.divergence(one_hot)[0]) == pytest.approx(math.log(8), rel=1e-6)
    assert float(targets.divergence(even)[0]) == pytest.approx(0.0, abs=1e-6)


def test_weights_of_advantages_are_clipped_before_they_are_shared_out(x64):
    advantage, log_ratio = ADVANTAGE[:, 2], ADVANTAGE[:, 1]
    for ratio in (None, log_ratio):
        expected = np.minimum(np.exp(advantage / 1.5), 4.0)
        if ratio is not None:
            expected = expected * np.minimum(np.exp(ratio), 1.3)
        got = targets.advantage_weights(
            jnp.asarray(advantage),
            1.5,
            largest=4.0,
            log_ratio=None if ratio is None else jnp.asarray(ratio),
            largest_ratio=1.3,
        )
        np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-12)
    far = targets.advantage_weights(jnp.asarray([-2e5, -1e5, 1e5]), 0.1, largest=math.inf)
    np.testing.assert_allclose(far, [0.0, 0.0, 1.0])


def test_what_went_better_than_expected_is_imitated():
    got = targets.imitation_weights(jnp.asarray([3.0, 1.0, 2.0]), jnp.asarray([1.0, 1.5, 1.0]))
    np.testing.assert_allclose(got, [2 / 3, 0.0, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(targets.imitation_weights(jnp.zeros(3), jnp.ones(3)), 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: targets.advantage_weights(a, 0.0), "temperature"),
        (lambda a: targets.advantage_weights(a, 1.0, largest=0.0), "largest must"),
        (lambda a: targets.advantage_weights(a, 1.0, largest_ratio=-1.0), "largest_ratio"),
        (lambda a: targets.sample_weights(a, 0.1, "best"), "kind must be one of"),
        (lambda a: targets.sample_weights(a, 0.0), "temperature"),
        (lambda a: targets.sample_weights(a, 0.1, "linear", lower=-2.0), "lower"),
        (lambda a: targets.solve_temperature(a, 3.0), "between 0 and log n"),
        (lambda a: targets.solve_temperature(a, 0.0), "between 0 and log n"),
        (lambda a: targets.adapt_temperature(0.1, a, 0.0), "target_kl must be positive"),
        (lambda a: targets.adapt_temperature(0.1, a, math.nan), "target_kl must be positive"),
        (lambda a: targets.exact_target(a, a, 1.0), "prior must give some action"),
        (lambda a: targets.exact_target(jnp.ones(3), a, 1.0), "shapes must be equal, got prior"),
        (lambda a: targets.imitation_weights(a, jnp.ones(3)), "shapes must be equal, got returns"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((8, 2)))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, np.float32(0.0)])
@pytest.mark.parametrize("known", [False, True], ids=["number", "array"])
def test_a_temperature_that_is_none_is_refused(temperature, known):
    given = jnp.asarray(temperature) if known else temperature
    for function in (
        lambda x: targets.exact_target(x, x, given),
        lambda x: targets.sample_weights(x, given),
        lambda x: targets.advantage_weights(x, given),
    ):
        with pytest.raises(ValueError, match="temperature must be positive"):
            function(jnp.ones(3))
