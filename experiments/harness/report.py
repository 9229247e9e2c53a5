"""One self-contained page from the results that runs left behind."""

import base64
import html
import itertools
import pathlib
import types
from collections.abc import Sequence
from typing import Any

from experiments.harness import findings, result, words
from experiments.harness.findings import Run, Systems

HEADLINES = 4  # rows shown as large numbers
SHORT = 20  # letters of words that are kept on one line
PHONE = "max-width: 36rem"  # as in the style sheet
_CSS = pathlib.Path(__file__).with_name("report.css")
_TOP = "top"
_MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}


def write(
    path: pathlib.Path,
    runs: Sequence[Run],
    missing: Sequence[str] = (),
    systems: Systems = types.MappingProxyType({}),
) -> None:
    """Writes the page for `runs`, see `page`."""
    result.write_text(path, page(runs, missing, systems))


def page(
    runs: Sequence[Run], missing: Sequence[str] = (), systems: Systems = types.MappingProxyType({})
) -> str:
    """Returns the page: no scripts, no links to other files, figures inlined.

    Args:
        runs: What is shown; of more than one the page opens with a line for each system.
        missing: Experiments that have no result yet.
        systems: Which experiments are of one system.
    """
    only = runs[0].result if len(runs) == 1 and not missing else None
    title = (only.title or only.experiment) if only else "What was measured"
    anchors = [_TOP] if only else [f"r{index}" for index in range(len(runs))]
    entries = [
        f'<li><a href="#{anchor}">{_e(findings.title_of(run.result))}</a> '
        f"<span>{_e(_origin(run.result))}</span></li>"
        for anchor, run in zip(anchors, runs, strict=True)
    ]
    contents = f'<nav aria-label="Results"><ol>{"".join(entries)}</ol></nav>' if not only else ""
    first = "" if only else _first_screen(runs, anchors, systems)
    sections = [_section(run, anchor) for anchor, run in zip(anchors, runs, strict=True)]
    unmeasured = "".join(
        f"<li><strong>{_e(name)}</strong>: "
        f"<code>python -m experiments run {_e(name)} --preset cpu</code></li>"
        for name in missing
    )
    legend = "".join(
        f"<li>{_verdict(verdict)} {_e(meaning)}</li>"
        for verdict, meaning in result.VERDICTS.items()
    )
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_e(title)} · jaxlab</title>",
        f"<style>{_CSS.read_text(encoding='utf-8')}</style></head><body>",
        '<a class="skip" href="#main">Skip to the results</a>',
        f'<header><p class="kicker">jaxlab · measured results</p><h1 id="{_TOP}">{_e(title)}</h1>',
        "" if only else "<p>Each claim beside our own figure, the baselines and the paper's.</p>",
        f'</header><main id="main">{first}{contents}',
        *sections,
        f'<section aria-labelledby="missing"><h2 id="missing">Not measured yet</h2>'
        f'<ul class="missing">{unmeasured}</ul></section>'
        if missing
        else "",
        '</main><footer><h2>How to read the verdicts</h2><ul class="legend">',
        f"{legend}</ul><p>Every figure on this page was produced by a run; what no run produced "
        'reads "not measured". '
        f"Written {_e(words.when(words.now()))}.</p></footer></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _origin(outcome: result.Result) -> str:
    parts = (outcome.preset and f"preset {outcome.preset}", words.device(outcome.environment))
    return " · ".join(part for part in parts if part)


# The page, piece by piece

_e = html.escape


