"""The multiplier of feedback linearization: a small linear system or a non-negative quadratic one.

The control input lam of arXiv:2503.12665 solves

    min over lam_I >= 0, lam_E free of  1/2 lam' A lam + b' lam,   A = J T J',  b = J T grad - K h.

Systems are first scaled to a unit diagonal, so that rescaling a constraint changes nothing, and
regularized by a ridge whose effect is removed again where A is regular. A row whose diagonal is
zero belongs to a constraint that no direction changes: it takes no part, its multiplier is 0, and
what it asks for in vain stands in the residual.
"""

import functools
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
STEPS_PER_FACE = 20
"""Iterations of FISTA or ADMM between two minimizations over a face."""
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
        max_multiplier: cap on max |lam_i|, by a common factor, or None; nearly dependent
            constraints that ask for different things make lam grow. The factor shortens the
            multipliers of all constraints. The residual is that of the capped multiplier.

    Returns:
        `(lam, residual)`: `[m]` and the largest violation of the optimality conditions,
        |A lam + b| of equalities and |min(lam, A lam + b)| of inequalities.

    Raises:
        ValueError: if shapes or names do not fit, or a count is not positive.

    Source: arXiv:2503.12665, multiplier for equality and inequality constraints.
    """
    m = _check_system(A, b, m_eq)
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
    _check_solver(m - m_eq, iterations, solver)
    if m == 0:
        return b, jnp.zeros((), b.dtype)
    return _fl_multiplier(
        A,
        b,
        m_eq,
        mode,
        ridge=ridge,
        iterations=iterations,
        solver=solver,
        max_multiplier=max_multiplier,
    )


@functools.partial(jax.jit, static_argnames=("m_eq", "mode", "iterations", "solver"))
def _fl_multiplier(
    A: Array,
    b: Array,
    m_eq: int,
    mode: Mode,
    *,
    ridge: float | Array,
    iterations: int,
    solver: Solver,
    max_multiplier: float | Array | None,
) -> tuple[Array, Array]:
    if mode == "nnqp" and m_eq < b.shape[0]:
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
    five followed by an exact minimization over the entries they have made positive, until every row
    meets its conditions to its own rounding (mostly at once) or `iterations` are used up.
    `fista` and `admm` do the same with steps of theirs in place of the sweeps, which are products
    of matrices alone; `enumerate` tries every active set at once, of up to six inequalities.

    Returns:
        `(lam, residual)`, see `residual`.

    Raises:
        ValueError: if shapes do not fit, the solver is unknown, `iterations` is not positive, or
            there are too many inequalities to enumerate.

    Source: Hildreth 1957; arXiv:2509.24056 asks for 50 to 200 fixed sweeps.
    """
    m = _check_system(A, b, m_eq)
    _check_solver(m - m_eq, iterations, solver)
    return _nnqp(A, b, m_eq, ridge=ridge, iterations=iterations, solver=solver)


@functools.partial(jax.jit, static_argnames=("m_eq", "iterations", "solver"))
def _nnqp(
    A: Array, b: Array, m_eq: int, *, ridge: float | Array, iterations: int, solver: Solver
) -> tuple[Array, Array]:
    unscaled_A, unscaled_b = A, b
    A, b, d = _equilibrate(A, b)
    reduced_A, reduced_b = A[m_eq:, m_eq:], b[m_eq:]
    factor, to_eq, b_eq = None, A[:m_eq, m_eq:], b[:m_eq]
    if m_eq:
        A_eq = A[:m_eq, :m_eq]
        factor = _factor(A_eq, ridge)
        reduced_A = reduced_A - to_eq.T @ _regular_solve(factor, A_eq, to_eq)
        reduced_b = reduced_b - to_eq.T @ _regular_solve(factor, A_eq, b_eq)
        # What they leave of an inequality may be rounding: then it is not free to change.
        rounding = 1e3 * float(jnp.finfo(b.dtype).eps)
        reduced_A, reduced_b = _without_flat(reduced_A, reduced_b, rounding)
    advance = {"hildreth": _sweeps, "fista": _fista, "admm": _admm}
    solve = _enumerate if solver == "enumerate" else functools.partial(_by_faces, advance[solver])
    lam = _differentiable(solve, iterations)(reduced_A, reduced_b, jnp.asarray(ridge, b.dtype))
    if factor is not None:
        lam_eq = _regular_solve(factor, A[:m_eq, :m_eq], -(b_eq + to_eq @ lam))
        lam = jnp.concatenate([lam_eq, lam])
    lam = lam / d
    return lam, residual(unscaled_A, unscaled_b, lam, m_eq)


def _check_system(A: Array, b: Array, m_eq: int) -> int:
    """Returns m, the number of constraints.

    Raises:
        ValueError: if the shapes do not fit.
    """
    m = b.shape[0]
    if A.shape != (m, m) or not 0 <= m_eq <= m:
        raise ValueError(f"A must be [m, m] and 0 <= m_eq <= m, got {A.shape}, m = {m}, {m_eq}")
    return m


def _check_solver(m_ineq: int, iterations: int, solver: str) -> None:
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if solver == "enumerate" and m_ineq > MOST_ENUMERATED:
        raise ValueError(f"cannot enumerate more than {MOST_ENUMERATED} inequalities, got {m_ineq}")


