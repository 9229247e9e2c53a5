"""Where separation pays: the use of expert servers against the network, by sparsity."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.afd import Config, figures
from experiments.harness.result import Part, Row
from jaxlab.serving.afd import utilization
from jaxlab.serving.cost import catalog

MODELS = ("Step-3", "DSv3", "Qwen3 MoE")
CONTEXT, MAX_SERVERS = 8192, 32
NETWORKS = np.array([25, 50, 100, 200, 400, 800, 1600]) * 1e9
"""Bytes a second that a server sends; those of an H800 server are 400 GB/s."""
CLAIM = "Sparse experts on a slow network cannot be kept busy apart (the dead zone)"
LIMITS = (
    "Utilization is of rooflines at full peaks on H800 servers of eight, 50 ms a token, context "
    "8K, at most 32 servers of either kind: a bound. Together: everything on all servers, two "
    "micro-batches, tokens sent by experts. That separate servers may be of different accelerators "
    "is not counted here: see the cost study.",
)


class Curves(NamedTuple):
    """Of one model, at each network; zero where nothing fits.

    Attributes:
        bound: the most that expert servers can be used.
        used: how much they are in the best deployment apart.
        apart: tokens per accelerator and second of that.
        together: tokens per accelerator and second of the best deployment of everything everywhere.
    """

    bound: np.ndarray
    used: np.ndarray
    apart: np.ndarray
    together: np.ndarray


def run(config: Config, out: pathlib.Path) -> Part:
    """Searches deployments at every network; plain numbers."""
    curves = {name: _curves(name) for name in MODELS}
    at = int(np.argmin(np.abs(NETWORKS - 400e9)))
    rows = []
    for name, of in curves.items():
        rows.append(
            Row(
                CLAIM,
                f"Use of the expert servers of {name}, 400 GB/s",
                100.0 * float(of.used[at]),
                unit="%",
                note=f"At most {100 * of.bound[at]:.0f} % with any number of servers; "
                f"{100 * of.used[0]:.0f} % at 25 GB/s.",
            )
        )
        rows.append(
            Row(
                CLAIM,
                f"Tokens per GPU of {name}, apart over together, 400 GB/s",
                float(of.apart[at] / of.together[at]),
                note=f"{of.apart[0] / of.together[0]:.2f} at 25 GB/s."
                if of.together[0]
                else "Nothing fits at 25 GB/s.",
            )
        )
    return Part(rows=tuple(rows), figures=(figures.network(NETWORKS, curves, out),), limits=LIMITS)


def _curves(name: str) -> Curves:
    spec, on = catalog.MODELS[name], catalog.ACCELERATORS["H800"]
    bound, used, apart, together = ([] for _ in range(4))
    for network in NETWORKS:
        at: dict[str, Any] = {"context": CONTEXT, "network": network, "max_servers": MAX_SERVERS}
        best = utilization.afd_utilization(spec, on, **at)
        both = utilization.ep_utilization(spec, on, **at)
        bound.append(utilization.utilization_bound(spec, on, network=network))
        used.append(0.0 if best is None else best.ffn_utilization)
        apart.append(0.0 if best is None else best.tokens_per_gpu_second)
        together.append(0.0 if both is None else both.tokens_per_gpu_second)
    return Curves(*(np.array(x) for x in (bound, used, apart, together)))
