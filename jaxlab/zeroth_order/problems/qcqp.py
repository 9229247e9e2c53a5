"""A random cubic objective under random quadratic constraints.

Source: Zhang, Raghunathan, Shamma, Li (arXiv:2503.12665), numerical experiments and public code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.zeroth_order.problem import Problem, make_problem

R_SCALE = 0.01
"""Curvature of the constraints, R_i = R_SCALE G_i G_i'."""


class Coefficients(NamedTuple):
    """What is drawn of a problem: Q = Q_root Q_root', R_i = R_SCALE R_root[i] R_root[i]'.

    Attributes:
        Q_root: `[n, n]` standard normal.  c: `[n]` standard normal.
        R_root: `[m, n, n]` standard normal.  A: `[m, n]` standard normal, rows a_i.
        b: `[m]` absolute values of standard normals.
    """

    Q_root: Float[Array, "n n"]
    c: Float[Array, " n"]
    R_root: Float[Array, "m n n"]
    A: Float[Array, "m n"]
    b: Float[Array, " m"]


def random_qcqp(key: Array, *, n: int = 100, m: int = 5, inequality: bool = False) -> Problem:
    """Builds a random problem; pure in the key, so it may be built inside `vmap` over keys.

    f = sum_j x_j^3 / 3 + x'Qx / 2 + c'x, plus sum_j x_j in the inequality version, and
    h_i = x'R_i x / 2 + a_i'x + b_i = 0, or <= 0. The start x = 0 violates every constraint, by b_i.

    The cubic makes f unbounded below far from the start, and Q has eigenvalues close to 0. What is
    sought is the local minimum near 0 (at n = 100 its entries are below about 1), whose value has
    no formula: `f_star` is None.

    Args:
        key: typed PRNG key.
        n: number of variables.
        m: number of constraints, at most n.
        inequality: constraints h <= 0 instead of h = 0, and the linear term in f.

    Raises:
        ValueError: if n or m is out of range.

    Source: arXiv:2503.12665. The authors' script takes the scalar x'x for the cubic's gradient,
    which is no gradient; here it is x_j^2, elementwise.
    """
    if n < 1 or not 0 <= m <= n:
        raise ValueError(f"n must be at least 1 and m between 0 and n, got n = {n} and m = {m}")
    Q_root, c, R_root, A, b = draw_coefficients(key, n=n, m=m)

    def fun(x: Array) -> tuple[Array, Array]:
        # Full precision: a TF32 product would drown differences of nearby values. The factors G of
        # Q and G_i of R_i give x'Qx = ||G'x||^2 without an [n, n] product.
        Gx = jnp.matmul(x, Q_root, precision="highest")
        Gx_i = jnp.einsum("j,ijk->ik", x, R_root, precision="highest")
        f = jnp.sum(x**3) / 3.0 + 0.5 * jnp.sum(Gx**2) + jnp.sum(c * x)
        h = 0.5 * R_SCALE * jnp.sum(Gx_i**2, axis=1) + jnp.matmul(A, x, precision="highest") + b
        return (f + jnp.sum(x) if inequality else f), h

    name = "random QCQP, inequalities" if inequality else "random QCQP"
    return make_problem(fun, jnp.zeros_like(c), m_eq=0 if inequality else m, name=name)


def draw_coefficients(key: Array, *, n: int, m: int) -> Coefficients:
    """Draws the coefficients of `random_qcqp(key, n=n, m=m)`."""
    key_Q, key_c, key_R, key_A, key_b = jax.random.split(key, 5)
    return Coefficients(
        Q_root=jax.random.normal(key_Q, (n, n)),
        c=jax.random.normal(key_c, (n,)),
        R_root=jax.random.normal(key_R, (m, n, n)),
        A=jax.random.normal(key_A, (m, n)),
        b=jnp.abs(jax.random.normal(key_b, (m,))),
    )
