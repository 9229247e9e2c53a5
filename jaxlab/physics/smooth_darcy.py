"""Darcy's equation with a smooth coefficient and closed walls; data obey the reward's stencils.

The data of PIDM (arXiv:2403.14404), 64 x 64 nodes in the paper.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jax.core import Tracer
from jaxtyping import Float

from jaxlab.physics import random_fields, stencils
from jaxlab.physics.benchmarks import product_rule
from jaxlab.physics.pde import Pde
from jaxlab.physics.stencils import Region, first_difference

CORNER = 0.125
"""Width of the squares where fluid is let in and out."""
SOURCE = 10.0
"""What comes in a unit of area there."""


def darcy64() -> Pde:
    """Makes -div(a grad p) = f, f = 10 in one corner and -10 in the opposite one, no flux at walls.

    Channels are a = exp(G) and p. The pressure is the least-squares solution of the residual's own
    stencils, found on the host, one field at a time. The released operator takes cells of 1 / S
    where nodes are 1 / (S - 1) apart.
    """

    def residual(fields: jax.Array, *, region: Region, repo_exact: bool) -> jax.Array:
        a, p = fields[..., 0], fields[..., 1]
        size = stencils.side(a)
        left = product_rule(a, p, 1.0 / (size if repo_exact else size - 1))
        f = jnp.asarray(source(size), a.dtype).reshape((1,) * (a.ndim - 2) + (size, size))
        return stencils.crop(left - f, region, rows=1, columns=1)

    def boundary(fields: jax.Array) -> jax.Array:
        a, p = fields[..., 0], fields[..., 1]
        steps = p.shape[-1] - 1
        down, across = (
            a * first_difference(p, 1.0 / steps, axis=axis, edges="one_sided") * steps
            for axis in (-2, -1)
        )
        sides = (down[..., 0, :], down[..., -1, :], across[..., :, 0], across[..., :, -1])
        return jnp.concatenate(sides, axis=-1)

    def solve(fields: jax.Array) -> jax.Array:
        if isinstance(fields, Tracer):
            raise ValueError("darcy64 is solved on the host; call its solver outside of jax.jit")
        a = np.asarray(fields[..., 0], np.float64)
        p = np.stack([pressure(one) for one in a.reshape(-1, *a.shape[-2:])])
        p = jnp.asarray(p.reshape(a.shape), fields.dtype)
        return jnp.stack([fields[..., 0], p], axis=-1)

    def generate(key: jax.Array, num: int, size: int) -> jax.Array:
        random_fields.require_x64("darcy64")
        modes = random_fields.expansion(size)
        weights = jax.random.normal(key, (num, modes.shape[0]), jnp.float64)
        a = jnp.exp(jnp.einsum("nk,kij->nij", weights, modes))
        return solve(jnp.stack([a, a], axis=-1))

    return Pde(
        name="Darcy64",
        channels=("a", "p"),
        scale=(1.0 / 23.0, 1.0 / 1.7),
        offset=(-1.0, 0.0),
        residual=residual,
        boundary=boundary,
        solve=solve,
        solution=(1,),
        generate=generate,
    )


def source(size: int) -> np.ndarray:
    """Returns the `[S, S]` source: 10 in the corner at 0, -10 in the one at 1."""
    x = np.linspace(0.0, 1.0, size)
    near, far = x <= CORNER + 1e-9, x >= 1.0 - CORNER - 1e-9
    return SOURCE * (np.outer(near, near).astype(float) - np.outer(far, far))


def pressure(a: Float[np.ndarray, "S S"]) -> Float[np.ndarray, "S S"]:
    """Returns the least-squares solution of residual, closed walls, and a mean of zero.

    The unknowns are the nodes; the mean is by the trapezoid rule. NaN where `a` is not positive.
    """
    size = a.shape[0]
    if not np.all(a > 0.0):
        return np.full_like(a, np.nan)
    step = 1.0 / (size - 1)
    d1, d2 = difference_matrices(size, step)
    one = scipy.sparse.identity(size)
    first = [scipy.sparse.kron(d1, one), scipy.sparse.kron(one, d1)]
    second = scipy.sparse.kron(d2, one) + scipy.sparse.kron(one, d2)
    flat = a.ravel()
    law = scipy.sparse.diags_array(flat) @ second
    for slope in first:
        law = law + scipy.sparse.diags_array(slope @ flat) @ slope
    node = np.arange(size**2).reshape(size, size)
    rows = [
        (first[0], node[0]),
        (first[0], node[-1]),
        (first[1], node[:, 0]),
        (first[1], node[:, -1]),
    ]
    walls = [scipy.sparse.diags_array(flat[at] / step) @ slope.tocsr()[at] for slope, at in rows]
    # Only differences enter: one node is held at 0, and the mean taken off afterwards. A row for
    # the mean would have the same solution, and fill the normal equations.
    held = scipy.sparse.csr_array(([1.0 / step], ([0], [0])), shape=(1, size**2))
    matrix = scipy.sparse.vstack([-law, *walls, held]).tocsc()
    right = np.concatenate([source(size).ravel(), np.zeros(4 * size + 1)])
    factors = scipy.sparse.linalg.splu(
        (matrix.T @ matrix).tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}
    )
    solved = factors.solve(matrix.T @ right).reshape(size, size)
    weight = np.ones(size)
    weight[[0, -1]] = 0.5
    return solved - weight @ solved @ weight * step**2


def difference_matrices(
    size: int, step: float
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Returns the `[S, S]` matrices of first and second differences, one-sided at the edge."""
    first, second = np.zeros((2, size, size))
    node = np.arange(1, size - 1)
    first[node, node - 1], first[node, node + 1] = -1.0, 1.0
    second[node, node - 1], second[node, node], second[node, node + 1] = 1.0, -2.0, 1.0
    first[0, :3], first[-1, -3:] = [-3.0, 4.0, -1.0], [1.0, -4.0, 3.0]
    second[0, :4], second[-1, -4:] = [2.0, -5.0, 4.0, -1.0], [-1.0, 4.0, -5.0, 2.0]
    return scipy.sparse.csr_array(first / (2.0 * step)), scipy.sparse.csr_array(second / step**2)
