"""Meshes, data sharding, and start-up of several processes, over `jax.sharding` alone."""

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlab.core.types import PyTree

LOST_AFTER = 15.0
"""Seconds without a sign of a process after which it counts as lost."""
_lost_after = [LOST_AFTER]
"""As it was asked for when this process joined a run."""
_CONNECTION = re.compile("Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Bb]arrier|heartbeat")
"""What errors say that come from the connection to another process."""


def make_mesh(axes: Mapping[str, int] | None = None) -> Mesh:
    """Makes a mesh with automatic axes; by default one axis `data` over all devices.

    Args:
        axes: size of each axis by name, e.g. `{"data": 4, "model": 2}`; the product must not
            exceed the number of devices.

    Raises:
        ValueError: if a size is below 1 or there are too few devices.
    """
    axes = dict(axes or {"data": jax.device_count()})
    needed = 1
    for name, size in axes.items():
        if size < 1:
            raise ValueError(f"mesh axis {name!r} must have at least 1 device, got {size}.")
        needed *= size
    if needed > jax.device_count():
        raise ValueError(f"mesh {axes} needs {needed} devices, there are {jax.device_count()}.")
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices()[:needed],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that keeps a full copy on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def along(mesh: Mesh, axis: str = "data") -> NamedSharding:
    """Sharding that splits the leading dimension over mesh axis `axis`."""
    return NamedSharding(mesh, PartitionSpec(axis))


def shard(tree: PyTree, mesh: Mesh, *, axis: str = "data") -> PyTree:
    """Places every leaf with its leading dimension split over `axis`.

    Raises:
        ValueError: if a leading dimension is not a multiple of the axis size.
    """
    size = mesh.shape[axis]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf.ndim == 0 or leaf.shape[0] % size:
            raise ValueError(
                f"leaf {jax.tree_util.keystr(path)} has shape {leaf.shape}; its leading dimension "
                f"must be a multiple of the {size} devices along {axis!r}."
            )
    return jax.device_put(tree, along(mesh, axis))


def sharded_map(fn: Callable, xs: PyTree, mesh: Mesh | None, *, axis: str = "data") -> PyTree:
    """Maps `fn` over the leading dimension of `xs`, spread over the devices of `mesh`.

    Each device takes a contiguous block and works through it in order (`lax.map`), so that `fn`
    sees the same inputs, and gives the same results, on any number of devices.

    Args:
        fn: maps one entry to a pytree of arrays.
        xs: pytree with leading dimension `N` on every leaf; `N` a multiple of the axis size.
        mesh: devices to spread over; None maps on the default device.

    Returns:
        The results stacked along a leading dimension `N`, sharded along `axis`.
    """
    if mesh is None:
        return jax.lax.map(fn, xs)
    spec = PartitionSpec(axis)
    # check_vma=False: some samplers (jax.random.poisson) start loops from constants, which the
    # check of varying axes takes for a mistake.
    mapped = jax.shard_map(
        lambda block: jax.lax.map(fn, block),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    return mapped(xs)


def fetch(tree: PyTree) -> PyTree:
    """Brings arrays to the host, from all processes where they are spread over them."""

    def whole(x: Any) -> Any:
        here = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return x if here else multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def any_process(flag: bool, *, alone: bool = False) -> bool:
    """Whether `flag` is true in any process of the run; all of them have to ask.

    Args:
        flag: what this process says.
        alone: whether it asks for itself alone, as one that shares nothing with the others.
    """
    if alone or jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    lost_after: float = LOST_AFTER,
) -> int:
    """Joins this process to a multi-process run; call it before anything else touches a device.

    Settings come from the arguments, else from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, else from Slurm. With none of them the process stays alone.

    When a process of the run is lost, the runtime ends each of the others and says which it was:
    they could only wait for it. What was saved is there for the next run.

    Args:
        coordinator_address: `host:port` of process 0.
        num_processes: number of processes in the run.
        process_id: index of this one, 0-based.
        lost_after: seconds without a sign of a process after which it counts as lost. That process
            0 is lost is seen at once.

    Returns:
        The number of processes.

    Raises:
        ValueError: if only some of the three settings are given, or lost_after is below 1.
    """
    if not lost_after >= 1.0:
        raise ValueError(f"lost_after must be at least 1 second, got {lost_after}")
    timeout = _lost_after[0] = math.ceil(lost_after)
    env = os.environ
    address = coordinator_address or env.get("JAX_COORDINATOR_ADDRESS")
    count = num_processes if num_processes is not None else env.get("JAX_NUM_PROCESSES")
    index = process_id if process_id is not None else env.get("JAX_PROCESS_ID")
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [name for name, value in given.items() if value is None]
    if not missing:
        count, index = int(str(count)), int(str(index))
        if not 0 <= index < count:
            raise ValueError(f"process_id must lie in [0, {count}), got {index}.")
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=timeout)
    elif len(missing) < len(given):
        raise ValueError(f"initialize got {given}; give {', '.join(missing)} too, or none of them.")
    elif int(env.get("SLURM_NTASKS", "1")) > 1:
        jax.distributed.initialize(heartbeat_timeout_seconds=timeout)
    return jax.process_count()


@contextlib.contextmanager
def named_if_lost() -> Iterator[None]:
    """Keeps the error that a lost process causes in another one from being told before its name.

    What waits for the lost process fails at once or after a while, in the words of whatever library
    carried the data; soon after the runtime knows who it was, says so, and ends the process. An
    error of the connection that is nobody's loss is raised when that time is over.
    """
    try:
        yield
    except Exception as error:
        if jax.distributed.is_initialized() and _CONNECTION.search(str(error)):
            time.sleep(1.5 * _lost_after[0] + 5.0)
        raise
