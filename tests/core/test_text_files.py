"""Files as programs write them: encoding, separator and quotes."""

import csv
import io

import numpy as np
import pytest

from jaxlab.core import tables, text_files

TABLE = "site,admission_date,los_days\nUnité 1,2020-01-01,3\nB,2020-01-02,4\n"


def _read(path, data, **options):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return tables.read_table(path, ("site", "admission_date"), **options)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1"]
)
def test_encodings_are_found_out(tmp_path, encoding):
    data = TABLE.encode(encoding)
    if encoding == "utf-16-le":
        data = b"\xff\xfe" + data
    table = _read(tmp_path / "stays.csv", data)
    assert table.rows == [["Unité 1", "2020-01-01", "3"], ["B", "2020-01-02", "4"]]
    assert any("cp1252" in notice for notice in table.notices) is (
        encoding in ("cp1252", "latin-1")
    )


def test_encodings_that_are_asked_for(tmp_path):
    path = tmp_path / "stays.csv"
    assert _read(path, TABLE.encode("cp850"), encoding="cp850").rows[0][0] == "Unité 1"
    with pytest.raises(ValueError, match=r"not utf-8 text .* at byte \d+\): pass encoding="):
        _read(path, TABLE.encode("cp1252"), encoding="utf-8")
    with pytest.raises(ValueError, match="encoding must be one that Python knows, got 'klingon'"):
        _read(path, TABLE, encoding="klingon")
    with pytest.raises(ValueError, match="pass encoding="):  # 0x81 is no letter of cp1252
        _read(path, TABLE.encode() + b"\x81,2020-01-01,3\n")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("stated", [False, True], ids=["sniffed", "sep="])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "mac"])
def test_separators_are_found_out(tmp_path, separator, stated, end):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=separator, lineterminator=end)
    writer.writerow(["site", "ward; bay|x", "admission_date"])
    writer.writerow(["a,b", "1;2", "2020-01-01"])
    text = f"sep={separator}{end}" * stated + buffer.getvalue()
    table = _read(tmp_path / "stays.csv", text)
    assert table.separator == separator and table.columns["admission_date"] == 2
    assert table.rows == [["a,b", "1;2", "2020-01-01"]] and table.numbers.tolist() == [2 + stated]


def test_separators_that_are_asked_for(tmp_path):
    path = tmp_path / "stays.csv"
    assert _read(path, TABLE.replace(",", "\t"), separator="tab").rows[1] == [
        "B",
        "2020-01-02",
        "4",
    ]
    assert _read(path, TABLE.replace(",", "#"), separator="#").separator == "#"
    with pytest.raises(ValueError, match="one character, or tab, got ', '"):
        _read(path, TABLE, separator=", ")
    with pytest.raises(ValueError, match=r"missing columns .*--separator"):
        _read(path, TABLE, separator=";")


