"""Sampled learners with tables: single updates by hand, and where they end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning, marl
from jaxlab.core import risk
from jaxlab.marl import tables

UNIQUE = np.array([[1.0, -2.0, 0.5], [4.0, 3.0, -1.0], [0.0, 2.0, 2.5]])
"""Payoffs of which each names its joint action."""


def setting(game, num_envs):
    env = envs.make_env(envs.game_task(game), num_envs)
    return env, functools.partial(envs.state_of, game), game.num_states


def played(state):
    """The joint actions `[E, 2]` that led to the rewards of a state's environments."""
    return np.array([np.argwhere(reward == UNIQUE)[0] for reward in np.asarray(state.env.reward)])


def two_steps(learner):
    """The state after one step, and the one after two; the first makes the tables unequal."""
    step = jax.jit(learner.step)
    first, _ = step(learner.init(jax.random.key(3)))
    second, metrics = step(first)
    return first, second, metrics


def numpy_policy(state):
    logits = np.asarray(state.logits, np.float64)[:, 0]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("critic", ["values", "actions", "joint"])
def test_one_update_by_hand(critic):
    """Agents who learn alone have parameters and rates of their own."""
    game = envs.matrix_game(UNIQUE)
    if critic == "joint":
        given = {"beta": 0.7, "policy_rate": 0.5, "critic_rate": 0.3}
    else:
        given = {"beta": (0.7, -0.4), "policy_rate": (0.5, 0.2), "critic_rate": (0.3, 0.6)}
    learner = marl.make_tabular(*setting(game, 6), critic=critic, init_scale=0.5, **given)
    before, after, metrics = two_steps(learner)
    betas, policy_rates, critic_rates = (np.broadcast_to(x, 2) for x in given.values())
    pi, action, reward = numpy_policy(before), played(after), np.asarray(after.env.reward)
    table = np.asarray(before.critic, np.float64)
    logits, new_table = np.asarray(before.logits, np.float64).copy(), table.copy()
    for agent in range(2):
        chosen, beta, rate = action[:, agent], betas[agent], critic_rates[agent]
        if critic == "values":
            weight = np.expm1(np.minimum(beta * (reward - table[agent, 0]), 3.0)) / beta
            new_table[agent, 0] += rate * weight.mean()
            push = np.mean(weight[:, None] * (np.eye(3)[chosen] - pi[agent]), axis=0)
        elif critic == "actions":
            q = table[agent, 0]
            for a in np.unique(chosen):
                error = reward[chosen == a] - q[a]
                step = rate * np.expm1(beta * error) / beta
                new_table[agent, 0, a] += np.where(error > 0, np.minimum(step, error), step).mean()
            v = np.log(pi[agent] @ np.exp(beta * q)) / beta
            push = pi[agent] * np.expm1(beta * (q - v)) / beta
        else:
            q, joint = table[0], np.outer(*pi)
            v = np.log(np.sum(joint * np.exp(0.7 * q))) / 0.7
            mine = np.log(np.moveaxis(np.exp(0.7 * q), agent, 0) @ pi[1 - agent]) / 0.7
            push = pi[agent] * np.expm1(0.7 * (mine - v)) / 0.7
        logits[agent, 0] += policy_rates[agent] * push
    if critic == "joint":
        for a, b in np.unique(action, axis=0):
            new_table[0, a, b] += 0.3 * (UNIQUE[a, b] - table[0, a, b])
    np.testing.assert_allclose(after.critic, new_table, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.logits, logits, rtol=1e-5, atol=1e-6)
    assert metrics["env/return"].count == 6
    np.testing.assert_allclose(metrics["env/return"].total, reward.sum(), rtol=1e-6)


