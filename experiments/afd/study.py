"""The study: its parts, one after another."""

import pathlib
from collections.abc import Callable

import jax

from experiments.afd import Config, scale
from experiments.afd.parts import deployments, exactness, network, overlap, sizing, stages
from experiments.harness import result
from experiments.harness.result import Part, Result, Row

PAPER = "StepFun: Step-3 is Large yet Affordable, arXiv:2507.19427; rA-1F, arXiv:2601.21351"
RUN: dict[str, Callable[[Config, pathlib.Path], Part]] = {
    "exactness": exactness.run,
    "overlap": overlap.run,
    "sizing": sizing.run,
    "deployments": deployments.run,
    "network": network.run,
    "stages": stages.run,
}


def run(config: Config, out: pathlib.Path) -> Result:
    """Runs the parts that are asked for; with a topology, one program over all devices instead.

    Raises:
        ValueError: if a run of several processes has no topology, or it does not fit their devices.
    """
    if jax.process_count() > 1 and not config.topology:
        raise ValueError(
            "several processes run one program: give its topology, such as --topology 2 1 2 1"
        )
    if config.topology:
        parts = [scale.run(config)]
    else:
        parts = [RUN[name](config, out) for name in config.parts]
    return result.assemble(
        parts,
        experiment="afd",
        title="Attention and experts apart",
        summary=_summary([row for part in parts for row in part.rows]),
        paper=PAPER,
    )


def _summary(rows: list[Row]) -> str:
    said = {}
    for row in rows:
        said.setdefault(row.verdict, []).append(row)
    counts = ", ".join(f"{len(found)} {verdict}" for verdict, found in said.items())
    return f"What was set beside the papers or measured: {counts}."
