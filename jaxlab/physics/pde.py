"""A law of physics as a record: how its fields are scaled, its residual, its solver, its data."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.learning import settings as settings_lib
from jaxlab.physics import random_fields, stencils
from jaxlab.physics.stencils import Region

CHUNK = 256
"""Fields that are made at a time."""
LEAST_RATIO = 0.1
"""Of the mean square of a residual to that of shuffled fields, above which data break the law."""


class Pde(NamedTuple):
    """A partial differential equation and the fields that should obey it.

    A field is `[..., H, W, C]` in physical units, or x = scale * field + offset, of order one,
    which networks see.

    Attributes:
        name: What reports call it.
        channels: Name of each of the C channels.
        scale: Factor of each channel.
        offset: What is added to each channel.
        residual: `residual(fields, *, region, repo_exact) -> [..., H', W']`, zero where the law
            holds; see `stencils.Region`.
        boundary: `boundary(fields) -> [..., P]`, what shall be zero on the edge, in units of the
            residual; None where nothing is prescribed.
        solve: `solve(fields) -> fields`, with the channels of `solution` replaced by the solver's,
            given the others; None without a solver.
        solution: Indices of the channels that the solver replaces and that are compared.
        generate: `generate(key, num, size) -> [num, S, S, C]`, in float64; None for data of one's
            own.
        of_white: `of_white(white [..., S, S]) -> [..., S, S, C]`, the linear map from standard
            normal numbers to fields where the data are jointly normal; None elsewhere.
    """

    name: str
    channels: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    residual: Callable[..., jax.Array]
    boundary: Callable[[jax.Array], jax.Array] | None = None
    solve: Callable[[jax.Array], jax.Array] | None = None
    solution: tuple[int, ...] = ()
    generate: Callable[[jax.Array, int, int], jax.Array] | None = None
    of_white: Callable[[jax.Array], jax.Array] | None = None


def normalize(pde: Pde, fields: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Returns x = scale * field + offset, channel by channel."""
    scale, offset = _scaling(pde, fields)
    return scale * fields + offset