@pytest.mark.parametrize(
    "data, what",
    [
        (b"PK\x03\x04" + bytes(50), "Excel workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(50), "old Excel workbook"),
        (b"\x1f\x8b" + bytes(50), "gzip"),
        (b"%PDF-1.7", "PDF"),
        (b"\n <html><table><tr><td>site</td></tr></table>", "HTML"),
    ],
)
def test_files_that_are_no_text_are_called_what_they_are(tmp_path, data, what):
    with pytest.raises(ValueError, match=f"stays.xlsx is no CSV but .*{what}") as error:
        _read(tmp_path / "stays.xlsx", data)
    assert "\n" not in str(error.value)


def test_a_stray_quote_swallows_no_line(tmp_path):
    lines = [f"S{k},2020-01-01,{k}" for k in range(1, 200)]
    lines[9] = '"S10,2020-01-01,10'  # opened, never closed
    lines[19] = '"S20" x,2020-01-01,20'  # closed in the middle of a cell
    lines[29] = 'S30,2020-01-01,"30'
    lines[39] = 'S40 5" bay,2020-01-01,40'  # a quote within a cell means itself
    table = _read(tmp_path / "stays.csv", "\n".join([TABLE.splitlines()[0], *lines]))
    assert len(table.rows) == 199 and {len(row) for row in table.rows} == {3}
    assert table.rows[9] == ["S10", "2020-01-01", "10"] and table.rows[29][2] == "30"
    assert table.rows[39][0] == 'S40 5" bay' and table.numbers.tolist() == list(range(2, 201))
    assert any("3 lines with a quote" in n and "line 11" in n for n in table.notices)


def test_cells_over_several_lines_are_noticed(tmp_path):
    text = 'site,admission_date,note\na,2020-01-01,"one\ntwo"\nb,2020-01-02,x\n'
    table = _read(tmp_path / "stays.csv", text)
    assert table.rows == [["a", "2020-01-01", "one\ntwo"], ["b", "2020-01-02", "x"]]
    assert table.numbers.tolist() == [2, 4]
    assert any("1 row over 2 lines, from line 2 on" in n for n in table.notices)


def test_a_quote_may_not_swallow_more_than_a_cell_can_hold(tmp_path):
    lines = [f"S,2020-01-01,{k}" for k in range(20_000)]  # beyond the csv module's 128 KiB
    lines[5] = '"S,2020-01-01,5'
    table = _read(tmp_path / "stays.csv", "\n".join([TABLE.splitlines()[0], *lines]))
    assert len(table.rows) == 20_000


@pytest.mark.parametrize(
    "text",
    [
        ",".join(f"column {k}" for k in range(300_000)) + "\n1,2\n",
        ",".join(["site"] * 300_000) + "\n1,2\n",
        "s" * 1_000_000 + "\n1,2\n",
    ],
    ids=["columns", "doubled", "long"],
)
def test_a_huge_header_is_one_short_line(tmp_path, text):
    with pytest.raises(ValueError) as error:
        _read(tmp_path / "stays.csv", text)
    assert len(str(error.value)) < 800 and "\n" not in str(error.value)


def test_names_are_cleaned():
    assert tables.clean_name(" Site\xa0 \t1\u200b ") == "Site 1"
    assert tables.clean_name("e\u0301\x1b[2J") == "é[2J"
    for text in ("=cmd()", "@x", "'=x", "''=x", "-a", "+1 b", "＝x", "plain", "it's"):
        assert tables.clean_name(tables.guarded(text)) == text
    assert tables.guarded("=cmd()") == "'=cmd()"
    assert [tables.guarded(x) for x in ("-0.5", "+3", "-1e5", "-2,5")] == [
        "-0.5",
        "+3",
        "-1e5",
        "-2,5",
    ]


def test_natural_order_has_no_ties_and_no_limit():
    names = ["Site 10", "Site 2", "001", "1", "01", "Site 2b", "9" * 5000, "1" + "0" * 5000, ""]
    rng = np.random.default_rng(0)
    expected = sorted(names, key=tables.natural)
    for _ in range(20):
        assert sorted(rng.permutation(names).tolist(), key=tables.natural) == expected
    assert expected.index("Site 2") < expected.index("Site 2b") < expected.index("Site 10")
    assert expected.index("9" * 5000) < expected.index("1" + "0" * 5000)


@pytest.mark.parametrize(
    "text, comma, value",
    [
        ("2.5", False, 2.5),
        (" -3 ", False, -3.0),
        ("1e3", False, 1000.0),
        (".5", False, 0.5),
        ("2,5", True, 2.5),
        ("2,5", False, np.nan),
        ("1,000.5", True, np.nan),
        ("1_000", False, np.nan),
        ("nan", False, np.nan),
        ("inf", False, np.nan),
        ("0x10", False, np.nan),
        ("", False, np.nan),
        ("٣", False, np.nan),
        ("9" * 5000, False, np.inf),
    ],
)
def test_plain_numbers(text, comma, value):
    np.testing.assert_equal(tables.plain_number(text, comma=comma), value)


def test_records_agree_with_the_csv_module():
    rng = np.random.default_rng(1)
    rows = [
        ["".join(rng.choice(list('ab,;"\n\r é'), rng.integers(0, 5))) for _ in range(3)]
        for _ in range(300)
    ]
    rows = [row for row in rows if any(row)]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    found = text_files.records(text_files.split_lines(buffer.getvalue()), ",")
    assert [cells for _, cells, _ in found] == rows
