"""The best deployments of a model, attention and experts on a pair of accelerators."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxlab.serving.afd import planner
from jaxlab.serving.cost import catalog, prices
from jaxlab.serving.cost.prices import Accelerator, ModelSpec


class Plan(NamedTuple):
    """What the planner finds for one context.

    Attributes:
        context: Tokens of context.
        best: The deployment with the most tokens per GPU and second; None if none fits.
        usd: Its rent in USD per million tokens; None without one.
    """

    context: int
    best: planner.Deployment | None
    usd: float | None


def search(
    spec: ModelSpec, accelerators: Sequence[Accelerator], contexts: Sequence[int], max_servers: int
) -> dict[str, tuple[Plan, ...]]:
    """Returns the plans of every pair of accelerators by its name, one a context."""
    found = {}
    for attention, ffn in _pairs(accelerators):
        name = attention.name if attention is ffn else f"{attention.name} + {ffn.name}"
        found[name] = tuple(
            _plan(spec, attention, ffn, context, max_servers) for context in contexts
        )
    return found


def _pairs(accelerators: Sequence[Accelerator]) -> list[tuple[Accelerator, Accelerator]]:
    """Attention and experts on one kind, and each where it costs least."""
    same = [(one, one) for one in accelerators]
    spec = catalog.MODELS["Step-3"]
    attention = min(accelerators, key=lambda a: prices.attention_usd(spec, a, 8192))
    ffn = min(accelerators, key=lambda a: prices.ffn_usd(spec, a))
    return same if attention is ffn else [*same, (attention, ffn)]


def _plan(
    spec: ModelSpec, attention: Accelerator, ffn: Accelerator, context: int, max_servers: int
) -> Plan:
    best = planner.plan(spec, attention, ffn, context=context, max_servers=max_servers)
    if best is None:
        return Plan(context, None, None)
    rent = best.num_attention * attention.usd_per_hour + best.num_ffn * ffn.usd_per_hour
    tokens = best.tokens_per_gpu_second * (best.num_attention + best.num_ffn)
    return Plan(context, best, rent / 3600.0 / tokens * 1e6)
