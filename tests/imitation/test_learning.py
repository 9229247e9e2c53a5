"""What is learned, against what is known: ratios of the pendulum, gains of a linear system."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, imitation, learning
from jaxlab.core import loop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax_promotes")]


@pytest.fixture(scope="module")
def pendulum():
    """Demonstrations, 800 held-out transitions of both policies, and their true log-ratios."""
    env = envs.make_env(imitation.gaussian_pendulum(), 60)
    acts = (
        lambda key, obs: imitation.pump_and_balance(obs),
        lambda key, obs: jax.random.uniform(key, (60, 1), minval=-1.0),
    )
    expert, logs, *held = (
        imitation.record(jax.random.key(i), act, env) for i, act in enumerate(acts + acts)
    )
    demos = imitation.prepare(expert, logs)
    seen = imitation.prepare(imitation.join(held), normalizer=demos.normalizer).expert
    rows = np.random.default_rng(0).integers(0, seen.obs.shape[0], 800)
    seen = jax.tree.map(lambda x: x[rows], seen)
    data = imitation.union(demos)

    def raw(x):
        shift, scale = (jnp.asarray(y)[None] for y in demos.normalizer)
        return x[:, :3] / scale - shift

    truth = imitation.true_log_ratio(
        raw(seen.obs), seen.action, raw(seen.next_obs), raw(data.obs), data.action
    )
    return data, seen, np.asarray(truth)


def test_ranking_follows_the_true_ratio(pendulum):
    """Logarithms of held-out ratios correlate with the truth by more than .9 (.91 to .92)."""
    data, seen, truth = pendulum
    representation = imitation.make_representation(4, 1, feature_size=64, hidden=(64, 64))
    algorithm = imitation.make_pretraining(
        data, representation, loss="ranking_nce", learning_rate=1e-3
    )
    params = loop.run(algorithm, jax.random.key(0), num_steps=1000, chunk_size=1000).state.params
    noise = data.next_obs[::6]
    found = imitation.ranking_log_ratio(
        representation, params, seen.obs, seen.action, seen.next_obs, noise
    )
    assert np.corrcoef(found, truth)[0, 1] > 0.9


def test_spectral_ratios_are_calibrated(pendulum):
    """E[h] under the noise is 1 to a tenth; the ratio of K dimensions is blunter than the truth."""
    data, seen, truth = pendulum
    representation = imitation.make_representation(4, 1, feature_size=128, hidden=(128, 128))
    algorithm = imitation.make_pretraining(data, representation, reg_weight=0.0, learning_rate=1e-3)
    params = loop.run(algorithm, jax.random.key(0), num_steps=4000, chunk_size=1000).state.params
    found = imitation.diagnose(jax.random.key(1), representation, params, data, num_samples=2000)
    np.testing.assert_allclose(found["noise_mean"], 1.0, atol=0.1)
    h = imitation.ratio(representation, params, seen.obs, seen.action, seen.next_obs)
    assert np.corrcoef(np.log(np.maximum(h, 1e-6)), truth)[0, 1] > 0.7


@pytest.mark.parametrize("head", ["paper", "mlp"])
def test_the_saddle_point_finds_the_expert_s_actions(head):
    """The mean error of five seeds ends three sigma below the actions' variance, from above it."""
    system = imitation.random_system(0, num_states=3, num_inputs=2)
    gain = envs.riccati(system)[0]
    expert, logs = (
        imitation.linear_episodes(
            i,
            system,
            imitation.LinearPolicy(share * gain, std),
            noise_std=0.3,
            num_episodes=num,
            num_steps=25,
            bound=1.5,
        )
        for i, share, std, num in ((1, 1.0, 0.05, 8), (2, 0.9, 0.2, 40))
    )
    demos = imitation.prepare(expert, logs)
    policy = imitation.make_policy(4, 2, hidden=(32, 32))
    given = {}
    if head != "mlp":
        features = imitation.make_representation(4, 2, feature_size=64, hidden=(64, 64))
        stage_one = imitation.make_pretraining(
            imitation.union(demos), features, reg_weight=0.0, learning_rate=1e-3, batch_size=128
        )
        state = loop.run(stage_one, jax.random.key(0), num_steps=1000, chunk_size=1000).state
        kept = imitation.Pretrained(state.params, demos.normalizer, demos.fingerprint)
        given = {"representation": features, "pretrained": kept}
    algorithm = imitation.make_value_dice(
        demos,
        policy,
        head=head,
        batch_size=128,
        hidden=(32, 32),
        policy_learning_rate=1e-4,
        **given,
    )

    def error(params):
        away = policy.mode(params, demos.expert.obs) - demos.expert.action
        return jnp.mean(away**2)

    both = learning.over_seeds(algorithm, 5)
    before = jax.vmap(error)(both.init(jax.random.key(0)).policy_params)
    state = loop.run(both, jax.random.key(0), num_steps=2400, chunk_size=2400).state
    after = np.asarray(jax.vmap(error)(state.policy_params))
    variance = float(jnp.mean(jnp.var(demos.expert.action, axis=0)))
    assert np.mean(before) > variance
    assert after.mean() + 3.0 * after.std(ddof=1) / np.sqrt(5.0) < variance
