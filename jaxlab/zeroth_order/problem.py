"""Constrained black-box problems: min f(x) subject to h_E(x) = 0, h_I(x) <= 0, lb <= x <= ub.

Source: Zhang, Zardini, Ozdaglar, Shamma, Li (arXiv:2509.24056), problem statement.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxlab.core.types import PyTree

Oracle = Callable[[Float[Array, " n"], Array], tuple[Float[Array, ""], Float[Array, " m"]]]
"""`q(x, key) -> (f, h)`: one joint query; the key is the source of its noise."""


class Problem(NamedTuple):
    """A black box and what is known about it; build one with `make_problem`.

    Constraints are stacked, equalities (`= 0`) first, then inequalities (`<= 0`).

    Attributes:
        q: `q(x, key) -> (f, h)`, one joint query of the objective `()` and the constraints `[m]`.
        x0: `[n]`, start.
        m_eq: number of equalities.  m_ineq: number of inequalities.
        lb: `[n]`, lower bounds, -inf where there is none.  ub: `[n]`, upper bounds.
        sigma: standard deviation of the noise on every value; 0 for a deterministic oracle.
        exact: `exact(x) -> (f, h)` without noise, or None for a genuine black box. Reports and
            first-order methods use it; a zeroth-order method never does.
        f_star: optimal or best known value, or None.  x_star: `[n]` a minimizer, or None.
        unravel: takes `[n]` back to the structure that the user's function has.
        name: short name for tables.
        feasibility_tol: largest violation of a point that counts as feasible, in the units of h.
            Every method orders the points it has measured by it.
        max_queries: most joint queries of a run, which then ends with the status `BUDGET_SPENT`, or
            None. The first update is made in any case.
    """

    q: Oracle
    x0: Float[Array, " n"]
    m_eq: int
    m_ineq: int
    lb: Float[Array, " n"]
    ub: Float[Array, " n"]
    sigma: float | Array = 0.0
    exact: Callable[[Array], tuple[Array, Array]] | None = None
    f_star: float | None = None
    x_star: Float[Array, " n"] | None = None
    unravel: Callable[[Array], PyTree] = lambda x: x
    name: str = ""
    feasibility_tol: float | Array = 1e-4
    max_queries: int | Array | None = None

    @property
    def n(self) -> int:
        """The number of variables."""
        return self.x0.shape[0]

    @property
    def m(self) -> int:
        """The number of constraints, bounds not counted."""
        return self.m_eq + self.m_ineq


def make_problem(
    fun: Callable[..., Any],
    x0: PyTree,
    *,
    m_eq: int = 0,
    lower: PyTree | float | None = None,
    upper: PyTree | float | None = None,
    takes_key: bool = False,
    sigma: float | Array = 0.0,
    feasibility_tol: float | Array = 1e-4,
    max_queries: int | Array | None = None,
    f_star: float | None = None,
    x_star: PyTree | None = None,
    name: str = "",
) -> Problem:
    """Wraps a black box over any pytree as a `Problem` over a flat vector.

    Args:
        fun: `fun(x) -> (f, h)`, or `fun(x, key) -> (f, h)` with `takes_key`: objective `()` and
            constraints `[m]`, the first `m_eq` of them equalities. A function that returns f alone
            has no constraints (m = 0): every method then is its unconstrained form.
        x0: start, a pytree of finite floating arrays inside the bounds.
        m_eq: number of equalities.
        lower: lower bounds, a scalar or a pytree like `x0`; -inf or None where there are none.
        upper: upper bounds likewise.
        takes_key: `fun` is noisy and draws from the key it is given.
        sigma: standard deviation of that noise, which chooses default radii and gains.
        feasibility_tol: largest violation of a point that counts as feasible, in the units of h.
        max_queries: most joint queries of a run, at least 1; None for no limit.
        f_star: optimal value, if known.  x_star: a minimizer like `x0`, if known.
        name: short name for tables.

    Raises:
        ValueError: if `x0` is not finite, not floating or outside the bounds, a bound has another
            structure, `sigma` or `feasibility_tol` is negative, `max_queries` is below 1, `fun`
            does not return `(scalar, vector)`, or it has fewer than `m_eq` constraints.
    """
    dtypes = {leaf.dtype for leaf in map(jnp.asarray, jax.tree.leaves(x0))}
    if not dtypes or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(f"x0 must hold floating arrays, got {sorted(map(str, dtypes))}")
    check_level(sigma, "sigma")
    check_tolerance(feasibility_tol)
    check_budget(max_queries)
    start, unravel = ravel_pytree(x0)
    lb = _bound(lower, -jnp.inf, x0, start, "lower")
    ub = _bound(upper, jnp.inf, x0, start, "upper")
    check_start(start, lb, ub)

    # Compiled by itself too: a function that loops would otherwise be compiled at every plain call.
    @jax.jit
    def q(x: Array, key: Array) -> tuple[Array, Array]:
        value = fun(unravel(x), key) if takes_key else fun(unravel(x))
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        f, h = value if pair else (value, jnp.zeros((0,), start.dtype))
        return jnp.asarray(f, start.dtype), jnp.asarray(h, start.dtype)

    m = count_constraints(q, start)
    if not hasattr(m_eq, "__index__") or not 0 <= m_eq <= m:
        raise ValueError(
            f"m_eq must be an integer between 0 and the {m} constraints returned, got {m_eq}"
        )
    exact = None if takes_key else lambda x: q(x, jax.random.key(0))
    if x_star is not None:
        x_star = ravel_pytree(x_star)[0].astype(start.dtype)
    return Problem(
        q=q,
        x0=start,
        m_eq=m_eq,
        m_ineq=m - m_eq,
        lb=lb,
        ub=ub,
        sigma=sigma,
        feasibility_tol=feasibility_tol,
        max_queries=max_queries,
        exact=exact,
        f_star=f_star,
        x_star=x_star,
        unravel=unravel,
        name=name,
    )


def check_level(level: float | Array, name: str) -> None:
    """Checks a level of noise or a tolerance; what is traced passes.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if isinstance(level, Tracer):
        return
    values = np.asarray(level)
    if not np.all((values >= 0.0) & np.isfinite(values)):
        raise ValueError(f"{name} must be at least 0 and finite, got {level}")


