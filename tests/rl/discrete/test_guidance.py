"""Search and guidance without training, on tasks whose best is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, schedules
from jaxlab.rl import discrete
from jaxlab.rl.discrete import guidance

V, K = 3, 4
TABLE = np.random.default_rng(0).normal(size=V**K)
TASK = discrete.tasks.table_task("random", TABLE, vocab=V, length=K)
SCHEDULE = schedules.make_schedule(K)


@functools.cache
def frozen():
    """A table policy whose law is a known joint distribution, drawn token by token."""
    joint = np.random.default_rng(1).dirichlet(np.ones(V**K))
    return discrete.make_table_policy(V, K), exact.conditionals(joint, vocab=V, length=K)


def test_best_of_n_has_the_law_of_a_maximum():
    policy, params = frozen()
    law = np.asarray(exact.sampler_law(policy.denoise(params), SCHEDULE, vocab=V, length=K))
    order = np.argsort(TABLE)
    below = np.cumsum(law[order])  # P(reward <= that of the order's entry)
    expected = np.diff(np.concatenate([[0.0], below**3])) @ TABLE[order]
    chosen = jax.jit(
        lambda key: guidance.best_of_n(
            key, TASK.reward, policy, params, batch=20_000, num_draws=3, schedule=SCHEDULE
        )
    )(jax.random.key(0))
    np.testing.assert_allclose(chosen.reward, TASK.reward(chosen.tokens))
    error = float(chosen.reward.std()) / np.sqrt(20_000)
    assert abs(float(chosen.reward.mean()) - expected) < 5 * error


@pytest.mark.parametrize("method", ["svdd", "smc"])
def test_guided_draws_are_better_than_plain_ones(method):
    policy, params = frozen()
    law = np.asarray(exact.sampler_law(policy.denoise(params), SCHEDULE, vocab=V, length=K))
    guided = jax.jit(
        lambda key: getattr(guidance, method)(
            key, TASK.reward, policy, params, batch=2000, schedule=SCHEDULE
        )
    )(jax.random.key(2))
    assert (np.asarray(guided.tokens) < V).all()
    np.testing.assert_allclose(guided.reward, TASK.reward(guided.tokens))
    error = float(guided.reward.std()) / np.sqrt(2000)
    assert float(guided.reward.mean()) > law @ TABLE + 0.3 + 3 * error


def test_particles_have_the_law_of_the_tilted_policy():
    """Sequential Monte Carlo is consistent: many particles are those of pi exp(r / lambda)."""
    policy, params = frozen()
    law = np.asarray(exact.sampler_law(policy.denoise(params), SCHEDULE, vocab=V, length=K))
    tilted = law * np.exp(TABLE / 0.7)
    tilted /= tilted.sum()
    drawn = jax.jit(
        lambda key: guidance.smc(
            key, TASK.reward, policy, params, batch=20_000, schedule=SCHEDULE, temperature=0.7
        )
    )(jax.random.key(5))
    counts = np.bincount(np.asarray(exact.number(drawn.tokens, V)), minlength=V**K) / 20_000
    assert 0.5 * np.abs(law - tilted).sum() > 0.2
    assert 0.5 * np.abs(counts - tilted).sum() < 0.05


def test_svdd_has_the_law_of_the_best_of_its_candidates():
    """By a walk over all 81 partial sequences of two tokens and what may be drawn from each."""
    vocab, length, num, schedule = 8, 2, 3, schedules.make_schedule(2)
    rng = np.random.default_rng(6)
    table, joint = rng.normal(size=vocab**length), rng.dirichlet(np.ones(vocab**length))
    task = discrete.tasks.table_task("random", table, vocab=vocab, length=length)
    policy = discrete.make_table_policy(vocab, length)
    params = exact.conditionals(joint, vocab=vocab, length=length)
    probs = np.asarray(jax.nn.softmax(params, axis=-1)).reshape(9, 9, length, vocab)

    def value(state):
        likely = probs[state].argmax(axis=-1)
        full = np.where(np.array(state) == vocab, likely, state)
        return table[full[0] * vocab + full[1]]

    law = {(vocab, vocab): 1.0}
    for n in (2, 1):
        chance, after = float(schedule.reveal[n]), {}
        for state, mass in law.items():
            each = []
            for k, token in enumerate(state):
                stays = {vocab: 1.0 - chance} if token == vocab else {token: 1.0}
                drawn = enumerate(chance * probs[state][k]) if token == vocab else ()
                each.append(stays | dict(drawn))
            ahead = {(a, b): each[0][a] * each[1][b] for a in each[0] for b in each[1]}
            worth = {s: value(s) for s in ahead}
            for s, p in ahead.items():
                # The best of three, and of equally good ones each as often as it is drawn.
                at_most = sum(q for t, q in ahead.items() if worth[t] <= worth[s])
                equal = sum(q for t, q in ahead.items() if worth[t] == worth[s])
                best = at_most**num - (at_most - equal) ** num
                if p > 0.0:
                    after[s] = after.get(s, 0.0) + mass * best * p / equal
        law = after
    expected = np.zeros(vocab**length)
    for (a, b), mass in law.items():
        expected[a * vocab + b] = mass
    assert expected.sum() == pytest.approx(1.0)
    drawn = jax.jit(
        lambda key: guidance.svdd(
            key, task.reward, policy, params, batch=50_000, schedule=schedule, num_candidates=num
        )
    )(jax.random.key(7))
    counts = np.bincount(np.asarray(exact.number(drawn.tokens, vocab)), minlength=64) / 50_000
    error = np.sqrt(expected * (1.0 - expected) / 50_000) + 1e-9
    assert (np.abs(counts - expected) < 5 * error).all()


@pytest.mark.parametrize("method", ["svdd", "smc", "best_of_n"])
def test_a_reward_that_fails_is_what_nobody_chooses(method):
    """A third of all sequences give NaN or infinity; plain draws give as many."""
    policy, params = frozen()
    fails = exact.sequences(V, K)[:, 0] == 0
    table = np.where(fails, np.where(np.arange(V**K) % 2, np.nan, np.inf), TABLE)
    task = jnp.asarray(table, jnp.float32)
    law = np.asarray(exact.sampler_law(policy.denoise(params), SCHEDULE, vocab=V, length=K))
    options = {"num_draws": 4} if method == "best_of_n" else {}
    guided = jax.jit(
        lambda key: getattr(guidance, method)(
            key,
            lambda tokens: task[exact.number(tokens, V)],
            policy,
            params,
            batch=500,
            schedule=SCHEDULE,
            **options,
        )
    )(jax.random.key(4))
    failed = np.mean(np.asarray(guided.tokens)[:, 0] == 0)
    share = law[fails].sum()
    assert share > 0.2
    assert failed < {"svdd": 0.1, "smc": 0.7 * share, "best_of_n": 2 * share**4 + 0.02}[method]
    if method == "best_of_n":  # where all four failed there is no reward, and a draw all the same
        np.testing.assert_array_equal(
            np.asarray(guided.reward) == -np.inf, np.asarray(guided.tokens)[:, 0] == 0
        )


def test_systematic_resampling_rounds_expected_counts():
    log_weight = jnp.log(jnp.asarray([0.5, 0.01, 0.24, 0.25]).repeat(25) / 25)
    counts = np.stack(
        [
            np.bincount(np.asarray(guidance.systematic(key, log_weight)), minlength=100)
            for key in jax.random.split(jax.random.key(3), 20)
        ]
    )
    expected = 100 * np.exp(np.asarray(log_weight))
    assert (counts >= np.floor(expected - 1e-3)).all() and (
        counts <= np.ceil(expected + 1e-3)
    ).all()


def test_evolution_finds_the_best_and_never_loses_it():
    algorithm = discrete.evolve(TASK.reward, V, K, population=32, elite=2)
    state, metrics = jax.jit(
        lambda key: jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=40
        )
    )(jax.random.key(4))
    assert float(state.reward.max()) == pytest.approx(TABLE.max(), abs=1e-6)
    assert (np.diff(np.asarray(metrics["reward/max"])) >= 0).all()
    assert int(state.num_rewards) == 32 + 40 * 30
    np.testing.assert_allclose(state.reward, TASK.reward(state.tokens))


def test_sequences_whose_reward_failed_win_no_tournament():
    def reward(tokens):
        return jnp.where(tokens[:, 0] == 0, jnp.nan, -1.0 - tokens[:, 1].astype(jnp.float32))

    algorithm = discrete.evolve(reward, V, K, population=32, elite=4)
    state, metrics = jax.jit(
        lambda key: jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=10
        )
    )(jax.random.key(0))
    assert float(state.reward.max()) == -1.0
    assert (np.asarray(state.tokens)[np.asarray(state.reward) == -1.0, 0] > 0).all()
    assert float(metrics["reward/failed"][-1]) < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elite": 32}, "elite"),
        ({"mutation": 2.0}, "mutation"),
        ({"start": jnp.zeros((3, K), jnp.int32)}, "start"),
        ({"start": jnp.full((32, K), V)}, "tokens must be in"),
    ],
)
def test_bad_options_of_evolution_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        discrete.evolve(TASK.reward, V, K, population=32, **{"elite": 2, **options})


def test_a_policy_that_writes_is_refused_where_tokens_are_hidden():
    policy = discrete.make_writing_policy(V, K, width=8, num_layers=1)
    at = {"batch": 4, "schedule": SCHEDULE}
    for ask in (
        lambda: discrete.best_of_n(jax.random.key(0), TASK.reward, policy, (), num_draws=2, **at),
        lambda: guidance.svdd(jax.random.key(0), TASK.reward, policy, (), **at),
        lambda: guidance.smc(jax.random.key(0), TASK.reward, policy, (), **at),
        lambda: discrete.forward(TASK.reward, policy, num_steps=K),
        lambda: discrete.drakes(lambda soft: soft.sum(axis=(1, 2)), policy, ()),
    ):
        with pytest.raises(ValueError, match="must be a denoiser, a TokenPolicy, got Writing"):
            ask()


def test_bad_counts_of_guidance_are_refused():
    policy, params = frozen()
    with pytest.raises(ValueError, match="batch"):
        guidance.svdd(jax.random.key(0), TASK.reward, policy, params, batch=0, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="temperature"):
        guidance.smc(
            jax.random.key(0),
            TASK.reward,
            policy,
            params,
            batch=2,
            schedule=SCHEDULE,
            temperature=0.0,
        )
