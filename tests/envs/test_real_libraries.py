"""The adapters on the libraries themselves: each step is the library's own, from the same keys.

Slow but for Gymnasium; skipped where a library is not installed: pip install 'jaxlab[games]' (below
Python 3.13) brings gymnax and JaxMARL, and MuJoCo Playground is the package `playground`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs
from jaxlab.envs import spaces


def run(env, key, num_steps):
    """Plays uniformly among what is allowed; returns actions and states of all steps."""

    def one(carry, key):
        state = carry
        lead = (env.num_envs,) if env.num_agents is None else (env.num_envs, env.num_agents)
        action = spaces.sample(key, env.action_space, lead, state.action_mask)
        state = env.step(state, action)
        return state, (action, state)

    key_reset, key_steps = jax.random.split(key)
    start = jax.jit(env.reset)(key_reset)
    keys = jax.random.split(key_steps, num_steps)
    return start, jax.jit(lambda s: jax.lax.scan(one, s, keys))(start)[1]


@pytest.mark.parametrize("name, steps", [("CartPole-v1", 60), ("MountainCarContinuous-v0", 20)])
def test_gymnasium(name, steps, key):
    gymnasium = pytest.importorskip("gymnasium")
    env = envs.from_gymnasium(name, 3)
    start, (actions, states) = run(env, key, steps)
    seed = int(jax.random.bits(jax.random.split(jax.random.split(key)[0])[1], (), jnp.uint32))
    ends = 0
    for i in range(3):
        theirs = gymnasium.make(name)
        obs, _ = theirs.reset(seed=seed % 2**31 + i)
        np.testing.assert_array_equal(start.obs[i], obs)
        for t in range(steps):
            obs, reward, terminated, truncated, _ = theirs.step(np.asarray(actions[t, i]))
            np.testing.assert_array_equal(states.final_obs[t, i], obs)
            np.testing.assert_allclose(states.reward[t, i], reward, rtol=1e-6)
            assert (bool(states.terminated[t, i]), bool(states.truncated[t, i])) == (
                terminated,
                truncated,
            )
            if terminated or truncated:
                obs, _ = theirs.reset()
                ends += 1
            np.testing.assert_array_equal(states.obs[t, i], obs)
    assert ends > 0 or name != "CartPole-v1"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Breakout-MinAtar", "CartPole-v1", "Pendulum-v1"])
def test_gymnax(name, key, optax_promotes):
    """Its own step from the keys that the task carries; its clock truncates."""
    gymnax = pytest.importorskip("gymnax", reason="pip install 'jaxlab[games]'")
    theirs, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=12)
    env = envs.make_env(envs.from_gymnax(theirs, params), 4)
    start, (actions, states) = run(env, key, 30)
    assert env.time_limit == 12 and not states.failed.any()
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), start, states)
    state, keys = before.physics
    low, high = (-2.0, 2.0) if name == "Pendulum-v1" else (None, None)
    own = actions if low is None else low + (high - low) * (actions + 1) / 2

    def again(state, key, action):
        obs, state, reward, terminated, _ = theirs.step_env(
            jax.random.split(key)[1], state, action, params
        )
        return obs.reshape(-1), reward, terminated, theirs.is_truncated(state, params)

    obs, reward, terminated, truncated = jax.jit(jax.vmap(jax.vmap(again)))(state, keys, own)
    np.testing.assert_allclose(states.final_obs, obs, atol=1e-6)
    np.testing.assert_allclose(states.reward, np.reshape(reward, states.reward.shape), rtol=1e-5)
    np.testing.assert_array_equal(states.terminated, terminated)
    np.testing.assert_array_equal(states.truncated, truncated & ~terminated)
    assert states.truncated.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, pad",
    [("MPE_simple_spread_v3", False), ("SMAX", False), ("MPE_simple_speaker_listener_v4", True)],
)
def test_jaxmarl(name, pad, key, optax_promotes):
    """Its own step from the keys that the task carries; masks, and ends by its clock."""
    jaxmarl = pytest.importorskip("jaxmarl", reason="pip install 'jaxlab[games]'")
    if name == "SMAX":
        smax = pytest.importorskip("jaxmarl.environments.smax")
        theirs = jaxmarl.make("HeuristicEnemySMAX", scenario=smax.map_name_to_scenario("3m"))
    else:
        theirs = jaxmarl.make(name)
    task = envs.from_jaxmarl(theirs, pad=pad, world_state=name == "SMAX")
    env = envs.make_env(task, 2)
    start, (actions, states) = run(env, key, env.time_limit + 5)
    assert not states.failed.any()
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), start, states)
    state, keys = before.physics

    def again(state, key, action):
        actions = {agent: action[i] for i, agent in enumerate(theirs.agents)}
        obs, _after, reward, done, _ = theirs.step_env(jax.random.split(key)[1], state, actions)
        return obs, jnp.stack([reward[a] for a in theirs.agents]), done["__all__"]

    obs, reward, done = jax.jit(jax.vmap(jax.vmap(again)))(state, keys, actions)
    seen = envs.actor_obs(env, states.final_obs)
    for i, agent in enumerate(theirs.agents):
        want = np.asarray(obs[agent]).reshape(*seen.shape[:2], -1)
        np.testing.assert_allclose(seen[:, :, i, : want.shape[-1]], want, atol=1e-5)
        assert np.all(seen[:, :, i, want.shape[-1] :] == 0.0)
    np.testing.assert_allclose(states.reward, reward, atol=1e-5)
    clock = np.asarray(before.time) == env.time_limit - 1
    early = np.asarray(done) & ~clock
    np.testing.assert_array_equal(np.asarray(states.terminated) & ~clock, early)
    assert np.all(np.asarray(states.truncated | states.terminated)[clock])
    if name == "SMAX":
        np.testing.assert_allclose(states.final_obs["world_state"], obs["world_state"], atol=1e-5)
        masks = jax.vmap(jax.vmap(theirs.get_avail_actions))(states.physics[0])
        want = np.stack([masks[agent] for agent in theirs.agents], axis=2).astype(bool)
        np.testing.assert_array_equal(states.action_mask, want)
        assert early.any() and not want.all()
    else:
        assert states.truncated.any() and not states.terminated.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CartpoleBalance", "PendulumSwingup"])
def test_playground(name, key, optax_promotes):
    """Its own State, step by step."""
    registry = pytest.importorskip("mujoco_playground", reason="pip install playground").registry
    theirs = registry.load(name, config_overrides={"impl": "jax"})
    task = envs.from_playground(theirs)
    env = envs.make_env(task._replace(time_limit=3), 2)
    assert task.time_limit == 1000 and task.obs_size == theirs.observation_size
    start, (actions, states) = run(env, key, 5)
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), start, states)
    after = jax.jit(jax.vmap(jax.vmap(theirs.step)))(before.physics, actions)
    np.testing.assert_allclose(states.final_obs, after.obs, atol=1e-5)
    np.testing.assert_allclose(states.reward, after.reward, atol=1e-5)
    assert not states.failed.any() and states.truncated.sum() == 2
