"""Bounds of masked diffusion: against enumeration, closed forms and the true probabilities."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, masked, path, sampling, schedules, uniform

V, K = 3, 3
KINDS = ("linear", "log_linear", "cosine", "polynomial")


def table(seed=0, vocab=V, length=K, scale=1.0):
    shape = ((vocab + 1) ** length, length, vocab)
    return scale * np.random.default_rng(seed).normal(size=shape)


def step_law(logits, schedule, vocab, length):
    """Law of ancestral sampling by a NumPy walk over all partial sequences."""
    mu = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    reveal = np.asarray(schedule.reveal, float)
    law = {(vocab,) * length: 1.0}
    for n in range(schedule.num_steps, 0, -1):
        after = {}
        for state, prob in law.items():
            row = mu[sum(x * (vocab + 1) ** (length - 1 - i) for i, x in enumerate(state))]
            choices = [
                [(x, 1.0)]
                if x < vocab
                else [(v, reveal[n] * row[i, v]) for v in range(vocab)] + [(vocab, 1 - reveal[n])]
                for i, x in enumerate(state)
            ]
            for combination in itertools.product(*choices):
                new = tuple(x for x, _ in combination)
                after[new] = after.get(new, 0.0) + prob * math.prod(p for _, p in combination)
        law = after
    return np.array(
        [law.get(tuple(x), 0.0) for x in itertools.product(range(vocab), repeat=length)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_start_at_one_and_end_at_zero(kind):
    with jax.enable_x64(True):
        schedule = jax.tree.map(np.asarray, schedules.make_schedule(7, kind))
    alpha, reveal = np.asarray(schedule.alpha), np.asarray(schedule.reveal)
    assert (alpha[0], alpha[-1], reveal[0], reveal[1]) == (1.0, 0.0, 0.0, 1.0)
    t = np.arange(8) / 7
    expected = {
        "linear": 1 - t,
        "log_linear": 1 - (1 - 1e-3) * t,
        "cosine": 1 - np.cos(np.pi / 2 * (1 - t)),
        "polynomial": 1 - t**2,
    }[kind]
    np.testing.assert_allclose(alpha[1:-1], expected[1:-1], rtol=1e-12)
    np.testing.assert_allclose(reveal[1:], (alpha[:-1] - alpha[1:]) / (1 - alpha[1:]), rtol=1e-12)
    if kind == "linear":
        np.testing.assert_allclose(reveal[1:], 1 / np.arange(1, 8), rtol=1e-12)


def test_cosine_grid_reveals_the_linear_schedules_tokens_at_cosine_times():
    schedule = schedules.make_schedule(4, grid="cosine")
    np.testing.assert_allclose(
        schedule.level, np.cos(np.pi / 2 * (1 - np.arange(5) / 4)), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: schedules.make_schedule(0), "num_steps"),
        (lambda: schedules.make_schedule(2.5), "an integer, got 2.5"),
        (lambda: schedules.low_discrepancy_steps(jax.random.key(0), 4, 0), "num_steps"),
        (lambda: exact.conditionals(np.ones(7) / 7, vocab=2, length=3), "8 probabilities"),
        (lambda: exact.conditionals(np.array([-1.0, 2.0]), vocab=2, length=1), "2 probabilities"),
        (lambda: schedules.make_schedule(4, "square"), "kind must be one of"),
        (lambda: schedules.make_schedule(4, "polynomial", power=0.0), "power"),
        (lambda: schedules.from_alpha(np.array([1.0, 0.5, 0.5, 0.0])), "fall"),
        (lambda: schedules.from_alpha(np.array([1.0, 0.5])), "from 1 to 0"),
        (lambda: masked.check_tokens(jnp.zeros((2, 0), jnp.int32), 3), "K at least 1"),
        (lambda: masked.check_tokens(jnp.zeros((2, 2), jnp.int32), 0), "vocab"),
        (lambda: masked.check_tokens(jnp.zeros((2, 2)), 3), "integers"),
        (lambda: masked.check_tokens(jnp.full((2, 2), 3), 3), r"in 0 \.\. 2, got 3 \.\. 3"),
        (lambda: masked.check_tokens(jnp.array([[-1, 2]]), 3), r"got -1 \.\. 2"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_law_of_the_sampler_equals_a_walk_over_partial_sequences(num_steps):
    logits = table(1)
    with jax.enable_x64(True):
        schedule = schedules.make_schedule(num_steps, "cosine")
        denoise = exact.table_denoiser(jnp.asarray(logits))
        law = np.asarray(exact.sampler_law(denoise, schedule, vocab=V, length=K))
    np.testing.assert_allclose(law, step_law(logits, schedule, V, K), rtol=1e-12)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_discrete_bound_holds_and_is_equality_for_one_step(kind):
    with jax.enable_x64(True):
        denoise = exact.table_denoiser(jnp.asarray(table(2)))
        for num_steps in (1, 3):
            schedule = schedules.make_schedule(num_steps, kind)
            law = exact.sampler_law(denoise, schedule, vocab=V, length=K)
            gap = exact.nelbo_steps(denoise, schedule, vocab=V, length=K) + jnp.log(law)
            if num_steps == 1:
                np.testing.assert_allclose(gap, 0.0, atol=1e-12)
            else:
                assert gap.min() > 0.0 and gap.max() > 1e-3


def test_subset_form_equals_order_form_and_the_limit_of_every_schedule():
    with jax.enable_x64(True):
        denoise = exact.table_denoiser(jnp.asarray(table(3)))
        subsets = exact.nelbo_subsets(denoise, vocab=V, length=K)
        np.testing.assert_allclose(
            subsets, exact.nelbo_orders(denoise, vocab=V, length=K), rtol=1e-12
        )
        for kind in ("linear", "cosine"):  # the error of N steps is O(1 / N)
            coarse, fine = (
                exact.nelbo_steps(denoise, schedules.make_schedule(n, kind), vocab=V, length=K)
                for n in (400, 800)
            )
            np.testing.assert_allclose(2 * fine - coarse, subsets, rtol=2e-5)


def test_true_conditionals_leave_no_gap():
    with jax.enable_x64(True):
        joint = np.random.default_rng(4).dirichlet(np.ones(V**K))
        denoise = exact.table_denoiser(exact.conditionals(joint, vocab=V, length=K))
        np.testing.assert_allclose(
            exact.nelbo_subsets(denoise, vocab=V, length=K), -np.log(joint), rtol=1e-10
        )


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("steps", [None, 3])
def test_estimate_has_the_exact_bound_as_its_mean(steps, x64):
    draws = 60_000
    with jax.enable_x64(x64):
        denoise = exact.table_denoiser(jnp.asarray(table(5)))
        schedule = None if steps is None else schedules.make_schedule(steps, "cosine")
        if schedule is None:
            expected = exact.nelbo_subsets(denoise, vocab=V, length=K)
        else:
            expected = exact.nelbo_steps(denoise, schedule, vocab=V, length=K)
        tokens = jnp.asarray(exact.sequences(V, K))
        estimate = jax.jit(
            lambda keys: jax.vmap(
                lambda key: masked.nelbo(
                    key, denoise, tokens, vocab=V, schedule=schedule, replicates=draws // 30
                )
            )(keys)
        )(jax.random.split(jax.random.key(0), 30))
        assert estimate.dtype == (jnp.float64 if x64 else jnp.float32)
        estimate, expected = np.asarray(estimate), np.asarray(expected)
    error = estimate.std(axis=0) / math.sqrt(30)
    # Levels below 1e-3 are left out, which is a bias of that relative size.
    np.testing.assert_array_less(abs(estimate.mean(axis=0) - expected), 5 * error + 2e-3 * expected)


def test_tokens_that_do_not_count_are_hidden_and_cost_nothing():
    length, kept = 4, np.array([True, True, False, False])
    with jax.enable_x64(True):
        wide = table(6, length=length)
        seen = []

        def denoise(tokens, level):
            seen.append(tokens)
            return exact.table_denoiser(jnp.asarray(wide))(tokens, level)

        tokens = jnp.asarray(exact.sequences(V, length))
        mask = jnp.broadcast_to(jnp.asarray(kept), tokens.shape)
        estimate = masked.nelbo(
            jax.random.key(1), denoise, tokens, vocab=V, token_mask=mask, replicates=6000
        )
        assert (seen[0][..., 2:] == V).all()

        def narrow(tokens, level):
            rest = jnp.full((*tokens.shape[:-1], 2), V, tokens.dtype)
            both = jnp.concatenate([tokens, rest], axis=-1)
            return exact.table_denoiser(jnp.asarray(wide))(both, level)[..., :2, :]

        expected = np.asarray(exact.nelbo_subsets(narrow, vocab=V, length=2))
        estimate = np.asarray(estimate)
    # Nine sequences of the first two tokens, each estimated nine times.
    np.testing.assert_allclose(estimate.reshape(9, 9).mean(axis=1), expected, rtol=0.04)


def test_one_key_hides_the_same_tokens_and_plain_weights_are_the_cross_entropy():
    seen = []

    def denoise(tokens, level):
        seen.append((tokens, level))
        return jnp.zeros((*tokens.shape, V))

    tokens = jnp.zeros((64, K), jnp.int32)
    key = jax.random.key(2)
    elbo = masked.nelbo(key, denoise, tokens, vocab=V)
    plain = masked.nelbo(key, denoise, tokens, vocab=V, weighting="uniform")
    (first, level), (second, _) = jax.tree.map(np.asarray, seen)
    assert (first == second).all()
    hidden = (first[0] == V).sum(axis=-1)
    np.testing.assert_allclose(plain, hidden * math.log(V), rtol=1e-6)
    np.testing.assert_allclose(elbo, hidden / level[0] * math.log(V), rtol=1e-5)
    assert np.unique(np.floor(level[0] * 64)).size >= 62  # spread evenly


def test_losses_by_noise_are_those_of_the_hidden_tokens_of_each_band():
    """Of a denoiser that never looks: -log of a token's probability at every level of noise."""
    probs = np.array([0.2, 0.5, 0.3])
    logits = jnp.log(jnp.asarray(probs, jnp.float32))

    def denoise(tokens, level):
        return jnp.broadcast_to(logits, (*tokens.shape, 3))

    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4000, 6)), jnp.int32)
    bands = masked.band_losses(jax.random.key(0), denoise, tokens, vocab=3)
    expected = -np.log(probs)[np.asarray(tokens)].mean()
    np.testing.assert_allclose(bands.total / bands.count, expected, rtol=0.05)
    # A thousand sequences a band, of six tokens hidden with its middle's chance on average.
    np.testing.assert_allclose(bands.count / 6000, [0.125, 0.375, 0.625, 0.875], atol=0.03)
    first = jnp.arange(6) == 0
    some = masked.band_losses(
        jax.random.key(0), denoise, tokens, vocab=3, token_mask=jnp.broadcast_to(first, (4000, 6))
    )
    np.testing.assert_allclose(
        some.total / some.count, -np.log(probs)[np.asarray(tokens)[:, 0]].mean(), rtol=0.1
    )
    np.testing.assert_allclose(some.count / 1000, [0.125, 0.375, 0.625, 0.875], atol=0.06)
    few = masked.band_losses(jax.random.key(1), denoise, tokens[:4, :1], vocab=3)
    assert few.count.min() == 0.0 and np.isfinite(few.total).all()


