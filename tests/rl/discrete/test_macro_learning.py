"""Learning of macro-actions: critics, candidates and rollouts, by hand and by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning, rl
from jaxlab.diffusion.discrete import exact, path, schedules
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import discrete
from jaxlab.rl.discrete import on_policy, rollouts, token_critics

V, K, B = 3, 2, 4
RNG = np.random.default_rng(0)
ALL = exact.sequences(V, K)


def chain(limit=5):
    """A walk on 0 .. 6: choices go 1, 2, 3 up and are paid so; 6 ends it."""

    def step(x, action):
        x = jnp.minimum(x + action + 1, 6)
        return x, x.astype(jnp.float32)[None], action.astype(jnp.float32) + 1.0, x == 6

    reset = lambda key: (jnp.zeros((), jnp.int32), jnp.zeros((1,)))  # noqa: E731
    return envs.Task("chain", 1, envs.Discrete(V), limit, reset, step)


def counted():
    """Two choices, paid 1, 2, 3 each whatever went before; the second ends it."""

    def step(x, action):
        x = x + 1
        return x, x.astype(jnp.float32)[None], action.astype(jnp.float32) + 1.0, x == 2

    reset = lambda key: (jnp.zeros((), jnp.int32), jnp.zeros((1,)))  # noqa: E731
    return envs.Task("counted", 1, envs.Discrete(V), 9, reset, step)


# --- critics -----------------------------------------------------------------------------------


def test_values_of_candidates_are_those_of_each():
    """States once for all candidates; two different critics; tokens and their order matter."""
    obs = jnp.asarray(RNG.normal(size=(B, 5)), jnp.float32)
    tokens = jnp.asarray(RNG.integers(0, V, (6, B, K)), jnp.int32)
    small = {"width": 8, "num_layers": 1, "num_heads": 2}
    found, alone, listed = {}, {}, {}
    for name, critics in (
        ("tokens", discrete.make_token_critics((5,), V, K, **small)),
        ("flat", discrete.make_flat_critics((5,), V, K, hidden=(8,))),
    ):
        params = jax.tree.map(
            lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape),
            critics.init(jax.random.key(0)),
        )
        found[name], alone[name], listed[name] = jax.jit(
            lambda params, apply=critics.apply: (
                apply(params, obs[None], tokens),
                jnp.moveaxis(jax.lax.map(lambda row: apply(params, obs, row), tokens), 0, 1),
                apply(params, obs[None], jnp.broadcast_to(ALL[:, None], (9, B, K))),
            )
        )(params)
        assert found[name].shape == (2, 6, B)
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-4, atol=1e-5)
        assert np.ptp(listed[name], axis=1).min() > 1e-3  # actions matter
        assert np.abs(listed[name][0] - listed[name][1]).max() > 1e-3
        # (0, 1) and (1, 0) are different actions.
        assert np.abs(listed[name][:, 1] - listed[name][:, 3]).min() > 1e-4


def test_the_target_is_discounted_by_what_was_carried_out(x64):
    """R + gamma^k (1 - terminated) mean over M of the smaller critic; the tail is drawn anew."""
    weights = RNG.normal(size=(2, K))

    def apply(params, obs, tokens):
        w = params.reshape(2, *(1,) * (tokens.ndim - 1), K)
        shown = tokens.astype(params.dtype)[None]
        return jnp.sum(w * (shown + 0.1 * shown**2), axis=-1) + obs[..., 0][None]

    data = rl.critics.Transitions(
        obs=jnp.asarray(RNG.normal(size=(B, 1))),
        action=jnp.asarray([[1, 0], [2, 1], [0, 2], [1, 1]]),
        reward=jnp.asarray(RNG.normal(size=B)),
        terminated=jnp.asarray([False, False, True, True]),
        next_obs=jnp.asarray(RNG.normal(size=(B, 1))),
        next_action=jnp.asarray(RNG.integers(0, V, (3, B, K))),
        bonus=jnp.asarray(RNG.normal(size=B)),
        duration=jnp.asarray([2, 1, 2, 1]),
    )
    loss = token_critics.macro_loss(apply, V)
    keys = jax.random.split(jax.random.key(0), 600)
    params = jnp.asarray(weights)
    losses, q = jax.jit(jax.vmap(lambda k: loss(k, params, 2.0 * params, data, 0.9)))(keys)
    shown = np.asarray(data.next_action, float)
    next_q = np.einsum("jk,mbk->jmb", 2.0 * weights, shown + 0.1 * shown**2)
    next_q = (next_q + np.asarray(data.next_obs)[:, 0]).min(axis=0).mean(axis=0)
    discount = 0.9 ** np.array([2, 1, 2, 1]) * np.array([1, 1, 0, 0])
    target = np.asarray(data.reward) + discount * (next_q + np.asarray(data.bonus))
    np.testing.assert_allclose(
        losses, ((np.asarray(q) - target) ** 2).mean(axis=2).sum(axis=1), rtol=1e-10
    )
    value = lambda a: a + 0.1 * a**2  # noqa: E731
    action, x = np.asarray(data.action, float), np.asarray(data.obs)[:, 0]
    for b, executed in enumerate([2, 1, 2, 1]):
        first = weights[:, 0] * value(action[b, 0]) + x[b]
        if executed == 2:
            whole = first + weights[:, 1] * value(action[b, 1])
            np.testing.assert_allclose(q[:, :, b], np.broadcast_to(whole, (600, 2)), rtol=1e-10)
        else:  # each second token about as often
            second = np.asarray(q)[:, 0, b] - first[0]
            counts = [np.isclose(second, weights[0, 1] * value(v)).sum() for v in range(V)]
            assert sum(counts) == 600 and min(counts) > 140


def test_discounts_of_the_other_critics():
    data = rl.critics.Transitions(
        *(jnp.zeros((3, 1)),) * 2,
        jnp.zeros(3),
        jnp.asarray([False, True, False]),
        *(jnp.zeros((3, 1)),) * 2,
        jnp.zeros(3),
    )
    np.testing.assert_allclose(rl.critics.discount(data, 0.9), [0.9, 0.0, 0.9])
    timed = data._replace(duration=jnp.asarray([1, 2, 3]))
    np.testing.assert_allclose(rl.critics.discount(timed, 0.9), [0.9, 0.0, 0.729], rtol=1e-6)


def test_flat_critics_have_a_limit():
    assert discrete.make_flat_critics((1,), 2, 12).init is not None
    for make in (
        lambda: discrete.make_flat_critics((1,), 2, 13),
        lambda: discrete.greedy_macro(2, 13),
    ):
        with pytest.raises(ValueError, match=r"at most 4096 macro-actions, got 2\^13"):
            make()


# --- candidates --------------------------------------------------------------------------------


def table_writer():
    """A policy that draws the first actions of all, and has a table for probabilities."""

    def given(obs):
        def sample(key, params, batch):
            rows = jnp.broadcast_to(params["draws"][: batch[0], None], batch)
            return jnp.asarray(ALL)[rows], jnp.zeros(batch)

        def log_prob(params, tokens):
            state = obs[..., 0].astype(jnp.int32)
            return jax.nn.log_softmax(params["logits"])[state, exact.number(tokens, V)]

        return discrete.WritingPolicy(V, K, init, sample, log_prob, lambda params, tokens: None)

    def init(key):
        return {"draws": jnp.arange(5), "logits": jnp.zeros((B, 9))}

    return discrete.StatePolicy(V, K, init, given)


def test_candidates_are_the_old_policy_s_and_weigh_what_critics_say(x64):
    actor = discrete.forward_candidates(
        table_writer(), num_candidates=5, target_kl=0.4, best_of=5, num_next=5
    )
    draws, logits = np.array([0, 4, 4, 7, 2]), RNG.normal(size=(B, 9))
    values = RNG.normal(size=(B, 9))
    obs = jnp.arange(B, dtype=float)[:, None]

    def q(obs, tokens):
        state = jnp.broadcast_to(obs[..., 0], tokens.shape[:-1]).astype(jnp.int32)
        return jnp.asarray(values)[state, exact.number(tokens, V)]

    context = rl.policy.Context(
        obs=obs,
        action=jnp.zeros((B, K), jnp.int32),
        next_obs=jnp.nan * obs,
        terminated=jnp.zeros(B, bool),
        next_action=jnp.zeros((1, B, K), jnp.int32),
        extras=(),
        q=q,
        q_first=q,
        q_target=q,
        alpha=jnp.asarray(0.7),
        stats=None,
        updates=jnp.zeros((), jnp.int32),
        average_params={"draws": jnp.asarray(draws), "logits": jnp.full((B, 9), jnp.nan)},
    )
    params = {"draws": jnp.full(5, -99), "logits": jnp.asarray(logits)}
    loss, found = actor.loss(jax.random.key(0), params, context)
    chosen = values[:, draws].T
    weight = np.exp(chosen / 0.7) / np.exp(chosen / 0.7).sum(axis=0)
    logp = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[:, draws].T
    assert float(loss) == pytest.approx(-(weight * logp).sum() / B / K, rel=1e-10)
    nats = np.log(5) + (weight * np.log(weight)).sum(axis=0)
    assert float(found.entropy_gap) == pytest.approx(0.7 * (0.4 - nats.mean()), rel=1e-8)
    # Where all candidates are worth the same no temperature is low enough: it stops to fall.
    flat = lambda obs, tokens: jnp.zeros(tokens.shape[:-1])  # noqa: E731
    for alpha, falls in ((0.7, True), (1e-6, False)):
        level = context._replace(q=flat, alpha=jnp.asarray(alpha))
        gap = float(actor.loss(jax.random.key(0), params, level)[1].entropy_gap)
        assert gap == pytest.approx(0.4 * alpha * falls, rel=1e-8)
    # Acting without exploration is the best of the candidates; with it the first.
    old = context.average_params
    act = lambda **more: actor.act(jax.random.key(0), old, obs, q, 1.0, **more)  # noqa: E731
    np.testing.assert_array_equal(act(explore=False), ALL[draws[chosen.argmax(axis=0)]])
    np.testing.assert_array_equal(act(explore=True), ALL[np.zeros(B, int)])
    proposed, bonus, _ = actor.propose(jax.random.key(0), old, params, obs, q, 1.0)
    np.testing.assert_array_equal(proposed, np.repeat(ALL[draws][:, None], B, axis=1))
    assert not bonus.any()
    # The best of all, not of candidates; and a share of uniform ones.
    greedy = discrete.greedy_macro(V, K, explore_prob=1.0)
    best = greedy.act(jax.random.key(0), {}, obs, q, 1.0, explore=False)
    np.testing.assert_array_equal(best, ALL[values.argmax(axis=1)])
    keys = jax.random.split(jax.random.key(1), 900)
    drawn = jax.vmap(lambda k: greedy.act(k, {}, obs, q, 1.0, explore=True))(keys)
    counts = np.bincount(np.asarray(exact.number(drawn, V))[:, 0], minlength=9)
    assert counts.min() > 55 and counts.max() < 150


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
def test_deep_q_learning_finds_the_needle_and_replays_durations():
    """Five seeds; the old policy of an actor that renews is the present one every third step."""
    N = 3
    env = envs.make_env(envs.macro(envs.deep_sea(N, seed=4), N, gamma=1.0), 8)
    critics = discrete.make_flat_critics((N * N,), 2, N, hidden=(32,))
    options = {"batch_size": 32, "capacity": 2000, "warmup": 64, "gamma": 1.0, "reward_scale": 1.0}
    actor = discrete.greedy_macro(2, N, explore_prob=0.3)
    learner = rl.make_learner(env, actor, critics=critics, critic_learning_rate=3e-3, **options)
    seeds = learning.over_seeds(learner, 5)
    state, _ = jax.jit(
        lambda key: jax.lax.scan(lambda s, _: seeds.step(s), seeds.init(key), None, length=300)
    )(jax.random.key(0))
    rights = np.diag(envs.deep_sea_rights(N, seed=4))
    obs = env.reset(jax.random.key(0)).obs[:1]
    for i in range(5):
        params = jax.tree.map(lambda x, i=i: x[i], state.critic_params)
        q = critics_lib.smaller(critics, params)
        best = actor.act(jax.random.key(0), {}, obs, q, 1.0, explore=False)
        np.testing.assert_array_equal(best[0], rights)
        value = float(q(obs, best)[0])
        assert value == pytest.approx(envs.deep_sea_optimum(N), abs=0.1)
    assert np.all(np.asarray(state.replay.data.duration)[:, :500] == N)


@pytest.mark.usefixtures("optax_promotes")
def test_an_old_policy_stays_until_it_is_renewed():
    env = envs.make_env(envs.macro(chain(), K, gamma=0.9), 2)
    policy = discrete.make_state_heads((1,), V, K, hidden=(4,))
    actor = discrete.forward_candidates(
        policy, num_steps=1, num_candidates=4, target_kl=None, renew_every=3, learning_rate=0.1
    )
    critics = discrete.make_flat_critics((1,), V, K, hidden=(4,))
    learner = rl.make_learner(env, actor, critics=critics, batch_size=4, capacity=16, warmup=4)

    def keep(state, _):
        state, _ = learner.step(state)
        return state, (state.policy_params, state.policy_average_params, state.log_alpha)

    @jax.jit
    def run(key):
        start = learner.init(key)
        return start.policy_params, jax.lax.scan(keep, start, None, length=7)[1]

    first, (now, old, log_alpha) = run(jax.random.key(0))
    now, old = (
        np.concatenate([np.asarray(x).reshape(7, -1) for x in jax.tree.leaves(tree)], axis=1)
        for tree in (now, old)
    )
    first = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(first)])
    for t, want in enumerate([first, first, now[2], now[2], now[2], now[5], now[5]]):
        np.testing.assert_array_equal(old[t], want)
    assert np.all(np.abs(np.diff(now, axis=0)).max(axis=1) > 0.0)
    np.testing.assert_allclose(log_alpha, 0.0, atol=1e-7)


@pytest.mark.usefixtures("optax_promotes")
def test_a_learner_tells_its_critics_how_long_macro_actions_took():
    """Two steps of the clock, never the end: what follows counts gamma^2."""
    walk = chain(limit=2 * K)
    walk = walk._replace(step=lambda x, action: (x, jnp.zeros((1,)), jnp.zeros(()), False))
    env = envs.make_env(envs.macro(walk, K, gamma=0.9), 2)
    critics = discrete.make_flat_critics((1,), V, K, hidden=(4,))

    def loss(key, params, target_params, data, gamma):
        shown = jnp.mean(rl.critics.discount(data, gamma))
        return shown, critics.apply(params, data.obs, data.action)

    learner = rl.make_learner(
        env,
        discrete.greedy_macro(V, K),
        critics=critics._replace(loss=loss),
        batch_size=4,
        capacity=16,
        warmup=4,
        gamma=0.9,
    )
    _, metrics = jax.jit(lambda key: learner.step(learner.init(key)))(jax.random.key(0))
    assert float(metrics["critic/loss"]) == pytest.approx(0.81, rel=1e-5)


# --- rollouts ----------------------------------------------------------------------------------


def test_the_gradient_of_steps_is_the_policy_gradient_where_episodes_end(x64):
    """All 4 x 4 paths of two binary tokens, of which a first 1 ends the episode.

    The second token is not carried out then; it counts all the same where it was revealed first,
    and the first one depended on it. Without it the direction is another.
    """
    schedule = schedules.make_schedule(2)
    tables = jnp.asarray(np.random.default_rng(1).normal(size=(9, 2, 2)))
    policy = discrete.make_table_policy(2, 2)
    tokens = np.asarray(list(itertools.product(range(2), repeat=2)))
    reveals = np.asarray(list(itertools.product([1, 2], repeat=2)))
    a, r = (jnp.asarray(x) for x in (np.repeat(tokens, 4, axis=0), np.tile(reveals, (4, 1))))
    executed = envs.executed(jnp.where(a[:, 0] == 1, 1, 2), 2)
    advantage = jnp.asarray([0.7, -1.1, 2.0, 2.0])  # equal where the second token is not played
    steps = jnp.asarray([1, 2])
    at = (a, r, steps)

    def paths(table, mask):
        denoise = policy.denoise(table)
        return path.step_logp(denoise, *at, vocab=2, schedule=schedule, token_mask=mask)

    # Each order of revealing is 1/4.
    chance = jnp.exp(jnp.sum(jax.jit(lambda t: paths(t, None))(tables), axis=0)) / 4.0
    assert float(jnp.sum(chance)) == pytest.approx(1.0)
    played = rollouts.Played(None, a, r, executed, None, None)

    def climbed(table):
        logp, logp_old, _ = on_policy.compare_steps(
            jax.random.key(0), policy, table, tables, played, schedule=schedule, count=2
        )
        ratio = jnp.exp(logp - logp_old)
        return jnp.sum(chance * jnp.repeat(advantage, 4) * jnp.sum(ratio, axis=0))

    def expected(table):
        law = exact.sampler_law(policy.denoise(table), schedule, vocab=2, length=2)
        return jnp.sum(law * advantage)

    def without(table):
        return jnp.sum(chance * jnp.repeat(advantage, 4) * jnp.sum(paths(table, executed), axis=0))

    found, want, other = jax.jit(lambda t: [jax.grad(f)(t) for f in (climbed, expected, without)])(
        tables
    )
    np.testing.assert_allclose(found, want, atol=1e-12)
    assert np.abs(other - want).max() > 1e-2
    # Of a policy that writes, what was carried out is enough.
    writer = discrete.make_writing_policy(2, 2, width=4, num_layers=1, num_heads=1)
    params = jax.tree.map(lambda x: x + 0.3, jax.jit(writer.init)(jax.random.key(0)))
    every = rollouts.Played(None, jnp.asarray(tokens), None, executed[::4], None, None)

    def written(params):
        logp, logp_old, _ = on_policy.compare_steps(
            jax.random.key(0), writer, params, old, every, schedule=schedule, count=2
        )
        return jnp.sum(law * advantage * jnp.sum(jnp.exp(logp - logp_old), axis=0))

    old = params
    law = jnp.exp(jax.jit(writer.log_prob)(params, jnp.asarray(tokens)))
    gained = jax.grad(
        lambda p: jnp.sum(jnp.exp(writer.log_prob(p, jnp.asarray(tokens))) * advantage)
    )
    both = jax.jit(lambda p: (jax.grad(written)(p), gained(p)))(params)
    for x, y in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-10)


class Ramp:
    """A value of 2 s that learns nothing, as a network."""

    @staticmethod
    def init(key, obs):
        return {"unused": jnp.zeros(())}

    @staticmethod
    def apply(params, obs):
        return 2.0 * obs + 0.0 * params["unused"]


def certain(first, second):
    """Heads that always play these two tokens."""
    logits = jnp.log(jnp.full((K, V), 1e-30).at[0, first].set(1.0).at[1, second].set(1.0))

    def given(obs):
        def denoise(params):
            at = logits + 0.0 * params
            return lambda tokens, level: jnp.broadcast_to(at, (*level.shape, K, V))

        return discrete.TokenPolicy(V, K, init, denoise)

    def init(key):
        return jnp.zeros(())

    return discrete.StatePolicy(V, K, init, given)


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    "make, terminated",
    [(discrete.reverse_rollouts, True), (discrete.forward_rollouts, False)],
    ids=["terminated", "truncated"],
)
def test_values_are_fitted_to_rewards_and_what_truncation_leads_to(make, terminated):
    """Tokens (0, 1) from 0: to 1, 3 | 4, 6, terminated; or the clock strikes after 4."""
    env = envs.make_env(envs.macro(chain(5 if terminated else 3), K, gamma=0.9), 2)
    algorithm = make(
        env,
        certain(0, 1),
        Ramp(),
        num_steps=1,
        rollout=2,
        num_epochs=1,
        num_minibatches=1,
        gamma=0.9,
        gae_lambda=1.0,
    )
    state, metrics = jax.jit(lambda key: algorithm.step(algorithm.init(key)))(jax.random.key(0))
    second = 1.0 + 0.9 * 2.0 if terminated else 1.0 + 0.9 * 2.0 * 4.0
    first = 1.0 + 0.9 * 2.0 + 0.81 * second
    error = ((0.0 - first) ** 2 + (2.0 * 3.0 - second) ** 2) / 2.0
    assert float(metrics["critic/loss"]) == pytest.approx(error, rel=1e-5)
    # Of four macro-actions; of one that the clock cut short only what was carried out counts.
    assert float(metrics["policy/unique"]) == (0.25 if terminated else 0.5)
    whole = 1.0 + 0.9 * 2.0 + (1.0 + 0.9 * 2.0 if terminated else 1.0)
    total, count = metrics["env/return"]
    assert int(count) == 2 and float(total) == pytest.approx(2.0 * whole, rel=1e-6)
    assert bool(jnp.all(state.env.terminated)) == terminated


def test_losses_by_noise_are_of_what_was_carried_out():
    """Heads that know no other token: -log of the first token's probability, in every band."""
    policy = discrete.make_state_heads((1,), V, K, hidden=(4,))
    params = policy.init(jax.random.key(3))
    obs = jnp.ones((10, 40, 1))
    tokens = jnp.broadcast_to(jnp.asarray([0, 1], jnp.int32), (10, 40, K))
    executed = jnp.broadcast_to(jnp.asarray([True, False]), (10, 40, K))
    none = jnp.zeros((10, 40))
    rolled = rollouts.Rollout(obs, tokens, tokens, executed, (), none, none, none > 0, obs)
    metrics = rollouts.describe(jax.random.key(0), policy, params, rolled)
    hidden = jnp.full((1, K), V, jnp.int32)
    logits = policy.given(jnp.ones((1, 1))).denoise(params)(hidden, jnp.ones((1,)))
    want = -float(jax.nn.log_softmax(logits[0, 0])[0])
    for i in range(4):
        total, count = metrics[f"loss/band_{i}"]
        assert float(count) > 0 and float(total / count) == pytest.approx(want, rel=1e-5)