def check_tolerance(feasibility_tol: float | Array) -> None:
    """Checks a tolerance on the violation.

    Raises:
        ValueError: if it is negative, not finite, or not one number.
    """
    if np.shape(feasibility_tol) != ():
        raise ValueError(
            f"feasibility_tol must be one number, got shape {np.shape(feasibility_tol)}; it is "
            "compared with the largest violation, so divide the constraints by their own scales"
        )
    check_level(feasibility_tol, "feasibility_tol")


def check_budget(max_queries: int | Array | None) -> None:
    """Checks a concrete number of queries.

    Raises:
        ValueError: if it is not an integer of at least 1.
    """
    if max_queries is None or isinstance(max_queries, Tracer):
        return
    if not hasattr(max_queries, "__index__") or not 1 <= int(max_queries) < 2**31:
        raise ValueError(
            f"max_queries must be an integer between 1 and 2^31 - 1, got {max_queries!r}; leave it "
            "out for no limit"
        )


def check_start(x0: Array, lb: Array, ub: Array) -> None:
    """Checks what is concrete of a start and its bounds.

    Raises:
        ValueError: if a value is not finite or outside the bounds, or bounds are reversed.
    """
    if any(isinstance(value, Tracer) for value in (x0, lb, ub)):
        return
    start, low, high = (np.asarray(value) for value in (x0, lb, ub))
    if not np.isfinite(start).all():
        where = np.flatnonzero(~np.isfinite(start))[:5].tolist()
        raise ValueError(f"x0 must be finite, got {start[where].tolist()} at {where}")
    if not (low <= high).all():
        where = np.flatnonzero(~(low <= high))[:5].tolist()
        raise ValueError(f"lower must not exceed upper, it does at {where}")
    if not ((low <= start) & (start <= high)).all():
        where = np.flatnonzero(~((low <= start) & (start <= high)))[:5].tolist()
        raise ValueError(
            f"x0 must lie within its bounds, it does not at {where}; project it with jnp.clip"
        )


def count_constraints(q: Oracle, x0: Array) -> int:
    """Returns m, the number of constraints `q` returns, without evaluating it.

    Raises:
        ValueError: if `q` does not return a scalar and a vector.
    """
    f, h = jax.eval_shape(q, x0, jax.random.key(0))
    if f.shape != () or len(h.shape) != 1:
        raise ValueError(
            f"a query must return (f, h) with f a scalar and h a vector, got shapes {f.shape} and "
            f"{h.shape}"
        )
    return h.shape[0]


