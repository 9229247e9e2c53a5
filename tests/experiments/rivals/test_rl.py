"""The rivals of the RL benchmark do the same work: physics, and one gradient step for each step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.bench import rl as bench
from experiments.rivals import rl as rivals
from jaxlab import envs, rl


def test_pendulums_in_numpy_are_ours():
    rival, task = rivals.Pendulums(4, seed=3), envs.pendulum()
    step = jax.jit(jax.vmap(task.step))
    action = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 4, 1)).astype(np.float32)
    for one in action:
        physics = jnp.asarray(np.stack([rival.angle, rival.velocity], axis=1), jnp.float32)
        _, obs, reward, _ = step(physics, 2.0 * jnp.asarray(one))
        got_reward, got = rival.step(one)
        np.testing.assert_allclose(got, obs, atol=1e-4)
        np.testing.assert_allclose(got_reward, reward, atol=1e-3)
    for _ in range(150):
        rival.step(action[0])
    assert rival.time == 0 and np.abs(rival.velocity).max() <= 1.0  # a new start


@pytest.mark.slow
def test_host_loop_learns_at_every_turn(optax_promotes, monkeypatch):
    """Its critics' loss falls on a task with constant rewards, so that its updates are real."""
    monkeypatch.setattr(
        rivals.Pendulums,
        "step",
        lambda self, action: (np.full(4, -5.0, np.float32), self.observe()),
    )
    calls = []
    generator = rl.make_mean_flow(3, 1, hidden=(8,))
    policy = rl.make_mirror_descent(generator, num_particles=2, optimizer=optax.adam(1e-3))
    critics = rl.make_critics(3, 1, hidden=(8,))

    def loss(*args):
        value, q = critics.loss(*args)
        jax.debug.callback(lambda x: calls.append(float(x)), value)
        return value, q

    loop = rivals.host_loop(
        policy, critics._replace(loss=loss), num_envs=4, batch_size=16, learning_rate=1e-2
    )
    for _ in range(200):
        next(loop)
    jax.effects_barrier()
    assert len(calls) == 200 and np.mean(calls[-20:]) < 0.2 * np.mean(calls[:5])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # brax imports jaxopt
def test_brax_trains_on_our_pendulum(optax_promotes):
    """The shim works, and times come out."""
    pytest.importorskip("brax")
    times = rivals.brax_sac(
        bench._brax_pendulum(), num_envs=4, grad_updates=1, hidden=(8,), steps=40, epochs=2
    )
    assert len(times) == 2 and min(times) > 0.0
