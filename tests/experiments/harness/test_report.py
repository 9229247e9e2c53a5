"""The page and the Markdown table: complete, self-contained, escaped, and only measured figures."""

import base64
import dataclasses
import html.parser
import itertools
import pathlib
import re

import pytest

import experiments
from experiments.harness import findings, markdown, report, result, words

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
NASTY = """<b onclick="x('&')">|`*[a](b)\\"""
ENVIRONMENT = result.Environment("TPU v9", "tpu", 4, "Some CPU", 8, {"jax": "0.10.2"})
ROWS = (
    result.Row("Claim A", "Beds", 26, (25.0, 27.5), ("85 % rule", 20), 24, "better", "beds"),
    result.Row("Claim B", "Coverage", None, verdict="not measured", note="Needs data."),
    result.Row("Claim A", "Loss", 0.131704, paper="1 to 2 %"),
)
RESULT = result.Result(
    "toy",
    ROWS,
    figures=(result.Figure("a.png", "The caption", "The alternative"),),
    tables=(result.Table("Beds", ("Site", "Beds", "Law"), (("1", 14.5, "Fisk"), ("2", None, ""))),),
    title="A toy",
    summary="It adds.",
    limits=("It is a toy.",),
    preset="cpu",
    config={"seed": 77, "stl": {"span": 15}, "sites": [3, 4], "data": None},
    environment=ENVIRONMENT,
    seconds=431.2,
    command="python -m experiments run toy",
    finished="2025-11-23T04:00:00",
)


class Page(html.parser.HTMLParser):
    """Elements as `(tag, attributes, enclosing tags)` and the words a reader sees."""

    VOID = ("meta", "img", "br")

    def __init__(self, markup):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(markup)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    return findings.Run(tmp_path, RESULT)


