"""The one place that knows how versions of JAX differ in what the kernels use (0.10.2 to 0.12)."""

import contextlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

try:
    from jax.experimental.pallas import mosaic_gpu as _mosaic_gpu
except ImportError:  # it needs absl-py, which JAX does not bring along
    _mosaic_gpu = None
try:
    from jax.experimental.pallas import triton as _triton
except ImportError:  # JAX has announced that it will go
    _triton = None

plgpu: Any = _mosaic_gpu
"""Pallas' Mosaic backend for Hopper GPUs, None where it cannot be imported."""
pltriton: Any = _triton
"""Pallas' Triton backend, None where this version of JAX has none."""


def precision(dtype: Any) -> jax.lax.Precision:
    """Returns the precision of a product: exact from float32 on, as it comes below."""
    exact = jnp.dtype(dtype).itemsize >= 4
    return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT


def interpreted(interpret: bool) -> dict[str, Any]:
    """Returns the arguments with which `plgpu.kernel` is interpreted on a CPU, or none."""
    if not interpret:
        return {}
    if params := getattr(plgpu, "InterpretGPUParams", None):
        return {"interpret": params()}
    from jax._src.pallas.mosaic_gpu.interpret import params  # where JAX 0.10 keeps it

    return {"interpret": params.InterpretGPUParams()}


def load(ref: Any, layout: Any) -> jax.Array:
    """Reads shared memory into registers with a layout."""
    index = inspect.signature(plgpu.load).parameters.get("idx")
    required = index is not None and index.default is inspect.Parameter.empty  # JAX 0.10
    return plgpu.load(ref, *([()] if required else []), layout=layout)


def triton_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a b in float32 within a Triton kernel, not in TensorFloat-32 if they are float32."""
    dot = pltriton.dot if hasattr(pltriton, "dot") else pl.dot
    return dot(a, b, precision=precision(a.dtype))


def target(device_kind: str = "NVIDIA H100 80GB HBM3", num_cores: int = 132):
    """Returns a context in which kernels are lowered for a GPU that this machine need not have."""
    try:
        from jax._src.mesh import AbstractDevice

        device = AbstractDevice(device_kind=device_kind, num_cores=num_cores, platform="gpu")
        # Of axes that are left to the compiler: by default, shapes would have to name them.
        axes = (jax.sharding.AxisType.Auto,)
        mesh = jax.sharding.AbstractMesh((1,), ("x",), axes, abstract_device=device)
    except (ImportError, TypeError):
        return contextlib.nullcontext()  # JAX 0.10 takes a Hopper GPU for granted
    return jax.sharding.use_abstract_mesh(mesh)


def why_not_hopper() -> str:
    """Says why kernels for Hopper GPUs cannot run here, "" if they can."""
    if (platform := jax.default_backend()) != "gpu":
        return f"the backend is {platform}, not gpu"
    if (capability := compute_capability()) != 9.0:
        return f"compute capability {capability} is not 9.0"
    if plgpu is None:
        return "JAX's Mosaic backend cannot be imported: pip install absl-py"
    return ""


def num_processors() -> int:
    """Returns the processors of the default device, those of an H100 where there is no GPU."""
    device = jax.devices()[0]
    return device.core_count if device.platform == "gpu" else 132


def compute_capability() -> float:
    """Returns the compute capability of the default NVIDIA GPU, 0 on any other device."""
    try:
        return float(getattr(jax.devices()[0], "compute_capability", 0.0))
    except ValueError:  # AMD's are names, such as gfx942
        return 0.0
