"""Random fields that the data begin with: Gaussian, smooth, of zero mean; all in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jaxtyping import Array, Float

from jaxlab.learning import settings as settings_lib
from jaxlab.physics.spectral import wavenumbers

BURGERS_MODES = 64
"""Modes of the start of Burgers' equation."""
SEARCH_SEED = 0
"""Seed of the vector that the search for eigenvectors starts with; it decides their signs."""


def grf2d_std(size: int, *, alpha: float = 2.0, tau: float = 3.0) -> np.ndarray:
    """Returns the `[S, S]` standard deviations of the cosine coefficients of `grf2d`.

    c_kl = S tau^(alpha - 1) (pi^2 (k^2 + l^2) + tau^2)^(-alpha / 2), and 0 for k = l = 0.

    Raises:
        ValueError: if a number is not positive.
    """
    check_size(size)
    for name, value in {"alpha": alpha, "tau": tau}.items():
        if not value > 0.0:
            raise ValueError(f"{name} must be positive, got {value}")
    k = np.arange(size)
    square = k[:, None] ** 2 + k[None, :] ** 2
    std = size * tau ** (alpha - 1.0) * (np.pi**2 * square + tau**2) ** (-alpha / 2.0)
    std[0, 0] = 0.0
    return std


def grf2d(
    keys: jax.Array, size: int, *, alpha: float = 2.0, tau: float = 3.0
) -> Float[Array, "... S S"]:
    """Draws a Gaussian random field on a square of S x S cells for each key; no flux at its edge.

    Args:
        keys: `[...]`, PRNG keys.
        size: S, cells along an axis.
        alpha: smoothness.
        tau: inverse length of correlation.

    Returns:
        The inverse cosine transform of type 2, orthonormal, of independent normal coefficients.

    Raises:
        ValueError: if JAX is not in float64, or a number is out of range.

    Example:
        >>> with jax.enable_x64(True):
        ...     f = grf2d(jax.random.split(jax.random.key(0), 4), 32)  # [4, 32, 32]

    Source: the generator of DiffusionPDE, arXiv:2406.17763.
    """
    require_x64("grf2d")
    return grf2d_of_white(_white(keys, (size, size)), alpha=alpha, tau=tau)


def grf2d_of_white(
    white: Float[Array, "... S S"], *, alpha: float = 2.0, tau: float = 3.0
) -> Float[Array, "... S S"]:
    """Returns the field of normal coefficients, a linear map; see `grf2d`."""
    std = grf2d_std(white.shape[-1], alpha=alpha, tau=tau)
    return jax.scipy.fft.idctn(_over(white, std) * white, axes=(-2, -1), norm="ortho")


def periodic_field(
    keys: jax.Array, size: int, *, alpha: float = 2.5, tau: float = 7.0
) -> Float[Array, "... S S"]:
    """Draws a periodic Gaussian field of zero mean for each key, the start of a flow.

    The Fourier coefficients of white noise are multiplied by
    S tau^(alpha - 1) (4 pi^2 |k|^2 + tau^2)^(-alpha / 2).

    Raises:
        ValueError: if JAX is not in float64.
    """
    require_x64("periodic_field")
    check_size(size)
    square = wavenumbers(size).square
    std = size * tau ** (alpha - 1.0) * (4.0 * np.pi**2 * square + tau**2) ** (-alpha / 2.0)
    std[0, 0] = 0.0
    spectrum = jnp.fft.rfft2(_white(keys, (size, size)))
    return jnp.fft.irfft2(_over(spectrum, std) * spectrum, (size, size))


def burgers_std() -> np.ndarray:
    """Returns `[64]` deviations e_k = sqrt(2) 49 ((2 pi k)^2 + 49)^(-1.25), k = 1 to 64."""
    k = np.arange(1, BURGERS_MODES + 1)
    return np.sqrt(2.0) * 49.0 * ((2.0 * np.pi * k) ** 2 + 49.0) ** -1.25


def burgers_start(keys: jax.Array, size: int) -> Float[Array, "... S"]:
    """Draws a start u_0 = sum_k e_k (xi cos 2 pi k x + zeta sin 2 pi k x) at S points for each key.

    Raises:
        ValueError: if JAX is not in float64, or the grid is too coarse for the 64 modes.
    """
    require_x64("burgers_start")
    if size < 2 * BURGERS_MODES:
        raise ValueError(
            f"size must be at least {2 * BURGERS_MODES} for {BURGERS_MODES} modes, got {size}; "
            "draw on a finer grid and take every second point"
        )
    angle = 2.0 * np.pi * np.arange(1, BURGERS_MODES + 1)[:, None] * np.arange(size) / size
    waves = burgers_std()[:, None] * np.stack([np.cos(angle), np.sin(angle)])  # [2, K, S]
    return jnp.einsum("...ck,cks->...s", _white(keys, (2, BURGERS_MODES)), waves)


@functools.cache
def expansion(size: int, length: float = 0.1, num_modes: int = 64) -> np.ndarray:
    """Returns `[num_modes, S, S]` modes sqrt(lambda_i) phi_i of the covariance exp(-|r| / length).

    Eigenvectors are those of the covariance matrix of S x S nodes on the unit square, the largest
    eigenvalues first; a sum of modes with independent normal weights has that covariance.

    Raises:
        ValueError: if there are fewer nodes than modes.
    """
    if not 0 < num_modes < size**2:
        raise ValueError(f"num_modes must lie in 1 to {size**2 - 1}, got {num_modes}")
    x = np.linspace(0.0, 1.0, size)
    place = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    covariance = np.exp(-np.hypot(*(z[:, None] - z for z in place.T)) / length)
    start = np.random.default_rng(SEARCH_SEED).normal(size=size**2)
    values, vectors = scipy.sparse.linalg.eigsh(covariance, num_modes, v0=start)
    modes = (vectors * np.sqrt(values)).T[::-1]
    return modes.reshape(num_modes, size, size)


def require_x64(name: str) -> None:
    """Refuses to make data in single precision.

    Raises:
        ValueError: if JAX is not in float64.
    """
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            f"{name} makes data in float64, got JAX in float32; call it within "
            "`with jax.enable_x64(True):`, or take make_dataset, which does"
        )


def check_size(size: int, least: int = 4) -> None:
    """Refuses grids without an interior.

    Raises:
        ValueError: if `size` is no integer of at least `least`.
    """
    settings_lib.check_count(size, "size", least)


def _white(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard normal numbers of a shape for each key: fields do not depend on a batch."""
    draw = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float64))
    return draw(keys.reshape(-1)).reshape(keys.shape + shape)


def _over(like: jax.Array, std: np.ndarray) -> jax.Array:
    return jnp.asarray(std.reshape((1,) * (like.ndim - std.ndim) + std.shape), like.dtype)
