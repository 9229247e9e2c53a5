"""Uniform diffusion: posteriors by Bayes, the loss in its limit, the bound and the law of draws."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, schedules, uniform


def table_denoiser(logits, weights):
    """A denoiser of clean tokens that depends on the level."""

    def denoise(tokens, level):
        rows = exact.number(tokens, logits.shape[-1])
        return logits[rows] + level[..., None, None] * weights[rows]

    return denoise


def tables(vocab, length, seed=0):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=(vocab**length, length, vocab))) for _ in range(2))


def keep(alpha, vocab):
    """The kernel from a clean token to a noisy one, `[V, V]`."""
    return alpha * np.eye(vocab) + (1 - alpha) / vocab


def test_posterior_of_a_token_is_bayes_rule(x64):
    vocab, alpha_s, alpha_t = 4, 0.7, 0.3
    to_s, s_to_t = keep(alpha_s, vocab), keep(alpha_t / alpha_s, vocab)
    joint = to_s[:, :, None] * s_to_t[None]  # x, z_s, z_t
    expected = joint / joint.sum(axis=1, keepdims=True)
    x, z = (a.ravel() for a in np.meshgrid(np.arange(vocab), np.arange(vocab), indexing="ij"))
    got = uniform.posterior(
        jax.nn.one_hot(x, vocab, dtype=jnp.float64),
        jnp.asarray(z),
        jnp.full(16, alpha_s),
        jnp.full(16, alpha_t),
    )
    np.testing.assert_allclose(got, expected[x, :, z], rtol=1e-12)
    soft = np.random.default_rng(0).dirichlet(np.ones(vocab), 16)
    total = uniform.posterior(
        jnp.asarray(soft), jnp.asarray(z), jnp.full(16, alpha_s), jnp.full(16, alpha_t)
    ).sum(axis=-1)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)


def test_loss_of_many_steps_is_the_continuous_one(x64):
    vocab, length, t = 4, 2, 0.6
    denoise = table_denoiser(*tables(vocab, length))
    tokens, noisy = (jnp.asarray(x) for x in ([[0, 1], [2, 3], [1, 1]], [[0, 2], [2, 3], [3, 0]]))
    limit = uniform.continuous_loss(denoise, tokens, noisy, jnp.full(3, t), vocab=vocab)
    for num_steps, tolerance in ((1000, 3e-3), (10_000, 3e-4)):
        steps = jnp.full(3, int(t * num_steps), jnp.int32)
        schedule = schedules.make_schedule(num_steps)
        finite = uniform.step_loss(denoise, tokens, noisy, steps, vocab=vocab, schedule=schedule)
        np.testing.assert_allclose(finite, limit, rtol=tolerance)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_mean_of_the_steps_bounds_the_law_and_draws_follow_it(x64, num_steps):
    vocab, length = 2, 2
    denoise = table_denoiser(*tables(vocab, length, 1))
    schedule = schedules.make_schedule(num_steps)
    law = np.asarray(exact.uniform_sampler_law(denoise, schedule, vocab=vocab, length=length))
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    clean = exact.sequences(vocab, length)
    bound = np.zeros(4)
    for n in range(1, num_steps + 1):
        kernel = keep(float(schedule.alpha[n]), vocab)
        for noisy in itertools.product(range(vocab), repeat=length):
            chance = np.prod([kernel[clean[:, k], noisy[k]] for k in range(length)], axis=0)
            loss = uniform.step_loss(
                denoise,
                jnp.asarray(clean),
                jnp.broadcast_to(jnp.asarray(noisy), clean.shape),
                jnp.full(4, n),
                vocab=vocab,
                schedule=schedule,
            )
            bound += chance * np.asarray(loss) / num_steps
    gap = bound + np.log(law)
    assert (gap > -1e-12).all()
    if num_steps == 1:
        assert gap.max() > 1e-6  # the prior is forgotten in one step, but not by the denoiser
    drawn = uniform.sample(
        jax.random.key(0), denoise, (30_000,), length, vocab=vocab, schedule=schedule
    )
    assert drawn.states.shape == (num_steps + 1, 30_000, length)
    counts = np.bincount(np.asarray(exact.number(drawn.tokens, vocab)), minlength=4) / 30_000
    np.testing.assert_array_less(abs(counts - law), 5 * np.sqrt(law * (1 - law) / 30_000))


def test_path_probabilities_add_up_to_the_law(x64):
    vocab, length, num_steps = 2, 2, 2
    denoise = table_denoiser(*tables(vocab, length, 2))
    schedule = schedules.make_schedule(num_steps)
    law = np.asarray(exact.uniform_sampler_law(denoise, schedule, vocab=vocab, length=length))
    clean = exact.sequences(vocab, length)
    paths = np.array(list(itertools.product(range(4), repeat=num_steps + 1)))
    states = jnp.asarray(clean[paths.T])
    logp = uniform.step_logp(denoise, states, jnp.arange(1, 3), vocab=vocab, schedule=schedule)
    total = np.bincount(paths[:, 0], weights=np.exp(np.asarray(logp).sum(axis=0)) / 4)
    np.testing.assert_allclose(total, law, rtol=1e-10)


@pytest.mark.parametrize("steps", [None, 5])
def test_estimate_has_the_exact_loss_as_its_mean(x64, steps):
    vocab, length, draws = 3, 1, 20_000
    denoise = table_denoiser(*tables(vocab, length, 3))
    schedule = None if steps is None else schedules.make_schedule(steps)
    tokens = jnp.full((draws, 1), 1, jnp.int32)
    estimate = np.asarray(
        uniform.nelbo(jax.random.key(1), denoise, tokens, vocab=vocab, schedule=schedule)
    )
    fine = schedules.make_schedule(steps or 2000)
    total = 0.0
    for z in range(vocab):
        n = np.arange(1, fine.num_steps + 1)
        chance = np.asarray(fine.alpha)[n] * (z == 1) + (1 - np.asarray(fine.alpha)[n]) / vocab
        args = (jnp.full((n.size, 1), x, jnp.int32) for x in (1, z))
        loss = uniform.step_loss(denoise, *args, jnp.asarray(n), vocab=vocab, schedule=fine)
        total += (chance * np.asarray(loss)).mean()
    error = estimate.std() / math.sqrt(draws)
    assert abs(estimate.mean() - total) < 5 * error + 2e-3 * total


def test_float32_loss_is_finite_at_both_ends():
    denoise = lambda tokens, level: jnp.zeros((*tokens.shape, 3))  # noqa: E731
    tokens = jnp.zeros((2, 4), jnp.int32)
    noisy = jnp.asarray([[0, 1, 2, 0], [0, 0, 0, 0]])
    for level in (1e-3, 1.0 - 1e-3):
        loss = uniform.continuous_loss(denoise, tokens, noisy, jnp.full(2, level), vocab=3)
        assert jnp.isfinite(loss).all() and (loss > -1e-3).all()


@pytest.mark.parametrize("options", [{"length": 0}, {"vocab": 0}])
def test_empty_sizes_are_refused(options):
    known = {"length": 3, "vocab": 2, "schedule": schedules.make_schedule(3), **options}
    with pytest.raises(ValueError, match="at least 1"):
        uniform.sample(jax.random.key(0), lambda x, t: x, (2,), **known)


@pytest.mark.parametrize("x", [-80.0, -120.0, -200.0])
def test_probabilities_that_underflow_keep_their_logarithms_and_slopes(x):
    """At n = 1 nothing is left but the clean probability, exp(-200) of which float32 is zero."""
    schedule, noisy = schedules.make_schedule(4), jnp.zeros((1,), jnp.int32)

    def found(logits):
        return uniform.reverse_logits(
            lambda *_: logits[None], noisy, jnp.asarray(1), vocab=3, schedule=schedule
        )[0]

    logits = np.array([x, 0.0, 0.0])
    alpha = float(schedule.alpha[1])
    clean = np.exp(logits) / np.sum(np.exp(logits))
    top = (3.0 * alpha * np.array([1.0, 0.0, 0.0]) + 1.0 - alpha) * clean
    expected = np.log(top / (3.0 * alpha * clean[0] + 1.0 - alpha))
    given = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(found(given), expected, rtol=1e-5)
    slope = jax.jacobian(found)(given)
    np.testing.assert_allclose(slope[0], [1.0, -0.5, -0.5], atol=1e-5)
    assert np.all(np.isfinite(slope))


def test_tokens_that_a_denoiser_rules_out_leave_loss_and_slope_finite():
    """The last step of two tokens of three is that of a vocabulary without the third."""
    schedule = schedules.make_schedule(4)
    tokens, noisy = jnp.asarray([0, 1]), jnp.asarray([1, 1])

    def loss(x):
        logits = jnp.stack([x, -x, jnp.asarray(-jnp.inf)])
        return uniform.step_loss(
            lambda *_: jnp.tile(logits, (2, 1)),
            tokens,
            noisy,
            jnp.asarray(1),
            vocab=3,
            schedule=schedule,
        )

    alpha = float(schedule.alpha[1])
    expected = 0.0
    for clean in (0, 1):
        laws = []
        for probs in (np.eye(2)[clean], np.exp([0.3, -0.3]) / np.sum(np.exp([0.3, -0.3]))):
            top = (3.0 * alpha * np.array([0.0, 1.0]) + 1.0 - alpha) * probs
            laws.append(top / top.sum())
        expected += 4.0 * float(np.log(laws[0][clean] / laws[1][clean]))
    value, slope = jax.value_and_grad(loss)(0.3)
    assert float(value) == pytest.approx(expected, rel=1e-4)
    numeric = (loss(0.31) - loss(0.29)) / 0.02
    assert float(slope) == pytest.approx(float(numeric), rel=1e-2)
