"""Oracles for client-fair logistic regression: the published values, NumPy, SLSQP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxlab.zeroth_order.problems.client_fairness import client_data, fair_logistic


def drawn_again(seed, clients, samples, width):
    """The same stream of the legacy generator through other calls."""
    random = np.random.RandomState(seed)
    locations = random.uniform(-1, 1, size=clients)
    features, labels = [], []
    for location in locations:
        for _ in range(samples):
            features.append(location + random.standard_normal(width))
            labels.append(random.randint(2))
    shape = (clients, samples, width)
    return np.reshape(features, shape), np.reshape(labels, shape[:2])


def client_risks(theta, features, labels):
    """Mean of -ln P(label), by the definition."""
    z = features @ theta
    prob = np.where(labels == 1, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)))
    return -np.log(prob).mean(axis=1)


@pytest.mark.parametrize("sizes", [(43, 5, 200, 10), (7, 3, 11, 4)], ids=str)
def test_data(sizes):
    features, labels = client_data(*sizes)
    want_features, want_labels = drawn_again(*sizes)
    np.testing.assert_allclose(features, want_features, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(labels, want_labels)


def test_values(x64):
    """The published initial loss 2.8906, and NumPy at the start and at a random point."""
    problem = fair_logistic()
    data = drawn_again(43, 5, 200, 10)
    exact = jax.jit(problem.exact)
    assert round(float(exact(problem.x0)[0]), 4) == 2.8906
    for theta in (np.ones(10), np.random.default_rng(3).normal(size=10)):
        risks = client_risks(theta, *data)
        f, h = exact(jnp.asarray(theta))
        np.testing.assert_allclose(f, risks.mean(), rtol=1e-13)
        np.testing.assert_allclose(h, risks - risks.mean() - 0.07, rtol=1e-12, atol=1e-13)
    assert (problem.m_eq, problem.m_ineq) == (0, 5)


def test_optimum(x64):
    """The published 0.6901; no active constraint and a zero gradient; SLSQP from the start."""
    problem = fair_logistic()
    data = drawn_again(43, 5, 200, 10)
    assert round(problem.f_star, 4) == 0.6901
    (f, h), grad = jax.jit(
        lambda x: (problem.exact(x), jax.grad(lambda y: problem.exact(y)[0])(x))
    )(problem.x_star)
    np.testing.assert_allclose(f, problem.f_star, rtol=1e-15)
    # f is convex, so a feasible stationary point is the optimum.
    assert np.linalg.norm(grad) < 1e-15
    assert h.max() < 0.0

    def excess(theta):
        risks = client_risks(theta, *data)
        return 0.07 - (risks - risks.mean())

    found = optimize.minimize(
        lambda theta: client_risks(theta, *data).mean(),
        np.ones(10),
        constraints={"type": "ineq", "fun": excess},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    )
    np.testing.assert_allclose(found.fun, problem.f_star, rtol=1e-10)
    # Gradients by forward differences (1.5e-8) over a curvature of 0.2.
    np.testing.assert_allclose(found.x, problem.x_star, atol=1e-5)


def test_optimum_is_known_only_where_no_constraint_is_active(x64):
    tight = fair_logistic(epsilon=0.0072)
    assert tight.f_star is not None
    slack = -np.asarray(tight.exact(tight.x_star)[1]).max()
    assert 0.0 < slack < 1e-4  # the documented threshold is the right one, to its digits
    for other in ({"epsilon": 0.0071}, {"seed": 44}, {"num_samples": 199}, {"num_clients": 4}):
        problem = fair_logistic(**other)
        assert problem.f_star is None and problem.x_star is None, other


def test_vmap_over_epsilon():
    """In float32, with epsilon traced: h falls by exactly what epsilon grows, f stays."""
    epsilon = jnp.array([0.0, 0.07, 0.5])
    theta = jnp.linspace(-1.0, 1.0, 10)
    f, h = jax.jit(jax.vmap(lambda eps: fair_logistic(epsilon=eps).exact(theta)))(epsilon)
    assert f.dtype == h.dtype == jnp.float32
    risks = client_risks(np.asarray(theta, np.float64), *drawn_again(43, 5, 200, 10))
    np.testing.assert_allclose(f, np.full(3, risks.mean()), rtol=1e-5)
    want = (risks - risks.mean())[None, :] - np.asarray(epsilon)[:, None]
    np.testing.assert_allclose(h, want, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        fair_logistic(epsilon=-0.1)
    with pytest.raises(ValueError, match="must be at least 1"):
        fair_logistic(num_clients=0)
