"""Named shapes of prefill attention, their operands, and what they cost at least."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Spec(NamedTuple):
    """A workload; the defaults are one layer of Step-3.

    Attributes:
        B: prompts.  T: tokens of a prompt.  start: tokens that are cached before it.
        H, C: heads and their size.  dtype: of everything.
    """

    B: int
    T: int
    start: int = 0
    H: int = 64
    C: int = 256
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """In words, for tables."""
        before = f" after {self.start:,}" if self.start else ""
        return f"B = {self.B}, T = {self.T:,}{before}, {self.dtype}"

    @property
    def num_flops(self) -> int:
        """FLOPs of scores and averages, 4 H C a visible pair of tokens."""
        pairs = self.T * self.start + self.T * (self.T + 1) // 2
        return 4 * self.B * self.H * self.C * pairs


GRID = tuple(Spec(max(1, 16_384 // T), T) for T in (512, 1024, 2048, 4096, 8192, 16_384))
"""16K tokens in prompts of growing length."""
CHUNKED = (Spec(1, 2048, 6144), Spec(1, 1024, 31_744))
"""A chunk at the end of a long prompt."""
ON_CPU = (Spec(2, 512, H=8, C=64, dtype="float32"), Spec(1, 1024, H=4, C=64, dtype="float32"))
"""Small enough for two cores."""


def make(spec: Spec, seed: int = 0) -> tuple[jax.Array, ...]:
    """Draws `(q, k, v, q_start, lens)` of `api.mqa_prefill`."""
    keys = jax.random.split(jax.random.key(seed), 3)
    S, dtype = spec.start + spec.T, jnp.dtype(spec.dtype)
    q = jax.random.normal(keys[0], (spec.B, spec.T, spec.H, spec.C), dtype)
    k, v = (jax.random.normal(key, (spec.B, S, spec.C), dtype) for key in keys[1:])
    return q, k, v, jnp.full(spec.B, spec.start, jnp.int32), jnp.full(spec.B, S, jnp.int32)
