"""Rivals of ZOFL for the benchmark: the method in numpy, and a penalty with optax.

`numpy_zofl` is what a careful numpy programmer would run on a batch of problems; `optax_penalty`
what a JAX programmer would reach for first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.zeroth_order import direction_sets, estimators, kkt
from jaxlab.zeroth_order.problem import Problem, exact_of


class NumpyRun(NamedTuple):
    """What `numpy_zofl` found, for I instances.

    Attributes:
        x: `[I, n]`, last iterates.
        f: `[T, I]`, objective and violation: `[T, I]`, largest violation, measured at the iterate
            that each of the T steps started from.
        queries: joint queries per instance.
    """

    x: np.ndarray
    f: np.ndarray
    violation: np.ndarray
    queries: int


def numpy_zofl(
    q: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    x0: np.ndarray,
    *,
    m_eq: int,
    eta: float,
    a: float,
    u: float,
    num_directions: int,
    num_steps: int,
    seed: int = 0,
    lb: np.ndarray | float = -np.inf,
    ub: np.ndarray | float = np.inf,
    ridge: float = 1e-8,
    sweeps: int = 200,
) -> NumpyRun:
    """Runs the subspace form with Euler steps on a batch of instances, in numpy alone.

    Orthonormal directions, central differences, and per instance A = c D_h D_h', b = c D_h D_f -
    (a / eta) h, F = -c S (D_f + D_h' lam), x <- x + eta F. Everything is one array operation over
    the batch but the sweeps over inequalities, which go one constraint at a time over the batch and
    end once the multiplier stands still.

    Args:
        q: oracle of the batch, `q(points [I, Q, n]) -> (f [I, Q], h [I, Q, m])`.
        x0: `[I, n]`, starts; their dtype is that of the computation.
        m_eq: number of equalities, which come first.
        eta: step.  a: contraction per step, eta K.  u: radius.
        num_directions: B, at most n.
        num_steps: T.
        seed: of an SFC64 generator, the fastest of numpy's.
        lb, ub: box, broadcast with `[I, n]`.
        ridge: relative to the mean of A's diagonal.
        sweeps: most sweeps.

    Raises:
        ValueError: if there are more directions than variables, or none.

    Source: arXiv:2509.24056, in the metric c S S' of the directions; Hildreth 1957.
    """
    if not 1 <= num_directions <= x0.shape[1]:
        raise ValueError(
            f"num_directions must be between 1 and n = {x0.shape[1]}, got {num_directions}"
        )
    rng = np.random.Generator(np.random.SFC64(seed))
    x = np.array(x0)
    num_instances, n = x.shape
    B = num_directions
    c = n / B
    history = []
    lam = None  # the multiplier of the last step, from which the next one starts
    for _ in range(num_steps):
        S = np.linalg.qr(rng.standard_normal((num_instances, n, B), dtype=x.dtype))[0]
        steps = u * S.swapaxes(1, 2)
        points = np.concatenate([x[:, None], x[:, None] + steps, x[:, None] - steps], axis=1)
        f, h = q(points)
        D_f = (f[:, 1 : B + 1] - f[:, B + 1 :]) / (2.0 * u)
        D_h = (h[:, 1 : B + 1] - h[:, B + 1 :]) / (2.0 * u)
        history.append((f[:, 0], _max_violation(h[:, 0], m_eq)))
        slope = D_f
        if h.shape[-1]:
            D_ht = D_h.swapaxes(1, 2)
            A = c * (D_ht @ D_h)
            b = c * (D_ht @ D_f[..., None])[..., 0] - (a / eta) * h[:, 0]
            lam = _multiplier(A, b, m_eq, lam, ridge, sweeps)
            slope = D_f + (D_h @ lam[..., None])[..., 0]
        x = x - (eta * c) * (S @ slope[..., None])[..., 0]
        np.clip(x, lb, ub, out=x)
    f, violation = (np.stack(column) for column in zip(*history, strict=True))
    return NumpyRun(x, f, violation, num_steps * (1 + 2 * B))


class PenaltyRun(NamedTuple):
    """What `optax_penalty` found.

    Attributes:
        x: `[n]`, last iterate.
        f: `[T]`, objective and violation: `[T]`, largest violation, at the start of each step: as
            measured, or exact with exact gradients.
        queries: int32, joint queries; 0 with exact gradients.
    """

    x: jax.Array
    f: jax.Array
    violation: jax.Array
    queries: jax.Array


def optax_penalty(
    key: jax.Array,
    problem: Problem,
    *,
    num_steps: int,
    learning_rate: float | jax.Array = 1e-2,
    weight: float | jax.Array = 1.0,
    growth: float | jax.Array = 1.01,
    max_weight: float | jax.Array = 1e4,
    exact_gradients: bool = False,
    num_directions: int | None = None,
    u: float | jax.Array = 1e-3,
    kind: direction_sets.Kind = "orthonormal",
) -> PenaltyRun:
    """Minimizes f + weight_t / 2 |violation|^2 by Adam, a pure function to `jit` and `vmap`.

    The weight grows as weight * growth^t up to `max_weight`, the learning rate falls to 0 along a
    cosine, iterates are clipped to the box. The penalty's gradient is that of f plus weight times
    J' violation, from one central estimate (the same as that of ZOFL), or the exact gradient.

    Args:
        key: typed PRNG key.
        problem: the problem; `exact_gradients` needs its `exact`.
        num_steps: T.
        learning_rate: of the first step.
        weight: of the first step.  growth: factor per step.  max_weight: its cap.
        exact_gradients: differentiate `problem.exact` instead of querying.
        num_directions: B of the estimate; n if None.
        u: radius of the estimate.
        kind: set of directions.

    Raises:
        ValueError: if `exact_gradients` is asked of a problem without `exact`.
    """
    n, B = problem.n, problem.n if num_directions is None else num_directions
    if exact_gradients and problem.exact is None:
        raise ValueError("exact_gradients needs a problem whose `exact` is known, it is None")
    dtype = problem.x0.dtype
    first_rate, start_weight, factor, cap = (
        jnp.asarray(value, dtype) for value in (learning_rate, weight, growth, max_weight)
    )
    schedule = optax.cosine_decay_schedule(1.0, num_steps)
    adam = optax.scale_by_adam()

    def signed_violation(h: jax.Array) -> jax.Array:
        """Returns the derivative of |violation|^2 / 2 with respect to h."""
        return jnp.concatenate([h[: problem.m_eq], jnp.maximum(h[problem.m_eq :], 0.0)])

    def exact_slope(x: jax.Array, rho: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def penalized(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            f, h = exact_of(problem)(x)
            return f + 0.5 * rho * jnp.sum(signed_violation(h) ** 2), (f, h)

        (_, (f, h)), grad = jax.value_and_grad(penalized, has_aux=True)(x)
        return f, h, grad

    def estimated_slope(
        key: jax.Array, x: jax.Array, rho: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        key_directions, key_noise = jax.random.split(key)
        S, c = direction_sets.directions(key_directions, n, B, kind, dtype)
        q0, D, _ = estimators.two_point(problem.q, x, S, u, key_noise)
        weights = jnp.concatenate([jnp.ones((1,), dtype), rho * signed_violation(q0[1:])])
        return q0[0], q0[1:], c * (S @ (weights @ D))

    def step(carry: tuple[jax.Array, Any], t: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        x, state = carry
        time = t.astype(dtype)
        rho = jnp.minimum(start_weight * factor**time, cap)
        if exact_gradients:
            f, h, grad = exact_slope(x, rho)
        else:
            f, h, grad = estimated_slope(jax.random.fold_in(key, t), x, rho)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, state = adam.update(grad, state)
        x = jnp.clip(x - first_rate * schedule(time) * jnp.asarray(updates), problem.lb, problem.ub)
        return (x, state), (f, kkt.max_violation(h, problem.m_eq))

    x0 = jnp.asarray(problem.x0)
    (x, _), (f, violation) = jax.lax.scan(step, (x0, adam.init(x0)), jnp.arange(num_steps))
    queries = 0 if exact_gradients else num_steps * (1 + 2 * B)
    return PenaltyRun(x, f, violation, jnp.asarray(queries, jnp.int32))


def _multiplier(
    A: np.ndarray, b: np.ndarray, m_eq: int, start: np.ndarray | None, ridge: float, sweeps: int
) -> np.ndarray:
    """Minimizes lam' A lam / 2 + b' lam over lam_I >= 0 for every instance, `[I, m]`."""
    m = b.shape[1]
    trace = np.trace(A, axis1=1, axis2=2)[:, None, None] / m
    A = A + ridge * np.maximum(trace, np.finfo(A.dtype).tiny) * np.eye(m, dtype=A.dtype)
    if m_eq == m:
        return -np.linalg.solve(A, b[..., None])[..., 0]
    # Equalities are eliminated exactly; the sweeps are over the Schur complement.
    A_ie, A_ii, b_i = A[:, m_eq:, :m_eq], A[:, m_eq:, m_eq:], b[:, m_eq:]
    if m_eq:
        rhs = np.concatenate([A[:, :m_eq, m_eq:], b[:, :m_eq, None]], axis=2)
        solved = np.linalg.solve(A[:, :m_eq, :m_eq], rhs)
        A_ii = A_ii - A_ie @ solved[..., :-1]
        b_i = b_i - (A_ie @ solved[..., -1:])[..., 0]
    lam = np.zeros_like(b_i) if start is None else start[:, m_eq:].copy()
    inverse = 1.0 / np.diagonal(A_ii, axis1=1, axis2=2)
    tol = 10.0 * np.finfo(b.dtype).eps
    rows = np.ascontiguousarray(A_ii.transpose(1, 0, 2))
    for _ in range(sweeps):
        before = lam.copy()
        for i in range(m - m_eq):
            slope = np.einsum("ij,ij->i", rows[i], lam) + b_i[:, i]
            lam[:, i] = np.maximum(0.0, lam[:, i] - slope * inverse[:, i])
        if np.max(np.abs(lam - before)) <= tol * (1.0 + np.max(np.abs(lam))):
            break
    if not m_eq:
        return lam
    lam_eq = -(solved[..., -1] + (solved[..., :-1] @ lam[..., None])[..., 0])
    return np.concatenate([lam_eq, lam], axis=1)


def _max_violation(h: np.ndarray, m_eq: int) -> np.ndarray:
    return np.maximum(
        np.max(np.abs(h[:, :m_eq]), axis=1, initial=0.0), np.max(h[:, m_eq:], axis=1, initial=0.0)
    )
