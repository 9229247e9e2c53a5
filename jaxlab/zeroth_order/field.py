"""The feedback-linearizing velocity field, from exact derivatives or from differences.

One equation serves every form. With D_f `[B]` and D_h `[m, B]` the derivatives of f and h along B
directions and W `[B, B]` a metric on the directions,

    A = D_h W D_h',  b = D_h W D_f - K h,  lam = multiplier(A, b),  v = -W (D_f + D_h' lam),

and the velocity is S v. It is FL when S = I and W = T (arXiv:2503.12665), plug-in ZOFL when D is
the estimated Jacobian, and subspace ZOFL when W = c I and S are the random directions: then
D_h v = -K h holds exactly, whatever the directions, as long as they are at least as many as the
active constraints (arXiv:2509.24056; the subspace form is derived here).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.zeroth_order import direction_sets, estimators, multiplier
from jaxlab.zeroth_order.direction_sets import Kind
from jaxlab.zeroth_order.estimators import Stencil
from jaxlab.zeroth_order.problem import Oracle

Metric = Callable[[Float[Array, "B k"]], Float[Array, "B k"]]
"""Applies W to the columns of a matrix."""
Solve = Callable[
    [Float[Array, "m m"], Float[Array, " m"], int], tuple[Float[Array, " m"], Float[Array, ""]]
]
"""Solves for the multiplier: `solve(A, b, m_eq) -> (lam, residual)`."""


class Probe(NamedTuple):
    """Directional derivatives at a point.

    Attributes:
        q0: `[1 + m]`, stacked values at the point.
        D: `[1 + m, B]`, stacked derivatives along the directions.
        curvature: `[1 + m, B]`, second derivatives along them, or None with forward differences.
        lift: `[B] -> [n]`, the combination S v of the directions.
        rows: `[k] -> [k, B]`, the given rows of S: derivatives of single variables.
        c: scale of the directions.
        rounding: `[1 + m]`, length of the error that rounding leaves in the estimated gradients.
        hessian: `[B, B]`, second derivatives of f along pairs of directions, where asked for.
    """

    q0: Float[Array, " d"]
    D: Float[Array, "d B"]
    curvature: Float[Array, "d B"] | None
    lift: Callable[[Array], Array]
    rows: Callable[[Array], Array]
    c: float | Array
    rounding: Float[Array, " d"]
    hessian: Float[Array, "B B"] | None = None


def feedback(
    D_f: Float[Array, " B"],
    D_h: Float[Array, "m B"],
    h: Float[Array, " m"],
    K: Float[Array, " m"],
    m_eq: int,
    *,
    metric: Metric = lambda V: V,
    solve: Solve = multiplier.fl_multiplier,
) -> tuple[Float[Array, " B"], Float[Array, " m"], Float[Array, ""]]:
    """Computes the velocity in the space of the directions, and the multiplier.

    Args:
        D_f: `[B]`.  D_h: `[m, B]`, equalities first.  h: `[m]`.  K: `[m]`, decay rates.
        m_eq: number of equalities.
        metric: applies W; the identity by default.
        solve: solves for the multiplier.

    Returns:
        `(v, lam, residual)`: `[B]`, `[m]`, and what `fl_multiplier` left unsolved.

    Source: arXiv:2503.12665, feedback-linearizing control; see the module's docstring.
    """
    WD = metric(jnp.concatenate([D_f[None], D_h]).T)  # [B, 1 + m]: W D_f and W D_h'
    A = D_h @ WD[:, 1:]
    b = D_h @ WD[:, 0] - K * h
    lam, residual = solve(A, b, m_eq)
    return -(WD[:, 0] + WD[:, 1:] @ lam), lam, residual


def fl_field(
    grad: Float[Array, " n"],
    J: Float[Array, "m n"],
    h: Float[Array, " m"],
    K: Float[Array, " m"] | float,
    m_eq: int,
    T: Float[Array, "n n"] | Metric | None = None,
    *,
    solve: Solve = multiplier.fl_multiplier,
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Computes F = -T (grad + J' lam) with lam so that dh/dt = -K h: first-order FL.

    Args:
        grad: `[n]`, gradient of f.  J: `[m, n]`.  h: `[m]`, equalities first.
        K: decay rates, `[m]` or one for all.
        m_eq: number of equalities.
        T: metric, positive definite: `[n, n]`, or a function that applies it to `[n, k]`
            (`newton_metric`), or None for the identity.
        solve: solves for the multiplier.

    Returns:
        `(F, lam)`: velocity `[n]` and multiplier `[m]`.

    Raises:
        ValueError: if shapes do not match.

    Source: arXiv:2503.12665, eq. for lam and dynamics; Euler with K = 1/eta is the SQP step.
    """
    m = h.shape[0]
    if J.shape != (m, grad.shape[0]) or not 0 <= m_eq <= m:
        raise ValueError(
            f"J must be [m, n] with h [m], grad [n] and 0 <= m_eq <= m, got J {J.shape}, "
            f"h {h.shape}, grad {grad.shape}, m_eq {m_eq}"
        )
    metric = _as_metric(T)
    F, lam, _ = feedback(
        grad,
        J,
        h,
        jnp.broadcast_to(jnp.asarray(K, h.dtype), (m,)),
        m_eq,
        metric=metric,
        solve=solve,
    )
    return F, lam


