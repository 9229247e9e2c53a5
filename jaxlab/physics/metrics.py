"""How near sampled fields are to data in law: spectra, slices, Gaussians, diversity."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float


def log_spectrum(x: Float[Array, "N H W C"]) -> Float[Array, "R C"]:
    """Returns the logarithm of mean power by radius of cosine coefficients, channel by channel.

    Coefficients (k, l) with round(sqrt(k^2 + l^2)) = r are averaged, r = 1 to min(H, W) - 1; the
    mean of a field is left out. Cosines fit fields that are not periodic.
    """
    height, width = x.shape[1:3]
    power = jnp.mean(jax.scipy.fft.dctn(x, axes=(1, 2), norm="ortho") ** 2, axis=0)
    k, l = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    radius = np.round(np.hypot(k, l)).astype(int)
    bins = np.arange(1, min(height, width))[:, None, None] == radius[None]
    share = jnp.asarray(bins / bins.sum(axis=(1, 2), keepdims=True), x.dtype)
    return jnp.log(jnp.einsum("rkl,klc->rc", share, power))


def spectrum_distance(
    x: Float[Array, "N H W C"], data: Float[Array, "M H W C"]
) -> Float[Array, " C"]:
    """Returns the root mean square over radii of the difference of log spectra, by channel."""
    return jnp.sqrt(jnp.mean((log_spectrum(x) - log_spectrum(data)) ** 2, axis=0))


def sliced_wasserstein(
    key: jax.Array,
    x: Float[Array, "N ..."],
    data: Float[Array, "M ..."],
    *,
    num_slices: int = 128,
    num_quantiles: int = 256,
) -> Float[Array, ""]:
    """Returns the mean over random directions of the first Wasserstein distance along them.

    Quantiles are compared, so the two may have different numbers of fields.
    """
    flat = [z.reshape(z.shape[0], -1) for z in (x, data)]
    directions = jax.random.normal(key, (flat[0].shape[1], num_slices), x.dtype)
    directions /= jnp.linalg.norm(directions, axis=0, keepdims=True)
    at = jnp.asarray((np.arange(num_quantiles) + 0.5) / num_quantiles, x.dtype)
    a, b = (jnp.quantile(z @ directions, at, axis=0) for z in flat)
    return jnp.mean(jnp.abs(a - b))


def frechet_distance(
    x: Float[Array, "N H W C"], data: Float[Array, "M H W C"], *, num_modes: int = 6
) -> float:
    """Returns the Fréchet distance of normal laws fitted to low cosine coefficients, whitened.

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of the coefficients (k, l), k and l below `num_modes`,
    each divided by its standard deviation in the data. Those with less than a millionth of the
    greatest variance in the data are constant but for rounding or a solver's error (what Burgers'
    equation conserves), and are left out. Computed on the host in float64; exact for data that are
    normal.

    Raises:
        ValueError: if there are no more fields than coefficients.
    """
    flat = []
    for z in (x, data):
        modes = jax.scipy.fft.dctn(z, axes=(1, 2), norm="ortho")[:, :num_modes, :num_modes]
        flat.append(np.asarray(modes, np.float64).reshape(z.shape[0], -1))
    size = flat[0].shape[1]
    if min(len(z) for z in flat) <= size:
        raise ValueError(
            f"there must be more fields than the {size} coefficients, got {len(flat[0])} and "
            f"{len(flat[1])}; take fewer modes"
        )
    std = np.std(flat[1], axis=0)
    varies = std > 1e-3 * np.max(std)
    a, b = (z[:, varies] / std[varies] for z in flat)
    s, t = (np.atleast_2d(np.cov(z.T)) for z in (a, b))
    root = scipy.linalg.sqrtm(s @ t)
    apart = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(apart + np.trace(s + t - 2.0 * np.real(root)))


def diversity(x: Float[Array, "N ..."]) -> Float[Array, ""]:
    """Returns the mean over pairs of the root mean square distance of two fields."""
    num = x.shape[0]
    return jnp.sum(_distances(x, x)) / (num * (num - 1))


def nearest_distance(x: Float[Array, "N ..."], data: Float[Array, "M ..."]) -> Float[Array, " N"]:
    """Returns each field's root mean square distance to the nearest of the data."""
    return jnp.min(_distances(x, data), axis=1)


@jax.jit
def _distances(x: Float[Array, "N ..."], y: Float[Array, "M ..."]) -> Float[Array, "N M"]:
    def from_one(field: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean((y - field[None]) ** 2, axis=tuple(range(1, y.ndim))))

    return jax.lax.map(from_one, x)
