"""What this device reaches at most: bytes a second of a copy, FLOPs a second of a product."""

import functools

import jax
import jax.numpy as jnp

from experiments.bench import timing
from jaxlab.kernels import compat  # pyright: ignore[reportMissingImports]


def copy_bandwidth() -> float:
    """Returns the bytes a second, read and written, of x + 1 on half a gigabyte (CPU: 64 MB)."""
    return _rate(copy())


def matmul_flops(dtype: str = "bfloat16") -> float:
    """Returns the FLOPs a second of a square product, 8192 on a side (CPU: 1024)."""
    return _rate(product(dtype))


@functools.cache
def copy() -> timing.Measurement:
    """Times ten passes of x + 1 in place: none is needed to save what x was."""
    count = 2**24 if jax.default_backend() == "cpu" else 2**27
    x = jnp.zeros(count, jnp.float32)
    timed = timing.measure_chain(lambda i, x: x + 1.0, x, calls=10, repeats=5)
    return timing.Measurement(
        "ceiling: copy", f"{x.nbytes:,} bytes", timed, work=2.0 * x.nbytes, work_unit="B"
    )


@functools.cache
def product(dtype: str = "bfloat16") -> timing.Measurement:
    """Times ten products x a, at the precision that kernels multiply in; x keeps its size."""
    size = 1024 if jax.default_backend() == "cpu" else 8192

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (size, size)).astype(dtype)

    def multiply(i: jax.Array, x: jax.Array, a: jax.Array) -> jax.Array:
        return jnp.matmul(x, a, precision=compat.precision(dtype))

    x = draw(jax.random.key(0))
    a = x * jnp.asarray(size**-0.5, dtype)
    timed = timing.measure_chain(multiply, x, a, calls=10, repeats=5)
    return timing.Measurement(
        f"ceiling: {dtype} product",
        f"{size:,} on a side",
        timed,
        work=2.0 * size**3,
        work_unit="FLOP",
    )


def measured() -> list[timing.Measurement]:
    """Returns both ceilings, an entry of the accelerator suite."""
    return [copy(), product()]


def _rate(item: timing.Measurement) -> float:
    assert item.rate is not None
    return item.rate