def test_gradient_is_finite_where_a_token_is_impossible():
    logits = jnp.full((V,), -1e9).at[0].set(0.0)
    tokens = jnp.zeros((8, K), jnp.int32)

    def loss(logits):
        denoise = lambda tokens, level: jnp.broadcast_to(logits, (*tokens.shape, V))  # noqa: E731
        return masked.nelbo(jax.random.key(3), denoise, tokens, vocab=V).mean()

    assert jnp.isfinite(jax.grad(loss)(logits)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicates": 0}, "replicates"),
        ({"weighting": "none"}, "weighting must be one of"),
        ({"token_mask": jnp.ones((2, K + 1), bool)}, "token_mask must be"),
        ({"token_mask": jnp.ones((2, K), bool).at[1].set(False)}, "at least one token"),
    ],
)
def test_bad_options_of_the_bound_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        masked.nelbo(
            jax.random.key(0), lambda x, t: x, jnp.zeros((2, K), jnp.int32), vocab=V, **options
        )


def with_mask(tokens, level):
    """Logits of V tokens and of the mask: one too many."""
    return jnp.zeros((*tokens.shape, V + 1))


@pytest.mark.parametrize(
    "ask",
    [
        lambda f, key, tokens: masked.nelbo(key, f, tokens, vocab=V),
        lambda f, key, tokens: uniform.nelbo(key, f, tokens, vocab=V),
        lambda f, key, tokens: sampling.sample(
            key, f, (2,), K, vocab=V, schedule=schedules.make_schedule(2)
        ),
        lambda f, key, tokens: path.step_logp(
            f, tokens, tokens + 1, jnp.ones(1), vocab=V, schedule=schedules.make_schedule(2)
        ),
        lambda f, key, tokens: exact.nelbo_subsets(f, vocab=V, length=K),
    ],
    ids=["bound", "uniform", "sampler", "path", "subsets"],
)
def test_a_denoiser_of_other_tokens_is_refused(ask):
    with pytest.raises(ValueError, match=f"must give logits .*{V}.*, got"):
        ask(with_mask, jax.random.key(0), jnp.zeros((2, K), jnp.int32))


def test_logits_that_leave_no_token_are_refused_and_nan_under_jit():
    def ask(limit):
        denoise = lambda tokens, level: jnp.full((*tokens.shape, V), limit)  # noqa: E731
        return masked.nelbo(jax.random.key(0), denoise, jnp.zeros((8, K), jnp.int32), vocab=V)

    with pytest.raises(ValueError, match="must leave a token at every place"):
        ask(-jnp.inf)
    assert np.isnan(np.asarray(jax.jit(ask)(-jnp.inf))).any()