def test_values_of_states_bootstrap_from_where_a_step_led():
    """In the gold mine one update of V by hand, next values and all; the clock does not end it."""
    game = envs.gold_mine(time_limit=1)
    learner = marl.make_tabular(*setting(game, 40), beta=0.5, critic_rate=1.0, gamma=0.9)
    state = learner.init(jax.random.key(0))
    state = state._replace(critic=jnp.asarray([[0.5, 1.0, 2.0], [0.0, 3.0, 1.0]]))
    after, _ = jax.jit(learner.step)(state)
    to = np.asarray(envs.state_of(game, after.env.final_obs))
    assert set(to) == {0, 1, 2} and np.all(after.env.truncated)
    for agent in range(2):
        v = np.asarray(state.critic[agent])
        error = np.asarray(after.env.reward) + 0.9 * v[to] - v[0]
        step = np.mean(np.expm1(np.minimum(0.5 * error, 3.0)) / 0.5)
        np.testing.assert_allclose(after.critic[agent], v + step * np.eye(3)[0], rtol=1e-5)


def test_acting_by_the_marginals_of_the_tilt():
    """Shares of actions in 20,000 games, within five standard errors, and what they teach."""
    game = envs.matrix_game(UNIQUE)
    learner = marl.make_tabular(
        *setting(game, 20_000), critic="joint", states="marginals", beta=0.6, init_scale=0.5
    )
    state = learner.init(jax.random.key(0))._replace(critic=jnp.asarray(UNIQUE)[None])
    after, _ = jax.jit(learner.step)(state)
    pi, action = numpy_policy(state), played(after)
    tilt = np.outer(*pi) * np.exp(0.6 * UNIQUE)
    tilt /= tilt.sum()
    for agent in range(2):
        share, mine = np.bincount(action[:, agent]) / 20_000, tilt.sum(axis=1 - agent)
        assert np.all(np.abs(share - mine) < 5.0 * np.sqrt(mine * (1.0 - mine) / 20_000))
    assert np.abs(pi[0] - tilt.sum(axis=1)).max() > 0.2
    np.testing.assert_allclose(after.critic[0], UNIQUE, rtol=1e-6)  # it knew them already


def success(game, critic, betas, num_steps, num_seeds, **given):
    """Share of seeds that play the best joint action (a, a) with more than 0.9, by beta."""
    learner = marl.make_tabular(*setting(game, 64), critic=critic, **given)
    settings = {"beta": jnp.repeat(jnp.asarray(betas), num_seeds)}
    sweep = learning.over_seeds(learner, len(betas) * num_seeds, settings=settings)

    @jax.jit
    def run(key):
        state, _ = jax.lax.scan(
            lambda s, _: (sweep.step(s)[0], None), sweep.init(key), length=num_steps
        )
        return jax.nn.softmax(state.logits[:, :, 0])[..., 0]

    best = np.asarray(run(jax.random.key(1)))
    return np.mean((best[:, 0] * best[:, 1] > 0.9).reshape(len(betas), num_seeds), axis=1)


def test_sampled_climbing_turns_with_beta():
    """No seed of 16 below beta 0.05, all of them from 0.2 on."""
    found = success(envs.climbing(), "values", [0.0, 0.05, 0.2, 0.5], 700, 16)
    assert found.tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.slow
def test_joint_critics_are_not_lured_by_lotteries():
    """Fully stochastic climbing: at beta 0.5 a joint critic always finds 11, one alone hardly."""
    game = envs.climbing("fully")
    assert success(game, "joint", [0.5], 700, 12).tolist() == [1.0]
    assert success(game, "values", [0.5, 1.0], 1500, 12).max() < 0.75


def test_beta_goes_down_its_schedule():
    learner = marl.make_tabular(
        *setting(envs.climbing(), 2), beta=1.0, beta_end=0.2, anneal_steps=4
    )
    _, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: learner.step(s), s, length=6))(
        learner.init(jax.random.key(0))
    )
    np.testing.assert_allclose(metrics["policy/beta"], [1.0, 0.8, 0.6, 0.4, 0.2, 0.2], rtol=1e-6)
    # The mean of CVaR is at 1: a schedule goes up to it.
    marl.make_tabular(
        *setting(envs.climbing(), 2),
        critic="joint",
        measure=risk.cvar,
        beta=0.3,
        beta_end=1.0,
        anneal_steps=4,
    )


