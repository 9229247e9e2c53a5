"""Checkpoints of everything that evolves, thin over Orbax's `CheckpointManager`.

A state of any structure is stored as a flat dictionary `path -> array`, with a JSON record beside
it: the caller's configuration, the versions, and shape and dtype of every leaf. Restoring compares
that record with the state the program expects, and names the first leaf that differs.

In a run of several processes a state that is spread over them is saved by all together. A state
that one process holds alone, because it computes something else than the others, is saved by that
process alone: Orbax's own handlers of arrays cannot, so its arrays are one file of raw bytes. Both
forms are read by runs of one process and of several.
"""

import dataclasses
import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxlab.core.types import PyTree

Manager = ocp.CheckpointManager


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
        state: the state, with the structure, shapes, dtypes and shardings that were asked for.
        step: the step it was saved at.
        config: the configuration that was stored with it.
        metrics: the metrics that were stored with it.
        frozen: of seeds side by side, those that had blown up, with the step at which each did.
        stopped: whether the run ended here for good (early stop), however many steps are asked for.
        versions: versions of Python and the packages that wrote it.
    """

    state: PyTree
    step: int
    config: dict[str, Any]
    metrics: dict[str, Any]
    frozen: dict[int, int]
    stopped: bool
    versions: dict[str, str]


def open_manager(
    directory: str | pathlib.Path, *, max_to_keep: int = 2, alone: bool = False
) -> Manager:
    """Opens or creates a checkpoint folder: one atomic sub-folder a step, written asynchronously.

    Args:
        directory: folder of the checkpoints; relative paths are taken from the working directory.
        max_to_keep: number of newest checkpoints that stay on disk, at least 1.
        alone: whether this process saves its own state, in a run of several that do something else.
    """
    if max_to_keep < 1:
        raise ValueError(f"max_to_keep must be at least 1, got {max_to_keep}")
    folder = pathlib.Path(directory).absolute()
    if not alone:
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=True)
        return ocp.CheckpointManager(folder, options=options, item_names=("state", "meta"))
    folder.mkdir(parents=True, exist_ok=True)  # Orbax would wait for the others to agree on it
    this = _this_process()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, create=False, multiprocessing_options=this
    )
    handlers = {
        "state": _FileHandler(),
        "meta": ocp.JsonCheckpointHandler(multiprocessing_options=this),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def save(
    manager: Manager,
    step: int,
    state: PyTree,
    *,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    frozen: Mapping[int, int] | None = None,
    stopped: bool = False,
) -> None:
    """Saves `state` under `step`; returns once the arrays are copied, the writing goes on behind.

    Args:
        manager: from `open_manager`.
        step: number of finished steps; must be above every step saved before.
        state: pytree of arrays (typed PRNG keys included).
        config: JSON-serialisable settings to keep beside the state.
        metrics: numbers to keep beside it, those of the last chunk.
        frozen: seeds that have blown up, with the step at which each did.
        stopped: marks the run as ended here for good.
    """
    leaves = _named_leaves(state)
    meta = {
        "step": step,
        "config": dict(config or {}),
        "metrics": dict(metrics or {}),
        "frozen": sorted((frozen or {}).items()),
        "stopped": stopped,
        "versions": versions(),
        "leaves": {name: _signature(leaf) for name, leaf in leaves.items()},
    }
    # Arrays without elements hold nothing to store.
    arrays = {name: _raw(leaf) for name, leaf in leaves.items() if leaf.size}
    if is_alone(state):
        saved = _FileSave(arrays)  # written before `manager.save` returns
    else:  # copies, because the loop donates its state while Orbax is still writing
        saved = ocp.args.StandardSave(jax.tree.map(jnp.copy, arrays))
    manager.save(step, args=ocp.args.Composite(state=saved, meta=ocp.args.JsonSave(meta)))


def restore(manager: Manager, like: PyTree, *, step: int | None = None) -> Restored:
    """Restores the newest checkpoint, or that of `step`.

    Args:
        manager: from `open_manager`.
        like: what the program expects: a state of arrays or of `jax.ShapeDtypeStruct` (from
            `jax.eval_shape`), shardings included where the leaves carry them.
        step: which checkpoint; the newest when None.

    Raises:
        FileNotFoundError: if there is no checkpoint (of that step).
        ValueError: if a leaf is missing, new, or of another shape or dtype; it is named.
    """
    available = sorted(manager.all_steps())
    step = available[-1] if step is None and available else step
    if step not in available:
        raise FileNotFoundError(
            f"no checkpoint {step} in {manager.directory}; there are {available}"
        )
    expected = _named_leaves(like)
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    _check_leaves(
        {name: _signature(leaf) for name, leaf in expected.items()},
        meta["leaves"],
        manager.directory,
    )
    abstract = {name: _raw_struct(leaf) for name, leaf in expected.items() if leaf.size}
    folder = pathlib.Path(manager.directory) / str(step) / "state"
    if (folder / _FILE).exists():
        arrays = _FileHandler().restore(folder, _FileRestore(abstract))
    elif is_alone(like):
        handler: Any = ocp.StandardCheckpointHandler(multiprocessing_options=_this_process())
        whole = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in abstract.items()}
        found = handler.restore(folder, args=ocp.args.StandardRestore(whole))
        arrays = jax.device_put(found, {name: leaf.sharding for name, leaf in abstract.items()})
    else:
        restored = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        arrays = manager.restore(step, args=restored)["state"]
    leaves = [
        _unraw(arrays[name], leaf) if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in expected.items()
    ]
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    frozen = {seed: step for seed, step in meta.get("frozen", ())}
    return Restored(
        state, step, meta["config"], meta["metrics"], frozen, meta["stopped"], meta["versions"]
    )


def is_alone(state: PyTree) -> bool:
    """Whether one process of several holds all of a state, or of its shapes with shardings."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(state)]
    return jax.process_count() > 1 and all(s is None or s.is_fully_addressable for s in shardings)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide whether a checkpoint can be read."""
    packages = ("jaxlab", "jax", "jaxlib", "numpy", "orbax-checkpoint")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "state" for path, _ in paths]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"state leaves must have distinct paths; {twice} occur more than once")
    for name, (_, leaf) in zip(names, paths, strict=True):
        if not hasattr(leaf, "dtype"):
            raise ValueError(
                f"state leaf {name!r} is a {type(leaf).__name__}, expected an array: "
                "wrap Python scalars in jnp.asarray so that shape and dtype stay fixed"
            )
    return {name: leaf for name, (_, leaf) in zip(names, paths, strict=True)}


def _signature(leaf: Any) -> list[Any]:
    return [list(leaf.shape), str(leaf.dtype)]


def _check_leaves(expected: dict, found: dict, directory: Any) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) == found.get(name):
            continue
        shown = {
            side: "no such leaf" if leaf is None else f"{leaf[1]}{leaf[0]}"
            for side, leaf in (("expected", expected.get(name)), ("found", found.get(name)))
        }
        raise ValueError(
            f"checkpoint in {directory} does not fit: leaf {name!r}, expected {shown['expected']}, "
            f"found {shown['found']}; resume with the configuration it was written with, "
            "or start in a new folder"
        )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _raw_struct(leaf: Any) -> jax.ShapeDtypeStruct:
    raw = jax.eval_shape(_raw, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=getattr(leaf, "sharding", None))


def _unraw(array: jax.Array, leaf: Any) -> jax.Array:
    if not _is_key(leaf):
        return array
    impl = []  # a key's implementation can be asked of arrays only, so ask while tracing one
    jax.eval_shape(
        lambda key: impl.append(jax.random.key_impl(key)),
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
    )
    return jax.random.wrap_key_data(array, impl=impl[0])


# The state of one process of several

_FILE = "arrays.npz"


class _FileHandler(ocp.CheckpointHandler):
    """Keeps arrays as raw bytes, ordered by name: types that NumPy does not know survive."""

    def save(self, directory: Any, args: "_FileSave") -> None:
        raw = [np.ravel(args.arrays[name]).view(np.uint8) for name in sorted(args.arrays)]
        np.savez(pathlib.Path(directory) / _FILE, *raw)

    def restore(self, directory: Any, args: "_FileRestore") -> dict[str, jax.Array]:
        found = {}
        with np.load(pathlib.Path(directory) / _FILE) as raw:
            for number, (name, leaf) in enumerate(sorted(args.like.items())):
                array = raw[f"arr_{number}"].view(leaf.dtype).reshape(leaf.shape)
                found[name] = jax.device_put(array, leaf.sharding)
        return found


@ocp.args.register_with_handler(_FileHandler, for_save=True)
@dataclasses.dataclass
class _FileSave(ocp.args.CheckpointArgs):
    arrays: dict[str, jax.Array]


@ocp.args.register_with_handler(_FileHandler, for_restore=True)
@dataclasses.dataclass
class _FileRestore(ocp.args.CheckpointArgs):
    like: dict[str, jax.ShapeDtypeStruct]


def _this_process() -> ocp.options.MultiprocessingOptions:
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )
