"""Models and accelerators of the published cost tables.

Models store weights and cache in 8 bits unless a kind says otherwise; prices are those of
arXiv:2507.19427, that of the 910B its estimate. Yours are one line each.
"""

from jaxlab.serving.cost.prices import (
    Accelerator,
    FactorizedAttention,
    Ffn,
    GroupedQueryAttention,
    LatentAttention,
    LightningAttention,
    ModelSpec,
)

_GQA = GroupedQueryAttention

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "DSv3",
            7168,
            ((61, LatentAttention(128)),),
            (Ffn(58, 2048, 8 + 1, 256 + 1), Ffn(3, 18432)),
        ),
        ModelSpec(
            "Kimi K2",
            7168,
            ((61, LatentAttention(64)),),
            (Ffn(60, 2048, 8 + 1, 384 + 1), Ffn(1, 18432)),
        ),
        ModelSpec("Qwen3 MoE", 4096, ((94, _GQA(64, 4, 128)),), (Ffn(94, 1536, 8, 128),)),
        ModelSpec("Qwen3 32B", 5120, ((64, _GQA(64, 8, 128)),), (Ffn(64, 25600),)),
        ModelSpec(
            "Llama 4 M",
            5120,
            ((12, _GQA(40, 8, 128, 2.0)), (36, _GQA(40, 8, 128, window=8192))),
            (Ffn(24, 8192, 1 + 1, 128 + 1), Ffn(24, 16384)),
        ),
        ModelSpec(
            "MM M1",
            6144,
            ((10, _GQA(64, 8, 128, 2.0)), (70, LightningAttention(64, 128))),
            (Ffn(80, 9216, 2, 32),),
        ),
        ModelSpec("ERNIE 4.5", 8192, ((54, _GQA(64, 8, 128)),), (Ffn(54, 3584, 8, 64),)),
        ModelSpec("Pangu Pro", 5120, ((48, _GQA(40, 8, 128)),), (Ffn(48, 1344, 8 + 4, 64 + 4),)),
        ModelSpec(
            "Step-3",
            7168,
            ((61, FactorizedAttention(64, 256, 2048)),),
            (Ffn(56, 5120, 3 + 1, 48 + 1), Ffn(5, 18432)),
        ),
    )
}
"""By name; contexts, cache precisions and widths as the published tables count them."""

ACCELERATORS: dict[str, Accelerator] = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("H800", 2.0, 1.98e15, 3.35e12),
        Accelerator("H20", 0.8, 2.96e14, 4.00e12, memory=96e9),
        Accelerator("A800", 0.75, 3.12e14, 2.00e12, network=200e9),
        Accelerator("910B", 0.67, 2.80e14, 1.60e12, memory=64e9, network=200e9),
    )
}
"""By name; FLOP/s are FP8 where there is FP8 (H800, H20), else BF16."""
