"""Files of stays: every row is accounted for, and what is written reads back exactly."""

import csv
import datetime
import pathlib
import tempfile

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.queueing.data import daily, stay_files

HEADER = "patient,site,admission_date,los_days,event,discharge_date"
GOOD = "1,Site 1,2020-01-05,2.5,1,2020-01-08"


def _write(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_reads_a_messy_but_valid_file(tmp_path):
    path = tmp_path / "stays.csv"
    text = (
        "\ufeff Site ,Admission-Date,LOS days,Ward,EVENT,Discharge Date\r\n"
        "Unit 10,2020-03-01T23:59:00,0.25,a,Died,\r\n"
        "\r\n"
        '"Unit 2",2020-02-28 08:00,3,"b,c",censored,\r\n'
        "Unit 10, 2020-02-29 ,,d,1.0,2020-03-04\r\n"
    )
    path.write_bytes(text.encode("utf-8"))
    stays, rejects = stay_files.read_stays(path)
    assert rejects.rows.size == 0 and rejects.counts() == {}
    assert stays.site_names == ("Unit 2", "Unit 10")  # natural order, not the order of text
    assert stays.origin == datetime.date(2020, 2, 28) and stays.num_days == 3
    np.testing.assert_array_equal(stays.site, [1, 0, 1])
    np.testing.assert_array_equal(stays.day, [2, 0, 1])  # 2020 is a leap year
    np.testing.assert_array_equal(stays.los, [0.25, 3.0, 4.0])  # the last from its two dates
    np.testing.assert_array_equal(stays.event, [True, False, True])
    np.testing.assert_array_equal(stays.discharge_day, [-1, -1, 5])
    np.testing.assert_allclose(stays.offset, [1439 / 1440, 1 / 3, np.nan])
    np.testing.assert_array_equal(stays.by_date, [False, True, True])
    assert (stays.site.dtype, stays.day.dtype, stays.los.dtype) == (np.int32, np.int32, np.float64)


BAD = {
    "wrong_columns": "2,Site 1,2020-01-06,2.5,1",
    "missing_site": "2,  ,2020-01-06,2.5,1,",
    "missing_date": "2,Site 1,,2.5,1,",
    "bad_date": "2,Site 1,2020-02-30,2.5,1,",
    "bad_discharge_date": "2,Site 1,2020-01-06,2.5,1,soon",
    "discharge_before_admission": "2,Site 1,2020-01-06,2.5,1,2020-01-05",
    "missing_los": "2,Site 1,2020-01-06,,1,",
    "bad_los": "2,Site 1,2020-01-06,two,1,",
    "negative_los": "2,Site 1,2020-01-06,-0.1,1,",
    "zero_los": "2,Site 1,2020-01-06,0,1,",  # where others have parts of a day
    "bad_character": "2,Site\x00 1,2020-01-06,2.5,1,",
    "long_site": f"2,{'7' * 5000},2020-01-06,2.5,1,",
    "far_date": "2,Site 1,1900-01-06,2.5,1,",
    "long_stay": "2,Site 1,2020-01-06,1e9,1,",
    "unknown_event": "2,Site 1,2020-01-06,2.5,7,",
    "duplicate": GOOD,
}


@pytest.mark.parametrize("reason", BAD)
def test_each_reason_is_reported_with_its_line(tmp_path, reason):
    path = _write(tmp_path / "stays.csv", GOOD, "", BAD[reason], "3,Site 1,2020-01-07,1,0,")
    stays, rejects = stay_files.read_stays(path)
    assert stays.site.size == 2 and stays.num_days == 3
    assert rejects.counts() == {reason: 1} and reason in stay_files.REASONS
    assert rejects.rows.tolist() == [4]  # the header is line 1, the blank line counts
    assert rejects.lines == (tuple(BAD[reason].split(",")),)
    with pytest.raises(ValueError, match=rf"1 unusable rows: 1 {reason} \(lines 4\)"):
        stay_files.read_stays(path, strict=True)


@pytest.mark.parametrize(
    "cell, reason",
    [
        ("nan", "bad_los"),
        ("-inf", "bad_los"),
        ("1e400", "bad_los"),
        ("-1e-9", "negative_los"),
        ("1_000", "bad_los"),
        ('"2,5"', "bad_los"),
        ("9" * 5000, "bad_los"),
        ("1e300", "long_stay"),
        ("1827", "long_stay"),
    ],
)
def test_numbers_that_are_no_stays(tmp_path, cell, reason):
    path = _write(tmp_path / "stays.csv", GOOD, f"2,Site 1,2020-01-06,{cell},1,")
    assert stay_files.read_stays(path)[1].counts() == {reason: 1}


def test_strict_lists_counts_and_first_lines(tmp_path):
    lines = [GOOD] + [f"{i},Site 1,2020-01-06,-1,1," for i in range(7)] + [BAD["bad_date"]]
    path = _write(tmp_path / "stays.csv", *lines)
    with pytest.raises(ValueError) as error:
        stay_files.read_stays(path, strict=True)
    assert "8 unusable rows: 7 negative_los (lines 3, 4, 5, 6, 7, ...); 1 bad_date (lines 10)" in (
        str(error.value)
    )


def test_all_rows_rejected_leaves_empty_stays(tmp_path):
    stays, rejects = stay_files.read_stays(_write(tmp_path / "stays.csv", BAD["bad_date"]))
    assert (stays.num_sites, stays.num_days, stays.site.size) == (0, 0, 0)
    assert rejects.counts() == {"bad_date": 1}


def test_options_change_what_is_accepted(tmp_path):
    lines = [
        "a,2020-01-01,0",
        "a,2020-01-02,2",
        "a,2020-01-02,2",
        "b,2020-01-09,1",
        "b,2020-01-10,1",
    ]
    path = _write(tmp_path / "stays.csv", *lines, header="site,admission_date,los_days")
    stays, rejects = stay_files.read_stays(
        path,
        start=datetime.date(2020, 1, 1),
        end=datetime.date(2020, 1, 9),
        zero_stay=0.5,
        duplicates="keep",
    )
    assert rejects.counts() == {"outside_window": 1}
    np.testing.assert_array_equal(stays.los, [0.5, 2, 2, 1])
    assert (stays.num_days, stays.origin) == (9, datetime.date(2020, 1, 1))
    stays, rejects = stay_files.read_stays(path, duplicates="reject")
    assert rejects.counts() == {"duplicate": 1}
    np.testing.assert_array_equal(stays.los, [0, 2, 1, 1])  # whole days: a same-day stay
    assert stays.by_date.all()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("site,admission_date,los_days\n", "no rows"),
        ("site#admission_date#los_days\na#2020-01-01#3\n", "--separator"),
        ("ward,admission_date,los_days\n", r"missing columns \['site'\]; it has \['ward'"),
        ("site,admission_date,los\n", r"missing columns \['los_days or discharge_date'\]"),
        ("site,admission_date,los_days,LOS-Days\n", "appear twice"),
    ],
    ids=["empty", "header only", "hashes", "no site", "no los", "doubled"],
)
def test_unusable_files_name_the_problem(tmp_path, text, message):
    path = tmp_path / "stays.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        stay_files.read_stays(path)


