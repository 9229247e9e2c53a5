"""The base model that the study tunes: kept as a small file, which `python -m` this module makes.

A quarter of an hour on a laptop; on another processor the weights differ.
"""

import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import nn, physics
from jaxlab.core import loop
from jaxlab.core.types import PyTree

SIZE, NUM_FIELDS = 16, 4096
NUM_STEPS, CHUNK = 1500, 50
FILE = pathlib.Path(__file__).with_name("base.npz")
LAW = physics.poisson()
NETWORK = nn.Unet(2, 20, (1, 1), 1, attention=(), dropout=0.0)


def fields() -> np.ndarray:
    """Returns the `[4096, 16, 16, 2]` fields that the base is trained on."""
    return physics.make_dataset(LAW, jax.random.key(0), NUM_FIELDS, SIZE)


def train(folder: pathlib.Path | None = None) -> PyTree:
    """Returns the running average of the weights; `folder` is for checkpoints."""
    algorithm = physics.make_base(
        fields(), NETWORK, num_steps=NUM_STEPS, batch_size=32, learning_rate=2e-3
    )
    found = loop.run(
        algorithm,
        jax.random.key(1),
        num_steps=NUM_STEPS,
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
    save(train())
