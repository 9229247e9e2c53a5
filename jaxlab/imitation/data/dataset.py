"""Recorded transitions as NumPy arrays: checks, episodes, unions, leaks, fingerprints."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxlab.envs import spaces

FORMAT = 1
ARRAYS = ("obs", "action", "next_obs", "reward", "terminated", "truncated", "episode_id")
_FLOATS, _FLAGS = (np.floating, "floats"), (np.bool_, "booleans")
_KINDS = {
    **dict.fromkeys(("obs", "action", "next_obs", "reward", "action_low", "action_high"), _FLOATS),
    **dict.fromkeys(("terminated", "truncated"), _FLAGS),
    "episode_id": (np.integer, "integers"),
}
_SLACK = 1e-4
"""By how much of its range an action may be beyond its bounds, for what rounding does."""


class Dataset(NamedTuple):
    """Transitions of whole episodes, the rows of an episode together and in the order of time.

    Attributes:
        obs: `[N, O]` float32, observations before acting.
        action: `[N, A]` float32, actions in the environment's own units.
        next_obs: `[N, O]` float32; NaN in the last row of a terminated episode where the file did
            not say what it ended with.
        reward: `[N]` float32, NaN where unknown. Nothing learns from it.
        terminated: `[N]` bool, the episode ended by the decision process.
        truncated: `[N]` bool, it was cut by time.
        episode_id: `[N]` int32.
        action_low, action_high: `[A]` float32, bounds of an action.
        about: what else is known: `env`, `backend`, `policy`, `return`, `seed`, `time_limit`.
    """

    obs: Float[np.ndarray, "N O"]
    action: Float[np.ndarray, "N A"]
    next_obs: Float[np.ndarray, "N O"]
    reward: Float[np.ndarray, " N"]
    terminated: Bool[np.ndarray, " N"]
    truncated: Bool[np.ndarray, " N"]
    episode_id: Int[np.ndarray, " N"]
    action_low: Float[np.ndarray, " A"]
    action_high: Float[np.ndarray, " A"]
    about: Mapping[str, Any]


def check_dataset(dataset: Dataset, name: str = "data") -> None:
    """Refuses a dataset that a learner would silently learn nonsense from.

    Args:
        dataset: what is looked at.
        name: what messages call it.

    Raises:
        ValueError: if shapes or dtypes do not fit, there are fewer than two transitions, numbers
            are not finite, actions are out of their range, that range has no end, rows of an
            episode are apart, an episode goes on after its end, or ends that look like a time limit
            are called terminations.
    """
    for field, (kind, words) in _KINDS.items():
        array = getattr(dataset, field)
        found = getattr(array, "dtype", type(array).__name__)
        if not hasattr(array, "dtype") or not np.issubdtype(array.dtype, kind):
            raise ValueError(f"{name}: {field} must be an array of {words}, got {found}")
    size = len(dataset.obs)
    for field in ("obs", "action", "next_obs"):
        shape = np.shape(getattr(dataset, field))
        if len(shape) != 2 or shape[0] != size or shape[1] < 1:
            raise ValueError(f"{name}: {field} must be [{size}, ...] rows of numbers, got {shape}")
    for field in ARRAYS[3:]:
        if (shape := np.shape(getattr(dataset, field))) != (size,):
            raise ValueError(f"{name}: {field} must be [{size}], one for each row, got {shape}")
    if dataset.next_obs.shape != dataset.obs.shape:
        raise ValueError(
            f"{name}: next_obs must have the shape of obs, got {dataset.next_obs.shape} and "
            f"{dataset.obs.shape}"
        )
    if size < 2:
        raise ValueError(f"{name} must have at least 2 transitions, got {size}; record more")
    _check_finite(dataset, name)
    _check_bounds(dataset, name)
    _check_episodes(dataset, name)
    _check_time_limit(dataset, name)


def starts(dataset: Dataset) -> Int[np.ndarray, " E"]:
    """Returns the first row of each episode."""
    change = np.flatnonzero(np.diff(dataset.episode_id)) + 1
    return np.concatenate([[0], change]).astype(np.int64)


def lengths(dataset: Dataset) -> Int[np.ndarray, " E"]:
    """Returns the number of transitions of each episode."""
    return np.diff(np.append(starts(dataset), len(dataset.obs)))


def returns(dataset: Dataset) -> Float[np.ndarray, " E"]:
    """Returns the undiscounted return of each episode, NaN where a reward is unknown."""
    return np.add.reduceat(dataset.reward.astype(np.float64), starts(dataset))


def take_episodes(dataset: Dataset, episodes: Iterable[int]) -> Dataset:
    """Returns some episodes, by their ids, in the order that they have in the dataset.

    Raises:
        ValueError: if there is no such episode, or none is asked for.
    """
    wanted = sorted(set(map(int, episodes)))
    if not wanted:
        raise ValueError("episodes must name at least one episode, got none")
    if missing := set(wanted) - set(dataset.episode_id.tolist()):
        raise ValueError(
            f"episodes must be among the {len(starts(dataset))} of the data, got {min(missing)}"
        )
    keep = np.isin(dataset.episode_id, wanted)
    return dataset._replace(**{field: getattr(dataset, field)[keep] for field in ARRAYS})


def split_episodes(seed: int, dataset: Dataset, num_first: int) -> tuple[Dataset, Dataset]:
    """Splits into `num_first` episodes that are drawn at random, and the others.

    Whole episodes go to either side: rows of one on both would be a leak.

    Raises:
        ValueError: if either side would be empty.
    """
    ids = dataset.episode_id[starts(dataset)]
    if not spaces.is_count(num_first) or num_first >= len(ids):
        raise ValueError(f"num_first must lie in 1 to {len(ids) - 1}, got {num_first}")
    order = np.random.default_rng(seed).permutation(ids)
    return take_episodes(dataset, order[:num_first]), take_episodes(dataset, order[num_first:])


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Joins datasets of one environment; episodes get new ids, those of the first the lowest.

    Raises:
        ValueError: if there is none, or they are of different shapes, action ranges or
            environments.
    """
    if not datasets:
        raise ValueError("join takes at least one dataset, got none")
    first, offset, ids = datasets[0], 0, []
    for i, dataset in enumerate(datasets):
        check_same_process(first, dataset, names=("dataset 0", f"dataset {i}"))
        numbers = np.repeat(np.arange(len(starts(dataset))), lengths(dataset))
        ids.append((offset + numbers).astype(np.int32))
        offset += len(starts(dataset))
    arrays: dict[str, np.ndarray] = {
        field: np.concatenate([getattr(dataset, field) for dataset in datasets])
        for field in ARRAYS[:-1]
    }
    about = {
        key: value
        for key, value in first.about.items()
        if all(dataset.about.get(key) == value for dataset in datasets)
    }
    return first._replace(**arrays, episode_id=np.concatenate(ids), about=about)


