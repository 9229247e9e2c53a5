"""The report of generated DNA, every number of it beside a plain loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.rl import discrete
from jaxlab.rl.discrete import enhancers

L = 40


def hits(tokens):
    """Windows of each motif whose score, on the better strand, is above 0.82 of the best."""
    counts = []
    for probs in enhancers._probs().values():
        weight = np.log2(probs / 0.25)
        size = len(weight)
        windows = np.lib.stride_tricks.sliding_window_view(tokens, size, axis=1)
        forward = weight[np.arange(size), windows].sum(axis=-1)
        backward = weight[np.arange(size), (3 - windows)[..., ::-1]].sum(axis=-1)
        found = np.maximum(forward, backward) / weight.max(axis=1).sum() > 0.82
        counts.append(found.sum())
    return counts


def trimers(tokens):
    words = [tuple(row[i : i + 3]) for row in tokens for i in range(tokens.shape[1] - 2)]
    return [words.count((a, b, c)) for a in range(4) for b in range(4) for c in range(4)]


@pytest.fixture(scope="module")
def batches():
    corpus = enhancers.draw_corpus(jax.random.key(0), 300, length=L)
    generated = np.array(corpus[:41])
    generated[5] = generated[3]
    return generated, discrete.most_active(corpus, enhancers.score(corpus).activity, share=0.1)


def test_every_number_is_that_of_a_plain_loop(batches):
    generated, reference = batches
    logits = np.random.default_rng(1).normal(size=(L, 4))
    policy = discrete.make_factored_policy(4, L)
    report = discrete.eval_dna(
        jax.random.key(1),
        jnp.asarray(generated),
        reference,
        policy,
        jnp.asarray(logits, jnp.float32),
        reward=lambda tokens: jnp.sum(tokens == 0, axis=1, dtype=jnp.float32),
        judge=lambda tokens: jnp.sum(tokens == 1, axis=1, dtype=jnp.float32),
        num_steps=1,  # everything is hidden once: no noise
    )
    scores = enhancers.score(jnp.asarray(generated))
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    pairs = [
        (a != b).mean() for i, a in enumerate(generated) for j, b in enumerate(generated) if i < j
    ]
    expected = {
        "reward": np.median((generated == 0).sum(axis=1)),
        "judge": np.median((generated == 1).sum(axis=1)),
        "activity": np.median(np.asarray(scores.activity)),
        "open_share": (np.asarray(scores.open_prob) > 0.5).mean(),
        "trimer_correlation": stats.pearsonr(
            trimers(generated), trimers(np.asarray(reference))
        ).statistic,
        "motif_correlation": stats.spearmanr(
            hits(generated), hits(np.asarray(reference))
        ).statistic,
        "log_likelihood": np.median(logp[np.arange(L), generated].sum(axis=1)),
        "distance": np.mean(pairs),
        "unique": len({tuple(row) for row in generated}) / len(generated),
    }
    assert report._fields == tuple(expected)
    for name, value in expected.items():
        assert float(getattr(report, name)) == pytest.approx(value, abs=1e-4), name
    assert expected["unique"] < 1.0


def test_likelihood_takes_one_draw_of_noise_at_each_step(batches):
    """Even bases: a sequence is worth -log 4 for every hidden base, times u_n, summed over n."""
    generated, reference = batches
    policy = discrete.make_factored_policy(4, L)
    zero = lambda tokens: jnp.zeros(tokens.shape[0])  # noqa: E731
    found = [
        float(
            discrete.eval_dna(
                jax.random.key(seed),
                jnp.asarray(generated),
                reference,
                policy,
                jnp.zeros((L, 4)),
                reward=zero,
                judge=zero,
                num_steps=6,
            ).log_likelihood
        )
        for seed in range(8)
    ]
    # u_n = 1 / n and n / 6 are hidden: each base has weight 1 / n with that probability.
    variance = math.log(4) ** 2 * L * sum((n / 6) * (1 - n / 6) / n**2 for n in range(1, 7))
    error = 1.2533 * math.sqrt(variance / generated.shape[0] / 8)  # of medians
    assert abs(np.mean(found) + L * math.log(4)) < 5 * error
    assert np.std(found) > 0.1 * error * math.sqrt(8)


def test_the_reference_is_the_top_of_the_corpus():
    activity = np.random.default_rng(2).permutation(100) / 10.0
    corpus = jnp.asarray(np.arange(300).reshape(100, 3))
    for share, count in ((1e-3, 1), (0.07, 7), (0.071, 8), (1.0, 100)):
        found = np.asarray(discrete.most_active(corpus, jnp.asarray(activity), share=share))
        expected = np.argsort(-activity)[:count]
        np.testing.assert_array_equal(found[:, 0] // 3, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, f: discrete.most_active(x, jnp.zeros(3)), "activity must be"),
        (lambda x, f: discrete.most_active(x, jnp.zeros(5), share=0.0), "share"),
        (lambda x, f: discrete.eval_dna(*f(x, x[:, :20]), reward=zeros, judge=zeros), "reference"),
        (lambda x, f: discrete.eval_dna(*f(x, x), reward=zeros, judge=lambda x: x), "judge must"),
    ],
)
def test_bad_input_is_refused(call, message):
    tokens = jnp.zeros((5, 30), jnp.int32)

    def given(generated, reference):
        policy = discrete.make_factored_policy(4, 30)
        return jax.random.key(0), generated, reference, policy, jnp.zeros((30, 4))

    with pytest.raises(ValueError, match=message):
        call(tokens, given)


def zeros(tokens):
    return jnp.zeros(tokens.shape[0])