@pytest.mark.parametrize("missing", [(), ("other",)], ids=["one_run", "with_contents"])
def test_page_is_sound_and_self_contained(run, missing):
    page = Page(report.page([run], missing))
    assert page.open == []
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("footer")) == 1
    assert page.all("html") == [{"lang": "en"}]
    assert "viewport" in [meta.get("name") for meta in page.all("meta")]
    for forbidden in ("script", "link", "iframe", "object"):
        assert page.all(forbidden) == []
    ids = {attributes["id"] for _, attributes, _ in page.elements if "id" in attributes}
    for _, attributes, _ in page.elements:
        assert attributes.get("src", "data:").startswith("data:")
        if "href" in attributes:
            assert attributes["href"].startswith("#") and attributes["href"][1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert all(cell["scope"] in ("row", "col", "rowgroup") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("div" in above for tag, _, above in page.elements if tag == "table")
    # Headings go down one level at a time.
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert "url(" not in report.page([run]) and "@import" not in report.page([run])


def test_page_shows_all_that_was_measured(run):
    page = Page(report.page([run]))
    for said in (
        "A toy",
        "It adds.",
        "Claim A",
        "Claim B",
        "26 beds",
        "25 to 27.5",
        "95 % interval",
        "20 beds",
        "85 % rule",
        "24 beds",
        "0.1317",
        "1 to 2 %",
        "Needs data.",
        "better",
        "14.5",
        "Fisk",
        "It is a toy.",
        "python -m experiments run toy",
        "4 × TPU v9",
        "jax 0.10.2",
        "7 min 11 s",
        "23 November 2025, 04:00",
        "stl.span",
        "15",
        "3, 4",
        "77",
    ):
        assert said in page.text, said
    assert page.text.index("Claim A") < page.text.index("Claim B")


def test_page_has_no_figure_without_a_run(run):
    """Every digit on the page comes from the result, from CSS or from the date of writing."""
    empty = result.Result("toy", (result.Row("Claim", "Beds", None, verdict="not measured"),))
    page = Page(report.page([findings.Run(run.folder, empty)], missing=("other",)))
    told = page.text.split("Written")[0]
    assert re.findall(r"\d+", told) == []
    assert "not measured" in told
    assert "python -m experiments run other --preset cpu" in told


def test_everything_is_escaped(run):
    rows = (
        result.Row(NASTY, NASTY, 1.0, None, (NASTY, 1.0), NASTY, unit=NASTY, note=NASTY),
        result.Row(NASTY, NASTY, None, verdict="not measured"),
    )
    nasty = dataclasses.replace(
        RESULT,
        experiment=NASTY,
        rows=rows,
        figures=(result.Figure("a.png", NASTY, NASTY), result.Figure(NASTY, NASTY)),
        tables=(result.Table(NASTY, (NASTY, NASTY), ((NASTY, None),), NASTY),),
        limits=(NASTY,),
        config={NASTY: {NASTY: [NASTY]}},
        environment=result.Environment(NASTY, "tpu", 1, NASTY, 1, {NASTY: NASTY}),
        **dict.fromkeys(
            ("title", "summary", "paper", "interval_label", "preset", "command", "finished"), NASTY
        ),
    )
    page = Page(report.page([run._replace(result=nasty), run], missing=(NASTY,)))
    assert page.all("b") == [] and page.open == []
    assert not any("onclick" in attributes for _, attributes, _ in page.elements)
    assert page.text.count(NASTY) > 20
    # In Markdown every row has as many unescaped bars as the header.
    lines = markdown.claims([run._replace(result=nasty), run]).splitlines()
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines if line.startswith("|")]
    assert len(bars) == 2 + 2 + 3 and set(bars) == {7}
    assert "<b" not in "".join(line for line in lines if line.startswith("|"))


def test_an_empty_table_and_an_empty_result_still_make_a_page(tmp_path):
    empty = result.Result("toy", tables=(result.Table("Nothing", ("a", "b"), ()),))
    page = Page(report.page([findings.Run(tmp_path, empty), findings.Run(tmp_path, RESULT)]))
    assert "Nothing" in page.text and page.open == []


def test_figures_are_inlined_byte_for_byte(run):
    (picture,) = Page(report.page([run])).all("img")
    header, _, data = picture["src"].partition(",")
    assert header == "data:image/png;base64" and base64.b64decode(data) == PNG
    assert picture["alt"] == "The alternative"


def test_a_phone_is_shown_the_picture_drawn_for_it(run):
    narrow = PNG + b"narrow"
    result.phone(run.folder / "a.png").write_bytes(narrow)
    page = Page(report.page([run]))
    (source,), (picture,) = page.all("source"), page.all("img")
    assert source["media"] == f"({report.PHONE})" and page.open == []
    header, _, data = source["srcset"].partition(",")
    assert header == "data:image/png;base64" and base64.b64decode(data) == narrow
    assert base64.b64decode(picture["src"].partition(",")[2]) == PNG


def test_an_opening_table_comes_before_every_figure(run):
    opening = (result.Table("First of all", ("Site", "Beds"), (("A", 14),), "What it says"),)
    outcome = result.assemble(
        [result.Part(rows=ROWS, tables=RESULT.tables), result.Part(opening=opening)],
        experiment="toy",
    )
    assert outcome.opening == opening
    markup = report.page([run._replace(result=outcome)])
    said = Page(markup).text
    assert said.index("First of all") < said.index("What it says") < said.index("26 beds")
    assert said.index("First of all") < said.index("Claims and figures")


def test_rows_of_one_name_stand_below_it(run):
    """A site's rules: its name once, above them, and each rule the name of its row."""
    cells = [("North", "today", 14, "12–14"), ("North", "5 % risk", 16, "–")]
    cells += [("South", name, 20, "19–21") for name in ("today", "5 % risk")]
    table = result.Table("Beds", ("Site", "Rule", "Beds", "Interval"), tuple(cells))
    outcome = result.Result("toy", tables=(table,))
    page = Page(report.page([run._replace(result=outcome)]))
    bands = [cell for cell in page.all("th") if cell["scope"] == "rowgroup"]
    assert [band["colspan"] for band in bands] == ["3", "3"] and page.open == []
    assert page.text.count("North") == page.text.count("South") == 1
    heads = [cell for cell in page.all("th") if cell["scope"] == "row"]
    assert len(heads) == 4 and {head["class"] for head in heads} == {"whole"}  # they do not break
    assert [cell["class"] for cell in page.all("td")] == ["n"] * 8  # nor does "12–14"
    mostly = result.Table("t", table.columns, (*table.rows[1:3], ("East", "today", 1, "")))
    page = Page(report.page([run._replace(result=result.Result("toy", tables=(mostly,)))]))
    assert "rowgroup" not in {cell["scope"] for cell in page.all("th")}


def test_an_interval_says_what_it_is(run):
    rows = (
        result.Row("A", "Beds", 26, (25, 27), unit="beds"),
        result.Row("A", "Days", 24, (20, 28), interval_label="range over sites"),
    )
    outcome = result.Result("toy", rows, interval_label="middle of all draws")
    page = Page(report.page([run._replace(result=outcome)])).text
    for said in ("middle of all draws: 25 to 27", "range over sites: 20 to 28"):
        assert said in page, said
    assert "20 to 28 range over sites" in page  # in the table too
    told = markdown.claims([run._replace(result=outcome)])
    assert "In brackets after our figures: middle of all draws; range over sites." in told


@pytest.mark.parametrize("path", ["../secret.png", "gone.png", "notes.txt"])
def test_figures_outside_the_run_folder_stay_out(tmp_path, path):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "notes.txt").write_text("private")
    figure = result.Figure(path, "The caption")
    page = Page(report.page([findings.Run(folder, result.Result("toy", figures=(figure,)))]))
    assert page.all("img") == []
    assert f"{path} is not in the run folder" in page.text and "The caption" in page.text