def scalar_metric(c: float | Array) -> Metric:
    """Returns the metric c I."""
    return lambda V: c * V


def newton_metric(
    H: Float[Array, "B B"],
    fill: float | Array = 1.0,
    *,
    scale: float | Array = 1.0,
    noise: float | Array = 0.0,
) -> Metric:
    """Returns the metric scale * H^-1, eigenvalues of H that are not positive replaced by `fill`.

    Args:
        H: `[B, B]` symmetric, a Hessian of f.
        fill: curvature put in place of zero or negative ones; 0.3 and 1 in the OPF studies.
        scale: factor.
        noise: eigenvalues up to this value are taken for zero.

    Source: FL-Newton of arXiv:2503.12665, T = (Hessian of f)^-1.
    """
    values, vectors = jnp.linalg.eigh(0.5 * (H + H.T))
    inverse = scale / _positive(values, fill, noise)
    return lambda V: vectors @ (inverse[:, None] * (vectors.T @ V))


def diagonal_metric(
    curvature: Float[Array, " B"],
    fill: float | Array = 1.0,
    *,
    scale: float | Array = 1.0,
    noise: float | Array = 0.0,
) -> Metric:
    """Returns the metric scale / curvature; `fill` and `noise` as in `newton_metric`."""
    inverse = scale / _positive(curvature, fill, noise)
    return lambda V: inverse[:, None] * V


def exact_probe(exact: Callable[[Array], tuple[Array, Array]], x: Float[Array, " n"]) -> Probe:
    """Returns exact derivatives along the unit vectors: the first-order twin of a probe.

    Args:
        exact: `exact(x) -> (f, h)` without noise, differentiable.
        x: `[n]`.
    """

    def stacked(x: Array) -> Array:
        f, h = exact(x)
        return jnp.concatenate([f[None], h])

    q0 = stacked(x)
    jacobian = jax.jacrev if q0.shape[0] < x.shape[0] else jax.jacfwd
    D = jacobian(stacked)(x)
    rounding = float(jnp.finfo(x.dtype).eps) * jnp.linalg.norm(D, axis=1)
    return Probe(q0, D, None, lambda v: v, _unit_rows(x), 1.0, rounding)