def check_same_process(first: Dataset, second: Dataset, *, names: tuple[str, str]) -> None:
    """Refuses data of another decision process: other sizes, action ranges or environment.

    Raises:
        ValueError: naming the first thing that differs.
    """
    one, two = names
    for what, a, b in (
        ("observations", first.obs.shape[1], second.obs.shape[1]),
        ("actions", first.action.shape[1], second.action.shape[1]),
    ):
        if a != b:
            raise ValueError(
                f"{one} and {two} must have the same dynamics, got {what} of {a} and {b} numbers"
            )
    for field in ("action_low", "action_high"):
        a, b = getattr(first, field), getattr(second, field)
        if not np.allclose(a, b, rtol=1e-6, atol=0.0):
            raise ValueError(
                f"{one} and {two} must have the same {field}, got {a.tolist()} and {b.tolist()}; "
                "rescale the actions of one, or give their range to the loader"
            )
    for key in ("env", "backend"):
        a, b = first.about.get(key), second.about.get(key)
        if a and b and a != b:
            raise ValueError(
                f"{one} and {two} must come from the same {key}, got {a!r} and {b!r}; other "
                "contact models are other dynamics"
            )


def check_time_limits(first: Dataset, second: Dataset, *, names: tuple[str, str]) -> None:
    """Refuses terminations that all came after as many steps as the other's longest cut episodes.

    Of one demonstration alone nobody can tell what ended it; beside logs that were cut after as
    many steps one can. Datasets whose `time_limit` is known were looked at by `check_dataset`.

    Raises:
        ValueError: naming the dataset and the number of steps.
    """
    pairs = ((first, second, *names), (second, first, *names[::-1]))
    longest = max(int(lengths(dataset).max()) for dataset in (first, second))
    for one, other, name, beside in pairs:
        if "time_limit" in one.about:
            continue
        last, cut = (starts(x) + lengths(x) - 1 for x in (one, other))
        at_limit = lengths(other)[other.truncated[cut] & ~other.terminated[cut]]
        ended = lengths(one)[one.terminated[last]]
        if longest in at_limit and len(ended) and np.all(ended == longest):
            raise ValueError(
                f"{name}: terminated must not be set by a time limit, got {len(ended)} of "
                f"{len(last)} episodes that end so after exactly {longest} steps, where those "
                f"of {beside} are cut; set truncated there (time_limit={longest} of the loader "
                f"does), or time_limit={math.inf} if the process ends"
            )


