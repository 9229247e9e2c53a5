"""Learned oracles: what the network computes, what it learns, and that halves share nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.rl.discrete import enhancers, surrogates

L, V = 24, 4
SMALL = {"hidden": 16, "width": 5, "num_members": 2, "batch": 32}
pytestmark = pytest.mark.usefixtures("optax_promotes")


def draw(num, seed):
    """Sequences, and how often AC and GT meet in five places: more than counts of words say."""
    tokens = np.random.default_rng(seed).integers(0, V, (num, L))
    pairs = tokens[:, :-1] * V + tokens[:, 1:]
    found = [((pairs[:, i : i + 4] == w).any(axis=1)) for i in range(L - 4) for w in (1, 11)]
    label = sum(found[2 * i] & found[2 * i + 1] for i in range(L - 4))
    return tokens, label / 4.0


def trimers(tokens):
    code = tokens[:, :-2] * 16 + tokens[:, 1:-1] * 4 + tokens[:, 2:]
    return np.stack([np.bincount(row, minlength=64) for row in code]).astype(float)


def ridge(tokens, labels, others):
    """Predictions of the best of several ridge regressions on counts of three bases."""
    x, y = trimers(tokens), labels - labels.mean()
    middle = x.mean(axis=0)
    weights = [
        np.linalg.solve((x - middle).T @ (x - middle) + c * np.eye(64), (x - middle).T @ y)
        for c in (1.0, 30.0, 1000.0)
    ]
    return [(trimers(others) - middle) @ w for w in weights]


@pytest.fixture(scope="module")
def fitted():
    tokens, labels = draw(1500, 0)
    noisy = labels + 0.1 * np.random.default_rng(1).normal(size=1500)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return surrogates.fit_surrogate(jax.random.key(0), tokens, noisy, num_steps=300, **SMALL)


def by_hand(surrogate, soft):
    """The mean of all members, float64, place by place."""
    results = []
    for m in range(surrogate.networks.out.shape[0]):
        net = jax.tree.map(lambda x: np.asarray(x[m], np.float64), surrogate.networks)  # noqa: B023

        def conv(x, kernel):
            reach = kernel.shape[0] // 2
            y = np.zeros((*x.shape[:2], kernel.shape[2]))
            for p in range(x.shape[1]):
                for j in range(-reach, reach + 1):
                    if 0 <= p + j < x.shape[1]:
                        y[:, p] += x[:, p + j] @ kernel[j + reach]
            return y

        x = np.maximum(conv(soft, net.motifs) + net.biases[0], 0.0)
        x = np.stack([x[:, i : i + 4].max(axis=1) for i in range(0, x.shape[1], 4)], axis=1)
        x = x + np.maximum(conv(x, net.near) + net.biases[1], 0.0)
        x = np.concatenate([x.mean(axis=1), x.max(axis=1)], axis=1)
        x = np.maximum(x @ net.dense + net.biases[2], 0.0)
        results.append(x @ net.out + net.biases[3, 0])
    return float(surrogate.location) + float(surrogate.scale) * np.mean(results, axis=0)


def test_predictions_are_those_of_a_plain_loop_and_so_are_their_gradients(fitted):
    rng = np.random.default_rng(2)
    soft, way = rng.dirichlet(np.ones(V), (6, 22)), rng.normal(size=(6, 22, V))
    got = surrogates.predict(fitted, jnp.asarray(soft, jnp.float32))
    np.testing.assert_allclose(got, by_hand(fitted, soft), atol=2e-5)
    tokens = rng.integers(0, V, (6, 22))
    expected = by_hand(fitted, np.eye(V)[tokens])
    np.testing.assert_allclose(surrogates.predict(fitted, jnp.asarray(tokens)), expected, atol=2e-5)
    slope = jax.grad(lambda x: jnp.sum(surrogates.predict(fitted, x)))(
        jnp.asarray(soft, jnp.float32)
    )
    step = 1e-6
    expected = by_hand(fitted, soft + step * way) - by_hand(fitted, soft - step * way)
    np.testing.assert_allclose(
        np.sum(np.asarray(slope) * way, axis=(1, 2)), expected / (2 * step), atol=1e-4
    )


def test_a_surrogate_learns_what_counts_of_words_do_not_say(fitted):
    tokens, labels = draw(1500, 0)
    others, truth = draw(1000, 3)
    got = np.corrcoef(surrogates.predict(fitted, jnp.asarray(others)), truth)[0, 1]
    best = max(np.corrcoef(p, truth)[0, 1] for p in ridge(tokens, labels, others))
    assert got > 0.85 and got > best + 0.1, (got, best)
    # Labels that were held out are noisy; of 150 the correlation's own error is 0.03.
    ceiling = truth.std() / np.hypot(truth.std(), 0.1)
    assert abs(float(fitted.correlation) - got * ceiling) < 0.15


def test_images_of_a_symmetry_are_fitted_too():
    """All A has the most of what is counted, unless it may stand for every sequence."""
    tokens = jnp.asarray(np.random.default_rng(4).integers(0, V, (200, L)))
    every = jnp.zeros((1, L), jnp.int32)
    one = jax.nn.one_hot(every, V)
    surrogate = surrogates.fit_surrogate(
        jax.random.key(1),
        tokens,
        jnp.sum(tokens == 0, axis=1, dtype=jnp.float32),
        num_steps=150,
        symmetry=lambda soft: jnp.broadcast_to(one, soft.shape),
        **{**SMALL, "num_members": 1},
    )
    assert float(surrogate.correlation) > 0.7
    deviation = (surrogates.predict(surrogate, every)[0] - surrogate.location) / surrogate.scale
    assert abs(float(deviation)) < 0.5


def test_halves_share_nothing_and_leave_nothing():
    for num in (2, 7, 100):
        first, second = (np.asarray(x) for x in surrogates.split_halves(jax.random.key(num), num))
        assert first.size == num // 2
        np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(num))


def test_oracles_are_fitted_to_disjoint_halves_measured_once():
    sequences = jnp.arange(4000)[:, None]
    labels = jnp.asarray(np.random.default_rng(5).normal(size=4000))
    oracles = surrogates.fit_oracles(
        jax.random.key(2), sequences, labels, noise=0.3, fit=lambda *given: given
    )
    seen = [np.asarray(given[1])[:, 0] for given in oracles]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(4000))
    errors = [np.asarray(given[2] - labels[s]) for given, s in zip(oracles, seen, strict=True)]
    for error in errors:
        assert error.std() == pytest.approx(0.3, abs=5 * 0.3 / np.sqrt(2 * 2000))
    assert not (jax.random.key_data(oracles[0][0]) == jax.random.key_data(oracles[1][0])).all()


@pytest.mark.slow
def test_oracles_of_enhancers_agree_beyond_counts_of_words():
    sequences = enhancers.draw_corpus(jax.random.key(0), 8000, length=64)
    labels = enhancers.score(sequences).activity
    oracles = surrogates.fit_oracles(
        jax.random.key(1),
        sequences,
        labels,
        fit=functools.partial(
            surrogates.fit_surrogate,
            hidden=32,
            num_members=2,
            num_steps=1000,
            symmetry=enhancers.other_strand,
        ),
    )
    others = enhancers.draw_corpus(jax.random.key(2), 2000, length=64)
    truth = np.asarray(enhancers.score(others).activity)
    best = max(
        np.corrcoef(p, truth)[0, 1]
        for p in ridge(np.asarray(sequences), np.asarray(labels), np.asarray(others))
    )
    got = [np.asarray(surrogates.predict(oracle, others)) for oracle in oracles]
    for predicted in got:
        assert np.corrcoef(predicted, truth)[0, 1] > best + 0.2
    assert np.corrcoef(*got)[0, 1] > best + 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(20)}, "not all equal"),
        ({"labels": np.full(20, np.nan)}, "finite"),
        ({"labels": np.zeros(19)}, r"labels \[num\]"),
        ({"sequences": np.full((20, 8), 4)}, "tokens must be in 0 .. 3"),
        ({"sequences": np.zeros((20, 8))}, "integers"),
        ({"held_out": 0.1}, "three sequences"),
        ({"held_out": 1.0}, "three sequences"),
        ({"width": 4}, "odd"),
        ({"hidden": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_input_is_refused(change, message):
    rng = np.random.default_rng(6)
    given = {
        "sequences": rng.integers(0, 4, (20, 8)),
        "labels": rng.normal(size=20),
        "held_out": 0.2,
        **change,
    }
    sequences, labels = (jnp.asarray(given.pop(name)) for name in ("sequences", "labels"))
    with pytest.raises(ValueError, match=message):
        surrogates.fit_surrogate(jax.random.key(0), sequences, labels, **given)


def test_soft_tokens_of_another_size_are_refused(fitted):
    with pytest.raises(ValueError, match="soft tokens"):
        surrogates.predict(fitted, jnp.zeros((2, 24, 5)))
    with pytest.raises(ValueError, match="num"):
        surrogates.split_halves(jax.random.key(0), 1)
    with pytest.raises(ValueError, match="noise"):
        surrogates.fit_oracles(
            jax.random.key(0), jnp.zeros((4, 8), jnp.int32), jnp.zeros(4), noise=-1.0
        )
