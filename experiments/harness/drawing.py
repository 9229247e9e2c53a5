"""How every picture of this project looks, and how it is written.

Colors are told apart with any common color vision deficiency (Okabe and Ito's palette); no window
is opened.
"""

import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
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
