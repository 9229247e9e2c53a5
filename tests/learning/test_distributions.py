"""Distributions of actions: scipy, quadrature and enumeration; masks; gradients where logits are
minus infinity."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from jaxlab.learning import distributions

RANDOM = np.random.default_rng(3)
NUMS = (3, 1, 4)


def test_gaussian_is_scipy_s(x64):
    """Many dimensions are one multivariate normal; the divergence is that of its matrices."""
    normal = distributions.gaussian(3)
    params, other = (jnp.asarray(RANDOM.normal(size=(5, 6))) for _ in range(2))
    action = jnp.asarray(RANDOM.normal(size=(5, 3)))
    found = [f(params) for f in (normal.entropy, normal.mode)]
    logp, kl = normal.log_prob(params, action), normal.kl(params, other)
    for i in range(5):
        mean, cov = params[i, :3], np.diag(np.exp(2 * params[i, 3:]))
        center, scale = other[i, :3], np.diag(np.exp(2 * other[i, 3:]))
        law = scipy.stats.multivariate_normal(mean, cov)
        np.testing.assert_allclose(logp[i], law.logpdf(action[i]), rtol=1e-12)
        np.testing.assert_allclose(found[0][i], law.entropy(), rtol=1e-12)
        np.testing.assert_array_equal(found[1][i], mean)
        away, inverse = np.asarray(center - mean), np.linalg.inv(scale)
        determinants = np.log(np.linalg.det(scale) / np.linalg.det(cov))
        want = 0.5 * (np.trace(inverse @ cov) + away @ inverse @ away - 3 + determinants)
        np.testing.assert_allclose(kl[i], want, rtol=1e-10)


def test_divergence_of_near_gaussians_keeps_its_digits():
    """KL of standard deviations 1 and 1 + e is e^2, here 1e-8, which one minus one would lose."""
    normal = distributions.gaussian(1)
    near = jnp.asarray([0.0, 1e-4])
    np.testing.assert_allclose(normal.kl(jnp.zeros(2), near), 1e-8, rtol=1e-3)


@pytest.mark.parametrize("mean, std", [(0.0, 0.3), (0.4, 1.0), (-1.5, 2.0), (3.0, 7.4)])
def test_squashed_gaussian_by_quadrature(x64, mean, std):
    """In the actions' own coordinate, where the density may have two peaks at the bounds."""
    law = distributions.squashed_gaussian(1)
    params = jnp.asarray([mean, np.log(std)])
    x = mean + std * np.linspace(-9.0, 9.0, 200_001)
    x = x[np.abs(x) < 17.0]  # beyond, tanh rounds to one
    action = np.tanh(x)
    inside = 1.0 - action**2
    logp = np.asarray(jax.jit(jax.vmap(law.log_prob, (None, 0)))(params, action[:, None]))
    want = scipy.stats.norm(mean, std).logpdf(x) - np.log(inside)
    near = np.abs(x) < 8.0
    np.testing.assert_allclose(logp[near], want[near], atol=1e-6)
    total = scipy.stats.norm(mean, std).cdf([-17.0, 17.0])
    np.testing.assert_allclose(
        scipy.integrate.simpson(np.exp(logp) * inside, x=x), total[1] - total[0], atol=1e-4
    )

    def surprise(x):
        stretch = 2.0 * (np.log(2.0) - np.logaddexp(x, -x))
        return scipy.stats.norm(mean, std).pdf(x) * stretch

    ends = mean - 12 * std, mean + 12 * std
    stretch, _ = scipy.integrate.quad(surprise, *ends, epsabs=1e-11, limit=400)
    entropy = scipy.stats.norm(mean, std).entropy() + stretch
    np.testing.assert_allclose(law.entropy(params), entropy, atol=1e-5)
    np.testing.assert_allclose(law.mode(params), np.tanh([mean]), rtol=1e-12)


def test_squashed_gaussian_by_its_samples(key):
    """Means of log-probabilities of a million actions, those among them that are all but 1."""
    law = distributions.squashed_gaussian(2)
    params = jnp.asarray([0.5, -2.0, 0.0, 0.7])
    other = jnp.asarray([0.2, -1.0, 0.3, 0.4])
    count = 1_000_000

    @jax.jit
    def draw(key):
        many = jnp.broadcast_to(params, (count, 4))
        action = law.sample(key, many)
        logp = law.log_prob(many, action)
        return action, logp, logp - law.log_prob(jnp.broadcast_to(other, (count, 4)), action)

    action, logp, ratio = map(np.asarray, draw(key))
    assert np.all(np.isfinite(logp)) and 1.0 - np.abs(action).max() < 1e-6
    for found, want in ((-logp, law.entropy(params)), (ratio, law.kl(params, other))):
        error = found.std(dtype=np.float64) / count**0.5
        np.testing.assert_allclose(found.mean(dtype=np.float64), want, atol=4 * error + 1e-4)
    for i, (mean, std) in enumerate(((0.5, 1.0), (-2.0, np.exp(0.7)))):
        quantiles = np.quantile(action[:, i], [0.1, 0.5, 0.9])
        want = np.tanh(scipy.stats.norm(mean, std).ppf([0.1, 0.5, 0.9]))
        np.testing.assert_allclose(quantiles, want, atol=0.01)


