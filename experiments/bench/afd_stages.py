"""Times the stages of one disaggregated layer beside the memory and the products of this device."""

import math

import jax
import jax.numpy as jnp

from experiments.afd import layer
from experiments.bench import ceilings, timing
from jaxlab.nn import transformer


def cell(stage: str, size: str, batch: int, context: int = 0) -> list[timing.Measurement]:
    """Times attention, against the bytes that it has to read, or experts, against their FLOPs.

    Args:
        stage: "attention" or "experts".
        size: "true" for Step-3's layer, or "small".
        batch: requests of an attention accelerator, or tokens of a micro-batch.
        context: tokens of cache of each request.
    """
    given = layer.sizes(size)
    config, item = given.config, jnp.dtype(given.dtype).itemsize
    D, H, C, R = config.d_model, config.num_heads, config.head_dim, config.q_rank
    if stage == "attention":
        weights = D * R + R * H * C + 2 * D * C + H * C * D
        work, unit = float(item * (weights + 2 * C * batch * context)), "B"
        call, ceiling = layer.attention(given, batch, context), ceilings.copy_bandwidth()
    else:
        hidden = config.expert_hidden
        routed = config.num_active * hidden / layer.PER_SERVER / layer.SERVERS
        always = hidden / (layer.SERVERS * layer.PER_SERVER)
        work, unit = 6.0 * batch * D * (routed + always), "FLOP"
        call, ceiling = layer.experts(given, batch, context), ceilings.matmul_flops(given.dtype)
    finite = all(bool(jnp.all(jnp.isfinite(x))) for x in floats(call()))
    if not finite:
        raise ValueError(f"the stage of {stage} is not finite")
    return [
        timing.Measurement(
            f"disaggregated layer, {stage}",
            f"{size}, batch {batch}" + f", {context} tokens each" * bool(context),
            timing.measure(call),
            work=work,
            work_unit=unit,
            ceiling=ceiling,
            note="Experts are the shard of one of sixteen accelerators.",
        )
    ]


def floats(tree: object) -> list[jax.Array]:
    """The leaves that may not be finite, in a dtype that can be asked."""
    return [
        x.astype(transformer.wide_dtype(x.dtype))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.floating) and math.prod(x.shape)
    ]
