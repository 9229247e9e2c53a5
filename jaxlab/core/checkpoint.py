"""Checkpoints of everything that evolves, thin over Orbax's `CheckpointManager`.

A state of any structure is stored as a flat dictionary `path -> array`, with a JSON record beside
it: the step, the algorithm's name, the caller's configuration, the versions, and path and type of
every leaf. Before a checkpoint counts as written, the digests of all its files are put there too.

What is restored is what the same algorithm has saved, to the last bit. A state that the program
does not expect is refused, and the first leaf that differs is named; a checkpoint that is not what
was written is named and set aside, and the one before it is taken.

In a run of several processes a state that is spread over them is saved by all together. A state
that one process holds alone, because it computes something else than the others, is saved by that
process alone: Orbax's own handlers of arrays cannot, so its arrays are one file of raw bytes. Both
forms have the same record and digests, and are read by runs of one process and of several.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxlab.core import sharding
from jaxlab.core.types import PyTree

Manager = ocp.CheckpointManager

# What goes wrong in Orbax is raised, or told by `restore`; its log would repeat it at length.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
        state: the state, with the structure, shapes, dtypes and shardings that were asked for.
        step: the step it was saved at.
        config: the configuration that was stored with it.
        metrics: the metrics that were stored with it.
        frozen: of seeds side by side, those that had blown up, with the step at which each did.
        stopped: whether the run ended here for good (early stop), however many steps are asked for.
        at_start: leaves that were not finite when the run began, as `loop.run` remembers them.
        versions: versions of Python and the packages that wrote it.
    """

    state: PyTree
    step: int
    config: dict[str, Any]
    metrics: dict[str, Any]
    frozen: dict[int, int]
    stopped: bool
    at_start: dict[str, int]
    versions: dict[str, str]


class _DamagedError(Exception):
    """A checkpoint is not what was saved as its step; the message says in what."""


def open_manager(
    directory: str | pathlib.Path, *, max_to_keep: int = 2, alone: bool = False
) -> Manager:
    """Opens or creates a checkpoint folder: one atomic sub-folder a step, written asynchronously.

    What a killed process left half written there is removed; `lock.one_writer` keeps others away.

    Args:
        directory: folder of the checkpoints; relative paths are taken from the working directory.
        max_to_keep: number of newest checkpoints that stay on disk, at least 1; with 1 there is
            none to go back to if it is damaged.
        alone: whether this process saves its own state, in a run of several that do something else.
    """
    if max_to_keep < 1:
        raise ValueError(f"max_to_keep must be at least 1, got {max_to_keep}")
    folder = pathlib.Path(directory).absolute()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, create=not alone, cleanup_tmp_directories=True
    )
    handler: ocp.CheckpointHandler = _Handler()
    if alone:
        folder.mkdir(parents=True, exist_ok=True)  # Orbax would wait for the others to agree on it
        options = dataclasses.replace(options, multiprocessing_options=_this_process())
        handler = _FileHandler()
    return ocp.CheckpointManager(folder, options=options, item_handlers={_ITEM: handler})


def save(
    manager: Manager,
    step: int,
    state: PyTree,
    *,
    algorithm: str = "",
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    frozen: Mapping[int, int] | None = None,
    stopped: bool = False,
    at_start: Mapping[str, int] | None = None,
) -> None:
    """Saves `state` under `step`; returns once the arrays are copied, the writing goes on behind.

    Args:
        manager: from `open_manager`.
        step: number of finished steps; must be above every step saved before.
        state: pytree of arrays (typed PRNG keys included).
        algorithm: name of the algorithm whose state it is; no other one may restore it.
        config: JSON-serialisable settings to keep beside the state.
        metrics: numbers to keep beside it, those of the last chunk.
        frozen: seeds that have blown up, with the step at which each did.
        stopped: marks the run as ended here for good.
        at_start: leaves that were not finite when the run began, as `loop.run` remembers them.

    Raises:
        ValueError: if there is a checkpoint of this step or a later one, or a leaf is no array.
        OSError: if the checkpoint before this one could not be written.
    """
    latest = manager.latest_step()
    if latest is not None and step <= latest:
        raise ValueError(
            f"step must be above {latest}, the last one in {manager.directory}, got {step}"
        )
    leaves = named_leaves(state)
    record = {
        "step": step,
        "algorithm": algorithm,
        "config": dict(config or {}),
        "metrics": dict(metrics or {}),
        "frozen": sorted((frozen or {}).items()),
        "stopped": stopped,
        "at_start": dict(at_start or {}),
        "versions": versions(),
        "leaves": _signatures(state),
    }
    # Arrays without elements hold nothing to store.
    arrays = {name: _raw(leaf) for name, leaf in leaves.items() if leaf.size}
    if is_alone(state):
        saved = _FileSave(arrays, json.dumps(record))  # written before `manager.save` returns
    else:  # copies, because the loop donates its state while Orbax is still writing
        saved = _Save(jax.tree.map(jnp.copy, arrays), json.dumps(record))
    with _system_errors():
        manager.save(step, args=ocp.args.Composite(**{_ITEM: saved}))