def test_drawn_and_recomputed_densities_agree():
    """`squashed_logp` of what was drawn, and `log_prob` of the action that is left of it."""
    law = distributions.squashed_gaussian(1)
    params = jnp.asarray([1.0, 0.2])
    noise = jnp.linspace(-3.0, 3.0, 101)[:, None]
    x = 1.0 + np.exp(0.2).astype(np.float32) * noise
    drawn = distributions.squashed_logp(x, noise, jnp.full_like(x, 0.2))
    again = jax.vmap(law.log_prob, (None, 0))(params, jnp.tanh(x))
    np.testing.assert_allclose(again, drawn, atol=2e-2)  # 1 - tanh(4.7) has 3 digits left
    np.testing.assert_allclose(again[:60], drawn[:60], atol=1e-4)


def test_categorical_is_scipy_s(x64):
    law = distributions.categorical(5)
    logits, others = RANDOM.normal(size=(2, 4, 5)) * 3
    p, q = scipy.special.softmax(logits, axis=1), scipy.special.softmax(others, axis=1)
    logits, others = jnp.asarray(logits), jnp.asarray(others)
    np.testing.assert_allclose(law.entropy(logits), scipy.stats.entropy(p, axis=1), rtol=1e-12)
    np.testing.assert_allclose(law.kl(logits, others), scipy.stats.entropy(p, q, axis=1))
    for action in range(5):
        found = law.log_prob(logits, jnp.full(4, action))
        np.testing.assert_allclose(found, np.log(p[:, action]), rtol=1e-12)
    np.testing.assert_array_equal(law.mode(logits), p.argmax(axis=1))


def test_several_categoricals_by_enumeration(x64):
    """Over all 12 actions: probabilities, entropy, divergence, and the mode, with two masked."""
    law = distributions.multi_categorical(NUMS)
    mask = jnp.asarray([True, False, True, True, True, True, False, True])
    params, other = (
        distributions.mask_logits(jnp.asarray(x), mask) for x in RANDOM.normal(size=(2, 8))
    )
    actions = np.array(list(itertools.product(*map(range, NUMS))))
    logp, logq = (
        np.asarray(jax.vmap(law.log_prob, (None, 0))(x, jnp.asarray(actions)))
        for x in (params, other)
    )
    p = np.exp(logp)
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(p == 0.0, (actions[:, 0] == 1) | (actions[:, 2] == 2))
    kept = p > 0
    factors = [scipy.special.softmax(np.asarray(x)) for x in np.split(params, [3, 4])]
    want = np.prod([f[a] for f, a in zip(factors, actions.T, strict=True)], axis=0)
    np.testing.assert_allclose(p, want, rtol=1e-12)
    np.testing.assert_allclose(law.entropy(params), -np.sum(p[kept] * logp[kept]), rtol=1e-12)
    np.testing.assert_allclose(
        law.kl(params, other), np.sum(p[kept] * (logp[kept] - logq[kept])), rtol=1e-12
    )
    np.testing.assert_array_equal(law.mode(params), actions[p.argmax()])
    out = law.log_prob(params, jnp.asarray([0, 1, 0]))  # the second has one action alone
    assert out == -jnp.inf


def test_equal_numbers_take_the_short_way():
    """Where all have one size the logits are reshaped; the same as one by one."""
    law, one = distributions.multi_categorical((4, 4, 4)), distributions.categorical(4)
    params = jnp.asarray(RANDOM.normal(size=(6, 12)), jnp.float32)
    action = jnp.asarray(RANDOM.integers(0, 4, (6, 3)))
    found = law.log_prob(params, action)
    want = sum(one.log_prob(params[:, 4 * k : 4 * k + 4], action[:, k]) for k in range(3))
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_draws_have_their_frequencies(key):
    """Of both kinds of choice, and never one that is forbidden."""
    law, count = distributions.multi_categorical(NUMS), 200_000
    mask = jnp.asarray([True, True, False, True, False, True, True, True])
    params = distributions.mask_logits(jnp.asarray(RANDOM.normal(size=8), jnp.float32), mask)
    drawn = np.asarray(jax.jit(law.sample)(key, jnp.broadcast_to(params, (count, 8))))
    assert drawn.dtype == np.int32 and drawn.shape == (count, 3)
    single = distributions.categorical(4).sample(key, jnp.broadcast_to(params[4:], (count, 4)))
    for component, chosen, logits in (
        (0, drawn[:, 0], params[:3]),
        (2, drawn[:, 2], params[4:]),
        (None, np.asarray(single), params[4:]),
    ):
        p = scipy.special.softmax(np.asarray(logits, np.float64))
        share = np.bincount(chosen, minlength=len(p)) / count
        assert np.all(share[p == 0] == 0), component
        np.testing.assert_array_less(np.abs(share - p), 4.5 * np.sqrt(p / count) + 1e-9)
    pairs = np.corrcoef(drawn[:, 0], drawn[:, 2])[0, 1]
    assert abs(pairs) < 4.5 / count**0.5  # components do not share their noise


