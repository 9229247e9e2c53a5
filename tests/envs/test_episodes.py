"""Episodes: ends by the task and by time, new starts, bad tasks; the small tasks by hand."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs
from jaxlab.envs import episodes

X = jnp.zeros(2)


def counter(**changes):
    """Counts up from a random offset; ends the episode at action 1, breaks at action -1."""

    def reset(key):
        start = jax.random.uniform(key, (2,))
        return {"start": start, "now": start}, start

    def step(physics, action):
        now = physics["now"] + jnp.where(action[0] < -9.9, jnp.nan, 1.0)
        return {"start": physics["start"], "now": now}, now, jnp.sum(now), action[0] > 9.9

    task = envs.Task("counter", 2, envs.Box((-10.0,), (10.0,)), 4, reset, step)
    return task._replace(**changes)


def test_time_ends_episodes_and_the_last_observation_is_kept(key):
    env = envs.make_env(counter(), 3)
    state = env.reset(key)
    first = np.asarray(state.obs)
    step = jax.jit(env.step)
    for t in range(1, 5):
        before, state = state, step(state, jnp.zeros((3, 1)))
        np.testing.assert_allclose(state.final_obs, first + t, rtol=1e-6)
        np.testing.assert_allclose(state.reward, (first + t).sum(axis=1), rtol=1e-6)
        assert state.truncated.tolist() == [t == 4] * 3 and not state.terminated.any()
    # A new start, which is neither the first nor the end.
    assert state.time.tolist() == [0, 0, 0]
    assert np.all(np.asarray(state.obs) < 1.0) and np.all(np.abs(state.obs - first) > 1e-6)
    np.testing.assert_array_equal(state.obs, state.physics["now"])
    del before


def test_the_task_ends_one_episode_and_no_other(key):
    env = envs.make_env(counter(), 3)
    state = env.reset(key)
    after = env.step(state, jnp.asarray([[0.0], [1.0], [0.0]]))  # 1 is mapped to the bound 10
    assert after.terminated.tolist() == [False, True, False] and not after.truncated.any()
    assert after.time.tolist() == [1, 0, 1]
    np.testing.assert_allclose(after.obs[::2], state.obs[::2] + 1.0)
    np.testing.assert_allclose(after.final_obs, state.obs + 1.0)
    assert np.all(np.abs(after.obs[1] - state.obs[1]) > 1e-6)
    np.testing.assert_array_equal(after.key[0] == state.key[0], True)
    assert bool(jnp.all(after.key[1] != state.key[1]))


def test_termination_at_the_time_limit_is_no_truncation(key):
    env = envs.make_env(counter(time_limit=1), 2)
    after = env.step(env.reset(key), jnp.asarray([[1.0], [0.0]]))
    assert after.terminated.tolist() == [True, False]
    assert after.truncated.tolist() == [False, True]


def test_what_is_not_finite_starts_anew_without_a_reward(key):
    env = envs.make_env(counter(), 2)
    state = env.reset(key)
    after = jax.jit(env.step)(state, jnp.asarray([[-1.0], [0.0]]))
    assert after.failed.tolist() == [True, False] and after.truncated.tolist() == [True, False]
    assert after.reward[0] == 0.0 and np.all(np.isfinite(after.obs))
    np.testing.assert_array_equal(after.final_obs[0], state.obs[0])


def test_an_episode_does_not_depend_on_its_neighbors(key):
    """Starts of one environment are its own, whenever others end."""
    env = envs.make_env(counter(), 2)
    ends = jnp.asarray([[0.0], [1.0]])

    def starts(action):
        state = env.reset(key)
        for _ in range(4):
            state = env.step(state, action)
        return state.obs

    np.testing.assert_array_equal(starts(ends)[0], starts(jnp.zeros((2, 1)))[0])


def test_step_compiles_once_and_runs_in_a_scan(key):
    env = envs.make_env(envs.pendulum(), 4)
    traces = []

    @jax.jit
    def step(state, action):
        traces.append(1)
        return env.step(state, action)

    state = env.reset(key)
    for scale in (0.1, 0.5, 0.9):
        state = step(state, jnp.full((4, 1), scale))
    assert len(traces) == 1
    end, rewards = jax.lax.scan(
        lambda s, a: (env.step(s, a), s.reward), env.reset(key), jnp.zeros((450, 4, 1))
    )
    assert end.time.tolist() == [50] * 4 and np.all(np.isfinite(rewards))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"action_space": envs.Box((-10.0,), (np.inf,))}, "infinite bounds"),
        ({"action_space": envs.Box((11.0,), (10.0,))}, "low must be below high"),
        ({"action_space": envs.Box((-1.0, -1.0), (10.0,))}, "bounds must be 1 numbers"),
        ({"time_limit": 0}, "time_limit must be"),
        ({"obs_size": 3}, "observation of 3 floats"),
        ({"reset": lambda key: (dict.fromkeys(("now", "start", "more"), X), X)}, "the same tree"),
        ({"step": lambda p, a: (p, jnp.zeros(2, int), a[0], a[0] > 0)}, "cast integers"),
        ({"step": lambda p, a: (p, p["now"], a, a[0] > 0)}, "must be scalars"),
        ({"step": lambda p, a: (p, p["now"], a[0])}, "must return"),
        ({"step": lambda p, a: (p, p["now"], a[0] > 0, a[0] > 0)}, "reward must be a number"),
        ({"reset": lambda key: ({"start": X, "now": X, "more": None}, X)}, "the same tree"),
        ({"reset": lambda key: ({"start": X, "now": X}, {"x": X})}, "one array to observe"),
    ],
)
def test_bad_tasks(changes, message):
    with pytest.raises(ValueError, match=message):
        envs.make_env(counter(**changes), 2)


def test_bad_numbers(key):
    with pytest.raises(ValueError, match="num_envs"):
        envs.make_env(counter(), 0)
    env = envs.make_env(counter(), 2)
    with pytest.raises(ValueError, match="action must be"):
        env.step(env.reset(key), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="must be floats"):
        env.step(env.reset(key), jnp.ones((2, 1), jnp.int32))
    system = envs.DOUBLE_INTEGRATOR._replace(R=np.eye(2))
    with pytest.raises(ValueError, match=r"got \(2, 2\), \(2, 1\), \(2, 2\), \(2, 2\)"):
        envs.linear_quadratic(system)


def test_weak_types_are_made_strong(key):
    half = jnp.full(2, 0.5)
    task = counter(reset=lambda key: ({"start": half, "now": half}, half))
    state = envs.make_env(task, 2).reset(key)
    assert not any(x.weak_type for x in jax.tree.leaves(state.physics))
    assert isinstance(state, episodes.State)


def test_a_reward_of_integers_is_carried_as_the_observations_are(key):
    task = counter(step=lambda p, a: (p, p["now"], jnp.where(a[0] > 0, 2, 1), a[0] > 20))
    env = envs.make_env(task, 2)
    ends, rewards = jax.lax.scan(
        lambda s, a: ((after := env.step(s, a)), after.reward), env.reset(key), jnp.ones((3, 2, 1))
    )
    np.testing.assert_array_equal(rewards, np.full((3, 2), 2.0))
    assert ends.reward.dtype == ends.obs.dtype == jnp.float32


def test_pendulum_is_gymnasium_s(key):
    gymnasium = pytest.importorskip("gymnasium")
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    task = envs.pendulum()
    physics, obs = task.reset(key)
    theirs.reset(seed=0)
    theirs.state = np.asarray(physics, np.float64)
    step = jax.jit(task.step)
    rng = np.random.default_rng(0)
    for _ in range(60):
        action = rng.uniform(-2.5, 2.5, 1).astype(np.float32)  # beyond the bound too
        physics, obs, reward, end = step(physics, action)
        want, want_reward, _, _, _ = theirs.step(action)
        np.testing.assert_allclose(obs, want, atol=2e-3)
        np.testing.assert_allclose(reward, want_reward, atol=2e-3)
        assert not end


def test_riccati_is_the_best_linear_policy(x64):
    """Returns of the task itself under K, against -x' P x; other gains do worse."""
    gamma = 0.95
    K, P = envs.riccati(gamma=gamma)
    system = envs.DOUBLE_INTEGRATOR
    rng = np.random.default_rng(0)
    starts = rng.uniform(-1, 1, (20, 2))

    def value(gain):
        total = np.zeros(20)
        x = starts.T
        for t in range(600):
            u = -gain @ x
            cost = np.einsum("ib,ij,jb->b", x, system.Q, x) + np.einsum(
                "ib,ij,jb->b", u, system.R, u
            )
            total -= gamma**t * cost
            x = system.A @ x + system.B @ u
        return total

    np.testing.assert_allclose(value(K), -np.einsum("bi,ij,bj->b", starts, P, starts), rtol=1e-9)
    for _ in range(10):
        assert np.all(value(K + 0.3 * rng.normal(size=K.shape)) < value(K))
    corners, bound = (
        np.array([[1.0, 1.0], [1.0, -1.0]]),
        envs.linear_quadratic().action_space.high[0],
    )
    for discount in (gamma, 0.99, 1.0):  # the optimum lies within the task's bound
        assert np.abs(corners @ envs.riccati(gamma=discount)[0].T).max() < bound
    with pytest.raises(ValueError, match="gamma must"):
        envs.riccati(gamma=0.0)


