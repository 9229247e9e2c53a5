"""Transformers as plain functions over arrays: norms, rotary embedding, attention, SwiGLU, decoder.

Layers are functions of weights in NamedTuples; equal blocks are stacked and scanned. A language
model is `init`, `forward` and `decode`; anything else stacks `apply_blocks` under a mask of its
own.
"""

from jaxlab.nn.transformer.attention import (
    GqaParams,
    attend,
    causal_mask,
    check_positions,
    dense,
    empty_cache,
    init_gqa,
    positions,
    project_qkv,
    write_cache,
)
from jaxlab.nn.transformer.blocks import Block, BlockConfig, apply_blocks, init_blocks
from jaxlab.nn.transformer.decoder import (
    DecoderConfig,
    DecoderParams,
    check_vocabulary,
    decode,
    forward,
    hidden,
    init,
    init_cache,
    logits,
    readout,
)
from jaxlab.nn.transformer.feed_forward import Swiglu, init_swiglu, swiglu
from jaxlab.nn.transformer.norm import inverse_rms, rms_norm, wide_dtype
from jaxlab.nn.transformer.rotary import (
    Layout,
    angles,
    half_from_interleaved,
    interleaved_from_half,
    rotate,
)

__all__ = [
    "Block",
    "BlockConfig",
    "DecoderConfig",
    "DecoderParams",
    "GqaParams",
    "Layout",
    "Swiglu",
    "angles",
    "apply_blocks",
    "attend",
    "causal_mask",
    "check_positions",
    "check_vocabulary",
    "decode",
    "dense",
    "empty_cache",
    "forward",
    "half_from_interleaved",
    "hidden",
    "init",
    "init_blocks",
    "init_cache",
    "init_gqa",
    "init_swiglu",
    "interleaved_from_half",
    "inverse_rms",
    "logits",
    "positions",
    "project_qkv",
    "readout",
    "rms_norm",
    "rotate",
    "swiglu",
    "wide_dtype",
    "write_cache",
]
