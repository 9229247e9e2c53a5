"""The study of teams: what is played, counted and seen, and what is left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.discrete_diffusion import Config
from experiments.discrete_diffusion.parts import control, control_told, teams
from jaxlab import envs
from jaxlab.core.types import Algorithm

pytestmark = pytest.mark.usefixtures("optax_promotes")
TINY = Config(
    num_seeds=2,
    parts=("teams",),
    team_games=("3v1",),
    team_frames=4096,
    control_rates=(1e-3, 1e-2),
    tuning_seeds=2,
    evaluations=2,
    num_steps=2,
    width=8,
    num_layers=1,
)


def test_goals_are_counted_as_they_are_and_steps_as_those_of_the_game(tmp_path):
    """A carrier written by hand, who would be paid for running in training."""

    def act(state, key, obs):
        return envs.run_and_shoot(obs.reshape(*obs.shape[:-1], 3, -1))

    def init(key, settings):
        return {"count": settings["learning_rate"]}

    def step(state):
        state = {"count": state["count"] + 1.0}
        return state, {"train/count": state["count"]}

    game, size = teams.make_games(TINY)["3v1"]
    method = control.Method(Algorithm(init, step), act, 64, 0)
    game = game._replace(methods={"carrier": lambda *_: method})
    what = control.Run("3v1", size, "carrier", 4096, 2, 0, {"learning_rate": 0.0})
    found = control.train(what, game, TINY, tmp_path)
    # Goals alone: whole ones of 32 games; three standard errors of the share .77.
    np.testing.assert_allclose(found.final * 32, np.round(found.final * 32), atol=1e-4)
    assert (np.abs(found.final - 0.77) < 3 * np.sqrt(0.77 * 0.23 / 32)).all()
    np.testing.assert_array_equal(found.curve[0], [2048, 4096])


@pytest.mark.parametrize("name", teams.NAMES)
def test_every_method_takes_its_learning_rate_and_gives_each_agent_a_choice(name):
    game, size = teams.make_games(TINY)["3v1"]
    method = control.make_method(name, game, size, TINY.team_frames, TINY)
    setting, candidates = control.sweep(name, TINY)
    method.algorithm.check({setting: np.asarray(candidates)})
    start = jax.eval_shape(method.algorithm.init, jax.random.key(0))
    obs = jnp.zeros((4, *game.obs_shape))
    tokens = jax.eval_shape(method.act, start, jax.random.key(0), obs)
    assert tokens.shape == (4, 3) and tokens.dtype == jnp.int32
    assert control.ENVS * method.macros <= TINY.team_frames // 4  # of tuning


def test_the_value_of_mappo_sees_all_and_that_of_ippo_one():
    key = jax.random.key(0)
    spread = envs.simple_spread(3)
    alone, seen = (x.reset(key)[1] for x in (spread, teams.seen_by_all(spread)))
    np.testing.assert_array_equal(seen["all"], alone.ravel())
    np.testing.assert_array_equal(seen["own"], alone)
    task = envs.football(3, 1)
    for together, shape in ((False, (2, 3)), (True, (2,))):
        env = envs.make_env(teams.seen_by_all(task) if together else task, 2)
        obs = jax.eval_shape(env.reset, key).obs
        assert envs.actor_obs(env, obs).shape == (2, 3, task.obs_size)
        nets = teams.networks(env, together)
        params = jax.eval_shape(nets.init, key, key)
        assert jax.eval_shape(nets.value, params, obs).shape == shape


def test_what_is_told_is_what_was_found_and_what_is_not_installed_is_said(tmp_path, monkeypatch):
    asked = []

    def train(what, game, config, folder):
        asked.append((what.game, what.length, what.method, what.frames, what.seed))
        ((_, rate),) = what.values.items()
        final = np.full(2, 0.5 if what.method == "IPPO" else rate)
        return control_told.Outcome(final, (np.array([4096]), final[None]))

    def absent(name):
        raise ImportError("no such library")

    monkeypatch.setattr(control, "train", train)
    monkeypatch.setattr(teams, "_smax", absent)
    config = dataclasses.replace(
        TINY, team_games=("spread", "3m"), methods=("R2 ratios", "IPPO"), tuning_seeds=2
    )
    part = teams.run(config, tmp_path)
    assert asked[0] == ("spread", 3, "R2 ratios", 1024, config.seed + 1000)
    assert asked[-1] == ("spread", 3, "IPPO", 4096, config.seed) and len(asked) == 6
    (row,) = part.rows
    assert row.metric == "Return of R2 ratios, simple spread"
    assert row.value == pytest.approx(1e-2) and row.baseline == ("IPPO", 0.5)
    assert part.tables[0].rows[0] == ("R2 ratios", 0.01, "learning rate 0.01")
    assert any("SMAX 3m was left out: it needs jaxmarl" in limit for limit in part.limits)
    with pytest.raises(ValueError, match="the games 3m need jaxmarl"):
        teams.run(dataclasses.replace(config, team_games=("3m",)), tmp_path)
    with pytest.raises(ValueError, match="team_games must be among 3v1"):
        teams.run(dataclasses.replace(config, team_games=("chess",)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("game", ["3v1", "spread"])
def test_a_small_study_runs_and_a_second_one_reads_it(tmp_path, monkeypatch, game):
    config = dataclasses.replace(TINY, team_games=(game,), tuning_seeds=0)
    first = teams.run(config, tmp_path)
    assert [row[0] for row in first.tables[0].rows] == list(teams.NAMES)
    assert all(np.isfinite(row[1]) for row in first.tables[0].rows)

    def fail(*args):
        raise AssertionError("a finished unit was trained again")

    monkeypatch.setattr(control, "train", fail)
    again = teams.run(config, tmp_path)
    assert [(r.metric, r.value) for r in again.rows] == [(r.metric, r.value) for r in first.rows]
