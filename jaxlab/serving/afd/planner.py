"""How many attention and expert servers, what batch, how many micro-batches: a search.

A layer passes four stages, as in `afd.pipeline`: attention, network out, experts, network back.
Their times are rooflines over efficiencies; the search is exhaustive, because it is small.

Source: arXiv:2507.19427 (roles, traffic, 50 ms and three micro-batches); the model of the times is
derived here.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxlab.serving.afd.pipeline import STAGES, check_counts, time_per_token
from jaxlab.serving.cost import prices
from jaxlab.serving.cost.prices import Accelerator, ModelSpec
from jaxlab.serving.cost.sizing import SERVER, STEP_SECONDS


class Efficiency(NamedTuple):
    """Shares of the peak that are reached: memory bandwidth, compute, network."""

    bandwidth: float = 0.8
    flops: float = 0.6
    network: float = 0.8


MEASURED = Efficiency()
"""Usual shares."""
TOLERANCE = 1e-9
"""Of rates and times that count as equal."""


class Deployment(NamedTuple):
    """One candidate, and what it achieves.

    Attributes:
        num_attention: number of servers of eight that run the attention.
        num_ffn: number of servers of eight that run the feed-forward layers.
        batch: number of requests in flight.
        micro_batches: number of parts that the batch is cut into.
        stage_seconds: mean time of each of `STAGES`, for one layer and one micro-batch.
        tpot: seconds per output token.
        tokens_per_gpu_second: throughput, all accelerators of both kinds counted.
        attention_bytes: bytes of weights and cache on one accelerator for attention.
        ffn_bytes: bytes of weights on one accelerator for feed-forward layers.
        bottleneck: the stage that takes longest; "latency" if micro-batches are too few to fill
            even that.
    """

    num_attention: int
    num_ffn: int
    batch: int
    micro_batches: int
    stage_seconds: tuple[float, float, float, float]
    tpot: float
    tokens_per_gpu_second: float
    attention_bytes: float
    ffn_bytes: float
    bottleneck: str


def evaluate(
    spec: ModelSpec,
    attention_on: Accelerator,
    ffn_on: Accelerator,
    *,
    context: int,
    num_attention: int,
    num_ffn: int,
    batch: int,
    micro_batches: int = 3,
    efficiency: Efficiency = MEASURED,
) -> Deployment:
    """Returns what one deployment achieves, whether or not it fits or is fast enough.

    Requests are divided over all attention accelerators; their projections are replicated, but for
    the output projection, which a server divides. Experts are divided over the expert servers, and
    each over the eight of a server. Every token goes to every expert server, in one byte an
    element, and comes back in two.

    Args:
        context: tokens of cache per request.
        batch: number of requests in flight.
    """
    check_counts(
        context=context,
        num_attention=num_attention,
        num_ffn=num_ffn,
        batch=batch,
        micro_batches=micro_batches,
    )
    for name, share in efficiency._asdict().items():
        if not 0.0 < share <= 1.0:
            raise ValueError(f"efficiency of {name} must be in (0, 1], got {share}")
    L, tokens = spec.num_layers, batch / micro_batches
    of_token = prices.token_cost(spec, context)
    local = tokens / (SERVER * num_attention)

    weights = prices.attention_weights(spec) - prices.output_weights(spec) * (1.0 - 1.0 / SERVER)
    core = _roofline(
        attention_on, efficiency, local * of_token.kv_bytes, local * of_token.attention_flops
    )
    linear = _roofline(attention_on, efficiency, weights, local * of_token.linear_flops)

    ffn_weights = prices.ffn_weights(spec) / (SERVER * num_ffn)
    ffn_flops = tokens * of_token.ffn_flops / (SERVER * num_ffn)
    experts = _roofline(ffn_on, efficiency, ffn_weights, ffn_flops)

    # Through the narrower side: an attention server sends its share to all expert servers, an
    # expert server hears from all attention servers.
    sent = tokens * spec.d_model * num_ffn / num_attention / attention_on.network
    heard = tokens * spec.d_model / ffn_on.network
    out = max(sent, heard) / efficiency.network

    stages = ((core + linear) / L, out, experts / L, 2.0 * out)
    tpot = time_per_token(stages, micro_batches, L)
    filled = micro_batches * max(stages) >= sum(stages)
    return Deployment(
        num_attention=num_attention,
        num_ffn=num_ffn,
        batch=batch,
        micro_batches=micro_batches,
        stage_seconds=stages,
        tpot=tpot,
        tokens_per_gpu_second=batch / (SERVER * (num_attention + num_ffn) * tpot),
        attention_bytes=weights
        + batch / (SERVER * num_attention) * prices.stored_bytes(spec, context),
        ffn_bytes=ffn_weights,
        bottleneck=STAGES[stages.index(max(stages))] if filled else "latency",
    )


def plan(
    spec: ModelSpec,
    attention_on: Accelerator,
    ffn_on: Accelerator,
    *,
    context: int,
    max_servers: int = 8,
    micro_batches: Sequence[int] = (1, 2, 3, 4),
    max_tpot: float = STEP_SECONDS,
    efficiency: Efficiency = MEASURED,
) -> Deployment | None:
    """Searches for the most tokens per accelerator and second.

    Of deployments whose throughput is equal to one part in 10^9 it takes the shortest time per
    token, and of those the fewest servers. Every attention accelerator has the same whole number of
    requests of each micro-batch. Neither throughput nor step falls when that number grows, so it is
    found by bisection.

    Args:
        context: tokens of cache per request.
        max_servers: largest number of servers of either kind.
        micro_batches: numbers of micro-batches to be tried.
        max_tpot: most seconds that an output token may take.

    Returns:
        The best deployment that is fast enough and fits into memory, or None if none does.
    """
    check_counts(context=context, max_servers=max_servers)
    if not max_tpot > 0.0:
        raise ValueError(f"max_tpot must be positive, in seconds, got {max_tpot}")
    if not micro_batches:
        raise ValueError("micro_batches must name at least one number to try, got none")

    def fits(found: Deployment) -> bool:
        return (
            found.tpot <= max_tpot
            and found.attention_bytes <= attention_on.memory
            and found.ffn_bytes <= ffn_on.memory
        )

    def sized(num_attention: int, num_ffn: int, parts: int) -> Callable[[int], Deployment]:
        """Deployments by the requests of an attention accelerator in a micro-batch."""
        return lambda local: evaluate(
            spec,
            attention_on,
            ffn_on,
            context=context,
            num_attention=num_attention,
            num_ffn=num_ffn,
            batch=local * parts * SERVER * num_attention,
            micro_batches=parts,
            efficiency=efficiency,
        )

    servers = range(1, max_servers + 1)
    kinds = [sized(*sizes) for sizes in itertools.product(servers, servers, micro_batches)]
    most = [(at, _last(lambda n, at=at: fits(at(n)))) for at in kinds]
    fullest = [(at, at(n).tokens_per_gpu_second) for at, n in most if n > 0]
    if not fullest:
        return None
    enough = max(rate for _, rate in fullest) * (1.0 - TOLERANCE)
    quickest = [
        at(1 + _last(lambda n, at=at: at(n).tokens_per_gpu_second < enough))
        for at, rate in fullest
        if rate >= enough
    ]
    tpot = min(found.tpot for found in quickest) * (1.0 + TOLERANCE)
    return min(
        (found for found in quickest if found.tpot <= tpot),
        key=lambda found: found.num_attention + found.num_ffn,
    )


def _last(holds: Callable[[int], bool]) -> int:
    """Returns the largest n for which a property holds that holds up to some n; 0 for none."""
    if not holds(1):
        return 0
    low, high = 1, 2
    while holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _roofline(on: Accelerator, efficiency: Efficiency, num_bytes: float, flops: float) -> float:
    """Seconds: the longer of reading and computing."""
    return max(
        num_bytes / (efficiency.bandwidth * on.bandwidth), flops / (efficiency.flops * on.flops)
    )
