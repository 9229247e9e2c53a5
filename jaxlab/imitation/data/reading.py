"""Files and records of others as datasets: npz of this room, D4RL's keys, Minari's episodes.

Fu et al. 2020, arXiv:2004.07219, for D4RL; Minari is Farama's collection of offline data. Neither
package is needed.
"""

import json
import math
import numbers
import os
import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxlab.imitation.data import dataset as dataset_lib
from jaxlab.imitation.data.dataset import Dataset

D4RL = {
    "observations": "obs",
    "actions": "action",
    "next_observations": "next_obs",
    "rewards": "reward",
    "terminals": "terminated",
    "timeouts": "truncated",
}
"""Names of D4RL, and those of this room."""
_MINARI = ("observations", "actions", "rewards", "terminations", "truncations")


def read_npz(
    path: str | os.PathLike,
    *,
    action_low: Any = None,
    action_high: Any = None,
    time_limit: float | None = None,
) -> Dataset:
    """Reads transitions from an npz file: of this room, of one's own, or with D4RL's names.

    `obs` and `action` are needed, and what tells episodes apart: `episode_id`, or `terminated` and
    `truncated`. Where `next_obs` is missing it is the next row's `obs`; the last row of an episode
    then has none, and is kept only if it is a termination, which absorbing states complete. Without
    flags an episode ends by being cut. `header` is a JSON text, see `to_npz`.

    Args:
        path: the file.
        action_low, action_high: `[A]` or a number, bounds of an action; by default those of the
            header, or else -1 and 1.
        time_limit: steps after which episodes are cut. Terminations after exactly so many are read
            as cuts; `math.inf` says that there is no limit, and all terminations are real. By
            default that of the header, if any, and nothing is changed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no npz, lacks arrays, or does not pass `check_dataset`.
    """
    if pathlib.Path(path).is_dir():
        raise ValueError(f"{path} is a folder; give an npz file in it")
    try:
        with pathlib.Path(path).open("rb") as stream:  # numpy would take other files for pickles
            if not zipfile.is_zipfile(stream):
                raise EOFError
        with np.load(path, allow_pickle=False) as file:
            arrays = {str(name): file[name] for name in file.files}
    except (zipfile.BadZipFile, EOFError):
        raise ValueError(f"{path} is no npz file; write one with numpy.savez") from None
    except ValueError as error:
        raise ValueError(
            f"{path} must hold plain arrays of numbers, got what numpy refuses: {error}"
        ) from None
    header = _header(path, arrays.pop("header", None))
    for theirs, ours in D4RL.items():
        if theirs in arrays and ours in arrays:
            raise ValueError(f"{path} must have one of {ours} and {theirs}, got both; keep one")
    renamed: dict[str, Any] = {D4RL.get(name, name): array for name, array in arrays.items()}
    options = {"action_low": action_low, "action_high": action_high, "time_limit": time_limit}
    return _make(str(path), renamed, header, **options)


def from_d4rl(
    arrays: Mapping[str, Any],
    *,
    action_low: Any = None,
    action_high: Any = None,
    time_limit: float | None = None,
    about: Mapping[str, Any] | None = None,
) -> Dataset:
    """Takes arrays under D4RL's names: observations, actions, rewards, terminals, timeouts.

    Other options are those of `read_npz`.

    Args:
        arrays: a dict of arrays, or an open HDF5 file.
        about: what is known besides, `env` above all.

    Raises:
        ValueError: as `read_npz` does.
    """
    given: dict[str, Any] = {ours: arrays[name] for name, ours in D4RL.items() if name in arrays}
    options = {"action_low": action_low, "action_high": action_high, "time_limit": time_limit}
    return _make("the arrays", given, dict(about or {}), **options)


