"""Small random problems with known structure, shared by the tests of this room."""

import jax.numpy as jnp
import numpy as np

from jaxlab.zeroth_order.problem import Problem, make_problem


def quadratic(
    seed: int, n: int = 5, m_eq: int = 2, m_ineq: int = 0, curved: float = 0.0
) -> Problem:
    """A strictly convex quadratic with affine constraints, bent by `curved` times |x|^2 / 2."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    Q, c = root @ root.T / n + np.eye(n), rng.normal(size=n)
    m = m_eq + m_ineq
    J, d = rng.normal(size=(m, n)), rng.normal(size=m)
    bend = curved * rng.uniform(0.5, 1.0, size=m)

    def fun(x):
        Q_, c_, J_, d_, bend_ = (jnp.asarray(v, x.dtype) for v in (Q, c, J, d, bend))
        return 0.5 * x @ Q_ @ x + c_ @ x, J_ @ x + d_ + 0.5 * bend_ * (x @ x)

    return make_problem(fun, jnp.asarray(rng.normal(size=n)), m_eq=m_eq)


def matrices(seed: int, n: int = 5, m_eq: int = 2, m_ineq: int = 0):
    """The matrices Q, c, J, d of `quadratic` with the same arguments."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    Q, c = root @ root.T / n + np.eye(n), rng.normal(size=n)
    m = m_eq + m_ineq
    return Q, c, rng.normal(size=(m, n)), rng.normal(size=m)