def test_verdicts_differ_without_color():
    assert words.SHAPES.keys() == result.VERDICTS.keys()
    assert len(set(words.SHAPES.values())) == len(words.SHAPES)
    css = report._CSS.read_text(encoding="utf-8")
    for verdict in result.VERDICTS:
        assert f".v-{verdict.replace(' ', '-')}" in css


def test_load_tells_what_it_could_not_read(tmp_path):
    for name in ("good", "broken", "empty"):
        (tmp_path / name).mkdir()
    result.write(tmp_path / "good" / "result.json", RESULT)
    (tmp_path / "broken" / "result.json").write_text("{")
    runs, problems = findings.load([tmp_path, tmp_path / "empty"])
    assert runs == [findings.Run(tmp_path / "good", RESULT)]
    assert len(problems) == 2
    assert "broken" in problems[0] and "empty holds no result.json" in problems[1]


def test_latest_keeps_the_newest_run_that_tells_something(tmp_path):
    def at(finished, **changes):
        changed = dataclasses.replace(RESULT, finished=finished, **changes)
        return findings.Run(tmp_path / finished, changed)

    gpu = dataclasses.replace(ENVIRONMENT, device="GPU")
    runs = [
        at("2025-03", kind="benchmark", experiment="a_bench"),
        at("2025-04"),
        at("2025-02"),
        at("2025-06", preset="smoke"),
        at("2025-01", preset="smoke", experiment="untried"),
        at("2025-05", environment=gpu),
    ]
    kept = [run.folder.name for run in findings.latest(runs)]
    assert sorted(kept) == ["2025-01", "2025-03", "2025-04", "2025-05"]
    assert kept[-1] == "2025-03"  # benchmarks come after experiments


SYSTEMS = {
    "First": ("jaxlab/first", ("toy", "other")),
    "Second": ("jaxlab/second", ("unmeasured",)),
    "Third": ("jaxlab/third", ("never_run",)),
}


def a_run(folder, name, *rows, **changes):
    return findings.Run(folder, result.Result(name, rows, environment=ENVIRONMENT, **changes))