def _first_screen(runs: Sequence[Run], anchors: Sequence[str], systems: Systems) -> str:
    """A line for each system: its three most telling figures, each linked to all that is said."""
    where = dict(zip(map(id, runs), anchors, strict=True))
    lines = []
    for found in findings.glance(runs, systems):
        cells = []
        for run, row in found.rows:
            against = words.against(row)
            beside = f'<span class="beside">against {_e(against)}</span>' if against else ""
            cells.append(
                f'<td><a href="#{where[id(run)]}">{_e(row.metric)}</a>'
                f'<span class="figure">{_e(words.quantity(row.value, row.unit))}</span>'
                f"{beside}{_verdict(row.verdict)}</td>"
            )
        cells += ["<td></td>"] * (findings.GLANCE - len(cells))
        made = dict.fromkeys(words.commit(run.result.environment) for run, _ in found.rows)
        small = f"<small>{_e(', '.join(filter(None, made)))}</small>"
        lines.append(f'<tr><th scope="row">{_e(found.title)}{small}</th>{"".join(cells)}</tr>')
    if not lines:
        return ""
    table = (
        '<table class="glance"><caption><div>The most telling figures of each system</div>'
        "</caption>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return _scroll(table, "Systems")


def _section(run: Run, anchor: str) -> str:
    """One result; it has a heading of its own unless it is titled by the page's."""
    outcome = run.result
    parts = [f'<section aria-labelledby="{anchor}">']
    head = "h2" if anchor == _TOP else "h3"
    if anchor != _TOP:
        parts.append(f'<h2 id="{anchor}">{_e(findings.title_of(outcome))}</h2>')
    if origin := _origin(outcome):
        parts.append(f'<p class="origin">{_e(origin)}</p>')
    if outcome.summary:
        parts.append(f'<p class="summary">{_e(outcome.summary)}</p>')
    parts.extend(_table(table) for table in outcome.opening)
    parts.append(_headlines(outcome))
    if outcome.rows:
        parts.append(f"<{head}>Claims and figures</{head}>")
        parts.append(_claims(outcome))
    parts.extend(_figure(run.folder, figure) for figure in outcome.figures)
    parts.extend(_table(table) for table in outcome.tables)
    if outcome.limits:
        items = "".join(f"<li>{_e(limit)}</li>" for limit in outcome.limits)
        parts.append(f'<{head}>What this does not show</{head}><ul class="limits">{items}</ul>')
    parts.append(f"<{head}>How it was run</{head}>{_facts(outcome)}</section>")
    return "\n".join(part for part in parts if part)


def _headlines(outcome: result.Result) -> str:
    """The first figures as large numbers, each with what it is compared with."""
    cards = []
    for row in outcome.rows:
        if row.value is None or len(cards) == HEADLINES:
            continue
        compared = []
        if row.interval:
            label = row.interval_label or outcome.interval_label
            compared.append((label, words.span(row.interval)))
        if row.paper is not None:
            compared.append(("paper", words.paper(row)))
        if row.baseline:
            compared.append((row.baseline[0], words.quantity(row.baseline[1], row.unit)))
        lines = "".join(
            f'<span>{_e(name)}: <span class="whole">{_e(figure)}</span></span>'
            for name, figure in compared
        )
        cards.append(
            f'<div class="card"><dt>{_e(row.metric)}</dt>'
            f"<dd><strong>{_e(words.number(row.value))}</strong> {_e(row.unit)}</dd>"
            f'<dd class="compared">{lines}</dd><dd>{_verdict(row.verdict)}</dd></div>'
        )
    return f'<dl class="cards">{"".join(cards)}</dl>' if cards else ""


def _claims(outcome: result.Result) -> str:
    """All figures, grouped by claim."""
    bodies = []
    for claim, rows in findings.by_claim(outcome).items():
        lines = [_band(claim, len(words.COMPARISON))]
        for row in rows:
            ours = _quantity(row.value, row.unit)
            if row.interval:
                ours += f'<small class="whole">{_e(words.span(row.interval))}</small>'
                ours += f"<small>{_e(row.interval_label)}</small>"
            baseline = "–"
            if row.baseline:
                name, figure = row.baseline
                baseline = f"{_quantity(figure, row.unit)}<small>{_e(name)}</small>"
            paper = _e(words.paper(row))
            if isinstance(row.paper, (int, float)):
                paper = _quantity(row.paper, row.unit)
            # On a phone the verdict stands under the figure's name and its column is hidden.
            verdict = _verdict(row.verdict)
            lines.append(
                f'<tr><th scope="row">{_e(row.metric)}<div class="narrow">{verdict}</div>'
                f'</th><td class="n ours">{ours}</td><td class="n">{baseline}</td>'
                f'<td class="n">{paper}</td><td class="wide">{verdict}</td></tr>'
            )
            if row.note:
                note = f'<td colspan="{len(words.COMPARISON)}"><p>{_e(row.note)}</p></td>'
                lines.append(f'<tr class="about">{note}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    kinds = ("", ' class="n"', ' class="n"', ' class="n"', ' class="wide"')
    header = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in zip(words.COMPARISON, kinds, strict=True)
    )
    return _scroll(
        f'<table class="claims"><caption><div>{_e(_caption(outcome))}</div></caption>'
        f"<thead><tr>{header}</tr></thead>{''.join(bodies)}</table>",
        "Claims and figures",
    )


def _caption(outcome: result.Result) -> str:
    about = f"Claims of {outcome.paper}. " if outcome.paper else ""
    below = ""
    if any(row.interval and not row.interval_label for row in outcome.rows):
        below = f"Small print below our figure: {outcome.interval_label}. "
    return f"{about}{below}A dash: nothing to compare with."


def _table(table: result.Table) -> str:
    """A table; where first cells repeat, as of a site's rules, their rows stand below one band."""
    shown = words.cells(table)
    named = [(name, list(of)) for name, of in itertools.groupby(shown, lambda row: row[0])]
    banded = len(table.columns) > 2 and 0 < 2 * len(named) <= len(shown)
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    kinds = [_kind(column, names=not k) for k, column in enumerate(columns[banded:])]
    header = "".join(
        f'<th scope="col"{kind}>{_header(name)}</th>'
        for kind, name in zip(kinds, table.columns[banded:], strict=True)
    )
    bodies = []
    for name, rows in named if banded else [("", shown)]:
        lines = [_band(name, len(kinds))] if banded else []
        for row in rows:
            first, *rest = map(_value, row[banded:])
            data = "".join(
                f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], rest, strict=True)
            )
            lines.append(f'<tr><th scope="row"{kinds[0]}>{first}</th>{data}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    note = f'<p class="note">{_e(table.caption)}</p>' if table.caption else ""
    return _scroll(
        f"<table><caption><div><strong>{_e(table.title)}</strong></div></caption>"
        f"<thead><tr>{header}</tr></thead>{''.join(bodies)}</table>{note}",
        table.title,
    )


def _kind(column: Sequence[Any], *, names: bool) -> str:
    """How a column is set: figures to the right; neither they nor short words are broken."""
    if not names and words.are_figures(column):
        return ' class="n"'
    short = all(len(words.cell(value)) <= SHORT for value in column)
    return ' class="whole"' if short else ""


def _header(name: str) -> str:
    """The name of a column; a long one has room for a few words on a line."""
    return _e(name) if len(name) < SHORT else f'<div class="long">{_e(name)}</div>'


def _band(name: str, columns: int) -> str:
    """A line across a table: what the rows below it are of."""
    return (
        f'<tr class="band"><th colspan="{columns}" scope="rowgroup"><div>{_e(name)}</div></th></tr>'
    )


def _figure(folder: pathlib.Path, figure: result.Figure) -> str:
    """A picture with its caption; on a phone the one that is drawn for it."""
    caption = f"<figcaption>{_e(figure.caption)}</figcaption>"
    path = folder / figure.path
    source = _inlined(folder, path)
    if not source:
        told = f"The picture {_e(figure.path)} is not in the run folder."
        return f"<figure><p>{told}</p>{caption}</figure>"
    image = f'<img src="{source}" alt="{_e(figure.alt or figure.caption)}">'
    if narrow := _inlined(folder, result.phone(path)):
        media = f'<source media="({PHONE})" srcset="{narrow}" />'
        image = f"<picture>{media}{image}</picture>"
    return f"<figure>{image}{caption}</figure>"


def _inlined(folder: pathlib.Path, path: pathlib.Path) -> str:
    """The content of a picture as an address; "" where it is not in the folder."""
    path = path.resolve()
    # A result file may come from someone else: it must not pull in files beyond its own folder.
    inside = path.is_relative_to(folder.resolve()) and path.suffix.lower() in _MEDIA
    if not inside or not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_MEDIA[path.suffix.lower()]};base64,{data}"