@pytest.mark.parametrize("critic", ["values", "actions", "joint"])
def test_a_step_that_fails_teaches_nothing(critic):
    """All payoffs are 1 or NaN, which fails: tables are those of the steps that did not."""
    task = envs.game_task(envs.matrix_game(np.ones((2, 2))))

    def step(physics, action):
        physics, obs, reward, ended = task.step(physics, action)
        return physics, obs, jnp.where(action[0] == 0, jnp.nan, reward), ended

    env = envs.make_env(task._replace(step=step), 8)
    learner = marl.make_tabular(
        env, lambda obs: jnp.zeros(obs.shape[:1], jnp.int32), 1, critic=critic, critic_rate=1.0
    )
    state, _ = jax.jit(learner.step)(learner.init(jax.random.key(0)))
    failed = int(state.env.failed.sum())
    assert 0 < failed < 8
    table = np.asarray(state.critic)
    if critic == "values":
        np.testing.assert_allclose(table, 1.0 - failed / 8)  # the mean over all eight
    elif critic == "actions":
        assert np.all(table[0, 0, 0] == 0.0)
        np.testing.assert_allclose(table[0, 0, 1], 1.0)
    else:
        assert np.all(table[0, 0] == 0.0) and set(table[0, 1].tolist()) <= {0.0, 1.0}


def test_masked_actions_are_never_played():
    """And a mask that allows nothing, as of an agent that is gone, is left out."""
    env = envs.make_env(envs.game_task(envs.asymmetric()), 1)
    mask = jnp.asarray([[[True, False, False], [False, False, False]]])
    assert tables.allowed(env, mask, 3).tolist() == [[[True, False, False], [True, True, True]]]
    game = envs.asymmetric()
    learner = marl.make_tabular(*setting(game, 16), beta=5.0, policy_rate=0.5)
    step = jax.jit(lambda s: jax.lax.scan(lambda s, _: learner.step(s), s, length=50))
    state, metrics = step(learner.init(jax.random.key(0)))
    assert int(jnp.sum(metrics["env/return"].count)) == 50 * 16 and not bool(state.env.failed.any())


