"""How long an action takes, by method and way of acting, at the sizes of the papers."""

import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import rl as bench
from experiments.fpmd import Config
from experiments.fpmd.methods import OURS
from experiments.harness import units
from experiments.harness.result import Part, Row, Table
from jaxlab import rl

BATCHES = (1, 4096)
WAYS = (
    *(("FPMD-R", mode) for mode in rl.MODES),
    *(("FPMD-M", mode) for mode in rl.MODES),
    ("DPMD", "bon"),
    ("DPMD", "vanilla"),
    ("SAC", "mean"),
)
"""Methods and modes, see `experiments.bench.rl.way_of_acting`."""
SECONDS = 3.0
"""What a series of calls takes, if that is at least `FEWEST` calls."""
FEWEST, MOST = 7, 300


class Latency(NamedTuple):
    """Milliseconds of one call, from the host's point of view."""

    method: str
    mode: str
    evaluations: int
    critic_evaluations: int
    batch: int
    p50: float
    p95: float


def run(config: Config, out: pathlib.Path) -> Part:
    """Times every way of acting that `out` has no time of."""
    del config  # the sizes are those of the papers
    listed = [
        units.Unit(
            f"latency/{method}/{mode}/{batch}",
            {"seconds": SECONDS},
            lambda folder, way=(method, mode, batch): measure(*way),
            Latency,
        )
        for method, mode in WAYS
        for batch in BATCHES
    ]
    times = tuple(units.run(listed, out, title="fpmd, latency").values())
    return Part(tuple(rows(times)), tables=(table(times),))


def measure(method: str, mode: str, batch: int) -> Latency:
    """Times calls of one way of acting: median and 95th percentile in milliseconds."""
    way = bench.way_of_acting(method, mode)
    compiled = jax.jit(way.act)
    obs = jnp.ones((batch, bench.OBS))
    keys = jax.random.split(jax.random.key(2), MOST)
    for key in keys[:2]:
        jax.block_until_ready(compiled(key, obs, way.params))
    taken: list[float] = []
    while len(taken) < FEWEST or (sum(taken) < SECONDS and len(taken) < MOST):
        key = keys[len(taken)]
        start = time.perf_counter()
        jax.block_until_ready(compiled(key, obs, way.params))
        taken.append(time.perf_counter() - start)
    p50, p95 = np.quantile(taken, (0.5, 0.95)) * 1e3
    return Latency(method, mode, *way.evaluations, batch, float(p50), float(p95))


def rows(times: tuple[Latency, ...]) -> list[Row]:
    """One step of ours against the best of 32 of DPMD."""
    found = []
    for batch in BATCHES:
        of_batch = {(x.method, x.mode): x for x in times if x.batch == batch}
        rival = of_batch["DPMD", "bon"]
        for name in OURS:
            one = of_batch[name, "one_step"]
            found.append(
                Row(
                    "An action costs a small part of a diffusion policy's",
                    f"Time of an action of {name} in one step, batch {batch:,}",
                    one.p50,
                    baseline=("DPMD, best of 32", rival.p50),
                    unit="ms",
                    verdict=_verdict(one, rival),
                    note=f"{rival.p50 / one.p50:.3g} times as fast; median of calls from the host, "
                    f"95th percentiles {one.p95:.3g} and {rival.p95:.3g} ms: clear where that of "
                    "the faster is below the median of the slower. Three layers of 256.",
                )
            )
    return found


def _verdict(one: Latency, rival: Latency) -> str:
    if one.p95 < rival.p50:
        return "better"
    return "worse" if rival.p95 < one.p50 else "no clear difference"


def table(times: tuple[Latency, ...]) -> Table:
    """Every way of acting."""
    return Table(
        "Time of an action",
        (
            "Method",
            "Way",
            "Evaluations of the policy",
            "Of the critics",
            "Batch",
            "p50, ms",
            "p95, ms",
        ),
        times,
        f"Calls from the host, {bench.OBS} observations and {bench.ACTION} actions, three layers "
        f"of 256, K = 32, N = 20 (FPMD-M: 1); at least {FEWEST} calls, for {SECONDS:g} s.",
    )
