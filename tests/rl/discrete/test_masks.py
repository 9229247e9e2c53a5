"""Choices that are allowed in some states and not in others, against enumeration of those that are.

Three rounds of two tokens of three. The first token may not be the first one of the round before,
what the second may be changes with the state, and after the last round nothing is allowed.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import envs, rl
from jaxlab.diffusion.discrete import exact, path, sampling, schedules
from jaxlab.rl import discrete
from jaxlab.rl.discrete import matching, on_policy, rollouts, state_policies, token_critics

V, K, ROUNDS, LAM = 3, 2, 3, 0.4
STATES = (ROUNDS + 1) * (V + 1)  # the round, and the token before, V at the start
RNG = np.random.default_rng(3)
REWARDS = RNG.uniform(size=(STATES, V**K))
ALLOWED = np.zeros((STATES, K, V), bool)
for round_, last in itertools.product(range(ROUNDS), range(V + 1)):
    state = round_ * (V + 1) + last
    ALLOWED[state, 0] = np.arange(V) != last
    ALLOWED[state, 1] = RNG.permutation([True, True, False])
ALL = exact.sequences(V, K)
LEGAL = np.stack([ALLOWED[:, 0, a] & ALLOWED[:, 1, b] for a, b in ALL], axis=1)
"""`[STATES, V^K]` macro-actions that are allowed."""
REACHED = [V] + [r * (V + 1) + last for r in range(1, ROUNDS) for last in range(V)]


def locks():
    """What is forbidden pays best, and is remembered in the state."""
    allowed, rewards = jnp.asarray(ALLOWED), jnp.asarray(REWARDS, jnp.float32)

    def observe(s):
        return jax.nn.one_hot(s, STATES)

    def reset(key):
        start = jnp.asarray(V, jnp.int32)
        return (start, jnp.zeros((), bool)), observe(start)

    def step(physics, tokens):
        s, sinned = physics
        fine = jnp.all(allowed[s, jnp.arange(K), tokens])
        after = (s // (V + 1) + 1) * (V + 1) + tokens[0].astype(jnp.int32)
        reward = jnp.where(fine, rewards[s, exact.number(tokens, V)], 100.0)
        ended = after // (V + 1) == ROUNDS
        return (after, sinned | ~fine), observe(after), reward, ended

    return envs.Task(
        "locks",
        STATES,
        envs.MultiDiscrete((V,) * K),
        9,
        reset,
        step,
        action_mask=lambda physics: allowed[physics[0]].reshape(-1),
    )


def tables():
    """A policy that is a table for every state, uniform at first."""

    def given(obs, valid=None):
        def denoise(params):
            here = jnp.einsum("...s,skav->...kav", obs, params)

            def look(tokens, level):
                rows = jnp.broadcast_to(here, (*level.shape, *here.shape[-3:]))
                at = exact.number(tokens, V + 1)[..., None, None, None]
                return jnp.take_along_axis(rows, at, axis=-3)[..., 0, :, :]

            return sampling.sharpen(look, valid=valid)

        return discrete.TokenPolicy(V, K, init, denoise)

    def init(key):
        return jnp.zeros((STATES, (V + 1) ** K, K, V))

    return discrete.StatePolicy(V, K, init, given)


def listed():
    """Twin critics that are tables of states and macro-actions."""

    def apply(params, obs, tokens):
        rows = jnp.einsum("...s,csa->c...a", obs, params)
        return jnp.sum(rows * jax.nn.one_hot(exact.number(tokens, V), V**K)[None], axis=-1)

    return rl.Critics(
        lambda key: jnp.zeros((2, STATES, V**K)), apply, token_critics.macro_loss(apply, V)
    )


def states_of(obs):
    return np.asarray(obs).argmax(axis=-1)


def law_of(policy, params, state):
    """`[V^K]` of tokens that are revealed one after another, the first one first."""
    obs, valid = jnp.eye(STATES)[state], jnp.asarray(ALLOWED[state])
    denoise = policy.given(obs, valid).denoise(params)
    partial = jnp.asarray([[V, V], *([a, V] for a in range(V))], jnp.int32)
    probs = np.asarray(jax.nn.softmax(denoise(partial, jnp.ones(V + 1)), axis=-1))
    return (probs[0, 0][:, None] * probs[1:, 1]).ravel()


@pytest.mark.usefixtures("optax_promotes")
def test_a_policy_is_fitted_to_the_softmax_of_what_is_allowed():
    """The old policy stays even over what is allowed, so that the target is known exactly."""
    actor = discrete.forward_candidates(
        tables(),
        num_steps=2,
        num_candidates=32,
        target_kl=None,
        temperature=LAM,
        renew_every=10**6,
        uniform_share=0.2,
    )
    actor = actor._replace(optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 600)))
    learner = rl.make_learner(
        envs.make_env(locks(), 8),
        actor,
        critics=listed(),
        gamma=0.0,
        reward_scale=1.0,
        critic_learning_rate=0.05,
        batch_size=64,
        capacity=8192,
        warmup=512,
    )
    state, _ = jax.jit(
        lambda key: jax.lax.scan(lambda s, _: learner.step(s), learner.init(key), None, length=600)
    )(jax.random.key(0))
    data = jax.tree.map(lambda x: np.asarray(x[: int(state.replay.size)]), state.replay.data)
    here = states_of(data.obs)
    assert set(REACHED) == set(here)
    assert LEGAL[here, np.asarray(exact.number(data.action, V))].all()
    np.testing.assert_array_equal(data.action_mask, ALLOWED[here].reshape(-1, K * V))
    there = states_of(data.next_obs)
    np.testing.assert_array_equal(data.next_action_mask, ALLOWED[there].reshape(-1, K * V))
    assert not state.env.physics[1].any() and data.reward.max() <= 1.0
    for s in REACHED:
        want = LEGAL[s] * np.exp(REWARDS[s] / LAM)
        law = law_of(tables(), state.policy_params, s)
        assert (law[~LEGAL[s]] == 0.0).all()
        np.testing.assert_allclose(law, want / want.sum(), atol=0.03)
        assert np.abs(law - LEGAL[s] / LEGAL[s].sum()).max() > 0.05


@pytest.mark.usefixtures("optax_promotes")
def test_deep_q_learning_bootstraps_from_what_is_allowed():
    """Values of all macro-actions that are allowed against the enumerated recursion."""
    gamma = 0.8
    actor = discrete.greedy_macro(V, K, explore_prob=1.0)
    learner = rl.make_learner(
        envs.make_env(locks(), 8),
        actor,
        critics=listed(),
        gamma=gamma,
        tau=0.2,
        reward_scale=1.0,
        critic_learning_rate=0.05,
        batch_size=64,
        capacity=4096,
        warmup=512,
    )
    state, _ = jax.jit(
        lambda key: jax.lax.scan(lambda s, _: learner.step(s), learner.init(key), None, length=500)
    )(jax.random.key(1))
    value, best = np.zeros(STATES), np.zeros((STATES, V**K))
    for s in reversed(REACHED):
        after = (s // (V + 1) + 1) * (V + 1) + ALL[:, 0]
        best[s] = REWARDS[s] + gamma * value[after]
        value[s] = best[s][LEGAL[s]].max()
    for s in REACHED:
        found = np.asarray(state.critic_params)[:, s, LEGAL[s]]
        np.testing.assert_allclose(
            found, np.broadcast_to(best[s][LEGAL[s]], found.shape), atol=0.02
        )
    assert not state.env.physics[1].any()
    # A forbidden macro-action that looks better than any is not the best one.
    q = lambda obs, tokens: jnp.asarray(~LEGAL * 9.0 + REWARDS)[  # noqa: E731
        jnp.argmax(obs, axis=-1), exact.number(tokens, V)
    ]
    obs, mask = jnp.eye(STATES), jnp.asarray(ALLOWED.reshape(STATES, -1))
    chosen = actor.act(jax.random.key(0), {}, obs, q, 1.0, explore=False, mask=mask)
    best = np.where(LEGAL, REWARDS, -np.inf)[REACHED].argmax(axis=1)
    np.testing.assert_array_equal(np.asarray(chosen)[REACHED], ALL[best])


def test_critics_draw_anew_what_was_allowed():
    """Tokens that were not carried out, of each state's own, each about as often."""
    B, seen = len(REACHED), []

    def apply(params, obs, tokens):
        return jnp.zeros((2, *tokens.shape[:-1])) + params

    def keep(params, obs, tokens):
        seen.append(tokens)
        return apply(params, obs, tokens)

    data = rl.critics.Transitions(
        obs=jnp.zeros((B, 1)),
        action=jnp.asarray([[ALLOWED[s, 0].argmax(), 0] for s in REACHED]),
        reward=jnp.zeros(B),
        terminated=jnp.ones(B, bool),
        next_obs=jnp.zeros((B, 1)),
        next_action=jnp.zeros((1, B, K), jnp.int32),
        bonus=jnp.zeros(B),
        duration=jnp.ones(B, jnp.int32),
        action_mask=jnp.asarray(ALLOWED[REACHED].reshape(B, -1)),
    )

    def drawn(key):
        token_critics.macro_loss(keep, V)(key, 0.0, 0.0, data, 0.9)
        return seen[-1]

    tokens = np.asarray(jax.jit(jax.vmap(drawn))(jax.random.split(jax.random.key(0), 400)))
    assert (tokens[..., 0] == np.asarray(data.action)[:, 0]).all()
    for i, s in enumerate(REACHED):
        share = np.bincount(tokens[:, i, 1], minlength=V) / 400
        want = ALLOWED[s, 1] / ALLOWED[s, 1].sum()
        assert (share[want == 0.0] == 0.0).all() and np.abs(share - want).max() < 0.13  # 5 sigma