def _facts(outcome: result.Result) -> str:
    took = "" if outcome.seconds is None else words.duration(outcome.seconds)
    if outcome.resumed and took:
        took += ", counted from the last resume"
    facts = {
        "Command": f"<code>{_e(outcome.command)}</code>" if outcome.command else "",
        "Device": _e(words.device(outcome.environment)),
        "Versions": _e(words.versions(outcome.environment)),
        "Time taken": _e(took),
        "Finished": _e(words.when(outcome.finished)),
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value
    )
    settings = "".join(
        f'<tr><th scope="row">{_e(name)}</th><td>{_e(value)}</td></tr>'
        for name, value in _flatten(outcome.config)
    )
    details = ""
    if settings:
        table = f"<table><caption>Settings of this run</caption><tbody>{settings}</tbody></table>"
        details = f"<details><summary>All settings</summary>{_scroll(table, 'Settings')}</details>"
    return f'<dl class="facts">{items}</dl>{details}'


def _flatten(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat = []
    for name, value in config.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            flat.append((prefix + name, ", ".join(map(str, value))))
        else:
            flat.append((prefix + name, "none" if value is None else str(value)))
    return flat


def _scroll(table: str, label: str) -> str:
    """A table in its own scrolling box, reachable by keyboard."""
    return f'<div class="scroll" role="region" aria-label="{_e(label)}" tabindex="0">{table}</div>'


def _value(shown: str) -> str:
    return f'<span class="none">{shown}</span>' if shown == words.NONE else _e(shown)


def _quantity(value: float | None, unit: str) -> str:
    """A figure with its unit; only a long unit may stand on lines of its own."""
    if value is None or len(unit) > SHORT // 2:
        return f"{_value(words.cell(value))} {_e(unit if value is not None else '')}".rstrip()
    return f'<span class="whole">{_e(words.quantity(value, unit))}</span>'


def _verdict(verdict: str) -> str:
    name = verdict.replace(" ", "-")
    shape = f'<span aria-hidden="true">{words.SHAPES[verdict]}</span>'
    return f'<span class="verdict v-{name}">{shape} {_e(verdict)}</span>'
