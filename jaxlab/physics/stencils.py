"""Finite differences along an axis, and the rows and columns that a region keeps."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

Edges = Literal["one_sided", "replicate", "wrap"]
"""What stands beyond the edge: a polynomial's continuation, the edge itself, the other side."""
Region = Literal["all", "interior"]
"""Where a residual is looked at."""


def first_difference(
    x: Float[Array, "..."], step: float, *, axis: int, edges: Edges
) -> Float[Array, "..."]:
    """Returns (x_{i+1} - x_{i-1}) / (2 step).

    "one_sided" is (-3, 4, -1) / (2 step) at the edge, which is exact for parabolas.
    """
    wide = _extend(jnp.moveaxis(x, axis, -1), edges, (3.0, -3.0, 1.0))
    return jnp.moveaxis((wide[..., 2:] - wide[..., :-2]) / (2.0 * step), -1, axis)


def second_difference(
    x: Float[Array, "..."], step: float, *, axis: int, edges: Edges
) -> Float[Array, "..."]:
    """Returns (x_{i+1} - 2 x_i + x_{i-1}) / step^2.

    "one_sided" is (2, -5, 4, -1) / step^2 at the edge, which is exact for cubics.
    """
    wide = _extend(jnp.moveaxis(x, axis, -1), edges, (4.0, -6.0, 4.0, -1.0))
    second = (wide[..., 2:] - 2.0 * wide[..., 1:-1] + wide[..., :-2]) / step**2
    return jnp.moveaxis(second, -1, axis)


def laplacian(x: Float[Array, "... H W"], step: float, *, edges: Edges) -> Float[Array, "... H W"]:
    """Returns the 5-point Laplacian of a field."""
    return second_difference(x, step, axis=-2, edges=edges) + second_difference(
        x, step, axis=-1, edges=edges
    )


def side(x: Float[Array, "... S S"]) -> int:
    """Returns the points along an axis of a square grid.

    Raises:
        ValueError: if it is not square: laws on the unit square have one step for both axes.
    """
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"the grid must be square, got {x.shape[-2]} by {x.shape[-1]} points")
    return x.shape[-1]


def ring(x: Float[Array, "... H W"]) -> Float[Array, "... P"]:
    """Returns the values on the edge of a grid, every node once, P = 2 H + 2 W - 4."""
    sides = (x[..., 0, :], x[..., -1, :], x[..., 1:-1, 0], x[..., 1:-1, -1])
    return jnp.concatenate(sides, axis=-1)


def crop(
    residual: Float[Array, "... H W"], region: Region, *, rows: int, columns: int
) -> Float[Array, "... h w"]:
    """Returns all of a residual, or its interior: without so many rows and columns at each side.

    Raises:
        ValueError: if the region is unknown.
    """
    if region not in get_args(Region):
        raise ValueError(f"region must be one of {', '.join(get_args(Region))}, got {region!r}")
    if region == "all":
        return residual
    height, width = residual.shape[-2:]
    return residual[..., rows : height - rows, columns : width - columns]


def _extend(
    x: Float[Array, "... N"], edges: Edges, weights: tuple[float, ...]
) -> Float[Array, "... N+2"]:
    """Adds a value at both ends; `weights` continue a polynomial from the edge inward."""
    if edges == "wrap":
        ends = x[..., -1:], x[..., :1]
    elif edges == "replicate":
        ends = x[..., :1], x[..., -1:]
    else:
        near = [weight * x[..., i : i + 1] for i, weight in enumerate(weights)]
        last = x.shape[-1] - 1
        far = [weight * x[..., last - i : last - i + 1] for i, weight in enumerate(weights)]
        ends = sum(near[1:], near[0]), sum(far[1:], far[0])
    return jnp.concatenate([ends[0], x, ends[1]], axis=-1)
