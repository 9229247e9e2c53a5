"""Edges: steps that fail, tails of noise, weights that would overflow, observations in bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxlab import envs, rl
from jaxlab.diffusion import ddpm
from jaxlab.learning import replay
from jaxlab.rl import soft_diffusion, weights

pytestmark = pytest.mark.usefixtures("optax_promotes")
SMALL = (8,)


def brittle(threshold):
    """Breaks where the action is below the threshold; else it walks on, for nine steps."""

    def reset(key):
        x = jax.random.uniform(key, (2,))
        return x, x

    def step(x, action):
        x = x + jnp.where(action[0] < threshold, jnp.nan, 1.0)
        return x, x, jnp.sum(x), jnp.zeros((), bool)

    return envs.Task("brittle", 2, envs.Box((-1.0,), (1.0,)), 9, reset, step)


def learner(task, num_envs=3, **options):
    env = envs.make_env(task, num_envs)
    policy = rl.make_mirror_descent(rl.make_mean_flow(2, 1, hidden=SMALL), num_particles=2)
    defaults = {"batch_size": 4, "capacity": 240, "warmup": 90}
    return rl.make_learner(
        env, policy, critics=rl.make_critics(2, 1, hidden=SMALL), **{**defaults, **options}
    )


def test_failed_steps_are_counted_and_not_learned_from(key):
    algorithm = learner(brittle(-0.5))
    state = jax.jit(algorithm.init)(key)
    data = jax.tree.map(lambda x: np.asarray(x)[:90], state.replay.data)
    assert 10 < int(state.failures) < 40  # a quarter of ninety
    # A row that failed holds another of its step: obs + 1 follows obs throughout, but in steps in
    # which all three failed, whose rows end.
    walked = np.all(np.abs(data.next_obs - data.obs - 1.0) < 1e-5, axis=1)
    np.testing.assert_array_equal(walked, ~data.terminated)
    rows = data.terminated.reshape(30, 3)
    assert np.all(rows.all(axis=1) == rows.any(axis=1)) and rows.all(axis=1).sum() < 5
    assert np.all(data.action[walked] >= -0.5)
    state, metrics = jax.jit(algorithm.step)(state)
    assert metrics["env/failed"] == state.failures


def test_an_environment_that_always_fails_teaches_no_return(key):
    state = jax.jit(learner(brittle(2.0)).init)(key)
    assert int(state.failures) == 90
    assert np.asarray(state.replay.data.terminated)[:90].all()
    assert not np.asarray(state.replay.data.reward).any()


def test_ppo_counts_failures(key):
    env = envs.make_env(brittle(2.0), 3)
    algorithm = rl.make_ppo(env, hidden=SMALL, num_steps=8, num_epochs=1, num_minibatches=2)
    state, metrics = jax.jit(algorithm.step)(algorithm.init(key))
    assert metrics["env/failed"] == state.failures == 24


@pytest.mark.parametrize("t", [0, 1, 5, 19])
@pytest.mark.parametrize("x", [1.05, -1.3, 0.2, 5.0])
def test_truncated_noise_is_scipy_s(key, t, x):
    """Far in the tail too: x_t = 1.05 at t = 0 leaves noise above 5.6 alone."""
    schedule = ddpm.linear_schedule()
    alpha_bar = float(schedule.alpha_bar[t])
    point, time = jnp.full((1, 1), x, jnp.float32), jnp.full((1,), t, jnp.int32)
    drawn = np.asarray(soft_diffusion._within(key, schedule, 20_000, point, time))[:, 0, 0]
    center, reach = x / np.sqrt(1 - alpha_bar), np.sqrt(alpha_bar / (1 - alpha_bar))
    want = scipy.stats.truncnorm(center - reach, center + reach)
    np.testing.assert_allclose(drawn.mean(), want.mean(), atol=5 * want.std() / np.sqrt(20_000))
    np.testing.assert_allclose(drawn.std(), want.std(), rtol=0.03)


@pytest.mark.parametrize("kind, scale", [("raw", 1.0), ("scale_std", 0.1)])
def test_large_values_do_not_overflow(kind, scale):
    """Weights keep their ratios, and small values their exact weights."""
    stats = weights.Stats(jnp.zeros(()), jnp.asarray(scale))
    divisor = 1.0 if kind == "raw" else scale
    q = np.array([90.0, 88.0, 50.0]) * divisor
    got, info = weights.importance_weights(jnp.asarray(q, jnp.float32), stats, 1.0, kind)
    np.testing.assert_allclose(got, np.exp(q / divisor - 50.0), rtol=1e-4)
    exact, _ = weights.importance_weights(jnp.asarray(q / 30, jnp.float32), stats, 1.0, kind)
    np.testing.assert_allclose(exact, np.exp(q / divisor / 30), rtol=1e-5)
    share = scipy.special.softmax(q / divisor)
    np.testing.assert_allclose(info["ess"], 1.0 / (3 * np.sum(share**2)), rtol=1e-4)


def test_learned_temperature_of_softmax_weights(key):
    """Its gradient is alpha (target - divergence); noise no longer follows alpha."""
    generator = rl.make_flow(2, 1, num_steps=2, hidden=SMALL)
    policy = rl.make_mirror_descent(
        generator, weighting="softmax", num_samples=16, target_kl=0.7, num_particles=1
    )
    assert (policy.alpha_init, policy.alpha_every, policy.alpha_learning_rate) == (1.0, 2, 3e-4)
    params, obs = policy.init(key), jnp.ones((3, 2))

    def q(obs, action):
        return 4.0 * action[..., 0]

    zeros = jnp.zeros((3, 1))
    context = rl.Context(
        obs,
        zeros,
        obs,
        jnp.zeros(3, bool),
        zeros,
        (),
        q,
        q,
        q,
        jnp.asarray(0.5),
        weights.init_stats(),
        jnp.zeros((), jnp.int32),
    )
    _, found = policy.loss(key, params, context)
    log_weight = scipy.special.log_softmax(np.asarray(found.values, np.float64) / 0.5, axis=0)
    kl = np.mean(np.sum(np.exp(log_weight) * (log_weight + np.log(16)), axis=0))
    np.testing.assert_allclose(found.entropy_gap, 0.5 * (0.7 - kl), rtol=1e-4)
    quiet, loud = (
        policy.act(key, params, obs, q, jnp.asarray(alpha), explore=True) for alpha in (1e-3, 5.0)
    )
    np.testing.assert_array_equal(quiet, loud)
    for options in ({"weighting": "raw"}, {"num_samples": 2}):
        with pytest.raises(ValueError, match="target_kl goes with"):
            rl.make_mirror_descent(
                generator, **{"weighting": "softmax", "target_kl": 0.7, **options}
            )


def test_entropy_of_sac_with_many_samples_is_its_policy_s(key):
    """The bonus of the best of eight has the mean of the Gaussian's own, squashed."""
    one, many = (rl.sac(1, 1, hidden=SMALL, num_particles=k) for k in (1, 8))
    params, obs = one.init(key), jnp.zeros((20_000, 1))

    def q(obs, action):
        return action[..., 0]

    (alone, bonus, _), (best, bonus_best, _) = (
        jax.jit(lambda key, p=p: p.propose(key, params, params, obs, q, jnp.ones(())))(key)
        for p in (one, many)
    )
    assert best.mean() > alone.mean() + 0.2
    np.testing.assert_allclose(bonus_best.mean(), bonus.mean(), atol=4 * bonus.std() / 141)


