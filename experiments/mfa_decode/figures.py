"""The picture of the study: the share of the memory's speed against the tokens of a cell."""

import pathlib

import matplotlib.pyplot as plt

from experiments.harness import drawing
from experiments.harness.result import Figure
from experiments.mfa_decode.rows import Found, share


def draw(found: Found, out: pathlib.Path) -> Figure:
    """Draws a dot a cell, colored by precision and spread."""
    kinds = list(dict.fromkeys((spec.kv, spec.lengths) for spec in found))
    with plt.rc_context(drawing.STYLE):
        figure, axis = plt.subplots(figsize=(6.6, 3.8))
        for index, (kv, lengths) in enumerate(kinds):
            cells = {s: i[0] for s, i in found.items() if (s.kv, s.lengths) == (kv, lengths)}
            axis.plot(
                [spec.B * spec.S for spec in cells],
                [share(item) for item in cells.values()],
                "o",
                color=drawing.COLORS[index % 7],
                markersize=4 + 2 * (lengths == "uniform"),
                label=f"{kv}, {lengths}",
            )
        axis.axhline(100.0, color=drawing.MUTED, linewidth=1, linestyle="--")
        axis.set_xscale("log", base=2)
        axis.set_ylim(0.0)
        axis.set_xlabel("Tokens of cache, all requests")
        axis.set_ylabel("Share of the copy bandwidth (%)")
        axis.set_title("Bytes a second of decode attention")
        axis.legend()
        drawing.save(figure, out / "share.png")
    return Figure(
        "share.png",
        "Bytes that a call must move, a second, over the measured bandwidth of a copy.",
        "Share of the copy bandwidth against tokens of cache",
    )
