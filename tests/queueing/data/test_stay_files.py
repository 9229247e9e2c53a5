"""Files of stays: every row is accounted for, and what is written reads back exactly."""

import csv
import datetime
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.queueing.data import stay_files

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
    "zero_los": "2,Site 1,2020-01-06,0,1,",
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
    [("nan", "bad_los"), ("-inf", "bad_los"), ("1e400", "bad_los"), ("-1e-9", "negative_los")],
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
    assert stay_files.read_stays(path)[1].counts() == {"zero_los": 1, "duplicate": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("site,admission_date,los_days\n", "no rows"),
        ("site;admission_date;los_days\na;2020-01-01;3\n", "separated by commas"),
        ("ward,admission_date,los_days\n", r"missing columns \['site'\]; it has \['ward'"),
        ("site,admission_date,los\n", "missing column 'los_days'"),
        ("site,admission_date,los_days,LOS-Days\n", "appear twice"),
    ],
    ids=["empty", "header only", "semicolons", "no site", "no los", "doubled"],
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
        stay_files.read_stays(path)
    assert stay_files.read_stays(path, encoding="latin-1")[0].site_names == ("Unité",)
    with pytest.raises(ValueError, match="zero_stay"):
        stay_files.read_stays(path, zero_stay=0.0)
    with pytest.raises(ValueError, match="duplicates"):
        stay_files.read_stays(path, duplicates="drop")  # pyright: ignore[reportArgumentType]
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
        assert (stays.los > 0).all() and np.isfinite(stays.los).all()
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
    path.write_text(path.read_text().replace("-0.1", "1").replace("two", "2"))
    stays, rest = stay_files.read_stays(path)
    np.testing.assert_array_equal(stays.los, [1.0, 2.0])
    assert rest.counts() == {"zero_los": 1}
