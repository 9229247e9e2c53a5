"""The study of macro-actions: what is played and counted, tuning, what is left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.discrete_diffusion import Config, training
from experiments.discrete_diffusion.parts import control, control_told
from jaxlab import envs
from jaxlab.core.types import Algorithm

pytestmark = pytest.mark.usefixtures("optax_promotes")
TINY = Config(
    num_seeds=2,
    parts=("control",),
    control_games=("deep_sea",),
    control_glances=(),
    control_lengths=(1, 2),
    control_frames=4096,
    control_rates=(1e-3, 1e-2),
    tuning_seeds=2,
    evaluations=2,
    width=8,
    num_layers=1,
)


def test_who_knows_the_way_has_the_best_return_there_is(tmp_path, monkeypatch):
    """Seeds that go right, and seeds that go left; frames are those of all games."""
    length = 4
    rights = jnp.asarray(envs.deep_sea_rights(control.SIZE))

    def act(state, key, obs):
        cell = jnp.argmax(obs, axis=-1)
        row, column = cell // control.SIZE, cell % control.SIZE
        way, last = jnp.arange(length)[None], control.SIZE - 1
        rows, columns = (jnp.minimum(x[:, None] + way, last) for x in (row, column))
        columns = jnp.where(state["wise"], columns, jnp.maximum(column[:, None] - way, 0))
        right = rights[rows, columns]
        return jnp.where(state["wise"], right, 1 - right).astype(jnp.int32)

    def init(key, settings):
        return {"wise": settings["learning_rate"] > 0.5, "count": jnp.zeros((), jnp.int32)}

    def step(state):
        state = state | {"count": state["count"] + 1}
        return state, {"train/count": state["count"].astype(jnp.float32)}

    method = control.Method(Algorithm(init, step), act, 8, 32)
    monkeypatch.setattr(control, "METHODS", {"known": lambda *_: method})
    game = control.make_games(TINY)["deep_sea"]
    for rate, best in ((1.0, envs.deep_sea_optimum(control.SIZE)), (0.0, 0.0)):
        what = control.Run("deep_sea", length, "known", 4096, 2, 0, {"learning_rate": rate})
        found = control.train(what, game, TINY, tmp_path / str(rate))
        np.testing.assert_allclose(found.final, best, atol=1e-6)
        frames = np.asarray(found.curve[0])
        a_step = 8 * control.ENVS * length
        assert frames[-1] == 32 * length + (4096 - 32 * length) // a_step * a_step <= 4096


@pytest.mark.parametrize("name", control.NAMES)
def test_every_method_takes_the_setting_that_it_chooses_and_plays_no_more_than_its_frames(name):
    game = control.make_games(TINY)["deep_sea"]
    for length in (1, 8):
        method = control.make_method(name, game, length, TINY.control_frames, TINY)
        setting, candidates = control.sweep(name, TINY)
        method.algorithm.check({setting: np.asarray(candidates)})
        assert len(candidates) == 2
        start = jax.eval_shape(method.algorithm.init, jax.random.key(0))
        obs = jnp.zeros((3, control.SIZE**2))
        tokens = jax.eval_shape(method.act, start, jax.random.key(0), obs)
        assert tokens.shape == (3, length) and tokens.dtype == jnp.int32
        assert (method.warmup + control.ENVS * method.macros) * length <= TINY.control_frames


def test_settings_are_chosen_on_other_seeds_and_fewer_steps(tmp_path, monkeypatch):
    """By length; one that loses a seed is not taken, and all is told."""
    asked = []

    def train(what, game, config, folder):
        asked.append((what.length, what.method, what.frames, what.seed, what.num_seeds))
        ((_, rate),) = what.values.items()
        final = [0.5, 0.5]
        if what.seed and what.method == "DQN":
            final = [0.9, np.nan] if (rate > 5e-3) == (what.length == 1) else [0.1, 0.1]
        return control_told.Outcome(np.array(final), (np.array([4096]), np.array([final])))

    monkeypatch.setattr(control, "train", train)
    config = dataclasses.replace(TINY, methods=("DQN", "R2 ratios"))
    part = control.run(config, tmp_path)
    pairs = [(k, name) for k in (1, 2) for name in ("R2 ratios", "DQN")]
    assert asked == [
        *((k, name, 1024, config.seed + 1000, 2) for k, name in pairs for _ in range(2)),
        *((k, name, 4096, config.seed, 2) for k, name in pairs),
    ]
    cells = {row[0]: row for row in part.tables[0].rows}
    assert cells["DQN"] == ("DQN", 0.5, 0.5, "critic learning rate 0.001, 0.01")
    assert cells["R2 ratios"][-1] == "learning rate 0.001, 0.001"
    best = envs.deep_sea_optimum(control.SIZE)
    assert cells["the best there is"][1:3] == (round(best, 4),) * 2
    share = next(row for row in part.rows if row.metric.startswith("Share of the best return"))
    assert share.value == pytest.approx(50.0 / best) and share.metric.endswith("K = 2")
    compared = [row for row in part.rows if row.baseline and row.baseline[0] == "DQN"]
    assert len(compared) == 2 and compared[0].verdict == "too few seeds"
    assert [figure.path for figure in part.figures] == ["macros.png"]


def test_games_that_are_looked_at_have_two_seeds_no_tuning_and_no_rows(tmp_path, monkeypatch):
    asked = []

    def train(what, game, config, folder):
        asked.append((what.game, what.num_seeds, what.seed))
        return control_told.Outcome(np.ones(2), (np.array([4096]), np.ones((1, 2))))

    monkeypatch.setattr(control, "train", train)
    monkeypatch.setattr(control, "GAMES", {**control.GAMES, "asterix": control.GAMES["deep_sea"]})
    config = dataclasses.replace(
        TINY,
        methods=("DQN", "R2 ratios"),
        control_glances=("asterix",),
        control_lengths=(1,),
        num_seeds=5,
    )
    part = control.run(config, tmp_path)
    assert asked.count(("asterix", 2, config.seed)) == 2
    assert ("deep_sea", 5, config.seed) in asked
    assert {seed for game, _, seed in asked if game == "asterix"} == {config.seed}
    assert [table.title for table in part.tables] == [
        "Macro-actions, deep sea",
        "Macro-actions, Asterix",
    ]
    assert not any("Asterix" in row.metric for row in part.rows)
    assert any(limit.startswith("Only looked at") for limit in part.limits)
    both = dataclasses.replace(config, control_games=("deep_sea", "asterix"))
    part = control.run(both, tmp_path / "both")
    assert any("Asterix" in row.metric for row in part.rows)
    assert not any(limit.startswith("Only looked at") for limit in part.limits)


def test_what_cannot_be_listed_or_played_is_left_out_and_said_to_be(tmp_path, monkeypatch):
    def train(what, game, config, folder):
        return control_told.Outcome(np.ones(2), (np.array([4096]), np.ones((1, 2))))

    def absent():
        raise ImportError("no such library")

    monkeypatch.setattr(control, "train", train)
    monkeypatch.setattr(control, "GAMES", {**control.GAMES, "breakout": absent})
    config = dataclasses.replace(
        TINY,
        methods=("DQN",),
        control_games=("deep_sea", "breakout"),
        control_lengths=(8, 13),
        tuning_seeds=0,
    )
    part = control.run(config, tmp_path)
    assert part.tables[0].columns == ("Method", "K = 8", "Settings")
    assert any("DQN is left out" in limit for limit in part.limits)
    assert any("Breakout was left out" in limit for limit in part.limits)
    assert "No method is tuned." in part.limits
    with pytest.raises(ValueError, match="need gymnax"):
        control.run(dataclasses.replace(config, control_games=("breakout",)), tmp_path)
    with pytest.raises(ValueError, match="control_games must be among deep_sea, breakout"):
        control.run(dataclasses.replace(config, control_games=("chess",)), tmp_path)


def test_what_is_stored_of_other_parts_does_not_depend_on_games():
    other = dataclasses.replace(TINY, control_frames=8192, control_lengths=(4,))
    settings = [training.settings("parity", "FKL", c, {}) for c in (TINY, other)]
    assert settings[0] == settings[1] and not any("control" in name for name in settings[0])


@pytest.mark.parametrize(
    "options",
    [
        {"control_lengths": ()},
        {"control_lengths": (0, 1)},
        {"control_games": ()},
        {"control_frames": 0},
        {"control_rates": (-1.0,)},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        dataclasses.replace(TINY, **options)