def post(pde: Pde, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Returns the field in physical units that x stands for, (x - offset) / scale."""
    scale, offset = _scaling(pde, x)
    return (x - offset) / scale


def residual(
    pde: Pde, x: Float[Array, "... H W C"], *, region: Region = "interior", repo_exact: bool = False
) -> Float[Array, "... h w"]:
    """Returns what is left of the equation at every point of normalized fields.

    Args:
        pde: the law.
        x: `[..., H, W, C]`, normalized fields, float32 or float64.
        region: "all" is every pixel, as published, where a stencil that needs points beyond the
            edge invents them: it is not zero on exact data. "interior" leaves those out.
        repo_exact: the operators of the released code: Burgers' space is not closed to a ring and
            its time step is 1 / H; Darcy's coefficient is set to 3 or 12 first, so no gradient
            reaches it; the mean of the vorticity is diffused.

    Raises:
        ValueError: if the shape, the number of channels or the dtype does not fit, or the region is
            unknown.
    """
    if x.ndim < 3 or min(x.shape[-3:-1]) < 4:
        raise ValueError(
            f"x must be [..., H, W, {len(pde.channels)}], 4 points or more a side, got {x.shape}"
        )
    return pde.residual(post(pde, x), region=region, repo_exact=repo_exact)


def reward(
    pde: Pde,
    x: Float[Array, "... H W C"],
    *,
    region: Region = "interior",
    bc_weight: float = 1.0,
    repo_exact: bool = False,
) -> Float[Array, "..."]:
    """Returns minus the mean square of the residual, and of the edge's error, of each field.

    r(x) = -mean R(x)^2 - bc_weight mean B(x)^2

    Args:
        pde: the law.
        x: `[..., H, W, C]`, normalized fields.
        region: see `residual`. The published reward is "all" with `bc_weight=0`: fields near zero
            earn the most there.
        bc_weight: weight of what the edge prescribes, in units of the residual; nothing is added
            for a law without such.
        repo_exact: see `residual`.

    Source: arXiv:2509.20570; region and weight are ours.
    """
    if not 0.0 <= bc_weight < np.inf:
        raise ValueError(f"bc_weight must be finite and not negative, got {bc_weight}")
    squares = residual(pde, x, region=region, repo_exact=repo_exact) ** 2
    value = -jnp.mean(squares, axis=(-2, -1))
    if pde.boundary is None or bc_weight == 0.0:
        return value
    return value - bc_weight * jnp.mean(pde.boundary(post(pde, x)) ** 2, axis=-1)


def solution_error(pde: Pde, x: Float[Array, "... H W C"]) -> Float[Array, "..."]:
    """Returns |u - Solve(a)| / |Solve(a)| of each field, in physical units.

    NaN where the solver has no solution for what was generated.

    Raises:
        ValueError: if the law has no solver.
    """
    if pde.solve is None:
        raise ValueError(f"{pde.name} has no solver to compare with; give Pde.solve")
    fields = post(pde, x)
    chosen = np.asarray(pde.solution)
    solved = pde.solve(fields)[..., chosen]
    error = jnp.sum((fields[..., chosen] - solved) ** 2, axis=(-3, -2, -1))
    return jnp.sqrt(error / jnp.sum(solved**2, axis=(-3, -2, -1)))


def make_dataset(pde: Pde, key: jax.Array, num: int, size: int) -> np.ndarray:
    """Makes `num` normalized fields `[num, S, S, C]`, float32, computed in float64 in pieces.

    Call it outside of `jax.jit`; it switches JAX to float64 for as long as it runs.

    Args:
        pde: a law with a generator.
        key: typed PRNG key.
        num: fields.
        size: S, points along an axis.

    Raises:
        ValueError: if the law has no generator, a count is below its least, or a field is not
            finite.

    Example:
        >>> x = make_dataset(poisson(), jax.random.key(0), 1000, 16)
    """
    if pde.generate is None:
        raise ValueError(f"{pde.name} has no generator; bring data of your own")
    settings_lib.check_count(num, "num")
    random_fields.check_size(size)
    with jax.enable_x64(True):
        fields = np.asarray(normalize(pde, pde.generate(key, num, size)))
    if not np.all(np.isfinite(fields)):
        raise ValueError(f"{pde.name} made fields that are not finite; its solver did not converge")
    return fields.astype(np.float32)


def in_pieces(
    draw: Callable[[jax.Array], jax.Array], key: jax.Array, num: int
) -> Float[Array, "num ..."]:
    """Calls the compiled `draw(keys)`, a field for each key, on 256 keys at a time."""
    keys = jax.random.split(key, -(-num // CHUNK) * CHUNK).reshape(-1, CHUNK)
    if num < CHUNK:
        keys = keys[:, :num]
    drawn = jax.jit(draw)
    return jnp.concatenate([drawn(piece) for piece in keys])[:num]


def own_pde(
    name: str,
    law: Callable[[jax.Array], jax.Array],
    data: Float[Array, "N H W C"] | np.ndarray,
    *,
    channels: tuple[str, ...] = (),
    margin: int = 1,
    boundary: Callable[[jax.Array], jax.Array] | None = None,
    solve: Callable[[jax.Array], jax.Array] | None = None,
    solution: tuple[int, ...] = (),
) -> Pde:
    """Makes a law of one's own: its residual, and the scaling that takes the data to [-1, 1].

    Args:
        name: what reports call it.
        law: `law(fields [N, H, W, C]) -> [N, h, w]` in physical units, zero where it holds; in
            `jax.numpy`, since gradients run through it.
        data: `[N, H, W, C]`, fields in physical units; only their range is used.
        channels: names; numbers without.
        margin: rows and columns at each side that "interior" leaves out, 0 for periodic fields.
        boundary, solve, solution: see `Pde`; the functions are called with `[N, H, W, C]`.

    Raises:
        ValueError: if the data are no finite batch of fields, a channel is constant, the names, the
            margin or the solver's channels do not fit, or the residual of the first two fields is
            of another shape, not computed by JAX, or not finite, or its gradient is not.
            `check_data` looks at all fields.

    Example:
        >>> step = 1 / 31
        >>> law = lambda z: stencils.laplacian(z[..., 0], step, edges="replicate") - z[..., 1]
        >>> mine = own_pde("mine", law, fields)
        >>> check_data(mine, normalize(mine, fields)).obeys
    """
    fields = np.asarray(data)
    if fields.ndim != 4 or not fields.size:
        raise ValueError(f"data must be [N, H, W, C], got {fields.shape}; add an axis for channels")
    if fields.dtype.kind not in "fiu":
        raise ValueError(f"data must be real numbers, got {fields.dtype}")
    if not np.all(np.isfinite(fields)):
        count = int(np.sum(~np.isfinite(fields)))
        raise ValueError(f"data must be finite, got {count} values that are not; leave them out")
    names = channels or tuple(str(i) for i in range(fields.shape[-1]))
    if len(names) != fields.shape[-1]:
        raise ValueError(f"channels must name {fields.shape[-1]} of them, got {names}")
    settings_lib.check_count(margin, "margin", 0)
    if (solve is None) != (not solution):
        given = "solution" if solve is None else "solve"
        raise ValueError(f"a solver needs the channels it replaces, got {given} alone; give both")
    if any(not 0 <= i < len(names) for i in solution):
        raise ValueError(f"solution must name channels 0 to {len(names) - 1}, got {solution}")
    low, high = (f(fields.astype(np.float64), axis=(0, 1, 2)) for f in (np.min, np.max))
    if np.any(low == high):
        constant = names[int(np.argmax(low == high))]
        raise ValueError(f"every channel must vary, got a constant {constant!r}; leave it out")
    scale = 2.0 / (high - low)

    def cropped(fields: jax.Array, *, region: Region, repo_exact: bool) -> jax.Array:
        return stencils.crop(_batched(law, fields), region, rows=margin, columns=margin)

    pde = Pde(
        name=name,
        channels=names,
        scale=tuple(map(float, scale)),
        offset=tuple(map(float, -1.0 - scale * low)),
        residual=cropped,
        boundary=functools.partial(_batched, boundary) if boundary else None,
        solve=functools.partial(_solved, solve) if solve else None,
        solution=solution,
    )
    two = jnp.asarray(fields[np.arange(2) % len(fields)], jnp.result_type(float))
    try:
        jax.eval_shape(law, two)
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            f"law must be written in jax.numpy, since gradients run through it, got "
            f"{type(error).__name__}"
        ) from None
    left = law(two)
    shape = np.shape(left)
    if len(shape) != 3 or shape[0] != 2 or min(shape[1:]) <= 2 * margin:
        raise ValueError(
            f"law must return [N, h, w] with more than {2 * margin} rows and columns, got "
            f"{shape} for two fields; put several equations below each other, or make margin "
            "smaller"
        )
    if left.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"law must return float32 or float64, got {left.dtype}; differences amplify rounding"
        )
    if not bool(jnp.all(jnp.isfinite(left))):
        raise ValueError("the residual of the data must be finite, got NaN or infinity")
    slope = jax.grad(lambda fields: jnp.mean(law(fields) ** 2))(two)
    if not bool(jnp.all(jnp.isfinite(slope))):
        raise ValueError(
            "the gradient of the data's residual must be finite, got NaN or infinity; a root of "
            "zero has none, for one"
        )
    return pde


class Check(NamedTuple):
    """What the residual of data says.

    Attributes:
        mean_square: Mean square of the residual.
        shuffled: The same of fields whose channels, or quarters, come from different samples.
        ratio: The first over the second: near 0 where data obey the law, near 1 where the law does
            not tell them from strangers. NaN where the second is zero or not finite: a residual
            that is zero for strangers too, or undefined, says nothing of the data.
        obeys: Whether the ratio is below a tenth.
    """

    mean_square: float
    shuffled: float
    ratio: float
    obeys: bool


def check_data(
    pde: Pde,
    x: Float[Array, "N H W C"] | np.ndarray,
    *,
    region: Region = "interior",
    repo_exact: bool = False,
) -> Check:
    """Says whether the residual of data is near zero, which a reward takes for granted.

    What "near" is has no unit: it is compared with fields each of whose C channels comes from
    another sample, N / C of the data away, since neighbors may be alike; or, of a single channel,
    with fields two opposite quarters of which do.

    Raises:
        ValueError: if there are fewer than two fields, or fewer than channels, or their residual
            is not finite.
    """
    x = jnp.asarray(x)
    if x.ndim != 4 or x.shape[0] < max(2, x.shape[-1]):
        raise ValueError(
            f"x must be [N, H, W, C] with two fields or more, and C or more, got {x.shape}"
        )
    mixed = _strangers(x)
    found = [
        float(jnp.mean(residual(pde, fields, region=region, repo_exact=repo_exact) ** 2))
        for fields in (x, mixed)
    ]
    if not np.isfinite(found[0]):
        raise ValueError("the residual of the data must be finite, got NaN or infinity")
    ratio = found[0] / found[1] if 0.0 < found[1] < float("inf") else float("nan")
    return Check(found[0], found[1], ratio, ratio < LEAST_RATIO)


def _strangers(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Puts together fields whose channels, or quarters, come from different samples."""
    num, height, width, channels = x.shape
    if channels > 1:
        rolled = [jnp.roll(x[..., c], c * num // channels, axis=0) for c in range(channels)]
        return jnp.stack(rolled, axis=-1)
    low = np.arange(height)[:, None] < height // 2
    left = np.arange(width)[None] < width // 2
    return jnp.where((low == left)[..., None], x, jnp.roll(x, num // 2, axis=0))


def _batched(function: Callable[..., jax.Array], fields: Float[Array, "... H W C"]) -> jax.Array:
    """Calls what is written for `[N, H, W, C]` on fields with any leading axes."""
    found = function(fields.reshape(-1, *fields.shape[-3:]))
    return found.reshape(*fields.shape[:-3], *found.shape[1:])


def _solved(
    solve: Callable[[jax.Array], jax.Array], fields: Float[Array, "... H W C"]
) -> jax.Array:
    """Calls a user's solver.

    Raises:
        ValueError: if it returns another shape than that of the fields.
    """
    found = _batched(solve, fields)
    if found.shape != fields.shape:
        raise ValueError(
            f"the solver must return fields of the shape it is given, {fields.shape}, got "
            f"{found.shape}"
        )
    return found


def _scaling(pde: Pde, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if x.shape[-1] != len(pde.channels):
        names = ", ".join(pde.channels)
        raise ValueError(
            f"{pde.name} has {len(pde.channels)} channels ({names}) on its last axis, got {x.shape}"
        )
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"fields must be float32 or float64, got {x.dtype}; a Laplacian multiplies rounding by "
            "4 / h^2"
        )
    shape = (1,) * (x.ndim - 1) + (-1,)
    scale, offset = (jnp.asarray(np.asarray(v), x.dtype) for v in (pde.scale, pde.offset))
    return scale.reshape(shape), offset.reshape(shape)
