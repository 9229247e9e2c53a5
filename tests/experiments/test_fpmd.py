"""The comparison of flow policies: every method can be made, figures are those logged, resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.fpmd import PRESETS, Config, methods, study, theory, training
from jaxlab import envs
from jaxlab.core import logging, loop

pytestmark = pytest.mark.usefixtures("optax_promotes")
TINY = Config(
    num_seeds=2,
    tasks=("multi_goal",),
    methods=("FPMD-M", "TD3"),
    parts=("returns",),
    updates=120,
    num_envs=2,
    batch_size=8,
    warmup=16,
    capacity=400,
    width=8,
    num_particles=2,
    flow_steps=2,
    diffusion_steps=2,
    eval_episodes=3,
    tuning_rates=(9e-4,),
)


def test_rows_are_what_was_logged_and_a_second_run_trains_nothing(tmp_path, monkeypatch):
    first = study.run(TINY, tmp_path)
    logged = {
        name: logging.read_jsonl(tmp_path / "multi_goal" / name / "metrics.jsonl")
        for name in TINY.methods
    }
    assert len(logged["FPMD-M"]) == TINY.evaluations
    final = {
        name: np.array([records[-1][f"eval/return_{i}"] for i in range(2)])
        for name, records in logged.items()
    }
    row = next(row for row in first.rows if row.metric == "Return of FPMD-M, multi_goal")
    np.testing.assert_allclose(row.value, final["FPMD-M"].mean(), rtol=1e-6)
    assert row.baseline == ("TD3", pytest.approx(final["TD3"].mean(), rel=1e-6))
    ways = next(table for table in first.tables if table.title.startswith("Ways"))
    assert [cells[1] for cells in ways.rows] == ["bon", "vanilla", "one_step", "zero_noise"]
    np.testing.assert_allclose(ways.rows[0][4], final["FPMD-M"].mean(), rtol=1e-5)
    assert ways.rows[1][4] == pytest.approx(ways.rows[2][4], rel=1e-6)  # N = 1: the same samples
    assert {figure.path for figure in first.figures} == {
        "curves.png",
        "evaluations.png",
        "weights.png",
    }

    def fail(*args, **options):
        raise AssertionError("a finished unit was trained again")

    monkeypatch.setattr(loop, "_compile_chunk", fail)
    again = study.run(TINY, tmp_path)
    with pytest.raises(ValueError, match="of other settings"):
        study.run(dataclasses.replace(TINY, width=4), tmp_path)
    assert [(row.metric, row.value) for row in again.rows] == [
        (row.metric, row.value) for row in first.rows
    ]


def test_the_learning_rate_is_tuned_on_other_seeds(tmp_path):
    config = dataclasses.replace(TINY, methods=("TD3",), tuning_rates=(1e-4, 1e-2))
    found = study.run(config, tmp_path)
    returns = {}
    for rate in config.tuning_rates:
        folder = tmp_path / "multi_goal" / "TD3-tuning" / f"{rate:g}"
        last = logging.read_jsonl(folder / "metrics.jsonl")[-1]
        returns[rate] = last["eval/return_0"] + last["eval/return_1"]
    table = next(table for table in found.tables if table.title.startswith("Returns"))
    rate = table.rows[0][table.columns.index("Learning rate")]
    assert rate == max(returns, key=lambda rate: returns[rate])


def test_goals_that_are_reached():
    """A policy that goes right comes to one goal; one that draws a direction, to all four."""
    method = methods.make_method("TD3", envs.make_env(envs.multi_goal(), 2), TINY)
    state = jax.jit(method.learner.init)(jax.random.key(0))
    directions = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

    def right(state, key, obs, explore):
        return jnp.broadcast_to(directions[:1], obs.shape)

    def anywhere(state, key, obs, explore):
        first = directions[jax.random.randint(key, obs.shape[:1], 0, 4)]
        far = jnp.max(jnp.abs(obs), axis=1, keepdims=True) > 0.5
        return jnp.where(far, jnp.clip(jnp.round(obs), -1.0, 1.0), first)

    def nowhere(state, key, obs, explore):
        return jnp.zeros_like(obs)

    none, one, four = (
        training._goals(method._replace(act=act), state) for act in (nowhere, right, anywhere)
    )
    np.testing.assert_allclose(none, 0.0)
    np.testing.assert_allclose(one, 1.0, atol=1e-6)
    assert np.all(four[0] > 3.9) and np.all(four[1] == 1.0)


@pytest.mark.parametrize("name", methods.TABLE)
def test_every_method_fits_the_task(name):
    """Losses and proposals of the right shapes, without a run."""
    env = envs.make_env(envs.multi_goal(), 1)
    method = methods.make_actor(name, env, TINY)
    params = jax.eval_shape(method.policy.init, jax.random.key(0))
    critics = jax.eval_shape(method.critics.init, jax.random.key(0))

    def propose(params, critic_params, key, obs):
        def q(obs, action):
            return jnp.min(method.critics.apply(critic_params, obs, action), axis=0)

        return method.policy.propose(params, params, key, obs, q, jnp.ones(()))[:2]

    obs = jax.ShapeDtypeStruct((7, 2), jnp.float32)
    action, bonus = jax.eval_shape(propose, params, critics, jax.random.key(0), obs)
    assert action.shape == (7, 2) and bonus.shape == (7,)
    assert method.policy.action_size == 2


@pytest.mark.slow
def test_theory_of_one_step():
    """The bound holds along the way; one step of the flow averages, that of MeanFlow does not."""
    course = theory.run(dataclasses.replace(TINY, theory_steps=3000))
    assert np.all(course.distance[3:] <= course.bound[3:])
    assert np.all(course.modes["FPMD-R, 1 step"] < 0.1)
    assert np.all(course.modes["FPMD-R, 50 steps"] > 0.8)
    assert np.all(course.modes["FPMD-M, 1 step"] > 0.6)
    final = {name: distance[-1].mean() for name, distance in course.wasserstein.items()}
    assert final["FPMD-R, 1 step"] > 0.5 > final["FPMD-M, 1 step"] > final["FPMD-R, 50 steps"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_seeds": 1}, "num_seeds must be at least 2"),
        ({"capacity": 401}, "capacity must be a multiple"),
        ({"updates": 3}, "updates must be at least 20"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_bad_names(tmp_path):
    with pytest.raises(ValueError, match="methods must be among FPMD-R"):
        study.run(dataclasses.replace(TINY, methods=("REINFORCE",)), tmp_path)
    with pytest.raises(ValueError, match="has no task 'cartpole'"):
        study.run(dataclasses.replace(TINY, tasks=("cartpole",)), tmp_path)
    assert PRESETS["gpu"].num_seeds >= 5 and PRESETS["cpu"].num_seeds >= 5


def test_returns_stand_beside_the_published_ones():
    returns = np.array([1.0, 3.0])
    one = training.Outcome(
        returns,
        returns,
        (np.zeros(1), returns[None]),
        {},
        {},
        {},
        np.zeros(0),
        (np.zeros(0), np.zeros(0)),
        1.0,
    )
    names = {
        ("walker2d", "SAC"),
        ("inverted_pendulum", "DACER"),
        ("ant", "FPMD-R"),
        ("pendulum", "SAC"),
    }
    rows = study._published_rows({key: one for key in sorted(names)})
    assert {(row.metric, row.value, row.paper) for row in rows} == {
        ("Return of SAC, walker2d", 2.0, 3233),
        ("Return of DACER, inverted_pendulum", 2.0, 801),
    }
    assert set(study.PUBLISHED) < set(methods.NAMES)
    assert all(len(x) == len(study.PUBLISHED_TASKS) for x in study.PUBLISHED.values())
    assert set(study.PUBLISHED_TASKS) <= set(envs.TASKS)
