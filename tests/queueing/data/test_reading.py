"""CSV in and out: every row is accounted for, and what is written reads back exactly."""

import csv
import datetime
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.queueing.census import occupancy
from jaxlab.queueing.data import reading
from jaxlab.queueing.stays import conditional

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
    stays, rejects = reading.read_stays(path)
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
    stays, rejects = reading.read_stays(path)
    assert stays.site.size == 2 and stays.num_days == 3
    assert rejects.counts() == {reason: 1} and reason in reading.REASONS
    assert rejects.rows.tolist() == [4]  # the header is line 1, the blank line counts
    assert rejects.lines == (tuple(BAD[reason].split(",")),)
    with pytest.raises(ValueError, match=rf"1 unusable rows: 1 {reason} \(lines 4\)"):
        reading.read_stays(path, strict=True)


@pytest.mark.parametrize(
    "cell, reason",
    [("nan", "bad_los"), ("-inf", "bad_los"), ("1e400", "bad_los"), ("-1e-9", "negative_los")],
)
def test_numbers_that_are_no_stays(tmp_path, cell, reason):
    path = _write(tmp_path / "stays.csv", GOOD, f"2,Site 1,2020-01-06,{cell},1,")
    assert reading.read_stays(path)[1].counts() == {reason: 1}


def test_strict_lists_counts_and_first_lines(tmp_path):
    lines = [GOOD] + [f"{i},Site 1,2020-01-06,-1,1," for i in range(7)] + [BAD["bad_date"]]
    path = _write(tmp_path / "stays.csv", *lines)
    with pytest.raises(ValueError) as error:
        reading.read_stays(path, strict=True)
    assert "8 unusable rows: 7 negative_los (lines 3, 4, 5, 6, 7, ...); 1 bad_date (lines 10)" in (
        str(error.value)
    )


def test_all_rows_rejected_leaves_empty_stays(tmp_path):
    stays, rejects = reading.read_stays(_write(tmp_path / "stays.csv", BAD["bad_date"]))
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
    stays, rejects = reading.read_stays(
        path,
        start=datetime.date(2020, 1, 1),
        end=datetime.date(2020, 1, 9),
        zero_stay=0.5,
        duplicates="keep",
    )
    assert rejects.counts() == {"outside_window": 1}
    np.testing.assert_array_equal(stays.los, [0.5, 2, 2, 1])
    assert (stays.num_days, stays.origin) == (9, datetime.date(2020, 1, 1))
    assert reading.read_stays(path)[1].counts() == {"zero_los": 1, "duplicate": 1}


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
        reading.read_stays(path)


def test_undecodable_file_and_bad_options(tmp_path):
    path = tmp_path / "stays.csv"
    path.write_bytes("site,admission_date,los_days\nUnité,2020-01-01,3\n".encode("latin-1"))
    with pytest.raises(ValueError, match="encoding="):
        reading.read_stays(path)
    assert reading.read_stays(path, encoding="latin-1")[0].site_names == ("Unité",)
    with pytest.raises(ValueError, match="zero_stay"):
        reading.read_stays(path, zero_stay=0.0)
    with pytest.raises(ValueError, match="duplicates"):
        reading.read_stays(path, duplicates="drop")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="window"):
        reading.read_stays(path, start=datetime.date(2020, 1, 2), end=datetime.date(2020, 1, 1))


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
        stays, rejects = reading.read_stays(path)
        assert stays.site.size + rejects.rows.size == len(rows)
        assert sum(rejects.counts().values()) == rejects.rows.size
        assert (np.diff(rejects.rows) > 0).all() and (rejects.rows > 1).all()
        assert set(rejects.reasons) <= reading.REASONS.keys()
        # What was set aside is what stands in the file, in order.
        lines = iter(tuple(row) for row in rows)
        assert all(line in lines for line in rejects.lines)
        # What was accepted obeys the record's contract.
        assert (stays.los > 0).all() and np.isfinite(stays.los).all()
        assert (stays.day >= 0).all() and (stays.day < stays.num_days).all()
        given_date = stays.discharge_day >= 0
        assert (stays.discharge_day[given_date] >= stays.day[given_date]).all()
        again = reading.read_stays(path)[0]
        reading.write_stays(path, stays)
        if stays.site.size:
            back, none = reading.read_stays(path, strict=True)
            assert none.rows.size == 0
            for a, b in zip(back, again, strict=True):
                np.testing.assert_array_equal(a, b)