def test_undecodable_file_and_bad_options(tmp_path):
    path = tmp_path / "stays.csv"
    path.write_bytes("site,admission_date,los_days\nUnité,2020-01-01,3\n".encode("latin-1"))
    with pytest.raises(ValueError, match="encoding="):
        stay_files.read_stays(path, encoding="utf-8")
    assert stay_files.read_stays(path, encoding="latin-1")[0].site_names == ("Unité",)
    stays, rejects = stay_files.read_stays(path)
    assert stays.site_names == ("Unité",) and "cp1252" in rejects.notices[0]
    with pytest.raises(ValueError, match="zero_stay"):
        stay_files.read_stays(path, zero_stay=0.0)
    with pytest.raises(ValueError, match="duplicates"):
        stay_files.read_stays(path, duplicates="drop")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no id column 'mrn'; it has"):
        stay_files.read_stays(path, id_column="mrn")
    for name in ("max_stay", "max_gap"):
        with pytest.raises(ValueError, match=f"{name} must be a positive number of days, got nan"):
            stay_files.read_stays(path, **{name: np.nan})
    with pytest.raises(ValueError, match="window"):
        stay_files.read_stays(path, start=datetime.date(2020, 1, 2), end=datetime.date(2020, 1, 1))


_cell = st.one_of(
    st.sampled_from(["", "1", "0", "a", "b", "2.5", "-3", "nan", "2020-01-01", "2020-13-01"]),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=6),
)
_row = st.one_of(
    st.tuples(
        st.sampled_from(["a", "b", " "]),
        st.sampled_from(["2020-01-01", "2020-01-04", "x", ""]),
        st.sampled_from(["1", "2.5", "0", "-1", "", "inf"]),
        st.sampled_from(["1", "0", "maybe"]),
        st.sampled_from(["", "2020-01-03", "2019-12-31", "?"]),
    ).map(list),
    st.lists(_cell, min_size=1, max_size=7),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_row, min_size=1, max_size=12))