def probe(
    key: Array,
    q: Oracle,
    x: Float[Array, " n"],
    stencil: Stencil,
    *,
    kind: Kind,
    lb: Float[Array, " n"] | None = None,
    ub: Float[Array, " n"] | None = None,
    pairs: bool = False,
    evaluate: Callable[..., Array] = estimators.evaluate,
) -> Probe:
    """Draws directions and measures the derivatives of q along them.

    A direction on which a query failed (NaN or infinite) is left out: its column becomes 0.

    Args:
        key: source of the directions and of the oracle's noise.
        q: the oracle.  x: `[n]`.
        stencil: number of directions, radius, and how the differences are taken.
        kind: direction set, see `direction_sets.directions`.
        lb, ub: box that no query leaves, or None for both.
        pairs: measure the Hessian of f along the directions too, error O(u^2), with central
            differences, no box and B (B - 1) more queries.
        evaluate: evaluates `(q, points, keys)` in one batch.

    Raises:
        ValueError: if the stencil is out of range, one of `lb` and `ub` is missing, or `pairs` goes
            with a box or forward differences.
    """
    estimators.check_stencil(stencil)
    if (lb is None) != (ub is None):
        raise ValueError("lb and ub must be given together, got one; fill the other with infinity")
    if pairs and (lb is not None or not stencil.central):
        raise ValueError(
            "pairs of directions need central differences and no box; leave out lb and ub, and "
            "take Stencil(..., central=True)"
        )
    key_directions, key_noise, key_pairs = jax.random.split(key, 3)
    B, u, central = stencil.B, stencil.u, stencil.central
    S, c = direction_sets.directions(key_directions, x.shape[0], B, kind, x.dtype)
    S_minus = None
    if lb is not None and ub is not None:
        S, S_minus = estimators.within_box(x, S, u, lb, ub, central=central)
    points = estimators.probe_points(x, S, stencil, S_minus=S_minus)
    keys = estimators.probe_keys(key_noise, stencil)
    first, second = np.triu_indices(B, 1) if pairs else (np.zeros(0, int), np.zeros(0, int))
    corners = u * (S[:, first] + S[:, second]).T
    points = jnp.concatenate([points, x[None] + corners, x[None] - corners])
    keys = jnp.concatenate([keys, jax.random.split(key_pairs, 2 * len(first))])
    values = evaluate(q, points, keys)
    num_single = stencil.num_queries
    q0, D, curvature = estimators.read_probe(values[:num_single], stencil)
    hessian = None
    if pairs:
        assert curvature is not None
        own = curvature[0]
        diagonal = values[num_single:, 0].reshape(2, -1).sum(0) - 2.0 * q0[0]
        mixed = 0.5 * (diagonal / u**2 - own[first] - own[second])
        hessian = jnp.diag(own).at[first, second].set(mixed).at[second, first].set(mixed)
    if central and S_minus is not None:
        S = 0.5 * (S + S_minus)
    D, curvature, measured = _drop_failed(D, curvature)
    S = S * measured[None]
    rounding = _rounding(q0, stencil, c * x.shape[0])
    return Probe(q0, D, curvature, lambda v: S @ v, lambda idx: S[idx], c, rounding, hessian)


