"""Proposals from a user's own sequences: what is read and refused, what is new, what is ranked."""

import csv
import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.discrete_diffusion import Config, study
from experiments.discrete_diffusion.parts import proposals
from experiments.harness import flags

pytestmark = pytest.mark.usefixtures("optax_promotes")


def write(path, rows, header="sequence,score"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def many(num=48, length=6, letters="ACGT"):
    rng = np.random.default_rng(0)
    texts = {"".join(rng.choice(list(letters), length)) for _ in range(3 * num)}
    return [(text, f"{i / 7:.3f}") for i, text in enumerate(sorted(texts)[:num])]


def test_sequences_are_read_in_the_order_of_their_letters(tmp_path):
    known = proposals.read(write(tmp_path / "a.csv", many()), "")
    assert known.alphabet == "ACGT" and known.tokens.shape == (48, 6)
    texts = ["".join("ACGT"[i] for i in row) for row in known.tokens]
    assert texts == [text for text, _ in many()]
    np.testing.assert_allclose(known.scores, [float(score) for _, score in many()])
    turned = proposals.read(tmp_path / "a.csv", "TGCA")
    np.testing.assert_array_equal(turned.tokens, 3 - known.tokens)


def test_a_sequence_that_is_there_twice_has_the_mean_of_its_scores(tmp_path):
    rows = many()
    known = proposals.read(write(tmp_path / "a.csv", [*rows, (rows[0][0], 10.0)]), "")
    assert len(known.scores) == 48 and known.scores[0] == pytest.approx(5.0)
    assert "49 rows hold 48 different sequences" in known.notices[-1]


def test_gaps_at_the_start_are_letters_and_no_formulas(tmp_path):
    """A spreadsheet's apostrophe before -ACG is taken off again."""
    rows = many(letters="-AC")
    guarded = [(f"'{text}" if text[0] == "-" else text, score) for text, score in rows]
    plain = proposals.read(write(tmp_path / "a.csv", rows), "")
    again = proposals.read(write(tmp_path / "b.csv", guarded), "")
    assert plain.alphabet == "-AC"
    np.testing.assert_array_equal(plain.tokens, again.tokens)


def with_commas(rows, cells="{text};{score}"):
    return [(cells.format(text=text, score=score.replace(".", ",")),) for text, score in rows]


@pytest.mark.parametrize(
    ("header", "cells"),
    [("sequence;score", "{text};{score}"), ("sequence,score", '{text},"{score}"')],
    ids=["semicolons", "quotes"],
)
def test_decimal_commas_are_read_as_points_and_told(tmp_path, header, cells):
    rows = many()
    plain = proposals.read(write(tmp_path / "a.csv", rows), "")
    known = proposals.read(write(tmp_path / "b.csv", with_commas(rows, cells), header), "")
    np.testing.assert_array_equal(known.scores, plain.scores)
    np.testing.assert_array_equal(known.tokens, plain.tokens)
    assert "Commas in scores are decimal points, such as in 0,000" in known.notices


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (with_commas(many(), "{text},{score}"), "sequence,score", "line 2: 3 cells under 2 names"),
        (with_commas(many(), "{text},{score}"), "sequence,score,", "line 2: 3 cells under 2 names"),
        (with_commas(many(), "{score},{text}"), "score,sequence", "line 2: 3 cells under 2 names"),
        ([(f"{text};1,250",) for text, _ in many()], "sequence;score", "'1,250' may be a thousand"),
        ([*with_commas(many()), ("ACGTAC;0.5",)], "sequence;score", "some a point"),
        ([*with_commas(many()), ("ACGTAC;1,2,3",)], "sequence;score", "line 50: score must be"),
        (with_commas(many()), "sequence,score", "sequences hold ;"),
    ],
)
def test_commas_that_may_mean_something_else_are_refused(tmp_path, rows, header, message):
    with pytest.raises(ValueError, match=message):
        proposals.read(write(tmp_path / "a.csv", rows, header), "")


