"""Particles against loops in NumPy float64, and simple spread against JaxMARL's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs
from jaxlab.envs import particles

DIRECTION = {0: (0, 0), 1: (-1, 0), 2: (1, 0), 3: (0, -1), 4: (0, 1)}


def moved(x, v, force, radius, top):
    """One step of the physics, body by body."""
    force = np.array(force, np.float64)
    for i in range(len(x)):
        for j in range(len(x)):
            if i == j:
                continue
            d = np.hypot(*(x[i] - x[j]))
            depth = 1e-3 * np.logaddexp(0.0, (radius[i] + radius[j] - d) / 1e-3)
            force[i] += 100.0 * depth * (x[i] - x[j]) / d
    new_v = np.zeros_like(v)
    for i in range(len(x)):
        new_v[i] = 0.75 * v[i] + 0.1 * force[i]
        speed = np.hypot(*new_v[i])
        if speed > top[i]:
            new_v[i] *= top[i] / speed
    return x + 0.1 * v, new_v


def spread_step(x, v, landmarks, action):
    x, v = moved(x, v, [5.0 * np.array(DIRECTION[a]) for a in action], [0.15] * 3, [np.inf] * 3)
    common = -sum(min(np.hypot(*(p - q)) for p in x) for q in landmarks)
    reward, obs = [], []
    for i in range(3):
        others = [j for j in range(3) if j != i]
        touching = sum(np.hypot(*(x[i] - x[j])) < 0.3 for j in others)
        reward.append(0.5 * common - 0.5 * touching)
        seen = [v[i], x[i], *(q - x[i] for q in landmarks), *(x[j] - x[i] for j in others)]
        obs.append(np.concatenate([*seen, np.zeros(4)]))
    return x, v, np.array(obs), np.array(reward)


def hunt_step(x, v, action, loss, needed):
    urge = -2.0 * (x[-1] @ x[-1]) * x[-1]
    for p in x[:-1]:
        urge = urge + (x[-1] - p) / np.sum((x[-1] - p) ** 2)
    force = [3.0 * np.array(DIRECTION[a]) for a in action] + [4.0 * urge / np.hypot(*urge)]
    x, v = moved(x, v, force, [0.075] * 3 + [0.05], [1.0] * 3 + [0.6])
    near = sum(np.hypot(*(p - x[-1])) < 0.4 for p in x[:-1])
    reward = 10.0 if near >= needed else (-loss if near else 0.0)
    obs = []
    for i in range(3):
        others = [x[j] - x[i] for j in range(3) if j != i]
        obs.append(np.concatenate([v[i], x[i], x[-1] - x[i], v[-1], *others]))
    return x, v, np.array(obs), reward


def crowded(task, seed, side=0.35):
    """A start in a small square, so that bodies meet, and actions of 25 steps."""
    rng = np.random.default_rng(seed)
    physics, _ = task.reset(jax.random.key(0))
    x = side * rng.uniform(-1.0, 1.0, physics.position.shape)
    v = 0.3 * rng.normal(size=x.shape)
    landmarks = rng.uniform(-1.0, 1.0, physics.landmarks.shape)
    at = particles.Particles(*map(jnp.asarray, (x, v, landmarks)))
    return at, rng.integers(0, 5, (25, 3))


def rollout(task, at, actions):
    def one(at, action):
        at, obs, reward, ended = task.step(at, action)
        return at, (at, obs, reward, ended)

    return jax.jit(lambda at, actions: jax.lax.scan(one, at, actions)[1])(at, actions)


def test_simple_spread_against_a_loop(x64):
    task = envs.simple_spread()
    at, actions = crowded(task, 0)
    states, obs, reward, ended = rollout(task, at, jnp.asarray(actions, jnp.int32))
    x, v, landmarks = map(np.asarray, at)
    for t, action in enumerate(actions):
        x, v, seen, paid = spread_step(x, v, landmarks, action)
        np.testing.assert_allclose(states.position[t], x, rtol=0, atol=1e-9)
        np.testing.assert_allclose(obs[t], seen, rtol=0, atol=1e-9)
        np.testing.assert_allclose(reward[t], paid, rtol=0, atol=1e-9)
    assert np.ptp(np.asarray(reward), axis=1).max() >= 0.5  # somebody touched somebody
    assert not np.any(ended)


@pytest.mark.parametrize("needed", [2, 3])
def test_predators_against_a_loop(needed, x64):
    task = envs.predator_prey(1.5, needed=needed)
    paid = []
    for seed in range(4):
        at, actions = crowded(task, seed, 0.3 + 0.3 * seed)
        states, obs, reward, _ = rollout(task, at, jnp.asarray(actions, jnp.int32))
        x, v, _ = map(np.asarray, at)
        for t, action in enumerate(actions):
            x, v, seen, expected = hunt_step(x, v, action, 1.5, needed)
            np.testing.assert_allclose(states.position[t], x, rtol=0, atol=1e-8)
            np.testing.assert_allclose(obs[t], seen, rtol=0, atol=1e-8)
            assert float(reward[t]) == expected
            paid.append(expected)
    assert {-1.5, 0.0} | ({10.0} if needed == 2 else set()) <= set(paid)


@pytest.mark.slow
def test_simple_spread_is_jaxmarls(optax_promotes):
    jaxmarl = pytest.importorskip("jaxmarl", reason="pip install 'jaxlab[games]'")
    theirs, task = jaxmarl.make("MPE_simple_spread_v3"), envs.simple_spread()
    at, actions = crowded(task, 1)
    _, state = theirs.reset(jax.random.key(0))
    place = jnp.concatenate([at.position, at.landmarks])
    speed = jnp.concatenate([at.velocity, jnp.zeros_like(at.landmarks)])
    state = state.replace(p_pos=place, p_vel=speed)
    _, obs, reward, _ = rollout(task, at, jnp.asarray(actions, jnp.int32))
    for t, action in enumerate(actions):
        each = dict(zip(theirs.agents, jnp.asarray(action, jnp.int32), strict=True))
        seen, state, paid, _, _ = theirs.step_env(jax.random.key(t), state, each)
        for i, agent in enumerate(theirs.agents):
            np.testing.assert_allclose(obs[t, i], seen[agent], atol=2e-4)
            np.testing.assert_allclose(reward[t, i], paid[agent], atol=2e-4)


def test_a_start_and_refusals(key):
    env = envs.make_env(envs.predator_prey(), 64)
    state = env.reset(key)
    assert state.obs.shape == (64, 3, 12)
    # The square of the starts is [-1, 1]: a uniform mean and spread, within five standard errors.
    start = np.asarray(state.physics.position)
    assert np.abs(start).max() <= 1.0 and abs(start.mean()) < 5 * 0.577 / np.sqrt(start.size)
    assert abs(start.std() - 0.577) < 0.08
    with pytest.raises(ValueError, match="needed must be from 1 to num_agents 3, got 4"):
        envs.predator_prey(needed=4)
    with pytest.raises(ValueError, match="loss must not be negative and be finite, got nan"):
        envs.predator_prey(float("nan"))
    with pytest.raises(ValueError, match="num_agents must be an integer of at least 2, got 1"):
        envs.simple_spread(1)
    with pytest.raises(ValueError, match=r"local_share must lie in \[0, 1\], got 2.0"):
        envs.simple_spread(local_share=2.0)
