"""Generators: learned flows of a tilted Gaussian, two modes, the four ways of acting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.rl import acting, critics, generators

HIDDEN = (64, 64)
FAST = {"hidden": HIDDEN, "time_scale": 8.0}
"""A small network that learns in seconds, its times embedded at higher frequencies."""


def fit(generator, data, weight, *, steps=2000, batch=256, rate=2e-3):
    """Trains on draws of `data(key, n) -> [n, A]`, one constant observation."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def run(key):
        params = generator.init(key)
        obs = jnp.zeros((batch, 1))

        def step(carry, key):
            params, opt_state = carry
            key_data, key_loss = jax.random.split(key)
            a = data(key_data, batch)
            grads = jax.grad(generator.loss, argnums=1)(key_loss, params, obs, a, weight(a[:, 0]))
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][0]

    return run(jax.random.key(0))


def tilted(a):
    return jnp.exp(-0.5 * 3.0 * (a - 0.8) ** 2 / 0.7)


def old(key, n):
    return 0.5 * jax.random.normal(key, (n, 1))


@pytest.fixture(scope="module")
def learned():
    """A flow and a MeanFlow, fitted to N(0, 0.5^2) tilted to N(0.414, 0.347^2)."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        flow = generators.make_flow(1, 1, **FAST)
        mean = generators.make_mean_flow(1, 1, **FAST)
        return {"flow": (flow, fit(flow, old, tilted)), "mean_flow": (mean, fit(mean, old, tilted))}


def draws(learned, name, num_steps, key):
    generator, params = learned[name]
    obs = jnp.zeros((1, 1))
    return np.asarray(
        jax.jit(
            lambda: generators.draw(
                key, generator, params, obs, num_particles=20_000, num_steps=num_steps
            )
        )()
    )[:, 0, 0]


def test_learned_flow_is_the_tilted_policy(learned, key):
    x = draws(learned, "flow", 100, key)
    np.testing.assert_allclose(x.mean(), 0.4138, atol=0.05)
    np.testing.assert_allclose(x.std(), 0.3474, atol=0.05)


def test_one_step_of_a_flow_is_its_mean_and_of_a_mean_flow_is_not(learned, key):
    flow, mean = (draws(learned, name, 1, key) for name in ("flow", "mean_flow"))
    np.testing.assert_allclose(flow.mean(), 0.4138, atol=0.05)
    assert flow.std() < 0.10
    np.testing.assert_allclose(mean.mean(), 0.4138, atol=0.05)
    assert 0.2 < mean.std() < 0.4 and mean.std() > 2 * flow.std()


@pytest.mark.slow
def test_published_bandit(optax_promotes, key):
    """The reference setting: 128 wide, batches of 512, 4,000 steps of Adam."""
    for make, num_steps, mean, std in (
        (generators.make_flow, 100, (0.39, 0.43), (0.32, 0.36)),
        (generators.make_flow, 1, (0.39, 0.43), (0.0, 0.1)),
        (generators.make_mean_flow, 1, (0.39, 0.43), (0.2, 0.4)),
    ):
        generator = make(1, 1, hidden=(128, 128))
        params = fit(generator, old, tilted, steps=4000, batch=512)
        x = draws({"it": (generator, params)}, "it", num_steps, key)
        assert mean[0] < x.mean() < mean[1] and std[0] < x.std() < std[1]


def test_modes_that_one_step_averages(optax_promotes, key):
    """Two actions equally good: many steps of the flow, and one of MeanFlow, find both."""

    def two(key, n):
        key_side, key_noise = jax.random.split(key)
        side = jnp.where(jax.random.bernoulli(key_side, 0.5, (n, 1)), 0.7, -0.7)
        return side + 0.1 * jax.random.normal(key_noise, (n, 1))

    def sides(generator, params, num_steps):
        drawn = generators.draw(
            key, generator, params, jnp.zeros((1, 1)), num_particles=4000, num_steps=num_steps
        )[:, 0, 0]
        return [np.mean(np.abs(np.asarray(drawn) - m) < 0.3) for m in (-0.7, 0.0, 0.7)]

    flow = generators.make_flow(1, 1, **FAST)
    params = fit(flow, two, jnp.ones_like, steps=3000)
    many, one = sides(flow, params, 50), sides(flow, params, 1)
    assert many[0] > 0.3 and many[2] > 0.3 and many[1] < 0.2
    assert one[1] > 0.9  # between the modes, where no data are
    mean = generators.make_mean_flow(1, 1, **FAST)
    one = sides(mean, fit(mean, two, jnp.ones_like, steps=3000), 1)
    assert one[0] > 0.25 and one[2] > 0.25


def test_modes_of_acting(learned, key):
    """Zero noise is one deterministic pass; the best of many is as good as its critics say."""
    obs = jnp.zeros((50, 1))

    def q(obs, action):
        return -jnp.abs(action[..., 0] - 0.2)

    for name in ("flow", "mean_flow"):
        generator, params = learned[name]
        act = functools.partial(acting.act, generator=generator, params=params)
        network = generators.TimedNetwork(HIDDEN, 1, time_scale=8.0)
        zero = jnp.zeros((1, 1))
        ends = (jnp.zeros(1),) if name == "flow" else (jnp.zeros(1), jnp.ones(1))
        pass_ = network.apply(params, zero, zero, *ends)
        want = pass_ if name == "flow" else -pass_
        got = act(key, obs=obs, mode="zero_noise")
        np.testing.assert_allclose(got, jnp.broadcast_to(want, (50, 1)), atol=1e-6)
        best = act(key, obs=obs, q=q, mode="bon", num_particles=200)
        assert np.abs(best - 0.2).max() < 0.05
        vanilla = act(key, obs=obs, mode="vanilla", num_steps=50)
        assert np.std(vanilla) > 0.15 and np.abs(vanilla).max() <= 1.0
        one = act(key, obs=obs, mode="one_step")
        again = generators.draw(key, generator, params, obs, num_particles=1, num_steps=1)[0]
        np.testing.assert_allclose(one, np.clip(again, -1, 1), atol=1e-6)
    with pytest.raises(ValueError, match="give q"):
        act(key, obs=obs)
    with pytest.raises(ValueError, match="mode must be"):
        act(key, obs=obs, q=q, mode="greedy")
    with pytest.raises(ValueError, match="obs must be floats"):
        act(key, obs=jnp.zeros((2, 1), int), q=q)
    for bad in ({"mode": "greedy"}, {"mode": "bon", "num_particles": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            acting.num_evaluations(**bad)


def test_costs_of_acting():
    assert acting.num_evaluations("bon") == (640, 64)
    assert acting.num_evaluations("vanilla") == (20, 0)
    assert acting.num_evaluations("one_step") == acting.num_evaluations("zero_noise") == (1, 0)


def test_bad_counts(key):
    with pytest.raises(ValueError, match="at least 1"):
        generators.make_flow(3, 1, num_steps=0)
    with pytest.raises(ValueError, match="time_size must be even"):
        generators.make_flow(3, 1, time_size=5)
    with pytest.raises(ValueError, match="equal must lie"):
        generators.make_mean_flow(3, 1, equal=2.0)
    flow = generators.make_flow(1, 1, hidden=(4,))
    params = flow.init(key)
    with pytest.raises(ValueError, match="num_particles and num_steps"):
        generators.draw(key, flow, params, jnp.zeros((2, 1)), num_particles=0)
    diffusion = generators.make_diffusion(1, 1, hidden=(4,))
    with pytest.raises(ValueError, match="made with 20 steps"):
        acting.act(key, diffusion, diffusion.init(key), jnp.zeros((2, 1)), mode="one_step")


def test_best_of_many_is_the_largest_of_as_many(key):
    """Q = a and K uniform draws on [0, 1]: the mean of the best is K / (K + 1)."""
    for K in (1, 4, 32):
        actions = jax.random.uniform(jax.random.fold_in(key, K), (K, 20_000, 1))
        chosen, values = critics.best_of(lambda obs, a: a[..., 0], jnp.zeros((20_000, 3)), actions)
        error = 5 * np.sqrt(K / ((K + 1) ** 2 * (K + 2)) / 20_000)
        np.testing.assert_allclose(chosen.mean(), K / (K + 1), atol=error)
        np.testing.assert_array_equal(chosen[:, 0], values.max(axis=0))
    far, _ = critics.best_of(lambda obs, a: a[..., 0], jnp.zeros((1, 3)), jnp.full((2, 1, 1), 7.0))
    assert far == 1.0


def test_one_state_without_a_batch(key):
    flow, twins = (
        generators.make_flow(3, 2, num_steps=2, hidden=(8,)),
        critics.make_critics(3, 2, hidden=(8,)),
    )
    params, q_params = flow.init(key), twins.init(key)

    def q(obs, action):
        return jnp.min(twins.apply(q_params, obs, action), axis=0)

    obs = jnp.ones(3)
    alone = acting.act(key, flow, params, obs, q, num_particles=5)
    drawn = generators.draw(key, flow, params, obs, num_particles=5)
    best = drawn[jnp.argmax(q(jnp.broadcast_to(obs, (5, 3)), drawn))]
    np.testing.assert_allclose(alone, jnp.clip(best, -1.0, 1.0), rtol=1e-6)
