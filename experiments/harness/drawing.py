"""How every picture of this project looks, and how it is written.

Colors are told apart with any common color vision deficiency (Okabe and Ito's palette); no window
is opened.
"""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.figure import Figure

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
    "figure.dpi": 120,
    "savefig.facecolor": "white",
}


def panels(rows: int, columns: int, *, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its axes `[rows, columns]`, each of the same size."""
    size = (4.6 * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def band(axis: Any, x: np.ndarray, y: np.ndarray, color: str, label: str) -> None:
    """Draws the mean of `y` `[points, seeds]` over `x`, and the range of the seeds."""
    axis.plot(x, np.nanmean(y, axis=1), color=color, lw=1.8, label=label)
    axis.fill_between(x, np.nanmin(y, axis=1), np.nanmax(y, axis=1), color=color, alpha=0.12, lw=0)


def common_legend(figure: Figure, axes: np.ndarray) -> None:
    """Puts one legend for all panels below them, where it hides nothing."""
    named: dict[str, Any] = {}
    for axis in axes.flat:
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, line)
    if named:
        figure.legend(
            list(named.values()),
            list(named),
            loc="outside lower center",
            ncols=min(len(named), 3 * axes.shape[1]),
        )


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a PNG, the same bytes for the same picture, and forgets the figure.

    A palette of 256 colors takes a third of the bytes of true color.
    """
    if not figure.get_constrained_layout():
        figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    with PIL.Image.open(path) as image:
        image.convert("RGB").quantize(256).save(path, optimize=True)
