"""Projections onto the sphere and the Stiefel manifold: any dimension, optima in closed form.

Both objectives are half a squared distance to a random point z, scaled so that the multipliers,
the curvature and the optimal value per column stay of order 1 as the dimension grows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.zeroth_order import direction_sets
from jaxlab.zeroth_order.problem import Problem, make_problem


def sphere(n: int, key: Array) -> Problem:
    """Builds min ||x - z||^2 / 2 subject to ||x||^2 = 1, in O(n) memory.

    z is uniform on the sphere of radius 2, the start uniform on the unit sphere and independent of
    it. The minimizer is z / 2 = z / ||z||, with value 1/2 and multiplier 1/2, and a feasible x has
    f(x) - f_star = ||x - x_star||^2, about 2 at the start.

    Args:
        n: dimension, at least 2; 10^6 is fine.
        key: typed PRNG key, of z and of the start.

    Raises:
        ValueError: if n is below 2.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2 (two points are no sphere to move on), got {n}")
    key_z, key_start = jax.random.split(key)
    x_star, x0 = (_on_sphere(key_, n) for key_ in (key_z, key_start))
    z = 2.0 * x_star

    def fun(x: Array) -> tuple[Array, Array]:
        return 0.5 * jnp.sum((x - z) ** 2), jnp.sum(x**2)[None] - 1.0

    return make_problem(fun, x0, m_eq=1, f_star=0.5, x_star=x_star, name=f"sphere n={n}")


def stiefel(p: int, q: int, key: Array) -> Problem:
    """Builds min ||X - Z||_F^2 / 2 subject to X'X = I, X `[p, q]`.

    The constraints are the q (q + 1) / 2 entries of X'X - I on and above the diagonal, row by row.
    Z has independent normal entries of variance 4 / p, so its singular values s_i lie around 2; the
    start is a uniformly drawn feasible point. The minimizer is the polar factor U V' of Z = U s V',
    with value sum_i (s_i - 1)^2 / 2 (Fan and Hoffman 1955).

    Args:
        p: rows.
        q: columns, fewer than p (the orthogonal matrices, q = p, fall into two components).
        key: typed PRNG key, of Z and of the start.

    Returns:
        The problem over the flattened X; `problem.unravel` gives `[p, q]` back, and `f_star` is a
        scalar array.

    Raises:
        ValueError: if not 1 <= q < p.
    """
    if not 1 <= q < p:
        raise ValueError(f"q must be at least 1 and less than p, got p = {p} and q = {q}")
    key_z, key_start = jax.random.split(key)
    Z = 2.0 / p**0.5 * jax.random.normal(key_z, (p, q))
    U, s, Vt = jnp.linalg.svd(Z, full_matrices=False)
    X0, _ = direction_sets.directions(key_start, p, q, "orthonormal", Z.dtype)
    rows, columns = np.triu_indices(q)

    def fun(X: Array) -> tuple[Array, Array]:
        # Full precision: a TF32 product would drown differences of nearby values.
        gram = jnp.matmul(X.T, X, precision="highest")
        h = gram - jnp.eye(q, dtype=X.dtype)
        return 0.5 * jnp.sum((X - Z) ** 2), h[rows, columns]

    x_star = jnp.matmul(U, Vt, precision="highest")
    problem = make_problem(fun, X0, m_eq=q * (q + 1) // 2, x_star=x_star, name=f"Stiefel {p}x{q}")
    return problem._replace(f_star=0.5 * jnp.sum((s - 1.0) ** 2))


def _on_sphere(key: Array, n: int) -> Array:
    g = jax.random.normal(key, (n,))
    return g / jnp.linalg.norm(g)
