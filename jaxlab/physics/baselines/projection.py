"""Projection: sampled fields are moved onto the law, by a solver or by Gauss and Newton."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.learning import settings as settings_lib
from jaxlab.physics import pde as pde_lib
from jaxlab.physics.pde import Pde
from jaxlab.physics.stencils import Region


def solved(pde: Pde, x: Float[Array, "... H W C"]) -> Float[Array, "... H W C"]:
    """Returns fields whose solution is the solver's, given what else was sampled.

    An upper bound of what physics can be had: coefficients and sources keep the base's errors.

    Raises:
        ValueError: if the law has no solver.
    """
    if pde.solve is None:
        raise ValueError(f"{pde.name} has no solver to project with; take gauss_newton")
    return pde_lib.normalize(pde, pde.solve(pde_lib.post(pde, x)))


def gauss_newton(
    pde: Pde,
    x: Float[Array, "H W C"],
    *,
    num_iterations: int = 3,
    num_products: int = 300,
    damping: float = 1e-6,
    region: Region = "interior",
    repo_exact: bool = False,
) -> Float[Array, "H W C"]:
    """Moves a field by the shortest way to R = 0 and, where the edge prescribes, B = 0.

    Each iteration solves (J J' + damping mean diag) y = c by conjugate gradients, c = (R, B), and
    takes x - J' y. Where the law is linear, one iteration is the orthogonal projection.

    Args:
        pde: the law.
        x: `[H, W, C]`, a normalized field; `jax.vmap` for several.
        num_iterations: Gauss-Newton steps.
        num_products: products with J J' in each, at most.
        damping: share of the mean square of a row of J.
        region, repo_exact: see `pde.residual`.

    Raises:
        ValueError: if a number is out of range.
    """
    settings_lib.check_count(num_iterations, "num_iterations")
    settings_lib.check_count(num_products, "num_products")
    if not 0.0 <= damping < np.inf:
        raise ValueError(f"damping must be finite and not negative, got {damping}")

    def constraint(x: jax.Array) -> jax.Array:
        left = pde_lib.residual(pde, x, region=region, repo_exact=repo_exact).reshape(-1)
        if pde.boundary is None:
            return left
        return jnp.concatenate([left, pde.boundary(pde_lib.post(pde, x)).reshape(-1)])

    def iterate(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        left, forward = jax.linearize(constraint, x)
        backward = jax.linear_transpose(forward, x)
        # |J' v|^2 of random signs v is the trace of J J'.
        signs = jax.random.rademacher(jax.random.key(0), left.shape, left.dtype)
        row = jnp.sum(backward(signs)[0] ** 2) / left.size

        def product(y: jax.Array) -> jax.Array:
            return forward(backward(y)[0]) + damping * row * y

        y, _ = jax.scipy.sparse.linalg.cg(product, left, tol=1e-7, maxiter=num_products)
        return x - backward(y)[0], None

    return jax.lax.scan(iterate, x, length=num_iterations)[0]