def test_linear_quadratic_steps_the_system():
    task = envs.linear_quadratic()
    A, B, Q, R = envs.DOUBLE_INTEGRATOR
    x, u = np.array([0.3, -0.7]), np.array([1.3])
    _, after, reward, end = task.step(jnp.asarray(x, jnp.float32), jnp.asarray(u, jnp.float32))
    np.testing.assert_allclose(after, A @ x + B @ u, rtol=1e-6)
    np.testing.assert_allclose(reward, -(x @ Q @ x + u @ R @ u), rtol=1e-6)
    assert not end


def test_leaving_costs_what_going_on_would_have(key):
    """By hand, on both sides of the limit; without a limit nothing ends."""
    system, P = envs.DOUBLE_INTEGRATOR, envs.riccati(gamma=1.0)[1]
    task, unbounded = envs.linear_quadratic(limit=2.0), envs.linear_quadratic(limit=np.inf)
    u = np.array([5.0])
    for x, ends in (([1.9, 0.4], False), ([1.9, 0.9], True), ([0.1, -1.9], False), ([0.1, 1.8], 1)):
        after, cost = system.A @ x + system.B @ u, x @ system.Q @ x + u @ system.R @ u
        found = task.step(jnp.asarray(x, jnp.float32), jnp.asarray(u, jnp.float32))
        assert bool(found[3]) == ends == (np.abs(after).max() > 2.0)
        np.testing.assert_allclose(found[2], -cost - ends * (after @ P @ after), rtol=1e-5)
        found = unbounded.step(jnp.asarray(x, jnp.float32), jnp.asarray(u, jnp.float32))
        assert not found[3]
        np.testing.assert_allclose(found[2], -cost, rtol=1e-5)


