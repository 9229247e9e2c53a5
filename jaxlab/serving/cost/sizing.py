"""Bounds on batch, sparsity and network of a server that separates attention from experts.

A decoding step of 50 ms is spent in three overlapping stages (attention, network, experts), so a
layer of L has 50 ms / (3 L) for each. Servers have eight accelerators.

Source: Step-3, arXiv:2507.19427, sections on sparsity and on non-flagship accelerators.
"""

import math
from typing import NamedTuple

from jaxlab.serving.cost.prices import (
    Accelerator,
    FactorizedAttention,
    ModelSpec,
    check_positive,
    ffn_weights,
)

STEP_SECONDS = 0.05
"""Time per output token that serves 20 tokens a second to every user."""
NUM_STAGES = 3
SERVER = 8
"""Accelerators of a server."""
WIRE_BYTES = 3
"""Bytes per element and token: one out in FP8, two back in BF16."""


def stage_seconds(num_layers: int) -> float:
    """Returns the time of one stage of one layer: 273 us for 61 layers."""
    if not 1 <= num_layers < math.inf:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    return STEP_SECONDS / NUM_STAGES / num_layers


def sparsity(num_routed: int, num_active: int, num_shared: int = 1) -> float:
    """Returns the share of experts that a token visits, shared ones on both sides."""
    if not (1 <= num_active <= num_routed < math.inf and 0 <= num_shared < math.inf):
        raise ValueError(
            f"experts must satisfy 1 <= active <= routed and shared >= 0, got {num_active}, "
            f"{num_routed}, {num_shared}"
        )
    return (num_active + num_shared) / (num_routed + num_shared)


def min_active(num_routed: int, least: float, num_shared: int = 1) -> int:
    """Returns the fewest routed experts of a token at a sparsity of at least `least`.

    DSv3 would need 14 of its 256 on H800, and visits 8.
    """
    _check_share("least", least)
    if not (1 <= num_routed < math.inf and 0 <= num_shared < math.inf):
        raise ValueError(
            f"experts must be routed >= 1, shared >= 0, got {num_routed}, {num_shared}"
        )
    return max(1, math.ceil((num_routed + num_shared) * least - num_shared - 1e-9))


def min_batch(accelerator: Accelerator, sparsity: float = 1.0) -> float:
    """Returns the tokens at which experts become compute-bound, weights in one byte.

    A weight is read once for 2 B S FLOPs: B >= ratio / (2 S).
    """
    _check_share("sparsity", sparsity)
    return accelerator.ratio / (2.0 * sparsity)


def min_sparsity(
    d_model: int, num_layers: int, accelerator: Accelerator, *, network: float | None = None
) -> float:
    """Returns the least share of active experts whose traffic the network can carry.

    The batch that fills the experts sends 3 D `min_batch` bytes a layer through the server's
    network within one stage: S >= D ratio L / (network 50 ms / (3 * 1.5)).

    Args:
        d_model: width D of the model.
        num_layers: number of layers L.
        network: bytes/s that a server sends; those of the accelerator if None.
    """
    network = accelerator.network if network is None else network
    check_positive(d_model=d_model, network=network)
    volume_at_full_sparsity = WIRE_BYTES * d_model * min_batch(accelerator)
    return volume_at_full_sparsity / (network * stage_seconds(num_layers))


def max_micro_batch(
    d_model: int, num_layers: int, num_attention: int, num_ffn: int, network: float
) -> float:
    """Returns the tokens of a micro-batch that attention servers can broadcast within a stage.

    Every one of `num_attention` servers sends its share to all `num_ffn` expert servers and hears
    from all: num_ffn 3 D (B / num_attention) <= network * stage.
    """
    check_positive(d_model=d_model, num_attention=num_attention, num_ffn=num_ffn, network=network)
    per_token = WIRE_BYTES * d_model * num_ffn / num_attention
    return network * stage_seconds(num_layers) / per_token


class SmallAccelerator(NamedTuple):
    """What a slow accelerator can do within its stages, per accelerator.

    Attributes:
        stage_bytes: bytes that it reads in a stage.
        linear_bytes: bytes of the attention's projections; the rest is left for the cache.
        kv_tokens: tokens of cache that it can read in a stage.
        max_batch: number of requests of this context that these are.
        ffn_bytes: bytes of experts that it can hold and still read in time.
        num_servers: number of servers of eight that hold all experts.
    """

    stage_bytes: float
    linear_bytes: float
    kv_tokens: float
    max_batch: int
    ffn_bytes: float
    num_servers: int


def small_accelerator(
    spec: ModelSpec, bandwidth: float, *, context: int = 8192, ffn_efficiency: float = 0.5
) -> SmallAccelerator:
    """Sizes a deployment on accelerators of which only the bandwidth counts, bytes/s.

    The output projection is divided over the eight accelerators of a server, the other projections
    are replicated; experts reach `ffn_efficiency` of the bandwidth.

    Raises:
        ValueError: if a number is not positive, the model has other attention than MFA, or one
            stage does not even read the projections.
    """
    check_positive(bandwidth=bandwidth, context=context)
    _check_share("ffn_efficiency", ffn_efficiency)
    if len(spec.attention) != 1 or not isinstance(spec.attention[0][1], FactorizedAttention):
        raise ValueError(f"this study is of a model with MFA alone, got {spec.name}")
    kind = spec.attention[0][1]
    stage_bytes = bandwidth * stage_seconds(spec.num_layers)
    out = kind.num_heads * kind.head_dim * spec.d_model
    linear_bytes = kind.num_weights(spec.d_model) - out * (1.0 - 1.0 / SERVER)
    if stage_bytes <= linear_bytes:
        raise ValueError(
            f"a stage reads {stage_bytes / 1e6:.0f} MB at {bandwidth / 1e9:.0f} GB/s, and the "
            f"projections alone are {linear_bytes / 1e6:.0f} MB: too slow for attention"
        )
    kv_tokens = (stage_bytes - linear_bytes) / kind.kv_bytes(1)
    ffn_bytes = ffn_efficiency * stage_bytes * spec.num_layers
    num_servers = math.ceil(ffn_weights(spec) / (SERVER * ffn_bytes))
    return SmallAccelerator(
        stage_bytes,
        linear_bytes,
        kv_tokens,
        math.floor(kv_tokens / context),
        ffn_bytes,
        num_servers,
    )


def _check_share(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be in (0, 1], got {value}")
