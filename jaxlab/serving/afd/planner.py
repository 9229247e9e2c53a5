"""How many attention and expert servers, what batch, how many micro-batches: a search.

A layer passes four stages, as in `afd.pipeline`: attention, network out, experts, network back.
Their times are rooflines over efficiencies, or measured; the search is exhaustive, because it is
small.

Source: arXiv:2507.19427 (roles, traffic, 50 ms and three micro-batches); the model of the times is
derived here.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from jaxlab.serving.afd.pipeline import STAGES, check_counts, time_per_token
from jaxlab.serving.cost import prices
from jaxlab.serving.cost.prices import Accelerator, ModelSpec
from jaxlab.serving.cost.sizing import SERVER, STEP_SECONDS


class Efficiency(NamedTuple):
    """Shares of the peak that are reached.

    Attributes:
        bandwidth: share of the memory's bandwidth.
        flops: share of the peak FLOP/s.
        network: share of the network's bandwidth.
        attention: share of that roofline that attention workers reach: small kernels, waiting.
        experts: share of that roofline that expert workers reach: imbalance, waiting.
    """

    bandwidth: float = 0.8
    flops: float = 0.6
    network: float = 0.8
    attention: float = 1.0
    experts: float = 1.0


MEASURED = Efficiency()
"""Usual shares."""
TOLERANCE = 1e-9
"""Of rates and times that count as equal."""


class StageLaw(NamedTuple):
    """A measured stage of one layer: `fixed + per_request * B + per_token * B * S` seconds.

    Call it with the number of requests B and the tokens S of cache of each.

    Attributes:
        fixed: seconds without requests: weights that are read, kernels that start.
        per_request: seconds of a request, whatever its context.
        per_token: seconds of a token of cache.
    """

    fixed: float
    per_request: float
    per_token: float = 0.0

    def __call__(self, batch: float, context: float = 0.0) -> float:
        return self.fixed + self.per_request * batch + self.per_token * batch * context


class StageTimes(NamedTuple):
    """Stage times that a user has measured, in place of rooflines; None leaves the roofline.

    Times are of a mean layer and must not fall as the batch grows, nor grow faster than it.

    Attributes:
        attention: function of the requests of one accelerator in a micro-batch and the context,
            to seconds; such as a `StageLaw`.
        experts: for each number of expert servers that was measured (the shard of one of its
            accelerators) a function of the tokens of a whole micro-batch, to seconds.
    """

    attention: Callable[[float, float], float] | None = None
    experts: Mapping[int, Callable[[float], float]] | None = None


ROOFLINES = StageTimes()
"""No stage measured."""


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
    measured: StageTimes = ROOFLINES,
) -> Deployment:
    """Returns what one deployment achieves, whether or not it fits or is fast enough.

    Requests are divided over all attention accelerators; their projections are replicated, but for
    the output projection, which a server divides. Experts are divided over the expert servers, and
    each over the eight of a server. Every token goes to every expert server, in one byte an
    element, and comes back in two.

    Args:
        context: tokens of cache per request.
        batch: number of requests in flight.
        efficiency: shares of the peaks that are reached where nothing was measured.
        measured: stage times to use in place of rooflines.
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
    if measured.attention is None:
        core = _roofline(
            attention_on, efficiency, local * of_token.kv_bytes, local * of_token.attention_flops
        )
        linear = _roofline(attention_on, efficiency, weights, local * of_token.linear_flops)
        attention = (core + linear) / efficiency.attention / L
    else:
        attention = _measured("attention", measured.attention(local, context))

    ffn_weights = prices.ffn_weights(spec) / (SERVER * num_ffn)
    if measured.experts is None:
        ffn_flops = tokens * of_token.ffn_flops / (SERVER * num_ffn)
        experts = _roofline(ffn_on, efficiency, ffn_weights, ffn_flops) / efficiency.experts / L
    elif num_ffn in measured.experts:
        experts = _measured("experts", measured.experts[num_ffn](tokens))
    else:
        raise ValueError(
            f"num_ffn must be one whose experts were measured, {sorted(measured.experts)}, got "
            f"{num_ffn}"
        )

    # Through the narrower side: an attention server sends its share to all expert servers, an
    # expert server hears from all attention servers.
    sent = tokens * spec.d_model * num_ffn / num_attention / attention_on.network
    heard = tokens * spec.d_model / ffn_on.network
    out = max(sent, heard) / efficiency.network

    stages = (attention, out, experts, 2.0 * out)
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
    measured: StageTimes = ROOFLINES,
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
        efficiency: shares of the peaks that are reached where nothing was measured.
        measured: stage times to use in place of rooflines; where experts were measured, only the
            numbers of expert servers that were are searched.

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
            measured=measured,
        )

    servers = range(1, max_servers + 1)
    known = servers if measured.experts is None else [n for n in servers if n in measured.experts]
    if not known:
        raise ValueError(
            f"experts must be measured for a number of servers from 1 to {max_servers}, got "
            f"{sorted(measured.experts or ())}"
        )
    kinds = [sized(*sizes) for sizes in itertools.product(servers, known, micro_batches)]
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


