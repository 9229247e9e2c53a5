"""The comparison's own arithmetic, data and refusals; a whole run is slow."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.imitation import (
    PRESETS,
    Config,
    data,
    experts,
    identity,
    imperfect,
    methods,
    rows,
    study,
    training,
)
from jaxlab import imitation

SMALL = dataclasses.replace(
    PRESETS["smoke"], log_episodes=6, episodes=2, trajectories=(2,), width=8, features=8, batch=16
)
THIRDS = ("worst third", "middle third", "best third")


@pytest.fixture(scope="module")
def source():
    return data.make_source(SMALL, "pendulum")


def test_identity_holds_on_a_hundred_processes():
    gaps = identity.measure(3)
    assert gaps.features.shape == (100,) and gaps.features.max() < 1e-10
    assert np.abs(gaps.divergence).max() < 1e-10 and gaps.features.max() > 0.0


def test_scores_are_zero_for_random_and_hundred_for_the_expert(source):
    best = imitation.returns(source.expert).mean()
    scores = data.normalized(source, np.array([source.random, best, 2 * best - source.random]))
    np.testing.assert_allclose(scores, [0.0, 100.0, 200.0])
    assert source.random < best < 0.0


def test_logs_have_six_qualities_and_no_demonstration(source):
    """The better a sixth of the logs is, the more of its actions are the expert's."""
    logs = source.logs
    assert len(np.unique(logs.episode_id)) == 6
    best = 2.0 * np.asarray(imitation.pump_and_balance(jax.numpy.asarray(logs.obs)))
    same = [np.mean(np.abs(best - logs.action)[logs.episode_id == i] < 1e-5) for i in range(6)]
    np.testing.assert_allclose(same, data.QUALITIES, atol=0.12)
    assert imitation.leaking_episodes(source.expert, logs) == {}
    demos = data.demonstrations(source, 2, 0)
    assert demos.first_obs.shape[0] == 2 and demos.logs is not None


def test_own_files_are_judged_in_their_task(source, tmp_path, monkeypatch):
    for name, dataset in (("demo", source.expert), ("logs", source.logs)):
        np.savez(tmp_path / f"{name}.npz", **imitation.to_npz(dataset))
    one = imitation.take_episodes(source.expert, [0])
    np.savez(tmp_path / "one.npz", **imitation.to_npz(one))
    own = dataclasses.replace(
        SMALL,
        expert=str(tmp_path / "demo.npz"),
        logs=str(tmp_path / "logs.npz"),
        env="pendulum",
        backend="jax",
    )
    read = data.make_source(own, data.OWN)
    np.testing.assert_array_equal(read.expert.obs, source.expert.obs)
    assert read.title == "pendulum" and read.env.obs_size == 3
    # Demonstrations that are not drawn are no logs either: they are what policies are judged by.
    mixed = imitation.join([source.logs, imitation.take_episodes(source.expert, [9])])
    np.savez(tmp_path / "mixed.npz", **imitation.to_npz(mixed))
    with pytest.raises(ValueError, match="logs must not hold the expert's episodes, .* episode 9"):
        data.make_source(dataclasses.replace(own, logs=str(tmp_path / "mixed.npz")), data.OWN)
    # Numbers of episodes that there are not are left out, and that is said; one is enough.
    few = dataclasses.replace(own, trajectories=(1, 4, 30))
    assert own.pieces == ("scores",) and data.counts(few, read) == (1, 4)
    assert "than 30" in study._limits(few, read)[-1]
    alone = dataclasses.replace(few, expert=str(tmp_path / "one.npz"), trajectories=(4, 10))
    assert data.counts(alone, data.make_source(alone, data.OWN)) == (1,)
    # Without rewards there is nothing to normalize by: returns stand for scores.
    arrays = imitation.to_npz(one)
    del arrays["reward"]
    np.savez(tmp_path / "one.npz", **arrays)
    bare = data.make_source(alone, data.OWN)
    assert not data.has_rewards(bare) and data.has_rewards(read)
    assert data.normalized(bare, np.array([-7.0])) == -7.0
    assert "returns stand for scores" in study._limits(alone, bare)[-1]
    with pytest.raises(ValueError, match="has observations of 2 and actions of 1 numbers"):
        data.make_source(dataclasses.replace(own, env="linear_quadratic"), data.OWN)
    with pytest.raises(ValueError, match="log_episodes must be a multiple of 6, got 61"):
        data.make_source(dataclasses.replace(SMALL, log_episodes=61), "pendulum")
    with pytest.raises(ValueError, match="trajectories must be at most 20"):
        data.make_source(dataclasses.replace(SMALL, trajectories=(21,)), "pendulum")
    monkeypatch.setattr(data, "RECORDED", tmp_path)
    with pytest.raises(FileNotFoundError, match="walker2d_v5_expert.npz .* make them by --parts"):
        data.make_source(dataclasses.replace(SMALL, recorded=str(tmp_path)), "walker2d_v5")


