"""What this device reaches at most: bytes a second of a copy, FLOPs a second of a product."""

import functools

import jax
import jax.numpy as jnp

from experiments.bench import timing


@functools.cache
def copy_bandwidth() -> float:
    """Returns the bytes a second, read and written, of x + 1 on half a gigabyte (CPU: 64 MB)."""
    count = 2**24 if jax.default_backend() == "cpu" else 2**27
    x = jnp.zeros(count, jnp.float32)
    timed = timing.measure_chain(lambda i, x: x + 1.0, x, calls=10, repeats=5)
    return 2.0 * x.nbytes / timed.median_s


@functools.cache
def matmul_flops(dtype: str = "bfloat16") -> float:
    """Returns the FLOPs a second of a square product, 8192 on a side (CPU: 1024)."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    scale = jnp.asarray(size**-0.5, dtype)
    timed = timing.measure_chain(lambda i, x, a: (x @ a) * scale, a, a, calls=10, repeats=5)
    return 2.0 * size**3 / timed.median_s


def measured() -> list[timing.Measurement]:
    """Returns both ceilings as measurements, seconds per unit."""
    kinds = (("copy", copy_bandwidth, "B"), ("bf16 product", matmul_flops, "FLOP"))
    records = []
    for name, ceiling, unit in kinds:
        rate = ceiling()
        one = timing.Timing(0.0, 1.0 / rate, 0.0, 5)
        records.append(
            timing.Measurement(
                f"ceiling: {name}",
                f"seconds per {unit}",
                one,
                work=1.0,
                work_unit=unit,
                ceiling=rate,
            )
        )
    return records
