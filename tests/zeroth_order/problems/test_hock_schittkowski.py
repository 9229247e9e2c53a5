"""Oracles for the Hock-Schittkowski problems: the book's values, NumPy, KKT conditions, SLSQP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxlab.zeroth_order.problems import hock_schittkowski

# Objective at the start and at the optimum, as published, with the digits of the publication.
BOOK = {
    "HS6": (4.84, 0.0),
    "HS7": (-0.39056209, -1.7320508),
    "HS12": (0.0, -30.0),
    "HS26": (21.16, 0.0),
    "HS28": (13.0, 0.0),
    "HS39": (-2.0, -1.0),
    "HS40": (-0.4096, -0.25),
    "HS42": (14.0, 13.8578644),
    "HS43": (0.0, -44.0),
    "HS71": (16.0, 17.0140173),
    "HS77": (4.0, 0.24150513),
    "HS78": (-6.0, -2.91970041),
    "HS79": (1.0, 0.0787768209),
    "HS100": (714.0, 680.6300573),
    "HS113": (753.0, 24.3062091),
}
NAMES = pytest.mark.parametrize("name", hock_schittkowski.HS_NAMES)


@functools.cache
def problem_with_derivatives(name):
    """The problem and one compiled function x -> (f, h, gradient, Jacobian); called under x64."""
    problem = hock_schittkowski.hs(name)

    def stacked(x):
        f, h = problem.exact(x)
        values = jnp.concatenate([f[None], h])
        return values, values

    @jax.jit
    def all_of(x):
        jacobian, values = jax.jacfwd(stacked, has_aux=True)(x)
        return values[0], values[1:], jacobian[0], jacobian[1:]

    return problem, lambda x: tuple(np.asarray(part) for part in all_of(jnp.asarray(x)))


def book_form(name, x):
    """f, equalities h = 0 and inequalities g >= 0, as sums over arrays indexed from 0."""
    i = np.arange(1, x.size + 1)
    gaps = x[:-1] - x[1:]
    root = np.sqrt(2.0)
    if name == "HS6":
        return (1 - x[0]) ** 2, [10 * (x[1] - x[0] ** 2)], []
    if name == "HS7":
        return np.log(1 + x[0] ** 2) - x[1], [(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4], []
    if name == "HS12":
        f = 0.5 * x @ np.array([[1, -1], [-1, 2]]) @ x - 7 * x.sum()
        return f, [], [25 - [4, 1] @ x**2]
    if name == "HS26":
        return gaps[0] ** 2 + gaps[1] ** 4, [x[0] + x[0] * x[1] ** 2 + x[2] ** 4 - 3], []
    if name == "HS28":
        return np.sum((x[:-1] + x[1:]) ** 2), [i @ x - 1], []
    if name == "HS39":
        return -x[0], [x[1] - x[0] ** 3 - x[2] ** 2, x[0] ** 2 - x[1] - x[3] ** 2], []
    if name == "HS40":
        h = [x[0] ** 3 + x[1] ** 2 - 1, x[0] ** 2 * x[3] - x[2], x[3] ** 2 - x[1]]
        return -np.prod(x), h, []
    if name == "HS42":
        return np.sum((x - i) ** 2), [x[0] - 2, x[2:] @ x[2:] - 2], []
    if name == "HS43":
        f = [1, 1, 2, 1] @ x**2 + [-5, -5, -21, 7] @ x
        squares = np.array([[1, 1, 1, 1], [1, 2, 1, 2], [2, 1, 1, 0]])
        linear = np.array([[1, -1, 1, -1], [-1, 0, 0, -1], [2, -1, 0, -1]])
        return f, [], [8, 10, 5] - squares @ x**2 - linear @ x
    if name == "HS71":
        return x[0] * x[3] * x[:3].sum() + x[2], [x @ x - 40], [np.prod(x) - 25]
    if name == "HS77":
        f = gaps[0] ** 2 + np.sum((x[[0, 2, 3, 4]] - 1) ** [2, 2, 4, 6])
        h = [
            x[0] ** 2 * x[3] + np.sin(x[3] - x[4]) - 2 * root,
            x[1] + x[2] ** 4 * x[3] ** 2 - 8 - root,
        ]
        return f, h, []
    if name == "HS78":
        h = [x @ x - 10, x[1] * x[2] - 5 * x[3] * x[4], np.sum(x[:2] ** 3) + 1]
        return np.prod(x), h, []
    if name == "HS79":
        h = [
            np.sum(x[:3] ** [1, 2, 3]) - 2 - 3 * root,
            x[1] - x[2] ** 2 + x[3] + 2 - 2 * root,
            x[0] * x[4] - 2,
        ]
        return (x[0] - 1) ** 2 + np.sum(gaps ** [2, 2, 4, 4]), h, []
    if name == "HS100":
        f = [1, 5, 1, 3, 10, 7, 1] @ (x - [10, 12, 0, 11, 0, 0, 0]) ** [2, 2, 4, 2, 6, 2, 4]
        f = f - 4 * x[5] * x[6] - 10 * x[5] - 8 * x[6]
        g = [
            127 - [2, 3, 1, 4, 5] @ x[:5] ** [2, 4, 1, 2, 1],
            282 - [7, 3, 10, 1, -1] @ x[:5] ** [1, 1, 2, 1, 1],
            196 - [23, 1, 6, -8] @ x[[0, 1, 5, 6]] ** [1, 2, 2, 1],
            -([4, 1, 2, 5, -11] @ x[[0, 1, 2, 5, 6]] ** [2, 2, 2, 1, 1]) + 3 * x[0] * x[1],
        ]
        return f, [], g
    if name == "HS113":
        center = np.array([0, 0, 10, 5, 3, 1, 0, 11, 10, 7])
        f = [1, 1, 1, 4, 1, 2, 5, 7, 2, 1] @ (x - center) ** 2
        f = f + x[0] * x[1] - 14 * x[0] - 16 * x[1] + 45
        g = [
            105 - [4, 5, -3, 9] @ x[[0, 1, 6, 7]],
            [-10, 8, 17, -2] @ x[[0, 1, 6, 7]],
            [8, -2, -5, 2] @ x[[0, 1, 8, 9]] + 12,
            [-3, -4, -2] @ (x[:3] - [2, 3, 0]) ** 2 + 7 * x[3] + 120,
            -5 * x[0] ** 2 - 8 * x[1] - (x[2] - 6) ** 2 + 2 * x[3] + 40,
            [-0.5, -2, -3] @ (x[[0, 1, 4]] - [8, 4, 0]) ** 2 + x[5] + 30,
            -(x[0] ** 2) - 2 * (x[1] - 2) ** 2 + 2 * x[0] * x[1] - 14 * x[4] + 6 * x[5],
            [3, -6, 7] @ x[[0, 1, 9]] - 12 * (x[8] - 8) ** 2,
        ]
        return f, [], g
    raise KeyError(name)


@NAMES
def test_values(x64, name):
    """The published objective at the start; everything against NumPy there and elsewhere."""
    problem, value = problem_with_derivatives(name)
    x0 = np.asarray(problem.x0)
    np.testing.assert_allclose(value(x0)[0], BOOK[name][0], rtol=1e-8)
    random = np.random.default_rng(1)
    for x in (x0, x0 + random.normal(size=x0.shape), random.normal(size=x0.shape)):
        f, h, g = book_form(name, x)
        got = value(x)
        np.testing.assert_allclose(got[0], f, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got[1], [*h, *(-np.asarray(g))], rtol=1e-12, atol=1e-12)
        assert (problem.m_eq, problem.m_ineq) == (len(h), len(g))


@NAMES
def test_optimum_satisfies_kkt(x64, name):
    """Published value, feasibility, stationarity, signs of multipliers, second-order condition."""
    problem, value = problem_with_derivatives(name)
    x = np.asarray(problem.x_star)
    f, h, grad, J = value(x)
    assert problem.f_star is not None
    # Half a unit of the last printed digit; the rest to rounding of the largest terms (about 1e3).
    np.testing.assert_allclose(problem.f_star, BOOK[name][1], rtol=3e-8)
    np.testing.assert_allclose(f, problem.f_star, rtol=1e-13, atol=1e-14)

    # Bounds as further constraints lb - x <= 0 and x - ub <= 0.
    eye = np.eye(problem.n)
    lb, ub = np.asarray(problem.lb), np.asarray(problem.ub)
    bounded = np.isfinite(lb)
    h_all = np.concatenate([h, (lb - x)[bounded], (x - ub)[bounded]])
    J_all = np.concatenate([J, -eye[bounded], eye[bounded]])
    assert np.abs(h_all[: problem.m_eq]).max(initial=0.0) < 1e-12
    assert h_all[problem.m_eq :].max(initial=0.0) < 1e-12
    active = (np.arange(h_all.size) < problem.m_eq) | (np.abs(h_all) < 1e-12)
    rows = J_all[active]
    lam, _, rank, _ = np.linalg.lstsq(rows.T, -grad, rcond=None)
    assert rank == active.sum()  # linear independence: the multipliers are unique
    assert np.linalg.norm(grad + rows.T @ lam) < 1e-11
    assert (lam[problem.m_eq :] > 1e-3).all()  # strict complementarity

    # The Lagrangian curves upward along the constraints, or (HS26) does not curve down.
    tangent = eye[:, : problem.n - rank]
    if rank < problem.n:
        tangent = np.linalg.svd(rows)[2][rank:].T
    used = [i for i, on in enumerate(active[: problem.m]) if on]

    def lagrangian(x_):
        f_, h_ = problem.exact(x_)
        return f_ + jnp.sum(jnp.asarray(lam[: len(used)]) * h_[jnp.asarray(used)])

    hessian = np.asarray(jax.jit(jax.hessian(lagrangian))(problem.x_star))
    curvature = np.linalg.eigvalsh(tangent.T @ hessian @ tangent)
    assert (curvature > (-1e-12 if name == "HS26" else 1e-3)).all()


@NAMES
def test_slsqp_from_the_start_finds_the_optimum(x64, name):
    problem, value = problem_with_derivatives(name)
    m_eq = problem.m_eq
    constraints = []
    if m_eq:
        constraints.append(
            {"type": "eq", "fun": lambda x: value(x)[1][:m_eq], "jac": lambda x: value(x)[3][:m_eq]}
        )
    if problem.m_ineq:
        constraints.append(
            {
                "type": "ineq",
                "fun": lambda x: -value(x)[1][m_eq:],
                "jac": lambda x: -value(x)[3][m_eq:],
            }
        )
    found = optimize.minimize(
        lambda x: float(value(x)[0]),
        np.asarray(problem.x0),
        jac=lambda x: value(x)[2],
        bounds=list(zip(np.asarray(problem.lb), np.asarray(problem.ub), strict=True)),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )
    # SLSQP stops at a relative change of f of 1e-12 and a like violation.
    np.testing.assert_allclose(found.fun, problem.f_star, rtol=1e-8, atol=1e-8)


def test_default_dtype_is_float32():
    """All problems in one program; rounding of values up to 1e3 gives errors of about 1e-4."""
    problems = [hock_schittkowski.hs(name) for name in hock_schittkowski.HS_NAMES]
    values = jax.jit(lambda: [problem.exact(problem.x_star) for problem in problems])()
    for problem, (f, h) in zip(problems, values, strict=True):
        assert problem.x0.dtype == problem.lb.dtype == f.dtype == h.dtype == jnp.float32
        np.testing.assert_allclose(f, problem.f_star, rtol=1e-6, atol=1e-6)
        assert np.abs(h[: problem.m_eq]).max(initial=0.0) < 1e-5
        assert h[problem.m_eq :].max(initial=0.0) < 1e-4


def test_unknown_name():
    with pytest.raises(ValueError, match="name must be one of HS6, .* got 'HS1'"):
        hock_schittkowski.hs("HS1")