def test_every_method_can_be_made(source):
    demos = data.demonstrations(source, 2, 0)
    drawn = {
        share: training.pretrain(methods.Features("random", share), demos, SMALL)
        for share in (0.25, 1.0, 4.0)
    }
    for name in methods.NAMES:
        kind = methods.features_of(name)
        given = None if kind is None else drawn[kind.share]
        assert methods.make_method(name, SMALL, demos, given).name
        assert (given is None) == (not name.startswith("ours"))
    last = [drawn[x].params["phi"]["params"]["layer_2"]["kernel"].shape[1] for x in sorted(drawn)]
    assert last == [2, 8, 32]
    # No more features than there are transitions to learn them from.
    many = dataclasses.replace(SMALL, features=1000)
    sizes = [
        methods.make_representation(many, demos, methods.Features(kind)).feature_size
        for kind in ("expert", "union")
    ]
    assert sizes == [400, 1000]


def test_logs_are_taken_by_quality_and_amount(source):
    """Of 6 episodes, one of each quality: a fifth rounds to one; thirds are pairs of qualities."""
    logs = imitation.join([source.logs, source.logs])
    order = np.argsort(np.repeat([*range(6), *range(6)], 200), kind="stable")  # by quality
    logs = logs._replace(
        **{x: getattr(logs, x)[order] for x in ("obs", "action", "next_obs", "reward")}
    )
    found = data.some_logs(logs)
    ids = {name: np.unique(part.episode_id).tolist() for name, part in found.items()}
    assert ids == {
        "6 episodes": [0, 2, 4, 6, 8, 10],
        "worst third": [0, 1, 2, 3],
        "middle third": [4, 5, 6, 7],
        "best third": [8, 9, 10, 11],
    }


