"""Autotuning: times the candidate settings of a kernel here, and keeps the fastest in a file."""

import json
import os
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def autotune(
    kernel: str,
    build: Callable[[Any], Callable],
    candidates: Sequence[Any],
    operands: Sequence[jax.Array],
    *,
    reference: Callable,
    path: str | os.PathLike | None = None,
    repeats: int = 7,
    tolerance: float = 2e-2,
) -> Any:
    """Returns the setting with the smallest median time on these operands.

    Candidates are timed in turns, so that a slow moment of the machine strikes all of them. One
    that cannot run, or is wrong, is passed over with a warning.

    Args:
        kernel: name under which the setting is kept.
        build: `build(setting)` returns a function of the operands.
        candidates: settings, NamedTuples of one type.
        reference: function of the operands that says what is right.
        path: JSON file of settings, by kernel, kind of device, shapes and dtypes. What it knows is
            not timed again; what is found is added.
        repeats: timed calls of each.
        tolerance: largest error, as a share of the largest value.

    Raises:
        ValueError: if there are no candidates, or none of them is right.
    """
    if not candidates:
        raise ValueError(f"autotune needs a candidate for {kernel}, got none")
    key = entry(kernel, operands)
    known = _read(path).get(key)
    for candidate in candidates:
        if known == candidate._asdict():
            return candidate
    want = jax.jit(reference)(*operands)
    runs = {}
    for candidate in dict.fromkeys(candidates):
        f = jax.jit(build(candidate))
        try:
            error = _deviation(f(*operands), want)
        except Exception as failure:  # of many kinds: shared memory, registers, lowering
            warnings.warn(
                f"{kernel}: {candidate} does not run: {str(failure).splitlines()[0]}", stacklevel=2
            )
            continue
        if error <= tolerance:
            runs[candidate] = f
        else:
            warnings.warn(f"{kernel}: {candidate} is off by {error:.3g}", stacklevel=2)
    if not runs:
        raise ValueError(f"no candidate of {kernel} runs and is right: {list(candidates)}")
    seconds: dict[Any, list[float]] = {candidate: [] for candidate in runs}
    for _ in range(repeats):
        for candidate, f in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(f(*operands))
            seconds[candidate].append(time.perf_counter() - start)
    best = min(runs, key=lambda candidate: statistics.median(seconds[candidate]))
    if path is not None:
        _write(path, {**_read(path), key: best._asdict()})
    return best


def entry(kernel: str, operands: Sequence[jax.Array]) -> str:
    """Returns the name of a setting: kernel, kind of device, shapes and dtypes."""
    shapes = ", ".join(f"{jnp.dtype(x.dtype).name}{list(x.shape)}" for x in operands)
    return f"{kernel} | {jax.devices()[0].device_kind} | {shapes}"


def _deviation(got: Any, want: Any) -> float:
    got, want = (jnp.asarray(x, jnp.float32) for x in (got, want))
    return float(jnp.max(jnp.abs(got - want)) / jnp.maximum(jnp.max(jnp.abs(want)), 1e-30))


def _read(path: str | os.PathLike | None) -> dict[str, Any]:
    if path is None or not pathlib.Path(path).exists():
        return {}
    return json.loads(pathlib.Path(path).read_text())


def _write(path: str | os.PathLike, settings: dict[str, Any]) -> None:
    """Writes beside and renames: a reader sees the old file or the new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    beside.replace(path)