def test_no_policy_earns_more_than_riccati_s(x64, key):
    """A thousand policies on the task itself, most of which leave it, at three discounts."""
    task = envs.linear_quadratic()
    key_start, key_gain, key_push, key_noise = jax.random.split(key, 4)
    starts = jax.random.uniform(key_start, (1000, 2), minval=-1.0, maxval=1.0)
    gains = 3.0 * jax.random.normal(key_gain, (1000, 2))
    pushes = jnp.where(jnp.arange(1000) < 500, 3.0 * jax.random.normal(key_push, (1000,)), 0.0)
    noises = jax.random.normal(key_noise, (60, 1000))

    @jax.jit
    def play(gamma, gains, pushes, noises, P):
        def one(carry, noise):
            x, total, discount, over = carry
            u = jnp.clip(-jnp.sum(gains * x, axis=1) + pushes + noise, -6.0, 6.0)
            after, _, reward, ended = jax.vmap(task.step)(x, u[:, None])
            total = total + jnp.where(over, 0.0, discount * reward)
            return (after, total, gamma * discount, over | ended), None

        start = starts, jnp.zeros(1000), jnp.ones(()), jnp.zeros(1000, bool)
        (x, total, discount, over), _ = jax.lax.scan(one, start, noises)
        to_go = jnp.einsum("bi,ij,bj->b", x, P, x)  # whoever has not left goes on as well as can be
        return total - jnp.where(over, 0.0, discount * to_go), over

    for gamma in (0.9, 0.99, 1.0):
        K, P = envs.riccati(gamma=gamma)
        best = -np.einsum("bi,ij,bj->b", starts, P, starts)
        total, over = play(gamma, gains, pushes, noises, P)
        assert np.all(total < best) and 0.3 < over.mean() < 1.0
        zeros = (jnp.zeros(1000), jnp.zeros((60, 1000)))
        total, over = play(gamma, jnp.broadcast_to(K, (1000, 2)), *zeros, P)
        np.testing.assert_allclose(total, best, rtol=1e-9)
        assert not over.any()


