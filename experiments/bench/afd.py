"""What it costs to run attention and experts apart: a stage's dispatch, one program's bound."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.afd import child
from experiments.bench.timing import Measurement, Timing

SUMMARY = "Attention and experts apart: dispatch of a stage, one program beside its own bound"
LAYERS, WIDTH, REQUESTS = 8, 2048, 512
ALLOWED = 1.15
"""Times its bound that one program may take."""


def run(out: pathlib.Path) -> list[Measurement]:
    """Times the host devices of this machine, whatever accelerator it has."""
    del out
    return [*dispatch(), *(one_program(M, apart) for apart in (False, True) for M in (2, 3))]


def dispatch(repeats: int = 60) -> list[Measurement]:
    """Times steps of a model that computes next to nothing, a stage's share of each."""
    M = 2
    found = child.ask(
        "dispatch", num_devices=2, num_layers=LAYERS, micro_batches=M, repeats=repeats
    )
    plain = _timing(np.array(found.pop("one step")) / LAYERS)
    return [
        Measurement(
            f"decoding, {name}",
            "a layer and micro-batch, two stages of width 64",
            _timing(np.array(seconds) / (LAYERS * M)),
            "a layer of the step that is one program on one device",
            plain,
            note="Next to nothing is computed: starting programs and moving arrays is left.",
        )
        for name, seconds in found.items()
    ]


def one_program(M: int, apart: bool, repeats: int = 10) -> Measurement:
    """Times one program beside what its bubbles and the imbalance of its roles allow.

    With L layers a step has L M + 2 ticks at most, in which both roles work but in the first and
    the last. So two devices that have twice the speed of one take, of the time T of stages one
    after another, (L M + 2) / (L M) max(tA, tF) / (tA + tF) T.

    Args:
        M: micro-batches.
        apart: whether the devices are two processes of one core each, which send over the loopback;
            else they share the cores of one process, as the stages one after another have them all.
        repeats: steps of each.
    """
    given: dict[str, Any] = {
        "micro_batches": M,
        "num_layers": LAYERS,
        "width": WIDTH,
        "requests": REQUESTS,
        "repeats": repeats,
        "sleep_ms": None,
        "pinned": apart,
    }
    places: dict[str, Any] = {"num_processes": 2} if apart else {"num_devices": 2}
    alone = child.ask("overlap", realisation="alone", **given)
    ours = child.ask("overlap", realisation="one program", **given, **places)
    tA, tF = (
        float(np.median([e[5] - e[4] for t in alone["traces"] for e in t if e[0] == role]))
        for role in ("attention", "experts")
    )
    share = (1.0 + 2.0 / (LAYERS * M)) * max(tA, tF) / (tA + tF)
    cores = 1.0 if apart else 2.0  # stages alone had both cores, a device has one
    where = "two processes of one core each" if apart else "two devices that share two cores"
    return Measurement(
        f"one program, {where}",
        f"{LAYERS} layers of width {WIDTH}, {M} micro-batches of {REQUESTS}",
        _timing(ours["seconds"]),
        "what its bubbles and imbalance allow",
        _timing(cores * share * np.array(alone["seconds"])),
        note=f"Stages alone: {1e3 * tA:.1f} ms of attention, {1e3 * tF:.1f} ms of experts. "
        f"{1 / ALLOWED:.2f} is what we allow ourselves; messages count as lost time.",
    )


def _timing(seconds: Sequence[float] | np.ndarray) -> Timing:
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return Timing(0.0, float(middle), float(high - low), len(seconds))
