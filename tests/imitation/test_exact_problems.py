"""The Gaussian pendulum and linear systems, against quadrature, long recursions and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, imitation
from jaxlab.imitation.problems import gaussian_pendulum as pendulum


def obs_of(angle, velocity):
    return np.stack([np.cos(angle), np.sin(angle), velocity / 8.0], axis=-1)


def test_density_integrates_to_one_and_has_the_moments_of_the_task(x64):
    """Over a full turn and all speeds that matter, near the clip of the speed too."""
    for angle, velocity, action in [(3.1, 1.0, 0.5), (0.2, -7.95, -1.0), (-1.0, 3.0, 0.0)]:
        mean = pendulum.next_means(*map(jnp.asarray, (angle, velocity, 2.0 * action)))
        grid_angle = np.linspace(-np.pi, np.pi, 1201)[:-1]
        grid_speed = float(mean[1]) + np.linspace(-0.4, 0.4, 161)
        mesh = np.meshgrid(grid_angle, grid_speed, indexing="ij")
        after = jnp.asarray(obs_of(*mesh))
        before = jnp.broadcast_to(jnp.asarray(obs_of(angle, velocity)), after.shape)
        density = np.exp(
            pendulum.log_density(before, jnp.full((*after.shape[:-1], 1), action), after)
        )
        cell = (2 * np.pi / 1200) * (0.8 / 160)
        np.testing.assert_allclose(density.sum() * cell, 1.0, atol=1e-9)
    task = imitation.gaussian_pendulum()
    start = (jnp.asarray(3.1), jnp.asarray(1.0))
    keys = jax.random.split(jax.random.key(0), 20_000)
    after = jax.vmap(lambda k: task.step((*start, k), jnp.asarray([1.0]))[0][:2])(keys)
    want = pendulum.next_means(*start, jnp.asarray(1.0))
    for drawn, mean in zip(after, want, strict=True):
        np.testing.assert_allclose(np.mean(drawn), mean, atol=5 * 0.05 / np.sqrt(20_000))
        np.testing.assert_allclose(np.std(drawn), 0.05, rtol=5 / np.sqrt(40_000))


def test_ratio_is_density_over_the_mean_of_densities(x64):
    rng = np.random.default_rng(0)
    obs = obs_of(*rng.uniform([[-3.0], [-2.0]], [[3.0], [2.0]], (2, 30)))
    action = rng.uniform(-1, 1, (30, 1))
    after = obs_of(*rng.uniform([[-3.0], [-2.0]], [[3.0], [2.0]], (2, 7)))
    found = imitation.true_log_ratio(*map(jnp.asarray, (obs[:7], action[:7], after, obs, action)))
    for i in range(7):
        each = [
            pendulum.log_density(*map(jnp.asarray, (s, a, after[i])))
            for s, a in zip(obs, action, strict=True)
        ]
        want = each[i] - np.logaddexp.reduce(each) + np.log(30)
        np.testing.assert_allclose(found[i], want, rtol=1e-12)


def test_the_expert_swings_up_and_stays():
    env = envs.make_env(imitation.gaussian_pendulum(), 16)
    data = imitation.record(
        jax.random.key(1), lambda key, obs: imitation.pump_and_balance(obs), env
    )
    imitation.check_dataset(data)
    late = data.obs.reshape(16, 200, 3)[:, 150:]
    assert np.mean(late[..., 0] > 0.9) > 0.9  # within 26 degrees of upright
    assert data.truncated.sum() == 16 and not data.terminated.any()
    np.testing.assert_array_equal(data.next_obs[:199], data.obs[1:200])
    assert abs(data.action).max() <= 2.0 and data.about["env"] == "gaussian_pendulum"


def systems():
    for seed in range(4):
        system = imitation.random_system(seed, num_states=4 + seed, num_inputs=2)
        gain, _ = envs.riccati(system)
        rng = np.random.default_rng(seed)
        other = gain + 0.02 * rng.normal(size=gain.shape)
        yield system, imitation.LinearPolicy(gain, 0.3), imitation.LinearPolicy(other, 0.4)


def test_moments_are_those_of_the_recursion():
    for system, policy, _ in systems():
        closed = system.A - system.B @ policy.gain
        spread = 0.3**2 * system.B @ system.B.T + 0.1**2 * np.eye(len(closed))
        found = imitation.stationary_covariance(system, policy, noise_std=0.1)
        start = moment = 2.0 * np.eye(len(closed))
        total = np.zeros_like(start)
        for t in range(6000):
            total += 0.03 * 0.97**t * moment
            moment = closed @ moment @ closed.T + spread
        np.testing.assert_allclose(found, moment, atol=1e-10)
        discounted = imitation.discounted_second_moment(
            system, policy, start, noise_std=0.1, gamma=0.97
        )
        np.testing.assert_allclose(discounted, total, rtol=1e-9)


def test_divergence_is_that_of_the_joint_gaussians():
    for system, first, second in systems():
        joint = []
        for policy in (first, second):
            states = imitation.stationary_covariance(system, policy, noise_std=0.1)
            cross = -states @ policy.gain.T
            inputs = policy.gain @ states @ policy.gain.T + policy.action_std**2 * np.eye(2)
            joint.append(np.block([[states, cross], [cross.T, inputs]]))
        ratio = np.linalg.eigvals(np.linalg.solve(joint[1], joint[0])).real
        want = 0.5 * np.sum(ratio - 1.0 - np.log(ratio))
        found = imitation.occupancy_kl(system, first, second, noise_std=0.1)
        np.testing.assert_allclose(found, want, rtol=1e-8)
        assert imitation.occupancy_kl(system, first, first, noise_std=0.1) == pytest.approx(0.0)


def test_episodes_have_the_stationary_covariance():
    system, policy, _ = next(systems())
    data = imitation.linear_episodes(
        0, system, policy, noise_std=0.1, num_episodes=4000, num_steps=3
    )
    imitation.check_dataset(data)
    want = imitation.stationary_covariance(system, policy, noise_std=0.1)
    last = data.obs.reshape(4000, 3, -1)[:, -1].astype(np.float64)
    scale = np.sqrt(np.diag(want))
    error = (last.T @ last / 4000 - want) / np.outer(scale, scale)
    assert np.abs(error).max() < 5 * np.sqrt(2 / 4000)
    np.testing.assert_allclose(
        data.action.std(axis=0),
        np.sqrt(np.diag(policy.gain @ want @ policy.gain.T) + 0.09),
        rtol=0.05,
    )


def test_unstable_policies_and_bounds_are_refused():
    system = imitation.random_system(0)
    with pytest.raises(ValueError, match="num_inputs must be at least 1, got 2.5"):
        imitation.random_system(0, num_states=2.5)
    lazy = imitation.LinearPolicy(np.zeros((2, 4)), 0.1)
    with pytest.raises(
        ValueError, match="must stabilize the system, got a spectral radius of 1.05"
    ):
        imitation.stationary_covariance(system, lazy, noise_std=0.1)
    with pytest.raises(ValueError, match="must be stable"):
        imitation.discounted_second_moment(system, lazy, np.eye(4), noise_std=0.1, gamma=0.99)
    good = imitation.LinearPolicy(envs.riccati(system)[0], 0.3)
    with pytest.raises(ValueError, match="bound must be at least the largest input"):
        imitation.linear_episodes(
            0, system, good, noise_std=0.1, num_episodes=9, num_steps=9, bound=0.1
        )
    with pytest.raises(ValueError, match="num_episodes and num_steps must be at least 1, got 0"):
        imitation.linear_episodes(0, system, good, noise_std=0.1, num_episodes=0, num_steps=9)