@pytest.mark.parametrize(
    ("rows", "alphabet", "message"),
    [
        ([*many(), ("ACGTA", 1)], "", r"line 50: sequences must all have the same length, 6"),
        ([*many(), ("", 1)], "", r"line 50: the sequence is empty"),
        ([*many(), ("ACGTAC", "good")], "", r"line 50"),
        ([*many(), ("ACGTAC", "nan")], "", r"line 50"),
        ([*many(), ("ACGTAN", 1)], "ACGT", r"line 50: letters must be among ACGT, got N"),
        ([*many(), ("ACGTaC", 1)], "", r"A and a differ in case alone"),
        (
            [("".join(x), i) for i, x in enumerate(itertools.product("ACGT", repeat=3))],
            "",
            r"all 64 sequences of these letters",
        ),
        (many(20), "", r"20 different sequences; proposals need 40"),
        ([(text, 1.0) for text, _ in many()], "", r"all scores are 1"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_line(tmp_path, rows, alphabet, message):
    with pytest.raises(ValueError, match=message):
        proposals.read(write(tmp_path / "a.csv", rows), alphabet)


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(ValueError, match="missing columns"):
        proposals.read(write(tmp_path / "a.csv", many(), header="sequence,activity"), "")


def test_only_different_new_sequences_are_proposed():
    known = np.array([[0, 1], [1, 1]])
    drawn = np.array([[1, 0], [0, 1], [1, 0], [2, 2], [1, 1]])
    np.testing.assert_array_equal(proposals._different(drawn, known), [[1, 0], [2, 2]])
    np.testing.assert_array_equal(proposals._nearest(np.array([[1, 0], [2, 2]]), known), [1, 2])
    with pytest.raises(flags.Mistake, match="in the table already"):
        proposals._different(known, known)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda tokens: tokens, r"must return \[B\]"),
        (lambda tokens: float(tokens.sum()), "traceable"),
        (lambda tokens: jnp.sum(tokens), r"must return \[B\]"),
    ],
)
def test_a_reward_that_is_none_is_refused(reward, message):
    with pytest.raises(flags.Mistake, match=message):
        proposals.check_reward(reward, 4, 6)


@pytest.mark.parametrize("name", ["math", "math:", "nowhere:f", "math:pi"])
def test_a_reward_that_cannot_be_imported_is_refused(name):
    with pytest.raises(flags.Mistake, match="reward must be"):
        proposals.load_reward(name)


def test_a_module_that_fails_as_it_is_imported_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken_reward.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(flags.Mistake, match="ZeroDivisionError"):
        proposals.load_reward("broken_reward:score")


def test_letters_that_were_found_are_told(tmp_path):
    known = proposals.read(write(tmp_path / "a.csv", [*many(), ("ACGTAN", 1)]), "")
    assert known.notices == ("The letters are those that occur: ACGNT",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "a.csv", "reward": "m:f"}, "exclude each other"),
        ({"reward": "m:f"}, "needs alphabet and length"),
        ({"alphabet": "AA"}, "different letters"),
        ({"data": "a.csv", "length": 8}, "length goes with reward"),
        ({"alphabet": "ACGT"}, "alphabet goes with data or reward"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


SMALL = Config(
    rewards=1280,
    batch=64,
    num_steps=4,
    width=16,
    num_layers=1,
    learning_rates=(1e-2,),
    evaluations=4,
)


@pytest.mark.slow
def test_an_own_reward_is_climbed(tmp_path, monkeypatch):
    """The best of the proposals has most of the best reward, and all are different."""
    (tmp_path / "own_reward.py").write_text(
        "import jax.numpy as jnp\n\n\ndef score(tokens):\n"
        "    return jnp.sum(tokens == jnp.arange(8)[None] % 4, axis=1).astype(jnp.float32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(SMALL, reward="own_reward:score", alphabet="ABCD", length=8)
    found = study.run(config, tmp_path / "run")
    with (tmp_path / "run" / "proposals.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["sequence"] == "ABCDABCD" and float(rows[0]["reward"]) == 8.0
    assert len({row["sequence"] for row in rows}) == len(rows) > 20
    rewards = [float(row["reward"]) for row in rows]
    assert rewards == sorted(rewards, reverse=True)
    assert found.rows[0].value == 8.0


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0.0, 1e8])
def test_own_sequences_lead_to_better_ones_that_are_new(tmp_path, zero):
    """Scores count the As: proposals have more of them than all but the best of the table."""
    rng = np.random.default_rng(1)
    texts = sorted({"".join(rng.choice(list("ACGT"), 10)) for _ in range(400)})
    rows = [(text, zero + text.count("A") + 0.1 * rng.normal()) for text in texts]
    path = write(tmp_path / "a.csv", rows)
    found = study.run(dataclasses.replace(SMALL, data=str(path)), tmp_path / "run")
    with (tmp_path / "run" / "proposals.csv").open() as file:
        table = list(csv.DictReader(file))
    proposed = [row["sequence"] for row in table]
    assert not set(proposed) & set(texts)
    counts = np.array([text.count("A") for text in texts])
    assert np.mean([text.count("A") for text in proposed[:20]]) > np.quantile(counts, 0.95)
    correlation = next(row for row in found.rows if row.metric.startswith("Correlation"))
    assert correlation.value > 0.5
    predicted = np.array([float(row["predicted"]) for row in table]) - zero
    assert np.all((predicted > -3.0) & (predicted < 13.0))
