"""Two tasks for small language models: associative recall, and Python's own sources as bytes."""

import functools
import pathlib
import sysconfig
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.mfa_quality import Config

VOCAB = 256
NUM_KEYS = 128
"""Tokens below are keys of the recall task, those from here on values."""
MOST_BYTES = 16_000_000
HELD_OUT = 10
"""One file in so many is held out for tuning, and one for testing."""


class Batch(NamedTuple):
    """Sequences and what is to be predicted.

    Attributes:
        tokens: `[B, T]` int32, what is read.
        targets: `[B, T]` int32, the token after each.
        weight: `[B, T]` float32, 1 where the prediction counts, else 0.
    """

    tokens: jax.Array
    targets: jax.Array
    weight: jax.Array


class Task(NamedTuple):
    """A source of batches.

    Attributes:
        title: What figures call it.
        batch: Sequences of a training step.
        train: `train(key, batch) -> Batch`, what is learned from.
        tune: The same, of what is held out to choose a learning rate.
        test: The same, of what is held out to judge the result.
    """

    title: str
    batch: int
    train: Callable[..., Batch]
    tune: Callable[..., Batch]
    test: Callable[..., Batch]


def make_task(name: str, config: Config) -> Task:
    """Makes a task by its name.

    Raises:
        ValueError: if there is no such task.
    """
    if name == "recall":
        draw = functools.partial(recall, length=config.recall_length, pairs=config.pairs)
        return Task("Associative recall", config.tokens // config.recall_length, *[draw] * 3)
    if name == "bytes":
        draws = (
            functools.partial(windows, jnp.asarray(text), length=config.length)
            for text in standard_library()
        )
        return Task("Bytes of Python's library", config.tokens // config.length, *draws)
    raise ValueError(f"tasks must be recall or bytes, got {name!r}")


def recall(key: jax.Array, batch: int, *, length: int, pairs: tuple[int, int]) -> Batch:
    """Draws sequences of key-value pairs, the later of which repeat earlier ones.

    A sequence begins with n different keys, n uniform in `pairs`, each with a value; every later
    pair is one of these again, drawn at random, and its value is to be predicted.

    Source: multi-query associative recall, Arora et al. 2023 (Zoology), repeated keys drawn
    uniformly here.
    """
    key_count, key_keys, key_values, key_which = jax.random.split(key, 4)
    slots = (length + 1) // 2 + 1
    count = jax.random.randint(key_count, (batch, 1), pairs[0], pairs[1] + 1)
    order = jax.vmap(lambda k: jax.random.permutation(k, NUM_KEYS))(
        jax.random.split(key_keys, batch)
    )
    values = jax.random.randint(key_values, (batch, NUM_KEYS), NUM_KEYS, VOCAB)
    slot = jnp.arange(slots, dtype=jnp.int32)[None]
    which = jax.random.randint(key_which, (batch, slots), 0, count)
    which = jnp.where(slot < count, slot, which)
    chosen = jnp.take_along_axis(order, which, axis=1)
    answer = jnp.take_along_axis(values, chosen, axis=1)
    stream = jnp.stack([chosen, answer], axis=-1).reshape(batch, -1).astype(jnp.int32)
    asked = jnp.repeat(slot >= count, 2, axis=1) & (jnp.arange(2 * slots) % 2 == 0)[None]
    return Batch(
        stream[:, :length], stream[:, 1 : length + 1], asked[:, :length].astype(jnp.float32)
    )


def windows(data: jax.Array, key: jax.Array, batch: int, *, length: int) -> Batch:
    """Draws windows of a text, every byte of which is to be predicted from those before it."""
    start = jax.random.randint(key, (batch, 1), 0, data.size - length)
    index = start + jnp.arange(length + 1, dtype=jnp.int32)[None]
    text = data[index].astype(jnp.int32)
    return Batch(text[:, :-1], text[:, 1:], jnp.ones((batch, length), jnp.float32))


@functools.cache
def standard_library() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the sources of the interpreter's standard library, in the order of their names.

    Tests and installed packages are left out; every ninth and tenth file of ten is held out.

    Returns:
        Bytes for training, for tuning and for testing, `MOST_BYTES` at most together.

    Raises:
        FileNotFoundError: if the interpreter comes without sources.
    """
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    files = sorted(
        path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts[:-1])
    )
    parts: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
    size = 0
    for index, path in enumerate(files):
        source = path.read_bytes()
        size += len(source)
        if size > MOST_BYTES:
            break
        parts[max(index % HELD_OUT - HELD_OUT + 3, 0)].append(source)
    train, tune, test = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    if min(train.size, tune.size, test.size) < 10_000:
        raise FileNotFoundError(
            f"the bytes task reads the sources of Python's standard library; {root} has none"
        )
    return train, tune, test