def leaking_episodes(first: Dataset, second: Dataset) -> dict[int, int]:
    """Finds episodes of the first whose rows the second has as well.

    An episode leaks if at least half of its distinct rows (obs, action) are rows of the second, to
    the last bit; where one of the two was stored in half precision, both are compared in it.

    Returns:
        `{episode of the first: episode of the second that has most of its rows}`.
    """
    half = any(map(_is_half, (first, second)))
    rows = [_rows(dataset, half) for dataset in (first, second)]
    owner = dict(zip(rows[1], second.episode_id.tolist(), strict=True))
    found, ends = {}, np.append(starts(first), len(first.obs))
    for begin, end in itertools.pairwise(ends):
        own = set(rows[0][begin:end])
        shared = [owner[row] for row in own if row in owner]
        if 2 * len(shared) >= len(own):
            most = max(set(shared), key=lambda episode: (shared.count(episode), -episode))
            found[int(first.episode_id[begin])] = int(most)
    return found


def fingerprint(*datasets: Dataset) -> str:
    """Returns a digest of the numbers of datasets and of their action ranges, 16 hex digits."""
    digest = hashlib.sha256()
    for dataset in datasets:
        for field in (*ARRAYS, "action_low", "action_high"):
            array = np.ascontiguousarray(getattr(dataset, field))
            digest.update(f"{field} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def to_npz(dataset: Dataset, *, half: bool = False) -> dict[str, np.ndarray]:
    """Returns the arrays of a dataset's file, header included; `read_npz` reads them.

    Args:
        dataset: what is stored.
        half: whether observations and actions are stored in half precision: half the size, and
            errors of a part in two thousand.

    Raises:
        ValueError: if the dataset is not sound, a number is beyond the range of half precision, or
            `about` is nothing that JSON holds.

    Example:
        `numpy.savez_compressed("demo.npz", **imitation.to_npz(dataset))`
    """
    check_dataset(dataset)
    arrays: dict[str, np.ndarray] = {field: getattr(dataset, field) for field in ARRAYS}
    if half:
        for field in ("obs", "action", "next_obs"):
            limit = float(np.finfo(np.float16).max)
            if np.nanmax(np.abs(arrays[field])) > limit:
                raise ValueError(f"{field} must stay below {limit:g} for half precision")
            arrays[field] = arrays[field].astype(np.float16)
    header = {
        "format": FORMAT,
        "action_low": dataset.action_low.tolist(),
        "action_high": dataset.action_high.tolist(),
        **dataset.about,
    }
    try:
        text = json.dumps(header)
    except TypeError as error:
        raise ValueError(f"about must hold what JSON does, numbers and text: {error}") from None
    return {"header": np.asarray(text), **arrays}


def _check_finite(dataset: Dataset, name: str) -> None:
    unknown = dataset.terminated & np.all(np.isnan(dataset.next_obs), axis=1)
    for field, bad in (
        ("obs", ~np.all(np.isfinite(dataset.obs), axis=1)),
        ("action", ~np.all(np.isfinite(dataset.action), axis=1)),
        ("next_obs", ~np.all(np.isfinite(dataset.next_obs), axis=1) & ~unknown),
        ("reward", np.isinf(dataset.reward)),
    ):
        if np.any(bad):
            raise ValueError(
                f"{name}: {field} must be finite, got NaN or an infinity in {np.sum(bad)} rows, "
                f"the first of them row {np.argmax(bad)}; remove the episodes that have them"
            )


def _check_bounds(dataset: Dataset, name: str) -> None:
    low, high = dataset.action_low, dataset.action_high
    fits = low.shape == high.shape == dataset.action.shape[1:]
    if not fits or not np.all((low < high) & np.isfinite(low) & np.isfinite(high)):
        raise ValueError(
            f"{name}: action_low and action_high must be {dataset.action.shape[1]} finite numbers "
            f"each, low below high, got {low.tolist()} and {high.tolist()}"
        )
    slack = _SLACK * (high - low)
    out = np.any((dataset.action < low - slack) | (dataset.action > high + slack), axis=1)
    if np.any(out):
        row = int(np.argmax(out))
        raise ValueError(
            f"{name}: actions must lie in {low.tolist()} to {high.tolist()}, got "
            f"{dataset.action[row].tolist()} in row {row}; give action_low and action_high"
        )


def _check_episodes(dataset: Dataset, name: str) -> None:
    ids = dataset.episode_id[starts(dataset)]
    if len(set(ids.tolist())) < len(ids):
        again = next(i for i in ids.tolist() if np.sum(ids == i) > 1)
        raise ValueError(
            f"{name}: rows of an episode must stand together, got episode {again} in several "
            "places; sort the rows by episode_id and time"
        )
    last = np.zeros(len(dataset.obs), bool)
    last[np.append(starts(dataset)[1:], len(last)) - 1] = True
    early = (dataset.terminated | dataset.truncated) & ~last
    if np.any(early):
        row = int(np.argmax(early))
        raise ValueError(
            f"{name}: an episode must end with its last row, got an end in row {row} with more of "
            f"episode {dataset.episode_id[row]} after it"
        )


def _check_time_limit(dataset: Dataset, name: str) -> None:
    """Finds terminations that are a time limit; `time_limit` in `about` says what is known."""
    begin, length = starts(dataset), lengths(dataset)
    last = begin + length - 1
    limit = dataset.about.get("time_limit")
    at_end = length == (length.max() if limit is None else limit)
    suspect = dataset.terminated[last] & at_end & (length > 1)
    # Where the limit is known one is enough; a process may end in the very step that time does, but
    # not again and again: flags of both kinds then tell that an episode was over, not why.
    sure = suspect & ~dataset.truncated[last] if limit is not None else np.zeros_like(suspect)
    if np.any(sure) or np.sum(suspect) >= 2:
        at = int(length[suspect][0])
        raise ValueError(
            f"{name}: terminated must not be set by a time limit, got {np.sum(suspect)} of "
            f"{len(length)} episodes that end so after exactly {at} steps; set truncated there "
            f"(time_limit={at} of the loader does), or time_limit={math.inf} if the process ends"
        )


def _is_half(dataset: Dataset) -> bool:
    arrays = (dataset.obs, dataset.action)
    with np.errstate(over="ignore"):
        return all(np.array_equal(x, x.astype(np.float16).astype(x.dtype)) for x in arrays)


def _rows(dataset: Dataset, half: bool) -> list[bytes]:
    joined = np.concatenate([dataset.obs, dataset.action], axis=1)
    with np.errstate(over="ignore"):
        joined = joined.astype(np.float16 if half else np.float32) + 0  # -0 is 0
    return [row.tobytes() for row in np.ascontiguousarray(joined)]