def _differentiable(
    solve: Callable[..., Array], iterations: int
) -> Callable[[Array, Array, Array], Array]:
    """Gives a solver the derivative of its solution: lam solves A lam = -b where it is positive."""

    @jax.custom_jvp
    def solution(A: Array, b: Array, ridge: Array) -> Array:
        return solve(A, b, ridge, iterations)

    @solution.defjvp
    def derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        (A, b, ridge), (dA, db, _) = primals, tangents  # the ridge leaves no trace
        lam = solution(A, b, ridge)
        return lam, _on_active_set(A, dA @ lam + db, lam > 0.0, ridge, _regular_solve)

    return solution


def _by_faces(
    advance: Callable[..., tuple[Array, int]],
    A: Array,
    b: Array,
    ridge: float | Array,
    iterations: int,
) -> Array:
    """Alternates iterations that free entries with exact minimizations over the freed ones.

    Args:
        advance: `advance(A, b, lam) -> (lam, iterations made)`.
        A, b: of a diagonal that is 1, or less by what equalities have taken.
    """
    eps = float(jnp.finfo(b.dtype).eps)

    def unsolved(lam: Array) -> Array:
        """Says whether a row misses its conditions by more than its own terms round to."""
        slope, rounding = A @ lam + b, 50.0 * eps * (jnp.abs(A) @ lam + jnp.abs(b))
        return jnp.any((slope < -rounding) | ((slope > rounding) & (lam > 0.0)))

    def advance_and_minimize(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        count, lam = carry
        lam, made = advance(A, b, lam)
        return count + made, _minimize_on_face(A, b, lam, ridge)

    def unfinished(carry: tuple[Array, Array]) -> Array:
        count, lam = carry
        return (count < iterations) & unsolved(lam)

    start = (jnp.asarray(0, jnp.int32), jnp.zeros_like(b))
    _, lam = jax.lax.while_loop(unfinished, advance_and_minimize, start)
    # No entry leaves if the constraints contradict each other: then meet them by least squares.
    error = residual(A, b, lam, 0)
    scale = jnp.max(jnp.where(lam > 0.0, jnp.abs(b), 0.0))
    contradicted = (error > 1e-6 * scale) & (jnp.max(lam) > UNBOUNDED * scale)
    compromise = _on_active_set(A, b, lam > 0.0, ridge, _regular_solve)
    return jnp.where(contradicted, compromise, lam)


def _sweeps(A: Array, b: Array, lam: Array) -> tuple[Array, int]:
    """Makes Hildreth's sweeps: each entry in turn minimizes, the others as they are."""
    diagonal = jnp.diagonal(A)

    def update(i: Array, lam: Array) -> Array:
        return lam.at[i].set(jnp.maximum(0.0, lam[i] - (A[i] @ lam + b[i]) / diagonal[i]))

    def sweep(_: Array, lam: Array) -> Array:
        return jax.lax.fori_loop(0, b.shape[0], update, lam)

    return jax.lax.fori_loop(0, SWEEPS_PER_FACE, sweep, lam), SWEEPS_PER_FACE


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


def _fista(A: Array, b: Array, lam: Array) -> tuple[Array, int]:
    step = 1.0 / jnp.max(jnp.sum(jnp.abs(A), axis=1))  # the row sums bound the largest eigenvalue

    def iterate(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        lam, ahead, momentum = carry
        following = jnp.maximum(0.0, ahead - step * (A @ ahead + b))
        uphill = jnp.sum((ahead - following) * (following - lam)) > 0.0  # then restart
        momentum = jnp.where(uphill, 1.0, momentum)
        momentum_next = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2))
        ahead = following + (momentum - 1.0) / momentum_next * (following - lam)
        return following, ahead, momentum_next

    start = (lam, lam, jnp.ones((), b.dtype))
    return jax.lax.fori_loop(0, STEPS_PER_FACE, iterate, start)[0], STEPS_PER_FACE


def _admm(A: Array, b: Array, lam: Array) -> tuple[Array, int]:
    weight = 0.5  # of the unit diagonal
    factor = _factor(A, weight)

    def iterate(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        clipped, dual = carry
        lam = _cholesky_solve(factor, weight * (clipped - dual) - b)
        relaxed = 1.6 * lam - 0.6 * clipped
        clipped = jnp.maximum(0.0, relaxed + dual)
        return clipped, dual + relaxed - clipped

    start = (lam, -(A @ lam + b) / weight)  # the dual of a solution
    return jax.lax.fori_loop(0, STEPS_PER_FACE, iterate, start)[0], STEPS_PER_FACE


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
    """Returns A and b scaled to a unit diagonal, without flat rows, and d: lam = scaled lam / d."""
    A, b = _without_flat(A, b, float(jnp.finfo(b.dtype).tiny))
    d = jnp.sqrt(jnp.diagonal(A))
    return A / d[:, None] / d[None, :], b / d, d  # one by one: the product of two may underflow


def _without_flat(A: Array, b: Array, least: float) -> tuple[Array, Array]:
    """Makes rows whose diagonal is below `least` those of the identity, with b = 0."""
    flat = jnp.diagonal(A) < least
    identity = jnp.eye(b.shape[0], dtype=b.dtype)
    return jnp.where(flat[:, None] | flat[None, :], identity, A), jnp.where(flat, 0.0, b)


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
