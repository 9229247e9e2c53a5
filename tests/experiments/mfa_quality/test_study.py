"""The quality study: its tasks by hand, models of equal size, runs in one program, resuming."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.harness import drawing, result, store
from experiments.mfa_quality import PRESETS, Config, figures, methods, rows, study, tasks, training
from jaxlab.core import loop

TINY = Config(
    num_seeds=5,
    learning_rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),  # as many as seeds: one compiled program
    tasks=("recall",),
    variants=("MHA", "MFA"),
    num_layers=1,
    recall_length=8,
    pairs=(1, 3),
    tokens=64,
    num_steps=20,
    eval_batches=2,
)


def test_recall_asks_for_values_that_were_told(key):
    batch = jax.tree.map(np.asarray, tasks.recall(key, 200, length=32, pairs=(2, 8)))
    counts = set()
    for tokens, targets, weight in zip(*batch, strict=True):
        keys, values = tokens[0::2], tokens[1::2]
        count = len(set(keys))
        counts.add(count)
        assert len(set(keys[:count])) == count  # told once each, then asked
        told = dict(zip(keys[:count], values[:count], strict=True))
        assert keys.max() < tasks.NUM_KEYS <= values.min()
        assert [told[k] for k in keys] == values.tolist()
        np.testing.assert_array_equal(targets[:-1], tokens[1:])
        np.testing.assert_array_equal(weight[0::2], np.arange(16) >= count)
        assert weight[1::2].sum() == 0
    # A count may be lower than drawn only in a sequence too short to tell; here it never is.
    assert counts == set(range(2, 9))


def test_windows_are_pieces_of_the_text(key):
    text = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)
    batch = tasks.windows(jnp.asarray(text), key, 20, length=30)
    pieces = {text[i : i + 31].tobytes() for i in range(470)}
    for tokens, targets in zip(np.asarray(batch.tokens), np.asarray(batch.targets), strict=True):
        whole = np.concatenate([tokens, targets[-1:]]).astype(np.uint8)
        assert whole.tobytes() in pieces
        np.testing.assert_array_equal(tokens[1:], targets[:-1])


def test_the_library_is_text_and_what_is_held_out_is_not_trained_on():
    train, tune, test = (part.tobytes() for part in tasks.standard_library())
    for held_out in (tune, test):
        assert 4 < len(train) / len(held_out) < 20
        assert b"def " in train and b"def " in held_out
        middle = len(held_out) // 2
        assert held_out[middle : middle + 400] not in train
    assert test[middle : middle + 400] not in tune


@pytest.mark.parametrize("width", [64, 128])
def test_models_have_equal_parameters_and_the_caches_they_say(width):
    models = {name: methods.make_model(name, width, 2) for name in methods.TABLE}
    sizes = np.array([model.num_parameters for model in models.values()])
    assert np.ptp(sizes) / sizes[0] < 0.01
    share = {"MHA": 2.0, "GQA": 1.0, "MQA": 0.5, "MLA": 0.5, "MFA": 0.5, "MFA-KR": 0.25}
    assert {name: model.cached / width for name, model in models.items()} == share
    for model in models.values():
        caches = jax.eval_shape(lambda m=model: m.decoder.init_caches(1, 1))
        assert sum(x.size for x in jax.tree.leaves(caches)) == model.decoder.cached
        assert model.decoder.cached == 2 * model.cached


def test_a_decoder_with_caches_is_the_decoder(key):
    """Every attention, token by token and all at once."""
    tokens = jax.random.randint(key, (2, 6), 0, 256)
    for name in methods.TABLE:
        model = methods.make_model(name, 64, 2).decoder

        @jax.jit
        def both(params, model=model):
            def step(caches, t):
                pos = jnp.broadcast_to(t, (2, 1))
                read = jax.lax.dynamic_slice_in_dim(tokens, t, 1, axis=1)
                logits, caches = model.apply(params, read, pos, caches)
                return caches, logits[:, 0]

            steps = jax.lax.scan(step, model.init_caches(2, 8), jnp.arange(6))[1]
            return model.apply(params, tokens)[0], jnp.swapaxes(steps, 0, 1)

        whole, steps = both(model.init(key))
        np.testing.assert_allclose(steps, whole, atol=2e-5, err_msg=name)


def test_loss_is_bits_where_they_count():
    """Logits that are all equal: 8 bits of 256 tokens; a sure right answer: none."""
    sure = np.zeros((1, 3, 256), np.float32)
    sure[0, 0, 7], sure[0, 1, 9] = 100.0, 100.0
    model = methods.make_model("MHA", 64, 1)
    fake = model._replace(
        decoder=model.decoder._replace(apply=lambda params, tokens: (jnp.asarray(params), None))
    )
    tokens = jnp.zeros((1, 3), jnp.int32)
    data = tasks.Batch(tokens, jnp.asarray([[7, 8, 3]]), jnp.asarray([[1.0, 0.0, 1.0]]))
    loss, wrong = training.losses(fake, sure, data)
    np.testing.assert_allclose(loss, 8.0 / 2, rtol=1e-6)  # nothing for the first, 8 for the last
    np.testing.assert_allclose(wrong, 0.5)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The tiny study, in the folder that holds its units."""
    out = tmp_path_factory.mktemp("study")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return study.run(TINY, out), out


