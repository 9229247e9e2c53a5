"""What acting leaves behind: returns counted once, legal actions, moments of what was acted on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs
from jaxlab.learning import collecting, evaluate, normalize_obs


def contexts():
    """A contextual bandit: a context between 0 and 1000, one step, and nothing to see after it."""

    def reset(key):
        x = jax.random.uniform(key, (1,), maxval=1000.0)
        return x, x

    def step(x, action):
        return x, jnp.zeros(1), action[0] * x[0], jnp.ones((), bool)

    return envs.Task("contexts", 1, envs.Box((-1.0,), (1.0,)), 1, reset, step)


def choices(space, *, break_at=100):
    """Counts up to six; the first choice pays the count, and is forbidden at odd counts."""
    mask_of_others = jnp.ones(envs.spaces.num_logits(space) - 1, bool)

    def reset(key):
        n = jax.random.randint(key, (), 0, 3, jnp.int32)
        return n, n.astype(jnp.float32)[None]

    def step(n, action):
        first = jnp.ravel(action)[0]
        reward = jnp.where(first == 0, n.astype(jnp.float32), 0.5)
        n = n + 1
        obs = jnp.where(n == break_at, jnp.nan, n.astype(jnp.float32))[None]
        return n, obs, reward, n == 6

    def mask(n):
        return jnp.concatenate([(n % 2 == 0)[None], mask_of_others])

    return envs.Task("choices", 1, space, 4, reset, step, action_mask=mask)


def collected(env, key, num_transitions, **options):
    """Experience of uniform actions, and the mean returns of every step."""
    collector = collecting.make_collector(env, capacity=40 * env.num_envs, **options)

    @jax.jit
    def run(key):
        key, key_init = jax.random.split(key)

        def one(experience, key):
            state = experience.env
            action = envs.spaces.sample(key, env.action_space, (env.num_envs,), state.action_mask)
            return collector.collect(experience, action)

        keys = jax.random.split(key, num_transitions // env.num_envs)
        return jax.lax.scan(one, collector.init(key_init), keys)

    experience, ended = run(key)
    rows = int(experience.replay.size)
    return experience, jax.tree.map(lambda x: np.asarray(x)[:rows], experience.replay.data), ended


def test_contexts_are_normalized_by_their_own_moments(key):
    """Not by those of the nothing that is seen at the end, which would put all at the bound."""
    env = envs.make_env(contexts(), 8)
    experience, data, _ = collected(env, key, 320, normalize_obs=True)
    seen = data.obs.astype(np.float64)
    stats = experience.obs_stats
    assert stats.count == 320 and not data.next_obs.any()
    np.testing.assert_allclose(stats.mean, seen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats.square, seen.var(axis=0), rtol=1e-4)
    scaled = np.asarray(normalize_obs(stats, jnp.asarray(data.obs)))
    want = (seen - seen.mean()) / seen.std()
    np.testing.assert_allclose(scaled, want, atol=1e-3)
    assert 1.5 < np.abs(scaled).max() < 2.0


@pytest.mark.parametrize("space", [envs.Discrete(3), envs.MultiDiscrete((3, 2))])
def test_choices_are_legal_uniform_and_integers(key, space):
    env = envs.make_env(choices(space), 20)
    _experience, data, _ = collected(env, key, 800)
    action = data.action.reshape(800, -1)
    assert data.action.dtype == np.int32
    assert data.action.shape == ((800,) if isinstance(space, envs.Discrete) else (800, 2))
    odd = data.obs[:, 0] % 2 == 1
    np.testing.assert_array_equal(data.action_mask[:, 0], ~odd)
    np.testing.assert_array_equal(data.next_action_mask[:, 0], data.next_obs[:, 0] % 2 == 0)
    assert not np.any(action[odd, 0] == 0) and odd.sum() > 200
    for rows, allowed in ((odd, (0, 1 / 2, 1 / 2)), (~odd, (1 / 3, 1 / 3, 1 / 3))):
        shares = np.bincount(action[rows, 0], minlength=3) / rows.sum()
        np.testing.assert_allclose(shares, allowed, atol=4 * 0.5 / np.sqrt(rows.sum()))


def test_every_episode_that_ended_counts_once(key):
    """Sums over all steps are those of the stored rewards, episode by episode."""
    env = envs.make_env(choices(envs.Discrete(3)), 4)
    experience, data, ended = collected(env, key, 160)
    assert ended.count[0] == ended.total[0] == 0.0  # no episode ends in one step
    rewards = data.reward.reshape(40, 4)
    done = (data.terminated | data.truncated).reshape(40, 4)
    assert done.sum() > 30 and data.terminated.any() and data.truncated.any()
    want, running = [], np.zeros(4)
    for reward, end in zip(rewards, done, strict=True):
        running = running + reward
        want.append(running[end].sum())
        running = np.where(end, 0.0, running)
    np.testing.assert_allclose(ended.total, want, rtol=1e-6)
    np.testing.assert_array_equal(ended.count, done.sum(axis=1))
    np.testing.assert_allclose(experience.returns, running, rtol=1e-6)


def test_returns_of_agents_are_means_and_those_cut_off_do_not_count():
    env = envs.make_env(envs.game_task(envs.climbing()), 4)
    after = env.reset(jax.random.key(0))._replace(
        reward=jnp.asarray([[1.0, 3.0], [5.0, 7.0], [0.0, 8.0], [2.0, 2.0]]),
        terminated=jnp.asarray([False, True, False, False]),
        truncated=jnp.asarray([False, False, True, True]),
        failed=jnp.asarray([False, False, False, True]),
    )
    running, ended = collecting.add_rewards(jnp.asarray([10.0, 20.0, 30.0, 40.0]), after)
    assert running.tolist() == [12.0, 0.0, 0.0, 0.0]
    assert (float(ended.total), int(ended.count)) == (26.0 + 34.0, 2)


def test_failed_steps_are_counted_but_neither_stored_nor_normalized_by(key):
    env = envs.make_env(choices(envs.Discrete(3), break_at=2), 4)
    experience, data, _ = collected(env, key, 160, normalize_obs=True)
    failures = int(experience.failures)
    assert 10 < failures < 120 and experience.obs_stats.count == 160 - failures
    # From one the step fails: another row stands for it, or an end where all failed at once.
    assert np.all(data.terminated[data.obs[:, 0] == 1])
    assert experience.obs_stats.mean != 1.0 and np.all(np.isfinite(data.obs))


def test_an_episode_that_breaks_has_no_return(key):
    """Every step pays one, for three steps; a part of the episodes breaks before they end."""

    def reset(key):
        start = jnp.stack([jax.random.uniform(key), 0.0])
        return start, start

    def step(x, action):
        x = x + jnp.asarray([0.0, 1.0])
        reward = jnp.where((x[0] < 0.5) & (x[1] == 2.0), jnp.nan, 1.0)
        return x, x, reward, x[1] == 3.0

    env = envs.make_env(envs.Task("breaks", 2, envs.Discrete(2), 9, reset, step), 4)
    experience, _, ended = collected(env, key, 160)
    assert experience.failures > 10 and ended.count.sum() > 10
    np.testing.assert_array_equal(ended.total, 3.0 * ended.count)


def image(top):
    def reset(key):
        x = jnp.full((4,), top)
        return x, x * 0.0  # black at first

    def step(x, action):
        return x, x, jnp.zeros(()), jnp.zeros((), bool)

    return envs.Task("image", 4, envs.Box((-1.0,), (1.0,)), 9, reset, step)


@pytest.mark.parametrize("top, dtype", [(0.5, "uint8"), (300.0, "uint8"), (1e5, "float16")])
def test_observations_that_do_not_fit_are_refused(request, top, dtype):
    if dtype == "float16":
        request.getfixturevalue("float16")
    env = envs.make_env(image(top), 2)
    with pytest.raises(ValueError, match=rf"obs_dtype {dtype} does not hold .* {top:g}"):
        collecting.make_collector(env, capacity=8, obs_dtype=jnp.dtype(dtype))


def test_whole_numbers_fit_into_bytes(key):
    env = envs.make_env(image(255.0), 2)
    experience, data, _ = collected(env, key, 20, obs_dtype=jnp.uint8)
    assert data.obs.dtype == np.uint8 and data.next_obs.dtype == np.uint8
    assert np.all(data.next_obs == 255)
    back = collecting.widen(experience.replay.data.next_obs[:20], experience.env.obs)
    np.testing.assert_array_equal(back, np.full((20, 4), 255.0, np.float32))
    with pytest.raises(ValueError, match="the observations of image are one array"):
        collecting.make_collector(env, capacity=8, obs_dtype={"pixels": jnp.uint8})


def test_a_replay_that_does_not_divide_and_agents_are_refused():
    env = envs.make_env(contexts(), 3)
    with pytest.raises(ValueError, match="multiple of the 3 environments"):
        collecting.make_collector(env, capacity=8)
    with pytest.raises(ValueError, match="has 2 agents"):
        collecting.make_collector(env._replace(num_agents=2), capacity=9)


def test_episodes_of_choices_are_played_by_their_masks(key):
    """The first choice where it is allowed, else the second: returns known from the start."""
    env = envs.make_env(choices(envs.Discrete(3)), 16)

    def act(key, obs, mask):
        return jnp.where(mask[:, 0], 0, 1).astype(jnp.int32)

    starts = np.asarray(env.reset(jax.random.split(key)[0]).obs)[:, 0]
    want = [
        sum(n if n % 2 == 0 else 0.5 for n in range(int(s), min(int(s) + 4, 6))) for s in starts
    ]
    np.testing.assert_allclose(jax.jit(lambda k: evaluate(k, act, env))(key), want)
