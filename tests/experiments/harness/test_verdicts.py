"""Verdicts: one rule, decided by the interval that is shown, lost seeds counted."""

import pathlib

import numpy as np
import pytest
import scipy.stats

from experiments.harness import findings, markdown, result, verdicts, words

PAIRS = np.array([0.05, 0.1, 0.9, 0.5, 1.6])
"""Five paired differences, all above zero, that three studies used to judge in two ways."""


def shown(row):
    """What a reader concludes from the row alone, if larger is better."""
    low, high = row.interval
    return "better" if low > row.baseline[1] else "worse" if high < row.baseline[1] else "neither"


def test_five_differences_are_no_clear_difference_for_everybody():
    ours, theirs = 3.0 + PAIRS, np.full(5, 3.0)
    resampled = np.random.default_rng(0).choice(PAIRS, (4000, 5)).mean(axis=1)
    assert np.quantile(resampled, 0.025) > 0.0  # a bootstrap of five would have said "better"
    theory = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    for sign, larger in ((1.0, True), (-1.0, False)):
        found = verdicts.compare(sign * ours, sign * theirs, larger_is_better=larger)
        assert found.verdict == "no clear difference"
        ends = sorted(sign * (3.0 + np.array([theory.low, theory.high])))
        np.testing.assert_allclose(found.interval, ends, rtol=1e-9)
        assert found.interval[0] < found.baseline < found.interval[1]


@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize("size", [5, 20])
@pytest.mark.parametrize("paired", [True, False], ids=["paired", "unpaired"])
def test_the_interval_that_decides_is_the_one_shown(paired, size, larger):
    words_seen = set()
    for shift in (-3.0, -0.6, 0.0, 0.6, 3.0):
        rng = np.random.default_rng(size)
        theirs = rng.normal(100.0, 1.0, size)
        ours = theirs + rng.normal(shift, 1.0, size)
        row = verdicts.row(
            "c", "m", ours, ("rival", theirs), larger_is_better=larger, paired=paired
        )
        expected = {"neither": "no clear difference"}.get(shown(row), shown(row))
        if not larger:
            expected = {"better": "worse", "worse": "better"}.get(expected, expected)
        assert row.verdict == expected
        assert row.interval[0] <= row.value <= row.interval[1]
        words_seen.add(row.verdict)
    assert words_seen == {"better", "worse", "no clear difference"}


def test_welch_where_nothing_is_paired():
    a, b = np.array([1.0, 2.0, 4.0, 8.0, 9.0]), np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    found = verdicts.compare(a, b, larger_is_better=True, paired=False)
    theory = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(found.difference[1:], theory, rtol=1e-9)
    np.testing.assert_allclose(found.interval, np.add(theory, b.mean()), rtol=1e-9)


def test_fewer_than_five_seeds_have_no_verdict():
    found = verdicts.compare(np.arange(4) + 100.0, np.zeros(4), larger_is_better=True)
    assert found.verdict == "too few seeds" and found.interval is not None
    one = verdicts.row("c", "m", [2.0], ("rival", [1.0]), larger_is_better=True)
    assert (one.value, one.interval, one.verdict) == (2.0, None, "too few seeds")


def test_lost_seeds_are_counted_and_never_win():
    theirs = np.arange(8.0)
    ours = theirs + 5.0 + 0.1 * np.arange(8) % 0.3
    assert verdicts.compare(ours, theirs, larger_is_better=True).verdict == "better"
    lost = np.where(np.arange(8) == 3, np.nan, ours)
    found = verdicts.compare(lost, theirs, larger_is_better=True)
    assert found.verdict == "no clear difference"
    assert found.interval is None  # theirs would lie outside of it
    assert found.note.startswith("Lost, for not finite: 1 of 8 seeds. The seeds that are left")
    others = np.arange(8) != 3
    np.testing.assert_allclose(found.value, ours[others].mean())
    np.testing.assert_allclose(found.baseline, theirs[others].mean())  # of the same pairs
    # Lost by the rival as well: the rest decides. Worse in the rest is worse.
    rival = np.where(np.arange(8) == 5, np.inf, theirs)
    both = verdicts.compare(lost, rival, larger_is_better=True)
    assert both.verdict == "better"
    assert both.note == "Lost, for not finite: 1 of 8 seeds and 1 of 8 of the baseline's."
    assert verdicts.compare(lost, theirs, larger_is_better=False).verdict == "worse"
    assert verdicts.compare(theirs, lost, larger_is_better=True).verdict == "no clear difference"
    # Four pairs are left.
    few = verdicts.compare(lost[:5], theirs[:5], larger_is_better=True)
    assert few.verdict == "too few seeds"


@pytest.mark.parametrize("paired", [True, False])
def test_all_seeds_lost(paired):
    gone, there = np.full(5, np.nan), np.arange(5.0)
    row = verdicts.row("c", "m", gone, ("r", there), larger_is_better=True, paired=paired)
    assert (row.value, row.verdict) == (None, "not measured") and "5 of 5" in row.note
    row = verdicts.row("c", "m", there, ("r", gone), larger_is_better=True, paired=paired)
    assert row.verdict == "too few seeds"
    assert verdicts.measure(gone).value is None


def test_no_seed_that_both_have():
    """Nothing is paired with what is not its pair."""
    ours, theirs = np.array([1.0, 2.0, 3.0, *[np.nan] * 4]), np.array([*[np.nan] * 3, 5, 6, 7, 8])
    found = verdicts.compare(ours, theirs, larger_is_better=True)
    assert (found.value, found.baseline, found.interval) == (2.0, 6.5, None)
    assert found.verdict == "too few seeds"


def test_a_mean_beside_nobody():
    found = verdicts.measure([1.0, 2.0, np.nan, 4.0])
    theory = scipy.stats.ttest_1samp([1.0, 2.0, 4.0], 0.0).confidence_interval(0.95)
    np.testing.assert_allclose((found.value, *found.interval), (7 / 3, *theory), rtol=1e-9)
    assert found.verdict == "measured" and found.note


def test_pairs_must_fit():
    with pytest.raises(ValueError, match="same seeds, got 5 and 6"):
        verdicts.compare(np.ones(5), np.ones(6), larger_is_better=True)
    with pytest.raises(ValueError, match="theirs must be"):
        verdicts.compare(np.ones(5), np.ones((5, 1)), larger_is_better=True)


def test_every_verdict_has_a_shape_and_a_color():
    text = pathlib.Path(verdicts.__file__).with_name("report.css").read_text(encoding="utf-8")
    assert set(words.SHAPES) == set(result.VERDICTS)
    assert len(set(words.SHAPES.values())) == len(words.SHAPES)
    assert all(f".v-{name.replace(' ', '-')}" in text for name in result.VERDICTS)


def test_a_row_beside_a_rival_that_lost_every_seed_is_kept_and_read(tmp_path):
    row = verdicts.row(
        "claim", "metric", [1.0, 2.0, 3.0], ("rival", [np.nan] * 3), larger_is_better=True
    )
    assert row.baseline == ("rival", None) and row.verdict == "too few seeds"
    outcome = result.Result("toy", rows=(row,))
    result.write(tmp_path / "result.json", outcome)
    assert result.read(tmp_path / "result.json", result.Result) == outcome
    assert "not measured (rival)" in markdown.claims(findings.load([tmp_path / "result.json"])[0])
