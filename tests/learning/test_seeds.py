"""Seeds and sweeps side by side: each is what it is alone, and all are one program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning
from jaxlab.core.types import Algorithm, Mean


class Descent(NamedTuple):
    """Gradient descent on (x - 1)^2 / 2 with noise."""

    x: jax.Array
    steps: jax.Array
    key: jax.Array
    settings: Any


class Settings(NamedTuple):
    """What is swept."""

    rate: jax.Array
    noise: jax.Array


def descent(traces=None):
    def init(key, settings=None):
        settings = Settings(jnp.asarray(0.1), jnp.asarray(1.0)) if settings is None else settings
        return Descent(jax.random.normal(key), jnp.zeros((), jnp.int32), key, settings)

    def step(state):
        if traces is not None:
            traces.append(1)
        key, key_noise = jax.random.split(state.key)
        slope = state.x - 1.0 + state.settings.noise * jax.random.normal(key_noise)
        x = state.x - state.settings.rate * slope
        after = Descent(x, state.steps + 1, key, state.settings)
        return after, {"x": x, "env/return": Mean(x, jnp.ones(()))}

    return Algorithm(init, step)


def run(algorithm, key, *settings):
    state = algorithm.init(key, *settings)
    for _ in range(5):
        state, metrics = algorithm.step(state)
    return state, metrics


def test_a_seed_among_others_is_the_seed_alone(key):
    state, metrics = run(learning.over_seeds(descent(), 3), key)
    for i in range(3):
        alone, found = run(descent(), jax.random.fold_in(key, i))
        np.testing.assert_allclose(state.x[i], alone.x, rtol=1e-6)
        np.testing.assert_allclose(metrics["x"][i], found["x"], rtol=1e-6)
        np.testing.assert_allclose(metrics["env/return"].total[i], alone.x, rtol=1e-6)
    assert np.ptp(state.x) > 0.1 and metrics["env/return"].count.shape == (3,)


def test_what_all_share_is_one_number(key):
    axes = Descent(0, None, 0, 0)
    seeds = learning.over_seeds(descent(), 3, axes=axes)
    assert seeds.axes == axes
    state, _ = run(seeds, key)
    assert state.steps == 5 and state.steps.shape == () and state.x.shape == (3,)
    own = learning.over_seeds(descent()._replace(seed_axes=axes), 3)  # the algorithm's own wish
    np.testing.assert_allclose(run(own, key)[0].x, state.x, rtol=1e-6)
    assert own.axes == axes and learning.over_seeds(descent(), 3).axes == 0
    looked = jax.vmap(lambda s: s.x + s.steps.astype(s.x.dtype), in_axes=(seeds.axes,))(state)
    np.testing.assert_allclose(looked, state.x + 5, rtol=1e-6)


def test_a_sweep_is_separate_runs_and_descends_by_its_rates(key):
    """Without noise 1 - x shrinks by 1 - rate a step, each seed by its own."""
    settings = Settings(jnp.asarray([0.1, 0.5, 0.9]), jnp.asarray([0.0, 0.0, 2.0]))
    state, _ = run(learning.over_seeds(descent(), 3, settings=settings), key)
    starts = np.array([jax.random.normal(jax.random.fold_in(key, i)) for i in range(3)], np.float64)
    want = 1.0 - (1.0 - starts[:2]) * np.array([0.9, 0.5]) ** 5
    np.testing.assert_allclose(state.x[:2], want, rtol=1e-5)
    alone, _ = run(
        descent(), jax.random.fold_in(key, 2), Settings(jnp.asarray(0.9), jnp.asarray(2.0))
    )
    np.testing.assert_allclose(state.x[2], alone.x, rtol=1e-5)


def test_new_values_of_a_sweep_compile_nothing(key):
    traces = []
    sweeps = [
        learning.over_seeds(
            descent(traces), 2, settings=Settings(jnp.asarray(rates), jnp.zeros((2,)))
        )
        for rates in ([0.1, 0.2], [0.3, 0.4])
    ]
    step = jax.jit(sweeps[0].step)
    states = [step(sweep.init(key))[0] for sweep in sweeps]
    assert len(traces) == 1 and step._cache_size() == 1
    assert np.all(states[0].x != states[1].x)


def test_seeds_within_seeds(key):
    inner = learning.over_seeds(descent(), 2)
    state, metrics = run(learning.over_seeds(inner, 3), key)
    alone, _ = run(descent(), jax.random.fold_in(jax.random.fold_in(key, 2), 1))
    np.testing.assert_allclose(state.x[2, 1], alone.x, rtol=1e-6)
    assert metrics["x"].shape == (3, 2)


@pytest.mark.parametrize(
    "num_seeds, settings, message",
    [
        (0, None, "num_seeds must be at least 1, got 0"),
        (3, jnp.zeros(2), "leading axis of 3"),
        (3, {"rate": 0.1}, r"settings\['rate'\] must have a leading axis"),
        (2, {"rate": [0.1, 0.2]}, "give an array, no list"),
        (2.0, None, "num_seeds must be at least 1, got 2.0; give an integer"),
        (True, None, "num_seeds must be at least 1, got True"),
    ],
)
def test_bad_counts(num_seeds, settings, message):
    with pytest.raises(ValueError, match=message):
        learning.over_seeds(descent(), num_seeds, settings=settings)


def test_settings_are_refused_where_there_are_none():
    plain = Algorithm(lambda key: key, lambda key: (key, {}))
    with pytest.raises(ValueError, match=r"its init must take \(key, settings\)"):
        learning.over_seeds(plain, 2, settings={"rate": jnp.ones(2)})
    learning.over_seeds(plain, 2)


def test_an_algorithm_looks_at_all_settings_before_anything_is_traced():
    def check(settings):
        if np.any(settings.rate > 1.0):
            raise ValueError(f"rate must be at most 1, got {settings.rate}")

    checked = descent()._replace(check=check)
    learning.over_seeds(checked, 2, settings=Settings(jnp.asarray([0.1, 1.0]), jnp.zeros(2)))
    with pytest.raises(ValueError, match="rate must be at most 1"):
        learning.over_seeds(checked, 2, settings=Settings(jnp.asarray([0.1, 2.0]), jnp.zeros(2)))


def test_ppo_s_seeds_start_as_they_do_alone(optax_promotes, key):
    env = envs.make_env(envs.pendulum(), 2)
    algorithm = learning.make_ppo(env, hidden=(4,), num_steps=4, num_minibatches=2)
    seeds = learning.over_seeds(algorithm, 2)
    state = jax.jit(seeds.init)(key)
    alone = jax.jit(algorithm.init)(jax.random.fold_in(key, 1))
    np.testing.assert_allclose(state.env.obs[1], alone.env.obs, rtol=1e-6)
    _, metrics = jax.eval_shape(seeds.step, state)
    assert all(x.shape == (2,) for x in jax.tree.leaves(metrics))


def test_seeds_side_by_side_keep_the_name_of_their_algorithm():
    """By which checkpoints tell algorithms apart."""
    many = learning.over_seeds(descent(), 2)
    assert many.step.__qualname__ == descent().step.__qualname__ == "descent.<locals>.step"
    assert learning.over_seeds(descent()._replace(name="slow"), 2).name == "slow"
