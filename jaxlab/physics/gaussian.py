"""The exact law of the data of linear equations: what a trained base model is held against."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.diffusion import edm
from jaxlab.physics import random_fields
from jaxlab.physics.pde import Pde, normalize


def gaussian_law(pde: Pde, size: int) -> edm.Gaussian:
    """Returns the law of normalized fields of Poisson's or Helmholtz' equation, in float32.

    Source and solution are linear in white noise, so (f, u) is jointly normal, and its denoiser is
    known: Sigma (Sigma + s^2)^-1 x. Whatever x is, that obeys the equation in the interior.

    Args:
        pde: `poisson()` or `helmholtz()`.
        size: S, nodes along an axis; the law has S^2 - 1 axes of 2 S^2 numbers.

    Raises:
        ValueError: if the data of this law are not normal.

    Source: the generator of DiffusionPDE, arXiv:2406.17763; its law is derived here.
    """
    if pde.of_white is None:
        raise ValueError(f"the data of {pde.name} are not normal; take poisson() or helmholtz()")
    random_fields.check_size(size)
    with jax.enable_x64(True):
        units = jnp.eye(size**2, dtype=jnp.float64).reshape(-1, size, size)[1:]  # no mean
        factor = jax.jit(functools.partial(_normalized, pde, pde.of_white))(units)
        law = edm.gaussian_of(np.asarray(factor))
    narrow = functools.partial(np.asarray, dtype=np.float32)
    return edm.Gaussian(jnp.asarray(narrow(law.axes)), jnp.asarray(narrow(law.variance)))


def _normalized(
    pde: Pde, of_white: Callable[[jax.Array], jax.Array], white: jax.Array
) -> jax.Array:
    return normalize(pde, of_white(white))
