"""What one published throughput says about others: the planner, fitted on the first."""

import pathlib

from experiments.afd import Config
from experiments.harness.result import Part, Row, Table
from experiments.step3_cost import published
from experiments.step3_cost.rows import planned
from jaxlab.serving.afd import planner
from jaxlab.serving.afd.planner import Efficiency

FITTED, PREDICTED = "2A2F", ("4A2F", "3A2F")
SHARES = {
    "the experts": ("experts",),
    "attention": ("attention",),
    "bandwidth, FLOPs and network": ("bandwidth", "flops", "network"),
}
"""What the loss may be charged to; the first is what the rows show."""
CLAIM = "What one measured throughput says about other deployments"
LIMITS = (
    "The efficiency is fitted on the first published throughput alone; that it is charged to the "
    "experts was chosen after the fact, and the table shows what other choices say.",
)


def run(config: Config, out: pathlib.Path) -> Part:
    """Fits and predicts; plain numbers."""
    served = {d.name: d for d in published.DEPLOYMENTS}
    predicted: dict[str, dict[str, float]] = {}
    shares: dict[str, Efficiency] = {}
    for name, fields in SHARES.items():
        shares[name] = planner.fit_efficiency(
            served[FITTED].measured, lambda e: planned(served[FITTED], e), fields
        )
        predicted[name] = {
            other: planned(served[other], shares[name]).tokens_per_gpu_second for other in PREDICTED
        }
    first = next(iter(SHARES))
    share = getattr(shares[first], SHARES[first][0])
    rows = tuple(
        Row(
            CLAIM,
            f"Throughput of {name} at {served[name].context // 1024}K, fitted on {FITTED}",
            predicted[first][name],
            paper=served[name].measured,
            unit="tokens/GPU/s",
            note=f"The experts reach {share:.3f} of their roofline, all else as usual. They bound "
            "all three deployments then, with the same time a token: the prediction is the "
            "published throughput by requests and accelerators, which is the paper's own scaling.",
        )
        for name in PREDICTED
    )
    table = Table(
        "What the missing throughput is charged to",
        (
            "Charged to",
            "Share",
            *(f"{n}, tokens/GPU/s (paper {served[n].measured:,.0f})" for n in PREDICTED),
        ),
        tuple(
            (
                name,
                getattr(shares[name], fields[0]) / getattr(planner.MEASURED, fields[0]),
                *predicted[name].values(),
            )
            for name, fields in SHARES.items()
        ),
        "Share: the factor on the planner's usual efficiencies that gives 4,039 tokens/GPU/s for "
        "2A2F at 4K.",
    )
    return Part(rows=rows, tables=(table,), limits=LIMITS)
