"""Where separating attention from experts pays: utilization of expert servers against the network.

Every expert server hears every token, so that the network bounds the tokens of a stage however many
expert servers there are, while the weights that they must read in a stage bound their number from
below. Where the experts are sparse or the network slow, expert servers idle, and more of them do
not help: the "dead zone". A deployment that spreads everything over all servers (EP) shares its
network among more servers, but reads experts and caches in turn.

All times are rooflines at full peaks; steps take 50 ms, and whole servers of eight are counted.

Source: the criticism of arXiv:2602.09721 (read at second hand); the bound of arXiv:2507.19427 is
its limit. The model is derived here.
"""

import itertools
from typing import NamedTuple

from jaxlab.serving.afd.pipeline import check_counts
from jaxlab.serving.cost import prices, sizing
from jaxlab.serving.cost.prices import Accelerator, ModelSpec
from jaxlab.serving.cost.sizing import SERVER, STEP_SECONDS, WIRE_BYTES

EP_MICRO_BATCHES = 2
"""Micro-batches of a deployment with everything on all servers: one computes, one travels."""


class Utilization(NamedTuple):
    """The deployment with the most tokens per accelerator, and how busy its experts are.

    Attributes:
        num_attention: number of servers with attention; all of them where nothing is separated.
        num_ffn: number of servers with experts; 0 where nothing is separated.
        micro_batch: tokens of a micro-batch, a real number.
        ffn_utilization: FLOPs of the experts as a share of the peak, while accelerators have
            nothing else to do: the whole stage of expert servers; the time that the experts take
            where nothing is separated.
        tokens_per_gpu_second: throughput, all accelerators counted.
        bound: what bounds the micro-batch: "network", "experts", "attention", "compute" or
            "memory".
    """

    num_attention: int
    num_ffn: int
    micro_batch: float
    ffn_utilization: float
    tokens_per_gpu_second: float
    bound: str


def utilization_bound(spec: ModelSpec, on: Accelerator, *, network: float | None = None) -> float:
    """Returns the most that expert servers can be used: min(1, S / `min_sparsity`).

    S is the share of the weights of feed-forward layers that a token multiplies with. No number of
    servers does better; rounding to whole ones does worse.
    """
    share = prices.token_cost(spec, 0).ffn_flops / (2.0 * prices.ffn_weights(spec))
    return min(1.0, share / sizing.min_sparsity(spec.d_model, spec.num_layers, on, network=network))


def afd_utilization(
    spec: ModelSpec,
    on: Accelerator,
    *,
    context: int,
    network: float | None = None,
    max_servers: int = 16,
) -> Utilization | None:
    """Returns the best deployment with attention and experts on separate servers.

    Attention, network and experts have a third of a step each. All servers of either kind up to
    `max_servers` are tried, each with the largest micro-batch that fits.

    Args:
        context: tokens of cache per request.
        network: bytes/s that a server sends; those of the accelerator if None.
        max_servers: largest number of servers of either kind.

    Returns:
        The deployment with the most tokens per accelerator and second, of equals the one with fewer
        servers; None if none reads and holds its weights in time.
    """
    network = _check(on, context, network, max_servers)
    L, of_token = spec.num_layers, prices.token_cost(spec, context)
    stage = sizing.stage_seconds(L)
    stored, weights = prices.ffn_weights(spec), _attention_weights(spec)
    local = _most(stage * L, *_attention_times(spec, on, context))
    room = (on.memory - weights) / (sizing.NUM_STAGES * prices.stored_bytes(spec, context))
    found = []
    for nA, nF in itertools.product(range(1, max_servers + 1), repeat=2):
        gpus = SERVER * nF
        if stored / gpus > min(on.memory, on.bandwidth * stage * L):
            continue
        most = {
            "network": network * stage / (WIRE_BYTES * spec.d_model) * min(1.0, nA / nF),
            "experts": gpus * on.flops * stage * L / of_token.ffn_flops,
            "attention": SERVER * nA * local,
            "memory": SERVER * nA * room,
        }
        bound, tokens = min(most.items(), key=lambda item: item[1])
        if tokens > 0.0:
            used = tokens / most["experts"]
            rate = tokens / (stage * L * SERVER * (nA + nF))
            found.append(Utilization(nA, nF, tokens, used, rate, bound))
    return _best(found)


