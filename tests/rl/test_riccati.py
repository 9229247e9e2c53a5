"""Every learner against an optimum that is known exactly: linear-quadratic control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning, rl
from jaxlab.diffusion import ddpm
from jaxlab.rl import critics as critics_lib

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax_promotes")]
UPDATES, RATE, SEEDS, EPISODES = 10_000, 9e-4, 2, 200
NETS = {"hidden": (64, 64, 64)}
MIRROR = {
    **NETS,
    "num_particles": 8,
    "optimizer": rl.decaying_adam(RATE, end=RATE / 10, begin=UPDATES // 8, over=UPDATES // 4),
    "alpha_every": UPDATES // 800,
}
DIFFUSION = {**MIRROR, "schedule": ddpm.linear_schedule(10)}
NARROW = {**DIFFUSION, "num_particles": 1}
GAUSSIAN = {**NETS, "learning_rate": RATE, "alpha_learning_rate": RATE}
POLICIES = {
    "FPMD-R": lambda: rl.fpmd_r(2, 1, num_steps=5, **MIRROR),
    "FPMD-M": lambda: rl.fpmd_m(2, 1, **MIRROR),
    "DPMD": lambda: rl.dpmd(2, 1, **DIFFUSION),
    "SDAC": lambda: rl.sdac(2, 1, **DIFFUSION),
    "QVPO": lambda: rl.qvpo(2, 1, entropy_steps=UPDATES, **DIFFUSION),
    "DIPO": lambda: rl.dipo(
        2, 1, **{name: x for name, x in DIFFUSION.items() if name != "alpha_every"}
    ),
    "DACER": lambda: rl.dacer(2, 1, **{**NARROW, "alpha_every": UPDATES // 20}),
    "DIME": lambda: rl.dime(
        2, 1, **{**GAUSSIAN, "alpha_learning_rate": 3e-3}, target_entropy=-2.0, num_particles=8
    ),
    "QSM": lambda: rl.qsm(2, 1, num_particles=16, learning_rate=RATE, **NETS),
    "SAC": lambda: rl.sac(2, 1, **GAUSSIAN),
    "TD3": lambda: rl.td3(2, 1, learning_rate=RATE, **NETS),
}
"""With the common settings of a small study. Judged is the running average without exploration."""


def returns(act, env, params=None):
    """Mean returns of whole episodes, from the same starts for every policy."""
    return jnp.mean(rl.evaluate(jax.random.key(77), act, env, params))


def judge(name, key):
    """Returns `[SEEDS]` mean returns of one method after training."""
    task = envs.make_task("linear_quadratic", "jax")
    env, world = envs.make_env(task, 5), envs.make_env(task, EPISODES)
    if name == "PPO":
        env = envs.make_env(task, 8)
        networks = learning.make_networks(env, **NETS)
        learner = learning.make_ppo(
            env, networks, num_steps=100, num_minibatches=8, learning_rate=RATE
        )
        num_steps = 60

        def act(key, state, obs):
            return networks.mode(state.params, obs, ())

    else:
        policy = POLICIES[name]()
        of_returns = name in ("DACER", "DIME")
        critics = (rl.make_gaussian_critics if of_returns else rl.make_critics)(2, 1, **NETS)
        learner = rl.make_learner(
            env,
            policy,
            critics=critics,
            batch_size=128,
            capacity=100_000,
            warmup=1000,
            critic_learning_rate=RATE,
        )
        num_steps = UPDATES // rl.updates_per_step(policy)

        def act(key, state, obs):
            params = state.policy_average_params
            q = critics_lib.smaller(critics, state.critic_params)
            return policy.act(key, params, obs, q, jnp.exp(state.log_alpha), explore=False)

    seeds = learning.over_seeds(learner, SEEDS)

    @jax.jit
    def train(key):
        state, _ = jax.lax.scan(lambda s, _: seeds.step(s), seeds.init(key), length=num_steps)
        axes = 0 if name == "PPO" else rl.SEED_AXES
        return jax.vmap(lambda state: returns(act, world, state), in_axes=(axes,))(state)

    return np.asarray(train(key))


OPEN = {
    "QSM": "cost 1.60 and 1.52 times the best: it acts by coarse Langevin steps at temperature 1",
    "DIME": "cost 1.15 and 1.12 times the best",
}
"""Methods that do not come there, and by how much."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.xfail(reason=OPEN[name], strict=False) if name in OPEN else ()
        )
        for name in (*POLICIES, "PPO")
    ],
)
def test_every_method_comes_near_riccati(name):
    """Within a tenth of the best gain's return, from below: nothing is better, but for rounding."""
    world = envs.make_env(envs.make_task("linear_quadratic", "jax"), EPISODES)
    gain = jnp.asarray(envs.riccati()[0] / world.action_space.high[0], jnp.float32)
    best = returns(lambda key, obs: -obs @ gain.T, world)
    starts = np.asarray(world.reset(jax.random.split(jax.random.key(77))[0]).obs, np.float64)
    bound = -np.mean(np.einsum("bi,ij,bj->b", starts, envs.riccati(gamma=1.0)[1], starts))
    np.testing.assert_allclose(best, bound, rtol=2e-3)  # the discount of 0.99 costs so little
    found = judge(name, jax.random.key(5))
    assert np.all(found < bound * (1 - 1e-4)), found
    assert found.mean() > 1.1 * best, (found, best)
