"""Rivals against closed forms: batches of quadratic programs, penalized optima, HS14."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from experiments.rivals import zofl as rivals
from jaxlab.zeroth_order import problem

ROOT7 = 7.0**0.5
F_STAR = 9.0 - 23.0 * ROOT7 / 8.0


@pytest.fixture(scope="module")
def programs():
    """Four convex quadratic programs in 6 variables: Q, c, A, b with 4 rows of A, and starts."""
    rng = np.random.default_rng(5)
    G = 0.3 * rng.normal(size=(4, 6, 6))
    Q = np.eye(6) + G @ G.swapaxes(1, 2)
    return Q, rng.normal(size=(4, 6)), rng.normal(size=(4, 4, 6)), 0.3 * rng.normal(size=(4, 4))


def oracle(Q, c, A, b):
    def q(points):
        f = 0.5 * np.einsum("ikn,inm,ikm->ik", points, Q, points)
        f = f + np.einsum("ikn,in->ik", points, c)
        return f, np.einsum("ikn,imn->ikm", points, A) - b[:, None]

    return q


@pytest.mark.parametrize("num_directions", [6, 3], ids=["all", "half"])
def test_numpy_zofl_reaches_the_kkt_point_of_equalities(programs, num_directions):
    """[Q A'; A 0] [x; lam] = [-c; b], and the violation falls by exactly 1 - a per step.

    Half of the directions span a random subspace per step: slower, but as feasible.
    """
    Q, c, A, b = (part[:, :2] if i > 1 else part for i, part in enumerate(programs))
    run = rivals.numpy_zofl(
        oracle(Q, c, A, b),
        np.ones((4, 6)),
        m_eq=2,
        eta=0.3 * num_directions / 6,
        a=0.5,
        u=1e-3,
        num_directions=num_directions,
        num_steps=600,
        ridge=1e-14,
    )
    for i in range(4):
        kkt = np.block([[Q[i], A[i].T], [A[i], np.zeros((2, 2))]])
        want = np.linalg.solve(kkt, np.concatenate([-c[i], b[i]]))[:6]
        # Differences of quadratics are exact up to their round-off, 1e-16 / 1e-3.
        np.testing.assert_allclose(run.x[i], want, atol=1e-9)
    envelope = run.violation[0] * 0.5 ** np.arange(30)[:, None]
    np.testing.assert_allclose(run.violation[:30], envelope, rtol=1e-3, atol=1e-9)
    assert run.queries == 600 * (1 + 2 * num_directions)


def test_numpy_zofl_with_inequalities_and_a_box_agrees_with_slsqp(programs):
    """One equality, three inequalities of which some are active, and bounds of which some are."""
    Q, c, A, b = programs
    b = b + np.array([0.0, 0.4, -0.1, 0.2])
    run = rivals.numpy_zofl(
        oracle(Q, c, A, b),
        np.zeros((4, 6)),
        m_eq=1,
        eta=0.3,
        a=0.5,
        u=1e-3,
        num_directions=6,
        num_steps=300,
    )
    active = 0
    for i in range(4):
        want = scipy.optimize.minimize(
            lambda x, i=i: 0.5 * x @ Q[i] @ x + c[i] @ x,
            np.zeros(6),
            method="SLSQP",
            jac=lambda x, i=i: Q[i] @ x + c[i],
            constraints=[
                {"type": "eq", "fun": lambda x, i=i: A[i, :1] @ x - b[i, :1]},
                {"type": "ineq", "fun": lambda x, i=i: b[i, 1:] - A[i, 1:] @ x},
            ],
            options={"ftol": 1e-14},
        ).x
        np.testing.assert_allclose(run.x[i], want, atol=1e-6)  # SLSQP's own accuracy
        active += (np.abs(A[i, 1:] @ want - b[i, 1:]) < 1e-6).sum()
    assert 0 < active < 12

    # Without constraints in a box it is projected descent: clip(-c) for Q = I.
    def plain(points):
        f = 0.5 * (points**2).sum(axis=2) + np.einsum("ikn,in->ik", points, c)
        return f, np.zeros((*f.shape, 0))

    boxed = rivals.numpy_zofl(
        plain,
        np.zeros((4, 6)),
        m_eq=0,
        eta=0.5,
        a=0.5,
        u=1e-3,
        num_directions=6,
        num_steps=60,
        lb=-0.5,
        ub=0.3,
    )
    np.testing.assert_allclose(boxed.x, np.clip(-c, -0.5, 0.3), atol=1e-9)
    np.testing.assert_array_equal(boxed.violation, 0.0)


def test_numpy_zofl_keeps_float32_and_names_too_many_directions(programs):
    Q, c, A, b = (part.astype(np.float32) for part in programs)
    settings = {"m_eq": 1, "eta": 0.3, "a": 0.5, "u": 1e-2, "num_steps": 3}
    q = oracle(Q, c, A, b)
    run = rivals.numpy_zofl(q, np.zeros((4, 6), np.float32), num_directions=6, **settings)
    assert run.x.dtype == np.float32
    with pytest.raises(ValueError, match="between 1 and n = 6, got 7"):
        rivals.numpy_zofl(q, np.zeros((4, 6)), num_directions=7, **settings)


def projection(z, weight_rows):
    """min |x - z|^2 / 2 with A x = b, an instance of a family over z."""
    A, b = weight_rows

    def fun(x):
        return 0.5 * jnp.sum((x - z) ** 2), A @ x - b

    return problem.make_problem(fun, jnp.zeros_like(z), m_eq=A.shape[0])


@pytest.mark.parametrize("exact_gradients", [True, False], ids=["exact", "estimated"])
def test_optax_penalty_reaches_the_penalized_optimum(x64, key, exact_gradients):
    """(I + rho A'A) x = z + rho A'b for a constant weight, a batch of instances in one program."""
    rng = np.random.default_rng(2)
    A, b, z, rho = rng.normal(size=(2, 4)), rng.normal(size=2), rng.normal(size=(3, 4)), 3.0

    @jax.jit
    @jax.vmap
    def solve(key, z):
        return rivals.optax_penalty(
            key,
            projection(z, (jnp.asarray(A), jnp.asarray(b))),
            num_steps=600,
            learning_rate=0.1,
            weight=rho,
            growth=1.0,
            exact_gradients=exact_gradients,
        )

    run = solve(jax.random.split(key, 3), jnp.asarray(z))
    want = np.linalg.solve(np.eye(4) + rho * A.T @ A, (z + rho * A.T @ b).T).T
    # Adam's last steps shrink along the cosine; differences of quadratics err by 1e-13.
    np.testing.assert_allclose(run.x, want, atol=1e-6)
    np.testing.assert_array_equal(run.queries, 0 if exact_gradients else 600 * 9)
    violation = np.abs(np.asarray(run.x) @ A.T - b).max(axis=1)
    np.testing.assert_allclose(run.violation[:, -1], violation, atol=1e-5)


def test_growing_weight_approaches_the_constrained_optimum(x64, key):
    """min |x - (2, 1)|^2 / 2, x_0 + x_1 <= 2, x_0 <= 1.2 as a bound: (1.2, 0.8), multiplier 0.2.

    At weight 1e3 the violation of the inequality is the multiplier over the weight.
    """

    def fun(x):
        return 0.5 * jnp.sum((x - jnp.array([2.0, 1.0])) ** 2), (jnp.sum(x) - 2.0)[None]

    p = problem.make_problem(fun, jnp.zeros(2))._replace(ub=jnp.array([1.2, jnp.inf]))
    run = jax.jit(
        lambda key: rivals.optax_penalty(
            key, p, num_steps=1500, learning_rate=0.05, growth=1.02, max_weight=1e3
        )
    )(key)
    np.testing.assert_allclose(run.x, [1.2, 0.8 + 2e-4], atol=2e-5)
    assert float(run.x[0]) <= 1.2


def test_exact_gradients_need_an_exact_problem(key):
    p = problem.make_problem(
        lambda x, key: (jnp.sum(x**2), x), jnp.ones(2), takes_key=True, sigma=0.1
    )
    with pytest.raises(ValueError, match="exact_gradients needs a problem"):
        rivals.optax_penalty(key, p, num_steps=2, exact_gradients=True)
