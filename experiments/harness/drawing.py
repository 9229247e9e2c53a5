"""How every picture of this project looks, and how it is written: for a page, and for a phone.

Colors are told apart with any common color vision deficiency (Okabe and Ito's palette); no window
is opened.
"""

import itertools
import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from experiments.harness import result

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e7eb"
BLUE, RED, GREEN, VIOLET = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, GRAY = "#e69f00", "#56b4e9", "#4d4d4d"
COLORS = (BLUE, RED, GREEN, VIOLET, ORANGE, SKY, GRAY)
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.columnspacing": 1.4,
    "legend.handlelength": 1.6,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.dpi": 120,
    "savefig.facecolor": "white",
}

_PLACES = (
    (6, 0, "left", "center"),
    (4, -4, "left", "top"),
    (4, 4, "left", "bottom"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (-6, 0, "right", "center"),
    (-4, -4, "right", "top"),
    (-4, 4, "right", "bottom"),
)
"""Where a name may stand: its offset from the point in points, and what of it stands there."""
NAME_SIZE = 7.5
"""Of names beside points."""
PHONE = 3.4
"""Width of a picture on a phone, inches."""
_TALLEST = 2.6  # of a panel's axes on a phone, inches
_DPI, _PHONE_DPI = 120, 200
_MOST_PIXELS = 2**16 - 1  # on a side of a picture


def panels(rows: int, columns: int, *, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its axes `[rows, columns]`, each of the same size."""
    size = (4.6 * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def band(axis: Any, x: np.ndarray, y: np.ndarray, color: str, label: str) -> None:
    """Draws the mean of `y` `[points, seeds]` over `x`, and the range of the seeds."""
    axis.plot(x, np.nanmean(y, axis=1), color=color, lw=1.8, label=label)
    axis.fill_between(x, np.nanmin(y, axis=1), np.nanmax(y, axis=1), color=color, alpha=0.12, lw=0)


def legend(figure: Figure) -> None:
    """Puts one legend for all panels below them, where it hides nothing."""
    for old in tuple(figure.legends):
        old.remove()
    named: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    for lines in range(1, len(named) + 1):
        columns = -(-len(named) // lines)
        made = figure.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=columns
        )
        beyond = made.get_window_extent().width - figure.bbox.width
        if beyond <= 0:
            return
        if columns > 1:
            made.remove()
            continue
        widths = [text.get_window_extent().width for text in made.get_texts()]
        for text, width in zip(made.get_texts(), widths, strict=True):
            _break(text, width, 0.98 * (max(widths) - beyond))


def name_points(
    axis: Axes,
    points: Sequence[tuple[float, float, str]],
    corners: Sequence[tuple[float, float]] = (),
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes names beside points, each where it covers least of what is drawn.

    Call it when the limits of the axis stand, as `save` does.

    Args:
        axis: where the points are.
        points: x, y and name of each.
        corners: of a line that names keep away from.
        others: points without names.
    """
    figure = axis.figure
    assert isinstance(figure, Figure)
    renderer = figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    at = axis.transData.transform([(x, y) for x, y, _ in points] + [*others])
    radius = 4.0 * figure.dpi / 72.0
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in at]
    for begin, end in itertools.pairwise(axis.transData.transform(c) for c in corners):
        taken.append(Bbox([np.minimum(begin, end) - 2.0, np.maximum(begin, end) + 2.0]))
    frame = axis.get_window_extent(renderer)
    for x, y, name in points:
        tried = []
        for dx, dy, across, along in _PLACES:
            text = axis.annotate(
                name,
                (x, y),
                xytext=(dx, dy),
                textcoords="offset points",
                fontsize=NAME_SIZE,
                ha=across,
                va=along,
            )
            box = text.get_window_extent(renderer)
            covered = sum(_common(box, other) for other in taken)
            outside = box.width * box.height - _common(box, frame)
            tried.append((covered + outside, len(tried), text, box))
        *_, kept, box = min(tried, key=lambda one: one[:2])
        taken.append(box)
        for _, _, text, _ in tried:
            if text is not kept:
                text.remove()


def _common(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share, in pixels."""
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else float(both.width * both.height)


def save(figure: Figure, path: pathlib.Path, labels: Callable[[], None] | None = None) -> None:
    """Writes a picture as it was drawn, and once more one panel wide; forgets the figure.

    Titles and labels break where their panel ends, and a legend below the panels has as many
    columns as there is room for. Both files are PNG, the same bytes for the same picture.

    Args:
        figure: The picture, of panels on grids.
        path: The file; the picture for a phone goes to `result.phone(path)`.
        labels: Writes names beside points, where there is room in the panels as they stand.
    """
    _fit(figure)
    if not figure.get_constrained_layout():
        figure.tight_layout()
    _write(figure, path, _DPI, labels)
    _stack(figure)
    _write(figure, result.phone(path), _PHONE_DPI, labels)
    plt.close(figure)


def _write(
    figure: Figure, path: pathlib.Path, dpi: float, labels: Callable[[], None] | None
) -> None:
    """Writes a PNG with names that are there for as long."""
    dpi = min(dpi, _MOST_PIXELS / max(figure.get_size_inches()))
    before = {text for axis in figure.axes for text in axis.texts}
    if labels is not None:
        figure.draw_without_rendering()  # so that the limits stand
        labels()
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    for text in {text for axis in figure.axes for text in axis.texts} - before:
        text.remove()
    _shrink(path)


def _shrink(path: pathlib.Path) -> None:
    """Takes a palette of 256 colors, a third of the bytes of true color."""
    with PIL.Image.open(path) as image:
        image.convert("RGB").quantize(256).save(path, optimize=True)


def _fit(figure: Figure) -> None:
    """Breaks what is written beside the panels where they end, and fits the legend to the width."""
    figure.draw_without_rendering()  # so that the panels have their sizes
    for axis in figure.axes:
        box = axis.get_window_extent()
        titles = {axis.get_title(loc) for loc in ("left", "center", "right")} - {""}
        for text in axis.findobj(Text):
            if text is axis.yaxis.label:
                _break(text, text.get_window_extent().height, box.height)
            elif text is axis.xaxis.label or text.get_text() in titles:
                _break(text, text.get_window_extent().width, box.width)
    for text in figure.texts:
        _break(text, text.get_window_extent().width, figure.bbox.width)
    if figure.legends:
        legend(figure)


def _break(text: Text, length: float, room: float) -> None:
    """Breaks a text of some length into lines that have room."""
    if length > room > 0:
        said = text.get_text().replace(r"\$", "\0")  # a dollar sign is one letter, and no formula
        longest = max(map(len, said.splitlines()))
        broken = textwrap.fill(said, max(8, int(longest * room / length)))
        text.set_text(broken.replace("\0", r"\$"))


def _stack(figure: Figure) -> None:
    """Puts the panels of a picture below each other, as wide as a phone."""
    panels: dict[SubplotSpec, list[Axes]] = {}
    heights: dict[SubplotSpec, float] = {}
    for axis in figure.axes:
        spec = axis.get_subplotspec()
        if spec is None:  # a color bar, which follows its panel
            continue
        if not axis.axison and not axis.has_data():
            axis.remove()
            continue
        panels.setdefault(spec, []).append(axis)
        heights[spec] = min(_TALLEST, axis.get_window_extent().height / figure.dpi)
    figure.set_layout_engine("constrained")
    grid = figure.add_gridspec(len(panels), 1, height_ratios=list(heights.values()))
    first: dict[int, Axes] = {}
    for row, (spec, axes) in enumerate(panels.items()):
        left = first.setdefault(spec.rowspan.start, axes[0])
        for axis in axes:
            axis.set_subplotspec(grid[row])
            if axis is not left and axis.get_shared_y_axes().joined(axis, left):
                axis.yaxis.set_tick_params(labelleft=True)
                axis.set_ylabel(left.get_ylabel())
    drawn = sum(heights.values())
    figure.set_size_inches(PHONE, 1.5 * drawn)
    _fit(figure)
    figure.draw_without_rendering()
    beside = sum(x.get_window_extent().height for x in (*figure.legends, *figure.texts))
    for axis in figure.axes:
        around = axis.get_tightbbox()
        assert around is not None
        own = axis.get_window_extent().height if axis.get_subplotspec() else 0.0
        beside += around.height - own
    figure.set_size_inches(PHONE, drawn + beside / figure.dpi + 0.2 * (len(panels) + 1))
