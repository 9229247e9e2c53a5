"""The study of optimism: rows are what was measured, own payoffs, refusals."""

import dataclasses
import sys

import numpy as np
import pytest

from experiments.harness import store
from experiments.optimistic_marl import PRESETS, Config, games, networks, rows, study, training
from jaxlab import envs
from jaxlab.core import loop

TINY = Config(
    parts=("exact", "sampled"), betas=(0.0, 1.0), starts=6, play_steps=400, num_seeds=3, updates=20
)


def test_own_payoffs_are_played_and_a_second_run_computes_nothing(tmp_path, monkeypatch):
    """Stag and hare: from any start an optimist hunts the stag together; values are the table's."""
    path = tmp_path / "payoff.csv"
    path.write_text("4,-20\n-20,1\n")
    config = dataclasses.replace(TINY, payoff=str(path))
    out = tmp_path / "run"
    found = study.run(config, out)
    row = next(row for row in found.rows if "exact play" in row.metric)
    assert row.value == 100.0 and row.unit == "%"
    table = next(table for table in found.tables if table.title == "Exact play by beta")
    assert table.rows[1][:2] == ("own game", "value")
    np.testing.assert_allclose(table.rows[1][3], 4.0, atol=0.1)
    assert {figure.path for figure in found.figures} == {"joint.png", "success.png"}

    def fail(*args, **options):
        raise AssertionError("a finished unit was computed again")

    monkeypatch.setattr(loop, "_compile_chunk", fail)
    assert study.run(config, out).rows == found.rows
    path.write_text("4,-20\n-20,2\n")  # another game under the same name
    with pytest.raises(ValueError, match="holds the unit exact/own game with args"):
        study.run(config, out)


def test_every_beta_has_the_same_starts(tmp_path):
    """So that differences are paired: before the first step all betas are worth the same."""
    ends = training.exact(
        envs.climbing(), (0.0, 0.5), tmp_path, starts=4, steps=2, rate=1e-6, scale=1.0, seed=0
    )
    np.testing.assert_allclose(ends.score[0], ends.score[1], rtol=1e-3)
    assert np.ptp(ends.score[0]) > 0.5
    np.testing.assert_allclose(ends.chance, envs.games.CLIMBING.mean(), rtol=1e-5)
    np.testing.assert_allclose(ends.optimum, 11.0, rtol=1e-6)


def test_success_is_measured_against_chance_and_optimum():
    none = np.zeros(0)
    ends = training.Ends(
        np.array([0.0]), np.array([[10.0, 9.7, 9.6]]), np.array(10.0), np.array(0.0), none, none
    )
    assert ends.success.tolist() == [[1.0, 1.0, 0.0]]


def test_strangers_are_all_pairs_but_the_own_one():
    payoff = np.array([[10.0, 1.0, 3.0], [2.0, 20.0, 4.0], [5.0, 6.0, 30.0]])
    assert rows._with_strangers(payoff).tolist() == [2.0, 3.0, 5.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3\n", "line 2: rows must have equally many payoffs, got 1 after 2"),
        ("1,2\n3,x\n", "line 2: payoff must be a finite number, got 'x'"),
        ("1,2\n3,nan\n", "line 2: payoff must be a finite number, got 'nan'"),
        ("1,2\n", "both agents need two actions at least, got 1 by 2"),
        ("\n", "got 0 by 0"),
    ],
)
def test_payoffs_that_are_none(tmp_path, text, message):
    path = tmp_path / "payoff.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        games.read_payoff(str(path))


def test_networks_say_when_jaxmarl_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxmarl", None)
    config = dataclasses.replace(
        PRESETS["gpu"], deep_tasks=("spread", "smax"), deep_steps=(4096, 4096)
    )
    with pytest.raises(ValueError, match="'smax' needs jaxmarl .*leave it out of --deep-tasks"):
        study.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refusals():
    with pytest.raises(ValueError, match="betas must be several, with 0.0 among them"):
        Config(betas=(0.5, 1.0))
    with pytest.raises(ValueError, match="games must be among climbing; .*got 'chess'"):
        games.sampled_games("", ("chess",))
    with pytest.raises(ValueError, match="deep_steps must be at least 4096 for each"):
        Config(deep_steps=(4096,))
    assert PRESETS["cpu"].deep_seeds >= 10


@pytest.mark.slow
def test_ball_and_strangers(tmp_path):
    found = training.ball("Hysteretic Q", (0.1,), tmp_path / "ball", seeds=2, trials=2, seed=0)
    assert found.returns.shape[1] == 2 and np.all(found.greedy <= 667.0)
    met = training.strangers(envs.climbing(), (-0.5, 0.5), tmp_path / "met", seeds=3, seed=0)
    assert met.payoff.shape == (2, 3, 3)
    np.testing.assert_allclose(np.diagonal(met.payoff[1]).max(), 11.0, rtol=0.01)


def test_settings_are_chosen_by_other_seeds(tmp_path):
    """What is worth most there is told, also where a seed is lost; IPPO's rate is everybody's."""

    def compute(name, values, folder, *, seeds, seed, shift):
        worth = np.repeat(np.array(values), seeds) + shift
        worth[0] = np.nan if seed >= study.APART and name == "b" else worth[0]
        return training.Greedy(worth, np.array(float(seed)))

    found, chosen = study._tuned(
        dataclasses.replace(TINY, seed=7),
        tmp_path,
        "toy",
        {"a": (1.0, 3.0, 2.0), "b": (5.0, 4.0)},
        compute,
        {"shift": 0.5},
        (3, 2),
        training.Greedy,
        lambda one: one.value,
    )
    assert chosen == {"a": 3.0, "b": 4.0}
    assert found["a"].value.tolist() == [3.5] * 3 and found["a"].optimum == 7.0


@pytest.mark.slow
def test_rules_of_q_learning_and_networks(tmp_path, optax_promotes):
    """Distributed learners find 11 where payoffs are certain; tables name what was chosen."""
    config = dataclasses.replace(
        TINY,
        parts=("rules", "deep"),
        games=("climbing",),
        num_seeds=6,
        plays=2000,
        deep_tasks=("predators",),
        deep_steps=(4096,),
        deep_seeds=2,
        tuning_seeds=1,
    )
    found = study.run(config, tmp_path / "run")
    played, learned = found.tables
    success = {row[1]: row[3] for row in played.rows}
    assert success["Distributed Q"] == 100.0 and success.keys() == training.MATRIX_RULES.keys()
    rate = float(learned.rows[0][1].removeprefix("learning_rate "))
    assert rate in config.tuning_rates
    (kept,) = tmp_path.glob("run/units/*Op-IPPO.npz")
    assert store.load(kept, networks.Deep)[1]["rate"] == rate
