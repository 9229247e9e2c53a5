"""The picture of the study: the share of the memory's speed against the tokens of a cell."""

import pathlib
from collections.abc import Mapping

import matplotlib.pyplot as plt
import matplotlib.ticker

from experiments.harness import drawing
from experiments.harness.result import Figure
from experiments.mfa_decode.rows import Found, share

MARKS = {"uniform": "o", "lognormal": "^", "bimodal": "s"}
"""How tokens spread over requests; colors are precisions."""


def draw(found: Found, out: pathlib.Path) -> Figure:
    """Draws a mark a cell, colored by precision and shaped by spread."""
    shares: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for spec, items in found.items():
        cells = shares.setdefault((spec.kv, spec.lengths), [])
        cells.append((spec.B * spec.S, share(items[0])))
    return draw_shares(shares, out)


def draw_shares(
    shares: Mapping[tuple[str, str], list[tuple[int, float]]], out: pathlib.Path
) -> Figure:
    """Draws tokens and percent of each cell, by precision and spread."""
    precisions = list(dict.fromkeys(kv for kv, _ in shares))
    all_tokens = sorted({tokens for cells in shares.values() for tokens, _ in cells})
    with plt.rc_context(drawing.STYLE):
        figure, axis = plt.subplots(figsize=(6.6, 4.0), layout="constrained")
        for index, ((kv, lengths), cells) in enumerate(shares.items()):
            # Kinds stand side by side: cells of equal tokens would cover each other.
            beside = 2.0 ** (0.22 * (index - (len(shares) - 1) / 2))
            axis.plot(
                [beside * tokens for tokens, _ in cells],
                [percent for _, percent in cells],
                MARKS[lengths],
                color=drawing.COLORS[precisions.index(kv) % 7],
                markerfacecolor="none" if lengths != "uniform" else None,
                markersize=6,
                label=f"{kv}, {lengths}",
            )
        axis.axhline(100.0, color=drawing.MUTED, linewidth=1, linestyle="--")
        axis.set_xscale("log", base=2)
        axis.set_xticks(all_tokens, [_short(tokens) for tokens in all_tokens])
        axis.set_yscale("log")
        axis.set_ylim(top=130.0)
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        axis.minorticks_off()
        axis.set_xlabel("Tokens of cache, all requests")
        axis.set_ylabel("Share of the copy bandwidth (%)")
        axis.set_title("Bytes a second of decode attention")
        drawing.legend(figure)
        drawing.save(figure, out / "share.png")
    return Figure(
        "share.png",
        "Bytes that a call must move, a second, over the measured bandwidth of a copy, a mark a "
        "cell; marks of equal tokens stand side by side.",
        "Share of the copy bandwidth against tokens of cache",
    )


def _short(tokens: int) -> str:
    """512, 2K, 4M."""
    for size, unit in ((2**20, "M"), (2**10, "K")):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)
