"""The joint critic: gradients and targets against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning, marl
from jaxlab.core import risk
from jaxlab.marl import joint_critic


@pytest.fixture(autouse=True)
def promotes(optax_promotes):
    """Optax mixes types."""


def small(game, **given):
    env = envs.make_env(envs.game_task(game), 4)
    nets = learning.make_networks(env, hidden=(6,))
    options = {"critic_hidden": (6,), "num_steps": 3, "num_epochs": 1, "num_minibatches": 1}
    return env, nets, marl.make_joint(env, nets, **options | given)


def all_q(params, game, obs):
    """Q of all joint actions by the critic's own layers in NumPy, `[B, A, A]`."""
    layers = jax.tree.map(np.asarray, params["params"])
    num = max(game.num_actions)
    found = np.zeros((len(obs), num, num))
    for a, b in np.ndindex(num, num):
        x = np.concatenate(
            [obs.reshape(len(obs), -1), np.tile(np.eye(num)[[a, b]].reshape(1, -1), (len(obs), 1))],
            axis=1,
        )
        x = x @ layers["layer_0"]["kernel"] + layers["layer_0"]["bias"]
        x = x * np.tanh(np.log1p(np.exp(x)))
        found[:, a, b] = (x @ layers["layer_1"]["kernel"] + layers["layer_1"]["bias"])[:, 0]
    return found


def test_targets_and_values_by_enumeration(key):
    """In one update: the loss of the critic and the optimistic value, from the state before it."""
    game = envs.gold_mine(time_limit=3)
    env, nets, learner = small(
        game, beta=0.8, gamma=0.9, learning_rate=1e-9, policy_learning_rate=1e-9
    )
    state = learner.init(key)
    _, metrics = jax.jit(learner.step)(state)

    @jax.jit
    def looked(state):
        """The rollout once more, and the probabilities of all actions before and after a step."""
        _, key_rollout, _ = jax.random.split(state.key, 3)

        def probs(obs):
            each = [nets.evaluate(state.params, obs, (), jnp.full((4, 2), a))[0] for a in range(3)]
            return jnp.exp(jnp.stack(each, axis=-1))

        def one(at, key):
            action, _ = nets.sample(key, state.params, at.obs, ())
            after = env.step(at, action)
            seen = at.obs, action, after.reward, after.terminated, after.final_obs
            return after, (*seen, probs(at.obs), probs(after.final_obs))

        return jax.lax.scan(one, state.env, jax.random.split(key_rollout, 3))[1]

    def value(obs, pi):
        q = all_q(state.critic_params, game, obs)
        joint = pi[:, 0, :, None] * pi[:, 1, None, :]
        return np.log(np.sum(joint * np.exp(0.8 * q), axis=(1, 2))) / 0.8, q

    data = [np.asarray(x).reshape(12, *x.shape[2:]) for x in looked(state)]
    obs, action, reward, terminated, next_obs, pi, next_pi = data
    v, q = value(obs, pi)
    target = reward + 0.9 * ~terminated * value(next_obs, next_pi)[0]
    error = q[np.arange(12), action[:, 0], action[:, 1]] - target
    np.testing.assert_allclose(metrics["critic/loss"], 0.5 * np.mean(error**2), rtol=1e-4)
    np.testing.assert_allclose(metrics["policy/value"], v.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_samples_of_partners_come_near_all_of_them(key, monkeypatch):
    """With 4,000 samples the value is that of all nine joint actions, up to its known bias."""
    game = envs.climbing()
    _, _, exact = small(game, beta=0.5, num_steps=1)
    monkeypatch.setattr(joint_critic, "MOST_JOINT", 1)
    _, _, drawn = small(game, beta=0.5, num_steps=1, num_samples=4000)
    state = exact.init(key)
    found = [float(jax.jit(one.step)(state)[1]["policy/value"]) for one in (exact, drawn)]
    np.testing.assert_allclose(found[1], found[0], atol=0.02)


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="num_minibatches must divide the 12 transitions, got 5"):
        small(envs.climbing(), num_minibatches=5)
    with pytest.raises(ValueError, match="a joint critic needs agents with one choice each"):
        marl.make_joint(envs.make_env(envs.pendulum(), 2))
    with pytest.raises(ValueError, match=r"beta must be a number, got nan"):
        small(envs.climbing(), beta=float("nan"))
    monkeypatch.setattr(joint_critic, "MOST_JOINT", 8)
    with pytest.raises(ValueError, match="there are 9 joint actions; a measure of samples must be"):
        small(envs.climbing(), measure=risk.chi2)
