"""Base models: trained from fields, or kept as small files, which `python -m` this module makes.

`python -m experiments.pirf.base darcy` takes a quarter of an hour of a core, for the flow an hour;
on another processor the weights differ.
"""

import hashlib
import pathlib
import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from experiments.pirf import tasks
from experiments.pirf.tasks import Task
from jaxlab import physics
from jaxlab.core import loop
from jaxlab.core.types import PyTree

KEPT_UPDATES = 1500
"""Updates of the bases that are files, of laws on their own grids."""
CHUNK = 50


def file_of(name: str) -> pathlib.Path:
    """Where the base of a law is, if it is kept."""
    return pathlib.Path(__file__).with_name(f"base_{name}.npz")


def is_kept(task: Task, num_steps: int) -> bool:
    """Whether the base of a task is a file, of as many updates as are wanted or more."""
    own_grid = task.name in tasks.LAWS and task.shape[0] == tasks.SIZES.get(task.name, tasks.SIZE)
    return own_grid and num_steps <= KEPT_UPDATES and file_of(task.name).is_file()


def identity(task: Task, num_steps: int) -> str:
    """Which base it is: the digest of its file, or the updates that it is trained for."""
    if not is_kept(task, num_steps):
        return f"{num_steps} updates"
    return hashlib.sha256(file_of(task.name).read_bytes()).hexdigest()


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


def save(params: PyTree, file: pathlib.Path) -> None:
    """Writes the weights in float16."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in flat.items()}
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load(file: pathlib.Path) -> PyTree:
    """Reads the weights, as float32."""
    with np.load(file, allow_pickle=False) as kept:
        flat = {name: jnp.asarray(kept[name], jnp.float32) for name in kept.files}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


if __name__ == "__main__":
    if not sys.argv[1:] or set(sys.argv[1:]) - tasks.LAWS.keys():
        sys.exit(f"give laws, of {', '.join(tasks.LAWS)}")
    for law in sys.argv[1:]:
        save(train(tasks.make_task(law), KEPT_UPDATES), file_of(law))