def from_minari(
    episodes: Iterable[Any],
    *,
    action_low: Any = None,
    action_high: Any = None,
    time_limit: float | None = None,
    about: Mapping[str, Any] | None = None,
) -> Dataset:
    """Takes Minari's episodes: T + 1 observations, T actions, rewards, terminations, truncations.

    Other options are those of `read_npz`.

    Args:
        episodes: records with these as attributes or as keys: what `dataset.iterate_episodes()`
            gives, or groups of its HDF5 file.
        about: what is known besides, `env` above all.

    Raises:
        ValueError: if there is no episode, one is not as said, or as `read_npz` does.
    """
    columns: list[list[np.ndarray]] = [[] for _ in range(7)]
    for i, episode in enumerate(episodes):
        obs, action, *rest = (_field(episode, name, i) for name in _MINARI)
        if min(map(np.ndim, (obs, action, *rest))) < 1:
            raise ValueError(f"episode {i} must have arrays of rows, got a number")
        length = len(action)
        if len(obs) != length + 1 or any(len(x) != length for x in rest):
            raise ValueError(
                f"episode {i} must have one observation more than actions, rewards and ends, got "
                f"{len(obs)}, {length} and {[len(x) for x in rest]}"
            )
        parts = (obs[:-1], action, obs[1:], *rest, np.full(length, i, np.int32))
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    if not columns[0]:
        raise ValueError("episodes must be at least one, got none")
    try:
        joined = [np.concatenate(column) for column in columns]
    except ValueError as error:
        raise ValueError(f"episodes must be of one environment: {error}") from None
    arrays: dict[str, Any] = dict(zip(dataset_lib.ARRAYS, joined, strict=True))
    options = {"action_low": action_low, "action_high": action_high, "time_limit": time_limit}
    return _make("the episodes", arrays, dict(about or {}), **options)


def _field(episode: Any, name: str, i: int) -> np.ndarray:
    try:
        found = episode[name] if hasattr(episode, "keys") else getattr(episode, name)
    except (KeyError, AttributeError):
        raise ValueError(f"episode {i} has no {name}; Minari's have {', '.join(_MINARI)}") from None
    if isinstance(found, Mapping):
        raise ValueError(
            f"episode {i}: {name} must be one array, got a dict of {sorted(found)}; flatten it"
        )
    return np.asarray(found)


