"""Experiments, benchmarks and reports: everything that prints, plots and writes files.

Run `python -m experiments --help`.

An *experiment* is a package whose `__init__` imports no JAX and has three names:

* `SUMMARY`: one line, a string literal.
* `Config`: a frozen dataclass; every field has a one-line docstring and becomes a flag.
* `PRESETS`: a dict from `smoke`, `cpu` and `gpu` to a `Config`.

Its module `study` has `run(config, out) -> experiments.harness.result.Result`, which computes what
the folder `out` does not hold yet, by `experiments.harness.units`, and writes figures there. It
raises `ValueError` or `FileNotFoundError` for what the user got wrong before it writes the first
file. `tests/experiments/toy_study` is the smallest one.

A *benchmark* is a module with `SUMMARY` and `run(out)`, a list of
`experiments.bench.timing.Measurement`.

All are listed here by hand and imported only when they are run.
"""

import pathlib

import jaxlab

# In a checkout that is not installed kernels/ lies beside jaxlab/, and is imported from there.
jaxlab.__path__.append(str(pathlib.Path(__file__).resolve().parents[1]))

EXPERIMENTS = {
    "icu_occupancy": "experiments.icu_occupancy",
    "zofl": "experiments.zofl",
    "step3_cost": "experiments.step3_cost",
    "mfa_quality": "experiments.mfa_quality",
    "mfa_decode": "experiments.mfa_decode",
    "afd": "experiments.afd",
    "fpmd": "experiments.fpmd",
    "discrete_diffusion": "experiments.discrete_diffusion",
    "optimistic_marl": "experiments.optimistic_marl",
    "imitation": "experiments.imitation",
    "pirf": "experiments.pirf",
}

SYSTEMS = {
    "ICU bed planning": ("jaxlab/queueing", ("icu_occupancy",)),
    "Constrained optimization from function values": ("jaxlab/zeroth_order", ("zofl",)),
    "Attention with a small cache": (
        "jaxlab/serving",
        ("step3_cost", "mfa_quality", "mfa_decode", "afd"),
    ),
    "Flow policies by mirror descent": ("jaxlab/rl", ("fpmd",)),
    "Policies over sequences": ("jaxlab/rl/discrete", ("discrete_diffusion",)),
    "Offline imitation": ("jaxlab/imitation", ("imitation",)),
    "Optimistic agents": ("jaxlab/marl", ("optimistic_marl",)),
    "Fields that obey a law": ("jaxlab/physics", ("pirf",)),
}
"""Systems, each with its room and its experiments, in the order of the reports."""

BENCHES = {
    "queueing": "experiments.bench.queueing",
    "zeroth_order": "experiments.bench.zeroth_order",
    "mqa_decode": "experiments.bench.mqa_decode",
    "mqa_prefill": "experiments.bench.mqa_prefill",
    "projections": "experiments.bench.projections",
    "afd": "experiments.bench.afd",
    "rl": "experiments.bench.rl",
    "discrete_diffusion": "experiments.bench.discrete_diffusion",
    "imitation": "experiments.bench.imitation",
    "marl": "experiments.bench.marl",
    "pirf": "experiments.bench.pirf",
}
