"""Dates and times: what has one reading is read, what has two is refused."""

import datetime
import math

import numpy as np
import pytest

from jaxlab.queueing.data import times

MAY_31 = (datetime.date(2023, 5, 31) - datetime.date(1970, 1, 1)).days
NAN = math.nan
HOUR = 3_600_000_000


def _one(text, date_format=None):
    (moments,), _ = times.read_moments([[text]], date_format)
    return tuple(float(column[0]) for column in moments[:3])


@pytest.mark.parametrize(
    "text, day, time, zone",
    [
        ("2023-05-31", 0, NAN, NAN),
        (" 2023-5-31 ", 0, NAN, NAN),
        ("2023/05/31", 0, NAN, NAN),
        ("20230531", 0, NAN, NAN),
        ("2023-05-31 08:00", 0, 8 * HOUR, NAN),
        ("2023-05-31T8:00:30", 0, 8 * HOUR + 30e6, NAN),
        ("2023-05-31\xa008:00:00.250", 0, 8 * HOUR + 250_000, NAN),
        ("2023-05-31T08:00:00Z", 0, 8 * HOUR, 0.0),
        ("2023-05-31 23:30:00+02:00", 0, 23.5 * HOUR, 2 * HOUR),
        ("2023-05-31T23:30-0330", 0, 23.5 * HOUR, -3.5 * HOUR),
        ("20230531080000", 0, 8 * HOUR, NAN),
        ("20230531T0800Z", 0, 8 * HOUR, 0.0),
        ("2023-05-30 24:00", 0, 0.0, NAN),
        ("31/05/2023 12:05 AM", 0, HOUR / 12, NAN),
        ("31.5.2023, 12:00 p.m.", 0, 12 * HOUR, NAN),
        ("5/31/2023 01:00 PM", 0, 13 * HOUR, NAN),
    ],
)
def test_dates_with_one_reading(text, day, time, zone):
    np.testing.assert_equal(_one(text), (MAY_31 + day, time, zone))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2023-02-30",
        "31/05/23",
        "2023-05-31 25:00",
        "2023-05-31 24:01",
        "2023-05-31 08:60",
        "2023-05-31 13:00 PM",
        "2023-05-31x",
        "2023-05-3112",
        "2023-05/31",
        "45077",
        "9" * 5000,
    ],
)
def test_what_is_no_date(text):
    np.testing.assert_equal(_one(text), (NAN, NAN, NAN))


def test_the_file_decides_between_day_and_month():
    columns = [["01/02/2023", "01/02/2023"], ["31/05/2023", "02/02/2023 08:00"]]
    (first, second), notices = times.read_moments(columns, None)
    assert [str(times.date_of(day)) for day in first.day] == ["2023-02-01"] * 2
    assert str(times.date_of(second.day[0])) == "2023-05-31" and len(notices) == 1
    assert "day first" in notices[0] and "31/05/2023" in notices[0]
    (first,), notices = times.read_moments([["01/02/2023", "05/31/2023"]], None)
    assert str(times.date_of(first.day[0])) == "2023-01-02" and "month first" in notices[0]
    (same,), notices = times.read_moments([["05/05/2023"]], None)  # the same either way
    assert str(times.date_of(same.day[0])) == "2023-05-05" and notices == ()


def test_two_readings_are_refused_with_the_flag():
    with pytest.raises(ValueError, match="'03/04/2023' may have .*--date-format %d/%m/%Y"):
        times.read_moments([["2023-01-31", "03/04/2023", "04/04/2023"]], None)
    with pytest.raises(ValueError, match="'31/05/2023' and '05/31/2023' .* different orders"):
        times.read_moments([["31/05/2023", "05/31/2023"]], None)


@pytest.mark.parametrize(
    "date_format, text",
    [
        ("%d/%m/%Y", "31/05/2023"),
        ("DD/MM/YYYY", "31/05/2023"),
        ("mm-dd-yy", "05-31-23"),
        ("%d-%b-%Y", "31-May-2023"),
        ("%d%b%Y", "31May2023"),
    ],
)
def test_a_given_format_reads_dates_with_and_without_times(date_format, text):
    np.testing.assert_equal(_one(text, date_format), (MAY_31, NAN, NAN))
    np.testing.assert_equal(_one(f"{text} 08:00", date_format), (MAY_31, 8 * HOUR, NAN))
    np.testing.assert_equal(_one("2023-31-31", date_format), (NAN, NAN, NAN))


def test_formats_with_times_and_those_that_are_none():
    form = "DD.MM.YYYY HH:MM:SS"
    np.testing.assert_equal(_one("31.05.2023 08:30:00", form), (MAY_31, 8.5 * HOUR, NAN))
    found = _one("31.05.2023 08:30 +0200", "%d.%m.%Y %H:%M %z")
    np.testing.assert_equal(found, (MAY_31, 8.5 * HOUR, 2 * HOUR))
    for form in ("%d/%m", "DD/YYYY", "day first", "%Q", ""):
        with pytest.raises(ValueError, match="date_format must name day, month and year"):
            times.read_moments([["31/05/2023"]], form)


def test_written_times_read_back():
    rng = np.random.default_rng(0)
    days = np.datetime64("2023-05-31") + rng.integers(0, 900, 300)
    time = np.where(rng.random(300) < 0.2, np.nan, rng.integers(0, times.DAY, 300))
    time[:3] = 0, 8 * HOUR, times.DAY - 1
    (back,), _ = times.read_moments([times.iso_text(days, time)], None)
    np.testing.assert_array_equal(back.day, days.astype("datetime64[D]").astype(int))
    np.testing.assert_array_equal(back.time, time)


def test_a_date_of_another_kind_is_a_slip():
    (moments,), notices = times.read_moments([["2023-05-31", "03/04/2023", "2023-6-1"]], None)
    np.testing.assert_array_equal(moments.day, [MAY_31, NAN, MAY_31 + 1])
    assert notices == ()
    (moments,), _ = times.read_moments([["31/05/2023", "01/06/2023", "2023-06-02"]], None)
    np.testing.assert_array_equal(moments.day, [MAY_31, MAY_31 + 1, MAY_31 + 2])