def close(manager: Manager) -> None:
    """Waits until all is written, and closes the manager.

    Raises:
        OSError: if the last checkpoint could not be written, for a full disk or a limit.
    """
    with _system_errors():
        manager.close()


def restore(
    manager: Manager, like: PyTree, *, step: int | None = None, algorithm: str | None = None
) -> Restored:
    """Restores the newest checkpoint that is whole, or that of `step`.

    A newer one that is not what was saved as its step (bits that differ, files that are missing, a
    folder that was renamed) is renamed to `STEP.damaged`, and a warning says so in one line.

    Args:
        manager: from `open_manager`.
        like: what the program expects: a state of arrays or of `jax.ShapeDtypeStruct` (from
            `jax.eval_shape`), shardings included where the leaves carry them.
        step: which checkpoint; the newest that is whole when None.
        algorithm: name of the algorithm that asks; None for one who only looks.

    Raises:
        FileNotFoundError: if there is no checkpoint (of that step).
        ValueError: if another algorithm saved it, a leaf is missing, new, or of another shape or
            dtype, which is named; or if it is damaged and there is none before it.
    """
    available = sorted(manager.all_steps())
    wanted = available[::-1] if step is None else [step]
    if not wanted or wanted[0] not in available:
        raise FileNotFoundError(
            f"no checkpoint {step} in {manager.directory}; there are {available}"
        )
    damaged: dict[int, str] = {}
    for candidate in wanted:
        try:
            restored = _read(manager, candidate, like, algorithm)
        except _DamagedError as error:
            damaged[candidate] = str(error)
            continue
        if damaged:
            _set_aside(manager, damaged, is_alone(like))
            warnings.warn(
                f"{_told(damaged)} in {manager.directory}, set aside; going on from the one of "
                f"step {candidate}",
                RuntimeWarning,
                stacklevel=2,
            )
        return restored
    rest = "and there is no whole one; start in a new folder" if step is None else "take another"
    raise ValueError(f"{_told(damaged)} in {manager.directory}, {rest}")


def is_alone(state: PyTree) -> bool:
    """Whether one process of several holds all of a state, or of its shapes with shardings."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(state)]
    return jax.process_count() > 1 and all(s is None or s.is_fully_addressable for s in shardings)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a state by the name that errors and checkpoints call them.

    Raises:
        ValueError: if two have the same name, or one is no array.
    """
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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide whether a checkpoint can be read."""
    packages = ("jaxlab", "jax", "jaxlib", "numpy", "orbax-checkpoint")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Makes an `OSError` of what the library under Orbax says of the system in words."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        path = re.search(r'Failed writing: "([^"]+)"', str(error))
        number = int(code[1])
        raise OSError(number, os.strerror(number), path and path[1]) from error


# One checkpoint, read


def _read(manager: Manager, step: int, like: PyTree, algorithm: str | None) -> Restored:
    folder, alone = pathlib.Path(manager.directory) / str(step), is_alone(like)
    if (folder / "meta").exists():
        raise ValueError(f"{folder} was written by jaxlab 0.5 or before; start in a new folder")
    folder /= _ITEM
    first = alone or jax.process_index() == 0  # looks at the files for all of them
    problem = _damage(folder) if first else ""
    if sharding.any_process(bool(problem), alone=alone):
        raise _DamagedError(problem or "as process 0 says")
    record = json.loads((folder / _RECORD).read_bytes())
    if record["step"] != step:
        raise _DamagedError(f"it is that of step {record['step']}")
    if algorithm not in (None, record["algorithm"]):
        raise ValueError(
            f"checkpoint in {manager.directory} is of the algorithm {record['algorithm']!r}, now "
            f"it is {algorithm!r}; resume with the same one, or start in a new folder"
        )
    _check_leaves(_signatures(like), record["leaves"], manager.directory)
    expected = named_leaves(like)
    arrays = _arrays(
        folder, {name: _raw_struct(leaf) for name, leaf in expected.items() if leaf.size}, alone
    )
    leaves = [
        _unraw(arrays[name], leaf) if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in expected.items()
    ]
    return Restored(
        jax.tree.unflatten(jax.tree.structure(like), leaves),
        step,
        record["config"],
        record["metrics"],
        dict(record["frozen"]),
        record["stopped"],
        record["at_start"],
        record["versions"],
    )


def _arrays(
    folder: pathlib.Path, like: dict[str, jax.ShapeDtypeStruct], alone: bool
) -> dict[str, jax.Array]:
    if (folder / _FILE).exists():
        return _read_file(folder, like)
    if not alone:
        handler: Any = ocp.StandardCheckpointHandler()
        return handler.restore(folder, args=ocp.args.StandardRestore(like))
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=_this_process())
    whole = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in like.items()}
    found = handler.restore(folder, args=ocp.args.StandardRestore(whole))
    return jax.device_put(found, {name: leaf.sharding for name, leaf in like.items()})


def _set_aside(manager: Manager, damaged: Mapping[int, str], alone: bool) -> None:
    """Renames damaged checkpoints, so that those of the resumed run can take their places."""
    if alone or jax.process_index() == 0:
        for step in damaged:
            folder = pathlib.Path(manager.directory) / str(step)
            names = (f"{step}.damaged{'' if n == 1 else f'-{n}'}" for n in itertools.count(1))
            folder.rename(next(p for p in map(folder.with_name, names) if not p.exists()))
    sharding.any_process(False, alone=alone)  # the others wait for it
    manager.reload()


def _told(damaged: Mapping[int, str]) -> str:
    told = ", ".join(f"that of step {step} ({why})" for step, why in damaged.items())
    return f"damaged checkpoint{'s' if len(damaged) > 1 else ''}: {told}"


# Leaves


def _signatures(tree: PyTree) -> dict[str, list[str]]:
    """Path and type of every leaf by its name: a field, a key and an item have different paths."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {
        name: [jax.tree_util.keystr(path), f"{leaf.dtype}{list(leaf.shape)}"]
        for (name, leaf), (path, _) in zip(named_leaves(tree).items(), paths, strict=True)
    }