def shaken(policy):
    params = jax.jit(policy.init)(jax.random.key(1))
    return jax.tree.map(
        lambda x: x + 0.5 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params
    )


SMALL = {"width": 8, "num_layers": 1, "num_heads": 2, "num_prefix": 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda: discrete.make_state_policy((STATES,), V, K, **SMALL),
        lambda: discrete.make_state_heads((STATES,), V, K, hidden=(8,)),
    ],
    ids=["denoiser", "heads"],
)
def test_denoisers_have_the_allowed_tokens_of_their_own_and_no_others(make):
    policy = make()
    params, obs = shaken(policy), jnp.eye(STATES)[jnp.asarray(REACHED)]
    tokens = jnp.full((2, len(REACHED), K), V, jnp.int32)
    level = jnp.ones((2, len(REACHED)))
    mask = jnp.asarray(ALLOWED[REACHED].reshape(len(REACHED), -1))

    @jax.jit
    def look(mask):
        closed = state_policies.at_states(policy, obs, mask).denoise(params)
        free = policy.given(obs).denoise(params)
        return jax.nn.softmax(closed(tokens, level), axis=-1), free(tokens, level)

    found, free = look(mask)
    want = np.exp(np.asarray(free, np.float64)) * ALLOWED[REACHED]
    np.testing.assert_allclose(found, want / want.sum(axis=-1, keepdims=True), rtol=1e-4, atol=0)


