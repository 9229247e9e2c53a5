"""The study of regulatory DNA: calls are those that are made, and tuning sees no truth."""

import dataclasses
import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.discrete_diffusion import Config
from experiments.discrete_diffusion.parts import dna
from jaxlab.core import loop, types
from jaxlab.rl import discrete
from jaxlab.rl.discrete import DnaReport, Surrogate

pytestmark = pytest.mark.usefixtures("optax_promotes")
TINY = Config(
    num_seeds=2,
    parts=("dna",),
    dna_length=16,
    dna_corpus=400,
    dna_hidden=4,
    dna_pretraining=4,
    dna_steps=3,
    dna_calls=1280,
    dna_rates=(1e-3, 1e-2),
    tuning_seeds=2,
    evaluations=2,
)


@pytest.fixture
def plain(monkeypatch):
    """Independent bases in place of the network, which takes long to compile."""
    policy = discrete.make_factored_policy(4, TINY.dna_length)
    monkeypatch.setattr(dna, "make_policy", lambda config: policy)
    monkeypatch.setattr(dna, "POLICIES", {"diffusion": lambda config: policy})
    return policy


@pytest.mark.parametrize("name", dna.GUIDED)
def test_a_method_makes_as_many_calls_as_it_says(name, monkeypatch, plain):
    monkeypatch.setattr(dna, "DRAWS", 32)
    calls = []

    def reward(tokens):
        jax.debug.callback(lambda n: calls.append(int(n)), tokens.shape[0])
        return jnp.sum(tokens, axis=-1).astype(jnp.float32)

    monkeypatch.setattr(dna, "_reward", lambda ground: reward)
    priors = {"diffusion": plain.init(jax.random.key(0))}
    choose, told = dna.GUIDED[name](dna.Ground(priors, None, None, None, {}), TINY)
    tokens = jax.jit(choose)(jax.random.key(1))
    jax.effects_barrier()
    assert sum(calls) == told <= 1.2 * TINY.dna_calls
    assert tokens.shape == (32, 16) and 0 <= int(tokens.min()) <= int(tokens.max()) < 4


def test_svdd_chooses_among_ten_candidates_however_few_calls_there_are(monkeypatch):
    asked = {}
    monkeypatch.setattr(discrete, "svdd", lambda *args, **options: asked.update(options))
    ground = dna.Ground({"diffusion": ()}, None, None, None, {})
    for steps, calls, number in ((16, 10_240, 10), (2, 64_000, 49)):
        config = dataclasses.replace(TINY, dna_steps=steps, dna_calls=calls)
        choose, told = dna.GUIDED["SVDD"](ground, config)
        with pytest.raises(AttributeError):  # nothing was drawn
            choose(jax.random.key(0))
        assert asked["num_candidates"] == number
        assert told == (number * steps + 1) * dna.DRAWS


def test_drakes_learns_from_batches_of_the_published_size(monkeypatch):
    """All its calls, in steps as small: 32 sequences at a time, four times."""
    asked, ran = {}, {}

    def stop(algorithm, key, **options):
        ran.update(options)
        raise loop.NonFiniteError("stopped")

    monkeypatch.setattr(discrete, "drakes", lambda *args, **options: asked.update(options))
    monkeypatch.setattr(dna, "over_seeds", lambda algorithm, num_seeds: algorithm)
    monkeypatch.setattr(loop, "run", stop)
    ground = dna.Ground({"diffusion": ()}, None, None, None, {})
    for name, batch in (("DRAKES", 128), ("FKL", 256)):
        monkeypatch.setitem(dna.TRAINED, "FKL", lambda *args: None)
        judged = dna.fine_tune(name, 1e-3, TINY, 2, 0, ground, pathlib.Path())
        assert judged.calls == 1280 == batch * ran["num_steps"]
    assert asked["batch"] == 32 and asked["num_batches"] == 4


def invented(reward, judge, activity):
    report = dict.fromkeys(DnaReport._fields, np.full(2, 0.5))
    report |= {
        "reward": np.asarray(reward, float),
        "judge": np.asarray(judge, float),
        "activity": np.asarray(activity, float),
    }
    return dna.Judged(
        report, 640, (np.zeros(0), np.zeros((0, 2))), np.ones(64), np.ones((12, 15, 4)), 20
    )