def test_the_first_screen_has_a_line_for_each_system(tmp_path):
    """Three figures: the first measured one of every claim, from its experiments in turn."""

    def row(claim, metric, value=1.0, verdict="measured"):
        return result.Row(claim, metric, value, verdict=verdict)

    made = dataclasses.replace(ENVIRONMENT, commit="0123456789" * 4 + "-dirty")
    toy = (
        row("A", "a0", None, "not measured"),
        result.Row("A", "a1", 26, None, ("rule", 20), 24, "better", "beds"),
        row("B", "b0"),
        row("A", "a2"),
        row("C", "c0"),
    )
    runs = [
        a_run(tmp_path, "toy", row("A", "smoke"), preset="smoke"),
        a_run(tmp_path, "toy", row("A", "mine"), preset="cpu", command="x run toy --data my.csv"),
        findings.Run(tmp_path, result.Result("toy", toy, preset="cpu", environment=made)),
        a_run(tmp_path, "other", result.Row("O", "o0", 2.0, paper="1 to 2 %"), preset="gpu"),
        a_run(tmp_path, "unmeasured", row("N", "n0", None, "not measured")),
        a_run(tmp_path, "alone", row("L", "l0"), title="Stands alone"),
        a_run(tmp_path, "bench_x", row("P", "p0"), kind="benchmark"),
    ]
    found = findings.glance(runs, SYSTEMS)
    assert [(g.title, [row.metric for _, row in g.rows]) for g in found] == [
        ("First", ["a1", "o0", "b0"]),
        ("Second", []),
        ("Stands alone", ["l0"]),
    ]
    page = Page(report.page(runs, systems=SYSTEMS))
    first = page.text[: page.text.index("smoke")]  # before the contents and the results
    for said in ("a1 26 beds against 20 beds (rule)", "▲ better", "o0 2 against 1 to 2 % (paper)"):
        assert said in first, said
    assert "commit 0123456789 with changes, commit not recorded" in first
    (anchor,) = {a["href"] for a in page.all("a") if a.get("href") == "#r2"}
    assert anchor == "#r2" and page.open == []
    table = markdown.overview(runs, SYSTEMS).splitlines()
    assert table[2:] == [
        "| **[First](jaxlab/first/README.md#results)** | a1 | 26 beds | 20 beds (rule) "
        "| ▲ better |",
        "|  | o0 | 2 | 1 to 2 % (paper) | ■ measured |",
        "|  | b0 | 1 |  | ■ measured |",
        "| Stands alone | l0 | 1 |  | ■ measured |",
    ]


def test_every_experiment_is_in_a_system():
    names = [name for _, found in experiments.SYSTEMS.values() for name in found]
    assert sorted(names) == sorted(experiments.EXPERIMENTS)
    root = pathlib.Path(experiments.__file__).parents[1]
    for folder, _ in experiments.SYSTEMS.values():
        assert "\n## Results" in (root / folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (26, "26"),
        (26.0, "26"),
        (0, "0"),
        (0.0, "0"),
        (-3.25, "−3.25"),
        (0.131704, "0.1317"),
        (1 / 3, "0.3333"),
        (28.4999, "28.5"),
        (2024, "2024"),
        (12345.678, "12,346"),
        (1234567, "1,234,567"),
        (3.2e-5, "3.2×10⁻⁵"),
        (-1e-9, "−1×10⁻⁹"),
        (7.94e11, "7.94×10¹¹"),
        (0.99996, "1"),
        (100, "100"),
    ],
)
def test_numbers_read_well(value, shown):
    assert words.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (4.2e-8, "0.042 µs"),
        (1.234e-5, "12.3 µs"),
        (0.31, "310 ms"),
        (59.94, "59.9 s"),
        (431.2, "7 min 11 s"),
        (3599.7, "60 min 00 s"),
        (7265, "2 h 01 min"),
    ],
)
def test_durations_read_well(seconds, shown):
    assert words.duration(seconds) == shown


@pytest.mark.parametrize(
    ("column", "figures"),
    [
        ([1, "–"], True),
        (["12–14", "–"], True),
        (["2023-01-31"], True),
        (["21 (3.1) / 20"], True),
        (["14 (no interval)", "3"], False),
        (["–", "–"], False),
        ([None], False),
        ([True], False),
    ],
)
def test_figures_are_told_from_words(column, figures):
    assert words.are_figures(column) == figures


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        ([20, 38.8, None], ["20.0", "38.8", "not measured"]),
        ([14, 39], ["14", "39"]),
        ([2016, 2023], ["2016", "2023"]),
        ([0.238, 0.0012], ["0.2380", "0.0012"]),
        ([12000, 9], ["12,000", "9"]),
        ([1.0, 1e-7], ["1", "1×10⁻⁷"]),
        (["Fisk", True], ["Fisk", "yes"]),
        ([-1.5, 2], ["−1.5", "2.0"]),
    ],
)
def test_columns_align_their_decimals(column, shown):
    table = result.Table("t", ("x",), tuple((value,) for value in column))
    assert [row[0] for row in words.cells(table)] == shown


def test_terminal_shows_the_same_figures(capsys):
    bracketed = dataclasses.replace(RESULT.rows[0], metric="Beds [bold]")
    words.show(dataclasses.replace(RESULT, rows=(bracketed, *RESULT.rows[1:])))
    told = " ".join(capsys.readouterr().out.split())
    for said in ("26 beds", "[bold]", "4 × TPU v9", "not measured", "14.5"):
        assert said in told
