"""Learners with networks on the climbing game: the neutral stay below, optimists find its best."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning, marl
from jaxlab.core import risk


@pytest.fixture(autouse=True)
def promotes(optax_promotes):
    """Optax mixes types."""


def ippo(env):
    return marl.make_op_ippo(
        env, num_steps=4, learning_rate=2e-3, scale_rewards=False, entropy_coef=0.05
    )


def off_policy(env):
    return marl.make_off_policy(
        env, capacity=1024, policy_learning_rate=5e-4, learning_rate=3e-3, entropy_coef=0.05
    )


def ppo(style, env):
    """An existing PPO, whose loss is all that is swapped."""
    return learning.make_ppo(
        env,
        hidden=(16,),
        num_steps=4,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=2e-3,
        reward_scale=1.0,
        entropy_coef=0.05,
        loss=marl.optimistic_loss(style),
        loss_settings={"beta": style.default},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "optimist", "updates"),
    [
        (ippo, 0.3, 300),
        (functools.partial(ppo, marl.entropic()), 0.3, 300),
        (functools.partial(ppo, marl.of_measure(risk.chi2)), 1.0, 300),
        (off_policy, 0.5, 1000),
    ],
    ids=["Op-IPPO", "a PPO, entropic", "a PPO, any measure", "off policy"],
)
def test_optimists_climb(make, optimist, updates):
    """Five seeds side by side at the mean and with optimism: 7 or less, and 11."""
    learner = make(envs.make_env(envs.game_task(envs.climbing()), 64))
    betas = jnp.repeat(jnp.asarray([0.0, optimist]), 5)
    sweep = learning.over_seeds(learner, 10, settings={"beta": betas})

    @jax.jit
    def run(key):
        _, metrics = jax.lax.scan(lambda s, _: sweep.step(s), sweep.init(key), length=updates)
        late = jax.tree.map(lambda x: jnp.sum(x[-20:], axis=0), metrics["env/return"])
        return late.total / late.count

    found = np.asarray(run(jax.random.key(0))).reshape(2, 5)
    assert np.all(found[0] < 7.5) and np.all(found[1] > 10.0), found
