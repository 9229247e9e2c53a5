"""SafeOpt: safe Bayesian optimization on a grid, for problems of few variables.

Every function has a Gaussian-process model with a fixed kernel. A grid point is safe where the
upper confidence bound of every constraint is at most 0; the next query is the least known safe
point among those that may be optimal (maximizers of the gain, here minimizers of f) and those
whose measurement may enlarge the safe set (expanders). Sources: Sui, Gotovos, Burdick and Krause,
"Safe exploration for optimization with Gaussian processes" (ICML 2015); Berkenkamp, Krause and
Schoellig, "Bayesian optimization with safety constraints" (arXiv:1602.04450), whose form without
Lipschitz constants is used.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import estimators, method
from jaxlab.zeroth_order.baselines import barrier, lagrangian
from jaxlab.zeroth_order.method import Proposal
from jaxlab.zeroth_order.problem import Problem

MAX_VARIABLES = 4
"""A grid is hopeless beyond."""
GRID_POINTS = 1024
"""Most grid points by default."""


class Memory(NamedTuple):
    """The measurements: points X `[N, n]`, values Y `[N, 1 + m]`, the first `count` rows valid;
    and the share of the candidates that they show to be safe."""

    X: Float[Array, "N n"]
    Y: Float[Array, "N d"]
    count: Int[Array, ""]
    share: Float[Array, ""]


class Posterior(NamedTuple):
    """A Gaussian process after measurements.

    Attributes:
        mean: `[G]`.  variance: `[G]`, of the function, without noise.
        white: `[N, G]`; the covariance is that of the prior less white' white.
    """

    mean: Float[Array, " G"]
    variance: Float[Array, " G"]
    white: Float[Array, "N G"]


def make_safeopt(
    problem: Problem,
    *,
    lengthscale: float | Array = 0.3,
    amplitude: float | Array = 1.0,
    beta: float | Array = 2.0,
    capacity: int = 64,
    resolution: int | None = None,
) -> Algorithm:
    """Makes SafeOpt; one query a step, `capacity` queries in all.

    The iterate is the point to be queried next, so that every iterate and every query is safe as
    far as the model holds: a function drawn from the prior obeys each confidence bound with the
    probability of `beta` standard deviations. The last query goes to the best safe point, the one
    with the least upper bound of f, and there the iterate stays without further queries. Without
    noise a known point is never measured again: when the least known candidate is known, the
    search is over before the capacity is used up.

    Prior: radial basis functions exp(-||x - x'||^2 / (2 l^2)) in units of the box; mean 0 for the
    constraints, so that the unknown is unsafe, and the first measured value for f; the noise is
    `problem.sigma`. The prior is fixed, since fitting it to data voids the safety. It does not
    cover constraints steeper than about beta amplitude / lengthscale per box width, or that bend
    much within a lengthscale. If nothing but the start ever becomes safe (`zo/safe_share`), the
    grid is too coarse: a neighbor with correlation k is safe if -c k >= beta amplitude
    sqrt(1 - k^2).

    The metric `zo/safe_share` is the share of the candidates that is known to be safe.

    Args:
        problem: the problem, without equalities, of at most 4 variables with finite bounds
            (give them by `problem._replace(lb=..., ub=...)`), and with a strictly feasible start.
        lengthscale: l, in units of the box width, one number or `[n]`.
        amplitude: prior standard deviation, one number or `[1 + m]`, f first.
        beta: half width of the confidence bounds, in standard deviations.
        capacity: number of queries.
        resolution: grid points in each dimension; None is the most with 1024 points in all.

    Raises:
        ValueError: if the problem has equalities, more than 4 variables or infinite bounds, its
            start is known not to be strictly feasible, or a setting is out of range.
    """
    barrier.check_strict_start(problem, "SafeOpt")
    lagrangian.check_positive({"lengthscale": lengthscale, "amplitude": amplitude, "beta": beta})
    n, m, dtype = problem.n, problem.m, problem.x0.dtype
    _check_box(problem)
    if resolution is None:
        resolution = int(GRID_POINTS ** (1.0 / n) + 1e-9)
    if capacity < 2 or resolution < 2:
        raise ValueError(f"capacity and resolution must be 2 or more, got {capacity}, {resolution}")
    candidates = jnp.concatenate([problem.x0[None], make_grid(problem.lb, problem.ub, resolution)])
    if jnp.shape(lengthscale) not in ((), (n,)) or jnp.shape(amplitude) not in ((), (1 + m,)):
        raise ValueError(
            f"lengthscale must be one number or [n = {n}], amplitude one or [1 + m = {1 + m}], got "
            f"shapes {jnp.shape(lengthscale)} and {jnp.shape(amplitude)}"
        )
    side = problem.ub - problem.lb
    scale = jnp.asarray(lengthscale, dtype) * jnp.where(side > 0.0, side, 1.0)
    amplitude = jnp.broadcast_to(jnp.asarray(amplitude, dtype), (1 + m,))
    sigma = jnp.asarray(problem.sigma, dtype)
    noise = jnp.sqrt(sigma**2 + _jitter(capacity, dtype) * amplitude**2)
    is_start = jnp.arange(candidates.shape[0]) == 0
    rows = jnp.arange(capacity, dtype=jnp.int32)

    def next_point(memory: Memory) -> tuple[Array, Array]:
        """Chooses the point to query after these measurements, and the share of safe candidates."""
        known = rows < memory.count
        prior_mean = jnp.zeros((1 + m,), dtype).at[0].set(memory.Y[0, 0])

        def model(y: Array, amplitude: Array, noise: Array) -> Posterior:
            return gp_posterior(
                memory.X, y, known, candidates, lengthscale=scale, amplitude=amplitude, noise=noise
            )

        posterior = jax.vmap(model)((memory.Y - prior_mean[None]).T, amplitude, noise)
        mean = prior_mean[:, None] + posterior.mean
        spread = beta * jnp.sqrt(posterior.variance)
        lower, upper = mean - spread, mean + spread
        safe = jnp.all(upper[1:] <= 0.0, axis=0) | is_start
        best = jnp.argmin(jnp.where(safe, upper[0], jnp.inf))
        maximizers = safe & (lower[0] <= upper[0, best])
        width = jnp.max(spread / amplitude[:, None], axis=0)
        widest = jnp.argmax(jnp.where(maximizers, width, -jnp.inf))

        def expands(a: Array) -> Array:
            """Says whether a lucky measurement at candidate a, its constraints at their lower
            bounds, would certify a candidate that is not known to be safe."""
            prior = rbf(candidates[a][None], candidates, scale)
            prior = amplitude[1:, None] ** 2 * prior  # [m, G]
            white = posterior.white[1:]
            explained = jnp.einsum(
                "mk,mkg->mg", white[:, :, a], white, precision=jax.lax.Precision.HIGHEST
            )
            covariance = prior - explained
            gain = covariance / (posterior.variance[1:, a] + noise[1:] ** 2)[:, None]
            mean_after = mean[1:] + gain * (lower[1:, a] - mean[1:, a])[:, None]
            variance_after = jnp.maximum(posterior.variance[1:] - gain * covariance, 0.0)
            certified = mean_after + beta * jnp.sqrt(variance_after) <= 0.0
            return jnp.any(jnp.all(certified, axis=0) & ~safe)

        # Of the safe points less known than every maximizer, the least known expander wins.
        def search(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            rivals, widest = carry
            a = jnp.argmax(jnp.where(rivals, width, -jnp.inf))
            found = expands(a)
            return rivals.at[a].set(False) & ~found, jnp.where(found, a, widest)

        rivals = safe & (width > width[widest])
        _, widest = jax.lax.while_loop(lambda carry: carry[0].any(), search, (rivals, widest))
        finished = _is_known(memory, candidates[widest], known).any() & (sigma == 0.0)
        chosen = jnp.where(finished | (memory.count >= capacity - 1), best, widest)
        return candidates[chosen], jnp.mean(safe.astype(dtype))

    def init_inner(key: Array, x0: Array) -> tuple[Memory, int]:
        X, Y = jnp.zeros((capacity, n), dtype), jnp.zeros((capacity, 1 + m), dtype)
        return Memory(X, Y, jnp.asarray(0, jnp.int32), jnp.zeros((), dtype)), 0

    def update(key: Array, x: Array, memory: Memory, t: Array, step_scale: Array) -> Proposal:
        is_known = _is_known(memory, x, rows < memory.count)
        hold = (memory.count >= capacity) | (is_known.any() & (sigma == 0.0))

        def stay(_: None) -> tuple[Array, Memory, Array]:
            # The last such row is the measurement that brought the iterate here.
            row = capacity - 1 - jnp.argmax(is_known[::-1])
            return x, memory, memory.Y[row]

        def explore(_: None) -> tuple[Array, Memory, Array]:
            q = estimators.evaluate(problem.q, x[None], key[None])[0]
            X = memory.X.at[memory.count].set(x)
            Y = memory.Y.at[memory.count].set(q)
            following = Memory(X, Y, memory.count + 1, memory.share)
            x_next, share = next_point(following)
            return x_next, following._replace(share=share), q

        x_next, memory, q = jax.lax.cond(hold, stay, explore, None)
        queries = jnp.where(hold, 0, 1).astype(jnp.int32)
        return Proposal(x_next, memory, x, q[0], q[1:], queries, {"zo/safe_share": memory.share})

    return method.make_algorithm(problem, init_inner=init_inner, update=update)


def gp_posterior(
    X: Float[Array, "N n"],
    y: Float[Array, " N"],
    known: Bool[Array, " N"],
    Z: Float[Array, "G n"],
    *,
    lengthscale: Float[Array, " n"] | float,
    amplitude: float | Array,
    noise: float | Array,
) -> Posterior:
    """Computes the posterior of a zero-mean Gaussian process from the known rows of a buffer.

    Args:
        X: `[N, n]`, points.  y: `[N]`, values.  known: `[N]`, rows that count.
        Z: `[G, n]`, where the posterior is wanted.
        lengthscale: of the kernel, one number or `[n]`.
        amplitude: prior standard deviation.  noise: standard deviation of the noise, positive.

    Source: Rasmussen and Williams, Gaussian processes for machine learning, algorithm 2.1.
    """
    # Unknown rows become independent of everything: unit variance, no covariance, value 0.
    both = known[:, None] & known[None, :]
    K = jnp.where(both, amplitude**2 * rbf(X, X, lengthscale), 0.0)
    L = jnp.linalg.cholesky(K + jnp.diag(jnp.where(known, noise**2, 1.0)))
    across = jnp.where(known[:, None], amplitude**2 * rbf(X, Z, lengthscale), 0.0)
    white = jax.scipy.linalg.solve_triangular(L, across, lower=True)
    target = jax.scipy.linalg.solve_triangular(L, jnp.where(known, y, 0.0), lower=True)
    variance = jnp.maximum(amplitude**2 - jnp.sum(white**2, axis=0), 0.0)
    mean = jnp.matmul(target, white, precision=jax.lax.Precision.HIGHEST)
    return Posterior(mean, variance, white)


def rbf(
    A: Float[Array, "N n"], C: Float[Array, "G n"], lengthscale: Float[Array, " n"] | float
) -> Float[Array, "N G"]:
    """Returns exp(-||a - c||^2 / 2) with distances in units of the lengthscale."""
    lengthscale = jnp.broadcast_to(jnp.asarray(lengthscale, A.dtype), A.shape[1:])
    difference = (A[:, None] - C[None]) / lengthscale[None, None]
    return jnp.exp(-0.5 * jnp.sum(difference**2, axis=-1))


def make_grid(
    lb: Float[Array, " n"], ub: Float[Array, " n"], resolution: int
) -> Float[Array, "G n"]:
    """Returns the regular grid of a box, bounds included, `[resolution^n, n]`."""
    axes = jnp.linspace(lb, ub, resolution, axis=-1)  # [n, resolution]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, lb.shape[0])


def _is_known(memory: Memory, x: Array, known: Array) -> Array:
    """Marks the rows of the buffer that measured x, `[N]`."""
    return jnp.all(memory.X == x[None], axis=1) & known


def _jitter(capacity: int, dtype: jnp.dtype) -> float:
    """Returns the noise variance, relative to the prior's, that keeps the Cholesky factor real.

    The factorization was seen to fail below 0.3 capacity eps, with points close to each other.
    """
    return 2.0 * capacity * float(jnp.finfo(dtype).eps)


def _check_box(problem: Problem) -> None:
    if problem.n > MAX_VARIABLES:
        raise ValueError(
            f"SafeOpt searches a grid, for at most {MAX_VARIABLES} variables; got n = {problem.n}"
        )
    for name, bound in {"lb": problem.lb, "ub": problem.ub}.items():
        if not isinstance(bound, Tracer) and not np.isfinite(bound).all():
            raise ValueError(
                f"SafeOpt needs a finite box, got problem.{name} = {np.asarray(bound)}; give one "
                "by problem._replace(lb=..., ub=...)"
            )