def kept(out, name):
    return store.load(out / "units" / f"recall--{name}.npz", training.Runs)[0]


def test_runs_in_one_program_are_the_runs_alone(optax_promotes, studied, tmp_path):
    together, tuning = kept(studied[1], "MFA"), kept(studied[1], "MFA--tuning")
    model, task = methods.make_model("MFA", 64, 1), tasks.make_task("recall", TINY)
    rate = float(next(row for row in studied[0].tables[0].rows if row[0] == "MFA")[4])
    keys = jax.random.fold_in(jax.random.key(TINY.seed), 2)[None]
    alone = training.train(
        model, task, keys, jnp.asarray([rate]), tmp_path, num_steps=20, eval_batches=2
    )
    for a, b in zip(together[:2], alone[:2], strict=True):
        np.testing.assert_allclose(a[1], b[0], rtol=2e-3)
    # Another key, another run; another rate with the same key, another run.
    assert abs(together.loss[0] - together.loss[1]) > 1e-3
    assert abs(tuning.loss[0] - tuning.loss[1]) > 1e-3


def test_study_compares_on_paired_seeds(studied):
    first, out = studied
    steps, curve = kept(out, "MFA").steps, kept(out, "MFA").curve
    assert steps.tolist() == list(range(1, 21)) and curve.shape == (20, 5)
    row = next(row for row in first.rows if row.metric == "Loss of MFA, recall")
    other = kept(out, "MHA").curve[-1]
    difference = curve[-1] - other
    half = 2.7764 * difference.std(ddof=1) / np.sqrt(5)  # Student's t with four degrees of freedom
    np.testing.assert_allclose(row.value, curve[-1].mean(), rtol=1e-6)
    np.testing.assert_allclose(row.interval[1] - row.value, half, rtol=1e-3)
    assert row.baseline == ("MHA", pytest.approx(other.mean()))
    clear = "better" if difference.mean() < 0.0 else "worse"
    assert row.verdict == ("no clear difference" if half > abs(difference.mean()) else clear)
    assert {figure.path for figure in first.figures} == {"quality.png", "curves.png"}


def outcome(cached, losses):
    """What training leaves of these losses; NaN is a lost run."""
    losses = np.asarray(losses)
    model = methods.Model(None, cached, 1000, 10)  # pyright: ignore
    curve = np.stack([losses + 1.0, losses])
    return rows.Outcome(model, 1e-3, training.Runs(losses, losses / 10, np.array([1, 2]), curve))


