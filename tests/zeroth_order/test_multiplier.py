"""The multiplier against non-negative least squares, enumeration, and least squares."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxlab.zeroth_order import multiplier


def _systems(seed, num, m, n, m_eq=0):
    rng = np.random.default_rng(seed)
    J = rng.normal(size=(num, m, n)) * rng.uniform(0.1, 10.0, size=(num, m, 1))
    b = np.einsum("kij,kj->ki", J, rng.normal(size=(num, n)))
    b[:, m_eq:] += 0.3 * np.abs(rng.normal(size=(num, m - m_eq)))  # feasible: -K h >= 0
    return np.einsum("kij,klj->kil", J, J), b


def _by_enumeration(A, b, m_eq):
    """The first active set whose solution satisfies the conditions, in plain NumPy."""
    m = len(b)
    for size in range(m - m_eq + 1):
        for chosen in itertools.combinations(range(m_eq, m), size):
            idx = [*range(m_eq), *chosen]
            lam = np.zeros(m)
            lam[idx] = -np.linalg.solve(A[np.ix_(idx, idx)], b[idx])
            slope = A @ lam + b
            if (lam[m_eq:] > -1e-12).all() and (slope[m_eq:] > -1e-9).all():
                return lam
    raise AssertionError("no active set found")


@pytest.mark.parametrize("solver", multiplier.SOLVERS)
@pytest.mark.parametrize("m_eq", [0, 2])
def test_solves_equal_enumeration(x64, solver, m_eq):
    A, b = _systems(m_eq, 30, 5, 8, m_eq)
    lam, residual = jax.jit(
        jax.vmap(lambda A, b: multiplier.fl_multiplier(A, b, m_eq, solver=solver, iterations=2000))
    )(A, b)
    expected = np.stack([_by_enumeration(a, c, m_eq) for a, c in zip(A, b, strict=True)])
    np.testing.assert_allclose(lam, expected, rtol=1e-6, atol=1e-7)
    slope = np.einsum("kij,kj->ki", A, lam) + b
    by_hand = np.abs(
        np.concatenate([slope[:, :m_eq], np.minimum(lam, slope)[:, m_eq:]], axis=1)
    ).max(1)
    np.testing.assert_allclose(residual, by_hand, atol=1e-12)


def test_default_solver_equals_nnls_to_rounding(x64):
    """min 1/2 lam'A lam + b'lam over lam >= 0 is the NNLS of |L'lam + L^-1 b| with A = L L'."""
    A, b = _systems(3, 20, 8, 12)
    lam, residual = jax.jit(jax.vmap(lambda A, b: multiplier.fl_multiplier(A, b, 0)))(A, b)
    for k in range(len(A)):
        L = np.linalg.cholesky(A[k])
        expected, _ = scipy.optimize.nnls(L.T, -np.linalg.solve(L, b[k]))
        np.testing.assert_allclose(lam[k], expected, rtol=1e-9, atol=1e-10)
    assert float(residual.max()) < 1e-9 * np.abs(b).max()


def test_more_constraints_than_directions(x64):
    """Rank 5 of 47, as in the black-box power flow: lam is not unique, the conditions hold."""
    A, b = _systems(4, 40, 47, 5)
    lam, residual = jax.jit(jax.vmap(lambda A, b: multiplier.fl_multiplier(A, b, 0)))(A, b)
    assert float(jnp.min(lam)) >= 0.0
    assert float(jnp.median(residual)) < 1e-10
    # Degenerate systems may use up the sweeps; they stay close and say how close.
    assert float(residual.max()) < 0.05 * np.abs(b).max()


def test_float32_conditions_hold_to_its_rounding():
    A, b = (v.astype(np.float32) for v in _systems(5, 50, 6, 10, 2))
    lam, residual = jax.jit(jax.vmap(lambda A, b: multiplier.fl_multiplier(A, b, 2)))(A, b)
    scale = np.abs(A).max((1, 2)) * np.abs(lam).max(1) + np.abs(b).max(1)
    assert (np.asarray(residual) < 1e-4 * scale).all()


def test_the_ridge_leaves_no_trace_on_a_regular_system(x64):
    rng = np.random.default_rng(6)
    J = rng.normal(size=(4, 9))
    b = rng.normal(size=4)
    lam = multiplier.solve_free(jnp.asarray(J @ J.T), jnp.asarray(b))
    np.testing.assert_allclose(lam, -np.linalg.solve(J @ J.T, b), rtol=1e-11)


def test_dependent_rows_share_the_least_norm_multiplier(x64):
    rng = np.random.default_rng(7)
    J = rng.normal(size=(3, 9))
    J = np.concatenate([J, J[:1]])  # the first constraint twice: LICQ fails
    A, b = J @ J.T, J @ rng.normal(size=9)
    lam = multiplier.solve_free(jnp.asarray(A), jnp.asarray(b))
    np.testing.assert_allclose(lam, -np.linalg.pinv(A) @ b, rtol=1e-6)


def test_scaling_a_constraint_scales_its_multiplier_inversely(x64):
    A, b = _systems(8, 1, 6, 9, 2)
    d = np.array([1e-4, 3.0, 1e5, 1.0, 0.2, 1e3])
    lam, _ = multiplier.fl_multiplier(jnp.asarray(A[0]), jnp.asarray(b[0]), 2)
    scaled, _ = multiplier.fl_multiplier(
        jnp.asarray(A[0] * d[:, None] * d[None]), jnp.asarray(b[0] * d), 2
    )
    np.testing.assert_allclose(scaled * d, lam, rtol=1e-8, atol=1e-10)


def test_clip_is_exact_for_one_inequality_and_wrong_for_two(x64):
    A, b = _systems(9, 20, 1, 4)
    clip = jax.vmap(lambda A, b: multiplier.fl_multiplier(A, b, 0, "clip")[0])(A, b)
    np.testing.assert_allclose(clip, np.maximum(0.0, -b / A[:, 0]), rtol=1e-9)
    A, b = jnp.array([[1.0, 0.9], [0.9, 1.0]]), jnp.array([-1.0, -0.5])
    clipped, residual = multiplier.fl_multiplier(A, b, 0, "clip")
    exact, _ = multiplier.fl_multiplier(A, b, 0)
    np.testing.assert_allclose(exact, [1.0, 0.0], atol=1e-12)
    assert float(residual) > 0.5 and float(clipped[0]) > 2.0


def test_inconsistent_constraints_hit_the_cap_and_show_in_the_residual(x64):
    """Two copies of one row that ask for different decay cannot both be satisfied."""
    A, b = jnp.ones((2, 2)), jnp.array([1.0, -1.0])
    lam, residual = multiplier.fl_multiplier(A, b, 2, max_multiplier=100.0)
    assert float(jnp.abs(lam).max()) <= 100.0
    assert float(residual) > 0.5
    assert bool(jnp.isfinite(lam).all())


def test_diagonal_multiplier_by_hand():
    A = jnp.asarray([[4.0, 9.0, 9.0, 9.0], [9.0, 2.0, 9.0, 9.0], [9.0] * 2 + [5.0, 9.0], [0.0] * 4])
    b = jnp.asarray([8.0, -6.0, 5.0, -3.0])
    lam = multiplier.diagonal_multiplier(A, b, 1)  # an equality is free, a row of zeros harmless
    np.testing.assert_allclose(lam, [-2.0, 3.0, 0.0, 3.0], rtol=1e-6)


def test_slack_system_is_the_closed_form(x64):
    rng = np.random.default_rng(10)
    J, grad, h = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=3)
    K, s = np.array([1.0, 2.0, 3.0]), np.array([0.4, 1.5])
    A, b = multiplier.slack_system(
        jnp.asarray(J @ J.T), jnp.asarray(J @ grad - K * h), jnp.asarray(K), jnp.asarray(s), 1
    )
    # The same by stacking (x, s): J~ = [J, diag(s)] and h~ = h + s^2 / 2.
    full = np.concatenate([J, np.array([[0, 0], [0.4, 0], [0, 1.5]])], axis=1)
    h_full = h + np.array([0.0, 0.08, 1.125])
    np.testing.assert_allclose(A, full @ full.T, rtol=1e-12)
    np.testing.assert_allclose(b, full @ np.append(grad, [0, 0]) - K * h_full, rtol=1e-12)
    start = multiplier.initial_slack(jnp.array([-2.0, 0.5]))
    np.testing.assert_allclose(start, [2.0, np.sqrt(0.02)])


def test_rows_of_zeros_and_empty_systems(x64):
    lam, residual = multiplier.fl_multiplier(jnp.zeros((2, 2)), jnp.zeros(2), 1)
    np.testing.assert_array_equal(lam, 0.0)
    assert float(residual) == 0.0
    lam, _ = multiplier.fl_multiplier(jnp.zeros((0, 0)), jnp.zeros(0), 0)
    assert lam.shape == (0,)


def test_bad_arguments_are_refused():
    A, b = jnp.eye(8), jnp.ones(8)
    with pytest.raises(ValueError, match="must be \\[m, m\\]"):
        multiplier.fl_multiplier(A, jnp.ones(3), 0)
    with pytest.raises(ValueError, match="mode must be"):
        multiplier.fl_multiplier(A, b, 0, "qp")
    with pytest.raises(ValueError, match="solver must be"):
        multiplier.fl_multiplier(A, b, 0, solver="osqp")
    with pytest.raises(ValueError, match="more than 6"):
        multiplier.fl_multiplier(A, b, 0, solver="enumerate")
    with pytest.raises(ValueError, match="iterations"):
        multiplier.fl_multiplier(A, b, 0, iterations=0)


def test_derivative_of_the_multiplier_in_both_modes(x64):
    """Against central differences of the solution, inside the faces of its active sets."""
    rng = np.random.default_rng(0)
    for m_eq in (0, 1):
        J = rng.normal(size=(4, 6))
        A, b = jnp.asarray(J @ J.T), jnp.asarray(3.0 * rng.normal(size=4))

        @jax.jit
        def solve(t, A=A, b=b, m_eq=m_eq):
            lam, _ = multiplier.nnqp(A * (1.0 + t * jnp.cos(A)), b * (1.0 + jnp.sin(t * b)), m_eq)
            return lam

        assert 0 < int((solve(0.0)[m_eq:] == 0.0).sum()) < 4 - m_eq  # some are active, some not
        want = (solve(1e-6) - solve(-1e-6)) / 2e-6
        np.testing.assert_allclose(jax.jacfwd(solve)(0.0), want, atol=1e-6)
        np.testing.assert_allclose(jax.jacrev(solve)(0.0), want, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_flat_row_has_no_say(request, dtype):
    if dtype == "float16":
        request.getfixturevalue("float16")
    A = jnp.diag(jnp.asarray([1.0, 0.0], dtype))
    lam, residual = multiplier.fl_multiplier(A, jnp.asarray([-1.0, 10.0], dtype), 0)
    np.testing.assert_array_equal(lam, [1.0, 0.0])
    assert float(residual) == 0.0 and lam.dtype == dtype


def test_one_flat_row_leaves_the_others_alone():
    """The row of a constraint without a slope: what it wants in vain is told."""
    A = jnp.diag(jnp.asarray([1.0, 0.0]))
    lam, residual = multiplier.fl_multiplier(A, jnp.asarray([-1.0, -10.0]), 0)
    np.testing.assert_array_equal(lam, [1.0, 0.0])
    assert float(residual) == 10.0
    lam, residual = multiplier.fl_multiplier(A, jnp.asarray([-1.0, -10.0]), 2)
    np.testing.assert_allclose(lam, [1.0, 0.0], rtol=1e-6)
    assert float(residual) == 10.0
    # All but flat: scaled by its own slope it is a constraint like any other.
    A = jnp.diag(jnp.asarray([1.0, 1e-20]))
    lam, _ = multiplier.fl_multiplier(A, jnp.asarray([-1.0, 10.0]), 0)
    np.testing.assert_allclose(lam, [1.0, 0.0], rtol=1e-6)
    lam, _ = multiplier.fl_multiplier(A, jnp.asarray([-1.0, -10.0]), 0)
    np.testing.assert_allclose(lam, [1.0, 1e21], rtol=1e-5)


def test_tolerances_are_of_each_row(x64):
    """Rows of 1e-9 beside one of 1e9 that is far from active, in one system."""
    b = jnp.asarray([-1e-9, 1e9, -2e-9])
    for solver in multiplier.SOLVERS:
        lam, _ = multiplier.nnqp(jnp.eye(3), b, 0, solver=solver)
        np.testing.assert_allclose(lam, [1e-9, 0.0, 2e-9], rtol=1e-9)


def test_a_cap_only_acts_on_multipliers_beyond_it(x64):
    lam, _ = multiplier.fl_multiplier(jnp.eye(2), jnp.asarray([-8.0, -2.0]), 0, max_multiplier=4.0)
    np.testing.assert_allclose(lam, [4.0, 1.0], rtol=1e-12)
    lam, _ = multiplier.fl_multiplier(jnp.eye(2), jnp.asarray([-3.0, -2.0]), 0, max_multiplier=4.0)
    np.testing.assert_allclose(lam, [3.0, 2.0], rtol=1e-12)


def _degenerate(seed, num, m_eq, m=5, n=3):
    """Systems of rank 3 with flat and repeated rows, scales of 1e-6 to 1e6, and a feasible point.

    Each has a move F with J F + k <= 0 (equalities: 0), b = -(J F + k) + what F leaves.
    """
    rng = np.random.default_rng(seed)
    J = rng.normal(size=(num, m, n))
    J[:, m_eq:][rng.uniform(size=(num, m - m_eq)) < 0.2] = 0.0
    repeated = rng.uniform(size=num) < 0.5
    J[repeated, -1] = 2.0 * J[repeated, -2]
    slack = np.maximum(0.0, rng.normal(size=(num, m)))
    slack[~J.any(axis=2)] *= 1e3
    slack[:, :m_eq] = 0.0
    b = np.einsum("kij,kj->ki", J, rng.normal(size=(num, n))) + slack
    scale = 10.0 ** rng.uniform(-6.0, 6.0, size=(num, m))
    return J * scale[:, :, None], b * scale


@pytest.mark.parametrize("m_eq", [0, 1])
def test_all_solvers_agree_on_degenerate_systems(x64, m_eq):
    """The velocity J'lam is unique even where lam is not: 10^4 systems, and SciPy on some."""
    J, b = _degenerate(1, 10_000, m_eq)
    A = np.einsum("kij,klj->kil", J, J)
    moves = {}
    for solver in multiplier.SOLVERS:
        solve = jax.jit(
            jax.vmap(
                lambda A, b, s=solver: multiplier.nnqp(A, b, m_eq, solver=s, iterations=400)[0]
            )
        )
        lam = np.asarray(solve(A, b))
        assert np.isfinite(lam).all() and (lam[:, m_eq:] >= 0.0).all()
        moves[solver] = np.einsum("kij,ki->kj", J, lam)
    want = moves["enumerate"]
    size = 1.0 + np.abs(want).max(axis=1, keepdims=True)
    for solver in multiplier.SOLVERS:
        off = np.abs(moves[solver] - want) / size
        assert off.max() < 1e-5, (solver, off.max(), int(off.max(axis=1).argmax()))
    for k in range(50):
        free = J[k].any(axis=1)
        length = np.linalg.norm(J[k, free], axis=1)
        rows, target = J[k, free] / length[:, None], b[k, free] / length
        least = [None if i < m_eq else 0.0 for i in np.flatnonzero(free)]
        found = scipy.optimize.minimize(
            lambda lam, R=rows, t=target: 0.5 * np.sum((lam @ R) ** 2) + lam @ t,
            np.zeros(free.sum()),
            jac=lambda lam, R=rows, t=target: R @ (lam @ R) + t,
            bounds=[(low, None) for low in least],
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000},
        )
        np.testing.assert_allclose(found.x @ rows, want[k], atol=1e-4 * size[k, 0])
