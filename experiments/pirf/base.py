"""Base models: trained from fields, or kept as a small file, which `python -m` this module makes.

A few minutes on a laptop; on another processor the weights differ.
"""

import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from experiments.pirf import tasks
from experiments.pirf.tasks import Task
from jaxlab import physics
from jaxlab.core import loop
from jaxlab.core.types import PyTree

KEPT, KEPT_UPDATES = "poisson", 1500
"""The law whose base is a file, on the law's own grid, and its updates."""
FILE = pathlib.Path(__file__).with_name("base.npz")
CHUNK = 50


def is_kept(task: Task) -> bool:
    """Whether the base of a task is a file."""
    return task.name == KEPT and task.shape[0] == tasks.SIZES[KEPT]


def train(task: Task, num_steps: int, folder: pathlib.Path | None = None) -> PyTree:
    """Returns the running average of the weights; `folder` is for checkpoints."""
    algorithm = physics.make_base(
        task.data(),
        task.network,
        num_steps=num_steps,
        batch_size=32,
        learning_rate=2e-3,
        warmup=min(100, num_steps // 2),
    )
    found = loop.run(
        algorithm,
        jax.random.key(1),
        num_steps=num_steps,
        chunk_size=CHUNK,
        directory=folder,
        save_every=5,
    )
    return found.state.average_params


def save(params: PyTree, file: pathlib.Path = FILE) -> None:
    """Writes the weights in float16."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in flat.items()}
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load(file: pathlib.Path = FILE) -> PyTree:
    """Reads the weights, as float32."""
    with np.load(file, allow_pickle=False) as kept:
        flat = {name: jnp.asarray(kept[name], jnp.float32) for name in kept.files}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


if __name__ == "__main__":
    save(train(tasks.make_task(KEPT), KEPT_UPDATES))
