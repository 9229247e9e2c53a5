"""Quadratic objectives on curved constraints, drawn by the thousand for one compiled program.

Source: derived; the constraints are spheres around different centers, so that an iterate which
moves along them leaves them at second order, as in arXiv:2509.24056.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.zeroth_order.problem import Problem, make_problem

Data = np.ndarray | Array


class CurvedQuadratic(NamedTuple):
    """The data of one problem, or of a batch of them with a leading axis `[I]` on every field.

    f = x'Q x / 2 + c'x and h_i = r_i |x|^2 / 2 + a_i'x + b_i.

    Attributes:
        Q: `[n, n]`, symmetric positive definite Hessian of f.
        c: `[n]`, slope of f at 0.
        r: `[m]`, curvature of each constraint.
        A: `[m, n]`, slopes a_i of the constraints at 0.
        b: `[m]`, values of the constraints at 0.
        x0: `[n]`, start, infeasible as a rule.
    """

    Q: Float[Data, "*I n n"]
    c: Float[Data, "*I n"]
    r: Float[Data, "*I m"]
    A: Float[Data, "*I m n"]
    b: Float[Data, "*I m"]
    x0: Float[Data, "*I n"]


def curved_quadratic(
    data: CurvedQuadratic, *, m_eq: int | None = None, f_star: float | None = None
) -> Problem:
    """Builds the problem of one instance; pure in the data, so it may be built inside `vmap`.

    ```python
    data = jax.tree.map(jnp.asarray, zo.draw_curved_quadratics(1000, seed=0))
    solve = lambda one, key: zo.run(zo.make_zofl(zo.curved_quadratic(one)), key, num_steps=200)[0]
    state = jax.jit(jax.vmap(solve))(data, jax.random.split(jax.random.key(0), 1000))
    ```

    Args:
        data: one instance, its arrays perhaps traced.
        m_eq: number of constraints that are equalities, the first ones; all of them when None.
        f_star: optimal value, if known.

    Raises:
        ValueError: if the shapes do not fit each other, as those of a whole batch do not.
    """
    n, m = data.x0.shape[-1], data.b.shape[-1]
    due = {"Q": (n, n), "c": (n,), "r": (m,), "A": (m, n), "b": (m,), "x0": (n,)}
    shapes = {name: np.shape(field) for name, field in data._asdict().items()}
    if shapes != due:
        raise ValueError(
            f"the data of one instance with n = {n} and m = {m} must have shapes {due}, got "
            f"{shapes}; build the problems of a batch under jax.vmap"
        )

    def fun(x: Array) -> tuple[Array, Array]:
        # Full precision: a TF32 product would drown differences of nearby values.
        Q, c, r, A, b = (jnp.asarray(field, x.dtype) for field in data[:-1])
        f = jnp.sum(x * (0.5 * jnp.matmul(Q, x, precision="highest") + c))
        return f, 0.5 * r * jnp.sum(x**2) + jnp.matmul(A, x, precision="highest") + b

    return make_problem(
        fun,
        jnp.asarray(data.x0),
        m_eq=m if m_eq is None else m_eq,
        f_star=f_star,
        name="curved quadratic",
    )


def draw_curved_quadratics(
    num_instances: int, *, n: int = 10, m: int = 3, seed: int = 0
) -> CurvedQuadratic:
    """Draws instances that have a feasible point, and starts near it, in NumPy and float64.

    The eigenvalues of Q lie between 1 and about 5, and every r_i between 0.1 and 0.5.

    Args:
        num_instances: number I of instances.
        n: number of variables.
        m: number of constraints, at most n.
        seed: seed of NumPy's default generator.

    Returns:
        The data, every field with a leading axis `[I]`.

    Raises:
        ValueError: if a number is below 1, or there are more constraints than variables.
    """
    if num_instances < 1 or not 1 <= m <= n:
        raise ValueError(
            "num_instances must be at least 1 and m between 1 and n, got num_instances = "
            f"{num_instances}, m = {m} and n = {n}"
        )
    random = np.random.default_rng(seed)
    size = (num_instances,)
    root = random.normal(size=(*size, n, n))
    feasible = random.normal(size=(*size, n))
    r = random.uniform(0.1, 0.5, size=(*size, m))
    A = random.normal(size=(*size, m, n))
    b = -np.einsum("imn,in->im", A, feasible) - 0.5 * r * (feasible**2).sum(-1, keepdims=True)
    return CurvedQuadratic(
        Q=root @ root.swapaxes(1, 2) / n + np.eye(n),
        c=random.normal(size=(*size, n)),
        r=r,
        A=A,
        b=b,
        x0=feasible + 0.3 * random.normal(size=(*size, n)),
    )
