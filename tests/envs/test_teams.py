"""A team as one actor, against the team itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs

N, V = 3, 4


def team(part=None):
    """Agents move along a line, are paid their own way, and may not stand where they stood."""

    def see(x):
        own = jnp.stack([x, jnp.arange(3.0)], axis=1)
        return own if part is None else {part: own, "all": x}

    def reset(key):
        x = jax.random.uniform(key, (N,))
        return x, see(x)

    def step(x, action):
        x = x + action.astype(x.dtype)
        return x, see(x), x * jnp.asarray([1.0, 2.0, 3.0]), x[0] > 5.0

    def mask(x):
        return jnp.arange(V)[None] != jnp.floor(x).astype(jnp.int32)[:, None] % V

    return envs.Task("line", 2, envs.Discrete(V), 9, reset, step, N, mask, part)


@pytest.mark.parametrize("part", [None, "own"])
def test_one_actor_plays_what_the_team_plays(part):
    task = team(part)
    single = envs.joint(task)
    key, tokens = jax.random.key(0), jnp.asarray([1, 3, 2])
    (x, obs), (y, seen) = task.reset(key), single.reset(key)
    for _ in range(3):
        own = obs if part is None else obs[part]
        np.testing.assert_array_equal(seen, own.ravel())
        np.testing.assert_array_equal(single.action_mask(y), task.action_mask(x).ravel())
        (x, obs, reward, ended), (y, seen, mean, over) = (
            task.step(x, tokens),
            single.step(y, tokens),
        )
        np.testing.assert_allclose(mean, np.mean(reward), rtol=1e-6)
        assert bool(ended) == bool(over)
    env = envs.make_env(single, 2)
    assert env.action_space == envs.MultiDiscrete((V,) * N) and env.obs_size == 6
    assert env.reset(key).action_mask.shape == (2, N * V)


def test_what_is_no_team_is_refused():
    with pytest.raises(ValueError, match="agents of one choice each, got None agents"):
        envs.joint(envs.deep_sea(4))
    with pytest.raises(ValueError, match="agents of one choice each, got 2 agents and Box"):
        envs.joint(envs.ball_balancing(continuous=True))
    with pytest.raises(ValueError, match="joint takes an envs.Task, got str"):
        envs.joint("football")