def test_a_writer_writes_what_is_allowed_and_tells_its_probability():
    """Every sequence's probability is the product of conditionals, renewed at every place."""
    policy = discrete.make_state_writer((STATES,), V, K, **SMALL)
    params, obs = shaken(policy), jnp.eye(STATES)[jnp.asarray(REACHED)]
    mask = jnp.asarray(ALLOWED[REACHED].reshape(len(REACHED), -1))
    every = jnp.broadcast_to(jnp.asarray(ALL)[:, None], (V**K, len(REACHED), K))

    @jax.jit
    def look(mask):
        here = state_policies.at_states(policy, obs, mask)
        tokens, logp = here.sample(jax.random.key(3), params, (500, len(REACHED)))
        free = policy.given(obs).conditionals(params, every)
        again, law = jnp.split(here.log_prob(params, jnp.concatenate([tokens, every])), [500])
        return tokens, logp, again, law, free

    tokens, logp, again, law, free = look(mask)
    np.testing.assert_allclose(logp, again, rtol=1e-4, atol=1e-5)
    drawn = np.asarray(exact.number(tokens, V))
    assert LEGAL[REACHED][np.arange(len(REACHED)), drawn].all()
    closed = np.exp(np.asarray(free, np.float64)) * ALLOWED[REACHED]
    closed /= closed.sum(axis=-1, keepdims=True)
    want = np.prod(np.take_along_axis(closed, np.asarray(every)[..., None], axis=-1)[..., 0], -1)
    np.testing.assert_allclose(np.exp(np.asarray(law)), want, rtol=1e-4, atol=1e-12)
    assert ((want > 0.0) == LEGAL[REACHED].T).all()


