"""The study: published tables computed again, bounds, and the planner beside what was measured."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

from experiments.harness import result
from experiments.harness.result import Part, Result
from experiments.step3_cost import Config, figures, own, plans, rows, tables
from jaxlab.serving.cost import catalog, prices
from jaxlab.serving.cost.prices import Accelerator, ModelSpec

T = TypeVar("T")
PAPER = "StepFun: Step-3 is Large yet Affordable, arXiv:2507.19427"
LIMITS = (
    "Costs are a roofline: the dearer of bytes and FLOPs at full peak, rent alone. Communication, "
    "embedding and head are left out, as in the paper.",
    "Prices are the paper's; that of the 910B is its estimate.",
    "The planner divides peaks by fixed efficiencies and knows no stragglers, no growing contexts "
    "and no imbalance of experts: its throughput is a bound, not a forecast.",
)


def run(config: Config, out: pathlib.Path) -> Result:
    """Computes everything, in seconds: plain numbers, no units, no accelerator needed."""
    own_models, own_accelerators = own.read(config.own)
    known = catalog.MODELS | own_models
    models = _chosen(config.models, known, "models")
    accelerators = _chosen(
        config.accelerators, catalog.ACCELERATORS | own_accelerators, "accelerators"
    )
    (spec,) = _chosen((config.planned,), known, "planned")
    planned = plans.search(spec, accelerators, config.contexts, config.max_servers)
    part = Part(
        rows=rows.rows(),
        figures=figures.draw(models, accelerators, config.contexts, planned, spec.name, out),
        tables=tables.tables(models, accelerators, planned),
        limits=LIMITS,
    )
    return result.assemble(
        [part],
        experiment="step3_cost",
        title="What decoding costs: models, accelerators, deployments",
        summary=_summary(models, accelerators),
        paper=PAPER,
    )


def _chosen(names: Sequence[str], known: Mapping[str, T], what: str) -> list[T]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{what} must be among {', '.join(known)}, got {', '.join(unknown)}")
    return [known[name] for name in names or known]


def _summary(models: Sequence[ModelSpec], accelerators: Sequence[Accelerator]) -> str:
    found = sorted((prices.cheapest(spec, accelerators, 32768).usd, spec.name) for spec in models)
    (least, first), (most, last) = found[0], found[-1]
    return (
        f"At a context of 32K {first} decodes a million tokens for {least:.3f} USD, {last} for "
        f"{most:.3f}: what the attention reads and computes decides, not the active parameters."
    )