def _header(path: str | os.PathLike, text: np.ndarray | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        header = json.loads(str(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: header must be a JSON text: {error}") from None
    if not isinstance(header, dict) or header.pop("format", None) != dataset_lib.FORMAT:
        raise ValueError(
            f"{path}: header must say format {dataset_lib.FORMAT}, got {str(text)[:80]}; leave it "
            "out of files of your own"
        )
    return header


def _make(
    name: str,
    arrays: Mapping[str, Any],
    about: dict[str, Any],
    *,
    action_low: Any,
    action_high: Any,
    time_limit: float | None,
) -> Dataset:
    """Makes a dataset of arrays under this room's names, completing what can be completed."""
    for needed in ("obs", "action"):
        if needed not in arrays:
            raise ValueError(
                f"{name} has no {needed}, got {', '.join(sorted(arrays)) or 'nothing'}"
            )
    size = len(np.atleast_1d(np.asarray(arrays["obs"])))
    given = {
        field: _numbers(name, field, arrays[field], size)
        for field in dataset_lib.ARRAYS
        if field in arrays
    }
    ends = [given[field] for field in ("terminated", "truncated") if field in given]
    if "episode_id" in given:
        episode = _ids(name, given["episode_id"])
    elif ends:
        done = np.any([end != 0.0 for end in ends], axis=0)
        episode = np.concatenate([[0], np.cumsum(done)[:-1]]).astype(np.int32)
    else:
        raise ValueError(
            f"{name} must tell its episodes apart, got neither episode_id nor terminated and "
            "truncated (terminals and timeouts)"
        )
    terminated, truncated = (
        _flags(name, field, given.get(field, np.zeros(size)))
        for field in ("terminated", "truncated")
    )
    last = np.append(np.diff(episode) != 0, True)[:size]
    truncated = truncated | (last & ~terminated)
    if time_limit is not None:
        about["time_limit"] = time_limit
        terminated, truncated = _cut(name, episode, terminated, truncated, time_limit)
    elif not isinstance(about.get("time_limit", 0), numbers.Real):
        raise ValueError(f"{name}: time_limit must be a number, got {about['time_limit']!r}")
    obs = given["obs"]
    keep = np.ones(size, bool)
    if "next_obs" in given:
        next_obs = given["next_obs"]
    else:
        next_obs = np.full_like(obs, np.nan)
        next_obs[:-1] = obs[1:]
        next_obs[last] = np.nan
        keep = ~last | terminated
        # The row before one that has no successor is the last transition of its episode.
        before = np.flatnonzero(~keep) - 1
        before = before[before >= 0]
        truncated[before] |= episode[before] == episode[before + 1]
    low, high = (
        about.pop(field, default) if x is None else x
        for field, default, x in (
            ("action_low", -1.0, action_low),
            ("action_high", 1.0, action_high),
        )
    )
    for field in ("action_low", "action_high"):
        about.pop(field, None)
    shape = given["action"].shape[1:]
    try:
        low, high = (np.broadcast_to(np.asarray(x, np.float32), shape).copy() for x in (low, high))
    except (ValueError, TypeError):
        raise ValueError(
            f"{name}: action_low and action_high must be numbers, or one for each of {shape}, got "
            f"{low} and {high}"
        ) from None
    dataset = Dataset(
        obs=obs[keep],
        action=given["action"][keep],
        next_obs=next_obs[keep],
        reward=given.get("reward", np.full(size, np.nan, np.float32))[keep],
        terminated=terminated[keep],
        truncated=truncated[keep],
        episode_id=episode[keep],
        action_low=low,
        action_high=high,
        about=about,
    )
    dataset_lib.check_dataset(dataset, name)
    return dataset


def _cut(
    name: str, episode: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, time_limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Reads terminations after exactly `time_limit` steps as cuts."""
    whole = isinstance(time_limit, numbers.Real) and time_limit in (math.inf, time_limit // 1)
    if not whole or not time_limit >= 1:
        raise ValueError(f"time_limit must be a number of steps or math.inf, got {time_limit!r}")
    ends = np.flatnonzero(np.append(np.diff(episode) != 0, True)[: len(episode)])
    length = np.diff(ends, prepend=-1)
    if np.any(length > time_limit):
        raise ValueError(
            f"{name}: episodes must end within time_limit, got one of {length.max()} steps and "
            f"{time_limit}"
        )
    at = np.isin(np.arange(len(episode)), ends[length == time_limit])
    return terminated & ~at, truncated | at


def _numbers(name: str, field: str, array: Any, size: int) -> np.ndarray:
    """Returns the array in single precision, flags and ids as they are."""
    found = np.asarray(array)
    real = any(np.issubdtype(found.dtype, kind) for kind in (np.integer, np.floating, np.bool_))
    if not real:
        raise ValueError(f"{name}: {field} must be of numbers, got {found.dtype}")
    if found.ndim < 1 or len(found) != size:
        raise ValueError(f"{name}: {field} must have {size} rows like obs, got {found.shape}")
    if field in ("obs", "action", "next_obs"):
        if found.ndim != 2:
            advice = "; actions that are choices are not taken" if field == "action" else ""
            raise ValueError(f"{name}: {field} must be [N, D], got {found.shape}{advice}")
        return found.astype(np.float32)
    if found.size != size:
        raise ValueError(f"{name}: {field} must be [N], got {np.shape(array)}")
    found = found.reshape(size)
    return found.astype(np.float32) if field == "reward" else found


def _ids(name: str, array: np.ndarray) -> np.ndarray:
    """Returns ids as int32; others would fall together when they are rounded to it."""
    limit = 2**31
    whole = np.isfinite(array) & (array == np.floor(array))
    if not np.all(whole & (array >= -limit) & (array < limit)):
        raise ValueError(
            f"{name}: episode_id must be integers of 32 bits; number the episodes from 0"
        )
    return array.astype(np.int32)


def _flags(name: str, field: str, array: np.ndarray) -> np.ndarray:
    if not np.all((array == 0) | (array == 1)):
        raise ValueError(
            f"{name}: {field} must be 0 or 1, got {array[(array != 0) & (array != 1)][0]}"
        )
    return array.astype(bool)
