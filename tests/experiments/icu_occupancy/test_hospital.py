"""A hospital's own file from the command line: what is refused, in one line, and what is said."""

import csv
import types

import numpy as np
import pytest
import scipy.stats

from experiments import __main__ as command_line
from experiments.icu_occupancy import Config, hospital, rows
from jaxlab import queueing as q


@pytest.fixture
def stays(tmp_path):
    """Writes a file of stays."""

    def write(*rows, header="site,admission_date,discharge_date"):
        path = tmp_path / "stays.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--data", "/nope.csv"), "there is no file /nope.csv"),
        (("--data", "/"), "there is a folder /"),
        (("--data", "/nope.csv", "--convention", "bed_days"), "there is no file /nope.csv"),
        (("--gamma", "2"), "gamma must lie in (0, 1], got 2.0"),
        (("--gamma", "nan"), "gamma must lie in (0, 1], got nan"),
        (("--gamma", "0"), "gamma must lie in (0, 1], got 0.0"),
        (("--max-stay", "nan"), "max_stay must be positive, got nan"),
        (("--beds", "14", "-3"), "beds must be at least 1"),
        (("--seed", "-1"), "seed must be at least 0"),
        (("--start", "31/01/2023"), "start must be a date such as 2023-01-31, got '31/01/2023'"),
        (("--start", "2023-02-01", "--end", "2023-01-01"), "start 2023-02-01 lies after end"),
        (("--separator", ";", "--bin", "1h"), "separator, bin say how to read a CSV: name it"),
    ],
)
def test_wrong_flags_are_one_line_and_leave_no_folder(
    arguments, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["run", "icu_occupancy", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and len(printed.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_of_which_nothing_can_be_used_is_counted_and_kept(stays, tmp_path, capsys):
    path = stays(*["A,soon,2023-01-02"] * 3, "A,2023-01-05,2023-01-01")
    out = tmp_path / "run"
    arguments = ["run", "icu_occupancy", "--data", str(path), "--out", str(out)]
    assert command_line.main(arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "--date-format" in said
    assert "3 bad_date (" in said and "1 discharge_before_admission (" in said
    with (out / "rejects.csv").open() as file:
        assert [row["reason"] for row in csv.DictReader(file)] == ["bad_date"] * 3 + [
            "discharge_before_admission"
        ]


def test_flags_reach_the_reader(stays):
    path = stays(
        "A;3.2.2023;;7",
        "A;4.2.2023;2,5;7",
        "A;4.2.2023;2,5;7",
        "A;1.3.2023;2,5;8",
        header="site;admission_date;los_days;mrn",
    )
    config = Config(
        data=str(path),
        id_column="mrn",
        date_format="DD.MM.YYYY",
        separator=";",
        encoding="utf-8",
        start="2023-02-04",
        end="2023-02-28",
    )
    found, rejects = hospital.read(config)
    assert found.los.tolist() == [2.5] and found.num_days == 25
    assert rejects.counts() == {"missing_los": 1, "duplicate": 1, "outside_window": 1}
    assert hospital.in_short(rejects) == " Set aside: 2 rows of the file."
    keep = hospital.read(Config(data=str(path), date_format="DD.MM.YYYY", duplicates="keep"))[1]
    assert hospital.in_short(keep).endswith("counted as other patients: 1 row.")
    assert hospital.in_short(None) == ""


def test_the_report_says_how_a_file_was_read(stays, tmp_path):
    rows = ["A,2023-01-01,2023-01-03", "a,2023-01-01,2023-01-03", "A,2023-01-02,2022-01-01"]
    path = stays(*rows, "B,2023-01-05,2023-01-06", "B,2023-01-07 06:00,")
    found, rejects = hospital.read(Config(data=str(path)))
    sites, read, aside = hospital.about_file(found, rejects, tmp_path).tables
    assert sites.rows == (
        ("A", "2023-01-01", "2023-01-01", 2, 0, 0, 2),
        ("B", "2023-01-05", "2023-01-07", 2, 0, 1, 1),
    )
    later = hospital.read(Config(data=str(path), start="2023-01-02"))
    assert hospital.about_file(*later, tmp_path).tables[0].rows[0][3:6] == (0, 2, 0)
    assert read.rows == tuple((notice,) for notice in rejects.notices) != ()
    assert aside.rows == (("discharge_before_admission", 1, "4"),)
    assert (tmp_path / "rejects.csv").exists()


def test_hours_are_those_of_the_clock(stays, tmp_path):
    """Day cases from 8:00 to 14:00, two a day: two beds from eight to two, none at night."""
    rows = [f"Day,2023-01-{d:02} 08:00,2023-01-{d:02} 14:00" for d in range(1, 15) for _ in "ab"]
    found, _ = hospital.read(Config(data=str(stays(*rows)), bin="1h"))
    census = q.observed(found, "midnight", bin="1h")
    (table,) = hospital.hours(found, census, np.zeros_like(census), tmp_path).tables
    assert table.columns[1:9] == tuple(f"{h:02}:00" for h in range(0, 24, 3))
    # 6:00 stands for the hour up to seven o'clock, 9:00 for the one up to ten.
    assert table.rows == (("Day", 0.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 2.0),)
    with (tmp_path / "occupancy_by_hour.csv").open() as file:
        series = list(csv.DictReader(file))
    assert len(series) == 14 * 24 and series[8]["hour"] == "2023-01-01T08"
    beds = np.array([float(row["observed_census"]) for row in series]).reshape(14, 24)
    np.testing.assert_array_equal(beds, np.tile([0] * 8 + [2] * 5 + [0] * 11, (14, 1)))
    dated = stays("Day,2023-01-01,2023-01-03")
    with pytest.raises(ValueError, match="1 of 1 stays have a date alone"):
        hospital.read(Config(data=str(dated), bin="1h"))


@pytest.mark.slow  # two plans are compiled
def test_beds_by_the_hour_stand_beside_those_by_the_day(stays, tmp_path):
    """Two day cases, one after the other: two patients by the day, one at most by the hour."""
    rng = np.random.default_rng(0)
    rows = []
    for day in np.datetime64("2023-01-01") + np.arange(60):
        for hour in (8, 14):
            length = np.timedelta64(int(rng.integers(150, 270)), "m")
            begin = day.astype("datetime64[m]") + np.timedelta64(60 * hour, "m")
            rows.append(f"Day,{begin},{begin + length}")
    found, _ = hospital.read(Config(data=str(stays(*rows)), bin="1h"))
    queue, rules = hospital.settings_of(Config(convention="touch"))
    study = q.plan_study(found, queue=queue, rules=rules)
    beds, by_hour = hospital.by_the_hour(study, tmp_path).tables
    assert by_hour.rows[0][0] == "Day" and by_hour.rows[0][-1] <= 1.0
    by_day, by_the_hour = map(int, beds.rows[0][2].split(" / "))  # for a risk of 5 %
    assert by_day > by_the_hour + 1
    assert study.census[0].mean() == 2.0


def test_intervals_are_whole_beds_around_the_count():
    """Of peak 34 with draws between 35 and 42 nobody makes "34 (35–42)"."""
    beds = np.array([[14, 14], [30, 34], [9, 40]])
    drawn = q.Interval(
        np.array([[28.475, 35.2], [8.0, np.nan]]), np.array([[31, 41.6], [8, np.nan]])
    )
    low, high = hospital._around(beds, drawn)
    np.testing.assert_array_equal(low, [[np.nan, np.nan], [28, 34], [8, np.nan]])
    np.testing.assert_array_equal(high, [[np.nan, np.nan], [31, 42], [9, np.nan]])


@pytest.fixture
def measured():
    """A unit of 10 patients on average with beds for 12, and more than 12 on every other day."""
    plan = types.SimpleNamespace(
        rho=np.full((1, 400), 10.0),
        mask=np.ones((1, 400), bool),
        series=types.SimpleNamespace(rate=np.ones(1)),
    )
    study = types.SimpleNamespace(
        plan=plan,
        census=np.tile([9.0, 13.0], 200)[None],
        stays=types.SimpleNamespace(site_names=("Ward",), num_sites=1),
        queue=q.QueueModel(),
        rules=q.BedRules(),
    )
    beds = np.array([[12], [14], [15], [18], [14], [12]])
    none, ones = np.full((1, 1), np.nan), np.ones((5, 1))
    share = np.linspace(0.6, 0.1, 12)[None]
    summary = q.SimSummary(*[np.zeros(1)] * len(q.SimSummary._fields))
    summary = summary._replace(exceed=share, episode_days=10 * share, replications=1024)
    interval = q.Interval(np.vstack([none, 12 * ones]), np.vstack([none, 19 * ones]))
    rules = (hospital.TODAY, *q.rule_names(study.rules))
    return hospital.Measured(study, rules, beds, interval, 20, summary)


def test_the_beds_of_today_are_a_row_with_their_risk(measured):
    table = rows.risk_table(measured, "Beds and risk")
    today = dict(zip(table.columns, table.rows[0], strict=True))
    assert today["Rule"] == "Beds today" and today["Beds"] == 12 and today["95 % interval"] == "–"
    risk = 100 * scipy.stats.poisson.sf(12, 10.0)
    assert today["Risk, % of days"] == round(risk, 1)
    assert today["Risk simulated, %"] == 60.0 and today["Observed, % of days"] == 50.0
    assert len(table.rows) == 6 and table.rows[1][3] == "12–19"
    assert rows.in_short(measured) == f" Today's 12 beds are too few on {risk:.1f} % of days."
    unknown = measured._replace(rules=measured.rules[1:], beds=measured.beds[1:])
    assert rows.in_short(unknown) == ""


def test_one_site_has_no_range_over_sites(measured):
    """Nor "24.28 to 24.28", nor "all sites", nor an interval that some note explains."""
    today, beds, average = rows.headline_rows(measured, "one.csv", compare=False)
    assert today.value == 60.0 and today.metric == "Days over 100 % with today's 12 beds (one.csv)"
    assert today.interval is None and average.interval is None
    assert beds.value == 15 and beds.interval == (12, 19) and beds.baseline == ("85 % rule", 12)
    assert beds.metric == "Beds by the rule for a 5 % overflow risk (one.csv)"
    assert beds.interval_label == "95 % bootstrap interval"
    assert "interval" not in " ".join(row.note for row in (today, beds, average))
