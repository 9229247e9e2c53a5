"""Gradients and Jacobians from function values: one-point and two-point differences.

The same directions and the same queries serve the objective and every constraint. Everything here
is a pure function that works alone, for an oracle with m = 0 constraints too. Stacked values are
q = (f, h), `[1 + m]`; source: arXiv:2509.24056, section on estimation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxlab.zeroth_order.problem import Oracle


class Stencil(NamedTuple):
    """The queries of one probe: where they lie around a point, and which share their noise.

    Attributes:
        B: Number of directions.
        u: Radius of the differences, positive.
        central: Differences of x + u s and x - u s, error O(u^2); of x + u s and x otherwise, with
            half the queries and error O(u).
        center_repeats: Number of queries of x, whose mean is its value.
        common_noise: Whether x + u s and x - u s (forward: x) share their key, for oracles that are
            smooth in x at a fixed key (common random numbers).
    """

    B: int
    u: float | Array
    central: bool = True
    center_repeats: int = 1
    common_noise: bool = False

    @property
    def num_queries(self) -> int:
        """The joint queries of a probe."""
        return self.center_repeats + (2 * self.B if self.central else self.B)


def evaluate(q: Oracle, points: Float[Array, "Q n"], keys: Array) -> Float[Array, "Q d"]:
    """Evaluates Q joint queries in one batch, `[Q, 1 + m]`, each with its own key `[Q]`."""

    def stacked(x: Array, key: Array) -> Array:
        f, h = q(x, key)
        return jnp.concatenate([f[None], h])

    return jax.vmap(stacked)(points, keys)


def two_point(
    q: Oracle,
    x: Float[Array, " n"],
    S: Float[Array, "n B"],
    u: float | Array,
    key: Array,
    *,
    central: bool = True,
    S_minus: Float[Array, "n B"] | None = None,
    center_repeats: int = 1,
    common_noise: bool = False,
) -> tuple[Float[Array, " d"], Float[Array, "d B"], int]:
    """Measures q at x and its differences along the columns of S.

    Central: D_b = [q(x + u s_b) - q(x - u s_b)] / 2u; forward: D_b = [q(x + u s_b) - q(x)] / u.

    Args:
        q: the oracle.
        x: `[n]`.
        S: `[n, B]` directions, as they are (scale them with c in `gradient`).
        u: radius, positive.
        key: source of the oracle's noise.
        central, center_repeats, common_noise: see `Stencil`.
        S_minus: `[n, B]`, the backward directions when they differ (see `within_box`); the
            differences then belong to the directions (S + S_minus) / 2.

    Returns:
        `(q0, D, queries)`: values `[1 + m]` at x, differences `[1 + m, B]`, and the joint queries
        made, `center_repeats` + 2B or + B.

    Raises:
        ValueError: if u or `center_repeats` is not positive, or shapes do not match.
    """
    stencil = Stencil(S.shape[-1], u, central, center_repeats, common_noise)
    check_stencil(stencil)
    points = probe_points(x, S, stencil, S_minus=S_minus)
    q0, D, _ = read_probe(evaluate(q, points, probe_keys(key, stencil)), stencil)
    return q0, D, stencil.num_queries


def one_point(
    q: Oracle,
    x: Float[Array, " n"],
    S: Float[Array, "n B"],
    u: float | Array,
    key: Array,
    *,
    baseline: Float[Array, " d"] | None = None,
) -> tuple[Float[Array, "d B"], int]:
    """Measures D_b = [q(x + u s_b) - baseline] / u with B queries and none at x.

    Without a baseline it is the one-point estimator of Flaxman, Kalai and McMahan 2005, unbiased
    for the smoothed gradient with a variance of order |q|^2 / u^2; the values of the previous step
    as `baseline` give the residual feedback of Zhang, Zhou, Ji and Zavlanos 2022.

    Returns:
        `(D, queries)`: `[1 + m, B]` and B.
    """
    check_radius(u)
    B = S.shape[1]
    values = evaluate(q, x[None] + u * S.T, jax.random.split(key, B))
    return ((values if baseline is None else values - baseline[None]) / u).T, B


def gradient(S: Float[Array, "n B"], c: float, D: Float[Array, "d B"]) -> Float[Array, "d n"]:
    """Returns the estimated Jacobian c D S' of the stacked values; row 0 is the gradient of f."""
    return c * jnp.matmul(D, S.T, precision="highest")


def balanced_radius(
    sigma: float | Array, n: int, B: int, third_derivative: float | Array = 1.0
) -> float | Array:
    """Returns the radius at which noise and bias of central differences balance.

    (sigma n / (sqrt(B) L3))^(1/3), for value noise `sigma` and third derivatives up to L3.
    """
    return (sigma * n / (B**0.5 * third_derivative)) ** (1.0 / 3.0)


def noise_variance(sigma: float | Array, u: float | Array, n: int, B: int) -> float | Array:
    """Returns E||g - g_noiseless||^2 of the central estimate on the sphere: n^2 s^2 / (2 u^2 B)."""
    return n**2 * sigma**2 / (2.0 * u**2 * B)