def exact_of(problem: Problem) -> Callable[[Array], tuple[Array, Array]]:
    """Returns `exact` of a problem whose values without noise are known.

    Raises:
        ValueError: if it is a black box.
    """
    if problem.exact is None:
        raise ValueError(f"problem {problem.name!r} is a black box, its `exact` is None")
    return problem.exact


def f_star_of(problem: Problem) -> float:
    """Returns the optimal value of a problem where it is known.

    Raises:
        ValueError: if it is not.
    """
    if problem.f_star is None:
        raise ValueError(f"problem {problem.name!r} has no known optimum, its `f_star` is None")
    return problem.f_star


def as_inequalities(problem: Problem) -> Problem:
    """Returns the problem with each equality h = 0 as the pair h <= 0, -h <= 0."""

    def split(value: tuple[Array, Array]) -> tuple[Array, Array]:
        f, h = value
        h_eq, h_ineq = h[: problem.m_eq], h[problem.m_eq :]
        return f, jnp.concatenate([h_eq, -h_eq, h_ineq])

    exact = problem.exact
    return problem._replace(
        q=lambda x, key: split(problem.q(x, key)),
        exact=None if exact is None else lambda x: split(exact(x)),
        m_eq=0,
        m_ineq=2 * problem.m_eq + problem.m_ineq,
    )


def scaled(problem: Problem) -> Problem:
    """Returns the problem with f and every h_i divided by max(1, |value at the start|).

    The scale is measured with one query at `x0` (of `exact` where there is one). Each value has its
    own scale, so add noise to the scaled problem and not before: `sigma` is left as it is, and
    `feasibility_tol` then counts scaled violations.
    """
    if problem.exact is not None:
        f0, h0 = problem.exact(problem.x0)
    else:
        f0, h0 = problem.q(problem.x0, jax.random.key(0))
    f_scale, h_scale = jnp.maximum(1.0, jnp.abs(f0)), jnp.maximum(1.0, jnp.abs(h0))

    def divide(value: tuple[Array, Array]) -> tuple[Array, Array]:
        return value[0] / f_scale, value[1] / h_scale

    exact = problem.exact
    return problem._replace(
        q=lambda x, key: divide(problem.q(x, key)),
        exact=None if exact is None else lambda x: divide(exact(x)),
        f_star=None if problem.f_star is None else problem.f_star / f_scale,
    )


def from_host(fun: Callable[[np.ndarray], Any], m: int) -> Callable[[Array], tuple[Array, Array]]:
    """Makes a function over JAX arrays of host code (a simulator, a remote call).

    The calls of a batch run one after another. Wrap the result with `make_problem`. For float64
    switch x64 on for the process: the context manager does not reach the callback's thread.

    Args:
        fun: `fun(x) -> (f, h)` on NumPy arrays; anything that NumPy can convert.
        m: number of constraints that it returns.
    """

    def on_device(x: Float[Array, " n"]) -> tuple[Array, Array]:
        def call(values: Any) -> tuple[np.ndarray, np.ndarray]:
            f, h = fun(np.asarray(values))
            return np.asarray(f, x.dtype), np.asarray(h, x.dtype).reshape(m)

        shapes = (jax.ShapeDtypeStruct((), x.dtype), jax.ShapeDtypeStruct((m,), x.dtype))
        return jax.pure_callback(call, shapes, x, vmap_method="sequential")

    return on_device


def _bound(bound: PyTree, default: float, x0: PyTree, start: Array, name: str) -> Any:
    """Flattens a bound, in NumPy unless it is traced: bounds stay concrete inside jit."""
    if bound is None or (not isinstance(bound, (dict, list, tuple)) and np.ndim(bound) == 0):
        bound = jax.tree.map(lambda _: default if bound is None else bound, x0)
    if jax.tree.structure(bound) != jax.tree.structure(x0):
        raise ValueError(
            f"{name} must be a scalar or have the structure of x0, "
            f"{jax.tree.structure(x0)}, got {jax.tree.structure(bound)}"
        )
    leaves = jax.tree.leaves(bound)
    xp = jnp if any(isinstance(leaf, Tracer) for leaf in leaves) else np
    filled = [
        xp.broadcast_to(xp.asarray(leaf, start.dtype), np.shape(x)).reshape(-1)
        for leaf, x in zip(leaves, jax.tree.leaves(x0), strict=True)
    ]
    return xp.concatenate(filled)
