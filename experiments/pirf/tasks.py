"""Laws by name: fields that obey them, the network of a base model, and what is known of both."""

import functools
import hashlib
import importlib
import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pirf import Config
from jaxlab import nn, physics
from jaxlab.physics import Pde

LAWS: dict[str, Callable[[], Pde]] = {
    "poisson": physics.poisson,
    "helmholtz": physics.helmholtz,
    "darcy": physics.darcy,
    "darcy64": physics.darcy64,
    "burgers": physics.burgers,
    "kolmogorov": functools.partial(physics.kolmogorov, 100.0),
}
SIZES, SIZE = {"poisson": 16, "kolmogorov": 64}, 32
"""Points a side of laws that have their own, and of the others."""
OWN = "own"
"""Stands for the law of one's own fields."""
NUM_FIELDS, NUM_JUDGED = 4096, 512
"""Fields that a base is trained on, and new ones that samples are compared with."""
LEAST_SPREAD = 0.04
"""Least standard deviation of a channel of own fields, whose range is scaled to 2."""
FEWEST = 16
"""Own fields that there must be: a quarter of them is kept for comparisons."""


class Task(NamedTuple):
    """A law, and all that tuning a model of its fields needs.

    Attributes:
        name: What units and pictures are called.
        law: The law.
        shape: (H, W, C).
        network: Of the base.
        data: `data()` returns the normalized fields that the base is trained on.
        judged: `judged()` returns new ones, which samples are compared with.
        about: What decides those fields, for the settings of units.
        check: What the residual of the fields says, of one's own.
    """

    name: str
    law: Pde
    shape: tuple[int, int, int]
    network: Any
    data: Callable[[], np.ndarray]
    judged: Callable[[], np.ndarray]
    about: dict[str, Any]
    check: physics.Check | None = None

    @property
    def released(self) -> bool:
        """Whether the released code has an operator of this law."""
        return self.name != OWN


def make_network(channels: int) -> nn.Unet:
    """Makes the network of all bases: two resolutions, 0.1 million weights."""
    return nn.Unet(channels, 20, (1, 1), 1, attention=(), dropout=0.0)


def make_task(name: str, size: int = 0) -> Task:
    """Makes the task of one of the paper's laws; fields are made when they are asked for."""
    law, size = LAWS[name](), size or SIZES.get(name, SIZE)

    @functools.cache
    def fields(seed: int, num: int) -> np.ndarray:
        return physics.make_dataset(law, jax.random.key(seed), num, size)

    return Task(
        name=name,
        law=law,
        shape=(size, size, len(law.channels)),
        network=make_network(len(law.channels)),
        data=functools.partial(fields, 0, NUM_FIELDS),
        judged=functools.partial(fields, 7, NUM_JUDGED),
        about={"law": name, "size": size},
    )


def own_task(config: Config) -> Task:
    """Reads one's own fields and their law, and warns where the fields do not obey it.

    The last quarter of the fields is kept for comparisons.

    Raises:
        ValueError: if file, residual or solver are unsound; the message says what to do.
        FileNotFoundError: if there is no such file.
    """
    fields = read_fields(config.data)
    function = find_function(config.residual, "residual")
    solve = find_function(config.solver, "solver") if config.solver else None
    law = _called(
        "residual",
        config.residual,
        lambda: physics.own_pde(
            OWN, function, fields, margin=config.margin, solve=solve, solution=config.solution
        ),
    )
    height, width, channels = fields.shape[1:]
    if height % 2 or width % 2:
        raise ValueError(
            f"fields must have an even number of rows and columns, got {height} by {width}; the "
            "network halves the resolution once"
        )
    x = np.asarray(physics.normalize(law, jnp.asarray(fields)), np.float32)
    spread = np.std(x, axis=(0, 1, 2))
    if np.min(spread) < LEAST_SPREAD:
        worst = int(np.argmin(spread))
        warnings.warn(
            f"channel {worst} has a standard deviation of {50.0 * spread[worst]:.2g} % of its "
            "range, which networks see as 2; leave out what is far off, or take a logarithm",
            stacklevel=2,
        )
    kept = len(x) - max(len(x) // 4, 4)
    check = _called("residual", config.residual, lambda: physics.check_data(law, x))
    if solve is not None:
        error = _called(
            "solver", config.solver, lambda: physics.solution_error(law, jnp.asarray(x[:4]))
        )
        if not bool(jnp.all(jnp.isfinite(error))):
            raise ValueError("the solver's fields must be finite on the data, got NaN or infinity")
    if np.isnan(check.ratio):
        warnings.warn(
            "the residual of fields put together from several is zero or not finite "
            f"({check.shuffled:.3g}), so nothing says whether that of the data, "
            f"{check.mean_square:.3g} in mean square, is near zero",
            stacklevel=2,
        )
    elif not check.obeys:
        warnings.warn(
            f"the residual of the data is not near zero: its mean square is {check.mean_square:.3g}"
            f", {check.ratio:.2g} times that of fields put together from several; a reward by this "
            "residual is earned by leaving the data",
            stacklevel=2,
        )
    return Task(
        name=OWN,
        law=law,
        shape=(height, width, channels),
        network=make_network(channels),
        data=lambda: x[:kept],
        judged=lambda: x[kept:],
        about={
            "law": OWN,
            "residual": config.residual,
            "solver": config.solver,
            "solution": list(config.solution),
            "margin": config.margin,
            "fields": hashlib.sha256(np.ascontiguousarray(fields).tobytes()).hexdigest(),
        },
        check=check,
    )


def read_fields(file: str) -> np.ndarray:
    """Reads `[N, H, W, C]` float32 fields in physical units.

    Raises:
        ValueError: if the file holds no such array.
        FileNotFoundError: if there is no such file.
    """
    path = pathlib.Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no fields {path}; write them by np.savez(file, fields=array)")
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        raise ValueError(f"{path} must be an npz file; write it by np.savez(...)") from None
    names = kept.files if isinstance(kept, np.lib.npyio.NpzFile) else []
    if "fields" not in names:
        raise ValueError(
            f"{path} must hold an array named 'fields', got {', '.join(names) or 'an unnamed one'}"
        )
    try:
        with kept:
            fields = kept["fields"]
    except (OSError, ValueError, zlib.error, zipfile.BadZipFile):
        raise ValueError(f"{path} must hold an array of numbers that can be read") from None
    if fields.dtype.kind not in "fiu" or fields.dtype.itemsize < 4:
        raise ValueError(
            f"fields must be float32 or float64, got {fields.dtype}; a residual amplifies rounding"
        )
    if fields.ndim != 4:
        raise ValueError(
            f"fields must be [N, H, W, C], got {fields.shape}; add an axis for channels"
        )
    if len(fields) < FEWEST:
        raise ValueError(f"fields must be at least {FEWEST}, got {len(fields)}")
    return fields.astype(np.float32)


def find_function(name: str, what: str) -> Callable[..., Any]:
    """Imports module:function.

    Raises:
        ValueError: if there is none.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"{what} must be module:function, got {name!r}")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever a user's module does when it is imported
        raise ValueError(f"cannot import {module} of the {what}: {error!r}") from None
    if not callable(found):
        raise ValueError(f"{module} has no function {function!r} for the {what}")
    return found


def _called(what: str, name: str, call: Callable[[], Any]) -> Any:
    """Calls a user's function; what it raises is told in one line."""
    try:
        return call()
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the {what} {name} failed on the fields: {error!r}") from None