def within_box(
    x: Float[Array, " n"],
    S: Float[Array, "n B"],
    u: float | Array,
    lb: Float[Array, " n"],
    ub: Float[Array, " n"],
    *,
    central: bool = True,
) -> tuple[Float[Array, "n B"], Float[Array, "n B"]]:
    """Bends directions so that no query leaves the box: one-sided differences at the bounds.

    Args:
        x: `[n]`, inside the box.  S: `[n, B]`.  u: radius.  lb, ub: `[n]`, the box.
        central: the differences of x + u S_plus and x - u S_minus belong to
            (S_plus + S_minus) / 2, which is S again: what one side lacks the other has more, unless
            the box is thinner than 2u |S|. Forward differences use S_plus alone: a component that
            would leave the box is turned round.

    Returns:
        `(S_plus, S_minus)`, both `[n, B]`.
    """
    x, lb, ub = x[:, None], lb[:, None], ub[:, None]
    if not central:
        S = jnp.where((x + u * S > ub) | (x + u * S < lb), -S, S)

    def kept(S: Array, sign: float) -> Array:
        """Cuts directions to the box; those inside it stay exactly as they are."""
        point = x + sign * u * S
        return jnp.where((point >= lb) & (point <= ub), S, sign * (jnp.clip(point, lb, ub) - x) / u)

    S_plus = kept(S, 1.0)
    if not central:
        return S_plus, S_plus
    S_minus = kept(2.0 * S - S_plus, -1.0)
    return kept(2.0 * S - S_minus, 1.0), S_minus


def probe_points(
    x: Float[Array, " n"],
    S: Float[Array, "n B"],
    stencil: Stencil,
    *,
    S_minus: Float[Array, "n B"] | None = None,
) -> Float[Array, "Q n"]:
    """Returns the points that a probe evaluates, `[Q, n]`: centres, forward, backward."""
    if S.ndim != 2 or x.shape != S.shape[:1] or (S_minus is not None and S_minus.shape != S.shape):
        other = "" if S_minus is None else f" and S_minus {S_minus.shape}"
        raise ValueError(f"x [n] and S [n, B] must agree, got {x.shape} and {S.shape}{other}")
    centers = jnp.broadcast_to(x, (stencil.center_repeats, x.size))
    parts = [centers, x[None] + stencil.u * S.T]
    if stencil.central:
        parts.append(x[None] - stencil.u * (S if S_minus is None else S_minus).T)
    return jnp.concatenate(parts)


def probe_keys(key: Array, stencil: Stencil) -> Array:
    """Returns a key for each of the `probe_points`, `[Q]`."""
    key_center, key_plus, key_minus = jax.random.split(key, 3)
    if stencil.common_noise and not stencil.central:
        # The centre is the partner of every forward point.
        return jnp.broadcast_to(key_center, (stencil.num_queries,))
    plus = jax.random.split(key_plus, stencil.B)
    parts = [jax.random.split(key_center, stencil.center_repeats), plus]
    if stencil.central:
        parts.append(
            jax.random.clone(plus)
            if stencil.common_noise
            else jax.random.split(key_minus, stencil.B)
        )
    return jnp.concatenate(parts)


def read_probe(
    values: Float[Array, "Q d"], stencil: Stencil
) -> tuple[Float[Array, " d"], Float[Array, "d B"], Float[Array, "d B"] | None]:
    """Returns centre `[d]`, differences and curvatures `[d, B]` from the values at the points.

    The curvature [q(x + u s) - 2 q(x) + q(x - u s)] / u^2 estimates s' H s; None if not central.
    """
    B, u = stencil.B, stencil.u
    q0 = jnp.mean(values[: stencil.center_repeats], axis=0)
    if not stencil.central:
        return q0, (values[-B:] - q0[None]).T / u, None
    plus, minus = values[-2 * B : -B], values[-B:]
    return q0, (plus - minus).T / (2.0 * u), (plus - 2.0 * q0[None] + minus).T / u**2


def check_stencil(stencil: Stencil) -> None:
    """Checks what is concrete of a stencil.

    Raises:
        ValueError: if it is no `Stencil`, its radius is not positive and finite, or it repeats the
            query of the centre less than once.
    """
    if not isinstance(stencil, Stencil):
        raise ValueError(
            f"stencil must be a Stencil, got {type(stencil).__name__}; write Stencil(B, u) with "
            "the number of directions and the radius"
        )
    check_radius(stencil.u)
    if stencil.center_repeats < 1:
        raise ValueError(f"center_repeats must be at least 1, got {stencil.center_repeats}")


def check_radius(u: float | Array) -> None:
    """Checks a concrete radius.

    Raises:
        ValueError: if it is not positive and finite.
    """
    if not isinstance(u, Tracer) and not np.all((np.asarray(u) > 0.0) & np.isfinite(np.asarray(u))):
        raise ValueError(f"the radius u must be positive and finite, got {u}")
