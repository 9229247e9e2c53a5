"""The multiplier of feedback linearization: a small linear system or a non-negative quadratic one.

The control input lam of arXiv:2503.12665 solves

    min over lam_I >= 0, lam_E free of  1/2 lam' A lam + b' lam,   A = J T J',  b = J T grad - K h.

Systems are first scaled to a unit diagonal, so that rescaling a constraint changes nothing, and
regularized by a ridge whose effect is removed again where A is regular.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Mode = Literal["nnqp", "clip"]
Solver = Literal["hildreth", "fista", "admm", "enumerate"]
SOLVERS: tuple[str, ...] = get_args(Solver)

Factor = Array | list[list[Array]]

SWEEPS_PER_FACE = 5
MOST_UNROLLED = 8
MOST_ENUMERATED = 6
PASSES = 3
UNBOUNDED = 1e4  # of a system with a unit diagonal


def fl_multiplier(
    A: Float[Array, "m m"],
    b: Float[Array, " m"],
    m_eq: int,
    mode: Mode = "nnqp",
    *,
    ridge: float | Array = 1e-8,
    iterations: int = 200,
    solver: Solver = "hildreth",
    max_multiplier: float | Array | None = None,
) -> tuple[Float[Array, " m"], Float[Array, ""]]:
    """Solves for the multiplier, equalities first.

    `nnqp` is exact feedback linearization. `clip`, max(0, -A^-1 b) on the inequalities, is exact
    for one inequality only: with more its fixed points are wrong (6.9 above the optimum on HS43);
    it is here as an ablation. The closed form with slack variables is an equality system: see
    `slack_system`.

    Args:
        A: `[m, m]` symmetric positive semidefinite.  b: `[m]`.
        m_eq: number of equalities; their multipliers are free.
        mode: `nnqp` or `clip`.
        ridge: regularization relative to the diagonal, at least ten machine epsilons.
        iterations: most sweeps (Hildreth) or iterations (FISTA, ADMM).
        solver: method for the inequalities, see `nnqp`.
        max_multiplier: cap on max |lam_i|, by a common factor; nearly dependent constraints that
            ask for different things make lam grow. The residual is that of the capped multiplier.

    Returns:
        `(lam, residual)`: `[m]` and the largest violation of the optimality conditions,
        |A lam + b| of equalities and |min(lam, A lam + b)| of inequalities.

    Raises:
        ValueError: if shapes or names do not fit, or a count is not positive.

    Source: arXiv:2503.12665, multiplier for equality and inequality constraints.
    """
    m = b.shape[0]
    if A.shape != (m, m) or not 0 <= m_eq <= m:
        raise ValueError(f"A must be [m, m] and 0 <= m_eq <= m, got {A.shape}, m = {m}, {m_eq}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
    if m == 0:
        return b, jnp.zeros((), b.dtype)
    if mode == "nnqp" and m_eq < m:
        lam, _ = nnqp(A, b, m_eq, ridge=ridge, iterations=iterations, solver=solver)
    else:
        lam = solve_free(A, b, ridge=ridge)
        lam = jnp.concatenate([lam[:m_eq], jnp.maximum(lam[m_eq:], 0.0)])
    if max_multiplier is not None:  # in proportion, so that J'lam keeps its direction
        lam = lam * jnp.minimum(1.0, max_multiplier / jnp.max(jnp.abs(lam), initial=1e-30))
    return lam, residual(A, b, lam, m_eq)


def residual(
    A: Float[Array, "m m"], b: Float[Array, " m"], lam: Float[Array, " m"], m_eq: int
) -> Float[Array, ""]:
    """Returns the largest violation of the optimality conditions of the multiplier."""
    slope = A @ lam + b
    inequality = jnp.minimum(lam[m_eq:], slope[m_eq:])
    return jnp.max(jnp.abs(jnp.concatenate([slope[:m_eq], inequality])), initial=0.0)


def slack_system(
    A: Float[Array, "m m"],
    b: Float[Array, " m"],
    K: Float[Array, " m"],
    s: Float[Array, " m_ineq"],
    m_eq: int,
) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """Returns the equality system of h_I + s*s/2 = 0, whose solution needs no inequality.

    lam = -(A + diag(s^2))^-1 (J grad - K (h + s^2 / 2)); the slack obeys ds/dt = -s lam_I. Start
    from `initial_slack`: at s = 0 it would stay 0. Source: arXiv:2509.24056, slack form.
    """
    squared = jnp.concatenate([jnp.zeros((m_eq,), s.dtype), s**2])
    return A + jnp.diag(squared), b - 0.5 * K * squared


def initial_slack(
    h_ineq: Float[Array, " m_ineq"], epsilon: float = 1e-2
) -> Float[Array, " m_ineq"]:
    """Returns sqrt(2 max(-h, epsilon)), which satisfies h + s*s/2 = 0 where h < -epsilon."""
    return jnp.sqrt(2.0 * jnp.maximum(-h_ineq, epsilon))


def diagonal_multiplier(
    A: Float[Array, "m m"], b: Float[Array, " m"], m_eq: int
) -> Float[Array, " m"]:
    """Returns -b / diag(A), inequalities clipped at 0: diagonal feedback linearization.

    No system is solved, which leaves a steady violation where A has off-diagonal entries; an
    integral term in b removes it (FL-PI): b = J grad - K_P h + K_I sum_t h_t with K_I < 0.
    """
    diagonal = jnp.diagonal(A)
    lam = -b / jnp.where(diagonal > 0.0, diagonal, 1.0)
    return jnp.concatenate([lam[:m_eq], jnp.maximum(lam[m_eq:], 0.0)])


def solve_free(
    A: Float[Array, "m m"], b: Float[Array, " m"], *, ridge: float | Array = 1e-8
) -> Float[Array, " m"]:
    """Solves A lam = -b by Cholesky; dependent rows share the multiplier instead of failing.

    The ridge, relative to the diagonal, keeps a singular A invertible, and leaves no trace on a
    regular one. Constraints that contradict each other are met in the least-squares sense.
    """
    A, b, d = _equilibrate(A, b)
    return _regular_solve(_factor(A, ridge), A, -b) / d


def nnqp(
    A: Float[Array, "m m"],
    b: Float[Array, " m"],
    m_eq: int,
    *,
    ridge: float | Array = 1e-8,
    iterations: int = 200,
    solver: Solver = "hildreth",
) -> tuple[Float[Array, " m"], Float[Array, ""]]:
    """Minimizes 1/2 lam' A lam + b' lam over lam_I >= 0, with lam_E free.

    lam_E is eliminated exactly (Schur complement). The rest is solved by Hildreth's sweeps, each
    five followed by an exact minimization over the entries they have made positive, until the
    conditions hold to rounding (mostly at once) or `iterations` are used up.
    `fista`, `admm` and, for up to six inequalities, `enumerate` are alternatives: matrix products
    only, one factorization, or every active set at once.

    Returns:
        `(lam, residual)`, see `residual`.

    Raises:
        ValueError: if the solver is unknown, `iterations` is not positive, or there are too many
            inequalities to enumerate.

    Source: Hildreth 1957; arXiv:2509.24056 asks for 50 to 200 fixed sweeps.
    """
    m_ineq = b.shape[0] - m_eq
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if solver == "enumerate" and m_ineq > MOST_ENUMERATED:
        raise ValueError(f"cannot enumerate more than {MOST_ENUMERATED} inequalities, got {m_ineq}")
    unscaled_A, unscaled_b = A, b
    A, b, d = _equilibrate(A, b)
    reduced_A, reduced_b = A[m_eq:, m_eq:], b[m_eq:]
    factor, to_eq, b_eq = None, A[:m_eq, m_eq:], b[:m_eq]
    if m_eq:
        A_eq = A[:m_eq, :m_eq]
        factor = _factor(A_eq, ridge)
        reduced_A = reduced_A - to_eq.T @ _regular_solve(factor, A_eq, to_eq)
        reduced_b = reduced_b - to_eq.T @ _regular_solve(factor, A_eq, b_eq)
    solve = {"hildreth": _hildreth, "fista": _fista, "admm": _admm, "enumerate": _enumerate}[solver]
    lam = _differentiable(solve, ridge, iterations)(reduced_A, reduced_b)
    if factor is not None:
        lam_eq = _regular_solve(factor, A[:m_eq, :m_eq], -(b_eq + to_eq @ lam))
        lam = jnp.concatenate([lam_eq, lam])
    lam = lam / d
    return lam, residual(unscaled_A, unscaled_b, lam, m_eq)


def _differentiable(
    solve: Callable[..., Array], ridge: float | Array, iterations: int
) -> Callable[[Array, Array], Array]:
    """Gives a solver the derivative of its solution: lam solves A lam = -b where it is positive."""

    @jax.custom_jvp
    def solution(A: Array, b: Array) -> Array:
        return solve(A, b, ridge, iterations)

    @solution.defjvp
    def derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        (A, b), (dA, db) = primals, tangents
        lam = solution(A, b)
        return lam, _on_active_set(A, dA @ lam + db, lam > 0.0, ridge, _regular_solve)

    return solution


def _hildreth(A: Array, b: Array, ridge: float | Array, iterations: int) -> Array:
    tolerance = 50.0 * float(jnp.finfo(b.dtype).eps) * (1.0 + jnp.max(jnp.abs(b)))
    diagonal = jnp.maximum(jnp.diagonal(A), _least_ridge(A))

    def update(i: Array, lam: Array) -> Array:
        return lam.at[i].set(jnp.maximum(0.0, lam[i] - (A[i] @ lam + b[i]) / diagonal[i]))

    def sweep(_: Array, lam: Array) -> Array:
        return jax.lax.fori_loop(0, b.shape[0], update, lam)

    def sweeps_and_face(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, lam, _ = carry
        lam = jax.lax.fori_loop(0, SWEEPS_PER_FACE, sweep, lam)
        lam = _minimize_on_face(A, b, lam, ridge)
        return count + SWEEPS_PER_FACE, lam, residual(A, b, lam, 0)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        count, _, error = carry
        return (count < iterations) & (error > tolerance)

    zero = jnp.zeros_like(b)
    start = (jnp.asarray(0, jnp.int32), zero, residual(A, b, zero, 0))
    _, lam, error = jax.lax.while_loop(unfinished, sweeps_and_face, start)
    # No entry leaves if the constraints contradict each other: then meet them by least squares.
    contradicted = (error > 1e-6 * (1.0 + jnp.max(jnp.abs(b)))) & (jnp.max(lam) > UNBOUNDED)
    compromise = _on_active_set(A, b, lam > 0.0, ridge, _regular_solve)
    return jnp.where(contradicted, compromise, lam)


def _minimize_on_face(A: Array, b: Array, lam: Array, ridge: float | Array) -> Array:
    """Minimizes over the positive entries of lam, dropping those that reach 0 on the way.

    Every step goes to the minimizer of the face, or to where it leaves the positive orthant, so the
    objective never grows; with the sweeps, which free entries, it finds the solution exactly.
    """

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        lam, active, _ = carry
        # Along a null space the objective falls for ever: go far, some entry will leave.
        target = _on_active_set(A, b, active, ridge, _proximal_solve)
        leaving = active & ~(target > 0.0)
        ratio = jnp.where(leaving, lam / jnp.where(leaving, lam - target, 1.0), 1.0)
        share = jnp.min(ratio)
        lam = jnp.where(leaving & (ratio <= share), 0.0, lam + share * (target - lam))
        return lam, lam > 0.0, jnp.any(leaving)

    def leaves(carry: tuple[Array, Array, Array]) -> Array:
        return carry[2]

    face, _, _ = jax.lax.while_loop(leaves, step, step((lam, lam > 0.0, jnp.asarray(True))))
    return jnp.where(jnp.isfinite(face).all(), face, lam)


def _fista(A: Array, b: Array, ridge: float | Array, iterations: int) -> Array:
    step = 1.0 / jnp.max(jnp.sum(jnp.abs(A), axis=1))  # the row sums bound the largest eigenvalue

    def iterate(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        lam, ahead, momentum = carry
        following = jnp.maximum(0.0, ahead - step * (A @ ahead + b))
        uphill = jnp.sum((ahead - following) * (following - lam)) > 0.0  # then restart
        momentum = jnp.where(uphill, 1.0, momentum)
        momentum_next = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2))
        ahead = following + (momentum - 1.0) / momentum_next * (following - lam)
        return following, ahead, momentum_next

    zero = jnp.zeros_like(b)
    return jax.lax.fori_loop(0, iterations, iterate, (zero, zero, jnp.ones((), b.dtype)))[0]


def _admm(A: Array, b: Array, ridge: float | Array, iterations: int) -> Array:
    weight = 0.5  # of the unit diagonal
    factor = _factor(A, weight)

    def iterate(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        clipped, dual = carry
        lam = _cholesky_solve(factor, weight * (clipped - dual) - b)
        relaxed = 1.6 * lam - 0.6 * clipped
        clipped = jnp.maximum(0.0, relaxed + dual)
        return clipped, dual + relaxed - clipped

    zero = jnp.zeros_like(b)
    return jax.lax.fori_loop(0, iterations, iterate, (zero, zero))[0]


def _enumerate(A: Array, b: Array, ridge: float | Array, iterations: int) -> Array:
    m = b.shape[0]
    active = ((jnp.arange(2**m)[:, None] >> jnp.arange(m)[None]) & 1) == 1
    candidates = jax.vmap(lambda mask: _on_active_set(A, b, mask, ridge, _regular_solve))(active)
    errors = jax.vmap(lambda lam: residual(A, b, lam, 0))(candidates)
    return jnp.maximum(0.0, candidates[jnp.nanargmin(errors)])


def _on_active_set(
    A: Array, b: Array, active: Array, ridge: float | Array, solve: Callable[..., Array]
) -> Array:
    """Solves A lam = -b on the active indices, with lam = 0 elsewhere."""
    both = active[:, None] & active[None, :]
    A = jnp.where(both, A, jnp.eye(b.shape[0], dtype=b.dtype))
    return solve(_factor(A, ridge), A, jnp.where(active, -b, 0.0))


def _equilibrate(A: Array, b: Array) -> tuple[Array, Array, Array]:
    """Returns A and b scaled to a unit diagonal, and d with lam = scaled lam / d."""
    diagonal = jnp.diagonal(A)
    least = float(jnp.finfo(b.dtype).eps) ** 2 * jnp.max(diagonal)
    d = jnp.sqrt(jnp.maximum(diagonal, least))
    d = jnp.where(d > 0.0, d, 1.0)
    return A / (d[:, None] * d[None, :]), b / d, d


def _factor(A: Array, ridge: float | Array) -> Factor:
    """Returns the Cholesky factor of A with the ridge added; its rows as scalars where A is small.

    A batch of small systems written out in scalars becomes one fused loop over the batch; a library
    call per system costs several times the arithmetic.
    """
    m = A.shape[0]
    A = A + jnp.maximum(ridge, _least_ridge(A)) * jnp.eye(m, dtype=A.dtype)
    if m > MOST_UNROLLED:
        return jax.scipy.linalg.cho_factor(A, lower=True)[0]
    L: list[list[Array]] = []
    for i in range(m):
        row: list[Array] = []
        for j in range(i):
            row.append((A[i, j] - _dot(row, L[j])) / L[j][j])
        row.append(jnp.sqrt(A[i, i] - _dot(row, row)))
        L.append(row)
    return L


def _cholesky_solve(L: Factor, rhs: Array) -> Array:
    """Solves L L' x = rhs, `[m]` or `[m, k]`."""
    if not isinstance(L, list):
        return jax.scipy.linalg.cho_solve((L, True), rhs)
    m = len(L)
    forward: list[Array] = []
    for i in range(m):
        forward.append((rhs[i] - _dot(L[i][:i], forward)) / L[i][i])
    backward: list[Array] = []
    for i in reversed(range(m)):
        column = [L[k][i] for k in range(i + 1, m)]
        backward.insert(0, (forward[i] - _dot(column, backward)) / L[i][i])
    return jnp.stack(backward)


def _dot(a: Sequence[Array], b: Sequence[Array]) -> Array | float:
    return sum((x * y for x, y in zip(a, b, strict=False)), start=0.0)


def _least_ridge(A: Array) -> float:
    return 10.0 * float(jnp.finfo(A.dtype).eps)


def _regular_solve(factor: Factor, A: Array, rhs: Array) -> Array:
    """Solves A x = rhs with the ridge removed again; least squares where A is singular.

    Each pass adds (A + rho I)^-1 A (A + rho I)^-1 of what is left. On a regular A the error falls
    by 2 rho / s for every eigenvalue s; what no x can reach is left out, not divided by rho.
    """
    solution = jnp.zeros_like(rhs)
    for _ in range(PASSES):
        step = _cholesky_solve(factor, rhs - A @ solution)
        solution = solution + _cholesky_solve(factor, A @ step)
    return solution


def _proximal_solve(factor: Factor, A: Array, rhs: Array) -> Array:
    """Solves A x = rhs with the ridge removed again; far out along a singular A's null space."""
    solution = _cholesky_solve(factor, rhs)
    for _ in range(PASSES - 1):
        solution = solution + _cholesky_solve(factor, rhs - A @ solution)
    return solution
