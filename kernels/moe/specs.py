"""Named shapes of grouped SwiGLU, their operands, and what they cost at least."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Spec(NamedTuple):
    """A workload: N tokens that visit k of E experts, width D, hidden F.

    The defaults are a server's eighth of a Step-3 layer: 48 experts, their hidden width over 8.
    """

    N: int
    k: int = 3
    E: int = 48
    D: int = 7168
    F: int = 640
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """In words, for tables."""
        return f"N = {self.N:,}, {self.k} of {self.E}, {self.D:,} x {self.F:,}, {self.dtype}"

    @property
    def num_flops(self) -> int:
        """FLOPs of the three products, for the rows there are."""
        return 6 * self.N * self.k * self.D * self.F


GRID = tuple(Spec(N) for N in (128, 512, 2048, 8192))
ON_CPU = (
    Spec(32, 3, 16, 512, 384, "float32"),
    Spec(256, 3, 16, 512, 384, "float32"),
    Spec(4096, 3, 48, 256, 256, "float32"),
)
"""Small enough for two cores."""


def make(spec: Spec, seed: int = 0) -> tuple[jax.Array, ...]:
    """Draws `(x, gate, up, down, sizes)` of `api.grouped_swiglu`, experts drawn uniformly."""
    keys = jax.random.split(jax.random.key(seed), 5)
    dtype = jnp.dtype(spec.dtype)

    def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(shape[-2] ** -0.5, dtype)

    x = jax.random.normal(keys[0], (spec.N * spec.k, spec.D), dtype)
    gate, up = (normal(key, (spec.E, spec.D, spec.F)) for key in keys[1:3])
    down = normal(keys[3], (spec.E, spec.F, spec.D))
    expert = jax.random.randint(keys[4], (spec.N * spec.k,), 0, spec.E)
    sizes = jnp.bincount(expert, length=spec.E).astype(jnp.int32)
    return x, gate, up, down, sizes
