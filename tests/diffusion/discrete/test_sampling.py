"""Drawing from masked denoisers: laws by enumeration, closed forms, and what every path keeps."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, masked, path, sampling, schedules

ORDERS = ("ancestral", "random", "drawn", "largest", "margin", "entropy")


def table(seed, vocab, length):
    shape = ((vocab + 1) ** length, length, vocab)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def frequencies(tokens, vocab):
    length = tokens.shape[-1]
    numbers = np.asarray(exact.number(tokens, vocab))
    return np.bincount(numbers.ravel(), minlength=vocab**length) / numbers.size


def uniform_on(accept, vocab, length):
    good = np.array([accept(x) for x in exact.sequences(vocab, length)], float)
    return good / good.sum()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_parity_succeeds_as_often_as_its_closed_form_says(num_steps):
    length = 4
    with jax.enable_x64(True):
        joint = uniform_on(lambda x: x.sum() % 2 == 0, 2, length)
        denoise = exact.table_denoiser(exact.conditionals(joint, vocab=2, length=length))
        schedule = schedules.make_schedule(num_steps)
        law = np.asarray(exact.sampler_law(denoise, schedule, vocab=2, length=length))
    N, K = num_steps, length
    expected = 0.5 + 0.5 * sum(K / N * ((j - 1) / N) ** (K - 1) for j in range(1, N + 1))
    assert law[joint > 0].sum() == pytest.approx(expected, abs=1e-12)
    if num_steps == 3:
        assert expected == pytest.approx(0.722222, abs=1e-6)


def test_permutations_come_out_as_often_as_published():
    length = 4
    with jax.enable_x64(True):
        joint = uniform_on(lambda x: len(set(x.tolist())) == length, length, length)
        denoise = exact.table_denoiser(exact.conditionals(joint, vocab=length, length=length))
        valid = [
            np.asarray(
                exact.sampler_law(denoise, schedules.make_schedule(n), vocab=length, length=length)
            )[joint > 0].sum()
            for n in (1, 2, 4, 16)
        ]
    assert valid[0] == pytest.approx(math.factorial(4) / 4**4, abs=1e-12)
    np.testing.assert_allclose(valid, [0.09375, 0.301649, 0.563314, 0.871554], atol=5e-7)


def test_ancestral_draws_follow_the_enumerated_law():
    vocab, length, num_steps = 3, 3, 3
    denoise = exact.table_denoiser(jnp.asarray(table(0, vocab, length)))
    schedule = schedules.make_schedule(num_steps, "cosine")
    law = np.asarray(exact.sampler_law(denoise, schedule, vocab=vocab, length=length))
    drawn = sampling.sample(
        jax.random.key(0), denoise, (40_000,), length, vocab=vocab, schedule=schedule
    )
    error = np.sqrt(law * (1 - law) / 40_000)
    np.testing.assert_array_less(abs(frequencies(drawn.tokens, vocab) - law), 5 * error)
    share = [(np.asarray(drawn.reveal) == n).mean() for n in (1, 2, 3)]
    expected = -np.diff(np.asarray(schedule.alpha))
    np.testing.assert_allclose(share, expected, atol=5 * math.sqrt(0.25 / 120_000))


def one_token_a_step(denoise, vocab, length):
    return sampling.sample(
        jax.random.key(1),
        denoise,
        (40_000,),
        length,
        vocab=vocab,
        schedule=schedules.make_schedule(length),
        order="random",
    )


def test_random_order_one_token_a_step_follows_the_true_joint():
    vocab, length = 2, 3
    joint = np.random.default_rng(1).dirichlet(np.ones(8))
    denoise = exact.table_denoiser(exact.conditionals(joint, vocab=vocab, length=length))
    drawn = one_token_a_step(denoise, vocab, length)
    error = np.sqrt(joint * (1 - joint) / 40_000)
    np.testing.assert_array_less(abs(frequencies(drawn.tokens, vocab) - joint), 5 * error)
    assert (np.sort(np.asarray(drawn.reveal), axis=-1) == np.arange(1, 4)).all()


def test_random_order_one_token_a_step_has_the_mean_law_of_all_orders():
    """Of a denoiser whose orders disagree; the bound of continuous time is above its -log."""
    vocab, length = 2, 3
    logits = 2.0 * table(6, vocab, length)
    denoise = exact.table_denoiser(jnp.asarray(logits))
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    clean, powers = exact.sequences(vocab, length), (vocab + 1) ** np.arange(length - 1, -1, -1)
    orders = list(itertools.permutations(range(length)))
    each = np.zeros((len(orders), len(clean)))
    for i, order in enumerate(orders):
        for j, place in enumerate(order):
            partial = np.where(np.isin(np.arange(length), order[j:]), vocab, clean)
            each[i] += logs[partial @ powers, place, clean[:, place]]
    law = np.exp(each).mean(axis=0)
    assert np.exp(each).std(axis=0).max() > 0.05
    drawn = one_token_a_step(denoise, vocab, length)
    error = np.sqrt(law * (1 - law) / 40_000)
    np.testing.assert_array_less(abs(frequencies(drawn.tokens, vocab) - law), 5 * error)
    bound = np.asarray(exact.nelbo_subsets(denoise, vocab=vocab, length=length))
    assert (bound + np.log(law)).min() > 1e-3


@pytest.mark.parametrize("order", ORDERS)
def test_what_every_path_keeps(order):
    """Tokens given stay, no mask is left, N calls, and logp is that of the revealed tokens."""
    vocab, length, num_steps, batch = 4, 5, 3, 64
    calls = []
    logits = jnp.asarray(table(2, vocab, length))
    plain = exact.table_denoiser(logits)

    def denoise(tokens, level):
        jax.debug.callback(calls.append, level[0])
        return plain(tokens, level)

    given = jnp.full((batch, length), vocab, jnp.int32).at[:, 1].set(2)
    schedule = schedules.make_schedule(num_steps)
    drawn = sampling.sample(
        jax.random.key(2),
        denoise,
        (batch,),
        length,
        vocab=vocab,
        schedule=schedule,
        order=order,
        given=given,
    )
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(np.asarray(calls)), np.asarray(schedule.level)[1:])
    tokens, reveal = np.asarray(drawn.tokens), np.asarray(drawn.reveal)
    assert (tokens[:, 1] == 2).all() and (reveal[:, 1] == num_steps + 1).all()
    free = np.delete(reveal, 1, axis=1)
    assert (
        tokens.min() >= 0 and tokens.max() < vocab and free.min() >= 1 and free.max() <= num_steps
    )
    if order != "ancestral":  # four tokens in three steps
        counts = [(free == n).sum(axis=1) for n in (3, 2, 1)]
        expected = (2, 1, 1)  # also ceil(4 / 3), ceil(2 / 2), 1
        assert all((count == e).all() for count, e in zip(counts, expected, strict=True))
    logs = np.asarray(jax.nn.log_softmax(logits))
    for n in range(1, num_steps + 1):
        state = np.where(reveal > n, tokens, vocab)
        np.testing.assert_array_equal(
            state, path.visited(drawn.tokens, drawn.reveal, n, vocab=vocab)
        )
        rows = logs[np.asarray(exact.number(jnp.asarray(state), vocab + 1))]
        at = np.take_along_axis(rows, tokens[..., None], axis=-1)[..., 0]
        expected = np.where(reveal == n, at, 0.0).sum(axis=-1)
        np.testing.assert_allclose(drawn.logp[n - 1], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["drawn", "largest", "margin", "entropy"])
def test_the_most_confident_place_comes_first(order):
    """Two places; which of them is surer depends on how it is asked."""
    probs = jnp.asarray([[0.5, 0.49, 0.01], [0.48, 0.26, 0.26]])

    def denoise(tokens, level):
        return jnp.broadcast_to(jnp.log(probs), (*tokens.shape, 3))

    drawn = sampling.sample(
        jax.random.key(3),
        denoise,
        (256,),
        2,
        vocab=3,
        schedule=schedules.make_schedule(2),
        order=order,
    )
    first = np.asarray(drawn.reveal)[:, 0] == 2
    tokens = np.asarray(drawn.tokens)
    if order == "largest":
        assert first.all()
    elif order == "margin":
        assert not first.any()
    elif order == "entropy":
        p = np.asarray(probs)
        assert first.all() == ((p * np.log(p)).sum(axis=1).argmax() == 0)
        assert first.all() or not first.any()
    else:
        # Of the first place two tokens are surer than all of the second, and one of them is drawn.
        assert (tokens[first, 0] < 2).all()
        assert abs(first.mean() - 0.99) < 5 * math.sqrt(0.99 * 0.01 / 256)


def test_sharpened_probabilities_are_the_ones_that_are_drawn_from():
    vocab, length = 4, 2
    logits = jnp.asarray([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])
    valid = jnp.asarray([[False, True, True, True], [True, True, True, True]])

    def denoise(tokens, level):
        return jnp.broadcast_to(logits, (*tokens.shape, vocab))

    sharp = sampling.sharpen(denoise, temperature=0.5, top_p=0.9, valid=valid)
    probs = np.exp(np.asarray(masked.log_probs(sharp, jnp.zeros((1, 2), jnp.int32), jnp.ones(1))))[
        0
    ]
    first = np.exp(2 * np.array([1.0, 0.0, -1.0]))
    first = np.array([0.0, *first[:2], 0.0]) / first[:2].sum()  # .865 is short of .9: two are kept
    np.testing.assert_allclose(probs, [first, [0.0, 0.0, 1.0, 0.0]], rtol=1e-5, atol=1e-7)
    schedule = schedules.make_schedule(2)
    drawn = sampling.sample(
        jax.random.key(4), sharp, (20_000,), length, vocab=vocab, schedule=schedule
    )
    tokens = np.asarray(drawn.tokens)
    assert set(tokens[:, 0]) == {1, 2} and set(tokens[:, 1]) == {2}
    share = (tokens[:, 0] == 1).mean()
    assert abs(share - first[1]) < 5 * math.sqrt(first[1] * (1 - first[1]) / 20_000)
    total = path.step_logp(
        sharp, drawn.tokens, drawn.reveal, jnp.arange(1, 3), vocab=vocab, schedule=schedule
    )
    np.testing.assert_allclose(total, drawn.logp, rtol=1e-5, atol=1e-6)


def test_guidance_extrapolates_log_probabilities():
    one, two = (jnp.log(jnp.asarray(p)) for p in ([[0.7, 0.3]], [[0.5, 0.5]]))
    guided = sampling.guide(lambda x, t: one, lambda x, t: two, 2.0)
    probs = jnp.exp(masked.log_probs(guided, jnp.zeros(1, jnp.int32), jnp.zeros(())))
    expected = np.array([0.7**3 / 0.25, 0.3**3 / 0.25])
    np.testing.assert_allclose(probs[0], expected / expected.sum(), rtol=1e-5)


def test_remasking_keeps_the_number_of_visible_tokens():
    vocab, length, num_steps = 3, 8, 4
    schedule = schedules.make_schedule(num_steps)
    alpha = np.asarray(schedule.alpha)
    most = np.concatenate([[0.0, 0.0], (1 - alpha[1:-2]) / alpha[2:-1], [0.0]])
    remask = jnp.asarray(0.8 * np.minimum(most, 1.0), jnp.float32)
    seen = []

    def denoise(tokens, level):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), tokens)
        return jnp.zeros((*tokens.shape, vocab))

    drawn = sampling.sample(
        jax.random.key(5), denoise, (8000,), length, vocab=vocab, schedule=schedule, remask=remask
    )
    jax.effects_barrier()
    assert (np.asarray(drawn.tokens) < vocab).all()
    visible = sorted((x < vocab).mean() for x in seen)
    np.testing.assert_allclose(visible, alpha[:0:-1], atol=5 * math.sqrt(0.25 / 64_000))
    again = sum(((a < vocab) & (b == vocab)).sum() for a, b in itertools.pairwise(seen))
    assert again > 1000  # some tokens were hidden again
    with pytest.raises(ValueError, match="remask must lie"):
        sampling.sample(
            jax.random.key(0),
            denoise,
            (2,),
            2,
            vocab=2,
            schedule=schedule,
            remask=remask.at[1].set(0.1),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "at least 1"),
        ({"vocab": 0}, "at least 1"),
        ({"order": "best"}, "order must be one of"),
        ({"given": jnp.zeros((2, 4), jnp.int32)}, "given must be"),
        ({"given": jnp.full((2, 3), 3)}, r"given must be in 0 \.\. 2"),
        ({"remask": jnp.full(4, jnp.nan)}, "remask must lie"),
        ({"order": "random", "remask": jnp.zeros(4)}, "remask goes with"),
    ],
)
def test_bad_input_is_refused(options, message):
    known = {"length": 3, "vocab": 2, "schedule": schedules.make_schedule(3), **options}
    with pytest.raises(ValueError, match=message):
        sampling.sample(jax.random.key(0), lambda x, t: x, (2,), **known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": jnp.asarray([1.0, 0.0])}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"valid": jnp.asarray([[True, False], [False, False]])}, "valid"),
    ],
)
def test_bad_sharpening_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampling.sharpen(lambda x, t: x, **options)


def test_a_place_without_a_token_is_refused_and_told_under_jit():
    """Where JAX traces, the log-probability is NaN: of that sequence alone."""
    valid = jnp.ones((2, 3, 2), bool).at[1, 2].set(False)
    schedule = schedules.make_schedule(2)

    def draw(valid, limit):
        def denoise(tokens, level):
            flat = jnp.zeros((2, 3, 2))
            return jnp.where(valid, flat, limit) if limit is not None else flat

        sharp = denoise if limit is not None else sampling.sharpen(denoise, valid=valid)
        return sampling.sample(
            jax.random.key(0), sharp, (2,), 3, vocab=2, schedule=schedule
        ).logp.sum(axis=0)

    for limit in (None, -jnp.inf):
        logp = np.asarray(jax.jit(lambda valid, limit=limit: draw(valid, limit))(valid))
        assert logp[0] == pytest.approx(-3 * math.log(2.0), rel=1e-5) and np.isnan(logp[1])
    with pytest.raises(ValueError, match="the denoiser must leave a token at every place"):
        draw(valid, -jnp.inf)
