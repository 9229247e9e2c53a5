"""The DNA simulator: golden values, its strands, its corpus, and a plain loop beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.rl.discrete import enhancers

REPEAT = "ACGT" * 50


def consensus(name):
    return "".join(enhancers.BASES[i] for i in enhancers._probs()[name].argmax(axis=1))


def placed(*motifs):
    text = list(REPEAT)
    for name, start in motifs:
        motif = consensus(name)
        text[start : start + len(motif)] = motif
    return "".join(text)


FOUR = (("HNF1A", 60), ("HNF4A", 82), ("FOXA2", 100), ("CEBPB", 113))
COMPLEMENT = str.maketrans("ACGT", "TGCA")
GOLDEN = [
    (REPEAT, 0.20833, 0.06914),
    ("A" * 200, -7.62500, None),
    (placed(("HNF1A", 90)), 3.51399, None),
    (placed(("HNF1A", 80), ("HNF4A", 102)), 6.46070, None),
    (placed(*FOUR), 8.58142, 0.74874),
    (placed(*FOUR).translate(COMPLEMENT)[::-1], 8.58142, 0.74874),
    (placed(*FOUR, ("ZEB1", 20)), 7.71447, None),
]


@pytest.mark.parametrize("x64", [False, True])
def test_golden_values(x64):
    with jax.enable_x64(x64):
        tokens = jnp.asarray(np.stack([enhancers.encode(text) for text, _, _ in GOLDEN]))
        scores = jax.tree.map(np.asarray, enhancers.score(tokens))
        soft = jax.tree.map(np.asarray, enhancers.score(jax.nn.one_hot(tokens, 4)))
    np.testing.assert_allclose(scores.activity, [y for _, y, _ in GOLDEN], atol=2e-5)
    for got, (_, _, expected) in zip(scores.open_prob, GOLDEN, strict=True):
        assert expected is None or got == pytest.approx(expected, abs=2e-5)
    np.testing.assert_array_equal(scores.activity, soft.activity)


def test_both_strands_score_alike_and_shorter_sequences_scale(x64):
    tokens = np.random.default_rng(0).integers(0, 4, (20, 64))
    tokens = jnp.asarray(tokens)
    soft = enhancers.other_strand(jax.nn.one_hot(tokens, 4))
    forward = enhancers.score(tokens)
    for backward in (enhancers.score(enhancers.other_strand(tokens)), enhancers.score(soft)):
        np.testing.assert_allclose(forward.activity, backward.activity, rtol=1e-10)
        np.testing.assert_allclose(forward.open_prob, backward.open_prob, rtol=1e-10)


def test_the_other_strand_is_the_reverse_complement():
    for text, other in (("AACG", "CGTT"), ("GATTACA", "TGTAATC")):
        tokens = jnp.asarray(enhancers.encode(text))
        assert enhancers.decode(enhancers.other_strand(tokens)) == other


def test_occupancy_is_the_score_of_every_window(x64):
    tokens = np.random.default_rng(1).integers(0, 4, 40)
    got = np.asarray(enhancers._occupancy(jax.nn.one_hot(tokens[None], 4)))[0]
    for m, probs in enumerate(enhancers._probs().values()):
        w, size = np.log2(probs / 0.25), len(probs)
        for p in range(40):
            if p + size > 40:
                assert got[p, m] == 0.0
                continue
            window = tokens[p : p + size]
            forward = w[np.arange(size), window].sum()
            backward = w[np.arange(size), (3 - window)[::-1]].sum()
            u = max(forward, backward) / w.max(axis=1).sum()
            assert got[p, m] == pytest.approx(1 / (1 + np.exp(-24 * (u - 0.82))), rel=1e-10)


def test_gradient_in_soft_bases_is_finite_and_right(x64):
    rng = np.random.default_rng(2)
    soft, way = (
        jnp.asarray(rng.dirichlet(np.ones(4), (2, 30))),
        jnp.asarray(rng.normal(size=(2, 30, 4))),
    )
    total = lambda x: enhancers.score(x).activity.sum() + enhancers.score(x).open_prob.sum()  # noqa: E731
    slope = jnp.sum(jax.grad(total)(soft) * way)
    step = 1e-6
    expected = (total(soft + step * way) - total(soft - step * way)) / (2 * step)
    assert float(slope) == pytest.approx(float(expected), rel=1e-6)


def test_corpus_has_the_published_statistics():
    tokens = np.asarray(jax.jit(lambda key: enhancers.draw_corpus(key, 20_000))(jax.random.key(0)))
    assert tokens.min() == 0 and tokens.max() == 3
    scores = jax.tree.map(
        lambda x: np.concatenate(np.asarray(x)),
        jax.lax.map(enhancers.score, jnp.asarray(tokens.reshape(20, 1000, 200))),
    )
    y = scores.activity
    # Of 20,000 draws the standard error of the mean is 0.008, of the 99 % quantile about 0.07.
    assert y.mean() == pytest.approx(0.525, abs=0.035)
    assert y.std() == pytest.approx(1.107, abs=0.04)
    np.testing.assert_allclose(
        np.quantile(y, [0.01, 0.5, 0.9, 0.99, 0.999]), [-1.0, 0.16, 2.09, 4.6, 6.63], atol=0.3
    )
    assert np.quantile(y, 0.5) == pytest.approx(0.16, abs=0.02)
    assert (scores.open_prob > 0.5).mean() == pytest.approx(0.006, abs=0.002)
    assert (scores.open_prob[y > np.quantile(y, 0.99)] > 0.5).mean() == pytest.approx(
        0.43, abs=0.12
    )
    assert np.isin(tokens, (1, 2)).mean() == pytest.approx(0.462, abs=0.005)


def test_naturalness_is_scipys():
    rng = np.random.default_rng(3)
    generated, reference = (
        rng.integers(0, 4, (40, 60)),
        rng.choice(4, (50, 60), p=[0.4, 0.2, 0.1, 0.3]),
    )
    got = enhancers.naturalness(jnp.asarray(generated), jnp.asarray(reference))
    counts = []
    for batch in (generated, reference):
        code = batch[:, :-2] * 16 + batch[:, 1:-1] * 4 + batch[:, 2:]
        counts.append(np.bincount(code.ravel(), minlength=64))
    assert float(got.trimer_correlation) == pytest.approx(stats.pearsonr(*counts)[0], abs=1e-5)
    hits = [
        np.asarray(enhancers.motif_hits(jnp.asarray(x))).mean(axis=0)
        for x in (generated, reference)
    ]
    assert float(got.motif_correlation) == pytest.approx(stats.spearmanr(*hits)[0], abs=1e-5)
    pairs = [(a != b).mean() for i, a in enumerate(generated) for b in generated[:i]]
    assert float(got.distance) == pytest.approx(np.mean(pairs), abs=1e-5)


def test_sites_are_those_of_a_plain_loop():
    """Windows of both strands above the threshold, base by base; a written site is found whole."""
    tokens = np.asarray(enhancers.draw_corpus(jax.random.key(4), 300, length=60))
    want = np.zeros((len(enhancers.MOTIFS), 15, 4))
    for motif, probs in enumerate(enhancers._probs().values()):
        weights, width = np.log2(probs / 0.25), len(probs)
        for strand in (tokens, 3 - tokens[:, ::-1]):
            for start in range(60 - width + 1):
                window = strand[:, start : start + width]
                score = weights[np.arange(width), window].sum(axis=1) / weights.max(axis=1).sum()
                for site in window[score > enhancers.HALF]:
                    want[motif, np.arange(width), site] += 1
    got = np.asarray(enhancers.site_counts(jnp.asarray(tokens)))
    assert want[:, 0].sum(axis=-1).min() > 0  # every motif is there
    np.testing.assert_array_equal(got, want)
    backward = enhancers.encode(placed(("HNF4A", 90)).translate(COMPLEMENT)[::-1])
    sites = np.asarray(enhancers.site_counts(jnp.asarray(backward)[None]))
    best = enhancers.encode(consensus("HNF4A"))
    np.testing.assert_array_equal(sites[1, : len(best)], np.eye(4)[best])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: enhancers.encode("ACGN"), "letters"),
        (lambda: enhancers.encode(""), "letters"),
        (lambda: enhancers.score(jnp.zeros((2, 10), jnp.int32)), "at least 15"),
        (lambda: enhancers.score(jnp.zeros((2, 20, 5))), "tokens"),
        (lambda: enhancers.score(jnp.full((2, 20), 4)), r"in 0 \.\. 3, got 4"),
        (lambda: enhancers.motif_hits(jnp.full((2, 20), -1)), r"in 0 \.\. 3, got -1"),
        (lambda: enhancers.draw_corpus(jax.random.key(0), 0), "num"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_letters_round_trip():
    assert enhancers.decode(enhancers.encode("acGT")) == "ACGT"
