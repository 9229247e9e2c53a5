"""Learning over sequences: what a step computes, what it remembers, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact
from jaxlab.learning import over_seeds
from jaxlab.rl import discrete

V, K = 2, 4
pytestmark = pytest.mark.usefixtures("optax_promotes")


def parity(tokens):
    """1 for an even number of ones."""
    return (jnp.sum(tokens, axis=-1) % 2 == 0).astype(jnp.float32)


def permutation(tokens):
    """1 if all tokens differ."""
    return jnp.all(jnp.diff(jnp.sort(tokens, axis=-1), axis=-1) > 0, axis=-1).astype(jnp.float32)


def run(algorithm, steps, key=0):
    def body(state, _):
        return algorithm.step(state)

    return jax.jit(lambda key: jax.lax.scan(body, algorithm.init(key), length=steps))(
        jax.random.key(key)
    )


def test_unique_share_counts_different_sequences():
    rng = np.random.default_rng(0)
    for vocab, length in ((2, 5), (4, 200)):
        tokens = rng.integers(0, vocab, (300, length))
        tokens[100:200] = tokens[:100]
        expected = np.unique(tokens, axis=0).shape[0] / 300
        assert float(discrete.unique_share(jnp.asarray(tokens))) == pytest.approx(expected)
    assert float(discrete.unique_share(jnp.zeros((50, 4), jnp.int32))) == pytest.approx(1 / 50)


@functools.cache
def from_table(make):
    """Six steps of learning any table `[16]` of rewards; one program for all that look at it."""

    @jax.jit
    def learn(table, key):
        algorithm = make(
            lambda tokens: table[tokens @ jnp.asarray([8, 4, 2, 1])],
            discrete.make_table_policy(V, K),
            num_steps=2,
            batch=64,
        )
        body = lambda state, _: algorithm.step(state)  # noqa: E731
        return jax.lax.scan(body, algorithm.init(key), length=6)

    return lambda table: learn(jnp.asarray(table, jnp.float32), jax.random.key(0))


@pytest.mark.parametrize("make", [discrete.forward, discrete.reverse])
def test_a_run_remembers_its_best_and_counts_its_rewards(make):
    table = np.arange(16.0) * 0.1
    state, metrics = from_table(make)(table)
    assert int(state.num_rewards) == 6 * 64 * (4 if make is discrete.forward else 1)
    assert float(state.best_reward) == pytest.approx(float(metrics["reward/max"].max()))
    assert table[state.best_tokens @ np.array([8, 4, 2, 1])] == pytest.approx(
        float(state.best_reward)
    )
    needed = {"reward/mean", "policy/unique", "policy/entropy", "loss/band_0", "loss/band_3"}
    needed |= {"policy/ess", "policy/target_kl" if make is discrete.forward else "policy/kl"}
    assert needed <= metrics.keys()


@pytest.mark.usefixtures("optax_promotes")
def test_the_price_is_moved_until_a_step_goes_as_far_as_it_should():
    """From far below and far above; without a target the same prices go elsewhere."""

    def steps(target_kl):
        algorithm = discrete.reverse(
            lambda tokens: jnp.sum(tokens, axis=-1) * 1.0,
            discrete.make_factored_policy(2, 64),
            num_steps=1,
            batch=128,
            learning_rate=0.02,
            target_kl=target_kl,
        )
        prices = {"temperature": jnp.asarray([0.02, 50.0])}
        _, metrics = run(over_seeds(algorithm, 2, settings=prices), 30)
        return np.asarray(metrics["policy/kl"][-12:].mean(axis=0)), metrics

    far, metrics = steps(None)
    near, adapted = steps(0.01)
    assert "policy/temperature" in adapted and "policy/temperature" not in metrics
    assert np.all(np.abs(np.log(near / 0.01)) < np.log(2.0))
    assert far[1] < 0.003 < 0.01 < near.sum()  # and is held where it was, at 50
    low, high = np.asarray(adapted["policy/temperature"][-1])
    assert 1 / 1.5**2 < low / high < 1.5**2


@pytest.mark.parametrize("make", [discrete.forward, discrete.reverse])
def test_a_reward_that_fails_is_counted_and_spares_the_others(make):
    ones = exact.sequences(V, K).sum(axis=1)
    state, metrics = from_table(make)(
        np.where(ones == 4, np.nan, np.where(ones == 0, -np.inf, ones * 0.5))
    )
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert abs(float(metrics["reward/failed"].mean()) - 2 / 16) < 0.08
    assert float(state.best_reward) == 1.5  # of three ones: four have none


@pytest.mark.parametrize("make", [discrete.forward, discrete.reverse])
def test_a_batch_that_failed_as_a_whole_leaves_no_best_sequence(make):
    """Else a reward of 0 that nobody gave would beat all negative ones to come."""
    state, metrics = from_table(make)(np.full(16, np.nan))
    assert float(state.best_reward) == -np.inf
    np.testing.assert_array_equal(metrics["reward/failed"], 1.0)


def test_hard_radius_is_met_by_every_batch():
    algorithm = discrete.forward(
        lambda tokens: jnp.sum(tokens, axis=-1) * 3.0,
        discrete.make_table_policy(V, K),
        num_steps=2,
        batch=64,
        target_kl=0.4,
    )
    _, metrics = run(algorithm, 3)
    np.testing.assert_allclose(metrics["policy/target_kl"], 0.4, atol=1e-3)


@pytest.mark.parametrize(
    "behavior", ["policy", pytest.param("writing", marks=pytest.mark.slow), "dataset"]
)
def test_a_frozen_behavior_leads_to_a_single_tilt(behavior):
    """The trained law goes to prior exp(r / lambda), not on to the best sequence."""
    vocab, length, lam = 2, 2, 0.5
    policy = discrete.make_table_policy(vocab, length)
    reward = jnp.asarray([0.0, 1.0, 0.5, 0.2])
    frozen = {"behavior": policy, "behavior_params": policy.init(jax.random.key(0))}
    prior = np.full(4, 0.25)
    if behavior == "writing":
        writing = discrete.make_writing_policy(vocab, length, width=4, num_layers=1, num_heads=1)
        frozen = {"behavior": writing, "behavior_params": writing.init(jax.random.key(0))}
    elif behavior == "dataset":
        prior = np.array([0.4, 0.1, 0.2, 0.3])
        rows = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], [4, 1, 2, 3], axis=0)
        frozen = {"behavior": rows}
    algorithm = discrete.forward(
        lambda tokens: reward[tokens[:, 0] * 2 + tokens[:, 1]],
        policy,
        num_steps=2,
        batch=512,
        num_batches=1,
        temperature=lam,
        learning_rate=3e-2,
        **frozen,
    )
    state, metrics = run(algorithm, 400)
    assert ("policy/entropy" in metrics) == (behavior != "dataset")
    # The best table's first token is that of the target: both marginals are known.
    target = prior * np.exp(np.asarray(reward) / lam)
    target = (target / target.sum()).reshape(2, 2)
    first = np.asarray(jax.nn.softmax(state.params[-1], axis=-1))
    np.testing.assert_allclose(first, [target.sum(axis=1), target.sum(axis=0)], atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["signed", "linear", "square", "z_linear", "z_square"])
def test_every_kind_of_weight_leads_to_better_tokens(kind):
    """Independent tokens, a reward that is a sum of them: the law after 60 steps."""
    worth = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.2]])
    task = discrete.tasks.product(worth)
    algorithm = discrete.forward(
        task.reward,
        discrete.make_factored_policy(3, 2),
        num_steps=2,
        batch=32,
        num_batches=1,
        weighting=kind,
        lower=-0.5 if kind in ("linear", "z_linear", "z_square") else 0.0,
        temperature=0.5,
        learning_rate=2e-2,
    )
    state, metrics = run(algorithm, 60)
    law = np.asarray(jax.nn.softmax(state.params, axis=-1))
    # Even tokens are worth 0.9 in the mean; the best are drawn more often, the worst less.
    assert (law * worth).sum() > 1.2
    assert law[0, 1] > 0.5 and law[1, 0] > 0.5 and law[0, 0] < 0.25 and law[1, 1] < 0.25, law
    assert ("policy/ess" in metrics) == (kind == "square")


@pytest.mark.slow
def test_settings_are_swept_in_one_program():
    algorithm = over_seeds(
        discrete.forward(
            parity, discrete.make_table_policy(V, K), num_steps=2, batch=8, num_batches=1
        ),
        2,
        settings={"temperature": jnp.asarray([0.1, 10.0])},
    )
    _, metrics = jax.jit(algorithm.step)(algorithm.init(jax.random.key(1)))
    assert float(metrics["policy/ess"][0]) < 7.0 < float(metrics["policy/ess"][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"batch": 1}, "batch"),
        ({"batch": 3, "num_batches": 1}, "at least 4 sequences"),
        ({"count": 1.5}, "count must be an integer, got 1.5"),
        ({"target_kl": 9.0}, "target_kl"),
        ({"temperature": -1.0}, "temperature"),
        ({"noise": "on_policy", "count": 9}, "count"),
        ({"behavior": discrete.make_table_policy(2, 2)}, "behavior_params"),
        ({"weighting": "best"}, "kind"),
        ({"behavior": jnp.zeros((3, 4), jnp.int32)}, r"\[num, 2\]"),
        ({"behavior": jnp.full((3, 2), 2)}, "tokens must be in 0 .. 1"),
        ({"behavior": jnp.zeros((3, 2), jnp.int32), "noise": "path"}, "path of a diffusion"),
        ({"behavior": jnp.zeros((3, 2), jnp.int32), "behavior_params": 1.0}, "go together"),
    ],
)
def test_bad_options_of_forward_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        discrete.forward(
            parity, discrete.make_table_policy(2, 2), **{"num_steps": 2, "batch": 8, **options}
        )


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (discrete.make_table_policy(2, 2), {}, "num_steps must be given"),
        (
            discrete.make_table_policy(2, 2),
            {"num_steps": 2, "ratio": "exact"},
            "one of step, bound",
        ),
        (discrete.make_writing_policy(2, 2), {"num_steps": 3}, "its length, 2"),
        (discrete.make_writing_policy(2, 2), {"ratio": "bound"}, "one of step, exact"),
        (discrete.make_writing_policy(2, 2), {"count": 1}, "all of them"),
    ],
)
def test_what_a_policy_cannot_do_is_named(policy, options, message):
    with pytest.raises(ValueError, match=message):
        discrete.reverse(parity, policy, batch=8, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": "best"}, "must be one of"),
        ({"count": 9}, "count"),
        ({"ratio": "bound", "count": 9}, "count must lie in 1 .. 2"),
        ({"ratio": "bound", "replicates": 0}, "replicates"),
        ({"batch": 10}, "divide"),
        ({"batch": 2, "num_minibatches": 1}, "at least 4 sequences"),
        ({"clip_eps": 0.0}, "clip_eps"),
    ],
)
def test_bad_options_of_reverse_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        discrete.reverse(
            parity, discrete.make_table_policy(2, 2), **{"num_steps": 2, "batch": 8, **options}
        )


def test_a_reward_of_the_wrong_shape_is_named():
    algorithm = discrete.forward(
        lambda tokens: tokens, discrete.make_table_policy(2, 2), num_steps=2, batch=8
    )
    with pytest.raises(ValueError, match="reward must return"):
        jax.eval_shape(algorithm.step, algorithm.init(jax.random.key(0)))


@pytest.mark.parametrize("replicates", [1, 3])
def test_bounds_of_one_step_are_the_mean_field(replicates):
    """With N = 1 everything is hidden, whatever the noise: R1 is R3, whose formula is another."""
    given = {"num_steps": 1, "batch": 64, "learning_rate": 0.05, "replicates": replicates}
    ended = [
        run(discrete.reverse(parity, discrete.make_table_policy(V, K), ratio=ratio, **given), 3)[
            0
        ].params
        for ratio in ("bound", "mean_field")
    ]
    for one, other in zip(*map(jax.tree.leaves, ended), strict=True):
        assert np.std(one) > 0.0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["forward", "step", "bound"])
def test_permutations_are_learned_where_a_product_cannot(update):
    """Four agents, four actions, all different: a product of laws has at most 1 good in its law."""
    policy = discrete.make_mlp_policy(4, 4, hidden=(64, 64))
    if update == "forward":
        algorithm = discrete.forward(
            permutation,
            policy,
            num_steps=4,
            batch=128,
            num_batches=1,
            temperature=0.5,
            num_updates=4,
            learning_rate=1e-3,
        )
    else:
        algorithm = discrete.reverse(
            permutation, policy, num_steps=4, batch=128, ratio=update, learning_rate=1e-3
        )
    algorithm = over_seeds(algorithm, 5)
    _, metrics = run(algorithm, 150)
    final = np.asarray(metrics["reward/mean"])[-10:].mean(axis=0)
    first = np.asarray(metrics["reward/mean"])[0]
    assert abs(first.mean() - 0.09375) < 0.03
    assert final.mean() - 3 * final.std(ddof=1) / np.sqrt(5) > 0.6, final