def test_bad_linear_systems():
    for system, message in (
        ((np.diag([1.0, 2.0]), np.array([[1.0], [0.0]]), np.eye(2), np.eye(1)), "keeps its cost"),
        (envs.DOUBLE_INTEGRATOR._replace(Q=np.eye(3)), r"must be \[n, n\], \[n, m\]"),
    ):
        for make in (envs.linear_quadratic, envs.riccati):
            with pytest.raises(ValueError, match=message):
                make(envs.LinearQuadratic(*system))
    with pytest.raises(ValueError, match="limit must be at least 1, where episodes start, got 0.5"):
        envs.linear_quadratic(limit=0.5)


@pytest.mark.parametrize("name", envs.SMALL)
def test_small_tasks_in_double_precision(x64, key, name):
    """An actor may stay in single precision."""
    env = envs.make_env(envs.make_task(name, "jax"), 2)
    state = env.reset(key)
    discrete = isinstance(env.action_space, envs.Discrete)
    action = jnp.zeros(2, jnp.int32) if discrete else jnp.zeros((2, env.action_size), jnp.float32)
    after = env.step(state, action)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert state.obs.dtype == jnp.float64


def test_four_ways_are_equally_good_and_their_mean_is_not(key):
    task = envs.multi_goal(start_std=0.0)
    directions = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])

    def total(action):
        physics, _ = task.reset(key)
        returns, over = jnp.zeros(()), jnp.zeros((), bool)
        for _ in range(20):
            physics, _, reward, end = task.step(physics, action)
            returns = returns + jnp.where(over, 0.0, reward)
            over = over | end
        return returns, over

    returns, over = jax.vmap(total)(directions)
    assert over.tolist() == [True] * 4 + [False]
    # Distances 4, 3, 2, 1 (not within), 0: five steps and the bonus.
    np.testing.assert_allclose(returns[:4], 10.0 - (4 + 3 + 2 + 1 + 0 + 5 * 0.3) / 5, rtol=1e-5)
    np.testing.assert_allclose(returns[4], -20.0, rtol=1e-5)


def test_bandit_pays_and_ends(key):
    task = envs.bandit(lambda a: -jnp.sum(a**2), action_size=2)
    env = envs.make_env(task, 2)
    after = env.step(env.reset(key), jnp.asarray([[0.5, 0.0], [1.0, -1.0]]))
    np.testing.assert_allclose(after.reward, [-0.25, -2.0])
    assert after.terminated.all()


def test_the_examples_of_the_readme_run():
    text = pathlib.Path(envs.__file__).with_name("README.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    rewards, terminated, truncated, _ = names["steps"]
    assert rewards.shape == (1000, 16) and truncated.sum() == 5 * 16 and not terminated.any()
    assert names["env"].action_space == envs.Discrete(2) and names["env"].num_envs == 8