def test_the_gradient_of_steps_is_the_policy_gradient_of_what_is_allowed(x64):
    """R2 over all paths of the allowed sequences of one state, old policy and new one alike."""
    schedule, state = schedules.make_schedule(2), REACHED[1]
    valid, advantage = jnp.asarray(ALLOWED[state]), jnp.asarray(RNG.normal(size=V**K))
    reveals = np.asarray(list(itertools.product([1, 2], repeat=K)))
    a = jnp.asarray(np.repeat(ALL[LEGAL[state]], 4, axis=0))
    r = jnp.asarray(np.tile(reveals, (LEGAL[state].sum(), 1)))
    policy, number = tables(), exact.number(a, V)
    here = policy.given(jnp.eye(STATES)[state], valid)
    old = jnp.asarray(RNG.normal(size=(STATES, (V + 1) ** K, K, V)))
    played = rollouts.Played(None, a, r, jnp.ones_like(a, bool), None, None)

    def steps(table):
        return on_policy.compare_steps(
            jax.random.key(0), here, table, old, played, schedule=schedule, count=2
        )

    def climbed(table):
        logp, logp_old, kl = steps(table)
        chance = jnp.exp(jnp.sum(jax.lax.stop_gradient(logp), axis=0)) / 4.0
        loss, _ = matching.reverse_kl(
            logp,
            logp_old,
            4.0 * LEGAL[state].sum() * chance * advantage[number],
            kl,
            num_steps=2,
            clip_eps=jnp.inf,
            temperature=0.0,
        )
        return -loss, jnp.sum(chance)

    def expected(table):
        return exact.sampler_law(here.denoise(table), schedule, vocab=V, length=K) @ advantage

    (found, total), want = jax.jit(
        lambda t: (jax.grad(climbed, has_aux=True)(t), jax.grad(expected)(t))
    )(old)
    assert float(total) == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(found, want, atol=1e-12)
    assert np.abs(want).max() > 1e-3
    moved = steps(old + 0.1 * jnp.sin(jnp.arange(old.size, dtype=float)).reshape(old.shape))
    assert np.isfinite(moved[2]).all() and (np.asarray(moved[2]) >= 0.0).all()
    assert (
        path.step_logp(
            here.denoise(old), a, r, jnp.asarray([1, 2]), vocab=V, schedule=schedule
        ).min()
        > -50.0
    )  # nothing that was drawn is impossible


class Flat:
    """No value at all, as a network."""

    @staticmethod
    def init(key, obs):
        return {"unused": jnp.zeros(())}

    @staticmethod
    def apply(params, obs):
        return 0.0 * obs[..., :1] + 0.0 * params["unused"]


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    ("make", "policy", "options"),
    [
        pytest.param(
            discrete.reverse_rollouts,
            tables,
            {"num_steps": 2},
            id="reverse",
            marks=pytest.mark.slow,
        ),
        pytest.param(discrete.forward_replay, tables, {"num_steps": 2, "num_kept": 2}, id="replay"),
        pytest.param(
            discrete.forward_rollouts,
            lambda: discrete.make_state_writer((STATES,), V, K, **SMALL),
            {},
            id="forward",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rollouts_play_what_is_allowed(make, policy, options):
    """Nothing forbidden in three steps, parameters that move and stay finite."""
    algorithm = make(
        envs.make_env(locks(), 8),
        policy(),
        Flat(),
        rollout=8,
        num_epochs=2,
        num_minibatches=2,
        learning_rate=0.02,
        **options,
    )

    @jax.jit
    def run(key):
        start = algorithm.init(key)
        return start, *jax.lax.scan(lambda s, _: algorithm.step(s), start, None, length=3)

    start, state, metrics = run(jax.random.key(0))
    assert not state.env.physics[1].any()
    total, count = metrics["env/return"]
    assert (np.asarray(count) > 0).all() and (np.asarray(total) <= ROUNDS * np.asarray(count)).all()
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), start.params, state.params)
    assert 0.0 < max(jax.tree.leaves(moved["policy"])) < 1.0


def test_a_policy_that_takes_no_mask_is_refused_where_there_are_some():
    policy = tables()
    blind = policy._replace(given=lambda obs: policy.given(obs))
    env = envs.make_env(locks(), 2)
    for make in (discrete.reverse_rollouts, discrete.forward_rollouts):
        with pytest.raises(ValueError, match=r"write given\(obs, valid\)"):
            make(env, blind, Flat(), num_steps=2)
    actor = discrete.greedy_macro(V, K)
    act = lambda key, params, obs, q, alpha, *, explore: None  # noqa: E731
    with pytest.raises(ValueError, match="locks rules choices out by an action_mask, which the"):
        rl.make_learner(env, actor._replace(act=act), critics=listed(), batch_size=4, warmup=4)