def test_no_row_is_lost(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "stays.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["site", "admission_date", "los_days", "event", "discharge_date"])
            writer.writerows(rows)
        stays, rejects = stay_files.read_stays(path)
        assert stays.site.size + rejects.rows.size == len(rows)
        assert sum(rejects.counts().values()) == rejects.rows.size
        assert (np.diff(rejects.rows) > 0).all() and (rejects.rows > 1).all()
        assert set(rejects.reasons) <= stay_files.REASONS.keys()
        # What was set aside is what stands in the file, in order.
        lines = iter(tuple(row) for row in rows)
        assert all(line in lines for line in rejects.lines)
        # What was accepted obeys the record's contract.
        assert (stays.los >= stays.by_date * 0.0).all() and np.isfinite(stays.los).all()
        assert (stays.los[~stays.by_date] > 0).all()
        assert (stays.day >= 0).all() and (stays.day < stays.num_days).all()
        given_date = stays.discharge_day >= 0
        assert (stays.discharge_day[given_date] >= stays.day[given_date]).all()
        again = stay_files.read_stays(path)[0]
        stay_files.write_stays(path, stays)
        if stays.site.size:
            back, none = stay_files.read_stays(path, strict=True)
            assert none.rows.size == 0
            for a, b in zip(back, again, strict=True):
                np.testing.assert_array_equal(a, b)


def test_corrected_rejects_can_be_read_again(tmp_path):
    bad = [BAD["negative_los"], BAD["zero_los"], BAD["bad_los"]]
    _, rejects = stay_files.read_stays(_write(tmp_path / "stays.csv", GOOD, *bad))
    path = tmp_path / "rejects.csv"
    stay_files.write_rejects(path, rejects)
    with open(path, newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["row", "reason", *HEADER.split(",")]
    assert table[2] == ["4", "zero_los", *BAD["zero_los"].split(",")]
    path.write_text(path.read_text().replace("-0.1", "1.5").replace("two", "2"))
    stays, rest = stay_files.read_stays(path)
    np.testing.assert_array_equal(stays.los, [1.5, 2.0])
    assert rest.counts() == {"zero_los": 1}


# Patients that a hospital's own file must not lose, and none that it does not have


def _file(tmp_path, columns, rows, separator=","):
    path = tmp_path / "stays.csv"
    text = [columns.replace(",", separator), *(separator.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def _ward(rng, num_days, rate, mean):
    """Days of admission and whole-day geometric stays of a unit in the steady state."""
    day = np.repeat(np.arange(num_days), rng.poisson(rate, num_days))
    return day, rng.geometric(1 / mean, day.size)


def _iso(day):
    return np.datetime64("2022-01-01") + np.asarray(day)


def test_equal_rows_are_patients_unless_an_id_says_otherwise(tmp_path):
    day, los = _ward(np.random.default_rng(0), 360, 8.0, 4.0)
    rows = list(zip(["ICU"] * day.size, _iso(day), los, strict=True))
    path = _file(tmp_path, "site,admission_date,los_days", rows)
    stays, rejects = stay_files.read_stays(path)
    num_alike = len(rows) - len(set(rows))
    assert num_alike > 900 and stays.site.size == len(rows) and rejects.rows.size == 0
    assert rejects.num_alike == num_alike
    assert any(f"{num_alike:,} rows equal to an earlier" in notice for notice in rejects.notices)
    occupied = stays.los.sum() / stays.num_days
    assert abs(occupied - 32) < 2.5  # one standard error is about 0.9; it was 24.7

    twice = [(f"P{k}", *row) for k, row in enumerate(rows)]
    twice += [twice[3], ("", *rows[0]), ("", *rows[0])]
    for name, option in (("patient_id", None), ("MRN no", "mrn-no")):
        path = _file(tmp_path, f"{name},site,admission_date,los_days", twice)
        stays, rejects = stay_files.read_stays(path, id_column=option)
        assert rejects.counts() == {"duplicate": 1} and rejects.rows.tolist() == [len(rows) + 2]
        assert rejects.num_alike == 1  # an empty id says nothing
        kept = stay_files.read_stays(path, id_column=option, duplicates="keep")
        assert kept[0].site.size == len(twice) and kept[1].num_alike == 2
        reject = stay_files.read_stays(path, id_column=option, duplicates="reject")[1]
        assert reject.counts() == {"duplicate": 2} and reject.num_alike == 0


def test_two_rows_of_one_stay_with_different_ends_are_noticed(tmp_path):
    rows = [
        ("P1", "A", "2023-05-01", ""),
        ("P1", "A", "2023-05-01", "2023-05-09"),  # a later export
        ("P1", "A", "2023-06-01", "2023-06-09"),  # another stay of the patient
        ("P1", "B", "2023-05-01", "2023-05-09"),
        ("", "A", "2023-05-01", "2023-05-07"),
        ("", "A", "2023-05-01", "2023-05-08"),
    ]
    path = _file(tmp_path, "patient_id,site,admission_date,discharge_date", rows)
    stays, rejects = stay_files.read_stays(path)
    assert stays.site.size == 6
    assert any("1 row with the id, site and admission of an earlier" in n for n in rejects.notices)


@pytest.mark.parametrize("event", [None, "", "0"], ids=["no column", "blank", "0"])
@pytest.mark.parametrize("blank", ["", "9999-12-31", "1900-01-01", "NULL", " N/A "])
def test_open_stays_fill_the_last_day(tmp_path, event, blank):
    rng = np.random.default_rng(1)
    num_days = 400
    day = np.repeat(np.arange(num_days), rng.poisson(3.0, num_days))
    leaves = day + np.ceil(rng.exponential(25.0, day.size)).astype(int)
    still = leaves >= num_days
    rows = [
        (
            "ICU",
            _iso(a),
            blank if out else _iso(b),
            *(() if event is None else (event if out else 1,)),
        )
        for a, b, out in zip(day, leaves, still, strict=True)
    ]
    columns = "site,admission_date,discharge_date" + ("" if event is None else ",event")
    stays, rejects = stay_files.read_stays(_file(tmp_path, columns, rows))
    assert stays.site.size == day.size and rejects.rows.size == 0 and stays.num_days == num_days
    np.testing.assert_array_equal(stays.event, ~still)
    np.testing.assert_array_equal(stays.discharge_day, np.where(still, -1, leaves))
    np.testing.assert_array_equal(stays.los, np.where(still, num_days - day, leaves - day))
    census = daily.observed_census(
        stays.day, stays.site, stays.los, 1, num_days, discharge_day=stays.discharge_day
    )
    assert int(census[0, -1]) == still.sum() > 50
    assert any(f"{still.sum()} patients without a discharge: still" in n for n in rejects.notices)


def test_what_ends_the_data_and_what_is_open(tmp_path):
    rows = [
        ("A", "2022-01-01", "2022-01-20", 19, 1),
        ("A", "2022-01-10", "", 2, 1),  # ended: a length and an event
        ("A", "2022-01-10", "", 2, ""),  # ended long before the end of the data
        ("A", "2022-01-11", "", 9, ""),  # reaches the end of the data and has no discharge
        ("A", "2022-01-12", "", "", 0),  # open
        ("A", "2022-01-13", "", "", 1),  # ended, no one knows when
        ("A", "2022-01-14", "2022-01-16", "", 0),  # left, but the end counts as not seen
    ]
    columns = "site,admission_date,discharge_date,los_days,event"
    path = _file(tmp_path, columns, rows)
    stays, rejects = stay_files.read_stays(path)
    assert rejects.counts() == {"missing_los": 1} and rejects.rows.tolist() == [7]
    np.testing.assert_array_equal(stays.los, [19, 2, 2, 9, 9, 2])  # to the end of 20 January
    np.testing.assert_array_equal(stays.event, [True, True, True, False, False, False])
    assert stays.num_days == 14  # first to last admission: those who came are followed to the end
    assert any("1 row with a discharge date and an event" in notice for notice in rejects.notices)
    ended = stay_files.read_stays(path, end=datetime.date(2022, 1, 31))[0]
    assert ended.los[4] == 20 and ended.num_days == 31
    np.testing.assert_array_equal(ended.windows, [[0, 30]])
    # Lengths are days so far where the event alone is empty and they reach the end.
    rows = [("A", "2022-01-01", 19, 1), ("A", "2022-01-10", 3, ""), ("A", "2022-01-10", 2, "")]
    rows += [("A", "2022-01-12", 1, 1), ("A", "2022-01-13", 0, 1)]
    path = _file(tmp_path, "site,admission_date,los_days,event", rows)
    assert stay_files.read_stays(path)[0].event.tolist() == [True, False, True, True, True]
    # A file of lengths alone cannot say that a patient is still in bed.
    path = _file(
        tmp_path, "site,admission_date,los_days", [("A", "2022-01-01", ""), ("A", "2022-01-01", 19)]
    )
    assert stay_files.read_stays(path)[1].counts() == {"missing_los": 1}


def test_a_slip_in_one_discharge_does_not_lengthen_all_open_stays(tmp_path):
    rows = [("A", _iso(d), _iso(d + 5)) for d in range(95) for _ in range(2)]
    rows += [("A", _iso(d), "") for d in range(95, 100)]
    slip = ("A", _iso(50), _iso(50 + 1100))
    path = _file(tmp_path, "site,admission_date,discharge_date", [*rows, slip])
    stays, rejects = stay_files.read_stays(path)
    still = ~stays.event
    np.testing.assert_array_equal(stays.los[still], [5, 4, 3, 2, 1])  # to the end of day 99
    assert stays.los.max() == 1100 and not rejects.rows.size
    assert any(f"1 discharge from {_iso(1150)} on" in notice for notice in rejects.notices)
    end = _iso(1150).item()
    assert stay_files.read_stays(path, end=end)[0].los[still].min() == 1052
    # More than a few are no slips: the file has been kept up to that day.
    later = [("A", _iso(50 + d), _iso(150 + d)) for d in range(4)]
    path = _file(tmp_path, "site,admission_date,discharge_date", [*rows, *later])
    assert stay_files.read_stays(path)[0].los[190:195].max() == 154 - 95


def test_each_site_has_its_own_window_and_start_and_end_are_for_all(tmp_path):
    rng = np.random.default_rng(2)
    late, los = _ward(rng, 365, 4.0, 6.0)
    early, more = _ward(rng, 730, 2.0, 5.0)
    rows = [("Old", _iso(d), n) for d, n in zip(early, more, strict=True)]
    rows += [("New", _iso(d + 365), n) for d, n in zip(late, los, strict=True)]
    path = _file(tmp_path, "site,admission_date,los_days", rows)
    stays, _ = stay_files.read_stays(path)
    assert stays.site_names == ("New", "Old")
    np.testing.assert_array_equal(
        stays.windows, [[365 + late.min(), 365 + late.max()], [early.min(), early.max()]]
    )
    start, end = datetime.date(2023, 1, 1), datetime.date(2023, 6, 30)
    stays, rejects = stay_files.read_stays(path, start=start, end=end)
    assert stays.origin == start and stays.num_days == 181
    np.testing.assert_array_equal(stays.windows, [[0, 180], [0, 180]])
    inside = (early + more > 365) & (early < 365 + 181)
    assert (stays.site == 1).sum() == inside.sum()
    before = stays.day < 0
    assert before.sum() == (inside & (early < 365)).sum() > 2
    assert (stays.day + stays.los > 0).all() and set(rejects.counts()) == {"outside_window"}
    assert any(f"{before.sum()} patients in bed when" in notice for notice in rejects.notices)
    # The census of the first day is that of the whole file: nobody is missing.
    every = stay_files.read_stays(path)[0]
    whole, part = (
        daily.observed_census(s.day, s.site, s.los, 2, s.num_days) for s in (every, stays)
    )
    np.testing.assert_array_equal(part[1], whole[1, 365 : 365 + 181])


def test_empty_ends_of_a_window_that_was_asked_for_are_noticed(tmp_path):
    rows = [("Old", _iso(d), 3) for d in range(300)]
    rows += [("New", _iso(d), 3) for d in range(100, 200)]
    path = _file(tmp_path, "site,admission_date,los_days", rows)

    def said(**window):
        window = {name: _iso(day).item() for name, day in window.items()}
        notices = stay_files.read_stays(path, **window)[1].notices
        return [notice.split(",")[0] for notice in notices if "count as empty" in notice]

    begin, end = (
        f"no admission at New from {_iso(a)} to {_iso(b)}" for a, b in ((20, 99), (200, 280))
    )
    assert said(start=20, end=280) == [begin, end]
    assert said(start=20) == [begin] and said(end=280) == [end]
    assert said() == said(start=101, end=199) == said(start=95, end=205) == []


def test_what_is_too_large_is_not_believed_and_never_silently(tmp_path):
    rows = [
        ("A", "1900-01-01", "1900-01-09"),
        *(("A", f"2022-01-{d:02}", f"2022-02-{d:02}") for d in range(1, 29)),
        ("A", "2022-02-01", "2032-02-01"),
        ("A", "2203-01-01", "2203-01-05"),
        ("B", "2022-01-05", "2022-01-09"),
        ("B", "2022-01-06", "2022-01-09"),
        ("B", "2013-01-06", "2013-01-09"),  # within the limit of A and B together
    ]
    path = _file(tmp_path, "site,admission_date,discharge_date", rows)
    stays, rejects = stay_files.read_stays(path)
    assert rejects.rows.tolist() == [2, 31, 32, 35]
    assert rejects.counts() == {"far_date": 3, "long_stay": 1}
    assert stays.num_days == 28 and stays.origin == datetime.date(2022, 1, 1)
    far = stay_files.read_stays(path, max_gap=np.inf, max_stay=np.inf)
    assert far[1].rows.size == 0 and far[0].num_days == 110_669
    assert stay_files.read_stays(path, max_stay=30)[1].counts()["long_stay"] == 29
    two = _file(tmp_path, "site,admission_date,los_days", [(a, day, 1) for a, day, _ in rows[:2]])
    assert stay_files.read_stays(two)[0].origin.year == 2022  # of equals the latest
    path = _file(tmp_path, "site,admission_date,discharge_date", rows)
    # Years that a window leaves out do not decide which rows are the many.
    stays, rejects = stay_files.read_stays(path, start=datetime.date(2203, 1, 1))
    assert stays.los.tolist() == [4] and "far_date" not in rejects.counts()


def test_times_of_day_give_parts_of_days(tmp_path):
    rows = [
        ("A", "2023-05-01 08:00", "2023-05-01 20:00"),
        ("A", "2023-05-01T23:50:00", "2023-05-02T00:20:00"),
        ("A", "2023-05-02 06:00:30", "2023-05-04 06:00:30"),
        ("A", "2023-03-26T00:00+01:00", "2023-03-27T00:00+02:00"),  # clocks are put forward
        ("A", "2023-05-03 08:00", "2023-05-03 08:00"),
        ("A", "2023-05-03 08:00", "2023-05-03 07:59"),
        ("A", "2023-05-03 08:00", "2023-05-05"),
        ("A", "2023-05-03 18:00", ""),
    ]
    stays, rejects = stay_files.read_stays(
        _file(tmp_path, "site,admission_date,discharge_date", rows)
    )
    assert dict(zip(rejects.rows.tolist(), rejects.reasons, strict=True)) == {
        6: "zero_los",
        7: "discharge_before_admission",
    }
    np.testing.assert_allclose(stays.los, [0.5, 0.5 / 24, 2.0, 23 / 24, 2.0, 2.25], rtol=1e-14)
    np.testing.assert_allclose(
        stays.offset, [1 / 3, 1430 / 1440, 21630 / 86400, 0.0, 1 / 3, 0.75], rtol=1e-14
    )
    np.testing.assert_array_equal(stays.by_date, [False] * 4 + [True, False])
    np.testing.assert_array_equal(stays.event, [True] * 5 + [False])
    path = tmp_path / "again.csv"
    stay_files.write_stays(path, stays)
    assert "2023-05-01T08:00:00" in path.read_text()
    back = stay_files.read_stays(path)[0]
    for name, a, b in zip(stays._fields, back, stays, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_day_cases_are_kept_and_count_by_the_convention(tmp_path):
    rng = np.random.default_rng(3)
    minutes = np.sort(rng.integers(0, 60 * 1440, 500))
    length = rng.integers(20, 700, 500)
    stamp = np.datetime64("2023-01-01T00:00") + minutes
    rows = [("Day", a, a + n) for a, n in zip(stamp, length, strict=True)]
    path = _file(tmp_path, "site,admission_date,discharge_date", rows)
    stays, rejects = stay_files.read_stays(path)
    assert stays.site.size == 500 and rejects.rows.size == 0
    np.testing.assert_allclose(stays.los, length / 1440, rtol=1e-12)
    with jax.enable_x64(True):
        census = {
            name: np.asarray(
                daily.observed_census(
                    stays.day, stays.site, stays.los, 1, 60, offset=stays.offset, convention=name
                )
            ).sum()
            for name in ("ceil", "midnight", "touch", "bed_days")
        }
        hours = daily.observed_census(
            stays.day,
            stays.site,
            stays.los,
            1,
            60,
            offset=stays.offset,
            convention="bed_days",
            bin="1h",
        )
    nights = ((minutes + length) // 1440 - minutes // 1440).clip(max=60 - minutes // 1440)
    assert census["ceil"] == 500 and census["midnight"] == nights.sum() > 0
    assert census["touch"] == 500 + np.minimum(nights, 59 - minutes // 1440).sum()
    # One minute at a time: how many patients are in bed.
    steps = np.zeros(60 * 1440 + 1)
    np.add.at(steps, minutes, 1)
    np.add.at(steps, np.minimum(minutes + length, 60 * 1440), -1)
    in_bed = np.cumsum(steps)[:-1]
    np.testing.assert_allclose(hours[0], in_bed.reshape(-1, 60).mean(axis=1), atol=1e-9)
    np.testing.assert_allclose(census["bed_days"], in_bed.sum() / 1440)


def test_midnights_everywhere_are_dates(tmp_path):
    rows = [
        ("A", "2023-05-01 00:00:00", "2023-05-04 00:00:00"),
        ("A", "2023-05-02 00:00:00", "2023-05-02 00:00:00"),
        ("B", "2023-05-01 00:00:00", "2023-05-02 12:00:00"),
        ("B", "2023-05-02 06:00:00", "9999-12-31 23:59:59"),
    ]
    stays, rejects = stay_files.read_stays(
        _file(tmp_path, "site,admission_date,discharge_date", rows)
    )
    np.testing.assert_array_equal(stays.by_date, [True, True, False, False])
    np.testing.assert_array_equal(stays.los, [3, 0, 1.5, 2.75])
    np.testing.assert_array_equal(stays.offset, [np.nan, np.nan, 0.0, 0.25])
    assert any(
        "2 rows at sites whose admission times are all 0:00" in notice for notice in rejects.notices
    )
    assert any("1 same-day stay known" in notice for notice in rejects.notices)


def test_whole_days_are_told_from_parts_of_days_by_site(tmp_path):
    rows = [
        ("A", "2023-05-01", 3, ""),
        ("A", "2023-05-02", "0.0", ""),
        ("A", "2023-05-02", 4, "2023-05-05"),  # the dates say 3
        ("B", "2023-05-01", 3, ""),
        ("B", "2023-05-02", 2.25, "2023-05-05"),
        ("B", "2023-05-02", "", "2023-05-05"),
    ]
    stays, rejects = stay_files.read_stays(
        _file(tmp_path, "site,admission_date,los_days,discharge_date", rows)
    )
    np.testing.assert_array_equal(stays.by_date, [True] * 3 + [False, False, True])
    np.testing.assert_array_equal(stays.los, [3, 0, 3, 3, 2.25, 3])
    assert any("1 row whose whole-day los_days differ" in n for n in rejects.notices)


def test_names_of_sites_are_folded_with_a_notice(tmp_path):
    names = ["ICU A", "ICU\u00a0A", " icu  a ", "ICU A", "ICU B", "B\u200b", "b", "b"]
    rows = [(name, "2023-05-01", 2.5) for name in names]
    stays, rejects = stay_files.read_stays(_file(tmp_path, "site,admission_date,los_days", rows))
    assert stays.site_names == ("b", "ICU A", "ICU B") or stays.site_names == (
        "ICU A",
        "ICU B",
        "b",
    )
    assert np.bincount(stays.site).tolist() in ([3, 4, 1], [4, 1, 3])
    assert any("case or spaces are one" in n and "'ICU\\xa0A'" in n for n in rejects.notices)


def test_sites_that_differ_in_zeros_have_one_order(tmp_path):
    """In every process: a set of their names, sorted by number alone, depends on the hash seed."""
    rng = np.random.default_rng(4)
    for _ in range(5):
        names = rng.permutation(["1", "01", "001", "Z", "a", "1b", "0001", "00001"])
        rows = [(name, "2023-05-01", 2.5) for name in names]
        path = _file(tmp_path, "site,admission_date,los_days", rows)
        found = stay_files.read_stays(path)[0].site_names
        assert found == ("00001", "0001", "001", "01", "1", "1b", "Z", "a")


def test_files_of_other_programs(tmp_path):
    rows = [
        ("Süd", "31.12.2022 23:30", "2,5"),
        ("Süd", "01.02.2023 08:00", "1,25"),
        ("=1+1", "3.2.2023 9:00", "0,5"),
    ]
    path = _file(tmp_path, "Site,Admission Date,LOS days", rows, separator=";")
    path.write_bytes(path.read_text(encoding="utf-8").encode("cp1252"))
    stays, rejects = stay_files.read_stays(path)
    assert stays.site_names == ("=1+1", "Süd") and stays.origin == datetime.date(2022, 12, 31)
    np.testing.assert_array_equal(stays.los, [2.5, 1.25, 0.5])
    np.testing.assert_array_equal(stays.day, [0, 32, 34])
    assert "cp1252" in rejects.notices[0] and "day first" in rejects.notices[1]
    stay_files.write_stays(path, stays)
    assert "'=1+1" in path.read_text(encoding="utf-8")
    assert stay_files.read_stays(path)[0].site_names == stays.site_names

    path = _file(tmp_path, "site,admission_date,los_days", [("A", "03/04/2023", 2.5)])
    with pytest.raises(ValueError, match=r"stays.csv: the date '03/04/2023' .*--date-format"):
        stay_files.read_stays(path)
    for form, month in (("DD/MM/YYYY", 4), ("%m/%d/%Y", 3)):
        assert stay_files.read_stays(path, date_format=form)[0].origin.month == month


def test_rejects_keep_the_separator_and_hide_formulas(tmp_path):
    rows = [("A", "2022-12-31", "2,5"), ("A", "2023-13-01", "1,5"), ("=cmd|'/c'!A0", "", "-1")]
    path = _file(tmp_path, "site,admission_date,los_days", rows, separator=";")
    _, rejects = stay_files.read_stays(path)
    path = tmp_path / "rejects.csv"
    stay_files.write_rejects(path, rejects)
    assert path.read_text().splitlines()[1:] == [
        "3;bad_date;A;2023-13-01;1,5",
        "4;missing_date;'=cmd|'/c'!A0;;-1",
    ]
    path.write_text(path.read_text().replace("2023-13-01", "2023-12-01"))
    stays, rest = stay_files.read_stays(path)
    assert stays.los.tolist() == [1.5] and rest.counts() == {"missing_date": 1}


def test_a_unit_that_was_closed_is_noticed(tmp_path):
    days = [*range(100), *range(160, 300)]
    rows = [("A", _iso(d), 2.5) for d in days] + [("B", _iso(d), 2.5) for d in range(0, 300, 45)]
    _, rejects = stay_files.read_stays(_file(tmp_path, "site,admission_date,los_days", rows))
    quiet = [notice for notice in rejects.notices if "no admission" in notice]
    assert len(quiet) == 1 and "at A from 2022-04-11 to 2022-06-09" in quiet[0]


def test_rows_with_blank_cells_too_many_fit(tmp_path):
    rows = [("A", "2022-12-31", "2.5", "", ""), ("A", "2022-12-31", "2.5", "", "x")]
    stays, rejects = stay_files.read_stays(_file(tmp_path, "site,admission_date,los_days", rows))
    assert stays.site.size == 1 and rejects.counts() == {"wrong_columns": 1}
