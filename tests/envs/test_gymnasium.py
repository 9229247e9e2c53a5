"""Gymnasium through the adapter, against a plain loop over single environments of Gymnasium."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs

gymnasium = pytest.importorskip("gymnasium")
vector = gymnasium.vector
MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
LIMIT = 6


class Walk(gymnasium.Env):
    """Adds a + noise in [0, 1]; 4 terminates, below -2 truncates, choice 4 gives NaN."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Dict(
            place=gymnasium.spaces.Box(-np.inf, np.inf, (1, 1), np.float64),
            sign=gymnasium.spaces.Discrete(2),
        )
        self.action_space = gymnasium.spaces.Discrete(5, start=-1)

    def observe(self):
        return {"place": np.full((1, 1), self.x), "sign": int(self.x > 0)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.random())
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.x += action + float(self.np_random.random()) + (np.nan if action == 3 else 0.0)
        return self.observe(), 10.0 * self.x, self.x > 4, self.x < -1, {}


def made(mode, num_envs=3):
    functions = [lambda: gymnasium.wrappers.TimeLimit(Walk(), LIMIT)] * num_envs
    return vector.SyncVectorEnv(functions, autoreset_mode=vector.AutoresetMode[mode])


def played(env, key, actions):
    """All states of a scan, as NumPy."""
    start = jax.jit(env.reset)(key)

    @jax.jit
    def run(state, actions):
        return jax.lax.scan(lambda s, a: ((after := env.step(s, a)), after), state, actions)[1]

    states = run(start, jnp.asarray(actions))
    return start, jax.tree.map(np.asarray, states._replace(key=()))


def flat(obs):
    return np.array([obs["place"][0, 0], obs["sign"] == 0, obs["sign"] == 1], np.float32)


@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_gives_the_stream_of_a_plain_loop(mode, key):
    """Ends of both kinds, the clock, an action out of range, NaN: and no step lost on a reset."""
    rng = np.random.default_rng(1)
    actions = rng.choice([0, 1, 2, 3, 4, 7], p=[0.3, 0.2, 0.2, 0.24, 0.03, 0.03], size=(60, 3))
    env = envs.from_gymnasium(made(mode), 3, time_limit=LIMIT)
    start, states = played(env, key, actions.astype(np.int32))
    seed = int(jax.random.bits(jax.random.split(key)[1], (), jnp.uint32)) % 2**31
    kinds = set()
    for i in range(3):
        alone, time = Walk(), 0
        obs = flat(alone.reset(seed=seed + i)[0])
        np.testing.assert_array_equal(start.obs[i], obs)
        for t in range(60):
            before, time = obs, time + 1
            # What the adapter gives the environment for a choice out of range is the nearest.
            obs, reward, terminated, truncated, _ = alone.step(min(actions[t, i], 4) - 1)
            obs = flat(obs)
            failed = actions[t, i] == 7 or not np.isfinite(reward)
            truncated = truncated or time == LIMIT
            row = jax.tree.map(lambda x, i=i, t=t: x[t, i], states)
            assert row.failed == failed and row.time == (
                0 if failed or truncated or terminated else time
            )
            if failed:
                assert row.truncated and not row.terminated and row.reward == 0.0
                np.testing.assert_array_equal(row.final_obs, before)
            else:
                assert row.terminated == terminated
                assert row.truncated == (truncated and not terminated)
                np.testing.assert_array_equal(row.reward, np.float32(reward))
                np.testing.assert_array_equal(row.final_obs, obs)
            kinds.add((bool(failed), bool(terminated), bool(truncated), time == LIMIT))
            if failed or terminated or truncated:
                obs, time = flat(alone.reset()[0]), 0
            np.testing.assert_array_equal(row.obs, obs)
    assert len(kinds) >= 5 and states.reward.dtype == np.float32


def test_a_part_for_the_actor(key):
    env = envs.from_gymnasium(made("SAME_STEP"), 3, actor_part="sign", time_limit=LIMIT)
    assert env.obs_size == 2 and env.action_space == envs.Discrete(5)
    state = env.reset(key)
    after = env.step(state, jnp.full(3, 3, jnp.int32))
    assert after.obs["place"].shape == (3, 1) and after.final_obs["sign"].shape == (3, 2)
    np.testing.assert_array_equal(envs.actor_obs(env, after.obs), after.obs["sign"])
    for _ in range(1):
        after = env.step(after, jnp.full(3, 3, jnp.int32))
    ended = np.asarray(after.terminated)
    assert ended.any() and np.all(np.asarray(after.final_obs["place"])[ended] > 4)
    assert np.all(np.asarray(after.obs["place"])[ended] < 1)


def test_a_state_that_the_host_has_left_fails_and_begins_anew(key):
    """Stepped twice, or restored in another process: episodes are lost, and it is said."""
    env = envs.from_gymnasium(Walk, 2, time_limit=LIMIT)
    action = jnp.ones(2, jnp.int32)
    first = env.reset(key)
    second = env.step(first, action)
    assert not second.failed.any() and second.time.tolist() == [1, 1]
    again = env.step(first, action)
    assert again.failed.all() and again.truncated.all() and again.reward.tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(again.final_obs, first.obs)
    assert np.all((np.asarray(again.obs)[:, 0] < 1) & (again.obs[:, 0] != first.obs[:, 0]))
    assert not env.step(again, action).failed.any()
    elsewhere = envs.from_gymnasium(Walk, 2, time_limit=LIMIT)
    restored = elsewhere.step(second, action)
    assert restored.failed.all() and not elsewhere.step(restored, action).failed.any()
    # The same seed and the same actions are the same episodes: the host knows the state again.
    elsewhere.step(elsewhere.reset(key), action)
    third = elsewhere.step(second, action)
    assert not third.failed.any() and third.time.tolist() == [2, 2]


