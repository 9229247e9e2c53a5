"""What the cells say of the claims: shares of the memory's speed, rivals, errors."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.bench.timing import Measurement
from experiments.harness.result import Row
from experiments.mfa_decode import Config, published
from jaxlab.kernels.mqa_decode.specs import Spec  # pyright: ignore[reportMissingImports]

MANY = 524_288
"""Tokens from which launch and schedule should not matter any more."""
Found = Mapping[Spec, Sequence[Measurement]]
"""By cell, ours beside every rival."""


def rows(found: Found, config: Config) -> tuple[Row, ...]:
    """Returns all rows of the cells that were measured."""
    cells = [item for items in found.values() for item in items]
    return (*shares(found, config), *rivals(cells), _error(cells))


def share(item: Measurement) -> float:
    """Percent of the copy bandwidth."""
    assert item.rate is not None and item.ceiling is not None
    return 100.0 * item.rate / item.ceiling


def shares(found: Found, config: Config) -> list[Row]:
    """The share of the memory's speed in the large cells of every precision and spread."""
    rows, claim = [], "Decode attention runs at the memory's speed"
    for kv, lengths in itertools.product(config.kv, config.lengths):
        cells = {s: i[0] for s, i in found.items() if (s.kv, s.lengths) == (kv, lengths)}
        large = [share(item) for spec, item in cells.items() if spec.B * spec.S >= MANY]
        metric = f"Share of the copy bandwidth, {kv}, {lengths}, 512K tokens or more"
        if not large:
            note = "No cell of this run is so large."
            rows.append(Row(claim, metric, None, verdict="not measured", unit="%", note=note))
            continue
        rows.append(
            Row(
                claim,
                metric,
                float(np.median(large)),
                interval=(min(large), max(large)),
                unit="%",
                paper=published.SHARE if (kv, lengths) == ("bf16", "uniform") else None,
                note=f"Median of {len(large)} cells; in brackets the least and the most.",
            )
        )
    return rows


def rivals(cells: Sequence[Measurement]) -> list[Row]:
    """Each rival's time over ours: clearly better is what is faster in every cell."""
    rows = []
    for name in dict.fromkeys(item.rival_name for item in cells if item.rival):
        ratios = np.array([item.ratio for item in cells if item.rival_name == name])
        low, high = float(ratios.min()), float(ratios.max())
        verdict = "better" if low > 1.0 else "worse" if high < 1.0 else "no clear difference"
        rows.append(
            Row(
                "Not slower than any rival on the same device",
                f"Time of {name} over ours",
                float(np.median(ratios)),
                interval=(low, high),
                baseline=("parity", 1.0),
                verdict=verdict,
                note=f"Median of {ratios.size} cells, and the least and the most.",
            )
        )
    return rows


def _error(cells: Sequence[Measurement]) -> Row:
    worst = max(
        (item for item in cells if item.error is not None), key=lambda item: item.error or 0.0
    )
    return Row(
        "Every cell is checked",
        "Largest deviation from the reference, over the largest value",
        worst.error,
        note=f"On {worst.shape}; float32 below 1e-5, bfloat16 below 2e-2 expected.",
    )