def ep_utilization(
    spec: ModelSpec,
    on: Accelerator,
    *,
    context: int,
    network: float | None = None,
    max_servers: int = 32,
    num_shared: int = 1,
) -> Utilization | None:
    """Returns the best deployment with attention and experts on all servers (EP).

    Every accelerator has its own requests and an equal part of the experts. Two micro-batches take
    turns: one computes attention and experts while the other travels. A token goes once to every
    other server that has one of its routed experts, (N - 1) (1 - (1 - 1 / N)^k) of N for k experts
    drawn independently, and comes back; shared experts and dense layers stay where they are.

    Args:
        context: tokens of cache per request.
        network: bytes/s that a server sends; those of the accelerator if None.
        max_servers: largest number of servers.
        num_shared: how many of a layer's active experts are shared.

    Returns:
        As `afd_utilization`.
    """
    network = _check(on, context, network, max_servers)
    routed = [
        (f.num_layers, f.num_active - num_shared if f.num_experts > 1 else 0) for f in spec.ffn
    ]
    if num_shared < 0 or any(k < 0 for _, k in routed):
        raise ValueError(
            f"num_shared must be from 0 to the active experts of every layer, got {num_shared}"
        )
    of_token = prices.token_cost(spec, context)
    turn = STEP_SECONDS / EP_MICRO_BATCHES
    stored, weights = prices.ffn_weights(spec), _attention_weights(spec)
    found = []
    for n in range(1, max_servers + 1):
        gpus = SERVER * n
        room = on.memory - weights - stored / gpus
        read, per_token = stored / gpus / on.bandwidth, of_token.ffn_flops / on.flops
        visited = sum(layers * (n - 1) * (1.0 - (1.0 - 1.0 / n) ** k) for layers, k in routed)
        attention = _attention_times(spec, on, context)
        local = {
            "compute": _most(turn, *attention, ((read, 0.0), (0.0, per_token))),
            "memory": room / (EP_MICRO_BATCHES * prices.stored_bytes(spec, context)),
        }
        if visited:
            sent = WIRE_BYTES * spec.d_model * visited * SERVER
            local["network"] = turn * network / sent
        bound, tokens = min(local.items(), key=lambda item: item[1])
        if tokens > 0.0:
            used = tokens * per_token / max(read, tokens * per_token)
            rate = tokens / turn
            found.append(Utilization(n, 0, gpus * tokens, used, rate, bound))
    return _best(found)


def _attention_weights(spec: ModelSpec) -> float:
    """Bytes of projections on an accelerator: the output projection is divided over its server."""
    return prices.attention_weights(spec) - prices.output_weights(spec) * (1.0 - 1.0 / SERVER)


def _attention_times(spec: ModelSpec, on: Accelerator, context: int):
    """Seconds of all layers by the requests of an accelerator: cache, then projections.

    Each is the longer of some lines, pairs of intercept and slope.
    """
    cost = prices.token_cost(spec, context)
    core = ((0.0, cost.kv_bytes / on.bandwidth), (0.0, cost.attention_flops / on.flops))
    linear = ((_attention_weights(spec) / on.bandwidth, 0.0), (0.0, cost.linear_flops / on.flops))
    return core, linear


def _most(seconds: float, *times) -> float:
    """Returns the largest number whose times, each the longer of some lines, fit into `seconds`."""
    most = float("inf")
    for lines in itertools.product(*times):
        fixed, slope = (sum(parts) for parts in zip(*lines, strict=True))
        if fixed > seconds:
            return 0.0
        if slope > 0.0:
            most = min(most, (seconds - fixed) / slope)
    return most


def _best(found: list[Utilization]) -> Utilization | None:
    return max(
        found,
        key=lambda one: (one.tokens_per_gpu_second, -one.num_attention - one.num_ffn),
        default=None,
    )


def _check(on: Accelerator, context: int, network: float | None, max_servers: int) -> float:
    check_counts(context=context, max_servers=max_servers)
    network = on.network if network is None else network
    prices.check_positive(network=network)
    return network
