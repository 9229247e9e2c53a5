"""Random and deterministic direction sets for finite differences.

Every set S `[n, B]` comes with the scale c that makes E[c S S'] = I, so that c S D estimates a
gradient from the directional differences D. Source: arXiv:2509.24056, section on estimation.
"""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Kind = Literal["gaussian", "sphere", "orthonormal", "coordinate", "block", "rademacher", "hadamard"]
KINDS: tuple[str, ...] = get_args(Kind)
"""Names of the direction sets."""
STREAMABLE = ("gaussian", "sphere", "block", "rademacher", "hadamard")
"""Sets whose columns can be made one by one from the key, without the others."""


def directions(
    key: Array, n: int, B: int, kind: Kind = "orthonormal", dtype: jnp.dtype | type = jnp.float32
) -> tuple[Float[Array, "n B"], float]:
    """Draws B directions in n dimensions.

    | kind | column | c |
    |---|---|---|
    | gaussian | N(0, I) | 1/B |
    | sphere | uniform on the unit sphere | n/B |
    | orthonormal | first B columns of a Haar-distributed orthogonal matrix, B <= n | n/B |
    | coordinate | the n unit vectors, B = n; draws nothing | 1 |
    | block | B unit vectors without replacement | n/B |
    | rademacher | entries +-1/sqrt(n) (SPSA) | n/B |
    | hadamard | entries +-1/sqrt(n) of a Walsh-Hadamard matrix | n/B |

    Hadamard sets take B distinct columns of the matrix of order 2^k >= n, cut to n rows whose signs
    are drawn at random; they are orthonormal if n = 2^k, and cost one bit operation an entry.

    Args:
        key: typed PRNG key.
        n: dimension, at least 1.
        B: number of directions, at least 1.
        kind: one of `KINDS`.
        dtype: floating type.

    Returns:
        `(S, c)`: directions `[n, B]` and the scale.

    Raises:
        ValueError: if the kind is unknown or B does not fit it.
    """
    check_directions(n, B, kind)
    return _directions(key, n, B, kind, jnp.dtype(dtype)), scale(n, B, kind)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _directions(
    key: Array, n: int, B: int, kind: Kind, dtype: jnp.dtype | type
) -> Float[Array, "n B"]:
    if kind == "orthonormal":
        return _orthonormalize(_normal(key, n * B, dtype).reshape(B, n)).T
    if kind == "coordinate":
        return jnp.eye(n, dtype=dtype)
    return make_column_draw(key, n, B, kind, dtype)(jnp.arange(B))


def make_column_draw(
    key: Array, n: int, B: int, kind: Kind, dtype: jnp.dtype | type = jnp.float32
) -> Callable[[Int[Array, " C"]], Float[Array, "n C"]]:
    """Returns `draw(idx)`, which gives columns `idx` of the set that `directions` draws, alone.

    A large problem regenerates its directions from the key in chunks and never stores `[n, B]`;
    what the columns share (a permutation, signs; `[n]`) is drawn once, here.

    Args:
        key: the key of the whole set.
        n, B, kind, dtype: those of the whole set; the kind one of `STREAMABLE`.

    Raises:
        ValueError: if the columns of this kind depend on each other.
    """
    check_directions(n, B, kind)
    if kind not in STREAMABLE:
        raise ValueError(f"kind {kind!r} cannot be drawn in parts; use one of {STREAMABLE}")
    if kind == "block":
        rows = jax.random.permutation(key, n)[:B]
        return lambda idx: (jnp.arange(n)[:, None] == rows[idx][None, :]).astype(dtype)
    if kind == "hadamard":
        key_signs, key_columns = jax.random.split(key)
        signs = jax.random.rademacher(key_signs, (n,), dtype) / n**0.5
        columns = jax.random.permutation(key_columns, _order(n))[:B]

        def hadamard(idx: Array) -> Array:
            # H[i, j] = (-1)^(number of ones that the binary forms of i and j share).
            shared = jnp.arange(n)[:, None] & columns[idx][None, :]
            odd = (jax.lax.population_count(shared) & 1) == 1
            return jnp.where(odd, -signs[:, None], signs[:, None])

        return hadamard

    def column(b: Array) -> Array:
        key_b = jax.random.fold_in(key, b)
        if kind == "rademacher":
            return jax.random.rademacher(key_b, (n,), dtype) / n**0.5
        s = _normal(key_b, n, dtype)
        return s if kind == "gaussian" else s / jnp.linalg.norm(s)

    return jax.vmap(column, out_axes=1)


def scale(n: int, B: int, kind: Kind) -> float:
    """Returns c with E[c S S'] = I."""
    return 1.0 / B if kind == "gaussian" else n / B


def gram_inflation(n: int, B: int, kind: Kind) -> float:
    """Returns r with E[J_hat J_hat'] = r J J' for the plug-in Jacobian J_hat = c J S S'.

    A plug-in method divides its gain by about r: 2 at B = n on the sphere, 1 when the directions
    are orthonormal.
    """
    check_directions(n, B, kind)
    if kind == "gaussian":
        return (n + B + 1) / B
    if kind in ("sphere", "rademacher"):  # independent columns of length 1
        return (n + B - 1) / B
    if kind == "hadamard":  # orthogonal in N dimensions, of which n are seen
        N = _order(n)
        return n / B + (B - 1) / B * (N - n) / max(N - 1, 1)
    return n / B


def check_directions(n: int, B: int, kind: str) -> None:
    """Checks the number of directions.

    Raises:
        ValueError: if the kind is unknown or B does not fit it.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if n < 1 or B < 1:
        raise ValueError(f"n and B must be at least 1, got n = {n} and B = {B}")
    most = {"orthonormal": n, "coordinate": n, "block": n, "hadamard": _order(n)}.get(kind)
    if most is not None and B > most:
        raise ValueError(f"kind {kind!r} has at most {most} directions for n = {n}, got B = {B}")
    if kind == "coordinate" and B != n:
        raise ValueError(
            f"kind 'coordinate' takes all n = {n} unit vectors, got B = {B}; use 'block' for some"
        )


def _normal(key: Array, size: int, dtype: jnp.dtype | type) -> Float[Array, " size"]:
    """Draws standard normal numbers by Box and Muller's rule, at float32 resolution.

    Random directions need no finer one, and on a CPU, where drawing them is the largest part of a
    small step, this takes a third of the time of `jax.random.normal` in float64.
    """
    half = (size + 1) // 2
    radius, angle = jax.random.uniform(key, (2, half), jnp.float32)
    radius, angle = jnp.sqrt(-2.0 * jnp.log1p(-radius)), 2.0 * jnp.pi * angle
    pairs = jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)])
    return pairs[:size].astype(dtype)


def _orthonormalize(rows: Float[Array, "B n"]) -> Float[Array, "B n"]:
    """Orthonormalizes rows by Gram and Schmidt's rule, each twice, which leaves only rounding.

    It is the factor of QR whose triangle has a positive diagonal, so that Gaussian rows become
    uniform (Mezzadri 2007). Across a batch it vectorizes, where a QR of LAPACK is a call per
    instance, and two of those at a time have been seen to lock up on the CPU (jax 0.10.2).
    """

    def add(b: Array, Q: Array) -> Array:
        v = rows[b]
        for _ in range(2):
            v = v - (Q @ v) @ Q
        return Q.at[b].set(v / jnp.linalg.norm(v))

    with jax.default_matmul_precision("highest"):
        return jax.lax.fori_loop(0, rows.shape[0], add, jnp.zeros_like(rows))


def _order(n: int) -> int:
    """Returns the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
