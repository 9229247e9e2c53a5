"""The comparison of flow policies: every method can be made, figures are those logged, resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.fpmd import (
    PRESETS,
    Config,
    figures,
    methods,
    published,
    rows,
    study,
    tables,
    training,
)
from experiments.fpmd.parts import latency, theory
from experiments.harness import drawing
from jaxlab import envs
from jaxlab.core import logging, loop, types

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


@pytest.fixture
def fewer_programs(monkeypatch):
    """Each number of steps of a sample is a program."""
    monkeypatch.setattr(training, "NFES", (1, 2))


@pytest.mark.slow
def test_rows_are_what_was_logged_and_a_second_run_trains_nothing(
    tmp_path, monkeypatch, fewer_programs
):
    first = study.run(TINY, tmp_path)
    logged = {
        name: logging.read_jsonl(tmp_path / "units" / f"multi_goal--{name}.jsonl")
        for name in TINY.methods
    }
    assert len(logged["FPMD-M"]) == TINY.evaluations
    final = {name: np.array(records[-1]["eval/return_seeds"]) for name, records in logged.items()}
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
    with pytest.raises(ValueError, match="multi_goal/FPMD-M with width = 8, now it is 4"):
        study.run(dataclasses.replace(TINY, width=4), tmp_path)
    assert [(row.metric, row.value) for row in again.rows] == [
        (row.metric, row.value) for row in first.rows
    ]


def invented(final):
    final = np.asarray(final, float)
    none = np.zeros(0)
    curve = (np.zeros(1), final[None])
    return training.Outcome(final, final, curve, {}, {}, {}, none, (none, none), 1.0)


def test_the_learning_rate_is_tuned_on_other_seeds(tmp_path, monkeypatch):
    """By the mean of the seeds that are left; a rate that loses all of them is not taken."""
    config = dataclasses.replace(
        TINY, methods=("TD3", "FPMD-M"), tuning_rates=(1e-4, 1e-3, 1e-2), tuning_seeds=3
    )
    worth = {1e-4: [1.0, 2.0, 3.0], 1e-3: [4.0, np.nan, 2.0], 1e-2: [np.nan] * 3}
    asked = []

    def train(task, name, config, folder):
        asked.append((name, config.learning_rate, config.seed, config.num_seeds))
        return invented(worth[config.learning_rate] if config.num_seeds == 3 else [5.0, 6.0])

    monkeypatch.setattr(training, "train", train)
    found = study.run(config, tmp_path)
    assert asked == [
        *(("TD3", rate, config.seed + 1000, 3) for rate in config.tuning_rates),
        ("TD3", 1e-3, config.seed, 2),
        ("FPMD-M", config.learning_rate, config.seed, 2),
    ]
    table = next(table for table in found.tables if table.title.startswith("Returns"))
    rates = {cells[0]: cells[table.columns.index("Learning rate")] for cells in table.rows}
    assert rates == {"TD3": 1e-3, "FPMD-M": config.learning_rate}


@pytest.mark.slow
def test_the_best_of_trained_rates_is_taken(tmp_path):
    config = dataclasses.replace(TINY, methods=("TD3",), tuning_rates=(1e-4, 1e-2))
    found = study.run(config, tmp_path)
    returns = {}
    for rate in config.tuning_rates:
        path = tmp_path / "units" / f"multi_goal--TD3--tuning--{rate:g}.jsonl"
        returns[rate] = sum(logging.read_jsonl(path)[-1]["eval/return_seeds"])
    table = next(table for table in found.tables if table.title.startswith("Returns"))
    rate = table.rows[0][table.columns.index("Learning rate")]
    assert rate == max(returns, key=lambda rate: returns[rate])


def test_the_interval_beside_a_rival_decides():
    """Five differences above zero whose bootstrap excludes it, and whose t-interval does not."""
    ours = np.array([0.05, 0.1, 0.9, 0.5, 1.6])
    found = {("pendulum", "FPMD-R"): invented(ours), ("pendulum", "SAC"): invented(np.zeros(5))}
    row = rows.rows(found)[0]
    assert (row.baseline, row.verdict) == (("SAC", 0.0), "no clear difference")
    assert row.interval[0] < 0.0 < row.interval[1]
    found["pendulum", "FPMD-R"] = invented(ours + 1.0)
    row = rows.rows(found)[0]
    assert row.verdict == "better" and row.interval[0] > 0.0
    assert row.interval[0] + row.interval[1] == pytest.approx(2 * row.value)


def test_no_legend_lies_over_data(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: drawn.append(figure))
    steps, returns = np.arange(1.0, 9.0), np.full((8, 5), -100.0)
    course = dict.fromkeys(("policy/ess", "eval/spread", "eval/gap"), np.full(8, 0.5))
    outcome = invented(returns[-1])._replace(
        curve=(steps, returns),
        by_steps={1: returns[-1], 2: returns[-1]},
        course=course,
        weights=np.linspace(-1.0, 1.0, 20)[None],
    )
    names = [*figures.COLORS, "FPMD-R, released weights"]
    for tasks_ in (("pendulum",), ("pendulum", "multi_goal")):
        figures.draw({(task, name): outcome for task in tasks_ for name in names}, tmp_path)
    assert len(drawn) == 8
    for figure in drawn:
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert not any(
            axis.get_tightbbox().overlaps(box) or axis.get_legend() for axis in figure.axes
        )
        assert 0.0 <= box.x0 and box.x1 <= figure.bbox.width  # within the picture


def test_seeds_that_blew_up_are_told(tmp_path):
    lost = training._lost(5)
    found = {
        ("pendulum", "FPMD-R"): invented([3.0, np.nan, 4.0, 5.0, 6.0]),
        ("pendulum", "FPMD-M"): lost,
        ("pendulum", "SAC"): invented([1.0, 1.1, 1.0, 1.2, 1.0]),
        ("pendulum", "TD3"): lost,
    }
    first, second = rows.rows(found)
    assert first.baseline[0] == "SAC" and first.verdict == "too few seeds"  # four pairs are left
    assert first.value == 4.5 and "1 of 5 seeds" in first.note
    assert (second.value, second.verdict) == (None, "not measured") and "5 of 5" in second.note
    returns = tables.tables(found, {}, TINY)[0]
    assert [cells[1] for cells in returns.rows] == [4.5, None, pytest.approx(1.06), None]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((2.0, 2.9), (3.0, 3.1), "better"),
        ((2.0, 3.1), (3.0, 3.1), "no clear difference"),
        ((3.0, 3.1), (2.0, 3.1), "no clear difference"),
        ((3.0, 3.1), (2.0, 2.9), "worse"),
    ],
)
def test_latency_says_which_is_slower_too(monkeypatch, ours, theirs, verdict):
    monkeypatch.setattr(latency, "BATCHES", (1,))
    times = [latency.Latency(name, "one_step", 1, 0, 1, *ours) for name in ("FPMD-R", "FPMD-M")]
    told = latency.rows((*times, latency.Latency("DPMD", "bon", 640, 32, 1, *theirs)))
    assert [row.verdict for row in told] == [verdict] * 2
    assert all(f"percentiles {ours[1]:.3g} and {theirs[1]:.3g} ms" in row.note for row in told)


def test_latency_times_every_way_once(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "BATCHES", (1,))
    monkeypatch.setattr(
        latency,
        "measure",
        lambda method, mode, batch: latency.Latency(method, mode, 1, 0, batch, 2.0, 3.0),
    )
    part = latency.run(TINY, tmp_path)
    assert len(part.tables[0].rows) == len(latency.WAYS)
    assert {row.verdict for row in part.rows} == {"no clear difference"}


def test_goals_that_are_reached():
    """A policy that goes right comes to one goal; one that draws a direction, to all four."""
    seeds = types.Algorithm(lambda key: None, lambda state: (state, {}), axes=0)
    method = methods.Method(seeds, lambda *_: None, 1, None)
    state = jnp.zeros(2)  # two seeds that know nothing
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
        training._over_seeds(method, training._goals(method._replace(act=act)))(state)
        for act in (nowhere, right, anywhere)
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

        return method.policy.propose(key, params, params, obs, q, jnp.ones(()))[:2]

    obs = jax.ShapeDtypeStruct((7, 2), jnp.float32)
    action, bonus = jax.eval_shape(propose, params, critics, jax.random.key(0), obs)
    assert action.shape == (7, 2) and bonus.shape == (7,)
    assert method.policy.action_size == 2


@pytest.mark.slow
def test_theory_of_one_step():
    """The bound holds along the way; one step of the flow averages, that of MeanFlow does not."""
    course = theory.train(dataclasses.replace(TINY, theory_steps=3000))
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
    one = invented([1.0, 3.0])
    names = {
        ("walker2d", "SAC"),
        ("inverted_pendulum", "DACER"),
        ("ant", "FPMD-R"),
        ("pendulum", "SAC"),
    }
    told = rows._published({key: one for key in sorted(names)})
    assert {(row.metric, row.value, row.paper) for row in told} == {
        ("Return of SAC, walker2d", 2.0, 3233),
        ("Return of DACER, inverted_pendulum", 2.0, 801),
    }
    assert set(published.RETURNS) < set(methods.NAMES)
    assert all(len(x) == len(published.TASKS) for x in published.RETURNS.values())
    assert set(published.TASKS) <= set(envs.TASKS)
