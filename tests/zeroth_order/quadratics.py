"""Small random problems with known structure, shared by the tests of this room."""

import numpy as np

from jaxlab.zeroth_order.problem import Problem
from jaxlab.zeroth_order.problems.curved_quadratics import CurvedQuadratic, curved_quadratic


def quadratic(
    seed: int, n: int = 5, m_eq: int = 2, m_ineq: int = 0, curved: float = 0.0
) -> Problem:
    """A strictly convex quadratic with affine constraints, bent by `curved` times |x|^2 / 2."""
    return curved_quadratic(_draw(seed, n, m_eq + m_ineq, curved), m_eq=m_eq)


def matrices(seed: int, n: int = 5, m_eq: int = 2, m_ineq: int = 0):
    """The matrices Q, c, J, d of `quadratic` with the same arguments."""
    data = _draw(seed, n, m_eq + m_ineq, 0.0)
    return data.Q, data.c, data.A, data.b


def _draw(seed: int, n: int, m: int, curved: float) -> CurvedQuadratic:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    c, A, b = rng.normal(size=n), rng.normal(size=(m, n)), rng.normal(size=m)
    r, x0 = curved * rng.uniform(0.5, 1.0, size=m), rng.normal(size=n)
    return CurvedQuadratic(root @ root.T / n + np.eye(n), c, r, A, b, x0)