def _check_leaves(expected: dict, found: dict, directory: Any) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) == found.get(name):
            continue
        nothing = ("no such leaf", "no such leaf")
        sides = [expected.get(name, nothing), found.get(name, nothing)]
        shown = [side[sides[0][1] != sides[1][1]] for side in sides]  # the path, if not the type
        raise ValueError(
            f"checkpoint in {directory} does not fit: leaf {name!r}, expected {shown[0]}, "
            f"found {shown[1]}; resume with the configuration it was written with, "
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


# The files of a checkpoint

_ITEM = "state"
"""What Orbax calls the only item of a checkpoint, and its folder."""
_RECORD, _DIGESTS, _FILE = "record.json", "digests.json", "arrays.npz"


def _seal(folder: pathlib.Path, record: str) -> None:
    """Writes the record, and the digests of all files that are there then."""
    (folder / _RECORD).write_text(record, encoding="utf-8")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    (folder / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")


def _damage(folder: pathlib.Path) -> str:
    """Says what is not as it was written; "" if the checkpoint is whole."""
    try:
        digests = dict(json.loads((folder / _DIGESTS).read_bytes()))
        for name, written in digests.items():
            if _digest(folder / name) != written:
                return f"{name} is not what was written"
        return "" if _RECORD in digests else f"{_DIGESTS} is not what was written"
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).name} is missing"
    except OSError as error:
        return f"{pathlib.Path(error.filename or folder).name} cannot be read: {error.strerror}"
    except (ValueError, TypeError):  # bytes that are no JSON, or other JSON
        return f"{_DIGESTS} is not what was written"


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Handler(ocp.StandardCheckpointHandler):
    """Orbax's own arrays, with the record; sealed by the process that says that all is written."""

    async def async_save(self, directory: Any, args: "_Save") -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._record = args.record
        return await super().async_save(directory, args=ocp.args.StandardSave(args.arrays))

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        _seal(pathlib.Path(directory), self._record)


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _Save(ocp.args.CheckpointArgs):
    arrays: dict[str, jax.Array]
    record: str


class _FileHandler(ocp.CheckpointHandler):
    """Keeps arrays as raw bytes, ordered by name: types that NumPy does not know survive."""

    def save(self, directory: Any, args: "_FileSave") -> None:
        raw = [np.ravel(args.arrays[name]).view(np.uint8) for name in sorted(args.arrays)]
        np.savez(pathlib.Path(directory) / _FILE, *raw)
        _seal(pathlib.Path(directory), args.record)

    def restore(self, directory: Any, args: Any = None) -> None:
        raise NotImplementedError  # `_read_file` does


@ocp.args.register_with_handler(_FileHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _FileSave(ocp.args.CheckpointArgs):
    arrays: dict[str, jax.Array]
    record: str


def _read_file(folder: pathlib.Path, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    found = {}
    with np.load(folder / _FILE) as raw:
        for number, (name, leaf) in enumerate(sorted(like.items())):
            array = raw[f"arr_{number}"].view(leaf.dtype).reshape(leaf.shape)
            found[name] = jax.device_put(array, leaf.sharding)
    return found


def _this_process() -> ocp.options.MultiprocessingOptions:
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )
