"""Poisson's, Helmholtz' and Darcy's equations on the unit square, zero on its edge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.interpolate
from jaxtyping import Array, Float

from jaxlab.physics import spectral
from jaxlab.physics.random_fields import check_size

MAX_ITERATIONS = 200
"""Of the conjugate gradients; coefficients of 3 and 12 take about 20."""


def poisson_solve(f: Float[Array, "... S S"], k2: float = 0.0) -> Float[Array, "... S S"]:
    """Solves Delta u + k^2 u = f with the 5-point stencil on S x S nodes, u = 0 on the edge.

    Exact to rounding: sine transforms diagonalize the stencil. What f is on the edge is not used.

    Args:
        f: `[..., S, S]`, float32 or float64, at nodes 1 / (S - 1) apart.
        k2: k^2; 0 is Poisson's equation.

    Raises:
        ValueError: if the grid is not square or has no interior, the dtype is narrower than
            float32, or k^2 is an eigenvalue of the stencil, where there is no solution.
    """
    size = _check_grid(f, "f")
    eigenvalues = spectral.laplacian_eigenvalues(size - 2, 1.0 / (size - 1)) + k2
    if not np.min(np.abs(eigenvalues)) >= 1e-9 * np.max(np.abs(eigenvalues)):
        raise ValueError(f"k2 must be finite and no eigenvalue of -Delta on this grid, got {k2}")
    inner = _poisson_inner(f[..., 1:-1, 1:-1], eigenvalues)
    return _pad(inner)


def darcy_solve(
    a: Float[Array, "... S S"], f: Float[Array, "... S S"], *, tolerance: float | None = None
) -> Float[Array, "... S S"]:
    """Solves -div(a grad u) = f on S x S nodes, u = 0 on the edge.

    The flux between two nodes has the mean of their coefficients. Conjugate gradients are
    preconditioned by the exact solution for a = 1, so their number depends on the contrast of a
    and not on the grid.

    Args:
        a: `[..., S, S]`, the coefficient at nodes, positive.
        f: `[..., S, S]`, the source.
        tolerance: largest error, relative to the solution; 1e-10 in float64, 1e-5 in float32.

    Returns:
        `[..., S, S]`. A field that does not come within the tolerance in 200 iterations is NaN, as
        with coefficients that are not positive.

    Raises:
        ValueError: if shapes differ, the tolerance is not positive, or as `poisson_solve` does.
    """
    size = _check_grid(a, "a")
    _check_grid(f, "f")
    if a.shape != f.shape or a.dtype != f.dtype:
        raise ValueError(
            f"a and f must have one shape and dtype, got {a.shape} {a.dtype} and "
            f"{f.shape} {f.dtype}"
        )
    if tolerance is None:
        tolerance = 1e-10 if a.dtype == jnp.float64 else 1e-5
    if not tolerance > 0.0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    eigenvalues = spectral.laplacian_eigenvalues(size - 2, 1.0 / (size - 1))
    return jnp.vectorize(
        functools.partial(_conjugate_gradients, eigenvalues, tolerance),
        signature="(s,s),(s,s)->(s,s)",
    )(a, f)


def darcy_solve_cells(a: Float[Array, "... S S"]) -> Float[Array, "... S S"]:
    """Solves -div(a grad u) = 1 for a coefficient at the centers of S x S cells.

    The coefficient is interpolated by cubic splines to S x S nodes, which reach the edge, and the
    solution back to the centers. What the splines have beyond the coefficient's own range is cut
    off: half a cell outside of the centers, beside a jump from 3 to 12, they reach -100, and with a
    negative coefficient there is no diffusion.

    Source: the generator of DiffusionPDE, arXiv:2406.17763; that cuts nothing off.
    """
    size = _check_grid(a, "a")
    to_nodes, to_cells = (jnp.asarray(m, a.dtype) for m in splines(size))
    low, high = (f(a, axis=(-2, -1), keepdims=True) for f in (jnp.min, jnp.max))
    at_nodes = jnp.clip(_both_axes(to_nodes, a), low, high)
    return _both_axes(to_cells, darcy_solve(at_nodes, jnp.ones_like(at_nodes)))


@functools.cache
def splines(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[S, S]` matrices of cubic splines, from centers of cells to nodes and back."""
    check_size(size)
    centers, nodes = (np.arange(size) + 0.5) / size, np.linspace(0.0, 1.0, size)
    to_nodes = scipy.interpolate.CubicSpline(centers, np.eye(size))(nodes)
    to_cells = scipy.interpolate.CubicSpline(nodes, np.eye(size))(centers)
    return to_nodes, to_cells


def darcy_flux(a: Float[Array, "S S"], u: Float[Array, "S S"]) -> Float[Array, "s s"]:
    """Returns -div(a grad u) at the interior nodes, by fluxes between nodes."""
    step = 1.0 / (a.shape[-1] - 1)

    def along(a: jax.Array, u: jax.Array) -> jax.Array:
        flux = 0.5 * (a[1:] + a[:-1]) * (u[1:] - u[:-1])
        return -(flux[1:] - flux[:-1]) / step**2

    return along(a[:, 1:-1], u[:, 1:-1]) + along(a[1:-1].T, u[1:-1].T).T


def _conjugate_gradients(
    eigenvalues: np.ndarray, tolerance: float, a: jax.Array, f: jax.Array
) -> Float[Array, "S S"]:
    def multiply(u: jax.Array) -> jax.Array:
        return darcy_flux(a, _pad(u))

    def precondition(r: jax.Array) -> jax.Array:
        return _poisson_inner(r, -eigenvalues)

    # What is left is measured as Poisson's solution of it: an error of u, which rounding in the
    # stencil (a / h^2 times that of u) does not drown.
    target = f[1:-1, 1:-1]
    z = precondition(target)
    small = tolerance * jnp.linalg.norm(z)
    start = (0, jnp.zeros_like(target), target, z, z, jnp.asarray(True))

    def goes_on(carry: tuple) -> jax.Array:
        i, _, _, z, _, _ = carry
        return (i < MAX_ITERATIONS) & (jnp.linalg.norm(z) > small)

    def iterate(carry: tuple) -> tuple:
        i, u, r, z, p, positive = carry
        ap, rz = multiply(p), jnp.sum(r * z)
        curvature = jnp.sum(p * ap)
        u, r = u + rz / curvature * p, r - rz / curvature * ap
        z = precondition(r)
        return i + 1, u, r, z, z + jnp.sum(r * z) / rz * p, positive & (curvature > 0.0)

    _, u, _, _, _, positive = jax.lax.while_loop(goes_on, iterate, start)
    # Computed anew, since the recurrence drifts from it.
    left = jnp.linalg.norm(precondition(target - multiply(u)))
    return jnp.where(positive & (left <= 10.0 * small), _pad(u), jnp.nan)


def _poisson_inner(f: Float[Array, "... s s"], eigenvalues: np.ndarray) -> Float[Array, "... s s"]:
    scale = jnp.asarray(1.0 / ((2 * (f.shape[-1] + 1)) ** 2 * eigenvalues), f.dtype)
    scale = scale.reshape((1,) * (f.ndim - 2) + scale.shape)
    return spectral.dst1_2d(scale * spectral.dst1_2d(f))


def _both_axes(matrix: Float[Array, "S S"], x: Float[Array, "... S S"]) -> Float[Array, "... S S"]:
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ik,...kl,jl->...ij", matrix, x, matrix, precision=highest)


def _pad(inner: Float[Array, "... s s"]) -> Float[Array, "... S S"]:
    return jnp.pad(inner, [(0, 0)] * (inner.ndim - 2) + [(1, 1), (1, 1)])


def _check_grid(x: Float[Array, "... S S"], name: str) -> int:
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{name} must be [..., S, S], got {x.shape}")
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"{name} must be float32 or float64, got {x.dtype}; solvers amplify it")
    check_size(x.shape[-1])
    return x.shape[-1]