def test_bad_settings_are_refused(tmp_path):
    for options, message in (
        ({"num_seeds": 1}, "num_seeds must be at least 2"),
        ({"trajectories": (0,)}, "trajectories must be at least 1"),
        ({"expert": "demo.npz"}, "own data need expert, logs and env, got expert alone"),
        ({"policy_rate": 0.0}, "policy_rate must be positive"),
        ({"penalty_weight": -1.0}, "penalty_weight must be 0 or more, got -1.0"),
        ({"updates": 5, "evaluations": 9}, "updates must be at least evaluations"),
        ({"tasks": ("ant",)}, "tasks must be among pendulum, half_cheetah, .*, got ant"),
        ({"parts": ("experts",)}, "the pendulum's expert is a formula"),
        ({"also": ("pendulum",)}, "also must name other tasks than tasks, got pendulum in both"),
        ({"also": ("ant",)}, "tasks must be among pendulum, .*, got ant"),
        ({"expert_steps": 10}, "expert_steps must be at least 20,000, got 10"),
        (
            {"expert": "a", "logs": "b", "env": "hopper_v5", "parts": ("ratios",)},
            "own data have the part scores alone, got ratios",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Config(**options)
    assert PRESETS["smoke"].pieces == ("identity", "ratios", "scores")
    assert PRESETS["cpu"].pieces == ("identity", "ratios", "scores", "logs")
    with pytest.raises(ValueError, match="methods must be among ours; ValueDICE"):
        study.run(dataclasses.replace(SMALL, methods=("GAIL",)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_say_what_was_measured():
    found = {
        (1, "ours"): outcome([90, 91, 92, 93, 94]),
        (1, "ValueDICE"): outcome([50, 70, 60, 20, 40]),
        (1, "BC"): outcome([91, 92, 93, 94, 90]),
    }
    made = [row for row in rows.rows(found, "hopper") if row.metric.startswith("Score of ours,")]
    told = {row.baseline[0]: row for row in made}
    assert len(told) == len(made) == 2
    assert told["ValueDICE"].verdict == "better" and told["BC"].verdict == "no clear difference"
    assert rows.rows(found, "hopper", "Return")[0].metric == "Return of ours, 1 trajectory, hopper"
    table = rows.table(found, "hopper")
    assert table.rows[0] == ("ours", 92.0, 91.0, 0.092) and table.columns[2] == "Last 1"


def test_rows_of_spread_of_shrinking_and_of_tuned_cloning():
    found = {
        (1, "ours"): outcome([90, 91, 92, 93, 94]),
        (1, "ValueDICE"): outcome([50, 70, 60, 20, 40]),
        (1, "BC"): outcome([91, 92, 93, 94, 90]),
        (1, "BC, regularized"): outcome([81, 82, 83, 84, 80]),
        (10, "ours"): outcome([95, 96, 97, 98, 99]),
        (10, "ValueDICE"): outcome([94, 95, 96, 97, 98]),
        (1, "ours, random features"): outcome([1, 2, 3, 4, 5]),
        (1, "ours, the expert's features"): outcome([11, 12, 13, 14, 15]),
    }
    made = rows.rows(found, "hopper")
    told = {(row.metric, row.baseline[0]): row for row in made}
    assert len(told) == len(made)
    where = "1 trajectory, hopper"
    spread = told[f"Mean distance of a seed's score from their median, {where}", "ValueDICE"]
    assert spread.value == 1.2 and spread.baseline[1] == 14.0  # of 2, 1, 0, 1, 2; 0, 20, 10, ...
    assert spread.verdict == "no clear difference"  # 12.8, and the interval of it is 14 wide
    gain = told[f"Score of ours less ValueDICE's, {where}", "the same with 10 trajectories"]
    assert gain.value == 44.0 and gain.baseline[1] == 1.0 and gain.verdict == "better"
    # The error decides which cloning is the tuned one, the score does not.
    assert rows.tuned(found, 1) == "BC, regularized" and rows.tuned(found, 10) is None
    best = told[f"Score of ours, {where}", "tuned cloning: BC, regularized"]
    assert best.baseline[1] == 82.0 and "by the error" in best.note
    assert study._diverged(found) == []
    found[1, "ours"] = found[1, "ours"]._replace(largest=np.array([2.0, 11.0]))
    (said,) = study._diverged(found)
    assert "of ours came to 2, its penalty on gradients to 11: it diverged" in said
    order = told[f"Score of ours, the expert's features, {where}", "ours, random features"]
    assert order.verdict == "better" and order.baseline[1] == 3.0


def outcome(scores):
    scores = np.asarray(scores, float)
    curve = (np.zeros(1), scores[None])
    return training.Outcome(scores, scores - 1, curve, scores / 1000, np.zeros(2), None, None)


def test_errors_are_those_of_the_expert_s_other_episodes(source):
    """A policy that acts as the expert of twice the torque errs by the mean square torque."""
    demos = data.demonstrations(source, 2, 0)
    left = data.held_out(source, 2, 0, demos)
    given = {tuple(row) for row in np.asarray(demos.expert.obs)}
    assert len(left.obs) == 18 * 200 and not given & {tuple(row) for row in np.asarray(left.obs)}
    found = training._error(np.zeros(3), left, lambda _, obs: 0.0 * obs[:, :1], 3)
    np.testing.assert_allclose(found, np.mean(np.asarray(left.action) ** 2), rtol=1e-5)
    assert data.held_out(source, 20, 0, demos) is None
    assert np.isnan(training._error(np.zeros(3), None, lambda *_: 0.0, 3)).all()


def test_seeds_act_in_their_own_episodes():
    normalizer = imitation.Normalizer(np.array([1.0, -2.0]), np.array([2.0, 0.5]))
    act = training.acting(lambda w, obs: obs[:, :2] * w, normalizer, 3)
    obs, w = np.arange(12.0).reshape(6, 2), np.array([1.0, 10.0, 100.0])
    want = (obs + normalizer.shift) * normalizer.scale * np.repeat(w, 2)[:, None]
    found = act(jax.random.key(0), jax.numpy.asarray(w), jax.numpy.asarray(obs))
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_recorded_snapshots_are_those_of_each_quality():
    """The best one, and of those before it the nearest to each share of the way there."""
    returns = np.array([0.0, 11.0, 5.0, 42.0, 22.0, 61.0, 79.0, 100.0, 82.0])
    assert experts.nearest(returns) == (7, [0, 1, 4, 3, 5, 6])


@pytest.mark.parametrize(
    ("name", "size", "steps"),
    [("half_cheetah", 17, 120_000), ("hopper_v5", 11, 300_000), ("walker2d_v5", 17, 800_000)],
)
def test_recorded_experts_are_experts_and_logs_get_better(name, size, steps):
    """The sets of the repository: returns as their headers say, six qualities, no leak."""
    expert, logs = (
        imitation.read_npz(data.RECORDED / f"{name}_{kind}.npz") for kind in ("expert", "logs")
    )
    returns = imitation.returns(expert)
    assert len(returns) == experts.EXPERT_EPISODES and expert.about["backend"] == "c"
    assert int(expert.about["policy"].split()[2]) <= steps
    assert returns.mean() > experts.ENOUGH[name]
    np.testing.assert_allclose(np.median(returns), expert.about["return"], rtol=0.05)
    means = imitation.returns(logs).reshape(len(data.QUALITIES), experts.LOG_EPISODES).mean(axis=1)
    assert means[0] < means[1:].min() and means[-1] > means[0] + 450.0
    demos = imitation.prepare(imitation.take_episodes(expert, [0]), logs)
    assert demos.obs_size == size + 1 and not demos.expert.terminated.any()


@pytest.mark.slow
def test_smoke_run_is_kept_and_read(tmp_path, optax_promotes):
    config = PRESETS["smoke"]
    result = study.run(config, tmp_path)
    first = {row.metric: row.value for row in result.rows}
    assert first["Error of Q in the features"] < 1e-10
    again = study.run(config, tmp_path)
    assert {row.metric: row.value for row in again.rows} == first
    assert (tmp_path / "scores_pendulum.png").exists() and (tmp_path / "ratios.png").exists()
    json.dumps([row.verdict for row in result.rows])


@pytest.mark.slow
def test_logs_and_features_are_shown(tmp_path, optax_promotes):
    """Parts of the logs, numbers of episodes, and a task beside: what is trained on which."""
    config = dataclasses.replace(
        SMALL,
        parts=("scores", "logs"),
        methods=("ours", "ILID", "ours, random features"),
        trajectories=(1, 2),
        pretraining=20,
        updates=4,
        evaluations=2,
    )
    result = study.run(config, tmp_path)
    kept = {path.stem for path in (tmp_path / "units").glob("*.npz")}
    cases = {"1", "2", *(f"1, {x}" for x in ("6 episodes", *THIRDS))}
    for name in ("ours", "ILID", "features--union"):
        assert {f"pendulum--{case}--{name}" for case in cases} <= kept
    # Variants learn from the fewest episodes alone.
    assert "pendulum--1--ours, random features" in kept
    assert "pendulum--2--ours, random features" not in kept
    claims = [row.claim for row in result.rows]
    assert claims.count(imperfect.CLAIM) == 4
    pictures = ("trajectories", "scores", "features", "logs")
    assert [figure.path for figure in result.figures] == [f"{x}_pendulum.png" for x in pictures]
    assert all((tmp_path / figure.path).exists() for figure in result.figures)
    features = result.tables[1]
    assert [line[0] for line in features.rows] == ["all data", "not learned"]
    assert study.run(config, tmp_path).rows == result.rows