@pytest.mark.usefixtures("optax_promotes")
def test_the_price_of_a_rollout_s_divergence_is_moved():
    """A step that went nowhere lowers it; one that may go no way at all is refused."""
    env = envs.make_env(envs.macro(chain(), K, gamma=0.9), 2)
    policy = discrete.make_state_heads((1,), V, K, hidden=(4,))
    given = {"num_steps": 1, "rollout": 4, "num_minibatches": 2, "temperature": 0.3}
    algorithm = discrete.reverse_rollouts(
        env, policy, Ramp(), **given, target_kl=0.1, learning_rate=1e-9
    )
    step = jax.jit(algorithm.step)
    state, metrics = step(algorithm.init(jax.random.key(0)))
    assert float(metrics["policy/kl"]) < 1e-6
    assert float(state.settings["temperature"]) == pytest.approx(0.2)
    assert float(metrics["policy/ess"]) == pytest.approx(4.0, rel=1e-5)  # of a minibatch
    assert float(step(state)[0].settings["temperature"]) == pytest.approx(0.3 / 1.5**2)
    with pytest.raises(ValueError, match="target_kl must be positive"):
        discrete.reverse_rollouts(env, policy, Ramp(), **given, target_kl=0.0)
    once = given | {"num_epochs": 1, "num_minibatches": 1}
    with pytest.raises(ValueError, match="target_kl needs two gradient steps"):
        discrete.reverse_rollouts(env, policy, Ramp(), **once, target_kl=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    ("make", "num_updates", "options"),
    [
        (discrete.reverse_rollouts, 60, {}),
        (discrete.forward_rollouts, 60, {}),
        (discrete.forward_replay, 80, {"num_kept": 4}),
        (discrete.forward_replay, 80, {"num_kept": 4, "largest_ratio": None}),
        (discrete.forward_replay, 80, {"num_kept": 4, "weighting": "imitation"}),
    ],
    ids=["reverse", "forward", "replay", "replay without ratio", "imitation"],
)
def test_heads_learn_the_best_macro_action(make, num_updates, options):
    """A state, two tokens, and rewards 1 .. 3 for each: (2, 2) is best; five seeds."""
    env = envs.make_env(envs.macro(counted(), K, gamma=1.0), 16)
    policy = discrete.make_state_heads((1,), V, K, hidden=(8,))
    algorithm = make(
        env,
        policy,
        discrete.StateValue((1,), (8,)),
        num_steps=1,
        rollout=4,
        num_epochs=2,
        num_minibatches=2,
        learning_rate=0.02,
        **options,
    )
    seeds = learning.over_seeds(algorithm, 5)

    @jax.jit
    def run(key):
        begin = seeds.init(key)
        return jax.lax.scan(lambda s, _: seeds.step(s), begin, None, length=num_updates)[1]

    metrics = run(jax.random.key(0))
    total, count = metrics["env/return"]
    last = np.asarray(total[-5:].sum(axis=0) / count[-5:].sum(axis=0))
    assert np.all(last > 5.5)  # 6 at best, 4 at random


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"count": 2}, r"count must lie in 1 .. 1"),
        ({"num_minibatches": 3}, "batch must divide into num_minibatches"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\]"),
        ({"temperature": -0.1}, "temperature must not be negative"),
    ],
)
def test_refusals(change, message):
    env = envs.make_env(envs.macro(chain(), K, gamma=0.9), 2)
    policy = discrete.make_state_heads((1,), V, K, hidden=(4,))
    given = {"num_steps": 1, "rollout": 4, "num_minibatches": 2} | change
    with pytest.raises(ValueError, match=message):
        discrete.reverse_rollouts(env, policy, Ramp(), **given)
    with pytest.raises(ValueError, match="the policy is for MultiDiscrete"):
        wrong = discrete.make_state_heads((1,), V, K + 1)
        discrete.forward_rollouts(env, wrong, Ramp(), num_steps=1)
    with pytest.raises(ValueError, match="target_kl lie between 0 and its logarithm, 1.39"):
        discrete.forward_candidates(policy, num_steps=1, num_candidates=4, target_kl=2.0)


def test_a_learner_refuses_critics_of_other_tokens():
    env = envs.make_env(envs.macro(chain(), K, gamma=0.9), 2)
    small = {"width": 4, "num_layers": 1, "num_heads": 1}
    for critics in (
        discrete.make_token_critics((1,), V + 1, K, **small),
        discrete.make_token_critics((1,), V, K + 1, **small),
        discrete.make_flat_critics((1,), V - 1, K),
    ):
        with pytest.raises(ValueError, match=r"the critics are for MultiDiscrete.* chain x2 takes"):
            rl.make_learner(
                env,
                discrete.greedy_macro(V, K),
                critics=critics,
                batch_size=4,
                warmup=4,
                capacity=8,
            )


def test_candidates_refuse_other_choices():
    more = envs.macro(chain()._replace(action_space=envs.Discrete(V + 1)), K, gamma=0.9)
    with pytest.raises(ValueError, match=r"the policy is for MultiDiscrete\(nums=\(3, 3\)\)"):
        rl.make_learner(
            envs.make_env(more, 2),
            discrete.greedy_macro(V, K),
            critics=discrete.make_flat_critics((1,), V, K, hidden=(4,)),
            batch_size=4,
            warmup=4,
            capacity=8,
        )
