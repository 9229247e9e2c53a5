"""PPO's gradient by hand: advantages, the clip on both sides, the bootstrap of a truncated step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import envs, rl
from jaxlab.nn import Mlp

pytestmark = pytest.mark.usefixtures("optax_promotes")
STEPS, ENVS, HIDDEN = 3, 32, (8,)
GAMMA, LAMBDA, CLIP, RATE = 0.9, 0.8, 0.2, 0.05
RANDOM = np.random.default_rng(4)
OBS, FIRST = RANDOM.normal(size=(2, STEPS + 1, ENVS, 2)).astype(np.float32)
REWARD = RANDOM.normal(size=(STEPS, ENVS)).astype(np.float32)
TERMINATED, CUT = RANDOM.random((2, STEPS, ENVS)) < 0.2
TRUNCATED = CUT & ~TERMINATED
# What is acted on next is the first observation of a new episode where one has ended.
STARTS = np.concatenate([np.zeros((1, ENVS), bool), TERMINATED | TRUNCATED])
SEEN = np.where(STARTS[..., None], FIRST, OBS)


def scripted():
    """An environment that plays the tables above and remembers the actions."""

    def reset(key):
        no = jnp.zeros(ENVS, bool)
        return envs.State(
            jnp.zeros((STEPS, ENVS, 2)),
            jnp.asarray(SEEN[0]),
            jnp.zeros(ENVS),
            no,
            no,
            jnp.asarray(SEEN[0]),
            no,
            jnp.zeros(ENVS, jnp.int32),
            jax.random.split(key, ENVS),
        )

    def step(state, action):
        t = state.time[0]
        tables = (SEEN[1:], REWARD, TERMINATED, TRUNCATED, OBS[1:])
        obs, reward, terminated, truncated, final = (jnp.asarray(x)[t] for x in tables)
        return state._replace(
            physics=state.physics.at[t].set(action),
            obs=obs,
            reward=reward,
            final_obs=final,
            terminated=terminated,
            truncated=truncated,
            time=state.time + 1,
        )

    return envs.Env("scripted", ENVS, 2, envs.Box((-1.0,) * 2, (1.0,) * 2), STEPS, reset, step)


def run(num_epochs, key):
    """Returns states before and after a step of so many gradients of all data, and metrics."""
    algorithm = rl.make_ppo(
        scripted(),
        hidden=HIDDEN,
        num_steps=STEPS,
        num_epochs=num_epochs,
        num_minibatches=1,
        learning_rate=RATE,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_eps=CLIP,
        value_coef=0.7,
        entropy_coef=0.3,
        max_grad_norm=1e9,
        reward_scale=0.5,
    )

    @jax.jit
    def go(key):
        state = algorithm.init(key)
        # Narrow enough that no action is clipped on its way into the environment.
        policy = jax.tree.map(lambda x: 0.4 * x, state.params["policy"])
        params = {**state.params, "policy": policy, "log_std": jnp.asarray([-2.0, -1.7])}
        state = state._replace(params=params)
        return state, *algorithm.step(state)

    return go(key)


def by_hand(params, old, action):
    """Gradients of log_std and of the last biases, and what is logged, in float64 NumPy."""

    def outputs(params, obs):
        networks = (("policy", 2), ("value", 1))
        out = [Mlp(HIDDEN, n).apply(params[k], jnp.asarray(obs)) for k, n in networks]
        return np.asarray(out[0], np.float64), np.asarray(out[1], np.float64)[..., 0]

    value, next_value = outputs(old, SEEN[:-1])[1], outputs(old, OBS[1:])[1]
    delta = 0.5 * REWARD + GAMMA * ~TERMINATED * next_value - value
    advantage, later = np.zeros_like(delta), 0.0
    for t in reversed(range(STEPS)):
        later = delta[t] + GAMMA * LAMBDA * ~(TERMINATED | TRUNCATED)[t] * later
        advantage[t] = later
    target = advantage + value
    advantage = (advantage - advantage.mean()) / advantage.std()

    def density(params):
        mean, log_std = outputs(params, SEEN[:-1])[0], np.asarray(params["log_std"], np.float64)
        z = (action - mean) / np.exp(log_std)
        return np.sum(-0.5 * z**2 - log_std, axis=-1), z

    (logp, z), (logp_old, _) = density(params), density(old)
    ratio = np.exp(logp - logp_old)
    outside = (ratio > 1 + CLIP) & (advantage > 0) | (ratio < 1 - CLIP) & (advantage < 0)
    slope = (-ratio * advantage * ~outside / ratio.size)[..., None]  # of the loss in log p
    error = outputs(params, SEEN[:-1])[1] - target
    std = np.exp(np.asarray(params["log_std"], np.float64))
    return (
        {
            "log_std": np.sum(slope * (z**2 - 1), axis=(0, 1)) - 0.3,
            "policy": np.sum(slope * z / std, axis=(0, 1)),
            "value": np.array([0.7 * 2 * error.mean()]),
        },
        {
            "critic/loss": np.mean(error**2),
            "policy/kl": np.mean(ratio - 1 - np.log(ratio)),
            "policy/clipped": np.mean(np.abs(ratio - 1) > CLIP),
        },
        outside,
        ratio,
    )


def pick(tree):
    last = {k: np.asarray(tree[k]["params"]["layer_1"]["bias"]) for k in ("policy", "value")}
    return {**last, "log_std": np.asarray(tree["log_std"])}


def test_two_gradients_by_hand(key):
    """At a ratio of one, and where the clip holds back a part of the samples on either side."""
    start, once, found = run(1, key)
    _, twice, found_twice = run(2, key)
    action = np.asarray(once.env.physics, np.float64)
    assert np.abs(action).max() < 1.0
    np.testing.assert_array_equal(action, twice.env.physics)
    moments = [optax.tree_utils.tree_get(s.opt_state, "mu") for s in (once, twice)]
    first, both = (pick(x) for x in moments)
    want, logged, _, _ = by_hand(start.params, start.params, action)
    want_after, logged_after, outside, ratio = by_hand(once.params, start.params, action)
    assert outside[ratio > 1].mean() > 0.1 and outside[ratio < 1].mean() > 0.1
    assert np.mean((np.abs(ratio - 1) > CLIP) & ~outside) > 0.1  # clipped, yet with a gradient
    before, after = pick(start.params), pick(once.params)
    for name, gradient in want.items():
        # Adam's first moment is a tenth of the gradient, then nine tenths of it and a tenth.
        np.testing.assert_allclose(10 * first[name], gradient, rtol=2e-3, atol=2e-5)
        second = 10 * (both[name] - 0.9 * first[name])
        np.testing.assert_allclose(second, want_after[name], rtol=2e-3, atol=2e-4)
        step = -RATE * gradient / (np.abs(gradient) + 1e-5)
        np.testing.assert_allclose(after[name] - before[name], step, rtol=1e-2)
    for name, value in logged.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
        mean = (value + logged_after[name]) / 2
        np.testing.assert_allclose(found_twice[name], mean, rtol=1e-3, atol=1e-5)