def test_seeds_side_by_side_are_refused(key):
    env = envs.from_gymnasium(made("DISABLED"), 3, time_limit=LIMIT)
    with pytest.raises(ValueError, match="cannot be vmapped.*make an Env for each seed"):
        jax.vmap(env.reset)(jax.random.split(key, 2))
    state = env.reset(key)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    with pytest.raises(ValueError, match="cannot be vmapped"):
        jax.jit(jax.vmap(env.step))(two, jnp.zeros((2, 3), jnp.int32))


def test_pendulum_by_id_is_the_one_in_jax(key):
    """Same actions from the same state: the adapter maps [-1, 1] to torques of 2 and counts 200."""
    env = envs.from_gymnasium("Pendulum-v1", 2)
    assert env.action_space == envs.Box((-2.0,), (2.0,)) and env.time_limit == 200
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (30, 2, 1)).astype(np.float32)
    start, states = played(env, key, actions)
    obs = np.asarray(start.obs)
    physics = jnp.stack([jnp.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2]], axis=1)
    step = jax.jit(jax.vmap(envs.pendulum().step))
    for t in range(30):
        physics, want, reward, _ = step(physics, 2.0 * jnp.asarray(actions[t]))
        np.testing.assert_allclose(states.obs[t], want, atol=2e-3)
        np.testing.assert_allclose(states.reward[t], reward, atol=5e-3)
    broken = env.step(env.reset(key), jnp.asarray([[jnp.nan], [0.0]]))
    assert broken.failed.tolist() == [True, False] and np.all(np.isfinite(broken.obs))


class Shapes(gymnasium.Env):
    """Says which action came, by its sum; an infinite reward at the sum 3."""

    def __init__(self, space):
        self.action_space = space
        self.observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, self.action_space)
        return np.full(1, np.sum(action), np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(
    "space, ours, action, total",
    [
        (
            gymnasium.spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 1], [0, 0]]),
            envs.MultiDiscrete((2, 3, 4, 2)),
            [1, 2, 3, 0],
            2 + 3 + 3 + 0,
        ),
        (gymnasium.spaces.MultiBinary(3), envs.MultiDiscrete((2, 2, 2)), [1, 0, 1], 2),
        (
            gymnasium.spaces.Box(np.float32([[-1], [1]]), np.float32([[1], [5]])),
            envs.Box((-1.0, 1.0), (1.0, 5.0)),
            [0.5, 0.5],
            0.5 + 4.0,
        ),
    ],
)
def test_spaces_of_every_shape(space, ours, action, total, key):
    env = envs.from_gymnasium(lambda: Shapes(space), 2, time_limit=5)
    assert env.action_space == ours and env.name == "Shapes"
    step = jax.jit(env.step)
    after = step(env.reset(key), jnp.asarray([action, action]))
    np.testing.assert_allclose(after.obs, [[total]] * 2)
    if isinstance(ours, envs.Box):  # what the environment gets for NaN lies in its bounds
        after = step(after, jnp.asarray([[jnp.nan, jnp.inf], [0.0, 0.0]]))
        assert after.failed.tolist() == [True, False]


SHARED = Walk()


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda: Shapes(gymnasium.spaces.Discrete(2)), {}, "Shapes: the time limit is unknown"),
        (lambda: Shapes(gymnasium.spaces.Discrete(2)), {"time_limit": 0}, "at least 1, got 0"),
        (lambda: Shapes(gymnasium.spaces.Text(3)), {"time_limit": 3}, "wrap the environment"),
        (
            lambda: Shapes(gymnasium.spaces.Box(-np.inf, np.inf, (1,))),
            {"time_limit": 3},
            "infinite bounds",
        ),
        (
            lambda: Shapes(gymnasium.spaces.Box(0, 5, (1,), np.uint8)),
            {"time_limit": 3},
            "must be a Box of floats",
        ),
        (Walk, {"time_limit": 3, "actor_part": "mine"}, "no part 'mine'"),
        (Walk(), {}, "write lambda"),
        (lambda: SHARED, {}, "Walk: the function must make a new environment at each call"),
        (made("DISABLED", 4), {}, "num_envs is 2, got 4 environments"),
        (
            lambda: gymnasium.make_vec("CartPole-v1", 2),
            {},
            "cannot begin single episodes.*give the id",
        ),
    ],
)
def test_what_is_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        envs.from_gymnasium(make, 2, **options)


def test_a_start_that_is_not_finite_is_refused():
    class Broken(Shapes):
        def reset(self, *, seed=None, options=None):
            return np.full(1, np.nan, np.float32), {}

    with pytest.raises(ValueError, match="Broken: reset must be finite"):
        envs.from_gymnasium(lambda: Broken(gymnasium.spaces.Discrete(2)), 2, time_limit=3)