def streamed_probe(
    key: Array, q: Oracle, x: Float[Array, " n"], stencil: Stencil, *, kind: Kind, chunk: int
) -> Probe:
    """Measures like `probe` with `[n, chunk]` directions in memory at a time, O(n) for large n.

    The directions are drawn in chunks, used, and forgotten; `lift` draws them again from the key.
    The result is that of `probe` for the same key, up to rounding. There is no box.

    Args:
        kind: one of `direction_sets.STREAMABLE`.
        chunk: directions at a time, a divisor of B.

    Raises:
        ValueError: if the stencil is out of range, the kind cannot be drawn in parts, or `chunk`
            does not divide B.
    """
    estimators.check_stencil(stencil)
    B, center_repeats = stencil.B, stencil.center_repeats
    if chunk < 1 or B % chunk:
        raise ValueError(f"chunk must divide the number of directions B = {B}, got {chunk}")
    n = x.shape[0]
    key_directions, key_noise, _ = jax.random.split(key, 3)
    keys = estimators.probe_keys(key_noise, stencil)
    keys_center, keys_outer = keys[:center_repeats], keys[center_repeats:]
    values = _streamed_values(
        q,
        key_directions,
        x,
        stencil.u,
        keys_outer.reshape(-1, B // chunk, chunk),
        kind=kind,
        central=stencil.central,
    )
    values = values.swapaxes(0, 1).reshape(-1, values.shape[-1])  # [sides * B, d]
    center = jnp.broadcast_to(x, (center_repeats, n))
    values = jnp.concatenate([estimators.evaluate(q, center, keys_center), values])
    q0, D, curvature = estimators.read_probe(values, stencil)
    D, curvature, measured = _drop_failed(D, curvature)

    def lift(v: Array) -> Array:
        again = jax.random.clone(key_directions)  # the same directions on purpose
        return _streamed_lift(again, x, (measured * v).reshape(-1, chunk), kind=kind)

    def no_rows(idx: Array) -> Array:
        raise ValueError("streamed directions have no rows; keep the box by bounds='clip'")

    c = direction_sets.scale(n, B, kind)
    return Probe(q0, D, curvature, lift, no_rows, c, _rounding(q0, stencil, c * n))


@functools.partial(jax.jit, static_argnames=("q", "kind", "central"))
def _streamed_values(
    q: Oracle, key: Array, x: Array, u: float | Array, keys: Array, *, kind: Kind, central: bool
) -> Float[Array, "chunks sides C d"]:
    """Evaluates q at x + u s, and at x - u s, chunk by chunk; `keys` `[sides, chunks, C]`."""
    sides, num_chunks, chunk = keys.shape
    impl = jax.random.key_impl(keys)
    data = jax.random.key_data(keys).swapaxes(0, 1)  # keys with their axes moved count as used
    draw = direction_sets.make_column_draw(key, x.shape[0], num_chunks * chunk, kind, x.dtype)
    stencil = Stencil(chunk, u, central)

    def measure(_: None, part: tuple[Array, Array]) -> tuple[None, Array]:
        idx, data = part
        points = estimators.probe_points(x, draw(idx), stencil)[1:]
        keys = jax.random.wrap_key_data(data, impl=impl).reshape(-1)
        values = estimators.evaluate(q, points, keys)
        return None, values.reshape(sides, chunk, -1)

    return jax.lax.scan(measure, None, (jnp.arange(num_chunks * chunk).reshape(-1, chunk), data))[1]


@functools.partial(jax.jit, static_argnames="kind")
def _streamed_lift(key: Array, x: Array, v: Array, *, kind: Kind) -> Float[Array, " n"]:
    """Returns S v, `v` `[chunks, C]`, with directions drawn again chunk by chunk."""
    draw = direction_sets.make_column_draw(key, x.shape[0], v.size, kind, x.dtype)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        idx, v = part
        return total + draw(idx) @ v, None

    idx = jnp.arange(v.size).reshape(v.shape)
    return jax.lax.scan(add, jnp.zeros_like(x), (idx, v))[0]


def plug_in(found: Probe, x: Float[Array, " n"]) -> Probe:
    """Turns directional derivatives into estimated gradients c D S', as if they were exact."""
    D = found.c * jax.vmap(found.lift)(found.D)
    return Probe(found.q0, D, None, lambda v: v, _unit_rows(x), 1.0, found.rounding)


def _drop_failed(D: Array, curvature: Array | None) -> tuple[Array, Array | None, Array]:
    """Zeroes the directions that were not measured; returns 1 for the others, `[B]`."""
    finite = jnp.isfinite(D).all(axis=0)
    if curvature is not None:
        curvature = jnp.where(finite[None], curvature, 0.0)
    return jnp.where(finite[None], D, 0.0), curvature, finite.astype(D.dtype)


def _rounding(q0: Array, stencil: Stencil, inflation: float | Array) -> Array:
    """Returns the length of c S d, where every difference has an error d of eps |q| / u.

    E|c S d|^2 = c n d^2 for each of the direction sets.
    """
    eps = float(jnp.finfo(q0.dtype).eps)
    return eps * jnp.abs(q0) / stencil.u * jnp.sqrt(jnp.asarray(inflation, q0.dtype))


def _unit_rows(x: Array) -> Callable[[Array], Array]:
    return lambda idx: jax.nn.one_hot(idx, x.shape[0], dtype=x.dtype)


def _as_metric(T: Array | Metric | None) -> Metric:
    if T is None:
        return lambda V: V
    return T if callable(T) else lambda V: T @ V


def _positive(values: Array, fill: float | Array, noise: float | Array) -> Array:
    rounding = 100.0 * float(jnp.finfo(values.dtype).eps) * jnp.max(jnp.abs(values))
    return jnp.where(values > jnp.maximum(noise, rounding), values, fill)
