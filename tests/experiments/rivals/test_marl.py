"""The rivals of the benchmark do the same work: rules of learning, physics, and learning itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import marl as bench
from experiments.rivals import marl as rivals
from jaxlab import envs


def test_numpy_settles_where_ours_does():
    """Climbing: never 11 without optimism, always 11 with it, as all seeds of ours (tests/marl)."""
    for seed in range(3):
        without, optimist = (
            rivals.play(envs.games.CLIMBING, beta, updates=1200, seed=seed) for beta in (0.0, 0.3)
        )
        assert without[:, 0].max() < 0.1 and optimist[:, 0].min() > 0.8


def test_game_by_game_is_the_same_update():
    """Of one action for all: no luck is left, and both rules give the same policies."""
    payoff = np.array([[2.0, 2.0], [2.0, 2.0]])
    both = [play(payoff, 0.7, updates=3) for play in (rivals.play, rivals.play_one_by_one)]
    assert np.all(np.abs(both[0] - 0.5) < 0.02) and np.all(np.abs(both[1] - 0.5) < 0.02)
    # Where one action is always better for both, the mean drift is the same up to its noise.
    payoff = np.array([[3.0, 1.0], [1.0, 0.0]])
    drift = [
        np.mean([play(payoff, 0.7, updates=20, seed=seed)[:, 0] for seed in range(20)])
        for play in (rivals.play, rivals.play_one_by_one)
    ]
    assert drift[0] > 0.52 and abs(drift[0] - drift[1]) < 0.01


def test_spread_in_numpy_is_ours():
    rival, task = rivals.Spread(seed=3), envs.simple_spread()
    step = jax.jit(task.step)
    actions = np.random.default_rng(0).integers(0, 5, (25, 3))
    for t, action in enumerate(actions):
        at = envs.particles.Particles(
            *(jnp.asarray(x, jnp.float32) for x in (rival.x, rival.v, rival.landmarks))
        )
        _, obs, reward, _ = step(at, jnp.asarray(action, jnp.int32))
        paid, seen, cut = rival.step(action)
        np.testing.assert_allclose(seen, obs, atol=1e-4)
        np.testing.assert_allclose(paid, reward, atol=1e-4)
        assert cut == (t == 24)


@pytest.mark.slow
def test_the_loop_in_python_learns(optax_promotes):
    loop = rivals.host_ippo(num_envs=8, num_steps=64, num_epochs=4, num_minibatches=2)
    rewards = [next(loop) for _ in range(60)]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.05


@pytest.mark.slow
def test_the_benchmark_times_all_of_them(tmp_path, optax_promotes):
    sizes = bench.Sizes(
        seeds=2, betas=(0.0, 0.3), updates=2, alone=40, num_envs=4, num_steps=8, repeats=2
    )
    found = bench.run(tmp_path, sizes)
    assert [item.rival_name for item in found] == [
        "NumPy, games as one array",
        "NumPy, game by game",
        "our IPPO",
        "IPPO in a Python loop",
    ]
    assert all(item.ratio > 0.0 and item.rate > 0.0 for item in found)
