"""Values of actions from a replay: one update against NumPy, and what optimists find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning, marl

BETA, GAMMA = 0.8, 0.9


@pytest.fixture(autouse=True)
def promotes(optax_promotes):
    """Optax mixes types."""


def layers(params, x):
    """The critic in NumPy, a hidden layer with mish and a linear one."""
    first, last = (jax.tree.map(np.asarray, params["params"][f"layer_{i}"]) for i in range(2))
    x = x @ first["kernel"] + first["bias"]
    x = x * np.tanh(np.log1p(np.exp(x)))
    return x @ last["kernel"] + last["bias"]


@pytest.mark.parametrize("game", [envs.gold_mine(), envs.climbing()], ids=["it goes on", "it ends"])
def test_one_update_against_numpy(game, key):
    """Of a replay with one transition: loss, weight and value of both agents, by closed forms."""
    env = envs.make_env(envs.game_task(game), 1)
    nets = learning.make_networks(env, hidden=(6,))
    learner = marl.make_off_policy(
        env,
        nets,
        beta=BETA,
        gamma=GAMMA,
        capacity=8,
        critic_hidden=(5,),
        num_steps=1,
        num_updates=1,
        batch_size=3,
        learning_rate=1e-9,
        policy_learning_rate=1e-9,
    )
    state = learner.init(key)
    slow = jax.tree.map(lambda x: 1.5 * x, state.critic_params)
    state = state._replace(target_critic_params=slow)
    after, metrics = jax.jit(learner.step)(state)
    kept = jax.tree.map(lambda x: np.asarray(x[0]), after.replay.data)
    assert int(after.replay.size) == 1

    def probs(obs):
        each = [nets.evaluate(state.params, obs, (), jnp.full(2, a))[0] for a in range(3)]
        return np.exp(np.stack(each, axis=-1))

    def value(params, obs):
        q = layers(params, obs)
        return q, np.log(np.sum(probs(obs) * np.exp(BETA * q), axis=-1)) / BETA

    q, v = value(state.critic_params, kept.obs)
    ends = game.num_states == 1
    target = kept.reward + (0.0 if ends else GAMMA) * value(slow, kept.next_obs)[1]
    z = BETA * (target - q[np.arange(2), kept.action])
    assert np.all(z < 4.0) or ends
    straight = np.expm1(np.minimum(z, 4.0))
    loss = straight - np.minimum(z, 4.0) + straight * (z - np.minimum(z, 4.0))
    np.testing.assert_allclose(metrics["critic/loss"], loss.mean() / BETA**2, rtol=1e-4)
    np.testing.assert_allclose(metrics["critic/weight"], straight.mean() / BETA, rtol=1e-4)
    np.testing.assert_allclose(metrics["policy/value"], v.mean(), rtol=1e-4, atol=1e-6)
    for new, old, now in zip(
        *map(jax.tree.leaves, (after.target_critic_params, slow, state.critic_params)), strict=True
    ):
        np.testing.assert_allclose(new, 0.995 * old + 0.005 * now, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": float("nan")}, "beta must be a number, got nan"),
        ({"capacity": 10}, "capacity must be a multiple of the 4 environments, got 10"),
        ({"num_updates": 0}, "num_updates must be an integer of at least 1, got 0"),
        ({"style": marl.expectile(), "beta": 1.5}, r"beta must lie in \(0, 1\), got 1.5"),
    ],
)
def test_refusals(given, message):
    env = envs.make_env(envs.game_task(envs.climbing()), 4)
    with pytest.raises(ValueError, match=message):
        marl.make_off_policy(env, **given)


def test_refusals_of_environments():
    with pytest.raises(ValueError, match="a critic of actions needs agents with one choice each"):
        marl.make_off_policy(envs.make_env(envs.pendulum(), 2))