@pytest.mark.parametrize("name", ["entropy", "kl", "log_prob"])
def test_gradients_with_masks_are_those_of_what_is_left(x64, name):
    """Logits of minus infinity have gradient zero; the rest is as if there were no more."""
    full, few = distributions.categorical(5), distributions.categorical(3)
    kept = np.array([0, 2, 3])
    mask = jnp.zeros(5, bool).at[kept].set(True)
    logits, other = jnp.asarray(RANDOM.normal(size=(2, 5)))

    def value(law, logits, other, action):
        if name == "kl":
            return law.kl(logits, other)
        return law.entropy(logits) if name == "entropy" else law.log_prob(logits, action)

    def masked(logits, other):
        cut = (distributions.mask_logits(x, mask) for x in (logits, other))
        return value(full, *cut, jnp.asarray(2))

    found = jax.grad(masked, argnums=(0, 1))(logits, other)
    want = jax.grad(lambda x, y: value(few, x, y, jnp.asarray(1)), argnums=(0, 1))(
        logits[kept], other[kept]
    )
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got[kept], expected, rtol=1e-9, atol=1e-12)
        assert np.all(np.asarray(got)[[1, 4]] == 0.0)


def test_one_allowed_action_leaves_nothing_to_choose():
    law = distributions.categorical(3)
    logits = distributions.mask_logits(jnp.asarray([5.0, -2.0, 1.0]), jnp.arange(3) == 1)
    entropy, gradient = jax.value_and_grad(law.entropy)(logits)
    assert entropy == 0.0 and not gradient.any()
    logp, gradient = jax.value_and_grad(law.log_prob)(logits, jnp.asarray(1))
    assert logp == 0.0 and not gradient.any()
    assert law.mode(logits) == 1 and law.sample(jax.random.key(0), logits) == 1


def test_no_allowed_action_is_no_number():
    """Nobody takes it for a probability; other rows of the batch do not see it."""
    law = distributions.multi_categorical((2, 2))
    mask = jnp.asarray([[True, True, False, False], [True, True, True, False]])
    params = distributions.mask_logits(jnp.zeros((2, 4)), mask)
    action = jnp.zeros((2, 2), jnp.int32)
    for x in (law.log_prob(params, action), law.entropy(params), law.kl(params, params)):
        assert np.isnan(x[0]) and np.isfinite(x[1])


def test_an_action_allowed_by_one_alone_is_infinitely_far():
    law = distributions.categorical(2)
    only = distributions.mask_logits(jnp.zeros(2), jnp.asarray([True, False]))
    assert law.kl(jnp.zeros(2), only) == jnp.inf
    np.testing.assert_allclose(law.kl(only, jnp.zeros(2)), np.log(2.0), rtol=1e-6)


def test_small_floats_are_computed_in_single_precision():
    """Half precision would round a log-probability of -8.31 by up to 0.03."""
    logits = jnp.zeros(4096, jnp.bfloat16)
    found = distributions.categorical(4096).log_prob(logits, jnp.asarray(0))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, -np.log(4096.0), rtol=1e-6)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        distributions.gaussian(0)
    with pytest.raises(ValueError, match="num must be at least 1, got 2.5; give integers"):
        distributions.categorical(2.5)
    with pytest.raises(ValueError, match="nums must be at least 1, got none"):
        distributions.multi_categorical(())
    with pytest.raises(ValueError, match="nums must be at least 1, got 3, 0"):
        distributions.multi_categorical((3, 0))
    with pytest.raises(ValueError, match=r"params must be \[..., 3\] floats, got float32 \(4,\)"):
        distributions.categorical(3).entropy(jnp.zeros(4))
    with pytest.raises(ValueError, match="action must be"):
        distributions.categorical(3).log_prob(jnp.zeros(3), jnp.zeros(()))
    with pytest.raises(ValueError, match="action must be"):
        distributions.gaussian(2).log_prob(jnp.zeros(4), jnp.zeros((5, 2)))
