"""The risk measure of any divergence: its tilt is found by exchange, and the divergence is checked.

A measure with a penalty D(p, probs) / beta is the largest p.x - D(p, probs) / beta over
distributions p. Mass goes from the outcome that gives it up most cheaply to the one that gains most
by it, as far as that pays, until no exchange does. Derivatives are taken from both sides of p, so
that kinks, such as those of the total variation at probs, do not stop it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.core.risk_measures import Measure, Parts

Divergence = Callable[[jax.Array, jax.Array], jax.Array]
"""`divergence(p, probs) -> []` of two distributions `[A]`."""
MAX_EXCHANGES = 2000


def measure_of(divergence: Divergence) -> Measure:
    """Makes the measure of a divergence, whose parameter is beta of either sign; 0 is the mean.

    Values must be finite where they have a probability, and no more probability goes elsewhere.
    """

    def one_value(x: jax.Array, probs: jax.Array, beta: jax.Array) -> jax.Array:
        # A pessimist is an optimist about the values turned around.
        sign = jnp.where(beta < 0.0, -1.0, 1.0).astype(x.dtype)
        p, _ = _exchange(divergence, sign * x, probs, jnp.abs(beta))
        safe = jnp.where(beta == 0.0, 1.0, beta)
        cost = jnp.where(beta == 0.0, 0.0, divergence(p, probs) / safe)
        return jnp.sum(p * jnp.where(probs > 0.0, x, 0.0)) - cost

    def one_parts(x: jax.Array, probs: jax.Array, beta: jax.Array) -> Parts:
        sign = jnp.where(beta < 0.0, -1.0, 1.0).astype(x.dtype)
        p, level = _exchange(divergence, sign * x, probs, jnp.abs(beta))
        safe = jnp.where(beta == 0.0, 1.0, beta)
        by_p, by_probs = jax.grad(divergence, argnums=(0, 1))(p, probs)
        # At p = probs D may have kinks. There x - dD/dp / beta is the level, which tells dD/dp, and
        # the sum of both derivatives has no kink.
        here = x - sign * level - (by_p + by_probs) / safe
        near = jnp.abs(p - probs) <= float(jnp.finfo(x.dtype).eps) ** 0.4 * probs
        weight = jnp.where(near, here, -by_probs / safe)
        weight = jnp.where(beta == 0.0, x, weight)
        weight = jnp.where(jnp.isfinite(weight), weight, 0.0)
        # How the value leaves the mean at beta = 0 is not told by the divergence: 0 stands there.
        slope = jnp.where(beta == 0.0, 0.0, divergence(p, probs) / safe / safe)
        return Parts(p, weight - jnp.sum(probs * weight), slope)

    def rows(one: Callable) -> Callable:
        def of(x: jax.Array, probs: jax.Array, beta: jax.Array, *_: Any) -> Any:
            flat = x.reshape(-1, x.shape[-1]), probs.reshape(-1, x.shape[-1])
            found = jax.vmap(one, in_axes=(0, 0, None))(*flat, beta)
            return jax.tree.map(lambda leaf: leaf.reshape(*x.shape[:-1], *leaf.shape[1:]), found)

        return of

    return Measure(rows(one_value), rows(one_parts))


def _floor(probs: jax.Array) -> jax.Array:
    """Where mass is all given away: above 0, so that logarithms of p are finite."""
    return 4.0 * float(jnp.finfo(probs.dtype).eps) * probs


def _exchange(
    divergence: Divergence, x: Float[Array, " A"], probs: Float[Array, " A"], beta: Float[Array, ""]
) -> tuple[Float[Array, " A"], Float[Array, ""]]:
    """Returns the p that maximizes p.x - D(p, probs) / beta, and its multiplier; beta >= 0."""
    A, eps = x.shape[0], float(jnp.finfo(x.dtype).eps)
    on = probs > 0.0
    safe = jnp.where(beta == 0.0, 1.0, beta)
    x = jnp.where(on, x, 0.0)
    spread = jnp.max(jnp.where(on, x, -jnp.inf)) - jnp.min(jnp.where(on, x, jnp.inf))
    unit = jnp.eye(A, dtype=x.dtype)

    def slope(p: jax.Array) -> jax.Array:
        return x - jax.grad(divergence)(p, probs) / safe

    def beside(p: jax.Array, by: jax.Array) -> jax.Array:
        """Each outcome's derivative, a little on one side of p."""
        shifted = jax.vmap(lambda e: jnp.sum(e * slope(p + by * e)))(unit)
        return jnp.where(jnp.isnan(shifted), 0.0, shifted)

    def look(p: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Who gains most, who gives most cheaply, and the derivatives of both."""
        gains = jnp.where(on, beside(p, eps**0.5 * probs), -jnp.inf)
        costs = jnp.where(p > _floor(probs), beside(p, -(eps**0.5) * p), jnp.inf)
        to, giver = jnp.argmax(gains), jnp.argmin(costs)
        return to, giver, gains[to], costs[giver]

    def unfinished(carry: tuple) -> jax.Array:
        _, (_, _, gain, cost), count = carry
        pays = (gain - cost > eps**0.75 * spread) & (beta > 0.0)
        return pays & (count < MAX_EXCHANGES)

    def once(carry: tuple) -> tuple:
        p, (to, giver, _, _), count = carry
        along = unit[to] - unit[giver]
        most = p[giver] - 0.5 * _floor(probs)[giver]

        def halve(_: Any, ends: tuple) -> tuple:
            low, high = ends
            middle = 0.5 * (low + high)
            pays = jnp.sum(along * slope(p + middle * along)) > 0.0
            return jnp.where(pays, middle, low), jnp.where(pays, high, middle)

        all_pays = jnp.sum(along * slope(p + most * along)) > 0.0
        low, high = jax.lax.fori_loop(
            0, 60 if x.dtype == jnp.float64 else 30, halve, (0.0 * most, most)
        )
        p = p + jnp.where(all_pays, most, 0.5 * (low + high)) * along
        return p, look(p), count + 1

    carry = (probs, look(probs), jnp.zeros((), jnp.int32))
    p, (_, _, gain, cost), _ = jax.lax.while_loop(unfinished, once, carry)
    return p, 0.5 * (gain + cost)


def check(divergence: Divergence, size: int) -> None:
    """Refuses what is no divergence, on distributions of `size` outcomes.

    Raises:
        ValueError: if D(p, probs) is not a finite scalar, is not 0 where both are equal, is
            negative, or is not convex in p.
    """
    rng = np.random.default_rng(0)
    p, q, r = rng.dirichlet(np.ones(size), (3, 32)).astype(np.float32) * 0.98 + 0.02 / size
    name = getattr(divergence, "__name__", "divergence")
    one = jax.ShapeDtypeStruct((size,), jnp.float32)
    try:
        seen = jax.eval_shape(divergence, one, one)
    except TypeError as error:
        raise ValueError(f"{name} must be a function of two distributions [A]: {error}") from error
    if getattr(seen, "shape", None) != () or not jnp.issubdtype(seen.dtype, jnp.floating):
        raise ValueError(f"{name} must give one number of two distributions [A], got {seen}")

    def of(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        with jax.ensure_compile_time_eval():
            return np.asarray(jax.vmap(divergence)(jnp.asarray(p), jnp.asarray(q)), np.float64)

    across, itself = of(p, q), of(q, q)
    slack = 1e-4 * max(1.0, float(np.max(np.abs(across), initial=0.0)))
    found = np.concatenate([across, itself])
    if not np.all(np.isfinite(found)):
        bad = found[~np.isfinite(found)][0]
        raise ValueError(f"{name} must be finite for probabilities above 0, got {bad}")
    if np.max(np.abs(itself)) > slack:
        raise ValueError(
            f"{name} must be 0 of equal distributions, got {itself[np.argmax(np.abs(itself))]:.3g}"
        )
    if np.min(across) < -slack:
        raise ValueError(f"{name} must not be negative, got {np.min(across):.3g}")
    over = of(0.5 * (p + r), q) - 0.5 * (across + of(r, q))
    if np.max(over) > slack:
        raise ValueError(
            f"{name} must be convex in its first argument, got {np.max(over):.3g} above the chord"
        )
