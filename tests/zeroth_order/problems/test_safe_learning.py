"""Oracles for the LB-SGD problems: NumPy formulas, and SLSQP with their hand-made derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

from jaxlab.zeroth_order.problems import safe_learning

CASES = [
    ("qp", 1),
    ("qp", 2),
    ("qp", 7),
    ("rosenbrock", 2),
    ("rosenbrock", 3),
    ("rosenbrock", 4),
    ("gaussian", 2),
    ("gaussian", 10),
    ("gaussian", 20),
    ("gaussian", 300),  # the constraint no longer reaches the minimizer 0
    ("gaussian_inactive", 2),
    ("gaussian_inactive", 20),
]
IDS = [f"{name}-{d}" for name, d in CASES]


def reference(name, d):
    """f, its gradient, h and its Jacobian, in NumPy."""
    if name == "qp":
        A = np.vstack([np.eye(d), -np.eye(d)])
        return (
            lambda x: (x - 2) @ (x - 2) / (4 * d),
            lambda x: (x - 2) / (2 * d),
            lambda x: A @ x - d**-0.5,
            lambda x: A,
        )
    if name == "rosenbrock":
        return (
            rosen,
            rosen_der,
            lambda x: np.array([x @ x - 1, (x + 0.1) @ (x + 0.1) - 0.2]),
            lambda x: np.array([2 * x, 2 * (x + 0.1)]),
        )
    p, weight = d**-0.5, np.full(d, 0.2)
    weight[1] = 10.2
    r = 0.5 if name == "gaussian" else 10.0
    return (
        lambda x: -np.exp(-4 * x @ x),
        lambda x: 8 * x * np.exp(-4 * x @ x),
        lambda x: np.array([weight @ (x - p) ** 2 - r**2]),
        lambda x: 2 * (weight * (x - p))[None],
    )


def best_from(start, name, d):
    f, grad, h, jacobian = reference(name, d)
    result = minimize(
        f,
        start,
        jac=grad,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: -h(x), "jac": lambda x: -jacobian(x)},
        options={"ftol": 1e-16, "maxiter": 500},
    )
    return result.x, f(result.x), np.max(h(result.x))


@pytest.mark.parametrize(("name", "d"), CASES, ids=IDS)
def test_optimum_and_values(x64, name, d):
    problem = safe_learning.safe_learning_problem(name, d)
    f, _, h, _ = reference(name, d)
    rng = np.random.default_rng(d)
    x = np.asarray(problem.x0) + np.vstack([np.zeros(d), 0.1 * rng.standard_normal((5, d))])
    values = jax.jit(jax.vmap(problem.exact))(jnp.vstack([jnp.asarray(x), problem.x_star[None]]))
    # Round-off of values of order 1 (Rosenbrock: 1e3).
    np.testing.assert_allclose(values[0][:-1], [f(row) for row in x], rtol=1e-12)
    np.testing.assert_allclose(values[1][:-1], [h(row) for row in x], rtol=1e-12, atol=1e-13)

    assert np.max(values[1][0]) < -0.05  # the start is strictly feasible
    assert np.max(values[1][-1]) < 1e-12  # the stated optimum is feasible
    np.testing.assert_allclose(values[0][-1], problem.f_star, atol=1e-12)
    # From the feasible side of a point near the optimum: SLSQP stalls on the Gaussian's flat tail.
    found, value, violation = best_from(0.5 * (x[0] + np.asarray(problem.x_star)), name, d)
    assert violation < 1e-9
    np.testing.assert_allclose(value, problem.f_star, atol=1e-9)
    np.testing.assert_allclose(found, problem.x_star, atol=1e-4)


def test_rosenbrock_has_no_better_minimum():
    """SLSQP from all over the small ball, for the problems that are not convex."""
    rng = np.random.default_rng(0)
    for d in (2, 3, 4):
        f_star = safe_learning.safe_learning_problem("rosenbrock", d).f_star
        starts = -0.1 + 0.2 * rng.standard_normal((12, d))
        found = [best_from(start, "rosenbrock", d) for start in starts]
        assert min(value for _, value, violation in found if violation < 1e-9) > f_star - 1e-9


def test_rosenbrock_of_other_dimensions_states_no_optimum():
    problem = safe_learning.safe_learning_problem("rosenbrock", 79)
    assert problem.f_star is None and problem.x_star is None
    assert np.max(jax.jit(problem.exact)(problem.x0)[1]) < 0.0


@pytest.mark.parametrize(("name", "d"), CASES[::3], ids=IDS[::3])
def test_float32_accuracy_is_as_documented(name, d):
    problem = safe_learning.safe_learning_problem(name, d)
    f, _, h, _ = reference(name, d)
    x = np.asarray(problem.x0) + np.float32(0.1) * np.linspace(-1, 1, d, dtype=np.float32)
    values = jax.jit(problem.exact)(jnp.asarray(x))
    assert values[0].dtype == values[1].dtype == jnp.float32
    np.testing.assert_allclose(values[0], f(x.astype(float)), rtol=2e-6)
    np.testing.assert_allclose(values[1], h(x.astype(float)), rtol=2e-6, atol=1e-6)


def test_noise_has_the_stated_law(key):
    """Independent normal noise per output and key; its level may be traced and vmapped."""
    clean = safe_learning.safe_learning_problem("qp", 2)
    sigmas = jnp.array([0.0, 1e-3, 0.5])

    @jax.jit
    @jax.vmap
    def sample(sigma):
        problem = safe_learning.safe_learning_problem("qp", 2, sigma=sigma)
        keys = jax.random.split(key, 4000)
        f, h = jax.vmap(problem.q, (None, 0))(problem.x0, keys)
        return jnp.concatenate([f[:, None], h], axis=1)

    f, h = clean.exact(clean.x0)
    noise = np.asarray(sample(sigmas)) - np.concatenate([f[None], h])
    np.testing.assert_allclose(noise[0], 0.0, atol=1e-6)
    # 4000 draws: 5 standard errors are 5.6 % of a deviation, 0.08 of a mean or a correlation.
    np.testing.assert_allclose(noise[1].std(0), 1e-3, rtol=0.056)
    np.testing.assert_allclose(noise[2].std(0), 0.5, rtol=0.056)
    assert np.max(np.abs(noise[2].mean(0))) < 0.08 * 0.5
    np.testing.assert_allclose(np.corrcoef(noise[2].T), np.eye(5), atol=0.08)
    noisy = safe_learning.safe_learning_problem("qp", 2, sigma=1e-3)
    assert noisy.sigma == 1e-3
    np.testing.assert_array_equal(noisy.exact(noisy.x0)[1], h)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="name must be one of qp"):
        safe_learning.safe_learning_problem("sphere", 2)
    with pytest.raises(ValueError, match="dimension between 2 and 79, got 80"):
        safe_learning.safe_learning_problem("rosenbrock", 80)
    with pytest.raises(ValueError, match="dimension between 2"):
        safe_learning.safe_learning_problem("gaussian", 1)
    with pytest.raises(ValueError, match="sigma"):
        safe_learning.safe_learning_problem("qp", 2, sigma=float("nan"))
