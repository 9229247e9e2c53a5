"""How near paged decode attention comes to the memory's speed: batches, contexts, precisions."""

import dataclasses
from typing import Literal

SUMMARY = "Decode attention of Step-3: share of the copy bandwidth, and every rival that runs"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the kernel study, on arXiv:2507.19427; one layer, page 64."""

    batches: tuple[int, ...] = (1, 16, 64, 128, 256)
    """Requests."""
    contexts: tuple[int, ...] = (1024, 4096, 8192, 32_768, 131_072)
    """Mean tokens of a request."""
    lengths: tuple[Literal["uniform", "lognormal", "bimodal"], ...] = ("uniform", "lognormal")
    """How tokens spread over requests."""
    kv: tuple[Literal["bf16", "fp8", "direct", "f32"], ...] = ("bf16", "fp8")
    """Precision of keys and values."""
    num_heads: int = 64
    """Query heads."""
    head_dim: int = 256
    """Their size."""
    max_tokens: int = 4_194_304
    """Most tokens of a cell, all requests together."""
    repeats: int = 10
    """Timed repeats of a cell."""

    def __post_init__(self):
        for name in ("batches", "contexts", "lengths", "kv"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if min(*self.batches, *self.contexts, self.num_heads) < 1:
            raise ValueError("batches, contexts and num_heads must be at least 1")
        if self.head_dim < 16 or self.head_dim % 16:
            raise ValueError(f"head_dim must be a multiple of 16, got {self.head_dim}")
        if self.repeats < 2:
            raise ValueError(f"repeats must be at least 2, got {self.repeats}")
        if self.max_tokens < min(self.batches) * min(self.contexts):
            raise ValueError(f"max_tokens = {self.max_tokens:,} leaves no cell")


PRESETS = {
    "smoke": Config(
        batches=(1, 4),
        contexts=(256, 1024),
        lengths=("uniform",),
        kv=("f32",),
        num_heads=8,
        head_dim=64,
        repeats=3,
    ),
    "cpu": Config(
        batches=(1, 4, 16),
        contexts=(512, 2048, 8192),
        kv=("f32", "bf16"),
        num_heads=16,
        head_dim=128,
        max_tokens=32_768,
    ),
    "gpu": Config(),
}