def fit_stage(batch: ArrayLike, context: ArrayLike, seconds: ArrayLike) -> StageLaw:
    """Fits a `StageLaw` to a table of measured times of one layer.

    Least squares of the relative deviation, with coefficients that are not negative: then time
    grows with the batch and never faster than it, as `plan` needs. Stages without a cache have
    context 0 throughout, and `per_token` 0.

    Args:
        batch: `[N]` numbers of requests.
        context: `[N]` tokens of cache of each request, or one number for all.
        seconds: `[N]` measured times.

    Raises:
        ValueError: if the table is too small or too uniform to tell the coefficients apart, a
            batch is not positive, a context negative, or a time not positive.
    """
    b, s, t = (np.asarray(x, float) for x in (batch, context, seconds))
    if b.ndim != 1 or t.shape != b.shape or s.shape not in ((), b.shape):
        raise ValueError(
            "batch and seconds must be lists of equal length, context one too or a number, got "
            f"shapes {b.shape}, {t.shape}, {s.shape}"
        )
    if not (
        np.all((b > 0.0) & (b < np.inf) & (t > 0.0) & (t < np.inf))
        and np.all((s >= 0.0) & (s < np.inf))
    ):
        raise ValueError("batch and seconds must be positive and context not negative, all finite")
    columns = [np.ones_like(b), b] + ([b * s] if np.any(s > 0.0) else [])
    design = np.stack(columns, 1) / t[:, None]
    scale = np.linalg.norm(design, axis=0)
    if np.linalg.matrix_rank(design / scale, tol=1e-9) < len(columns):
        raise ValueError(
            f"the table must vary enough to tell {len(columns)} coefficients apart; measure more "
            "batches, and contexts where there is a cache"
        )
    found = optimize.nnls(design / scale, np.ones_like(b))[0] / scale
    return StageLaw(*(float(x) for x in found))


def fit_efficiency(
    tokens_per_gpu_second: float,
    deployment: Callable[[Efficiency], Deployment],
    fields: Sequence[str],
    *,
    start: Efficiency = MEASURED,
) -> Efficiency:
    """Scales some shares of `start` by one factor until a deployment has a measured throughput.

    One figure fixes one factor; which shares it is charged to is an assumption, and decides what
    is predicted for other deployments.

    Args:
        tokens_per_gpu_second: throughput that was measured.
        deployment: what a deployment achieves at given shares, such as
            `lambda shares: evaluate(..., efficiency=shares)`.
        fields: names of the shares of `Efficiency` that are scaled.
        start: shares before scaling; those that are not named stay.

    Raises:
        ValueError: if a name is unknown, or no factor that leaves the shares in (0, 1] gives the
            throughput.
    """
    if not 0.0 < tokens_per_gpu_second < math.inf:
        raise ValueError(
            f"tokens_per_gpu_second must be positive and finite, got {tokens_per_gpu_second}"
        )
    if not fields or not set(fields) <= set(Efficiency._fields):
        raise ValueError(
            f"fields must name shares of {', '.join(Efficiency._fields)}, got {tuple(fields)}"
        )

    def scaled(factor: float) -> Efficiency:
        return start._replace(**{name: factor * getattr(start, name) for name in fields})

    def excess(log_factor: float) -> float:
        found = deployment(scaled(math.exp(log_factor)))
        return math.log(found.tokens_per_gpu_second / tokens_per_gpu_second)

    high = -math.log(max(getattr(start, name) for name in fields)) - 1e-12
    if excess(high) < 0.0:
        raise ValueError(
            f"{tokens_per_gpu_second:g} tokens/GPU/s are out of reach of {', '.join(fields)}: "
            f"shares of at most 1 give {tokens_per_gpu_second * math.exp(excess(high)):g}"
        )
    low = high - 1.0
    while excess(low) >= 0.0 and low > high - 50.0:
        low -= 1.0
    if excess(low) >= 0.0:
        raise ValueError(f"the throughput does not depend on {', '.join(fields)}")
    return scaled(math.exp(optimize.root_scalar(excess, bracket=(low, high), xtol=1e-13).root))


def _measured(name: str, seconds: float) -> float:
    if not 0.0 < seconds < math.inf:
        raise ValueError(f"measured seconds of {name} must be positive and finite, got {seconds}")
    return float(seconds)


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