def test_lost_runs_are_counted_and_spoil_no_figure(tmp_path):
    """Two of ours are lost: of five pairs three are left."""
    found = {
        ("recall", "MFA"): outcome(32, [0.5, np.nan, 0.7, np.nan, 0.9]),
        ("recall", "MHA"): outcome(128, [0.1, 0.2, 0.3, 0.4, 0.6]),
        ("recall", "GQA"): outcome(64, [0.2, 0.2, 0.1, 0.1, 0.1]),
        ("recall", "MQA"): outcome(32, [np.nan] * 5),
    }
    (row, *_) = rows.rows(found, ("recall",))
    assert row.value == pytest.approx(0.7) and row.baseline == ("MHA", pytest.approx(1.0 / 3))
    assert "over 3 pairs of seeds" in row.note and "2 of 5 seeds" in row.note
    assert "Recalled: 93.0 % against 96.7 %." in row.note
    table = rows.table(found, "recall", "Recall")
    assert [cells[-1] for cells in table.rows] == ["3 of 5", "5 of 5", "5 of 5", "0 of 5"]
    assert table.rows[0][-2] == pytest.approx(7.0) and table.rows[3][5] is None
    result.encode(table)  # NaN would be refused
    assert [f.path for f in figures.draw(found, {"recall": "Recall"}, tmp_path)] == [
        "quality.png",
        "curves.png",
    ]
    assert "MQA lost" in study._summary(found)
    with pytest.raises(RuntimeError, match="MQA on recall diverges at every learning rate"):
        study.best(found[("recall", "MQA")].runs.loss, ("recall", "MQA"))
    assert study.best(np.array([np.nan, 2.0, 1.0]), ("recall", "MFA")) == 2


def test_names_of_layers_do_not_cover_each_other(tmp_path, monkeypatch):
    """Three layers of one cache, as near as they come."""
    seen = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: seen.append(figure))
    bars = [figures.Bar(name, 32, 1.9, 0.02) for name in ("MQA", "MLA", "MFA")]
    bars += [figures.Bar("MFA-KR", 16, 1.9, 0.02), figures.Bar("MHA", 128, 1.9, 0.02)]
    figures.quality({"bytes": bars}, {"bytes": "Bytes"}, tmp_path)
    (axis,) = seen[0].axes
    seen[0].draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 5
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    plt.close(seen[0])


def test_a_finished_study_trains_nothing(studied, monkeypatch):
    first, out = studied

    def fail(*args, **options):
        raise AssertionError("a finished unit was trained again")

    monkeypatch.setattr(loop, "run", fail)
    assert study.run(TINY, out).rows == first.rows
    fewer = dataclasses.replace(TINY, variants=("MFA",))  # of what is there
    assert study.run(fewer, out).rows == ()
    with pytest.raises(ValueError, match="unit recall/MHA/tuning with num_steps = 20, now it is 3"):
        study.run(dataclasses.replace(TINY, num_steps=30), out)


def test_the_rate_that_is_used_is_the_best_of_those_tried(studied):
    first, out = studied
    tuning = kept(out, "MHA--tuning").curve[-1]
    chosen = next(row for row in first.tables[0].rows if row[0] == "MHA")[4]
    assert float(chosen) == TINY.learning_rates[int(np.argmin(tuning))]


@pytest.mark.slow
def test_attention_learns_to_recall(optax_promotes, tmp_path):
    """One pair in four is guessed right by chance; a trained model knows almost all.

    Eight bits are a guess among all tokens, two a guess among the values that were told.
    """
    config = dataclasses.replace(
        TINY,
        d_model=64,
        num_layers=2,
        recall_length=16,
        pairs=(2, 4),
        tokens=1024,
        num_steps=600,
        num_seeds=3,
        learning_rates=(4e-3,),
        variants=("MHA",),
        eval_batches=8,
    )
    result = study.run(config, tmp_path)
    losses = kept(tmp_path, "MHA").loss
    assert losses.mean() + 3 * losses.std(ddof=1) < 1.0, result.summary


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pairs": (0, 4)}, "pairs must be"),
        ({"pairs": (2, 16)}, "recall_length of 32"),
        ({"d_model": 80}, "multiple of 64"),
        ({"num_seeds": 1}, "num_seeds must be at least 2"),
        ({"learning_rates": (0.0,)}, "learning_rates"),
        ({"tokens": 10}, "tokens must be at least 64"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PRESETS["cpu"], **change)


def test_names_are_checked(tmp_path):
    for change, message in (({"variants": ("LSTM",)}, "MFA-KR"), ({"tasks": ("math",)}, "recall")):
        with pytest.raises(ValueError, match=message):
            study.run(dataclasses.replace(TINY, **change), tmp_path)
    assert list(tmp_path.iterdir()) == []