@pytest.mark.parametrize(
    "rule", ["independent", "distributed", "hysteretic", "entropic", "lenient"]
)
def test_q_learning_by_hand(rule):
    game = envs.matrix_game(UNIQUE)
    learner = marl.make_q_learner(
        *setting(game, 1),
        rule=rule,
        explore_steps=1000,
        rate=0.4,
        slow_rate=0.1,
        beta=0.7,
        leniency=1e6,  # so that everything is forgiven
        cooling=1.0,
    )
    step = jax.jit(learner.step)
    state = learner.init(jax.random.key(5))
    q, greedy = np.zeros((2, 3)), np.zeros(2, int)
    for _ in range(25):
        state, _ = step(state)
        (action,), (reward,) = played(state), np.asarray(state.env.reward)
        for agent, a in enumerate(action):
            error, best = reward - q[agent, a], q[agent].max()
            q[agent, a] += {
                "independent": 0.4 * error,
                "distributed": 0.4 * max(error, 0.0),
                "lenient": 0.4 * max(error, 0.0),
                "hysteretic": (0.4 if error >= 0.0 else 0.1) * error,
                "entropic": min(0.4 * np.expm1(0.7 * error) / 0.7, max(error, 0.0))
                if error > 0.0
                else 0.4 * np.expm1(0.7 * error) / 0.7,
            }[rule]
            if rule != "distributed":
                greedy[agent] = q[agent].argmax()
            elif q[agent].max() > best:
                greedy[agent] = a
        np.testing.assert_allclose(state.q[:, 0], q, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(state.greedy[:, 0], greedy)


@pytest.mark.slow
def test_heuristics_find_what_independent_learners_miss():
    """Climbing without luck: 20 seeds of each rule; thresholds are three standard errors away."""
    env, index, num_states = setting(envs.climbing(), 1)

    def share(rule, **given):
        learner = learning.over_seeds(
            marl.make_q_learner(
                env, index, num_states, rule=rule, explore_steps=1500, epsilon_end=0.05, **given
            ),
            20,
        )

        @jax.jit
        def run(key):
            state = learner.init(key)
            state, _ = jax.lax.scan(lambda s, _: (learner.step(s)[0], None), state, length=1500)
            return state.greedy[:, :, 0]

        return np.mean(np.all(np.asarray(run(jax.random.key(0))) == 0, axis=1))

    assert share("independent", rate=0.1) < 0.5
    assert share("distributed", rate=0.9) > 0.9
    assert share("frequency", rate=0.1, bonus=10.0) > 0.9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": float("nan")}, "beta must be a number, got nan"),
        ({"critic": "central"}, "critic must be one of values, actions, joint, got 'central'"),
        ({"beta_end": 0.1}, "beta_end and anneal_steps must be given together"),
        (
            {"beta": 0.1, "beta_end": 0.5, "anneal_steps": 5},
            "beta_end must lie between beta and the mean at 0.0, got 0.5 after 0.1",
        ),
        (
            {"beta": -0.5, "beta_end": 0.1, "anneal_steps": 5},
            "beta_end must lie between beta and the mean at 0.0, got 0.1 after -0.5",
        ),
        ({"beta": (0.1, 0.2, 0.3)}, "beta must be one number or one for each of the 2 agents"),
        ({"beta": (0.1, 0.2), "critic": "joint"}, r"beta must be one number, got shape \(2,\)"),
        ({"states": "marginals"}, "states='marginals' needs the critic 'joint', got 'values'"),
        ({"measure": risk.cvar, "critic": "values"}, "measure is for the critic 'joint'"),
        ({"critic_rate": 1.5}, r"critic_rate must lie in \(0, 1\], got 1.5"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ValueError, match=message):
        marl.make_tabular(*setting(envs.climbing(), 2), **given)


def test_refusals_of_sweeps():
    """What a builder refuses, a sweep of it refuses too, before anything runs."""
    annealed = marl.make_tabular(
        *setting(envs.climbing(), 2), beta=1.0, beta_end=0.2, anneal_steps=4
    )
    with pytest.raises(ValueError, match="is the schedule reversed"):
        learning.over_seeds(annealed, 2, settings={"beta": jnp.asarray([0.5, 0.1])})
    shared = marl.make_tabular(*setting(envs.climbing(), 2), critic="joint", measure=risk.cvar)
    play = marl.make_play(envs.climbing(), measure=risk.cvar, beta=1.0)
    for learner in (shared, play):
        with pytest.raises(ValueError, match=r"alpha must lie in \[-1, 1\] and not be 0, got 2"):
            learning.over_seeds(learner, 2, settings={"beta": jnp.asarray([0.5, 2.0])})


def test_refusals_of_environments():
    env = envs.make_env(envs.pendulum(), 2)
    with pytest.raises(ValueError, match="tables need agents with one choice each"):
        marl.make_tabular(env, lambda obs: obs, 1)
    env = envs.make_env(envs.ball_balancing(), 2)
    with pytest.raises(ValueError, match=r"index must give int32 \(2,\)"):
        marl.make_tabular(env, lambda obs: obs[..., 0], 5000)
    with pytest.raises(ValueError, match="rule 'frequency' is for games of one state"):
        marl.make_q_learner(env, envs.ball_index, 5000, rule="frequency", explore_steps=10)
    with pytest.raises(ValueError, match="epsilon_end must not be above epsilon, got 0.9 after 0"):
        marl.make_q_learner(
            env, envs.ball_index, 5000, explore_steps=10, epsilon=0.1, epsilon_end=0.9
        )
    with pytest.raises(ValueError, match="Q-learners take no masks"):
        marl.make_q_learner(*setting(envs.asymmetric(), 1), explore_steps=10)