def test_corrected_rejects_can_be_read_again(tmp_path):
    bad = [BAD["negative_los"], BAD["zero_los"], BAD["bad_los"]]
    _, rejects = reading.read_stays(_write(tmp_path / "stays.csv", GOOD, *bad))
    path = tmp_path / "rejects.csv"
    reading.write_rejects(path, rejects)
    with open(path, newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["row", "reason", *HEADER.split(",")]
    assert table[2] == ["4", "zero_los", *BAD["zero_los"].split(",")]
    path.write_text(path.read_text().replace("-0.1", "1").replace("two", "2"))
    stays, rest = reading.read_stays(path)
    np.testing.assert_array_equal(stays.los, [1.0, 2.0])
    assert rest.counts() == {"zero_los": 1}


def _stays(rng, num=300):
    day = rng.integers(5, 90, num)
    event = rng.random(num) < 0.9
    return reading.Stays(
        site=rng.choice([0, 0, 0, 2], num).astype(np.int32),
        day=day.astype(np.int32),
        los=rng.exponential(9.0, num) + 0.01,
        event=event,
        discharge_day=np.where(event, day + 3, -1).astype(np.int32),
        num_sites=3,
        num_days=90,
        site_names=("A", "B", "C"),
        origin=datetime.date(2021, 12, 1),
    )


def test_pooled_by_site_matches_a_loop():
    stays = _stays(np.random.default_rng(0))
    pooled = reading.pooled_by_site(stays, multiple=64)
    sizes = np.bincount(stays.site, minlength=3)
    assert pooled.los.shape == (3, -(-sizes.max() // 64) * 64)
    for i in range(3):
        mask = stays.site == i
        np.testing.assert_array_equal(pooled.day[i, : sizes[i]], stays.day[mask])
        np.testing.assert_array_equal(pooled.los[i, : sizes[i]], stays.los[mask])
        np.testing.assert_array_equal(pooled.event[i, : sizes[i]], stays.event[mask])
        np.testing.assert_array_equal(pooled.weight[i], np.arange(len(pooled.weight[i])) < sizes[i])
    assert (pooled.los[pooled.weight == 0] == 1).all()
    assert reading.pooled_by_site(stays).los.shape == (3, 1024)  # one shape for many data sets


def test_take_site_has_its_own_contiguous_range():
    stays = _stays(np.random.default_rng(1))
    one = reading.take_site(stays, 2)
    mask = stays.site == 2
    assert one.day.min() == 0 and one.day.max() == one.num_days - 1
    np.testing.assert_array_equal(
        reading.dates(one.origin, one.num_days)[one.day],
        reading.dates(stays.origin, stays.num_days)[stays.day[mask]],
    )
    length = one.discharge_day - one.day
    assert (length[one.event] == 3).all() and (one.discharge_day[~one.event] == -1).all()
    assert one.site_names == ("C",)
    with pytest.raises(ValueError, match="no stays at site 1"):
        reading.take_site(stays, 1)


def _inputs(seed=0, num_days=6):
    rng = np.random.default_rng(seed)
    return occupancy.QueueInputs(
        lam=jnp.asarray(rng.gamma(2.0, 1.0, (3, num_days))),
        mu=jnp.asarray(rng.gamma(9.0, 1.0, (3, num_days))),
        sig2=jnp.asarray(rng.gamma(9.0, 9.0, (3, num_days))),
        kappa=jnp.asarray([1.34, 1.0, 0.97]),
        family=jnp.asarray(
            [conditional.FAMILIES.index(f) for f in ("fisk", "exponential", "weibull")]
        ),
        smax=jnp.asarray([325, 57, 52]),
    )


@pytest.mark.parametrize("origin", [None, datetime.date(2019, 12, 30)], ids=["days", "dates"])
def test_processed_round_trip_is_exact(tmp_path, origin):
    path, inputs = tmp_path / "processed.csv", _inputs()
    reading.write_processed(path, inputs, site_names=["North", "Site 2", "Site 10"], origin=origin)
    back = reading.read_processed(path)
    assert back.site_names == ("North", "Site 2", "Site 10") and back.origin == origin
    for name, a, b in zip(inputs._fields, back.inputs, inputs, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name


def test_processed_round_trip_is_exact_in_float64(tmp_path, x64):
    path, inputs = tmp_path / "processed.csv", _inputs(1)
    reading.write_processed(path, inputs)
    back = reading.read_processed(path).inputs
    assert back.lam.dtype == jnp.float64
    np.testing.assert_array_equal(back.mu, inputs.mu)


def test_processed_without_laws_takes_keywords(tmp_path):
    path = tmp_path / "processed.csv"
    path.write_text("Site,Day,Lam,Mu,Sig2\n2,8,1,5,25\n1,7,2,6,36\n2,7,3,7,49\n1,8,4,8,64\n")
    back = reading.read_processed(path, family=["gamma", "burr"], kappa=1.5, smax=60)
    np.testing.assert_array_equal(back.inputs.lam, [[2, 4], [3, 1]])
    np.testing.assert_array_equal(back.inputs.sig2, [[36, 64], [49, 25]])
    assert [conditional.FAMILIES[i] for i in back.inputs.family] == ["gamma", "burr"]
    np.testing.assert_array_equal(back.inputs.smax, [60, 60])
    with pytest.raises(ValueError, match="no column 'kappa'"):
        reading.read_processed(path, family="gamma", smax=60)
    with pytest.raises(ValueError, match="one value or 2, got 3"):
        reading.read_processed(path, family="gamma", smax=[1, 2, 3], kappa=1.0)
    with pytest.raises(ValueError, match="'normal' is not one of"):
        reading.read_processed(path, family="normal", smax=60, kappa=1.0)


@pytest.mark.parametrize(
    "rows, message",
    [
        (["a,0,1,5,25", "a,2,1,5,25"], "contiguous"),
        (["a,0,1,5,25", "b,1,1,5,25"], "contiguous"),
        (["a,0,1,5,25", "a,0,1,5,25"], "line 3: day 0 of site 'a' is given twice"),
        (["a,0,-1,5,25"], "line 2: need lam >= 0"),
        (["a,0,1,0,25"], "mu > 0"),
        (["a,0,1,5,nan"], "line 2: sig2 must be a finite number"),
        (["a,0,1,5,x"], "sig2 must be a finite number"),
        (["a,0,1,5,25", "a,2020-01-02,1,5,25"], "the same kind on every row"),
        (["a,0,1,5"], "4 cells"),
    ],
)
def test_processed_errors_name_line_and_rule(tmp_path, rows, message):
    path = tmp_path / "processed.csv"
    path.write_text("\n".join(["site,day,lam,mu,sig2", *rows]))
    with pytest.raises(ValueError, match=message):
        reading.read_processed(path, family="gamma", kappa=1.0, smax=60)


def test_processed_laws_must_be_constant(tmp_path):
    path = tmp_path / "processed.csv"
    path.write_text("site,day,lam,mu,sig2,kappa\na,0,1,5,25,1\na,1,1,5,25,2\n")
    with pytest.raises(ValueError, match="line 3: .* change"):
        reading.read_processed(path, family="gamma", smax=60)


def test_table_is_exact_and_readable(tmp_path):
    path = tmp_path / "table.csv"
    columns = {
        "site": ["A, B", "C"],
        "date": reading.dates(datetime.date(2024, 2, 29), 2),
        "rho": np.array([0.1, np.nan], np.float32),
        "upper": np.array([1 / 3, 1e-300]),
        "census": jnp.asarray([3, 4]),
    }
    reading.write_table(path, columns)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "site": "A, B",
        "date": "2024-02-29",
        "rho": "0.1",
        "upper": repr(1 / 3),
        "census": "3",
    }
    assert rows[1]["rho"] == "" and float(rows[1]["upper"]) == 1e-300
    with pytest.raises(ValueError, match="differ in length"):
        reading.write_table(path, {"a": [1, 2], "b": [1]})
    with pytest.raises(ValueError, match="one axis"):
        reading.write_table(path, {"a": np.zeros((2, 2))})
