"""Noise models: each wraps a problem, so that its queries come back perturbed.

A wrapper perturbs the stacked values q = (f, h) of a query and keeps `exact`. Wrappers compose, the
innermost acts first; each splits the query's key, so that its draws are independent of those of
the problem it wraps, and the same key gives the same perturbation at every x (common random
numbers). Levels may be traced: one program serves a sweep over them. Scale a problem before it is
made noisy, `with_noise(scaled(problem), sigma)`: scaling divides the noise as well.

Source: arXiv:2509.24056, noisy two-point queries of objective and constraints.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.zeroth_order.problem import Problem, check_level

Perturb = Callable[[Array, Float[Array, " d"]], Float[Array, " d"]]


def with_noise(problem: Problem, sigma: float | Array) -> Problem:
    """Adds independent N(0, sigma^2) to f and to every h_i.

    Args:
        problem: the problem.
        sigma: standard deviation, at least 0; 0 leaves every value as it is.

    Returns:
        The noisy problem; its `sigma` is that of the sum with the noise already there.

    Raises:
        ValueError: if a concrete sigma is negative or not finite.
    """
    check_level(sigma, "sigma")

    def perturb(key: Array, values: Array) -> Array:
        z = jax.random.normal(key, values.shape, values.dtype)
        return values + jnp.asarray(sigma, values.dtype) * z

    return _perturbed(problem, perturb, _total(problem, sigma))


def with_relative_noise(problem: Problem, sigma: float | Array) -> Problem:
    """Multiplies f and every h_i by an independent 1 + N(0, sigma^2).

    The `sigma` of the result counts the noise of a value of size 1, which is what `scaled` makes of
    large values at the start.

    Args:
        problem: the problem.
        sigma: relative standard deviation, at least 0.

    Raises:
        ValueError: if a concrete sigma is negative or not finite.
    """
    check_level(sigma, "sigma")

    def perturb(key: Array, values: Array) -> Array:
        z = jax.random.normal(key, values.shape, values.dtype)
        return values * (1.0 + jnp.asarray(sigma, values.dtype) * z)

    return _perturbed(problem, perturb, _total(problem, sigma))


def with_student_noise(problem: Problem, sigma: float | Array, df: float | Array = 3.0) -> Problem:
    """Adds independent heavy-tailed noise, Student's t with `df` degrees of freedom.

    For df > 2 it is scaled to the standard deviation sigma. For df <= 2 there is none (df = 1 is
    the Cauchy law), and sigma is the scale parameter.

    Args:
        problem: the problem.
        sigma: standard deviation, or scale, at least 0.
        df: degrees of freedom, positive.

    Raises:
        ValueError: if a concrete sigma is negative or a concrete df not positive, or not finite.
    """
    check_level(sigma, "sigma")
    if isinstance(df, (int, float)) and not 0.0 < df < math.inf:
        raise ValueError(f"df must be positive and finite, got {df}; use with_noise for df = inf")

    def perturb(key: Array, values: Array) -> Array:
        nu = jnp.asarray(df, values.dtype)
        # Var t = nu / (nu - 2), where it exists.
        unit = jnp.where(nu > 2.0, jnp.sqrt(jnp.maximum(nu - 2.0, 0.0) / nu), 1.0)
        t = jax.random.t(key, nu, values.shape, values.dtype)
        return values + jnp.asarray(sigma, values.dtype) * unit * t

    return _perturbed(problem, perturb, _total(problem, sigma))


def with_quantization(problem: Problem, step: float | Array) -> Problem:
    """Rounds f and every h_i to a multiple of `step`, as a printed or sensed value is.

    Rounding is no noise, but differences see it as one of standard deviation step / sqrt(12), the
    spread of a uniform error, and `sigma` counts it so.

    Args:
        problem: the problem.
        step: distance of neighboring values, at least 0; 0 leaves every value as it is.

    Raises:
        ValueError: if a concrete step is negative or not finite.
    """
    check_level(step, "step")

    def perturb(key: Array, values: Array) -> Array:
        del key
        grid = jnp.asarray(step, values.dtype)
        safe = jnp.where(grid > 0.0, grid, 1.0)
        return jnp.where(grid > 0.0, jnp.round(values / safe) * safe, values)

    return _perturbed(problem, perturb, _total(problem, step / 12.0**0.5))


def with_failures(problem: Problem, probability: float | Array) -> Problem:
    """Makes a query fail with a given probability: f and every h_i are then NaN.

    Args:
        problem: the problem.
        probability: of a failure, in [0, 1], independent between queries.

    Raises:
        ValueError: if a concrete probability is outside [0, 1].
    """
    if isinstance(probability, (int, float)) and not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must be in [0, 1], got {probability}")

    def perturb(key: Array, values: Array) -> Array:
        failed = jax.random.uniform(key, (), values.dtype) < probability
        return jnp.where(failed, jnp.full_like(values, jnp.nan), values)

    return _perturbed(problem, perturb, problem.sigma)


def _perturbed(problem: Problem, perturb: Perturb, sigma: float | Array) -> Problem:
    def q(x: Array, key: Array) -> tuple[Array, Array]:
        key_inner, key_noise = jax.random.split(key)
        f, h = problem.q(x, key_inner)
        values = perturb(key_noise, jnp.concatenate([f[None], h]))
        return values[0], values[1:]

    return problem._replace(q=q, sigma=sigma)


def _total(problem: Problem, sigma: float | Array) -> float | Array:
    """Returns the standard deviation with an independent term added; a float where both are."""
    if isinstance(problem.sigma, (int, float)) and isinstance(sigma, (int, float)):
        return math.hypot(problem.sigma, sigma)
    dtype = problem.x0.dtype
    return jnp.hypot(jnp.asarray(problem.sigma, dtype), jnp.asarray(sigma, dtype))