@pytest.mark.slow
def test_observations_can_be_stored_in_bytes(key):
    def reset(key):
        x = jax.random.randint(key, (2,), 0, 100).astype(jnp.float32)
        return x, x

    task = envs.Task(
        "counter",
        2,
        envs.Box((-1.0,), (1.0,)),
        50,
        reset,
        lambda x, action: (x + 1.0, x + 1.0, jnp.zeros(()), jnp.zeros((), bool)),
    )
    wide, narrow = (learner(task, obs_dtype=dtype) for dtype in (None, jnp.uint8))
    states = [jax.jit(x.step)(jax.jit(x.init)(key))[0] for x in (wide, narrow)]
    assert states[1].replay.data.obs.dtype == jnp.uint8
    np.testing.assert_array_equal(states[0].replay.data.obs, states[1].replay.data.obs)
    for a, b in zip(*(jax.tree.leaves(s.policy_params) for s in states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_numbers_out_of_range():
    ring = replay.init(6, jnp.zeros(()), batch=3)
    with pytest.raises(ValueError, match="multiple of the 4"):
        replay.add(ring, jnp.zeros(4))
    flow = rl.make_flow(2, 1, hidden=SMALL)
    for make, message in (
        (lambda: rl.make_mirror_descent(flow, weighting="raw", temperature=0.0), "positive"),
        (lambda: rl.sdac(2, 1, num_samples=0), "num_samples"),
        (lambda: rl.sdac(2, 1, temperature=-1.0), "temperature"),
        (lambda: rl.qvpo(2, 1, num_samples=1), "num_samples must be at least 2"),
        (lambda: rl.qvpo(2, 1, weighting="value", num_samples=0), "num_samples"),
        (lambda: rl.dipo(2, 1, num_ascents=0), "num_ascents"),
        (lambda: rl.dacer(2, 1, num_samples=2), "num_components"),
        (lambda: rl.dacer(2, 1, alpha_every=0), "alpha_every"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_one_state_without_a_batch(key):
    flow, critics = (
        rl.make_flow(3, 2, num_steps=2, hidden=SMALL),
        rl.make_critics(3, 2, hidden=SMALL),
    )
    params, q_params = flow.init(key), critics.init(key)

    def q(obs, action):
        return jnp.min(critics.apply(q_params, obs, action), axis=0)

    obs = jnp.ones(3)
    alone = rl.act(key, flow, params, obs, q, num_particles=5)
    drawn = rl.draw(key, flow, params, obs, num_particles=5)
    best = drawn[jnp.argmax(q(jnp.broadcast_to(obs, (5, 3)), drawn))]
    np.testing.assert_allclose(alone, jnp.clip(best, -1.0, 1.0), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [rl.sac, *(pytest.param(x, marks=pytest.mark.slow) for x in (rl.fpmd_m, rl.dacer, rl.dime))],
)
def test_in_double_precision(x64, key, make):
    """A step of the learner, temperature included, keeps the types of its state."""
    env = envs.make_env(envs.bandit(lambda action: -jnp.sum(action**2)), 2)
    critics = rl.make_gaussian_critics(1, 1, hidden=SMALL)
    algorithm = rl.make_learner(
        env, make(1, 1, hidden=SMALL), critics=critics, batch_size=4, capacity=40, warmup=8
    )
    state = jax.jit(algorithm.init)(key)
    after, metrics = jax.jit(algorithm.step)(state)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert after.replay.data.obs.dtype == jnp.float64
    assert all(np.isfinite(x) for x in metrics.values())


def test_small_and_equal_values_keep_a_weight():
    """Returns of -150: weights in their proportions, large enough for Adam; no spread: equal."""
    q = jnp.asarray([-150.0, -149.0, -147.0])
    weight, found = weights.importance_weights(q, weights.init_stats(), 1.0, "raw")
    np.testing.assert_allclose(weight, np.exp(-10.0 + np.array([-3.0, -2.0, 0.0])), rtol=1e-5)
    share = np.exp([-3.0, -2.0, 0.0])
    np.testing.assert_allclose(found["ess"], share.sum() ** 2 / (3 * (share**2).sum()), rtol=1e-5)
    still = weights.Stats(jnp.asarray(0.5), jnp.zeros(()))
    for kind in ("clip_std", "clip_release", "scale_std"):
        weight, _ = weights.importance_weights(jnp.full((3,), 0.5), still, 0.5, kind)
        assert np.all(np.isfinite(weight)) and np.ptp(weight) == 0.0
