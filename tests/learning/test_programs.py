"""Functions that loop are compiled once, and keys are used once, in all three rooms of learners."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning, rl
from jaxlab.rl import backprop_diffusion

pytestmark = pytest.mark.usefixtures("optax_promotes")
COMPILED = "/jax/core/compile/backend_compile_duration"
SMALL = {"hidden": (4,)}
CHEAP = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of a compiler whose programs run a few steps only."""


@contextlib.contextmanager
def compilations():
    """Yields a list that grows with every program that is compiled, or read from the cache."""
    found = []

    def listen(event, seconds, **_):
        if event == COMPILED:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def compiled_again(call):
    """Counts what a second call with new values compiles; both are eager, as in a notebook."""
    call(0)
    with compilations() as found:
        call(1)
    return len(found)


def values(i, *shape):
    """New values at every call, made without JAX."""
    return np.random.default_rng(i).normal(size=shape).astype(np.float32)


def test_the_count_counts():
    fresh = [lambda x, c=c: jax.jit(lambda y: y * c)(x) for c in (2.0, 3.0)]
    assert compiled_again(lambda i: fresh[i](values(i, 3))) == 1


def test_advantages(key):
    def call(i):
        reward, value, after, discount = (values(4 * i + j, 5, 2) for j in range(4))
        rl.gae(reward, value, after, discount, values(9, 5, 2) > 0, gae_lambda=0.9 - 0.1 * i)

    assert compiled_again(call) == 0


def test_environments_and_evaluation():
    env = envs.make_env(envs.pendulum(time_limit=2), 2)
    keys = [jax.random.key(i) for i in range(2)]

    def act(key, params, obs):
        return params * obs[:, :1]

    def call(i):
        state = env.reset(keys[i])
        for t in range(3):  # an episode ends, and another begins
            state = env.step(state, values(t + 3 * i, 2, 1))
        learning.evaluate(keys[i], act, env, values(i))

    assert compiled_again(call) == 0


def test_a_mixture_s_entropy():
    keys = [jax.random.key(i) for i in range(2)]
    call = lambda i: backprop_diffusion.mixture_entropy(keys[i], values(i, 9, 2), 2)  # noqa: E731
    assert compiled_again(call) == 0


LEARNERS = {
    "TD3": lambda: rl.td3(2, 1, **SMALL),
    "SAC": lambda: rl.sac(2, 1, **SMALL, num_particles=2),
    "FPMD-R": lambda: rl.fpmd_r(2, 1, num_steps=2, num_particles=2, **SMALL),
    "FPMD-M": lambda: rl.fpmd_m(2, 1, num_particles=2, weighting="softmax", num_samples=3, **SMALL),
    "DPMD": lambda: rl.dpmd(2, 1, num_particles=2, gradient_weight=0.1, **SMALL),
    "SDAC": lambda: rl.sdac(2, 1, num_particles=2, num_samples=3, truncated=True, **SMALL),
    "QVPO": lambda: rl.qvpo(2, 1, num_particles=2, num_samples=3, **SMALL),
    "DIPO": lambda: rl.dipo(2, 1, num_ascents=2, **SMALL),
    "QSM": lambda: rl.qsm(2, 1, num_particles=2, **SMALL),
    "DACER": lambda: rl.dacer(2, 1, num_states=2, num_samples=4, alpha_every=2, **SMALL),
    "DIME": lambda: rl.dime(2, 1, num_particles=2, **SMALL),
}


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


def make_algorithm(name):
    env = envs.make_env(envs.linear_quadratic(time_limit=3), 2)
    if name == "PPO":
        return learning.make_ppo(env, **SMALL, num_steps=4, num_epochs=2, num_minibatches=2)
    make = rl.make_gaussian_critics if name in ("DACER", "DIME") else rl.make_critics
    policy, critics = LEARNERS[name](), make(2, 1, **SMALL)
    return rl.make_learner(env, policy, critics=critics, batch_size=4, capacity=40, warmup=8)


@pytest.mark.parametrize(
    "name", ["FPMD-M", "QSM", *map(slow, sorted(LEARNERS.keys() - {"FPMD-M", "QSM"}))]
)
def test_acting(name):
    policy = LEARNERS[name]()
    keys = [jax.random.key(i) for i in range(2)]
    params = [policy.init(key) for key in keys]

    def q(obs, action):
        return obs[..., 0] * action[..., 0]

    def call(i):
        policy.act(keys[i], params[i], values(i, 2, 2), q, values(i), explore=True)

    assert compiled_again(call) == 0


@pytest.mark.slow  # hundreds of single operations
@pytest.mark.parametrize("name", ["PPO", "TD3", "FPMD-M"])
def test_starts_and_steps_of_algorithms(name):
    algorithm, keys = make_algorithm(name), [jax.random.key(i) for i in range(2)]
    assert compiled_again(lambda i: algorithm.step(algorithm.init(keys[i]))) == 0


@pytest.mark.parametrize(
    "name", ["PPO", "TD3", *(slow(name) for name in LEARNERS if name != "TD3")]
)
def test_no_key_is_used_twice(key, name):
    """In two steps: the body of a scan must give back what it takes. (Of seeds side by side JAX
    does not say: to its check the transpose of an array of keys is a use of them.)"""
    algorithm = make_algorithm(name)

    def run(key):
        return jax.lax.scan(lambda s, _: algorithm.step(s), algorithm.init(key), length=2)

    with jax.debug_key_reuse(True):
        jax.jit(run, compiler_options=CHEAP)(key)


@pytest.mark.parametrize("num_seeds", [None, 2], ids=["alone", "seeds"])
def test_environments_use_no_key_twice(key, num_seeds):
    """Keys may be a part of a task's own state; some episodes end here, and some go on."""

    def reset(key):
        key_start, key_steps = jax.random.split(key)
        x = jax.random.uniform(key_start, (1,))
        return (x, key_steps), x

    def step(physics, action):
        x, key = physics
        key, key_noise = jax.random.split(key)
        x = x + jax.random.uniform(key_noise, (1,))
        return (x, key), x, x[0], x[0] > 1.5

    env = envs.make_env(envs.Task("keys", 1, envs.Box((-1.0,), (1.0,)), 3, reset, step), 2)

    def play(key):
        def one(state, action):
            return env.step(state, action), state.terminated

        return jax.lax.scan(one, env.reset(key), jnp.zeros((4, 2, 1)))[1]

    with jax.debug_key_reuse(True):
        keys = key if num_seeds is None else jax.random.split(key, num_seeds)
        run = play if num_seeds is None else jax.vmap(play)
        ended = jax.jit(run, compiler_options=CHEAP)(keys)
    assert 0 < ended.sum() < ended.size