def test_rates_are_chosen_by_the_judge_and_not_by_the_truth(tmp_path, monkeypatch):
    asked = []

    def fine_tune(name, rate, config, seeds, seed, ground, folder):
        asked.append((name, rate, seed, seeds, config.dna_calls))
        judge = 5.0 if rate == 1e-2 else 1.0
        return invented([9, 9], [judge, judge], [0, 0] if rate == 1e-2 else [8, 8])

    natural = dict.fromkeys(DnaReport._fields, np.float32(0.5))
    oracle = Surrogate(*[np.zeros(1)] * 3, np.float32(0.7))
    ground = dna.Ground({}, oracle, oracle, np.zeros((3, 16), np.int32), natural)
    monkeypatch.setattr(dna, "fine_tune", fine_tune)
    monkeypatch.setattr(dna, "prepare", lambda config, folder: ground)
    config = dataclasses.replace(TINY, methods=("FKL", "factored", "SMC"))
    part = dna.run(config, tmp_path)
    assert asked == [
        *(("FKL", rate, config.seed + 1000, 2, 640) for rate in config.dna_rates),
        *(("factored", 10 * rate, config.seed + 1000, 2, 640) for rate in config.dna_rates),
        ("FKL", 1e-2, config.seed, 2, 1280),
        ("factored", 1e-2, config.seed, 2, 1280),
        ("pre-trained", 0.0, config.seed, 2, 1280),
        ("SMC", 0.0, config.seed, 2, 1280),
    ]
    gap = next(row for row in part.rows if "reward less" in row.metric and "FKL" in row.metric)
    assert gap.value == pytest.approx(9.0)
    cells = {cells[0]: cells for cells in part.tables[0].rows}
    assert cells["FKL"][1:4] == (9.0, 5.0, 0.0) and cells["FKL"][-1] == 1e-2


class Fragile(NamedTuple):
    """Parameters, and whether the next step is not finite."""

    params: Any
    breaks: jax.Array


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_seed_that_blows_up_has_no_figures(tmp_path, monkeypatch, share, plain):
    """Its parameters could still be drawn from."""
    monkeypatch.setattr(dna, "DRAWS", 8)
    monkeypatch.setattr(dna, "_judge", lambda *_: lambda tokens: DnaReport(*[jnp.ones(())] * 9))

    def init(key):
        params = plain.init(key)
        return Fragile(params, jax.random.uniform(jax.random.fold_in(key, 1)) < share)

    def step(state):
        return state, {"reward/mean": jnp.where(state.breaks, jnp.nan, 1.0)}

    monkeypatch.setattr(dna, "TRAINED", {"FKL": lambda *_: types.Algorithm(init, step)})
    ground = dna.Ground({}, None, None, np.zeros((3, 16), np.int32), {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # which seed froze
        found = dna.fine_tune("FKL", 1e-3, TINY, 6, 0, ground, tmp_path)
    lost = np.isnan(found.report["activity"])
    assert lost.all() if share == 1.0 else 0 < lost.sum() < 6
    np.testing.assert_array_equal(found.report["activity"][~lost], 1.0)
    assert found.trimers.sum() == (~lost).sum() * 8 * 14


@pytest.mark.slow
def test_a_small_study_runs_and_a_second_one_reads_it(tmp_path, monkeypatch):
    names = ("FKL", "factored", "autoregressive", "DRAKES")
    config = dataclasses.replace(TINY, methods=names, width=8, num_layers=1, tuning_seeds=0)
    first = dna.run(config, tmp_path)
    assert {cells[0] for cells in first.tables[0].rows} == {"corpus", *names, "pre-trained"}
    for row in first.tables[0].rows:
        assert all(np.isfinite(x) for x in row[1:-1])

    def fail(*args):
        raise AssertionError("a finished unit was computed again")

    monkeypatch.setattr(dna, "fine_tune", fail)
    monkeypatch.setattr(dna, "prepare", fail)
    again = dna.run(config, tmp_path)
    assert [(r.metric, r.value) for r in again.rows] == [(r.metric, r.value) for r in first.rows]
