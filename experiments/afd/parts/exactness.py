"""Whether every realisation has the monolith's bits, and how far the plain step is from them."""

import functools
import pathlib

from experiments.afd import Config, child
from experiments.harness import units
from experiments.harness.result import Part, Row, Table
from experiments.harness.units import Unit
from jaxlab.serving.afd.topology import Topology

TWO_MESHES = (
    Topology(2, 1, tp=2, micro_batches=2),
    Topology(1, 1, micro_batches=1),
    Topology(2, 1, tp=2, ep=2, micro_batches=2),
    Topology(4, 2, micro_batches=2),
    Topology(1, 2, tp=2, router="ffn"),
    Topology(2, 4, micro_batches=4),
    Topology(4, 1, ep=4, micro_batches=6),
    Topology(2, 2, wire="fp8", router="ffn"),
)
ONE_PROGRAM = (
    (Topology(2, 1, tp=2, micro_batches=2), 1),
    (Topology(2, 2, micro_batches=2, router="ffn"), 1),
    (Topology(4, 1, tp=2, ep=2, micro_batches=6, wire="fp8"), 1),
    (Topology(2, 1, tp=2, micro_batches=2), 2),
    (Topology(4, 2, tp=2, micro_batches=2), 4),
)
"""With the number of processes, of the devices of one machine."""
CLAIM = "Attention and experts apart compute what they compute together"
LIMITS = (
    "Bits are compared in float32 with the same stages on one device, which adds partial sums in "
    "the same order; the plain step adds them in another.",
)


def run(config: Config, out: pathlib.Path) -> Part:
    """Compares topologies in other processes, a unit each and two at a time."""
    few = config.exact == "few"
    cells = [("two meshes", t, 1) for t in TWO_MESHES[: 1 if few else None]]
    cells += [("one program", t, n) for t, n in ONE_PROGRAM[: 1 if few else None]]
    todo = {_name(*cell): cell for cell in cells}
    found = units.run([_unit(*cell) for cell in cells], out, title="afd, exactness", workers=2)
    rows = []
    for realisation in ("two meshes", "one program"):
        here = [name for name, cell in todo.items() if cell[0] == realisation]
        exact = [name for name in here if todo[name][1].wire == "exact"]
        equal = sum(found[name]["equal"] for name in here)
        processes = sorted({todo[name][2] for name in here})
        where = f"In {' and '.join(map(str, processes))} processes. " if processes[1:] else ""
        furthest = max(found[name]["distance"] for name in exact)
        rows.append(
            Row(
                CLAIM,
                f"Topologies with the monolith's bits, {realisation}",
                equal,
                verdict="reproduced" if equal == len(here) else "not reproduced",
                unit=f"of {len(here)}",
                note=f"{where}With an exact wire at most {furthest:.1e} of the largest logit from "
                "the plain step.",
            )
        )
    table = Table(
        "Topologies",
        ("Realisation", "Processes", "Topology", "Bits", "From the plain step"),
        tuple(
            (
                realisation,
                count,
                describe(topology),
                "equal" if e["equal"] else "differ",
                e["distance"],
            )
            for name, (realisation, topology, count) in todo.items()
            for e in (found[name],)
        ),
        "Two decoding steps of a small model. From the plain step: the largest difference of "
        "logits, of the largest logit; with eight bits on the wire it is that of the wire.",
    )
    return Part(rows=tuple(rows), tables=(table,), limits=LIMITS)


def describe(topology: Topology) -> str:
    """A topology as one reads it: 4A1F, groups, micro-batches, and what is not usual."""
    text = f"{topology.num_attention}A{topology.num_ffn}F, tp {topology.tp}, ep {topology.ep}"
    text += f", {topology.micro_batches} micro-batch" + "es" * (topology.micro_batches > 1)
    text += ", fp8 wire" * (topology.wire == "fp8")
    return text + ", experts choose" * (topology.router == "ffn")


def _name(realisation: str, topology: Topology, processes: int) -> str:
    return f"exactness/{realisation}, {describe(topology)}, {processes} processes"


def _unit(realisation: str, topology: Topology, processes: int) -> Unit:
    settings = {"realisation": realisation, "topology": list(topology)}
    devices = topology.num_devices // processes
    compute = functools.partial(
        child.ask, "exactness", num_devices=devices, num_processes=processes, **settings
    )
    return Unit(
        _name(realisation, topology, processes),
        {**settings, "processes": processes},
        lambda folder: compute(),
    )
