"""Named shapes of the fused query up-projection, their operands, and what they cost at least."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Spec(NamedTuple):
    """A workload; the defaults are one layer of Step-3: N tokens, rank R, H heads of C."""

    N: int
    R: int = 2048
    H: int = 64
    C: int = 256
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """In words, for tables."""
        return f"N = {self.N:,}, R = {self.R:,}, {self.H} x {self.C}, {self.dtype}"

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrix, of its rows and of the result."""
        columns = self.H * self.C
        return jnp.dtype(self.dtype).itemsize * (
            self.R * columns + self.N * self.R + self.N * columns
        )

    @property
    def num_flops(self) -> int:
        """FLOPs of the product."""
        return 2 * self.N * self.R * self.H * self.C


GRID = tuple(Spec(N) for N in (16, 64, 128, 256, 1024, 8192))
"""Decoding batches, and a prompt."""
ON_CPU = (Spec(64, 256, 8, 64, "float32"), Spec(512, 512, 16, 64, "float32"))
"""Small enough for two cores."""


def make(spec: Spec, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws `(low, up, position)` of `api.rms_up_rope`."""
    key_low, key_up, key_position = jax.random.split(jax.random.key(seed), 3)
    dtype = jnp.dtype(spec.dtype)
    up = jax.random.normal(key_up, (spec.R, spec.H, spec.C), dtype) * jnp.asarray(
        spec.R**-0.5, dtype
    )
    position = jax.random.randint(key_position, (spec.N,), 0, 65_536)
    return jax.random.normal(key_low, (spec.N, spec.R), dtype), up, position
