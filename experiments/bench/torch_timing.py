"""A measurement beside the same work in PyTorch, on all cores, eager or compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.bench import timing
from experiments.bench.timing import Measurement
from experiments.rivals import torch_side


def missing(ours: Measurement) -> Measurement:
    """Says that torch was not timed, since it is not installed."""
    note = "torch is not installed: pip install 'jaxlab[rivals]'."
    return dataclasses.replace(
        ours, rival_name="torch: not measured", note=f"{ours.note} {note}".strip()
    )


def beside(
    ours: Measurement,
    network: Any,
    make: Callable[[Any], Callable[[], Any]],
    *,
    error: float,
    repeats: int,
) -> Measurement:
    """Times torch at the same work, as it is and compiled, and keeps the faster.

    Args:
        ours: what was measured of ours.
        network: torch's module or function.
        make: `make(network)` returns the call that is timed.
        error: how far torch's network is from ours.
        repeats: timed calls.
    """
    threads = torch_side.use_all_cores()
    timed = {
        name: timing.measure(call, repeats=repeats)
        for name, call in torch_side.ways(network, make).items()
    }
    best = min(timed, key=lambda name: timed[name].median_s)
    tried = " and ".join(timed)
    note = f"torch {torch_side.version()} on {threads} threads, {tried}; the faster counts."
    return dataclasses.replace(
        ours,
        rival_name=f"torch, {best}",
        rival=timed[best],
        error=error,
        note=f"{ours.note} {note}".strip(),
    )
